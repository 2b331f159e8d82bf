"""Attention over a slide as one web page: a deep zoom of the slide with the regions' weights laid over it.

The page carries its tiles and OpenSeadragon (BSD-3-Clause) within itself, asks no network for anything, and opens by a
double click or inside an iframe of a notebook.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hcmae.files import write_text
from hcmae.slides.viewer import TILE, deep_zoom_frame, deep_zoom_tiles, inline_json, inline_tiles, openseadragon

if TYPE_CHECKING:
    from hcmae.slides.reader import Slide


def overlay_page(
    slide: Slide,
    corners: NDArray[np.integer],
    region: int,
    weights: Mapping[str, NDArray[np.floating]],
    *,
    planted: NDArray[np.bool_] | None = None,
    title: str = "Attention over the slide",
    max_side: int = 4096,
    library: str | Path | None = None,
) -> str:
    """The page as text: slide, one switchable layer per entry of ``weights``, opacity, the weight of a region on hover.

    corners [M, 2]: top-left corners of the regions, region: their side, both in level-0 pixels; weights: layer -> [M],
    not negative, each drawn relative to its own largest; planted [M]: regions to be framed. ``max_side`` limits the
    deepest level, so that a slide of 100,000 pixels stays a page of a few megabytes. ``library``: OpenSeadragon's
    JavaScript, default the copy in book/_static.

    Raises ValueError for no layer, lengths that differ or weights that are negative or not finite; FileNotFoundError
    without OpenSeadragon.
    """
    places = np.asarray(corners)
    if not weights:
        raise ValueError("no layer to draw: pass weights as name -> [regions]")
    layers = {}
    for name, values in weights.items():
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.shape != (len(places),):
            raise ValueError(f"layer '{name}' has weights of shape {numbers.shape} for {len(places)} regions")
        if not np.isfinite(numbers).all() or (numbers < 0).any():
            raise ValueError(f"layer '{name}' has weights that are negative, NaN or infinite")
        layers[str(name)] = [float(f"{value:.6g}") for value in numbers]
    if planted is not None and np.shape(planted) != (len(places),):
        raise ValueError(f"planted has shape {np.shape(planted)} for {len(places)} regions")
    source = openseadragon(library, argument="library")

    image = slide.thumbnail(max_side)
    height, width = image.shape[:2]
    levels, tiles = deep_zoom_tiles(image)
    data = {
        # Pixels of the deepest level; regions are scaled from level 0 to them.
        "width": width,
        "height": height,
        "tile": TILE,
        "levels": levels - 1,
        "regions": [
            [round(float(x) * width / slide.size[0], 2), round(float(y) * height / slide.size[1], 2)] for x, y in places
        ],
        "side": [region * width / slide.size[0], region * height / slide.size[1]],
        "layers": layers,
        "planted": [] if planted is None else np.asarray(planted, dtype=bool).tolist(),
        "tiles": inline_tiles(tiles),
    }
    choices = "".join(
        f'<label><input type="radio" name="layer" value="{number}"{" checked" if number == 0 else ""}>'
        f" {html.escape(name)}</label>"
        for number, name in enumerate(layers)
    )
    return (
        _PAGE.replace("@TITLE@", html.escape(title))
        .replace("@CHOICES@", choices)
        .replace("@LIBRARY@", source)
        .replace("@DATA@", inline_json(data))
    )


def write_overlay(path: str | Path, page: str) -> None:
    """Write the page of ``overlay_page`` whole or not at all."""
    write_text(Path(path), page)


def inline_frame(page: str, *, height: int = 520, title: str = "Attention over the slide") -> str:
    """The page inside an iframe, as HTML for a notebook's output; nothing is loaded from elsewhere."""
    return deep_zoom_frame(page, title, height)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>@TITLE@</title>
<style>
html, body { margin: 0; height: 100%; font: 14px system-ui, sans-serif; color: #22272e; background: #fff; }
body { display: flex; flex-direction: column; }
form { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; align-items: center; padding: 0.4rem 0.6rem; }
fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 0.8rem; }
legend { float: left; font-weight: 600; margin-right: 0.5rem; }
#slide { flex: 1; min-height: 0; background: #fff; }
#value { min-height: 1.3em; padding: 0.2rem 0.6rem; }
.region { box-sizing: border-box; }
.planted { outline: 3px solid #0b6e99; outline-offset: -3px; }
</style>
</head>
<body>
<form aria-label="Layers">
<fieldset><legend>Attention of</legend>@CHOICES@
<label><input type="radio" name="layer" value="-1"> none</label></fieldset>
<label>strength <input id="strength" type="range" min="0" max="100" value="70"></label>
<button type="button" id="in">closer</button><button type="button" id="out">farther</button>
<button type="button" id="home">whole slide</button>
</form>
<div id="slide" role="application" aria-label="@TITLE@; move with the arrow keys, zoom with plus and minus"></div>
<div id="value" aria-live="polite">Point at a region to read its weight.</div>
<script>@LIBRARY@</script>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const names = Object.keys(data.layers);
const viewer = OpenSeadragon({
  id: "slide", showNavigationControl: false, drawer: "canvas", animationTime: 0.4, maxZoomPixelRatio: 4,
  gestureSettingsMouse: { clickToZoom: false },
  tileSources: {
    width: data.width, height: data.height, tileSize: data.tile, tileOverlap: 0, minLevel: 0, maxLevel: data.levels,
    getTileUrl: (level, x, y) => "data:image/jpeg;base64," + data.tiles[level + "/" + x + "/" + y],
  },
});
const boxes = data.regions.map((corner, number) => {
  const box = document.createElement("div");
  box.className = data.planted[number] ? "region planted" : "region";
  box.addEventListener("mouseenter", () => tell(number));
  return box;
});
let layer = 0;
function tell(number) {
  const weight = layer < 0 ? "" : ": " + names[layer] + " " + data.layers[names[layer]][number];
  document.getElementById("value").textContent =
    "Region " + number + weight + (data.planted[number] ? " (planted tumour)" : "");
}
function paint() {
  const strength = Number(document.getElementById("strength").value) / 100;
  const values = layer < 0 ? null : data.layers[names[layer]];
  const top = values ? Math.max(...values, 1e-12) : 1;
  boxes.forEach((box, number) => {
    box.style.background = values ? "rgba(194, 65, 12, " + (strength * values[number] / top).toFixed(3) + ")" : "none";
  });
}
viewer.addHandler("open", () => {
  boxes.forEach((box, number) => viewer.addOverlay({
    element: box,
    location: viewer.viewport.imageToViewportRectangle(
      data.regions[number][0], data.regions[number][1], data.side[0], data.side[1]),
  }));
  paint();
});
document.querySelectorAll("input[name=layer]").forEach((input) => input.addEventListener("change", () => {
  layer = Number(input.value);
  paint();
}));
document.getElementById("strength").addEventListener("input", paint);
document.getElementById("in").addEventListener("click", () => viewer.viewport.zoomBy(1.5));
document.getElementById("out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.5));
document.getElementById("home").addEventListener("click", () => viewer.viewport.goHome());
</script>
</body>
</html>
"""
