"""What the pre-training of HC-MAE and of HIPT has had in a run: images seen and core-seconds, from its records."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from hcmae.files import read_json
from hcmae.pipeline.place import Place
from hcmae.pipeline.work import starts_warm
from hcmae.pretraining.dino import budget as dino_budget

# Step -> (whose, what an image is, its log below the folder of the pool's pre-training).
TRAINED = {
    "mae_patch": ("HC-MAE", "patches", "patch/mae_patch.jsonl"),
    "mae_region_reg": ("HC-MAE", "regions", "region_reg/mae_region_reg.jsonl"),
    "mae_region_patreg": ("HC-MAE", "regions", "region_patreg/mae_region_patreg.jsonl"),
    "dino_patch": ("HIPT", "patches", "dino/hipt_patch.jsonl"),
    "dino_region": ("HIPT", "regions", "dino/hipt_region.jsonl"),
}
# Budgets within this share of each other are called equal.
EQUAL = 0.1


def budgets(run: Place) -> pd.DataFrame:
    """[step, method, level, images, core_seconds] of every pre-training of the run's pool; NaN where nothing says it.

    Images are counted from the last line of the training's log, core-seconds are those of its record: of all threads
    and decoders, other programs on the machine left out. Of a training that was interrupted they are those since.
    """
    rows = []
    for step, (method, level, log) in TRAINED.items():
        # Without a warm start MAE-Reg is a row of the ablation and no part of HC-MAE.
        if step == "mae_region_reg" and not starts_warm(run.profile, "patreg"):
            continue
        record = run.pretrain_dir / "stages" / f"{step}.json"
        seconds = read_json(record).get("core_seconds") if record.exists() else None
        path = run.pretrain_dir / log
        images = _last_step(path) * _images_per_step(run, step) if path.exists() else None
        rows.append((step, method, level, images, seconds))
    frame = pd.DataFrame(rows, columns=["step", "method", "level", "images", "core_seconds"])
    return frame.astype({"images": float, "core_seconds": float})


def _last_step(log: Path) -> int:
    lines = log.read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _images_per_step(run: Place, step: str) -> int:
    kind, level = step.split("_")[:2]
    if kind == "mae":
        settings = (run.profile.mae_patch if level == "patch" else run.profile.mae_region).optimisation
        return settings.batch_size * settings.accumulation
    stage = run.profile.dino.patch if level == "patch" else run.profile.dino.region
    # As in training: a batch is never larger than an epoch.
    return min(stage.batch_size, dino_budget(run.profile, level, stage.batch_size)[0])  # type: ignore[arg-type]


def budget_sentence(found: pd.DataFrame) -> str:
    """What HIPT's two stages have had of what HC-MAE's autoencoders have had, in images and in core-seconds.

    A word of equality is said within a tenth, and not otherwise.
    """
    if found["images"].isna().any():
        missing = ", ".join(found.loc[found["images"].isna(), "step"])
        return f"This run has not pre-trained both: no log of {missing}."
    # A method's budget is known where that of each of its steps is.
    total = {name: part[["images", "core_seconds"]].sum(skipna=False) for name, part in found.groupby("method")}
    seen = {
        name: " and ".join(
            f"{count:,.0f} {level}" for level, count in part.groupby("level")["images"].sum(min_count=1).items()
        )
        for name, part in found.groupby("method")
    }
    ours, theirs = total["HC-MAE"], total["HIPT"]
    text = f"HC-MAE's autoencoders have seen {seen['HC-MAE']}, HIPT's two stages {seen['HIPT']}. "
    share = theirs["core_seconds"] / ours["core_seconds"]
    if not share > 0:
        return text + "This run has no record of the core-seconds that they took."
    verdict = (
        "the same, within a tenth"
        if abs(share - 1) <= EQUAL
        else f"HIPT has had {100 * share:.0f} % of HC-MAE's core-seconds, so its vectors have been trained "
        + ("less" if share < 1 else "longer")
    )
    return (
        f"{text}That took {ours['core_seconds']:,.0f} core-seconds for HC-MAE and {theirs['core_seconds']:,.0f} for "
        f"HIPT: {verdict}."
    )
