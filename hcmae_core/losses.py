"""Losses of the survival stage: Cox partial likelihood (Eq. 13) in linear memory, discrete-time likelihood."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Ties = Literal["breslow", "efron"]
Divisor = Literal["events", "events_plus_one", "none"]


def cox_loss(
    log_hazard: Tensor,
    time: Tensor,
    event: Tensor,
    *,
    ties: Ties = "breslow",
    divisor: Divisor = "events",
) -> Tensor:
    """Negative log partial likelihood of Cox, divided by the number of events.

    The risk set of an event at T_i is everybody with T_j >= T_i, i included. Eq. 13 prints T_j > T_i, which leaves the
    last event with an empty set (log 0); the authors' code uses >= as well. Patients are sorted once by descending
    time, so the log of every risk set is one running logsumexp: O(n log n) time, O(n) memory.

    Args:
        log_hazard: [n] floating point; bf16 and fp16 are promoted to float32.
        time: [n], same unit for all, finite.
        event: [n], 1 = death observed, 0 = censored.
        ties: Breslow gives tied deaths the same full risk set; Efron removes the tied deaths step by step.
        divisor: "events" (Eq. 13), "events_plus_one" (the release), "none" (the plain negative log likelihood).

    Returns:
        A scalar. Without any event it is 0 and its gradient is zero, so that a group of censored patients is harmless.

    Raises:
        ValueError: shapes differ, n = 0, a value is not finite, or an event is neither 0 nor 1.
    """
    _check(log_hazard, time, event)
    if not log_hazard.requires_grad and not torch.is_floating_point(log_hazard):
        log_hazard = log_hazard.float()
    with torch.autocast(log_hazard.device.type, enabled=False):
        risk = log_hazard if log_hazard.dtype in (torch.float32, torch.float64) else log_hazard.float()
        dead = event.to(device=risk.device) > 0
        count = dead.sum()
        order = torch.argsort(time.to(risk.device), descending=True, stable=True)
        risk, dead = risk[order], dead[order]
        group, last = _tie_groups(time.to(risk.device)[order])
        # Cumulative over everybody who lives at least as long; the last row of a tie holds the whole tie.
        log_risk_set = torch.logcumsumexp(risk, 0)[last]
        if ties == "efron":
            log_risk_set = log_risk_set + _efron_correction(risk, dead, group, log_risk_set)
        elif ties != "breslow":
            raise ValueError(f"ties must be 'breslow' or 'efron', not {ties!r}")
        # where, not multiplication: a censored row may hold any value without its gradient leaking in.
        terms = torch.where(dead, log_risk_set - risk, torch.zeros_like(risk))
        total = terms.sum()
        if divisor == "events":
            return total / count.clamp(min=1)
        if divisor == "events_plus_one":
            return total / (count + 1)
        if divisor == "none":
            return total
        raise ValueError(f"divisor must be 'events', 'events_plus_one' or 'none', not {divisor!r}")


def nll_discrete(logits: Tensor, interval: Tensor, event: Tensor) -> Tensor:
    """Negative log likelihood of discrete-time survival, mean over patients.

    Args:
        logits: [n, K], hazard of interval k is sigmoid(logits[:, k]).
        interval: [n] integer, the interval in which the patient died or was last seen.
        event: [n], 1 = died in that interval, 0 = alive at its end.

    Raises:
        ValueError: an interval outside 0..K-1, or not finite logits.
    """
    if logits.ndim != 2 or interval.shape != logits.shape[:1] or event.shape != logits.shape[:1]:
        raise ValueError(f"logits [n, K] {tuple(logits.shape)} do not fit interval {tuple(interval.shape)}")
    if interval.numel() and (interval.min() < 0 or interval.max() >= logits.shape[1]):
        raise ValueError(f"interval must lie in 0..{logits.shape[1] - 1}")
    if not torch.isfinite(logits).all():
        raise ValueError("logits contain NaN or infinity")
    logits = logits.float() if logits.dtype not in (torch.float32, torch.float64) else logits
    log_alive = torch.nn.functional.logsigmoid(-logits)
    survived = torch.cumsum(log_alive, 1)
    dead = event > 0
    at = interval.long()[:, None]
    before = survived.gather(1, at) - log_alive.gather(1, at)
    death = before + torch.nn.functional.logsigmoid(logits.gather(1, at))
    return -torch.where(dead[:, None], death, survived.gather(1, at)).mean()


def _check(log_hazard: Tensor, time: Tensor, event: Tensor) -> None:
    if log_hazard.ndim != 1 or log_hazard.shape != time.shape or time.shape != event.shape:
        raise ValueError(
            "log_hazard, time and event must be one-dimensional and equally long, not "
            f"{tuple(log_hazard.shape)}, {tuple(time.shape)}, {tuple(event.shape)}"
        )
    if log_hazard.numel() == 0:
        raise ValueError("no patient in the group: the loss of nobody is undefined")
    if not torch.isfinite(log_hazard).all():
        bad = int((~torch.isfinite(log_hazard)).sum())
        raise ValueError(f"{bad} of {log_hazard.numel()} log hazards are NaN or infinite: lower the learning rate")
    if not torch.isfinite(time.double()).all():
        raise ValueError("a survival time is NaN or infinite")
    # NaN > 0 is False: without this a missing event would pass for a censored patient.
    if event.dtype != torch.bool and not ((event == 0) | (event == 1)).all():
        raise ValueError("an event is neither 0 (censored) nor 1 (death observed)")


def _tie_groups(time: Tensor) -> tuple[Tensor, Tensor]:
    """Group number of each row of a sorted time axis, and for each row the last row of its group."""
    starts = torch.ones_like(time, dtype=torch.bool)
    starts[1:] = time[1:] != time[:-1]
    group = torch.cumsum(starts, 0) - 1
    sizes = torch.bincount(group)
    return group, (torch.cumsum(sizes, 0) - 1)[group]


def _efron_correction(risk: Tensor, dead: Tensor, group: Tensor, log_risk_set: Tensor) -> Tensor:
    """log(1 - l/d * D/R) for the l-th of d tied deaths; D is the sum over the tied deaths, R the risk set."""
    groups = int(group[-1]) + 1
    deaths = torch.bincount(group[dead], minlength=groups)
    # l counts the deaths of a group from 0; cumulative deaths minus those of earlier groups.
    earlier = torch.cumsum(deaths, 0) - deaths
    rank = (torch.cumsum(dead, 0) - 1 - earlier[group]).clamp(min=0)
    share = rank.to(risk.dtype) / deaths[group].clamp(min=1)
    # The difference to the risk set is at most 0, so its exponential is at most 1 whatever the log hazards are.
    tied = torch.zeros(groups, dtype=risk.dtype, device=risk.device)
    tied = tied.index_add(0, group[dead], torch.exp((risk - log_risk_set)[dead]))
    return torch.log1p(-share * tied[group].clamp(max=1.0))
