"""Fit networks on the training rows of one fold: groups of patients, Cox loss, ensemble, choice of the epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hcmae.evaluation.metrics import concordance
from hcmae.optimiser import parameter_groups
from hcmae.survival.bags import pad, places_left, thin
from hcmae.survival.fold import Binned, FoldInputs, FoldOutput, Rows
from hcmae.survival.methods import Method, Sizes
from hcmae_core.attention import InputScale
from hcmae_core.losses import cox_loss

if TYPE_CHECKING:
    from hcmae.config import SurvivalSettings
    from hcmae.survival.data import SurvivalData

# Bags of a cohort up to this size together, the smallest kinds first, stay on the device for the whole fold.
RESIDENT_BYTES = 4 << 30
# Patients are predicted together as long as their padded bags hold no more items, and no more bytes, than this.
PADDED_ITEMS = 1 << 14
PADDED_BYTES = 512 << 20
# Vectors are taken from bags in parts of this size where their mean and deviation are wanted.
PART_BYTES = 256 << 20


class Feeder:
    """Turns rows into the keyword arguments of a network's forward."""

    def __init__(self, method: Method, inputs: FoldInputs):
        self.method, self.data, self.device = method, inputs.data, inputs.device
        self.bag = method.bag
        self.kinds = {argument: kind for argument, kind in method.inputs.items() if kind not in ("omics", "clinical")}
        self.omics = self._omics(method, inputs)
        self.sizes_of = self.data.sizes(self.bag) if self.bag else None
        # Bytes of one item of each kind, and of all kinds together.
        first = np.array([0])
        self.bytes_of = {kind: _item_bytes(self.data.bags[kind].packed(first)) for kind in set(self.kinds.values())}
        self.item_bytes = sum(self.bytes_of[kind] for kind in self.kinds.values())
        everyone = np.arange(len(self.data.time))
        self.resident: dict[str, Any] = {kind: self._pad(kind, everyone) for kind in self._fitting()}

    def _omics(self, method: Method, inputs: FoldInputs) -> Tensor | None:
        if "omics" not in method.needs:
            return None
        assert inputs.omics is not None
        return torch.from_numpy(np.ascontiguousarray(inputs.omics)).to(self.device)

    def fed(self, method: Method, inputs: FoldInputs) -> Feeder:
        """The same bags with the omics of another part of the fold."""
        other = copy.copy(self)
        other.method, other.omics = method, self._omics(method, inputs)
        return other

    def _fitting(self) -> list[str]:
        """The kinds that fit on the device together, padded for everybody; the smallest first."""
        longest = int(self.sizes_of.max()) if self.sizes_of is not None else 0
        left, found = RESIDENT_BYTES, []
        for kind in sorted(self.bytes_of, key=lambda kind: (self.bytes_of[kind], kind)):
            left -= self.bytes_of[kind] * longest * len(self.data.time)
            if left < 0:
                break
            found.append(kind)
        return found

    def _pad(self, kind: str, rows: Rows) -> Any:
        bags = self.data.bags[kind]
        return pad(bags.packed(rows).to(self.device), bags.sizes[rows])

    def __call__(self, rows: Rows, *, drop: float = 0.0, limit: int | None = None, generator: Any = None) -> dict:
        """Batch of the given rows; with a generator, items of the bags are dropped at random."""
        index = torch.from_numpy(rows).to(self.device)
        batch: dict[str, Tensor] = {}
        mask: Tensor | None = None
        longest = max(int(self.sizes_of[rows].max()), 1) if self.sizes_of is not None else 0
        chosen: Tensor | None = None
        places: Tensor | None = None
        for argument, kind in self.kinds.items():
            held = kind in self.resident
            padded = self.resident[kind] if held else self._pad(kind, rows)
            lines = index if held else torch.arange(len(rows), device=self.device)
            if chosen is None:
                real = padded.mask[lines, :longest]
                chosen = mask = real
                if generator is not None:
                    chosen = mask = thin(real, drop=drop, limit=limit, generator=generator)
                if chosen is not real and limit is not None:
                    # Only what is left is copied: a tenth of long bags of patches.
                    places, mask = places_left(chosen)
            batch[argument] = (
                padded.values[lines, :longest] if places is None else padded.values[lines[:, None], places]
            )
        if mask is not None:
            batch["mask"] = mask
        if self.omics is not None:
            argument = next(a for a, kind in self.method.inputs.items() if kind == "omics")
            batch[argument] = self.omics[index]
        return batch

    def vectors(self, rows: Rows) -> Iterator[Tensor]:
        """All real vectors of the given patients [N, D], for input scaling; in parts of at most ``PART_BYTES``."""
        assert self.bag is not None
        assert self.sizes_of is not None
        item = self.bytes_of[self.bag]
        if self.bag in self.resident:
            padded = self.resident[self.bag]
            for part in _parts(np.full(len(rows), padded.mask.shape[1] * item)):
                index = torch.from_numpy(rows[part]).to(self.device)
                yield padded.values[index][padded.mask[index]]
            return
        for part in _parts(self.sizes_of[rows] * item):
            yield self.data.bags[self.bag].packed(rows[part]).to(self.device)


def _item_bytes(items: Tensor) -> int:
    return items[0].numel() * items.element_size()


def _parts(costs: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of patients, in their order, that cost at most ``PART_BYTES`` together; who costs more is alone."""
    start, total = 0, 0
    for end, cost in enumerate(costs):
        if end > start and total + cost > PART_BYTES:
            yield slice(start, end)
            start, total = end, 0
        total += int(cost)
    yield slice(start, len(costs))


def sizes_for(method: Method, inputs: FoldInputs) -> Sizes:
    """Sizes that a method's network must have for these inputs."""
    data = inputs.data
    first = np.array([0])
    return Sizes(
        vector_dim=int(data.bags[method.bag].packed(first).shape[-1]) if method.bag else 0,
        thumbnail=int(data.bags["thumbnail"].packed(first).shape[1]) if "thumbnail" in method.needs else 0,
        omics_features=inputs.omics.shape[2] if inputs.omics is not None else 0,
        modalities=inputs.omics.shape[1] if inputs.omics is not None else 0,
    )


@dataclass(frozen=True)
class Predicted:
    """What a network says about patients: risk [n], larger is worse; hazards in time bins [n, K] where it has any."""

    risk: NDArray[np.float64]
    hazards: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class _Fit:
    """One trained network: what it learnt from, its epochs, what it says of the watched rows after each epoch."""

    method: Method
    inputs: FoldInputs
    feeder: Feeder
    model: nn.Module
    epochs: int
    watched: list[Predicted]


def fit_network(method: Method, inputs: FoldInputs) -> FoldOutput:
    """Train an ensemble of a method's network on one fold (section III-A; protocols of the book).

    epoch = "last": each member, with its own initial weights, sees all training rows for the fixed number of epochs.
    epoch = "inner": member k leaves out inner fold k, whose patients neither train it nor choose its omics, and keeps
    the weights of its best epoch there; with an ensemble as large as the number of inner folds every training patient
    teaches all members but one. Training risks are those of the members that left a patient out, NaN where none did.
    epoch = "best_test": as "last", but the reported epoch is the one with the best C-index on the test rows: a leak,
    kept because the release does it.
    """
    inner = inputs.protocol.epoch == "inner"
    bags = Feeder(method, inputs)
    ready: dict[int, tuple[Method, FoldInputs, Feeder]] = {}
    fits = []
    for member in range(inputs.profile.survival.ensemble):
        number = member % inputs.inner_count if inner else 0
        if number not in ready:
            part = inputs.part(number) if inner else inputs
            own, part = (method, part) if method.prepare is None else method.prepare(method, part)
            ready[number] = own, part, bags.fed(own, part)
        fits.append(_train_member(*ready[number], [inputs.seed, member]))
    if inner:
        return _held_out_output(inputs, fits)
    output = FoldOutput(np.empty(0), np.mean([predict(f.method, f.model, f.feeder, inputs.train) for f in fits], 0))
    output.models, output.parts = [f.model for f in fits], [f.inputs for f in fits]
    output.origins = [0.0] * len(fits)
    if inputs.protocol.epoch == "best_test":
        time, event = inputs.data.time[inputs.test], inputs.data.event[inputs.test]
        curve = np.mean([[said.risk for said in f.watched] for f in fits], 0)
        scores = [concordance(time, event, risk) for risk in curve]
        best = int(np.argmax(scores))
        output.info = {"epochs": [best + 1] * len(fits), "test_curve": scores}
        said = [f.watched[best] for f in fits]
    else:
        output.info = {"epochs": [f.epochs for f in fits]}
        said = [say_of(f.method, f.model, f.feeder, inputs.test) for f in fits]
    output.risk = np.mean([item.risk for item in said], 0)
    output.binned = _binned(fits, said)
    return output


def _held_out_output(inputs: FoldInputs, fits: Sequence[_Fit]) -> FoldOutput:
    """Mean of members that each left an inner fold out.

    A log hazard has no origin of its own: the risks of each member are taken from their mean over the patients that it
    learnt from, so that those of different members can stand in one table.
    """
    total, count = np.zeros(len(inputs.train)), np.zeros(len(inputs.train))
    risks, said, origins = [], [], []
    for fit in fits:
        origin = float(np.mean(predict(fit.method, fit.model, fit.feeder, fit.inputs.train)))
        origins.append(origin)
        said.append(say_of(fit.method, fit.model, fit.feeder, inputs.test))
        risks.append(said[-1].risk - origin)
        away = np.isin(inputs.train, fit.inputs.left_out)
        total[away] += predict(fit.method, fit.model, fit.feeder, inputs.train[away]) - origin
        count[away] += 1
    held_out = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    info = {"epochs": [fit.epochs for fit in fits]}
    models, parts = [fit.model for fit in fits], [fit.inputs for fit in fits]
    return FoldOutput(np.mean(risks, 0), held_out, info, models, True, _binned(fits, said), parts, origins)


def _binned(fits: Sequence[_Fit], said: Sequence[Predicted]) -> list[Binned]:
    """Hazards in bins of each network; none where it has none, or has learnt them from patients drawn by weight."""
    return [
        Binned(item.hazards, fit.method.bins.ends(fit.inputs))
        for fit, item in zip(fits, said, strict=True)
        if fit.method.bins is not None and item.hazards is not None and not _reweighted(fit)
    ]


def _reweighted(fit: _Fit) -> bool:
    """Whether patients were drawn by weights: the hazards are then those of that mixture and of no cohort."""
    method, inputs = fit.method, fit.inputs
    return method.weights is not None and method.weights(inputs, inputs.train) is not None


def _train_member(method: Method, inputs: FoldInputs, feeder: Feeder, seed: Sequence[int]) -> _Fit:
    """One network on the training rows of ``inputs``; it watches the rows that the protocol lets choose the epoch."""
    settings, data = inputs.profile.survival, inputs.data
    watched = {"inner": inputs.left_out, "best_test": inputs.test}.get(inputs.protocol.epoch)
    state = np.random.SeedSequence(list(seed)).generate_state(3)
    rng = np.random.default_rng(state[0])
    generator = torch.Generator().manual_seed(int(state[1]))
    with torch.random.fork_rng(devices=[inputs.device] if inputs.device.type == "cuda" else []):
        # Initial weights and dropout come from torch's global generator; it is put back afterwards.
        torch.manual_seed(int(state[2]))
        assert method.build is not None
        model = method.build(sizes_for(method, inputs), inputs.profile).to(inputs.device)
        if feeder.bag is not None and settings.scale_vectors:
            for module in model.modules():
                if isinstance(module, InputScale):
                    module.fit(feeder.vectors(inputs.train))
        said, epochs = _epochs(method, inputs, feeder, model, inputs.train, watched, rng, generator, data)
    return _Fit(method, inputs, feeder, model, epochs, said)


def _epochs(
    method: Method,
    inputs: FoldInputs,
    feeder: Feeder,
    model: nn.Module,
    rows: Rows,
    watched: Rows | None,
    rng: np.random.Generator,
    generator: torch.Generator,
    data: SurvivalData,
) -> tuple[list[Predicted], int]:
    """Train ``model``; gives what it says of the watched rows after each epoch, and the epochs behind its weights."""
    settings, fidelity = inputs.profile.survival, inputs.profile.fidelity
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, fused=True)
    n_groups = len(group_rows(rows, settings.group, fidelity.drop_last_group, rng))
    total = settings.epochs * n_groups
    warmup = settings.warmup_epochs * n_groups
    step = 0
    said: list[Predicted] = []
    scores: list[float] = []
    kept: dict[str, Tensor] | None = None
    kept_epoch, kept_score = settings.epochs, -math.inf
    patience = _patience(settings) if inputs.protocol.epoch == "inner" else math.inf
    for epoch in range(settings.epochs):
        model.train()
        for group in group_rows(_drawn(method, inputs, rows, rng), settings.group, fidelity.drop_last_group, rng):
            # Cox's likelihood of a group without a death is empty; that of hazards in time bins is not.
            if not method.learns_from_censored and not data.event[group].any():
                step += 1
                continue
            for parameters in optimizer.param_groups:
                parameters["lr"] = settings.learning_rate * _schedule(step, total, warmup, settings.schedule)
            _group_gradient(method, inputs, feeder, model, group, generator)
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        if watched is None:
            continue
        said.append(say_of(method, model, feeder, watched))
        if inputs.protocol.epoch == "inner":
            scores.append(_inner_score(data, watched, said[-1].risk))
            # Three epochs are averaged: with a handful of deaths a single one is mostly luck.
            smooth = float(np.mean(scores[-3:]))
            if len(scores) >= 3 and smooth > kept_score:
                kept_score, kept_epoch = smooth, epoch + 1
                kept = copy.deepcopy(model.state_dict())
            if kept is not None and epoch + 1 - kept_epoch >= patience:
                break
    if kept is not None:
        model.load_state_dict(kept)
    model.eval()
    return said, kept_epoch


def _patience(settings: SurvivalSettings) -> float:
    """Epochs without a better one after which training stops: a number, or a share of the method's own epochs."""
    asked = settings.patience
    if asked is None:
        return math.inf
    return asked if asked >= 1 else math.ceil(asked * settings.epochs)


def _drawn(method: Method, inputs: FoldInputs, rows: Rows, rng: np.random.Generator) -> Rows:
    """The patients of one epoch: everybody once, or as many drawn with replacement by the method's own weights."""
    weights = method.weights(inputs, rows) if method.weights is not None else None
    return rows if weights is None else rng.choice(rows, len(rows), p=weights / weights.sum())


def _inner_score(data: SurvivalData, rows: Rows, risk: NDArray) -> float:
    if not data.event[rows].any():
        return 0.5
    return concordance(data.time[rows], data.event[rows], risk, empty=0.5)


def group_rows(rows: Rows, group: int | None, drop_last: bool, rng: np.random.Generator) -> list[Rows]:
    """Random groups of about ``group`` patients, of equal size, with nobody left over.

    ``drop_last`` is the release's way: groups of exactly ``group``, and the remainder of an epoch is not used.
    """
    if group is None or group >= len(rows):
        return [rows]
    order = rng.permutation(rows)
    if drop_last:
        return [order[start : start + group] for start in range(0, len(order) - group + 1, group)]
    return np.array_split(order, math.ceil(len(order) / group))


def _group_gradient(
    method: Method, inputs: FoldInputs, feeder: Feeder, model: nn.Module, group: Rows, generator: torch.Generator
) -> float:
    """Gradient of one group's loss, in one forward pass or exactly the same one in parts; gives the loss."""
    settings, data = inputs.profile.survival, inputs.data
    thinning: dict[str, Any] = {}
    if feeder.bag is not None:
        thinning = {"drop": settings.region_dropout, "limit": settings.bag_limit, "generator": generator}
    # A loss of its own on features of fixed size reads them as a whole.
    part = None if method.loss is not None and feeder.bag is None else settings.micro_batch
    return gradient_in_parts(
        lambda rows: _forward(model, feeder(rows, **thinning), inputs),
        lambda output: group_loss(method, inputs, output, data.time[group], data.event[group]),
        group,
        part,
        inputs.device,
        generator,
    )


def gradient_in_parts(
    forward: Callable[[Rows], Any],
    loss_of: Callable[[Any], Tensor],
    group: Rows,
    part: int | None,
    device: torch.device,
    generator: torch.Generator,
) -> float:
    """Add the gradient of ``loss_of(forward(group))`` to the parameters, ``part`` patients at a time; gives the loss.

    In parts: first what the network says of all patients without a graph, then d loss / d that, then part after part
    again with a graph that is released at once. Memory is that of a part, and of what the loss reads of each patient.
    ``forward`` gives a tensor or a tuple with a row per patient; ``part`` None: all patients at once. ``generator``:
    what ``forward`` draws from beside torch's own generators.
    """
    if part is None or part >= len(group):
        loss = loss_of(forward(group))
        loss.backward()
        return float(loss.detach())
    parts = np.array_split(group, math.ceil(len(group) / part))
    states: list[Any] = []
    outputs: list[Any] = []
    with torch.no_grad():
        for rows in parts:
            states.append((generator.get_state(), _random_state(device)))
            outputs.append(forward(rows))
    whole = joined(outputs)
    loss = loss_of(whole)
    # Parameters that the loss itself reads get their share here.
    loss.backward()
    start = 0
    for rows, (drawn, dropped) in zip(parts, states, strict=True):
        # The same bags and the same dropout as in the pass without a graph.
        generator.set_state(drawn)
        _set_random_state(device, dropped)
        output = forward(rows)
        found = zip(_tensors(output), slopes(whole, output, start), strict=True)
        pairs = [(tensor, slope) for tensor, slope in found if slope is not None]
        torch.autograd.backward([tensor for tensor, _ in pairs], [slope for _, slope in pairs])
        start += len(rows)
    return float(loss.detach())


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of an output, each with a row per patient; others (the network, for its own losses) are left out."""
    return [item for item in (output if isinstance(output, tuple) else (output,)) if isinstance(item, Tensor)]


def joined(outputs: Sequence[Any]) -> Any:
    """What a network says of parts of a group, as it would say it of the whole: leaves of a graph of their own.

    Bags of parts are padded to the longest of all with zeros. Raises ValueError for a tensor without patients.
    """
    whole = []
    for items in zip(*(output if isinstance(output, tuple) else (output,) for output in outputs), strict=True):
        if not isinstance(items[0], Tensor):
            whole.append(items[0])
            continue
        if items[0].ndim == 0:
            raise ValueError("survival.micro_batch: the network gives a number of no patient's; set it to null")
        longest = max(item.shape[1] for item in items) if items[0].ndim > 1 else 0
        tensor = torch.cat([_lengthened(item, longest) for item in items])
        whole.append(tensor.requires_grad_() if tensor.is_floating_point() else tensor)
    return tuple(whole) if isinstance(outputs[0], tuple) else whole[0]


def _lengthened(item: Tensor, longest: int) -> Tensor:
    if item.ndim < 2 or item.shape[1] == longest:
        return item
    return torch.cat([item, item.new_zeros(len(item), longest - item.shape[1], *item.shape[2:])], 1)


def slopes(whole: Any, output: Any, start: int) -> list[Tensor | None]:
    """d loss / d output of the patients of one part, from row ``start`` of the whole; None where it does not matter."""
    found: list[Tensor | None] = []
    for tensor, item in zip(_tensors(whole), _tensors(output), strict=True):
        slope = tensor.grad
        if slope is not None:
            slope = slope[start : start + len(item)]
            slope = slope[:, : item.shape[1]] if item.ndim > 1 else slope
        found.append(slope)
    return found


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def group_loss(method: Method, inputs: FoldInputs, output: Any, time: NDArray, event: NDArray) -> Tensor:
    """Loss of a group of patients: the method's own, or Cox with the profile's ties and divisor."""
    device = inputs.device
    times = torch.from_numpy(np.asarray(time, dtype=np.float32)).to(device)
    events = torch.from_numpy(np.asarray(event)).to(device)
    if method.loss is not None:
        return method.loss(output, times, events, inputs)
    return cox_loss(
        output, times, events, ties=inputs.profile.survival.ties, divisor=inputs.profile.fidelity.cox_divisor
    )


def _forward(model: nn.Module, batch: dict[str, Tensor], inputs: FoldInputs) -> Any:
    precision = inputs.profile.compute.precision
    # Small bags on a CPU are bound by calls, not arithmetic: bf16 only where it is asked for or on a GPU.
    bf16 = precision == "bf16" or (precision == "auto" and inputs.device.type == "cuda")
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
        return model(**batch)


def predict(method: Method, model: nn.Module, feeder: Feeder, rows: Rows) -> NDArray[np.float64]:
    """Risk of each row [n]; larger is worse. Raises what ``say_of`` raises."""
    return say_of(method, model, feeder, rows).risk


@torch.no_grad()
def say_of(method: Method, model: nn.Module, feeder: Feeder, rows: Rows, part: int = 256) -> Predicted:
    """Risk of each row and, where the method has them, hazards in time bins.

    Raises ValueError naming the first patient whose risk is not finite.
    """
    if len(rows) == 0:  # a network trained on everybody, for a look inside
        return Predicted(np.empty(0, dtype=np.float64))
    training = model.training
    model.eval()
    pieces, hazards, order = [], [], []
    for places in _alike(feeder, rows, part):
        output = model(**feeder(rows[places]))
        order.append(places)
        pieces.append((method.risk(output) if method.risk else output).float().cpu().numpy())
        if method.bins is not None:
            hazards.append(method.bins.hazards(output).double().cpu().numpy())
    model.train(training)
    back = np.argsort(np.concatenate(order))
    risk = np.concatenate(pieces).astype(np.float64)[back]
    if not np.isfinite(risk).all():
        bad = int(np.flatnonzero(~np.isfinite(risk))[0])
        raise ValueError(
            f"{method.name}: the risk of patient {feeder.data.patients[rows[bad]]} is {risk[bad]}; "
            "look for NaN in its vectors or omics, or lower survival.learning_rate"
        )
    return Predicted(risk, np.concatenate(hazards)[back] if hazards else None)


def _alike(feeder: Feeder, rows: Rows, part: int) -> Iterator[Rows]:
    """Places in ``rows`` to be predicted together, ``part`` at most: bags of about one length, which need no padding.

    Bags of patches differ tenfold in length; padded to the longest, most of the work would be on nothing.
    """
    if feeder.sizes_of is None:
        yield from np.array_split(np.arange(len(rows)), math.ceil(len(rows) / part))
        return
    sizes = np.maximum(feeder.sizes_of[rows], 1)
    order = np.argsort(sizes, kind="stable")
    most = min(PADDED_ITEMS, PADDED_BYTES // max(feeder.item_bytes, 1))
    start = 0
    for end in range(1, len(order) + 1):
        last = end == len(order)
        if last or end - start == part or (end + 1 - start) * sizes[order[end]] > most:
            yield order[start:end]
            start = end


def _schedule(step: int, total: int, warmup: float, kind: str) -> float:
    """Share of the learning rate at update ``step`` (from 0) of ``total``; no kind reaches zero before the last."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant" or total <= warmup:
        return 1.0
    if kind == "linear":
        return 1 - (step - warmup + 1) / (total - warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
