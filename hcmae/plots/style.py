"""One look for every figure of the book: colours with names, sizes, and settings that make the files repeatable.

Figures have a white ground and dark text. On a dark page the book's style sheet inverts SVG plots (lightness turns,
hues stay) and leaves PNG images alone, so line plots are drawn as SVG and histology as PNG, never the other way round.
"""

from __future__ import annotations

import io
import itertools
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#22272e"
MUTED = "#6b7280"
GRID = "#d9dde3"
ACCENT = "#0b6e99"
WARN = "#c2410c"

# Muted, distinguishable with the common colour-vision deficiencies when they are used with direct labels or markers.
CANCERS: dict[str, str] = {
    "LIHC": "#0072b2",
    "BRCA": "#cc5a96",
    "LUAD": "#009e73",
    "COAD": "#b8860b",
    "LGG": "#d55e00",
    "STAD": "#6a51a3",
    "NULL": MUTED,
}
MODALITIES: dict[str, str] = {
    "image": "#6a51a3",
    "slides": "#6a51a3",
    "rna": "#0072b2",
    "mirna": "#009e73",
    "methylation": "#d55e00",
    "clinical": "#7f6a4f",
}
METHODS: dict[str, str] = {
    "hcmae": "#b2182b",
    "hcmae_paper": "#d6604d",
    "hcmae_regions": "#92385d",
    "hcmae_image": "#6a51a3",
    "hc_patregsli": "#6a51a3",
    "hc_regsli": "#9e8cc9",
    "mae_patreg": "#01665e",
    "mae_reg": "#5aae9f",
    "mae_pat": "#80a94a",
    "trans_mo": "#0072b2",
    "abmil_patch": "#80a94a",
    "clam_sb": "#4d7c0f",
    "coxnet_omics": "#4a90c4",
    "cox_clinical": "#7f6a4f",
    "gpdbn": "#b8860b",
    "camr": "#d9a441",
    "deepcorrsurv": "#d55e00",
    "mcat": "#cc5a96",
    "hipt": "#8d6e63",
    "hipt_integration": "#5d4037",
    "oracle": INK,
}
RISK_GROUPS: dict[str, str] = {"low": "#0072b2", "high": "#d55e00", "middle": "#009e73"}
PROTOCOLS: dict[str, str] = {"honest": "#0072b2", "paper": "#d55e00"}
CYCLE: tuple[str, ...] = ("#0072b2", "#d55e00", "#009e73", "#cc5a96", "#b8860b", "#6a51a3", "#7f6a4f", "#4a90c4")
SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"
ATTENTION = "magma"

# Inches. An SVG inch is 96 CSS pixels; the text column of the book is about 700 of them.
WIDTHS: dict[str, float] = {"narrow": 3.6, "medium": 5.4, "wide": 7.2}

# Any: matplotlib's stubs want a literal type of every key.
RC: Any = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.05,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=list(CYCLE)),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "patch.linewidth": 0.6,
    "image.cmap": SEQUENTIAL,
    "image.interpolation": "nearest",
    # Text as outlines and a fixed salt: the same figure gives the same bytes, whatever fonts the reader has.
    "svg.fonttype": "path",
    "svg.hashsalt": "hcmae",
    "pdf.fonttype": 42,
}

_RISK_ALIASES = {"low risk": "low", "high risk": "high", "0": "low", "1": "high"}
_TABLES: tuple[Mapping[str, str], ...] = (CANCERS, MODALITIES, METHODS, RISK_GROUPS, PROTOCOLS)


def apply() -> None:
    """Make the book's look the default of matplotlib in this process."""
    mpl.rcParams.update(RC)


def notebook() -> None:
    """Set up a notebook: the look, SVG output without a date, figures shown when a cell returns them, quiet libraries.

    Does nothing but :func:`apply` outside IPython.
    """
    apply()
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is None:
        return
    # Neither is about the reader's run: no widgets (bars are text), and each network naming its precision.
    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    # Without the magic a Figure made apart from pyplot is shown as text only.
    shell.run_line_magic("matplotlib", "inline")
    shell.run_line_magic("config", "InlineBackend.figure_formats = ['svg']")
    shell.run_line_magic("config", "InlineBackend.print_figure_kwargs = {'metadata': {'Date': None}}")
    apply()


def figure(
    rows: int = 1,
    columns: int = 1,
    *,
    width: str | float = "wide",
    height: float | None = None,
    **subplots: Any,
) -> tuple[Figure, Any]:
    """Make a figure in the book's look, apart from pyplot's global state.

    ``width`` is 'narrow', 'medium', 'wide' or inches; ``height`` is inches (default: 0.62 of a panel's width per row).
    Other keywords go to ``Figure.subplots`` (``sharex``, ``width_ratios``, ``squeeze`` ...).
    Returns the figure and its axes: one Axes, or an array of them.
    Raises ValueError for an unknown width name.
    """
    if isinstance(width, str):
        if width not in WIDTHS:
            raise ValueError(f"unknown figure width '{width}': choose {', '.join(WIDTHS)} or give inches")
        inches = WIDTHS[width]
    else:
        inches = float(width)
    tall = height if height is not None else 0.62 * inches / columns * rows
    with mpl.rc_context(RC):
        made = Figure(figsize=(inches, tall), layout="constrained")
        axes = made.subplots(rows, columns, **subplots)
    return made, axes


def image_figure(
    rows: int = 1, columns: int = 1, *, width: str | float = "wide", **subplots: Any
) -> tuple[Figure, Any]:
    """Make a figure for images: square panels without ticks, grid or spines; same arguments as :func:`figure`."""
    inches = WIDTHS[width] if isinstance(width, str) and width in WIDTHS else width
    if "height" not in subplots and not isinstance(inches, str):
        subplots["height"] = float(inches) / columns * rows + 0.25
    made, axes = figure(rows, columns, width=width, **subplots)
    for ax in np.atleast_1d(axes).ravel():
        bare(ax)
    return made, axes


def bare(ax: Axes) -> Axes:
    """Strip ticks, grid and spines from an Axes that shows an image; returns it."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def colour(name: str) -> str:
    """Colour of a cancer, modality, method, risk group or protocol, by name; a stable one of the cycle if unknown."""
    key = _RISK_ALIASES.get(name.lower(), name)
    for table in _TABLES:
        for candidate in (key, key.lower(), key.upper()):
            if candidate in table:
                return table[candidate]
    # Not hash(): that differs between processes.
    return CYCLE[sum(name.encode()) % len(CYCLE)]


def palette(names: Iterable[str]) -> dict[str, str]:
    """Colours for several names, as seaborn's ``palette`` wants them; unknown names get distinct colours in order."""
    spare = itertools.cycle(CYCLE)
    known = {key for table in _TABLES for key in table}
    return {
        name: colour(name) if {name, name.lower(), name.upper()} & known else next(spare)
        for name in dict.fromkeys(names)
    }


def panel_letters(axes: Sequence[Axes] | np.ndarray) -> None:
    """Write a, b, c ... at the top left of the given panels, in reading order."""
    for letter, ax in zip("abcdefghijklmnopqrstuvwxyz", np.ravel(np.asarray(axes, dtype=object)), strict=False):
        ax.annotate(
            letter, xy=(0, 1), xytext=(-18, 6), xycoords="axes fraction", textcoords="offset points", fontweight="bold"
        )


# What a colour of a figure without a fill of its own becomes where no style sheet can turn it.
_DARK = {"#ffffff": "none", INK: "#e6edf3", MUTED: "#9aa4b2", GRID: "#39414b", ACCENT: "#56b4e0", WARN: "#ff9b66"}


def save(fig: Figure, path: Any, *, dark: bool = False) -> None:
    """Write a figure whole or not at all; the suffix chooses the format, and the file carries no date.

    ``dark``: an SVG for a dark page, with a clear ground. Raises ValueError for another format.
    """
    from hcmae.files import atomic_path, write_text

    if dark:
        if Path(path).suffix != ".svg":
            raise ValueError(f"{path}: only an SVG can be written for a dark page")
        text = io.StringIO()
        with mpl.rc_context(RC):
            fig.savefig(text, format="svg", metadata={"Date": None})
        turned = text.getvalue()
        for light, other in _DARK.items():
            turned = turned.replace(light, other)
        write_text(path, turned)
        return

    with atomic_path(path) as temporary, mpl.rc_context(RC):
        suffix = temporary.suffix.lower()
        metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
        fig.savefig(temporary, metadata=metadata)
