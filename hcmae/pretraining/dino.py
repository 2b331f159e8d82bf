"""Pre-training of HIPT's two stages by DINO from slide stores, and their vectors into the stores.

Stage ``patch`` sees single patches, stage ``region`` grids of the frozen vectors of stage ``patch``. The pool is that
of the two masked autoencoders, and so is the budget of images unless the profile says otherwise, as the small one does;
``hcmae.pipeline.budgets`` counts what both have had in a run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from hcmae.config import DinoStage, Profile
from hcmae.keys import Key, derived, whole_library
from hcmae.optimiser import parameter_groups
from hcmae.pretraining import embed as embedding
from hcmae.pretraining.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    load_state,
    read_metadata,
    read_tensors,
    weights_hash,
    write_tensors,
)
from hcmae.pretraining.crops import GridCrops, PixelCrops
from hcmae.pretraining.devices import choose_precision
from hcmae.pretraining.logs import Log
from hcmae.pretraining.loop import NonFiniteLossError
from hcmae_core.baselines.hipt import vit_patch, vit_region
from hcmae_core.dino import DINO, clip_each, cosine_value, health
from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD
from hcmae_core.transformer import Size

StageName = Literal["patch", "region"]

# Hidden width over width of a block's perceptron where a weight file does not say.
FILE_RATIO = 4.0
PATCH_VECTORS = "hipt_patch_vectors"
REGION_VECTORS = "region_vectors_hipt"
# Patch vectors of a pool up to this size are read once.
HELD_BYTES = 1 << 30
_MEAN = torch.tensor(IMAGENET_MEAN)
_STD = torch.tensor(IMAGENET_STD)


def build_backbone(
    profile: Profile, stage: StageName, *, drop_path: float = 0.0, in_dim: int | None = None
) -> VisionTransformer:
    """Network of one stage in the profile's sizes, freshly initialised from torch's global generator.

    in_dim: width of the patch vectors that stage ``region`` reads (None: that of HIPT's own first stage).
    """
    settings: DinoStage = getattr(profile.dino, stage)
    network = settings.network
    size = Size(network.dim, network.depth, network.heads, network.mlp_ratio)
    if stage == "patch":
        return vit_patch(settings.global_cells, profile.geometry.cell, size, drop_path)
    return vit_region(settings.global_cells, in_dim or profile.dino.patch.network.dim, size, drop_path)


def budget(profile: Profile, stage: StageName, available: int) -> tuple[int, int]:
    """(images per epoch, epochs) of a stage; what the profile leaves open is that of the autoencoder of its level."""
    settings: DinoStage = getattr(profile.dino, stage)
    twin = (profile.mae_patch if stage == "patch" else profile.mae_region).optimisation
    return settings.samples_per_epoch or twin.samples_per_epoch or available, settings.epochs or twin.epochs


class GridStream:
    """Grids of HIPT patch vectors [B, n, n, D] from stores, in an order that follows from seed and epoch alone.

    Regions are shuffled within windows of about ``window`` regions of shuffled stores, so that memory does not grow
    with the cohort. Raises ValueError for a store without vectors of stage ``patch``.
    """

    def __init__(
        self,
        stores: Sequence[Path],
        batch_size: int,
        seed: int,
        samples_per_epoch: int,
        window: int = 4096,
        vectors: str = PATCH_VECTORS,
    ) -> None:
        from hcmae.slides.store import SlideStore

        self.stores = [SlideStore(path) for path in stores]
        for store in self.stores:
            if vectors not in store.vector_weights:
                raise ValueError(f"{store.path}: has no {vectors}: embed stage 1 of HIPT first")
        self.name = vectors
        self.batch_size, self.seed, self.samples, self.window = batch_size, seed, samples_per_epoch, window
        self._held: dict[int, np.ndarray] = {}

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """The batches of one epoch; passes over the pool are repeated until it has its number of samples."""
        left, number = self.samples // self.batch_size, 0
        rest: np.ndarray | None = None
        while left > 0:
            rng = np.random.default_rng([self.seed, epoch, number])
            number += 1
            for block in self._windows(rng):
                rows = block if rest is None else np.concatenate([rest, block])
                while len(rows) >= self.batch_size and left > 0:
                    yield _to_grid(torch.from_numpy(rows[: self.batch_size]))
                    rows, left = rows[self.batch_size :], left - 1
                rest = rows
                if left == 0:
                    return

    def _windows(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        parts: list[np.ndarray] = []
        size = 0
        for index in rng.permutation(len(self.stores)):
            parts.append(self._vectors(int(index)))
            size += len(parts[-1])
            if size >= self.window:
                yield rng.permutation(np.concatenate(parts))
                parts, size = [], 0
        if parts:
            yield rng.permutation(np.concatenate(parts))

    def _vectors(self, index: int) -> np.ndarray:
        # A small pool is read once; a large one is read again in every pass.
        if index not in self._held:
            vectors = self.stores[index].vectors(self.name)
            if sum(part.nbytes for part in self._held.values()) + vectors.nbytes > HELD_BYTES:
                return vectors
            self._held[index] = vectors
        return self._held[index]


def _to_grid(vectors: Tensor) -> Tensor:
    side = round(vectors.shape[1] ** 0.5)
    return vectors.reshape(len(vectors), side, side, vectors.shape[2])


def pretrain_dino(
    stage: StageName,
    stores: Sequence[Path],
    profile: Profile,
    out_dir: Path,
    seed: int,
    *,
    resume: bool = True,
    key: str | None = None,
    progress: bool = True,
    device: str | None = None,
    checkpoint_minutes: float = 10.0,
    vectors: str = PATCH_VECTORS,
    window: int = 4096,
) -> Path:
    """Train one stage; returns ``out_dir/hipt_<stage>.safetensors`` (the teacher's backbone).

    Finished work of the same settings, seed and slides is kept. A checkpoint is written after each epoch and every
    ``checkpoint_minutes`` within one; an interrupted run goes on there and gives the same weights on the same machine.
    The log (JSON lines) holds loss, rates and the signs of collapse of ``models.dino.health``.
    vectors: what stage ``region`` reads, of any width; window: regions that are shuffled together.
    Raises NonFiniteLossError, ValueError for stores without regions or a crop that does not fit, CheckpointError.
    """
    from hcmae.slides.store import SlideStore, total_regions

    settings: DinoStage = getattr(profile.dino, stage)
    out_dir = Path(out_dir)
    final = out_dir / f"hipt_{stage}.safetensors"
    regions = total_regions(stores)
    if regions == 0:
        raise ValueError(f"no regions in {len(stores)} slide stores: run the slide stage first")
    samples, epochs = budget(profile, stage, regions * (profile.geometry.patches_per_region if stage == "patch" else 1))
    described = {
        "budget": [samples, epochs],
        "seed": seed,
        "slides": sorted(Path(store).stem for store in stores),
        "inputs": _input_weights(stores, vectors) if stage == "region" else None,
    }
    fingerprint = key or _whole_key(f"hipt_{stage}", profile, stores, described, vectors).digest
    in_dim = None
    if stage == "region" and vectors != PATCH_VECTORS:
        in_dim = int(SlideStore(stores[0]).vectors(vectors, np.s_[:1]).shape[-1])
    if resume and final.exists() and read_metadata(final).get("fingerprint") == fingerprint:
        tqdm.write(f"hipt_{stage}: {final.name} is up to date, nothing to do", file=sys.stderr)
        return final
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    batch_size = min(settings.batch_size, samples)
    per_epoch = samples // batch_size
    samples = per_epoch * batch_size
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build_dino(profile, stage, in_dim).to(where)
        log = _Training(stage, model, settings, profile, where, seed, per_epoch, epochs, out_dir, fingerprint)
        if stage == "region":
            source: Any = GridStream(stores, batch_size, seed, samples, window, vectors)
        else:
            source = _patch_source(stores, batch_size, seed, samples, profile)
        log.run(source, resume, progress, checkpoint_minutes)
    save_backbone(final, model, profile, stage, {"fingerprint": fingerprint, "training": described}, in_dim)
    log.checkpoints.clear()
    return final


def build_dino(profile: Profile, stage: StageName, in_dim: int | None = None) -> DINO:
    """Student, teacher and centre of one stage in the profile's sizes."""
    settings: DinoStage = getattr(profile.dino, stage)
    return DINO(
        build_backbone(profile, stage, drop_path=settings.drop_path, in_dim=in_dim),
        settings.network.dim,
        prototypes=settings.prototypes,
        hidden=settings.hidden,
        bottleneck=settings.bottleneck,
        student_temperature=settings.student_temperature,
        teacher_temperature=settings.teacher_temperature,
        centre_momentum=settings.centre_momentum,
    )


def make_crops(profile: Profile, stage: StageName) -> PixelCrops | GridCrops:
    """The stage's multi-crop."""
    settings: DinoStage = getattr(profile.dino, stage)
    if stage == "region":
        return GridCrops(settings.global_cells, settings.local_cells, settings.local_crops)
    cell = profile.geometry.cell
    return PixelCrops(
        settings.global_cells * cell,
        settings.local_cells * cell,
        settings.local_crops,
        jitter=settings.jitter,
        interpolation=settings.interpolation,
    )


def _patch_source(stores: Sequence[Path], batch_size: int, seed: int, samples: int, profile: Profile) -> Any:
    from hcmae.slides.stream import PatchStream

    return PatchStream(list(stores), batch_size, seed, workers=profile.compute.workers, samples_per_epoch=samples)


class _Training:
    """The loop of one stage: what changes from step to step follows from the step's number."""

    def __init__(
        self,
        stage: StageName,
        model: DINO,
        settings: DinoStage,
        profile: Profile,
        device: torch.device,
        seed: int,
        per_epoch: int,
        epochs: int,
        out_dir: Path,
        fingerprint: str,
    ) -> None:
        self.stage, self.model, self.settings, self.device, self.seed = stage, model, settings, device, seed
        self.per_epoch, self.epochs, self.total = per_epoch, epochs, per_epoch * epochs
        self.crops = make_crops(profile, stage)
        self.low = choose_precision(profile.compute, device) == "bf16-mixed"
        self.optimizer = torch.optim.AdamW(parameter_groups(model.student, settings.weight_decay[0]), fused=True)
        self.parameters = [p for p in model.student.parameters() if p.requires_grad]
        self.checkpoints = CheckpointFolder(out_dir / "checkpoints" / f"hipt_{stage}-{fingerprint}", keep=1)
        self.log_path = out_dir / f"hipt_{stage}.jsonl"
        self.step = 0

    def run(self, source: Any, resume: bool, progress: bool, minutes: float) -> None:
        """Train to the last step."""
        restored = self.checkpoints.load(self.model, self.optimizer) if resume else None
        if restored is not None:
            self.step = int(restored[0]["step"])
        self.model.train()
        saved = time.perf_counter()
        bar = tqdm(
            total=self.total, initial=self.step, desc=f"HIPT {self.stage}", disable=not progress, mininterval=1.0
        )
        log = Log(self.log_path, self.step)
        with bar, closing(log):
            while self.step < self.total:
                epoch, skip = divmod(self.step, self.per_epoch)
                for images in self._epoch(source, epoch, skip):
                    record = self._update(images)
                    bar.update()
                    end = self.step % self.per_epoch == 0
                    if end or self.step % 20 == 0:
                        log.write(record)
                    if (end or time.perf_counter() - saved > 60 * minutes) and self.step < self.total:
                        self.checkpoints.save(self.step, self.model, self.optimizer, None, {"stage": self.stage})
                        saved = time.perf_counter()
                    if end:
                        break

    def _epoch(self, source: Any, epoch: int, skip: int) -> Iterator[Tensor]:
        """Batches of one epoch after the first ``skip`` of them."""
        if isinstance(source, GridStream):
            for number, grids in enumerate(source.batches(epoch)):
                if number >= skip:
                    yield grids
            return
        # The stream's position is a number of samples, so it can be set from the step.
        state = source.state_dict()
        source.load_state_dict({**state, "position": (epoch * self.per_epoch + skip) * source.batch_size})
        while True:
            for batch in source:
                if len(batch["images"]) == source.batch_size:
                    yield torch.as_tensor(batch["images"])

    def _update(self, images: Tensor) -> dict[str, Any]:
        settings, model = self.settings, self.model
        warm = max(1, round(settings.warmup * self.total))
        rate = settings.learning_rate * len(images) / 256
        rate = cosine_value(rate, settings.final_learning_rate, self.step, self.total, warm)
        decay = cosine_value(*settings.weight_decay, self.step, self.total)
        momentum = cosine_value(settings.teacher_momentum, 1.0, self.step, self.total)
        matrices, others = self.optimizer.param_groups
        matrices["lr"] = others["lr"] = rate
        matrices["weight_decay"] = decay
        number = int(np.random.SeedSequence([self.seed, self.step]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(number)
        # Drop path draws from the global generator: seeded per step, so that resuming repeats it.
        torch.manual_seed(number)
        crops = self.crops(images.to(self.device, non_blocking=True), generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            loss, teacher = model(crops)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise NonFiniteLossError(f"HIPT stage {self.stage}: loss {value} at step {self.step}: lower learning_rate")
        loss.backward()
        if self.step < settings.frozen * self.total:
            model.cancel_prototype_gradient()
        clip_each(self.parameters, settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        record: dict[str, Any] = {"loss": value, "learning_rate": rate, "weight_decay": decay, "momentum": momentum}
        if (self.step + 1) % 20 == 0 or (self.step + 1) % self.per_epoch == 0:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
                features = model.teacher["backbone"](crops[0])
            record.update(health(teacher, model.centre, settings.teacher_temperature, features))
        model.update_centre(teacher)
        model.update_teacher(momentum)
        self.step += 1
        return {"step": self.step, "epoch": self.step / self.per_epoch, **record}


def _whole_key(
    name: str, profile: Profile, stores: Sequence[Path], facts: dict[str, Any], vectors: str = PATCH_VECTORS
) -> Key:
    """For callers outside the road, who name no key: every setting, every store, the whole library."""
    from hcmae.slides.store import SlideStore

    held = vectors if name == "hipt_region" else None
    found = {Path(path).stem: SlideStore(path) for path in stores}
    inputs = {stem: derived(store.content, held, store.vector_content) for stem, store in found.items()}
    return whole_library(name, profile, inputs, **facts)


def _input_weights(stores: Sequence[Path], vectors: str) -> list[str]:
    from hcmae.slides.store import SlideStore

    return sorted({SlideStore(path).vector_weights.get(vectors, "none") for path in stores})


def save_backbone(
    path: Path, model: DINO, profile: Profile, stage: StageName, extra: dict[str, Any], in_dim: int | None = None
) -> Path:
    """Write the teacher's backbone with what is needed to rebuild it."""
    settings: DinoStage = getattr(profile.dino, stage)
    network = settings.network
    sizes: dict[str, Any] = {"dim": network.dim, "depth": network.depth, "heads": network.heads}
    # The first files knew one ratio only; those of the same network stay the same.
    if network.mlp_ratio != FILE_RATIO:
        sizes["mlp_ratio"] = network.mlp_ratio
    if stage == "patch":
        sizes.update(cells=settings.global_cells, cell=profile.geometry.cell)
    else:
        sizes.update(grid=settings.global_cells, in_dim=in_dim or profile.dino.patch.network.dim)
    metadata = {"kind": f"hipt_{stage}", "model": sizes, **extra}
    return write_tensors(path, model.teacher["backbone"].state_dict(), metadata)


def load_backbone(path: str | Path, stage: StageName) -> VisionTransformer:
    """A stage's network from our weight file, in evaluation mode. Raises CheckpointError for any other file."""
    tensors, metadata = read_tensors(Path(path))
    if metadata.get("kind") != f"hipt_{stage}":
        raise CheckpointError(f"{path}: holds {metadata.get('kind', 'something else')!r}, expected 'hipt_{stage}'")
    rest = {"mlp_ratio": FILE_RATIO, **metadata["model"]}
    size = Size(*(rest.pop(name) for name in ("dim", "depth", "heads", "mlp_ratio")))
    network = (vit_patch if stage == "patch" else vit_region)(**rest, size=size)
    load_state(network, tensors, Path(path))
    return network.eval()


def embed_hipt_patches(
    stores: Sequence[Path],
    weights: Path,
    profile: Profile,
    *,
    key: str | None = None,
    progress: bool = True,
    device: str | None = None,
) -> int:
    """Write ``hipt_patch_vectors`` [M, P, D] float16 into each store; returns how many slides were computed."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = load_backbone(weights, "patch").to(where)
    per_region, patch = profile.geometry.patches_per_region, profile.geometry.patch
    part = 512 if where.type == "cpu" else 4096

    def encode(store: Path, indices: list[int], pixels: np.ndarray) -> np.ndarray:
        from hcmae.slides.regions import split_patches

        images = torch.from_numpy(np.concatenate([split_patches(region, patch) for region in pixels]))
        vectors = torch.cat([network(_normalise(images_part.to(where))) for images_part in images.split(part)])
        return vectors.float().cpu().view(len(indices), per_region, -1).to(torch.float16).numpy()

    job = embedding.Embedding(PATCH_VECTORS, weights_hash(weights), encode, max(1, part // per_region))
    return embedding.embed_stores(stores, job, profile, where, key=key, progress=progress)


def _normalise(images: Tensor) -> Tensor:
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return (pixels - _MEAN.to(images.device)[:, None, None]) / _STD.to(images.device)[:, None, None]


def embed_hipt_regions(
    stores: Sequence[Path],
    weights: Path,
    profile: Profile,
    *,
    key: str | None = None,
    progress: bool = True,
    device: str | None = None,
    vectors: str = PATCH_VECTORS,
) -> int:
    """Write ``region_vectors_hipt`` [M, D] float32 into each store; returns how many slides were computed.

    Their key holds the content of the patch vectors that the stage reads. Raises ValueError for a store without them.
    """
    from hcmae.slides.store import SlideStore, write_vectors

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = load_backbone(weights, "region").to(where)
    low = choose_precision(profile.compute, where) == "bf16-mixed"
    own = weights_hash(weights)
    key = key or whole_library(REGION_VECTORS, profile, {"network": own}).digest
    count = 0
    for path in tqdm(stores, desc="HIPT region vectors", unit="slide", disable=not progress, mininterval=1.0):
        store = SlideStore(path)
        if vectors not in store.vector_weights:
            raise ValueError(f"{path}: has no {vectors}: embed stage 1 of HIPT first")
        mine = derived(key, vectors, store.vector_content)
        if store.has_vectors(REGION_VECTORS, mine):
            continue
        pieces = []
        with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=low):
            for start in range(0, len(store), 256):
                rows = torch.from_numpy(store.vectors(vectors, np.s_[start : start + 256]))
                grids = _to_grid(rows).permute(0, 3, 1, 2).float().to(where)
                pieces.append(network(grids).float().cpu().numpy())
        network_label = f"{own}-{store.vector_weights[vectors]}"
        if vectors != PATCH_VECTORS:  # whose patch vectors they rest on comes first: tables name it
            network_label = f"{store.vector_weights[vectors].rpartition(':')[0]}:{own}"
        write_vectors(path, REGION_VECTORS, np.concatenate(pieces), weights=network_label, key=mine)
        count += 1
    return count
