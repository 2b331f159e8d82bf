"""The first page's finding and edition: what the published run found, drawn and said, and which run that was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.tools import finding
from hcmae import __version__

BOOK = Path(__file__).resolve().parent.parent
RESULT = BOOK / "executed" / "11_leaks.results.json"
STATUS = BOOK / "executed" / "11_leaks.status.json"
FIGURE = BOOK / "executed" / "finding.svg"
NOTHING = "No run has been published into this copy of the book."


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def edition_of_the_run() -> str:
    """Profile, source, seed, date and commit of the published run; empty where none was published."""
    found, status = _read(RESULT), _read(STATUS)
    if found is None or status is None:
        return ""
    made = found["provenance"]
    said = f"profile {made['profile']}, source {made['source']}, seed {made['seed']}"
    if status.get("finished"):
        said += f", {status['finished'][:10]}"
    return said + (f", commit {made['commit'][:10]}" if made.get("commit") else "")


def edition_line() -> str:
    """Version of the book and the run that it shows, for the foot of every page."""
    run = edition_of_the_run()
    return f"Version {__version__}" + (f"; run: {run}" if run else "")


class Finding(SphinxDirective):
    """``{finding}`` says and shows what lesson 11 of the published run found; says so where there is no such run."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        found = _read(RESULT)
        if found is None:
            return [nodes.paragraph("", NOTHING, classes=["not-measured"])]
        self.env.note_dependency(str(RESULT))
        finding.draw(found, FIGURE)
        said = finding.sentence(found)
        image = nodes.image(uri="executed/finding.svg", alt=re.sub(r"[*`]", "", said))
        return [
            nodes.paragraph("", "", *_inline(said), classes=["finding"]),
            nodes.figure("", image, classes=["finding"]),
        ]


def _inline(text: str) -> list[nodes.Node]:
    """Strong words and code of a sentence in Markdown."""
    out: list[nodes.Node] = []
    for part in re.split(r"(\*\*[^*]+\*\*|`[^`]+`)", text):
        if part.startswith("**"):
            out.append(nodes.strong("", part.strip("*")))
        elif part.startswith("`"):
            out.append(nodes.literal("", part.strip("`")))
        else:
            out.append(nodes.Text(part))
    return out


class Edition(SphinxDirective):
    """``{edition}`` says version, authors, the date, profile and commit of the run, and how to cite."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        cited = yaml.safe_load((BOOK.parent / "CITATION.cff").read_text(encoding="utf-8"))
        authors = ", ".join(
            author.get("name") or f"{author['given-names']} {author['family-names']}" for author in cited["authors"]
        )
        said = [f"{cited['title']}, version {__version__}, by {authors}."]
        if run := edition_of_the_run():
            said.append(f"Its run: {run}.")
        paper = cited["references"][0]
        names = ", ".join(author["family-names"] for author in paper["authors"])
        said.append(
            f"To cite it, name title, authors, version and date, and the paper whose method it rebuilds: {names} "
            f"({paper['year']}), doi:{paper['doi']}. The file CITATION.cff holds both."
        )
        return [nodes.paragraph("", " ".join(said), classes=["edition"])]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("finding", Finding)
    app.add_directive("edition", Edition)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
