"""The files that describe an environment agree with each other."""

from __future__ import annotations

import importlib.util
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
    # The versions of the lock and no others.
    assert [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)] == [["-r requirements.lock"]]
    lock = (repo / "requirements.lock").read_text()
    locked = {m.group(1).lower().replace("_", "-") for m in re.finditer(r"^([A-Za-z0-9._-]+)==", lock, re.M)}
    wanted = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    missing = {_requirement_name(text) for text in wanted} - locked
    assert not missing, f"in pyproject.toml but not in requirements.lock: {sorted(missing)}"
    assert "--hash=sha256:" in lock
    assert "://" not in lock
    assert "--index-url" not in lock
    assert project["version"] == __version__
    assert yaml.safe_load((repo / "CITATION.cff").read_text())["version"] == __version__
    assert re.search(rf"^## {re.escape(__version__)} - \d{{4}}-\d\d-\d\d$", (repo / "CHANGELOG.md").read_text(), re.M)


def test_packages_asked_for_are_declared(repo: Path) -> None:
    text = (repo / "pyproject.toml").read_text()
    asked = "jupyter-book jupytext papermill torch timm openslide-python pydeseq2 scikit-survival lifelines seaborn"
    for name in asked.split():
        assert f'"{name}' in text


def test_actions_are_pinned_by_commit(repo: Path) -> None:
    used = [
        line.split("uses:")[1].strip()
        for path in sorted((repo / ".github/workflows").glob("*.yml"))
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert len(used) > 10
    assert not [text for text in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", text)]


def test_matrix_covers_every_python_that_is_allowed(repo: Path) -> None:
    jobs = yaml.safe_load((repo / ".github/workflows/ci.yml").read_text())["jobs"]
    matrix = jobs["versions"]["strategy"]["matrix"]
    wanted = tomllib.loads((repo / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", wanted).groups()  # type: ignore[union-attr]
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert matrix["resolution"] == ["lowest-direct", "highest"]


def test_hooks_do_what_make_check_does(repo: Path) -> None:
    hooks = yaml.safe_load((repo / ".pre-commit-config.yaml").read_text())["repos"]
    assert {entry["repo"] for entry in hooks} == {"local"}, "a hook from elsewhere would not be in requirements.lock"
    entries = " ".join(hook["entry"] for hook in hooks[0]["hooks"])
    for command in ("ruff check", "ruff format", "lint-imports", "book.tools.publish pair"):
        assert command in entries


def test_upgrade_note_names_modules_that_exist(repo: Path) -> None:
    rows = [line for line in (repo / "CHANGELOG.md").read_text().splitlines() if line.startswith("| `hcmae_core.")]
    assert len(rows) > 15
    named = {name for row in rows for name in re.findall(r"`((?:hcmae|hcmae_core|book)(?:\.\w+)+)`", row.split("|")[2])}
    assert not {name for name in named if importlib.util.find_spec(name) is None}
