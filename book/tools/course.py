"""A student's and an instructor's edition of the lessons, from the same notebooks that make the book.

``python -m book.tools.course _build/course`` writes ``student/`` (no solutions; exercises in code are blanks that say
so when they are checked) and ``instructor/`` (every solution, those in code as cells that are checked).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from book.tools.publish import PublishError, paired_text
from hcmae.files import write_text

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# A box from its fence to the same fence, as the lessons write it.
SOLUTION = re.compile(r"^(?P<fence>`{3,})\{solution\} (?P<name>\S+)\n.*?^(?P=fence)$\n*", re.MULTILINE | re.DOTALL)
EXERCISE = re.compile(r"^`{3,}\{exercise\}\n:label: (\S+)", re.MULTILINE)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
CHECK = re.compile(r'check\("(\S+)", (\w+)\)')


def solutions(text: str) -> dict[str, str]:
    """Label of an exercise -> its solution box, of one cell of prose."""
    return {found["name"]: found.group() for found in SOLUTION.finditer(text)}


def asked(script: str) -> list[str]:
    """Labels of the exercises of a lesson (percent format) and what its cells of code check."""
    prose = re.sub(r"^# ?", "", script, flags=re.MULTILINE)
    return [*EXERCISE.findall(prose), *(found[0] for found in CHECK.findall(script))]


def student(script: str) -> str:
    """A lesson (percent format) as a notebook (JSON text) without any solution."""
    notebook = jupytext.reads(script, fmt="py:percent")
    kept = []
    for cell in notebook.cells:
        if "hide-cell" in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source).strip()
        if cell.source:
            kept.append(cell)
    notebook.cells = kept
    return paired_text(jupytext.writes(notebook, fmt="py:percent"))


def instructor(script: str) -> str:
    """A lesson as a notebook whose exercises in code are followed by their solution, checked."""
    notebook = jupytext.reads(script, fmt="py:percent")
    known: dict[str, str] = {}
    for cell in notebook.cells:
        known |= solutions(cell.source) if cell.cell_type == "markdown" else {}
    cells: list[Any] = []
    for cell in notebook.cells:
        cells.append(cell)
        asked = CHECK.search(cell.source) if "exercise" in cell.metadata.get("tags", []) else None
        code = CODE.search(known.get(asked[1], "")) if asked else None
        if asked and code:
            cells.append(nbformat.v4.new_code_cell(f"{code[1]}\n\n{asked[0]}"))
    notebook.cells = cells
    return paired_text(jupytext.writes(notebook, fmt="py:percent"))


def write_course(folder: str | Path, notebooks: str | Path = NOTEBOOKS) -> list[Path]:
    """Both editions of every lesson below ``folder``; returns their paths.

    Raises PublishError for a folder without lessons, and where a solution would have reached the students.
    """
    sources = sorted(Path(notebooks).glob("[0-9][0-9]_*.py"))
    if not sources:
        raise PublishError(f"{notebooks}: no NN_name.py here; name the folder that holds the lessons")
    written = []
    for source in sources:
        script = source.read_text(encoding="utf-8")
        for edition, text in (("student", student(script)), ("instructor", instructor(script))):
            lost = [name for name in asked(script) if name not in text]
            if lost:
                raise PublishError(
                    f"{source.name}: exercise {lost[0]} is lost with a solution; repair the box before it"
                )
            if edition == "student" and "{solution" in text:
                raise PublishError(f"{source.name}: a solution is in no box that is closed; repair its fence")
            written.append(Path(folder) / edition / f"{source.stem}.ipynb")
            write_text(written[-1], text)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Command line: the folder to write to. Returns 0, or 1 with the reason on stderr."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1:
        print("usage: python -m book.tools.course _build/course", file=sys.stderr)
        return 2
    try:
        written = write_course(words[0])
    except PublishError as error:
        print(f"course: {error}", file=sys.stderr)
        return 1
    print(json.dumps({path.parent.name: str(path.parent) for path in written}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
