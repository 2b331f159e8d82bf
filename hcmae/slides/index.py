"""What the index of a slide in several files claims, looked at before OpenSlide believes it.

MIRAX (Slidedat.ini), VMS and VMU name their files and count their images in text. OpenSlide opens whatever is named, by
paths too, and asks for memory for whatever is counted.
"""

from __future__ import annotations

import re
from pathlib import Path

from hcmae.slides.tiff import MAX_TILES

__all__ = ["implausible_index"]

# Keys under which files are named: MIRAX's, then those of VMS and VMU.
_FILE = re.compile(
    r"^[ \t]*(?:INDEXFILE|FILE_\d+|(?:Image|Map|Optimisation)File(?:\([^)\n]*\))?|MacroImage)[ \t]*="
    r"[ \t]*(.*?)[ \t\r]*$",
    re.MULTILINE | re.IGNORECASE,
)
# How many images there are across and down, in MIRAX and in VMS, and how many files and levels.
_TOGETHER = (("IMAGENUMBER_X", "IMAGENUMBER_Y"), ("NoJpegColumns", "NoJpegRows"), ("FILE_COUNT", "HIER_0_COUNT"))
_COUNTS = {
    name: re.compile(rf"^[ \t]*{name}[ \t]*=[ \t]*(-?\d{{1,30}})", re.MULTILINE | re.IGNORECASE)
    for pair in _TOGETHER
    for name in pair
}
# Characters that such a text begins with; no format of pixels does.
_BEGINS = b"[#;\n\r\t \xef"
_MOST_BYTES = 1 << 24


def implausible_index(path: str | Path) -> str:
    """What no scanner writes into the index of a slide, in words; '' where there is none, or where it can be true.

    VMS and VMU are known by what they hold, whatever their suffix. Raises OSError where the file cannot be read.
    """
    path = Path(path)
    index = path.with_suffix("") / "Slidedat.ini" if path.suffix.lower() == ".mrxs" else path
    if not index.is_file():
        return ""
    with open(index, "rb") as handle:
        begins = handle.read(64)
        if index == path and begins[:1] not in _BEGINS:
            return ""
        # What lies behind that many bytes OpenSlide does not read either.
        text = (begins + handle.read(_MOST_BYTES)).decode("latin-1")
    for name in _FILE.findall(text):
        if name in (".", "..") or "/" in name or "\\" in name:
            return f"its index names '{name[:80]}', which is not in its own folder"
    counts = {name: max(map(int, found), default=1) for name, key in _COUNTS.items() if (found := key.findall(text))}
    for across, down in _TOGETHER:
        columns, rows = counts.get(across, 1), counts.get(down, 1)
        if max(columns, 1) * max(rows, 1) > MAX_TILES:
            return f"its index says {across} = {columns}, {down} = {rows}"
    return ""
