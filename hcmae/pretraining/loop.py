"""One masked pre-training run: batches in, weights out, safe to interrupt at any step.

What a step does follows from the settings, the seed and the step's number alone (masks, flips, learning rate), so a
checkpoint needs model, optimiser, step and the stream's position, and resuming repeats the very same sequence.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hcmae.config import Optimisation
from hcmae.optimiser import parameter_groups
from hcmae.pretraining.augment import (
    apply_symmetries,
    apply_symmetries_to_vectors,
    draw_crops,
    draw_stain,
    draw_symmetries,
    random_resized_crop,
    stain_jitter,
    to_device,
    without_quarter_turns,
)
from hcmae.pretraining.checkpoint import CheckpointFolder, Interrupted
from hcmae.pretraining.feeder import Decoders, Feeder, HostBatches, Raw, together
from hcmae.pretraining.logs import Log

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Stream(Protocol):
    """Endlessly repeatable batches whose position can be saved: iterating once is one epoch."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...


class ShardedStream:
    """Several streams side by side, each with its share of the regions and of every batch.

    A batch is the same however many processes share the shards, and no process decodes what another one uses.
    """

    def __init__(self, shards: Sequence[Any]) -> None:
        self.shards = list(shards)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for parts in together([iter(shard) for shard in self.shards]):
            yield {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def state_dict(self) -> dict[str, Any]:
        """Shards advance together, so one position says it all; beside it, what the order of every shard depends on."""
        return {"position": self.shards[0].state_dict()["position"], "order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move all shards to a saved position. Raises ValueError where seed, regions or number of shards differ."""
        if state["order"] != self._order():
            raise ValueError(
                f"the saved stream order {state['order']} is not this one {self._order()}: "
                "seed, slides and number of shards must be the same to resume"
            )
        for shard in self.shards:
            shard.load_state_dict({**shard.state_dict(), "position": state["position"]})

    def _order(self) -> list[Any]:
        # The rank is the last but one entry: any process may write what another one reads.
        order = list(self.shards[0].state_dict()["order"])
        return [*order[:-2], order[-1]]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the message names slides and coordinates of the batch."""


def make_optimizer(
    model: nn.Module, settings: Optimisation, adam_decay: Literal["decoupled", "l2"] = "decoupled"
) -> torch.optim.Optimizer:
    """Adam or AdamW in one fused kernel; Adam with decoupled decay is AdamW. Warns of a decay in Adam's gradient."""
    literal = settings.optimizer == "adam" and adam_decay == "l2"
    if literal and settings.weight_decay > 0:
        warnings.warn(
            f"fidelity.adam_decay is l2: Adam divides a decay of {settings.weight_decay:g} in the gradient by the "
            "gradient's own size, so that weights with small gradients shrink to nothing; take decoupled to train with",
            stacklevel=2,
        )
    kind = torch.optim.Adam if literal else torch.optim.AdamW
    groups = parameter_groups(model, settings.weight_decay)
    return kind(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def learning_rate(settings: Optimisation, step: int, steps_per_epoch: float) -> float:
    """Learning rate of update ``step`` (from 0): linear warm-up, then half a cosine to zero, or constant."""
    warm = settings.warmup_epochs * steps_per_epoch
    if step < warm:
        return settings.learning_rate * (step + 1) / math.ceil(warm)
    if settings.schedule == "constant":
        return settings.learning_rate
    total = settings.epochs * steps_per_epoch
    progress = min(1.0, (step - warm) / max(1.0, total - warm))
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class Stage:
    """What is trained and on what: the part of a run that differs between MAE-Patch and MAE-Region."""

    name: str
    model: nn.Module
    stream: Stream
    settings: Optimisation
    samples_per_epoch: int
    image_key: str
    augment: str = "joint"
    adam_decay: Literal["decoupled", "l2"] = "decoupled"
    stain: float = 0.0
    with_vectors: bool = False
    slides: list[str] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser updates in one epoch."""
        return max(1, self.samples_per_epoch // (self.settings.batch_size * self.settings.accumulation))

    def prepare(self, batch: Mapping[str, Any], seed: int, micro: int, rows: slice) -> dict[str, Tensor]:
        """Augmented images, patch vectors and token order of this process's share of a batch in host memory.

        The batch may be the whole one or, from a sharded stream, this process's rows only.
        """
        vectors = torch.as_tensor(batch["patch_vectors"]) if self.with_vectors else None
        return self.augmented(torch.as_tensor(batch[self.image_key]), vectors, seed, micro, rows)

    def augmented(
        self, images: Tensor, vectors: Tensor | None, seed: int, micro: int, rows: slice
    ) -> dict[str, Tensor]:
        """The same from tensors, on the device they are on.

        Everything random is drawn on the host for the whole batch, so that n processes do together what one would do
        alone, and a GPU what a CPU does.
        """
        count = self.settings.batch_size
        mine = rows if len(images) == count else slice(None)
        generator = torch.Generator().manual_seed(_mix(seed, micro))
        length: int = self.model.length  # type: ignore[assignment]
        noise = torch.rand(count, length, generator=generator)
        symmetries = draw_symmetries(count, generator)
        factors = draw_stain(count, self.stain, generator)
        crops = draw_crops(count, generator)
        images = images[mine]
        out: dict[str, Tensor] = {"noise": to_device(noise[rows], images.device)}
        vectors = vectors[mine] if vectors is not None else None
        if self.augment == "joint":
            if vectors is not None:
                symmetries = without_quarter_turns(symmetries)
            images = apply_symmetries(images, symmetries[rows])
            if vectors is not None:
                vectors = apply_symmetries_to_vectors(vectors, symmetries[rows])
        elif self.augment == "release":
            images = random_resized_crop(images, crops[rows])
        if self.stain > 0:
            images = stain_jitter(images, factors[rows])
        out["images"] = images.contiguous()
        if vectors is not None:
            out["vectors"] = vectors
        return out

    def loss(self, model: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Tensor:
        """Reconstruction loss of one prepared batch."""
        order = inputs["noise"].argsort(dim=1)
        if self.with_vectors:
            return model(inputs["images"], inputs["vectors"], order=order).loss
        return model(inputs["images"], order=order).loss


def _mix(seed: int, number: int) -> int:
    """Independent streams of random numbers for every (seed, step)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _StopSignal:
    """Remembers SIGTERM or SIGINT until the step is over; a no-op outside the main thread."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: Any) -> None:
        self.received = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def fit(
    stage: Stage,
    fabric: Fabric,
    folder: Path,
    log_path: Path,
    seed: int,
    *,
    fingerprint: str,
    resume: bool = True,
    progress: bool = True,
    compile_model: bool = False,
    decoders: Decoders = "auto",
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float = 10.0,
    keep: int = 2,
    log_every: int = 20,
    tensorboard: bool = False,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train a stage to its last epoch, from the newest checkpoint in ``folder`` if there is one; returns the model.

    A checkpoint is written every ``checkpoint_minutes`` (or ``checkpoint_steps`` updates), at the end of each epoch,
    and on SIGTERM or SIGINT, after which Interrupted (exit status 75) is raised. compile_model: the whole network as
    one graph; what the compiler makes is kept beside the log, for a run that goes on. decoders: see ``feeder``.
    on_epoch: called on process 0 with the number of finished epochs; on_step: after every update with its number.
    Raises NonFiniteLossError with slides and coordinates, CheckpointError for an unusable checkpoint,
    ValueError when the batch does not divide among the processes.
    """
    if stage.settings.batch_size % fabric.world_size:
        raise ValueError(
            f"{stage.name}: batch_size {stage.settings.batch_size} does not divide among {fabric.world_size} processes"
        )
    run = _Fit(stage, fabric, CheckpointFolder(folder, keep=keep), seed, fingerprint)
    resumed = run.restore() if resume else False
    if not resumed and on_epoch is not None and run.rank == 0:
        on_epoch(0, run.bare)
    run.set_up(compile_model)
    timing = _Timing(checkpoint_steps, checkpoint_minutes, log_every)
    log = Log(log_path, run.step, tensorboard=tensorboard) if run.rank == 0 else None
    bar = run.bar(progress)
    # Decoding and augmentation of the next batches overlap with the step; only this thread touches the model.
    batches = run.batches(decoders)
    try:
        with _StopSignal() as stop, compiler_cache(log_path.parent / "compiled" if compile_model else None):
            while run.step < run.total:
                rate = run.update(batches)
                if on_step is not None:
                    on_step(run.step)
                bar.update(run.images_per_step)
                if run.step % timing.log_every == 0 or run.step == run.total or run.ends_epoch:
                    record = run.record(rate)
                    if log is not None:
                        log.write(record)
                    bar.set_postfix(
                        loss=f"{record['loss']:.4f}", wait=f"{100 * record['data_wait']:.0f}%", refresh=False
                    )
                if run.ends_epoch:
                    improved = run.end_epoch()
                    if on_epoch is not None and run.rank == 0:
                        on_epoch(run.step // run.per_epoch, run.bare)
                    # The last one too: a crash before the weights are written then costs nothing.
                    run.save(improved)
                    timing.saved()
                due, interrupted = _agree(fabric, timing.due(run.step), stop.received)
                if interrupted and run.step < run.total:
                    raise Interrupted(run.save())
                if due and run.step < run.total:
                    run.save()
                    timing.saved()
    finally:
        batches.close()
        bar.close()
        if log is not None:
            log.close()
    return run.bare


class _Timing:
    """When to write a log line and a checkpoint."""

    def __init__(self, checkpoint_steps: int | None, checkpoint_minutes: float, log_every: int) -> None:
        self.checkpoint_steps, self.checkpoint_minutes = checkpoint_steps, checkpoint_minutes
        self.log_every = log_every
        self._saved_at = time.perf_counter()

    def saved(self) -> None:
        self._saved_at = time.perf_counter()

    def due(self, step: int) -> bool:
        by_steps = self.checkpoint_steps is not None and step % self.checkpoint_steps == 0
        return by_steps or time.perf_counter() - self._saved_at > 60 * self.checkpoint_minutes


class _Fit:
    """The state of one pre-training run and what happens to it: update, record, end of an epoch, checkpoint."""

    def __init__(
        self, stage: Stage, fabric: Fabric, checkpoints: CheckpointFolder, seed: int, fingerprint: str
    ) -> None:
        self.stage, self.fabric, self.checkpoints = stage, fabric, checkpoints
        self.seed, self.fingerprint = seed, fingerprint
        self.rank, world = fabric.global_rank, fabric.world_size
        self.bare = stage.model
        self.model: Any = stage.model
        self.optimizer: Any = make_optimizer(stage.model, stage.settings, stage.adam_decay)
        self.share = stage.settings.batch_size // world
        self.rows = slice(self.rank * self.share, (self.rank + 1) * self.share)
        self.per_epoch = stage.steps_per_epoch
        self.total = self.per_epoch * stage.settings.epochs
        self.images_per_step = stage.settings.batch_size * stage.settings.accumulation
        self.step, self.best = 0, math.inf
        self.epoch_loss, self.epoch_count, self.log_loss, self.log_count = 0.0, 0, 0.0, 0
        self.stream_state: Any = None
        self._recent: deque[tuple[Tensor, Any]] = deque()
        self._logged_at, self._waited, self._since_log = time.perf_counter(), 0.0, 0

    @property
    def ends_epoch(self) -> bool:
        """Whether the last update was the last one of an epoch."""
        return self.step % self.per_epoch == 0

    def restore(self) -> bool:
        """Go on from the newest checkpoint; False where there is none."""
        restored = self.checkpoints.load(self.bare, self.optimizer, fingerprint=self.fingerprint)
        if restored is None:
            return False
        meta, stream_position = restored
        self.step, self.best = meta["step"], meta["best"] if meta["best"] is not None else math.inf
        self.epoch_loss, self.epoch_count = meta["epoch_loss"], meta["epoch_count"]
        self.log_loss, self.log_count = meta["log_loss"], meta["log_count"]
        self.stage.stream.load_state_dict(stream_position)
        if self.rank == 0:
            tqdm.write(
                f"{self.stage.name}: resuming at step {self.step} from {self.checkpoints.folder}", file=sys.stderr
            )
        return True

    def set_up(self, compile_model: bool = False) -> None:
        """Put model and optimiser on their device."""
        # Shapes never change, so the compiler need not allow for it; hooks are given the plain network.
        model: Any = torch.compile(self.bare, dynamic=False) if compile_model else self.bare
        self.model, self.optimizer = self.fabric.setup(model, self.optimizer)
        # Fabric moves the model to its device, but not what the optimiser remembers of each parameter.
        for parameter, memory in self.optimizer.optimizer.state.items():
            memory.update({key: item.to(parameter.device) for key, item in memory.items()})
        self.model.train()

    def bar(self, progress: bool) -> tqdm[Any]:
        """Progress in images."""
        return tqdm(
            total=self.total * self.images_per_step,
            initial=self.step * self.images_per_step,
            desc=self.stage.name,
            unit="img",
            unit_scale=True,
            disable=not progress or self.rank != 0,
            mininterval=1.0,
        )

    def batches(self, decoders: Decoders) -> Feeder | HostBatches:
        """Batches on the device from where the stream stands; a thread keeps some ready."""
        stage, settings, device = self.stage, self.stage.settings, self.fabric.device
        first = self.step * settings.accumulation
        shards = _planned(stage.stream)
        if shards is not None:
            patch = shards[0].source.geometry.patch if shards[0].per_region > 1 else None

            def finish(raw: Raw, number: int) -> dict[str, Tensor]:
                vectors = raw.vectors if stage.with_vectors else None
                return stage.augmented(raw.images, vectors, self.seed, number, self.rows)

            sizes = (settings.batch_size, self.share)
            return Feeder(
                shards, device, finish, stage.stream.state_dict, name=stage.name, sizes=sizes, patch=patch, first=first,
                decoders=decoders,
            )  # fmt: skip

        def prepare(batch: Mapping[str, Any], number: int) -> dict[str, Tensor]:
            images = to_device(torch.as_tensor(batch[stage.image_key]), device)
            vectors = to_device(torch.as_tensor(batch["patch_vectors"]), device) if stage.with_vectors else None
            return stage.augmented(images, vectors, self.seed, number, self.rows)

        def origin(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return {key: np.asarray(batch[key]) for key in ("slide", "row", "coords") if key in batch}

        return HostBatches(self._endless(), device, prepare, origin, stage.stream.state_dict, first=first)

    def _own(self, origin: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of where a batch comes from, what this process sees."""
        whole = all(len(item) == self.stage.settings.batch_size for item in origin.values())
        return {key: item[self.rows] if whole else item for key, item in origin.items()}

    def _endless(self) -> Iterator[Any]:
        size, empty = self.stage.settings.batch_size, 0
        while True:
            empty += 1
            for batch in self.stage.stream:
                if len(batch[self.stage.image_key]) in (size, self.share):
                    empty = 0
                    yield batch
            # One empty pass is normal: resuming at the very end of an epoch.
            if empty > 1:
                raise ValueError(f"{self.stage.name}: fewer samples than one batch of {size}; use a smaller one")

    def update(self, batches: Feeder | HostBatches) -> float:
        """One update of the weights from ``accumulation`` batches; returns its learning rate."""
        settings, fabric = self.stage.settings, self.fabric
        rate = learning_rate(settings, self.step, self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for part in range(settings.accumulation):
            began = time.perf_counter()
            fed = batches.next()
            self._waited += time.perf_counter() - began
            self.stream_state, moved = fed.state, fed.take()
            last = part == settings.accumulation - 1
            with fabric.no_backward_sync(self.model, enabled=not last):
                loss = self.stage.loss(self.model, moved)
                fabric.backward(loss / settings.accumulation if settings.accumulation > 1 else loss)
            self._recent.append((loss.detach(), fed.origin))
        if settings.clip_norm is not None:
            fabric.clip_gradients(self.model, self.optimizer, max_norm=settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._since_log += 1
        return rate

    def record(self, rate: float) -> dict[str, Any]:
        """One line of the log, and the counts begin anew."""
        self._drain()
        mean, now = self.log_loss / max(1, self.log_count), time.perf_counter()
        self.log_loss, self.log_count = 0.0, 0
        record = {
            "step": self.step,
            "epoch": self.step / self.per_epoch,
            "loss": mean,
            "learning_rate": rate,
            "images_per_second": round(self._since_log * self.images_per_step / (now - self._logged_at), 2),
            "data_wait": round(self._waited / (now - self._logged_at), 4),
        }
        self._logged_at, self._waited, self._since_log = now, 0.0, 0
        return record

    def end_epoch(self) -> bool:
        """Whether the epoch that has just ended was the best so far."""
        average = self.epoch_loss / max(1, self.epoch_count)
        improved = average < self.best
        self.best = min(self.best, average)
        self.epoch_loss, self.epoch_count = 0.0, 0
        return improved

    def save(self, best_so_far: bool = False) -> Path:
        """Write a checkpoint of this step."""
        self._drain()
        if self.rank == 0:
            state = {
                "stage": self.stage.name,
                "fingerprint": self.fingerprint,
                "best": self.best if math.isfinite(self.best) else None,
                "epoch_loss": self.epoch_loss,
                "epoch_count": self.epoch_count,
                "log_loss": self.log_loss,
                "log_count": self.log_count,
            }
            optimizer = self.optimizer.optimizer
            self.checkpoints.save(self.step, self.bare, optimizer, self.stream_state, state, best=best_so_far)
        self.fabric.barrier()
        return self.checkpoints.folder / f"step-{self.step:08d}.safetensors"

    def _drain(self) -> None:
        """Losses since the last look, checked; looking makes a GPU wait, so it happens at intervals."""
        own = [float(loss) for loss, _ in self._recent]
        # Of all processes, so that the log is that of the whole batch and all of them stop together.
        values = _means_over_processes(self.fabric, own)
        bad = next((n for n, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            place = f"update {self.step - (len(values) - 1 - bad) // self.stage.settings.accumulation}"
            if math.isfinite(own[bad]):
                raise NonFiniteLossError(
                    f"{self.stage.name}: loss {values[bad]} at {place}, in the share of another process"
                )
            origin = self._own(self._recent[bad][1])
            raise NonFiniteLossError(
                f"{self.stage.name}: loss {own[bad]} at {place}; batch: {_describe(origin, self.stage.slides)}"
            )
        self._recent.clear()
        self.epoch_loss += sum(values)
        self.epoch_count += len(values)
        self.log_loss += sum(values)
        self.log_count += len(values)


def _planned(stream: Any) -> list[Any] | None:
    """The shards of a stream that says which samples make a batch; None for one that gives finished batches."""
    shards = stream.shards if isinstance(stream, ShardedStream) else [stream]
    return list(shards) if all(hasattr(shard, "plans") for shard in shards) else None


_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
# Where the compiler keeps its work when nobody says where; it sets the variables to that, even when imported.
_COMPILERS_OWN = os.path.join(tempfile.gettempdir(), "torchinductor_")


@contextmanager
def compiler_cache(folder: Path | None) -> Iterator[None]:
    """Keep what the compiler makes in ``folder`` (None: where the environment says), so that it is made once."""
    free = [name for name in _CACHES if os.environ.get(name, _COMPILERS_OWN).startswith(_COMPILERS_OWN)]
    chosen = {} if folder is None else {name: str(folder / name.split("_")[0].lower()) for name in free}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _agree(fabric: Fabric, due: bool, interrupted: bool) -> tuple[bool, bool]:
    """Clocks and signals differ between processes; what one wants, all do."""
    if fabric.world_size == 1:
        return due, interrupted
    flags = torch.tensor([float(due), float(interrupted)], device=fabric.device)
    total: Any = fabric.all_reduce(flags, reduce_op="sum")
    return bool(total[0] > 0), bool(total[1] > 0)


def _means_over_processes(fabric: Fabric, values: list[float]) -> list[float]:
    if fabric.world_size == 1 or not values:
        return values
    mean: Any = fabric.all_reduce(torch.tensor(values, dtype=torch.float64, device=fabric.device), reduce_op="mean")
    return mean.tolist()


def _describe(origin: Mapping[str, Any], slides: list[str]) -> str:
    numbers = np.asarray(origin.get("slide", [])).reshape(-1).tolist()
    names = [slides[n] if n < len(slides) else f"slide {n}" for n in numbers]
    if "coords" in origin:
        places = [f"(x, y) = {tuple(c)}" for c in np.asarray(origin["coords"]).tolist()]
    else:
        places = [f"region {n}" for n in np.asarray(origin.get("row", numbers)).reshape(-1).tolist()]
    pairs = [f"{name} at {place}" for name, place in zip(names, places, strict=True)]
    return "; ".join(pairs[:16]) + ("; ..." if len(pairs) > 16 else "")
