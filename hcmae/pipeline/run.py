"""The road from raw files to verdicts for one cancer: the same stages for notebooks, command line and cluster.

``Run`` ties the parts together and decides what is already done; the work itself lies in the modules it calls.
"""

from __future__ import annotations

import os
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from hcmae.config import CANCERS, MODALITIES, ConfigError, Profile, Protocol, load_profile
from hcmae.files import atomic_path, file_hash, read_json, write_json
from hcmae.manifest import Manifest, load_manifest
from hcmae.pipeline.stages import Stage

if TYPE_CHECKING:
    import matplotlib.figure
    import mudata

    from hcmae.cohort.curate import Cohort
    from hcmae.survival.data import SurvivalData

Source = Literal["synthetic", "gdc", "local"]
Variant = Literal["patreg", "reg"]
NULL_COHORT = "NULL"
REGION_VARIANTS: tuple[Variant, ...] = ("reg", "patreg")


class Run:
    """One cancer, one profile, one source of data.

    ``cancer`` is one of the six, a cancer with a manifest of your own, or 'NULL': the twin of LIHC whose survival
    depends on nothing. Raises ConfigError for an unknown cancer, profile or source.
    """

    def __init__(
        self,
        cancer: str = "LIHC",
        profile: str | Path = "smoke",
        source: str = "synthetic",
        seed: int = 0,
        data_dir: str | Path = "data",
        run_dir: str | Path = "runs",
        *,
        overrides: dict[str, Any] | None = None,
        modalities: tuple[str, ...] = MODALITIES,
        manifest_dir: str | Path | None = None,
    ) -> None:
        if source not in ("synthetic", "gdc", "local"):
            raise ConfigError(f"unknown source '{source}': choose 'synthetic', 'gdc' or 'local'")
        self.cancer, self.source, self.seed, self.modalities = cancer, source, int(seed), tuple(modalities)
        self.profile: Profile = load_profile(profile, overrides)
        self.manifest: Manifest = load_manifest("LIHC" if cancer == NULL_COHORT else cancer, manifest_dir)
        self.data_dir, self.run_dir = Path(data_dir), Path(run_dir)
        name = f"synthetic-{self.profile.name}" if source == "synthetic" else source
        self.root = self.data_dir / name / cancer
        self.profile_dir = self.run_dir / (
            self.profile.name if source == "synthetic" else f"{self.profile.name}-{source}"
        )
        self.dir = self.profile_dir / cancer
        self.pretrain_dir = self.profile_dir / "pretrain"
        _notebook_look()

    def __repr__(self) -> str:
        return f"Run({self.cancer}, profile={self.profile.name}, source={self.source}, seed={self.seed})"

    # --- raw data -----------------------------------------------------------------------------------------------

    def _raw_stage(self) -> Stage:
        if self.source == "synthetic":
            settings = {
                "manifest": self.manifest.synthetic.model_dump(mode="json"),
                "regions_per_slide": self.manifest.regions_per_slide,
                "synthetic": self.profile.synthetic.model_dump(mode="json"),
                "geometry": self.profile.geometry.model_dump(mode="json"),
                "seed": self.seed,
                "cancer": self.cancer,
            }
            return Stage(self.root, "synthesise", settings)
        return Stage(self.dir, "raw", {"source": self.source, "root": _listing(self.root)})

    def synthesise(self, *, workers: int = 2) -> None:
        """Write the synthetic twin (slides, omics, clinical records, truth) unless it is there already."""
        if self.source != "synthetic":
            raise ConfigError(f"source is '{self.source}': only source 'synthetic' can be synthesised")
        from hcmae.synthetic import generate_cohort

        null = self.cancer == NULL_COHORT
        self._raw_stage().run(
            [self.root / "files.tsv", self.root / "truth.parquet"],
            lambda: generate_cohort(self.manifest, self.profile, self.root, self.seed, null=null, workers=workers),
        )

    def truth(self) -> pd.DataFrame | None:
        """Latent factors and log hazard per patient (synthetic cohorts only)."""
        path = self.root / "truth.parquet"
        return pd.read_parquet(path) if path.exists() else None

    def truth_summary(self) -> dict[str, Any] | None:
        """Oracle C-index, planted features and hazard mix (synthetic cohorts only)."""
        path = self.root / "truth.json"
        return read_json(path) if path.exists() else None

    def truth_regions(self) -> pd.DataFrame | None:
        """Where the tumour regions were planted (synthetic cohorts only)."""
        path = self.root / "truth_regions.parquet"
        return pd.read_parquet(path) if path.exists() else None

    # --- who ----------------------------------------------------------------------------------------------------

    def _curate_stage(self) -> Stage:
        settings = {
            "inclusion": self.manifest.inclusion.model_dump(mode="json"),
            "seed": self.seed,
            "modalities": self.modalities,
        }
        return Stage(self.dir, "curate", settings, (self._raw_stage().key,))

    def curate(self, *, slides: bool = True) -> Cohort:
        """Apply the inclusion rules; keep the cohort, the exclusions and the flow on disk."""
        from hcmae.cohort.curate import curate

        if not self.root.is_dir():
            hint = {
                "synthetic": "call synthesise() first",
                "gdc": f"run 'hcmae fetch {self.cancer}' first",
                "local": "put slides/, rna.tsv, mirna.tsv, methylation.tsv and clinical.tsv there",
            }
            raise ConfigError(f"no raw data at {self.root}: {hint[self.source]}")

        def work() -> None:
            cohort = curate(
                self.manifest, self.source, self.root, seed=self.seed, modalities=self.modalities, slides=slides
            )
            _write_parquet(self.dir / "cohort.parquet", cohort.table)
            _write_parquet(self.dir / "exclusions.parquet", cohort.exclusions)
            _write_parquet(self.dir / "flow.parquet", cohort.flow)
            with atomic_path(self.dir / "exclusions.csv") as temporary:
                cohort.exclusions.to_csv(temporary, index=False)

        self._curate_stage().run([self.dir / "cohort.parquet", self.dir / "flow.parquet"], work)
        return self.cohort()

    def cohort(self) -> Cohort:
        """The curated cohort from disk; raises FileNotFoundError naming the stage to run."""
        from hcmae.cohort.curate import Cohort

        frames = []
        for name in ("cohort", "exclusions", "flow"):
            path = self.dir / f"{name}.parquet"
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing: run curate() (notebook 02) for {self.cancer} first")
            frames.append(pd.read_parquet(path))
        return Cohort(*frames)

    # --- pixels -------------------------------------------------------------------------------------------------

    def _slides_stage(self) -> Stage:
        settings = {
            "slides": self.profile.slides.model_dump(mode="json"),
            "geometry": self.profile.geometry.model_dump(mode="json"),
        }
        return Stage(self.dir, "slides", settings, (self._curate_stage().key,))

    @property
    def store_dir(self) -> Path:
        return self.dir / "slides"

    def make_slides(self, *, workers: int = 2, strict: bool = False, progress: bool = True) -> pd.DataFrame:
        """Cut every slide of the cohort into regions; returns one outcome per slide (also kept as slides.csv)."""
        from hcmae.slides.batch import process_slides

        table = self.cohort().table
        jobs = [(row.slide_path, self.store_dir / f"{row.slide}.h5", row.slide) for row in table.itertuples()]

        def work() -> None:
            outcomes = process_slides(
                jobs,
                self.profile.geometry,
                self.profile.slides,
                workers=workers,
                strict=strict,
                progress=progress,
            )
            _write_parquet(self.dir / "slides.parquet", outcomes)

        self._slides_stage().run([self.dir / "slides.parquet"], work)
        return pd.read_parquet(self.dir / "slides.parquet")

    def _store_of(self, patient: str) -> Path:
        return self.store_dir / f"{self.cohort().table['slide'].astype(str)[patient]}.h5"

    def stores(self) -> list[Path]:
        """The slide stores of the cohort, in the order of its table; slides without a region have none."""
        paths = [self.store_dir / f"{slide}.h5" for slide in self.cohort().table["slide"]]
        return [path for path in paths if path.exists()]

    # --- molecules ----------------------------------------------------------------------------------------------

    def _omics_stage(self) -> Stage:
        return Stage(self.dir, "omics", {"modalities": self.modalities}, (self._curate_stage().key,))

    def load_omics(self) -> mudata.MuData:
        """Read the omics tables of the cohort into one MuData and keep it as omics.h5mu."""
        from hcmae.omics.readers import read_omics

        def work() -> None:
            data = read_omics(self.cohort(), self.source, self.root)
            with atomic_path(self.dir / "omics.h5mu") as temporary:
                data.write(temporary)

        self._omics_stage().run([self.dir / "omics.h5mu"], work)
        return self.omics()

    def omics(self) -> mudata.MuData:
        """The stored MuData; raises FileNotFoundError naming the stage to run."""
        import mudata

        from hcmae.omics.readers import keep_tables_apart

        path = self.dir / "omics.h5mu"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run load_omics() (notebook 04) for {self.cancer} first")
        keep_tables_apart()
        return mudata.read_h5mu(path)

    # --- networks on images -------------------------------------------------------------------------------------

    def pool(self) -> list[Run]:
        """The runs whose slides pre-train the networks: every cancer of this profile that has been cut into regions.

        Pre-training sees the images of all patients, test patients included, and no label (transductive, as in the
        release). The null cohort takes no part.
        """
        ready = []
        for cancer in sorted(path.parent.name for path in self.profile_dir.glob("*/slides.parquet")):
            if cancer != NULL_COHORT:
                ready.append(self._sibling(cancer))
        if not ready:
            raise FileNotFoundError(
                f"no cancer below {self.profile_dir} has slides: run make_slides() (notebook 03) first"
            )
        return ready

    def _sibling(self, cancer: str) -> Run:
        twin = object.__new__(Run)
        twin.__dict__.update({k: v for k, v in self.__dict__.items() if k != "survival_data"})
        twin.cancer = cancer
        twin.manifest = load_manifest("LIHC" if cancer == NULL_COHORT else cancer)
        twin.root = self.root.parent / cancer
        twin.dir = self.profile_dir / cancer
        return twin

    def _pool_keys(self) -> tuple[str, ...]:
        return tuple(run._slides_stage().key for run in self.pool())

    def _patch_stage(self) -> Stage:
        settings = {
            "geometry": self.profile.geometry.model_dump(mode="json"),
            "network": self.profile.network.model_dump(mode="json"),
            "mae_patch": self.profile.mae_patch.model_dump(mode="json"),
            "fidelity": self.profile.fidelity.model_dump(mode="json"),
            "seed": self.seed,
        }
        return Stage(self.pretrain_dir, "mae_patch", settings, self._pool_keys())

    @property
    def patch_weights(self) -> Path:
        return self.pretrain_dir / "mae_patch.safetensors"

    def region_weights(self, variant: Variant = "patreg") -> Path:
        return self.pretrain_dir / f"mae_region_{variant}.safetensors"

    def pretrain_patch(self, *, progress: bool = True) -> Path:
        """Pre-train MAE-Patch on the pool and write the patch vectors of every slide of the pool."""
        from hcmae.pretraining.embed import embed_patches
        from hcmae.pretraining.pretrain import pretrain_patch

        runs = self.pool()
        stores = [store for run in runs for store in run.stores()]

        def work() -> None:
            weights = pretrain_patch(stores, self.profile, self.pretrain_dir / "patch", self.seed, progress=progress)
            _link(weights, self.patch_weights)

        self._patch_stage().run([self.patch_weights], work)
        for run in runs:
            self._embed_stage(run, "patch_vectors", self.patch_weights).run(
                run.stores(), partial(embed_patches, run.stores(), self.patch_weights, self.profile)
            )
        return self.patch_weights

    def _starts_warm(self, variant: Variant) -> bool:
        return variant == "patreg" and self.profile.fidelity.region_warm_start

    def _region_stage(self, variant: Variant) -> Stage:
        settings = {
            "mae_region": self.profile.mae_region.model_dump(mode="json"),
            "variant": variant,
            "seed": self.seed,
        }
        # MAE-Reg looks at pixels only: it does not wait for patch vectors.
        upstream = (self._patch_stage().key,) if variant == "patreg" else self._pool_keys()
        if self._starts_warm(variant):
            upstream += (self._region_stage("reg").key,)
        elif variant == "reg":
            settings["network"] = self.profile.network.model_dump(mode="json")
            settings["fidelity"] = self.profile.fidelity.model_dump(mode="json")
        return Stage(self.pretrain_dir, f"mae_region_{variant}", settings, upstream)

    def pretrain_region(self, variant: Variant = "patreg", *, progress: bool = True) -> Path:
        """Pre-train MAE-Region ('patreg' with, 'reg' without patch vectors) and write the pool's region vectors."""
        from hcmae.pretraining.embed import embed_regions
        from hcmae.pretraining.pretrain import pretrain_region

        runs = self.pool()
        stores = [store for run in runs for store in run.stores()]
        target = self.region_weights(variant)
        start = self.pretrain_region("reg", progress=progress) if self._starts_warm(variant) else None

        def work() -> None:
            out = self.pretrain_dir / f"region_{variant}"
            weights = pretrain_region(
                stores, self.profile, out, self.seed, variant=variant, start=start, progress=progress
            )
            _link(weights, target)

        self._region_stage(variant).run([target], work)
        for run in runs:
            self._embed_stage(run, f"region_vectors_{variant}", target).run(
                run.stores(), partial(embed_regions, run.stores(), target, self.profile, variant=variant)
            )
        return target

    def probe_readings(self, *, epochs: int = 12, progress: bool = True) -> pd.DataFrame | None:
        """R2 of the latent factors in region vectors of the three readings of Eq. 4, none of them with a residual.

        Each reading goes on from MAE-Reg's weights for the same few epochs on this cancer's regions; rows are readings,
        columns factors. None without known truth.
        """
        import numpy as np

        from hcmae.interpretation import probe
        from hcmae.pretraining.embed import embed_regions
        from hcmae.pretraining.pretrain import pretrain_region
        from hcmae.slides.store import SlideStore

        truth = self.truth()
        if truth is None:
            return None
        start = self.pretrain_region("reg", progress=progress)
        profile = self.profile.model_copy(
            update={
                "mae_region": self.profile.mae_region.model_copy(update={"warm_epochs": epochs}),
                "fidelity": self.profile.fidelity.model_copy(update={"region_residual": False}),
            }
        )
        readings: tuple[Any, ...] = ("q_enc_kv_patch", "eq4", "prose")
        folder = self.pretrain_dir / "readings"
        target = folder / f"{self.cancer}.parquet"
        stores, patients = self.stores(), [p for p in self.cohort().table.index if self._store_of(p).exists()]

        def work() -> None:
            rows = {}
            for reading in readings:
                weights = pretrain_region(
                    stores, profile, folder, self.seed, attention=reading, name=reading, start=start, progress=progress
                )
                name = f"region_vectors_{reading}"
                embed_regions(stores, weights, profile, name=name, progress=progress)
                means = np.stack([SlideStore(store).vectors(name).astype(np.float32).mean(axis=0) for store in stores])
                scores = probe.linear_probe(
                    probe.patient_means(means, patients), truth, names=("cell", "architecture", "burden")
                )
                rows[reading] = scores.mean()
            _write_parquet(target, pd.DataFrame(rows).T)

        upstream = (self._patch_stage().key, self._region_stage("reg").key)
        Stage(self.pretrain_dir, f"readings_{self.cancer}", {"epochs": epochs}, upstream).run([target], work)
        return pd.read_parquet(target)

    def pretrain_dino(self, *, progress: bool = True) -> Path:
        """Pre-train both DINO stages of HIPT on the same pool and write HIPT's vectors (lesson 09)."""
        from hcmae.pretraining.dino import pretrain_and_embed

        runs = self.pool()
        folder = self.pretrain_dir / "dino"
        stores = [store for run in runs for store in run.stores()]
        settings = {
            "dino": self.profile.dino.model_dump(mode="json"),
            "geometry": self.profile.geometry.model_dump(mode="json"),
            "seed": self.seed,
        }
        stage = Stage(self.pretrain_dir, "dino", settings, self._pool_keys())
        stage.run([folder], lambda: pretrain_and_embed(stores, self.profile, folder, self.seed, progress=progress))
        return folder

    def embed_resnet(self, weights: str | Path, *, progress: bool = True) -> None:
        """Write the patch vectors of an ImageNet ResNet-50 whose weights are on disk, for MCAT and CLAM (lesson 09).

        weights: a safetensors file with timm's or torchvision's names. Raises CheckpointError for any other.
        """
        from hcmae.pretraining.checkpoint import load_resnet
        from hcmae.pretraining.embed import embed_resnet

        load_resnet(weights)  # names a missing or wrong file before the stage asks for its hash
        stores = self.stores()
        self._embed_stage(self, "resnet_vectors", Path(weights)).run(
            stores, lambda: embed_resnet(stores, Path(weights), self.profile, progress=progress)
        )

    def measure_nuclei(self, *, workers: int = 2, progress: bool = True) -> None:
        """Write the hand-crafted nuclear features that GPDBN and CAMR read (lesson 09)."""
        from hcmae.slides.handcrafted import measure_slides

        stores = self.stores()
        settings = {"handcrafted": self.profile.handcrafted.model_dump(mode="json"), "seed": self.seed}
        Stage(self.dir, "handcrafted", settings, (self._slides_stage().key,)).run(
            stores,
            lambda: measure_slides(stores, self.profile, seed=self.seed, workers=workers, progress=progress),
        )

    def _embed_stage(self, run: Run, name: str, weights: Path) -> Stage:
        return Stage(run.dir, name, {"weights": file_hash(weights)}, (run._slides_stage().key,))

    def embed(self) -> None:
        """Patch and region vectors of this cancer's slides, with the weights that lie in the pre-training folder.

        HIPT's vectors too, where its two stages have been trained. Raises FileNotFoundError for missing weights.
        """
        from hcmae.pretraining.dino import embed_hipt_patches, embed_hipt_regions
        from hcmae.pretraining.embed import embed_patches, embed_regions

        for path in (self.patch_weights, *(self.region_weights(v) for v in REGION_VARIANTS)):
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} is missing: run notebooks 05 and 06 for profile {self.profile.name} first"
                )
        stores = self.stores()
        self._embed_stage(self, "patch_vectors", self.patch_weights).run(
            stores, lambda: embed_patches(stores, self.patch_weights, self.profile)
        )
        for variant in REGION_VARIANTS:
            weights = self.region_weights(variant)
            self._embed_stage(self, f"region_vectors_{variant}", weights).run(
                stores, partial(embed_regions, stores, weights, self.profile, variant=variant)
            )
        hipt_patch, hipt_region = (
            self.pretrain_dir / "dino" / f"hipt_{stage}.safetensors" for stage in ("patch", "region")
        )
        if hipt_patch.exists() and hipt_region.exists():
            # The second stage reads the vectors of the first.
            self._embed_stage(self, "hipt_patch_vectors", hipt_patch).run(
                stores, lambda: embed_hipt_patches(stores, hipt_patch, self.profile, progress=False)
            )
            self._embed_stage(self, "hipt_region_vectors", hipt_region).run(
                stores, lambda: embed_hipt_regions(stores, hipt_region, self.profile, progress=False)
            )

    # --- survival -----------------------------------------------------------------------------------------------

    @cached_property
    def survival_data(self) -> SurvivalData:
        """Everything a survival method may need, in memory."""
        from dataclasses import replace

        from hcmae.survival.data import load_inputs

        data = load_inputs(self.cohort().table, self.store_dir, self.omics())
        return replace(data, normals=self._normals())

    def _normals(self) -> dict[str, pd.DataFrame] | None:
        """Tables of normal tissue, ``normal_rna.tsv`` and so on beside the raw data, where the contrast asks for them.

        Raises ConfigError naming the first file that is not there.
        """
        from hcmae.omics.readers import read_local_table

        if self.profile.omics.contrast != "tumour_normal":
            return None
        found = {}
        for modality in self.omics().mod:
            path = self.root / f"normal_{modality}.tsv"
            if not path.exists():
                raise ConfigError(
                    f"omics.contrast is tumour_normal, but {path} is missing: put a table of normal tissue there "
                    "(rows samples, columns the features of the tumours) or choose contrast horizon"
                )
            found[modality] = read_local_table(path)
        return found

    def folds(self, *, repeats: int | None = None) -> pd.DataFrame:
        """Test folds of every repeat, made once, kept as folds.parquet and shared by all methods."""
        from hcmae.cohort.splits import make_folds

        settings = self.profile.survival
        count = repeats or settings.repeats
        path = self.dir / f"folds_{settings.folds}x{count}.parquet"

        def work() -> None:
            table = self.cohort().table
            frame = make_folds(
                list(table.index), table["time"].to_numpy(), table["event"].to_numpy(), settings.folds, count, self.seed
            )
            _write_parquet(path, frame)

        stage_settings = {"folds": settings.folds, "repeats": count, "seed": self.seed}
        Stage(self.dir, path.stem, stage_settings, (self._curate_stage().key,)).run([path], work, say=_silent)
        return pd.read_parquet(path)

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
        return cross_validate(
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

    # --- results ------------------------------------------------------------------------------------------------

    def save_result(self, name: str, value: dict[str, Any]) -> Path:
        """Write results/<name>.json with the provenance of the run beside the numbers."""
        path = self.dir / "results" / f"{name}.json"
        write_json(path, {**value, "provenance": self.provenance()})
        return path

    def load_result(self, name: str) -> dict[str, Any]:
        """Read results/<name>.json back; raises FileNotFoundError naming it."""
        path = self.dir / "results" / f"{name}.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the notebook that writes it for {self.cancer} first")
        return read_json(path)

    def save_figure(self, name: str, figure: matplotlib.figure.Figure) -> Path:
        """Write figures/<name>.svg with fixed ids and no date, so that equal figures are equal files."""
        import matplotlib as mpl

        path = self.dir / "figures" / f"{name}.svg"
        with mpl.rc_context({"svg.hashsalt": "hcmae"}), atomic_path(path) as temporary:
            figure.savefig(temporary, metadata={"Date": None}, bbox_inches="tight")
        return path

    def provenance(self) -> dict[str, Any]:
        """Where a number comes from: cancer, profile, source, seed, folds, settings hash, library version, commit."""
        from hcmae import __version__
        from hcmae.evaluation.tables import source_commit

        return {
            "folds": f"{self.profile.survival.repeats} x {self.profile.survival.folds}",
            "commit": source_commit(),
            "cancer": self.cancer,
            "profile": self.profile.name,
            "source": self.source,
            "seed": self.seed,
            "settings": self.profile.fingerprint(),
            "version": __version__,
        }


def all_runs(run: Run, cancers: tuple[str, ...] = CANCERS) -> list[Run]:
    """The same run for every cancer that has been curated, in the paper's order."""
    return [run._sibling(cancer) for cancer in cancers if (run.profile_dir / cancer / "cohort.parquet").exists()]


def example_data() -> Path | None:
    """Folder with small real data (slides/, lihc_real/, mirna_gdc/), or None.

    Looked for at $HCMAE_SHARED_DATA, then in shared/data beside the checkout; notebooks show a section on real input
    where it exists.
    """
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    for candidate in (os.environ.get("HCMAE_SHARED_DATA"), beside):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary)


def _link(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(source.read_bytes())


def _listing(root: Path) -> list[list[Any]]:
    """Names and sizes of the raw files: enough to notice that something was added, removed or replaced."""
    if not root.is_dir():
        return []
    return sorted([p.relative_to(root).as_posix(), p.stat().st_size] for p in root.rglob("*") if p.is_file())


def _notebook_look() -> None:
    """The book's figures, where this is a notebook."""
    from hcmae.plots import style

    style.notebook()


def _silent(_: str) -> None:
    """Say nothing: for stages too small to mention."""
