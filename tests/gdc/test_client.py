"""Resolve, fetch, verify against the stand-in server; the real answers and files of the GDC."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from hcmae.cohort.clinical import read_hits
from hcmae.cohort.curate import curate
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.lock import LOCK_COLUMNS, read_lock
from hcmae.config import CANCERS
from hcmae.content import MEMORY_NAME, Contents
from hcmae.gdc import fetch, transfer
from hcmae.gdc.client import GDCClient, GDCError
from hcmae.manifest import Manifest, load_manifest
from hcmae.omics.readers import read_omics
from hcmae.pipeline import Run
from tests.support.gdc_server import Fault, StandIn

PATIENTS = [f"TCGA-AA-{i:04d}" for i in range(6)]


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as made:
        _fill(made)
        yield made


@pytest.fixture
def client(server: StandIn, tmp_path: Path) -> Iterator[GDCClient]:
    with GDCClient(
        url=server.url, mirror="", xena=server.xena_url, cache=tmp_path / "cache", attempts=3, longest_wait=0.01
    ) as made:
        yield made


@pytest.fixture
def manifest() -> Manifest:
    small = load_manifest("LIHC")
    return small.model_copy(update={"inclusion": small.inclusion.model_copy(update={"min_slide_bytes": 1000})})


def _star(seed: int) -> bytes:
    head = "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\tunstranded\tstranded_first\tstranded_second"
    head += "\ttpm_unstranded\tfpkm_unstranded\tfpkm_uq_unstranded\n"
    rows = [
        f"N_{n}\t\t\t{seed}\t{seed}\t{seed}\t\t\t\n" for n in ("unmapped", "multimapping", "noFeature", "ambiguous")
    ]
    rows += [f"ENSG{g:011d}.3\tG{g}\tprotein_coding\t{g * seed}\t1\t2\t0.5\t0.5\t0.5\n" for g in range(5)]
    return (head + "".join(rows)).encode()


def _fill(server: StandIn) -> None:
    """Six patients as the GDC would list them, and files that must not be taken."""
    for i, patient in enumerate(PATIENTS):

        def add(content: bytes, name: str, barcode: str, kind: str, patient: str = patient, **more: Any) -> None:
            server.add(
                content, name,
                cases=[{"submitter_id": patient, "project": {"project_id": "TCGA-LIHC"}}],
                associated_entities=[{"entity_submitter_id": barcode, "entity_type": kind}], **more,
            )  # fmt: skip

        for number in (1, 2) if i < 3 else (1,):
            add(
                bytes([i + 1]) * (3000 + 100 * i + number), f"{patient}-01Z-00-DX{number}.{'A' * 8}.svs",
                f"{patient}-01Z-00-DX{number}", "slide",
                data_type="Slide Image", experimental_strategy="Diagnostic Slide",
            )  # fmt: skip
        add(
            _star(i + 1), f"rna{i}.rna_seq.augmented_star_gene_counts.tsv", f"{patient}-01A-11R-A100-07", "aliquot",
            data_type="Gene Expression Quantification", analysis={"workflow_type": "STAR - Counts"},
        )  # fmt: skip
        add(
            b"miRNA_ID\tread_count\treads_per_million_miRNA_mapped\tcross-mapped\nhsa-let-7a-1\t%d\t1.0\tN\n" % i,
            f"m{i}.mirbase21.mirnas.quantification.txt", f"{patient}-01A-11R-A100-13", "aliquot",
            data_type="miRNA Expression Quantification",
        )  # fmt: skip
        add(
            b"cg00000029\t0.25\ncg00000108\tNA\nrs1\t0.5\n", f"b{i}.methylation_array.sesame.level3betas.txt",
            f"{patient}-01A-11D-A100-05", "aliquot",
            data_type="Methylation Beta Value", platform="Illumina Human Methylation 450",
        )  # fmt: skip
        add(
            b"spliced", f"s{i}.tsv", f"{patient}-01A-11R-A100-07", "aliquot",
            data_type="Splice Junction Quantification", analysis={"workflow_type": "STAR - Counts"},
        )  # fmt: skip
        add(
            b"cg1\t0.5\n", f"old{i}.txt", f"{patient}-01A-11D-A001-05", "aliquot",
            data_type="Methylation Beta Value", platform="Illumina Human Methylation 27",
        )  # fmt: skip
        server.cases.append(
            {
                "id": f"c{i}",
                "case_id": f"c{i}",
                "submitter_id": patient,
                "project": {"project_id": "TCGA-LIHC"},
                "demographic": {"vital_status": "Alive"},
                "follow_ups": [{"days_to_follow_up": 100 + i}],
            }
        )
    server.add(b"x" * 5000, "controlled.svs", data_type="Slide Image", access="controlled",
               experimental_strategy="Diagnostic Slide", cases=[{"submitter_id": PATIENTS[0]}])  # fmt: skip


def test_resolve_writes_the_lock(server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path) -> None:
    lock = fetch.resolve(manifest, client)
    assert tuple(lock.columns) == LOCK_COLUMNS
    assert lock.groupby("modality").size().to_dict() == {"slides": 9, "rna": 6, "mirna": 6, "methylation": 6}
    assert set(lock["release"]) == {"Data Release 45.0"}
    fetch.write_lock(lock, tmp_path / "lock.tsv")
    pd.testing.assert_frame_equal(read_lock(tmp_path / "lock.tsv"), lock)
    assert (tmp_path / "lock.tsv").read_text().startswith("id\tfilename\tmd5\tsize\tstate\t")
    assert lock.loc[lock["modality"] == "rna", "sample"].iloc[0] == "TCGA-AA-0000-01A-11R-A100-07"
    # The same answer in another order gives the same lock.
    server.files = dict(reversed(server.files.items()))
    client.cache = None
    pd.testing.assert_frame_equal(fetch.resolve(manifest, client), lock)


def test_preservation_and_notices_are_asked_for_and_are_rules(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path
) -> None:
    entries = {entry.name: entry for entry in server.files.values()}

    def say(name: str, patient: str, sample: dict[str, Any], **more: Any) -> None:
        case = {"submitter_id": patient, "project": {"project_id": "TCGA-LIHC"}, "samples": [sample]}
        entries[name].hit |= {"cases": [case | more.pop("case", {})], **more}

    star = "rna{}.rna_seq.augmented_star_gene_counts.tsv"
    flagged = {"entity_type": "aliquot", "classification": "CenterNotification", "category": "Item flagged DNU"}
    redacted = {"entity_type": "case", "classification": "Redaction", "category": "Genotype mismatch"}
    other = {**flagged, "category": "Center QC failed"}
    ffpe, frozen = {"preservation_method": "FFPE"}, {"preservation_method": "Frozen"}
    say(star.format(0), PATIENTS[0], {"submitter_id": f"{PATIENTS[0]}-01A", **frozen})
    say(star.format(1), PATIENTS[1], {"submitter_id": f"{PATIENTS[1]}-01A", **ffpe})
    # What is said of another sample is not said of this one; of another aliquot's notices the case's alone count.
    say(star.format(2), PATIENTS[2], {"submitter_id": f"{PATIENTS[2]}-01Z", **ffpe}, case={"annotations": [flagged]})
    say(star.format(3), PATIENTS[3], frozen, annotations=[flagged, {**redacted, "status": "Rescinded"}])
    say(star.format(4), PATIENTS[4], {"is_ffpe": False}, case={"annotations": [redacted]})
    say(star.format(5), PATIENTS[5], {"portions": [{"is_ffpe": "false"}]}, annotations=[other, "no record"])
    lock = fetch.resolve(manifest, client)
    fetch.write_lock(lock, tmp_path / "lock.tsv")
    pd.testing.assert_frame_equal(read_lock(tmp_path / "lock.tsv"), lock)
    assert lock.loc[lock["modality"] == "rna", "preservation"].tolist() == [
        "Frozen", "FFPE", "", "Frozen", "not FFPE", "not FFPE",
    ]  # fmt: skip
    asked = [note.body["fields"].split(",") for note in server.requests("/files", "POST")]
    assert all({"cases.samples.preservation_method", "annotations.category"} <= set(fields) for fields in asked)
    eligible = fetch.eligible(lock, manifest.inclusion)
    assert sorted(eligible.loc[eligible["modality"] == "rna", "case"]) == [PATIENTS[i] for i in (0, 2, 5)]
    assert set(fetch.plan(manifest, lock, tmp_path / "L", limit=9).modality) <= set(lock["id"])
    fetch.fetch(manifest, lock, tmp_path / "L", client, progress=False)
    cohort = curate(manifest, "gdc", tmp_path / "L", seed=0)
    assert list(cohort.table.index) == [PATIENTS[i] for i in (0, 2, 5)]
    assert dict(zip(cohort.exclusions["patient"], cohort.exclusions["rule"], strict=True)) == {
        PATIENTS[1]: "rna not of FFPE tissue",
        PATIENTS[3]: "rna not flagged",
        PATIENTS[4]: "patient not flagged",
    }
    assert cohort.table["note"].tolist() == ["", "", "annotated: Center QC failed"]
    kept = manifest.inclusion.model_copy(update={"ffpe_aliquots": "include", "exclude_annotations": []})
    everybody = curate(manifest.model_copy(update={"inclusion": kept}), "gdc", tmp_path / "L", seed=0)
    assert list(everybody.table.index) == PATIENTS


def test_hits_of_any_shape_end_in_a_row_or_the_documented_error(manifest: Manifest) -> None:
    rng = random.Random(4)
    good = {
        "file_id": "0ab5e358-b1ff-4433-8959-c37c5890d9aa", "file_name": "a.tsv", "file_size": 5, "md5sum": "0" * 32,
        "cases": [{"submitter_id": PATIENTS[0], "samples": [{"submitter_id": "x", "portions": [{"analytes": []}]}],
                   "annotations": [{"category": "x"}]}],
        "associated_entities": [{"entity_type": "aliquot", "entity_submitter_id": "y"}], "annotations": [{}],
    }  # fmt: skip
    strange = [None, 5, -1.5, True, "", "text", [], {}, [[]], [None], {"a": 1}, [{"submitter_id": {}}], "\ud800"]

    def spoiled(value: Any) -> Any:
        if rng.random() < 0.12:
            return rng.choice(strange)
        if isinstance(value, dict):
            return {name: spoiled(inner) for name, inner in value.items()}
        return [spoiled(inner) for inner in value] if isinstance(value, list) else value

    rows = 0
    for _ in range(2000):
        hit = {name: spoiled(value) for name, value in good.items()}
        try:
            rows += fetch.lock_row(hit, "rna", {"data_type": "x"} if rng.random() < 0.1 else {}) is not None
        except fetch.FetchError:
            continue
    assert rows > 100


def test_resolve_refuses_what_cannot_be_a_lock(server: StandIn, client: GDCClient, manifest: Manifest) -> None:
    client.cache = None
    entry = next(e for e in server.files.values() if "rna0" in e.name)
    for change, message in (
        ({"file_name": "../../etc/passwd"}, "unusable name"),
        ({"file_name": "a\x00b"}, "unusable name"),
        ({"md5sum": None}, "md5"),
        ({"file_size": "many"}, "size"),
    ):
        kept = dict(entry.hit)
        entry.hit.update(change)
        with pytest.raises(fetch.FetchError, match=message):
            fetch.resolve(manifest, client)
        entry.hit = kept
    del entry.hit["cases"]
    entry.hit["cases"] = [{"submitter_id": "A"}, {"submitter_id": "B"}]
    assert len(fetch.resolve(manifest, client)) == 26  # no longer of the project
    for e in server.files.values():
        e.hit["data_type"] = "Renamed"
    with pytest.raises(fetch.FetchError, match="finds no file"):
        fetch.resolve(manifest, client)


def test_missing_fields_are_tolerated(server: StandIn, client: GDCClient, manifest: Manifest) -> None:
    for entry in server.files.values():
        entry.hit.pop("state")
        entry.hit.pop("associated_entities", None)
        if "rna0" in entry.name:
            aliquots = [{"submitter_id": "TCGA-AA-0000-01A-11R-A100-07"}]
            portions = [{"analytes": [{"aliquots": aliquots}]}]
            entry.hit["cases"][0]["samples"] = [{"submitter_id": "TCGA-AA-0000-01A", "portions": portions}]
        elif "rna1" in entry.name:
            entry.hit["cases"][0]["samples"] = [{"submitter_id": "TCGA-AA-0001-01A", "portions": None}]
    lock = fetch.resolve(manifest, client)
    samples = dict(zip(lock["filename"], lock["sample"], strict=True))
    assert samples["rna0.rna_seq.augmented_star_gene_counts.tsv"] == "TCGA-AA-0000-01A-11R-A100-07"
    assert samples["rna1.rna_seq.augmented_star_gene_counts.tsv"] == "TCGA-AA-0001-01A"
    assert samples["rna2.rna_seq.augmented_star_gene_counts.tsv"] == ""
    assert "TCGA-AA-0003-01Z-00-DX1" in set(lock["sample"])


def test_from_query_to_cohort_and_nothing_twice(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path
) -> None:
    lock, root = fetch.resolve(manifest, client), tmp_path / "gdc" / "LIHC"
    report = fetch.fetch(manifest, lock, root, client, progress=False)
    assert (report.fetched, report.bytes, len(report.failures)) == (27, int(lock["size"].sum()), 0)
    assert set(fetch.verify(root, progress=False)["status"]) == {"ok"}
    cohort = curate(manifest, "gdc", root, seed=1)
    assert list(cohort.table.index) == PATIENTS
    data = read_omics(cohort, "gdc", root)
    assert data["rna"].X[:, 1].tolist() == [1, 2, 3, 4, 5, 6]
    assert list(data["methylation"].var_names) == ["cg00000029", "cg00000108"]
    before = len(server.log)
    assert fetch.fetch(manifest, lock, root, client, progress=False).fetched == 0
    assert len(server.log) == before, "a rerun asks the server nothing"
    provenance = json.loads((root / "provenance.json").read_text())
    assert provenance[0]["release"] == ["Data Release 45.0"]
    # A file that was lost comes again, alone.
    lost = root / "rna" / lock.loc[lock["modality"] == "rna", "id"].iloc[0]
    shutil.rmtree(lost)
    assert fetch.fetch(manifest, lock, root, client, progress=False).fetched == 1


def test_verify_finds_every_kind_of_damage(client: GDCClient, manifest: Manifest, tmp_path: Path) -> None:
    lock, root = fetch.resolve(manifest, client), tmp_path / "LIHC"
    fetch.fetch(manifest, lock, root, client, progress=False)
    paths = [root / m / i / n for m, i, n in lock[["modality", "id", "filename"]].itertuples(index=False)]
    paths[0].write_bytes(b"\0" * paths[0].stat().st_size)
    paths[1].write_bytes(b"short")
    paths[2].unlink()
    status = list(fetch.verify(root, progress=False)["status"])
    assert status[:3] == ["wrong md5", "wrong size", "not fetched"]
    assert set(status[3:]) == {"ok"}
    fetch.verify(root, remove=True, progress=False)
    assert fetch.fetch(manifest, lock, root, client, progress=False).fetched == 3
    assert set(fetch.verify(root, progress=False)["status"]) == {"ok"}


def test_choices_of_a_fetch(client: GDCClient, manifest: Manifest, tmp_path: Path) -> None:
    lock = fetch.resolve(manifest, client)

    def cases(**choice: Any) -> dict[str, set[str]]:
        made = fetch.plan(manifest, lock, tmp_path, **choice)
        by_id = dict(zip(lock["id"], lock["case"], strict=True))
        found: dict[str, set[str]] = {}
        for file in made.files:
            found.setdefault(made.modality[file.id], set()).add(by_id[file.id])
        return found

    assert cases(limit=2) == {m: set(PATIENTS[:2]) for m in ("slides", "rna", "mirna", "methylation")}
    assert cases(what=("mirna",)) == {"mirna": set(PATIENTS)}
    smallest = fetch.plan(manifest, lock, tmp_path, what=("slides",), smallest=2)
    assert len(smallest.files) == 2
    drawn = fetch.plan(manifest, lock, tmp_path, one_slide=True, seed=4)
    assert sum(m == "slides" for m in drawn.modality.values()) == 6
    with pytest.raises(fetch.FetchError, match="unknown --what"):
        cases(what=("proteins",))
    with pytest.raises(fetch.FetchError, match="slides"):
        cases(what=("rna",), smallest=1)


def test_one_slide_is_the_one_that_curation_draws(client: GDCClient, manifest: Manifest, tmp_path: Path) -> None:
    lock, root = fetch.resolve(manifest, client), tmp_path / "LIHC"
    fetch.fetch(manifest, lock, root, client, one_slide=True, seed=11, progress=False)
    assert len(curate(manifest, "gdc", root, seed=11).table) == 6


def test_a_full_disk_is_seen_before_the_start(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fetch.resolve(manifest, client)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(fetch.FetchError, match="GB are to be fetched"):
        fetch.fetch(manifest, lock, tmp_path / "LIHC", client, progress=False)
    assert not server.requests("/data")


def test_refused_files_are_listed_or_stop_the_fetch(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path
) -> None:
    lock, root = fetch.resolve(manifest, client), tmp_path / "LIHC"
    redacted = lock.loc[lock["modality"] == "mirna", "id"].iloc[2]
    server.refused = {redacted: 451}
    report = fetch.fetch(manifest, lock, root, client, progress=False)
    assert list(report.failures["id"]) == [redacted]
    assert "451" in (root / "failures.tsv").read_text()
    cohort = curate(manifest, "gdc", root, seed=0)
    assert cohort.exclusions[["patient", "rule", "reason"]].values.tolist() == [
        [PATIENTS[2], "files on disk", "not downloaded: mirna"]
    ]
    with pytest.raises(fetch.FetchError, match="stopped, as asked"):
        fetch.fetch(manifest, lock, root, client, strict=True, progress=False)
    server.refused = {}
    assert fetch.fetch(manifest, lock, root, client, progress=False).fetched == 1
    assert not (root / "failures.tsv").exists()


def test_no_more_connections_than_asked_for(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path
) -> None:
    lock = fetch.resolve(manifest, client)
    server.latency = 0.02
    for workers in (1, 3):
        server.most_at_once = 0
        fetch.fetch(manifest, lock, tmp_path / str(workers), client, workers=workers, bundles=False, progress=False)
        assert server.most_at_once == workers
    with pytest.raises(fetch.FetchError, match="polite"):
        fetch.fetch(manifest, lock, tmp_path / "many", client, workers=9, progress=False)


def test_a_disk_that_fills_up_on_the_way(
    client: GDCClient, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, root = fetch.resolve(manifest, client), tmp_path / "LIHC"
    write, left = transfer.stream, iter(range(3))

    def full(client: GDCClient, url: str, *rest: Any, **more: Any) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device", str(root / "some.part"))
        write(client, url, *rest, **more)

    monkeypatch.setattr(transfer, "stream", full)
    with pytest.raises(fetch.FetchError, match=r"some\.part: No space left.*what is complete stays"):
        fetch.fetch(manifest, lock, root, client, bundles=False, workers=1, progress=False)
    monkeypatch.setattr(transfer, "stream", write)
    assert set(fetch.verify(root, progress=False)["status"]) == {"ok", "not fetched"}
    assert fetch.fetch(manifest, lock, root, client, progress=False).fetched == len(lock) - 3


def test_verified_files_are_not_read_for_their_hash_again(
    client: GDCClient, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, root = fetch.resolve(manifest, client), tmp_path / "LIHC"
    fetch.fetch(manifest, lock, root, client, progress=False)
    sums = {root / m / i / n: f"md5:{s}" for i, n, m, s in lock[["id", "filename", "modality", "md5"]].to_numpy()}

    def remembered() -> dict[Path, str]:
        contents = Contents(tmp_path / "run.jsonl", known=[root / MEMORY_NAME])
        with monkeypatch.context() as patch:
            patch.setattr("hcmae.content.file_hash", lambda path, **_: "read")
            return {path: contents.file(path) for path in sums}

    assert remembered() == sums
    # One by one as well, and by verifying what came before there was a memory.
    alone = tmp_path / "alone"
    fetch.fetch(manifest, lock, alone, client, bundles=False, progress=False)
    assert len((alone / MEMORY_NAME).read_text().splitlines()) == len(lock)
    (root / MEMORY_NAME).unlink()
    fetch.verify(root, progress=False)
    assert remembered() == sums
    # Bits that a disk forgets change no date: verify sees them, and so does whoever asks for the hash.
    rotten = next(path for path in sums if path.parent.parent.name == "slides")
    stat = rotten.stat()
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"?")
    os.utime(rotten, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert remembered() == sums
    assert (fetch.verify(root, progress=False)["status"] == "wrong md5").sum() == 1
    assert [path for path, found in remembered().items() if found != sums[path]] == [rotten]


def test_clinical_records_follow_the_release_of_the_lock(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path
) -> None:
    lock, root = fetch.resolve(manifest, client), tmp_path / "LIHC"
    fetch.fetch(manifest, lock, root, client, progress=False)
    server.release = "Data Release 46.0 - August 10, 2026"
    server.cases[0]["follow_ups"][0]["days_to_follow_up"] = 4321
    with GDCClient(url=server.url, mirror="", cache=client.cache) as later:
        newer = fetch.resolve(manifest, later)
        fetch.fetch(manifest, newer, root, later, progress=False)
        before = len(server.log)
        fetch.fetch(manifest, newer, root, later, progress=False)
    assert len(server.log) == before
    assert curate(manifest, "gdc", root, seed=0).table.loc[PATIENTS[0], "time"] == 4321
    history = json.loads((root / "provenance.json").read_text())
    assert [h["clinical_release"] for h in history] == ["Data Release 45.0", "Data Release 46.0"]


def test_files_without_a_barcode_could_be_normal_tissue(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path
) -> None:
    for entry in server.files.values():
        if entry.name.startswith("rna0"):
            entry.hit["associated_entities"] = []
        if entry.name.startswith("rna1"):
            entry.hit["associated_entities"][0]["entity_submitter_id"] = f"{PATIENTS[1]}-11A-11R-A100-07"
    lock, root = fetch.resolve(manifest, client), tmp_path / "LIHC"
    fetch.fetch(manifest, lock, root, client, progress=False)
    lost = curate(manifest, "gdc", root, seed=0).exclusions
    assert lost["reason"].tolist() == ["rna of sample type unknown only", "rna of sample type 11 only"]
    # --limit counts patients whom the rules can keep.
    made = fetch.plan(manifest, lock, tmp_path / "new", limit=2)
    assert {f.id for f in made.files} == set(lock.loc[lock["case"].isin(PATIENTS[2:4]), "id"])
    strict = manifest.model_copy(update={"inclusion": manifest.inclusion.model_copy(update={"min_slide_bytes": 10**6})})
    with pytest.raises(fetch.FetchError, match="no patient has a file of every kind"):
        fetch.plan(strict, lock, tmp_path / "new", smallest=2)


def test_two_fetches_do_not_meet(client: GDCClient, manifest: Manifest, tmp_path: Path) -> None:
    lock = fetch.resolve(manifest, client)
    with fetch.only_one(tmp_path), pytest.raises(fetch.FetchError, match="another fetch"):
        fetch.fetch(manifest, lock, tmp_path, client, progress=False)


def test_xena_as_source_of_omics(server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path) -> None:
    files = dict(manifest.files)
    for modality in ("rna", "methylation"):
        files[modality] = files[modality].model_copy(update={"source": "xena"})
    mixed = manifest.model_copy(update={"files": files})
    columns = [f"{p}-01A" for p in PATIENTS] + [f"{PATIENTS[0]}-11A"]
    server.xena = {
        "TCGA-LIHC.star_counts.tsv": _xena("Ensembl_ID", columns, {"ENSG1.1": [3.0, 0, 1, 2, 4, 5, 9]}),
        "TCGA-LIHC.methylation450.tsv": _xena("id", columns, {"cg1": [0.5, "", 1, 0, 0.1, 0.2, 0.9]}),
    }
    root = tmp_path / "LIHC"
    lock = fetch.resolve(mixed, client)
    assert set(lock["modality"]) == {"slides", "mirna"}
    fetch.fetch(mixed, lock, root, client, progress=False)
    data = read_omics(curate(mixed, "gdc", root, seed=0), "gdc", root)
    assert data["rna"].X[:, 0].tolist() == [7, 0, 1, 3, 15, 31]
    assert pd.isna(data["methylation"].X[1, 0])
    assert data["mirna"].uns["unit"] == "counts"
    before = len(server.log)
    assert fetch.fetch(mixed, lock, root, client, progress=False).fetched == 0
    assert len(server.log) == before
    # The hub publishes no md5; verify compares with what came.
    checked = fetch.verify(root, progress=False)
    assert checked.loc[checked["modality"] == "xena", "status"].tolist() == ["ok", "ok"]
    matrix = root / "xena" / "TCGA-LIHC.star_counts.tsv"
    matrix.write_bytes(matrix.read_bytes().replace(b"3.0", b"4.0"))
    checked = fetch.verify(root, remove=True, progress=False)
    assert sorted(checked.loc[checked["modality"] == "xena", "status"]) == ["ok", "wrong md5"]
    fetch.fetch(mixed, lock, root, client, progress=False)
    assert set(fetch.verify(root, progress=False)["status"]) == {"ok"}


def test_the_size_of_xena_matrices_counts_too(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = manifest.files["rna"].model_copy(update={"source": "xena"})
    mixed = manifest.model_copy(update={"files": {**manifest.files, "rna": query}})
    lock = fetch.resolve(mixed, client)
    with pytest.raises(GDCError, match="unknown file"):
        fetch.fetch(mixed, lock, tmp_path / "none", client, progress=False)
    server.xena = {"TCGA-LIHC.star_counts.tsv.gz": b"x" * 2_000_000}
    free = (1 << 26) + 1_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))  # type: ignore[attr-defined]
    with pytest.raises(fetch.FetchError, match="GB are to be fetched"):
        fetch.fetch(mixed, lock, tmp_path / "LIHC", client, progress=False)
    assert not server.requests("/xena", "GET")


def _xena(first: str, columns: list[str], rows: dict[str, list[Any]]) -> bytes:
    lines = ["\t".join([first, *columns])] + ["\t".join([k, *map(str, v)]) for k, v in rows.items()]
    return ("\n".join(lines) + "\n").encode()


def test_broken_clinical_records_are_refused_before_they_are_kept(
    server: StandIn, client: GDCClient, manifest: Manifest, tmp_path: Path
) -> None:
    server.cases[2]["demographic"]["days_to_death"] = "soon"
    lock = fetch.resolve(manifest, client)
    with pytest.raises(ValueError, match=r"TCGA-AA-0002: demographic.days_to_death"):
        fetch.fetch(manifest, lock, tmp_path, client, what=("clinical",), progress=False)
    assert not (tmp_path / "clinical.json").exists()


def test_lock_that_was_tampered_with(tmp_path: Path) -> None:
    good = "\t".join(LOCK_COLUMNS) + "\n" + "a1\tn.txt\tm\t5\treleased\ts\tc\trna\tr\n"
    path = tmp_path / "files.tsv"
    for text, message in (
        (good.replace("n.txt", "../../n.txt"), "cannot be a file name"),
        (good.replace("a1", ".."), "cannot be a file name"),
        (good.replace("\t5\t", "\tfive\t"), "no number"),
        (good.replace("\trna\t", "\tproteins\t"), "modality"),
        (good.replace("\tmd5", ""), "tab-separated|missing"),
        (good + good.splitlines()[1] + "\n", "twice"),
        ("", "lock|missing"),
    ):
        path.write_text(text)
        with pytest.raises(CurationError, match=message):
            read_lock(path)
    with pytest.raises(CurationError, match="is missing"):
        read_lock(tmp_path / "none.tsv")


def test_commands(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: Path) -> None:
    from hcmae.cli import typer_app as app

    monkeypatch.chdir(tmp_path)
    shutil.copytree(repo / "data_manifests", tmp_path / "data_manifests", ignore=lambda *_: ["lock"])
    monkeypatch.setenv("HCMAE_GDC_URL", server.url)
    monkeypatch.setenv("HCMAE_MIRROR_URL", "")
    runner = CliRunner()
    refused = runner.invoke(app, ["fetch", "LIHC"])
    assert refused.exit_code == 2
    assert "manifest resolve LIHC" in refused.output
    assert runner.invoke(app, ["manifest", "resolve", "LIHC"]).exit_code == 0
    assert (tmp_path / "data_manifests" / "lock" / "LIHC.tsv").exists()
    dry = runner.invoke(app, ["fetch", "LIHC", "--dry-run"])
    assert dry.exit_code == 0
    assert "slides" in dry.output
    assert not server.requests("/data")
    assert runner.invoke(app, ["fetch", "LIHC", "--workers", "2"]).exit_code == 0
    assert runner.invoke(app, ["verify", "LIHC"]).exit_code == 0
    victim = next((tmp_path / "data" / "gdc" / "LIHC" / "rna").rglob("*.tsv"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    assert runner.invoke(app, ["verify", "LIHC", "--remove"]).exit_code == 1
    server.refused = {victim.parent.name: 403}
    assert runner.invoke(app, ["fetch", "LIHC"]).exit_code == 1


@pytest.mark.slow
def test_make_real_goes_from_nothing_to_a_cohort_and_fetches_no_slide(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: Path
) -> None:
    """The very commands of the Makefile, one after the other; the last of them is the run graph (tests/book)."""
    from hcmae.cli import typer_app as app

    printed = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "real", "CANCER=LIHC"],
        cwd=repo, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line for line in printed.splitlines() if "bin/hcmae" in line or "bin/snakemake" in line]
    commands = [shlex.split(line.removesuffix(" || [ $? -eq 1 ]").rpartition(".venv/bin/")[2]) for line in lines]
    assert [words[0] for words in commands] == ["hcmae"] * 4 + ["snakemake"]
    assert commands[-1][3:] == ["notebooks", "--config", "source=gdc", "cancers=LIHC", "profile=smoke", "slides=false"]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repo / "data_manifests", tmp_path / "data_manifests", ignore=lambda *_: ["lock"])
    monkeypatch.setenv("HCMAE_GDC_URL", server.url)
    monkeypatch.setenv("HCMAE_MIRROR_URL", "")
    said = []
    for _, *words in commands[:-1]:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (words, done.output)
        said.append(done.output)
    # How much and how long, before the first byte.
    assert "size" in said[1]
    assert "time at 10 MB/s" in said[1]
    root = tmp_path / "data" / "gdc" / "LIHC"
    assert not (root / "slides").exists()
    assert "with rna, mirna, methylation" in said[-1]
    assert "0 fault(s)" in said[-1]
    run = Run("LIHC", source="gdc", data_dir=tmp_path / "data", run_dir=tmp_path / "runs", slides=False)
    assert len(run.curate().table)
    assert set(run.load_omics().mod) == {"rna", "mirna", "methylation"}


@pytest.mark.slow
def test_bad_input_ends_in_one_line(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: Path
) -> None:
    from hcmae.cli import typer_app as app

    monkeypatch.chdir(tmp_path)
    shutil.copytree(repo / "data_manifests", tmp_path / "data_manifests", ignore=lambda *_: ["lock"])
    monkeypatch.setenv("HCMAE_GDC_URL", server.url)
    monkeypatch.setenv("HCMAE_MIRROR_URL", "")
    runner = CliRunner()
    assert runner.invoke(app, ["manifest", "resolve", "LIHC"]).exit_code == 0
    again = runner.invoke(app, ["manifest", "resolve", "LIHC"])
    assert "since the earlier lock (Data Release 45.0): 0 files are new, 0 are gone" in again.output
    (tmp_path / "file").touch()
    for arguments, message in (
        (["fetch", "LIHC", "--rate", "0"], "rate"),
        (["fetch", "LIHC", "--what", ","], "--what is empty"),
        (["fetch", "LIHC", "--what", "proteins"], "choose among slides"),
        (["fetch", "LIHC", "--limit", "0"], "limit"),
        (["fetch", "LIHC", "--workers", "9"], "workers"),
        (["fetch", "LIHC", "--smallest", "2"], "no patient has a file of every kind"),  # these slides are tiny
        (["fetch", "LIHC", "--data-dir", "file"], "cannot be made"),
        (["fetch", "LIHC", "--url", "ftp://x", "--what", "clinical"], "not an address"),
        (["manifest", "resolve", "LIHC", "--out", "file/lock.tsv"], "hcmae: "),
        (["verify", "LIHC", "--data-dir", "nowhere"], "is missing"),
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2, (arguments, result.output, result.exception)
        assert message in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.slow
def test_kill_9_of_the_command_and_the_same_command_again(
    server: StandIn, tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a large file, once in a bundle: the second run asks for the missing bytes and files only."""
    from hcmae.cli import typer_app

    for entry in server.files.values():
        if entry.name.endswith(".svs"):
            entry.content = random.Random(entry.id).randbytes(200_000)
            entry.hit |= {"file_size": 200_000, "md5sum": entry.md5}
        elif entry.name.startswith("rna"):
            entry.content += b"#" + random.Random(entry.id).randbytes(40_000).hex().encode()
            entry.hit |= {"file_size": len(entry.content), "md5sum": entry.md5}
    shutil.copytree(repo / "data_manifests", tmp_path / "data_manifests", ignore=lambda *_: ["lock"])
    monkeypatch.setenv("HCMAE_GDC_URL", server.url)
    monkeypatch.setenv("HCMAE_MIRROR_URL", "")
    monkeypatch.chdir(tmp_path)
    # Slides as large as these must count as large.
    monkeypatch.setattr(fetch, "ALONE_BYTES", 100_000)
    code = "from hcmae.gdc import fetch; fetch.ALONE_BYTES = 100_000; from hcmae.cli import app; app()"

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(typer_app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    def killed(*arguments: str) -> None:
        server.paused.clear()
        server.released.clear()
        # Only what is killed needs a process of its own.
        child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=-1, stderr=-1, text=True)
        try:
            assert server.paused.wait(60)
            time.sleep(0.5)  # what was sent is on disk by then; the server sends no more
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.communicate()
        server.released.set()

    run("manifest", "resolve", "LIHC")
    root = tmp_path / "data" / "gdc" / "LIHC"
    server.pause_bundle_at = 300_000
    killed("fetch", "LIHC", "--what", "rna,mirna,methylation", "--workers", "1")
    server.pause_bundle_at = None
    there = [p.parent.name for p in root.rglob("rna/*/*.tsv") if not p.name.startswith(".")]
    assert 0 < len(there) < 6
    server.pause_at = 150_000
    killed("fetch", "LIHC", "--workers", "1")
    server.pause_at = None
    (bundle,) = [n for n in server.requests("/data", "POST") if n.status == 200][1:]
    assert not set(there) & set(bundle.body["ids"]), "what came before the kill is not asked for again"
    (part,) = root.rglob("*.part")
    have = part.stat().st_size
    assert 0 < have < 200_000
    before = len(server.log)
    run("fetch", "LIHC")
    later = [n for n in server.log[before:] if n.path.startswith("/data")]
    resumed = [n for n in later if n.range]
    assert [(n.range, n.sent) for n in resumed] == [(f"bytes={have}-", 200_000 - have)]
    assert sum(n.sent for n in later) == 9 * 200_000 - have
    assert "wrong" not in run("verify", "LIHC")
    assert all((root / "slides" / e.id / e.name).read_bytes() == e.content
               for e in server.files.values() if e.name.endswith(".svs") and e.name != "controlled.svs")  # fmt: skip
    assert not [p for p in root.rglob("*") if p.name.endswith((".part", ".bundle"))]
    before = len(server.log)
    run("fetch", "LIHC")
    assert len(server.log) == before


@pytest.mark.slow
def test_ten_thousand_malformed_lines_of_a_lock(tmp_path: Path, client: GDCClient, manifest: Manifest) -> None:
    fetch.write_lock(fetch.resolve(manifest, client), tmp_path / "lock.tsv")
    lines = (tmp_path / "lock.tsv").read_bytes().splitlines(keepends=True)
    rng, messages = random.Random(8), []
    for _ in range(1000):
        damaged = list(lines)
        for _ in range(rng.choice([1, 10, 25])):
            row = rng.randrange(len(damaged))
            line, at = damaged[row], rng.randrange(len(damaged[row]) + 1)
            junk = rng.choice([b"\t", b"\n", b"\x00", b'"', b"/", b"..", b"-", b"\xff", b"", b"9" * 30, b"1e3"])
            damaged[row] = line[:at] + junk + line[at + rng.randint(0, 2) :]
        (tmp_path / "lock.tsv").write_bytes(b"".join(damaged))
        try:
            lock = read_lock(tmp_path / "lock.tsv")
        except CurationError as error:
            messages.append(str(error))
            continue
        assert lock["id"].is_unique
        assert (lock["size"] >= 0).all()
        assert not lock["filename"].str.contains(r"[/\\]").any()
    assert 300 < len(messages) < 1000
    assert all("lock.tsv" in message for message in messages)


def test_all_six_manifests_are_queries(server: StandIn) -> None:
    for cancer in CANCERS:
        manifest = load_manifest(cancer)
        assert manifest.project == f"TCGA-{cancer}"
        for modality in ("slides", "rna", "mirna", "methylation"):
            filters = manifest.files[modality].filters
            assert filters["access"] == "open"
            assert "data_type" in filters
        assert manifest.inclusion.methylation_platforms


# ---------------------------------------------------------------- real files and answers


def test_real_mirna_files_verify_against_their_manifest(shared_data: Path) -> None:
    folder = shared_data / "mirna_gdc"
    rows = [line.split("\t") for line in (folder / "MANIFEST.txt").read_text().splitlines()[1:]]
    assert len(rows) == 12
    for _, name, md5, size, _ in rows:
        content = (folder / name).read_bytes()
        assert (hashlib.md5(content).hexdigest(), len(content)) == (md5, int(size))


def test_real_files_come_through_a_bundle(shared_data: Path, tmp_path: Path) -> None:
    from hcmae.gdc.transfer import RemoteFile, download_bundle

    with StandIn() as server:
        files = []
        for path in sorted((shared_data / "mirna_gdc").glob("*/*.quantification.txt")):
            entry = server.add(path.read_bytes(), path.name, path.parent.name)
            note = path.parent / "annotations.txt"
            entry.annotation = note.read_bytes() if note.exists() else None
            target = tmp_path / entry.id / entry.name
            files.append(RemoteFile(entry.id, entry.md5, len(entry.content), target, entry.name))
        with GDCClient(url=server.url, mirror="") as client:
            assert download_bundle(client, files) == {}
    assert len(files) == 9
    assert sum(1 for _ in tmp_path.rglob("annotations.txt")) == 3


def test_real_answers_are_understood(shared_data: Path, server: StandIn, client: GDCClient) -> None:
    answers = {p.stem: json.loads(p.read_text()) for p in (shared_data / "gdc_answers").glob("*.json")}
    assert len(answers) == 5
    # An old status has no data_release.
    server.faults = [Fault("", path="/status", change=lambda _: answers["System_Information_004_other"])]
    assert client.release == "unknown (API 1.2.0)"
    # Two hits of 931,947: a page of a longer list, which must not pass for the whole.
    client.cache = None
    server.faults = [Fault("", path="/files", change=lambda _: answers["Search_and_Retrieval_005_hits"], times=99)]
    with pytest.raises(GDCError, match="overlap"):
        client.search("files", {}, ["file_name"], page=2)
    whole = answers["Search_and_Retrieval_005_hits"]
    whole["data"]["pagination"]["total"] = 2
    hits = client.search("files", {}, ["file_name"], page=2)
    assert [h["access"] for h in hits] == ["controlled", "controlled"]
    row = fetch.lock_row({**hits[0], "md5sum": "0" * 32}, "slides", {})
    assert row is None, "a controlled file never enters a lock"
    server.faults = [Fault("", path="/cases", change=lambda _: answers["Search_and_Retrieval_013_hits"], times=2)]
    cases = client.search("cases", {}, ["submitter_id"])
    outcome = read_hits(cases)["TCGA-BH-A0EA"]
    assert (outcome.time, outcome.event, outcome.reason) == (None, None, "vital status is 'missing'")
    # Single records have no hits; they are no answer to a search.
    for name in ("Search_and_Retrieval_003_record", "Search_and_Retrieval_007_record"):
        server.faults = [Fault("", path="/files", change=lambda _, name=name: answers[name], times=99)]  # type: ignore[misc]
        with pytest.raises(GDCError, match="no hits"):
            client.search("files", {}, ["file_name"])
