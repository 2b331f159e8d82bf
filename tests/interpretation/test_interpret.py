"""Attention against planted regions, and the report of genes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from hcmae.interpretation import interpret


def test_attention_auc_by_hand() -> None:
    weights = {"a": np.array([0.5, 0.3, 0.2]), "b": np.array([0.5, 0.5]), "c": np.array([1.0])}
    planted = {"a": np.array([True, False, True]), "b": np.array([True, False]), "c": np.array([True])}
    assert interpret.attention_auc(weights, planted) == pytest.approx((1 + 0 + 0.5) / 3)
    with pytest.raises(ValueError, match="both planted"):
        interpret.attention_auc({"c": weights["c"]}, planted)
    with pytest.raises(ValueError, match="patient a"):
        interpret.attention_auc({"a": np.ones(2)}, planted)


def test_planted_regions_and_geojson(tmp_path) -> None:
    truth = pd.DataFrame(
        {"patient": ["a", "a"], "x": [0, 512], "y": [0, 0], "tumour": [True, False], "slide": ["s", "s"]}
    )
    found = interpret.planted_regions(truth, {"a": np.array([[100, 60], [512, 0], [300, 0]])}, 512)
    assert found["a"].tolist() == [True, False, False]
    # The same tissue cut to twice the side: a stored region that covers the planted one, and one that only touches it.
    corners = {"a": np.array([[0, 0], [-600, 0], [-800, 0]])}
    assert interpret.planted_regions(truth, corners, 512, {"a": 1024})["a"].tolist() == [True, True, False]
    with pytest.raises(ValueError, match="patient z"):
        interpret.planted_regions(truth, {"z": np.zeros((1, 2))}, 512)
    path = tmp_path / "x.geojson"
    interpret.write_geojson(path, np.array([[0, 0], [512, 0]]), 512, np.array([0.25, 0.75]))
    features = json.loads(path.read_text())["features"]
    assert features[1]["properties"]["measurements"] == {"attention": 0.75}
    assert features[1]["geometry"]["coordinates"][0][2] == [1024, 512]


def test_gene_table_marks_planted_features() -> None:
    names = {"rna": ["ENSG1.5", "ENSG2.1"], "mirna": ["m1", "m2"]}
    attributions = np.array([[[0.1, -0.9], [0.2, 0.0]]])
    planted = {"rna": {"shared": {"up": ["ENSG2.7"], "down": []}}, "mirna": {"omics": ["m1"]}}
    table = interpret.gene_table(attributions, names, planted)
    assert table["feature"].tolist() == ["ENSG2.1", "m1", "ENSG1.5", "m2"]
    assert table["planted"].tolist() == [True, True, False, False]
