"""A client for the Genomic Data Commons: queries and the requests behind them; files are fetched in ``transfer``.

Errors of the network are tried again as long as there is progress; errors of the request are not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import tenacity

from hcmae import __version__
from hcmae.files import read_json, write_json
from hcmae.packed import MOST_JSON, parse_json

log = logging.getLogger(__name__)

GDC_URL = "https://api.gdc.cancer.gov"
MIRROR_URL = "https://tcga-2-open.s3.amazonaws.com"
XENA_URL = "https://gdc-hub.s3.us-east-1.amazonaws.com/download"
USER_AGENT = f"hcmae-core/{__version__} (research software; bounded parallelism)"
PAGE = 1000
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
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
                if isinstance(cached, list) and all(isinstance(hit, dict) for hit in cached):
                    return cached
        hits = self.retry(lambda: self._pages(endpoint, key, body, page))
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
            if not all(isinstance(hit, dict) for hit in data["hits"]):
                raise TransientError(f"{self.url}/{endpoint}: a hit is no record")
            pagination = data.get("pagination")
            count = pagination.get("total") if isinstance(pagination, dict) else None
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
            with self.send(method, url, headers={"Accept": "application/json"}, **request) as response:
                body = _read_all(response, url)
                self.judge(response, url, body)
            try:
                answer = parse_json(body)
            except ValueError:
                raise TransientError(f"{url}: expected JSON, got {describe(response, body)}") from None
            if not isinstance(answer, dict):
                raise TransientError(f"{url}: expected a JSON object, got {type(answer).__name__}")
            return answer

        return self.retry(ask)

    # --- requests -------------------------------------------------------------------------------------------------

    @contextmanager
    def send(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, controlled: bool = False, **body: Any
    ) -> Iterator[httpx.Response]:
        """A streamed response; redirects are followed, without the token."""
        sent = dict(headers or {})
        if controlled:
            sent["X-Auth-Token"] = self.token()
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

    def token(self) -> str:
        if self._token_file is None:
            raise GDCError("controlled data need a token: give the file that holds it")
        try:
            token = Path(self._token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise GDCError(f"{self._token_file}: the token file cannot be read") from None
        if not token:
            raise GDCError(f"{self._token_file}: the token file is empty")
        return token

    def judge(self, response: httpx.Response, url: str, body: bytes | None = None, ids: tuple[str, ...] = ()) -> None:
        """Raise the fitting error for a status that is not success."""
        status = response.status_code
        if status < 300:
            return
        body = read_some(response) if body is None else body
        said = _message(body) or describe(response, body)
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

    def retry(self, work: Callable[[], Any]) -> Any:
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


def _read_all(response: httpx.Response, url: str) -> bytes:
    """A body in memory, unpacked. Raises GDCError where it is larger than any answer of a query."""
    blocks, size = [], 0
    try:
        for block in response.iter_bytes():
            blocks.append(block)
            size += len(block)
            if size > MOST_JSON:
                raise GDCError(f"{url}: the answer has more than {MOST_JSON} bytes; this is no answer of the GDC")
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise TransientError(f"{url}: the answer broke off ({error!r})") from error
    return b"".join(blocks)


def read_some(response: httpx.Response) -> bytes:
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
        answer = parse_json(body)
    except ValueError:
        return ""
    said = answer.get("message") or answer.get("error") if isinstance(answer, dict) else ""
    return str(said)[:500]


def describe(response: httpx.Response, body: bytes = b"") -> str:
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
