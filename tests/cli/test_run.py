"""``hcmae run`` and ``hcmae status``: what they refuse, and that status computes nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.cli.run import methods_asked
from hcmae.config import ConfigError
from hcmae.pipeline.road import STEPS, VERBS
from tests.support.local_cohort import write_manifest, write_tables


def test_status_of_nothing_lists_every_step_and_writes_nothing(tmp_path: Path) -> None:
    places = ["--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(typer_app, ["status", *places])
    assert result.exit_code == 0, result.output
    lines = [line.split()[:2] for line in result.stdout.splitlines()]
    assert lines == [[step.name, "missing"] for step in STEPS if not step.on_request]
    assert not list(tmp_path.iterdir())


def test_a_cancer_of_ones_own_is_curated_from_the_command_line(tmp_path: Path) -> None:
    """Folders with a blank and an umlaut, a manifest in a folder of its own, a digit in the name."""
    home = tmp_path / "meine Läufe"
    write_manifest(home / "manifests", "HCC2")
    write_tables(home / "data" / "local" / "HCC2", [f"P{number}" for number in range(8)])
    (home / "data" / "local" / "HCC2" / "slides").mkdir()
    for number in range(8):
        (home / "data" / "local" / "HCC2" / "slides" / f"P{number}.svs").write_bytes(b"not read by curation")
    options = [
        "--cancer", "HCC2", "--source", "local", "--manifest-dir", str(home / "manifests"),
        "--data-dir", str(home / "data"), "--run-dir", str(home / "runs"),
    ]  # fmt: skip
    done = CliRunner().invoke(typer_app, ["run", "curate", *options])
    assert done.exit_code == 0, done.output
    states = CliRunner().invoke(typer_app, ["status", *options]).stdout.splitlines()
    assert [line.split()[:2] for line in states if line.startswith("curate")] == [["curate", "done"]]


def test_an_unknown_stage_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(VERBS)):
        CliRunner().invoke(typer_app, ["run", "everything"], catch_exceptions=False)


def test_the_name_of_a_table_stands_for_its_rows_that_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    class Data:
        def has(self, need: str) -> bool:
            return need in ("omics", "clinical")

    run = SimpleNamespace(cancer="HCC2", survival_data=Data())
    asked = methods_asked(run, "hcmae,table2")  # type: ignore[arg-type]
    assert asked[0] == "hcmae", "a method asked for by name is run, or says itself what it lacks"
    assert {"coxnet_omics", "trans_mo", "cox_clinical"} <= set(asked)
    assert not {"mcat", "hipt", "gpdbn"} & set(asked)
    assert "mcat" in capsys.readouterr().out
