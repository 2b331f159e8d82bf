"""Checks of the lessons' exercises in code: an answer is tried on invented data and compared with the library.

``check("ex-07-eq7", answer)`` says whether the answer is right and, where it is not, on what it fails; it never shows a
solution and never stops a notebook. What is compared with is the plain code that the tests hold the library to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hcmae.evaluation import compare, metrics
from hcmae.evaluation.optimism import cox_score
from hcmae.interpretation.interpret import attention_auc
from hcmae.omics.scales import SizeFactors
from hcmae.pipeline.pages import Text
from hcmae.slides.regions import thumbnail
from hcmae_core import textbook

Answer = Callable[..., Any]


class AnswerError(Exception):
    """An answer that does not pass its check; the message says on what it fails."""


def check(name: str, answer: Any) -> Text:
    """Try an answer and say in one line whether it is right. Raises KeyError for an exercise that has no check."""
    try:
        passed(name, answer)
    except AnswerError as reason:
        return Text(f"`{name}`: not yet. {reason}")
    return Text(f"`{name}`: right.")


def passed(name: str, answer: Any) -> None:
    """Raises AnswerError where the answer is wrong, KeyError for an exercise that has no check."""
    if name not in CHECKS:
        raise KeyError(f"no check '{name}': there are {', '.join(CHECKS)}")
    if not callable(answer):
        raise AnswerError(f"Give the function itself, not {type(answer).__name__}.")
    CHECKS[name](answer)


def _tried(answer: Answer, *arguments: Any) -> Any:
    """What an answer returns; an error or nothing at all is a reason to go on."""
    try:
        value = answer(*arguments)
    except Exception as error:  # whatever a student's code raises is the message
        raise AnswerError(f"It stops with {type(error).__name__}: {error}") from error
    if value is None or value is Ellipsis:
        raise AnswerError("It returns nothing: replace the dots and return the result.")
    return value


def _same(found: Any, expected: Any, where: str) -> None:
    """Raises AnswerError where two results differ in shape or value."""
    ours, theirs = (np.asarray(value.detach() if hasattr(value, "detach") else value) for value in (expected, found))
    if theirs.shape != ours.shape:
        raise AnswerError(f"{where}: the shape is {theirs.shape}, expected {ours.shape}.")
    if not np.allclose(theirs.astype(float), ours.astype(float), rtol=1e-4, atol=1e-5):
        raise AnswerError(f"{where}: the shape is right, the values are not.")


def _c_index(answer: Answer) -> None:
    five = np.array([1.0, 2, 3, 4, 5]), np.array([1, 0, 1, 1, 0]), np.array([0.9, 0.1, 0.4, 0.6, 0.2])
    _same(_tried(answer, *five), metrics.concordance(*five), "Five patients, two of them censored")
    tied = five[0], five[1], np.array([0.9, 0.1, 0.4, 0.4, 0.4])
    _same(_tried(answer, *tied), metrics.concordance(*tied), "Equal risks count one half")
    rng = np.random.default_rng(0)
    many = rng.exponential(size=40), rng.integers(0, 2, 40), rng.normal(size=40)
    _same(_tried(answer, *many), metrics.concordance(*many), "Forty patients")


def _outcome(answer: Answer) -> None:
    cases = {
        "A death on day 100, last seen on day 90": ((100.0, 90.0, []), (100.0, 1)),
        "Alive, last contact on day 200, followed up on day 350": ((None, 200.0, [120.0, 350.0]), (350.0, 0)),
        "Alive, contact after every follow-up": ((None, 400.0, [120.0]), (400.0, 0)),
    }
    for where, (arguments, expected) in cases.items():
        _same(_tried(answer, *arguments), expected, where)


def _block_means(answer: Answer) -> None:
    region = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = np.asarray(_tried(answer, region, 4), dtype=float)
    if found.shape != (8, 8, 3):
        raise AnswerError(f"The shape is {found.shape}, expected (8, 8, 3).")
    if np.abs(found - thumbnail(region, 8)).max() > 0.5:
        raise AnswerError("The shape is right, the values are not the means of blocks of 4 by 4 pixels.")


def _size_factors(answer: Answer) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 500, (6, 40)) * np.array([1, 1, 2, 3, 1, 4])[:, None]
    _same(_tried(answer, counts), SizeFactors.fit(counts)(counts), "Six patients and forty genes")


def _hidden_error(answer: Answer) -> None:
    prediction, target = torch.randn(2, 3, 16, 5, generator=torch.Generator().manual_seed(0))
    hidden = torch.tensor([[0, 3, 7], [1, 2, 15], [4, 5, 6]])
    expected = textbook.hidden_error(prediction, target, hidden)
    _same(_tried(answer, prediction, target, hidden), expected, "Three patches of sixteen cells")


def _residual(answer: Answer) -> None:
    mixed, encoded = torch.randn(2, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    _same(_tried(answer, mixed, encoded), (mixed + encoded).mean(dim=1), "Two regions of nine patches")


def _equation_7(answer: Answer) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, count, 8, generator=generator) for count in (3, 5, 5))
    expected = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1) @ value
    _same(_tried(answer, query, key, value), expected, "Three omics and five regions of two patients")
    wide = torch.randn(2, 5, 11, generator=generator)
    expected = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1) @ wide
    _same(_tried(answer, query, key, wide), expected, "Values wider than keys")


def _fold_difference(answer: Answer) -> None:
    first, second = np.array([0.70, 0.66, 0.81, 0.74, 0.69]), np.array([0.65, 0.68, 0.72, 0.70, 0.69])
    difference = first - second
    expected = difference.mean(), np.sqrt((1 / 5 + 33 / 129) * difference.var(ddof=1))
    _same(_tried(answer, first, second, 129, 33), expected, "Five folds, 129 training and 33 test patients")


def _holm(answer: Answer) -> None:
    for p in ([0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.2]):
        _same(_tried(answer, np.array(p)), compare.holm(p), f"p = {p}")


def _permutation_p(answer: Answer) -> None:
    null = np.array([0.2, 1.5, 3.1, 0.7, 2.2, 3.1, 0.1, 0.4, 1.1])
    for observed, expected in ((3.1, 0.3), (9.0, 0.1), (0.0, 1.0)):
        _same(_tried(answer, observed, null), expected, f"Q = {observed} and nine shuffles")


def _no_leak(answer: Answer) -> None:
    rng = np.random.default_rng(0)
    x, time, event = rng.normal(size=(60, 20)), rng.exponential(size=60), rng.integers(0, 2, 60)
    train = np.arange(60) < 40
    found = np.sort(np.asarray(_tried(answer, x, time, event, train)))
    expected = np.sort(np.argsort(-np.abs(cox_score(x[train], time[train], event[train])))[:5])
    # The test patients' outcomes turned round.
    other = np.where(train, time, time[::-1] * 7), np.where(train, event, 1 - event)
    again = np.sort(np.asarray(_tried(answer, x, *other, train)))
    if found.shape == again.shape and not np.array_equal(found, again):
        raise AnswerError("Other outcomes of the test patients change the choice: the leak is still there.")
    _same(found, expected, "Five of twenty features")


def _auc(answer: Answer) -> None:
    weights, planted = np.array([0.1, 0.4, 0.2, 0.2, 0.1]), np.array([False, True, True, False, False])
    expected = attention_auc({"A": weights}, {"A": planted})
    _same(_tried(answer, weights, planted), expected, "Five regions, two of them planted, one tie")


CHECKS: dict[str, Callable[[Answer], None]] = {
    "ex-01-c-index": _c_index,
    "ex-02-outcome": _outcome,
    "ex-03-means": _block_means,
    "ex-04-depth": _size_factors,
    "ex-05-hidden": _hidden_error,
    "ex-06-residual": _residual,
    "ex-07-eq7": _equation_7,
    "ex-08-folds": _fold_difference,
    "ex-09-holm": _holm,
    "ex-10-p": _permutation_p,
    "ex-11-leak": _no_leak,
    "ex-12-auc": _auc,
}
