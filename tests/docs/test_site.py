"""The site builds in strict mode, has valid links, loads nothing from outside, and its command reference is current."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Attributes that make the browser fetch a resource, in contrast to links that a user follows.
_LOADS = re.compile(r'<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\s(?:src|data|srcset)="([^"]+)"')
_STYLES = re.compile(r'<link\b(?=[^>]*rel="(?:stylesheet|preload|preconnect|icon|prefetch)")[^>]*href="([^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(the built site, mkdocs' output)."""
    if not importlib.util.find_spec("mkdocs") or not importlib.util.find_spec("material"):
        pytest.skip("mkdocs-material is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)], capture_output=True, text=True,
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_matches_the_parsers():
    assert (DOCS / "commands.md").read_text() == script("commands").page(), "stale: run python docs/commands.py"


def test_the_chart_shows_the_recorded_figures():
    chart = script("chart")
    assert chart.IMAGE.read_text() == chart.image(), "stale: run python docs/chart.py"


def test_the_reference_lists_every_command_and_option():
    from edgeprune_device import cli

    text = (DOCS / "commands.md").read_text()
    for name, point in cli.commands().items():
        parser = cli.Parser(prog=name, add_help=False)
        point.load().configure(parser)
        section = re.search(rf"^### edgeprune {name}$(.*?)(?=^##|\Z)", text, re.M | re.S)[1]
        for option in parser._option_string_actions:
            assert f"`{option}" in section, f"{name} {option}"


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert named == {path.name for path in DOCS.glob("*.md")}


@pytest.mark.parametrize("page", ["README.md", "device/README.md", "CONTRIBUTING.md"])
def test_links_of_pages_are_valid_on_github(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        parts = urlsplit(link)
        if parts.scheme or not parts.path:
            continue
        target = folder / parts.path
        assert target.exists(), f"{page}: {link}"
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{page}: {link}"


def anchors(path):
    """The anchors that GitHub and mkdocs derive from headings, and explicit ones."""
    names = set()
    for title, named in re.findall(r"^#+ (.+?)(?: \{ #([\w-]+) \})?$", path.read_text(), re.M):
        names |= {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-"), named}
    return names


def test_the_site_builds_strictly_with_valid_links_and_anchors(site):
    pages = {path: path.read_text() for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) == len(list(DOCS.glob("*.md")))
    ids = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in pages.items()}
    for path, text in pages.items():
        for link in re.findall(r'<a\b[^>]*href="([^"]+)"', text):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in ids:
                assert unquote(parts.fragment) in ids[target], f"{path.name}: {link}"


def test_the_site_loads_nothing_from_outside(site):
    for path in site.rglob("*.html"):
        text = path.read_text()
        for what in [*_LOADS.findall(text), *_STYLES.findall(text)]:
            assert not urlsplit(what).netloc, f"{path.name} loads {what}"
    for path in site.rglob("*.css"):
        for what in re.findall(r"url\(([^)]+)\)|@import\s+[\"']([^\"']+)", path.read_text()):
            assert not re.match(r"[\"']?(https?:)?//", what[0] or what[1]), f"{path.name} loads {what}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def browser():
    """A real Chromium; the tests are skipped without playwright and chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield started
        started.close()


def search(browser, here):
    """Search the site at `here` for "rollback": (addresses of the hits, all requests, errors on the console)."""
    from playwright.sync_api import TimeoutError

    page, asked, errors = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(here + "index.html")
    # Material's search sometimes misses the message that its index is ready; the next page receives it.
    for _ in range(6):
        page.goto(here + "deploying.html")
        page.fill("input[name=query]", "rollback")
        with contextlib.suppress(TimeoutError):
            page.wait_for_selector(".md-search-result__link", state="attached", timeout=5_000)
            break
    hits = [link.get_attribute("href") for link in page.query_selector_all(".md-search-result__link")]
    return hits, asked, errors


@pytest.mark.needs("chromium")
def test_a_browser_loads_nothing_from_outside_and_the_search_works(site, browser):
    """A script's requests are visible only while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/"
    hits, asked, errors = search(browser, here)
    server.shutdown()
    assert any("deploying.html" in hit for hit in hits), "the search finds nothing"
    assert [url for url in asked if not url.startswith((here, "data:", f"blob:{here}"))] == []
    assert errors == []


@pytest.mark.needs("chromium")
def test_the_search_works_on_pages_from_a_disk(site, browser):
    """A browser starts no Worker on file://; docs/javascripts/iframe-worker.js replaces it."""
    here = f"{site.as_uri()}/"
    hits, asked, errors = search(browser, here)
    assert any(hit.startswith(f"{here}deploying.html") for hit in hits), "the search finds nothing"
    assert [url for url in asked if not url.startswith((here, "data:", "about:"))] == []
    assert errors == []
