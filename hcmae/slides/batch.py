"""Cut slides into regions: one slide safely, many in parallel, and a reason for everything that was left out.

A damaged tile costs its region, a damaged slide costs that slide, a crash costs the regions in flight: each finished
region goes into a journal beside the store, and a second run continues from it. The store itself is written once, at
the end, from the journal, so it has the same bytes however often the work was interrupted.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from hcmae.config import Geometry, SlideSettings
from hcmae.processes import BrokenProcessPool, WorkerPool, worker_pool
from hcmae.slides.process import REASONS, SlideOutcome, process_slide, tissue_of
from hcmae.slides.reader import SlideError
from hcmae.slides.tiff import TiffError, read_pages

__all__ = ["REASONS", "SlideOutcome", "process_slide", "process_slides", "summary", "tissue_of"]
# --- the journal ----------------------------------------------------------------------------------------------------
# --- many slides ----------------------------------------------------------------------------------------------------
Job = tuple[Any, Any, str]


def process_slides(
    jobs: Iterable[Sequence[Any]],
    geometry: Geometry,
    settings: SlideSettings,
    *,
    workers: int = 2,
    threads: int | None = None,
    strict: bool = False,
    progress: bool = True,
    reader: str = "auto",
    geojson: bool = True,
) -> pd.DataFrame:
    """Cut many slides; jobs are (slide path, store path[, slide id]). One row per job, in the order of the jobs.

    ``workers`` slides at a time, each in a process of its own, so that even a crash inside a decoder costs one slide;
    ``threads`` decode regions inside a slide (default: cores / workers). The slides that take longest go first: the
    bar's unit is a byte of JPEG, and a byte of JPEG 2000 counts for what it costs. ``strict`` raises SlideError at the
    first slide that fails or has no region; otherwise the columns status, reason and detail say it, and ``summary``
    makes a table of them.
    """
    plan: list[Job] = [(item[0], item[1], str(item[2]) if len(item) > 2 else Path(item[0]).stem) for item in jobs]
    threads = threads or max(1, (os.cpu_count() or 1) // max(1, workers))
    sizes = [decoding_cost(path) for path, _, _ in plan]
    order = sorted(range(len(plan)), key=lambda i: (-sizes[i], i))
    arguments = {"workers": threads, "reader": reader, "geojson": geojson}
    results: dict[int, SlideOutcome] = {}
    start = time.perf_counter()
    bar = tqdm(
        total=sum(sizes), unit="B", unit_scale=True, unit_divisor=1024, desc="slides", disable=not progress, leave=True
    )
    mpix, failed = 0.0, 0
    try:
        for index, outcome in _run_all(plan, order, geometry, settings, arguments, workers):
            results[index] = outcome
            mpix += outcome.mpix
            failed += outcome.status in ("failed", "empty")
            speed = mpix / max(time.perf_counter() - start, 1e-9)
            bar.set_postfix_str(
                f"{len(results)}/{len(plan)} slides, {speed:.0f} MPix/s, {failed} without regions", False
            )
            bar.update(sizes[index])
            if strict and outcome.status in ("failed", "empty"):
                # What a reader said begins with the slide's path already, and so does SlideError.
                detail = (outcome.detail or REASONS.get(outcome.reason, "")).removeprefix(f"{plan[index][0]}: ")
                raise SlideError(outcome.reason, plan[index][0], detail)
    finally:
        bar.close()
    frame = pd.DataFrame([asdict(results[i]) for i in range(len(plan))], columns=list(SlideOutcome.__annotations__))
    frame = frame.rename(columns={"slide_id": "slide"})
    frame["store"] = [str(store) for _, store, _ in plan]
    return frame


# What a byte costs beside one of JPEG: decoding JPEG 2000 takes about ten times as long for a pixel.
_JPEG2000_COST = 10
_JPEG2000_TAGS = {33003, 33005, 34712}


def decoding_cost(path: Any) -> int:
    """Expected work on a slide, in bytes of JPEG; 0 where there is none."""
    try:
        size = os.stat(path).st_size
        packed = read_pages(path)[0].get("compression", 1)
    except TiffError:
        return size
    except OSError:
        return 0
    return size * (_JPEG2000_COST if packed in _JPEG2000_TAGS else 1)


def summary(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What became of a batch: one row per status and reason with its meaning, slides, regions, megapixels, seconds."""
    table = outcomes.assign(reason=outcomes["reason"].fillna(""))
    rows = table.groupby(["status", "reason"], sort=True).agg(
        slides=("slide", "size"),
        regions=("regions", "sum"),
        bad_regions=("bad_regions", "sum"),
        mpix=("mpix", "sum"),
        seconds=("seconds", "sum"),
    )
    rows = rows.reset_index()
    rows.insert(2, "meaning", [REASONS.get(reason, "regions were cut") for reason in rows["reason"]])
    return rows.round({"mpix": 1, "seconds": 2})


def _work(job: Job, geometry: Geometry, settings: SlideSettings, arguments: dict[str, Any]) -> SlideOutcome:
    return process_slide(job[0], job[1], geometry, settings, slide_id=job[2], **arguments)


def _quiet_worker() -> None:
    import warnings

    import cv2

    cv2.setNumThreads(1)
    # A missing resolution is in the outcome table (mpp_source in the store); a line per slide would drown the bar.
    warnings.filterwarnings("ignore", message=".*does not say its resolution.*")


def _run_all(
    plan: list[Job],
    order: list[int],
    geometry: Geometry,
    settings: SlideSettings,
    arguments: dict[str, Any],
    workers: int,
) -> Iterator[tuple[int, SlideOutcome]]:
    if workers <= 1 or len(plan) <= 1:
        for index in order:
            yield index, _work(plan[index], geometry, settings, arguments)
        return
    queue = deque(order)
    suspects: list[int] = []
    while queue:
        running: dict[Future[SlideOutcome], int] = {}
        with _pool(min(workers, len(queue))) as pool:
            try:
                while queue or running:
                    while queue and len(running) < 2 * workers:
                        index = queue.popleft()
                        running[pool.submit(_work, plan[index], geometry, settings, arguments)] = index
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        outcome = future.result()
                        yield running.pop(future), outcome
            except BrokenProcessPool:
                suspects += running.values()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    # A worker died and took the slides in flight with it: try each alone; the one that kills again is the culprit.
    for index in suspects:
        with _pool(1) as pool:
            try:
                yield index, pool.submit(_work, plan[index], geometry, settings, arguments).result()
            except BrokenProcessPool:
                detail = f"{plan[index][0]}: the process that read it died (damaged file or out of memory)"
                yield index, SlideOutcome(plan[index][2], "failed", "crashed", 0, 0, 0.0, 0.0, detail)


def _pool(workers: int) -> WorkerPool:
    return worker_pool(workers, _quiet_worker)
