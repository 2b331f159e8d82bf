"""The log of a pre-training run: JSON lines, one per interval, written as it goes and read back as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd


class Log:
    """Append records to ``path``; lines after the resumed step are dropped. Optionally TensorBoard as well.

    A line that a killed process left half-written is dropped too.
    """

    def __init__(self, path: Path, step: int, *, tensorboard: bool = False) -> None:
        kept: list[str] = []
        if path.exists() and step > 0:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError):
                    continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(path.parent / "tensorboard" / path.stem, purge_step=step)

    def write(self, record: dict[str, Any]) -> None:
        """Add one record, which holds ``step``; numbers go to TensorBoard where it was asked for."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in record.items():
                if key not in ("step", "epoch"):
                    self._board.add_scalar(key, value, record["step"])

    def close(self) -> None:
        """Close the file and the board."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(path: str | Path) -> pd.DataFrame:
    """A pre-training log as a table: step, epoch, loss, learning_rate and whatever else its stage notes."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])
