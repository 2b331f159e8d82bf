"""Which slide belongs to whom: exact names first, then patterns that end at a boundary; never one slide for two."""

from __future__ import annotations

import json
import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmae.cohort.clinical import ClinicalError, read_clinical_table
from hcmae.cohort.curate import Cohort, SlideOwnerWarning, curate
from hcmae.cohort.evidence import SLIDE_SUFFIXES, CurationError
from hcmae.cohort.local import unread_files
from hcmae.cohort.slide_names import SlideFile, boundaries, claim_slides, slide_files, store_names, without_suffix
from hcmae.manifest import Manifest, load_manifest
from hcmae.omics.readers import read_omics


@pytest.fixture
def manifest() -> Manifest:
    lihc = load_manifest("LIHC")
    return lihc.model_copy(update={"inclusion": lihc.inclusion.model_copy(update={"min_slide_bytes": 0})})


def folder(root: Path, slides: dict[str, str | None], files: list[str], header: str = "slide") -> Path:
    """A clinical table that names slides (None: no such cell), and files below slides/ with contents of their own."""
    rows = [f"patient\ttime_days\tevent\t{header}"]
    rows += [f"{patient}\t{300 + i}\t{i % 2}\t{cell or ''}" for i, (patient, cell) in enumerate(slides.items())]
    if all(cell is None for cell in slides.values()):
        rows = [row.rsplit("\t", 1)[0] for row in rows]
    (root / "slides").mkdir(parents=True)
    (root / "clinical.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name in files:
        path = root / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"pixels of {name}".encode())
    return root


def curated(root: Path, manifest: Manifest) -> Cohort:
    return curate(manifest, "local", root, seed=0, modalities=())


def taken(cohort: Cohort, root: Path) -> dict[str, str]:
    return {p: Path(path).relative_to(root / "slides").as_posix() for p, path in cohort.table["slide_path"].items()}


# --- what the table names -------------------------------------------------------------------------------------------

NORTH_SOUTH = ["north/1.svs", "north/2.svs", "south/1.svs", "south/2.svs"]


def test_one_name_in_two_folders_is_an_error_that_names_both_files(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "LIHC", {"P1": "1.svs", "P2": "2.svs"}, NORTH_SOUTH)
    with pytest.raises(CurationError, match=r"patient P1.*'1\.svs'.*north/1\.svs or south/1\.svs"):
        curated(root, manifest)


@pytest.mark.parametrize("form", ["{}/{}.svs", "{}/{}", "./{}/{}.svs", "slides/{}/{}.svs", "{}\\{}.SVS",
                                  "/home/me/LIHC/slides/{}/{}.svs"])  # fmt: skip
def test_a_path_below_slides_tells_equal_names_apart(form: str, tmp_path: Path, manifest: Manifest) -> None:
    named = {"P1": ("north", 1), "P2": ("north", 2), "P3": ("south", 1), "P4": ("south", 2)}
    root = folder(tmp_path / "LIHC", {p: form.format(*place) for p, place in named.items()}, NORTH_SOUTH)
    cohort = curated(root, manifest)
    assert taken(cohort, root) == {p: "{}/{}.svs".format(*place) for p, place in named.items()}
    assert cohort.table["slide"].tolist() == ["north__1", "north__2", "south__1", "south__2"]
    assert cohort.choices["how"].str.startswith("named in the clinical table").all()


def test_the_exact_name_wins_over_a_longer_path_and_another_suffix_is_ambiguous(
    tmp_path: Path, manifest: Manifest
) -> None:
    root = folder(tmp_path / "A", {"P1": "a.svs"}, ["a.svs", "old/a.svs"])
    assert taken(curated(root, manifest), root) == {"P1": "a.svs"}
    root = folder(tmp_path / "B", {"P1": "a"}, ["a.svs", "a.ndpi"])
    with pytest.raises(CurationError, match=r"a\.ndpi or a\.svs"):
        curated(root, manifest)


def test_a_slide_named_for_two_patients_is_an_error(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "A", {"P1": "a.svs", "P2": "a", "P3": "b.svs"}, ["a.svs", "b.svs"])
    with pytest.raises(CurationError, match=r"a\.svs is named for patients P1 and P2"):
        curated(root, manifest)
    root = folder(tmp_path / "B", {"P1": "a.svs", "P2": "b.svs"}, ["a.svs"])
    (root / "slides" / "b.svs").symlink_to(root / "slides" / "a.svs")
    with pytest.raises(CurationError, match=r"a\.svs \(patient P1\) and b\.svs \(patient P2\) are one file"):
        curated(root, manifest)


def test_all_faults_are_said_at_once(tmp_path: Path, manifest: Manifest) -> None:
    named = {"P1": "1.svs", "P2": "2.svs", "P3": "north/1.svs", "P4": "north/1.svs", "P5": "a.svs"}
    root = folder(tmp_path / "LIHC", named, [*NORTH_SOUTH, "a.svs"])
    with pytest.raises(CurationError) as caught:
        curated(root, manifest)
    head, *lines = str(caught.value).splitlines()
    assert head == "3 faults:"
    assert all(line.startswith(f"{root / 'clinical.tsv'}: ") for line in lines)
    assert [word in line for word, line in zip(("patient P1", "patient P2", "P3 and P4"), lines, strict=True)] == [
        True
    ] * 3


def test_a_copy_of_a_slide_under_another_patients_name_is_an_error(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "LIHC", {"P1": None, "P2": None, "P3": None}, ["P1.svs", "P2.svs", "P3.svs", "x.svs"])
    slides = root / "slides"
    (slides / "x.svs").write_bytes((slides / "P1.svs").read_bytes())
    (slides / "P1 again.svs").write_bytes((slides / "P1.svs").read_bytes())
    assert sorted(taken(curated(root, manifest), root)) == ["P1", "P2", "P3"], "of nobody, or of the same patient"
    (slides / "P3.svs").write_bytes((slides / "P2.svs").read_bytes())
    with pytest.raises(CurationError, match=r"P2\.svs \(patient P2\), P3\.svs \(patient P3\) hold the same bytes"):
        curated(root, manifest)


def test_slides_that_bear_anothers_name_are_a_warning(tmp_path: Path, manifest: Manifest) -> None:
    files = ["P1_HE.svs", "P2_HE.svs", "P10_HE.svs"]
    root = folder(tmp_path / "A", {"P1": "P2_HE.svs", "P2": "P10_HE.svs", "P10": "P1_HE.svs"}, files)
    with pytest.warns(SlideOwnerWarning, match=r"3 slide\(s\).*P1 has P2_HE\.svs, .*; rows may be swapped") as told:
        curated(root, manifest)
    assert len([w for w in told if w.category is SlideOwnerWarning]) == 1
    root = folder(
        tmp_path / "B", {"P1": "P10_HE.svs", "P2": "x_P1.svs", "P3": "P2x.svs"}, ["P10_HE.svs", "x_P1.svs", "P2x.svs"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curated(root, manifest)


def test_a_name_that_says_it_is_no_slide_to_be_used_is_a_warning(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "A", {"P1": None, "P2": None, "Masket": None}, ["P1_mask.tif", "P2_HE.svs", "Masket.svs"])
    with pytest.warns(SlideOwnerWarning, match=r"P1_mask\.tif: taken for P1; its name says 'mask'") as told:
        curated(root, manifest)
    assert len([w for w in told if w.category is SlideOwnerWarning]) == 1


@pytest.mark.parametrize(
    ("file", "cell"),
    [("P1.tif.part", None), ("P1.png", None), ("P1_HE.zip", None), ("P1.czi", "P1"), ("P1.czi", "P1.svs"), ("P1", None),
     ("a.svs.crdownload", "a.svs"), ("north/a.qptiff", "a"), ("P1 HE.svs.gz", "NA")],
)  # fmt: skip
def test_no_slide_names_the_file_that_looks_like_one(
    file: str, cell: str | None, tmp_path: Path, manifest: Manifest
) -> None:
    root = folder(tmp_path / "LIHC", {"P1": cell, "P2": "P2.svs"}, ["P2.svs", file, "P10.png", "notes.txt"])
    cohort = curated(root, manifest)
    assert list(cohort.table.index) == ["P2"]
    reason = cohort.exclusions.set_index("patient").loc["P1", "reason"]
    assert f"{file} is not read, for want of a slide's suffix (.svs, .tif, " in reason
    assert "P10.png" not in reason


def test_the_book_lists_what_is_read_as_a_slide() -> None:
    text = (Path(__file__).parents[2] / "book" / "own_cohort.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{suffix}`" for suffix in SLIDE_SUFFIXES) in text


def test_parts_of_a_slide_are_not_taken_for_one_that_cannot_be_read(tmp_path: Path) -> None:
    index = "[Virtual Microscope Specimen]\nImageFile=P2_0.jpg\n"
    root = folder(tmp_path / "LIHC", {"P1": None}, ["P1.mrxs", "P1/Data0000.dat", "P2_0.jpg", "P2.txt", ".P3.part"])
    (root / "slides" / "P2.vms").write_text(index)
    assert unread_files(root / "slides") == ["P2.txt"]


@pytest.mark.parametrize("word", ["NA", "n/a", "None", "", "nan", "[Not Available]", "pending"])
def test_no_name_in_the_column_is_said_where_a_file_is_the_patients(
    word: str, tmp_path: Path, manifest: Manifest
) -> None:
    root = folder(tmp_path / "LIHC", {"P1": "a.svs", "P2": word}, ["a.svs", "P2_HE.svs"])
    cohort = curated(root, manifest)
    assert taken(cohort, root) == {"P1": "a.svs", "P2": "P2_HE.svs"}
    assert cohort.table.loc["P2", "note"] == "the clinical table names no slide; P2_HE.svs taken by its name"
    assert cohort.table.loc["P1", "note"] == ""
    how = cohort.choices.set_index("patient")["how"]
    assert how["P2"] == "file name begins with the patient's name"


def test_a_named_slide_that_is_not_there_is_the_reason(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "LIHC", {"P1": "a.svs", "P2": "gone.svs"}, ["a.svs", "P2_HE.svs"])
    cohort = curated(root, manifest)
    reason = cohort.exclusions.set_index("patient").loc["P2", "reason"]
    assert "names 'gone.svs', which is not below slides/" in reason
    assert "P2_HE.svs begins with the patient's name and was not taken" in reason
    unclaimed = cohort.choices[cohort.choices["patient"] == ""]
    assert unclaimed[["sample", "kept", "how"]].values.tolist() == [["P2_HE", False, "taken for no patient"]]


def test_a_file_that_the_table_gives_away_is_not_taken_by_its_name(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "LIHC", {"1": "2.svs", "2": "NA", "3": "3.svs"}, ["2.svs", "3.svs"])
    cohort = curated(root, manifest)
    assert taken(cohort, root) == {"1": "2.svs", "3": "3.svs"}
    assert "begins with that of 2" in cohort.table.loc["1", "note"]
    assert cohort.exclusions["reason"].tolist() == ["no slide: 2.svs is named for patient 1"]


def test_barcodes_in_the_column(tmp_path: Path, manifest: Manifest) -> None:
    patient, other = "TCGA-AA-0001", "TCGA-AA-0002"
    file = f"{patient}-01Z-00-DX1.75C5CEF1-6C8B.svs"
    root = folder(tmp_path / "A", {patient: f"{patient}-01Z-00-DX1"}, [file, f"{patient}-01Z-00-DX2.svs"])
    assert taken(curated(root, manifest), root) == {patient: file}
    root = folder(tmp_path / "B", {patient: f"{other}-01Z-00-DX1.svs", other: None}, [f"{other}-01Z-00-DX1.svs"])
    with pytest.raises(CurationError, match=f"patient {patient}.*is one of {other} by its barcode"):
        curated(root, manifest)


# --- what the file's name says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("P1.svs", "P1"), ("P1_HE.svs", "P1"), ("P1-2 HE.svs", "P1-2"), ("P1 a.TIFF", "P1"), ("p1.Svs", "P1"),
        ("P10_HE.svs", ""), ("P1x.svs", ""), ("1.5 HE.svs", ""), ("1,5.svs", ""), ("1.HE.svs", "1"), ("1_5.svs", "1"),
        ("xP1.svs", ""), ("TCGA-AA-0001-01Z-00-DX1.0AB1.svs", "TCGA-AA-0001"), ("TCGA-AA-00012.svs", ""),
    ],
)  # fmt: skip
def test_a_name_owns_a_file_only_up_to_a_boundary(file: str, owner: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    files = slide_files(tmp_path, [tmp_path / file], [])
    claims = claim_slides(files, ["1", "P1", "P1-2", "TCGA-AA-0001"], {}, "clinical.tsv")
    assert {p: [f.name for f, _ in found] for p, found in claims.slides.items()} == ({owner: [file]} if owner else {})
    assert [f.name for f in claims.unclaimed] == ([] if owner else [file])


def test_a_name_in_another_unicode_form_is_the_same_name(tmp_path: Path, manifest: Manifest) -> None:
    patient = unicodedata.normalize("NFC", "Mü1")
    root = folder(tmp_path / "A", {patient: None}, [unicodedata.normalize("NFD", "Mü1_HE.svs")])
    assert curated(root, manifest).table["slide"].to_dict() == {patient: unicodedata.normalize("NFC", "Mü1_HE")}
    named = {unicodedata.normalize("NFD", "É1"): unicodedata.normalize("NFC", "né/ü.svs")}
    root = folder(tmp_path / "B", dict(named), [unicodedata.normalize("NFD", "né/ü.svs")])
    assert list(curated(root, manifest).table.index) == [unicodedata.normalize("NFC", "É1")]
    for form in ("NFC", "NFD"):
        (root / "rna.tsv").write_text(f"patient\tG1\n{unicodedata.normalize(form, 'É1')}\t7\n", encoding="utf-8")
        cohort = curate(manifest, "local", root, seed=0, modalities=("rna",))
        assert read_omics(cohort, "local", root)["rna"].X.tolist() == [[7]]


def test_hidden_files_and_folders_hold_no_slides(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "LIHC", {"P1": "P1.svs"}, ["P1.svs", "._P1.svs", ".snapshot/day/P1.svs"])
    cohort = curated(root, manifest)
    assert taken(cohort, root) == {"P1": "P1.svs"}
    assert cohort.table["slide"].tolist() == ["P1"]


def test_a_link_that_leads_nowhere_is_the_reason(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "LIHC", {"P1": "a.svs", "P2": "b.svs", "P3": "NA"}, ["a.svs"])
    for name in ("b.svs", "P3.svs"):
        (root / "slides" / name).symlink_to(tmp_path / "no share" / name)
    reasons = curated(root, manifest).exclusions.set_index("patient")["reason"]
    assert reasons["P2"] == "no slide: the clinical table names 'b.svs', which is a link that leads nowhere"
    assert reasons["P3"] == "no slide: P3.svs is a link that leads nowhere"


def test_a_dicom_series_in_a_folder_is_one_slide_named_by_the_folder(tmp_path: Path, manifest: Manifest) -> None:
    files = ["P1/000.dcm", "P1/001.dcm", "mixed/P2.dcm", "mixed/P3.dcm"]
    root = folder(tmp_path / "LIHC", {"P1": None, "P2": None, "P3": None}, files)
    cohort = curated(root, manifest)
    assert cohort.table["slide"].to_dict() == {"P1": "P1", "P2": "P2", "P3": "P3"}
    assert taken(cohort, root)["P1"] == "P1/000.dcm"


# --- one row per slide ----------------------------------------------------------------------------------------------


def test_rows_of_one_patient_are_merged_and_the_slide_is_drawn(tmp_path: Path, manifest: Manifest) -> None:
    root = folder(tmp_path / "LIHC", {}, ["a.svs", "b.svs", "c.svs"])
    text = "case_id\tslide_id\tmonths\tevent\tage\nP1\ta.svs\t20\t1\t\nP1\tb.svs\t20\t1\t61\nP2\tc.svs\t30\t0\t50\n"
    (root / "clinical.tsv").write_text(text)
    drawn = {curate(manifest, "local", root, seed=seed, modalities=()).table.loc["P1", "slide"] for seed in range(20)}
    assert drawn == {"a", "b"}
    cohort = curated(root, manifest)
    assert cohort.table["age"].tolist() == [61, 50]
    assert cohort.choices.query("patient == 'P1'")["kept"].sum() == 1
    (root / "clinical.tsv").write_text(text.replace("b.svs\t20", "b.svs\t21"))
    with pytest.raises(ClinicalError, match="P1 comes twice with different outcomes"):
        curated(root, manifest)
    (root / "clinical.tsv").write_text(text.replace("b.svs", "a.svs"))
    with pytest.raises(ClinicalError, match="P1 comes twice"):
        read_clinical_table(root / "clinical.tsv")


# --- names of stores ------------------------------------------------------------------------------------------------


def test_files_whose_names_differ_in_their_unicode_form_alone_have_stores_of_their_own() -> None:
    forms = [unicodedata.normalize(form, "é.svs") for form in ("NFC", "NFD")]
    assert len(set(store_names(forms))) == 2


_part = st.text(st.sampled_from("ab1_. -É"), min_size=1, max_size=4).filter(lambda t: t.strip(". ") == t and t)
_path = st.lists(_part, min_size=1, max_size=3).flatmap(
    lambda parts: st.sampled_from(SLIDE_SUFFIXES[:3]).map(lambda suffix: "/".join(parts) + suffix)
)


@pytest.mark.slow
@given(st.lists(_path, min_size=1, max_size=12, unique_by=lambda p: unicodedata.normalize("NFC", p)))
@settings(max_examples=150, deadline=None)
def test_stores_have_names_of_their_own_and_the_files_where_that_is_unique(paths: list[str]) -> None:
    names = store_names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert not any("/" in name for name in names)
    stems = [unicodedata.normalize("NFC", without_suffix(path.rpartition("/")[2])) for path in paths]
    everything = json.dumps(paths).casefold()
    for stem, name in zip(stems, names, strict=True):
        if "__" not in stem and everything.count(json.dumps(stem)[1:-1].casefold()) == 1:
            assert name == stem
    # The order of the files does not matter.
    assert store_names(paths[::-1]) == names[::-1]


_letters = st.text(st.sampled_from("Pp12_-. "), min_size=1, max_size=5).filter(lambda t: t.strip(". ") == t)


@given(
    st.lists(_letters, min_size=1, max_size=5, unique=True),
    st.lists(_letters, min_size=1, max_size=6, unique=True),
    st.lists(st.integers(-1, 5), min_size=5, max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_a_slide_is_one_patients_or_nobodys(
    tmp_path_factory: pytest.TempPathFactory, patients: list[str], stems: list[str], cells: list[int]
) -> None:
    place = tmp_path_factory.getbasetemp() / "any"
    place.mkdir(exist_ok=True)
    files = []
    for number, stem in enumerate(stems):
        (place / str(number)).touch()  # what is on disk; what it is called is another thing
        files.append(SlideFile(place / str(number), f"{stem}.svs"))
    named = {p: [f"{stems[c]}.svs"] if 0 <= c < len(stems) else [] for p, c in zip(patients, cells, strict=False)}
    claims = claim_slides(files, patients, named, "clinical.tsv")
    if len(cells_used := [cell for cells_of in named.values() for cell in cells_of]) > len(set(cells_used)):
        assert any("named for patients" in fault for fault in claims.faults)
        return
    assert not claims.faults
    owned = [file for found in claims.slides.values() for file, _ in found]
    assert len(owned) == len(set(owned))
    assert sorted([*owned, *claims.unclaimed], key=str) == sorted(files, key=str)
    for patient, found in claims.slides.items():
        if named[patient]:
            assert [file.relative for file, _ in found] == named[patient]
        else:
            for file, _ in found:
                assert file.stem.casefold().startswith(patient.casefold())
                assert len(patient) in set(boundaries(file.stem))
    for patient in set(patients) - set(claims.slides):
        assert f"{patient}.svs" not in {file.relative for file in claims.unclaimed} or named[patient]
