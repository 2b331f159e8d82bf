"""Painted H&E: two stain maps per region, filled by compiled loops, turned into colour through a table.

Three things are painted on purpose. The *cell* factor is polarity: where the nuclei of a nest lie. In low-risk tumours
they line the rim of their nest, in high-risk ones they have lost their place and crowd in its middle. Their number,
size, form and shades stay the same and none touches another or a border, so nothing changes that can be told from
colours or from single nuclei: it takes somebody who sees where in its patch each nucleus lies. The *architecture*
factor arranges patches of three kinds (nest, stroma, mucin), whose numbers are the same in every tumour region: nests
in the middle behind a rim of stroma (pushing growth), or stroma in the middle and nests at the rim (infiltrating
growth). Nothing that is painted inside a patch depends on its place or its neighbours, so only somebody who looks at a
whole region can see it. *Burden* is the number of tumour regions among normal ones: the one factor that colour gives
away.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

NEST, STROMA, MUCIN, NORMAL = 0, 1, 2, 3
# Shares of the three kinds of patch in every tumour region.
SHARES = (0.40, 0.35, 0.25)
STAIN_LEVELS = 128
BACKGROUND = (244, 243, 244)
_TEXTURE = 512
# Nuclei of a nest: mean radius and the gap between any two (pixels), the share of the nest that they cover, and how
# strongly the cell factor at its limit of 2.2 draws them to the rim or to the middle (rate of an exponential density).
_NUCLEUS, _GAP, _COVERED, _PULL = 3.6, 1.5, 0.16, 8.0
_TRIES = 600


# ---------------------------------------------------------------- arrangement of the patches


def patch_kinds(side: int, architecture: float, seed: int) -> NDArray[np.int8]:
    """Arrange the patch kinds of a tumour region [side, side]; their numbers depend on ``side`` alone.

    ``architecture`` (standardised) sets how far nests keep to the middle and stroma to the rim: the correlation of a
    patch's rank (nest, mucin, stroma) with its distance from the centre goes from about -0.95 (infiltrating) through 0
    (no order) to about 0.95 (pushing). The outermost ring takes no part: the wavy border of the tissue cuts into it,
    and single patches would show which kind lies there.
    """
    rng = np.random.default_rng(seed)
    cells = side * side
    counts = [round(SHARES[0] * cells), round(SHARES[1] * cells)]
    labels = np.repeat([NEST, MUCIN, STROMA], [counts[0], cells - sum(counts), counts[1]])
    # By the normal distribution: patients spread evenly between the extremes instead of crowding around no order.
    order = 0.95 * math.erf(architecture / math.sqrt(2.0))
    grid = np.empty(cells, dtype=np.int8)
    inside, height = core(side), rng.normal(size=cells)
    height[inside] = order * _standardised(eccentricity(side)[inside]) + math.sqrt(1 - order * order) * height[inside]
    grid[np.argsort(height, kind="stable")] = labels
    return grid.reshape(side, side)


def eccentricity(side: int) -> NDArray[np.float64]:
    """Distance of each patch from the centre of its region, in patches, [side * side]."""
    y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2
    return np.hypot(y, x).ravel()


def core(side: int) -> NDArray[np.bool_]:
    """The patches of a region that are not in its outermost ring, [side * side]; all of them where there is no more."""
    inside = np.zeros((side, side), dtype=bool)
    inside[1:-1, 1:-1] = True
    return inside.ravel() if side > 4 else np.ones(side * side, dtype=bool)


def nest_centrality(kinds: NDArray[np.int8]) -> float:
    """How much nearer to the centre nests lie than stroma, in standard deviations of the distance: what is planted."""
    inside = core(kinds.shape[0])
    distance = _standardised(eccentricity(kinds.shape[0])[inside])
    flat = kinds.ravel()[inside]
    return float(distance[flat == STROMA].mean() - distance[flat == NEST].mean())


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = values.std()
    return (values - values.mean()) / (spread if spread > 0 else 1.0)


@njit(cache=True)
def _random(state: np.ndarray) -> float:
    """Uniform in [0, 1); SplitMix64, so that the pictures depend on nothing but their seed."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True)
def _normal(state: np.ndarray) -> float:
    """Roughly normal, bounded: sum of four uniforms."""
    return (_random(state) + _random(state) + _random(state) + _random(state) - 2.0) * 1.732


# ---------------------------------------------------------------- paint


def stain_table(rng: np.random.Generator) -> Bytes:
    """Colour of each pair (haematoxylin, eosin) for one patient's stain, [128, 128, 3], by Beer-Lambert's law.

    Vectors and strengths vary mildly from patient to patient, as they do between laboratories.
    """
    haematoxylin = np.array([0.76, 0.80, 0.36]) + rng.normal(0, 0.015, 3)
    eosin = np.array([0.08, 0.70, 0.32]) + rng.normal(0, 0.015, 3)
    haematoxylin = haematoxylin * np.exp(rng.normal(0, 0.05))
    eosin = eosin * np.exp(rng.normal(0, 0.06))
    level = np.arange(STAIN_LEVELS) / 64.0
    density = level[:, None, None] * haematoxylin + level[None, :, None] * eosin
    return np.round(np.array(BACKGROUND) * np.exp(-density)).astype(np.uint8)


def textures() -> tuple[Bytes, Bytes]:
    """Two periodic grey textures [512, 512] that every picture shares: fine grain, and wavy fibres."""
    rng = np.random.default_rng(20240511)
    frequency_y = np.fft.fftfreq(_TEXTURE)[:, None]
    frequency_x = np.fft.rfftfreq(_TEXTURE)[None, :]

    def filtered(gain: NDArray[np.float64]) -> Bytes:
        noise = np.fft.rfft2(rng.normal(size=(_TEXTURE, _TEXTURE)))
        field = np.fft.irfft2(noise * gain, s=(_TEXTURE, _TEXTURE))
        return np.clip(128 + 42 * field / field.std(), 0, 255).astype(np.uint8)

    radius = np.hypot(frequency_y, frequency_x)
    grain = filtered(np.exp(-((radius / 0.16) ** 2)))
    # Fibres: long along x, thin along y, with some waviness from the angular spread.
    fibres = filtered(np.exp(-((frequency_x / 0.012) ** 2)) * np.exp(-((np.abs(frequency_y) - 0.06) ** 2) / 0.0016))
    wave = np.round(9 * np.sin(np.arange(_TEXTURE) * 4 * np.pi / _TEXTURE)).astype(int)
    rows = (np.arange(_TEXTURE)[:, None] + wave[None, :]) % _TEXTURE
    return grain, fibres[rows, np.arange(_TEXTURE)[None, :]]


def draw_ground(rng: np.random.Generator) -> NDArray[np.float64]:
    """One slide's ground: texture offsets, fibre direction, direction and phase of the cords of normal tissue."""
    return np.array([*rng.integers(0, _TEXTURE, 2), rng.uniform(), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)])


@njit(cache=True)
def _nucleus(
    h: np.ndarray, e: np.ndarray, y0: int, x0: int, y1: int, x1: int, cy: float, cx: float, ry: float, rx: float,
    angle: float, dark: float, grain: np.ndarray, nucleolus: bool, state: np.ndarray,
) -> None:  # fmt: skip
    """An ellipse of haematoxylin with grainy chromatin and a darker rim, cut at the borders of its patch."""
    reach = max(ry, rx) + 1.0
    top, bottom = max(y0, int(cy - reach)), min(y1, int(cy + reach) + 2)
    left, right = max(x0, int(cx - reach)), min(x1, int(cx + reach) + 2)
    cos, sin = math.cos(angle), math.sin(angle)
    offset = int(_random(state) * 262144)
    for y in range(top, bottom):
        for x in range(left, right):
            dy, dx = y - cy, x - cx
            u = (cos * dx + sin * dy) / rx
            v = (cos * dy - sin * dx) / ry
            d = u * u + v * v
            if d < 1.0:
                value = dark + 0.12 * (grain[(y + offset) & 511, (x + (offset >> 9)) & 511] - 128.0)
                if d > 0.66:
                    value += 10.0
                if nucleolus and d < 0.09:
                    value += 24.0
                h[y, x] = int(min(max(value, 0.0), 127.0))
                e[y, x] = 20


@njit(cache=True)
def _paint_patch(
    h: np.ndarray, e: np.ndarray, y0: int, x0: int, top: int, patch: int, kind: int, cell: float, ground: np.ndarray,
    grain: np.ndarray, fibres: np.ndarray, state: np.ndarray,
) -> None:  # fmt: skip
    """Fill one patch of the stain maps; everything stays inside it and depends on its kind, ``cell`` and chance.

    ``ground`` = texture offsets (y, x), fibre direction, direction and phase of the cords: one draw per slide, so that
    the ground runs on from patch to patch without a seam; ``top`` is the slide's y of row 0 of the maps.
    """
    y1, x1 = y0 + patch, x0 + patch
    oy, ox = int(ground[0]) + top, int(ground[1])
    flip = ground[2] < 0.5
    # Ground: fibrous pink stroma, or the denser pink of normal parenchyma.
    for y in range(y0, y1):
        for x in range(x0, x1):
            g = grain[(y + oy) & 511, (x + ox) & 511] - 128.0
            if kind == 3:
                e[y, x] = int(min(max(45.0 + 0.10 * g, 0.0), 127.0))
                h[y, x] = int(min(max(9.0 + 0.04 * g, 0.0), 127.0))
            else:
                f = (fibres[(x + ox) & 511, (y + oy) & 511] if flip else fibres[(y + oy) & 511, (x + ox) & 511]) - 128.0
                e[y, x] = int(min(max(33.0 + 0.16 * f + 0.05 * g, 0.0), 127.0))
                h[y, x] = int(min(max(5.0 + 0.03 * g, 0.0), 127.0))
    if kind == 1:
        _stroma_cells(h, e, y0, x0, y1, x1, grain, flip, state)
        return
    if kind == 3:
        _normal_cells(h, e, y0, x0, y1, x1, top, ground, grain, state)
        return
    units = max(1, round(patch / 96.0))
    size = patch / units
    for j in range(units):
        for i in range(units):
            cy = y0 + (j + 0.5) * size + 0.03 * size * _normal(state)
            cx = x0 + (i + 0.5) * size + 0.03 * size * _normal(state)
            _blob(h, e, y0, x0, y1, x1, cy, cx, size, kind, cell, grain, state)


@njit(cache=True)
def _roundness(dy: float, dx: float) -> float:
    """Distance whose circles lie between a circle and a square, so that a blob fills its patch well."""
    a, b = dy * dy, dx * dx
    return 0.5 * (math.sqrt(a + b) + math.sqrt(math.sqrt(a * a + b * b)))


class _Nest(NamedTuple):
    """The outline of one nest: centre, radius, squash, phases and heights of its waves, radius of its lumen (or 0)."""

    y: float
    x: float
    radius: float
    squash: float
    phase3: float
    phase5: float
    wave3: float
    wave5: float
    lumen: float


@njit(cache=True)
def _edge(nest: _Nest, turn: float) -> float:
    """How far the outline lies from the centre in the direction ``turn``, by ``_roundness``."""
    wave = nest.wave3 * math.sin(3.0 * turn + nest.phase3) + nest.wave5 * math.sin(5.0 * turn + nest.phase5)
    return nest.radius * (1.0 + wave)


@njit(cache=True)
def _blob(
    h: np.ndarray, e: np.ndarray, y0: int, x0: int, y1: int, x1: int, cy: float, cx: float, size: float, kind: int,
    cell: float, grain: np.ndarray, state: np.ndarray,
) -> None:  # fmt: skip
    """A rounded nest of tumour cells (some with a gland's lumen) or a pale pool of mucin, inside its stroma."""
    radius = size * (0.45 + 0.02 * _normal(state))
    squash = 1.0 + 0.05 * _normal(state)
    p1, p2 = 6.2832 * _random(state), 6.2832 * _random(state)
    w1, w2 = 0.07 * _random(state), 0.05 * _random(state)
    lumen = 0.0
    if kind == 0 and _random(state) < 0.2:
        lumen = size * (0.07 + 0.04 * _random(state))
    nest = _Nest(cy, cx, radius, squash, p1, p2, w1, w2, lumen)
    top, bottom = max(y0, int(cy - size)), min(y1, int(cy + size) + 1)
    left, right = max(x0, int(cx - size)), min(x1, int(cx + size) + 1)
    oy, ox = int(_random(state) * 512), int(_random(state) * 512)
    for y in range(top, bottom):
        for x in range(left, right):
            dy, dx = (y - cy) * squash, (x - cx) / squash
            d = _roundness(dy, dx)
            if d > radius * 1.12:
                continue
            if d >= _edge(nest, math.atan2(dy, dx)):
                continue
            g = grain[(y + oy) & 511, (x + ox) & 511] - 128.0
            if kind == 2:
                e[y, x] = int(min(max(8.0 + 0.03 * g, 0.0), 127.0))
                h[y, x] = int(min(max(10.0 + 0.05 * g, 0.0), 127.0))
            elif dy * dy + dx * dx < lumen * lumen:
                e[y, x] = 3
                h[y, x] = 2
            else:
                e[y, x] = int(min(max(27.0 + 0.07 * g, 0.0), 127.0))
                h[y, x] = int(min(max(15.0 + 0.06 * g, 0.0), 127.0))
    if kind == 2:
        for _ in range(int(size * size / 1800.0)):
            ny, nx = cy + 0.5 * radius * _normal(state), cx + 0.5 * radius * _normal(state)
            _nucleus(h, e, y0, x0, y1, x1, ny, nx, 2.6, 2.6, 0.0, 58.0, grain, False, state)
        return
    _nest_nuclei(h, e, y0, x0, y1, x1, nest, cell, grain, state)


@njit(cache=True)
def _nest_nuclei(
    h: np.ndarray, e: np.ndarray, y0: int, x0: int, y1: int, x1: int, nest: _Nest, cell: float, grain: np.ndarray,
    state: np.ndarray,
) -> None:  # fmt: skip
    """Nuclei of one nest, clear of each other and of its borders; ``cell`` decides where they lie and nothing else."""
    pull = -_PULL * min(max(cell / 2.2, -1.0), 1.0)
    area = 3.3 * (nest.radius * nest.radius - nest.lumen * nest.lumen)
    count = int(_COVERED * area / (3.1416 * _NUCLEUS * _NUCLEUS) + _random(state))
    placed = np.empty((count, 3))
    done = 0
    for _ in range(count):
        r = _NUCLEUS * (1.0 + 0.12 * _normal(state))
        ratio = 1.0 + 0.10 * abs(_normal(state))
        turn, shade = 3.1416 * _random(state), 78.0 + 4.0 * _normal(state)
        nucleolus = r > _NUCLEUS and _random(state) < 0.5
        reach = r * ratio
        inner = nest.lumen + reach + 1.5 if nest.lumen > 0.0 else 0.0
        for attempt in range(_TRIES):
            # 0 in the middle (or at the lumen), 1 at the rim. Where there is no room left the pull lets go bit by bit.
            rate = pull * (1.0 - attempt / _TRIES)
            place = _random(state)
            if abs(rate) > 1e-3:
                place = math.log(1.0 - place * (1.0 - math.exp(rate))) / rate
            around = 6.2832 * _random(state)
            sin, cos = math.sin(around), math.cos(around)
            outer = (_edge(nest, around) - reach - 2.0) / _roundness(sin, cos)
            d = inner + place * max(outer - inner, 0.0)
            ny, nx = nest.y + d * sin / nest.squash, nest.x + d * cos * nest.squash
            # A nest may reach over the border of its patch; a nucleus that is cut there would show at the rim alone.
            inside = min(ny - y0, nx - x0, y1 - 1 - ny, x1 - 1 - nx) > reach
            if inside and _free(placed[:done], ny, nx, reach):
                placed[done, 0], placed[done, 1], placed[done, 2] = ny, nx, reach
                done += 1
                _nucleus(h, e, y0, x0, y1, x1, ny, nx, r / ratio, reach, turn, shade, grain, nucleolus, state)
                break


@njit(cache=True)
def _free(placed: np.ndarray, y: float, x: float, reach: float) -> bool:
    """Whether a nucleus at (y, x) keeps its gap to all that are ``placed`` [n, 3]: y, x, reach."""
    for k in range(placed.shape[0]):
        away = reach + placed[k, 2] + _GAP
        if (y - placed[k, 0]) ** 2 + (x - placed[k, 1]) ** 2 < away * away:
            return False
    return True


@njit(cache=True)
def _stroma_cells(
    h: np.ndarray, e: np.ndarray, y0: int, x0: int, y1: int, x1: int, grain: np.ndarray, upright: bool,
    state: np.ndarray,
) -> None:  # fmt: skip
    """Spindle-shaped fibroblasts along the fibres, and a lymphocyte now and then."""
    area = (y1 - y0) * (x1 - x0)
    along = 1.5708 if upright else 0.0
    for _ in range(int(area / 520.0)):
        cy, cx = y0 + (y1 - y0) * _random(state), x0 + (x1 - x0) * _random(state)
        _nucleus(
            h, e, y0, x0, y1, x1, cy, cx, 1.7 + 0.5 * _random(state), 6.0 + 2.0 * _random(state),
            along + 0.25 * _normal(state), 56.0 + 6.0 * _normal(state), grain, False, state,
        )  # fmt: skip
    for _ in range(int(area / 2600.0)):
        cy, cx = y0 + (y1 - y0) * _random(state), x0 + (x1 - x0) * _random(state)
        _nucleus(h, e, y0, x0, y1, x1, cy, cx, 3.0, 3.0, 0.0, 84.0, grain, False, state)


@njit(cache=True)
def _normal_cells(
    h: np.ndarray, e: np.ndarray, y0: int, x0: int, y1: int, x1: int, top: int, ground: np.ndarray, grain: np.ndarray,
    state: np.ndarray,
) -> None:  # fmt: skip
    """Normal parenchyma: cords of large pink cells with small, round, regular nuclei and pale clefts between cords."""
    cos, sin = math.cos(ground[3]), math.sin(ground[3])
    for y in range(y0, y1):
        for x in range(x0, x1):
            across = cos * x + sin * (y + top)
            along = cos * (y + top) - sin * x
            bend = 1.3 * math.sin(along * 0.05 + 0.7 * math.sin(across * 0.021)) + 0.6 * math.sin(along * 0.017)
            if math.sin(across * 0.2 + bend + ground[4]) > 0.93:
                e[y, x] = 12
                h[y, x] = 3
    spacing = 18.5
    rows = int((y1 - y0) / (spacing * 0.866)) + 1
    for j in range(rows):
        for i in range(int((x1 - x0) / spacing) + 1):
            r = 3.5 * (1.0 + 0.05 * _normal(state))
            ny = y0 + (j + 0.5) * spacing * 0.866 + 2.0 * _normal(state)
            nx = x0 + (i + 0.25 + 0.5 * (j & 1)) * spacing + 2.0 * _normal(state)
            ny, nx = min(max(ny, y0 + r), y1 - r - 1.0), min(max(nx, x0 + r), x1 - r - 1.0)
            _nucleus(h, e, y0, x0, y1, x1, ny, nx, r, r, 0.0, 54.0 + 4.0 * _normal(state), grain, False, state)


@njit(cache=True)
def paint_region(
    h: np.ndarray, e: np.ndarray, y0: int, x0: int, top: int, patch: int, kinds: np.ndarray, cell: float,
    ground: np.ndarray, grain: np.ndarray, fibres: np.ndarray, seed: np.uint64,
) -> None:  # fmt: skip
    """Paint one region into the stain maps h, e (uint8 [H, W]) at (y0, x0); kinds [S, S] are its patches.

    ``top`` is the slide's y of row 0 of the maps, ``ground`` as drawn by ``draw_ground``.
    """
    state = np.empty(1, np.uint64)
    for j in range(kinds.shape[0]):
        for i in range(kinds.shape[1]):
            # A seed per patch: what is painted cannot depend on the patches that came before.
            state[0] = seed + np.uint64(j * kinds.shape[1] + i) * np.uint64(0xD1342543DE82EF95)
            _random(state)
            _paint_patch(
                h, e, y0 + j * patch, x0 + i * patch, top, patch, kinds[j, i], cell, ground, grain, fibres, state
            )


@njit(cache=True)
def erode_side(
    h: np.ndarray, e: np.ndarray, y0: int, x0: int, size: int, side: int, amplitude: float, phase: float,
) -> None:  # fmt: skip
    """Take a wavy strip of tissue off one side of a region (0 top, 1 bottom, 2 left, 3 right)."""
    for t in range(size):
        s = t / size * 6.2832
        depth = int(amplitude * max(0.0, 0.5 * math.sin(2.0 * s + phase) + 0.5 * math.sin(5.0 * s + 2.7 * phase)))
        for d in range(depth):
            if side == 0:
                y, x = y0 + d, x0 + t
            elif side == 1:
                y, x = y0 + size - 1 - d, x0 + t
            elif side == 2:
                y, x = y0 + t, x0 + d
            else:
                y, x = y0 + t, x0 + size - 1 - d
            h[y, x] = 0
            e[y, x] = 0


@njit(cache=True)
def round_corner(h: np.ndarray, e: np.ndarray, y0: int, x0: int, size: int, corner: int, radius: int) -> None:
    """Round one corner of a region (0 top left, 1 top right, 2 bottom left, 3 bottom right)."""
    for dy in range(radius):
        for dx in range(radius):
            if (radius - dy) ** 2 + (radius - dx) ** 2 > radius * radius:
                y = y0 + dy if corner < 2 else y0 + size - 1 - dy
                x = x0 + dx if corner % 2 == 0 else x0 + size - 1 - dx
                h[y, x] = 0
                e[y, x] = 0


@njit(cache=True)
def to_colour(h: np.ndarray, e: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Stain maps [H, W] to RGB [H, W, 3] through the table of one patient."""
    for y in range(h.shape[0]):
        for x in range(h.shape[1]):
            a, b = h[y, x], e[y, x]
            out[y, x, 0] = table[a, b, 0]
            out[y, x, 1] = table[a, b, 1]
            out[y, x, 2] = table[a, b, 2]
