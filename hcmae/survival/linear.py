"""Linear rivals in the registry: Cox on clinical data, elastic net on omics.

Neither has epochs, so a protocol acts on them by whom the omics are chosen on, and by nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hcmae.cohort.cells import sex_word, stage_number
from hcmae.survival.fold import FoldInputs, FoldOutput, LinearRule
from hcmae.survival.methods import Method, register
from hcmae_core.losses import cox_loss


def _cox_clinical(inputs: FoldInputs) -> FoldOutput:
    """Cox on age, sex and stage, with a small ridge; what any new method has to beat. Training risks are held out."""
    held_out = np.empty(len(inputs.train))
    for number in range(inputs.inner_count):
        part = inputs.part(number)
        held_out[inputs.inner == number] = _clinical_rule(part)(clinical_columns(part.data.clinical)[part.left_out])
    rule = _clinical_rule(inputs)
    risk = rule(clinical_columns(inputs.data.clinical)[inputs.test])
    return FoldOutput(risk, held_out, held_out=True, rule=rule)


def _clinical_rule(inputs: FoldInputs) -> LinearRule:
    """Log hazards from their mean over the training rows; missing values at the training median."""
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    known = clinical_columns(inputs.data.clinical)[inputs.train]
    middle = np.array([np.nanmedian(c) if np.isfinite(c).any() else 0.0 for c in known.T])
    known = np.where(np.isfinite(known), known, middle)
    centre, spread = known.mean(0), known.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    model = CoxPHSurvivalAnalysis(alpha=1.0, ties="efron")
    model.fit((known - centre) / spread, inputs.outcome(inputs.train))
    return LinearRule("clinical", middle, centre, spread, model.coef_)


def clinical_columns(table: Any) -> NDArray[np.float64]:
    """Age, sex, stage of a clinical table as numbers [n, 3] (see ``numeric_clinical``); unknown = NaN."""
    return np.stack([numeric_clinical(table, name) for name in ("age", "sex", "stage")], 1)


def numeric_clinical(table: Any, name: str) -> NDArray[np.float64]:
    """A clinical column as numbers: age as it is, sex male = 1, stage I to IV = 1 to 4; unknown = NaN."""
    if name not in table.columns:
        return np.full(len(table), np.nan)
    out = np.full(len(table), np.nan)
    for row, value in enumerate(table[name].tolist()):
        text = str(value).strip().lower()
        if name == "sex" and (sex := sex_word(text)) is not None:
            out[row] = float(sex == "male")
        elif name == "stage":
            out[row] = stage_number(text)
        elif name == "age":
            out[row] = _number(text)
    return out


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _coxnet_omics(inputs: FoldInputs) -> FoldOutput:
    """Elastic net Cox on the selected omics; the penalty by inner folds that each choose their omics anew.

    Each inner fold is rated, for every penalty, by a model that its patients have not taught, features included; these
    ratings choose the penalty (``best_penalty``), which is then applied to the whole training part with the omics
    chosen on the whole. Where no penalty beats the empty model, everybody has the same risk.
    """
    path = _elastic_path(inputs)
    away = [(inputs.inner == number, inputs.part(number)) for number in range(inputs.inner_count)]
    rated = [(asked, _omics_design(part)[part.left_out] @ _elastic_path(part)) for asked, part in away]
    # A path ends early where it explains everything: penalties that all reach.
    count = min(path.shape[1], *(risks.shape[1] for _, risks in rated))
    held_out = np.empty((len(inputs.train), count))
    for asked, risks in rated:
        held_out[asked] = risks[:, :count]
    best = best_penalty(held_out, inputs.data.time[inputs.train], inputs.data.event[inputs.train])
    coefficients = path[:, best]
    info = {"penalty": best, "features": int((coefficients != 0).sum())}
    risk = _omics_design(inputs)[inputs.test] @ coefficients
    return FoldOutput(risk, held_out[:, best], info, held_out=True, rule=_omics_rule(inputs, coefficients))


def _elastic_path(inputs: FoldInputs) -> NDArray[np.float64]:
    """Coefficients [p, penalties] on the training rows: the empty model, then 30 penalties from the largest down.

    Each is a share of the largest that still selects something on these rows, the same shares for all inner folds: a
    grid in absolute units would be that of somebody's training part.
    """
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    model = CoxnetSurvivalAnalysis(n_alphas=30, alpha_min_ratio=0.05, l1_ratio=0.5, max_iter=20000)
    model.fit(_omics_design(inputs)[inputs.train], inputs.outcome(inputs.train))
    return np.hstack([np.zeros((len(model.coef_), 1)), model.coef_])


def best_penalty(held_out: NDArray[np.float64], time: NDArray[np.float64], event: NDArray[np.integer]) -> int:
    """The column of held-out log hazards [n, penalties] with the largest Cox partial likelihood; the first of equals.

    Source: cross-validated linear predictors, Dai and Breheny 2019 (arXiv 1905.10432), who find them steadier than the
    differences of likelihoods of Verweij and van Houwelingen 1993; these would also rate patients who taught the model.
    """
    days, dead = torch.from_numpy(time), torch.from_numpy(event)
    losses = [float(cox_loss(torch.from_numpy(risk), days, dead, divisor="none")) for risk in held_out.T.copy()]
    return int(np.argmin(losses))


def _omics_design(inputs: FoldInputs) -> NDArray[np.float64]:
    """The omics of all patients side by side [n, p], centred on the training rows; columns that vary in these."""
    assert inputs.omics is not None
    design = inputs.omics.reshape(len(inputs.omics), -1).astype(np.float64)
    known = design[inputs.train]
    return (design - known.mean(0))[:, known.std(0) > 0]


def _omics_rule(inputs: FoldInputs, coefficients: NDArray[np.float64]) -> LinearRule:
    """The same predictor for any patient: ``coefficients`` are those of the columns of ``_omics_design``."""
    assert inputs.omics is not None
    known = inputs.omics.reshape(len(inputs.omics), -1).astype(np.float64)[inputs.train]
    weights, none = np.zeros(known.shape[1]), np.zeros(known.shape[1])
    weights[known.std(0) > 0] = coefficients
    return LinearRule("omics", none, known.mean(0), none + 1, weights)


register(
    Method(
        "cox_clinical",
        "Cox on age, sex, stage",
        "clinical",
        fit=_cox_clinical,
        output="log hazard",
        needs=frozenset({"clinical"}),
        settings=("survival.inner_fraction",),
    )
)
register(
    Method(
        "coxnet_omics",
        "Elastic net on omics",
        "omics",
        fit=_coxnet_omics,
        output="log hazard",
        needs=frozenset({"omics"}),
        settings=("survival.inner_fraction",),
    )
)
