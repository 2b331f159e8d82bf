"""Which hospital a patient is from, and folds that keep hospitals whole.

Slides carry the staining of the hospital that made them, and hospitals differ in survival: where patients of one
hospital are on both sides of a fold, a network that has learnt the hospital looks as if it had learnt the disease
(Howard et al., Nature Communications 2021).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.cohort.barcodes import BarcodeError, named_patient, parse
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.layouts import NAMES, SITE_NAMES, ColumnError, find_column
from hcmae.cohort.local import local_file, local_mapping
from hcmae.cohort.splits import FEW_EVENTS, FewEventsWarning
from hcmae.outcome import check_outcome
from hcmae.tables import TableError, is_missing, read_text

# Steps of the solver at most; the same on every machine, which a limit of time is not.
_NODES = 200
# How much worse than the best balance a found one may be, in the unit of ``imbalance``.
_GAP = 0.02


class UnevenFoldsWarning(UserWarning):
    """Folds of whole hospitals that differ much in size or deaths, because a hospital is large."""


def site_of(patient: str) -> str | None:
    """Tissue source site in a TCGA barcode ('DD' of TCGA-DD-A1EB); None for a name of another kind."""
    try:
        return parse(patient).site
    except BarcodeError:
        return None


def sites_of(patients: Sequence[str], source: str, root: str | Path) -> pd.Series:
    """Site of each patient, indexed by patient: of a user's folder the column of sites, else from the barcode.

    Raises CurationError where somebody has none: the clinical table needs a column such as 'tissue_source_site', or one
    that ``columns.json`` names as clinical.site; and where rows of a patient name two.
    """
    found: dict[str, str] = dict(_column_of_sites(Path(root))) if source == "local" else {}
    sites = {patient: found.get(patient) or site_of(patient) for patient in map(str, patients)}
    lacking = [patient for patient, site in sites.items() if site is None]
    if lacking:
        raise CurationError(
            f"{root}: nothing says which hospital patient {lacking[0]} is from ({len(lacking)} of {len(sites)} "
            "patients): give the clinical table a column 'tissue_source_site' or 'hospital', name one in columns.json "
            "(clinical.site), or choose survival.fold_kind: stratified"
        )
    return pd.Series(sites, name="site", dtype=object)


def _column_of_sites(root: Path) -> Mapping[str, str]:
    """Patient -> site as the clinical table of a user's folder says it; empty where it has no such column."""
    mapping = local_mapping(root)
    named = mapping.get("clinical") or {}
    path = local_file(root, "clinical", mapping)
    try:
        frame = read_text(path)
        column = named.get("site") or find_column(list(frame.columns), SITE_NAMES)
        patient = named.get("patient") or find_column(list(frame.columns), NAMES["patient"])
    except (TableError, ColumnError) as error:
        raise CurationError(f"{path}: {error}") from error
    if column is None:
        return {}
    if column not in frame.columns or patient not in frame.columns:
        raise CurationError(f"{path}: columns.json names '{column}' as the site, which is not in the table")
    found: dict[str, str] = {}
    for name, site in zip(frame[patient], frame[column], strict=True):
        if is_missing(site):
            continue
        who = named_patient(name)
        if found.setdefault(who, site) != site:
            raise CurationError(f"{path}: patient {who} is from '{found[who]}' and from '{site}'; correct one")
    return found


def make_site_folds(
    patients: Sequence[str],
    time: NDArray[np.floating] | Sequence[float],
    event: NDArray[np.integer] | Sequence[int],
    site: Sequence[str],
    n_folds: int = 5,
    n_repeats: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Folds of whole sites, as equal as they can be in patients, deaths and early deaths (before the median death).

    The sum of the folds' differences from equal shares is made as small as whole sites allow, by an integer programme;
    Howard et al. minimise the squares of the same differences. Repeats begin with other sites, and can be alike where
    few sites leave no choice.

    Returns:
        Table [patient, repeat, fold, site].

    Raises:
        ValueError: fewer sites than folds, a fold without a death or none left to train on, and what ``make_folds``
        refuses; the message names the largest site.
    Warns:
        FewEventsWarning: as ``make_folds``. UnevenFoldsWarning: a fold has more than twice or less than half its share.
    """
    names, (days, dead) = [str(patient) for patient in patients], check_outcome(time, event)
    if len({len(names), len(days), len(site)}) > 1 or len(set(names)) != len(names):
        raise ValueError(f"{len(names)} patients, {len(days)} times and {len(site)} sites: one each, and nobody twice")
    if n_folds < 2:
        raise ValueError(f"folds are two or more, not {n_folds}")
    labels, of_site = np.unique(np.asarray(site, dtype=str), return_inverse=True)
    sizes = np.bincount(of_site)
    largest = f"the largest, {labels[sizes.argmax()]}, has {sizes.max()} of {len(names)} patients"
    if len(labels) < n_folds:
        raise ValueError(
            f"{len(labels)} sites cannot fill {n_folds} folds without dividing one ({largest}): use fewer folds, or "
            "survival.fold_kind: stratified"
        )
    if not dead.any():
        raise ValueError("no patient has an event: a C-index cannot be computed; check the column 'event' (1 = death)")
    early = dead & (days <= np.median(days[dead]))
    quantities = np.stack([np.ones(len(days)), dead, early]).astype(np.float64)
    counts = quantities @ np.eye(len(labels))[of_site]
    tables = []
    for repeat in range(n_repeats):
        fold = _balanced(counts, n_folds, np.random.default_rng([seed, repeat, 2021]))[of_site]
        deaths = np.bincount(fold[dead], minlength=n_folds)
        if (deaths == 0).any() or (deaths == dead.sum()).any():
            raise ValueError(
                f"folds of whole sites leave a fold without a death, or all of them in one ({largest}): use fewer "
                "folds, or survival.fold_kind: stratified"
            )
        _warn(repeat, deaths, np.bincount(fold, minlength=n_folds), largest)
        tables.append(pd.DataFrame({"patient": names, "repeat": repeat, "fold": fold, "site": labels[of_site]}))
    return pd.concat(tables, ignore_index=True)


def imbalance(shares: NDArray[np.float64]) -> float:
    """What ``make_site_folds`` makes small: the sum over folds of |share - 1 / folds|; shares [quantities, folds]."""
    return float(np.abs(shares - 1 / shares.shape[1]).sum())


def _balanced(counts: NDArray[np.float64], n_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each site [S] that divides the counts [quantities, S] as equally as whole sites allow."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    order = rng.permutation(counts.shape[1])
    shares = counts[:, order] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n_sites, quantities = len(order), len(shares)
    # Variables: site s in fold f [S * F], then the excess of each quantity and fold over an equal share.
    binary, extra = n_sites * n_folds, quantities * n_folds
    total = binary + extra + 1
    site, fold = np.repeat(np.arange(n_sites), n_folds), np.tile(np.arange(n_folds), n_sites)
    one_fold = coo_array((np.ones(binary), (site, np.arange(binary))), shape=(n_sites, total))
    rows = [LinearConstraint(one_fold, 1, 1)]
    for sign in (1.0, -1.0):
        row = (np.arange(quantities)[:, None] * n_folds + fold[None, :]).ravel()
        column = np.tile(np.arange(binary), quantities)
        above = coo_array(((sign * shares[:, site]).ravel(), (row, column)), shape=(extra, total))
        slack = coo_array((-np.ones(extra), (np.arange(extra), binary + np.arange(extra))), shape=(extra, total))
        rows.append(LinearConstraint(above + slack, -np.inf, sign / n_folds))
    nobody_empty = coo_array((np.ones(binary), (fold, np.arange(binary))), shape=(n_folds, total))
    rows.append(LinearConstraint(nobody_empty, 1, np.inf))
    upper = np.concatenate([np.ones(binary), np.full(extra, np.inf)])
    # Folds are equals: the first sites of the order may only open one fold after the other.
    upper[:binary][(site < n_folds) & (fold > site)] = 0
    cost = np.concatenate([np.zeros(binary), np.ones(extra)])
    # The solver's gap is relative: with a constant of one in the objective it is that of a balance near zero.
    cost, upper, lower = (np.append(part, 1.0) for part in (cost, upper, np.zeros(binary + extra)))
    whole = np.concatenate([np.ones(binary), np.zeros(extra + 1)])
    found = milp(
        cost,
        constraints=rows,
        integrality=whole,
        bounds=Bounds(lower, upper),
        options={"node_limit": _NODES, "mip_rel_gap": _GAP},
    )
    if found.x is None:
        raise ValueError(f"no folds of whole sites were found ({found.message}): use fewer folds")
    chosen = found.x[:binary].reshape(n_sites, n_folds).argmax(axis=1)
    out = np.empty(n_sites, dtype=np.int64)
    # Which fold is called the first is drawn.
    out[order] = rng.permutation(n_folds)[chosen]
    return out


def _warn(repeat: int, deaths: NDArray[np.int64], sizes: NDArray[np.int64], largest: str) -> None:
    if deaths.min() < FEW_EVENTS:
        warnings.warn(
            f"repeat {repeat}: a test fold of whole sites has only {deaths.min()} of {deaths.sum()} deaths; its "
            "C-index is mostly chance, use fewer folds or read only the mean over repeats",
            FewEventsWarning,
            stacklevel=3,
        )
    fair = sizes.sum() / len(sizes)
    if sizes.max() > 2 * fair or sizes.min() < fair / 2:
        warnings.warn(
            f"repeat {repeat}: folds of whole sites have {sizes.min()} to {sizes.max()} patients ({largest}): they "
            "cannot be of one size",
            UnevenFoldsWarning,
            stacklevel=3,
        )
