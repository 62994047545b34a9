"""The site: built strictly, its links hold, it loads nothing from outside, its command reference is the parsers'."""

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
#: Attributes by which a page makes the browser fetch something. Links that a person follows are no such.
_LOADS = re.compile(r'<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\s(?:src|data|srcset)="([^"]+)"')
_STYLES = re.compile(r'<link\b(?=[^>]*rel="(?:stylesheet|preload|preconnect|icon|prefetch)")[^>]*href="([^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; what mkdocs said while it built."""
    if not importlib.util.find_spec("mkdocs") or not importlib.util.find_spec("material"):
        pytest.skip("mkdocs-material is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)], capture_output=True, text=True,
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def reference():
    spec = importlib.util.spec_from_file_location("docs_commands", DOCS / "commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def test_the_command_reference_is_what_the_parsers_say():
    assert (DOCS / "commands.md").read_text() == reference(), "stale: run python docs/commands.py"


def test_every_command_and_option_stands_in_the_reference():
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
def test_links_of_pages_on_github_hold(page):
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
    """As GitHub and mkdocs make them of the headings, and those that a page names."""
    found = set()
    for title, named in re.findall(r"^#+ (.+?)(?: \{ #([\w-]+) \})?$", path.read_text(), re.M):
        found |= {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-"), named}
    return found


def test_the_site_builds_strictly_and_its_links_and_anchors_hold(site):
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


@pytest.mark.needs("chromium")
def test_a_browser_asks_nobody(site):
    """What a script would fetch shows only when it runs: a real Chromium, to whom no other name is known."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    asked, said = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/"
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.goto(here + "index.html")
        # Material's search sometimes misses the word that its index is there; the next page hears it.
        for _ in range(6):
            page.goto(here + "deploying.html")
            page.fill("input[name=query]", "rollback")
            with contextlib.suppress(playwright.TimeoutError):
                page.wait_for_selector(".md-search-result__link", state="attached", timeout=5_000)
                break
        else:
            pytest.fail("the search finds nothing")
        browser.close()
    server.shutdown()
    assert [url for url in asked if not url.startswith((here, "data:", f"blob:{here}"))] == []
    assert said == []
