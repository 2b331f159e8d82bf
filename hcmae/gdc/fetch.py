"""From a manifest to files on disk: resolve what a query means today, fetch exactly that, verify it.

A *lock* lists every file with size and md5. It is written by :func:`resolve`, meant to be committed, and is all that
:func:`fetch` goes by. What is there already is not fetched again; what was interrupted continues.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from hcmae import __version__
from hcmae.cohort.annotations import FFPE, matching, parsed
from hcmae.cohort.barcodes import BarcodeError, parse
from hcmae.cohort.clinical import FIELDS, read_hits
from hcmae.cohort.curate import drawn_slides, slide_rules
from hcmae.cohort.evidence import Candidate, slide_barcode
from hcmae.cohort.lock import LOCK_COLUMNS, LOCK_REMARKS, read_lock
from hcmae.config import MODALITIES
from hcmae.content import MEMORY_NAME, Contents
from hcmae.files import atomic_path, file_hash, read_json, write_json
from hcmae.gdc.client import GDCClient, GDCError, Interrupted, and_filter
from hcmae.gdc.hits import FetchError, lock_row
from hcmae.gdc.transfer import RemoteFile, download, download_bundle, download_xena, xena_size
from hcmae.manifest import Inclusion, Manifest

log = logging.getLogger(__name__)

WHAT = ("slides", *MODALITIES, "clinical")
BUNDLE_FILES = 100
BUNDLE_BYTES = 250_000_000
# From this size on a file is fetched alone, so that it can be continued.
ALONE_BYTES = 50_000_000
_FILE_FIELDS = (
    "file_id", "file_name", "file_size", "md5sum", "state", "access", "data_type", "platform",
    "cases.submitter_id", "cases.samples.submitter_id",
    "associated_entities.entity_submitter_id", "associated_entities.entity_type",
    "cases.samples.portions.analytes.aliquots.submitter_id",
    # Some of these exist in some releases only.
    "cases.samples.preservation_method", "cases.samples.is_ffpe", "cases.samples.portions.is_ffpe",
    *(f"{what}.{name}" for what in ("annotations", "cases.annotations")
      for name in ("entity_type", "classification", "category", "status")),
)  # fmt: skip


@dataclass
class Plan:
    """What a fetch will do: files to fetch, what is there already, bytes."""

    files: list[RemoteFile]
    modality: dict[str, str]  # file id -> modality
    present: int = 0
    partial_bytes: int = 0
    clinical: bool = False
    xena: list[tuple[str, str]] = field(default_factory=list)  # modality, dataset
    xena_bytes: int = 0  # known once the hub has been asked

    @property
    def bytes_left(self) -> int:
        return sum(f.size for f in self.files) - self.partial_bytes + self.xena_bytes

    def table(self, rate: float) -> pd.DataFrame:
        """modality, files, bytes, hours at ``rate`` bytes per second; the last row is the sum."""
        sizes: dict[str, list[int]] = {}
        for file in self.files:
            sizes.setdefault(self.modality[file.id], []).append(file.size)
        rows = [(m, len(s), sum(s), sum(s) / rate / 3600) for m, s in sizes.items()]
        left = self.bytes_left
        rows.append(("to fetch", len(self.files), left, left / rate / 3600))
        return pd.DataFrame(rows, columns=["what", "files", "bytes", "hours"])


@dataclass
class Report:
    """What a fetch did: files fetched, files refused with the reason, bytes, seconds."""

    fetched: int
    bytes: int
    seconds: float
    failures: pd.DataFrame  # id, filename, modality, case, reason


def resolve(manifest: Manifest, client: GDCClient) -> pd.DataFrame:
    """Ask the server what the manifest's queries mean today; one row per file, sorted, with the lock's columns.

    Only open files of exactly one case are taken. Raises GDCError for a refused query, FetchError where a modality has
    no file at all or a hit lacks what a lock needs.
    """
    rows: list[dict[str, Any]] = []
    for modality in ("slides", *MODALITIES):
        query = manifest.files.get(modality)
        if query is None or query.source == "xena":
            continue
        filters = {"cases.project.project_id": manifest.project, "access": "open", **query.filters}
        if modality == "methylation":
            filters["platform"] = list(manifest.inclusion.methylation_platforms)
        hits = client.search("files", and_filter(filters), _FILE_FIELDS)
        found = [row for hit in hits if (row := lock_row(hit, modality, query.filters)) is not None]
        if not found:
            raise FetchError(
                f"{manifest.cancer}: the query for {modality} finds no file ({len(hits)} hits); the server's "
                f"vocabulary may have changed: check files.{modality}.filters in the manifest"
            )
        rows += found
    # What no file of this lock is said to be has no column.
    said = [name for name in LOCK_REMARKS if any(row[name] for row in rows)]
    lock = pd.DataFrame(rows, columns=[*LOCK_COLUMNS[:-1], *said])
    lock.insert(len(LOCK_COLUMNS) - 1, "release", client.release)
    order = {name: i for i, name in enumerate(("slides", *MODALITIES))}
    lock["_order"] = lock["modality"].map(order)
    lock = lock.sort_values(["_order", "case", "sample", "id"], kind="stable").drop(columns="_order")
    return lock.reset_index(drop=True)


def write_lock(lock: pd.DataFrame, path: str | Path) -> None:
    """Write a lock atomically."""
    with atomic_path(path) as temporary:
        lock.to_csv(temporary, sep="\t", index=False, lineterminator="\n")


def plan(
    manifest: Manifest,
    lock: pd.DataFrame,
    root: Path,
    *,
    what: Sequence[str] = WHAT,
    limit: int | None = None,
    smallest: int | None = None,
    one_slide: bool = False,
    seed: int = 0,
) -> Plan:
    """What is still to be fetched.

    ``limit``: the first N patients who have, of every modality asked for, a file that curation can keep (primary
    tumour, slide large enough). ``smallest``: the N of them with the smallest slides. ``one_slide`` (implied by
    ``smallest``): of each patient only the slide that curation draws with ``seed``. Clinical records of another lock's
    release are fetched again. Raises FetchError for an unknown modality, and where nothing is asked for.
    """
    unknown = sorted(set(what) - set(WHAT))
    if unknown:
        raise FetchError(f"unknown --what '{unknown[0]}': choose among {', '.join(WHAT)}")
    if not what:
        raise FetchError(f"--what is empty: choose among {', '.join(WHAT)}")
    chosen = lock[lock["modality"].isin(what)]
    if one_slide or smallest is not None:
        keep = drawn_slides(lock, manifest.inclusion, seed)
        chosen = chosen[(chosen["modality"] != "slides") | chosen["id"].isin(keep)]
    asked = [m for m in ("slides", *MODALITIES) if m in what and (lock["modality"] == m).any()]
    if limit is not None or smallest is not None:
        if smallest is not None and "slides" not in asked:
            raise FetchError("--smallest is about slides: add slides to --what")
        fit = eligible(chosen, manifest.inclusion)
        complete = sorted(
            set.intersection(*(set(fit.loc[fit["modality"] == m, "case"]) for m in asked)) if asked else set()
        )
        if asked and not complete:
            raise FetchError(
                f"{manifest.cancer}: no patient has a file of every kind ({', '.join(asked)}) that the manifest's "
                "inclusion rules keep; look at inclusion in the manifest, or ask for less (--what)"
            )
        if smallest is not None:
            slides = chosen[chosen["modality"] == "slides"]
            sizes = slides.groupby("case")["size"].sum()
            complete = sorted(complete, key=lambda c: (int(sizes[c]), c))[:smallest]
        chosen = chosen[chosen["case"].isin(complete[:limit])]
    made = Plan([], {}, clinical="clinical" in what and not _clinical_current(root, lock))
    for file_id, name, md5, size, modality in chosen[["id", "filename", "md5", "size", "modality"]].itertuples(
        index=False
    ):
        file = RemoteFile(file_id, md5, int(size), root / modality / file_id / name, name)
        if file.present():
            made.present += 1
            continue
        if file.part.exists():
            made.partial_bytes += min(file.part.stat().st_size, file.size)
        made.files.append(file)
        made.modality[file_id] = modality
    for modality in MODALITIES:
        query = manifest.files.get(modality)
        if modality in what and query is not None and query.source == "xena" and query.xena_dataset:
            name = query.xena_dataset
            if not any((root / "xena" / n).exists() for n in (f"{name}.gz", name)):
                made.xena.append((modality, name))
    return made


def eligible(lock: pd.DataFrame, inclusion: Inclusion) -> pd.DataFrame:
    """The rows of a lock that curation could keep: slides by the rules for slides, omics of the sample types asked for.

    Whether a patient stays is known only with the clinical records.
    """

    def fits(modality: str, name: str, sample: str, size: int, kept: str, notices: str) -> bool:
        if modality == "slides":
            candidate = Candidate(name, sample, size, slide_barcode(name, sample), annotations=parsed(notices))
            return all(keep(candidate) for _, keep in slide_rules(inclusion))
        if matching(parsed(notices), inclusion.exclude_annotations):
            return False
        if kept == FFPE and inclusion.ffpe_aliquots == "exclude":
            return False
        try:
            return parse(sample).sample_type in inclusion.sample_types
        except BarcodeError:
            return False

    names = ["modality", "filename", "sample", "size", *LOCK_REMARKS]
    columns = lock.reindex(columns=names, fill_value="").itertuples(index=False, name=None)
    return lock[[fits(m, n, s, int(b), kept, notices) for m, n, s, b, kept, notices in columns]]


def _clinical_current(root: Path, lock: pd.DataFrame) -> bool:
    """Whether the clinical records are there, fetched for a lock of the same release."""
    if not (root / "clinical.json").exists():
        return False
    fetched = [entry for entry in _history(root / "provenance.json") if entry.get("clinical")]
    return not fetched or fetched[-1].get("release") == sorted(set(lock["release"]))


def _history(path: Path) -> list[dict[str, Any]]:
    try:
        history = read_json(path) if path.exists() else []
    except ValueError:
        return []
    return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []


def check_space(made: Plan, root: Path) -> None:
    """Raise FetchError where the disk cannot hold what is to be fetched, with both numbers."""
    existing = next(p for p in (root, *root.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    needed = made.bytes_left + (1 << 26)
    if needed > free:
        raise FetchError(
            f"{root}: {made.bytes_left / 1e9:.1f} GB are to be fetched, but {free / 1e9:.1f} GB are free there; free "
            "some, choose another --data-dir, or fetch less (--limit, --smallest, --one-slide, --what)"
        )


def fetch(
    manifest: Manifest,
    lock: pd.DataFrame,
    root: str | Path,
    client: GDCClient,
    *,
    what: Sequence[str] = WHAT,
    limit: int | None = None,
    smallest: int | None = None,
    one_slide: bool = False,
    seed: int = 0,
    workers: int = 4,
    strict: bool = False,
    mirror_first: bool = False,
    bundles: bool = True,
    progress: bool = True,
) -> Report:
    """Fetch the lock's files into ``root``, in the layout that curation reads; see :func:`plan` for the choices.

    Small files come in bundles, large ones alone, ``workers`` (1 to 8) at a time. A file that the server refuses is
    listed in ``failures.tsv`` and in the report, or ends the fetch where ``strict``. Interrupting loses nothing that is
    complete, and partial large files continue.

    Raises FetchError for a full disk or one that cannot be written, or a second fetch into the same folder; GDCError
    for a failed query.
    """
    if not 1 <= workers <= 8:
        raise FetchError(f"workers = {workers}: choose 1 to 8, to be polite to a public server")
    root = Path(root)
    start = time.perf_counter()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(f"{root}: cannot be made ({error.strerror}); choose another --data-dir") from error
    with only_one(root), _disk_errors(root):
        made = plan(manifest, lock, root, what=what, limit=limit, smallest=smallest, one_slide=one_slide, seed=seed)
        made.xena_bytes = sum(xena_size(client, name) or 0 for _, name in made.xena)
        check_space(made, root)
        write_lock(lock, root / "files.tsv")
        if made.clinical:
            fetch_clinical(manifest, root, client)
            if client.release not in set(lock["release"]) and len(lock):
                log.warning(
                    "the clinical records are of %s, the lock of %s; resolve the manifest again to have both of one "
                    "release", client.release, ", ".join(sorted(set(lock["release"]))),
                )  # fmt: skip
        failures: dict[str, GDCError] = {}
        with _bar(made, progress, manifest.cancer) as bump:
            for _, dataset in made.xena:
                _note_xena(download_xena(client, dataset, root / "xena", bump))
            memory = Contents(root / MEMORY_NAME)
            jobs = _jobs(made.files, client, bump, memory, mirror_first=mirror_first, bundles=bundles)
            _work(jobs, workers, failures, client, strict)
        table = _failure_table(failures, lock)
        if len(table):
            with atomic_path(root / "failures.tsv") as temporary:
                table.to_csv(temporary, sep="\t", index=False)
        else:
            (root / "failures.tsv").unlink(missing_ok=True)
        done = [f for f in made.files if f.id not in failures]
        _provenance(root, manifest, lock, client, made)
    return Report(len(done), sum(f.size for f in done), time.perf_counter() - start, table)


def fetch_clinical(manifest: Manifest, root: Path, client: GDCClient) -> int:
    """Fetch a project's clinical records as ``clinical.json``; returns their number. Raises GDCError, ClinicalError."""
    hits = client.search("cases", and_filter({"project.project_id": manifest.project}), FIELDS)
    read_hits(hits)  # refuse now what curation could not read
    write_json(root / "clinical.json", hits)
    return len(hits)


Job = Callable[[], "dict[str, GDCError]"]


def _jobs(
    files: Iterable[RemoteFile],
    client: GDCClient,
    bump: Callable[[int], None],
    memory: Contents,
    *,
    mirror_first: bool,
    bundles: bool,
) -> Iterator[Job]:
    """Bundles first: they are short, and what is small is needed first.

    The md5 of a file that has come goes into ``memory``, so that nobody reads a verified slide again.
    """
    alone: list[RemoteFile] = []
    batch: list[RemoteFile] = []
    batches: list[list[RemoteFile]] = []
    for file in files:
        # What has begun alone is continued alone.
        if not bundles or file.size >= ALONE_BYTES or file.part.exists():
            alone.append(file)
            continue
        if batch and (len(batch) == BUNDLE_FILES or sum(f.size for f in batch) + file.size > BUNDLE_BYTES):
            batches.append(batch)
            batch = []
        batch.append(file)
    if batch:
        batches.append(batch)

    def single(file: RemoteFile) -> dict[str, GDCError]:
        try:
            download(client, file, bump, mirror_first=mirror_first)
        except Interrupted:
            raise
        except GDCError as error:
            return {file.id: error}
        memory.remember(file.target, f"md5:{file.md5}")
        return {}

    def bundle(group: Sequence[RemoteFile]) -> dict[str, GDCError]:
        failures = download_bundle(client, group, bump)
        for file in group:
            if file.id not in failures:
                memory.remember(file.target, f"md5:{file.md5}")
        return failures

    for group in batches:
        yield lambda group=group: bundle(group)  # type: ignore[misc]
    for file in alone:
        yield lambda file=file: single(file)  # type: ignore[misc]


def _work(jobs: Iterator[Job], workers: int, failures: dict[str, GDCError], client: GDCClient, strict: bool) -> None:
    """Run jobs, at most ``workers`` at a time; an interrupt lets the threads end within a block."""
    running: set[Future[dict[str, GDCError]]] = set()
    client.stop.clear()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fetch")
    try:
        for job in jobs:
            running.add(pool.submit(job))
            if len(running) >= workers:
                _collect(running, failures, strict)
        while running:
            _collect(running, failures, strict)
    except (KeyboardInterrupt, FetchError, OSError, Interrupted):
        client.stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(running: set[Future[dict[str, GDCError]]], failures: dict[str, GDCError], strict: bool) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        running.discard(future)
        lost = future.result()
        failures.update(lost)
        if lost and strict:
            file_id, error = next(iter(lost.items()))
            raise FetchError(f"file {file_id}: {error}; stopped, as asked (without --strict it would be listed)")


def _failure_table(failures: Mapping[str, GDCError], lock: pd.DataFrame) -> pd.DataFrame:
    table = lock.loc[lock["id"].isin(list(failures)), ["id", "filename", "modality", "case"]].copy()
    table["reason"] = [" ".join(str(failures[i]).split()) for i in table["id"]]
    return table.reset_index(drop=True)


def _provenance(root: Path, manifest: Manifest, lock: pd.DataFrame, client: GDCClient, made: Plan) -> None:
    path = root / "provenance.json"
    history = _history(path)
    if not made.files and not made.clinical and not made.xena:
        return
    history.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "library": __version__,
            "server": client.url,
            "project": manifest.project,
            "release": sorted(set(lock["release"])),
            "files": len(made.files),
            "bytes": sum(f.size for f in made.files),
            "clinical": made.clinical,
            "clinical_release": client.release if made.clinical else None,
            "xena": [name for _, name in made.xena],
        }
    )
    write_json(path, history)


@contextmanager
def _bar(made: Plan, progress: bool, title: str) -> Iterator[Callable[[int], None]]:
    guard = threading.Lock()
    total = sum(f.size for f in made.files) + made.xena_bytes
    with tqdm(
        total=total, initial=made.partial_bytes, unit="B", unit_scale=True, desc=f"fetch {title}",
        disable=not progress or not total, miniters=1,
    ) as bar:  # fmt: skip

        def bump(count: int) -> None:
            with guard:
                bar.update(count)

        yield bump


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """A disk that fills up or cannot be written, as an error that says what stays and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise FetchError(
            f"{error.filename or root}: {error.strerror}; what is complete stays, and the same command continues once "
            "there is room and permission to write"
        ) from error


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Keep a second fetch away from the same folder; the lock goes with the process, however it ends."""
    with open(root / ".fetch.lock", "w") as handle:
        try:
            import fcntl
        except ImportError:  # no such lock on this system
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FetchError(f"{root}: another fetch is at work there; wait for it or stop it") from None
        yield


XENA_COLUMNS = ["filename", "md5", "size"]


def _note_xena(path: Path) -> None:
    """Remember size and md5 of a matrix as it came: the hub publishes none, and ``verify`` needs something to check."""
    notes = _read_xena_notes(path.parent)
    notes = notes[notes["filename"] != path.name]
    row = pd.DataFrame([[path.name, file_hash(path, algorithm="md5"), path.stat().st_size]], columns=XENA_COLUMNS)
    with atomic_path(path.parent / "fetched.tsv") as temporary:
        pd.concat([notes, row]).to_csv(temporary, sep="\t", index=False, lineterminator="\n")


def _read_xena_notes(folder: Path) -> pd.DataFrame:
    path = folder / "fetched.tsv"
    if not path.exists():
        return pd.DataFrame(columns=XENA_COLUMNS)
    try:
        notes = pd.read_csv(path, sep="\t", dtype={"filename": str, "md5": str})
        return notes[XENA_COLUMNS].astype({"size": "int64"})
    except (ValueError, KeyError, OSError) as error:
        raise FetchError(f"{path}: cannot be read ({error}); delete it and its folder, then fetch again") from error


def verify(root: str | Path, *, workers: int = 2, remove: bool = False, progress: bool = True) -> pd.DataFrame:
    """Check every file of ``root/files.tsv`` again: id, filename, modality, case, size, status.

    Xena's matrices follow with an empty id, checked against what they were when they came. ``status``: 'ok', 'not
    fetched', 'wrong size' or 'wrong md5'. ``remove`` deletes wrong files, so that the next fetch brings them again.
    What was found goes into the memory of hashes, so that a slide that was verified is not read again. Raises
    CurationError where the lock is missing or unreadable.
    """
    root = Path(root)
    lock = read_lock(root / "files.tsv")
    memory = Contents(root / MEMORY_NAME)

    notes = _read_xena_notes(root / "xena").assign(id="", modality="xena", case="")

    def check(row: tuple[str, str, str, int, str]) -> str:
        file_id, name, md5, size, modality = row
        path = root / modality / file_id / name  # an empty id leaves its folder out
        if not path.is_file():
            return "not fetched"
        if path.stat().st_size != size:
            status = "wrong size"
        else:
            found = file_hash(path, algorithm="md5")
            # The wrong one too: a disk that forgets bits does not change a date.
            memory.remember(path, f"md5:{found}")
            status = "ok" if found == md5 else "wrong md5"
        if remove and status != "ok":
            os.unlink(path)
        return status

    lock = pd.concat([lock, notes], ignore_index=True) if len(notes) else lock
    rows = list(lock[["id", "filename", "md5", "size", "modality"]].itertuples(index=False, name=None))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        status = list(tqdm(pool.map(check, rows), total=len(rows), desc="verify", unit="file", disable=not progress))
    return lock[["id", "filename", "modality", "case", "size"]].assign(status=status)
