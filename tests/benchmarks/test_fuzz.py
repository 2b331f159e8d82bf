"""The fuzzer finds what it looks for, reads sound files, and a few damaged ones of every kind end as documented."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz
from benchmarks.fuzz import Outcome, attempt, damaged, together, workshop
from benchmarks.fuzz_targets import Target, read_slide, targets
from tests.support.hostile_slides import HIER_ROOT, write_mrxs, write_ndpi
from tests.support.twin_slides import paint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every input is read by a forked process")


def target(read: Callable[[Path], object]) -> Target:
    return Target(
        "t", {"a": b"0123456789"}, "a", {"a": lambda rng, data: rng.randbytes(4)}, read, (KeyError,), memory=1 << 26
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_input_is_the_same_whenever_it_is_made(every: list[Target]) -> None:
    for one in every:
        assert damaged(one, 3, 14) == damaged(one, 3, 14), one.name


@pytest.mark.slow
def test_sound_files_are_read_and_damaged_ones_end_as_documented(every: list[Target]) -> None:
    """What ``python -m benchmarks.fuzz`` does for an hour, for a moment."""
    with workshop() as (base, watch):
        for one in every:
            inputs = [dict(one.files), damaged(one, 0, 1)]
            assert inputs[1] != inputs[0], one.name
            sound, other = together(one, inputs, base, watch)
            assert sound.kind == "value", (one.name, sound)
            assert other.kind in ("value", "documented"), (one.name, other)


MOST = (1 << 31) - 1
# Fields of Index.dat: its page of tiles begins behind both roots, the pointer and the head of the level.
PAGE = HIER_ROOT + 20
LIES: list[tuple[str, dict[str, Any]]] = [
    *(("mrxs", {"records": {0: entry}}) for entry in (
        (0, MOST, 100, 0), (0, 0, MOST, 0), (0, -5, 100, 0), (0, 0, -1, 0), (0, 0, 100, MOST), (0, 0, 100, -1),
        (MOST, 0, 100, 0), (-1, 0, 100, 0),
    )),
    *(("mrxs", {"index": change}) for change in (
        {HIER_ROOT: MOST}, {HIER_ROOT: -1}, {HIER_ROOT + 8: 0}, {HIER_ROOT + 12: 1}, {PAGE: MOST}, {PAGE: -1},
        {PAGE + 4: PAGE},
    )),
    *(("ndpi", {"tags": tags}) for tags in (
        {256: (4, MOST)}, {257: (4, MOST)}, {256: (4, 0)}, {278: (4, 0)}, {279: (4, MOST)}, {273: (4, MOST)},
        {65420: (4, 0)}, {65421: (11, float("nan"))}, {65424: (9, -MOST)}, {65432: (4, [MOST] * 64)},
    )),
    *(("ndpi", {"counts": counts}) for counts in ({65426: MOST}, {65426: 1 << 28}, {65426: 1}, {256: 0})),
    *(("ndpi", {"mcu_starts": change}) for change in (
        lambda starts: [MOST] * len(starts), lambda starts: [0] * len(starts), lambda starts: starts[::-1],
        lambda starts: [at + 1 for at in starts], lambda starts: starts + [MOST] * 100_000,
    )),
    *(("ndpi", {"high": high}) for high in ({273: 1}, {65426: MOST}, {256: MOST})),
]  # fmt: skip


def test_wild_offsets_counts_and_tables_neither_end_the_program_nor_fill_the_memory(tmp_path: Path) -> None:
    """Opened, surveyed and read by a forked process, without another one that opens the file first."""
    picture = paint(256, 256, seed=2)
    inputs: dict[str, list[dict[str, bytes]]] = {"mrxs": [], "ndpi": []}
    for kind, lie in LIES:
        path = {"mrxs": write_mrxs, "ndpi": write_ndpi}[kind](tmp_path / f"a.{kind}", picture, **lie)
        parts = [path, *(tmp_path / "a").glob("*")] if kind == "mrxs" else [path]
        inputs[kind].append({part.relative_to(tmp_path).as_posix(): part.read_bytes() for part in parts})
    with workshop() as (base, watch):
        for kind, files in inputs.items():
            target = Target(kind, files[0], f"a.{kind}", {}, read_slide, memory=1 << 30)
            outcomes = together(target, files, base, watch)
            lies = [lie for other, lie in LIES if other == kind]
            assert [(lie, o) for lie, o in zip(lies, outcomes, strict=True) if o.kind != "value"] == []
