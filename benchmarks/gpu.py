"""What a GPU makes of it: steps beside their peers, embedding, survival groups, and training fed from JPEG slides.

Runs on a bare machine with torch, timm, transformers, h5py and what decodes slides; about four minutes. Graphs are
compiled side by side in processes of their own that share one cache; every section begins when its graphs are there,
prints its lines as it ends, and a section that fails or has no time left says so and spoils nothing. Shares of the peak
are shares of what a plain matrix product reaches on this very device.

Run: python -m benchmarks.gpu [--seconds 230] [--out book/results/gpu.json] [--only patch,fed]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from benchmarks.pretraining import PlainRegion, interleaved, normalise, patch_flop, ratio, training_step
from hcmae.config import Profile, load_profile
from hcmae.files import write_json
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion
from hcmae_core.transformer import PAPER, Size

# The decoder of the comparison is four blocks deep, as on the CPU; its heads are the release's and the workstation's.
HEADS = {"release": 16, "wide": 8}
PATCHES, REGIONS, EMBEDDED = 1024, 16, 4096
# In the order in which their graphs are ready; the peer's takes longest.
SECTIONS = ("embed", "ceilings", "fed_patch", "region", "fed_region", "survival", "attention", "patch")


class Report:
    """Lines of the table and figures by name, printed as they come."""

    def __init__(self, seconds: float) -> None:
        self.table: list[dict[str, Any]] = []
        self.keys: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._end - time.monotonic()

    def add(self, task: str, name: str, rate: float, unit: str) -> None:
        """One line of the table."""
        self.table.append({"task": task, "implementation": name, "rate": round(rate, 3), "unit": unit})
        print(f"{task:<34} {name:<40} {rate:>11.2f} {unit}", flush=True)

    def section(self, name: str, work: Callable[[], None]) -> None:
        """Do one section; what goes wrong in it is said and kept."""
        began = time.monotonic()
        if self.left < 8:
            self.failed[name] = "no time left"
        else:
            try:
                work()
            except Exception as error:
                self.failed[name] = f"{type(error).__name__}: {error}"[:300]
        torch.cuda.empty_cache()
        print(f"-- {name}: {time.monotonic() - began:.1f} s {self.failed.get(name, '')}", flush=True)


def ours_patch(heads: str) -> MAEPatch:
    return MAEPatch(256, 16, encoder=PAPER, decoder=Size(256, 4, HEADS[heads]))


def transformers_patch(heads: str) -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=PAPER.dim, num_hidden_layers=PAPER.depth, num_attention_heads=PAPER.heads,
        intermediate_size=4 * PAPER.dim, image_size=256, patch_size=16, decoder_hidden_size=256,
        decoder_num_hidden_layers=4, decoder_num_attention_heads=HEADS[heads], decoder_intermediate_size=1024,
        attn_implementation="sdpa",
    )  # fmt: skip
    return ViTMAEForPreTraining(config)


def random_images(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device="cuda")


def our_step(heads: str, compiled: bool = True) -> Callable[[], None]:
    model = ours_patch(heads).cuda()
    call: Any = torch.compile(model, dynamic=False) if compiled else model
    images = random_images(PATCHES, 256)
    # The order is drawn as in training: on the device, from noise.
    return training_step(model, lambda: call(images, order=draw(PATCHES)).loss, True, "cuda")


def draw(batch: int) -> Tensor:
    return torch.rand(batch, 256, device="cuda").argsort(dim=1)


def their_step(heads: str, compiled: bool = True) -> Callable[[], None]:
    model = transformers_patch(heads).cuda()
    call: Any = torch.compile(model, dynamic=False) if compiled else model
    pixels = normalise(random_images(PATCHES, 256))
    return training_step(model, lambda: call(pixels).loss, True, "cuda")


def region_step(kind: str) -> Callable[[], None]:
    regions, vectors = random_images(REGIONS, 4096), torch.randn(REGIONS, 256, 384, device="cuda")
    if kind == "hcmae":
        model = MAERegion(4096, 256, decoder=Size(256, 4, HEADS["wide"])).cuda()
        call = torch.compile(model, dynamic=False)
        return training_step(model, lambda: call(regions, vectors, order=draw(REGIONS)).loss, True, "cuda")
    plain = PlainRegion(kind == "convolution").cuda()

    def loss() -> Tensor:
        # The plain way makes its mask where the generator is.
        with torch.device("cuda"):
            return plain(regions, vectors)

    return training_step(plain, loss, True, "cuda")


def our_embedding() -> Callable[[], None]:
    model, images = ours_patch("wide").cuda().eval(), random_images(EMBEDDED, 256)
    call = torch.compile(model.encode, dynamic=False)

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            call(images)

    return run


COMPILED: dict[str, Callable[[], Callable[[], None]]] = {
    "ours": lambda: our_step("wide"),
    "ours_release": lambda: our_step("release"),
    "transformers": lambda: their_step("wide"),
    "region": lambda: region_step("hcmae"),
    "embed": our_embedding,
}


# --- sections -----------------------------------------------------------------------------------------------------


def ceilings(report: Report) -> None:
    """Two figures that nothing can pass: bytes moved, and a large matrix product on random data."""
    a = torch.randint(0, 256, (4 << 30,), dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    seconds = interleaved({"copy": lambda: b.copy_(a)}, 10, torch.cuda.synchronize)["copy"]  # type: ignore[dict-item]
    report.keys["gpu_copy_tb_s"] = 2 * a.numel() / statistics.median(seconds) / 1e12
    host = torch.empty(1 << 30, dtype=torch.uint8).pin_memory()
    seconds = interleaved({"h": lambda: a[: 1 << 30].copy_(host, non_blocking=True)}, 5, torch.cuda.synchronize)["h"]  # type: ignore[dict-item]
    report.keys["gpu_host_gb_s"] = host.numel() / statistics.median(seconds) / 1e9
    x, y = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    seconds = interleaved({"product": lambda: x @ y}, 20, torch.cuda.synchronize)["product"]  # type: ignore[dict-item]
    report.keys["gpu_product_tflops"] = 2 * 8192**3 / statistics.median(seconds) / 1e12
    report.add("Ceiling: copy, read and written", "device", report.keys["gpu_copy_tb_s"], "TB/s")
    report.add("Ceiling: pinned host to device", "bus", report.keys["gpu_host_gb_s"], "GB/s")
    report.add("Ceiling: bf16 product of 8192", "device", report.keys["gpu_product_tflops"], "TFLOP/s")


def measured(report: Report, task: str, steps: dict[str, Callable[[], None]], count: int, unit: str) -> dict[str, Any]:
    """Rates and extra memory of several steps, interleaved."""
    for step in steps.values():
        step()
    seconds = interleaved(steps, 8, torch.cuda.synchronize)
    for name, values in seconds.items():
        report.add(task, name, count / statistics.median(values), unit)
    extra = {}
    for name, step in steps.items():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        extra[name] = (torch.cuda.max_memory_allocated() - held) / 2**30
        report.add(f"{task}, extra memory", name, extra[name], "GiB")
    return {"seconds": seconds, "extra": extra}


def patch(report: Report) -> None:
    steps = {
        "hcmae, compiled, heads of 32": our_step("wide"),
        "hcmae, eager, heads of 32": our_step("wide", compiled=False),
        "transformers, compiled, heads of 32": their_step("wide"),
    }
    found = measured(report, f"MAE-Patch step, batch {PATCHES}", steps, PATCHES, "images/s")
    rate = PATCHES / statistics.median(found["seconds"]["hcmae, compiled, heads of 32"])
    report.keys["gpu_patch_images_s"] = rate
    report.keys["gpu_patch_ratio"] = ratio(
        found["seconds"], "transformers, compiled, heads of 32", "hcmae, compiled, heads of 32"
    )
    report.keys["gpu_mfu"] = rate * patch_flop() / (report.keys.get("gpu_product_tflops", 750.0) * 1e12)


def region(report: Report) -> None:
    steps = {"hcmae, compiled": region_step("hcmae"), "plain product": region_step("product")}
    found = measured(report, f"MAE-Region step, batch {REGIONS}", steps, REGIONS, "regions/s")
    report.keys["gpu_region_s"] = REGIONS / statistics.median(found["seconds"]["hcmae, compiled"])
    report.keys["gpu_region_ratio"] = ratio(found["seconds"], "plain product", "hcmae, compiled")
    report.keys["gpu_region_memory_ratio"] = found["extra"]["hcmae, compiled"] / found["extra"]["plain product"]
    del steps
    if report.left > 30:
        convolution = {"convolution (as released)": region_step("convolution")}
        measured(report, f"MAE-Region step, batch {REGIONS}", convolution, REGIONS, "regions/s")


def embed(report: Report) -> None:
    model, images = ours_patch("wide").cuda().eval(), random_images(EMBEDDED, 256)

    def eager() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            model.encode(images)

    found = measured(
        report, f"Embedding, batch {EMBEDDED}", {"hcmae, compiled": our_embedding(), "hcmae, eager": eager}, EMBEDDED,
        "images/s",
    )  # fmt: skip
    report.keys["gpu_embed_images_s"] = EMBEDDED / statistics.median(found["seconds"]["hcmae, compiled"])


def attention(report: Report) -> None:
    """Forward and backward pass of attention alone, by kernel, at the lengths of MAE-Patch's two stacks."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    for stack, heads, length in (("encoder", 12, 65), ("decoder", 8, 257), ("decoder", 16, 257)):
        width = 384 // heads if stack == "encoder" else 256 // heads
        for name, kernel in kernels.items():
            rows = [
                torch.randn(PATCHES, heads, length, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                for _ in range(3)
            ]

            def both(rows: list[Tensor] = rows, kernel: SDPBackend = kernel) -> None:
                with sdpa_kernel(kernel):
                    torch.nn.functional.scaled_dot_product_attention(*rows).backward(rows[0].detach())

            with suppress(RuntimeError):
                seconds = interleaved({name: both}, 8, torch.cuda.synchronize)[name]
                task = f"Attention, {stack}, {heads} heads of {width}"
                report.add(task, name, 1000 * statistics.median(seconds), "ms")


def survival(report: Report) -> None:
    """One group of 60 patients with about 200 regions each: forward, backward, AdamW."""
    from benchmarks.survival import make_group
    from hcmae_core.hcmae import HCMAE
    from hcmae_core.losses import cox_loss

    group = {name: item.cuda() for name, item in make_group(60, 200, 256, 300, 384).items()}
    model = HCMAE(omics_features=300, vector_dim=384, thumbnail=256).cuda()
    days, events = torch.arange(60.0, device="cuda") + 1, torch.ones(60, device="cuda")
    step = training_step(model, lambda: cox_loss(model(**group).float(), days, events), True, "cuda")
    found = measured(report, "HC-MAE, a group of 60", {"hcmae": step}, 60, "patients/s")
    report.keys["gpu_survival_group_ms"] = 1000 * statistics.median(found["seconds"]["hcmae"])


# --- fed from slides ----------------------------------------------------------------------------------------------


def make_slides(folder: Path, copies: int = 4, side: int = 8192) -> list[Path]:
    """Stores of painted slides of 16 regions each, of the geometry of the paper, JPEG at quality 85."""
    from hcmae.slides.store import StoreContents, write_store, write_vectors
    from tests.support.twin_slides import paint, write_twin

    picture = paint(side, side)
    first = write_twin(folder / "s0.svs", np.tile(picture, (2, 2, 1)), quality=85, levels=())
    geometry = load_profile("workstation").geometry
    corners = [(x, y) for y in range(0, 4 * 4096, 4096) for x in range(0, 4 * 4096, 4096)]
    stores = []
    for number in range(copies):
        slide, path = folder / f"s{number}.svs", folder / f"s{number}.h5"
        if number:
            shutil.copyfile(first, slide)
        attrs = {
            "slide_id": slide.stem, "slide_content": slide.stem, "slide_bytes": slide.stat().st_size,
            "slide_path": str(slide), "slide_relative": slide.name, "reader": "direct", "mpp": 0.25, "side": 4096,
            "width": 4 * 4096, "height": 4 * 4096, "geometry": json.dumps(geometry.model_dump()),
        }  # fmt: skip
        thumbnails = np.zeros((len(corners), geometry.thumbnail, geometry.thumbnail, 3), np.uint8)
        write_store(path, StoreContents(np.array(corners, np.int32), thumbnails, np.ones(len(corners)), attrs))
        rng = np.random.default_rng(number)
        write_vectors(path, "patch_vectors", rng.standard_normal((len(corners), 256, 384)).astype(np.float16), "w")
        stores.append(path)
    return stores


class _Watch:
    """Utilisation of the GPU and CPU-seconds of this process and its children between two moments."""

    def __init__(self) -> None:
        self._busy: list[float] = []
        self._stop = threading.Event()
        self._cpu, self._clock = self._seconds(), time.perf_counter()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @staticmethod
    def _seconds() -> dict[int, float]:
        found = {}
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        return found

    def _look(self) -> None:
        with suppress(Exception):
            while not self._stop.wait(0.1):
                self._busy.append(float(torch.cuda.utilization()))

    def end(self) -> tuple[float, float]:
        """Mean utilisation in percent (of the seconds in which a kernel ran), cores in use."""
        spent = sum(seconds - self._cpu.get(pid, 0.0) for pid, seconds in self._seconds().items())
        cores = spent / (time.perf_counter() - self._clock)
        self._stop.set()
        self._thread.join()
        return statistics.mean(self._busy) if self._busy else float("nan"), cores


def fed_profile(workers: int) -> Profile:
    """Profile workstation at the sizes that the step above was measured with."""
    profile = load_profile("workstation", {"compute.workers": workers})
    data = profile.model_dump()
    data["mae_patch"] |= {"decoder_depth": 4, "decoder_heads": HEADS["wide"]}
    data["mae_region"] |= {"decoder_depth": 4, "decoder_heads": HEADS["wide"]}
    data["mae_patch"]["optimisation"] |= {"batch_size": PATCHES, "samples_per_epoch": 10**7, "epochs": 1}
    data["mae_region"]["optimisation"] |= {
        "batch_size": REGIONS, "accumulation": 1, "samples_per_epoch": 10**6, "epochs": 1,
    }  # fmt: skip
    return Profile.model_validate(data)


class _EnoughError(Exception):
    pass


def fed(report: Report, stores: list[Path], kind: str, seconds: float) -> None:
    """The training run itself, from JPEG slides, once its graph is compiled: rate, wait, who is busy."""
    from hcmae.pretraining.pretrain import pretrain_patch, pretrain_region

    count = PATCHES if kind == "patch" else REGIONS
    workers = max(2, (os.cpu_count() or 4) - 1)
    marks: list[tuple[int, float]] = []
    watches: list[_Watch] = []
    used: list[tuple[float, float]] = []

    def on_step(step: int) -> None:
        # What was decoded while the graph was compiled must be used up before the clock starts.
        if len(marks) == 0 and step >= 30:
            torch.cuda.synchronize()
            watches.append(_Watch())
            marks.append((step, time.perf_counter()))
        elif len(marks) == 1 and time.perf_counter() - marks[0][1] > seconds:
            torch.cuda.synchronize()
            marks.append((step, time.perf_counter()))
            used.append(watches[0].end())
            raise _EnoughError

    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as out:
        train: Any = pretrain_patch if kind == "patch" else pretrain_region
        with suppress(_EnoughError):
            train(
                stores, fed_profile(workers), Path(out), 0, progress=False, key="benchmark", log_every=4,
                checkpoint_minutes=1e9, on_step=on_step,
            )  # fmt: skip
        (log,) = Path(out).glob("*.jsonl")
        records = [json.loads(line) for line in log.read_text().splitlines()]
    (first, start), (last, end) = marks
    ((busy, cores),) = used
    rate = (last - first) * count / (end - start)
    wait = statistics.mean(record["data_wait"] for record in records if first + 4 <= record["step"] <= last)
    unit, task = ("images/s", "MAE-Patch") if kind == "patch" else ("regions/s", "MAE-Region")
    task = f"{task} training from JPEG slides"
    report.add(task, f"hcmae, {workers} workers", rate, unit)
    report.add(f"{task}: waiting for data", "hcmae", 100 * wait, "%")
    if not math.isnan(busy):
        report.add(f"{task}: a kernel runs", "hcmae", busy, "% of the time")
    report.add(f"{task}: host", "hcmae", cores, "cores busy")
    report.add(f"{task}: peak memory", "hcmae", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    pixels = 256 * 256 if kind == "patch" else 4096 * 4096
    report.add(f"{task}: decoded", "hcmae", rate * pixels / 1e6, "MPix/s")
    name = "gpu_fed" if kind == "patch" else "gpu_region_fed"
    report.keys[f"{name}_images_s" if kind == "patch" else f"{name}_s"] = rate
    report.keys[f"{name}_wait"] = wait


# --- all of it ----------------------------------------------------------------------------------------------------


class _Graphs:
    """Fill the compiler's cache, one process per graph, all at once; what needs one waits for it alone."""

    def __init__(self, names: list[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu", "--compile"]
        self._began = time.monotonic()
        self._running = {name: subprocess.Popen([*command, name], stdout=subprocess.DEVNULL) for name in names}

    def wait(self, names: tuple[str, ...], seconds: float) -> None:
        """Until these are done, or so many seconds have passed."""
        end = time.monotonic() + seconds
        for name in names:
            process = self._running.pop(name, None)
            if process is None:
                continue
            try:
                status: Any = process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                status = "stopped"
            print(f"-- graph {name}: {time.monotonic() - self._began:.0f} s, status {status}", flush=True)

    def close(self) -> None:
        """Stop what nobody waits for any more."""
        for process in self._running.values():
            process.kill()


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "timm", "transformers", "triton", "simplejpeg"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def run(seconds: float, only: tuple[str, ...], write: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """All sections; the record for the page Benchmarks."""
    report = Report(seconds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A cache that the environment names is used and kept: measuring again then compiles nothing.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
        graphs = _Graphs([graph for graph, needs in _NEEDS.items() if set(needs) & set(only)])
        stores: list[Path] = []
        if {"fed_patch", "fed_region"} & set(only):
            report.section("slides", lambda: stores.extend(make_slides(folder)))
        work: dict[str, Callable[[], None]] = {
            "ceilings": lambda: ceilings(report),
            "patch": lambda: patch(report),
            "fed_patch": lambda: fed(report, stores, "patch", 8.0),
            "region": lambda: region(report),
            "fed_region": lambda: fed(report, stores, "region", 8.0),
            "embed": lambda: embed(report),
            "attention": lambda: attention(report),
            "survival": lambda: survival(report),
        }
        try:
            for section in SECTIONS:
                if section in only:
                    needed = tuple(graph for graph, needs in _NEEDS.items() if section in needs)
                    graphs.wait(needed, max(1.0, report.left - 20))
                    report.section(section, work[section])
                    # Whoever stops it has what was measured so far.
                    write(record(report))
        finally:
            graphs.close()
    return record(report)


def record(report: Report) -> dict[str, Any]:
    """What the page Benchmarks shows."""
    return {
        "title": torch.cuda.get_device_name(),
        **{name: round(value, 4) for name, value in report.keys.items()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "gpu": torch.cuda.get_device_name(),
            "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
            "cores": os.cpu_count(),
        },
        "versions": versions(),
        "gflop_per_image": round(patch_flop() / 1e9, 2),
        **({"failed": report.failed} if report.failed else {}),
        "table": report.table,
    }


_NEEDS = {
    "ours": ("patch", "fed_patch"),
    "transformers": ("patch",),
    "region": ("region", "fed_region"),
    "embed": ("embed",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=230.0, help="time for all of it")
    parser.add_argument("--out", type=Path, default=Path("book/results/gpu.json"))
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--compile", choices=tuple(COMPILED), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device here, nothing measured", file=sys.stderr)
        raise SystemExit(2)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    if arguments.compile:
        COMPILED[arguments.compile]()()
        torch.cuda.synchronize()
        return
    found = run(arguments.seconds, tuple(arguments.only.split(",")), lambda part: write_json(arguments.out, part))
    print(json.dumps({key: value for key, value in found.items() if key.startswith("gpu_")}))


if __name__ == "__main__":
    main()
