"""The files that describe an environment agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from hcmae import __version__


def _requirement_name(text: str) -> str:
    return re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0].lower().replace("_", "-")


def test_environment_files_agree(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((repo / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    extras = set(re.search(r"\[(.*)\]", pip[0]).group(1).split(","))  # type: ignore[union-attr]
    assert extras == set(project["optional-dependencies"])
    lock = (repo / "requirements.lock").read_text()
    locked = {m.group(1).lower().replace("_", "-") for m in re.finditer(r"^([A-Za-z0-9._-]+)==", lock, re.M)}
    wanted = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    missing = {_requirement_name(text) for text in wanted} - locked
    assert not missing, f"in pyproject.toml but not in requirements.lock: {sorted(missing)}"
    assert "--hash=sha256:" in lock
    assert "://" not in lock
    assert "--index-url" not in lock
    assert project["version"] == __version__


def test_packages_asked_for_are_declared(repo: Path) -> None:
    text = (repo / "pyproject.toml").read_text()
    asked = "jupyter-book jupytext papermill torch timm openslide-python pydeseq2 scikit-survival lifelines seaborn"
    for name in asked.split():
        assert f'"{name}' in text
