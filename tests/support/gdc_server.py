"""A stand-in for the GDC, its S3 mirror and a Xena hub, with every fault that is known of them, on request.

It speaks HTTP/1.1 on a free port of this machine. Faults are put in ``server.faults``; each applies a given number of
times to the requests it matches. Every request is noted in ``server.log`` with its range and the bytes sent.
Run as a program (``python -m tests.support.gdc_server N SIZE``) it serves N generated files and prints its address.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import socket
import struct
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Entry:
    """One file on offer."""

    id: str
    name: str
    content: bytes
    hit: dict[str, Any]
    annotation: bytes | None = None

    @property
    def md5(self) -> str:
        return hashlib.md5(self.content).hexdigest()


@dataclass
class Fault:
    """What goes wrong, where (method and path fragment), how often, from which byte on."""

    kind: str
    path: str = "/data"
    method: str | None = None
    times: int = 1
    at: int = 0
    status: int = 503
    body: bytes = b'{"message": "internal error"}'
    headers: dict[str, str] = field(default_factory=dict)
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None


@dataclass
class Note:
    """One request as it was answered."""

    method: str
    path: str
    host: str
    range: str | None
    status: int
    sent: int
    headers: dict[str, str]
    body: Any = None


class StandIn:
    """The server; use as a context manager."""

    def __init__(self, *, latency: float = 0.0, release: str | None = "Data Release 45.0 - December 04, 2025") -> None:
        self.files: dict[str, Entry] = {}
        self.cases: list[dict[str, Any]] = []
        self.xena: dict[str, bytes] = {}
        self.mirrored = True
        self.known_fields: list[str] | None = None
        self.refused: dict[str, int] = {}  # file id -> 403, 404, 451
        self.name_refused = True  # whether the message of a refusal names the file
        self.left_out: set[str] = set()  # bundles come without these
        self.evil_members = False
        self.broken_members: set[str] = set()
        self.bundle_format = "gz"
        self.drip_bytes = 1
        self.pause_at: int | None = None  # single files: stop after so many bytes until released
        self.pause_bundle_at: int | None = None
        self.released = threading.Event()
        self.paused = threading.Event()
        self.faults: list[Fault] = []
        self.log: list[Note] = []
        self.latency, self.release = latency, release
        self.guard = threading.Lock()
        self.at_once = self.most_at_once = 0  # requests for data being answered, now and at most
        stand_in = self

        class Handler(_Handler):
            server_state = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.mirror_url = f"{self.url}/mirror"
        self.xena_url = f"{self.url}/xena"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, content: bytes, name: str, file_id: str | None = None, **hit: Any) -> Entry:
        """Offer a file; ``hit`` is what a query says of it besides id, name, size and md5."""
        file_id = file_id or str(uuid.UUID(hashlib.md5(name.encode()).hexdigest()))
        entry = Entry(file_id, name, content, {})
        entry.hit = {
            "id": file_id, "file_id": file_id, "file_name": name, "file_size": len(content),
            "md5sum": entry.md5, "state": "released", "access": "open", **hit,
        }  # fmt: skip
        self.files[file_id] = entry
        return entry

    def fault(self, path: str, method: str) -> Fault | None:
        with self.guard:
            for fault in self.faults:
                if fault.times > 0 and fault.path in path and fault.method in (None, method):
                    fault.times -= 1
                    return fault
        return None

    def requests(self, path: str, method: str | None = None) -> list[Note]:
        """Requests whose path holds ``path``."""
        return [n for n in list(self.log) if path in n.path and method in (None, n.method)]

    def sent(self, path: str = "/data") -> int:
        """Bytes of bodies sent under a path."""
        return sum(n.sent for n in self.requests(path))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_state: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    # --- routing ---

    def _serve(self, method: str) -> None:
        state = self.server_state
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        body = json.loads(raw) if raw else None
        self.note = Note(
            method, path, self.headers.get("host", ""), self.headers.get("range"), 0, 0, dict(self.headers), body
        )
        with state.guard:
            state.log.append(self.note)
        fault = state.fault(path, method)
        counted = path.startswith("/data")
        with state.guard:
            state.at_once += counted
            state.most_at_once = max(state.most_at_once, state.at_once)
        if state.latency:
            time.sleep(state.latency)
        try:
            if fault is not None and fault.kind == "status":
                return self._plain(fault.status, fault.body, {"Content-Type": "application/json", **fault.headers})
            if fault is not None and fault.kind == "html":
                page = b"<!DOCTYPE html><html><body>Sign in to the network</body></html>"
                return self._plain(200, page, {"Content-Type": "text/html"})
            if fault is not None and fault.kind == "redirect":
                place = fault.headers.get("Location", f"http://localhost:{state.port}{self.path}")
                return self._plain(fault.status if fault.status < 400 else 302, b"", {"Location": place})
            if fault is not None and fault.kind == "drop":
                return self._reset()
            if fault is not None and fault.kind == "hang":
                state.released.wait(10)
                return self._reset()
            if path == "/status":
                return self._status(fault)
            if path.endswith("/_mapping"):
                if state.known_fields is None:
                    return self._plain(404, b'{"message": "no mapping"}', {})
                return self._object({"fields": state.known_fields}, fault)
            if path in ("/files", "/cases"):
                asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
                return self._search(path[1:], body or asked, fault)
            if path == "/data":
                return self._bundle((body or {})["ids"], fault)
            if path.startswith("/data/"):
                return self._file(path[6:], fault)
            if path.startswith("/mirror/"):
                file_id, _, name = path[8:].partition("/")
                entry = state.files.get(file_id)
                if not state.mirrored or entry is None or entry.name != name:
                    return self._plain(
                        404, b"<Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"}
                    )
                return self._bytes(entry.content, fault, {"ETag": f'"{entry.md5}"'})
            if path.startswith("/xena/"):
                content = state.xena.get(path[6:])
                if content is None:
                    return self._plain(
                        404, b"<Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"}
                    )
                return self._bytes(content, fault, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})
            self._plain(404, b'{"message": "not found"}', {})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with state.guard:
                state.at_once -= counted

    # --- queries ---

    def _status(self, fault: Fault | None) -> None:
        answer: dict[str, Any] = {"status": "OK", "tag": "8.5.0", "version": 1, "commit": "0" * 40}
        if self.server_state.release:
            answer["data_release"] = self.server_state.release
        self._object(answer, fault)

    def _search(self, endpoint: str, body: dict[str, Any], fault: Fault | None) -> None:
        state = self.server_state
        key = {"files": "file_id", "cases": "case_id"}[endpoint]
        hits = [e.hit for e in state.files.values()] if endpoint == "files" else list(state.cases)
        filters = body.get("filters") or {}
        filters = json.loads(filters) if isinstance(filters, str) else filters
        for leaf in filters.get("content", []):
            if leaf["op"] == "and":
                return self._plain(500, b'{"message": "nested and"}', {})
            name = leaf["content"]["field"].removeprefix("cases.") if endpoint == "cases" else leaf["content"]["field"]
            wanted = [v.lower() for v in leaf["content"]["value"]]
            hits = [h for h in hits if any(str(v).lower() in wanted for v in _lookup(h, name.split(".")))]
        if body.get("sort") == f"{key}:asc":
            hits = sorted(hits, key=lambda h: str(h.get(key) or h["id"]))
        else:
            random.shuffle(hits)
        start, size = int(body.get("from", 0)), int(body.get("size", 10))
        page = hits[start : start + size]
        answer = {
            "data": {
                "hits": page,
                "pagination": {
                    "count": len(page),
                    "total": len(hits),
                    "size": size,
                    "from": start,
                    "sort": "",
                    "page": 1,
                },
            },
            "warnings": {},
        }
        self._object(answer, fault)

    def _object(self, answer: dict[str, Any], fault: Fault | None) -> None:
        headers = {"Content-Type": "application/json"}
        if fault is not None and fault.change is not None:
            answer = fault.change(answer)
        content = json.dumps(answer).encode()
        if fault is not None and fault.kind == "cut":
            content = content[: fault.at]
        if fault is not None and fault.kind == "gzip":
            content = gzip.compress(content)
            headers["Content-Encoding"] = "gzip"
        self._plain(200, content, headers)

    # --- files ---

    def _refusal(self, file_id: str) -> None:
        code = self.server_state.refused[file_id]
        named = f": {file_id}" if self.server_state.name_refused else ""
        said = {403: "You don't have access to the data", 404: "no such file", 451: "the file is redacted"}[
            code
        ] + named
        self._plain(code, json.dumps({"message": said}).encode(), {"Content-Type": "application/json"})

    def _file(self, file_id: str, fault: Fault | None) -> None:
        state = self.server_state
        if file_id in state.refused:
            return self._refusal(file_id)
        entry = state.files.get(file_id)
        if entry is None:
            return self._plain(404, b'{"message": "no such file"}', {"Content-Type": "application/json"})
        name = entry.name if fault is None or fault.kind != "evil_name" else "../../../evil.txt"
        quoted = f'"{name}"' if len(entry.name) % 2 else name
        headers = {"Content-Disposition": f"attachment; filename={quoted}", "Content-MD5": entry.md5}
        self._bytes(entry.content, fault, headers)

    def _bytes(self, content: bytes, fault: Fault | None, headers: dict[str, str]) -> None:
        state = self.server_state
        kind = fault.kind if fault is not None else ""
        at = fault.at if fault is not None else 0
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        start, status = 0, 200
        asked = self.note.range
        if kind == "corrupt":
            content = content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]
        if asked and kind != "ignore_range":
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(content) or kind == "refuse_range":
                return self._plain(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            if kind == "wrong_range":
                start = max(0, start - 7)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if kind == "no_content_range":
                del headers["Content-Range"]
        payload = content[start:]
        if self.command == "HEAD":
            payload = b""
        if kind == "short":  # a smaller file than the metadata say, honestly announced
            payload = payload[:at]
        if kind in ("longer", "chunked"):
            payload += b"x" * 100 if kind == "longer" else b""
            return self._chunked(iter([payload[i : i + 4096] for i in range(0, len(payload), 4096)]), headers)
        announced = len(content) - start if kind != "short" else len(payload)
        self._head(status, {**headers, "Content-Length": str(announced)})
        if kind in ("reset", "eof"):
            self._write(payload[:at])
            return self._reset() if kind == "reset" else self._close()
        if kind == "drip":
            for i in range(0, len(payload), state.drip_bytes):
                self._write(payload[i : i + state.drip_bytes])
                time.sleep(0.05)
            return None
        if state.pause_at is not None and len(payload) > state.pause_at:
            self._write(payload[: state.pause_at])
            state.paused.set()
            state.released.wait(30)
            payload = payload[state.pause_at :]
        for i in range(0, len(payload), 1 << 16):
            self._write(payload[i : i + (1 << 16)])
        return None

    def _bundle(self, ids: list[str], fault: Fault | None) -> None:
        state = self.server_state
        for file_id in ids:
            if file_id in state.refused:
                return self._refusal(file_id)
            if file_id not in state.files:
                return self._plain(404, json.dumps({"message": f"unknown {file_id}"}).encode(), {})
        if len(ids) == 1:
            return self._file(ids[0], fault)
        entries = [state.files[i] for i in ids if i not in state.left_out]
        headers = {
            "Content-Type": "application/gzip",
            "Content-Disposition": "attachment; filename=gdc_download.tar.gz",
        }
        plain = not (state.evil_members or state.broken_members or state.pause_bundle_at)
        if plain and fault is None and state.bundle_format == "gz":
            # Packed while it is sent, as the real server does.
            return self._chunked(streamed(entries), headers)
        data = bundle(entries, form=state.bundle_format, evil=state.evil_members, broken=state.broken_members)
        kind, at = (fault.kind, fault.at) if fault is not None else ("", 0)
        if kind == "corrupt":
            data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        if kind == "truncate":
            data = data[:at]
        pieces = [data[i : i + (1 << 16)] for i in range(0, len(data), 1 << 16)]
        if kind in ("reset", "eof"):
            pieces = [data[i : i + 2048] for i in range(0, at, 2048)]
            self._chunked(iter(pieces), headers, end=False)
            return self._reset() if kind == "reset" else self._close()
        if state.pause_bundle_at is not None:

            def stopping() -> Iterator[bytes]:
                assert state.pause_bundle_at is not None
                yield data[: state.pause_bundle_at]
                state.paused.set()
                state.released.wait(30)
                yield data[state.pause_bundle_at :]

            return self._chunked(stopping(), headers)
        return self._chunked(iter(pieces), headers)

    # --- wire ---

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.note.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _plain(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self._write(body)

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.note.sent += len(data)

    def _chunked(self, pieces: Iterator[bytes], headers: dict[str, str], *, end: bool = True) -> None:
        self._head(200, {**headers, "Transfer-Encoding": "chunked"})
        for piece in pieces:
            if piece:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.note.sent += len(piece)
        if end:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        """Close so that the other side sees 'connection reset'."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _close(self) -> None:
        self.wfile.flush()
        self.close_connection = True


def bundle(entries: list[Entry], *, form: str = "gz", evil: bool = False, broken: set[str] | None = None) -> bytes:
    """An archive as the GDC packs it: MANIFEST.txt, then <id>/<name> and annotations."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:

        def put(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        rows = ["id\tfilename\tmd5\tsize\tstate"]
        rows += [f"{e.id}\t{e.id}/{e.name}\t{e.md5}\t{len(e.content)}\treleased" for e in entries]
        put("MANIFEST.txt", "\n".join(rows).encode())
        if evil:
            put("../evil.txt", b"outside")
            put("/evil.txt", b"absolute")
            for entry in entries[:1]:
                put(f"{entry.id}/../../evil.txt", b"outside")
                put(f"{entry.id}/other.txt", b"another name")
                link = tarfile.TarInfo(f"{entry.id}/{entry.name}")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
                archive.addfile(link)
        for entry in entries:
            content = entry.content
            if broken and entry.id in broken:
                content = content[:-1] + bytes([content[-1] ^ 1])
            put(f"{entry.id}/{entry.name}", content)
            if entry.annotation:
                put(f"{entry.id}/annotations.txt", entry.annotation)
    return gzip.compress(out.getvalue(), compresslevel=1) if form == "gz" else out.getvalue()


def streamed(entries: list[Entry]) -> Iterator[bytes]:
    """The same archive in pieces, a gzip member per dozen files."""
    parts = [entries[i : i + 12] for i in range(0, len(entries), 12)]
    for number, part in enumerate(parts):
        packed = bundle(part, form="tar")
        if number + 1 < len(parts):
            # Only the last part keeps the empty blocks that end an archive.
            with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
                last = opened.getmembers()[-1]
            packed = packed[: last.offset_data + -(-last.size // 512) * 512]
        yield gzip.compress(packed, compresslevel=1)


def _lookup(value: Any, keys: list[str]) -> list[Any]:
    """Values under a dotted name; lists are searched throughout."""
    if isinstance(value, list):
        return [found for entry in value for found in _lookup(entry, keys)]
    if not keys:
        return [value]
    if isinstance(value, dict) and keys[0] in value:
        return _lookup(value[keys[0]], keys[1:])
    return []


def generated(count: int, size: int, seed: int = 0) -> list[tuple[str, str, bytes]]:
    """(id, name, content) of files that compress about as omics tables do."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        start = "".join(f"hsa-mir-{rng.randrange(9999)}\t{rng.randrange(99999)}\n" for _ in range(40)).encode()
        content = f"file {i}\n".encode() + start * (size // len(start) + 1)
        made.append((str(uuid.UUID(int=rng.getrandbits(128), version=4)), f"file-{i}.txt", content[:size]))
    return made


def main() -> None:
    """Serve generated files until killed; the first line of output is the address."""
    count, size = int(sys.argv[1]), int(sys.argv[2])
    latency = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    with StandIn(latency=latency) as server:
        for file_id, name, content in generated(count, size):
            server.add(content, name, file_id)
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
