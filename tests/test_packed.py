"""What others have packed is unpacked within bounds, and damage ends in the documented error."""

from __future__ import annotations

import gzip
import random
import zlib
from pathlib import Path

import pytest

from hcmae import packed
from hcmae.cohort.clinical import ClinicalError, parse_clinical_json, read_clinical_table
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.local import local_mapping, table_samples
from hcmae.cohort.lock import xena_header
from hcmae.omics.readers import OmicsFormatError, read_local_table, read_xena_matrix
from hcmae.packed import SwellingError, open_packed, parse_json, unpacked


@pytest.fixture
def bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table that unpacks to a thousand times its size, with the bound set so low that a test can reach it."""
    monkeypatch.setattr(packed, "FREE_BYTES", 1 << 16)
    path = tmp_path / "rna.tsv.gz"
    path.write_bytes(gzip.compress(b"patient\tG1" + b"\t" * (1 << 21)))
    return path


def test_a_file_that_swells_is_refused_by_every_reader(bomb: Path) -> None:
    with pytest.raises(SwellingError, match=r"rna\.tsv\.gz unpacks to more than"):
        unpacked(bomb)
    for read, error in (
        (table_samples, CurationError),
        (xena_header, CurationError),
        (read_clinical_table, ClinicalError),
        (read_local_table, OmicsFormatError),
    ):
        with pytest.raises(error, match=r"unpacks to more than"):
            read(bomb)


def test_a_matrix_whose_rows_go_on_for_ever_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FREE_BYTES", 1 << 16)
    path = tmp_path / "matrix.tsv.gz"
    path.write_bytes(gzip.compress(b"id\tS1\n" + b"g\t0\n" * (1 << 19)))
    with pytest.raises(OmicsFormatError, match=r"matrix\.tsv\.gz: not a Xena matrix .* unpacks to more than"):
        read_xena_matrix(path, ["S1"])


def test_what_is_packed_well_and_small_is_read(tmp_path: Path) -> None:
    path, text = tmp_path / "a.gz", b"0\t" * 500_000
    path.write_bytes(gzip.compress(text))
    assert len(text) > packed.MOST_RATIO * path.stat().st_size / 2
    assert unpacked(path) == text
    (tmp_path / "plain").write_bytes(text)
    assert unpacked(tmp_path / "plain") == text
    with open_packed(path) as handle:
        assert handle.read(3) == b"0\t0"


def test_damaged_packs_end_in_the_errors_that_are_named(tmp_path: Path) -> None:
    rng, whole = random.Random(3), gzip.compress(b"patient\tG1\nP1\t1\n" * 50)
    path = tmp_path / "rna.tsv.gz"
    seen = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(2, len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.randint(3, len(damaged))])
        try:
            unpacked(path)
        except (OSError, EOFError, zlib.error) as error:
            seen.add(type(error).__name__)
    assert len(seen) >= 2


def test_json_without_end_is_a_value_error(tmp_path: Path) -> None:
    deep = "[" * 200_000
    for text in (deep, "{", "9" * 5000, "x" * 11):
        with pytest.raises(ValueError):
            parse_json(text, most=len(deep) if text == deep else 10_000)
    with pytest.raises(ValueError, match="11 bytes of JSON, more than 10"):
        parse_json("[1, 2, 3,4]", most=10)
    with pytest.raises(ClinicalError, match=r"clinical\.json: not valid JSON"):
        parse_clinical_json(deep.encode(), "clinical.json")
    (tmp_path / "columns.json").write_text(deep)
    with pytest.raises(CurationError, match=r"columns\.json"):
        local_mapping(tmp_path)
