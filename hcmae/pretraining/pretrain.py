"""Pre-training of MAE-Patch and MAE-Region from slide stores: build, train, save, load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hcmae.config import Optimisation, Profile
from hcmae.content import content_id
from hcmae.files import atomic_path
from hcmae.keys import Key, whole_library
from hcmae.pretraining.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    load_state,
    read_metadata,
    read_tensors,
    weights_hash,
)
from hcmae.pretraining.devices import make_fabric
from hcmae.pretraining.launched import world
from hcmae.pretraining.loop import ShardedStream, Stage, Stream, fit
from hcmae.pretraining.networks import build_mae_patch, build_mae_region, save_weights
from hcmae_core.mae import take_tokens
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion, Reading
from hcmae_core.pixels import split_tokens

Variant = Literal["patreg", "reg"]


def pretrain_patch(
    stores: Sequence[Path],
    profile: Profile,
    out_dir: Path,
    seed: int,
    *,
    resume: bool = True,
    progress: bool = True,
    stream: Stream | None = None,
    shards: int | None = None,
    key: str | None = None,
    **options: Any,
) -> Path:
    """Pre-train MAE-Patch on all patches of these slide stores; returns ``out_dir/mae_patch.safetensors``.

    Finished work with the same key is kept and said so; an interrupted run goes on where it stopped. key: of all that
    the weights depend on (None: every setting, the content of the stores, the source of the library). shards: in how
    many equal parts the regions are read (None: as an interrupted run was begun, else one per process); the same number
    gives the same batches on any number of processes that divides it. options: passed to ``loop.fit``.
    Raises Interrupted (exit status 75), NonFiniteLossError, CheckpointError, ValueError for stores without regions.
    Source: section II-B.1, III-A.
    """
    settings = profile.mae_patch.optimisation
    regions = _count_regions(stores)
    samples = settings.samples_per_epoch or regions * profile.geometry.patches_per_region

    def make_stream(begun: int | None) -> Stream:
        from hcmae.slides.stream import PatchStream

        return _shards(PatchStream, stores, settings, seed, shards or begun, profile.compute.workers)

    return _pretrain(
        "mae_patch",
        lambda: build_mae_patch(profile),
        stream or make_stream,
        profile,
        stores,
        Path(out_dir),
        seed,
        samples,
        image_key="images",
        key=key,
        resume=resume,
        progress=progress,
        options=options,
    )


def pretrain_region(
    stores: Sequence[Path],
    profile: Profile,
    out_dir: Path,
    seed: int,
    *,
    variant: Variant = "patreg",
    attention: Reading | None = None,
    name: str | None = None,
    start: Path | None = None,
    resume: bool = True,
    progress: bool = True,
    stream: Stream | None = None,
    shards: int | None = None,
    key: str | None = None,
    **options: Any,
) -> Path:
    """Pre-train MAE-Region on all regions of these stores; returns ``out_dir/mae_region_<variant>.safetensors``.

    variant: ``patreg`` with the profile's reading of the cross-attention (or ``attention``), ``reg`` without (MAE-Reg).
    name: file name stem, to keep several readings side by side. start: weights of MAE-Reg to begin with, as the release
    does; the cross-attention starts fresh. Patch vectors must be in the stores where the reading needs them.
    Source: section II-B.2, III-A. Raises as ``pretrain_patch``.
    """
    if start is not None and profile.mae_region.warm_epochs is not None:
        update = {"epochs": profile.mae_region.warm_epochs}
        shorter = {"optimisation": profile.mae_region.optimisation.model_copy(update=update)}
        profile = profile.model_copy(update={"mae_region": profile.mae_region.model_copy(update=shorter)})
    settings = profile.mae_region.optimisation
    reading: Reading = "none" if variant == "reg" else (attention or profile.fidelity.region_attention)
    samples = settings.samples_per_epoch or _count_regions(stores)

    def make_stream(begun: int | None) -> Stream:
        from hcmae.slides.stream import RegionStream

        vectors = "patch_vectors" if reading in ("q_enc_kv_patch", "prose") else None
        return _shards(
            RegionStream,
            stores,
            settings,
            seed,
            shards or begun,
            profile.compute.workers,
            vectors=vectors,
            reduce=profile.mae_region.reduce,
        )

    def build() -> MAERegion:
        model = build_mae_region(profile, reading)
        if start is not None:
            _start_from(model, start)
        return model

    training: dict[str, Any] = {"reading": reading, "start": weights_hash(start) if start is not None else None}
    if reading in ("q_enc_kv_patch", "prose"):
        training["patch_weights"] = sorted(_vector_weights(stores))
    return _pretrain(
        name or f"mae_region_{variant}",
        build,
        stream or make_stream,
        profile,
        stores,
        Path(out_dir),
        seed,
        samples,
        image_key="regions",
        key=key,
        training=training,
        resume=resume,
        progress=progress,
        options=options,
    )


def _start_from(model: MAERegion, path: Path) -> None:
    """Give a model the weights of a run without cross-attention; its own fresh cross-attention is kept."""
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "mae_region" or metadata["model"]["attention"] != "none":
        raise CheckpointError(f"{path}: is not MAE-Reg (MAE-Region without cross-attention): no weights to start from")
    fresh = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("cross.")}
    load_state(model, {**tensors, **fresh}, path)


def _shards(
    kind: Callable[..., Any],
    stores: Sequence[Path],
    settings: Optimisation,
    seed: int,
    shards: int | None,
    workers: int,
    **extra: Any,
) -> Stream:
    """This process's part of the batches."""
    here = world()
    count = shards or here.size
    if count % here.size or settings.batch_size % count:
        raise ValueError(
            f"{count} shards do not fit {here.size} processes and batches of {settings.batch_size}: processes must "
            "divide shards, and shards the batch. An interrupted run keeps the shards that it was begun with (one per "
            "process, or --shards): go on with a number of processes that divides them"
        )
    own = range(here.rank * count // here.size, (here.rank + 1) * count // here.size)
    streams: list[Any] = []
    for number in own:
        streams.append(
            kind(
                list(stores),
                settings.batch_size // count,
                seed,
                workers=max(1, workers // len(own)),
                samples_per_epoch=settings.samples_per_epoch,
                drop_last=True,
                rank=number,
                world_size=count,
                source=streams[0].source if streams else None,
                **extra,
            )
        )
    return streams[0] if len(streams) == 1 and count == 1 else ShardedStream(streams)


def _pretrain(
    name: str,
    build: Callable[[], MAEPatch | MAERegion],
    stream: Stream | Callable[[int | None], Stream],
    profile: Profile,
    stores: Sequence[Path],
    out_dir: Path,
    seed: int,
    samples: int,
    *,
    image_key: str,
    key: str | None,
    resume: bool,
    progress: bool,
    options: dict[str, Any],
    training: dict[str, Any] | None = None,
) -> Path:
    final = out_dir / f"{name}.safetensors"
    slides = [Path(store).stem for store in stores]
    # What a reader of the weights wants to know of their training.
    described = {**(training or {}), "seed": seed, "slides": sorted(slides)}
    fingerprint = key or _whole_key(name, profile, stores, described).digest
    if resume and final.exists() and read_metadata(final).get("fingerprint") == fingerprint:
        tqdm.write(f"{name}: {final.name} is up to date, nothing to do", file=sys.stderr)
        return final
    folder = out_dir / "checkpoints" / f"{name}-{fingerprint}"
    begun = CheckpointFolder(folder).shards() if resume else None
    batches = stream(begun) if callable(stream) else stream
    torch.manual_seed(seed)
    model = build()
    fabric = make_fabric(profile.compute, find_unused=isinstance(model, MAERegion) and model.reading == "prose")
    settings = profile.mae_patch if isinstance(model, MAEPatch) else profile.mae_region
    stage = Stage(
        name=name,
        model=model,
        stream=batches,
        settings=settings.optimisation,
        samples_per_epoch=samples,
        image_key=image_key,
        augment=profile.fidelity.augment,
        # Read where it has a meaning and nowhere else: it is part of the key then.
        adam_decay=profile.fidelity.adam_decay if settings.optimisation.optimizer == "adam" else "decoupled",
        stain=settings.stain_jitter,
        with_vectors=isinstance(model, MAERegion) and model.needs_patch_vectors,
        slides=slides,
    )
    fit(
        stage,
        fabric,
        folder,
        out_dir / f"{name}.jsonl",
        seed,
        fingerprint=fingerprint,
        resume=resume,
        progress=progress,
        compile_model=profile.compute.compile,
        decoders=profile.compute.decoders,
        **options,
    )
    if fabric.global_rank == 0:
        save_weights(final, model, {"fingerprint": fingerprint, "training": described})
        for path in folder.glob("step-*.safetensors"):
            path.unlink()
    fabric.barrier()
    return final


def _count_regions(stores: Sequence[Path]) -> int:
    total = 0
    for path in stores:
        with h5py.File(path, "r") as handle:
            total += len(handle["coords"])
    if total == 0:
        raise ValueError(
            f"no regions in {len(stores)} slide stores: run the slide stage and look at its table of exclusions"
        )
    return total


def _whole_key(name: str, profile: Profile, stores: Sequence[Path], facts: dict[str, Any]) -> Key:
    """For callers outside the road, who name no key: every setting, every store, the whole library."""
    from hcmae.slides.store import SlideStore

    inputs = {}
    for path in stores:
        store = SlideStore(path)
        vectors = store.vector_content["patch_vectors"] if "patch_weights" in facts else None
        inputs[Path(path).stem] = content_id([store.content, vectors])
    return whole_library(name, profile, inputs, **facts)


def _vector_weights(stores: Sequence[Path]) -> set[str]:
    found = set()
    for path in stores:
        with h5py.File(path, "r") as handle:
            if "patch_vectors" not in handle:
                raise ValueError(f"{path}: has no patch vectors: run embed_patches first")
            found.add(str(handle["patch_vectors"].attrs.get("weights", "")))
    return found


def reconstruct(
    model: MAEPatch | MAERegion,
    images: torch.Tensor,
    vectors: torch.Tensor | None = None,
    *,
    order: torch.Tensor | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Masked input and reconstruction as images, uint8 [B, S, S, 3] each; masked tokens are grey in the first.

    Visible tokens are copied into the reconstruction, since the loss never asks for them.
    """
    generator = torch.Generator().manual_seed(seed)
    if order is None:
        order = torch.rand(len(images), model.length, generator=generator).argsort(dim=1)
    with torch.inference_mode():
        out = (
            model(images, order=order, predict=True)
            if vectors is None
            else model(images, vectors, order=order, predict=True)
        )
        assert out.prediction is not None
        tokens = split_tokens(images, model.side)
        predicted = out.prediction.float()
        if model.normalise_targets:
            # The network predicts each token in units of its own mean and deviation.
            truth = model.decoder.head.normalise(take_tokens(tokens, out.masked))
            predicted = predicted * (truth.var(-1, keepdim=True) + 1e-6).sqrt() + truth.mean(-1, keepdim=True)
        pixels = model.decoder.head.normalise.invert(predicted)
    rows = torch.arange(len(images))[:, None]
    hidden, shown = tokens.clone(), tokens.clone()
    hidden[rows, out.masked] = 160
    shown[rows, out.masked] = pixels
    return _join(hidden, model.side), _join(shown, model.side)


def _join(tokens: torch.Tensor, side: int) -> np.ndarray:
    batch, _, width = tokens.shape
    token = round((width / 3) ** 0.5)
    grid = tokens.view(batch, side, side, token, token, 3).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, side * token, side * token, 3).numpy()


def record_reconstructions(path: Path, images: np.ndarray, *, seed: int = 0) -> Callable[[int, nn.Module], None]:
    """A hook for ``on_epoch``: after each epoch add the reconstruction of these images [B, p, p, 3] to an .npz file."""
    held = torch.as_tensor(images)

    def hook(epoch: int, model: nn.Module) -> None:
        assert isinstance(model, MAEPatch)
        device = next(model.parameters()).device
        hidden, shown = reconstruct(model.cpu() if device.type != "cpu" else model, held, seed=seed)
        if device.type != "cpu":
            model.to(device)
        content = dict(np.load(path)) if path.exists() and epoch else {}
        content.update({"images": images, "masked": hidden, f"epoch_{epoch:03d}": shown})
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **content)

    return hook
