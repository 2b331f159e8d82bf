"""The road: one table from which the verbs, the command line and the run graph follow; every setting in its keys."""

from __future__ import annotations

import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from hcmae.cli import run as cli
from hcmae.config import Profile, load_profile
from hcmae.keys import NEUTRAL, pick
from hcmae.pipeline.road import NOTEBOOKS, ROAD, STEPS, VERBS

ROOT = Path(__file__).resolve().parents[2]

# Which steps each setting is read by; a prefix stands for all fields below it. Written by hand, from what the steps are
# for: the table that the road is held against.
CUT = {"slides"}
MAE_PATCH, MAE_REGION = {"mae_patch"}, {"mae_region_reg", "mae_region_patreg"}
DINO = {"dino_patch", "dino_region"}
FEATURES, REGION_TOKEN, FEATURE_HIPT = {"features"}, {"feature_region"}, {"feature_hipt"}
OF_PATCHES = {"patch_vectors", "hipt_patch_vectors", "resnet_vectors", "encoder_vectors"}
OF_REGIONS = {"region_vectors_reg", "region_vectors"}
VECTORS = {"region_vectors_hipt", "feature_region_vectors", "feature_hipt_vectors"} | OF_PATCHES | OF_REGIONS
EXPECTED: dict[str, set[str]] = {
    "geometry.region": {"synthesise", "dino_patch"}
    | CUT
    | MAE_REGION
    | OF_PATCHES
    | OF_REGIONS
    | FEATURES
    | REGION_TOKEN,
    "geometry.patch": {"synthesise", "nuclei", "dino_patch", "features", "feature_region"}
    | CUT
    | MAE_PATCH
    | MAE_REGION
    | OF_PATCHES,
    "geometry.cell": {"synthesise", "dino_patch"} | CUT | MAE_PATCH,
    "geometry.thumbnail": {"synthesise"} | CUT,
    "network": MAE_PATCH | MAE_REGION | REGION_TOKEN,
    "mae_patch": MAE_PATCH,
    "mae_patch.optimisation.epochs": MAE_PATCH,
    "mae_region": MAE_REGION,
    # The region token is masked, decoded and trained as MAE-Region is.
    **{
        f"mae_region.{name}": MAE_REGION | REGION_TOKEN
        for name in ("mask_ratio", "decoder_dim", "decoder_depth", "decoder_heads", "optimisation")
    },
    "mae_region.warm_epochs": {"mae_region_patreg"},
    "mae_region.reduce": MAE_REGION | {"region_vectors_reg", "region_vectors"},
    "slides": CUT,
    "omics": {"predictions"},
    "survival": {"predictions"},
    "survival.folds": {"folds", "predictions"},
    "survival.fold_kind": {"folds", "predictions"},
    # Folds of another number of repeats lie beside the others.
    "survival.repeats": {"predictions"},
    "fidelity": {"predictions"},
    # Read where the optimiser is called Adam (below).
    "fidelity.adam_decay": MAE_PATCH | MAE_REGION | REGION_TOKEN,
    "fidelity.region_attention": {"mae_region_patreg"},
    "fidelity.region_residual": {"mae_region_patreg"},
    "fidelity.region_warm_start": {"mae_region_patreg"},
    "fidelity.extract_depth": {"patch_vectors"},
    "fidelity.extract_norm": {"patch_vectors"},
    "fidelity.extract_augment": {"patch_vectors", "region_vectors_reg", "region_vectors"},
    "fidelity.augment": MAE_PATCH | MAE_REGION,
    "dino.patch": {"dino_patch"},
    "dino.patch.network.dim": DINO,
    "dino.region": {"dino_region"} | FEATURE_HIPT,
    # Its crops are of vectors: there is nothing to interpolate and no colour.
    "dino.region.interpolation": set(),
    "dino.region.jitter": set(),
    "handcrafted": {"nuclei"},
    "comparisons": {"predictions"},
    "synthetic": {"synthesise"},
    "compute.precision": MAE_PATCH | MAE_REGION | DINO | REGION_TOKEN | FEATURE_HIPT | VECTORS | {"predictions"},
    "compute.workers": set(),
    "compute.compile": set(),
    "compute.decoders": set(),
    "compute.memory_gib": set(),
    "survival.micro_batch": set(),
    "name": set(),
    "pool": set(),
}


def leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, annotation) of every field of the settings, sections followed to their last field."""
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, info.annotation


def other(value: Any, annotation: Any) -> Any:
    """Another value of a setting, whatever it means: keys are made from values, validation is somebody else's test."""
    choices = [choice for choice in _literals(annotation) if choice != value]
    if choices:
        return choices[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, tuple):
        return value[:-1]
    if isinstance(value, dict):
        return {**value, "rna": "log"}
    assert value is None
    return 7


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _literals(part)]


def changed(model: BaseModel, dotted: str, value: Any) -> Any:
    """A copy with one field changed, not validated."""
    first, _, rest = dotted.partition(".")
    return model.model_copy(update={first: changed(getattr(model, first), rest, value) if rest else value})


def expected(dotted: str) -> set[str]:
    """The entry with the longest prefix."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        found = EXPECTED.get(".".join(parts[:length]))
        if found is not None:
            return found
    raise AssertionError(f"a new setting, {dotted}: say in EXPECTED which steps read it")


@pytest.mark.parametrize("base", ["smoke", "paper"])
def test_every_setting_makes_stale_the_steps_that_read_it_and_no_other(base: str) -> None:
    profile = load_profile(base)
    warm = profile.fidelity.region_warm_start
    for dotted, value, annotation in leaves(profile):
        after = changed(profile, dotted, other(value, annotation))
        stale = {step.name for step in STEPS if _settings(step, profile) != _settings(step, after)}
        wanted = set(expected(dotted))
        if dotted == "mae_region.warm_epochs" and not warm:
            wanted = set()
        if dotted == "fidelity.adam_decay" and profile.mae_patch.optimisation.optimizer != "adam":
            wanted = set()
        # The budget that DINO inherits is read only where DINO leaves it open.
        for level in ("patch", "region"):
            own = getattr(profile.dino, level)
            for name in ("epochs", "samples_per_epoch"):
                if dotted == f"mae_{level}.optimisation.{name}" and getattr(own, name) is None:
                    wanted |= {"dino_patch"} if level == "patch" else {"dino_region", "feature_hipt"}
        assert stale == wanted, dotted


def _settings(step: Any, profile: Profile) -> dict[str, Any]:
    return pick(profile, step.reads(profile).settings)


def test_neutral_settings_are_in_no_key() -> None:
    profile = load_profile("smoke")
    for step in STEPS:
        assert not set(NEUTRAL) & set(_settings(step, profile)), step.name


def test_steps_stand_after_what_they_read() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names) == len(ROAD)
    for number, step in enumerate(STEPS):
        assert set(step.after) <= set(names[:number]), step.name


def test_verbs_and_the_command_line_are_one_list() -> None:
    assert set(cli._WORK) == set(VERBS)
    assert {name for steps in (*VERBS.values(), *NOTEBOOKS.values()) for name in steps} <= set(ROAD)
    assert {name for steps in VERBS.values() for name in steps} == set(ROAD), "every step can be asked for"


@pytest.mark.parametrize("page", sorted(NOTEBOOKS))
def test_a_notebook_calls_the_verbs_of_its_steps(page: str) -> None:
    text = (ROOT / "notebooks" / f"{page}.py").read_text(encoding="utf-8")
    calls = {
        "curate": r"\.curate\(",
        "slides": r"\.make_slides\(",
        "omics": r"\.load_omics\(|\.omics\(",
        "mae_patch": r"\.pretrain_patch\(",
        "mae_region_patreg": r"\.pretrain_region\(",
        # Lesson 11 has them made by its module.
        "predictions": r"\.evaluate\(|\bleaks\.\w+\(run\b",
    }
    for step in NOTEBOOKS[page]:
        if step in calls:
            assert re.search(calls[step], text), f"{page} is said to do {step}"


# --- the run graph --------------------------------------------------------------------------------------------------


def snakefile_rules() -> dict[str, set[str]]:
    """Rule of the Snakefile -> steps that it does, by the notebooks and commands in its text."""
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for name, body in re.findall(r"^ *rule (\w+):\n(.*?)(?=^ *rule |\Z)", text, re.MULTILINE | re.DOTALL):
        steps: set[str] = set()
        for page in re.findall(r'execute\("(\w+)"', body):
            steps |= set(NOTEBOOKS.get(page, ()))
        for verb in re.findall(r'(?:hcmae run |train\(")(\w+)', body):
            steps |= set(VERBS[verb])
        for verbs in re.findall(r"stages=\[(.*)\]", body):
            steps |= {step for verb in re.findall(r'"(\w+)"', verbs) for step in VERBS[verb]}
        found[name] = steps
    return found


def rule_graph() -> dict[str, set[str]]:
    """Rule -> rules that come before it, all of them, as snakemake itself sees the graph of the book."""
    out = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--rulegraph", "--forceall", "--", "book"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    labels = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)', out, re.MULTILINE))
    before: dict[str, set[str]] = {name: set() for name in labels.values()}
    for first, second in re.findall(r"^\s*(\d+) -> (\d+)", out, re.MULTILINE):
        before[labels[second]].add(labels[first])
    while True:
        grown = {name: found.union(*(before[other] for other in found)) for name, found in before.items()}
        if grown == before:
            return before
        before = grown


@pytest.mark.slow
def test_the_run_graph_keeps_every_edge_of_the_road() -> None:
    rules, before = snakefile_rules(), rule_graph()
    done = {name: steps for name, steps in rules.items() if name in before and steps}
    assert {step for steps in done.values() for step in steps} >= {
        step.name for step in STEPS if not step.on_request and "synthetic" in step.sources
    }
    for name, steps in done.items():
        earlier = set(steps).union(*(rules[other] for other in before[name]))
        for step in steps:
            missing = set(ROAD[step].after) - earlier
            assert not missing, f"rule {name} does {step}, but nothing before it does {', '.join(missing)}"
