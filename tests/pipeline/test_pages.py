"""What the cells of the lessons call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hcmae.config import ConfigError
from hcmae.evaluation import metrics
from hcmae.interpretation.interpret import Attention
from hcmae.pipeline import pages
from hcmae.survival.fold import learnt_rows
from hcmae_core import textbook

PARAMETERS: dict[str, Any] = {
    "cancer": "BRCA", "profile": "smoke", "source": "synthetic", "seed": 3, "data_dir": "d", "run_dir": "r",
    "modalities": "rna", "slides": False,
}  # fmt: skip


def test_a_run_is_opened_as_the_parameters_say_and_a_missing_one_is_named() -> None:
    run = pages.open_run({**PARAMETERS, "other": 1}, cancer="NULL")
    assert (run.cancer, run.seed, run.modalities, run.slides) == ("NULL", 3, ("rna",), False)
    assert pages.open_run(PARAMETERS).cancer == "BRCA"
    with pytest.raises(ConfigError, match="lacks seed"):
        pages.open_run({name: value for name, value in PARAMETERS.items() if name != "seed"})


def test_source_is_the_librarys_own_and_a_line_of_it_names_its_function() -> None:
    whole = pages.source(textbook.cross_attention)
    assert whole.startswith("```python\ndef cross_attention(")
    assert whole._repr_markdown_() == str(whole)
    line = pages.source(learnt_rows, holding="return")
    assert line.splitlines()[1] == "# hcmae.survival.fold.learnt_rows"
    assert len(line.splitlines()) == 4
    with pytest.raises(ValueError, match="no line of learnt_rows"):
        pages.source(learnt_rows, holding="nowhere")


def test_the_oracle_is_scored_in_the_folds_of_the_methods() -> None:
    rng = np.random.default_rng(0)
    patients = [f"P{number}" for number in range(60)]
    hazard = rng.normal(size=60)
    table = pd.DataFrame(
        {
            "patient": patients, "repeat": 0, "fold": np.arange(60) % 3, "risk": rng.normal(size=60),
            "time": rng.exponential(np.exp(-2 * hazard)), "event": 1,
        }
    )  # fmt: skip
    # In another order than the predictions.
    truth = pd.DataFrame({"log_hazard": hazard}, patients).sample(frac=1, random_state=0)
    run: Any = SimpleNamespace(truth=lambda: truth)
    found = pages.oracle(run, table)
    assert found is not None
    assert found.value == pytest.approx(metrics.mean_concordance(table.assign(risk=hazard))[0])
    assert 0.5 < found.low < found.value < found.high
    nobody: Any = SimpleNamespace(truth=lambda: None)
    assert pages.oracle(nobody, table) is None


def test_the_examples_are_both_ends_and_without_truth_the_most_regions() -> None:
    sizes = {"A": 3, "B": 5, "C": 4, "D": 9}
    attention = [Attention(name, np.ones((3, size))) for name, size in sizes.items()]
    seen = pages.Attended(attention, {}, {}, {"A": 0.1, "B": 1.0, "C": 1.0})
    assert [one.patient for one in seen.examples] == ["B", "A"]
    assert [one.patient for one in pages.Attended(attention, {}, None, {}).examples] == ["D"]
    alone = pages.Attended(attention, {}, {}, {"C": 0.5})
    assert [one.patient for one in alone.examples] == ["C"]
    with pytest.raises(ValueError, match="no planted truth"):
        pages.Attended(attention, {}, None, {}).table({})


def test_a_run_without_slides_follows_the_equations_on_an_invented_patient() -> None:
    model, patient = pages.one_patient([torch.nn.Identity()], [])
    values = [patient[name] for name in ("thumbnails", "region_vectors", "omics", "positions")]
    torch.testing.assert_close(model(**patient), textbook.log_hazard(model, *values), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
