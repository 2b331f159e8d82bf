"""Measure the README's two commands as a newcomer meets them: time, peak memory and disk of a fresh clone.

Run: ``python -m benchmarks.book [--folder EMPTY] [--result FILE]``. It clones the last commit, runs ``make book``, then
``make book`` again with nothing changed, then ``make test``, and writes ``book/results/book.json``, the table of the
README and its figure (``book/_static/results.svg``, from the clone's own lesson 11). ``--render`` only draws both again
from a finished clone. Memory is the sum of the proportional set sizes of all processes, sampled every two seconds; disk
is what the folders hold at the end. The last line is the JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from book.tools import finding
from hcmae import __version__
from hcmae.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "book" / "results" / "book.json"
FIGURE = ROOT / "book" / "_static" / "results.svg"
README = ROOT / "README.md"
GIB = 2**30


class Memory(threading.Thread):
    """Peak of the memory of a process and everything below it, in bytes."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak, self.ended = psutil.Process(process), 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(2.0):
            self.peak = max(self.peak, self.now())

    def now(self) -> int:
        total = 0
        try:
            family = [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        for process in family:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError):
                continue
        return total


def timed(command: list[str], folder: Path, log: Path) -> tuple[float, float, str]:
    """Seconds, peak GiB and what was printed; raises SystemExit with the end of the log when the command fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    # A newcomer has no package in any cache.
    environment |= {"UV_NO_CACHE": "1", "PIP_NO_CACHE_DIR": "1"}
    start = perf_counter()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
        memory = Memory(process.pid)
        memory.start()
        code = process.wait()
    memory.ended.set()
    text = log.read_text(encoding="utf-8", errors="replace")
    if code:
        raise SystemExit(f"{' '.join(command)} failed in {folder}:\n{text[-3000:]}")
    return perf_counter() - start, memory.peak / GIB, text


def size_gib(folder: Path) -> float:
    """What a folder holds on disk; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            about = path.stat()
            seen[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(seen.values()) / GIB


def measure(folder: Path) -> dict[str, Any]:
    """Clone into ``folder`` and run the two commands."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    # The environment is made by the first of the two commands; timed apart, so that both are known.
    install, _, _ = timed(["make", ".venv/.installed"], folder, folder.with_suffix(".install.log"))
    book, book_gib, _ = timed(["make", "book"], folder, folder.with_suffix(".book.log"))
    again, _, text = timed(["make", "book"], folder, folder.with_suffix(".again.log"))
    if "Nothing to be done" not in text:
        raise SystemExit(f"the second make book ran something:\n{text[-3000:]}")
    test, test_gib, text = timed(["make", "test"], folder, folder.with_suffix(".test.log"))
    summary = next((line for line in reversed(text.splitlines()) if " passed" in line), "")
    return {
        "benchmark": "book",
        "install_minutes": round(install / 60, 1),
        "book_minutes": round(book / 60, 1),
        "book_peak_gib": round(book_gib, 1),
        "second_book_seconds": round(again, 1),
        "test_minutes": round(test / 60, 1),
        "test_peak_gib": round(test_gib, 1),
        "tests": summary.strip("= "),
        "environment_gib": round(size_gib(folder / ".venv"), 1),
        "run_gib": round(sum(size_gib(folder / name) for name in ("data", "runs", "_build", "book")), 1),
        "commit": commit,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "versions": {"hcmae_core": __version__, "python": platform.python_version()},
    }


def table(found: dict[str, Any]) -> str:
    """The README's table."""
    return "\n".join(
        [
            "| command | time | peak memory | disk |",
            "|---|---|---|---|",
            f"| the environment (packages fetched), made by either | {found['install_minutes']:.1f} min | "
            f"| {found['environment_gib']:.1f} GiB |",
            f"| `make book` | {found['book_minutes']:.0f} min | {found['book_peak_gib']:.1f} GiB "
            f"| {found['run_gib']:.1f} GiB |",
            f"| `make book` again, nothing changed | {found['second_book_seconds']:.0f} s | | |",
            f"| `make test` | {found['test_minutes']:.0f} min | {found['test_peak_gib']:.1f} GiB | |",
            "",
            f"Measured on {found['date']} at commit {found['commit']} by `python -m benchmarks.book`.",
        ]
    )


def render(found: dict[str, Any], folder: Path) -> None:
    """Write the README's finding, table and figures from a finished clone."""
    leaks = read_json(folder / "runs" / "smoke" / "LIHC" / "results" / "leaks.json")
    text = _between(README.read_text(encoding="utf-8"), "finding", finding.sentence(leaks))
    write_text(README, _between(text, "measured", table(found)))
    finding.draw(leaks, FIGURE)
    finding.draw(leaks, FIGURE.with_stem(f"{FIGURE.stem}-dark"), dark=True)


def _between(text: str, mark: str, new: str) -> str:
    """The text with what stands between the two comments of this mark replaced."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not closed:
        raise SystemExit(f"{README} lacks the lines {start} and {end}")
    return f"{before}{start}\n{new}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to clone to; must not exist (default: a temporary folder)")
    parser.add_argument("--render", type=Path, metavar="CLONE", help="only write README and figure, from this clone")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the JSON object is written")
    arguments = parser.parse_args()
    if arguments.render:
        render(read_json(arguments.result), arguments.render)
        return
    if sys.platform != "linux":
        raise SystemExit("proportional set sizes are known on Linux only: run this benchmark there")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "clone"
        if folder.exists():
            raise SystemExit(f"{folder} exists: name a folder that does not, so that the clone is fresh")
        found = measure(folder)
        write_json(arguments.result, found)
        render(found, folder)
    print(table(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
