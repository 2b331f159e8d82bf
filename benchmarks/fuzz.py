"""Damaged and hostile files for every reader, for a given time: nothing may end but in a value or a documented error.

Each input is read by a forked process with a limit on memory and time, in a folder beside which a secret lies. Findings
are a signal (the program would have ended), an error that the reader does not document, no end, more memory than the
target's bound, and a file touched outside the folder. What kills a process is tried again with the reader's own
precaution, a process that opens the file first, where the reader takes it for such a file.

Run as ``python -m benchmarks.fuzz --minutes 50 --real FOLDER`` on Linux, with a folder of real slides if there is one.
The input number N of a target is always the same for one ``--seed``: ``--only TARGET --number N`` reads it again and
prints what it ended in. Inputs of findings are kept in ``--out``, once for each place in the code; exit status 1 where
there are any.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzz_targets import Target, targets
from hcmae.slides import reader

# Address space that reading one input may take beyond that of the program before; what is in use has bounds of its own.
ADDRESS_SPACE = 3 << 30
CPU_SECONDS, WALL_SECONDS = 8, 300
# Inputs of a target that one process reads, one after the other.
TOGETHER = 40
_INTERESTING = ("signal", "undocumented", "no end", "memory", "outside")
# Where Python may read beside its own folder: libraries, time zones, what the system says about itself.
_READABLE = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib", "/tmp/hcmae-numba")


@dataclass(frozen=True)
class Outcome:
    """What reading one input ended in: ``kind`` 'value', 'documented' or one of a finding; ``where`` in which line."""

    kind: str
    what: str = ""
    where: str = ""
    seconds: float = 0.0
    bytes: int = 0


class Watch:
    """Notices of Linux that a file in a folder is opened, changed or made."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        events = 0x20 | 0x2 | 0x100 | 0x200 | 0x4  # opened, changed, made, removed, attributes
        if self._fd < 0 or self._libc.inotify_add_watch(self._fd, os.fsencode(folder), events) < 0:
            raise OSError(ctypes.get_errno(), "inotify is not available")

    def touched(self) -> list[str]:
        """Names of the files of the folder that were touched since the last call."""
        names = []
        with suppress(BlockingIOError):
            while data := os.read(self._fd, 1 << 16):
                while data:
                    mask, _, size = struct.unpack_from("=III", data, 4)
                    name = data[16 : 16 + size].rstrip(b"\0").decode("utf-8", "replace")
                    # A listing of the folder itself has no name.
                    if name and not mask & 0x40000000:
                        names.append(name)
                    data = data[16 + size :]
        return names

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def workshop() -> Iterator[tuple[Path, Watch]]:
    """A folder for inputs and, beside it, one that nobody may touch, watched."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        base = Path(name)
        (base / "outside").mkdir()
        (base / "work").mkdir()
        import h5py
        import numpy as np

        with h5py.File(base / "outside" / "secret.h5", "w") as file:
            file["secret"] = np.arange(20, dtype=np.int32).reshape(10, 2)
        (base / "outside" / "secret.txt").write_text("patient\ttime_days\tevent\nP1\t1\t1\n")
        watch = Watch(base / "outside")
        try:
            yield base, watch
        finally:
            watch.close()


def damaged(target: Target, seed: int, number: int) -> dict[str, bytes]:
    """The files of one input."""
    rng = random.Random(f"{seed}/{target.name}/{number}")
    files = dict(target.files)
    names = list(target.changed)
    for name in rng.sample(names, 1 if rng.random() < 0.8 else len(names)):
        files[name] = target.changed[name](rng, files[name])
    return files


def together(target: Target, inputs: Sequence[Mapping[str, bytes]], base: Path, watch: Watch) -> list[Outcome]:
    """What many inputs ended in, read one after the other by one process: starting one takes longer than reading.

    Whatever is no value and no documented error is read again alone, in a fresh process, and only that counts.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(inputs):
        rest = inputs[len(outcomes) :]
        for number, files in enumerate(rest):
            _write(base / "work" / str(number), files)
        watch.touched()
        receive, send = os.pipe()
        child = _fork()
        if not child:
            os.close(receive)
            _child_of_many(target, len(rest), base, send)
        os.close(send)
        said, ended = _listen(receive)
        if not ended:
            os.killpg(child, signal.SIGKILL)
        os.wait4(child, 0)
        told = [json.loads(line) for line in said.splitlines() if line.startswith(b"{") and line.endswith(b"}")]
        touched = watch.touched() or {path.name for path in base.iterdir()} - set(_OWN)
        for number, files in enumerate(rest[: len(told) + 1]):
            sound = number < len(told) and told[number]["kind"] in ("value", "documented") and not touched
            if sound:
                outcomes.append(Outcome(**told[number]))
            else:
                outcomes.append(attempt(target, files, base, watch))
        shutil.rmtree(base / "work")
        (base / "work").mkdir()
    return outcomes


def _child_of_many(target: Target, count: int, base: Path, send: int) -> None:
    try:
        _confine(base / "work", os.open(base / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        outside: list[str] = []
        _without_precaution(lambda: None, base / "work", outside)
        most = _most_memory() + target.memory
        before = _cpu()
        for number in range(count):
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # which ends the process
            told = _told(target, base / "work" / str(number) / target.main)
            size, now = _most_memory(), _cpu()
            if outside or size > most or _stray(base / "work" / str(number), target.files):
                break
            facts = {"where": "", "seconds": now - before, "bytes": size}
            os.write(send, json.dumps({**told, **facts}).encode() + b"\n")
            if told["kind"] not in ("value", "documented"):
                break
            before = now
    finally:
        os._exit(0)


def _fork() -> int:
    with warnings.catch_warnings():
        # From Python 3.12 on said wherever there is another thread; none of them holds what a child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _write(work: Path, files: Mapping[str, bytes]) -> None:
    if work.exists():
        shutil.rmtree(work)
    for name, data in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _stray(work: Path, files: Mapping[str, bytes]) -> list[str]:
    """Files that reading has left in the folder of the input; what is hidden is a lock or a memory."""
    found = (path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
    return [name for name in found if name not in files and not Path(name).name.startswith(".")]


def attempt(target: Target, files: Mapping[str, bytes], base: Path, watch: Watch) -> Outcome:
    """Read one input in a process of its own."""
    outcome, asked = _once(target, files, base, watch, precaution=False)
    if asked and outcome.kind in ("signal", "no end", "memory"):
        outcome, _ = _once(target, files, base, watch, precaution=True)
    return outcome


def _once(
    target: Target, files: Mapping[str, bytes], base: Path, watch: Watch, *, precaution: bool
) -> tuple[Outcome, bool]:
    work = base / "alone" / "0"  # as deep as an input among others
    _write(work, files)
    watch.touched()
    receive, send = os.pipe()
    with open(base / "stderr", "wb") as errors:
        child = _fork()
        if not child:
            os.close(receive)
            _child(target, work, send, errors.fileno(), precaution)
        os.close(send)
        said, ended = _listen(receive)
        if not ended:
            os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    told: dict[str, Any] = {}
    asked = b"asked\n" in said
    for line in said.splitlines():
        if line.startswith(b"{"):
            told = json.loads(line)
    seconds, size = usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss
    facts = {"seconds": seconds, "bytes": size}
    outside = [*told.get("outside", []), *watch.touched(), *(p.name for p in base.iterdir() if p.name not in _OWN)]
    stray = _stray(work, files)
    text = (base / "stderr").read_bytes()[: 1 << 16].decode("utf-8", "replace")
    if outside or stray:
        found = Outcome("outside", f"touched {sorted({*outside, *stray})[:5]}", told.get("where", ""), **facts)
    elif not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        found = Outcome("no end", f"after {seconds:.0f} s of processor time", _frame_of(text), **facts)
    elif os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        # What a library says before it ends the program, and the lines of our own that called it.
        said_first = next((line for line in text.splitlines() if line.strip()), "")
        found = Outcome("signal", f"{name} {said_first[:200]}", _frame_of(text), **facts)
    elif not told:
        found = Outcome(
            "signal", f"the program ended with status {os.waitstatus_to_exitcode(status)}", text[-300:], **facts
        )
    elif told["kind"] == "memory" or told["grown"] > target.memory:
        found = Outcome("memory", told["what"] or f"{told['grown'] >> 20} MiB more", told["where"], **facts)
    else:
        found = Outcome(told["kind"], told["what"], told["where"], **facts)
    return found, asked


_OWN = ("work", "alone", "outside", "stderr")


def _most_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _listen(receive: int) -> tuple[bytes, bool]:
    """What a child says until it is gone, and whether it is; not gone where it says nothing for too long."""
    said = b""
    with os.fdopen(receive, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], WALL_SECONDS)[0]:
            block = pipe.read(1 << 16)
            if not block:
                return said, True
            said += block
    return said, False


def _frame_of(text: str) -> str:
    """The innermost line of our own code in what faulthandler wrote."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    return next((line for line in lines if "/hcmae/" in line), lines[0] if lines else "")


def _child(target: Target, work: Path, send: int, errors: int, precaution: bool) -> None:
    """The rest of a forked process: reads, says what came of it, and is gone."""
    try:
        _confine(work, errors)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        outside: list[str] = []
        if not precaution:
            # A process for each of a hundred thousand inputs takes the time: first without.
            _without_precaution(lambda: os.write(send, b"asked\n"), work, outside)
        before = _most_memory()
        told = _told(target, work / target.main)
        facts = {"outside": outside[:5], "grown": _most_memory() - before}
        os.write(send, json.dumps({**told, **facts}).encode() + b"\n")
    finally:
        os._exit(0)


def _confine(work: Path, errors: int) -> None:
    os.setsid()
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    os.chdir(work)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGXCPU, file=2, chain=True)
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: before + ADDRESS_SPACE, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 1 << 28}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True


def _without_precaution(asked: Callable[[], object], work: Path, outside: list[str]) -> None:
    """Open with OpenSlide in this very process what the reader would try in another first, and watch Python's files."""

    def dies_of(_: str | Path) -> str:
        asked()
        return ""

    reader.dies_of = dies_of
    sys.addaudithook(_guard(work, outside))


def _told(target: Target, path: Path) -> dict[str, str]:
    try:
        target.read(path)
    except target.documented as error:
        return {"kind": "documented", "what": type(error).__name__, "where": ""}
    except MemoryError as error:
        return {"kind": "memory", "what": f"MemoryError {error}", "where": _place(error)}
    except BaseException as error:
        return {"kind": "undocumented", "what": f"{type(error).__name__}: {str(error)[:300]}", "where": _place(error)}
    return {"kind": "value", "what": "", "where": ""}


def _place(error: BaseException) -> str:
    """The innermost line of the library that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/hcmae/" in frame.filename] or list(frames)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}"


def _guard(work: Path, outside: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    places = (work, sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), Path(__file__).parents[1])
    prefixes = tuple(os.path.realpath(place) for place in places)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "socket.connect", "os.exec", "os.posix_spawn"):
            outside.append(f"{event} {args[:2]}")
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not path.startswith(prefixes[0]) and (writes or not path.startswith((*prefixes, *_READABLE))):
                outside.append(path)

    return hook


@dataclass
class Tally:
    """How many inputs of a target ended in what, and how long and large the worst was."""

    kinds: Counter[str]
    seconds: float = 0.0
    worst_seconds: float = 0.0
    slowest: int = 0
    worst_bytes: int = 0

    def add(self, number: int, outcome: Outcome) -> None:
        self.kinds[outcome.kind] += 1
        if outcome.seconds > self.worst_seconds:
            self.worst_seconds, self.slowest = outcome.seconds, number
        self.worst_bytes = max(self.worst_bytes, outcome.bytes)


def run(
    chosen: Sequence[Target], *, seed: int, seconds: float = 0.0, inputs: int = 0, out: Path | None = None
) -> tuple[dict[str, Tally], list[tuple[str, int, Outcome]]]:
    """Inputs of all targets, for so much processor time (of the children and this process) or so many of each.

    Returns the tally by target and the first finding of each kind and place, with the number of its input.
    """
    tallies = {target.name: Tally(Counter()) for target in chosen}
    numbers = dict.fromkeys(tallies, 0)
    findings: dict[tuple[str, str, str, str], tuple[str, int, Outcome]] = {}
    begun, told = _cpu(), time.monotonic()
    with workshop() as (base, watch):
        while _cpu() - begun < seconds if inputs == 0 else min(numbers.values()) < inputs:
            # Whoever has had the least time for its weight is next.
            target = min(chosen, key=lambda t: numbers[t.name] if inputs else tallies[t.name].seconds / t.weight)
            first = numbers[target.name]
            numbers[target.name] += min(TOGETHER, inputs or TOGETHER)
            used = _cpu()
            batch = [damaged(target, seed, number) for number in range(first, numbers[target.name])]
            outcomes = together(target, batch, base, watch)
            tallies[target.name].seconds += _cpu() - used
            for number, (files, outcome) in enumerate(zip(batch, outcomes, strict=True), start=first):
                tallies[target.name].add(number, outcome)
                key = (target.name, outcome.kind, outcome.what[:25], outcome.where)
                if outcome.kind not in _INTERESTING or key in findings:
                    continue
                findings[key] = (target.name, number, outcome)
                print(f"FOUND {target.name} {number}: {outcome.kind}: {outcome.what} | {outcome.where}", flush=True)
                if out is not None:
                    _keep(out / f"{target.name.replace(' ', '_')}-{number}", files)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"{_cpu() - begun:.0f} s, {sum(numbers.values())} inputs, {len(findings)} findings", flush=True)
    return tallies, list(findings.values())


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def _keep(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="processor time of all targets together")
    parser.add_argument("--inputs", type=int, default=0, help="so many inputs of each target instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose names begin so")
    parser.add_argument("--number", type=int, help="read this input again")
    parser.add_argument("--real", type=Path, help="folder of real slides")
    parser.add_argument("--out", type=Path, help="folder for the inputs of findings")
    asked = parser.parse_args()
    chosen = [target for target in targets(asked.real) if target.name.startswith(asked.only)]
    if asked.number is not None:
        with workshop() as (base, watch):
            files = damaged(chosen[0], asked.seed, asked.number)
            if asked.out is not None:
                _keep(asked.out, files)
            print(attempt(chosen[0], files, base, watch))
            print((base / "stderr").read_text(errors="replace"))
        return
    tallies, findings = run(chosen, seed=asked.seed, seconds=60 * asked.minutes, inputs=asked.inputs, out=asked.out)
    head = ("inputs", "value", "refused", "found", "worst s", "input", "MiB")
    print(f"{'target':28}", *(f"{name:>7}" for name in head))
    for name, tally in tallies.items():
        found = sum(tally.kinds[kind] for kind in _INTERESTING)
        numbers = (tally.kinds.total(), tally.kinds["value"], tally.kinds["documented"], found)
        worst = (round(tally.worst_seconds, 1), tally.slowest, tally.worst_bytes >> 20)
        print(f"{name:28}", *(f"{number:>7}" for number in (*numbers, *worst)))
    print(json.dumps({"inputs": sum(t.kinds.total() for t in tallies.values()), "findings": len(findings)}))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
