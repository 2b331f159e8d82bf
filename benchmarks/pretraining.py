"""Pre-training beside its peers: full training steps, embedding, and MAE-Region beside two plain formulations.

Every comparison interleaves the contestants in one process and divides medians of paired rounds, so that a busy
machine slows all of them alike. Peers: transformers' ViTMAE and lightly's MAE at the sizes of the paper. MAE-Region has
no public counterpart but the release; its two formulations are written here in a few lines: the convolution over the
whole region with the full prediction (as released), and the same with the convolution as a matrix product.

Run: python -m benchmarks.pretraining [--quick] [--out book/results/pretraining.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcmae.files import write_json
from hcmae.pretraining.devices import cpu_has_bf16
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion
from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD
from hcmae_core.transformer import PAPER, Size, has_tiles

MEMORY = {
    "region4-hcmae": ("MAE-Region step of 4, extra memory", "hcmae default"),
    "region4-product": ("MAE-Region step of 4, extra memory", "plain product"),
    "region1-hcmae": ("MAE-Region step of 1, extra memory", "hcmae default"),
    "region1-product": ("MAE-Region step of 1, extra memory", "plain product"),
    "patch-hcmae": ("MAE-Patch step, extra memory", "hcmae default"),
    "patch-transformers": ("MAE-Patch step, extra memory", "transformers fp32"),
    "patch-lightly": ("MAE-Patch step, extra memory", "lightly fp32"),
}
# The paper's encoder; decoder 4 blocks deep, the size at which the public implementations were compared before.
ENCODER, DECODER = PAPER, Size(256, 4, 16)


# ------------------------------------------------------------------ contestants: MAE-Patch


def ours_patch() -> nn.Module:
    return MAEPatch(256, 16, encoder=ENCODER, decoder=DECODER)


def transformers_patch() -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=ENCODER.dim,
        num_hidden_layers=ENCODER.depth,
        num_attention_heads=ENCODER.heads,
        intermediate_size=4 * ENCODER.dim,
        image_size=256,
        patch_size=16,
        decoder_hidden_size=DECODER.dim,
        decoder_num_hidden_layers=DECODER.depth,
        decoder_num_attention_heads=DECODER.heads,
        decoder_intermediate_size=4 * DECODER.dim,
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(config)


class LightlyMAE(nn.Module):
    """lightly's parts put together as its documentation does."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.models import utils
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer

        self.utils = utils
        vit = VisionTransformer(
            img_size=256, patch_size=16, embed_dim=ENCODER.dim, depth=ENCODER.depth, num_heads=ENCODER.heads,
            num_classes=0,
        )  # fmt: skip
        self.length = vit.patch_embed.num_patches + 1
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = MAEDecoderTIMM(
            num_patches=vit.patch_embed.num_patches, patch_size=16, embed_dim=ENCODER.dim,
            decoder_embed_dim=DECODER.dim, decoder_depth=DECODER.depth,
            decoder_num_heads=DECODER.heads, mlp_ratio=4.0, proj_drop_rate=0.0, attn_drop_rate=0.0,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        batch, utils = images.shape[0], self.utils
        keep, mask = utils.random_token_mask(size=(batch, self.length), mask_ratio=0.75, device=images.device)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (batch, self.length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        decoded = self.decoder.decode(tokens)
        predicted = self.decoder.predict(utils.get_at_index(decoded, mask))
        target = utils.get_at_index(utils.patchify(images, 16), mask - 1)
        return F.mse_loss(predicted.float(), target)


def normalise(images: Tensor) -> Tensor:
    """What a peer's loader does: channels first, float, ImageNet units."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device)
    std = torch.tensor(IMAGENET_STD, device=images.device)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


# ------------------------------------------------------------------ contestants: MAE-Region


class PlainRegion(nn.Module):
    """MAE-Region as released in structure: embed all 256 patches, predict all 256; ``convolution`` or a product."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.inner = MAERegion(4096, 256)
        self.convolution = convolution

    def forward(self, regions: Tensor, vectors: Tensor) -> Tensor:
        model = self.inner
        encoder, decoder = model.encoder, model.decoder
        pixels = (regions.float() / 255 - 0.45) / 0.225
        target = pixels.view(-1, 16, 256, 16, 256, 3).permute(0, 1, 3, 2, 4, 5).reshape(len(regions), 256, -1)
        if self.convolution:
            kernel = encoder.embed.weight.view(-1, 256, 256, 3).permute(0, 3, 1, 2)
            x = F.conv2d(pixels.permute(0, 3, 1, 2), kernel, encoder.embed.bias, stride=256).flatten(2).transpose(1, 2)
        else:
            x = F.linear(target, encoder.embed.weight, encoder.embed.bias)
        order = torch.rand(len(regions), 256).argsort(dim=1)
        keep = order[:, :64]
        x = (x + encoder.positions).gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        seen = vectors.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        x, _ = model.attend(x, encoder(x), seen)
        y = decoder.embed(x)
        blanks = decoder.mask_token.expand(len(regions), 192, -1).to(y.dtype)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, y.shape[-1])
        tokens = torch.cat([y[:, 1:], blanks], dim=1).gather(1, back) + decoder.positions
        tokens = torch.cat([y[:, :1].float(), tokens.float()], dim=1)
        for block in decoder.blocks:
            tokens = block(tokens)
        prediction = F.linear(decoder.norm(tokens)[:, 1:], decoder.head.weight, decoder.head.bias)
        mask = torch.ones(len(regions), 256).scatter(1, keep, 0.0)
        return (((prediction - target) ** 2).mean(-1) * mask).sum() / mask.sum()


# ------------------------------------------------------------------ measuring


def training_step(model: nn.Module, loss: Callable[[], Tensor], low: bool, device: str = "cpu") -> Callable[[], None]:
    """Forward, backward and fused AdamW, as one callable."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=low):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def interleaved(
    steps: dict[str, Callable[[], None]], rounds: int, sync: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one warm-up; the order turns from round to round."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if sync:
                sync()
            start = time.perf_counter()
            steps[name]()
            if sync:
                sync()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median of paired ratios: how many times faster ``fast`` is."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def _row(table: list[dict[str, Any]], task: str, name: str, seconds: list[float], images: int, unit: str) -> None:
    median = statistics.median(seconds)
    table.append({"task": task, "implementation": name, "rate": round(images / median, 3), "unit": unit})
    print(f"{task:<34} {name:<34} {images / median:>9.2f} {unit}", flush=True)


def patch_training(table: list[dict[str, Any]], batch: int, rounds: int) -> dict[str, float]:
    images = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8)
    pixels = normalise(images)
    steps: dict[str, Callable[[], None]] = {}
    for low in (False, True):
        tag = "bf16" if low else "fp32"
        ours, hugging, lightly = ours_patch(), transformers_patch(), LightlyMAE()
        steps[f"hcmae {tag}"] = training_step(ours, lambda m=ours: m(images).loss, low)
        steps[f"transformers {tag}"] = training_step(hugging, lambda m=hugging: m(pixels).loss, low)
        steps[f"lightly {tag}"] = training_step(lightly, lambda m=lightly: m(pixels), low)
    seconds = interleaved(steps, rounds)
    for name, values in seconds.items():
        _row(table, "MAE-Patch training step", name, values, batch, "images/s")
    default = "hcmae bf16" if cpu_has_bf16() else "hcmae fp32"
    return {
        "patch_ratio_fp32": ratio(seconds, "transformers fp32", "hcmae fp32"),
        "patch_ratio_bf16": ratio(seconds, "transformers bf16", "hcmae bf16"),
        "patch_ratio_default": ratio(seconds, "transformers fp32", default),
        "patch_ratio_lightly_fp32": ratio(seconds, "lightly fp32", "hcmae fp32"),
        "patch_ratio_lightly_bf16": ratio(seconds, "lightly bf16", "hcmae bf16"),
    }


def patch_embedding(table: list[dict[str, Any]], batch: int, rounds: int) -> dict[str, float]:
    """Encoder on all 256 tokens and the mean over them; the peer is transformers' encoder without masking."""
    images = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8)
    pixels = normalise(images)
    ours, hugging = ours_patch().eval(), transformers_patch().eval()
    hugging.vit.embeddings.config.mask_ratio = 0.0
    hugging.config.mask_ratio = 0.0

    def run(call: Callable[[], Any], low: bool) -> Callable[[], None]:
        def step() -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                call()

        return step

    low = cpu_has_bf16()
    steps = {
        "hcmae default": run(lambda: ours.encode(images), low),
        "hcmae fp32": run(lambda: ours.encode(images), False),
        "transformers fp32": run(lambda: hugging.vit(pixels).last_hidden_state[:, 1:].mean(1), False),
        "transformers bf16": run(lambda: hugging.vit(pixels).last_hidden_state[:, 1:].mean(1), low),
    }
    seconds = interleaved(steps, rounds)
    for name, values in seconds.items():
        _row(table, "Patch embedding", name, values, batch, "images/s")
    return {
        # The peer's own default is fp32; beside it the same precision, and ours against ours.
        "embed_ratio_default": ratio(seconds, "transformers fp32", "hcmae default"),
        "embed_ratio_bf16": ratio(seconds, "transformers bf16", "hcmae default"),
        "embed_ratio_own_fp32": ratio(seconds, "hcmae fp32", "hcmae default"),
    }


def _patch_step(kind: str, low: bool, batch: int) -> Callable[[], None]:
    images = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8)
    if kind == "hcmae":
        ours = ours_patch()
        return training_step(ours, lambda: ours(images).loss, low)
    pixels = normalise(images)
    if kind == "transformers":
        hugging = transformers_patch()
        return training_step(hugging, lambda: hugging(pixels).loss, low)
    lightly = LightlyMAE()
    return training_step(lightly, lambda: lightly(pixels), low)


def patch_scaling(table: list[dict[str, Any]], rounds: int, batches: tuple[int, ...]) -> None:
    """Our default over the size of the batch, and over processes that share the cores."""
    low = cpu_has_bf16()
    for batch in batches:
        seconds = interleaved({"hcmae": _patch_step("hcmae", low, batch)}, rounds)["hcmae"]
        _row(table, "MAE-Patch step, batch", f"hcmae default, {batch}", seconds, batch, "images/s")
    cores = os.cpu_count() or 1
    for count in sorted({1, 2, cores} if cores <= 8 else {1, 2, 8}):
        if count <= cores:
            rate = sum(_together(count, max(1, cores // count), batches[-1] // 2 or 1, rounds))
            _add(table, "MAE-Patch step, processes", f"hcmae default, {count} x {max(1, cores // count)} threads", rate)


def _together(count: int, threads: int, batch: int, rounds: int) -> list[float]:
    """Images/s of each of several processes that average gradients over gloo, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.pretraining", "--worker", f"{batch}:{rounds}"]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    rates = []
    for process in processes:
        out, _ = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"a benchmark process ended with {process.returncode}")
        rates.append(float(json.loads(out.splitlines()[-1])["rate"]))
    return rates


def _worker(batch: int, rounds: int) -> None:
    torch.distributed.init_process_group("gloo")
    images = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8)
    model = nn.parallel.DistributedDataParallel(ours_patch())
    step = training_step(model, lambda: model(images).loss, cpu_has_bf16())
    step()
    torch.distributed.barrier()
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    torch.distributed.barrier()
    print(json.dumps({"rate": batch * rounds / (time.perf_counter() - start)}))
    torch.distributed.destroy_process_group()


def _add(table: list[dict[str, Any]], task: str, name: str, value: float, unit: str = "images/s") -> None:
    table.append({"task": task, "implementation": name, "rate": round(value, 3), "unit": unit})
    print(f"{task:<34} {name:<34} {value:>9.2f} {unit}", flush=True)


def _region_step(kind: str, low: bool, batch: int = 1) -> Callable[[], None]:
    regions = torch.randint(0, 256, (batch, 4096, 4096, 3), dtype=torch.uint8)
    vectors = torch.randn(batch, 256, 384)
    if kind == "hcmae":
        ours = MAERegion(4096, 256)
        return training_step(ours, lambda: ours(regions, vectors).loss, low)
    plain = PlainRegion(kind == "convolution")
    return training_step(plain, lambda: plain(regions, vectors), low)


def region_training(table: list[dict[str, Any]], rounds: int, convolution: bool) -> dict[str, float]:
    low = cpu_has_bf16()
    steps = {"hcmae default": _region_step("hcmae", low), "plain product": _region_step("product", False)}
    steps["hcmae fp32"] = _region_step("hcmae", False)
    if low:
        steps["plain product bf16"] = _region_step("product", True)
    seconds = interleaved(steps, rounds)
    for name, values in seconds.items():
        _row(table, "MAE-Region step, 4096 px", name, values, 1, "regions/s")
    out = {
        "region_ratio_plain": ratio(seconds, "plain product", "hcmae default"),
        "region_ratio_plain_fp32": ratio(seconds, "plain product", "hcmae fp32"),
    }
    if low:
        out["region_ratio_plain_bf16"] = ratio(seconds, "plain product bf16", "hcmae default")
    del steps
    if convolution:
        # One step is enough: it takes minutes, and the ratio is far from its threshold.
        step = _region_step("convolution", False)
        start = time.perf_counter()
        step()
        taken = time.perf_counter() - start
        _row(table, "MAE-Region step, 4096 px", "convolution (as released)", [taken], 1, "regions/s")
        out["region_ratio_conv"] = taken / statistics.median(seconds["hcmae default"])
    return out


def _peak_memory(kind: str) -> None:
    """In a process of its own: peak resident memory of a step above what model, optimiser and input hold."""
    what, name = kind.split("-")
    low = cpu_has_bf16() and name == "hcmae"
    step = _patch_step(name, low, 16) if what == "patch" else _region_step(name, low, int(what.removeprefix("region")))
    step()  # optimiser state exists from here on
    process = psutil.Process()
    base = process.memory_info().rss
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        # Linux keeps the exact peak; elsewhere it is sampled.
        refs.write_text("5")
        step()
        lines = Path("/proc/self/status").read_text().splitlines()
        exact = int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
        print(json.dumps({"extra_gb": (exact - base) / 2**30}))
        return
    peak, stop = base, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    step()
    stop.set()
    thread.join()
    print(json.dumps({"extra_gb": (peak - base) / 2**30}))


def memory(table: list[dict[str, Any]]) -> dict[str, float]:
    """Extra memory of a training step, each contestant at its default precision in a process of its own."""
    extra = {}
    for kind in MEMORY:
        # Freed blocks go back to the system at once, so that resident memory is memory in use.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
        command = [sys.executable, "-m", "benchmarks.pretraining", "--peak-memory", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        extra[kind] = json.loads(done.stdout.splitlines()[-1])["extra_gb"]
        task, name = MEMORY[kind]
        _add(table, task, name, extra[kind], "GiB")
    return {
        # The paper's batch is 10, of which this machine should hold a good part. At a batch of 1 the gradients of 151
        # million weights (0.56 GiB), which both must have, are nearly all that ours needs.
        "region_memory_ratio": extra["region4-hcmae"] / extra["region4-product"],
        "region_memory_ratio_batch1": extra["region1-hcmae"] / extra["region1-product"],
        "patch_memory_ratio": extra["patch-hcmae"] / extra["patch-transformers"],
    }


def patch_flop(batch: int = 1) -> float:
    """Floating-point operations of a forward and backward pass of MAE-Patch, counted from its matrix products."""
    dim, width, length, seen = ENCODER.dim, DECODER.dim, 256, 64

    def blocks(tokens: int, d: int, depth: int) -> float:
        return depth * (2 * tokens * 12 * d * d + 4 * tokens * tokens * d)

    embed = 2 * seen * 768 * dim
    encoder = blocks(seen + 1, dim, ENCODER.depth)
    decoder = 2 * (seen + 1) * dim * width + blocks(length + 1, width, DECODER.depth)
    head = 2 * (length - seen) * width * 768
    return 3 * batch * (embed + encoder + decoder + head)


def products(table: list[dict[str, Any]], rounds: int) -> dict[str, float]:
    """What this processor's library makes of one matrix product of the encoder, alone: no step can be faster."""
    out = {}
    rows, dim = 16 * 65, ENCODER.dim
    for dtype, tag in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        if dtype == torch.bfloat16 and not cpu_has_bf16():
            continue
        x, weight = torch.randn(rows, dim, dtype=dtype), torch.randn(4 * dim, dim, dtype=dtype)
        seconds = interleaved({tag: lambda x=x, weight=weight: F.linear(x, weight)}, 20 * rounds)[tag]  # type: ignore[misc]
        out[f"product_gflops_{tag}"] = 2 * rows * dim * 4 * dim / statistics.median(seconds) / 1e9
        _add(table, "Matrix product alone", tag, out[f"product_gflops_{tag}"], "GFLOP/s")
    return out


def gpu(table: list[dict[str, Any]], rounds: int, peak_tflops: float) -> dict[str, float]:
    """bf16 training step beside transformers (sdpa, compiled), and the share of the device's peak."""
    batch = 512
    images = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8, device="cuda")
    pixels = normalise(images)
    ours, hugging = ours_patch().cuda(), torch.compile(transformers_patch().cuda())
    for module in ours.modules():
        if type(module).__name__ == "Block":
            module.compile()
    steps = {
        "hcmae bf16 gpu": training_step(ours, lambda: ours(images).loss, True, "cuda"),
        "transformers bf16 gpu": training_step(hugging, lambda: hugging(pixels).loss, True, "cuda"),
    }
    seconds = interleaved(steps, rounds, torch.cuda.synchronize)
    for name, values in seconds.items():
        _row(table, "MAE-Patch training step", name, values, batch, "images/s")
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        steps[name]()
        extra = (torch.cuda.max_memory_allocated() - held) / 2**30
        _add(table, "MAE-Patch step, extra memory", name, extra, "GiB")
    rate = batch / statistics.median(seconds["hcmae bf16 gpu"])
    return {
        "gpu_patch_ratio_bf16": ratio(seconds, "transformers bf16 gpu", "hcmae bf16 gpu"),
        "gpu_mfu": rate * patch_flop() / (peak_tflops * 1e12),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few rounds, no convolution: a check, not a measurement")
    parser.add_argument("--out", type=Path, default=Path("book/results/pretraining.json"))
    parser.add_argument("--peak-memory", choices=tuple(MEMORY), help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 peak of the GPU, for MFU")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.peak_memory:
        _peak_memory(arguments.peak_memory)
        return
    if arguments.worker:
        _worker(*map(int, arguments.worker.split(":")))
        return
    table: list[dict[str, Any]] = []
    rounds = 2 if arguments.quick else 9
    keys: dict[str, float] = {}
    keys |= products(table, rounds)
    keys |= patch_training(table, 4 if arguments.quick else 16, rounds)
    keys |= patch_embedding(table, 4 if arguments.quick else 16, rounds)
    patch_scaling(table, rounds, (2, 4) if arguments.quick else (4, 16, 32))
    keys |= memory(table)
    keys |= region_training(table, rounds, not arguments.quick)
    if torch.cuda.is_available():
        keys |= gpu(table, 20, arguments.peak_tflops)
    keys = {name: round(value, 3) for name, value in keys.items()}
    record = {
        "title": "With tiles of bf16" if has_tiles() else "Without tiles of bf16",
        **keys,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "bf16": cpu_has_bf16(),
            "bf16 tiles (AMX)": has_tiles(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {name: version(name) for name in ("torch", "timm", "transformers", "lightly")},
        "gflop_per_image": round(patch_flop() / 1e9, 2),
        "table": table,
    }
    if not arguments.quick:
        write_json(arguments.out, record)
    print(json.dumps(keys))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
