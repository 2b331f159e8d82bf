"""Files from the Genomic Data Commons, its mirror and a Xena hub: single files with resume, bundles of small files.

Nothing the server says is believed: sizes and md5 sums come from the metadata and are checked on what lies on disk,
file names are never used as paths, and a file gets its final name only when it is right.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from hcmae.files import file_hash
from hcmae.gdc.client import GDCClient, GDCError, Interrupted, RefusedError, TransientError, describe, read_some
from hcmae.packed import SwellingError, open_packed

log = logging.getLogger(__name__)

BLOCK = 1 << 18
# A notice about a sample is a line or two.
MOST_NOTICE = 1 << 20
# What reading a damaged archive raises: tarfile lets errors of its numbers and of headers without end through.
_BAD_ARCHIVE = (
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RemoteFile:
    """One file as the metadata describe it; ``target`` is where it goes."""

    id: str
    md5: str
    size: int
    target: Path
    name: str

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    def present(self) -> bool:
        """Under its final name, in full size; the md5 was checked before it got that name."""
        return self.target.is_file() and self.target.stat().st_size == self.size


# --- one file -------------------------------------------------------------------------------------------------


def download(
    client: GDCClient,
    file: RemoteFile,
    progress: Callable[[int], None] = lambda n: None,
    *,
    mirror_first: bool = False,
    controlled: bool = False,
) -> None:
    """Fetch one file to its target, continuing a partial one; size and md5 are checked before the final name.

    The mirror is the second source (or the first): it is asked where the server cannot be reached or does not have
    the file. ``controlled`` sends the token of ``token_file`` to the server, and leaves the mirror out, which has
    open files only. Raises RefusedError or GDCError; then nothing lies under the final name.
    """
    sources = [f"{client.url}/data/{file.id}"]
    if client.mirror and not controlled:
        sources.append(_mirrored(client, file))
    if mirror_first:
        sources.reverse()
    first: GDCError | None = None
    for source in sources:
        try:
            return client.retry(partial(_fetch, client, source, file, progress, controlled=controlled))
        except Interrupted:
            raise
        except GDCError as error:
            # What GDC itself says is the more telling message.
            first = first or error
            log.info("%s: %s", source, error)
    assert first is not None
    raise first


def _mirrored(client: GDCClient, file: RemoteFile) -> str:
    return f"{client.mirror}/{file.id}/{quote(file.name)}"


def _fetch(
    client: GDCClient, url: str, file: RemoteFile, progress: Callable[[int], None], *, controlled: bool = False
) -> None:
    file.part.parent.mkdir(parents=True, exist_ok=True)
    # What a killed bundle left of this file cannot be continued.
    _unpacked(file).unlink(missing_ok=True)
    have = file.part.stat().st_size if file.part.exists() else 0
    if have > file.size:
        file.part.unlink()
        progress(-have)
        have = 0
    if have < file.size or file.size == 0:
        stream(client, url, file.part, have, file.size, progress, controlled=controlled)
    if not _MD5.fullmatch(file.md5) or file_hash(file.part, algorithm="md5") != file.md5:
        size = file.part.stat().st_size
        file.part.unlink()
        progress(-size)
        raise TransientError(f"{url}: the md5 is not that of the metadata ({file.md5}); the bytes were thrown away")
    _finish(file.part, file.target)


def stream(
    client: GDCClient,
    url: str,
    part: Path,
    have: int,
    size: int | None,
    progress: Callable[[int], None],
    *,
    controlled: bool = False,
) -> None:
    """Append what is missing to ``part``; ends with exactly ``size`` bytes or raises."""
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.send("GET", url, headers=headers, controlled=controlled) as response:
        if response.status_code == 416:
            part.unlink(missing_ok=True)
            progress(-have)
            raise TransientError(f"{url}: the server has no byte {have}; starting anew")
        client.judge(response, url)
        if response.status_code == 206:
            match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("content-range", ""))
            fits = match is not None and int(match[1]) == have and (size is None or match[3] in ("*", str(size)))
            if not fits:
                part.unlink(missing_ok=True)
                progress(-have)
                raise TransientError(
                    f"{url}: asked for bytes from {have}, got '{response.headers.get('content-range')}'"
                )
        elif have:
            # The range was ignored: the whole file comes.
            progress(-have)
            have = 0
        length = response.headers.get("content-length", "")
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        if size is not None and length.isdigit() and not encoded and int(length) != size - have:
            raise TransientError(
                f"{url}: announces {length} bytes, the metadata say {size - have}; {describe(response)}"
            )
        gained = 0
        try:
            with open(part, "r+b" if have else "wb") as out:
                out.seek(have)
                out.truncate()
                for block in _blocks(client, response, url):
                    gained += len(block)
                    if size is not None and have + gained > size:
                        progress(-(have + gained - len(block)))
                        part.unlink()
                        raise TransientError(f"{url}: sends more than the {size} bytes of the metadata")
                    out.write(block)
                    progress(len(block))
                out.flush()
                os.fsync(out.fileno())
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise TransientError(
                f"{url}: broke off after {have + gained} bytes ({error!r})", reached=have + gained
            ) from error
        if size is not None and have + gained < size:
            raise TransientError(f"{url}: ended after {have + gained} of {size} bytes", reached=have + gained)


def _blocks(client: GDCClient, response: httpx.Response, url: str) -> Iterator[bytes]:
    """The body in blocks; ends a connection that drips, and on the caller's wish."""
    since, seen = time.monotonic(), 0
    for block in response.iter_bytes():
        if client.stop.is_set():
            raise Interrupted("stopped on request; run the same command again to continue")
        yield block
        seen += len(block)
        if time.monotonic() - since > client.stall:
            if seen < 1024 * client.stall:
                raise TransientError(f"{url}: only {seen} bytes in {client.stall:g} s")
            since, seen = time.monotonic(), 0


def xena_size(client: GDCClient, dataset: str) -> int | None:
    """Bytes of a matrix of the Xena hub, packed where it is; None where the hub does not say.

    Raises RefusedError where the hub has no such matrix, GDCError where it cannot be reached.
    """
    for name in (f"{dataset}.gz", dataset):
        try:
            return client.retry(partial(_head, client, f"{client.xena}/{quote(name)}"))[0]
        except RefusedError as error:
            if error.status not in (403, 404) or name == dataset:
                raise
    raise AssertionError("unreachable")


def _head(client: GDCClient, url: str) -> tuple[int | None, str]:
    """Content-Length and ETag."""
    with client.send("HEAD", url, headers={"Accept-Encoding": "identity"}) as response:
        client.judge(response, url)
        length = response.headers.get("content-length", "")
        return (int(length) if length.isdigit() else None), response.headers.get("etag", "")


def download_xena(
    client: GDCClient, dataset: str, folder: Path, progress: Callable[[int], None] = lambda n: None
) -> Path:
    """Fetch a matrix of the Xena hub, ``<dataset>.gz`` or else the plain name, into ``folder``; returns its path.

    The hub publishes no md5: the size announced and the integrity of the gzip are checked instead.
    """
    names = (f"{dataset}.gz", dataset)
    for name in names:
        if (folder / name).exists():
            return folder / name
    for name in names:
        target = folder / name
        url = f"{client.xena}/{quote(name)}"
        part = target.with_name(name + ".part")
        folder.mkdir(parents=True, exist_ok=True)

        def fetch(url: str = url, part: Path = part, target: Path = target) -> None:
            size, etag = _head(client, url)
            # A partial file of an earlier version of the matrix must not be continued.
            mark = part.with_name(part.name + ".etag")
            if part.exists() and (not mark.exists() or mark.read_text() != etag or not etag):
                progress(-part.stat().st_size)
                part.unlink()
            mark.write_text(etag)
            have = part.stat().st_size if part.exists() else 0
            if size is None or have < size:
                stream(client, url, part, have, size, progress)
            if target.suffix == ".gz" and not _whole_gzip(part):
                part.unlink()
                raise TransientError(f"{url}: broken gzip; thrown away")
            _finish(part, target)
            mark.unlink(missing_ok=True)

        try:
            client.retry(fetch)
            return target
        except RefusedError as error:
            if error.status not in (403, 404) or name == dataset:
                raise
    raise AssertionError("unreachable")


# --- many files -----------------------------------------------------------------------------------------------


def download_bundle(
    client: GDCClient, files: Sequence[RemoteFile], progress: Callable[[int], None] = lambda n: None
) -> dict[str, GDCError]:
    """Fetch small files in one request each for many; returns the failures by file id (empty: all are there).

    Members are checked one by one as they stream in, so an archive that breaks off costs only what was not yet
    there. A file that the server refuses is found, dropped and reported; the others still come. What the server
    does not give in the end is asked of the mirror.
    """
    failures = _bundled(client, files, progress)
    for file in files if client.mirror else ():
        if file.id not in failures:
            continue
        try:
            client.retry(partial(_fetch, client, _mirrored(client, file), file, progress))
            del failures[file.id]
        except Interrupted:
            raise
        except RefusedError:
            continue
        except GDCError as error:
            # Not this file but the mirror fails: asking it for every other one would take hours.
            log.warning("%s: %s", client.mirror, error)
            break
    return failures


def _bundled(client: GDCClient, files: Sequence[RemoteFile], progress: Callable[[int], None]) -> dict[str, GDCError]:
    """Failures by file id of what the server itself was asked for."""
    missing = {file.id: file for file in files}
    failures: dict[str, GDCError] = {}

    def attempt() -> None:
        before = len(missing)
        if before > 1:
            unpack(client, missing, len(files), progress)
        # One id gives the bare file; what whole archives leave out, or hold with wrong bytes, is asked for alone.
        if len(missing) == before:
            for file in list(missing.values()):
                try:
                    client.retry(partial(_fetch, client, f"{client.url}/data/{file.id}", file, progress))
                except Interrupted:
                    raise
                except GDCError as error:
                    failures[file.id] = error
                del missing[file.id]

    try:
        while missing:
            try:
                client.retry(attempt)
            except Interrupted:
                raise
            except RefusedError as error:
                named = [i for i in error.ids if i in missing]
                if named:
                    for i in named:
                        failures[i] = RefusedError(str(error), error.status, (i,))
                        del missing[i]
                    continue
                # The message names no file: halve until it is found.
                half = list(missing.values())
                for share in (half[: len(half) // 2], half[len(half) // 2 :]):
                    failures |= _bundled(client, share, progress)
                missing.clear()
    except Interrupted:
        raise
    except GDCError as error:
        failures |= dict.fromkeys(missing, error)
    return failures


def unpack(client: GDCClient, missing: dict[str, RemoteFile], total: int, progress: Callable[[int], None]) -> None:
    """Ask for all that is missing in one archive and take its members; what has come is no longer in ``missing``.

    Raises TransientError where the archive breaks off or is none, RefusedError where the server will not give a file.
    """
    url = f"{client.url}/data"
    asked = dict(missing)
    with client.send("POST", url, json={"ids": list(missing)}, headers={"Accept-Encoding": "identity"}) as response:
        if response.status_code not in (200, 206):
            body = read_some(response)
            client.judge(response, url, body, ids=tuple(missing))
        if "html" in response.headers.get("content-type", "") or "json" in response.headers.get("content-type", ""):
            raise TransientError(f"{url}: expected an archive, got {describe(response, read_some(response))}")
        try:
            # What was asked for, a notice and a header for each, and a list of all.
            most = sum(file.size + MOST_NOTICE + 4096 for file in asked.values()) + (1 << 24)
            pipe = Pipe(_blocks(client, response, url), most)
            with tarfile.open(fileobj=pipe, mode="r|", bufsize=1 << 16) as archive:  # type: ignore[call-overload]
                for member in archive:
                    _take(client, archive, member, asked, missing, progress)
        except (httpx.HTTPError, httpx.StreamError, *_BAD_ARCHIVE) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the network
            raise TransientError(
                f"{url}: the bundle broke off, {len(asked) - len(missing)} of {len(asked)} files came ({error!r})",
                reached=total - len(missing),
            ) from error


def _take(
    client: GDCClient,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    asked: Mapping[str, RemoteFile],
    missing: dict[str, RemoteFile],
    progress: Callable[[int], None],
) -> None:
    """Write one member of an archive, if it was asked for and is right."""
    parts = member.name.removeprefix("./").split("/")
    file = asked.get(parts[0].lower()) if len(parts) == 2 else None
    if file is None or not member.isfile():
        return
    source = archive.extractfile(member)
    assert source is not None
    if parts[1] == "annotations.txt":
        # Notices about the sample ('do not use'), which curation reads; kept beside the file, whole or not at all.
        if member.size > MOST_NOTICE:
            log.warning("bundle: the notices about %s have %d bytes; left out", file.id, member.size)
            return
        note = source.read()
        file.target.parent.mkdir(parents=True, exist_ok=True)
        (file.target.parent / "annotations.txt").write_bytes(note)
        return
    if parts[1] != file.name or file.id not in missing:
        return
    if member.size != file.size:
        log.warning("bundle: %s has %d bytes, the metadata say %d", file.id, member.size, file.size)
        return
    file.target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.md5(usedforsecurity=False), 0
    # Not the name that download() continues: a member cannot be continued.
    temporary = _unpacked(file)
    try:
        with open(temporary, "wb") as out:
            while block := source.read(BLOCK):
                digest.update(block)
                out.write(block)
                size += len(block)
        if digest.hexdigest() != file.md5 or size != file.size:
            log.warning("bundle: the md5 of %s is not that of the metadata; thrown away", file.id)
            temporary.unlink()
            return
        _finish(temporary, file.target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if file.part.exists():
        progress(-file.part.stat().st_size)
        file.part.unlink()
    progress(file.size)
    del missing[file.id]


class Pipe:
    """Blocks of bytes, unpacked if gzip, as the file that tarfile reads.

    Unpacking here in small steps, and not in tarfile, keeps its buffer small: it copies the rest of it at every read.
    More than ``most`` bytes end in SwellingError, so that a small archive cannot unpack without end.
    """

    def __init__(self, blocks: Iterator[bytes], most: int) -> None:
        self.blocks = blocks
        self.most, self.seen = most, 0
        self.packed = b""
        self.unpack: Any = None
        self.ready: list[bytes] = []
        self.length = 0
        first = b""
        while len(first) < 2 and (block := next(blocks, b"")):
            first += block
        if first.startswith(b"\x1f\x8b"):
            self.packed, self.unpack = first, zlib.decompressobj(wbits=31)
        else:
            self._put(first)

    def read(self, size: int) -> bytes:
        while self.length < size and self._more():
            pass
        data = b"".join(self.ready)
        out, rest = data[:size], data[size:]
        self.ready, self.length = [rest] if rest else [], len(rest)
        return out

    def _put(self, data: bytes) -> None:
        if data:
            self.ready.append(data)
            self.length += len(data)
            self.seen += len(data)
        if self.seen > self.most:
            raise SwellingError(f"the archive holds more than {self.most} bytes")

    def _more(self) -> bool:
        if self.unpack is None:
            block = next(self.blocks, b"")
            self._put(block)
            return bool(block)
        if not self.packed:
            self.packed = next(self.blocks, b"")
            if not self.packed:
                if not self.unpack.eof:
                    raise EOFError("the gzip stream is cut short")
                return False
        if self.unpack.eof:  # another gzip member follows
            self.unpack = zlib.decompressobj(wbits=31)
        self._put(self.unpack.decompress(self.packed, BLOCK))
        self.packed = self.unpack.unconsumed_tail or self.unpack.unused_data
        return True


def _unpacked(file: RemoteFile) -> Path:
    """Where the bytes of a member of a bundle go until they are checked."""
    return file.target.with_name(f".{file.id}.bundle")


def _finish(part: Path, target: Path) -> None:
    """Give a checked file its final name; its bytes are on the disk by then."""
    os.replace(part, target)


def _whole_gzip(path: Path) -> bool:
    try:
        with open_packed(path) as handle:
            while handle.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True
