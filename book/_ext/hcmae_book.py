"""Small Sphinx extension of this book: settings shown from the code, measured tables, run status, quizzes.

Everything that a page says about a default, a time or a result is read at build time from the library or from a file
that a run wrote, so that the prose cannot drift from the code.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import pkgutil
import re
import types
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import sphobjinv
from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import directives
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from hcmae import config as settings
from hcmae import manifest

LOG = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
BOOK = HERE.parent


# ------------------------------------------------------------------------------------------------------- settings


def _section(name: str) -> type[BaseModel]:
    model = getattr(settings, name, None) or getattr(manifest, name, None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ExtensionError(f"neither hcmae.config nor hcmae.manifest has a section '{name}'")
    return model


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _choices(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " | ".join(_shown(choice) for choice in typing.get_args(annotation))
    if origin is typing.Annotated:
        return _choices(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_choices(part) for part in typing.get_args(annotation))
    if annotation is bool:
        return "on | off"
    if annotation is type(None):
        return "none"
    return {"int": "whole number", "float": "number", "str": "text"}.get(getattr(annotation, "__name__", ""), "…")


class SwitchRole(SphinxRole):
    """``{switch}`Fidelity.pooler` `` shows the switch with its default, and fails when there is no such switch."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        section, _, field = self.text.partition(".")
        fields = _section(section).model_fields
        if field not in fields:
            raise ExtensionError(f"{self.env.docname}: settings section {section} has no field '{field}'")
        default = _shown(fields[field].get_default(call_default_factory=True))
        out = nodes.inline(classes=["switch"])
        out += nodes.literal(text=field)
        out += nodes.Text(f" = {default}")
        return [out], []


class SettingRole(SphinxRole):
    """``{setting}`paper:mae_patch.optimisation.batch_size` `` shows one value of a profile."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        profile, _, dotted = self.text.partition(":")
        value: Any = settings.load_profile(profile)
        for key in dotted.split("."):
            if not hasattr(value, key):
                raise ExtensionError(f"{self.env.docname}: profile {profile} has no setting '{dotted}'")
            value = getattr(value, key)
        return [nodes.Text(_shown(value))], []


class SettingsTable(SphinxDirective):
    """``{settings-table} Fidelity`` lists a section: field, default, choices.

    ``:presets: paper release`` shows these presets side by side in place of the default.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"presets": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        section = _section(self.arguments[0])
        fields = section.model_fields
        if "presets" in self.options:
            names = self.options["presets"].split()
            presets = [section.preset(name) for name in names]  # type: ignore[attr-defined]
            rows = [
                [
                    nodes.literal(text=field),
                    *(_shown(getattr(preset, field)) for preset in presets),
                    _choices(fields[field].annotation),
                ]
                for field in fields
                if field != "name"
            ]
            return [table(["setting", *(f"preset {name}" for name in names), "choices"], rows)]
        rows = [
            [nodes.literal(text=name), _shown(field.get_default(call_default_factory=True)), _choices(field.annotation)]
            for name, field in fields.items()
        ]
        return [table(["setting", "default", "choices"], rows)]


class ProfileTable(SphinxDirective):
    """``{profile-table}`` with one dotted setting per line sets the three profiles side by side."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        profiles = {name: settings.load_profile(name) for name in settings.PROFILES}
        rows = []
        for line in self.content:
            dotted, _, label = line.partition(":")
            dotted = dotted.strip()
            if not dotted:
                continue
            row: list[Any] = [label.strip() or nodes.literal(text=dotted)]
            for name, profile in profiles.items():
                value: Any = profile
                for key in dotted.split("."):
                    if not hasattr(value, key):
                        raise ExtensionError(f"{self.env.docname}: profile {name} has no setting '{dotted}'")
                    value = getattr(value, key)
                row.append(_shown(value))
            rows.append(row)
        return [table(["setting", *profiles], rows)]


# --------------------------------------------------------------------------------------------- tables of measurements


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


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
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


def _records(rows: list[dict[str, Any]], title: str | None) -> nodes.Node:
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
                out.append(_records(_spread(rows), title=None if key in _PLAIN_TITLES else _words(key)))
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


class Commands(SphinxDirective):
    """``{commands}`` lists the commands of ``hcmae`` with their options, from the command line itself."""

    def run(self) -> list[nodes.Node]:
        try:
            from typer.main import get_command

            from hcmae.cli import typer_app
        except ImportError as error:
            LOG.warning("the command line cannot be imported for the reference: %s", error)
            return []
        return [part for line in self._walk(get_command(typer_app), "hcmae") for part in line]

    def _walk(self, command: Any, path: str) -> Iterator[list[nodes.Node]]:
        inner = getattr(command, "commands", None)
        if inner:
            for name in sorted(inner):
                yield from self._walk(inner[name], f"{path} {name}")
            return
        words = " ".join((command.help or command.short_help or "").split())
        rows = [
            [
                nodes.literal(
                    text=", ".join(option.opts) if option.param_type_name == "option" else option.name.upper()
                ),
                _help(option),
            ]
            for option in command.params
            if option.name != "help"
        ]
        title = nodes.rubric("", "", nodes.literal(text=path))
        yield [title, nodes.paragraph(text=words)] + ([table(["option", "meaning"], rows)] if rows else [])


def _help(option: Any) -> str:
    text = getattr(option, "help", None) or ""
    default = option.default
    if default is None or callable(default) or default is False or default == "" or "Sentinel" in repr(type(default)):
        return text
    return f"{text} (default: {_shown(default)})".strip()


def _lesson(source: Path) -> tuple[str, str]:
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
            title, minutes = _lesson(found[0])
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
                _duration(record.get("seconds")),
            ]
            for record in records
        ]
        rows.append(["all", None, None, None, _duration(total)])
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


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# ------------------------------------------------------------------------------------------------------------- quiz


class QuizNode(nodes.General, nodes.Element):
    """One question; children are the question's paragraph and the options."""


class QuizOptionNode(nodes.General, nodes.Element):
    """One answer; children are its text and the reply that opens when it is chosen."""


class QuizTextNode(nodes.General, nodes.Element):
    """Question or text of an answer."""


class QuizReplyNode(nodes.General, nodes.Element):
    """What the reader is told after choosing."""


_OPTION = re.compile(r"^- \((?P<right>[x ])\) (?P<text>.*?)(?: :: (?P<reply>.*))?$")


class Quiz(SphinxDirective):
    """A multiple-choice question that works without scripts.

    The question comes first, then one option per line: ``- (x) right answer :: why`` or ``- ( ) wrong answer :: why``.
    Radio buttons give the keyboard behaviour, the reply opens by style sheet alone, and print shows every reply.
    """

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"name": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        question = [line for line in self.content if not _OPTION.match(line)]
        options = [match for match in map(_OPTION.match, self.content) if match]
        if not question or len(options) < 2 or sum(option["right"] == "x" for option in options) != 1:
            raise self.error("a quiz needs a question, two or more options and exactly one right one, marked (x)")
        number = self.env.new_serialno("quiz")
        out = QuizNode(ident=f"quiz-{number}")
        out += self._inline(QuizTextNode(kind="question"), " ".join(question).strip())
        for position, option in enumerate(options):
            right = option["right"] == "x"
            node = QuizOptionNode(ident=f"quiz-{number}-{position}", group=f"quiz-{number}", right=right)
            node += self._inline(QuizTextNode(kind="option", ident=f"quiz-{number}-{position}"), option["text"])
            reply = QuizReplyNode(right=right)
            node += self._inline(reply, ("Right. " if right else "No. ") + (option["reply"] or ""))
            out += node
        return [out]

    def _inline(self, node: nodes.Element, text: str) -> nodes.Element:
        for child in self.parse_text_to_nodes(text):
            node += child.children if isinstance(child, nodes.paragraph) else child
        return node


def _html_quiz(self: Any, node: QuizNode) -> None:
    self.body.append(f'<fieldset class="quiz" id="{node["ident"]}">')


def _html_option(self: Any, node: QuizOptionNode) -> None:
    right = "right" if node["right"] else "wrong"
    self.body.append(
        f'<div class="quiz-option"><input type="radio" class="{right}" name="{node["group"]}" id="{node["ident"]}">'
    )


def _html_text(self: Any, node: QuizTextNode) -> None:
    self.body.append("<legend>" if node["kind"] == "question" else f'<label for="{node["ident"]}">')


def _html_text_end(self: Any, node: QuizTextNode) -> None:
    self.body.append("</legend>" if node["kind"] == "question" else "</label>")


def _html_reply(self: Any, node: QuizReplyNode) -> None:
    self.body.append(f'<div class="quiz-reply {"right" if node["right"] else "wrong"}" role="note">')


def _close(tag: str) -> Any:
    def depart(self: Any, node: nodes.Node) -> None:
        self.body.append(f"</{tag}>")

    return depart


def _plain(before: str = "", after: str = "\n\n") -> tuple[Any, Any]:
    def visit(self: Any, node: nodes.Node) -> None:
        self.body.append(before)

    def depart(self: Any, node: nodes.Node) -> None:
        self.body.append(after)

    return visit, depart


def _silent(self: Any, node: nodes.Node) -> None:
    return None


# -------------------------------------------------------------------------------------------------- local inventories


def local_inventories(app: Sphinx, config: Config) -> None:
    """Turn ``inventories/<name>.txt`` into inventories: ``-n`` then checks types without a network.

    First line: the address of the documentation. Others: ``role name page``, where ``$`` in a page is the name.
    """
    folder = Path(app.outdir).parent / ".inventories"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((HERE / "inventories").glob("*.txt")):
        base, *lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
        inventory = sphobjinv.Inventory()
        inventory.project, inventory.version = path.stem, "0"
        for line in lines:
            role, name, page = line.split()
            inventory.objects.append(
                sphobjinv.DataObjStr(
                    name=name, domain="py", role=role, priority="1", uri=page.replace("$", name), dispname="-"
                )
            )
        target = folder / f"{path.stem}.inv"
        sphobjinv.writebytes(str(target), sphobjinv.compress(inventory.data_file(contract=True)))
        config.intersphinx_mapping[path.stem] = (base, (str(target),))


# -------------------------------------------------------------------------------------------------- reference pages


def _modules(pattern: str) -> list[str]:
    if not pattern.endswith(".*"):
        return [pattern] if _public(pattern) else []
    package = importlib.import_module(pattern[:-2])
    names = [
        info.name
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not any(part.startswith("_") for part in info.name.split("."))
    ]
    if _public(package.__name__):
        names.insert(0, package.__name__)
    return [name for name in names if _public(name)]


def _public(name: str) -> bool:
    """Whether a module defines something that can be documented (a bare package does not)."""
    try:
        module = importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        LOG.warning("module %s cannot be imported for the reference: %s", name, error)
        return False
    return any(
        getattr(value, "__module__", None) == name and not key.startswith("_") and callable(value)
        for key, value in vars(module).items()
    )


def reference_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Expand ``% modules: package.*`` into one automodule per module, ``% settings`` into one table per section.

    New modules thus appear without anybody listing them, and a page never names one that is gone.
    """
    if not docname.startswith("book/api/"):
        return
    lines = []
    for line in source[0].splitlines():
        if line.startswith("% modules:"):
            for name in [name for pattern in line.split(":", 1)[1].split() for name in _modules(pattern)]:
                lines += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "```", ""]
        elif line.strip() == "% settings":
            for name, model in [*vars(settings).items(), *vars(manifest).items()]:
                if isinstance(model, type) and issubclass(model, BaseModel) and model.__name__ == name:
                    if not model.model_fields or f"## {name}" in lines:
                        continue
                    lines += [f"## {name}", "", "```{eval-rst}", f".. py:class:: {model.__module__}.{name}", ""]
                    lines += [f"   {line}" for line in inspect.cleandoc(model.__doc__ or "").splitlines()]
                    lines += ["```", "", f"```{{settings-table}} {name}", "```", ""]
        else:
            lines.append(line)
    source[0] = "\n".join(lines) + "\n"


_SIGNATURE = re.compile(r"<dt class=\"sig.*?</dt>", re.DOTALL)
_TIDY = (
    # From file:// each font preload is a console error, and the style sheet loads the fonts anyway.
    (re.compile(r"\s*<link rel=\"preload\" as=\"font\"[^>]*>"), ""),
    # A name for the arrows of the contents, and no name for the search button that hides its own text.
    (re.compile(r"<summary>(?=<span class=\"toctree-toggle\")"), '<summary aria-label="Show or hide this part">'),
    (re.compile(r"(<button class=\"btn search-button-field[^>]*?)\s+aria-label=\"Search\""), r"\1"),
    # myst-nb names its toggles over their own text; sphinx-exercise gives every box the same id.
    (re.compile(r" aria-label=\"Toggle hidden content\""), ""),
    (re.compile(r" id=\"(exercise|solution)-content\""), ""),
    # Wide formulas and tables scroll in their own box; the keyboard has to reach it.
    (re.compile(r"<div class=\"pst-scrollable-table-container\"(?! tabindex)"), r'\g<0> tabindex="0"'),
    (re.compile(r"<div class=\"math notranslate nohighlight\""), r'\g<0> tabindex="0"'),
    (re.compile(r" role=\"doc-biblioentry\"|(?<=<div) role=\"list\"(?= class=\"citation-list\")"), ""),
)


def _divisions(signature: re.Match[str]) -> str:
    """A signature of several lines is a definition list without terms, which a screen reader cannot read."""
    text = signature.group()
    for tag, name in (("dl", ' class="sig-lines"'), ("dd", "")):
        text = text.replace(f"<{tag}>", f"<div{name}>").replace(f"</{tag}>", "</div>")
    return text


def clear_leftover(app: Sphinx) -> None:
    """Remove the file ``_static`` that sphinx-exercise leaves where a build stopped early: it breaks the next one."""
    static = Path(app.outdir) / "_static"
    if static.is_file():
        static.unlink()


def tidy_html(app: Sphinx, error: Exception | None) -> None:
    """Repair what the theme's and Sphinx's own templates leave: console errors and lapses of accessibility."""
    if error is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = clean = path.read_text(encoding="utf-8")
        for pattern, replacement in _TIDY:
            clean = pattern.sub(replacement, clean)
        clean = _SIGNATURE.sub(_divisions, clean)
        if clean != text:
            path.write_text(clean, encoding="utf-8")


_MARKED = re.compile(r"(``.+?``|(?::[\w:]+:)?`[^`]+`)")
_STRAY = re.compile(r"(?<=\w)_(?=\W|$)|(?<!\\)[*|]")


def plain_docstrings(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep stray markup characters of a docstring (``n_``, ``a * b``, ``x | y``) as the characters they are."""
    for number, line in enumerate(lines):
        indent = line[: len(line) - len(line.lstrip())]
        bullet = "* " if line.lstrip().startswith("* ") else ""
        rest = line[len(indent) + len(bullet) :]
        parts = _MARKED.split(rest)
        parts[::2] = [_STRAY.sub(lambda match: "\\" + match.group(), part) for part in parts[::2]]
        lines[number] = indent + bullet + "".join(parts)
    if _badly_indented(lines):
        # A hanging indent of prose is a block quote to docutils, and a broken one is a warning.
        lines[:] = [line.strip() for line in lines]


def _badly_indented(lines: list[str]) -> bool:
    # Roles and directives need Sphinx, and cannot hang: they are taken out before the trial.
    text = re.sub(r"(:[\w:]+:)?`+[^`]*`+_*", "x", "\n".join(lines)).replace(".. ", "   ")
    messages = io.StringIO()
    publish_doctree(
        text,
        settings_overrides={
            "warning_stream": messages,
            "report_level": 2,
            "halt_level": 5,
            "file_insertion_enabled": False,
        },
    )
    return "indent" in messages.getvalue()


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", local_inventories, priority=100)
    app.connect("autodoc-process-docstring", plain_docstrings)
    app.connect("builder-inited", clear_leftover)
    app.connect("build-finished", tidy_html)
    app.connect("source-read", reference_pages)
    app.add_role("switch", SwitchRole())
    app.add_role("setting", SettingRole())
    app.add_directive("settings-table", SettingsTable)
    app.add_directive("profile-table", ProfileTable)
    app.add_directive("commands", Commands)
    app.add_directive("lessons", Lessons)
    app.add_directive("measured", Measured)
    app.add_directive("run-status", RunStatus)
    app.add_directive("quiz", Quiz)
    plain = _plain()
    app.add_node(QuizNode, html=(_html_quiz, _close("fieldset")), latex=plain, text=(_silent, _silent))
    app.add_node(QuizOptionNode, html=(_html_option, _close("div")), latex=_plain("\n\n- "), text=(_silent, _silent))
    app.add_node(QuizTextNode, html=(_html_text, _html_text_end), latex=_plain(), text=(_silent, _silent))
    app.add_node(QuizReplyNode, html=(_html_reply, _close("div")), latex=_plain(), text=(_silent, _silent))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
