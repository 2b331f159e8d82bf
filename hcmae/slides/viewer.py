"""A deep-zoom view of a small slide in one HTML page: tiles, squares and the viewer's code are all inside it.

Nothing is fetched, so the page works from a disk, from a notebook and from a published book alike. The view is
OpenSeadragon (BSD-3-Clause, vendored under book/_static/openseadragon).
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hcmae.slides.reader import Slide

__all__ = [
    "TILE",
    "deep_zoom_frame",
    "deep_zoom_page",
    "deep_zoom_tiles",
    "inline_json",
    "inline_tiles",
    "openseadragon",
]

TILE = 256
_SCRIPT = Path(__file__).resolve().parents[2] / "book" / "_static" / "openseadragon" / "openseadragon.min.js"

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>%(title)s</title>
<style>
html, body { margin: 0; height: 100%%; background: #ffffff; font: 14px sans-serif; color: #22272e; }
body { display: flex; flex-direction: column; }
#view { flex: 1; min-height: 0; position: relative; }
#bar { display: flex; flex-wrap: wrap; gap: .4em; align-items: center; padding: .3em .4em; }
button { font: inherit; white-space: nowrap; min-width: 2.2em; padding: .2em .5em; color: #22272e; background: #f3f4f6;
  border: 1px solid #6b7280; border-radius: .3em; }
button:focus-visible { outline: 3px solid #0b6e99; }
.square { box-sizing: border-box; border: 2px solid #0b7a75; }
</style></head><body>
<div id="bar"><button id="in" aria-label="Zoom in">+</button><button id="out" aria-label="Zoom out">&minus;</button>
<button id="home">Whole slide</button><button id="squares" aria-pressed="true">Regions</button>
<span id="where" role="status"></span></div>
<div id="view" role="application" aria-label="%(title)s"></div>
<script>%(script)s</script>
<script>
const slide = %(slide)s;
const viewer = OpenSeadragon({
  element: document.getElementById("view"), drawer: "canvas", showNavigationControl: false, showNavigator: true,
  maxZoomPixelRatio: 8, gestureSettingsMouse: { scrollToZoom: true },
  tileSources: { width: slide.width, height: slide.height, tileSize: slide.tile, tileOverlap: 0,
    minLevel: 0, maxLevel: slide.levels - 1,
    getTileUrl: (level, x, y) => "data:image/jpeg;base64," + slide.tiles[level + "/" + x + "/" + y] },
});
const act = (id, what) => document.getElementById(id).addEventListener("click", what);
act("in", () => viewer.viewport.zoomBy(2));
act("out", () => viewer.viewport.zoomBy(0.5));
act("home", () => viewer.viewport.goHome());
const boxes = slide.squares.map(() => {
  const box = document.createElement("div"); box.className = "square"; return box; });
act("squares", event => {
  const on = event.target.getAttribute("aria-pressed") !== "true";
  event.target.setAttribute("aria-pressed", on);
  boxes.forEach(box => { box.style.visibility = on ? "visible" : "hidden"; }); });
viewer.addHandler("open", () => slide.squares.forEach(([x, y, side], i) => viewer.addOverlay({
  element: boxes[i], location: viewer.viewport.imageToViewportRectangle(x, y, side, side) })));
viewer.addHandler("zoom", event => {
  const scale = viewer.viewport.viewportToImageZoom(event.zoom);
  const micrometres = (slide.mpp / scale).toPrecision(2);
  document.getElementById("where").textContent = "1 screen pixel = " + micrometres + " \\u00b5m"; });
viewer.addHandler("tile-load-failed", () => document.body.setAttribute("data-failed", "yes"));
viewer.addHandler("tile-drawn", () => document.body.setAttribute("data-drawn", "yes"));
</script></body></html>
"""


def deep_zoom_tiles(image: NDArray[np.uint8], tile: int = TILE, quality: int = 80) -> tuple[int, dict[str, bytes]]:
    """JPEG tiles of every level of a deep-zoom pyramid: (number of levels, 'level/column/row' -> JPEG).

    ``image`` uint8 [H, W, 3]; level 0 is one pixel, the last one the image; each level has half the size of the next,
    rounded up, and is the area mean of it. Raises ValueError for another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"the image must be uint8 [h, w, 3], not {image.dtype} {list(image.shape)}")
    levels = math.ceil(math.log2(max(image.shape[:2]))) + 1 if max(image.shape[:2]) > 1 else 1
    tiles: dict[str, bytes] = {}
    current = image
    for level in range(levels - 1, -1, -1):
        height, width = current.shape[:2]
        for row in range(-(-height // tile)):
            for column in range(-(-width // tile)):
                piece = current[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                ok, data = cv2.imencode(".jpg", piece[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
                if not ok:
                    raise ValueError(f"tile {level}/{column}/{row} cannot be encoded")
                tiles[f"{level}/{column}/{row}"] = data.tobytes()
        if level:
            size = (max(1, -(-width // 2)), max(1, -(-height // 2)))
            current = np.asarray(cv2.resize(current, size, interpolation=cv2.INTER_AREA), np.uint8)
    return levels, tiles


def openseadragon(path: str | Path | None = None, *, argument: str = "script") -> str:
    """OpenSeadragon's code, ready to stand in a script element; ``path`` None: the copy in book/_static.

    Raises FileNotFoundError where it is not there, naming the ``argument`` that takes its place.
    """
    code = Path(path) if path is not None else _SCRIPT
    if not code.is_file():
        raise FileNotFoundError(f"{code}: OpenSeadragon is not there; give its place as {argument}=")
    return code.read_text(encoding="utf-8").replace("</script", "<\\/script")


def inline_tiles(tiles: Mapping[str, bytes]) -> dict[str, str]:
    """Tiles as base64 text, for a data address."""
    return {key: base64.b64encode(data).decode() for key, data in tiles.items()}


def inline_json(data: Any) -> str:
    """JSON that may stand inside a script element. Raises ValueError for NaN and infinities."""
    # Inside a script element "</" or "<!--" would end the data; JSON may spell the sign as its code.
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def deep_zoom_page(
    slide: Slide,
    corners: NDArray[np.integer] | None = None,
    side: int = 0,
    *,
    max_side: int = 2048,
    quality: int = 80,
    script: str | Path | None = None,
) -> str:
    """The page of one slide, reduced to at most ``max_side`` pixels, with the squares of its regions.

    ``corners`` [M, 2] and ``side`` in level-0 pixels. Raises FileNotFoundError where the viewer's code is not there.
    """
    code = openseadragon(script)
    image = slide.thumbnail(max_side) if max(slide.size) > max_side else slide.read(0, 0, slide.size, on_error="white")
    scale = image.shape[1] / slide.size[0]
    levels, tiles = deep_zoom_tiles(image, quality=quality)
    places = np.zeros((0, 2)) if corners is None else np.asarray(corners)
    description = {
        "width": image.shape[1],
        "height": image.shape[0],
        "tile": TILE,
        "levels": levels,
        "mpp": slide.mpp / scale,
        "squares": [[round(x * scale, 2), round(y * scale, 2), round(side * scale, 2)] for x, y in places.tolist()],
        "tiles": inline_tiles(tiles),
    }
    title = html.escape(f"{slide.path.stem}: a view to zoom and drag", quote=True)
    return _PAGE % {"title": title, "script": code, "slide": inline_json(description)}


def deep_zoom_frame(page: str, title: str, height: int = 520) -> str:
    """The page as an element of a notebook's output: a frame that carries its content, for any place and no server."""
    # Inside a div: IPython warns about HTML that is nothing but a frame.
    return (
        f'<div><iframe title="{html.escape(title, quote=True)}" loading="lazy" '
        f'style="width:100%;height:{height}px;border:1px solid #6b7280"'
        f' srcdoc="{html.escape(page, quote=True)}"></iframe></div>'
    )
