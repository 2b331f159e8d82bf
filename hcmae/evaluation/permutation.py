"""P-values of what cross-validation made: the whole procedure once more on permuted outcomes, many times.

Predictions of different folds are not independent, because their training sets share patients: a test that takes them
for independent (log-rank on pooled risk groups) rejects true null hypotheses too often. Permuting the outcomes and
repeating everything that looks at them gives the statistic's own distribution without an effect.
Source: Simon, Subramanian, Li and Menezes, Briefings in Bioinformatics 12 (2011), 203-214.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hcmae.files import read_json, write_json
from hcmae.outcome import check_outcome

log = logging.getLogger(__name__)

# From times and events [n] to whatever the statistic reads: folds, choice of features, training, predictions.
Procedure = Callable[[NDArray[np.float64], NDArray[np.int64]], Any]


@dataclass(frozen=True)
class PermutationTest:
    """A chi-square statistic (one degree of freedom) of a procedure beside its values for permuted outcomes.

    Attributes:
        statistic: for the outcomes as they are.
        null: for each permutation, in their order.
    """

    statistic: float
    null: tuple[float, ...]

    @property
    def permutations(self) -> int:
        return len(self.null)

    @property
    def p(self) -> float:
        """Share of all orders, the true one included, whose statistic is at least as large; never 0."""
        reached = sum(value >= self.statistic * (1 - 1e-12) for value in self.null)
        return (1 + reached) / (1 + len(self.null))

    @property
    def naive_p(self) -> float:
        """What the chi-square distribution says, as if the predictions of all patients were independent."""
        return float(stats.chi2.sf(self.statistic, 1))

    @property
    def naive_null(self) -> NDArray[np.float64]:
        """Naive p-values of the permuted outcomes; uniform if the naive test were right."""
        return stats.chi2.sf(np.asarray(self.null), 1)

    def randomised_p(self, rng: np.random.Generator) -> float:
        """As ``p``, ties broken at random: uniform on (0, 1) without an effect, for tests of the test."""
        null = np.asarray(self.null)
        above, equal = (null > self.statistic).sum(), (null == self.statistic).sum()
        return float((above + rng.random() * (1 + equal)) / (1 + len(null)))

    def text(self) -> str:
        """'p = 0.013 (99 permutations)'; with none larger, the least that so many can say."""
        if self.p <= 1 / (1 + len(self.null)):
            return f"p = {self.p:.2g}, the least that {len(self.null)} permutations can give"
        return f"p = {self.p:.2g} ({len(self.null)} permutations)"


def permutation_test(
    procedure: Procedure,
    statistic: Callable[[Any], float],
    time: NDArray,
    event: NDArray,
    *,
    permutations: int = 199,
    seed: int = 0,
    kept: str | Path | None = None,
    key: str = "",
) -> PermutationTest:
    """P-value of a whole procedure: everything is done again for each permutation of the pairs of time and event.

    Args:
        procedure: everything that looks at an outcome, folds included; the same outcome must give the same predictions.
        statistic: of what it returns; the larger, the further from no effect.
        kept: a JSON file. Each permutation is noted there when it is done and not repeated; more can be added later.
        key: what the procedure depends on. A file under another key is begun anew.

    Raises:
        ValueError: fewer than one permutation, ``kept`` without ``key``, a statistic that is not finite.
    """
    days, dead = check_outcome(time, event)
    died = dead.astype(np.int64)
    if permutations < 1:
        raise ValueError(f"{permutations} permutations: a p-value needs one or more")
    if kept is not None and not key:
        raise ValueError(f"{kept}: without a key nobody can tell whether its numbers belong to this procedure")
    values = _kept(kept, f"{key}-{seed}")
    for number in range(len(values), permutations + 1):
        order = np.arange(len(days))
        if number:  # the first is the truth
            order = np.random.default_rng([seed, number, 2011]).permutation(len(days))
        value = float(statistic(procedure(days[order], died[order])))
        if not np.isfinite(value):
            raise ValueError(f"permutation {number}: the statistic is {value}; give 0 where groups cannot be compared")
        values.append(value)
        if kept is not None:
            write_json(kept, {"key": f"{key}-{seed}", "statistics": values})
    return PermutationTest(values[0], tuple(values[1 : permutations + 1]))


def _kept(path: str | Path | None, key: str) -> list[float]:
    """Statistics noted in a file: the truth's, then one of each permutation; none where it is another procedure's."""
    if path is None or not Path(path).exists():
        return []
    stored = read_json(path)
    if stored.get("key") != key:
        log.info("%s: the permutations are made again (settings, data or code have changed)", path)
        return []
    return [float(value) for value in stored["statistics"]]
