"""Progress in a log: lines now and then, the last state of every bar, and everything else as it was written."""

from __future__ import annotations

import contextlib
import io
import sys
import time

import pytest
from tqdm import tqdm
from typer.testing import CliRunner

from hcmae import __version__
from hcmae.cli import typer_app
from hcmae.cli.progress import ProgressLines, silence


def written(interval: float, quiet: bool = False) -> list[str]:
    """The lines of a bar of a thousand steps, with two words of others between them."""
    into = io.StringIO()
    with contextlib.redirect_stderr(ProgressLines(into, interval, quiet)):
        with tqdm(total=1000, desc="slides", mininterval=0) as bar:
            for step in range(1000):
                bar.update()
                if step == 500:
                    tqdm.write("one slide is damaged", file=sys.stderr)
        print("hcmae: warning:", "mind", file=sys.stderr)
        print(file=sys.stderr)
    assert "\r" not in into.getvalue()
    return into.getvalue().split("\n")[:-1]


def test_a_bar_ends_as_one_line_and_other_text_stays() -> None:
    first, bar, warning, empty = written(3600)
    assert (first, warning, empty) == ("one slide is damaged", "hcmae: warning: mind", "")
    assert bar.startswith("slides: 100%")


def test_a_long_bar_speaks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100_000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    lines = [line for line in written(500) if line.startswith("slides")]
    assert 2 < len(lines) < 20
    assert len(set(lines)) == len(lines)


def test_quiet_leaves_out_bars_and_results_and_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert written(0, quiet=True) == ["one slide is damaged", "hcmae: warning: mind", ""]
    with silence(True):
        print("done in 3 s")
        print("hcmae: warning: mind", file=sys.stderr)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hcmae: warning: mind\n")


def test_the_version_is_printed_and_quiet_stands_on_either_side() -> None:
    run = CliRunner().invoke
    assert run(typer_app, ["--version"]).stdout == f"hcmae {__version__}\n"
    assert "curate" in run(typer_app, ["status"]).stdout
    asked = run(typer_app, ["--quiet", "status"])
    assert (asked.exit_code, asked.stdout) == (0, "")
    refused = run(typer_app, ["run", "everything", "--quiet"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "unknown stage 'everything'" in refused.stderr
