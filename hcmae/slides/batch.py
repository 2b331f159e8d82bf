"""Cut slides into regions: one slide safely, many in parallel, and a reason for everything that was left out.

A damaged tile costs its region, a damaged slide costs that slide, a crash costs the regions in flight: each finished
region goes into a journal beside the store, and a second run continues from it. The store itself is written once, at
the end, from the journal, so it has the same bytes however often the work was interrupted.

A batch is done when each of its slides is: ``pending`` says which are not, ``process_slides`` cuts those, and
``merge_outcomes`` puts what became of them in the table of all.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from hcmae.config import Geometry, SlideSettings
from hcmae.content import Contents, slide_bytes
from hcmae.keys import Key
from hcmae.processes import BrokenProcessPool, WorkerPool, usable_cores, worker_pool
from hcmae.slides.errors import SlideError
from hcmae.slides.mpp import is_assumed, load_mpp_table
from hcmae.slides.process import (
    REASONS,
    UNREAD,
    SlideOutcome,
    mask_content,
    mask_edited,
    mask_path,
    process_slide,
    slide_key,
    tissue_of,
)
from hcmae.slides.store import SlideStore, store_key
from hcmae.slides.tiff import TiffError, read_pages

__all__ = [
    "REASONS",
    "SlideOutcome",
    "merge_outcomes",
    "notes",
    "pending",
    "process_slide",
    "process_slides",
    "refused_by_strict",
    "summary",
    "tissue_of",
    "why_pending",
]
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
    contents: Contents | None = None,
) -> pd.DataFrame:
    """Cut many slides; jobs are (slide path, store path[, slide id]). One row per job, in the order of the jobs.

    ``workers`` slides at a time, each in a process of its own, so that even a crash inside a decoder costs one slide;
    ``threads`` decode regions inside a slide (default: cores / workers). The slides that take longest go first: the
    bar's unit is a byte of JPEG, and a byte of JPEG 2000 counts for what it costs. ``strict`` raises SlideError at the
    first slide that fails, has no region or does not say its resolution; otherwise the columns status, reason, detail
    and mpp_source say it, ``summary`` makes a table of them, and one warning names the slides whose resolution is
    assumed. ``contents``: the memory of hashes, which the workers add to.
    """
    plan = _jobs(jobs)
    threads = threads or max(1, usable_cores() // max(1, workers))
    sizes = [decoding_cost(path) for path, _, _ in plan]
    order = sorted(range(len(plan)), key=lambda i: (-sizes[i], i))
    arguments = {"workers": threads, "reader": reader, "geojson": geojson, "strict": strict}
    results: dict[int, SlideOutcome] = {}
    start = time.perf_counter()
    bar = tqdm(
        total=sum(sizes), unit="B", unit_scale=True, unit_divisor=1024, desc="slides", disable=not progress, leave=True
    )
    mpix, failed = 0.0, 0
    try:
        for index, outcome in _run_all(plan, order, geometry, settings, arguments, workers, contents):
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
        if contents is not None:
            contents.reload()
    frame = pd.DataFrame([asdict(results[i]) for i in range(len(plan))], columns=list(SlideOutcome.__annotations__))
    frame = frame.rename(columns={"slide_id": "slide"})
    frame["store"] = [str(store) for _, store, _ in plan]
    _warn_of_assumed(frame)
    return frame


def _warn_of_assumed(outcomes: pd.DataFrame) -> None:
    assumed = outcomes.loc[[is_assumed(source) for source in outcomes["mpp_source"]]]
    if len(assumed):
        named = [f"{row.slide} ({row.mpp:g} um/px {row.mpp_source})" for row in assumed.head(3).itertuples()]
        more = f" and {len(assumed) - 3} more" if len(assumed) > 3 else ""
        warnings.warn(
            f"{len(assumed)} of {len(outcomes)} slides do not say their resolution: {', '.join(named)}{more}. Give it "
            "in mpp_table; the column mpp_source lists them, strict=True refuses them.",
            stacklevel=3,
        )


def refused_by_strict(outcomes: pd.DataFrame) -> SlideError | None:
    """What a strict run says of slides that were cut by one that is not: the error of the first that it refuses."""
    for row in outcomes.to_dict("records"):
        if row["status"] in ("failed", "empty"):
            return SlideError(str(row["reason"]), str(row["slide"]), str(row["detail"]))
        if is_assumed(row.get("mpp_source")):
            detail = f"{row['mpp']:g} um/px {row['mpp_source']}; give its resolution in mpp_table"
            return SlideError("assumed_resolution", str(row["slide"]), detail)
    return None


def _jobs(jobs: Iterable[Sequence[Any]]) -> list[Job]:
    return [(item[0], item[1], str(item[2]) if len(item) > 2 else Path(item[0]).stem) for item in jobs]


def pending(
    jobs: Iterable[Sequence[Any]],
    outcomes: pd.DataFrame | None,
    geometry: Geometry,
    settings: SlideSettings,
    contents: Contents | None = None,
    *,
    reader: str = "auto",
) -> list[Job]:
    """The jobs that still need work, given what became of them before (``outcomes``; None: nothing has been done).

    A slide needs work where it has no outcome, one that is not final, a store that is missing or made under another
    key, or where its key is another than then: other settings, another entry of the table of resolutions, an edited
    mask, other bytes, other code. A slide that cannot be read now, but was cut before, is taken to be what it was.
    No slide is opened; with a memory of ``contents`` none is read. Raises ValueError for a table of resolutions that
    cannot be used.
    """
    return [job for job, why in _verdicts(jobs, outcomes, geometry, settings, contents, reader) if why]


def why_pending(
    jobs: Iterable[Sequence[Any]],
    outcomes: pd.DataFrame | None,
    geometry: Geometry,
    settings: SlideSettings,
    contents: Contents | None = None,
    *,
    reader: str = "auto",
) -> dict[str, list[str]]:
    """Slide -> why it needs work, for those that :func:`pending` names; which setting, input or code has changed."""
    verdicts = _verdicts(jobs, outcomes, geometry, settings, contents, reader)
    return {job[2]: why for job, why in verdicts if why}


def _verdicts(
    jobs: Iterable[Sequence[Any]],
    outcomes: pd.DataFrame | None,
    geometry: Geometry,
    settings: SlideSettings,
    contents: Contents | None,
    reader: str,
) -> Iterator[tuple[Job, list[str]]]:
    """Each job with the reasons why it needs work; none where it is done."""
    known = contents if contents is not None else Contents()
    before = _by_slide(outcomes)
    table = load_mpp_table(settings.mpp_table)
    for job in _jobs(jobs):
        path, store_path, name = job
        row = before.get(name)
        if row is None:
            yield job, ["not cut yet"]
            continue
        if not row["final"]:
            yield job, [REASONS.get(row["reason"], "not finished")]
            continue
        mask = mask_path(store_path)
        # Whether a mask is edited is known by its content, so that a thousand of them need not be parsed.
        edited = row["edited"] if mask_content(mask, known) == row["mask"] else mask_edited(mask)
        key_now = partial(
            slide_key, path, geometry, settings, slide_id=name, reader=reader, mask=mask if edited else None,
            mpp_table=table, contents=known,
        )  # fmt: skip
        key = key_now()
        if key.inputs["slide"] == UNREAD:
            key = key_now(content=row["content"])
        kept = _store_key(store_path) if row["status"] in ("ok", "skipped") else row["key"]
        if kept is None:
            yield job, ["the store is missing"]
        elif key.digest != kept:
            yield job, _changes(key, store_path, kept)
        elif key.digest != row["key"]:
            yield job, ["cut by somebody else since"]
        else:
            yield job, []


def _changes(key: Key, store_path: Any, kept: str) -> list[str]:
    try:
        parts = SlideStore(store_path).key_parts
    except (FileNotFoundError, ValueError):
        parts = {}
    # A slide without regions has no store that could tell.
    return key.changes(parts) if parts.get("key") == kept else ["settings, slide, mask or code have changed"]


def merge_outcomes(before: pd.DataFrame | None, after: pd.DataFrame, jobs: Iterable[Sequence[Any]]) -> pd.DataFrame:
    """Outcomes of all jobs, in their order: from ``after`` where a slide was worked on, else from ``before``.

    Slides that are no job any more are left out, and the stores are where the jobs say. Raises KeyError for a job
    without outcome.
    """
    rows = {**_by_slide(before), **_by_slide(after)}
    plan = _jobs(jobs)
    missing = [name for _, _, name in plan if name not in rows]
    if missing:
        raise KeyError(f"slide {missing[0]} has no outcome: give process_slides every job that pending() names")
    merged = pd.DataFrame([rows[name] for _, _, name in plan], columns=list(after.columns))
    merged["store"] = [str(store) for _, store, _ in plan]
    return merged


def _by_slide(outcomes: pd.DataFrame | None) -> dict[str, dict[Any, Any]]:
    """Rows by slide. Tables written before there was a key are no answer to what is done."""
    if outcomes is None or not {"final", "key", "content", "mask", "edited"} <= set(outcomes.columns):
        return {}
    return {str(row["slide"]): row for row in outcomes.to_dict("records")}


def _store_key(path: Any) -> str | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return _kept_key(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=1 << 16)
def _kept_key(path: str, *_: int) -> str | None:
    """Key that a store carries; asked again only where the file has changed."""
    return store_key(path)


# What a byte costs beside one of JPEG: decoding JPEG 2000 takes about ten times as long for a pixel.
_JPEG2000_COST = 10
_JPEG2000_TAGS = {33003, 33005, 34712}


def decoding_cost(path: Any) -> int:
    """Expected work on a slide, in bytes of JPEG; 0 where there is none."""
    try:
        size = slide_bytes(path)
        packed = read_pages(path)[0].get("compression", 1)
    except TiffError:
        return size
    except OSError:
        return 0
    return size * (_JPEG2000_COST if packed in _JPEG2000_TAGS else 1)


def summary(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What became of a batch: one row per status and reason with its meaning, slides, regions, megapixels, seconds.

    ``assumed_mpp``: slides whose resolution nobody says; ``damaged_tiles``: of their overviews.
    """
    # Tables written before there were these columns have none to count.
    known = outcomes.reindex(columns=[*outcomes.columns, *({"mpp_source", "damaged_tiles"} - set(outcomes.columns))])
    table = known.assign(
        reason=known["reason"].fillna(""),
        assumed_mpp=[is_assumed(source) for source in known["mpp_source"]],
        damaged_tiles=known["damaged_tiles"].fillna(0).astype(int),
    )
    rows = table.groupby(["status", "reason"], sort=True).agg(
        slides=("slide", "size"),
        regions=("regions", "sum"),
        bad_regions=("bad_regions", "sum"),
        damaged_tiles=("damaged_tiles", "sum"),
        assumed_mpp=("assumed_mpp", "sum"),
        mpix=("mpix", "sum"),
        seconds=("seconds", "sum"),
    )
    rows = rows.reset_index()
    rows.insert(2, "meaning", [REASONS.get(reason, "regions were cut") for reason in rows["reason"]])
    return rows.round({"mpix": 1, "seconds": 2})


def notes(outcomes: pd.DataFrame) -> str:
    """One line on damage and assumed resolutions of slides that were cut; '' where there is neither."""
    if outcomes.empty:
        return ""
    table = outcomes.reindex(columns=["bad_regions", "damaged_tiles", "mpp_source"])
    bad, tiles = (table[name].fillna(0).astype(int) for name in ("bad_regions", "damaged_tiles"))
    hurt, assumed = int(((bad > 0) | (tiles > 0)).sum()), sum(map(is_assumed, table["mpp_source"]))
    said = []
    if hurt:
        said.append(f"{hurt} slide(s) damaged, {int(bad.sum())} region(s) left out")
    if assumed:
        said.append(f"{assumed} slide(s) with an assumed resolution")
    return "; ".join(said)


# The memory of hashes in a worker: thousands of lines, sent once and not with every slide.
_worker_contents: Contents | None = None


def _work(job: Job, geometry: Geometry, settings: SlideSettings, arguments: dict[str, Any]) -> SlideOutcome:
    return process_slide(
        job[0], job[1], geometry, settings, slide_id=job[2], **{"contents": _worker_contents, **arguments}
    )


def _quiet_worker(contents: Contents | None) -> None:
    import cv2

    global _worker_contents
    _worker_contents = contents
    cv2.setNumThreads(1)
    _quiet_about_resolution()


def _quiet_about_resolution() -> None:
    # It is in the outcome table, and one warning names them all: a line per slide would drown the bar.
    warnings.filterwarnings("ignore", message=".*does not say its resolution.*")


def _run_all(
    plan: list[Job],
    order: list[int],
    geometry: Geometry,
    settings: SlideSettings,
    arguments: dict[str, Any],
    workers: int,
    contents: Contents | None,
) -> Iterator[tuple[int, SlideOutcome]]:
    if workers <= 1 or len(plan) <= 1:
        for index in order:
            with warnings.catch_warnings():
                _quiet_about_resolution()
                outcome = _work(plan[index], geometry, settings, {**arguments, "contents": contents})
            yield index, outcome
        return
    queue = deque(order)
    suspects: list[int] = []
    while queue:
        running: dict[Future[SlideOutcome], int] = {}
        with _pool(min(workers, len(queue)), contents) as pool:
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
        with _pool(1, contents) as pool:
            try:
                yield index, pool.submit(_work, plan[index], geometry, settings, arguments).result()
            except BrokenProcessPool:
                detail = f"{plan[index][0]}: the process that read it died (damaged file or out of memory)"
                yield index, SlideOutcome(plan[index][2], "failed", "crashed", 0, 0, 0.0, 0.0, detail, final=False)


def _pool(workers: int, contents: Contents | None) -> WorkerPool:
    return worker_pool(workers, _quiet_worker, (contents,))
