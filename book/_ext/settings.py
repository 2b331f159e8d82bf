"""Settings in prose: defaults, profiles and choices are read from the library, so that pages cannot drift from it."""

from __future__ import annotations

import types
import typing
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

from book._ext.results import shown, table
from hcmae import config, manifest


def model_of(name: str) -> type[BaseModel]:
    model = getattr(config, name, None) or getattr(manifest, name, None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ExtensionError(f"neither hcmae.config nor hcmae.manifest has a section '{name}'")
    return model


def default_of(field: FieldInfo) -> str:
    """A setting's default in words; a section within a section by its name, whose own table has the values."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"the defaults of {type(value).__name__}"
    return shown(value)


def choices(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " | ".join(shown(choice) for choice in typing.get_args(annotation))
    if origin is typing.Annotated:
        return choices(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(choices(part) for part in typing.get_args(annotation))
    if annotation is bool:
        return "on | off"
    if annotation is type(None):
        return "none"
    return {"int": "whole number", "float": "number", "str": "text"}.get(getattr(annotation, "__name__", ""), "…")


class SwitchRole(SphinxRole):
    """``{switch}`Fidelity.pooler` `` shows the switch with its default, and fails when there is no such switch."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        section, _, field = self.text.partition(".")
        fields = model_of(section).model_fields
        if field not in fields:
            raise ExtensionError(f"{self.env.docname}: settings section {section} has no field '{field}'")
        default = default_of(fields[field])
        out = nodes.inline(classes=["switch"])
        out += nodes.literal(text=field)
        out += nodes.Text(f" = {default}")
        return [out], []


class SettingRole(SphinxRole):
    """``{setting}`paper:mae_patch.optimisation.batch_size` `` shows one value of a profile."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        profile, _, dotted = self.text.partition(":")
        value: Any = config.load_profile(profile)
        for key in dotted.split("."):
            if not hasattr(value, key):
                raise ExtensionError(f"{self.env.docname}: profile {profile} has no setting '{dotted}'")
            value = getattr(value, key)
        return [nodes.Text(shown(value))], []


class SettingsTable(SphinxDirective):
    """``{settings-table} Fidelity`` lists a section: field, default, choices.

    ``:presets: paper release`` shows these presets side by side in place of the default.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"presets": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        section = model_of(self.arguments[0])
        fields = section.model_fields
        if "presets" in self.options:
            names = self.options["presets"].split()
            presets = [section.preset(name) for name in names]  # type: ignore[attr-defined]
            rows = [
                [
                    nodes.literal(text=field),
                    *(shown(getattr(preset, field)) for preset in presets),
                    choices(fields[field].annotation),
                ]
                for field in fields
                if field != "name"
            ]
            return [table(["setting", *(f"preset {name}" for name in names), "choices"], rows)]
        rows = [
            [nodes.literal(text=name), default_of(field), choices(field.annotation)] for name, field in fields.items()
        ]
        return [table(["setting", "default", "choices"], rows)]


class ProfileTable(SphinxDirective):
    """``{profile-table}`` with one dotted setting per line sets the three profiles side by side."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        profiles = {name: config.load_profile(name) for name in config.PROFILES}
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
                row.append(shown(value))
            rows.append(row)
        return [table(["setting", *profiles], rows)]


class ChecksTable(SphinxDirective):
    """``{checks-table}`` lists the checks that ``hcmae check`` makes: rule, what it looks at, what it does."""

    def run(self) -> list[nodes.Node]:
        from hcmae.pipeline.check import RULES

        rows: list[list[Any]] = [[rule.name, rule.looks_at, rule.does] for rule in RULES]
        return [table(["check", "what is looked at", "what it does"], rows)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("switch", SwitchRole())
    app.add_role("setting", SettingRole())
    app.add_directive("settings-table", SettingsTable)
    app.add_directive("profile-table", ProfileTable)
    app.add_directive("checks-table", ChecksTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
