"""Files that cannot be checked from outside are first opened in a process of their own.

OpenSlide's allocator ends the whole program where it is refused memory, and a notebook would lose everything. The tags
of a TIFF are checked before OpenSlide sees it (:mod:`hcmae.slides.tiff`); the other formats have parsers of their own,
so one process with a limit on time and memory opens such a file and reads a little of each level. It dies alone.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

__all__ = ["MEMORY_BYTES", "SECONDS", "dies_of"]

# Address space and processor time that opening one file may take.
MEMORY_BYTES = 4 << 30
SECONDS = 60

_CHILD = """
import sys
try:
    import resource
    for limit, value in ((resource.RLIMIT_AS, int(sys.argv[2])), (resource.RLIMIT_CPU, int(sys.argv[3]))):
        soft, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
import openslide
try:
    slide = openslide.OpenSlide(sys.argv[1])
    for level, (width, height) in enumerate(slide.level_dimensions):
        scale = slide.level_downsamples[level]
        for x, y in ((0, 0), (width // 2, height // 2)):
            try:
                slide.read_region((int(x * scale), int(y * scale)), level, (min(256, width), min(256, height)))
            except openslide.OpenSlideError:
                slide = openslide.OpenSlide(sys.argv[1])
except MemoryError:
    sys.exit(3)
except Exception:
    pass  # what OpenSlide says of a file it is asked about again, by the reader
"""

_known: dict[tuple[str, int, int, int], str] = {}
_lock = threading.Lock()


def dies_of(path: str | Path) -> str:
    """What a program dies of that opens this file with OpenSlide; '' where it lives, or where there is no OpenSlide.

    A file is tried once, until it changes.
    """
    if importlib.util.find_spec("openslide") is None:
        return ""
    path = os.path.abspath(path)
    stat = os.stat(path)
    key = (path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    with _lock:
        if key not in _known:
            _known[key] = _try(path)
        return _known[key]


def _try(path: str) -> str:
    # -P: a file named openslide.py in the folder of the user is not what is meant.
    command = [sys.executable, "-P", "-c", _CHILD, path, str(MEMORY_BYTES), str(SECONDS)]
    try:
        # A busy machine gives little of its time: the limit on the clock is far above that on the processor.
        done = subprocess.run(command, capture_output=True, timeout=10 * SECONDS, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return f"no end after {10 * SECONDS} s"
    except OSError:
        return ""  # no process can be started: then nothing is known
    if done.returncode == 3:
        return f"more than {MEMORY_BYTES >> 30} GiB of memory asked for"
    # A death by a signal is negative here, or a status of the system's own on Windows.
    if 0 <= done.returncode < 0x40000000:
        return ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return said[-1] if said else f"signal {-done.returncode}"
