"""What `benchmarks.fuzz` damages and reads: sound files, their readers, and the errors that these document."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset  # noqa: F401  (before the fork: every child would import it again)

import hcmae.cohort.curate  # noqa: F401
from benchmarks import mutations as m
from hcmae.cohort.annotations import SampleNotes, read_notices
from hcmae.cohort.clinical import ClinicalError, read_clinical, read_clinical_json
from hcmae.cohort.columns import read_columns
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.local import table_samples
from hcmae.cohort.lock import LOCK_COLUMNS, read_lock
from hcmae.config import ConfigError, Geometry, SlideSettings
from hcmae.content import Contents, slide_parts, tensors_hash
from hcmae.files import read_json, read_parquet
from hcmae.manifest import load_manifest
from hcmae.omics.gdc_files import OmicsFormatError, read_mirna_counts, read_sesame_betas, read_star_counts
from hcmae.omics.readers import read_units, read_xena_matrix
from hcmae.pipeline.check import check_data
from hcmae.slides import reader, tissue
from hcmae.slides.coords_files import import_coords
from hcmae.slides.errors import SlideError, TileError
from hcmae.slides.journal import Journal
from hcmae.slides.locations import located_slide
from hcmae.slides.mpp import load_mpp_table
from hcmae.slides.process import process_slide
from hcmae.slides.store import SlideStore, opened_stores, verify_store, write_vectors
from tests.support.hostile_slides import write_mrxs, write_ndpi
from tests.support.twin_slides import paint, write_twin

REPO = Path(__file__).resolve().parent.parent
GEOMETRY = Geometry(region=128, patch=32, cell=8, thumbnail=16)


@dataclass(frozen=True)
class Target:
    """A reader and sound input for it.

    ``files`` lie in a folder by these paths; ``main`` is passed to ``read``; those in ``changed`` are damaged by the
    mutation beside them. ``documented``: the errors that ``read`` may end in. ``weight``: share of the time.
    """

    name: str
    files: Mapping[str, bytes]
    main: str
    changed: Mapping[str, m.Mutation]
    read: Callable[[Path], object]
    documented: tuple[type[Exception], ...] = ()
    weight: float = 1.0
    # Bytes of memory beyond what the program has before.
    memory: int = 768 << 20


def targets(real: Path | None = None) -> list[Target]:
    """All targets; ``real``: a folder of real slides (\\*.svs and others below it), each of which becomes one more."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(folder)
        found = [
            *_slides(place),
            *_stores(place),
            *_masks(place),
            *_tables(),
            *_single_files(),
            *_notes(place),
            *_folders(),
        ]
    for path in sorted(real.rglob("*") if real else ()):
        if path.suffix.lower() in (".svs", ".tif", ".tiff", ".ndpi"):
            found.append(_slide(f"real {path.stem}", path.name, path.read_bytes(), m.tiff, weight=0.5))
    return found


# ---------------------------------------------------------------- slides


def read_slide(path: Path) -> None:
    """Everything that is done with a slide: tags, parts, an overview, regions of every level."""
    slide_parts(path)
    try:
        with reader.open_slide(path) as slide:
            if max(slide.size) > 1 << 14:
                return  # plausible, and an overview of that takes its time
            slide.survey(8)
            slide.thumbnail(64)
            for level in range(len(slide.levels)):
                slide.read(100, 60, (200, 150), level, on_error="white")
            slide.read(0, 0, (64, 64))
            slide.read(slide.size[0] - 70, slide.size[1] - 70, (64, 64))
    except (SlideError, TileError):
        pass


def _slide(name: str, file: str, data: bytes, *ways: m.Mutation, weight: float = 1.0) -> Target:
    damage = m.either(*ways, m.any_bytes)
    return Target(name, {file: data}, file, {file: damage}, read_slide, weight=weight, memory=2 << 30)


def _slides(place: Path) -> list[Target]:
    picture = paint(384, 384, seed=2)
    kinds: dict[str, dict[str, Any]] = {
        "jpeg.svs": {"levels": (4,)},
        "rgb.svs": {"colour": "rgb", "levels": ()},
        "deflate.tif": {"compression": "deflate", "description": "", "levels": (2,), "predictor": True},
        "lzw.tif": {"compression": "lzw", "bigtiff": True, "levels": ()},
        "zstd.tif": {"compression": "zstd", "levels": ()},
        "plain.tif": {"compression": "none", "description": "", "levels": (2,)},
        "big.svs": {"bigtiff": True, "levels": (4,)},
        "j2k.svs": {"compression": "aperio_jp2000_rgb", "levels": ()},
        "philips.tif": {"description": '<DataObject ObjectType="DPUfsImport"></DataObject>', "levels": (4,)},
    }
    found = []
    for name, options in kinds.items():
        data = write_twin(place / name, picture, tile=128, **options).read_bytes()
        extra = (
            [m.jpeg] if "jpeg" in options.get("compression", "jpeg") or "jp2" in options.get("compression", "") else []
        )
        found.append(_slide(name, name, data, m.tiff, m.tiff, *extra))
    ndpi = write_ndpi(place / "a.ndpi", picture).read_bytes()
    found.append(_slide("ndpi", "a.ndpi", ndpi, m.tiff, m.tiff, m.jpeg, weight=2))
    write_mrxs(place / "a.mrxs", picture)
    files = {f"a/{path.name}": path.read_bytes() for path in (place / "a").iterdir()} | {"a.mrxs": b"\xff\xd8\xff\xe0"}
    ways = {
        "a/Slidedat.ini": m.either(m.ini, m.ini, m.any_bytes),
        "a/Index.dat": m.either(m.numbers32, m.any_bytes),
        "a/Data0000.dat": m.either(m.jpeg, m.any_bytes),
    }
    for changed, way in ways.items():
        found.append(Target(f"mrxs {changed[2:]}", files, "a.mrxs", {changed: way}, read_slide, memory=2 << 30))
    vms = (
        b"[Virtual Microscope Specimen]\nNoJpegColumns=1\nNoJpegRows=1\nNoLayers=1\nImageFile=a.jpg\nMacroImage=a.jpg\n"
        b"MapFile=a.jpg\nOptimisationFile=a.opt\nSourceLens=20\nPhysicalWidth=1000\nPhysicalHeight=1000\n"
    )
    strip = ndpi[16 : ndpi.index(b"\xff\xd9") + 2]
    found.append(
        Target("vms", {"a.vms": vms, "a.jpg": strip, "a.opt": b""}, "a.vms",
               {"a.vms": m.either(m.ini, m.any_bytes), "a.jpg": m.either(m.jpeg, m.any_bytes)}, read_slide, weight=0.5)
    )  # fmt: skip
    return found


# ---------------------------------------------------------------- stores, coordinates, masks, journals


def read_store(path: Path) -> None:
    """A store as the road and a person look at it."""
    verify_store(path)
    store = SlideStore(path)
    _ = store.coords, store.thumbnails, store.tissue_fraction, store.content, store.vector_content, repr(store)
    _ = store.geometry, store.key, store.key_parts, store.slide_id, store.side, store.slide_path
    for name in store.vector_weights:
        store.vectors(name)


def _read_memory(path: Path) -> None:
    for _, store in opened_stores(path.parent, [path.parent / "a.h5"]):
        _ = len(store), store.content, store.vector_weights, store.vector_keys, store.vector_content
    located_slide(path.parent, "a")


def _stores(place: Path) -> list[Target]:
    import h5py

    slide = write_twin(place / "a.svs", paint(384, 384, seed=2), tile=128, levels=(4,))
    (place / "stores").mkdir()
    path = place / "stores" / "a.h5"
    outcome = process_slide(slide, path, GEOMETRY, SlideSettings(preset="synthetic"), geojson=False)
    write_vectors(path, "region_vectors", np.ones((outcome.regions, 4), np.float32), "w")
    store = path.read_bytes()
    list(opened_stores(path.parent, [path]))  # too young to be remembered: the memory is written by hand
    head = {"a.h5": [1, [1, 2, 3, 4], [4, "c"], {"region_vectors": {"weights": "w", "key": "k", "content": "c"}}]}
    where = {"root": "../data", "absolute": "/nowhere", "slides": {"a": "slides/a.svs"}}
    with h5py.File(place / "clam.h5", "w") as file:
        file["coords"] = np.arange(40).reshape(20, 2)
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])})
    clam = (place / "clam.h5").read_bytes()
    both = m.either(m.hdf5, m.hdf5_bytes, m.any_bytes)
    unreadable = (ValueError, FileNotFoundError)
    notes = m.either(m.json_values, m.any_bytes)
    return [
        Target("store", {"a.h5": store}, "a.h5", {"a.h5": both}, read_store, unreadable, 4.0),
        Target("coordinates", {"a.h5": clam}, "a.h5", {"a.h5": both}, import_coords, (ValueError,), 2.0),
        Target("memory of stores", {"a.h5": store, ".heads.json": json.dumps(head).encode(),
               "where.json": json.dumps(where).encode()}, ".heads.json",
               {".heads.json": notes, "where.json": notes}, _read_memory, (ValueError,)),
    ]  # fmt: skip


def _read_mask(path: Path) -> None:
    tissue.is_edited(path)
    tissue.simplified(tissue.read_geojson(path, (64, 64), 16), 2.0)


def _read_journal(path: Path) -> None:
    journal = Journal(path, "key", 6, 4)
    try:
        journal.open()
        _ = journal.good(), journal.first_cause(), journal.thumbnails(journal.good())[0:6]
        journal.add(3, np.zeros((4, 4, 3), np.uint8), "")
    finally:
        journal.close()


def _masks(place: Path) -> list[Target]:
    ring = [[100, 100], [500, 120], [480, 600], [90, 610], [100, 100]]
    hole = [[200, 200], [300, 200], [300, 300], [200, 300], [200, 200]]
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring, hole]},
         "properties": {"classification": {"name": "Tissue"}}},
        {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[hole], [ring]]},
         "properties": {"classification": {"name": "Ignore*"}}},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4]}, "properties": None},
    ]  # fmt: skip
    mask = json.dumps({"type": "FeatureCollection", "features": features, "hcmae_sha256": "x"}).encode()
    journal = Journal(place / "j", "key", 6, 4)
    journal.open()
    for number in range(4):
        journal.add(number, np.full((4, 4, 3), number, np.uint8), "")
    journal.close()
    return [
        Target("mask", {"a.geojson": mask}, "a.geojson", {"a.geojson": m.either(m.json_values, m.any_bytes)},
               _read_mask, (ValueError,), 2.0),
        Target("journal", {".a.journal": (place / "j").read_bytes()}, ".a.journal", {".a.journal": m.any_bytes},
               _read_journal, (), 0.5),
    ]  # fmt: skip


# ---------------------------------------------------------------- tables of people

_NAMES = [f"TCGA-AA-000{number}" for number in range(8)]


def _rows(head: str, *columns: object) -> str:
    """A table of eight rows: under its head, each column a function of the row's number or a constant."""
    rows = [[column(row) if callable(column) else column for column in columns] for row in range(8)]
    return head + "\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows)


def _dead(yes: object = "Dead", no: object = "Alive") -> Callable[[int], object]:
    return lambda row: yes if row % 2 else no


_BIOTAB = "bcr_patient_barcode\tvital_status\tlast_contact_days_to\tdeath_days_to"
CLINICAL = {
    "plain": _rows("patient\ttime_days\tevent\tslide\tage\tsex\tstage\tgrade", _NAMES.__getitem__,
                   lambda row: 90 * row + 31, _dead(1, 0), lambda row: f"{_NAMES[row]}.svs", lambda row: 50 + row,
                   lambda row: "male" if row % 3 else "female", "Stage II", "G2"),
    "TCGA-CDR": _rows("bcr_patient_barcode\ttype\tage_at_initial_pathologic_diagnosis\tgender\tOS\tOS.time",
                      _NAMES.__getitem__, "LIHC", lambda row: 60 + row, "MALE", _dead(1, 0), lambda row: 200 + row),
    "Xena": _rows("sample\t_PATIENT\tOS\tOS.time", lambda row: f"{_NAMES[row]}-01", _NAMES.__getitem__, _dead(1, 0),
                  lambda row: 200 + row),
    "PORPOISE": _rows("case_id\tslide_id\tsurvival_months\tcensorship", _NAMES.__getitem__,
                      lambda row: f"{_NAMES[row]}-01Z-00-DX1.svs", lambda row: 2.5 * row + 3, _dead("1.0", "0.0")),
    "GDC": _rows("case_submitter_id\tvital_status\tdays_to_death\tdays_to_last_follow_up\tage_at_diagnosis\tgender",
                 _NAMES.__getitem__, _dead(), _dead(300, "'--"), lambda row: 250 + row, 20_000, "male"),
    "cBioPortal": "#Patient\tStatus\tMonths\n#text\ttext\ttext\n#STRING\tSTRING\tNUMBER\n#1\t1\t1\n"
    + _rows("PATIENT_ID\tOS_STATUS\tOS_MONTHS", _NAMES.__getitem__, _dead("1:DECEASED", "0:LIVING"),
            lambda row: 4.5 * row + 2),
    "Biotab": _rows(f"{_BIOTAB}\n{_BIOTAB}\nCDE_ID:2003301\tCDE_ID:5\tCDE_ID:3008273\tCDE_ID:3165475",
                    _NAMES.__getitem__, _dead(), lambda row: 100 + row, _dead(120, "[Not Applicable]")),
}  # fmt: skip


def _omics(seed: int, kind: str) -> str:
    rng = np.random.default_rng(seed)
    make: dict[str, Callable[[], Any]] = {
        "counts": lambda: rng.integers(0, 5000, (8, 12)),
        "log2": lambda: np.log2(rng.integers(0, 5000, (8, 12)) + 1).round(4),
        "rpm": lambda: rng.gamma(1, 90, (8, 12)).round(3),
        "beta": lambda: rng.uniform(0, 1, (8, 12)).round(4),
    }
    values = make[kind]()
    head = "patient\t" + "\t".join(f"G{i}" for i in range(12)) + "\n"
    return head + "".join(f"TCGA-AA-000{i}-01A\t" + "\t".join(map(str, row)) + "\n" for i, row in enumerate(values))


def _read_omics(modality: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        with suppress(CurationError):
            table_samples(path)
        return read_units(path, modality, path.parent)

    return read


def _tables() -> list[Target]:
    found = []
    for name, text in CLINICAL.items():
        found += _table(f"clinical {name}", text, read_clinical, (ClinicalError,), "clinical.tsv", 1.5)
    for modality, kind in (("rna", "counts"), ("rna", "log2"), ("mirna", "rpm"), ("methylation", "beta")):
        name = "mirna_rpm.tsv" if kind == "rpm" else f"{modality}.tsv"
        found += _table(f"{modality} {kind}", _omics(3, kind), _read_omics(modality), (OmicsFormatError,), name, 1.5)
    samples = _rows("sample\tsample_type\tis_ffpe\tcategory\tnotes", lambda row: f"{_NAMES[row]}-01A", "Primary Tumor",
                    _dead("yes", "no"), "", "fine")  # fmt: skip
    notices = _rows("id\tsubmitter_id\tentity_type\tentity_id\tcategory\tclassification\tnotes", str,
                    _NAMES.__getitem__, "case", str, "Item flagged DNU", "Notification", "text")  # fmt: skip
    lock = _rows("\t".join(LOCK_COLUMNS), lambda row: f"id{row}", lambda row: f"{row}.tsv", "0" * 32,
                 lambda row: 100 + row, "released", lambda row: f"{_NAMES[row]}-01A", _NAMES.__getitem__, "rna",
                 "40.0")  # fmt: skip
    found += _table("samples", samples, lambda p: SampleNotes().add(p), (CurationError,), "samples.tsv")
    found += _table("notices", notices, read_notices, (CurationError,), "annotations.txt")
    found += _table("lock", lock, read_lock, (CurationError,), "files.tsv", gz=False)
    mpp = "slide,mpp\na.svs,0.25\nTCGA-*,0.5\n*.ndpi,0.23\n"
    found += _table("resolutions", mpp, load_mpp_table, (ValueError,), "mpp.csv", separator=",", gz=False)
    return found


def _table(
    name: str, text: str, read: Callable[[Path], object], documented: tuple[type[Exception], ...], file: str,
    weight: float = 1.0, *, separator: str = "\t", gz: bool = True,
) -> list[Target]:  # fmt: skip
    way = m.either(m.cells(separator), m.cells(separator), m.any_bytes)
    data = text.encode()
    found = [Target(name, {file: data}, file, {file: way}, read, documented, weight)]
    if gz:
        found.append(
            Target(
                f"{name} packed",
                {f"{file}.gz": data},
                f"{file}.gz",
                {f"{file}.gz": m.packed(way)},
                read,
                documented,
                0.4,
            )
        )
    return found


# ---------------------------------------------------------------- files of the GDC, JSON, notes of the road


def _single_files() -> list[Target]:
    star = "# gene-model: GENCODE v36\n" + _rows("gene_id\tgene_name\tgene_type\tunstranded\tstranded_first",
                lambda row: f"ENSG{row:011d}.1" if row > 1 else f"N_unmapped{row}", "G", "protein_coding",
                lambda row: 7 * row, 0)  # fmt: skip
    mirna = _rows("miRNA_ID\tread_count\treads_per_million_miRNA_mapped\tcross-mapped", lambda row: f"hsa-mir-{row}",
                  str, lambda row: row + 0.5, "N")  # fmt: skip
    betas = "".join(f"cg{i:08d}\t0.{i}123\n" for i in range(1, 9)) + "cg00000029_TC21\tNA\n"
    xena = _rows("id\tS1\tS2", lambda row: f"g{row}", str, 1.5)
    bad = (OmicsFormatError,)
    found = [
        *_table("star", star, read_star_counts, bad, "a.tsv"),
        *_table("mirna file", mirna, read_mirna_counts, bad, "a.txt"),
        *_table("betas", betas, read_sesame_betas, bad, "a.level3betas.txt"),
        *_table("xena", xena, lambda p: read_xena_matrix(p, ["S2", "S1"]), bad, "xena.tsv"),
    ]
    hit = {
        "submitter_id": "TCGA-AA-0001", "demographic": {"vital_status": "Dead", "days_to_death": 512, "gender": "male",
        "age_at_index": 60}, "follow_ups": [{"days_to_follow_up": 400}],
        "diagnoses": [{"days_to_last_follow_up": 100, "ajcc_pathologic_stage": "Stage I", "tumor_grade": "G1",
        "diagnosis_is_primary_disease": True, "age_at_diagnosis": 21000}],
    }  # fmt: skip
    columns = {"files": {"rna": "x.tsv"}, "clinical": {"patient": "who", "time": "t", "time_unit": "months",
               "sex_values": {"1": "male"}}, "rna": {"patient": "who"}, "units": {"rna": "tpm"}}  # fmt: skip
    documents: dict[str, tuple[Any, Callable[[Path], object], tuple[type[Exception], ...]]] = {
        "clinical.json": ([hit, hit | {"submitter_id": "TCGA-AA-0002"}], read_clinical_json, (ClinicalError,)),
        "columns.json": (columns, lambda p: read_columns(p.parent), (CurationError,)),
        "key.json": ({"key": "k", "settings": {"a": 1}}, read_json, (ValueError,)),
    }
    for name, (document, read, documented) in documents.items():
        way = m.either(m.json_values, m.json_values, m.any_bytes)
        found.append(Target(name, {name: json.dumps(document).encode()}, name, {name: way}, read, documented, 1.5))
    return found


def _notes(place: Path) -> list[Target]:
    frame = pd.DataFrame({"patient": ["a", "b"], "time": [1.0, 2.0], "event": [1, 0]})
    frame.to_parquet(place / "a.parquet")
    tensors = json.dumps(
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "{}"}}
    ).encode()
    weights = len(tensors).to_bytes(8, "little") + tensors + bytes(8)
    memory = (json.dumps(["a", 1, 2, 3, "digest"]) + "\n").encode() * 3
    manifest = (REPO / "data_manifests" / "LIHC.yaml").read_bytes()
    return [
        Target("parquet", {"a.parquet": (place / "a.parquet").read_bytes()}, "a.parquet", {"a.parquet": m.any_bytes},
               read_parquet, (ValueError,)),
        Target("weights", {"a.safetensors": weights}, "a.safetensors", {"a.safetensors": m.any_bytes}, tensors_hash,
               (ValueError,), 0.5),
        Target("memory of contents", {".contents.jsonl": memory, "a": b"x"}, "a", {".contents.jsonl": m.any_bytes},
               lambda p: Contents(p.parent / ".contents.jsonl").file(p), (), 0.5),
        Target("manifest", {"LIHC.yaml": manifest}, "LIHC.yaml", {"LIHC.yaml": m.any_bytes},
               lambda p: load_manifest("LIHC", p.parent), (ConfigError,), 0.5),
    ]  # fmt: skip


def _check(path: Path) -> None:
    check_data(load_manifest("LIHC", REPO / "data_manifests"), "local", path.parent)


def _folders() -> list[Target]:
    """A folder of somebody, of which one table or more is damaged: every check says something and none raises."""
    files = {
        "clinical.tsv": CLINICAL["plain"].encode(),
        "rna.tsv": _omics(3, "counts").encode(),
        "mirna.tsv.gz": gzip.compress(_omics(4, "rpm").encode(), mtime=0),
        "columns.json": b'{"units": {"rna": "counts"}, "clinical": {"age": "age"}}',
        "samples.tsv": b"sample\tsample_type\nTCGA-AA-0001-01A\tPrimary Tumor\n",
    }
    changed = {
        "clinical.tsv": m.cells(), "rna.tsv": m.cells(), "columns.json": m.json_values, "samples.tsv": m.cells(),
        "mirna.tsv.gz": m.any_bytes,
    }  # fmt: skip
    return [Target("folder of one's own", files, "clinical.tsv", changed, _check, (), 3.0)]
