"""Every fault known of the GDC, its mirror and Xena: the right bytes end up on disk, or a clear error and no file."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from hcmae.gdc import transfer
from hcmae.gdc.client import GDCClient, GDCError, Interrupted, RefusedError, TransientError, and_filter
from hcmae.gdc.transfer import RemoteFile, download, download_bundle, download_xena
from hcmae.packed import SwellingError
from tests.support.gdc_server import Entry, Fault, StandIn, bundle

SIZE = 300_000


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as made:
        yield made


@pytest.fixture
def client(server: StandIn) -> Iterator[GDCClient]:
    with _client(server) as made:
        yield made


def _client(server: StandIn, **settings: Any) -> GDCClient:
    options: dict[str, Any] = {
        "url": server.url, "mirror": "", "xena": server.xena_url,
        "attempts": 4, "longest_wait": 0.01, "timeout": 3.0, "stall": 1.0,
    }  # fmt: skip
    return GDCClient(**{**options, **settings})


def _content(size: int = SIZE, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def _remote(entry: Entry, folder: Path) -> RemoteFile:
    return RemoteFile(entry.id, entry.md5, len(entry.content), folder / entry.id / entry.name, entry.name)


def _leftovers(folder: Path) -> list[str]:
    """Anything that is not a finished file or a partial one that will be continued."""
    return [p.name for p in folder.rglob("*") if p.is_file() and p.name.startswith(".") and ".fetch.lock" not in p.name]


# Faults of single downloads that end well; each with the requests that the download takes.
MENDED = {
    "connection reset after some bytes": (Fault("reset", at=100_000), 2),
    "connection closed early": (Fault("eof", at=100_000), 2),
    "connection dropped before the answer": (Fault("drop"), 2),
    "five resets in a row, each with progress": (Fault("reset", at=50_000, times=5), 6),
    "503, then well": (Fault("status", status=503), 2),
    "500 and 502": (Fault("status", status=502, times=2), 3),
    "504": (Fault("status", status=504), 2),
    "429 with Retry-After": (Fault("status", status=429, headers={"Retry-After": "0"}), 2),
    "503 with Retry-After as a date": (
        Fault("status", status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        2,
    ),
    "405 once": (Fault("status", status=405), 2),
    "an HTML page with status 200": (Fault("html"), 2),
    "wrong bytes": (Fault("corrupt", at=1234), 2),
    "a shorter file, honestly announced": (Fault("short", at=1000), 2),
    "more bytes than there are": (Fault("longer"), 2),
    "no Content-Length": (Fault("chunked"), 1),
    "a name that leads out of the folder": (Fault("evil_name"), 1),
    "a connection that says nothing": (Fault("hang"), 2),
    "a slow drip, then well": (Fault("drip"), 2),
    "a redirect to another host": (Fault("redirect"), 2),
    "a permanent redirect that keeps the method": (Fault("redirect", status=308), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MENDED)
def test_single_file_ends_right(name: str, server: StandIn, tmp_path: Path) -> None:
    fault, requests = MENDED[name]
    entry = server.add(_content(), "slide.svs")
    file = _remote(entry, tmp_path / "in")
    server.faults = [Fault(**vars(fault))]
    seen: list[int] = []
    with _client(server, timeout=0.5 if fault.kind == "hang" else 3.0) as client:
        download(client, file, seen.append)
    assert file.target.read_bytes() == entry.content
    assert sum(seen) == SIZE
    assert len(server.requests("/data/")) == requests
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file.target]
    assert file.present()


RESUMED = {
    "partial content": (None, 1, SIZE - 120_000),
    "the range is ignored": (Fault("ignore_range"), 1, SIZE),
    "the range starts elsewhere": (Fault("wrong_range"), 2, None),
    "206 without Content-Range": (Fault("no_content_range"), 2, None),
    "416 although bytes are missing": (Fault("refuse_range"), 2, SIZE),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_partial_file_is_continued(name: str, server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    fault, requests, sent = RESUMED[name]
    entry = server.add(_content(), "slide.svs")
    file = _remote(entry, tmp_path)
    file.part.parent.mkdir(parents=True)
    file.part.write_bytes(entry.content[:120_000])
    server.faults = [Fault(**vars(fault))] if fault else []
    download(client, file)
    assert file.target.read_bytes() == entry.content
    notes = server.requests("/data/")
    assert len(notes) == requests
    assert notes[0].range == "bytes=120000-"
    if sent is not None:
        assert server.sent() == sent


@pytest.mark.parametrize(
    ("part", "sent"),
    [
        (b"x" * 50_000, 2 * SIZE - 50_000),  # wrong start: found out at the end, then all of it
        (_content(), 0),  # complete, only the name was missing
        (_content() + b"more", SIZE),  # longer than the file
    ],
)
def test_a_strange_partial_file_does_no_harm(
    part: bytes, sent: int, server: StandIn, client: GDCClient, tmp_path: Path
) -> None:
    entry = server.add(_content(), "slide.svs")
    file = _remote(entry, tmp_path)
    file.part.parent.mkdir(parents=True)
    file.part.write_bytes(part)
    download(client, file)
    assert file.target.read_bytes() == entry.content
    assert server.sent() == sent


LOST: dict[str, tuple[Fault, str]] = {
    "always 503": (Fault("status", status=503, times=99), "given up after 4 tries"),
    "always an HTML page": (Fault("html", times=99), "text/html"),
    "always wrong bytes": (Fault("corrupt", at=5, times=99), "md5"),
    "always cut at the same byte": (Fault("short", at=7, times=99), "announces 7 bytes"),
    "always too long": (Fault("longer", times=99), "more than"),
    "redirected in a circle": (Fault("redirect", times=99), "circle"),
    "400": (Fault("status", status=400, body=b'{"message": "bad uuid"}'), "bad uuid"),
    "404": (Fault("status", status=404, body=b'{"message": "no such file"}'), "unknown file"),
    "403": (Fault("status", status=403, body=b'{"message": "You don\'t have access"}'), "no access"),
    "403 without JSON": (Fault("status", status=403, body=b"<html>no</html>"), "no access"),
    "451": (Fault("status", status=451, body=b'{"message": "redacted"}'), "redacted"),
    "an invalid token": (
        Fault("status", status=403, body=b'{"message": "Your token is invalid"}'),
        "invalid or expired",
    ),
    "a slow drip": (Fault("drip", times=99), "bytes in 1 s"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOST)
def test_single_file_ends_in_a_clear_error(name: str, server: StandIn, tmp_path: Path) -> None:
    fault, message = LOST[name]
    entry = server.add(_content(), "slide.svs")
    file = _remote(entry, tmp_path)
    server.faults = [Fault(**vars(fault))]
    attempts = 1 if fault.kind == "drip" else 4
    with _client(server, attempts=attempts) as client, pytest.raises(GDCError, match=message) as caught:
        download(client, file)
    assert f"/data/{entry.id}" in str(caught.value)
    assert not file.target.exists()
    if fault.kind == "status" and fault.status < 500:
        assert len(server.requests("/data/")) == 1, "a refused request must not be repeated"


def test_progress_that_is_lost_again_is_no_progress(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    """A server that ignores ranges and breaks off must not be asked for ever."""
    entry = server.add(_content(), "slide.svs")
    server.faults = [f for _ in range(50) for f in (Fault("reset", at=100_000), Fault("refuse_range"))]
    with pytest.raises(GDCError, match="given up"):
        download(client, _remote(entry, tmp_path))
    assert len(server.requests("/data/")) < 12


def test_the_mirror_is_the_second_source(server: StandIn, tmp_path: Path) -> None:
    entry = server.add(_content(), "TCGA slide+1.svs")
    server.faults = [Fault("reset", path="/data/", at=100_000), Fault("status", path="/data/", times=99)]
    file = _remote(entry, tmp_path)
    with _client(server, mirror=server.mirror_url) as client:
        download(client, file)
    assert file.target.read_bytes() == entry.content
    # The mirror continues what the server began.
    assert server.requests("/mirror/")[0].range == "bytes=100000-"


def test_wrong_bytes_of_the_mirror_are_refused_too(server: StandIn, tmp_path: Path) -> None:
    entry = server.add(_content(), "slide.svs")
    server.refused = {entry.id: 404}
    server.faults = [Fault("corrupt", path="/mirror", at=3, times=99)]
    file = _remote(entry, tmp_path)
    with _client(server, mirror=server.mirror_url) as client, pytest.raises(RefusedError, match="404"):
        download(client, file)
    assert not file.target.exists()


@pytest.mark.parametrize(("told", "least", "most"), [("3", 3, 3), ("9999", 1.0, 1.0), ("soon", 0, 0.13)])
def test_retry_after_is_waited_for_within_reason(
    told: str, least: float, most: float, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of seconds is kept to, up to ten times the longest wait; nonsense counts as not said."""
    entry = server.add(_content(100), "slide.svs")
    server.faults = [Fault("status", status=503, headers={"Retry-After": told})]
    waits: list[float] = []
    with _client(server, longest_wait=3.0 if told == "3" else 0.1) as client:
        monkeypatch.setattr(client.stop, "wait", lambda seconds: waits.append(seconds))
        download(client, _remote(entry, tmp_path))
    assert len(waits) == 1
    assert least <= waits[0] <= most


def test_an_address_that_is_none_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("nonsense", "ftp://127.0.0.1"):
        with GDCClient(url=url, mirror="") as client:
            monkeypatch.setattr(client.stop, "wait", lambda _: pytest.fail("waited for another try"))
            with pytest.raises(GDCError, match="not an address"):
                client.status()


def test_no_server_at_all(tmp_path: Path) -> None:
    file = RemoteFile("0" * 36, "0" * 32, 5, tmp_path / "a", "a")
    with (
        GDCClient(url="http://127.0.0.1:9", mirror="", attempts=2, longest_wait=0.01) as client,
        pytest.raises(GDCError, match="no answer"),
    ):
        download(client, file)


def test_stopping_keeps_the_partial_file(server: StandIn, tmp_path: Path) -> None:
    entry = server.add(_content(), "slide.svs")
    file = _remote(entry, tmp_path)
    server.pause_at = 100_000
    stop = threading.Event()
    client = _client(server, stop=stop)

    def progress(count: int) -> None:
        if file.part.exists():
            stop.set()
            server.released.set()

    with client, pytest.raises(Interrupted):
        download(client, file, progress)
    assert not file.target.exists()
    with _client(server) as again:
        server.pause_at = None
        download(again, file)
    assert file.target.read_bytes() == entry.content


# ---------------------------------------------------------------- bundles


def _small(server: StandIn, count: int = 12) -> list[Entry]:
    return [server.add(_content(20_000, seed=i), f"file-{i}.txt") for i in range(count)]


BUNDLES = {
    "as it should be": (None, 1),
    "reset in the middle": (Fault("reset", at=100_000), 2),
    "closed in the middle": (Fault("eof", at=100_000), 2),
    "truncated gzip, properly ended": (Fault("truncate", at=100_000), 2),
    "damaged gzip": (Fault("corrupt", at=100_000), 2),
    "not a gzip at all": (Fault("corrupt", at=0), 2),
    "503, then well": (Fault("status"), 2),
    "an HTML page with status 200": (Fault("html"), 2),
    "JSON with status 200": (Fault("status", status=200, body=b"{}"), 2),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_bundle_ends_right(name: str, server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    fault, requests = BUNDLES[name]
    entries = _small(server)
    entries[3].annotation = b"id\tnotes\n1\tdo not use\n"
    files = [_remote(e, tmp_path) for e in entries]
    server.faults = [Fault(**vars(fault))] if fault else []
    seen: list[int] = []
    assert download_bundle(client, files, seen.append) == {}
    assert [f.target.read_bytes() for f in files] == [e.content for e in entries]
    assert sum(seen) == sum(f.size for f in files)
    notes = server.requests("/data")
    assert len(notes) == requests
    if fault is not None and fault.kind in ("reset", "eof", "truncate"):
        assert 0 < len(notes[1].body["ids"]) < len(files), "only what had not come is asked for again"
    assert (files[3].target.parent / "annotations.txt").read_bytes() == entries[3].annotation
    assert not _leftovers(tmp_path)


def test_plain_tar_is_understood(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    entries = _small(server)
    server.bundle_format = "tar"
    assert download_bundle(client, [_remote(e, tmp_path) for e in entries]) == {}
    assert all(_remote(e, tmp_path).target.read_bytes() == e.content for e in entries)


@pytest.mark.parametrize("status", [403, 404, 451])
@pytest.mark.parametrize("named", [True, False])
def test_one_refused_file_does_not_cost_the_others(
    status: int, named: bool, server: StandIn, client: GDCClient, tmp_path: Path
) -> None:
    entries = _small(server)
    server.refused = {entries[5].id: status}
    server.name_refused = named
    failures = download_bundle(client, [_remote(e, tmp_path) for e in entries])
    assert list(failures) == [entries[5].id]
    assert str(status) in str(failures[entries[5].id])
    for i, entry in enumerate(entries):
        assert _remote(entry, tmp_path).target.exists() == (i != 5)


def test_left_out_and_broken_members_are_asked_for_alone(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    entries = _small(server)
    server.left_out = {entries[2].id}
    server.broken_members = {entries[7].id}
    assert download_bundle(client, [_remote(e, tmp_path) for e in entries]) == {}
    assert all(_remote(e, tmp_path).target.read_bytes() == e.content for e in entries)
    assert not _leftovers(tmp_path)


def test_evil_members_write_nothing(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    entries = _small(server)
    server.evil_members = True
    folder = tmp_path / "a" / "b"
    assert download_bundle(client, [_remote(e, folder) for e in entries]) == {}
    written = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {_remote(e, folder).target for e in entries}
    assert not any(p.is_symlink() for p in written)


def test_a_bundle_that_never_comes_is_reported_for_each_file(
    server: StandIn, client: GDCClient, tmp_path: Path
) -> None:
    entries = _small(server, 3)
    server.faults = [Fault("status", times=99)]
    failures = download_bundle(client, [_remote(e, tmp_path) for e in entries])
    assert set(failures) == {e.id for e in entries}
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("fault", ["refused", "down"])
def test_the_mirror_stands_behind_bundles(fault: str, server: StandIn, tmp_path: Path) -> None:
    entries = _small(server, 5)
    if fault == "refused":
        server.refused = {entries[2].id: 404}
    else:
        server.faults = [Fault("status", times=99)]
    with _client(server, mirror=server.mirror_url) as client:
        assert download_bundle(client, [_remote(e, tmp_path) for e in entries]) == {}
    assert all(_remote(e, tmp_path).target.read_bytes() == e.content for e in entries)
    assert len(server.requests("/mirror")) == (1 if fault == "refused" else 5)


def test_a_mirror_that_is_down_as_well_is_not_asked_for_every_file(server: StandIn, tmp_path: Path) -> None:
    entries = _small(server, 30)
    server.faults = [Fault("status", times=99), Fault("status", path="/mirror", times=99)]
    with _client(server, mirror=server.mirror_url) as client:
        assert len(download_bundle(client, [_remote(e, tmp_path) for e in entries])) == 30
    assert len(server.requests("/mirror")) == 4, "the tries of one file"


# ---------------------------------------------------------------- killed without warning

_CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from hcmae.gdc.client import GDCClient
    from hcmae.gdc.transfer import RemoteFile, download, download_bundle
    url, folder, *files = sys.argv[1:]
    files = [RemoteFile(i, m, int(s), Path(folder) / i / n, n) for i, m, s, n in (f.split(",") for f in files)]
    client = GDCClient(url=url, mirror="")
    if len(files) == 1:
        download(client, files[0])
    else:
        download_bundle(client, files)
    """
)


def _killed(server: StandIn, folder: Path, entries: list[Entry]) -> None:
    """Start a fetch in another process and kill it while the server holds back the rest."""
    arguments = [f"{e.id},{e.md5},{len(e.content)},{e.name}" for e in entries]
    child = subprocess.Popen([sys.executable, "-c", _CHILD, server.url, str(folder), *arguments])
    try:
        assert server.paused.wait(30)
        # Wait for what was sent to be on disk; the server sends no more until released.
        for _ in range(500):
            written = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "annotations.txt")
            if written >= 30_000:
                break
            threading.Event().wait(0.01)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    server.released.set()


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_download(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    entry = server.add(_content(), "slide.svs")
    file = _remote(entry, tmp_path)
    server.pause_at = 150_000
    _killed(server, tmp_path, [entry])
    assert not file.target.exists()
    have = file.part.stat().st_size
    assert 0 < have < SIZE
    assert entry.content.startswith(file.part.read_bytes())
    server.pause_at = None
    download(client, file)
    assert file.target.read_bytes() == entry.content
    assert server.log[-1].sent == SIZE - have
    assert server.log[-1].range == f"bytes={have}-"


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_bundle(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    entries = _small(server)
    files = [_remote(e, tmp_path) for e in entries]
    server.pause_bundle_at = 110_000
    _killed(server, tmp_path, entries)
    complete = [f for f in files if f.present()]
    assert 0 < len(complete) < len(files)
    # What is half unpacked lies under another name, and goes also where the rest comes file by file.
    assert all(hashlib.md5(f.target.read_bytes()).hexdigest() == f.md5 for f in complete)
    for leftover in tmp_path.rglob(".*.bundle"):
        download(client, next(f for f in files if f.id in leftover.name))
        assert not leftover.exists()
    server.pause_bundle_at = None
    rest = [f for f in files if not f.present()]
    assert download_bundle(client, rest) == {}
    assert sorted(server.log[-1].body["ids"]) == sorted(f.id for f in rest)
    assert [f.target.read_bytes() for f in files] == [e.content for e in entries]
    assert not _leftovers(tmp_path)


# ---------------------------------------------------------------- Xena


def _matrix() -> bytes:
    return b"Ensembl_ID\tTCGA-AA-0001-01A\nENSG1.1\t3.0\n" * 2000


@pytest.mark.parametrize("packed", [True, False])
def test_xena_packed_or_plain(packed: bool, server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    name = "TCGA-LIHC.star_counts.tsv"
    server.xena = {f"{name}.gz": gzip.compress(_matrix())} if packed else {name: _matrix()}
    path = download_xena(client, name, tmp_path)
    assert path.name == (f"{name}.gz" if packed else name)
    assert (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()) == _matrix()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    requests = len(server.log)
    assert download_xena(client, name, tmp_path) == path
    assert len(server.log) == requests


def test_xena_continues_the_same_version_only(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    name, first = "m.tsv", gzip.compress(random.Random(1).randbytes(200_000))
    server.xena = {"m.tsv.gz": first}
    server.faults = [
        Fault("reset", path="/xena", method="GET", at=90_000),
        Fault("status", path="/xena", method="GET", times=9),
    ]
    with pytest.raises(GDCError):
        download_xena(client, name, tmp_path)
    assert (tmp_path / "m.tsv.gz.part").stat().st_size == 90_000
    server.faults = []
    second = gzip.compress(random.Random(2).randbytes(200_000))
    server.xena = {"m.tsv.gz": second}
    assert download_xena(client, name, tmp_path).read_bytes() == second
    assert server.log[-1].range is None


def test_xena_broken_gzip_is_refused(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    server.xena = {"m.tsv.gz": gzip.compress(_matrix())[:-20]}
    with pytest.raises(GDCError, match="broken gzip"):
        download_xena(client, "m.tsv", tmp_path)
    assert not (tmp_path / "m.tsv.gz").exists()


# ---------------------------------------------------------------- queries


def _many(server: StandIn, count: int) -> None:
    for i in range(count):
        server.add(b"x" * (i + 1), f"f{i}.txt", data_type="Slide Image")


QUERY_FAULTS = {
    "503": Fault("status", path="/files"),
    "an HTML page": Fault("html", path="/files"),
    "cut JSON": Fault("cut", path="/files", at=200),
    "gzip-encoded": Fault("gzip", path="/files"),
    "an empty page": Fault("", path="/files", change=lambda a: {"data": {**a["data"], "hits": []}}),
    "no pagination": Fault("", path="/files", change=lambda a: {"data": {"hits": a["data"]["hits"]}}),
    "no data": Fault("", path="/files", change=lambda a: {"warnings": {}}),
    "a list": Fault("", path="/files", change=lambda a: [a]),  # type: ignore[arg-type,return-value]
    "warnings": Fault("", path="/files", change=lambda a: {**a, "warnings": {"fields": "unrecognized values: [bmi]"}}),
    "another total on one page": Fault(
        "", path="/files", change=lambda a: {"data": {**a["data"], "pagination": {"total": 7}}}
    ),
    "a page twice": Fault(
        "",
        path="/files",
        change=lambda a: {"data": {**a["data"], "hits": [a["data"]["hits"][0]] * len(a["data"]["hits"])}},
    ),
}


@pytest.mark.parametrize("name", QUERY_FAULTS)
def test_query_pages_are_whole(name: str, server: StandIn, client: GDCClient) -> None:
    _many(server, 25)
    server.faults = [Fault(**vars(QUERY_FAULTS[name]))]
    hits = client.search("files", and_filter({"data_type": "slide image"}), ["file_name"], page=10)
    assert len({h["file_id"] for h in hits}) == len(hits) == 25
    bodies = [n.body for n in server.requests("/files", "POST")]
    assert all(b["sort"] == "file_id:asc" and b["size"] == 10 for b in bodies)
    assert {b["from"] for b in bodies} >= {0, 10, 20}


def test_query_answers_are_cached_by_release(server: StandIn, tmp_path: Path) -> None:
    _many(server, 3)
    query = ("files", and_filter({"data_type": "Slide Image"}), ["file_name"])
    with _client(server, cache=tmp_path) as client:
        first = client.search(*query)
    with _client(server, cache=tmp_path) as client:
        assert client.search(*query) == first
    assert len(server.requests("/files", "POST")) == 1
    server.release = "Data Release 46.0 - August 10, 2026"
    with _client(server, cache=tmp_path) as client:
        client.search(*query)
        assert client.release == "Data Release 46.0"
    assert len(server.requests("/files", "POST")) == 2
    # A damaged cache is asked anew.
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")
    with _client(server, cache=tmp_path) as client:
        assert client.search(*query) == first


def test_fields_that_the_release_lacks_are_not_asked_for(server: StandIn, client: GDCClient) -> None:
    _many(server, 2)
    server.known_fields = ["file_id", "file_name"]
    client.search("files", {}, ["file_name", "gone.field"])
    client.search("files", {}, ["file_name"])
    assert server.requests("/files", "POST")[0].body["fields"] == "file_id,file_name"
    assert len(server.requests("/_mapping")) == 1, "the names of the fields are asked for once"


def test_the_stand_in_answers_a_get_as_it_does_a_post(server: StandIn) -> None:
    import httpx

    _many(server, 12)
    filters = json.dumps(and_filter({"data_type": "Slide Image"}))
    asked = {"filters": filters, "size": "5", "from": "10", "sort": "file_id:asc"}
    answer = httpx.get(f"{server.url}/files", params=asked).json()
    assert answer == httpx.post(f"{server.url}/files", json=asked).json()
    assert answer["data"]["pagination"] | {"sort": "", "page": 1} == answer["data"]["pagination"]
    assert len(answer["data"]["hits"]) == 2
    assert len(httpx.get(f"{server.url}/files").json()["data"]["hits"]) == 10, "ten is the default"


def test_status_of_a_service_that_is_down(server: StandIn, client: GDCClient) -> None:
    server.faults = [Fault("", path="/status", change=lambda a: {**a, "status": "maintenance"})]
    with pytest.raises(GDCError, match="maintenance"):
        client.status()


# ---------------------------------------------------------------- manners and secrets


def test_manners(server: StandIn, client: GDCClient, tmp_path: Path) -> None:
    file = _remote(server.add(_content(1000), "a.txt"), tmp_path)
    download(client, file)
    client.search("files", {}, ["file_name"])
    for note in server.log:
        assert note.headers["user-agent"].startswith("hcmae-core/") if "user-agent" in note.headers else True
        headers = {k.lower(): v for k, v in note.headers.items()}
        assert headers["user-agent"].startswith("hcmae-core/")
        assert "x-auth-token" not in headers


def test_a_token_goes_neither_to_open_data_nor_to_another_host_nor_into_messages(
    server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "s3cret-token-value"
    (tmp_path / "token").write_text(secret + "\n")
    file = _remote(server.add(_content(1000), "a.txt"), tmp_path)
    with caplog.at_level("DEBUG"), _client(server, token_file=tmp_path / "token") as client:
        download(client, file)
        assert not any(secret in str(n.headers) for n in server.log)
        server.faults = [Fault("redirect")]
        file.target.unlink()
        download(client, file, controlled=True)
        assert file.target.read_bytes() == _content(1000)
        told = [n for n in server.requests("/data") if secret in str(n.headers)]
        assert [n.host for n in told] == [f"127.0.0.1:{server.port}"]
        server.faults = [Fault("status", status=403, body=b'{"message": "Your token is invalid or expired."}')]
        with pytest.raises(RefusedError) as caught:
            download(client, file)
    assert secret not in str(caught.value)
    assert secret not in caplog.text
    assert secret not in repr(client)


def test_tokens_that_cannot_be_read_are_named_not_shown(server: StandIn, tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe"):
        (tmp_path / "token").write_bytes(content)
        with _client(server, token_file=tmp_path / "token") as client, pytest.raises(GDCError, match="token file"):
            client.token()


def test_fault_suite_is_wide_enough() -> None:
    assert len(MENDED) + len(RESUMED) - 1 + len(LOST) + len(BUNDLES) - 1 + len(QUERY_FAULTS) >= 40
    assert len({f.kind for f in _faults()}) >= 15, "kinds of faults, not repetitions of one"


def _faults() -> list[Fault]:
    named = [f for f, *_ in (*MENDED.values(), *RESUMED.values(), *LOST.values(), *BUNDLES.values())]
    return [f for f in [*named, *QUERY_FAULTS.values()] if f is not None]


def test_the_stand_in_packs_what_it_says() -> None:
    """The stand-in itself: MANIFEST sums are those of the members."""
    import tarfile

    from tests.support.gdc_server import bundle

    entry = Entry("a" * 36, "n.txt", b"content", {}, b"note")
    with tarfile.open(fileobj=io.BytesIO(bundle([entry]))) as archive:
        names = archive.getnames()
        manifest = archive.extractfile("MANIFEST.txt")
        assert manifest is not None
        row = manifest.read().decode().splitlines()[1].split("\t")
    assert names == ["MANIFEST.txt", f"{entry.id}/n.txt", f"{entry.id}/annotations.txt"]
    assert row[2] == hashlib.md5(b"content").hexdigest()


# --- archives and answers that swell ----------------------------------------------------------------------------------


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(1 << 22))
    pipe = transfer.Pipe(iter([packed]), most=1 << 20)
    with pytest.raises(SwellingError, match="more than 1048576 bytes"):
        pipe.read(1 << 22)
    pipe = transfer.Pipe(iter([packed]), most=1 << 22)
    assert sum(len(pipe.read(1 << 20)) for _ in range(5)) == 1 << 22


def test_mutated_archives_end_in_the_documented_error_and_write_nothing_elsewhere(
    server: StandIn, tmp_path: Path
) -> None:
    rng = random.Random(11)
    folder = tmp_path / "files"
    entries = [server.add(_content(700 + i), f"f{i}.txt") for i in range(3)]
    whole = bytearray(bundle(entries, form="tar"))
    with _client(server) as client:
        for _ in range(150):
            files = [_remote(entry, folder) for entry in entries]
            damaged = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                damaged[rng.randrange(4096)] = rng.choice([0, 0x30, 0x37, 0x78, 0x67, 0x4C, 0xFF, rng.randrange(256)])
            response = _Answer(bytes(damaged))
            missing = {file.id: file for file in files}
            client.send = lambda *_, answer=response, **__: nullcontext(answer)  # type: ignore[method-assign,assignment]
            with suppress(TransientError):
                transfer.unpack(client, missing, len(files), lambda n: None)
            for file in files:
                if file.target.exists():
                    assert hashlib.md5(file.target.read_bytes()).hexdigest() == file.md5
            shutil.rmtree(folder, ignore_errors=True)
    assert [path.name for path in tmp_path.iterdir()] == []


class _Answer:
    """An archive as a response that is already there."""

    def __init__(self, content: bytes) -> None:
        self.content, self.status_code, self.headers = content, 200, {"content-type": "application/x-tar"}

    def iter_bytes(self) -> Iterator[bytes]:
        yield self.content
