"""Slides for tests and benchmarks: a painted tissue and the same pixels as a pyramid of tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def paint(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Something that compresses like stained tissue: nuclei, fibres, grain, white margins; uint8 [H, W, 3]."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = cv2.resize(
        rng.standard_normal((max(4, height // 256), max(4, width // 256))).astype(np.float32),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )
    grain = rng.standard_normal((height, width), dtype=np.float32)
    nuclei: Any = cv2.GaussianBlur(grain, (0, 0), 3.0)
    nuclei = np.clip(nuclei / nuclei.std() - 1.0 + 0.4 * coarse, 0, 1)
    fibres: Any = cv2.blur(grain, (31, 3))
    fibres /= fibres.std()
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    inside = np.clip(((x**2 + y**2) < 0.85 + 0.1 * coarse).astype(np.float32), 0, 1)
    image = np.empty((height, width, 3), np.uint8)
    for channel, (stroma, nucleus) in enumerate(((18, 110), (60, 130), (30, 60))):
        light = 242 - inside * (stroma + 10 * fibres + nucleus * nuclei) + inside * 3.5 * grain
        image[..., channel] = np.clip(light, 0, 250).astype(np.uint8)
    return image


def write_twin(
    path: str | Path,
    image: NDArray[np.uint8],
    *,
    tile: int = 256,
    quality: int = 90,
    colour: str = "ycbcr",
    compression: str = "jpeg",
    levels: tuple[int, ...] = (4, 16),
    description: str | None = None,
    resolution: tuple[float, float] | None = None,
    unit: str | None = None,
    predictor: bool = False,
    bigtiff: bool = False,
) -> Path:
    """Write an image as an Aperio-like tiled pyramid. ``colour``: ycbcr (4:2:0) or rgb (4:4:4), for JPEG.

    ``description`` None: an Aperio text with AppMag 20 and MPP 0.5; '' writes a plain pyramid.
    """
    import cv2
    import tifffile

    height, width = image.shape[:2]
    if description is None:
        description = f"Aperio Image Library v12\r\n{width}x{height} ({tile}x{tile})|AppMag = 20|MPP = 0.5000"
    options: dict[str, Any] = {"tile": (tile, tile), "photometric": "rgb", "compression": compression, "metadata": None}
    if compression == "jpeg":
        options["compressionargs"] = {"level": quality, "outcolorspace": colour}
        options["subsampling"] = (2, 2) if colour == "ycbcr" else (1, 1)
    elif "jp2000" in compression or compression == "jpeg2000":
        options["compressionargs"] = {"level": 40}
    if predictor:
        options["predictor"] = True
    if resolution is not None:
        options |= {"resolution": resolution, "resolutionunit": unit}
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        writer.write(image, description=description, **options)
        for factor in levels:
            small = cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
            text = f"Aperio Image Library v12\r\n{width}x{height} -> {width // factor}x{height // factor}"
            writer.write(small, description=text if description else "", subfiletype=1, **options)
    return Path(path)
