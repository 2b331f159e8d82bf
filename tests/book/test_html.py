"""The built pages: nothing from outside, every image described, no broken link, and a browser that has no complaint.

Needs ``make book`` (or HCMAE_HTML, the folder of a build); without it these tests are skipped with the reason.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(os.environ.get("HCMAE_HTML") or Path(__file__).resolve().parents[2] / "_build" / "html")
PAGES = sorted(path for path in SITE.rglob("*.html") if "_static" not in path.parts) if SITE.is_dir() else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SITE / "index.html").exists(), reason="no built book in _build/html: run 'make book' first"
    ),
]

# What a browser fetches without being asked, by tag and attribute.
LOADS = {
    ("script", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("source", "src"),
    ("source", "srcset"),
    ("iframe", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("embed", "src"),
    ("object", "data"),
    ("input", "src"),
    ("use", "href"),
    ("image", "href"),
    ("form", "action"),
}
RELATIONS = {
    "stylesheet",
    "icon",
    "shortcut icon",
    "preload",
    "preconnect",
    "prefetch",
    "dns-prefetch",
    "modulepreload",
}


class Page(HTMLParser):
    """Ids, links, loaded addresses, images and inline scripts of one page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.scripts: list[str] = []
        self.headings: list[str] = []
        self.lang: str | None = None
        self._in_script = False
        self._in_article = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "html":
            self.lang = found.get("lang")
        self._in_article |= tag == "article"
        # The theme keeps a copy of the title for print outside the article.
        if self._in_article and re.fullmatch(r"h[1-6]", tag):
            self.headings.append(tag)
        if found.get("id"):
            self.ids.append(found["id"])
        if tag == "a" and found.get("name"):
            self.ids.append(found["name"])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and (found.get("rel") or "").lower() in RELATIONS:
            self.loads.append(found.get("href") or "")
        self.loads += [found[name] for name in found if (tag, name) in LOADS and found[name]]
        if tag == "img":
            self.images.append(found)
        self._in_script = tag == "script"

    def handle_endtag(self, tag):
        self._in_article &= tag != "article"
        self._in_script = False

    def handle_data(self, data):
        if self._in_script and data.strip():
            self.scripts.append(data)


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in PAGES}


def short(path: Path) -> str:
    return path.relative_to(SITE).as_posix()


def test_the_whole_book_was_built(pages):
    listed = re.findall(
        r"(?:root|file): (\S+)", (Path(__file__).resolve().parents[2] / "_toc.yml").read_text(encoding="utf-8")
    )
    built = {short(path).removesuffix(".html") for path in pages}
    assert set(listed) <= built


def test_no_page_loads_anything_from_outside(pages):
    outside = [
        (short(path), address)
        for path, page in pages.items()
        for address in page.loads
        if re.match(r"(https?:)?//|ftp:", address)
    ]
    assert outside == []


def test_no_inline_script_names_a_server(pages):
    named = [
        (short(path), script[:120])
        for path, page in pages.items()
        for script in page.scripts
        if re.search(r"https?://(?!www\.w3\.org|schema\.org|localhost)", script)
    ]
    assert named == []


def test_no_style_sheet_loads_anything_from_outside():
    outside = []
    for path in SITE.rglob("*.css"):
        text = path.read_text(encoding="utf-8", errors="replace")
        outside += [
            (short(path), match)
            for match in re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)]+)\)|@import\s+['\"](https?:[^'\"]+)", text)
        ]
    assert outside == []


def test_every_image_is_described(pages):
    bare = [
        (short(path), image.get("src"))
        for path, page in pages.items()
        for image in page.images
        if not (image.get("alt") or "").strip()
        or re.search(r"(^|/)_images/|\.(png|svg)$", (image.get("alt") or "").strip())
    ]
    assert bare == []


def test_no_link_inside_the_book_is_broken(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if target.is_dir():
                target = target / "index.html"
            if not target.exists() or (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].ids
                and (parts.fragment != "" and parts.fragment != "#")
            ):
                broken.append((short(path), link))
    assert broken == []


def test_pages_have_a_language_one_title_and_unique_ids(pages):
    repeated = {}
    for path, page in pages.items():
        if path.name in ("index.html", "genindex.html", "search.html"):
            continue
        assert page.lang == "en", short(path)
        assert page.headings.count("h1") == 1, f"{short(path)}: {page.headings.count('h1')} first-level headings"
        twice = [name for name, count in Counter(page.ids).items() if count > 1]
        if twice:
            repeated[short(path)] = twice
    assert repeated == {}


# --- in a browser -----------------------------------------------------------------------------------------------------

# One page walks through all others at the width of a phone and writes down what it saw.
WALK = """<!doctype html><meta charset="utf-8"><title>walk</title>
<iframe id="f" style="width:390px;height:844px;border:0"></iframe><pre id="out"></pre>
<script>
const pages = %s, frame = document.getElementById("f"), seen = [];
function next() {
  if (!pages.length) { document.getElementById("out").textContent = JSON.stringify(seen); return; }
  const page = pages.shift();
  frame.onload = () => setTimeout(() => {
    const d = frame.contentDocument, w = frame.contentWindow;
    const names = w.performance.getEntriesByType("resource").map(e => e.name);
    const loads = names.filter(n => !/^(file|data|blob):/.test(n));
    const wide = [...d.querySelectorAll("main *")].filter(e => {
      const r = e.getBoundingClientRect(); if (!r.width || r.right <= 391) return false;
      for (let p = e.parentElement; p; p = p.parentElement) {
        const o = w.getComputedStyle(p).overflowX;
        if (o !== "visible" && p !== d.body && p !== d.documentElement) return false;
      } return true; }).slice(0, 3).map(e => e.tagName + "." + e.className);
    seen.push({page, scroll: d.documentElement.scrollWidth, loads, wide,
      math: d.querySelectorAll(".math").length, drawn: d.querySelectorAll("mjx-container").length,
      failed: d.querySelectorAll("mjx-merror").length,
      blank: [...d.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)});
    next();
  }, 350);
  frame.src = page;
}
next();
</script>"""
QUIET = re.compile(r"\[togglebutton\]|\[PST\]|walk\.html")


def chromium(*arguments: str, profile: Path, limit: int) -> subprocess.CompletedProcess[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine: install it to have the pages looked at")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr "
        "--allow-file-access-from-files --host-resolver-rules=MAP*~NOTFOUND"
    )
    return subprocess.run(
        [program, *flags.split(), f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_has_no_complaint(pages, tmp_path, dark):
    walk = tmp_path / "walk.html"
    chosen = [path for path in pages if path.name not in ("index.html", "genindex.html", "py-modindex.html")]
    if dark:
        # The same files; a sample is enough to see the other style sheet.
        chosen = chosen[::6]
    walk.write_text(WALK % json.dumps([path.as_uri() for path in chosen]), encoding="utf-8")
    run = chromium(
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--window-size=500,1000",
        "--virtual-time-budget=600000",
        "--dump-dom",
        walk.as_uri(),
        profile=tmp_path / "profile",
        limit=170,
    )
    match = re.search(r'<pre id="out">(.*?)</pre>', run.stdout, re.DOTALL)
    assert match, f"the walk did not start: {run.stderr[-500:]}"
    assert match.group(1), "the walk did not finish"
    seen = json.loads(html.unescape(match.group(1)))
    assert len(seen) == len(chosen)
    wide = {page["page"].rpartition("/")[2]: page["wide"] for page in seen if page["scroll"] > 391}
    assert wide == {}, "pages that scroll sideways at 390 px, and what sticks out"
    for page in seen:
        assert page["loads"] == [], f"{page['page']} asked the network for {page['loads']}"
        assert page["failed"] == 0, f"{page['page']}: {page['failed']} formulas that MathJax cannot read"
        assert page["drawn"] >= page["math"], f"{page['page']}: {page['drawn']} of {page['math']} formulas drawn"
        assert page["blank"] == [], f"{page['page']}: images that do not load: {page['blank']}"
    complaints = [line for line in run.stderr.splitlines() if "CONSOLE" in line and not QUIET.search(line)]
    assert complaints == []
