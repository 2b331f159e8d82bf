"""What curation reads: every change of it is seen, and nothing else; paths that are found after a move."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hcmae.cohort.curate import curate
from hcmae.cohort.inputs import MISSING, curate_inputs
from hcmae.cohort.lock import LOCK_COLUMNS
from hcmae.cohort.paths import PATH_COLUMNS, located, relative_paths
from hcmae.config import MODALITIES
from hcmae.content import Contents
from hcmae.manifest import Manifest, load_manifest

NAMES = ("P001", "P002", "P003")


@pytest.fixture
def manifest() -> Manifest:
    lihc = load_manifest("LIHC")
    return lihc.model_copy(update={"inclusion": lihc.inclusion.model_copy(update={"min_slide_bytes": 0})})


def own_folder(root: Path) -> Path:
    """Three patients with a slide and all tables, as a user brings them."""
    (root / "slides").mkdir(parents=True)
    days = ["P001\t200\t1", "P002\t300\t0", "P003\t400\t1"]
    (root / "clinical.tsv").write_text("\n".join(["patient\ttime_days\tevent", *days]) + "\n")
    for modality in MODALITIES:
        rows = [f"{name}\t{i}\t{i + 1}" for i, name in enumerate(NAMES)]
        (root / f"{modality}.tsv").write_text("\n".join(["patient\ta\tb", *rows]) + "\n")
    for name in NAMES:
        (root / "slides" / f"{name}.svs").write_bytes(b"pixels of " + name.encode())
    return root


def lock_folder(root: Path) -> Path:
    """A lock of one patient with all its files, and clinical records."""
    case, rows = "TCGA-AA-0001", []
    kinds = {"slides": "01Z-00-DX1", "rna": "01A-11R-A100-07", "mirna": "01A-11R-A100-13",
             "methylation": "01A-11D-A100-05"}  # fmt: skip
    for i, (modality, code) in enumerate(kinds.items()):
        name = f"{case}-{code}.svs" if modality == "slides" else f"{modality}.tsv"
        path = root / modality / f"id{i}" / name
        path.parent.mkdir(parents=True)
        path.write_text("x")
        rows.append([f"id{i}", name, "0" * 32, 1, "released", f"{case}-{code}", case, modality, "Release 1"])
    pd.DataFrame(rows, columns=list(LOCK_COLUMNS)).to_csv(root / "files.tsv", sep="\t", index=False)
    record = {"submitter_id": case, "demographic": {"vital_status": "Dead", "days_to_death": 500}}
    (root / "clinical.json").write_text(json.dumps([record]))
    return root


def replaced(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    assert len(before) == len(after)
    path.write_text(text.replace(before, after))


LOCAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "a day of the same length": (lambda r: replaced(r / "clinical.tsv", "200\t1", "900\t0"), "clinical"),
    "a count of the same length": (lambda r: replaced(r / "rna.tsv", "P001\t0", "P001\t7"), "rna"),
    "columns.json": (lambda r: (r / "columns.json").write_text('{"clinical": {"age": "a"}}'), "columns.json"),
    "a new slide": (lambda r: (r / "slides" / "P004.svs").write_bytes(b"new"), "slides"),
    "a slide of another size": (lambda r: (r / "slides" / "P001.svs").write_bytes(b"more pixels of P001"), "slides"),
    "a slide that is gone": (lambda r: (r / "slides" / "P001.svs").unlink(), "slides"),
    "a table that is gone": (lambda r: (r / "mirna.tsv").unlink(), "mirna"),
    "a slide that is a copy now": (
        lambda r: (r / "slides" / f"{NAMES[1]}.svs").write_bytes((r / "slides" / f"{NAMES[0]}.svs").read_bytes()),
        "copies among slides",
    ),
    "a file that is no slide": (lambda r: (r / "slides" / "P4.svs.part").write_bytes(b"x"), "not read below slides"),
    "a link to nothing": (lambda r: (r / "slides" / "P4.svs").symlink_to(r / "gone"), "links to nothing"),
}


@pytest.mark.parametrize("name", LOCAL)
def test_each_change_of_a_folder_is_seen_in_its_place(name: str, tmp_path: Path, manifest: Manifest) -> None:
    root, (change, place) = own_folder(tmp_path / "LIHC"), LOCAL[name]
    before = curate_inputs("local", root, MODALITIES, True, manifest, Contents())
    assert set(before) == {"clinical", "slides", *MODALITIES}
    assert MISSING not in before.values()
    change(root)
    after = curate_inputs("local", root, MODALITIES, True, manifest, Contents())
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == {place}


def test_what_curation_does_not_read_is_no_input(tmp_path: Path, manifest: Manifest) -> None:
    root = own_folder(tmp_path / "LIHC")
    before = curate_inputs("local", root, ("rna",), False, manifest, Contents())
    assert set(before) == {"clinical", "rna"}
    (root / "mirna.tsv").unlink()
    shutil.rmtree(root / "slides")
    (root / "normal_rna.tsv.bak").write_text("x")
    os.utime(root / "rna.tsv", (1, 1))
    assert curate_inputs("local", root, ("rna",), False, manifest, Contents()) == before
    shutil.copytree(root, tmp_path / "elsewhere" / "LIHC")
    assert curate_inputs("local", tmp_path / "elsewhere" / "LIHC", ("rna",), False, manifest, Contents()) == before


def test_inputs_of_a_folder_that_cannot_be_curated_say_missing(tmp_path: Path, manifest: Manifest) -> None:
    found = curate_inputs("local", tmp_path, ("rna",), True, manifest, Contents())
    assert set(found.values()) == {MISSING}
    found = curate_inputs("gdc", tmp_path, ("rna",), True, manifest, Contents())
    assert set(found.values()) == {MISSING}
    root = own_folder(tmp_path / "LIHC")
    (root / "columns.json").write_text("{ no json")
    assert curate_inputs("local", root, ("rna",), True, manifest, Contents())["clinical"] == MISSING


LOCKED: dict[str, tuple[Callable[[Path], object], str]] = {
    "the lock": (lambda r: replaced(r / "files.tsv", "Release 1", "Release 2"), "files.tsv"),
    "a record": (lambda r: replaced(r / "clinical.json", "500", "600"), "clinical.json"),
    "a file that is gone": (lambda r: shutil.rmtree(r / "mirna" / "id2"), "files of mirna"),
    "a slide that is gone": (lambda r: shutil.rmtree(r / "slides" / "id0"), "files of slides"),
}


@pytest.mark.parametrize("name", LOCKED)
def test_each_change_of_a_lock_is_seen_in_its_place(name: str, tmp_path: Path, manifest: Manifest) -> None:
    root, (change, place) = lock_folder(tmp_path / "LIHC"), LOCKED[name]
    before = curate_inputs("gdc", root, MODALITIES, True, manifest, Contents())
    assert MISSING not in before.values()
    (root / "rna" / "id1" / "rna.tsv").write_text("another content, which the omics step reads and curation does not")
    assert curate_inputs("gdc", root, MODALITIES, True, manifest, Contents()) == before
    change(root)
    after = curate_inputs("gdc", root, MODALITIES, True, manifest, Contents())
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == {place}


def test_of_a_matrix_the_header_counts(tmp_path: Path, manifest: Manifest) -> None:
    query = manifest.files["rna"].model_copy(update={"source": "xena", "xena_dataset": "counts.tsv"})
    hub = manifest.model_copy(update={"files": {**manifest.files, "rna": query}})
    root = lock_folder(tmp_path / "LIHC")
    matrix = root / "xena" / "counts.tsv.gz"
    matrix.parent.mkdir()

    def inputs(text: str) -> dict[str, str]:
        matrix.write_bytes(gzip.compress(text.encode()))
        return curate_inputs("gdc", root, ("rna",), False, hub, Contents())

    first = inputs("id\tA\tB\ng\t1\t2\n")
    assert set(first) == {"clinical.json", "header of rna"}
    assert inputs("id\tA\tB\ng\t1\t3\n") == first
    assert inputs("id\tA\tC\ng\t1\t2\n")["header of rna"] != first["header of rna"]
    matrix.write_bytes(matrix.read_bytes()[:12])
    assert curate_inputs("gdc", root, ("rna",), False, hub, Contents())["header of rna"] == MISSING


# --- slides behind links, and moves ---------------------------------------------------------------------------------


def test_slides_behind_a_link_are_found_and_keep_the_links_path(tmp_path: Path, manifest: Manifest) -> None:
    root, share = own_folder(tmp_path / "LIHC"), tmp_path / "share" / "scanner"
    share.parent.mkdir()
    shutil.move(root / "slides", share)
    (root / "slides").mkdir()
    (root / "slides" / "here").symlink_to(share, target_is_directory=True)
    (share / "round").symlink_to(share, target_is_directory=True)  # a circle is walked once
    before = curate_inputs("local", root, MODALITIES, True, manifest, Contents())
    table = curate(manifest, "local", root, seed=0).table
    assert table["slide_path"].tolist() == [str(root / "slides" / "here" / f"{name}.svs") for name in NAMES]
    assert relative_paths(table, root)["slide_path"].tolist() == [f"slides/here/{name}.svs" for name in NAMES]
    (share / "P004.svs").write_bytes(b"a new slide behind the link")
    after = curate_inputs("local", root, MODALITIES, True, manifest, Contents())
    assert {name for name in before if before[name] != after[name]} == {"slides"}


def test_size_of_a_slide_is_that_of_all_its_parts(tmp_path: Path, manifest: Manifest) -> None:
    root = own_folder(tmp_path / "LIHC")
    (root / "slides" / "P001.svs").unlink()
    (root / "slides" / "P001.mrxs").write_bytes(b"head")
    parts = root / "slides" / "P001"
    parts.mkdir()
    (parts / "Data0000.dat").write_bytes(b"x" * 3000)
    strict = manifest.model_copy(update={"inclusion": manifest.inclusion.model_copy(update={"min_slide_bytes": 3000})})
    assert list(curate(strict, "local", root, seed=0).table.index) == ["P001"]
    before = curate_inputs("local", root, MODALITIES, True, manifest, Contents())
    (parts / "Data0000.dat").write_bytes(b"x" * 2000)
    assert curate_inputs("local", root, MODALITIES, True, manifest, Contents())["slides"] != before["slides"]


@pytest.mark.parametrize("make", [own_folder, lock_folder])
def test_paths_of_a_cohort_survive_a_move(make: Callable[[Path], Path], tmp_path: Path, manifest: Manifest) -> None:
    root = make(tmp_path / "laptop" / "LIHC")
    source = "local" if make is own_folder else "gdc"
    table = curate(manifest, source, root, seed=0).table
    columns = [name for name in PATH_COLUMNS if name in table]
    assert len(columns) == 4
    kept = relative_paths(table, root)
    assert not any(Path(path).is_absolute() for name in columns for path in kept[name])
    pd.testing.assert_frame_equal(relative_paths(kept, root), kept)
    pd.testing.assert_frame_equal(located(kept, root), table)
    server = tmp_path / "server"
    shutil.move(tmp_path / "laptop", server)
    moved = located(kept, server / "LIHC")
    assert all(Path(path).exists() for name in columns for path in moved[name])
    assert all(Path(path).is_relative_to(server) for name in columns for path in moved[name])
    # A table written before, with the absolute paths of the old place.
    pd.testing.assert_frame_equal(located(table, server / "LIHC"), moved)


def test_paths_elsewhere_and_none_at_all_stay(tmp_path: Path) -> None:
    other = tmp_path / "share" / "a.svs"
    table = pd.DataFrame({"slide_path": [str(other), None], "rna_path": [None, None], "note": ["slides/x", ""]})
    kept = relative_paths(table, tmp_path / "LIHC")
    pd.testing.assert_frame_equal(kept, table)
    pd.testing.assert_frame_equal(located(kept, tmp_path / "LIHC"), table)
    choices = pd.DataFrame({"patient": ["P"], "path": [str(tmp_path / "LIHC" / "rna" / "a.tsv")]})
    assert relative_paths(choices, tmp_path / "LIHC")["path"].tolist() == ["rna/a.tsv"]
