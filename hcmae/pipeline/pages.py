"""What the cells of the lessons call, so that they stay short: a run is opened, source shown, a patient chosen."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.config import ConfigError, Geometry, SlideSettings
from hcmae.evaluation import metrics
from hcmae.pipeline.run import Run, example_data

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hcmae.interpretation.interpret import Attention
    from hcmae.slides.reader import Slide
    from hcmae.slides.regions import RegionPlan
    from hcmae.slides.store import SlideStore
    from hcmae.slides.tissue import Tissue
    from hcmae.survival.data import SurvivalData
    from hcmae.survival.fold import FoldInputs

# The names of the cell of parameters, which papermill fills.
PARAMETERS = ("cancer", "profile", "source", "seed", "data_dir", "run_dir", "modalities", "slides")


class Text(str):
    """Text that a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return str(self)


def open_run(parameters: Mapping[str, Any], **changes: Any) -> Run:
    """The run that a lesson's cell of parameters names: ``open_run(globals())``; ``changes`` replace some of them.

    Raises ConfigError where one is missing, and as ``Run``.
    """
    missing = [name for name in PARAMETERS if name not in parameters]
    if missing:
        raise ConfigError(f"the cell of parameters lacks {', '.join(missing)}: run it first")
    return Run(**{**{name: parameters[name] for name in PARAMETERS}, **changes})


def source(*things: Callable[..., Any] | type, holding: str = "") -> Text:
    """The source of functions or classes as it stands in the library, highlighted on the page.

    holding: only the statements of one line that hold these words, each under the name of its function.
    Raises ValueError where no line holds them.
    """
    parts = []
    for thing in things:
        text = textwrap.dedent(inspect.getsource(thing)).rstrip()
        if holding:
            lines = [line.strip() for line in text.splitlines() if re.search(rf"\b{re.escape(holding)}\b", line)]
            lines = [line for line in lines if not line.startswith(("#", '"'))]
            if not lines:
                raise ValueError(f"no line of {thing.__qualname__} holds '{holding}'")
            text = "\n".join([f"# {thing.__module__}.{thing.__qualname__}", *lines])
        parts.append(text)
    return Text("```python\n" + "\n\n\n".join(parts) + "\n```")


def oracle(run: Run, predictions: pd.DataFrame) -> metrics.Interval | None:
    """The oracle, scored as a method is: the mean over folds of C of the planted log hazard, with its own interval.

    predictions: of any method; their patients and folds count. None without known truth.
    """
    truth = run.truth()
    if truth is None:
        return None
    known = predictions.assign(risk=truth["log_hazard"].reindex(predictions["patient"]).to_numpy())
    drawn = metrics.bootstrap(known, draws=300)
    return metrics.Interval(metrics.mean_concordance(known)[0], drawn.low, drawn.high)


def one_patient(
    models: Sequence[nn.Module], inputs: Sequence[FoldInputs], row: int = 0
) -> tuple[nn.Module, dict[str, Tensor | None]]:
    """HC-MAE in evaluation mode, and the input of one patient (``row`` of the cohort) as a batch of one.

    The batch has thumbnails [1, M, T, T, 3], region_vectors [1, M, D], mask [1, M], omics [1, 3, K] and positions
    [1, M, 2]. A run without slides or omics has no HC-MAE: a small untrained one and an invented patient take their
    place, so that the equations can be followed all the same.
    """
    from hcmae.survival.fit import Feeder
    from hcmae.survival.methods import METHODS
    from hcmae_core.hcmae import HCMAE

    if isinstance(models[0], HCMAE):
        return models[0].eval(), Feeder(METHODS["hcmae"], inputs[0])(np.array([row]))
    return _invented_patient()


def _invented_patient() -> tuple[nn.Module, dict[str, Tensor | None]]:
    import torch

    from hcmae_core.hcmae import HCMAE
    from hcmae_core.transformer import Size

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = HCMAE(omics_features=10, vector_dim=24, thumbnail=8, transformer=Size(24, 1, 4)).eval()
        return model, {
            "thumbnails": torch.randint(0, 256, (1, 5, 8, 8, 3), dtype=torch.uint8),
            "region_vectors": torch.randn(1, 5, 24),
            "mask": torch.ones(1, 5, dtype=torch.bool),
            "omics": torch.randn(1, 3, 10),
            "positions": torch.rand(1, 5, 2) * 9,
        }


def survey(
    slide: Slide, geometry: Geometry, settings: SlideSettings, mask: Path | None = None
) -> tuple[Tissue, RegionPlan]:
    """Tissue of a slide and the plan of its regions; mask: an annotation of the tissue, where there is one."""
    from hcmae.slides import batch, regions

    tissue = batch.tissue_of(slide, geometry, settings, mask)
    return tissue, regions.plan_regions(slide.size, tissue, geometry, settings, slide.mpp)


@dataclass(frozen=True)
class RealSlide:
    """A real slide that was cut into regions: its overview and scale to level 0, tissue, plan, and what came out."""

    overview: NDArray[np.uint8]
    scale: float
    tissue: Tissue
    plan: RegionPlan
    regions: int
    side: int
    mpp: float


def real_slide(run: Run) -> RealSlide | None:
    """The real slide beside the checkout, cut at 512 pixels as a biopsy is; None where there is none."""
    from hcmae.slides.batch import process_slide
    from hcmae.slides.store import SlideStore

    example = example_data()
    path = example / "slides" / "cmu-1-small-region.svs" if example else None
    if path is None or not path.exists():
        return None
    # A small piece of a slide: pieces of tissue count from the size that CLAM sets for biopsies.
    geometry, settings = Geometry(region=512, patch=128, cell=16, thumbnail=32), SlideSettings(preset="biopsy")
    target = run.profile_dir / "real" / f"{path.stem}.h5"
    outcome = process_slide(path, target, geometry, settings, slide_id=path.stem)
    with SlideStore(target).open_slide() as slide:
        tissue, plan = survey(slide, geometry, settings, target.with_suffix(".tissue.geojson"))
        overview = slide.thumbnail(700)
        scale = overview.shape[1] / slide.size[0]
        return RealSlide(overview, scale, tissue, plan, outcome.regions, geometry.region, slide.mpp)


@dataclass(frozen=True)
class Attended:
    """Where the omics of some patients look, beside what was planted there.

    Attributes:
        attention: of each patient, the mean over the networks.
        stores: patient -> regions of the slide.
        planted: patient -> which regions are planted tumour [M]; None without known truth.
        auc: patient -> chance that a planted region gets more of the mean attention than another one; of patients
            who have regions of both kinds, empty without known truth.
    """

    attention: list[Attention]
    stores: dict[str, SlideStore]
    planted: dict[str, NDArray[np.bool_]] | None
    auc: dict[str, float]

    @property
    def examples(self) -> list[Attention]:
        """Those with the largest and with the smallest AUC, of several the one with most regions; else most regions."""
        by_name = {one.patient: one for one in self.attention}
        if not self.auc:
            return [max(self.attention, key=lambda one: one.weights.shape[1])]

        def order(patient: str) -> tuple[float, int]:
            return self.auc[patient], by_name[patient].weights.shape[1]

        ends = max(self.auc, key=order), min(self.auc, key=lambda name: (self.auc[name], -order(name)[1]))
        return [by_name[name] for name in dict.fromkeys(ends)]

    def panels(self, one: Attention, data: SurvivalData) -> dict[str, Any]:
        """What ``plots.plot_attention`` draws of one patient."""
        row = np.array([data.patients.index(one.patient)])
        return {
            "thumbnails": data.bags["thumbnail"].packed(row).numpy(),
            "positions": data.bags["positions"].packed(row).numpy(),
            "weights": one.weights,
            "planted": None if self.planted is None else self.planted[one.patient],
            "titles": one.modalities,
        }

    def table(self, effects: Mapping[str, NDArray[np.floating]]) -> dict[str, float]:
        """AUC over all pairs of regions: of each omics, of their mean, and of the size of leaving a region out.

        effects: patient -> [M], as ``interpret.region_importance``. Raises ValueError without known truth.
        """
        from hcmae.interpretation.interpret import attention_auc

        if self.planted is None:
            raise ValueError("no planted truth: attention can be compared with nothing")
        found = {}
        for number, name in enumerate(self.attention[0].modalities):
            own = {one.patient: one.weights[number] for one in self.attention}
            found[f"attention, {name}"] = attention_auc(own, self.planted)
        mean = {one.patient: one.weights.mean(0) for one in self.attention}
        found["attention, mean"] = attention_auc(mean, self.planted)
        sizes = {patient: np.abs(effect) for patient, effect in effects.items()}
        found["size of the effect of leaving out"] = attention_auc(sizes, self.planted)
        return found


def attended(run: Run, models: Sequence[nn.Module], inputs: Sequence[FoldInputs], rows: NDArray[np.int64]) -> Attended:
    """Attention over regions of some patients (rows of the cohort). Raises TypeError for a network that has none."""
    from hcmae.interpretation import interpret
    from hcmae.slides.store import SlideStore
    from hcmae.synthetic.truth import read_regions

    attention = interpret.region_attention(models, inputs, rows)
    paths = run.patient_stores()
    stores = {one.patient: SlideStore(paths[one.patient]) for one in attention}
    truth, planted, auc = read_regions(run.root), None, {}
    if truth is not None:
        corners = {patient: store.coords for patient, store in stores.items()}
        sides = {patient: store.side for patient, store in stores.items()}
        planted = interpret.planted_regions(truth, corners, run.profile.geometry.region, sides)
        for one in attention:
            if 0 < planted[one.patient].sum() < len(planted[one.patient]):
                auc[one.patient] = interpret.attention_auc({one.patient: one.weights.mean(0)}, planted)
    return Attended(attention, stores, planted, auc)
