"""The overlay of a slide: one page that asks no network."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest

from hcmae.interpretation import overlay
from hcmae.slides.viewer import deep_zoom_tiles


class _Picture:
    """A slide as far as the overlay looks at one."""

    size = (1000, 700)

    def thumbnail(self, max_side: int) -> np.ndarray:
        height = round(700 * min(1.0, max_side / 1000))
        width = round(1000 * min(1.0, max_side / 1000))
        image = np.full((height, width, 3), 255, np.uint8)
        image[: height // 2, : width // 2] = (200, 30, 60)
        return image


def test_overlay_page_is_whole_and_asks_no_network(tmp_path) -> None:
    corners = np.array([[0, 0], [500, 0], [0, 350]])
    weights = {"rna": np.array([0.5, 0.3, 0.2]), "</script><b>": np.ones(3) / 3}
    page = overlay.overlay_page(
        _Picture(), corners, 250, weights, planted=np.array([True, False, False]), max_side=500, title="A & B"
    )
    start = page.index('id="data">') + len('id="data">')
    data = json.loads(page[start : page.index("</script>", start)])
    # Half the size: regions are scaled from level-0 pixels to the deepest level of the page.
    assert (data["width"], data["height"], data["levels"]) == (500, 350, 9)
    assert data["regions"] == [[0, 0], [250, 0], [0, 175]]
    assert data["side"] == [125, 125]
    assert data["layers"]["rna"] == [0.5, 0.3, 0.2]
    assert data["planted"] == [True, False, False]
    assert set(data["tiles"]) == set(deep_zoom_tiles(_Picture().thumbnail(500))[1])
    assert "<b>" not in page
    assert "A &amp; B" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    overlay.write_overlay(tmp_path / "x.html", page)
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == page
    frame = overlay.inline_frame(page)
    assert html.unescape(frame[frame.index('srcdoc="') + 8 : frame.rindex('"></iframe>')]) == page


@pytest.mark.parametrize(
    ("weights", "planted", "message"),
    [
        ({}, None, "no layer"),
        ({"rna": np.ones(2)}, None, r"'rna' has weights of shape \(2,\) for 3 regions"),
        ({"rna": np.array([1, np.nan, 0])}, None, "negative, NaN or infinite"),
        ({"rna": np.ones(3)}, np.ones(2, bool), "planted has shape"),
    ],
)
def test_overlay_refuses(weights, planted, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay.overlay_page(_Picture(), np.zeros((3, 2), int), 10, weights, planted=planted)


def test_overlay_names_the_missing_library(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="library="):
        overlay.overlay_page(
            _Picture(), np.zeros((1, 2), int), 10, {"rna": np.ones(1)}, library=tmp_path / "openseadragon.min.js"
        )
