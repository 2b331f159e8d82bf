"""Weights and training states as safetensors: whole or absent, checked on the way in, never a pickle.

Two kinds of file. *Weights* (``mae_patch.safetensors``) hold a model and, as metadata, what is needed to rebuild it.
*Checkpoints* (``checkpoints/<stage>-<settings>/step-00000420.safetensors``) hold the whole state of a run: model,
optimiser, position in the stream of batches and step number, from which schedule, masks and augmentations follow.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hcmae.content import Contents, tensors_hash
from hcmae.files import atomic_path

FORMAT = "hcmae-1"
# Exit status after SIGTERM or SIGINT with a checkpoint written: run the same command again to go on (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75
_ARRAY = "__array__"


class CheckpointError(RuntimeError):
    """A weight or checkpoint file that cannot be used; the message names the file and the way out."""


class Interrupted(SystemExit):
    """Training was asked to stop and has written a checkpoint; the process ends with ``EXIT_INTERRUPTED`` (75)."""

    def __init__(self, path: Path) -> None:
        super().__init__(EXIT_INTERRUPTED)
        self.path = path

    def __str__(self) -> str:
        return f"interrupted; the state is in {self.path}: run the same command again to go on"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write tensors and JSON metadata atomically; returns the path."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry only: safetensors writes several in any order, and equal weights would not be equal files.
    header = {FORMAT: json.dumps(metadata, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=header)
    return path


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON metadata of one of our files, without its tensors.

    Raises CheckpointError for a file that is missing, truncated, not safetensors, or not ours.
    """
    return _read(path, tensors=False)[1]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of one of our files. Raises CheckpointError as ``read_metadata``."""
    return _read(path, tensors=True)


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    raw, header = _open(Path(path), tensors=tensors)
    if FORMAT in header:
        return raw, json.loads(header[FORMAT])
    if header.get("format") != FORMAT:  # written by version 0.1 in two entries
        raise CheckpointError(
            f"{path}: a safetensors file, but not one of ours (format {header.get('format')!r}); "
            "weights of other programs are read with load_foreign"
        )
    return raw, json.loads(header["metadata"])


def _open(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; run the pre-training stage that writes it")
    try:
        with safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            found = {name: handle.get_tensor(name) for name in handle.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); it is truncated or of another kind: "
            "delete it and run again"
        ) from error
    return found, header


def weights_hash(path: Path) -> str:
    """Short hash of a weight file's tensors and network, stored with every vector made from it."""
    return tensors_hash(path)[:16]


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load exactly these tensors; a missing, unknown or misshapen one raises CheckpointError with its name."""
    own = model.state_dict()
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unknown:
        raise CheckpointError(
            f"{path}: does not fit this model: missing {missing[:5] or 'nothing'}, unknown {unknown[:5] or 'nothing'}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: '{name}' has shape {tuple(tensor.shape)}, this model needs {tuple(own[name].shape)}; "
                "geometry or network settings differ from those that made the file"
            )
    model.load_state_dict(dict(tensors))


def pack_state(value: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """Split nested state into JSON and arrays: arrays go to ``tensors`` and leave a reference behind."""
    if isinstance(value, np.ndarray | Tensor):
        name = f"{prefix}.{len(tensors)}"
        tensors[name] = torch.as_tensor(value)
        return {_ARRAY: name, "numpy": isinstance(value, np.ndarray)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): pack_state(item, tensors, prefix) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack_state(item, tensors, prefix) for item in value]
    return value


def unpack_state(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of ``pack_state``."""
    if isinstance(value, dict):
        if _ARRAY in value:
            tensor = tensors[value[_ARRAY]]
            return tensor.numpy() if value["numpy"] else tensor
        return {key: unpack_state(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack_state(item, tensors) for item in value]
    return value


class CheckpointFolder:
    """The checkpoints of one run: the newest ``keep`` of them and the best, in a folder of their own."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """Numbered checkpoints, oldest first."""
        found = [p for p in self.folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", p.stem)]
        return sorted(found, key=lambda p: int(p.stem[5:]))

    def shards(self) -> int | None:
        """In how many shards the run of the newest checkpoint reads its regions; None where there is no checkpoint."""
        files = self.files()
        if not files:
            return None
        stream = read_metadata(files[-1]).get("stream")
        # The last entry of a stream's order is the number of its shards.
        return int(stream["order"][-1]) if isinstance(stream, Mapping) and "order" in stream else None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        stream_state: Any,
        extra: Mapping[str, Any],
        *,
        best: bool = False,
    ) -> Path:
        """Write the whole state after ``step`` updates; older checkpoints beyond ``keep`` are removed afterwards."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{number}.{key}": torch.as_tensor(item) for key, item in state.items()})
        arrays: dict[str, Tensor] = {}
        metadata = {"kind": "checkpoint", "step": step, "stream": pack_state(stream_state, arrays, "stream"), **extra}
        path = write_tensors(self.folder / f"step-{step:08d}.safetensors", {**tensors, **arrays}, metadata)
        if best:
            with atomic_path(self.folder / "best.safetensors") as temporary:
                _link_or_copy(path, temporary)
        for old in self.files()[: -self.keep]:
            old.unlink()
        return path

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, fingerprint: str | None = None
    ) -> tuple[dict[str, Any], Any] | None:
        """Restore the newest checkpoint; returns its metadata and the stream's state, or None when there is none.

        fingerprint: of the settings that must have made it (None: not asked). Raises CheckpointError for a file that is
        truncated, foreign, of other settings or of another shape.
        """
        files = self.files()
        if not files:
            return None
        path = files[-1]
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != "checkpoint":
            raise CheckpointError(f"{path}: holds weights, not a training state; delete it and run again")
        if fingerprint is not None and metadata.get("fingerprint") != fingerprint:
            raise CheckpointError(
                f"{path}: a checkpoint of other settings, seed or slides ({metadata.get('fingerprint')}, this run is "
                f"{fingerprint}); it does not belong into this folder: delete it and run again"
            )
        load_state(model, {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, path)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                state.setdefault(int(number), {})[key] = tensor
        groups = optimizer.state_dict()["param_groups"]
        expected = sum(len(group["params"]) for group in groups)
        if state and max(state) >= expected:
            raise CheckpointError(f"{path}: optimiser state of {max(state) + 1} parameters, this model has {expected}")
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        return metadata, unpack_state(metadata["stream"], tensors)

    def clear(self) -> None:
        """Remove the numbered checkpoints of a finished run (the best one stays)."""
        for path in self.files():
            path.unlink()


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that is never changed; a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _mae_keys(depth: int, decoder_depth: int) -> dict[str, str]:
    """Names of the reference MAE implementation to ours."""
    keys = {
        "cls_token": "encoder.class_token",
        "pos_embed": "encoder.positions",
        "patch_embed.proj.weight": "encoder.embed.weight",
        "patch_embed.proj.bias": "encoder.embed.bias",
        "norm.weight": "encoder.norm.weight",
        "norm.bias": "encoder.norm.bias",
        "decoder_embed.weight": "decoder.embed.weight",
        "decoder_embed.bias": "decoder.embed.bias",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.positions",
        "decoder_norm.weight": "decoder.norm.weight",
        "decoder_norm.bias": "decoder.norm.bias",
        "decoder_pred.weight": "decoder.head.weight",
        "decoder_pred.bias": "decoder.head.bias",
    }
    parts = {
        "norm1": "norm1",
        "attn.qkv": "qkv",
        "attn.proj": "proj",
        "norm2": "norm2",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }
    for theirs, ours, blocks in (
        ("blocks", "encoder.blocks", depth),
        ("decoder_blocks", "decoder.blocks", decoder_depth),
    ):
        for number in range(blocks):
            for old, new in parts.items():
                for kind in ("weight", "bias"):
                    keys[f"{theirs}.{number}.{old}.{kind}"] = f"{ours}.{number}.{new}.{kind}"
    return keys


def load_foreign(model: nn.Module, path: Path, layout: str) -> list[str]:
    """Load weights of another program into MAE-Patch by an explicit key map; every key on both sides must be met.

    layout: ``mae`` (reference MAE, encoder and decoder) or ``hipt`` (the 256-pixel ViT of HIPT: encoder only, with
    learned positions; the decoder keeps its present weights). The file must be safetensors. Returns the names of our
    parameters that were not in the file by design. Raises CheckpointError with the first names that do not fit.
    """
    if layout not in ("mae", "hipt"):
        raise CheckpointError(f"unknown layout '{layout}': choose 'mae' or 'hipt'")
    tensors, _ = _open(Path(path), tensors=True)
    own = model.state_dict()
    depths = {
        side: 1 + max(int(m.group(1)) for k in own if (m := re.match(rf"{side}\.blocks\.(\d+)\.", k)))
        for side in ("encoder", "decoder")
    }
    keys = _mae_keys(depths["encoder"], depths["decoder"])
    if layout == "hipt":
        keys = {theirs: ours for theirs, ours in keys.items() if ours.startswith("encoder.")}
    missing, unknown = sorted(set(keys) - set(tensors)), sorted(set(tensors) - set(keys))
    if missing or unknown:
        raise CheckpointError(
            f"{path}: not a '{layout}' checkpoint of this depth: missing {missing[:5] or 'nothing'}, "
            f"unknown {unknown[:5] or 'nothing'}"
        )
    for name in {"decoder_pos_embed"} & set(keys):
        if bool(tensors[name][:, 0].any()):
            raise CheckpointError(f"{path}: '{name}' moves the class token, which our decoder cannot express")
    loaded = {ours: _convert(tensors[theirs], ours, tensors) for theirs, ours in keys.items()}
    kept = sorted(set(own) - set(loaded))
    load_state(model, {**{name: own[name] for name in kept}, **loaded}, path)
    return kept


def foreign_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of another program's weights: safetensors, or a ``.bin`` or ``.pt`` that holds tensors alone.

    The latter are read with torch's ``weights_only``, so that nothing in them is run. Raises CheckpointError for a file
    that is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if path.suffix not in (".bin", ".pt", ".pth"):
        return _open(path, tensors=True)[0]
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged ({str(error).splitlines()[0]}); nothing in it was run: "
            "save its state_dict as safetensors"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(item, Tensor) for item in found.values()):
        raise CheckpointError(f"{path}: holds no tensors by name; save the network's state_dict as safetensors")
    return dict(found)


def foreign_id(path: str | Path) -> str:
    """Short hash of another program's weight file: of its tensors where it is safetensors, else of all its bytes."""
    if Path(path).suffix == ".safetensors":
        return weights_hash(Path(path))
    return Contents().file(path).rpartition(":")[2][:16]


def load_resnet(path: str | Path) -> nn.Module:
    """CLAM's patch encoder with ImageNet weights of a ResNet-50 (safetensors; timm's or torchvision's names), frozen.

    Raises CheckpointError for a file that is missing, no safetensors, or another network's.
    """
    from hcmae_core.baselines.resnet import TruncatedResNet50

    tensors, _ = _open(Path(path), tensors=True)
    model = TruncatedResNet50()
    load_state(model, model.own(tensors), Path(path))
    return model.eval().requires_grad_(False)


def _convert(tensor: Tensor, ours: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if ours.endswith(".positions"):
        # The class token's position is added to the token itself below.
        return tensor[0, 1:]
    if ours == "encoder.class_token":
        return (tensor + tensors["pos_embed"][:, :1]).reshape(-1)
    if ours == "decoder.mask_token":
        return tensor.reshape(-1)
    if ours == "encoder.embed.weight" and tensor.ndim == 4:
        # A convolution kernel is channels first, our pixels are channels last.
        return tensor.permute(0, 2, 3, 1).reshape(tensor.shape[0], -1)
    return tensor
