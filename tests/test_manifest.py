"""Manifests: Table 1 of the paper, and errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hcmae.config import CANCERS, ConfigError
from hcmae.manifest import load_manifest


def test_manifests_hold_table_1() -> None:
    rows = {c: load_manifest(c).table1 for c in CANCERS}
    assert sum(row.patients for row in rows.values()) == 2420
    assert sum(row.regions for row in rows.values()) == 365_764
    for row in rows.values():
        assert row.patches_million == pytest.approx(row.regions * 256 / 1e6, abs=0.06)


def test_unknown_key_is_an_error_that_names_it(tmp_path: Path, repo: Path) -> None:
    source = (repo / "data_manifests" / "LIHC.yaml").read_text()
    (tmp_path / "LIHC.yaml").write_text(source.replace("project:", "projcet:"))
    with pytest.raises(ConfigError, match="projcet"):
        load_manifest("LIHC", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [b"title: L\xe9", b"title: 2001-13-01", b"? [a, b]\n: 1", b"title: " + b"[" * 5000, b"title: !!int x", b"- a"],
)
def test_what_is_no_yaml_is_an_error_that_names_the_file(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "LIHC.yaml").write_bytes(line + b"\n")
    with pytest.raises(ConfigError, match=r"LIHC\.yaml: (not valid YAML|expected a mapping)"):
        load_manifest("LIHC", tmp_path)


def test_unknown_cancer_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown cancer 'KIRC'.*LIHC"):
        load_manifest("KIRC")
