"""Invented outcomes and out-of-fold predictions for tests of what comes after training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hcmae.evaluation import metrics


def outcome(n: int = 80, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    time = rng.exponential(np.exp(-risk)) * 800
    if ties:
        time, risk = np.ceil(time / 200) * 200, np.round(risk)
    return time, (rng.random(n) < 0.6).astype(int), risk


def predictions(n: int = 120, repeats: int = 2, seed: int = 0, noise: float = 0.5) -> pd.DataFrame:
    """Out-of-fold predictions of five folds whose scales differ."""
    rng = np.random.default_rng(100 + seed)
    time, event, risk = outcome(n, 0)
    parts = []
    for repeat in range(repeats):
        fold = rng.permutation(np.arange(n) % 5)
        guess = risk + noise * rng.normal(size=n)
        frame = pd.DataFrame(
            {
                "patient": [f"P{i:03d}" for i in range(n)],
                "repeat": repeat,
                "fold": fold,
                "risk": guess + 3 * fold,
                "time": time,
                "event": event,
                "risk_z": guess,
                "high": guess > 0,
            }
        )
        curves = metrics.breslow_survival(risk, time, event, guess, np.arange(1, 9) * 200.0)
        parts.append(pd.concat([frame, pd.DataFrame(curves, columns=[f"S@{d * 200}" for d in range(1, 9)])], axis=1))
    return pd.concat(parts, ignore_index=True)
