"""A trained method as a folder that can be sent to somebody: safetensors, JSON and a model card; no pickle, no patient.

``bundle.json``    what it is: settings, versions, features and their units, thresholds, size and hash of every file
``arrays.safetensors``    means, deviations, size factors, baseline
``members.safetensors``   networks on vectors and omics, or linear weights
``images/*.safetensors``  networks on pixels, where the method reads slides
``MODEL_CARD.md``         for people
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError

from hcmae import __version__
from hcmae.config import Profile, Protocol
from hcmae.evaluation.metrics import Baseline
from hcmae.files import file_hash, read_json, write_json, write_text
from hcmae.keys import source_of
from hcmae.omics.rules import FeatureRule
from hcmae.survival.fold import LinearRule
from hcmae.survival.methods import METHODS, Sizes
from hcmae.survival.trained import Member, Trained, answers, own_profile

# Counts up when what is written changes; a bundle of another format is not read.
FORMAT = 1
ABOUT, ARRAYS, MEMBERS, CARD = "bundle.json", "arrays.safetensors", "members.safetensors", "MODEL_CARD.md"
_PACKAGES = ("torch", "timm", "numpy", "pandas", "scikit-survival", "safetensors")
# Answers to invented patients may differ so much between machines, in the units of the risk.
_SAME = 0.01
# From raw tables to features, and from features to risks.
_CODE = ("hcmae.omics.rules", "hcmae.omics.scales", "hcmae.omics.recognise", "hcmae.survival.trained", "hcmae_core.*")


class BundleError(ValueError):
    """A folder that is no whole bundle, or one that this version cannot use; the message says which and why."""


@dataclass
class Bundle:
    """A bundle from disk. about: ``bundle.json``; notes: what a user should know before believing it."""

    path: Path
    trained: Trained
    about: dict[str, Any]
    notes: list[str]

    def image(self, name: str) -> Path:
        """Weights of a network on pixels. Raises BundleError where the bundle holds none of that name."""
        path = self.path / "images" / f"{name}.safetensors"
        if not path.exists():
            raise BundleError(f"{self.path}: holds no network {name}")
        return path


def write_bundle(
    path: str | Path,
    trained: Trained,
    *,
    images: Mapping[str, Path] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a bundle; one that lies at ``path`` is replaced when the new one is whole.

    images: weights of the networks on pixels by name; about: where it comes from (cancer, source, key ...), kept as it
    is. Raises BundleError where something else than a bundle lies at ``path``.
    """
    final = Path(path)
    if final.exists() and not (final / ABOUT).exists():
        raise BundleError(f"{final}: something else than a bundle lies there; name another folder")
    folder = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    try:
        for name, weights in (images or {}).items():
            shutil.copyfile(weights, folder / "images" / f"{name}.safetensors")
        record = _record(trained, folder) | {"about": dict(about or {})}
        write_text(folder / CARD, model_card(record))
        parts = sorted(file for file in folder.rglob("*") if file.is_file())
        record["files"] = {
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_hash(file)}
            for file in parts
        }
        write_json(folder / ABOUT, record)
        before = final.with_name(f".{final.name}.{os.getpid()}.before")
        if final.exists():
            os.replace(final, before)
        os.replace(folder, final)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def _record(trained: Trained, folder: Path) -> dict[str, Any]:
    """All of a bundle that is no array, and the arrays written into ``folder``."""
    arrays: dict[str, np.ndarray] = {
        "baseline.days": trained.baseline.days,
        "baseline.hazard": trained.baseline.hazard,
        "kaplan_meier": trained.kaplan_meier,
    }
    tensors: dict[str, torch.Tensor] = {}
    members = []
    for number, member in enumerate(trained.members):
        kind: str = "network"
        if isinstance(member.predictor, LinearRule):
            parts = {name: value for name, value in asdict(member.predictor).items() if name != "reads"}
            arrays.update({f"member{number}.{name}": value for name, value in parts.items()})
            kind = member.predictor.reads
        else:
            state = member.predictor.state_dict()
            tensors.update(
                {f"{number}.{name}": value.detach().cpu().contiguous().clone() for name, value in state.items()}
            )
        if member.ends is not None:
            arrays[f"member{number}.ends"] = member.ends
        members.append({"kind": kind, "selection": member.selection, "origin": member.origin})
    selections = []
    libraries: dict[str, list[str]] = {}
    for number, rules in enumerate(trained.selections):
        written = {}
        for modality, rule in rules.items():
            for name in ("mean", "sd", "low", "high", "log_mean"):
                if getattr(rule, name) is not None:
                    arrays[f"selection{number}.{modality}.{name}"] = getattr(rule, name)
            written[modality] = {
                **{name: getattr(rule, name) for name in ("unit", "scale", "median_library")},
                "features": list(rule.names),
                "genes": list(rule.genes),
            }
            # Every fitted feature is in each selection's library: they are written once.
            libraries.setdefault(modality, list(rule.library))
        selections.append(written)
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / ARRAYS)
    safetensors.torch.save_file(tensors, folder / MEMBERS)
    return {
        "format": FORMAT,
        "library": {"hcmae": __version__, **{name: version(name) for name in _PACKAGES}},
        "python": platform.python_version(),
        "code": source_of(_CODE),
        "method": trained.method.name,
        "label": trained.method.label,
        "reads": list(trained.method.kinds),
        "protocol": trained.protocol.model_dump(mode="json"),
        "seed": trained.seed,
        "settings": trained.profile.model_dump(mode="json"),
        "sizes": asdict(trained.sizes),
        "members": members,
        "selections": selections,
        "libraries": libraries,
        "curves": {"slope": trained.slope, "centre": trained.baseline.centre},
        "groups": {"middle": trained.middle, "mean": trained.mean, "spread": trained.spread},
        "trained on": trained.facts,
        "answers": answers(trained),
    }


def read_bundle(path: str | Path) -> Bundle:
    """A bundle from disk, every file checked against its size and hash, the whole against invented patients.

    Raises BundleError for a folder that is none, one that was cut short or changed, one of another format, of a method
    that is not registered here, and one whose networks say something else here than where it was made.
    """
    folder = Path(path)
    if not (folder / ABOUT).is_file():
        raise BundleError(f"{folder}: no bundle ({ABOUT} is missing): name the folder that hcmae train has written")
    try:
        record = read_json(folder / ABOUT)
    except ValueError as error:
        raise BundleError(f"{folder / ABOUT}: cut short or changed ({error}); ask for the bundle again") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        made = record.get("library", {}).get("hcmae", "?") if isinstance(record, dict) else "?"
        raise BundleError(
            f"{folder}: a bundle of format {found}, written by version {made}; this version ({__version__}) reads "
            f"format {FORMAT}: use that version, or train the bundle again"
        )
    for name, facts in record["files"].items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{folder}: {name} is missing; ask for the bundle again")
        if file.stat().st_size != facts["bytes"] or file_hash(file) != facts["sha256"]:
            raise BundleError(
                f"{file}: cut short or changed ({file.stat().st_size:,} bytes, {facts['bytes']:,} were written); ask "
                "for the bundle again"
            )
    if record["method"] not in METHODS:
        raise BundleError(
            f"{folder}: method '{record['method']}' is not registered here: import the module that registers it first"
        )
    try:
        trained = _trained(record, folder)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{folder}: does not fit this version ({__version__}) of the library: {error}") from error
    _check_answers(folder, record, trained)
    return Bundle(folder, trained, record, _notes(record))


def _trained(record: Mapping[str, Any], folder: Path) -> Trained:
    arrays, tensors = safetensors.numpy.load_file(folder / ARRAYS), safetensors.torch.load_file(folder / MEMBERS)
    method, sizes = METHODS[record["method"]], Sizes(**record["sizes"])
    profile, protocol = Profile.model_validate(record["settings"]), Protocol(**record["protocol"])
    network = method.network or method
    members = []
    for number, facts in enumerate(record["members"]):
        predictor: Any
        if facts["kind"] == "network":
            assert network.build is not None
            predictor = network.build(sizes, own_profile(method, profile)).eval()
            prefix = f"{number}."
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            predictor.load_state_dict(state)
        else:
            parts = {name: arrays[f"member{number}.{name}"] for name in ("fill", "centre", "spread", "weights")}
            predictor = LinearRule(facts["kind"], **parts)
        members.append(Member(predictor, facts["selection"], facts["origin"], arrays.get(f"member{number}.ends")))
    selections = [
        {
            modality: FeatureRule(
                modality,
                facts["unit"],
                facts["scale"],
                tuple(facts["features"]),
                tuple(facts["genes"]),
                library=tuple(record["libraries"][modality]),
                median_library=facts["median_library"],
                **{  # type: ignore[arg-type]
                    name: arrays.get(f"selection{number}.{modality}.{name}")
                    for name in ("mean", "sd", "low", "high", "log_mean")
                },
            )
            for modality, facts in rules.items()
        }
        for number, rules in enumerate(record["selections"])
    ]
    curves, groups = record["curves"], record["groups"]
    baseline = Baseline(arrays["baseline.days"], arrays["baseline.hazard"], curves["centre"])
    return Trained(
        method, profile, protocol, record["seed"], sizes, members, selections, curves["slope"], baseline,
        groups["middle"], groups["mean"], groups["spread"], arrays["kaplan_meier"], record["trained on"],
    )  # fmt: skip


def _check_answers(folder: Path, record: Mapping[str, Any], trained: Trained) -> None:
    """Raise BundleError where the members rate invented patients otherwise than where they were trained."""
    theirs, ours = np.asarray(record["answers"]), np.asarray(answers(trained))
    if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=_SAME, atol=_SAME):
        raise BundleError(
            f"{folder}: this version ({__version__}) computes other risks from these weights than version "
            f"{record['library']['hcmae']}, which wrote them: use that version, or train the bundle again"
        )


def _notes(record: Mapping[str, Any]) -> list[str]:
    """What differs here from where the bundle was written, where risks of invented patients are the same."""
    now = source_of(_CODE)
    changed = [name for name, value in record["code"].items() if now.get(name) != value]
    notes = []
    if changed:
        others = f"{', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}"
        notes.append(f"written by other source than this ({others}); invented patients have the same risks")
    for name, kept in record["library"].items():
        here = __version__ if name == "hcmae" else version(name)
        if here != kept:
            notes.append(f"{name} was {kept} and is {here} here")
    return notes


def model_card(record: Mapping[str, Any]) -> str:
    """A bundle's model card: what it is, whom it was trained on, what it reads and what it must not be used for."""
    about, facts, groups = record["about"], record["trained on"], record["groups"]
    lines = [f"# {record['label']} ({record['method']}), a survival model", ""]
    lines += [
        "Not a medical device. For research; nobody may be treated by its numbers.",
        "",
        "## Where it comes from",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in about.items() if not isinstance(value, dict)]
    lines += [f"- library: hcmae {record['library']['hcmae']}, torch {record['library']['torch']}", ""]
    lines += ["## Whom it was trained on", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["## What it reads", "", f"- inputs: {', '.join(record['reads'])}"]
    for modality in record["selections"][0] if record["selections"] else ():
        rules = [rules[modality] for rules in record["selections"]]
        names = sorted({name for rule in rules for name in rule["features"]})
        lines.append(f"- {modality}: {len(names)} features, in {rules[0]['unit'] or rules[0]['scale']}")
    lines += [
        "",
        "A feature that a patient lacks counts as the training patients' mean and is named in the answer;",
        "a whole table or slide that is missing is refused.",
        "",
        "## What it says",
        "",
        f"- risk: larger is worse, the mean of {len(record['members'])} predictor(s)",
        f"- group: high above a risk of {groups['middle']:.4g}, the median of the training patients"
        + (" whom a predictor had not seen" if record["protocol"]["epoch"] == "inner" else ""),
        "- S@<days>: probability to be alive after so many days",
        "",
        "## How good it is",
        "",
    ]
    quality = about.get("cross-validation")
    if isinstance(quality, dict):
        lines += [f"- {name}: {value}" for name, value in quality.items()]
        lines.append("- measured by cross-validation of the same procedure inside the training cohort")
        lines.append("- the next hospital is another question: `hcmae validate`")
    else:
        lines.append("- not known: the method was not cross-validated before it was handed over")
    return "\n".join(lines) + "\n"
