"""Figures of the survival lessons."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from hcmae.evaluation import compare, metrics, tables
from hcmae.evaluation.kaplan_meier import compare_groups, risk_groups
from hcmae.evaluation.permutation import PermutationTest
from hcmae.interpretation import interpret
from tests.support.predictions import outcome, predictions


@pytest.mark.slow
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
        plots.plot_kaplan_meier(
            {"HC-MAE": risk_groups(frame).tested(PermutationTest(4.0, (1.0, 5.0))), "other": risk_groups(frame)}
        ),
        plots.plot_null_p_values({"naive": np.linspace(0, 0.9, 20), "permuted": np.linspace(0, 1, 20)}),
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


def test_panels_call_naive_p_values_naive() -> None:
    from hcmae import plots

    frame = predictions()
    groups = risk_groups(frame)
    given = compare_groups(*(frame.drop_duplicates("patient")[name].to_numpy() for name in ("time", "event", "high")))
    tested = groups.tested(PermutationTest(4.0, (1.0,) * 19))
    axes = plots.plot_kaplan_meier({"naive": groups, "given": given, "permuted": tested}).axes
    words = [next(text.get_text() for text in ax.texts if "HR" in text.get_text()) for ax in axes[:3]]
    assert words[0].startswith("naive: p =")
    assert words[1].startswith("p =")
    assert words[2].startswith("permuted (19): p = 0.05\nnaive: p =")
