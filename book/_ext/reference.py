"""Pages of the reference: modules, commands and inventories, and repairs of what the templates write."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sphobjinv
from docutils import nodes
from docutils.core import publish_doctree
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

from book._ext.results import shown, table
from hcmae import config, manifest
from hcmae.cli import typer_app

LOG = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent


class Commands(SphinxDirective):
    """``{commands}`` lists the commands of ``hcmae`` with their options, from the command line itself."""

    def run(self) -> list[nodes.Node]:
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
    return f"{text} (default: {shown(default)})".strip()


def local_inventories(app: Sphinx, sphinx_config: Config) -> None:
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
        sphinx_config.intersphinx_mapping[path.stem] = (base, (str(target),))


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
            for name, model in [*vars(config).items(), *vars(manifest).items()]:
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
    app.add_directive("commands", Commands)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
