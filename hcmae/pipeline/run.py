"""The road for one cancer: verbs that do what is missing.

What a step reads, writes and depends on stands in ``road``; a verb does its step unless it is done.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hcmae.config import CANCERS, ConfigError, Protocol
from hcmae.files import read_parquet
from hcmae.pipeline import results, road, work
from hcmae.pipeline.place import NULL_COHORT, REGION_VARIANTS, Place, Variant

if TYPE_CHECKING:
    import mudata

    from hcmae.cohort.curate import Cohort
    from hcmae.survival.data import SurvivalData

__all__ = ["NULL_COHORT", "REGION_VARIANTS", "Run", "all_runs", "example_data"]


class Run(Place):
    """One cancer, one profile, one source of data, and all that can be done with them (see ``Place``)."""

    def status(self) -> pd.DataFrame:
        """Every step of the road: [step, state, why, title]; a step after one that is not done waits for it."""
        return road.status(self)

    def synthesise(self, *, workers: int = 2) -> None:
        """Write the synthetic twin (slides, omics, clinical records, truth) unless it is there already."""
        if self.source != "synthetic":
            raise ConfigError(f"source is '{self.source}': only source 'synthetic' can be synthesised")
        road.do(self, "synthesise", workers=workers)

    def curate(self, *, slides: bool | None = None, force: bool = False) -> Cohort:
        """Apply the inclusion rules; keep the cohort, the exclusions, the flow and the choices on disk.

        slides: whether a patient must have one, from now on (None: as the run was made). force: although it is done.
        """
        if slides is not None:
            self.slides = self._given["slides"] = slides
        road.check_source(self)
        road.do(self, "curate", force=force)
        cohort = self.cohort()
        self._note_places(cohort)
        return cohort

    def _note_places(self, cohort: Cohort) -> None:
        """Tell the stores where their slides lie now, whatever has moved."""
        from hcmae.slides.locations import write_locations

        if self.store_dir.is_dir():
            write_locations(self.store_dir, self.root, cohort.table)

    def make_slides(
        self,
        *,
        workers: int = 2,
        strict: bool = False,
        progress: bool = True,
        force: bool = False,
        only: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Cut every slide of the cohort into regions; returns one outcome per slide (also kept as slides.parquet).

        Slides that failed for a passing reason, and stores that are gone, are done by the next call, they alone.
        force: all slides that failed or have no region, whatever the reason. only: of these slides alone, by id or file
        name.
        strict: raise SlideError for a slide that failed, has no region or does not say its resolution, now or when it
        was cut.
        """
        from hcmae.slides.batch import refused_by_strict

        if not self.has_pixels:
            return self.bring_features(progress=progress)
        options: dict[str, Any] = {"workers": workers, "strict": strict, "progress": progress, "only": only}
        road.do(self, "slides", force=force, again=force, **options)
        self._note_places(self.cohort())
        outcomes = self.slide_outcomes()
        if strict and (refused := refused_by_strict(outcomes)) is not None:
            raise refused
        return outcomes

    def bring_features(self, *, progress: bool = True) -> pd.DataFrame:
        """Bring the cohort's files of features into stores (source ``features``); returns one outcome per slide.

        Raises ConfigError for another source, MixedFeaturesError for features of two encoders, widths or scales.
        """
        if self.has_pixels:
            raise ConfigError(f"source is '{self.source}': files of features are brought with source 'features'")
        road.do(self, "features", progress=progress)
        self._note_places(self.cohort())
        return self.slide_outcomes()

    def pretrain_feature_region(self, *, progress: bool = True) -> Path:
        """Train the region token on the pool's features and write the pool's region vectors (source ``features``)."""
        if self.has_pixels:
            raise ConfigError(f"source is '{self.source}': slides have pixels, call pretrain_region()")
        self._train("feature_region", progress=progress)
        self._write_pool("feature_region_vectors", progress)
        return self.feature_region_weights

    def encoder(self) -> str:
        """Printed name of the encoder whose patch vectors the stores hold; 'MAE-Patch' where they are our own."""
        from hcmae.encoders.importing import encoder_of

        return "MAE-Patch" if self.has_pixels else encoder_of(self.stores()) or "an encoder without a name"

    def load_omics(self, *, force: bool = False) -> mudata.MuData:
        """Read the omics tables of the cohort into one MuData, kept as omics.h5mu (force: although it is done)."""
        road.do(self, "omics", force=force)
        return self.omics()

    def pretrain_patch(self, *, progress: bool = True, shards: int | None = None) -> Path:
        """Pre-train MAE-Patch on the pool and write the patch vectors of every slide of the pool.

        shards: parts that regions are read in (see ``pretraining.pretrain_patch``), where the run begins anew.
        """
        if not self.has_pixels:
            raise ConfigError("source is 'features': its patch vectors are there, and there are no pixels to train on")
        self._train("mae_patch", progress=progress, shards=shards)
        self._write_pool("patch_vectors", progress)
        return self.patch_weights

    def pretrain_region(self, variant: Variant = "patreg", *, progress: bool = True, shards: int | None = None) -> Path:
        """Pre-train MAE-Region ('patreg' with, 'reg' without patch vectors) and write the pool's region vectors.

        shards: as for ``pretrain_patch``. Of features alone (no pixels) the region token is trained instead.
        """
        if not self.has_pixels:
            return self.pretrain_feature_region(progress=progress)
        if work.starts_warm(self.profile, variant):
            self.pretrain_region("reg", progress=progress, shards=shards)
        self._train(f"mae_region_{variant}", progress=progress, shards=shards)
        self._write_pool("region_vectors" if variant == "patreg" else "region_vectors_reg", progress)
        return self.region_weights(variant)

    def pretrain_dino(self, *, progress: bool = True) -> Path:
        """Pre-train both DINO stages of HIPT on the same pool and write HIPT's vectors (lesson 09).

        Of features alone (no pixels) the second stage alone, on their patch vectors.
        """
        if not self.has_pixels:
            self._train("feature_hipt", progress=progress)
            self._write_pool("feature_hipt_vectors", progress)
            return self.pretrain_dir / "dino"
        self._train("dino_patch", progress=progress)
        self._write_pool("hipt_patch_vectors", progress)
        self._train("dino_region", progress=progress)
        self._write_pool("region_vectors_hipt", progress)
        return self.pretrain_dir / "dino"

    def _train(self, step: str, **options: Any) -> None:
        if self.weights_from is None:
            road.do(self, step, **options)

    def _write_pool(self, step: str, progress: bool) -> None:
        for run in self.pool():
            road.do(run, step, progress=progress)

    def embed(self, *, progress: bool = True) -> None:
        """Patch and region vectors of this cancer's slides, with the weights that lie in the pre-training folder.

        HIPT's vectors too, where its two stages have been trained. Raises FileNotFoundError for missing weights.
        """
        for path in (self.patch_weights, *(self.region_weights(v) for v in REGION_VARIANTS)):
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} is missing: run notebooks 05 and 06 for profile {self.profile.name} first"
                )
        steps = ["patch_vectors", "region_vectors_reg", "region_vectors"]
        if all(self.dino_weights(stage).exists() for stage in ("patch", "region")):
            # The second stage reads the vectors of the first.
            steps += ["hipt_patch_vectors", "region_vectors_hipt"]
        for step in steps:
            road.do(self, step, progress=progress)

    def embed_resnet(self, weights: str | Path, *, progress: bool = True) -> None:
        """Write the patch vectors of an ImageNet ResNet-50 whose weights are on disk, for MCAT and CLAM (lesson 09).

        weights: a safetensors file with timm's or torchvision's names. Raises CheckpointError for any other.
        """
        from hcmae.pretraining.checkpoint import load_resnet

        load_resnet(weights)  # names a missing or wrong file before the step asks for its hash
        road.do(self, "resnet_vectors", weights=weights, progress=progress)

    def embed_encoder(
        self, encoder: str, weights: str | Path | None = None, *, any_scale: bool = False, progress: bool = True
    ) -> None:
        """Write the patch vectors of a registered encoder, for the methods that read patch vectors of any network.

        encoder: a name of ``hcmae.encoders.registry`` or ``timm:MODEL@weights``; weights: their path (None: as the name
        or ``$HCMAE_ENCODERS`` says); any_scale: patches of another scale than the encoder knows. Raises EncoderError.
        """
        from hcmae.encoders.registry import find_weights, get_encoder

        found = find_weights(get_encoder(encoder), weights)  # said before the step asks for their hash
        road.do(self, "encoder_vectors", encoder=encoder, weights=found, any_scale=any_scale, progress=progress)

    def measure_nuclei(self, *, workers: int = 2, progress: bool = True) -> None:
        """Write the hand-crafted nuclear features that GPDBN and CAMR read (lesson 09)."""
        road.do(self, "nuclei", workers=workers, progress=progress)

    # --- survival -----------------------------------------------------------------------------------------------

    @property
    def survival_data(self) -> SurvivalData:
        """Everything a survival method may need, in memory; read again when something of it has changed on disk.

        Warns where a step that it rests on is stale: the numbers are then those of what lies there, not of this run.
        """
        now = work.inputs_on_disk(self)
        if self._survival is None or self._survival[0] != now:
            for name, why in road.stale_steps(self):
                warnings.warn(f"{self.cancer}: step {name} is stale ({why}); what lies there is used", stacklevel=2)
            self._survival = (now, self._read_survival_data())
        return self._survival[1]

    _survival: tuple[str, SurvivalData] | None = None

    def _read_survival_data(self) -> SurvivalData:
        from dataclasses import replace

        from hcmae.omics.kept import read_normals
        from hcmae.survival.data import load_inputs

        omics = self.omics() if self.modalities else None
        images: dict[str, Any] = {"kinds": ()}
        if self.slides:
            images = {
                "max_regions": self.profile.fidelity.max_regions,
                "usable": set(self.stores()),
                "memory_bytes": int(self.profile.compute.memory_gib * 2**30),
            }
        data = load_inputs(self.cohort().table, self.store_dir, omics, **images)
        if omics is None or self.profile.omics.contrast != "tumour_normal":
            return data
        return replace(data, normals=read_normals(self.root, list(omics.mod)))

    def folds(self, *, repeats: int | None = None) -> pd.DataFrame:
        """Test folds of every repeat, made once, kept as folds_<folds>x<repeats>.parquet and shared by all methods."""
        road.do(self, "folds", say=lambda _: None, repeats=repeats)
        return read_parquet(work.fold_path(self, repeats))

    def evaluate(
        self,
        method: str,
        protocol: str | Protocol = "honest",
        *,
        repeats: int | None = None,
        data: SurvivalData | None = None,
        label: str | None = None,
        workers: int = 1,
    ) -> pd.DataFrame:
        """Out-of-fold predictions of one method: columns patient, repeat, fold, risk, time, event.

        Kept as predictions/<protocol>/<method>.parquet; folds that are done are not trained again. ``data`` replaces
        the cohort's own data (for permuted labels, say) and then needs a ``label`` that names its folder.
        """
        from hcmae.survival.cross_validate import cross_validate

        if isinstance(protocol, str):
            protocol = Protocol.preset(protocol)  # type: ignore[arg-type]
        if data is not None and label is None:
            raise ConfigError("evaluate(data=...) needs label=..., the folder its predictions are kept in")
        folder = self.dir / "predictions" / (f"{label}-{protocol.name}" if label else protocol.name)
        began = time.perf_counter()
        predictions = cross_validate(
            method,
            data if data is not None else self.survival_data,
            self.folds(repeats=repeats),
            self.profile,
            protocol,
            seed=self.seed,
            out_dir=folder,
            omics_cache=self.dir / "omics_cache",
            workers=workers,
        )
        if data is None and protocol == Protocol.named(protocol.name):
            seconds = round(time.perf_counter() - began, 2)
            road.record_predictions(self, method, protocol.name, repeats, seconds)
        return predictions

    def kept(self, method: str, protocol: str = "honest") -> pd.DataFrame | None:
        """Predictions of ``evaluate`` that were made before and still hold; None where there are none, or where what
        they rest on has changed. Trains nothing and loads no data of the cohort.
        """
        paths = road.kept_predictions(self, method, protocol)
        return read_parquet(paths[0]) if paths else None

    def train(self, method: str, out: str | Path | None = None) -> Path:
        """Fit a method on everybody and write it as a bundle for patients who come later (see ``hand_over``).

        out: its folder (default: bundles/<method> of the run). A bundle that still holds is left as it is.
        """
        from hcmae.pipeline.hand_over import hand_over

        return hand_over(self, method, self.survival_data, out)

    def report(self, out: str | Path | None = None) -> Path:
        """Write one HTML file about this run that can be sent to a colleague (see ``pipeline.report``)."""
        from hcmae.pipeline.report import write_report

        return write_report(self, out)

    # --- results ------------------------------------------------------------------------------------------------

    def save_result(self, name: str, value: dict[str, Any]) -> Path:
        """Write results/<name>.json with the provenance of the run beside the numbers; what has no estimate is null."""
        return results.save_result(self, name, value)

    def load_result(self, name: str) -> dict[str, Any]:
        """Read results/<name>.json back; raises FileNotFoundError naming it."""
        return results.load_result(self, name)

    def provenance(self) -> dict[str, Any]:
        """Where a number comes from: cancer, profile, source, seed, folds, settings hash, library version, commit."""
        return results.provenance(self)


def all_runs(run: Run, cancers: tuple[str, ...] = CANCERS) -> list[Run]:
    """The same run for every cancer that has been curated, in the paper's order; one's own cancer comes last."""
    names = cancers if run.cancer in cancers or run.is_null else (*cancers, run.cancer)
    return [run.sibling(cancer) for cancer in names if (run.profile_dir / cancer / "cohort.parquet").exists()]


def example_data() -> Path | None:
    """Folder with small real data (slides/, lihc_real/, mirna_gdc/), or None.

    Looked for at $HCMAE_SHARED_DATA, then in shared/data beside the checkout; notebooks show a section on real input
    where it exists.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    for candidate in (os.environ.get("HCMAE_SHARED_DATA"), beside):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None
