"""Figures of the survival lessons."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd

from hcmae.evaluation import compare, metrics, tables
from hcmae.evaluation.kaplan_meier import risk_groups
from hcmae.interpretation import interpret
from tests.support.predictions import outcome, predictions


def test_every_survival_figure_can_be_drawn() -> None:
    from matplotlib.figure import Figure

    from hcmae import plots

    frame = predictions()
    score = tables.score(frame, draws=50)
    summary = pd.DataFrame({"hcmae": {"mean": score.mean, "low": score.low, "high": score.high, "paper": 0.737}}).T
    worse = frame.assign(risk=-frame["risk"])
    time, event, risk = outcome(12)
    leaks = pd.DataFrame(
        [
            ("LIHC", kind, protocol, 0.6, 0.55, 0.65, 0.03)
            for kind in ("true", "permuted")
            for protocol in ("honest", "both")
        ],
        columns=["cohort", "labels", "protocol", "mean", "low", "high", "noise"],
    )
    genes = interpret.gene_table(np.ones((1, 1, 3)), {"rna": ["a", "b", "c"]}, {"rna": {"x": ["a"]}})
    drawn = [
        plots.plot_kaplan_meier({"HC-MAE": risk_groups(frame), "other": risk_groups(frame)}),
        plots.plot_fold_scores({"hcmae": metrics.fold_concordance(frame)}, oracle=0.8),
        plots.plot_comparison(summary, labels={"hcmae": "HC-MAE"}, oracle=0.8),
        plots.plot_differences(compare.compare({"hcmae": frame, "x": worse}, "hcmae", draws=20)),
        plots.plot_critical_difference(
            compare.rank_methods(pd.DataFrame(np.eye(3), columns=["hcmae", "mcat", "x"])), labels={"hcmae": "HC-MAE"}
        ),
        plots.plot_leaks(leaks),
        plots.plot_calibration({"one": metrics.calibration(frame, 400)}),
        plots.plot_brier({"hcmae": metrics.brier(frame)}),
        plots.plot_cox_geometry(time, event, risk),
        plots.plot_attention(
            np.zeros((3, 4, 4, 3), np.uint8), np.eye(3, 2), np.ones((3, 3)) / 3, planted=np.eye(3)[0] > 0
        ),
        plots.plot_gene_attributions(genes),
        plots.plot_optimism_curve(pd.DataFrame({"candidates": [30, 300], "leaky": [0.5, 0.8], "nested": [0.5, 0.5]})),
    ]
    for figure in drawn:
        assert isinstance(figure, Figure)
        figure.savefig(io.BytesIO(), format="svg")
