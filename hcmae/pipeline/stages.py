"""What has been done already: one small record per finished stage, chained by keys.

A stage's key is a hash of its settings, the keys of the stages it reads from, and the version of the library. A stage
is fresh when its record carries that key and its outputs are still there; then it is skipped, and says so.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hcmae import __version__
from hcmae.files import read_json, write_json


@dataclass(frozen=True)
class Stage:
    """One stage of a run folder.

    ``folder`` holds the records (``folder/stages/<name>.json``); ``settings`` is anything JSON can hold;
    ``upstream`` are the keys of the stages whose outputs are read.
    """

    folder: Path
    name: str
    settings: Any
    upstream: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        text = json.dumps([self.name, self.settings, list(self.upstream), __version__], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def record_path(self) -> Path:
        return self.folder / "stages" / f"{self.name}.json"

    def record(self) -> dict[str, Any] | None:
        """The record on disk, or None where the stage has never finished here."""
        return read_json(self.record_path) if self.record_path.exists() else None

    def is_fresh(self, outputs: Iterable[Path]) -> bool:
        """True where the record carries this key and every output exists."""
        record = self.record()
        return record is not None and record["key"] == self.key and all(path.exists() for path in outputs)

    def run(self, outputs: Iterable[Path], work: Callable[[], Any], *, say: Callable[[str], None] = print) -> bool:
        """Do ``work`` unless fresh; record key and seconds. Returns True where work was done."""
        outputs = list(outputs)
        if self.is_fresh(outputs):
            say(f"{self.name}: up to date, skipped ({self.record_path.parent.parent.name})")
            return False
        start = time.perf_counter()
        work()
        missing = [str(path) for path in outputs if not path.exists()]
        if missing:
            raise RuntimeError(f"stage {self.name} ended without writing {missing[0]}; nothing was recorded")
        seconds = round(time.perf_counter() - start, 2)
        write_json(self.record_path, {"key": self.key, "seconds": seconds, "settings": self.settings})
        say(f"{self.name}: done in {seconds:.1f} s")
        return True
