"""Every inclusion rule by name; choices of slide and aliquot; a user's own folder."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmae.cohort.barcodes import parse, parse_slide_name
from hcmae.cohort.clinical import Outcome
from hcmae.cohort.curate import apply_rules, choose_file, curate, other_readings, table1_comparison
from hcmae.cohort.evidence import Candidate, CurationError, Evidence
from hcmae.manifest import Inclusion, Manifest, load_manifest
from hcmae.omics.readers import OmicsFormatError, read_omics
from hcmae.plots import cohort as plots

P = "TCGA-AA-0001"


@pytest.fixture
def manifest() -> Manifest:
    return load_manifest("LIHC")


def _outcome(patient: str = P, time: float | None = 400, event: int | None = 1, reason: str = "") -> Outcome:
    return Outcome(patient, time, event, 60, "male", "Stage I", None, reason)


def _slide(path: Path, name: str, size: int = 50_000_000) -> Candidate:
    return Candidate(str(path), name, size, parse_slide_name(name))


def _file(path: Path, barcode: str, size: int = 100) -> Candidate:
    return Candidate(str(path), barcode, size, parse(barcode))


def _evidence(tmp_path: Path, **change: Any) -> Evidence:
    """One patient who passes every rule, with changes."""
    path = tmp_path / "there"
    path.touch()
    candidates: dict[str, dict[str, list[Candidate]]] = {
        "slides": {P: [_slide(path, f"{P}-01Z-00-DX1")]},
        "rna": {P: [_file(path, f"{P}-01A-11R-A100-07")]},
        "mirna": {P: [_file(path, f"{P}-01A-11R-A100-13")]},
        "methylation": {P: [_file(path, f"{P}-01A-11D-A100-05")]},
    }
    outcomes = {P: _outcome()}
    other = "TCGA-ZZ-9999"  # somebody always stays, so that the cohort is not empty
    outcomes[other] = _outcome(other)
    for name in candidates:
        first = candidates[name][P][0]
        moved = first.sample.replace(P, other)
        code = parse_slide_name(moved) if name == "slides" else parse(moved)
        candidates[name][other] = [Candidate(first.path, moved, first.size, code)]
    for name, value in change.items():
        if name == "outcome":
            if value is None:
                del outcomes[P]
            else:
                outcomes[P] = value
        elif value is None:
            del candidates[name][P]
        else:
            candidates[name][P] = value
    return Evidence(outcomes, candidates)


def _cases(path: Path) -> dict[str, tuple[dict[str, Any], str, str]]:
    return {
        "no clinical record": ({"outcome": None}, "clinical record", "no clinical record"),
        "unknown status": ({"outcome": _outcome(event=None, time=None, reason="vital status is 'X'")},
                           "known vital status", "vital status is 'X'"),
        "no time": ({"outcome": _outcome(time=None, reason="no day")}, "known survival time", "no day"),
        "29 days": ({"outcome": _outcome(time=29)}, "followed for 30 days or more", "followed for 29 days only"),
        "no slide": ({"slides": None}, "diagnostic slide", "no slide"),
        "frozen": ({"slides": [_slide(path, f"{P}-01A-01-TS1")]}, "diagnostic slide", "frozen sections only (1)"),
        "metastasis": ({"slides": [_slide(path, f"{P}-06Z-00-DX1")]}, "slide of sample type 01", "06 only"),
        "too small": ({"slides": [_slide(path, f"{P}-01Z-00-DX1", 470_000)]}, "slide of 20 MB or more", "0.47 MB"),
        "no rna": ({"rna": None}, "rna data", "no rna data"),
        "normal rna": ({"rna": [_file(path, f"{P}-11A-11R-A100-07")]}, "rna data", "sample type 11 only"),
        "no mirna": ({"mirna": None}, "mirna data", "no mirna data"),
        "no methylation": ({"methylation": None}, "methylation data", "no methylation data"),
        "not fetched": ({"mirna": [_file(path / "x", f"{P}-01A-11R-A100-13")]}, "files on disk", "downloaded: mirna"),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(_cases(Path("x"))))
def test_each_rule_excludes_its_patient(name: str, tmp_path: Path) -> None:
    change, rule, reason = _cases(tmp_path / "there")[name]
    cohort = apply_rules(_evidence(tmp_path, **change), Inclusion(), seed=0)
    assert list(cohort.table.index) == ["TCGA-ZZ-9999"]
    assert cohort.exclusions["patient"].tolist() == [P]
    assert cohort.exclusions["rule"].tolist() == [rule]
    assert reason in cohort.exclusions["reason"].iloc[0]
    assert cohort.flow.set_index("rule").loc[rule, "excluded"] == 1
    assert cohort.flow["excluded"].sum() == 1


def test_who_passes_every_rule_stays(tmp_path: Path) -> None:
    cohort = apply_rules(_evidence(tmp_path, outcome=_outcome(time=30)), Inclusion(), seed=0)
    assert list(cohort.table.index) == [P, "TCGA-ZZ-9999"]
    assert cohort.table.loc[P, ["time", "event", "rna_sample"]].tolist() == [30.0, 1, f"{P}-01A-11R-A100-07"]
    assert cohort.exclusions.empty
    assert cohort.table["event"].dtype.kind == "i"


@given(
    st.lists(
        st.tuples(st.sampled_from([None, 10.0, 200.0]), st.sampled_from([0, 1, None]), st.booleans(), st.booleans()),
        min_size=1, max_size=25,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_everybody_is_in_the_cohort_or_on_the_list(rows: list[tuple[float | None, int | None, bool, bool]]) -> None:
    outcomes, rna = {}, {}
    for i, (time, event, recorded, measured) in enumerate(rows):
        patient = f"TCGA-AA-{i:04d}"
        if recorded:
            outcomes[patient] = _outcome(patient, time if event is not None else None, event, "because")
        if measured or not recorded:
            rna[patient] = [Candidate(__file__, f"{patient}-01A", 1, parse(f"{patient}-01A"))]
    evidence = Evidence(outcomes, {"rna": rna})
    try:
        cohort = apply_rules(evidence, Inclusion(), seed=0, modalities=("rna",), slides=False)
    except CurationError:
        return
    flow = cohort.flow
    assert (flow["before"] - flow["excluded"] == flow["after"]).all()
    assert (flow["before"].iloc[1:].to_numpy() == flow["after"].iloc[:-1].to_numpy()).all()
    together = [*cohort.table.index, *cohort.exclusions["patient"]]
    assert sorted(together) == evidence.patients
    assert (cohort.table["time"] >= 30).all()
    assert (cohort.exclusions["reason"].str.len() > 0).all()


def test_slide_drawn_with_the_seed_alone(tmp_path: Path) -> None:
    path = tmp_path / "there"
    folders = [tmp_path / f"{P}-01Z-00-DX{i}.svs" for i in range(1, 7)]
    for folder in folders:
        folder.touch()
    slides = [_slide(f, f.name.removesuffix(".svs")) for f in folders]
    drawn = set()
    for seed in range(30):
        evidence = _evidence(tmp_path, slides=slides)
        first = apply_rules(evidence, Inclusion(), seed=seed).table.loc[P, "slide"]
        # Neither the order of the files nor the other patients matter.
        evidence.candidates["slides"][P] = slides[::-1]
        evidence.outcomes.pop("TCGA-ZZ-9999")
        cohort = apply_rules(evidence, Inclusion(), seed=seed)
        assert cohort.table.loc[P, "slide"] == first
        assert cohort.choices.loc[cohort.choices["kept"], "modality"].tolist() == ["slides"]
        drawn.add(first)
    assert len(drawn) >= 5
    assert path.exists()


def test_aliquots_and_arrays(tmp_path: Path) -> None:
    old, new = _file(tmp_path, f"{P}-01A-11R-A100-07"), _file(tmp_path, f"{P}-01A-11R-A200-07")
    assert choose_file([old, new], "rna") is new
    small = _file(tmp_path, f"{P}-01A-11D-A900-05", 800_000)
    large = _file(tmp_path, f"{P}-01A-11D-A100-05", 13_000_000)
    assert choose_file([small, large], "methylation") is large
    nameless = [Candidate("b", "", 5, None), Candidate("a", "", 5, None)]
    assert choose_file(nameless, "rna").path == "a"


def test_only_what_is_asked_for_is_required(tmp_path: Path) -> None:
    evidence = _evidence(tmp_path, slides=None, methylation=None)
    cohort = apply_rules(evidence, Inclusion(), seed=0, modalities=("rna", "mirna"), slides=False)
    assert len(cohort.table) == 2
    assert cohort.table["methylation_path"].isna().all()


def test_nobody_left_says_where(tmp_path: Path, manifest: Manifest) -> None:
    evidence = _evidence(tmp_path)
    evidence.candidates["rna"] = {"OTHER-1": evidence.candidates["rna"][P]}
    with pytest.raises(CurationError, match=r"share no patient \(for example .*OTHER-1"):
        apply_rules(evidence, Inclusion(), seed=0)
    short = Evidence({P: _outcome(time=3)}, {})
    with pytest.raises(CurationError, match="no patient is left after the rule 'followed for 30"):
        apply_rules(short, Inclusion(), seed=0, modalities=(), slides=False)
    with pytest.raises(CurationError, match="no patient at all"):
        apply_rules(Evidence({}, {}), Inclusion(), seed=0)
    with pytest.raises(CurationError, match="unknown source"):
        curate(manifest, "cloud", tmp_path, seed=0)
    with pytest.raises(CurationError, match="unknown modality 'protein'"):
        curate(manifest, "gdc", tmp_path, seed=0, modalities=("protein",))
    with pytest.raises(CurationError, match=r"files\.tsv is missing"):
        curate(manifest, "gdc", tmp_path, seed=0)


def test_a_lock_whose_sample_belongs_to_somebody_else(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "files.tsv").write_text(
        "id\tfilename\tmd5\tsize\tstate\tsample\tcase\tmodality\trelease\n"
        "a\tx.tsv\tm\t5\treleased\tTCGA-BB-0002-01A-11R-A100-07\tTCGA-AA-0001\trna\tr\n"
    )
    with pytest.raises(CurationError, match="belongs to case TCGA-AA-0001, but its sample is TCGA-BB-0002"):
        curate(manifest, "gdc", tmp_path, seed=0, modalities=("rna",), slides=False)


def test_a_lock_with_one_slide_for_two_cases(tmp_path: Path, manifest: Manifest) -> None:
    """By their md5; an empty file, or a case with a slide twice, is no fault."""
    rows = [("a", "AA-0001", "1", 9), ("b", "BB-0002", "1", 9), ("c", "BB-0002", "1", 9), ("d", "CC-0003", "2", 0),
            ("e", "DD-0004", "2", 0), ("f", "EE-0005", "3", 7)]  # fmt: skip
    lines = ["id\tfilename\tmd5\tsize\tstate\tsample\tcase\tmodality\trelease"]
    for name, case, digit, size in rows:
        slide = f"TCGA-{case}-01Z-00-DX1"
        lines.append(f"{name}\t{slide}.svs\t{digit * 32}\t{size}\treleased\t{slide}\tTCGA-{case}\tslides\tr")
    (tmp_path / "files.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "clinical.json").write_text("[]")
    message = r"slides a \(case TCGA-AA-0001\), b \(case TCGA-BB-0002\), c \(case TCGA-BB-0002\) hold the same bytes"
    with pytest.raises(CurationError, match=message) as caught:
        curate(manifest, "gdc", tmp_path, seed=0, modalities=())
    assert "CC-0003" not in str(caught.value)


# ---------------------------------------------------------------- a user's folder


def _own(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "clinical.tsv").write_text(
        "patient\tdays\tevent\n" + "".join(f"P{i}\t{20 + 10 * i}\t{i % 2}\n" for i in range(6))
    )
    for name, row in (("rna", "P{0}\t{0}\t5\n"), ("mirna", "P{0}\t{0}\t5\n"), ("methylation", "P{0}\t0.{0}\t0.5\n")):
        (folder / f"{name}.tsv").write_text("patient\ta\tb\n" + "".join(row.format(i) for i in range(6)))
    (folder / "slides").mkdir(exist_ok=True)
    for i in range(6):
        (folder / "slides" / f"P{i}_HE.svs").write_bytes(b"%d" % i * 100)
    return folder


@pytest.fixture
def lenient(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"inclusion": manifest.inclusion.model_copy(update={"min_slide_bytes": 0})})


def test_a_folder_becomes_a_cohort(tmp_path: Path, lenient: Manifest, manifest: Manifest) -> None:
    root = _own(tmp_path)
    cohort = curate(lenient, "local", root, seed=0)
    assert list(cohort.table.index) == ["P1", "P2", "P3", "P4", "P5"]
    assert cohort.table.loc["P3", "slide"] == "P3_HE"
    data = read_omics(cohort, "local", root)
    assert list(data.mod) == ["rna", "mirna", "methylation"]
    assert [data[name].uns["unit"] for name in data.mod] == ["counts", "counts", "beta"]
    # The same checks as for TCGA: the slides are too small for the paper's rule.
    with pytest.raises(CurationError, match="slide of 20 MB"):
        curate(manifest, "local", root, seed=0)


def test_usual_variants_of_a_folder(tmp_path: Path, lenient: Manifest) -> None:
    root = _own(tmp_path)
    text = (root / "rna.tsv").read_text()
    (root / "rna.tsv").unlink()
    (root / "rna_counts.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (root / "mirna.tsv").rename(root / "mirna.csv")
    (root / "mirna.csv").write_text((root / "mirna.csv").read_text().replace("\t", ","))
    (root / "clinical.tsv").write_text("patient\tdays\tevent\tslide\nP1\t90\t1\todd name.svs\nP2\t90\t0\t\n")
    (root / "slides" / "odd name.svs").write_bytes(b"x")
    cohort = curate(lenient, "local", root, seed=0)
    assert cohort.table["slide"].to_dict() == {"P1": "odd name", "P2": "P2_HE"}
    assert read_omics(cohort, "local", root)["rna"].X[:, 0].tolist() == [1, 2]


def test_names_that_only_columns_json_can_explain(tmp_path: Path, lenient: Manifest) -> None:
    root = _own(tmp_path)
    (root / "rna.tsv").rename(root / "expression.tsv")
    (root / "expression.tsv").write_text((root / "expression.tsv").read_text().replace("patient", "who"))
    with pytest.raises(CurationError, match="no table for rna"):
        curate(lenient, "local", root, seed=0)
    (root / "columns.json").write_text(json.dumps({"files": {"rna": "expression.tsv"}}))
    with pytest.raises(CurationError, match=r"expression\.tsv: no patient column"):
        curate(lenient, "local", root, seed=0)
    (root / "columns.json").write_text(json.dumps({"files": {"rna": "expression.tsv"}, "rna": {"patient": "who"}}))
    cohort = curate(lenient, "local", root, seed=0)
    assert read_omics(cohort, "local", root)["rna"].shape == (5, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "rna.tsv").write_text("a\tb\n1\t2\n"), "no patient column"),
        (lambda r: (r / "rna.tsv").write_text("gene\tTCGA-AA-0001\tTCGA-AA-0002\nx\t1\t2\n"), "transpose"),
        (lambda r: (r / "rna.tsv").write_text("patient\ta\nQ1\t1\nQ2\t2\n"), "share no patient"),
        (lambda r: (r / "rna.tsv").write_text("patient\ta\nP1\t1\nP1\t2\n"), "P1 comes twice"),
        (lambda r: (r / "rna.tsv").write_text("patient\ta\n\t1\n"), "line 2 has no patient"),
        (lambda r: (r / "clinical.tsv").unlink(), "no table for clinical"),
        (lambda r: shutil.rmtree(r / "slides"), "slides is missing"),
        (lambda r: [p.unlink() for p in (r / "slides").iterdir()], "no slide with one of the suffixes"),
        (lambda r: (r / "columns.json").write_text("[]"), r"columns\.json: expected an object"),
        (lambda r: (r / "columns.json").write_text("{"), "not valid JSON"),
        (lambda r: (r / "columns.json").write_text('{"files": {"rna": "gone.tsv"}}'), r"gone\.tsv is missing"),
        (lambda r: [(r / "rna.tsv").rename(r / "rna_a.tsv"), (r / "rna_b.csv").write_text("x")], "both be"),
        (lambda r: (r / "rna.tsv").write_bytes(gzip.compress(b"patient\ta\nP1\t1\n" * 999)[:-9]), "cannot be read"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used(damage: Any, message: str, tmp_path: Path, lenient: Manifest) -> None:
    root = _own(tmp_path)
    damage(root)
    with pytest.raises(CurationError, match=message):
        curate(lenient, "local", root, seed=0)


def test_cells_that_are_no_numbers_are_named_when_read(tmp_path: Path, lenient: Manifest) -> None:
    root = _own(tmp_path)
    (root / "rna.tsv").write_text((root / "rna.tsv").read_text().replace("P4\t4", "P4\tmany"))
    cohort = curate(lenient, "local", root, seed=0)
    with pytest.raises(OmicsFormatError, match=r"rna\.tsv.*many"):
        read_omics(cohort, "local", root)


def test_the_real_cohort_loses_its_22(shared_data: Path, manifest: Manifest) -> None:
    root = shared_data / "lihc_real"
    cohort = curate(manifest, "local", root, seed=0, modalities=("rna", "mirna"), slides=False)
    assert len(cohort.table) == 307
    assert cohort.exclusions["rule"].tolist() == ["followed for 30 days or more"] * 22
    assert (cohort.table["time"] >= 30).all()
    data = read_omics(cohort, "local", root)
    assert {m: data[m].shape for m in data.mod} == {"rna": (307, 1550), "mirna": (307, 365)}
    assert list(data["rna"].obs_names) == list(data["mirna"].obs_names) == list(cohort.table.index)
    assert (data["rna"].uns["unit"], data["mirna"].uns["unit"]) == ("z_score", "rpm")
    comparison = table1_comparison(manifest, cohort)
    assert comparison[["paper", "here", "difference"]].values.tolist() == [[323, 307, -16]]


def test_other_readings_change_one_rule_at_a_time(tmp_path: Path, lenient: Manifest) -> None:
    root = _own(tmp_path)
    (root / "mirna.tsv").write_text("patient\ta\nP0\t1\nP2\t1\nP3\t1\n")
    readings = other_readings(lenient, "local", root, seed=0).set_index("reading")
    assert readings["patients"].to_dict() == {
        "as curated": 2,
        "without the least time": 3,
        "slides of any size and kind": 2,
        "without asking for rna": 2,
        "without asking for mirna": 5,
        "without asking for methylation": 2,
    }
    assert (readings["difference"] == readings["patients"] - 323).all()
    assert readings.loc["as curated", "deaths"] == 1


# ---------------------------------------------------------------- figures


def test_flow_figure_names_rules_and_reasons(tmp_path: Path) -> None:
    cohort = apply_rules(_evidence(tmp_path, rna=None), Inclusion(), seed=0)
    figure = plots.plot_consort(cohort.flow, cohort.exclusions, title="LIHC")
    text = " ".join(t.get_text() for t in figure.axes[0].texts)
    assert "2 patients with any record" in text
    assert "1 left: no rna data" in text
    assert "1 patients in the cohort" in text
    with pytest.raises(ValueError, match="no rule"):
        plots.plot_consort(cohort.flow.iloc[:0])


def test_other_figures_draw_what_they_are_given(tmp_path: Path) -> None:
    cohort = apply_rules(_evidence(tmp_path), Inclusion(), seed=0)
    figure = plots.plot_follow_up(cohort.table)
    assert figure.axes[0].get_legend_handles_labels()[1] == ["deaths (2)", "censored (0)"]
    counts = pd.DataFrame({"cancer": ["LIHC", "LGG"], "paper": [323, 451], "here": [300, 451]})
    assert [t.get_text() for t in plots.plot_table1(counts).axes[0].get_yticklabels()] == ["LIHC", "LGG"]
    lock = pd.DataFrame({"modality": ["rna", "rna", "slides"], "size": [10**6, 10**6, 10**9]})
    widths = [p.get_width() for p in plots.plot_sources(lock).axes[1].patches]
    assert widths == [1000, 2]
