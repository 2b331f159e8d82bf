"""The step that cuts slides: which ones wait, what became of them, and what its key holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.config import ConfigError, Profile
from hcmae.content import content_id
from hcmae.keys import Key, Reads
from hcmae.pipeline.place import Place
from hcmae.pipeline.work import Options, write_parquet


def slide_jobs(run: Place) -> list[tuple[str, Path, str]]:
    """(slide path, store path, slide id) of every slide of the cohort."""
    table = run.cohort().table
    named = zip(table["slide_path"].astype(str), table["slide"].astype(str), strict=True)
    return [(path, run.store_dir / f"{slide}.h5", slide) for path, slide in named]


def cut_slides(run: Place, key: Key, options: Options) -> None:
    from hcmae.slides.batch import pending

    jobs, before = slide_jobs(run), run.slide_outcomes()
    if options["again"] and len(before):
        # Asked for by hand: what has regions stays, all others are looked at once more.
        before = before[before["status"].isin(["ok", "skipped"]) & (before["regions"] > 0)]
    if options["only"] is not None:
        jobs = _named(jobs, options["only"])
    waiting = pending(jobs, before, run.profile.geometry, run.profile.slides, contents=run.contents)
    cut(run, waiting, before, workers=options["workers"], strict=options["strict"], progress=options["progress"])


def _named(jobs: Sequence[tuple[str, Path, str]], names: Sequence[str]) -> list[tuple[str, Path, str]]:
    """The jobs of slides that are named by their id or by the name of their file."""
    known = {name: job for job in jobs for name in (job[2], Path(job[0]).name)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"slide {unknown[0]} is none of the cohort's {len(jobs)}: give its id or the name of its file"
        )
    return list({known[name][2]: known[name] for name in names}.values())


def cut(
    run: Place,
    jobs: Sequence[tuple[Any, Any, str]],
    before: pd.DataFrame,
    *,
    workers: int,
    strict: bool = False,
    progress: bool = False,
) -> None:
    """Cut some slides of the cohort, and put what became of them into the table of all that were looked at."""
    from hcmae.slides.batch import merge_outcomes, process_slides
    from hcmae.slides.locations import write_locations

    outcomes = process_slides(
        jobs,
        run.profile.geometry,
        run.profile.slides,
        workers=workers,
        strict=strict,
        progress=progress,
        contents=run.contents,
    )
    known = {*outcomes["slide"], *(before["slide"] if len(before) else ())}
    merged = merge_outcomes(before, outcomes, [job for job in slide_jobs(run) if job[2] in known])
    write_parquet(run.dir / "slides.parquet", merged)
    write_locations(run.store_dir, run.root, run.cohort().table)


def unfinished_slides(run: Place, key: Key, options: Options) -> Sequence[str]:
    from hcmae.slides.batch import why_pending

    waiting = why_pending(
        slide_jobs(run), run.slide_outcomes(), run.profile.geometry, run.profile.slides, contents=run.contents
    )
    return [f"slide {name} is not done ({', '.join(why)})" for name, why in waiting.items()]


def slide_notes(run: Place) -> str:
    """What a reader of the status should know of slides that were cut: damage and resolutions that nobody says."""
    from hcmae.slides.batch import notes

    return notes(run.slide_outcomes())


def slide_list(run: Place, options: Options) -> Mapping[str, str]:
    table = run.cohort().table
    if "slide" not in table.columns or table["slide"].isna().all():
        raise FileNotFoundError(f"the cohort of {run.cancer} was curated without slides: curate with slides=True")
    return {"slides of the cohort": content_id(sorted(table["slide"].astype(str)))}


def slide_reads(profile: Profile) -> Reads:
    from hcmae.slides.process import CODE

    return Reads(("geometry", "slides"), CODE)
