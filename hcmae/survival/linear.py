"""Linear rivals in the registry: Cox on clinical data, elastic net on omics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hcmae.cohort.cells import sex_word, stage_number
from hcmae.cohort.splits import inner_folds
from hcmae.evaluation.metrics import concordance
from hcmae.survival.fold import FoldInputs, FoldOutput
from hcmae.survival.methods import Method, register


def _cox_clinical(inputs: FoldInputs) -> FoldOutput:
    """Cox on age, sex and stage, with a small ridge; what any new method has to beat."""
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    table = inputs.data.clinical
    assert table is not None
    design = _clinical_design(table, inputs.train)
    model = CoxPHSurvivalAnalysis(alpha=1.0, ties="efron")
    model.fit(design[inputs.train], inputs.outcome(inputs.train))
    return FoldOutput(model.predict(design[inputs.test]), model.predict(design[inputs.train]))


def _clinical_design(table: Any, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Age, sex, stage as numbers [n, 3], missing values at the training median, standardised on the training rows."""
    columns = np.stack([numeric_clinical(table, name) for name in ("age", "sex", "stage")], 1)
    known = columns[train]
    middle = np.array([np.nanmedian(c) if np.isfinite(c).any() else 0.0 for c in known.T])
    columns = np.where(np.isfinite(columns), columns, middle)
    spread = columns[train].std(0)
    return (columns - columns[train].mean(0)) / np.where(spread > 0, spread, 1.0)


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
    """Elastic net Cox on the selected omics; the penalty by an inner 5-fold on the training part."""
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    assert inputs.omics is not None
    design = inputs.omics.reshape(len(inputs.omics), -1).astype(np.float64)
    design = design[:, design[inputs.train].std(0) > 0]
    time, event = inputs.data.time[inputs.train], inputs.data.event[inputs.train]
    known = {"l1_ratio": 0.5, "max_iter": 20000}
    # The longest path that converges, for all inner folds alike.
    path = CoxnetSurvivalAnalysis(n_alphas=30, alpha_min_ratio=0.05, **known)
    path.fit(design[inputs.train], inputs.outcome(inputs.train))
    alphas = path.alphas_
    inner = inner_folds(time, event, 5, [inputs.seed, 5])
    held_out = np.zeros((len(inputs.train), len(alphas)))
    scores = np.zeros(len(alphas))
    for number in range(5):
        fitted, asked = inputs.train[inner != number], inputs.train[inner == number]
        model = CoxnetSurvivalAnalysis(alphas=alphas, **known)
        model.fit(design[fitted], inputs.outcome(fitted))
        risks = design[asked] @ model.coef_
        held_out[inner == number] = risks
        if event[inner == number].any():
            scores += [concordance(time[inner == number], event[inner == number], risk, empty=0.5) for risk in risks.T]
    best = int(np.argmax(scores))
    return FoldOutput(
        design[inputs.test] @ path.coef_[:, best],
        held_out[:, best],
        {"alpha": float(alphas[best]), "features": int((path.coef_[:, best] != 0).sum())},
    )


register(
    Method(
        "cox_clinical",
        "Cox on age, sex, stage",
        "clinical",
        fit=_cox_clinical,
        needs=frozenset({"clinical"}),
        settings=(),
    )
)
register(
    Method(
        "coxnet_omics",
        "Elastic net on omics",
        "omics",
        fit=_coxnet_omics,
        needs=frozenset({"omics"}),
        settings=(),
    )
)
