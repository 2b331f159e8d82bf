"""The deep-zoom view: every tile of every level is in the page, and a browser draws it from a disk."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from hcmae.slides.reader import open_slide
from hcmae.slides.viewer import deep_zoom_frame, deep_zoom_page, deep_zoom_tiles, inline_json, openseadragon
from tests.support.twin_slides import paint, write_twin


def test_tiles_cover_every_level() -> None:
    image = paint(300, 700, seed=1)
    levels, tiles = deep_zoom_tiles(image, 256, quality=95)
    assert levels == 11  # 1, 2, 3, 6, ... 700
    counts = {level: sum(key.startswith(f"{level}/") for key in tiles) for level in range(levels)}
    assert counts[10] == 3 * 2
    assert counts[9] == 2
    assert all(counts[level] == 1 for level in range(9))
    corner = cv2.imdecode(np.frombuffer(tiles["10/2/1"], np.uint8), cv2.IMREAD_COLOR_RGB)
    assert corner.shape == (300 - 256, 700 - 512, 3)
    assert np.abs(corner.astype(int) - image[256:, 512:]).mean() < 6


def test_tiles_keep_their_colours_and_shrink_to_one_pixel() -> None:
    image = np.full((700, 1000, 3), 255, np.uint8)
    image[:350, :500] = (200, 30, 60)
    levels, tiles = deep_zoom_tiles(image)
    # 1000 pixels: level 10 is the image, 4 x 3 tiles of 256; every level halves, level 0 is one pixel.
    assert levels == 11
    assert {key.split("/")[0] for key in tiles} == {str(level) for level in range(11)}
    assert sum(key.startswith("10/") for key in tiles) == 12
    decoded = {key: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) for key, data in tiles.items()}
    assert decoded["10/3/2"].shape == (700 - 512, 1000 - 768, 3)
    assert decoded["0/0/0"].shape == (1, 1, 3)
    assert np.abs(decoded["10/0/0"][100, 100].astype(int) - (200, 30, 60)).max() < 8


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_tiles_of_what_is_no_picture(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        deep_zoom_tiles(image)


def test_no_text_ends_the_script_early() -> None:
    text = inline_json({"name": "</script><!--<b>"})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!--<b>"}
    with pytest.raises(ValueError):
        inline_json([float("nan")])
    assert not re.search("</script", openseadragon(), re.IGNORECASE)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_twin(tmp_path_factory.mktemp("v") / "twin.svs", paint(900, 1100, seed=2))
    with open_slide(path) as slide:
        return deep_zoom_page(slide, np.array([[0, 0], [256, 256]]), 256)


def test_page_asks_nobody(page: str) -> None:
    assert not re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=", page)
    assert '"squares":[[0,0,256' in page.replace(".0,", ",").replace(".0]", "]")
    frame = deep_zoom_frame(page, "A slide")
    inside = re.search(r'srcdoc="([^"]*)"', frame)
    assert inside
    assert html.unescape(inside[1]) == page


def test_missing_viewer_is_named(tmp_path: Path) -> None:
    path = write_twin(tmp_path / "a.svs", paint(300, 300), levels=())
    with open_slide(path) as slide, pytest.raises(FileNotFoundError, match="OpenSeadragon is not there"):
        deep_zoom_page(slide, script=tmp_path / "none.js")


@pytest.mark.slow
@pytest.mark.parametrize("framed", [False, True])
def test_a_browser_draws_it_from_a_disk(framed: bool, page: str, tmp_path: Path) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    if framed:  # the state of the frame is copied to where the dump shows it
        look = (
            "<script>setInterval(() => { const inner = document.querySelector('iframe').contentDocument.body;"
            "for (const name of ['data-drawn', 'data-failed']) if (inner && inner.hasAttribute(name))"
            " document.body.setAttribute(name, 'yes'); }, 50)</script>"
        )
        page = f"<!DOCTYPE html><html><body>{deep_zoom_frame(page, 'A slide')}{look}</body></html>"
    target = tmp_path / "view.html"
    target.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=8000", "--dump-dom", target.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body, done.stderr[-500:]
    assert 'data-drawn="yes"' in body[0]
    assert "data-failed" not in body[0]
