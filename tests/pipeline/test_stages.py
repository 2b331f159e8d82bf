"""Stages: what makes a record hold, what it says when it no longer does, and that unfinished work is no record."""

from __future__ import annotations

from pathlib import Path

import pytest

from hcmae.files import read_json, write_json
from hcmae.keys import Key
from hcmae.pipeline.stages import Stage


def stage(folder: Path, *, inputs: dict[str, str] | None = None, pending: tuple[str, ...] = ()) -> Stage:
    key = Key("step", {"width": 1}, inputs or {"a": "1"}, {"module": "x"})
    return Stage(folder, key, [folder / "out"], lambda: pending)


def make(folder: Path) -> None:
    (folder / "out").write_text("")


def test_work_is_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(tmp_path).state().kind == "missing"
    assert stage(tmp_path).run(lambda: make(tmp_path))
    assert stage(tmp_path).state().done
    assert not stage(tmp_path).run(lambda: pytest.fail("the work was done again"))
    assert capsys.readouterr().out.splitlines()[-1] == f"step: up to date, skipped ({tmp_path.name})"


def test_a_stale_record_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path).run(lambda: make(tmp_path))
    changed = stage(tmp_path, inputs={"a": "2"})
    assert changed.state().why == ("input a: changed",)
    assert changed.run(lambda: None)
    assert "step: again, because input a: changed" in capsys.readouterr().out


def test_a_missing_output_and_an_unfinished_unit_are_not_done(tmp_path: Path) -> None:
    stage(tmp_path).run(lambda: make(tmp_path))
    assert stage(tmp_path, pending=("slide P2 is not done", "slide P1 is not done")).state().why == (
        "slide P1 is not done",
        "slide P2 is not done",
    )
    (tmp_path / "out").unlink()
    assert stage(tmp_path).state().why == ("out is missing",)


def test_work_that_writes_nothing_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without writing"):
        stage(tmp_path).run(lambda: None)
    assert stage(tmp_path).state().kind == "missing"
    with pytest.raises(OSError, match="full"):
        stage(tmp_path).run(lambda: (_ for _ in ()).throw(OSError("disk full")))
    assert stage(tmp_path).state().kind == "missing"


def test_a_record_of_the_first_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_json(tmp_path / "stages" / "step.json", {"key": "0123", "seconds": 1.0, "settings": {}})
    make(tmp_path)
    state = stage(tmp_path).state()
    assert state.kind == "stale"
    assert state.why == ("made by hcmae 0.1, which kept no account of what it read",)
    assert stage(tmp_path).run(lambda: None)
    assert read_json(tmp_path / "stages" / "step.json")["inputs"] == {"a": "1"}


def test_many_reasons_are_counted(tmp_path: Path) -> None:
    stage(tmp_path).run(lambda: make(tmp_path))
    state = stage(tmp_path, inputs=dict.fromkeys("bcdef", "9")).state()
    assert state.reason() == "input a: gone; input b: new; input c: new; and 3 more"
