"""Read 4096 x 4096 regions of one slide with every reader at hand: speed per CPU-second, and peak memory.

Run: ``python -m benchmarks.slides [--side 8192] [--rounds 3] [--slide file.svs]
[--tiatoolbox-python tia/bin/python]``. Every reader runs in a process of
its own on the same file, which lies in the page cache. Speed is megapixels per second of CPU time (user + system), so a
busy machine hardly changes it. The limit is bare libjpeg-turbo: the same tiles decoded from memory into one buffer. The
last line is one JSON object, also written to book/results/slides.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.twin_slides import paint, write_twin

REGION = 4096
RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "slides.json"

# name -> (label, what it does)
READERS: dict[str, tuple[str, str]] = {
    "hcmae": ("hcmae_core", "tiles decoded directly"),
    "hcmae_views": ("hcmae_core + views", "the same, then 256 patches and the x16 thumbnail"),
    "hcmae_openslide": ("hcmae_core, OpenSlide path", "OpenSlide's C call into a reused stripe"),
    "openslide": ("openslide-python", "read_region, alpha dropped"),
    "openslide_convert": ("openslide-python, convert", "read_region(...).convert('RGB')"),
    "openslide_patches": ("openslide-python, patches", "256 reads of 256 x 256"),
    "tiffslide": ("tiffslide", "read_region(as_array=True)"),
    "pyvips": ("pyvips", "crop, one thread"),
    "tiatoolbox": ("tiatoolbox", "WSIReader.read_rect, in an environment of its own"),
    "limit": ("libjpeg-turbo alone", "the same tiles from memory, nothing else"),
}


# --- one reader, in its own process -----------------------------------------------------------------------------------


def _corners(width: int, height: int) -> Iterator[tuple[int, int]]:
    for y in range(0, height - REGION + 1, REGION):
        for x in range(0, width - REGION + 1, REGION):
            yield x, y


def _open_reader(name: str, path: str) -> tuple[tuple[int, int], Callable[[int, int], Any]]:
    if name.startswith("hcmae"):
        from hcmae.slides.reader import open_slide

        slide = open_slide(path, reader="openslide" if name == "hcmae_openslide" else "direct")
        if name == "hcmae_views":
            from hcmae.slides.regions import split_patches, thumbnail

            def views(x: int, y: int) -> Any:
                region = slide.read(x, y, (REGION, REGION))
                return split_patches(region, 256), thumbnail(region, 256)

            return slide.size, views
        return slide.size, lambda x, y: slide.read(x, y, (REGION, REGION))
    if name.startswith("openslide"):
        import openslide

        handle = openslide.OpenSlide(path)
        if name == "openslide":
            return handle.dimensions, lambda x, y: np.ascontiguousarray(
                np.asarray(handle.read_region((x, y), 0, (REGION, REGION)))[..., :3]
            )
        if name == "openslide_convert":
            return handle.dimensions, lambda x, y: np.asarray(
                handle.read_region((x, y), 0, (REGION, REGION)).convert("RGB")
            )

        def patches(x: int, y: int) -> Any:
            out = np.empty((256, 256, 256, 3), np.uint8)
            for i in range(256):
                corner = (x + i % 16 * 256, y + i // 16 * 256)
                out[i] = np.asarray(handle.read_region(corner, 0, (256, 256)))[..., :3]
            return out

        return handle.dimensions, patches
    if name == "tiffslide":
        import tiffslide

        tiff = tiffslide.TiffSlide(path)
        return tiff.dimensions, lambda x, y: tiff.read_region((x, y), 0, (REGION, REGION), as_array=True)
    if name == "pyvips":
        import pyvips

        image = pyvips.Image.new_from_file(path, page=0, access="random")
        return (image.width, image.height), lambda x, y: image.crop(x, y, REGION, REGION).numpy()
    if name == "tiatoolbox":
        from tiatoolbox.wsicore.wsireader import WSIReader

        wsi = WSIReader.open(path)
        size = (int(wsi.info.slide_dimensions[0]), int(wsi.info.slide_dimensions[1]))
        return size, lambda x, y: wsi.read_rect((x, y), (REGION, REGION), resolution=0, units="level")
    raise ValueError(f"unknown reader '{name}'")


def tile_streams(path: str, region: int = REGION) -> tuple[list[bytes], int, int]:
    """Complete JPEG streams of the tiles of all whole regions, and the size of a tile."""
    from hcmae.slides.tiff import read_pages
    from hcmae.slides.tiles import jpeg_stream, pyramid_pages, tile_table

    page = pyramid_pages(read_pages(path))[0]
    table, why = tile_table(page, page)
    if table is None:
        raise ValueError(f"{path}: {why}")
    columns = table.level.width // region * region // table.level.tile_width
    rows = table.level.height // region * region // table.level.tile_height
    streams = []
    with open(path, "rb") as file:
        for i in (row * table.columns + column for row in range(rows) for column in range(columns)):
            file.seek(int(table.offsets[i]))
            streams.append(jpeg_stream(file.read(int(table.counts[i])), table.tables, table.ycbcr))
    return streams, table.level.tile_width, table.level.tile_height


def _memory(field: str) -> float:
    """MiB of this process: VmRSS now or VmHWM at its peak (the peak starts at zero in a new program)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    import psutil

    info = psutil.Process().memory_info()
    return float(getattr(info, "peak_wset", info.rss)) / 2**20


def measure(name: str, path: str, rounds: int) -> dict[str, Any]:
    """Best MPix per CPU-second of ``rounds`` passes over all whole regions, wall speed, memory. Runs in the child."""
    best, wall = 0.0, 0.0
    if name == "limit":
        import simplejpeg

        streams, tw, th = tile_streams(path)
        buffer = np.empty((th, tw, 3), np.uint8)
        before = _memory("VmRSS")
        pixels = len(streams) * tw * th

        def once() -> None:
            for stream in streams:
                simplejpeg.decode_jpeg(stream, "RGB", False, False, buffer=buffer)
    else:
        (width, height), read = _open_reader(name, path)
        before = _memory("VmRSS")
        corners = list(_corners(width, height))
        pixels = len(corners) * REGION**2

        def once() -> None:
            for x, y in corners:
                read(x, y)

    for _ in range(rounds):
        cpu, clock = time.process_time(), time.perf_counter()
        once()
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
        best, wall = max(best, pixels / cpu / 1e6), max(wall, pixels / clock / 1e6)
    peak = _memory("VmHWM")
    return {"mpix_per_cpu_s": best, "mpix_per_s": wall, "peak_mib": peak, "growth_mib": peak - before}


def _child(name: str, path: Path, rounds: int, tiatoolbox: str | None = None) -> dict[str, Any] | str:
    if name == "tiatoolbox" and tiatoolbox is None:
        return "not measured: --tiatoolbox-python was not given"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "OPENCV_FOR_THREADS_NUM": "1"}
    command = [
        tiatoolbox if name == "tiatoolbox" and tiatoolbox else sys.executable,
        "-m",
        "benchmarks.slides",
        "--child",
        name,
        "--slide",
        str(path),
        "--rounds",
        str(rounds),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["died"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def _versions() -> dict[str, str]:
    names = (
        "numpy",
        "tifffile",
        "simplejpeg",
        "imagecodecs",
        "openslide-python",
        "openslide-bin",
        "tiffslide",
        "pyvips",
    )
    found = {"python": platform.python_version()}
    for name in (*names, "opencv-python-headless"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (s.split(":")[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")), model
        )
    return {"cpu": model, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def _tiatoolbox_version(program: str | None) -> str:
    if program is None:
        return "not measured"
    code = "import importlib.metadata as m; print(m.version('tiatoolbox'))"
    done = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not installed there"


def run(side: int, rounds: int, given: str | None, tiatoolbox: str | None = None) -> dict[str, Any]:
    """Measure every reader, print the table, return the result."""
    with tempfile.TemporaryDirectory() as folder:
        if given:
            slides = {Path(given).name: Path(given)}
        else:
            image = paint(side, side)
            slides = {
                "JPEG YCbCr 4:2:0, quality 90": write_twin(Path(folder) / "q90.svs", image),
                "JPEG RGB 4:4:4, quality 70": write_twin(Path(folder) / "rgb.svs", image, quality=70, colour="rgb"),
            }
            del image
        tables: dict[str, Any] = {}
        for title, path in slides.items():
            rows: dict[str, Any] = {}
            for name in READERS:
                rows[name] = _child(name, path, rounds, tiatoolbox)
            tables[title] = {"mib": path.stat().st_size / 2**20, "readers": rows}
            _print_table(title, path, side if not given else None, rows)
    first = next(iter(tables.values()))["readers"]
    mine, limit = first["hcmae"], first["limit"]
    rivals = [first[n] for n in ("openslide", "openslide_convert") if isinstance(first[n], dict)]
    notes = [
        "tiatoolbox is measured in an environment of its own (--tiatoolbox-python), with the versions it brings."
        if tiatoolbox
        else "tiatoolbox is not measured: it is not in the locked environment; make one for it "
        "(python -m venv tia; tia/bin/pip install tiatoolbox) and give --tiatoolbox-python tia/bin/python.",
        "openslide_ratio compares with the faster of the two whole-region ways of openslide-python.",
    ]
    result = {
        "openslide_ratio": round(mine["mpix_per_cpu_s"] / max(r["mpix_per_cpu_s"] for r in rivals), 2),
        "share_of_libjpeg_turbo": round(mine["mpix_per_cpu_s"] / limit["mpix_per_cpu_s"], 3),
        "reader_peak_mib": round(mine["peak_mib"], 1),
        "reader_growth_mib": round(mine["growth_mib"], 1),
        "mpix_per_cpu_s": round(mine["mpix_per_cpu_s"], 1),
        "region": REGION,
        "tables": tables,
        "notes": notes,
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "versions": _versions() | {"tiatoolbox": _tiatoolbox_version(tiatoolbox)},
    }
    for note in notes:
        print(f"note: {note}")
    return result


def _print_table(title: str, path: Path, side: int | None, rows: dict[str, Any]) -> None:
    size = f"{side} x {side} pixels, " if side else ""
    print(f"\n{title}: {size}{path.stat().st_size / 2**20:.1f} MiB; regions of {REGION} x {REGION}")
    print(f"{'reader':28} {'MPix/CPU-s':>10} {'MPix/s':>8} {'peak MiB':>9} {'growth':>7}  what it does")
    for name, (label, what) in READERS.items():
        row = rows[name]
        if isinstance(row, str):
            print(f"{label:28} {'-':>10} {'-':>8} {'-':>9} {'-':>7}  failed: {row[:80]}")
        else:
            print(
                f"{label:28} {row['mpix_per_cpu_s']:10.1f} {row['mpix_per_s']:8.1f} {row['peak_mib']:9.1f} "
                f"{row['growth_mib']:7.1f}  {what}"
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare readers of whole-slide images")
    parser.add_argument("--side", type=int, default=8192, help="side of the painted slide in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slide", help="a slide of your own instead of painted ones")
    parser.add_argument("--tiatoolbox-python", help="Python of an environment that has tiatoolbox")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--no-write", action="store_true", help="do not write book/results/slides.json")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.slide, options.rounds)))
        return
    result = run(options.side, options.rounds, options.slide, options.tiatoolbox_python)
    if not options.no_write:
        from hcmae.files import write_json

        write_json(RESULTS, result)
    print(json.dumps({k: v for k, v in result.items() if k not in ("tables", "notes")}))


if __name__ == "__main__":
    main()
