"""Settings: what is cut, which networks are trained, who is studied, and which reading of the paper is followed.

Every YAML file of the project is read here and nowhere else. Unknown keys are errors, so a misspelt setting never
falls back silently to its default.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CANCERS = ("LIHC", "BRCA", "LUAD", "COAD", "LGG", "STAD")
MODALITIES = ("rna", "mirna", "methylation")
PROFILES = ("smoke", "workstation", "paper")

_PROFILE_DIR = Path(__file__).parent / "profiles"

PositiveInt = Annotated[int, Field(gt=0)]
_T = TypeVar("_T", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ConfigError(ValueError):
    """A settings file, key or value that cannot be used; the message names all three."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def fingerprint(self) -> str:
        """Short, stable hash of these settings, used to decide whether stored work is still valid."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Geometry(Settings):
    """The three nested fields of view, in level-0 pixels (Eq. 1), and the side of the region's thumbnail.

    The paper: region 4096 > patch 256 > cell 16, thumbnail 256 (a sixteenth of the region).
    """

    region: PositiveInt = 4096
    patch: PositiveInt = 256
    cell: PositiveInt = 16
    thumbnail: PositiveInt = 256

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        for larger, smaller in (("region", "patch"), ("patch", "cell"), ("region", "thumbnail")):
            if getattr(self, larger) % getattr(self, smaller):
                raise ValueError(
                    f"geometry.{larger} ({getattr(self, larger)}) must be a multiple of "
                    f"geometry.{smaller} ({getattr(self, smaller)})"
                )
        return self

    @property
    def patches_per_side(self) -> int:
        return self.region // self.patch

    @property
    def patches_per_region(self) -> int:
        return self.patches_per_side**2

    @property
    def cells_per_side(self) -> int:
        return self.patch // self.cell

    @property
    def cells_per_patch(self) -> int:
        return self.cells_per_side**2

    @property
    def downsample(self) -> int:
        """Factor from region to thumbnail (16 in the paper)."""
        return self.region // self.thumbnail


class Network(Settings):
    """One Transformer encoder: width, blocks, heads. The paper: 384, 12, 12 everywhere."""

    dim: PositiveInt = 384
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    mlp_ratio: float = 4.0

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"network.dim ({self.dim}) must be a multiple of network.heads ({self.heads})")
        if self.dim % 4:
            raise ValueError(f"network.dim ({self.dim}) must be a multiple of 4 for 2-D sine-cosine positions")
        return self


class Optimisation(Settings):
    """Optimiser, schedule and batch of one pre-training stage."""

    # adam: what its weight decay is says Fidelity.adam_decay.
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.5
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 500
    accumulation: PositiveInt = 1
    clip_norm: float | None = None
    # None: one pass over everything is an epoch. Otherwise an epoch is this many samples (smoke runs).
    samples_per_epoch: PositiveInt | None = None


class MaePatchSettings(Settings):
    """MAE-Patch (section II-B.1): masking, decoder, training."""

    mask_ratio: Fraction = 0.75
    decoder_dim: PositiveInt = 256
    decoder_depth: PositiveInt = 8
    decoder_heads: PositiveInt = 16
    normalise_targets: bool = False
    # The paper never mentions a class token; the release has one, which no pooling uses.
    class_token: bool = True
    # Standard deviation of random per-channel scaling of optical density (0 = off).
    stain_jitter: Fraction = 0.0
    optimisation: Optimisation = Optimisation(batch_size=500, epochs=10)


class MaeRegionSettings(Settings):
    """MAE-Region (section II-B.2): masking, decoder, training."""

    mask_ratio: Fraction = 0.75
    # Regions enter reduced by this factor, as exact area means (1 = the paper: every pixel).
    reduce: PositiveInt = 1
    # Epochs of MAE-PatReg where it starts from MAE-Reg's weights (None: as many as from scratch).
    warm_epochs: PositiveInt | None = None
    decoder_dim: PositiveInt = 256
    decoder_depth: PositiveInt = 4
    decoder_heads: PositiveInt = 16
    normalise_targets: bool = False
    class_token: bool = True
    stain_jitter: Fraction = 0.0
    optimisation: Optimisation = Optimisation(batch_size=10, accumulation=50, epochs=10)


class SlideSettings(Settings):
    """Tissue segmentation and the region grid."""

    preset: Literal["default", "biopsy", "resection", "tcga", "synthetic"] = "tcga"
    # None: level 0 of whatever magnification the scanner used, as in the release; otherwise micrometres per pixel.
    target_mpp: Annotated[float, Field(gt=0)] | None = None
    keep_rule: Literal["fraction", "four_point"] = "fraction"
    min_tissue: Fraction = 0.5
    max_bad_regions: Fraction = 0.1
    # Regions that overrun the right or lower edge of the slide, filled up with white.
    pad_edges: bool = False
    # Take ink of marker pens and black borders out of the tissue mask.
    remove_pen: bool = True
    # CSV with columns slide (file name or glob), mpp: for files that do not say their resolution.
    mpp_table: str | None = None


class OmicsSettings(Settings):
    """From raw tables to 3 x top_k (section III-A)."""

    top_k: PositiveInt = 300
    neighbours: PositiveInt = 5
    max_missing: Fraction = 0.2
    differential: Literal["deseq2", "cox_score"] = "deseq2"
    contrast: Literal["horizon", "event", "tumour_normal"] = "horizon"
    horizon_days: PositiveInt = 1095
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.05
    # The forest ranks this many candidates of the differential test; None: all that pass alpha, or all of them.
    candidates: PositiveInt | None = 3000
    trees: PositiveInt = 1000
    importance: Literal["oob", "permutation"] = "oob"
    importance_repeats: PositiveInt = 5
    # Order of the candidates: importance (the paper), or the mean of its rank and the test's (far more stable).
    rank: Literal["importance", "combined"] = "combined"
    # What is done with the values of a table (hcmae/omics/scales.py), against what its unit says. Default: what the
    # reader marked (uns["unit"]: columns.json or recognised), else counts for rna and mirna, beta for methylation.
    values: dict[str, Literal["counts", "rpm", "log", "beta", "mvalue", "auto"]] = {}
    # A gene or miRNA is kept with at least min_count reads in at least min_expressed of the fitted patients.
    min_count: Annotated[int, Field(ge=0)] = 10
    # The same for tables of RPM, TPM or FPKM and for their logarithms: at least min_rpm.
    min_rpm: Annotated[float, Field(ge=0)] = 1.0
    min_expressed: Fraction = 0.1
    # deseq2: the literal reading, beta values rounded to pseudo-counts.
    methylation_test: Literal["moderated_t", "deseq2"] = "moderated_t"
    # library: scikit-survival's forest and scikit-learn's in-sample importance, for whoever prefers them.
    forest: Literal["compiled", "library"] = "compiled"
    # Standardised values are cut at this many standard deviations.
    clip: Annotated[float, Field(gt=0)] = 5.0


class SurvivalSettings(Settings):
    """Survival network and its training (section III-A; page *Paper versus release*, survival)."""

    network: Network = Network()
    learning_rate: Annotated[float, Field(gt=0)] = 6e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    epochs: PositiveInt = 80
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    # linear: falls by the same step at every update, as GPDBN and CAMR were trained.
    schedule: Literal["cosine", "constant", "linear"] = "constant"
    # Patients per Cox group (60 accumulation steps in the paper); None: the whole training set is one risk set.
    group: PositiveInt | None = 60
    clip_norm: float | None = 1.0
    dropout: Fraction = 0.0
    folds: Annotated[int, Field(ge=2)] = 5
    # stratified: equal shares of deaths and times; site_preserved: no hospital in two folds, as equal as that allows.
    fold_kind: Literal["stratified", "site_preserved"] = "stratified"
    repeats: PositiveInt = 1
    inner_fraction: Fraction = 0.2
    # How many networks, differing in initial weights, are averaged per fold (1 = the paper).
    ensemble: PositiveInt = 1
    # Share of regions dropped at random from each bag in training (0 = the paper).
    region_dropout: Fraction = 0.0
    # Share of omics inputs set to zero at random in training (0 = the paper).
    omics_dropout: Fraction = 0.0
    # Standardise region and patch vectors by the training patients inside the network (off = the paper).
    scale_vectors: bool = True
    # At most so many vectors of a bag are drawn per training step (None = all; bags of patches can hold 50,000).
    bag_limit: PositiveInt | None = None
    # Patients with their bags per forward pass inside a group; the gradient is that of the whole group (None = all at
    # once). GPDBN and CAMR have no bags, and nothing to part.
    micro_batch: PositiveInt | None = None
    ties: Literal["breslow", "efron"] = "breslow"
    # Stop when the inner C-index has not risen for so many epochs, or for such a share of a method's epochs (None =
    # never; only with Protocol.epoch = inner).
    patience: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None


class Fidelity(Settings):
    """Readings of paper, prose and release that disagree, as named switches (page paper versus release lists all)."""

    # Weight decay of "Adam": taken off the weights (AdamW), or added to the gradient, which kills the network.
    adam_decay: Literal["decoupled", "l2"] = "decoupled"
    region_attention: Literal["q_enc_kv_patch", "eq4", "prose", "none"] = "q_enc_kv_patch"
    region_residual: bool = False
    # MAE-PatReg starts from the weights of MAE-Reg (the release) instead of from scratch.
    region_warm_start: bool = False
    extract_depth: PositiveInt | None = None
    extract_norm: Literal["encoder", "after_mean"] = "encoder"
    extract_augment: bool = False
    augment: Literal["none", "joint", "release"] = "joint"
    slide_positions: bool = True
    omics_projection: Literal["shared", "separate"] = "shared"
    pooler: Literal["separate", "shared"] = "separate"
    risk_head: Literal["scaled_sigmoid", "sigmoid", "linear"] = "scaled_sigmoid"
    cox_divisor: Literal["events", "events_plus_one"] = "events"
    max_regions: PositiveInt | None = None
    drop_last_group: bool = False

    @classmethod
    def preset(cls, name: Literal["paper", "release"]) -> Fidelity:
        """The paper's readings (where it leaves one) or every choice of the authors' release, broken ones included."""
        if name == "paper":
            return cls()
        if name == "release":
            return cls(
                region_warm_start=True,
                extract_depth=6,
                extract_norm="after_mean",
                extract_augment=True,
                augment="release",
                slide_positions=False,
                pooler="shared",
                cox_divisor="events_plus_one",
                max_regions=512,
                drop_last_group=True,
            )
        raise ConfigError(f"unknown fidelity preset '{name}': choose 'paper' or 'release'")


class Protocol(Settings):
    """Who is allowed to see the test fold. Two presets: honest, paper; any leak can be switched on alone."""

    name: str = "honest"
    # train: differential tests, forest, imputation and scaling see the training part of a fold only; all: everybody.
    select_on: Literal["train", "all"] = "train"
    # last: fixed number of epochs; inner: best on an inner validation part; best_test: the release's habit.
    epoch: Literal["last", "inner", "best_test"] = "inner"

    @classmethod
    def named(cls, name: str) -> Protocol | None:
        """The preset of a name; None for a protocol of one's own."""
        return cls.preset(name) if name in ("honest", "paper") else None  # type: ignore[arg-type]

    @classmethod
    def preset(cls, name: Literal["honest", "paper"]) -> Protocol:
        """The two protocols: honest leaks nothing, paper selects on everybody and reads the best test epoch."""
        if name == "honest":
            return cls()
        if name == "paper":
            return cls(name="paper", select_on="all", epoch="best_test")
        raise ConfigError(f"unknown protocol '{name}': choose 'honest' or 'paper'")


class DinoStage(Settings):
    """One of HIPT's two pre-training stages by DINO: network, crops in cells (tokens), head, schedules."""

    network: Network = Network(dim=384, depth=12, heads=6)
    drop_path: Fraction = 0.1
    # Sides of the crops, in tokens: 14 x 16 = 224 pixels, 6 x 16 = 96 pixels (stage 2: patches of the grid).
    global_cells: PositiveInt = 14
    local_cells: PositiveInt = 6
    local_crops: Annotated[int, Field(ge=0)] = 8
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    # Strength of brightness, contrast, saturation and hue jitter (stage 1 only). What is jittered away is not learnt.
    jitter: tuple[Fraction, Fraction, Fraction, Fraction] = (0.4, 0.4, 0.2, 0.1)
    prototypes: PositiveInt = 65536
    hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    # None: the budget (images per epoch, epochs) of the masked autoencoder of the same level.
    epochs: PositiveInt | None = None
    samples_per_epoch: PositiveInt | None = None
    batch_size: PositiveInt = 256
    # Per 256 images; warm-up and frozen prototypes as shares of all steps (10 and 1 of HIPT's 100 epochs).
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    warmup: Fraction = 0.1
    frozen: Fraction = 0.01
    weight_decay: tuple[float, float] = (0.04, 0.4)
    clip_norm: Annotated[float, Field(gt=0)] = 3.0
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.04
    teacher_momentum: Fraction = 0.996
    centre_momentum: Fraction = 0.9


class DinoSettings(Settings):
    """HIPT's self-supervised stages: cells to patch, patches to region. Defaults are HIPT's figures."""

    patch: DinoStage = DinoStage()
    region: DinoStage = DinoStage(network=Network(dim=192, depth=6, heads=6))


class MethodSettings(Settings):
    """Optimisation of one compared method; None takes the value of the survival stage (dropout: see there)."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    epochs: PositiveInt | None = None
    # Patients per update (0: all training patients at once).
    group: Annotated[int, Field(ge=0)] | None = None
    schedule: Literal["cosine", "constant", "linear"] | None = None
    # None: that of the publication. Refused for DeepCorrSurv, whose networks have none.
    dropout: Fraction | None = None


class ComparisonSettings(Settings):
    """Compared methods (Table II): published sizes and optimisers as defaults; the smoke profile shrinks them."""

    # Selected features per input of GPDBN and of CAMR (fewer where the data hold fewer).
    gpdbn_features: PositiveInt = 32
    camr_features: PositiveInt = 80
    camr_aligned: bool = True
    mcat_dim: PositiveInt = 256
    hipt_dim: PositiveInt = 192
    clam_dim: PositiveInt = 512
    bins: Annotated[int, Field(ge=2)] = 4
    # MCAT and HIPT draw the patients of an epoch so that every time bin, dead or censored, comes equally often.
    balanced_sampling: bool = True
    # Epochs of DeepCorrSurv's first stage, which makes images and omics correlate.
    correlation_epochs: Annotated[int, Field(ge=0)] = 30
    correlation_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    gpdbn: MethodSettings = MethodSettings(
        learning_rate=2e-4, weight_decay=1e-6, epochs=150, group=0, schedule="linear"
    )
    camr: MethodSettings = MethodSettings(learning_rate=4e-4, weight_decay=1e-6, epochs=80, group=0, schedule="linear")
    deepcorrsurv: MethodSettings = MethodSettings(learning_rate=1e-4, schedule="constant")
    deepcorrsurv_hc: MethodSettings = MethodSettings()
    mcat: MethodSettings = MethodSettings(
        learning_rate=2e-4, weight_decay=1e-5, epochs=20, group=32, schedule="constant"
    )
    hipt: MethodSettings = MethodSettings(
        learning_rate=2e-4, weight_decay=1e-5, epochs=20, group=32, schedule="constant"
    )
    hipt_integration: MethodSettings = MethodSettings()
    clam_sb: MethodSettings = MethodSettings(
        learning_rate=1e-4, weight_decay=1e-5, epochs=200, group=1, schedule="constant"
    )


class HandcraftedSettings(Settings):
    """CellProfiler-style features of nuclei (GPDBN, CAMR)."""

    # Patches measured per slide: the densest of four times as many, drawn from at most so many regions.
    patches: PositiveInt = 40
    regions: PositiveInt = 10
    channels: tuple[Literal["hematoxylin", "eosin", "grey"], ...] = ("hematoxylin", "eosin", "grey")
    # Grey levels of the Haralick texture (CellProfiler: 256).
    grey_levels: Annotated[int, Field(ge=2, le=256)] = 256
    # Areas in pixels; diameters of the pipeline of the public H&E recipe are 10 to 40.
    min_area: PositiveInt = 30
    min_distance: PositiveInt = 5
    threshold_correction: Annotated[float, Field(gt=0)] = 1.0
    # Without accelerator every patch costs ten times as much, and nothing is compiled.
    accelerate: bool = True


class SyntheticSettings(Settings):
    """Size of the synthetic twins in this profile."""

    patient_scale: Annotated[float, Field(gt=0)] = 1.0
    # Mean regions per slide, as a share of the real cancer's mean (Table I).
    region_scale: Annotated[float, Field(gt=0)] = 1.0
    genes: PositiveInt = 20000
    mirnas: PositiveInt = 1881
    probes: PositiveInt = 50000
    jpeg_quality: Annotated[int, Field(ge=30, le=100)] = 85


class Compute(Settings):
    """Devices, precision, loaders."""

    precision: Literal["auto", "32", "bf16"] = "auto"
    # Networks in training as one compiled graph each (a minute or more for the first step).
    compile: bool = False
    workers: Annotated[int, Field(ge=0)] = 2
    # What decodes regions for pre-training: threads share one interpreter; processes start slowly and scale further.
    # auto: processes for a GPU with more than four workers.
    decoders: Literal["auto", "threads", "processes"] = "auto"
    # Vectors and thumbnails of a cohort in the memory of survival training, in GiB; what is more is read from the
    # stores as it is needed (the system keeps what it has room for).
    memory_gib: Annotated[float, Field(gt=0)] = 8.0


class Profile(Settings):
    """Sizes and schedule of a run: smoke, workstation or paper."""

    name: str
    # Cancers whose slides pre-train the networks (None: every one that has been cut into regions under this profile).
    pool: tuple[str, ...] | None = None
    geometry: Geometry = Geometry()
    network: Network = Network()
    mae_patch: MaePatchSettings = MaePatchSettings()
    mae_region: MaeRegionSettings = MaeRegionSettings()
    slides: SlideSettings = SlideSettings()
    omics: OmicsSettings = OmicsSettings()
    survival: SurvivalSettings = SurvivalSettings()
    fidelity: Fidelity = Fidelity()
    dino: DinoSettings = DinoSettings()
    handcrafted: HandcraftedSettings = HandcraftedSettings()
    comparisons: ComparisonSettings = ComparisonSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _reduced_patches_exist(self) -> Self:
        if self.geometry.patch % self.mae_region.reduce:
            raise ValueError(
                f"mae_region.reduce ({self.mae_region.reduce}) must divide geometry.patch ({self.geometry.patch})"
            )
        return self


def load_profile(name: str | Path, overrides: dict[str, Any] | None = None) -> Profile:
    """Read a profile by name ('smoke', 'workstation', 'paper') or path, with optional dotted overrides.

    ``overrides`` maps dotted keys to values, e.g. ``{"survival.epochs": 5}``.
    Raises ConfigError naming file, key and what to do.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else _PROFILE_DIR / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(
            f"unknown profile '{name}': choose one of {', '.join(PROFILES)} or give the path of a YAML file"
        )
    raw = read_yaml(path)
    for dotted, value in (overrides or {}).items():
        _assign(raw, dotted, value)
    return validated(Profile, raw, path)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    # Besides its own errors PyYAML raises those of the values it makes: a 13th month, a list as a key, endless depth.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}; correct it there") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(raw).__name__}")
    return raw


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        raw = raw.setdefault(key, {})
    raw[last] = value


def validated(model: type[_T], raw: dict[str, Any], path: Path) -> _T:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"]) or "(file)"
            hint = (
                "unknown key: remove it or correct its spelling" if item["type"] == "extra_forbidden" else item["msg"]
            )
            lines.append(f"  {key}: {hint}")
        raise ConfigError(f"{path}: {len(lines)} setting(s) cannot be used\n" + "\n".join(lines)) from None
