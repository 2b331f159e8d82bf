"""What pre-training has had, from the records of a run: counted, added up, and called equal only where it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hcmae.config import load_profile
from hcmae.files import write_json
from hcmae.keys import Key
from hcmae.pipeline.budgets import TRAINED, budget_sentence, budgets
from hcmae.pipeline.place import Place
from hcmae.pipeline.stages import Stage


def run_with(folder: Path, steps: dict[str, int], seconds: dict[str, float]) -> Place:
    for step, (_, _, log) in TRAINED.items():
        path = folder / log
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"step": number}) + "\n" for number in (1, steps[step])), encoding="utf-8")
        if step in seconds:
            write_json(folder / "stages" / f"{step}.json", {"core_seconds": seconds[step]})
    return cast(Place, SimpleNamespace(pretrain_dir=folder, profile=load_profile("smoke")))


def test_budgets_are_counted_from_logs_and_records(tmp_path: Path) -> None:
    steps = dict.fromkeys(TRAINED, 10)
    seconds = dict(zip(TRAINED, (300.0, 150.0, 50.0, 60.0, 40.0), strict=True))
    run = run_with(tmp_path, steps, seconds)
    profile = run.profile
    found = budgets(run).set_index("step")
    assert found.loc["mae_patch", "images"] == 10 * profile.mae_patch.optimisation.batch_size
    assert found.loc["mae_region_reg", "images"] == 10 * profile.mae_region.optimisation.batch_size
    assert found.loc["dino_patch", "images"] == 10 * profile.dino.patch.batch_size
    assert found["core_seconds"].tolist() == list(seconds.values())
    regions = 20 * profile.mae_region.optimisation.batch_size
    text = budget_sentence(budgets(run))
    assert f"{found.loc['mae_patch', 'images']:,.0f} patches and {regions:,} regions" in text
    assert "500 core-seconds for HC-MAE and 100 for HIPT: HIPT has had 20 % of HC-MAE's core-seconds" in text
    assert "trained less" in text


@pytest.mark.parametrize(("share", "words"), [(1.0, "the same, within"), (0.92, "the same, within"), (1.5, "longer")])
def test_equal_is_said_of_equal_budgets_only(tmp_path: Path, share: float, words: str) -> None:
    seconds = {step: 50.0 * (share * 3 / 2 if step.startswith("dino") else 1.0) for step in TRAINED}
    assert words in budget_sentence(budgets(run_with(tmp_path, dict.fromkeys(TRAINED, 3), seconds)))


def test_a_run_that_kept_no_record_says_so(tmp_path: Path) -> None:
    text = budget_sentence(budgets(run_with(tmp_path, dict.fromkeys(TRAINED, 3), {"mae_patch": 3.0})))
    assert "no record of the core-seconds" in text
    (tmp_path / "dino" / "hipt_region.jsonl").unlink()
    again = budget_sentence(budgets(cast(Place, SimpleNamespace(pretrain_dir=tmp_path, profile=load_profile("smoke")))))
    assert again == "This run has not pre-trained both: no log of dino_region."


def test_a_step_records_what_it_took_of_all_cores(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Key("step", {}, {}, {}))

    def work() -> None:
        sum(number * number for number in range(400_000))

    stage.run(work, say=lambda text: None)
    record: dict[str, Any] = stage.record() or {}
    assert 0 < record["core_seconds"] < 60
    assert record["seconds"] > 0


def test_mae_reg_counts_where_mae_patreg_starts_from_it_only(tmp_path: Path) -> None:
    run = run_with(tmp_path, dict.fromkeys(TRAINED, 1), {})
    assert "mae_region_reg" in set(budgets(run)["step"])
    cold = run.profile.fidelity.model_copy(update={"region_warm_start": False})
    run.profile = run.profile.model_copy(update={"fidelity": cold})
    assert "mae_region_reg" not in set(budgets(run)["step"])
