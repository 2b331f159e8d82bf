"""One step is done once, and again when what it depends on has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hcmae.config import ConfigError
from hcmae.pipeline import stages
from hcmae.pipeline.run import Run


def test_stage_runs_once_and_again_when_settings_or_upstream_change(tmp_path: Path) -> None:
    output, calls = tmp_path / "out.txt", []

    def work() -> None:
        calls.append(1)
        output.write_text("done")

    first = stages.Stage(tmp_path, "cut", {"size": 1})
    assert first.run([output], work)
    assert not first.run([output], work)
    assert stages.Stage(tmp_path, "cut", {"size": 2}).run([output], work)
    assert stages.Stage(tmp_path, "cut", {"size": 2}, ("other",)).run([output], work)
    output.unlink()
    assert stages.Stage(tmp_path, "cut", {"size": 2}, ("other",)).run([output], work)
    assert len(calls) == 4


def test_stage_that_writes_nothing_is_an_error_and_is_not_recorded(tmp_path: Path) -> None:
    stage = stages.Stage(tmp_path, "cut", {})
    with pytest.raises(RuntimeError, match="without writing"):
        stage.run([tmp_path / "never"], lambda: None)
    assert stage.record() is None


def test_run_without_data_says_which_stage_is_missing(tmp_path: Path) -> None:
    run = Run(data_dir=tmp_path / "data", run_dir=tmp_path / "runs")
    with pytest.raises(ConfigError, match="synthesise"):
        run.curate()
    with pytest.raises(FileNotFoundError, match="curate"):
        run.cohort()
    with pytest.raises(FileNotFoundError, match="load_omics"):
        run.omics()
    with pytest.raises(FileNotFoundError, match="make_slides"):
        run.pool()


def test_unknown_source_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown source"):
        Run(source="web")
