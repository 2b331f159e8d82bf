"""The Cox loss against lifelines, against a definition written out, and against input that breaks naive versions."""

from __future__ import annotations

import time as clock

import lifelines
import numpy as np
import pandas as pd
import pytest
import torch

from hcmae_core.losses import cox_loss, nll_discrete
from hcmae_core.textbook import cox_by_definition


def cohort(n: int = 60, ties: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    time = rng.integers(1, 15, n).astype(float) if ties else rng.exponential(100, n)
    return (
        torch.tensor(rng.normal(size=n)),
        torch.tensor(time),
        torch.tensor((rng.random(n) < 0.5).astype(int)),
    )


def written_out(risk: np.ndarray, time: np.ndarray, event: np.ndarray, ties: str) -> float:
    """Minus the log partial likelihood, event time by event time."""
    total = 0.0
    for moment in np.unique(time[event == 1]):
        dead = (time == moment) & (event == 1)
        at_risk = np.exp(risk[time >= moment]).sum()
        for number in range(dead.sum()):
            gone = number / dead.sum() * np.exp(risk[dead]).sum() if ties == "efron" else 0.0
            total += np.log(at_risk - gone)
        total -= risk[dead].sum()
    return total


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("tied", [False, True])
def test_equals_the_definition(ties: str, tied: bool) -> None:
    risk, time, event = cohort(ties=tied)
    expected = written_out(risk.numpy(), time.numpy(), event.numpy(), ties)
    assert cox_loss(risk, time, event, ties=ties, divisor="none").item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_equals_the_textbook_loss_and_gradient(tied: bool) -> None:
    risk, time, event = cohort(ties=tied, seed=4)
    one, other = risk.clone().requires_grad_(), risk.clone().requires_grad_()
    ours, plain = cox_loss(one, time, event), cox_by_definition(other, time, event)
    assert ours.item() == pytest.approx(plain.item(), abs=1e-12)
    ours.backward()
    plain.backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_equals_lifelines_partial_likelihood(tied: bool) -> None:
    _, time, event = cohort(ties=tied, seed=3)
    x = np.random.default_rng(1).normal(size=len(time))
    frame = pd.DataFrame({"x": x, "time": time.numpy(), "event": event.numpy()})
    fitter = lifelines.CoxPHFitter().fit(frame, "time", "event")
    # lifelines uses Efron's ties; its coefficient gives our log hazards.
    ours = cox_loss(torch.tensor(x * fitter.params_["x"]), time, event, ties="efron", divisor="none")
    assert -ours.item() == pytest.approx(fitter.log_likelihood_, abs=1e-6)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("tied", [False, True])
def test_equals_statsmodels_likelihood_and_score(ties: str, tied: bool) -> None:
    from statsmodels.duration.hazard_regression import PHReg

    _, time, event = cohort(80, ties=tied, seed=7)
    x = np.random.default_rng(2).normal(size=(80, 2))
    beta = np.array([0.7, -0.4])
    model = PHReg(time.numpy(), x, status=event.numpy(), ties=ties)
    weights = torch.tensor(beta, requires_grad=True)
    loss = cox_loss(torch.tensor(x) @ weights, time, event, ties=ties, divisor="none")
    loss.backward()
    assert -loss.item() == pytest.approx(model.loglike(beta), abs=1e-6)
    assert np.allclose(-weights.grad.numpy(), model.score(beta), atol=1e-6)


@pytest.mark.slow  # importing torchsurv takes most of a minute on a busy machine
def test_equals_torchsurv() -> None:
    torchsurv = pytest.importorskip("torchsurv.loss.cox")
    risk, time, event = cohort(ties=True, seed=5)
    for ties in ("breslow", "efron"):
        with pytest.warns(UserWarning, match="Ties"):
            theirs = torchsurv.neg_partial_log_likelihood(risk, event.bool(), time, ties_method=ties, reduction="sum")
        ours = cox_loss(risk, time, event, ties=ties, divisor="none")
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("tied", [False, True])
def test_gradient(ties: str, tied: bool) -> None:
    risk, time, event = cohort(25, ties=tied)
    risk.requires_grad_()
    assert torch.autograd.gradcheck(lambda value: cox_loss(value, time, event, ties=ties), risk)


def test_order_of_patients_does_not_matter() -> None:
    risk, time, event = cohort(ties=True)
    order = torch.randperm(len(risk), generator=torch.Generator().manual_seed(1))
    for ties in ("breslow", "efron"):
        assert cox_loss(risk, time, event, ties=ties).item() == pytest.approx(
            cox_loss(risk[order], time[order], event[order], ties=ties).item(), abs=1e-10
        )


def test_divisors() -> None:
    risk, time, event = cohort()
    total = cox_loss(risk, time, event, divisor="none")
    assert cox_loss(risk, time, event) == pytest.approx(total / event.sum())
    assert cox_loss(risk, time, event, divisor="events_plus_one") == pytest.approx(total / (event.sum() + 1))


def test_all_censored_is_zero_with_zero_gradient() -> None:
    risk = torch.randn(9, requires_grad=True)
    loss = cox_loss(risk, torch.arange(9.0), torch.zeros(9))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(risk.grad, torch.zeros(9))


def test_one_patient() -> None:
    risk = torch.tensor([2.0], requires_grad=True)
    loss = cox_loss(risk, torch.tensor([5.0]), torch.tensor([1]))
    loss.backward()
    assert loss.item() == 0.0
    assert risk.grad.item() == 0.0


def test_everybody_dies_on_the_same_day() -> None:
    risk = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    day, dead = torch.full((4,), 30.0), torch.ones(4)
    assert cox_loss(risk, day, dead, divisor="none").item() == pytest.approx(4 * np.log(4))
    assert cox_loss(risk, day, dead, ties="efron", divisor="none").item() == pytest.approx(np.log(24))


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_extreme_log_hazards_stay_finite(ties: str) -> None:
    risk = torch.tensor([500.0, -500.0, 500.0, -500.0, 0.0], requires_grad=True)
    loss = cox_loss(risk, torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0]), torch.ones(5), ties=ties)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(risk.grad).all()


def test_bf16_is_computed_in_float32() -> None:
    risk, time, event = cohort(200)
    rounded = risk.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cox_loss(rounded, time, event)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(cox_loss(rounded.float(), time, event).item(), rel=1e-6)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_memory_is_linear(ties: str) -> None:
    # A matrix of risk sets would need 1.6 GB here; everything that is ever allocated, freed or not, stays far below.
    n = 20_000
    risk = torch.randn(n, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as record:
        cox_loss(risk, torch.rand(n), torch.rand(n) < 0.3, ties=ties).backward()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in record.events())
    assert n * 4 < allocated < 300 * n * 4


def test_twenty_thousand_patients_take_little_time() -> None:
    """Under 50 ms; CPU time of the fastest of ten, so that a busy machine does not fail it."""
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    risk = torch.randn(n, requires_grad=True, generator=generator)
    time, event = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(10):
            start = clock.process_time()
            cox_loss(risk, time, event).backward()
            seconds.append(clock.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 0.05


@pytest.mark.parametrize(
    ("risk", "time", "event", "message"),
    [
        (torch.tensor([0.0, float("nan")]), torch.ones(2), torch.ones(2), "NaN"),
        (torch.zeros(2), torch.tensor([1.0, float("inf")]), torch.ones(2), "time"),
        (torch.zeros(2), torch.ones(2), torch.tensor([1.0, float("nan")]), "event is neither 0"),
        (torch.zeros(2), torch.ones(2), torch.tensor([2, 0]), "event is neither 0"),
        (torch.zeros(3), torch.ones(2), torch.ones(2), "equally long"),
        (torch.zeros(0), torch.zeros(0), torch.zeros(0), "no patient"),
    ],
)
def test_bad_input(risk: torch.Tensor, time: torch.Tensor, event: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cox_loss(risk, time, event)


def test_unknown_names() -> None:
    risk, time, event = cohort()
    with pytest.raises(ValueError, match="ties"):
        cox_loss(risk, time, event, ties="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divisor"):
        cox_loss(risk, time, event, divisor="n")  # type: ignore[arg-type]


def test_discrete_likelihood_is_a_likelihood() -> None:
    # Probabilities of dying in one of K intervals or of outliving them all sum to one.
    logits = torch.randn(1, 4, dtype=torch.float64)
    deaths = [torch.exp(-nll_discrete(logits, torch.tensor([k]), torch.tensor([1]))) for k in range(4)]
    alive = torch.exp(-nll_discrete(logits, torch.tensor([3]), torch.tensor([0])))
    assert (sum(deaths) + alive).item() == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ValueError, match="interval"):
        nll_discrete(logits, torch.tensor([4]), torch.tensor([1]))
