"""Sentences of lessons and pages that compare, and what each rests on.

The convention: a sentence that says that one thing is more, better, larger ... than another is

- *computed*: a code cell writes it from this run's numbers and chooses its verdict by them
  (``hcmae.evaluation.sentences``);
- *cited*: it names a results file with the role ``{result}`name` ``, or its publication with ``{cite:p}``;
- or *declared* in ``book/comparisons.toml`` with the reason why no number of a run can contradict it. A page of rules
  may be declared as a whole, a lesson may not.

``python -m book.tools.sentences`` lists those that are none of the three; a test wants none.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jupytext

REPO = Path(__file__).resolve().parents[2]
DECLARED = REPO / "book" / "comparisons.toml"

COMPARING = re.compile(
    r"""\b(?:
    better|worse|best|worst|higher|highest|lower|lowest|larger|largest|smaller|smallest|greater|greatest
    |stronger|strongest|weaker|weakest|faster|fastest|slower|slowest|wider|widest|narrower|sooner|fewer|fewest
    |easier|harder|cheaper|beats?|outperforms?|exceeds?|surpass(?:es)?|clearly|hardly|as\ good\ as
    |most\ of|the\ more|rises?|falls|grows|shrinks|improves?|worsens?|come\ back|comes\ back
    |(?:above|below)(?=\ (?!(?:is|are|stands?|has|and|was|all)\b)[\w$*+-])
    |(?<!rather\ )(?<!other\ )than
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
CITED = re.compile(r"\{(?:result|cite(?::\w+)?)\}`[^`]+`")
RESULT = re.compile(r"\{result\}`(\w+)`")
FENCE = re.compile(r"^\s*(`{3,}|~{3,}|:{3,})\s*(.*)$")
OPTION = re.compile(r"^\s*:[\w-]+:")
# Directives whose content is no prose; all others hold some, like {exercise}, {figure} and {quiz}.
NO_PROSE = ("{math}", "{code", "{mermaid}", "{bibliography}")


@dataclass(frozen=True)
class Sentence:
    """One sentence and where it stands."""

    place: str
    text: str

    @property
    def words(self) -> str:
        """Without marks and line breaks, for comparison with the declared ones."""
        return plain(self.text)


def plain(text: str) -> str:
    """Text with single blanks and without emphasis."""
    return " ".join(text.replace("**", "").replace("*", "").split())


def prose_lines(markdown: str) -> Iterator[str]:
    """Lines that are no code; a fence and the options of a directive are blank lines."""
    fences: list[tuple[str, bool]] = []
    for line in markdown.splitlines():
        found = FENCE.match(line)
        if found is None:
            code = any(holds_code for _, holds_code in fences)
            yield "" if code or (fences and OPTION.match(line)) else line
            continue
        marks, info = found.groups()
        if fences and not info and marks[0] == fences[-1][0][0] and len(marks) >= len(fences[-1][0]):
            fences.pop()
        elif not any(holds_code for _, holds_code in fences):
            directive = info.startswith("{") or marks[0] == ":"
            fences.append((marks, not directive or info.startswith(NO_PROSE)))
        yield ""


def sentences(markdown: str) -> Iterator[str]:
    """Sentences of prose: no displayed formulas, no code; a heading, a list item, a table row stand alone."""
    text = re.sub(r"\$\$.*?\$\$", "\n\n", "\n".join(prose_lines(markdown)), flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |\||: |#))", text):
        line = " ".join(block.split())
        for sentence in re.split(r"(?<=[.!?:])(?<!Eq\.)(?<!Fig\.)(?:\*\*)?\s+(?=[A-Z*`\"'(\[{$\d])", line):
            if sentence:
                yield sentence


def compares(sentence: str) -> bool:
    """Whether a sentence claims a comparison; a question claims nothing, a citation has its source."""
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", CITED.sub("", plain(sentence)))
    return bool(COMPARING.search(prose)) and not prose.rstrip("*_) ").endswith("?")


def prose_of_code(source: str) -> Iterator[str]:
    """Fixed words of sentences that a code cell prints with ``Markdown``.

    Words under a condition are chosen by the run; so are those that a call or a variable puts in.
    """
    try:
        tree = ast.parse("\n".join("" if line.startswith("%") else line for line in source.splitlines()))
    except SyntaxError:
        return

    def fixed(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.IfExp):
            return
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.BinOp):
            yield from fixed(node.left)
            yield from fixed(node.right)

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If | ast.IfExp):
            yield from walk(node.test)
            return
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Markdown" and node.args:
            yield from fixed(node.args[0])
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(tree)


def comparing(path: Path) -> list[Sentence]:
    """Comparing sentences of a lesson (``.py``) or a page (``.md``) that cite nothing."""
    text = path.read_text(encoding="utf-8")
    found = []
    if path.suffix == ".py":
        for number, cell in enumerate(jupytext.reads(text, fmt="py:percent").cells):
            parts = [cell.source] if cell.cell_type == "markdown" else list(prose_of_code(cell.source))
            found += [
                Sentence(f"{path.name}, cell {number}", s) for part in parts for s in sentences(part) if compares(s)
            ]
    else:
        found = [Sentence(path.name, s) for s in sentences(text) if compares(s)]
    return [sentence for sentence in found if not CITED.search(sentence.text)]


def declared(path: Path = DECLARED) -> dict[str, dict[str, str]]:
    """Declared sentences of each lesson or page: file name -> sentence -> reason; "*" stands for a whole page."""
    stored = tomllib.loads(path.read_text(encoding="utf-8"))
    whole = stored.pop("pages", {})
    lessons = sorted(name for name in whole if not name.endswith(".md"))
    if lessons:
        raise ValueError(f"{path.name}: {lessons[0]} is declared as a whole; declare its sentences one by one")
    found = {name: {plain(entry["sentence"]): entry["reason"] for entry in rows} for name, rows in stored.items()}
    return {**found, **{name: {"*": reason} for name, reason in whole.items()}}


def unfounded(paths: Iterable[Path], known: dict[str, dict[str, str]]) -> tuple[list[Sentence], list[Sentence]]:
    """(sentences that are neither computed, cited nor declared; declared ones that are not written any more)."""
    bad, stale = [], []
    for path in paths:
        own, seen = known.get(path.name, {}), set()
        if "*" in own:
            continue
        for sentence in comparing(path):
            seen.add(sentence.words)
            if sentence.words not in own:
                bad.append(sentence)
        stale += [Sentence(path.name, text) for text in own if text not in seen]
    return bad, stale


def sources() -> list[Path]:
    """Lessons and pages that the rule holds for."""
    return [
        *sorted((REPO / "notebooks").glob("[0-9][0-9]_*.py")),
        *sorted((REPO / "book").glob("*.md")),
        REPO / "README.md",
    ]


def main() -> None:
    bad, stale = unfounded(sources(), declared())
    for sentence in bad:
        print(f"{sentence.place}: {sentence.text}")
    for sentence in stale:
        print(f"{sentence.place}, declared and not written: {sentence.text}")
    sys.exit(bool(bad or stale))


if __name__ == "__main__":
    main()
