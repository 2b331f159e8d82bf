"""A client for the Genomic Data Commons: queries, single files with resume, bundles of small files, mirrors.

Nothing the server says is believed: sizes and md5 sums come from the metadata and are checked on what lies on disk,
file names are never used as paths, and a file gets its final name only when it is right. Errors of the network are
tried again as long as there is progress; errors of the request are not.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import tenacity

from hcmae import __version__
from hcmae.files import file_hash, read_json, write_json

log = logging.getLogger(__name__)

GDC_URL = "https://api.gdc.cancer.gov"
MIRROR_URL = "https://tcga-2-open.s3.amazonaws.com"
XENA_URL = "https://gdc-hub.s3.us-east-1.amazonaws.com/download"
USER_AGENT = f"hcmae-core/{__version__} (research software; bounded parallelism)"
PAGE = 1000
BLOCK = 1 << 18
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_RETRIED = {405, 408, 425, 429, 500, 502, 503, 504, 520, 522, 524}


class GDCError(RuntimeError):
    """A request that failed for good; the message names what was asked and what to do."""


class RefusedError(GDCError):
    """Files the server will not give: 403 (no access), 404 (unknown), 451 (redacted). Trying again does not help."""

    def __init__(self, message: str, status: int, ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.ids = ids


class Interrupted(GDCError):  # noqa: N818  (the user's wish, not an error of the server)
    """The caller asked to stop; partial files stay for the next time."""


class TransientError(GDCError):
    """Worth another try: connection, timeout, 5xx, truncated or wrong bytes."""

    def __init__(self, message: str, *, retry_after: float | None = None, reached: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reached = reached  # how far the work has come, in its own units; more than ever before is progress


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


class GDCClient:
    """Talks to one GDC server, its S3 mirror and a Xena hub.

    The URLs default to the public servers, or the environment's HCMAE_GDC_URL, HCMAE_MIRROR_URL and HCMAE_XENA_URL; an
    empty mirror switches it off. ``attempts`` counts tries in a row without progress. ``stall`` seconds without a
    kilobyte per second on average count as a broken connection. ``cache`` keeps answers of queries by release.
    ``token_file`` is for controlled files only: a token is never sent with a request for open data, nor in a message.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        mirror: str | None = None,
        xena: str | None = None,
        cache: Path | None = None,
        token_file: Path | None = None,
        attempts: int = 6,
        longest_wait: float = 60.0,
        timeout: float = 60.0,
        stall: float = 60.0,
        stop: threading.Event | None = None,
    ) -> None:
        self.url = _base(url, "HCMAE_GDC_URL", GDC_URL)
        self.mirror = _base(mirror, "HCMAE_MIRROR_URL", MIRROR_URL)
        self.xena = _base(xena, "HCMAE_XENA_URL", XENA_URL)
        self.cache = cache
        self.attempts, self.longest_wait, self.stall = attempts, longest_wait, stall
        self.stop = stop or threading.Event()
        self._token_file = token_file
        self._release: str | None = None
        self._fields: dict[str, set[str] | None] = {}
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, 20.0)),
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=8),
            headers={"User-Agent": USER_AGENT},
            follow_redirects=False,
        )

    def __enter__(self) -> GDCClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- queries --------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The server's status. Raises GDCError where the service is not 'OK'."""
        answer = self._json("GET", f"{self.url}/status")
        if str(answer.get("status", "")).upper() != "OK":
            raise GDCError(f"{self.url}: the service reports status '{answer.get('status')}'; try again later")
        return answer

    @property
    def release(self) -> str:
        """Name of the data release, e.g. 'Data Release 45.0'; the API's version where the server does not tell."""
        if self._release is None:
            status = self.status()
            named = status.get("data_release")
            match = re.match(r"\s*(Data Release \S+)", named) if isinstance(named, str) else None
            self._release = match[1] if match else f"unknown (API {status.get('tag', '?')})"
        return self._release

    def fields(self, endpoint: str) -> set[str] | None:
        """Names of the fields that an endpoint knows in this release; None where the server does not tell."""
        if endpoint not in self._fields:
            try:
                fields = self._json("GET", f"{self.url}/{endpoint}/_mapping").get("fields")
            except Interrupted:
                raise
            except GDCError as error:
                log.warning("%s: the names of the fields are not to be had, so all are asked for: %s", endpoint, error)
                fields = None
            self._fields[endpoint] = {str(name) for name in fields} if isinstance(fields, list) and fields else None
        return self._fields[endpoint]

    def search(
        self, endpoint: str, filters: Mapping[str, Any], fields: Iterable[str], *, page: int = PAGE
    ) -> list[dict[str, Any]]:
        """All hits of a query, in a stable order; answers are cached by release.

        ``endpoint`` is 'files' or 'cases'; unknown field names are left out where the server lists the known ones.
        Raises GDCError for a refused query, or pages that contradict each other.
        """
        key = {"files": "file_id", "cases": "case_id"}[endpoint]
        known = self.fields(endpoint)
        asked = sorted(f for f in {*fields, key} if known is None or f in known or f"{endpoint}.{f}" in known)
        body = {"filters": filters, "fields": ",".join(asked), "format": "JSON", "size": page, "sort": f"{key}:asc"}
        stored = self._cached(endpoint, body)
        if stored is not None and stored.exists():
            with suppress(ValueError):
                cached = read_json(stored)
                if isinstance(cached, list):
                    return cached
        hits = self._retry(lambda: self._pages(endpoint, key, body, page))
        if stored is not None:
            write_json(stored, hits)
        return hits

    def _cached(self, endpoint: str, body: Mapping[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        text = json.dumps([self.url, endpoint, body], sort_keys=True)
        folder = re.sub(r"[^A-Za-z0-9.]+", "-", self.release).strip("-.")
        return self.cache / folder / f"{endpoint}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"

    def _pages(self, endpoint: str, key: str, body: Mapping[str, Any], page: int) -> list[dict[str, Any]]:
        hits: list[dict[str, Any]] = []
        ids: set[str] = set()
        total = None
        while total is None or len(hits) < total:
            answer = self._json("POST", f"{self.url}/{endpoint}", json={**body, "from": len(hits)})
            if answer.get("warnings"):
                log.warning("%s: the server warns: %s", endpoint, json.dumps(answer["warnings"])[:500])
            data = answer.get("data")
            if not isinstance(data, dict) or not isinstance(data.get("hits"), list):
                raise TransientError(f"{self.url}/{endpoint}: the answer has no hits")
            count = (data.get("pagination") or {}).get("total")
            if not isinstance(count, int):
                raise TransientError(f"{self.url}/{endpoint}: the answer has no pagination.total")
            if total is not None and count != total:
                raise TransientError(f"{self.url}/{endpoint}: the number of hits changed from {total} to {count}")
            total = count
            if not data["hits"] and len(hits) < total:
                raise TransientError(f"{self.url}/{endpoint}: an empty page after {len(hits)} of {total} hits")
            hits += data["hits"]
            # At every page: a server that repeats itself would be asked for ever.
            ids.update(str(hit.get(key) or hit.get("id")) for hit in data["hits"])
            if len(ids) != len(hits) or len(hits) > total:
                raise TransientError(f"{self.url}/{endpoint}: pages overlap ({len(hits)} hits, {len(ids)} different)")
        return hits

    def _json(self, method: str, url: str, **request: Any) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            with self._send(method, url, headers={"Accept": "application/json"}, **request) as response:
                try:
                    body = response.read()
                except httpx.HTTPError as error:
                    raise TransientError(f"{url}: the answer broke off ({error!r})") from error
                self._judge(response, url, body)
            try:
                answer = json.loads(body)
            except ValueError:
                raise TransientError(f"{url}: expected JSON, got {_describe(response, body)}") from None
            if not isinstance(answer, dict):
                raise TransientError(f"{url}: expected a JSON object, got {type(answer).__name__}")
            return answer

        return self._retry(ask)

    # --- one file -------------------------------------------------------------------------------------------------

    def download(
        self,
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
        sources = [f"{self.url}/data/{file.id}"]
        if self.mirror and not controlled:
            sources.append(self._mirrored(file))
        if mirror_first:
            sources.reverse()
        first: GDCError | None = None
        for source in sources:
            try:
                return self._retry(partial(self._fetch, source, file, progress, controlled=controlled))
            except Interrupted:
                raise
            except GDCError as error:
                # What GDC itself says is the more telling message.
                first = first or error
                log.info("%s: %s", source, error)
        assert first is not None
        raise first

    def _mirrored(self, file: RemoteFile) -> str:
        return f"{self.mirror}/{file.id}/{quote(file.name)}"

    def _fetch(self, url: str, file: RemoteFile, progress: Callable[[int], None], *, controlled: bool = False) -> None:
        file.part.parent.mkdir(parents=True, exist_ok=True)
        # What a killed bundle left of this file cannot be continued.
        _unpacked(file).unlink(missing_ok=True)
        have = file.part.stat().st_size if file.part.exists() else 0
        if have > file.size:
            file.part.unlink()
            progress(-have)
            have = 0
        if have < file.size or file.size == 0:
            self._stream(url, file.part, have, file.size, progress, controlled=controlled)
        if not _MD5.fullmatch(file.md5) or file_hash(file.part, algorithm="md5") != file.md5:
            size = file.part.stat().st_size
            file.part.unlink()
            progress(-size)
            raise TransientError(f"{url}: the md5 is not that of the metadata ({file.md5}); the bytes were thrown away")
        _finish(file.part, file.target)

    def _stream(
        self,
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
        with self._send("GET", url, headers=headers, controlled=controlled) as response:
            if response.status_code == 416:
                part.unlink(missing_ok=True)
                progress(-have)
                raise TransientError(f"{url}: the server has no byte {have}; starting anew")
            self._judge(response, url)
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
                    f"{url}: announces {length} bytes, the metadata say {size - have}; {_describe(response)}"
                )
            gained = 0
            try:
                with open(part, "r+b" if have else "wb") as out:
                    out.seek(have)
                    out.truncate()
                    for block in self._blocks(response, url):
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

    def _blocks(self, response: httpx.Response, url: str) -> Iterator[bytes]:
        """The body in blocks; ends a connection that drips, and on the caller's wish."""
        since, seen = time.monotonic(), 0
        for block in response.iter_bytes():
            if self.stop.is_set():
                raise Interrupted("stopped on request; run the same command again to continue")
            yield block
            seen += len(block)
            if time.monotonic() - since > self.stall:
                if seen < 1024 * self.stall:
                    raise TransientError(f"{url}: only {seen} bytes in {self.stall:g} s")
                since, seen = time.monotonic(), 0

    def xena_size(self, dataset: str) -> int | None:
        """Bytes of a matrix of the Xena hub, packed where it is; None where the hub does not say.

        Raises RefusedError where the hub has no such matrix, GDCError where it cannot be reached.
        """
        for name in (f"{dataset}.gz", dataset):
            try:
                return self._retry(partial(self._head, f"{self.xena}/{quote(name)}"))[0]
            except RefusedError as error:
                if error.status not in (403, 404) or name == dataset:
                    raise
        raise AssertionError("unreachable")

    def _head(self, url: str) -> tuple[int | None, str]:
        """Content-Length and ETag."""
        with self._send("HEAD", url, headers={"Accept-Encoding": "identity"}) as response:
            self._judge(response, url)
            length = response.headers.get("content-length", "")
            return (int(length) if length.isdigit() else None), response.headers.get("etag", "")

    def download_xena(self, dataset: str, folder: Path, progress: Callable[[int], None] = lambda n: None) -> Path:
        """Fetch a matrix of the Xena hub, ``<dataset>.gz`` or else the plain name, into ``folder``; returns its path.

        The hub publishes no md5: the size announced and the integrity of the gzip are checked instead.
        """
        names = (f"{dataset}.gz", dataset)
        for name in names:
            if (folder / name).exists():
                return folder / name
        for name in names:
            target = folder / name
            url = f"{self.xena}/{quote(name)}"
            part = target.with_name(name + ".part")
            folder.mkdir(parents=True, exist_ok=True)

            def fetch(url: str = url, part: Path = part, target: Path = target) -> None:
                size, etag = self._head(url)
                # A partial file of an earlier version of the matrix must not be continued.
                mark = part.with_name(part.name + ".etag")
                if part.exists() and (not mark.exists() or mark.read_text() != etag or not etag):
                    progress(-part.stat().st_size)
                    part.unlink()
                mark.write_text(etag)
                have = part.stat().st_size if part.exists() else 0
                if size is None or have < size:
                    self._stream(url, part, have, size, progress)
                if target.suffix == ".gz" and not _whole_gzip(part):
                    part.unlink()
                    raise TransientError(f"{url}: broken gzip; thrown away")
                _finish(part, target)
                mark.unlink(missing_ok=True)

            try:
                self._retry(fetch)
                return target
            except RefusedError as error:
                if error.status not in (403, 404) or name == dataset:
                    raise
        raise AssertionError("unreachable")

    # --- many files -----------------------------------------------------------------------------------------------

    def download_bundle(
        self, files: Sequence[RemoteFile], progress: Callable[[int], None] = lambda n: None
    ) -> dict[str, GDCError]:
        """Fetch small files in one request each for many; returns the failures by file id (empty: all are there).

        Members are checked one by one as they stream in, so an archive that breaks off costs only what was not yet
        there. A file that the server refuses is found, dropped and reported; the others still come. What the server
        does not give in the end is asked of the mirror.
        """
        failures = self._bundled(files, progress)
        for file in files if self.mirror else ():
            if file.id not in failures:
                continue
            try:
                self._retry(partial(self._fetch, self._mirrored(file), file, progress))
                del failures[file.id]
            except Interrupted:
                raise
            except RefusedError:
                continue
            except GDCError as error:
                # Not this file but the mirror fails: asking it for every other one would take hours.
                log.warning("%s: %s", self.mirror, error)
                break
        return failures

    def _bundled(self, files: Sequence[RemoteFile], progress: Callable[[int], None]) -> dict[str, GDCError]:
        """Failures by file id of what the server itself was asked for."""
        missing = {file.id: file for file in files}
        failures: dict[str, GDCError] = {}

        def attempt() -> None:
            before = len(missing)
            if before > 1:
                self._unpack(missing, len(files), progress)
            # One id gives the bare file; what whole archives leave out, or hold with wrong bytes, is asked for alone.
            if len(missing) == before:
                for file in list(missing.values()):
                    try:
                        self._retry(partial(self._fetch, f"{self.url}/data/{file.id}", file, progress))
                    except Interrupted:
                        raise
                    except GDCError as error:
                        failures[file.id] = error
                    del missing[file.id]

        try:
            while missing:
                try:
                    self._retry(attempt)
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
                        failures |= self._bundled(share, progress)
                    missing.clear()
        except Interrupted:
            raise
        except GDCError as error:
            failures |= dict.fromkeys(missing, error)
        return failures

    def _unpack(self, missing: dict[str, RemoteFile], total: int, progress: Callable[[int], None]) -> None:
        url = f"{self.url}/data"
        asked = dict(missing)
        with self._send("POST", url, json={"ids": list(missing)}, headers={"Accept-Encoding": "identity"}) as response:
            if response.status_code not in (200, 206):
                body = _read_some(response)
                self._judge(response, url, body, ids=tuple(missing))
            if "html" in response.headers.get("content-type", "") or "json" in response.headers.get("content-type", ""):
                raise TransientError(f"{url}: expected an archive, got {_describe(response, _read_some(response))}")
            try:
                with tarfile.open(fileobj=_Pipe(self._blocks(response, url)), mode="r|", bufsize=1 << 16) as archive:  # type: ignore[call-overload]
                    for member in archive:
                        self._take(archive, member, asked, missing, progress)
            except (httpx.HTTPError, httpx.StreamError, tarfile.TarError, EOFError, OSError, zlib.error) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk, not the network
                raise TransientError(
                    f"{url}: the bundle broke off, {len(asked) - len(missing)} of {len(asked)} files came ({error!r})",
                    reached=total - len(missing),
                ) from error

    def _take(
        self,
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
            # Notices about the sample ('do not use'); small, and kept beside the file.
            note = source.read(1 << 20)
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

    # --- requests -------------------------------------------------------------------------------------------------

    @contextmanager
    def _send(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, controlled: bool = False, **body: Any
    ) -> Iterator[httpx.Response]:
        """A streamed response; redirects are followed, without the token."""
        sent = dict(headers or {})
        if controlled:
            sent["X-Auth-Token"] = self._token()
        try:
            request = self._http.build_request(method, url, headers=sent, **body)
            for _ in range(6):
                response = self._http.send(request, stream=True)
                if not response.is_redirect or response.next_request is None:
                    break
                following = response.next_request
                response.close()
                if request.url.scheme == "https" and following.url.scheme != "https":
                    raise GDCError(f"{url}: redirected to an unencrypted address; refused")
                following.headers.pop("X-Auth-Token", None)
                request = following
            else:
                raise TransientError(f"{url}: redirected in a circle")
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise GDCError(f"{url}: not an address ({error}); check HCMAE_GDC_URL and its like") from error
        except httpx.HTTPError as error:
            raise TransientError(f"{url}: no answer ({error!r})") from error
        try:
            yield response
        finally:
            response.close()

    def _token(self) -> str:
        if self._token_file is None:
            raise GDCError("controlled data need a token: give the file that holds it")
        try:
            token = Path(self._token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise GDCError(f"{self._token_file}: the token file cannot be read") from None
        if not token:
            raise GDCError(f"{self._token_file}: the token file is empty")
        return token

    def _judge(self, response: httpx.Response, url: str, body: bytes | None = None, ids: tuple[str, ...] = ()) -> None:
        """Raise the fitting error for a status that is not success."""
        status = response.status_code
        if status < 300:
            return
        body = _read_some(response) if body is None else body
        said = _message(body) or _describe(response, body)
        if status in _RETRIED:
            raise TransientError(f"{url}: {status}: {said}", retry_after=_retry_after(response))
        if status in (403, 404, 451):
            what = {403: "no access", 404: "unknown file", 451: "redacted"}[status]
            if "token" in said.lower() and "invalid" in said.lower():
                said = "the token is invalid or expired"
            known = set(ids)
            named = tuple(dict.fromkeys(i for i in UUID.findall(body.decode("utf-8", "replace").lower()) if i in known))
            raise RefusedError(f"{url}: {status} ({what}): {said}", status, named)
        raise GDCError(f"{url}: {status}: {said}")

    def _retry(self, work: Callable[[], Any]) -> Any:
        """Call ``work`` until it succeeds; waits grow, Retry-After is honoured, progress starts the count anew."""
        tries = best = 0

        def enough(state: tenacity.RetryCallState) -> bool:
            nonlocal tries, best
            error = state.outcome.exception() if state.outcome else None
            reached = error.reached if isinstance(error, TransientError) else 0
            tries = 1 if reached > best else tries + 1
            best = max(best, reached)
            return tries >= self.attempts

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, TransientError) and error.retry_after is not None:
                return min(error.retry_after, 10 * self.longest_wait)
            spread = 0.75 + 0.5 * (zlib.crc32(os.urandom(4)) / 0xFFFFFFFF)
            return min(self.longest_wait, spread * 2.0 ** (tries - 1))

        def rest(seconds: float) -> None:
            if self.stop.wait(seconds):
                raise Interrupted("stopped on request; run the same command again to continue")

        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(TransientError),
                stop=enough,
                wait=pause,
                sleep=rest,
                reraise=True,
            )(work)
        except TransientError as error:
            raise GDCError(f"{error} (given up after {self.attempts} tries in a row)") from error


class _Pipe:
    """Blocks of bytes, unpacked if gzip, as the file that tarfile reads.

    Unpacking here in small steps, and not in tarfile, keeps its buffer small: it copies the rest of it at every read.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
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


def and_filter(conditions: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """Equality conditions as one flat 'and': nested ones make some queries of the server fail."""
    return {
        "op": "and",
        "content": [
            {"op": "in", "content": {"field": name, "value": [value] if isinstance(value, str) else list(value)}}
            for name, value in conditions.items()
        ],
    }


def _base(given: str | None, variable: str, default: str) -> str:
    return (given if given is not None else os.environ.get(variable, default)).rstrip("/")


def _unpacked(file: RemoteFile) -> Path:
    """Where the bytes of a member of a bundle go until they are checked."""
    return file.target.with_name(f".{file.id}.bundle")


def _finish(part: Path, target: Path) -> None:
    """Give a checked file its final name; its bytes are on the disk by then."""
    os.replace(part, target)


def _whole_gzip(path: Path) -> bool:
    try:
        with gzip.open(path, "rb") as handle:
            while handle.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True


def _read_some(response: httpx.Response) -> bytes:
    """The start of a body, for a message."""
    body = b""
    with suppress(httpx.HTTPError, httpx.StreamError):
        for block in response.iter_bytes():
            body += block
            if len(body) > 1 << 16:
                break
    return body


def _message(body: bytes) -> str:
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    said = answer.get("message") or answer.get("error") if isinstance(answer, dict) else ""
    return str(said)[:500]


def _describe(response: httpx.Response, body: bytes = b"") -> str:
    kind = response.headers.get("content-type", "unknown type").split(";")[0]
    start = " ".join(body[:80].decode("utf-8", "replace").split())
    return f"{kind}" + (f" beginning '{start}'" if start else "")


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (TypeError, ValueError):
        return None
