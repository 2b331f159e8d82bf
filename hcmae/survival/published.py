"""What each compared method is in its publication, in its public code and here, and which switches do not reach it.

Everything is data: lesson 9 prints it, and tests compare it with the registry and with the profile ``paper``. What a
publication or its code says is written down once, in ``PUBLISHED``; what is done here is read from a profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hcmae.config import MethodSettings, Profile
from hcmae.keys import pick
from hcmae.survival.methods import METHODS, VECTORS, Method

UNSAID = "not said"


@dataclass(frozen=True)
class Row:
    """One aspect of a method: its publication, its public code, this book."""

    aspect: str
    publication: str
    code: str
    here: str


@dataclass(frozen=True)
class Published:
    """A method's own training and what else differs here.

    Args:
        loop: what publication or code set, by the names of ``MethodSettings`` (``group`` 0: all patients at once).
        differs: name in ``loop`` -> why the profile ``paper`` has another value.
        optimiser, sampling, clipping, stop: (publication, code) of what no number says.
        rest: further rows.
    """

    loop: Mapping[str, Any] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)
    optimiser: tuple[str, str] = (UNSAID, UNSAID)
    sampling: tuple[str, str] = (UNSAID, "every patient once an epoch")
    clipping: tuple[str, str] = (UNSAID, "none")
    stop: tuple[str, str] = (UNSAID, "last epoch")
    rest: tuple[Row, ...] = ()


def _loop(
    rate: float, decay: float, epochs: int, group: int, schedule: str, dropout: float
) -> dict[str, float | int | str]:
    numbers = {"learning_rate": rate, "weight_decay": decay, "epochs": epochs, "group": group}
    return {**numbers, "schedule": schedule, "dropout": dropout}


_ADAM = (UNSAID, "Adam, decay added to the gradient")
_PATCHES = Row(
    "patch vectors",
    "ImageNet ResNet-50, third stage, 1,024 numbers",
    "the same, not standardised",
    "those where they are stored, else of the frozen MAE-Patch; standardised on training patients",
)
_BINS = Row(
    "time bins",
    "quartiles of the times of death",
    "cut on the whole cohort",
    "cut on the training patients of the fold",
)

PUBLISHED: Mapping[str, Published] = {
    "gpdbn": Published(
        loop=_loop(2e-4, 1e-6, 150, 0, "linear", 0.1),
        optimiser=_ADAM,
        rest=(
            Row("task", "five-year survival, two classes", "Cox (the supplement's version)", "Cox"),
            Row(
                "inputs",
                "32 genes and 32 image features, chosen beforehand",
                "three or two levels a feature; the choice is not in the code",
                "largest Cox scores among the training patients, over all omics; standardised, cut at 3 deviations",
            ),
            Row("penalty", UNSAID, "3e-4 times the L1 norm of all parameters", "the same"),
        ),
    ),
    "camr": Published(
        loop=_loop(4e-4, 1e-6, 80, 0, "linear", 0.1),
        optimiser=_ADAM,
        rest=(
            Row("inputs", "80 of expression, image, copy number", "the choice is not in the code",
                "80 of RNA, image, miRNA with methylation by Cox score among the training patients; standardised"),
            Row("adversary", "plays against the shared encoder", "never trained; the encoder reveals the modality",
                "plays, by a reversed gradient; `camr_aligned: false` is the code's"),
            Row("third gate", "looks at its own code", "looks at the second one's", "looks at its own"),
            Row("decoders", UNSAID, "end in ReLU", "end linearly: inputs can be negative"),
        ),
    ),
    "deepcorrsurv": Published(
        loop={"epochs": 5, "group": 10, "schedule": "constant"},
        differs={
            "epochs": "a default of the code, whose runs are not given: the survival stage's",
            "group": "a default of the code: the survival stage's groups, whose risk sets are larger",
        },
        optimiser=("stochastic gradient", "Nesterov momentum, whose momentum and decay never take effect"),
        rest=(
            Row("first stage", "correlation of both networks",
                "one patient a batch by default, which has no correlation", "Adam, about 32 patients a batch"),
            Row("second stage", "all layers", "the fusion layers alone", "all layers"),
            Row("output penalty", UNSAID, "L1 and L2 of the last layer, both with weight 0 by default",
                "none; weight decay as for all"),
            Row("image", "patches of 1,024 pixels", "the same", "thumbnails of regions, their vectors averaged"),
        ),
    ),
    "deepcorrsurv_hc": Published(
        loop={"learning_rate": 1.41e-4, "weight_decay": 1e-2, "epochs": 20, "group": 60, "schedule": "cosine"},
        differs={
            "learning_rate": "HC-MAE's loop, as in the release: the survival stage's",
            "epochs": "80 are set and all after the 20th are skipped: the survival stage's",
            "schedule": "HC-MAE's loop, as in the release: the survival stage's",
        },
        optimiser=(UNSAID, "AdamW on all parameters"),
        clipping=(UNSAID, "gradient norm at 1"),
        stop=(UNSAID, "best epoch on the test patients"),
        rest=(Row("risk", UNSAID, "cosine of image and omics vector", "the same"),),
    ),
    "mcat": Published(
        loop=_loop(2e-4, 1e-5, 20, 32, "constant", 0.25),
        optimiser=("Adam", "Adam, decay added to the gradient"),
        sampling=(UNSAID, "with replacement, time bins of dead and censored equally often"),
        rest=(
            _PATCHES,
            Row("omics groups", "six gene families", "mutation, copy number and RNA of their genes", "one per omics"),
            _BINS,
        ),
    ),
    "hipt": Published(
        loop=_loop(2e-4, 1e-5, 20, 32, "constant", 0.25),
        optimiser=("Adam", "survival code not released; MCAT's"),
        sampling=(UNSAID, "survival code not released; MCAT's"),
        stop=(UNSAID, "survival code not released; MCAT's"),
        clipping=(UNSAID, "survival code not released; MCAT's"),
        rest=(
            Row("pre-training", "104 million patches of 33 cancers", "400,000 updates of 256",
                "this run's pool; budget in lesson 9"),
            Row("region vectors", "frozen second stage", "as they are", "standardised on training patients"),
            _BINS,
        ),
    ),
    "hipt_integration": Published(
        stop=(UNSAID, "not released"),
        sampling=(UNSAID, "not released"),
        clipping=(UNSAID, "not released"),
        rest=(
            Row("network", "omics added by cross-attention, a Transformer, attention pooling", "not released",
                "HC-MAE's network and switches; keys and values are the region vectors"),
        ),
    ),
    "clam_sb": Published(
        loop=_loop(1e-4, 1e-5, 200, 1, "constant", 0.25),
        optimiser=("Adam", "Adam, decay added to the gradient"),
        sampling=(UNSAID, "class-weighted as an option, off by default"),
        stop=("early stopping on a validation part", "the same, as an option"),
        rest=(
            Row("task", "classes of a slide", "the same", "the four time bins are the classes"),
            Row("instance loss", "smooth SVM", "cross entropy by default", "cross entropy, in the bin of a death"),
            _PATCHES,
        ),
    ),
}  # fmt: skip

# How the aspects of a training loop are called in the table.
_NAMES = {
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "epochs": "epochs",
    "group": "patients per update",
    "schedule": "schedule",
    "dropout": "dropout",
}
# What the networks themselves say where neither the profile nor the method sets a dropout.
_OWN_DROPOUT = {"gpdbn": 0.1, "camr": 0.1, "mcat": 0.25, "hipt": 0.25, "clam_sb": 0.25}


def method_table(name: str, profile: Profile) -> pd.DataFrame:
    """One compared method: aspect, publication, its code, here (under a profile). Raises KeyError for another name."""
    entry = PUBLISHED[name]
    own = _adapted(METHODS[name], profile).survival
    rows = [Row("optimiser", *entry.optimiser, "AdamW: decay of matrices alone, not added to the gradient")]
    for setting, aspect in _NAMES.items():
        said = entry.loop.get(setting)
        here = effective(name, profile)[setting]
        why = f" ({entry.differs[setting]})" if setting in entry.differs else ""
        rows.append(Row(aspect, UNSAID, UNSAID if said is None else _shown(setting, said), _shown(setting, here) + why))
    balanced = "comparisons.balanced_sampling" in METHODS[name].reads and profile.comparisons.balanced_sampling
    rows.append(Row("sampling", *entry.sampling, entry.sampling[1] if balanced and name == "mcat" else
                    "as MCAT's" if balanced else "every patient once an epoch"))  # fmt: skip
    clip = "none" if own.clip_norm is None else f"gradient norm at {own.clip_norm:g}"
    rows.append(Row("clipping", *entry.clipping, clip))
    rows.append(Row("which epoch", *entry.stop, "the protocol's, as for every method"))
    rows.append(Row("networks per fold", UNSAID, "1", f"{own.ensemble}, averaged"))
    return pd.DataFrame([vars(row) for row in (*rows, *entry.rest)]).rename(columns={"code": "its code"})


def effective(name: str, profile: Profile) -> dict[str, Any]:
    """What a compared method is trained with under a profile, by the names of ``MethodSettings`` (group 0: all)."""
    own = _adapted(METHODS[name], profile).survival
    found: dict[str, Any] = {setting: getattr(own, setting) for setting in MethodSettings.model_fields}
    found["group"] = own.group or 0
    section: MethodSettings = getattr(profile.comparisons, name)
    shared = own.dropout if name == "hipt_integration" else _OWN_DROPOUT.get(name)
    found["dropout"] = section.dropout if section.dropout is not None else shared
    return found


def _shown(setting: str, value: Any) -> str:
    if value is None:
        return "none"
    if setting == "group":
        return f"{value}" if value else "all at once"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _adapted(method: Method, profile: Profile) -> Profile:
    return method.adapt(profile) if method.adapt is not None else profile


# --- switches that are not about the image --------------------------------------------------------------------------

_PUBLISHED_HEAD = "its published output"
_HAZARDS = "says hazards in time bins, as published"
_OWN_DROPOUT_IS = "its published dropout stands in the layers behind the input"
_READING = "held at the paper's reading"

# Switch -> method -> why it does not reach it, though the method has the part.
NOT_REACHED: Mapping[str, Mapping[str, str]] = {
    "fidelity.omics_projection": {
        "gpdbn": "reads chosen features of all omics as one vector",
        "camr": "has one slot per kind of input, as published",
        "deepcorrsurv": "reads all omics as one vector, as published",
        "deepcorrsurv_hc": "reads all omics as one vector, as released",
        "mcat": "has one network per omics, as published",
        "hcmae_paper": _READING,
    },
    "fidelity.pooler": {
        "gpdbn": "pools nothing",
        "camr": "pools nothing",
        "deepcorrsurv": "averages regions, as published",
        "deepcorrsurv_hc": "averages regions, as released",
        "mcat": "has a gated pool for each stream, as published",
        "hcmae_paper": _READING,
    },
    "fidelity.risk_head": {
        "gpdbn": f"{_PUBLISHED_HEAD}, 6 sigmoid - 3",
        "camr": f"{_PUBLISHED_HEAD}, 8 sigmoid - 4",
        "deepcorrsurv": f"{_PUBLISHED_HEAD}, linear",
        "deepcorrsurv_hc": "its risk is a cosine, as released",
        "mcat": _HAZARDS,
        "hipt": _HAZARDS,
        "clam_sb": _HAZARDS,
        "hcmae_paper": _READING,
    },
    "survival.omics_dropout": {
        "gpdbn": _OWN_DROPOUT_IS,
        "camr": _OWN_DROPOUT_IS,
        "deepcorrsurv": "has no dropout anywhere, as published",
        "deepcorrsurv_hc": "has no dropout anywhere, as released",
        "mcat": _OWN_DROPOUT_IS,
        "hcmae_paper": _READING,
    },
    "survival.scale_vectors": {"hcmae_paper": _READING},
    "survival.ensemble": {"hcmae_paper": _READING},
}


def has_part(switch: str, method: Method) -> bool:
    """Whether a method has what a switch of ``NOT_REACHED`` is about."""
    network = "survival.epochs" in method.reads
    images = bool(method.needs - {"omics", "clinical"})
    omics = "omics" in method.needs
    return (
        network
        and {
            "fidelity.omics_projection": omics,
            "fidelity.pooler": omics and images,
            "fidelity.risk_head": True,
            "survival.omics_dropout": omics,
            "survival.scale_vectors": bool(method.needs & set(VECTORS)),
            "survival.ensemble": True,
        }[switch]
    )


def reaches(switch: str, method: Method, profile: Profile, other: Profile) -> bool:
    """Whether ``other``, which differs from ``profile`` in a switch, trains the method otherwise."""
    names = [name for name in method.reads if not name.startswith("protocol.")]
    before, after = (pick(_adapted(method, item), names) for item in (profile, other))
    return before != after


def reach_table(profile: Profile) -> pd.DataFrame:
    """Where a switch stops: switch, its value in this profile, method, why it does not reach it."""
    rows = []
    for switch, methods in NOT_REACHED.items():
        section, name = switch.split(".")
        value = getattr(getattr(profile, section), name)
        rows += [(name, value, METHODS[method].label, why) for method, why in methods.items()]
    return pd.DataFrame(rows, columns=["switch", "value here", "does not reach", "because"])
