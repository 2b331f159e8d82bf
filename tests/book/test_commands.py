"""Every command that stands in README, book, lessons, run graph or docstrings can be called as it stands there."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.cli import get_argument_parser, parse_config
from typer.main import get_command

from hcmae.cli import typer_app
from tests.support.local_cohort import OVERRIDES, write_manifest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("hcmae", "snakemake", "papermill", "make", "python", "torchrun")
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Snakefile", ROOT / "Makefile"]
TEXTS += sorted(path for path in (ROOT / "book").rglob("*.md") if "executed" not in path.parts)
TEXTS += sorted((ROOT / "notebooks").glob("*.py")) + sorted((ROOT / "hcmae").rglob("*.py"))


def documented() -> Iterator[tuple[str, str]]:
    """(file, command) of all commands: lines of code blocks and comments, and code within a sentence."""
    starts = rf"(?:{'|'.join(PROGRAMS)}) [^`\n]+"
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        found = re.findall(rf"(?<!`)(`{{1,2}})({starts})\1(?!`)", text)
        commands = [command for _, command in found]
        if path.suffix == ".md" or path.name == "Snakefile" or path.parent.name == "notebooks":
            commands += re.findall(rf"^#? *({starts})$", text, re.MULTILINE)
        for command in commands:
            yield path.relative_to(ROOT).as_posix(), re.split(r"\s+#|\s{3,}", command)[0].strip()


COMMANDS = sorted(set(documented()))


def words_of(program: str) -> list[list[str]]:
    """The words of every documented command of a program, without the dots that stand for more of them."""
    found = [shlex.split(command) for command in sorted({c for _, c in COMMANDS}) if command.startswith(f"{program} ")]
    return [words[:-1] if words[-1] == "..." else words for words in found]


def test_commands_are_found_at_all() -> None:
    files = {name for name, _ in COMMANDS}
    assert {"README.md", "Snakefile", "book/how_to_use.md", "book/own_cohort.md", "notebooks/02_cohort.py"} <= files
    assert len(words_of("hcmae")) >= 10
    assert len(words_of("snakemake")) >= 4


def launched() -> list[list[str]]:
    """The words of hcmae in commands of torchrun."""
    return [["hcmae", *words[words.index("-m") + 2 :]] for words in words_of("torchrun")]


@pytest.mark.parametrize("words", words_of("hcmae") + launched(), ids=" ".join)
def test_hcmae_takes_the_command(words: list[str]) -> None:
    command, rest = get_command(typer_app), words[1:]
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"there is no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    if rest:  # a sentence may just name a command
        command.make_context(words[0], rest)  # raises a usage error for an unknown option, argument or value


def snakefile(pattern: str) -> set[str]:
    return set(re.findall(pattern, (ROOT / "Snakefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("words", words_of("snakemake"), ids=" ".join)
def test_snakemake_takes_the_command_with_its_target_and_its_settings(words: list[str]) -> None:
    # The plugin for clusters is no part of the locked environment.
    given = [word.replace("slurm", "local") for word in words[1:]]
    asked = get_argument_parser().parse_args(given)
    assert set(asked.targets) <= snakefile(r"^rule (\w+):")
    assert set(parse_config(asked.config)) <= snakefile(r'chosen\("(\w+)"')


def test_the_target_behind_config_would_be_noticed() -> None:
    asked = get_argument_parser().parse_args(["--cores", "8", "--config", "source=gdc", "notebooks"])
    with pytest.raises(ValueError, match="notebooks"):
        parse_config(asked.config)


@pytest.mark.parametrize("words", words_of("papermill"), ids=" ".join)
def test_papermill_is_given_a_notebook_and_its_parameters(words: list[str]) -> None:
    source = (ROOT / words[1]).with_suffix(".py").read_text(encoding="utf-8")
    cell = source.split('tags=["parameters"]')[1].split("# %%")[0]
    known = set(re.findall(r"^(\w+) =", cell, re.MULTILINE))
    assert {words[at + 1] for at, word in enumerate(words) if word == "-p"} <= known


@pytest.mark.parametrize("words", words_of("make"), ids=" ".join)
def test_make_has_the_target(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for word in words[1:]:
        assert word in targets or word.partition("=")[0] in variables, word


@pytest.mark.parametrize("words", words_of("python") + words_of("torchrun"), ids=" ".join)
def test_modules_that_are_started_are_there(words: list[str]) -> None:
    module = words[words.index("-m") + 1]
    found = importlib.util.find_spec(module)
    assert found is not None, module
    if found.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{module}.__main__") is not None, f"{module} cannot be started"


# --- the run graph as it is carried out -----------------------------------------------------------------------------

# Stands for papermill and hcmae: notes its words and makes what it was asked for.
STUB = """#!/bin/bash
for word in "$0" "$@"; do printf '%s\\0' "$word"; done >> "$LOG"
printf '\\n' >> "$LOG"
case "$0" in */papermill) touch "$2";; esac
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project under a path with a blank and an umlaut, and programs that only note how they are called."""
    home = tmp_path_factory.mktemp("Mein Büch")
    project = home / "das Projekt"
    project.mkdir()
    for name in ("notebooks", "book", "hcmae", "_config.yml", "_toc.yml", "Snakefile"):
        (project / name).symlink_to(ROOT / name)
    (home / "bin").mkdir()
    for name in ("papermill", "hcmae"):
        (home / "bin" / name).write_text(STUB, encoding="utf-8")
        (home / "bin" / name).chmod(0o755)
    return home


def snakemake(home: Path, *words: str) -> tuple[list[list[str]], str]:
    """Run the graph for a call from another folder; (the words of every command that it called, its output)."""
    log = home / "calls"
    log.write_text("", encoding="utf-8")
    other = home / "another folder"
    other.mkdir(exist_ok=True)
    path = f"{home / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(home / "das Projekt" / "Snakefile"), "--cores", "1", *words],
        cwd=other, capture_output=True, text=True, check=False,
        env={"PATH": path, "LOG": str(log), "HOME": str(home), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    calls = log.read_text(encoding="utf-8").split("\n")[:-1]
    return [[Path(first).name, *rest] for first, *rest in (call.split("\0")[:-1] for call in calls)], done.stderr


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def parameters(words: list[str]) -> dict[str, str]:
    return {words[at + 1]: words[at + 2] for at, word in enumerate(words) if word == "-p"}


@pytest.mark.slow
def test_the_run_graph_of_ones_own_tables_calls_every_program_with_whole_paths(elsewhere: Path) -> None:
    """Absolute folders with blanks, a profile's YAML, a cancer with a digit, no slides: the pages that need none."""
    profile = elsewhere / "mein Profil.yaml"
    profile.write_text(yaml.safe_dump({**OVERRIDES_AS_FILE, "name": "mine"}), encoding="utf-8")
    write_manifest(elsewhere / "das Projekt" / "data_manifests", "HCC2")
    data, runs = elsewhere / "meine Daten", elsewhere / "Läufe hier"
    calls, said = snakemake(
        elsewhere, "notebooks", "--config", "source=local", "cancers=HCC2", f"profile={profile}", f"data_dir={data}",
        f"run_dir={runs}", "slides=false", "modalities=rna,mirna",
    )  # fmt: skip
    pages = {Path(words[1]).stem: words for words in calls if words[0] == "papermill"}
    assert sorted(page[:2] for page in pages) == ["01", "02", "04", "07", "08", "09", "10", "11"]
    assert "03_slides, 05_mae_patch, 06_mae_region, 12_interpretation" in said
    for page, words in pages.items():
        assert Path(words[2]) == runs / "mine-local" / "HCC2" / "notebooks" / f"{page}.ipynb"
        assert parameters(words) == {
            "profile": str(profile), "source": "local", "seed": "0", "data_dir": str(data), "run_dir": str(runs),
            "modalities": "rna,mirna", "slides": "False", "cancer": "HCC2",
        }  # fmt: skip
    called = [words for words in calls if words[0] == "hcmae"]
    assert [words[2 : words.index("--cancer")] for words in called if "survival" not in words] == [["curate", "omics"]]
    assert [words[2:5] for words in called if "survival" in words] == [["survival", "--method", "table2"]]
    prepare = called[0]
    given = {
        "--profile": profile,
        "--data-dir": data,
        "--run-dir": runs,
        "--cancer": "HCC2",
        "--modalities": "rna,mirna",
    }
    assert {option: value(prepare, option) for option in given} == {option: str(text) for option, text in given.items()}
    assert "--no-slides" in prepare


@pytest.mark.slow
def test_a_study_of_brca_alone_shows_brca_on_every_page(elsewhere: Path) -> None:
    calls, _ = snakemake(elsewhere, "notebooks", "--config", "source=gdc", "cancers=BRCA", "run_dir=nur BRCA")
    pages = {Path(words[1]).stem: words for words in calls if words[0] == "papermill"}
    assert len(pages) == 12
    assert {parameters(words)["cancer"] for words in pages.values()} == {"BRCA"}
    assert {parameters(words)["run_dir"] for words in pages.values()} == {"../nur BRCA"}
    # A relative path starts at the project's folder, wherever the call came from.
    assert (elsewhere / "das Projekt" / "nur BRCA" / "smoke-gdc" / "BRCA" / "notebooks" / "02_cohort.ipynb").exists()


def nested(dotted: dict[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} as {'a': {'b': 1}}."""
    made: dict[str, Any] = {}
    for name, item in dotted.items():
        *parents, last = name.split(".")
        level = made
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = json.loads(json.dumps(item))
    return made


OVERRIDES_AS_FILE = nested(OVERRIDES)
