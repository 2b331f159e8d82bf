"""Progress where nobody watches a terminal: whole lines, now and then, in place of a bar that is drawn over itself."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

# Seconds between two lines of one bar.
INTERVAL = 30.0


class ProgressLines(io.TextIOBase):
    """Standard error on its way into a file: of what a bar draws over itself one line in ``interval`` seconds is left.

    The last state of a bar is always a line; ``quiet`` leaves out bars altogether. Everything else goes through.
    """

    def __init__(self, stream: TextIO, interval: float = INTERVAL, quiet: bool = False):
        self._stream, self._interval, self._quiet = stream, interval, quiet
        self._drawn: str | None = None  # what a bar drew last
        self._said: str | None = None
        self._next = 0.0
        self._within_line = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def fileno(self) -> int:
        return self._stream.fileno()

    def flush(self) -> None:
        self._stream.flush()

    def write(self, text: str) -> int:
        if text.startswith("\r"):
            self._draw(text.replace("\r", "").strip())
        elif text == "\n" and self._drawn is not None and not self._within_line:
            self._say(self._drawn)  # the bar is closed
            self._drawn = None
        elif text:
            self._stream.write(text)
            self._within_line = not text.endswith("\n")
        return len(text)

    def _draw(self, state: str) -> None:
        if not state:
            return  # a bar that makes room for other text
        if self._drawn is None:
            self._next = time.monotonic() + self._interval
        self._drawn = state
        if time.monotonic() >= self._next:
            self._say(state)
            self._next = time.monotonic() + self._interval

    def _say(self, state: str) -> None:
        if not self._quiet and state != self._said:
            self._stream.write(f"{state}\n")
            self._stream.flush()
            self._said = state


@contextmanager
def progress_lines() -> Iterator[None]:
    """Bars as lines unless standard error is a terminal."""
    if sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(ProgressLines(sys.stderr)):
            yield


@contextmanager
def silence(quiet: bool) -> Iterator[None]:
    """With ``quiet`` nothing is said but warnings and errors."""
    with ExitStack() as stack:
        if quiet:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            stack.enter_context(redirect_stderr(ProgressLines(sys.stderr, quiet=True)))
        yield
