"""Results in prose: measured tables, the record of a run, the list of lessons, read from the files that hold them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

BOOK = Path(__file__).resolve().parent.parent


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def table(header: list[str], rows: list[list[Any]], title: str | None = None) -> nodes.Node:
    """A docutils table in a box that scrolls by itself; cells are text or nodes."""
    made = nodes.table(classes=["colwidths-auto"])
    if title:
        made += nodes.title(text=title)
    group = nodes.tgroup(cols=len(header))
    made += group
    for _ in header:
        group += nodes.colspec(colwidth=1)
    head = nodes.thead()
    head += _row(header)
    body = nodes.tbody()
    for row in rows:
        body += _row(row)
    group += head
    group += body
    return made


# Keys under which a file keeps its only table: as a title they would say nothing.
_PLAIN_TITLES = ("rows", "table", "tables", "steps", "methods")


def spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record that holds records of its own becomes one row for each of them."""
    out = []
    for row in rows:
        inner = next((key for key, value in row.items() if _holds_records(value)), None)
        if inner is None:
            out.append(row)
        else:
            own = {key: value for key, value in row.items() if key != inner}
            out += [{**own, inner: _words(name), **values} for name, values in row[inner].items()]
    return out


def _holds_records(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(part, dict) for part in value.values())


def records_table(rows: list[dict[str, Any]], title: str | None) -> nodes.Node:
    """Records as a table; what fewer than half of them have goes into one last column."""
    count = Counter(column for row in rows for column, value in row.items() if value is not None)
    columns = [name for name in dict.fromkeys(column for row in rows for column in row) if 2 * count[name] >= len(rows)]
    rest = [name for name in count if name not in columns]
    body = [
        [row.get(name) for name in columns]
        + (["; ".join(f"{_words(n)}: {_cell(row[n])}" for n in rest if row.get(n) is not None)] if rest else [])
        for row in rows
    ]
    return table([_words(name) for name in columns] + (["details"] if rest else []), body, title)


def _row(cells: list[Any]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        paragraph = nodes.paragraph()
        paragraph += cell if isinstance(cell, nodes.Node) else nodes.Text(_cell(cell))
        entry += paragraph
        row += entry
    return row


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else ("yes" if value else "no")
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(part)}" for key, part in value.items())
    return str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")


class Measured(SphinxDirective):
    """``{measured} name`` shows book/results/<name>*.json as tables; says so where nothing was measured.

    A file is a list of records, or a mapping with the records under ``rows`` (or any key that holds a list of records);
    its other plain values are written under the table.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        files = sorted((BOOK / "results").glob(f"{self.arguments[0]}*.json"))
        self.env.note_reread()
        if not files:
            return [nodes.paragraph("", "Not measured yet.", classes=["not-measured"])]
        out: list[nodes.Node] = []
        for path in files:
            self.env.note_dependency(str(path))
            out += self._show(path)
        return out

    def _show(self, path: Path) -> list[nodes.Node]:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ExtensionError(f"{path}: not valid JSON ({error})") from error
        if isinstance(value, list):
            value = {"rows": value}
        title = str(value.pop("title", "") or _words(path.stem).capitalize())
        out: list[nodes.Node] = [nodes.rubric("", title)]
        for key in list(value):
            rows = value[key]
            if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
                rows = [{"": name, **row} for name, row in rows.items()]
            if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
                out.append(records_table(spread(rows), title=None if key in _PLAIN_TITLES else _words(key)))
                del value[key]
        if value:
            notes = nodes.field_list()
            for key, rest in value.items():
                field = nodes.field()
                field += nodes.field_name(text=_words(key))
                field += nodes.field_body("", nodes.paragraph(text=_cell(rest)))
                notes += field
            out.append(notes)
        return out


class ResultRole(SphinxRole):
    """``{result}`draws_null` `` names book/results/draws_null.json as the source of a sentence, by its title.

    Links to the page that shows it; fails where there is no such file.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        path = BOOK / "results" / f"{self.text}.json"
        if not path.exists():
            raise ExtensionError(f"{self.env.docname}: no results file book/results/{path.name} to cite")
        self.env.note_dependency(str(path))
        title = json.loads(path.read_text(encoding="utf-8")).get("title") or _words(path.stem).capitalize()
        link = addnodes.pending_xref(
            "", refdomain="std", reftype="doc", reftarget="/book/benchmarks", refexplicit=True, refwarn=True,
            refdoc=self.env.docname,
        )  # fmt: skip
        link += nodes.inline("", f"measured: {title}")
        return [link], []


def lesson(source: Path) -> tuple[str, str]:
    """Title and minutes as a lesson's first cell states them."""
    text = source.read_text(encoding="utf-8")
    title = re.search(r"^# # (.+)$", text, re.MULTILINE)
    minutes = re.search(r"(\d+) minutes", text)
    if title is None or minutes is None:
        raise ExtensionError(f"{source.name}: the first cell needs '# Title' and 'About N minutes'")
    return title.group(1), minutes.group(1)


class Lessons(SphinxDirective):
    """``{lessons}`` sets title and minutes, read from the notebooks, beside what the page says about each.

    One line per lesson: ``NN | necessary | helpful | what a student can do afterwards``.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        rows: list[list[Any]] = []
        for line in self.content:
            if not line.strip():
                continue
            number, *cells = (part.strip() for part in line.split("|"))
            found = list((BOOK.parent / "notebooks").glob(f"{number}_*.py"))
            if len(found) != 1:
                raise self.error(f"notebooks/ has {len(found)} lessons with the number {number}")
            self.env.note_dependency(str(found[0]))
            title, minutes = lesson(found[0])
            rows.append([f"{int(number)}. {title}", minutes, *cells])
        return [table(["lesson", "minutes", "necessary", "helpful", "a student can afterwards"], rows)]


class RunStatus(SphinxDirective):
    """``{run-status}`` shows what ``book/tools/publish.py`` recorded: time per notebook, packages, device."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        records = []
        for path in sorted((BOOK / "executed").glob("*.status.json")):
            self.env.note_dependency(str(path))
            records.append(json.loads(path.read_text(encoding="utf-8")))
        if not records:
            return [nodes.paragraph("", "No run has been published into this copy of the book.")]
        total = sum(record.get("seconds") or 0 for record in records)
        rows = [
            [
                record["notebook"],
                record.get("cancer"),
                record.get("profile"),
                record.get("source"),
                duration(record.get("seconds")),
            ]
            for record in records
        ]
        rows.append(["all", None, None, None, duration(total)])
        out: list[nodes.Node] = [table(["notebook", "cancer", "profile", "source", "time"], rows)]
        machine: dict[str, Any] = {}
        packages: dict[str, str] = {}
        for record in records:
            machine.update(record.get("machine", {}))
            packages.update(record.get("packages", {}))
        out.append(nodes.rubric("", "Machine"))
        out.append(table(["what", "value"], [[_words(key), value] for key, value in machine.items()]))
        out.append(nodes.rubric("", "Packages"))
        out.append(table(["package", "version"], [[name, packages[name]] for name in sorted(packages)]))
        return out


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("lessons", Lessons)
    app.add_directive("measured", Measured)
    app.add_directive("run-status", RunStatus)
    app.add_role("result", ResultRole())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
