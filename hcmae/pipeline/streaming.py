"""Fetch a slide, cut it, keep what later steps need, delete it: cohorts that are larger than the disk.

Curation takes slides that are streamed for present: a note lies in the folder of each (``cohort.lock.STREAMED``). Only
slides with such a note are deleted, and only when their outcome, regions and vectors are on disk; what somebody fetched
by hand stays. After a kill at any moment the same call goes on: partial files are continued, what is cut is not fetched
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from hcmae.cohort.curate import drawn_slides
from hcmae.cohort.lock import STREAMED, read_lock
from hcmae.config import ConfigError
from hcmae.files import write_json
from hcmae.gdc.client import GDCClient, GDCError
from hcmae.gdc.fetch import only_one
from hcmae.gdc.hits import FetchError
from hcmae.gdc.transfer import RemoteFile, download
from hcmae.pipeline import cutting, road, work
from hcmae.pipeline.place import REGION_VARIANTS, Place

Keep = Literal["vectors", "stores"]


@dataclass(frozen=True)
class _Slide:
    """A slide of the cohort on its way: its file on the server, its job for the cutter."""

    file: RemoteFile
    job: tuple[str, Path, str]

    @property
    def ours(self) -> bool:
        """Whether it is fetched here, and was not by hand."""
        return (self.file.target.parent / STREAMED).is_file()

    @property
    def held(self) -> int:
        """Bytes of it that lie on disk, whole or in part, because of us."""
        files = (self.file.target, self.file.part) if self.ours else ()
        return sum(path.stat().st_size for path in files if path.is_file())

    @property
    def size(self) -> int:
        """Bytes that it will take of the budget."""
        return self.file.size if self.ours else 0


def stream(
    run: Place,
    client: GDCClient,
    *,
    disk: int,
    keep: Keep = "vectors",
    nuclei: bool = True,
    workers: int = 2,
    in_flight: int = 4,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Cut every slide of a cohort of source ``gdc`` without ever holding more than ``disk`` bytes of slides.

    Args:
        keep: "vectors": those of every network whose weights lie in the run's pre-training folder, beside places and
            thumbnails of the regions; "stores": places and thumbnails alone (nothing that needs pixels can follow).
        nuclei: measure nuclei as well, for GPDBN and CAMR.
        workers: slides that are cut at a time; in_flight: slides that are fetched at a time.

    Returns the outcome of every slide, as ``Run.make_slides`` does. A slide that the server refuses stays to be done
    and is said. Raises FetchError for a slide larger than ``disk`` or a second fetch into the same folder, ConfigError
    for another source or, with "vectors", where there are no weights.
    """
    if run.source != "gdc":
        raise ConfigError(f"source is '{run.source}': only slides of source 'gdc' can be fetched one after the other")
    steps = [*(embed_steps(run) if keep == "vectors" else ()), *(("nuclei",) if nuclei else ())]
    with only_one(run.root):
        lock = read_lock(run.root / "files.tsv")
        promise(run, lock)
        road.do(run, "curate", say=say)
        slides = _slides(run, lock)
        for slide in slides:
            if slide.file.size > disk:
                raise FetchError(
                    f"slide {slide.file.name} has {slide.file.size / 1e9:.2f} GB, the budget is {disk / 1e9:.2f} GB: "
                    "give at least as much"
                )
        waiting = _unfinished(run, slides, steps)
        for slide in slides:
            if slide not in waiting:
                _delete(slide)
        say(f"{run.cancer}: {len(slides) - len(waiting)} of {len(slides)} slides are done")
        _work_off(run, client, waiting, steps, disk, workers, in_flight, say)
    # Notes the step as done where every slide is.
    road.do(run, "slides", say=say, workers=workers, progress=False)
    return run.slide_outcomes()


def embed_steps(run: Place) -> list[str]:
    """The steps that write vectors with weights that lie there. Raises ConfigError where there are none."""
    steps = []
    if run.patch_weights.exists():
        steps.append("patch_vectors")
    found = {variant: run.region_weights(variant).exists() for variant in REGION_VARIANTS}
    steps += ["region_vectors_reg"] if found["reg"] else []
    steps += ["region_vectors"] if found["patreg"] and "patch_vectors" in steps else []
    if all(run.dino_weights(stage).exists() for stage in ("patch", "region")):
        steps += ["hipt_patch_vectors", "region_vectors_hipt"]
    if not steps:
        raise ConfigError(
            f"no weights in {run.pretrain_dir}: nothing could be kept of a slide but places and thumbnails of its "
            "regions. Train on another cohort and name its folder (--weights-from), or ask for that (--keep stores)"
        )
    return steps


def promise(run: Place, lock: pd.DataFrame) -> None:
    """Leave a note in the folder of every slide that curation may draw and that is not there."""
    drawn = drawn_slides(lock, run.manifest.inclusion, run.seed)
    rows = lock[(lock["modality"] == "slides") & lock["id"].isin(drawn)]
    for file_id, name, size, md5 in rows[["id", "filename", "size", "md5"]].itertuples(index=False):
        folder = run.root / "slides" / file_id
        if not (folder / name).exists() and not (folder / STREAMED).exists():
            write_json(folder / STREAMED, {"filename": name, "size": int(size), "md5": md5})


def _slides(run: Place, lock: pd.DataFrame) -> list[_Slide]:
    rows = lock[lock["modality"] == "slides"].set_index("id")
    found = []
    for job in cutting.slide_jobs(run):
        target = Path(job[0])
        row = rows.loc[target.parent.name]
        file = RemoteFile(target.parent.name, str(row["md5"]), int(str(row["size"])), target, str(row["filename"]))
        found.append(_Slide(file, job))
    return found


def _unfinished(run: Place, slides: Sequence[_Slide], steps: Sequence[str]) -> list[_Slide]:
    """Slides that need their pixels: not cut yet, or without vectors that are wanted. What has begun comes first."""
    from hcmae.slides.batch import pending

    cut = (run.profile.geometry, run.profile.slides)
    names = {name for _, _, name in pending([s.job for s in slides], run.slide_outcomes(), *cut, contents=run.contents)}
    held = set(run.stores())
    lacking = _lacking(run, [s.job[1] for s in slides if s.job[1] in held], steps)
    waiting = [s for s in slides if s.job[2] in names or s.job[1] in lacking]
    return sorted(waiting, key=lambda s: -s.held)


def _lacking(run: Place, stores: Sequence[Path], steps: Sequence[str]) -> set[Path]:
    """Stores that lack something that a step writes."""
    from hcmae.slides.store import SlideStore

    lacking: set[Path] = set()
    if not stores:
        return lacking
    for name in steps:
        step = road.ROAD[name]
        key = step.key(run, step.options)
        lacking |= {path for path in stores if not work.has_written(name, SlideStore(path), key)}
    return lacking


def _work_off(
    run: Place,
    client: GDCClient,
    waiting: Sequence[_Slide],
    steps: Sequence[str],
    disk: int,
    workers: int,
    in_flight: int,
    say: Callable[[str], None],
) -> None:
    """Fetch ahead within the budget, cut what has come, keep, delete."""
    todo, total, done = list(waiting), len(waiting), 0
    lost: list[_Slide] = []
    # What an earlier call left lying counts from the start, a slide that is being fetched with its full size.
    held = sum(slide.held for slide in todo)
    running: dict[Future[None], _Slide] = {}
    client.stop.clear()
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="stream")

    def fetch(slide: _Slide) -> None:
        if not slide.file.present():
            download(client, slide.file)

    try:
        while todo or running:
            while todo and len(running) < in_flight:
                more = todo[0].size - todo[0].held
                if held + more > disk and running:
                    break
                held -= _make_room(held + more - disk, [*lost, *todo[1:]])
                slide = todo.pop(0)
                held += more
                running[pool.submit(fetch, slide)] = slide
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            come = []
            for future in ready:
                slide = running.pop(future)
                try:
                    future.result()
                    come.append(slide)
                except GDCError as error:
                    lost.append(slide)
                    held -= slide.size - slide.held
                    say(f"{slide.file.name}: {error}")
            _keep(run, come, steps, workers)
            for slide in come:
                held -= slide.size
                _delete(slide)
            done += len(come)
            say(
                f"{run.cancer}: {done} of {total} slides, {held / 1e9:.2f} GB on disk, {len(lost)} could not be fetched"
            )
    except BaseException:
        client.stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_room(wanted: int, lying: Sequence[_Slide]) -> int:
    """Delete partial files that an earlier call with a larger budget left, the last ones first; bytes that are free."""
    freed = 0
    for slide in reversed(lying):
        if freed >= wanted:
            break
        freed += slide.held
        _delete(slide)
    return freed


def _keep(run: Place, come: Sequence[_Slide], steps: Sequence[str], workers: int) -> None:
    """Cut slides that are there, write their outcomes, then what the steps write into their stores."""
    if not come:
        return
    for slide in come:
        # Checked against the server's md5 on its way here: nobody reads it once more for its hash.
        run.contents.remember(slide.file.target, f"md5:{slide.file.md5}")
    jobs = [slide.job for slide in come]
    cutting.cut(run, jobs, run.slide_outcomes(), workers=workers)
    held = set(run.stores())
    stores = [store for _, store, _ in jobs if store in held]
    for name in steps:
        if stores:
            step = road.ROAD[name]
            chosen: dict[str, Any] = {**step.options, "progress": False, "stores": stores}
            if "workers" in step.options:
                chosen["workers"] = workers
            assert step.work is not None
            step.work(run, step.key(run, chosen), chosen)


def _delete(slide: _Slide) -> None:
    if slide.ours:
        slide.file.target.unlink(missing_ok=True)
        slide.file.part.unlink(missing_ok=True)
