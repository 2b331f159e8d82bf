"""Files are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from hcmae.files import atomic_path, read_json, write_json


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})

    def half_written() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power"):
        half_written()
    assert read_json(target) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    target.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        read_json(target)
