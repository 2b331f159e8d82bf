"""A method fitted on everybody, to be applied to patients who come later: networks or a linear rule, and all around it.

It is fitted as on one fold of cross-validation whose training part is the whole cohort, so that what the
cross-validation measured is what is handed over. No patient's values are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from hcmae.config import Profile, Protocol
from hcmae.evaluation.metrics import Baseline, discrete_survival
from hcmae.omics.rules import Applied, FeatureRule, apply_rules, rules_of
from hcmae.omics.select import OmicsSelector, omics_tables
from hcmae.survival.bags import Bags, PackedBags
from hcmae.survival.cross_validate import calibrated, fit_fold, fold_seed, survival_grid
from hcmae.survival.data import SurvivalData
from hcmae.survival.fit import Feeder, Predicted, say_of, sizes_for
from hcmae.survival.fold import FoldInputs, FoldOutput, LinearRule, Omics, Rows
from hcmae.survival.linear import clinical_columns
from hcmae.survival.methods import VECTORS, Method, Sizes, get_method

_CLINICAL = ("age", "sex", "stage")


class HandOverError(ValueError):
    """A method that cannot be fitted on everybody and handed over; the message says why."""


@dataclass(frozen=True)
class Member:
    """One network, or the one linear rule.

    selection: place of its features in ``Trained.selections``. origin: taken off its risks. ends: of its time bins
    [bins] in days, where its hazards make the survival curves.
    """

    predictor: nn.Module | LinearRule
    selection: int = 0
    origin: float = 0.0
    ends: NDArray[np.float64] | None = None


@dataclass
class Trained:
    """A fitted method.

    Attributes:
        selections: features of each modality, as often as members differ in them; empty for methods without omics.
        slope, baseline: survival curves of methods that say no hazards in bins (``survival_curves``).
        middle, mean, spread: median, mean and standard deviation of the training risks: the border of the risk groups.
        kaplan_meier [len(days)]: survival of the training cohort, the curve that knows nothing of a patient.
        facts: who it was trained on, in counts.
    """

    method: Method
    profile: Profile
    protocol: Protocol
    seed: int
    sizes: Sizes
    members: list[Member]
    selections: list[dict[str, FeatureRule]]
    slope: float
    baseline: Baseline
    middle: float
    mean: float
    spread: float
    kaplan_meier: NDArray[np.float64]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> Method:
        """The method whose network the members are."""
        return self.method.network or self.method

    def predict(self, data: SurvivalData, *, device: torch.device | None = None) -> pd.DataFrame:
        """One row per patient: [patient, risk, risk_z, high, filled, unusual, S@<days> ...].

        risk: larger is worse; risk_z: in standard deviations of the training risks; high: above their median; filled:
        names of what was missing and had the training patients' mean or median; unusual: how many of the chosen
        features are far from the training patients. Outcomes of ``data`` are not read.
        Raises ValueError (``OtherFeaturesError``) for data that lack what the method needs or hold other features.
        """
        for need in self.method.kinds:
            if not data.has(need):
                raise HandOverError(
                    f"{self.method.label} reads {', '.join(self.method.kinds)}, and these {len(data.patients)} "
                    f"patients have no {need}: nothing stands for it; use a model that was trained without it"
                )
        if "clinical" in self.method.needs:
            nothing = ~np.isfinite(clinical_columns(data.clinical)).any(axis=1)
            if nothing.any():
                raise HandOverError(
                    f"patient {data.patients[int(nothing.argmax())]}: neither age nor sex nor stage is known "
                    f"({int(nothing.sum())} such patients), and {self.method.label} needs them: give one"
                )
        applied = [apply_rules(rules, data.omics, self.profile.omics.clip) for rules in self.selections]
        said = [self.said(member, data, applied, device or torch.device("cpu")) for member in self.members]
        risk = np.mean([item.risk - member.origin for item, member in zip(said, self.members, strict=True)], 0)
        frame = pd.DataFrame(
            {
                "patient": data.patients,
                "risk": risk,
                "risk_z": (risk - self.mean) / self.spread,
                "high": risk > self.middle,
                "filled": self._filled(data, applied),
                "unusual": np.max([item.unusual.sum((1, 2)) for item in applied], 0) if applied else 0,
            }
        )
        curves = self._curves(risk, said)
        columns = {f"S@{day:.0f}": curves[:, number] for number, day in enumerate(self.baseline.days)}
        return pd.concat([frame, pd.DataFrame(columns)], axis=1)

    def said(self, member: Member, data: SurvivalData, applied: Sequence[Applied], device: torch.device) -> Predicted:
        """What one member says of each patient."""
        matrix = applied[member.selection].matrix if applied else None
        if isinstance(member.predictor, LinearRule):
            if member.predictor.reads == "clinical":
                return Predicted(member.predictor(clinical_columns(data.clinical)))
            assert matrix is not None
            return Predicted(member.predictor(matrix.reshape(len(matrix), -1).astype(np.float64)))
        everyone, nobody = np.arange(len(data.patients)), np.empty(0, dtype=np.int64)
        profile = own_profile(self.method, self.profile)
        inputs = FoldInputs(data, nobody, everyone, matrix, profile, self.protocol, self.seed, device)
        model = member.predictor.to(device)
        return say_of(self.network, model, Feeder(self.network, inputs), everyone)

    def _curves(self, risk: NDArray[np.float64], said: Sequence[Predicted]) -> NDArray[np.float64]:
        if self.members[0].ends is None:
            return self.baseline.survival(self.slope * risk)
        days = self.baseline.days
        pairs = [(item.hazards, member.ends) for item, member in zip(said, self.members, strict=True)]
        return np.mean([discrete_survival(hazards, ends, days) for hazards, ends in pairs], axis=0)  # type: ignore[arg-type]

    def _filled(self, data: SurvivalData, applied: Sequence[Applied]) -> list[str]:
        """For each patient the features that the mean of the training patients stands for, by modality."""
        lines: list[list[str]] = [[] for _ in data.patients]
        for modality in self.selections[0] if self.selections else ():
            place = list(self.selections[0]).index(modality)
            for row, line in enumerate(lines):
                names = {
                    rules[modality].names[column]
                    for rules, found in zip(self.selections, applied, strict=True)
                    for column in np.flatnonzero(found.filled[row, place])
                }
                line += [f"{modality} {name}" for name in sorted(names)]
        if "clinical" in self.method.needs:
            unknown = ~np.isfinite(clinical_columns(data.clinical))
            for row, line in enumerate(lines):
                line += [name for name, gone in zip(_CLINICAL, unknown[row], strict=True) if gone]
        return ["; ".join(line) for line in lines]


def own_profile(method: Method, profile: Profile) -> Profile:
    """The profile as the method's publication sets it."""
    return method.adapt(profile) if method.adapt is not None else profile


def check_hand_over(method: Method, data: SurvivalData | None = None) -> None:
    """Raise HandOverError, before anything is trained, for a method or data that no rule for later patients comes from.

    data: None where only the method is in question.
    """
    network = method.network or method
    if network.own_features:
        raise HandOverError(
            f"{method.label} makes features of its own from all patients of a fold and keeps no rule for a patient who "
            "comes later: hand over another method"
        )
    if data is None:
        return
    for need in method.kinds:
        if not data.has(need):
            raise HandOverError(f"method '{method.name}' needs '{need}', which the data of these patients lack")
    if "omics" in method.needs and isinstance(data.omics, np.ndarray):
        raise HandOverError("omics that were chosen beforehand have no names: give the tables they were chosen from")
    if "patch_features" in method.kinds and data.bags["patch_features"] is not data.bags.get("patch"):
        raise HandOverError(
            f"{method.label} was given vectors of another encoder, whose weights are no part of a run: embed "
            "without them, or hand over another method"
        )


def train(
    method: str,
    data: SurvivalData,
    profile: Profile,
    protocol: Protocol | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
) -> Trained:
    """Fit a method on everybody: imputation, choice of omics, scaling, networks, baseline hazard, border of the groups.

    With an epoch chosen by inner folds (the honest protocol) baseline and border come from risks of patients whom a
    network did not learn from. Raises KeyError for an unknown method, HandOverError for one that cannot be handed over.
    """
    chosen, protocol = get_method(method), protocol or Protocol.preset("honest")
    if protocol.epoch == "best_test":
        raise HandOverError("a model that is handed over has no test patients to choose its epoch by: use honest")
    check_hand_over(chosen, data)
    everyone, nobody = np.arange(len(data.patients)), np.empty(0, dtype=np.int64)
    chooser = _Chooser(data, profile, seed) if "omics" in chosen.needs else None
    omics, names = chooser(everyone) if chooser else (None, {})
    own = fold_seed(seed, (0, 0))
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = FoldInputs(data, everyone, nobody, omics, profile, protocol, own, where, names, chooser)
    output = fit_fold(chosen, inputs)
    members, selections = _members(chosen, output, chooser)
    known = output.train_risk[np.isfinite(output.train_risk)]
    grid = survival_grid(data.time)
    slope, baseline = calibrated(output, data.time, data.event, grid, said=chosen.output)
    spread = float(np.std(known))
    sizes = sizes_for(chosen.network or chosen, output.parts[0]) if output.parts else Sizes()
    risk_free = Baseline.fit(np.zeros(len(data.time)), data.time, data.event, grid)
    return Trained(
        chosen, profile, protocol, own, sizes, members, selections, slope, baseline,
        float(np.median(known)), float(np.mean(known)), spread if spread > 0 else 1.0,
        risk_free.survival(np.zeros(1))[0], facts_of(data, known),
    )  # fmt: skip


class _Chooser:
    """Chooses omics on some patients, as ``omics_of`` does, and remembers the rules."""

    def __init__(self, data: SurvivalData, profile: Profile, seed: int) -> None:
        self.data, self.settings, self.seed = data, profile.omics, seed
        self.tables = omics_tables(data.omics)
        self.made: list[tuple[NDArray[np.float32], dict[str, FeatureRule]]] = []

    def __call__(self, rows: Rows) -> Omics:
        selector = OmicsSelector(self.settings, self.seed)
        part = {name: table.take(rows) for name, table in self.tables.items()}
        normals = self.data.normals if self.settings.contrast == "tumour_normal" else None
        selector.fit(part, self.data.time[rows], self.data.event[rows], normals=normals)
        matrix = selector.transform(self.tables)
        self.made.append((matrix, rules_of(selector)))
        return matrix, {name: [str(item) for item in report.index] for name, report in selector.chosen.items()}

    def rules(self, matrix: NDArray[np.float32] | None) -> dict[str, FeatureRule] | None:
        """The rules that a matrix was made by; None for one that was made elsewhere."""
        return next((rules for made, rules in self.made if made is matrix), None)


def _members(
    method: Method, output: FoldOutput, chooser: _Chooser | None
) -> tuple[list[Member], list[dict[str, FeatureRule]]]:
    """The fitted predictors, and the selections that they read, each once."""
    if output.rule is not None:
        # The rule is that of all patients, whose selection came first.
        return [Member(output.rule)], [chooser.made[0][1]] if chooser else []
    if not output.models:
        raise HandOverError(
            f"{method.label} gives neither networks nor a rule: it cannot rate a patient who comes later"
        )
    selections: list[dict[str, FeatureRule]] = []
    members = []
    for number, (model, part) in enumerate(zip(output.models, output.parts, strict=True)):
        place = 0
        if chooser is not None:
            rules = chooser.rules(part.omics)
            if rules is None:
                raise HandOverError(f"{method.label} makes features of its own and keeps no rule for them")
            place = next((at for at, found in enumerate(selections) if found is rules), len(selections))
            if place == len(selections):
                selections.append(rules)
        ends = output.binned[number].ends if output.binned else None
        members.append(Member(model.eval(), place, output.origins[number], ends))
    return members, selections


def facts_of(data: SurvivalData, risks: NDArray[np.float64]) -> dict[str, Any]:
    """Counts that say who a model was trained on; risks: those that its baseline and groups rest on."""
    facts: dict[str, Any] = {
        "patients": len(data.patients),
        "deaths": int(data.event.sum()),
        "longest follow-up in days": float(data.time.max()),
        "patients behind baseline and groups": len(risks),
    }
    if data.clinical is not None:
        table = data.clinical
        ages = clinical_columns(table)[:, 0]
        facts["age, median"] = float(np.nanmedian(ages)) if np.isfinite(ages).any() else None
        for name in ("sex", "stage"):
            if name in table:
                facts[name] = {str(key): int(count) for key, count in table[name].value_counts().items()}
    return facts


def invented(trained: Trained, patients: int = 2) -> tuple[SurvivalData, list[Applied]]:
    """Invented patients that fit a model's sizes, the same everywhere: what a bundle tests itself with."""
    rng = np.random.default_rng(2023)
    counts = [2, 3, *rng.integers(1, 4, max(0, patients - 2)).tolist()][:patients]
    sizes, kinds = trained.sizes, trained.method.kinds
    bags: dict[str, Bags] = {}
    for kind in sorted(set(kinds) & {*VECTORS, "thumbnail", "positions"}):
        total = sum(counts)
        if kind == "thumbnail":
            values = rng.integers(0, 256, (total, sizes.thumbnail, sizes.thumbnail, 3)).astype(np.uint8)
        elif kind == "positions":
            values = rng.integers(0, 5, (total, 2)).astype(np.float32)
        else:
            values = rng.normal(size=(total, sizes.vector_dim)).astype(np.float32)
        bags[kind] = PackedBags(values, counts)
    clinical = pd.DataFrame({"age": rng.normal(60, 9, patients), "sex": "female", "stage": "Stage II"})
    applied = []
    for rules in trained.selections:
        shape = (patients, len(rules), max(len(rule.names) for rule in rules.values()))
        matrix = rng.normal(size=shape).astype(np.float32)
        applied.append(Applied(matrix, np.zeros(shape, bool), np.zeros(shape, bool)))
    names = [f"invented {number}" for number in range(patients)]
    omics: Mapping[str, Any] | NDArray | None = applied[0].matrix if applied else None
    data = SurvivalData(names, np.ones(patients), np.zeros(patients, dtype=np.int64), bags, omics, clinical)
    return data, applied


def answers(trained: Trained) -> list[list[float]]:
    """What each member says of the ``invented`` patients [members, patients]."""
    data, applied = invented(trained)
    return [trained.said(member, data, applied, torch.device("cpu")).risk.tolist() for member in trained.members]
