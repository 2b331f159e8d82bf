"""Changes to a finished run: each makes exactly the right steps run again, and the next call runs nothing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hcmae.config import ConfigError, Profile
from hcmae.pipeline import Run
from hcmae.slides import batch
from hcmae.slides.store import SlideStore
from hcmae.survival.methods import METHODS, Method, Sizes, register
from tests.support.local_cohort import OVERRIDES, local_run, write_cohort, write_manifest, write_slide, write_tables

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CANCER = "HCC2"
PATIENTS = 24
# All that depends on what stands in the stores.
IMAGES = {
    "mae_patch", "patch_vectors", "mae_region_reg", "region_vectors_reg", "mae_region_patreg", "region_vectors",
    "nuclei",
}  # fmt: skip
METHOD = "coxnet_omics"


def walk(run: Run, *, images: bool = True) -> set[str]:
    """The whole road once; the names of the steps that did work."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.curate()
        run.make_slides(workers=1, progress=False)
        run.load_omics()
        if images:
            run.pretrain_patch(progress=False)
            run.pretrain_region("patreg", progress=False)
            run.measure_nuclei(workers=1, progress=False)
        before = _folds_on_disk(run)
        run.evaluate("own")
        run.evaluate(METHOD)
    done = set(re.findall(r"^(\w+): done in", said.getvalue(), re.MULTILINE))
    return done | {f"predictions of {name}" for name in _folds_on_disk(run) - before}


def _folds_on_disk(run: Run) -> set[str]:
    """Methods with the keys under which they have predictions of folds."""
    return {
        path.name.rpartition("-")[0] + "@" + path.name
        for path in run.dir.glob("predictions/*/parts/*")
        if path.is_dir()
    }


def steps(done: set[str]) -> set[str]:
    """Names without the keys of predictions."""
    return {name.split("@")[0] for name in done}


class Mean(torch.nn.Module):
    """A network of the user's: the mean region vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(dim, 1)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head((vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).squeeze(1)


def _build(sizes: Sizes, profile: Profile) -> torch.nn.Module:
    return Mean(sizes.vector_dim)


@pytest.fixture(autouse=True)
def own_method() -> Iterator[None]:
    """A method that only these tests know."""
    register(Method("own", "Own", "image", {"vectors": "region"}, _build), replace=True)
    yield
    METHODS.pop("own", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has been walked to its end."""
    folder = tmp_path_factory.mktemp("finished")
    write_cohort(folder, CANCER, patients=PATIENTS)
    register(Method("own", "Own", "image", {"vectors": "region"}, _build), replace=True)
    walk(local_run(folder, CANCER))
    assert walk(local_run(folder, CANCER)) == set(), "a second call of an unchanged run"
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, as somebody copies a project: other dates, other inodes, the same contents."""
    shutil.copytree(finished, tmp_path / "project", symlinks=True, copy_function=shutil.copyfile)
    return tmp_path / "project"


def root_of(project: Path) -> Path:
    return project / "data" / "local" / CANCER


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def again(project: Path) -> set[str]:
    """Steps that a call after the change runs; a second call must run nothing."""
    done = walk(local_run(project, CANCER))
    assert walk(local_run(project, CANCER)) == set(), "the second call after the change"
    return steps(done)


PREDICTIONS = {"predictions of own", f"predictions of {METHOD}"}


def test_a_copied_and_moved_project_stays_valid(project: Path, tmp_path: Path) -> None:
    shutil.move(project, tmp_path / "server")
    assert again(tmp_path / "server") == set()
    run = local_run(tmp_path / "server", CANCER)
    assert all(Path(path).is_relative_to(tmp_path / "server") for path in run.cohort().table["slide_path"])
    with SlideStore(run.stores()[0]).open_slide() as slide:
        assert slide.path.is_relative_to(tmp_path / "server")


def test_an_edit_of_the_same_size_in_the_clinical_table(project: Path) -> None:
    size = (root_of(project) / "clinical.tsv").stat().st_size
    edit(root_of(project) / "clinical.tsv", "P000\t200\t1", "P000\t900\t0")
    assert (root_of(project) / "clinical.tsv").stat().st_size == size
    # Who is in the cohort and which slides they have is the same: no network sees a difference.
    assert again(project) == {"curate"} | PREDICTIONS
    row = local_run(project, CANCER).cohort().table.loc["P000"]
    assert (row["time"], row["event"]) == (900.0, 0)


def test_an_edit_of_the_same_size_in_an_omics_table(project: Path) -> None:
    path = root_of(project) / "rna.tsv"
    lines = path.read_text().splitlines()
    cells = lines[1].split("\t")
    cells[1] = "9" * len(cells[1])
    path.write_text("\n".join([lines[0], "\t".join(cells), *lines[2:]]) + "\n")
    assert again(project) == {"curate", "omics", f"predictions of {METHOD}"}
    assert local_run(project, CANCER).omics()["rna"].X[0, 0] == float(cells[1])


def test_a_repaired_slide(project: Path) -> None:
    write_slide(root_of(project) / "slides" / "P001.svs", seed=77)
    before = _stamps(project)
    assert again(project) == {"curate", "slides", "predictions of own"} | IMAGES or again(project) == set()
    assert _changed(before, _stamps(project), "slides") >= {"P001.h5"}


def test_a_deleted_store_is_made_again_it_alone(project: Path) -> None:
    run = local_run(project, CANCER)
    kept = {path.name: SlideStore(path).content for path in run.stores()}
    run.stores()[2].unlink()
    # It holds what it held, so the networks stay; only its own vectors are written again.
    done = again(project)
    assert done == {"slides", "patch_vectors", "region_vectors_reg", "region_vectors", "nuclei"}
    assert {path.name: SlideStore(path).content for path in run.stores()} == kept


def test_an_edited_mask(project: Path) -> None:
    run = local_run(project, CANCER)
    half = [[[0, 0], [256, 0], [256, 640], [0, 640], [0, 0]]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": half},
        "properties": {"classification": {"name": "Tissue"}},
    }
    mask = run.store_dir / "P001.tissue.geojson"
    mask.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    contents = {path.stem: SlideStore(path).content for path in run.stores()}
    assert again(project) == {"slides", "predictions of own"} | IMAGES
    after = {path.stem: SlideStore(path).content for path in run.stores()}
    assert {name for name in after if after[name] != contents[name]} == {"P001"}
    assert SlideStore(run.store_dir / "P001.h5").attrs["tissue_source"] != "segmented"


def test_a_corrected_table_of_resolutions(tmp_path: Path) -> None:
    write_cohort(tmp_path, CANCER, patients=3)
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\nP000*,0.25\nP001*,0.25\n")

    def sides() -> dict[str, int]:
        run = local_run(tmp_path, CANCER, **{"slides.target_mpp": 0.5, "slides.mpp_table": str(table)})
        with contextlib.redirect_stdout(io.StringIO()):
            run.curate()
            run.make_slides(workers=1, progress=False)
        return {path.stem: SlideStore(path).side for path in run.stores()}

    for path in (root_of(tmp_path) / "slides").glob("*.svs"):
        _plain_pyramid(path)
    first = sides()
    table.write_text("slide,mpp\nP000*,0.25\nP001*,0.50\n")
    second = sides()
    assert first["P001"] == 2 * second["P001"]
    assert {name: side for name, side in second.items() if name != "P001"} == {
        name: side for name, side in first.items() if name != "P001"
    }


def test_a_new_slide_behind_a_link(project: Path, tmp_path: Path) -> None:
    names = [f"P{number:03d}" for number in range(PATIENTS + 1)]
    write_tables(root_of(project), names)
    write_slide(tmp_path / "share" / f"P{PATIENTS:03d}.svs", seed=600)
    (root_of(project) / "slides" / "new").symlink_to(tmp_path / "share")
    done = again(project)
    assert {"curate", "slides", "omics"} | IMAGES | PREDICTIONS == done
    assert f"P{PATIENTS:03d}" in local_run(project, CANCER).cohort().table.index


def test_an_edited_network(project: Path) -> None:
    class Deeper(Mean):
        def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return super().forward(vectors.tanh(), mask)

    def build(sizes: Sizes, profile: Profile) -> torch.nn.Module:
        return Deeper(sizes.vector_dim)

    before = local_run(project, CANCER).evaluate("own")["risk"].to_numpy()
    register(Method("own", "Own", "image", {"vectors": "region"}, build), replace=True)
    assert again(project) == {"predictions of own"}
    after = local_run(project, CANCER).evaluate("own")["risk"].to_numpy()
    assert not (before == after).all()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("hcmae.cohort.curate", {"curate"}),
        ("hcmae.slides.tissue", {"slides"}),
        ("hcmae.pretraining.embed", {"patch_vectors", "region_vectors_reg", "region_vectors"}),
        ("hcmae.omics.readers", {"omics"}),
    ],
)
def test_updated_code_of_one_step(
    project: Path, monkeypatch: pytest.MonkeyPatch, module: str, expected: set[str]
) -> None:
    """What the new code writes is what the old one wrote, so nothing after it has to be done again."""
    from hcmae import keys

    real = keys.source_of

    def updated(modules: object) -> dict[str, str]:
        found = real(modules)  # type: ignore[arg-type]
        return {name: "updated" if name == module else value for name, value in found.items()}

    for place in ("hcmae.keys", "hcmae.slides.process"):
        monkeypatch.setattr(f"{place}.source_of", updated)
    assert again(project) == expected


def test_data_in_memory_follow_the_disk(project: Path) -> None:
    """One session: an edit between two calls of ``evaluate`` is seen by the second."""
    run = local_run(project, CANCER)
    run.evaluate(METHOD)
    edit(root_of(project) / "clinical.tsv", "P000\t200\t1", "P000\t900\t0")
    run.curate()
    now = run.evaluate(METHOD).set_index("patient")
    assert (now.loc["P000", "time"], now.loc["P000", "event"]) == (900.0, 0)
    fresh = local_run(project, CANCER).evaluate(METHOD).set_index("patient")
    assert (now["risk"] == fresh["risk"]).all()


def test_slides_that_moved_with_or_within_their_data_are_found(project: Path, tmp_path: Path) -> None:
    folder = root_of(project) / "slides"
    (folder / "batch1").mkdir()
    for slide in folder.glob("*.svs"):
        slide.rename(folder / "batch1" / slide.name)
    assert "slides" not in again(project)
    run = local_run(project, CANCER)
    with SlideStore(run.stores()[0]).open_slide() as slide:
        assert slide.path.parent == folder / "batch1"


def test_a_store_whose_slide_is_no_slide_any_more_is_not_used(project: Path) -> None:
    slide = root_of(project) / "slides" / "P001.svs"
    slide.write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    run = local_run(project, CANCER)
    with contextlib.redirect_stdout(io.StringIO()):
        run.curate()
        run.make_slides(workers=1, progress=False)
    assert "P001" not in run.patient_stores()
    assert "P001" not in run.survival_data.patients
    assert "P001" in set(run.survival_data.exclusions["patient"])


def test_what_survival_rests_on_is_said_where_it_is_stale(project: Path) -> None:
    places = {"data_dir": project / "data", "run_dir": project / "runs", "manifest_dir": project / "manifests"}
    run = Run(CANCER, "smoke", "local", 1, overrides=OVERRIDES, **places)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"step mae_patch is stale \(setting seed: 0 -> 1\)"):
        assert run.survival_data.patients


def test_a_backup_beside_the_cohorts_is_nobodys(project: Path) -> None:
    run = local_run(project, CANCER)
    shutil.copytree(run.dir, run.dir.with_name("HCC2_backup"))
    assert [other.cancer for other in run.pool()] == [CANCER]


def test_a_named_pool_is_joined_by_nobody_else(project: Path) -> None:
    write_manifest(project / "manifests", "HCC3")
    alone, named = local_run(project, CANCER), local_run(project, CANCER, pool=[CANCER])
    shutil.copytree(alone.dir, alone.dir.with_name("HCC3"))
    assert [other.cancer for other in alone.pool()] == [CANCER, "HCC3"]
    assert [other.cancer for other in named.pool()] == [CANCER]
    states = {run: run.status().set_index("step").loc["mae_patch", "state"] for run in (alone, named)}
    assert (states[alone], states[named]) == ("stale", "done")
    with pytest.raises(FileNotFoundError, match="pool names HCC4, which has no slides"):
        local_run(project, CANCER, pool=[CANCER, "HCC4"]).pool()


def test_a_lost_table_of_exclusions_is_made_again(project: Path) -> None:
    (local_run(project, CANCER).dir / "exclusions.parquet").unlink()
    assert again(project) == {"curate"}


def test_nothing_is_not_done(tmp_path: Path) -> None:
    write_cohort(tmp_path, CANCER, patients=2)
    with pytest.raises(FileNotFoundError, match="no slide of HCC2 has been cut"):
        local_run(tmp_path, CANCER).measure_nuclei(workers=1, progress=False)


# --- what failed for a passing reason -------------------------------------------------------------------------------


def test_a_slide_that_another_process_holds_is_cut_by_the_next_call(tmp_path: Path) -> None:
    write_cohort(tmp_path, CANCER, patients=2)
    run = local_run(tmp_path, CANCER)
    run.curate()
    run.store_dir.mkdir(parents=True)
    with open(run.store_dir / ".P001.lock", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcomes = run.make_slides(workers=1, progress=False).set_index("slide")
        assert outcomes.loc["P001", "reason"] == "locked"
    assert run.status().set_index("step").loc["slides", "state"] == "stale"
    outcomes = local_run(tmp_path, CANCER).make_slides(workers=1, progress=False).set_index("slide")
    assert (outcomes["reason"] == "").all() or set(outcomes["status"]) <= {"ok", "skipped"}
    assert [path.name for path in run.stores()] == ["P000.h5", "P001.h5"]


def test_slides_that_were_away_are_cut_when_they_are_back(tmp_path: Path) -> None:
    root = write_cohort(tmp_path, CANCER, patients=2)
    run = local_run(tmp_path, CANCER)
    run.curate()
    (root / "slides").rename(root / "unmounted")
    outcomes = run.make_slides(workers=1, progress=False)
    assert set(outcomes["reason"]) == {"missing"}
    (root / "unmounted").rename(root / "slides")
    outcomes = local_run(tmp_path, CANCER).make_slides(workers=1, progress=False)
    assert set(outcomes["status"]) == {"ok"}


def test_slides_that_are_named_are_cut_alone_and_the_others_later(tmp_path: Path) -> None:
    write_cohort(tmp_path, CANCER, patients=2)
    run = local_run(tmp_path, CANCER)
    run.curate()
    assert run.make_slides(workers=1, progress=False, only=["P001.svs", "P001"])["slide"].tolist() == ["P001"]
    assert run.status().set_index("step").loc["slides", "why"] == "slide P000 is not done (not cut yet)"
    with pytest.raises(ConfigError, match="slide P009 is none of the cohort's 2"):
        run.make_slides(workers=1, progress=False, only=["P009"])
    assert run.make_slides(workers=1, progress=False)["slide"].tolist() == ["P000", "P001"]


def test_a_slide_that_is_no_slide_is_not_tried_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_cohort(tmp_path, CANCER, patients=2)
    (root / "slides" / "P001.svs").write_text("this is not a slide")
    run = local_run(tmp_path, CANCER)
    run.curate()
    run.make_slides(workers=1, progress=False)
    capsys.readouterr()
    local_run(tmp_path, CANCER).make_slides(workers=1, progress=False)
    assert "up to date" in capsys.readouterr().out
    # Unless somebody asks for it, and then it alone.
    first = run.slide_outcomes().set_index("slide")["status"]
    looked_at: list[str] = []
    work = batch.process_slides

    def noted(jobs: Any, *given: Any, **options: Any) -> Any:
        jobs = list(jobs)
        looked_at.extend(name for _, _, name in jobs)
        return work(jobs, *given, **options)

    monkeypatch.setattr(batch, "process_slides", noted)
    outcomes = local_run(tmp_path, CANCER).make_slides(workers=1, progress=False, force=True)
    assert looked_at == ["P001"]
    assert outcomes.set_index("slide")["status"].tolist() == first.tolist()


# --- a cancer of one's own ---------------------------------------------------------------------------------------


def test_siblings_keep_the_folder_of_manifests(finished: Path) -> None:
    run = local_run(finished, CANCER)
    assert [other.cancer for other in run.pool()] == [CANCER]
    other = run.sibling(CANCER)
    assert other.manifest == run.manifest
    assert (other.profile, other.modalities, other.root) == (run.profile, run.modalities, run.root)


def test_status_names_what_is_done_and_why_something_is_not(finished: Path, project: Path) -> None:
    run = local_run(finished, CANCER)
    run.folds()
    table = run.status().set_index("step")
    done = {"curate", "slides", "omics", "folds", "predictions"} | IMAGES
    assert {step for step in table.index if table.loc[step, "state"] == "done"} == done
    assert table.loc["dino_patch", "state"] == "missing"
    edit(root_of(project) / "clinical.tsv", "P000\t200\t1", "P000\t900\t0")
    table = local_run(project, CANCER).status().set_index("step")
    assert table.loc["curate", "state"] == "stale"
    assert "input clinical: changed" in table.loc["curate", "why"]
    assert table.loc["slides", "state"] == "waits"


def _stamps(project: Path) -> dict[str, int]:
    return {str(path.relative_to(project)): path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}


def _changed(before: dict[str, int], after: dict[str, int], part: str) -> set[str]:
    return {Path(name).name for name, stamp in after.items() if before.get(name) != stamp and f"/{part}/" in name}


def _plain_pyramid(path: Path) -> None:
    """The same pixels without a word about resolution."""
    import tifffile

    pixels = tifffile.imread(path, key=0)
    os.unlink(path)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None)


Step = Callable[[], None]
