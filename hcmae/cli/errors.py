"""How a command ends that cannot go on: one line that says what, where and what to do, and an exit status.

Status 2: what was asked for cannot be done (an option, a file, a table, the server). Status 1: it was done, and found
faults or left gaps. Status 130: stopped by the user.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from hcmae.cli.progress import progress_lines

_OURS = ("hcmae", "hcmae_core")


class Commands(TyperGroup):
    """A group of commands none of which ends in a traceback for an error that the library documents."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with progress_lines(), one_line():
            return super().invoke(ctx)


@contextmanager
def one_line() -> Iterator[None]:
    """Errors and warnings of the library in one line each on standard error; HCMAE_DEBUG=1 shows where they arose."""
    debug = bool(os.environ.get("HCMAE_DEBUG"))
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = _warn
        try:
            yield
        except KeyboardInterrupt:
            print("hcmae: stopped; run the same command again to continue", file=sys.stderr)
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug or not _foreseen(error):
                raise
            print(f"hcmae: {describe(error)}", file=sys.stderr)
            raise typer.Exit(2) from None


def describe(error: BaseException) -> str:
    """An error's message in one line; of an error of the disk the file and the reason."""
    if isinstance(error, OSError) and (error.strerror or error.filename):
        where = error.filename or "the disk"
        return f"{where}: {error.strerror or error}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    parts = [" ".join(line.split()) for line in text.splitlines()]
    return "; ".join(part for part in parts if part) or type(error).__name__


def _foreseen(error: BaseException) -> bool:
    """Errors that docstrings name: those of the library's own kinds, of the disk, and values that it refuses itself.

    A ValueError, KeyError or RuntimeError that another package raised is our own fault and keeps its traceback.
    """
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _OURS:
        return True
    if not isinstance(error, (ValueError, KeyError, RuntimeError)):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__", "")).split(".")[0] in _OURS


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    text = "; ".join(" ".join(line.split()) for line in str(message).splitlines() if line.strip())
    print(f"hcmae: warning: {text}", file=sys.stderr)
