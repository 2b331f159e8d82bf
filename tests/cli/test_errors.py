"""How commands end: one line and status 2 for what the library documents, a traceback for what it does not foresee."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from hcmae.cli import typer_app
from hcmae.cli.errors import Commands, describe
from hcmae.cohort.evidence import CurationError
from hcmae.files import read_json
from tests.support.local_cohort import write_tables

ROOT = Path(__file__).resolve().parents[2]


def ends(error: BaseException) -> Result:
    """What a command that raises an error prints, and its status."""
    app = typer.Typer(cls=Commands)

    @app.command("one")
    def one() -> None:
        raise error

    app.command("two")(lambda: None)
    return CliRunner().invoke(app, ["one"])


def documented_errors() -> list[type[Exception]]:
    """Every exception class of the library."""
    found = []
    for path in sorted((ROOT / "hcmae").rglob("*.py")):
        names = re.findall(r"^class (\w+)\(\w*(?:Error|Exception)\)", path.read_text(encoding="utf-8"), re.MULTILINE)
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found += [getattr(importlib.import_module(module), name) for name in names]
    return found


def test_every_error_of_the_library_ends_in_one_line_and_status_2() -> None:
    kinds = documented_errors()
    assert {"CurationError", "SlideError", "OmicsFormatError", "ConfigError", "FetchError"} <= {
        k.__name__ for k in kinds
    }
    for kind in kinds:
        error = kind.__new__(kind)
        error.args = ("first line\n  second line",)
        result = ends(error)
        assert result.exit_code == 2, kind
        assert result.stderr.startswith("hcmae: "), kind
        assert result.stderr.count("\n") == 1, kind


def test_an_error_that_nobody_foresaw_keeps_its_traceback() -> None:
    result = ends(ValueError("array is too big"))
    # Raised by this test and not by the library.
    assert isinstance(result.exception, ValueError)
    assert result.exit_code == 1


def test_errors_of_the_disk_name_the_file(tmp_path: Path) -> None:
    result = ends(FileNotFoundError(2, "No such file or directory", str(tmp_path / "x")))
    assert (result.exit_code, result.stderr) == (2, f"hcmae: {tmp_path / 'x'}: No such file or directory\n")
    assert describe(KeyError("no such thing")) == "no such thing"


def test_a_refusal_written_as_plain_value_error_in_the_library_is_foreseen(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json") as caught:
        read_json(tmp_path / "a.json")
    assert ends(caught.value).exit_code == 2


def test_debug_shows_where_an_error_arose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCMAE_DEBUG", "1")
    assert isinstance(ends(CurationError("no")).exception, CurationError)


def test_stopping_a_command_says_that_it_can_go_on() -> None:
    result = ends(KeyboardInterrupt())
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr


def test_warnings_are_one_line() -> None:
    app = typer.Typer(cls=Commands)

    @app.command("one")
    def one() -> None:
        warnings.warn("many\n  words", UserWarning, stacklevel=1)

    app.command("two")(lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert CliRunner().invoke(app, ["one"]).stderr == "hcmae: warning: many; words\n"


def test_a_cohort_that_cannot_be_made_ends_in_one_line(tmp_path: Path) -> None:
    root = tmp_path / "data" / "local" / "LIHC"
    write_tables(root, ["P1", "P2"])
    (root / "rna.tsv").write_text("patient\tG1\nP1\t1\nP1\t2\n")
    places = ["--source", "local", "--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(typer_app, ["run", "curate", "--no-slides", *places])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"hcmae: {root / 'rna.tsv'}: patient P1 comes twice; keep one row per patient, or one per sample "
        "under its barcode"
    ]
