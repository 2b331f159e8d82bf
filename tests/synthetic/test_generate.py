"""Synthetic cohorts: real formats, known truth, and factors that can be seen only where they should be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hcmae.config import CANCERS, Geometry, Profile, load_profile
from hcmae.manifest import Manifest, load_manifest
from hcmae.synthetic import concordance, generate_cohort, histology, simulate_survival
from hcmae.synthetic.latent import EXCLUSIONS, FACTORS, cohort_size, draw_patients, oracle_c_index
from hcmae.synthetic.slide_writer import SlidePlan, paint_slide, plan_slide, write_slide
from hcmae.synthetic.survival_times import simulate_times

SMOKE = Geometry(region=512, patch=64, cell=16, thumbnail=32)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_manifest("LIHC")


@pytest.fixture(scope="module")
def cohort(manifest: Manifest, tiny_profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny cohort on disk."""
    return generate_cohort(
        manifest, tiny_profile, tmp_path_factory.mktemp("synthetic") / "LIHC", 3, workers=1, progress=False
    )


def _lock(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "files.tsv", sep="\t", dtype={"size": int})


def _digests(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".parquet"]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------- slides


def test_slide_opens_as_aperio(tmp_path: Path) -> None:
    plan = plan_slide(5, 3, np.random.default_rng(0))
    path = tmp_path / "slide.svs"
    write_slide(path, plan, SMOKE, cell=0.0, architecture=0.0, seed=[1, 2], quality=85, barcode="TCGA-Y0-S001")
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.5
        assert float(slide.properties["openslide.objective-power"]) == 20
        assert [round(factor) for factor in slide.level_downsamples][:2] == [1, 4]
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        # The colours survive (a wrong photometric tag would turn the slide pink-green).
        x, y = plan.corners(512)[0]
        read = np.asarray(slide.read_region((x, y), 0, (512, 512)).convert("RGB")).astype(int)
        level = slide.level_dimensions[1]
        small = np.asarray(slide.read_region((0, 0), 1, level).convert("RGB")).astype(int)
    painted = paint_slide(plan, SMOKE, cell=0.0, architecture=0.0, seed=[1, 2])
    assert np.abs(read - painted[y : y + 512, x : x + 512]).mean() < 6
    expected = cv2.resize(painted, level, interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - expected).mean() < 4
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        assert page.is_tiled
        assert (page.tilewidth, page.tilelength) == (256, 256)
        assert page.photometric.name == "YCBCR"
        assert page.description.startswith("Aperio")
        assert "|AppMag = 20|" in page.description
        assert page.description.endswith("|MPP = 0.5000")


def test_full_size_region_is_painted_with_small_nuclei() -> None:
    geometry = Geometry()
    kinds = histology.patch_kinds(geometry.patches_per_side, 1.0, 4)
    assert kinds.shape == (16, 16)
    h = np.zeros((256, 4096), dtype=np.uint8)
    e = np.zeros_like(h)
    grain, fibres = histology.textures()
    ground = histology.draw_ground(np.random.default_rng(0))
    nests = np.full((1, 1), histology.NEST, dtype=np.int8)
    histology.paint_region(h, e, 0, 0, 0, 256, nests, 0.0, ground, grain, fibres, np.uint64(5))
    count, _, stats, _ = cv2.connectedComponentsWithStats((h[:, :256] > 52).astype(np.uint8))
    sides = stats[1:, 2:4].max(axis=1)
    # Many nuclei of some seven pixels in one 256-pixel patch: not a few giant ones.
    assert count > 100
    assert 5 <= np.median(sides) <= 16


@pytest.mark.slow
def test_slide_at_the_geometry_of_the_paper(tmp_path: Path) -> None:
    plan = plan_slide(3, 2, np.random.default_rng(0), widest=8)
    path = tmp_path / "slide.svs"
    write_slide(path, plan, Geometry(), cell=0.5, architecture=1.0, seed=[1], quality=85, barcode="TCGA-Y0-S001")
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == ((plan.columns + 1) * 4096 + 2048, (plan.rows + 1) * 4096 + 2048)
        assert [round(factor) for factor in slide.level_downsamples] == [1, 4, 16]
        overview = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]).convert("RGB")).astype(int)
    tissue = np.zeros(overview.shape[:2], dtype=bool)
    for x, y in plan.corners(4096):
        tissue[y // 16 : (y + 4096) // 16, x // 16 : (x + 4096) // 16] = True
    pink = overview[:, :, 0] - overview[:, :, 1] > 10
    assert pink[tissue].mean() > 0.8
    assert pink[~tissue].mean() < 0.01


def test_number_of_each_kind_does_not_depend_on_architecture() -> None:
    for side in (4, 8, 16):
        counts = {
            tuple(np.bincount(histology.patch_kinds(side, a, seed).ravel(), minlength=3))
            for a in (-2.2, -1.0, 0.0, 1.0, 2.2)
            for seed in range(5)
        }
        assert len(counts) == 1


def test_arrangement_follows_architecture() -> None:
    for side in (8, 16):
        centrality = [
            np.mean([histology.nest_centrality(histology.patch_kinds(side, a, seed)) for seed in range(20)])
            for a in (-2.0, -1.0, 0.0, 1.0, 2.0)
        ]
        assert np.all(np.diff(centrality) > 0.15), centrality
        assert centrality[0] < -1.0
        assert abs(centrality[2]) < 0.2
        assert centrality[-1] > 1.0


def test_paint_of_a_patch_ignores_its_neighbours() -> None:
    """Exchange every patch but one: the one stays the same to the last pixel."""
    grain, fibres = histology.textures()
    ground = histology.draw_ground(np.random.default_rng(0))
    pictures = []
    for other in (histology.NEST, histology.STROMA, histology.MUCIN):
        kinds = np.full((3, 3), other, dtype=np.int8)
        kinds[1, 1] = histology.NEST
        h = np.zeros((192, 192), dtype=np.uint8)
        e = np.zeros_like(h)
        histology.paint_region(h, e, 0, 0, 0, 64, kinds, 1.0, ground, grain, fibres, np.uint64(9))
        pictures.append(np.stack([h, e])[:, 64:128, 64:128])
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


# ---------------------------------------------------------------- where each factor can be seen


def _patch_statistics(region: np.ndarray, patch: int) -> np.ndarray:
    """Statistics of each single patch [P, F]: colour means, spreads, quantiles, dark share, gradients."""
    side = region.shape[0] // patch
    patches = region.reshape(side, patch, side, patch, 3).transpose(0, 2, 1, 3, 4).reshape(-1, patch, patch, 3)
    flat = patches.reshape(len(patches), -1, 3).astype(np.float32)
    grey = patches.astype(np.float32).mean(axis=3)
    gradient = np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    quantiles = np.quantile(flat[:, ::16, 0], [0.02, 0.1, 0.25, 0.5, 0.9], axis=1).T
    dark = np.stack([(flat[:, :, 0] < limit).mean(axis=1) for limit in (90, 110, 130, 150)], axis=1)
    return np.column_stack([flat.mean(axis=1), flat.std(axis=1), quantiles, dark, gradient])


def _bag(statistics: np.ndarray) -> np.ndarray:
    """What can be known of a bag of patches without their places: moments and quantiles of each statistic."""
    quantiles = np.quantile(statistics, [0.1, 0.25, 0.5, 0.75, 0.9], axis=0)
    return np.concatenate([statistics.mean(axis=0), statistics.std(axis=0), quantiles.ravel()])


def _layout(region: np.ndarray, patch: int) -> np.ndarray:
    """Where the colours lie: correlation of a patch's mean colour with its distance from the centre."""
    side = region.shape[0] // patch
    colour = region.reshape(side, patch, side, patch, 3).mean(axis=(1, 3)).reshape(side * side, 3)
    distance = histology.eccentricity(side)
    inside = histology.core(side)
    return np.array([np.corrcoef(distance[inside], channel[inside])[0, 1] for channel in colour.T])


@pytest.fixture(scope="module")
def painted() -> dict[str, np.ndarray]:
    """240 patients with one tumour region and one normal region each: factors, bags of patches, layouts."""
    rng = np.random.default_rng(11)
    n = 240
    cell, architecture = rng.uniform(-2, 2, n), rng.uniform(-2, 2, n)
    plan = SlidePlan(2, 1, ((0, 0), (0, 1)), (True, False))
    (x, y), (x2, _) = plan.corners(512)
    bags, normal_bags, layouts = [], [], []
    for i in range(n):
        picture = paint_slide(plan, SMOKE, cell=cell[i], architecture=architecture[i], seed=[5, i])
        tumour, normal = picture[y : y + 512, x : x + 512], picture[y : y + 512, x2 : x2 + 512]
        bags.append(_bag(_patch_statistics(tumour, 64)))
        normal_bags.append(_bag(_patch_statistics(normal, 64)))
        layouts.append(_layout(tumour, 64))
    return {
        "cell": cell,
        "architecture": architecture,
        "bag": np.array(bags),
        "normal_bag": np.array(normal_bags),
        "layout": np.array(layouts),
    }


def _auc(features: np.ndarray, label: np.ndarray, strength: float) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    return float(roc_auc_score(label, cross_val_predict(model, features, label, cv=5, method="decision_function")))


@pytest.mark.slow
def test_architecture_is_invisible_in_bags_of_patches_and_visible_in_the_layout(painted: dict[str, np.ndarray]) -> None:
    high = painted["architecture"] > 0
    from_patches = [_auc(painted["bag"], high, strength) for strength in (1e-3, 1e-2, 1e-1)]
    assert all(0.4 <= auc <= 0.6 for auc in from_patches), from_patches
    assert _auc(painted["layout"], high, 1.0) > 0.85


@pytest.mark.slow
def test_neither_bag_nor_layout_sees_the_cell_factor(painted: dict[str, np.ndarray]) -> None:
    high = painted["cell"] > 0
    found = [_auc(painted["bag"], high, strength) for strength in (1e-3, 1e-2, 1e-1)]
    assert all(0.35 <= auc <= 0.65 for auc in (*found, _auc(painted["layout"], high, 1.0))), found


@pytest.mark.slow
def test_the_same_bag_classifier_does_see_what_a_region_is_made_of(painted: dict[str, np.ndarray]) -> None:
    """Control of the tests above: its features are not blind, they tell tumour from normal tissue at once."""
    bags = np.concatenate([painted["bag"], painted["normal_bag"]])
    assert _auc(bags, np.repeat([True, False], len(painted["bag"])), 1e-2) > 0.99


# ---------------------------------------------------------------- the hazard


@pytest.mark.parametrize("cancer", CANCERS)
def test_twin_has_its_size_event_rate_and_oracle(cancer: str) -> None:
    manifest, profile = load_manifest(cancer), load_profile("smoke")
    patients, truth = draw_patients(manifest, profile, 0)
    n = cohort_size(manifest, profile)
    assert len(truth) == n == sum(not p.exclusion for p in patients)
    assert len(patients) == n + len(EXCLUSIONS)
    assert abs(truth["event"].mean() - manifest.synthetic.event_rate) <= 1 / n
    assert truth["time"].min() >= manifest.inclusion.min_days
    assert truth.index.is_unique
    assert np.allclose(truth[list(FACTORS)].mean(), 0, atol=1e-9)
    assert np.allclose(truth[list(FACTORS)].std(ddof=0), 1)
    weights = manifest.synthetic.hazard.model_dump()
    mix = sum(weight * truth[name] for name, weight in weights.items())
    assert np.allclose(truth["log_hazard"], mix - mix.mean())
    assert 0.55 < truth["cell"].corr(truth["shared"]) < 0.85
    assert 0.80 <= oracle_c_index(truth) <= 0.92


def test_null_cohort_has_no_signal(manifest: Manifest) -> None:
    patients, truth = draw_patients(manifest, load_profile("smoke"), 0, null=True)
    assert oracle_c_index(truth) == 0.5
    assert (truth["log_hazard"] == 0).all()
    assert all(p.barcode.startswith("TCGA-YN-") for p in patients)
    weights = manifest.synthetic.hazard.model_dump()
    scores = []
    for seed in range(12):
        _, truth = draw_patients(manifest, load_profile("smoke"), seed, null=True)
        mix = sum(weight * truth[name] for name, weight in weights.items())
        scores.append(concordance(truth["time"].to_numpy(), truth["event"].to_numpy(), mix.to_numpy()))
    assert abs(np.mean(scores) - 0.5) < 0.03


def test_concordance_agrees_with_scikit_survival() -> None:
    from sksurv.metrics import concordance_index_censored

    rng = np.random.default_rng(0)
    time, event, risk = rng.integers(1, 60, 150), rng.integers(0, 2, 150), rng.integers(0, 30, 150) / 7
    expected = concordance_index_censored(event.astype(bool), time, risk)[0]
    assert concordance(time, event, risk) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="no comparable pair"):
        concordance(time, np.zeros(150), risk)


def test_simulated_times_follow_their_law() -> None:
    rng = np.random.default_rng(1)
    for shape in (1.0, 1.7):
        times = simulate_times(np.zeros(20000), 1000.0, rng, shape=shape)
        assert np.median(times) == pytest.approx(1000, rel=0.04)
        # Weibull: S(2 * median) = 2 ** -(2 ** shape).
        assert (times > 2000).mean() == pytest.approx(2.0 ** -(2.0**shape), abs=0.012)
    doubled = simulate_times(np.full(20000, np.log(2.0)), 1000.0, rng)
    assert np.median(doubled) == pytest.approx(500, rel=0.04)


@pytest.mark.parametrize("rate", [0.1, 0.45, 0.9, 1.0])
def test_censoring_reaches_the_event_rate(rate: float) -> None:
    study = simulate_survival(np.random.default_rng(2).normal(size=300), event_rate=rate, seed=5)
    assert study.event.mean() == pytest.approx(rate, abs=1 / 300)
    assert np.array_equal(study.time, np.minimum(study.event_time, study.censoring_time))
    with pytest.raises(ValueError, match="event_rate"):
        simulate_survival(np.zeros(5), event_rate=0.0)


# ---------------------------------------------------------------- the cohort on disk


@pytest.mark.slow
def test_layout_and_lock(cohort: Path, manifest: Manifest, tiny_profile: Profile) -> None:
    lock = _lock(cohort)
    assert list(lock.columns) == ["id", "filename", "md5", "size", "state", "sample", "case", "modality", "release"]
    assert lock["id"].is_unique
    on_disk = {
        p.relative_to(cohort) for m in ("slides", "rna", "mirna", "methylation") for p in (cohort / m).rglob("*.*")
    }
    named = {Path(row.modality) / row.id / row.filename for row in lock.itertuples()}
    assert named == on_disk
    for row in lock.itertuples():
        data = (cohort / row.modality / row.id / row.filename).read_bytes()
        assert (len(data), hashlib.md5(data).hexdigest()) == (row.size, row.md5)
    truth = json.loads((cohort / "truth.json").read_text())
    table = pd.read_parquet(cohort / "truth.parquet")
    assert len(table) == cohort_size(manifest, tiny_profile) == truth["patients"]
    assert truth["oracle_c_index"] == pytest.approx(oracle_c_index(table))
    regions = pd.read_parquet(cohort / "truth_regions.parquet")
    assert set(table.index) <= set(regions["patient"])
    # The realised share of tumour is the burden.
    first = regions[regions["slide"].str.contains("-DX1")].groupby("patient")["tumour"].mean().loc[table.index]
    assert first.corr(table["burden"]) == pytest.approx(1.0)


@pytest.mark.slow
def test_same_seed_same_bytes_other_seed_other_bytes(
    cohort: Path, manifest: Manifest, tiny_profile: Profile, tmp_path: Path
) -> None:
    again = generate_cohort(manifest, tiny_profile, tmp_path / "again", 3, workers=1, progress=False)
    assert _digests(again) == _digests(cohort)
    assert pd.read_parquet(again / "truth.parquet").equals(pd.read_parquet(cohort / "truth.parquet"))
    patients, _ = draw_patients(manifest, tiny_profile, 3)
    others, _ = draw_patients(manifest, tiny_profile, 4)
    assert [p.cell for p in patients] != [p.cell for p in others]


@pytest.mark.slow
def test_workers_do_not_change_a_byte(cohort: Path, manifest: Manifest, tiny_profile: Profile, tmp_path: Path) -> None:
    parallel = generate_cohort(manifest, tiny_profile, tmp_path / "parallel", 3, workers=2, progress=False)
    assert _digests(parallel) == _digests(cohort)


@pytest.mark.slow
def test_interrupted_cohort_continues_and_finished_one_is_left_alone(
    cohort: Path, manifest: Manifest, tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hcmae.synthetic import generate

    original = generate._write_patient
    calls: list[str] = []

    def dies(patient, context):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(patient.barcode)
        original(patient, context)

    root = tmp_path / "cohort"
    monkeypatch.setattr(generate, "_write_patient", dies)
    with pytest.raises(KeyboardInterrupt):
        generate_cohort(manifest, tiny_profile, root, 3, workers=1, progress=False)
    assert not (root / "files.tsv").exists()

    def counts(patient, context):
        calls.append(patient.barcode)
        original(patient, context)

    monkeypatch.setattr(generate, "_write_patient", counts)
    generate_cohort(manifest, tiny_profile, root, 3, workers=1, progress=False)
    assert len(calls) == len(set(calls)) == len(draw_patients(manifest, tiny_profile, 3)[0])
    assert _digests(root) == _digests(cohort)
    done = len(calls)
    generate_cohort(manifest, tiny_profile, root, 3, workers=1, progress=False)
    assert len(calls) == done
    # A lost file makes the cohort incomplete: it is written again.
    next((root / "rna").rglob("*.tsv")).unlink()
    generate_cohort(manifest, tiny_profile, root, 3, workers=1, progress=False)
    assert _digests(root) == _digests(cohort)


def test_foreign_folder_is_not_touched(manifest: Manifest, tiny_profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "mine.svs").write_text("precious")
    with pytest.raises(ValueError, match="no synthetic cohort"):
        generate_cohort(manifest, tiny_profile, tmp_path, 0, workers=1, progress=False)
    assert (tmp_path / "slides" / "mine.svs").read_text() == "precious"


def test_omics_files_have_the_formats_of_the_gdc(cohort: Path, tiny_profile: Profile) -> None:
    lock = _lock(cohort).set_index("modality")

    def first(modality: str) -> Path:
        row = lock.loc[[modality]].iloc[0]
        return cohort / modality / row["id"] / row["filename"]

    text = first("rna").read_text().splitlines()
    assert text[0] == "# gene-model: GENCODE v36"
    assert [line.split("\t")[0] for line in text[2:6]] == ["N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"]
    rna = pd.read_csv(first("rna"), sep="\t", comment="#")
    genes = rna[~rna["gene_id"].str.startswith("N_")]
    assert len(genes) == tiny_profile.synthetic.genes
    assert genes["gene_id"].str.match(r"^ENSG\d{11}\.\d+(_PAR_Y)?$").all()
    assert genes["gene_id"].is_unique
    assert not genes["gene_name"].is_unique
    assert (genes["unstranded"] == genes["stranded_first"] + genes["stranded_second"]).all()
    assert genes["tpm_unstranded"].sum() == pytest.approx(1e6, rel=1e-3)
    mirna = pd.read_csv(first("mirna"), sep="\t")
    assert list(mirna.columns) == ["miRNA_ID", "read_count", "reads_per_million_miRNA_mapped", "cross-mapped"]
    assert mirna["reads_per_million_miRNA_mapped"].sum() == pytest.approx(1e6, rel=1e-3)
    assert set(mirna["cross-mapped"]) <= {"Y", "N"}
    betas = pd.read_csv(first("methylation"), sep="\t", header=None, index_col=0)[1]
    assert betas.dropna().between(0, 1).all()
    assert betas.isna().any()
    assert {name[:2] for name in betas.index} == {"cg", "ch", "rs"}


@pytest.mark.slow
def test_planted_features_follow_their_programme(manifest: Manifest, tmp_path: Path) -> None:
    """Planted features move with their factor in the planted direction; unplanted ones do not."""
    from hcmae.synthetic import omics_files

    settings = load_profile("smoke").synthetic
    catalogue = omics_files.draw_catalogue(settings, 0)
    rng = np.random.default_rng(0)
    n = 60
    programmes = rng.normal(size=(n, 2 + omics_files.DISTRACTORS))
    writers = {
        "rna": (omics_files.write_rna, {"comment": "#", "usecols": [0, 3], "index_col": 0}),
        "mirna": (omics_files.write_mirna, {"usecols": [0, 1], "index_col": 0}),
        "methylation": (omics_files.write_methylation, {"header": None, "index_col": 0}),
    }
    for modality, (write, how) in writers.items():
        features = getattr(catalogue, modality)
        columns = []
        for i in range(n):
            path = tmp_path / f"{modality}.txt"
            write(path, features, programmes[i], np.random.default_rng([9, i]))
            columns.append(pd.read_csv(path, sep="\t", **how).iloc[:, 0])
        table = pd.concat(columns, axis=1).loc[features.names].to_numpy(float)
        if modality != "methylation":
            table = np.log2(table / table.sum(axis=0) * 1e6 + 1)
        names = {name: i for i, name in enumerate(features.names)}
        for column, programme in enumerate(("shared", "omics")):
            planted = features.planted()[programme]
            assert len(planted["up"]) >= 15
            up = np.nanmean(table[[names[name] for name in planted["up"]]], axis=0)
            down = np.nanmean(table[[names[name] for name in planted["down"]]], axis=0)
            assert np.corrcoef(up - down, programmes[:, column])[0, 1] > 0.95
        free = np.abs(features.loadings).sum(axis=1) == 0
        noise = np.nanmean(table[free], axis=0)
        assert abs(np.corrcoef(noise, programmes[:, 0])[0, 1]) < 0.4
    sparse = catalogue.methylation.sparse
    assert np.isnan(table[sparse]).mean() > 0.5
    assert np.isnan(table[~sparse]).mean() < 0.03


def test_library_size_varies(cohort: Path) -> None:
    totals = [pd.read_csv(p, sep="\t", comment="#")["unstranded"][4:].sum() for p in (cohort / "rna").rglob("*.tsv")]
    assert np.std(np.log(totals)) > 0.15


# ---------------------------------------------------------------- what curation must find


def _days(hit: dict) -> tuple[str, float | None]:
    """Survival time as the GDC itself computes it since 2026."""
    demographic = hit["demographic"]
    days = [d.get("days_to_last_follow_up") for d in hit["diagnoses"] if d.get("classification_of_tumor") == "primary"]
    days += [f.get("days_to_follow_up") for f in hit.get("follow_ups", [])]
    known = [day for day in days if day is not None]
    if demographic["vital_status"] == "Dead":
        return "Dead", demographic.get("days_to_death")
    return demographic["vital_status"], max(known) if known else None


def test_clinical_records_give_back_time_and_event(cohort: Path) -> None:
    hits = {hit["submitter_id"]: hit for hit in json.loads((cohort / "clinical.json").read_text())}
    truth = pd.read_parquet(cohort / "truth.parquet")
    for patient, row in truth.iterrows():
        status, days = _days(hits[patient])
        assert (status, days) == ("Dead" if row["event"] else "Alive", row["time"])


def test_every_planted_exclusion_exists(cohort: Path) -> None:
    truth = json.loads((cohort / "truth.json").read_text())
    by_reason = {reason: patient for patient, reason in truth["exclusions"].items()}
    assert set(by_reason) == set(EXCLUSIONS)
    hits = {hit["submitter_id"]: hit for hit in json.loads((cohort / "clinical.json").read_text())}
    assert by_reason["no_clinical"] not in hits
    assert _days(hits[by_reason["short_follow_up"]])[1] == 12
    assert _days(hits[by_reason["short_follow_up_death"]]) == ("Dead", 21)
    assert _days(hits[by_reason["missing_follow_up"]])[1] is None
    assert _days(hits[by_reason["negative_follow_up"]])[1] < 0
    assert _days(hits[by_reason["dead_without_date"]]) == ("Dead", None)
    assert hits[by_reason["vital_status_unknown"]]["demographic"]["vital_status"] == "Not Reported"
    lock = _lock(cohort)
    for reason, modality in (("no_slide", "slides"), *((f"no_{m}", m) for m in ("rna", "mirna", "methylation"))):
        have = set(lock.loc[lock["case"] == by_reason[reason], "modality"])
        assert have == {"slides", "rna", "mirna", "methylation"} - {modality}
    samples = lock.loc[lock["case"] == by_reason["metastasis_only"], "sample"]
    assert samples.str[13:15].eq("06").all()


def test_duplicates_are_planted_in_patients_of_the_cohort(cohort: Path) -> None:
    truth = json.loads((cohort / "truth.json").read_text())
    table = pd.read_parquet(cohort / "truth.parquet")
    lock = _lock(cohort)
    for modality, patients in (("slides", truth["duplicates"]["slides"]), ("rna", truth["duplicates"]["rna"])):
        assert len(patients) >= 2
        assert set(patients) <= set(table.index)
        for patient in patients:
            mine = lock[(lock["case"] == patient) & (lock["modality"] == modality)]
            assert mine["sample"].str[13:15].eq("01").sum() == 2
    for patient in truth["duplicates"]["normal_rna"]:
        assert (lock.loc[lock["case"] == patient, "sample"].str[13:15] == "11").sum() == 1
