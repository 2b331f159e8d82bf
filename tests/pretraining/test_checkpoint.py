"""Weight and checkpoint files: exact round trips, and refusal of everything else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hcmae.pretraining.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    load_foreign,
    pack_state,
    read_metadata,
    unpack_state,
    weights_hash,
)
from hcmae.pretraining.networks import load_mae_patch, load_mae_region, save_weights
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion
from hcmae_core.transformer import Size, grid_positions


def small(**changes: int) -> MAEPatch:
    encoder = {"dim": 16, "depth": 2, "heads": 2, **changes}
    return MAEPatch(32, 8, encoder=Size(**encoder), decoder=Size(8, 1, 2))


def test_weights_round_trip_and_hash(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small()
    path = save_weights(tmp_path / "a.safetensors", model, {"note": "x"})
    loaded = load_mae_patch(path)
    assert not loaded.training
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert read_metadata(path)["note"] == "x"
    first = weights_hash(path)
    with torch.no_grad():
        model.encoder.norm.bias[0] += 1e-6
    assert weights_hash(save_weights(tmp_path / "b.safetensors", model)) != first


def test_region_settings_survive(tmp_path: Path) -> None:
    model = MAERegion(
        64,
        16,
        encoder=Size(16, 1, 2),
        decoder=Size(8, 1, 2),
        attention="eq4",
        residual=True,
    )
    loaded = load_mae_region(save_weights(tmp_path / "r.safetensors", model))
    assert loaded.settings == model.settings
    with pytest.raises(CheckpointError, match=r"r\.safetensors.*expected 'mae_patch'"):
        load_mae_patch(tmp_path / "r.safetensors")


# What a file of version 0.1 holds, name for name: networks may change inside, files that exist may not.
OLD_MODEL = {
    "dim": 8, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "decoder_dim": 4, "decoder_depth": 1, "decoder_heads": 2,
    "mask_ratio": 0.5, "normalise_targets": True, "class_token": True,
}  # fmt: skip
OLD_BLOCK = ("norm1", "qkv", "proj", "norm2", "fc1", "fc2")


def _old_file(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """A weight file of 32 pixels in 4 x 4 tokens, tensors and settings as version 0.1 wrote it."""
    shapes: dict[str, tuple[int, ...]] = {"encoder.class_token": (8,), "decoder.mask_token": (4,)}
    linear = {"encoder.embed": (8, 192), "decoder.embed": (4, 8), "decoder.head": (192, 4)}
    for stack, dim in (("encoder", 8), ("decoder", 4)):
        shapes[f"{stack}.positions"] = (16, dim)
        wide = {"qkv": (3 * dim, dim), "proj": (dim, dim), "fc1": (2 * dim, dim), "fc2": (dim, 2 * dim)}
        linear.update({f"{stack}.blocks.0.{name}": wide.get(name, (dim,)) for name in OLD_BLOCK})
        linear[f"{stack}.norm"] = (dim,)
    model: dict[str, object] = {"image": 32, "cell": 8, **OLD_MODEL}
    if kind == "mae_region":
        linear.update({f"cross.{name}": (8, 8) for name in ("query", "key", "value")})
        model = {"region": 32, "patch": 8, **OLD_MODEL, "attention": "eq4", "residual": True}
    for name, shape in linear.items():
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    metadata = json.dumps({"fingerprint": "0123456789abcdef", "kind": kind, "model": model}, sort_keys=True)
    save_file(tensors, path, metadata={"format": "hcmae-1", "metadata": metadata})
    return tensors, model


@pytest.mark.parametrize("kind", ["mae_patch", "mae_region"])
def test_files_of_earlier_versions_load_and_are_written_the_same(kind: str, tmp_path: Path) -> None:
    old = tmp_path / "old.safetensors"
    tensors, settings = _old_file(old, kind)
    model = load_mae_patch(old) if kind == "mae_patch" else load_mae_region(old)
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor), name
    assert model.mask_ratio == 0.5
    assert model.normalise_targets
    new = save_weights(tmp_path / "new.safetensors", model, {"fingerprint": "0123456789abcdef"})
    assert read_metadata(new) == read_metadata(old)
    assert read_metadata(new)["model"] == settings


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickle", "empty", "foreign"])
def test_unusable_files_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.safetensors", small())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "pickle":
        torch.save({"model": {}}, path)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        load_mae_patch(path)


def test_other_geometry_is_refused(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    model = small()
    folder.save(1, model, torch.optim.AdamW(model.parameters()), None, {})
    wider = small(dim=24)
    with pytest.raises(CheckpointError, match="shape"):
        folder.load(wider, torch.optim.AdamW(wider.parameters()))
    deeper = small(depth=3)
    with pytest.raises(CheckpointError, match=r"missing.*encoder\.blocks\.2"):
        folder.load(deeper, torch.optim.AdamW(deeper.parameters()))


def test_folder_restores_everything_and_keeps_the_newest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    folder = CheckpointFolder(tmp_path / "c", keep=2)
    assert folder.load(model, optimizer) is None
    for step in range(1, 5):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        folder.save(step, model, optimizer, {"at": np.arange(step), "n": step}, {"best": 0.5}, best=step == 2)
    assert [p.name for p in folder.files()] == ["step-00000003.safetensors", "step-00000004.safetensors"]
    assert read_metadata(tmp_path / "c" / "best.safetensors")["step"] == 2
    other = nn.Linear(3, 2)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    restored = folder.load(other, fresh)
    assert restored is not None
    meta, stream = restored
    assert meta["step"] == 4
    assert stream["n"] == 4
    assert np.array_equal(stream["at"], np.arange(4))
    for m, o in ((model, optimizer), (other, fresh)):
        m(torch.ones(1, 3)).sum().backward()
        o.step()
    assert torch.equal(model.weight, other.weight)


def test_pack_state_round_trip() -> None:
    state = {"a": [1, {"b": np.arange(3)}], "c": torch.ones(2), "d": np.float64(2.5), "e": None}
    arrays: dict[str, torch.Tensor] = {}
    back = unpack_state(pack_state(state, arrays, "s"), arrays)
    assert np.array_equal(back["a"][1]["b"], np.arange(3))
    assert torch.equal(back["c"], torch.ones(2))
    assert back["d"] == 2.5
    assert back["e"] is None


def _foreign(depth: int = 2, dim: int = 16, width: int = 8) -> dict[str, torch.Tensor]:
    """A checkpoint in the names and shapes of the reference MAE."""
    shapes = {
        "cls_token": (1, 1, dim), "patch_embed.proj.weight": (dim, 3, 8, 8), "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,), "norm.bias": (dim,),
        "decoder_embed.weight": (width, dim), "decoder_embed.bias": (width,),
        "mask_token": (1, 1, width), "decoder_norm.weight": (width,), "decoder_norm.bias": (width,),
        "decoder_pred.weight": (192, width), "decoder_pred.bias": (192,),
    }  # fmt: skip
    for prefix, count, d in (("blocks", depth, dim), ("decoder_blocks", 1, width)):
        for n in range(count):
            for part, rows, columns in (
                ("attn.qkv", 3 * d, d), ("attn.proj", d, d), ("mlp.fc1", 4 * d, d), ("mlp.fc2", d, 4 * d),
            ):  # fmt: skip
                shapes[f"{prefix}.{n}.{part}.weight"] = (rows, columns)
                shapes[f"{prefix}.{n}.{part}.bias"] = (rows,)
            for part in ("norm1", "norm2"):
                shapes[f"{prefix}.{n}.{part}.weight"] = shapes[f"{prefix}.{n}.{part}.bias"] = (d,)
    torch.manual_seed(1)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    for name, d in (("pos_embed", dim), ("decoder_pos_embed", width)):
        tensors[name] = torch.cat([torch.zeros(1, d), grid_positions(d, 4)])[None]
    return tensors


def test_reference_mae_fits_and_embeds_like_its_convolution(tmp_path: Path) -> None:
    tensors = _foreign()
    save_file(tensors, tmp_path / "mae.safetensors")
    model = small()
    assert load_foreign(model, tmp_path / "mae.safetensors", "mae") == []
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    pixels = (images / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    weight, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    grid = nn.functional.conv2d(pixels.permute(0, 3, 1, 2), weight, bias, stride=8).flatten(2).transpose(1, 2)
    from hcmae_core.pixels import split_tokens

    ours = model.encoder.embed_tokens(split_tokens(images, 4))
    torch.testing.assert_close(ours, grid + tensors["pos_embed"][:, 1:], rtol=1e-4, atol=1e-4)


def test_foreign_keys_must_all_be_met(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    tensors = _foreign()
    save_file({k: v for k, v in tensors.items() if k != "blocks.1.norm2.bias"}, path)
    with pytest.raises(CheckpointError, match=r"missing \['blocks\.1\.norm2\.bias'\]"):
        load_foreign(small(), path, "mae")
    save_file({**tensors, "head.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"unknown \['head\.weight'\]"):
        load_foreign(small(), path, "mae")
    save_file({k: v for k, v in tensors.items() if not k.startswith(("decoder", "mask"))}, path)
    model = small()
    before = model.decoder.head.weight.clone()
    kept = load_foreign(model, path, "hipt")
    assert all(name.startswith("decoder.") for name in kept)
    assert torch.equal(model.decoder.head.weight, before)
    assert torch.equal(model.encoder.norm.weight, tensors["norm.weight"])


class _ReferenceMAE(nn.Module):
    """The published MAE, rebuilt from timm's parts in its own names: an independent whole to compare with."""

    def __init__(self) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block, PatchEmbed

        self.patch_embed = PatchEmbed(32, 8, 3, 16)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, 16), grid_positions(16, 4)])[None])
        self.blocks = nn.ModuleList([Block(16, 2, 4.0, qkv_bias=True) for _ in range(2)])
        self.norm = nn.LayerNorm(16)
        self.decoder_embed = nn.Linear(16, 8)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 8))
        self.decoder_pos_embed = nn.Parameter(torch.cat([torch.zeros(1, 8), grid_positions(8, 4)])[None])
        self.decoder_blocks = nn.ModuleList([Block(8, 2, 4.0, qkv_bias=True) for _ in range(1)])
        self.decoder_norm = nn.LayerNorm(8)
        self.decoder_pred = nn.Linear(8, 192)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6

    def encode(self, pixels: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        x = self.patch_embed(pixels) + self.pos_embed[:, 1:]
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, 16))
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, pixels: torch.Tensor, order: torch.Tensor, visible: int) -> torch.Tensor:
        x = self.decoder_embed(self.encode(pixels, order[:, :visible]))
        blanks = self.mask_token.expand(len(x), 16 - visible, -1)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, 8)
        x = torch.cat([x[:, :1], torch.cat([x[:, 1:], blanks], dim=1).gather(1, back)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        prediction = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        target = pixels.view(-1, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 16, 192)
        hidden = torch.ones(len(x), 16).scatter(1, order[:, :visible], 0.0)
        return (((prediction - target) ** 2).mean(-1) * hidden).sum() / hidden.sum()


def test_reference_weights_give_the_reference_loss_and_vectors(tmp_path: Path) -> None:
    torch.manual_seed(4)
    reference = _ReferenceMAE().eval()
    save_file(reference.state_dict(), tmp_path / "mae.safetensors")
    model = small().eval()
    assert load_foreign(model, tmp_path / "mae.safetensors", "mae") == []
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    pixels = (images / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    order = torch.rand(3, 16).argsort(dim=1)
    ours, theirs = model(images, order=order).loss, reference(pixels, order, model.visible_tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # HIPT's names are those of the encoder, with learned positions, also for the class token.
    with torch.no_grad():
        reference.pos_embed.add_(torch.randn_like(reference.pos_embed))
    names = {k: v for k, v in reference.state_dict().items() if not k.startswith(("decoder", "mask"))}
    save_file(names, tmp_path / "hipt.safetensors")
    other = small().eval()
    load_foreign(other, tmp_path / "hipt.safetensors", "hipt")
    torch.testing.assert_close(other.encode(images), reference.encode(pixels)[:, 1:].mean(dim=1), rtol=1e-4, atol=1e-5)


def test_a_decoder_that_cannot_be_expressed_is_refused(tmp_path: Path) -> None:
    tensors = _foreign()
    tensors["decoder_pos_embed"] = tensors["decoder_pos_embed"] + 0.1
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(CheckpointError, match="decoder_pos_embed"):
        load_foreign(small(), tmp_path / "f.safetensors", "mae")
