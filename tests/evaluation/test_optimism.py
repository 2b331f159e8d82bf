"""What a leak is worth, on pure noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter

from hcmae.evaluation import optimism
from tests.support.predictions import outcome


def test_cox_score_equals_lifelines_where_it_must() -> None:
    time, event, x = outcome(300)
    z = optimism.cox_score(x[:, None], time, event)[0]
    # A score and a Wald statistic agree for small effects only.
    weak = x * 0.1 + np.random.default_rng(0).normal(size=300)
    fitter = CoxPHFitter().fit(pd.DataFrame({"x": weak, "t": time, "e": event}), "t", "e")
    assert optimism.cox_score(weak[:, None], time, event)[0] == pytest.approx(fitter.summary.loc["x", "z"], rel=0.06)
    assert z > 5


def test_noise_curve_shows_the_leak() -> None:
    time, event, _ = outcome(120)
    curve = optimism.noise_curve(time, event, candidates=(20, 400), top=20, seed=0).set_index("candidates")
    assert curve.loc[400, "leaky"] > 0.65
    assert abs(curve.loc[400, "nested"] - 0.5) < 0.15
    assert curve.loc[20, "leaky"] == curve.loc[20, "nested"]
    with pytest.raises(ValueError, match="cannot choose"):
        optimism.noise_curve(time, event, candidates=(10,), top=20)
