"""The fuzzer finds what it looks for, reads sound files, and a few damaged ones of every kind end as documented."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzz import Outcome, attempt, damaged, together, workshop
from benchmarks.fuzz_targets import Target, targets

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every input is read by a forked process")


def target(read: Callable[[Path], object]) -> Target:
    return Target(
        "t", {"a": b"0123456789"}, "a", {"a": lambda rng, data: rng.randbytes(4)}, read, (KeyError,), memory=1 << 28
    )


def outcome(read: Callable[[Path], object]) -> Outcome:
    with workshop() as (base, watch):
        return attempt(target(read), {"a": b"x"}, base, watch)


def test_a_value_and_a_documented_error_are_no_findings() -> None:
    assert outcome(lambda path: path.read_bytes()).kind == "value"
    assert outcome(lambda _: {}["a"]).kind == "documented"


def _spin(_: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda _: os.abort(), "signal"),
        (lambda _: os._exit(0), "signal"),
        (lambda _: 1 // 0, "undocumented"),
        (lambda _: bytearray(8 << 30), "memory"),
        (lambda _: len(b"x" * (1 << 27)), "memory"),
        (lambda path: (path.parents[2] / "outside" / "secret.txt").read_bytes(), "outside"),
        (lambda path: (path.parent / "new").write_bytes(b""), "outside"),
        (lambda path: (path.parents[2] / "new").write_bytes(b""), "outside"),
        (_spin, "no end"),
    ],
)
def test_everything_that_is_looked_for_is_found(
    read: Callable[[Path], object], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 1)
    assert outcome(read).kind == kind


def test_one_that_ends_its_process_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> None:
        number = path.read_bytes()
        if number in (b"2", b"5"):
            os.abort()
        if number == b"3":
            raise ValueError("three")

    with workshop() as (base, watch):
        found = together(target(read), [{"a": str(number).encode()} for number in range(7)], base, watch)
    assert [o.kind for o in found] == ["value", "value", "signal", "undocumented", "value", "signal", "value"]


@pytest.fixture(scope="module")
def every() -> list[Target]:
    return targets()


def test_an_input_is_the_same_whenever_it_is_made(every: list[Target]) -> None:
    for one in every:
        assert damaged(one, 3, 14) == damaged(one, 3, 14), one.name


def test_sound_files_are_read_and_damaged_ones_end_as_documented(every: list[Target]) -> None:
    """What ``python -m benchmarks.fuzz`` does for an hour, for a moment."""
    with workshop() as (base, watch):
        for one in every:
            inputs = [dict(one.files), damaged(one, 0, 1)]
            assert inputs[1] != inputs[0], one.name
            sound, other = together(one, inputs, base, watch)
            assert sound.kind == "value", (one.name, sound)
            assert other.kind in ("value", "documented"), (one.name, other)
