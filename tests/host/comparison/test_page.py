"""page: its figures, its document, and its behaviour in a real browser."""

import copy
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprune.comparison import page
from edgeprune.comparison.comparison import Comparison
from edgeprune.comparison.page import figures, html, layers, summary, view

from .. import page_comparisons as made

KINDS = ("build", "compare", "bare", "reports", "hostile")


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return {
        "build": made.build(folder), "compare": made.compare(folder), "bare": made.bare(), "reports": made.reports(),
        "hostile": made.hostile(folder),
    }  # fmt: skip


@pytest.fixture(scope="module")
def pages(comparisons, tmp_path_factory):
    """kind -> the file of its page."""
    folder = tmp_path_factory.mktemp("pages")
    for kind in KINDS:
        (folder / f"{kind}.html").write_text(page.render(facts(comparisons[kind])), "utf-8")
    return {kind: folder / f"{kind}.html" for kind in KINDS}


def facts(comparison: dict) -> Comparison:
    """The comparison that a JSON holds."""
    return Comparison.from_json(copy.deepcopy(comparison))


class Read(HTMLParser):
    """Every element with its text; asserts that the elements are nested correctly."""

    VOID = frozenset({"meta", "link", "input", "br", "hr", "col"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.rows = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            element["region"] = next((e.get("aria-label") for e in self.open if e.get("role") == "region"), None)
            self.rows[-1].append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def table(self, label):
        """The rows of the table in the region of that name, by their first cell."""
        rows = [row for row in self.rows if row and row[0]["region"] == f"{label} (table)"]
        return {" ".join(row[0]["text"].split()): texts(row) for row in rows}

    def of(self, **wanted):
        return [e for e in self.elements if all(e.get(k.rstrip("_")) == v for k, v in wanted.items())]


def texts(elements):
    return [" ".join(e["text"].split()) for e in elements]


# -- figures ----------------------------------------------------------------------------------------------------------
def test_summary_states_every_figure_before_and_after(comparisons):
    read = Read(page.render(facts(comparisons["build"])))
    names = texts(e for e in read.elements if e["tag"] == "dt")[:8]
    after = texts(e for e in read.elements if (e.get("class") or "").split()[:1] == ["after"])
    before, change = texts(read.of(class_="before")), texts(read.of(class_="changed"))
    assert list(zip(names, before, after, change)) == [
        ("Model size", "before 6.52 MB", "2.31 MB", "65 % smaller"),
        ("MACs", "before 1.02 G", "765 M", "25 % fewer"),
        ("Parameters", "before 3.01 M", "2.04 M", "32 % fewer"),
        ("Latency, p50", "before 9.84 ms", "4.05 ms", "2.43× as fast"),
        ("FPS, end to end", "before 77.3 FPS", "140 FPS", "81 % more"),
        ("mAP50-95", "before 0.261", "0.257", "−0.004"),
        ("mAP50-95, small objects", "before 0.124", "0.120", "−0.004"),
        ("Energy per frame", "before not measured", "not measured", "–"),
    ]


def test_worst_class_is_named_at_the_top(comparisons):
    comparison = copy.deepcopy(comparisons["build"])
    for item in comparison["items"]:
        classes = (("a", 0.3), ("b", 0.2))
        item["per_class"] = [{"name": name, "boxes": 90, "map50": 0.5, "map50_95": ap} for name, ap in classes]
    assert "worst class" not in page.render(facts(comparison))
    for item in comparison["items"][1:]:
        item["per_class"][1]["map50_95"] = 0.129
    (top,) = Read(page.render(facts(comparison))).of(class_="verdict good")
    assert top["text"].endswith("mAP50-95 −0.004, worst class b −0.071.")
    assert "worst class b, mAP50-95 0.200 -> 0.129." in str(Comparison.from_json(comparison))


def test_gates_show_limit_and_figure_and_a_failed_one_is_highlighted(comparisons):
    comparison = copy.deepcopy(comparisons["build"])
    assert "4 gates passed, 1 not judged" in page.render(facts(comparison))
    comparison["gates"][3].update(passed=False, found="0.259 -> 0.246 (-0.0127)")
    read = Read(page.render(facts(comparison)))
    assert "1 of 5 gates failed: INT8 keeps mAP50-95" in " ".join(texts(read.of(class_="verdict bad")))
    failed = read.table("Gates")["✕ failed"]
    assert failed == ["✕ failed", "INT8 keeps mAP50-95", "loses at most 0.003", "0.259 -> 0.246 (-0.0127)"]
    assert len(read.of(tag="tr", class_="failed")) == 1


def test_page_names_the_measured_head_of_two(comparisons):
    comparison, sentence = copy.deepcopy(comparisons["build"]), "mAP measured with the one-to-one head without NMS"
    assert sentence not in page.render(facts(comparison))
    for item in comparison["items"]:
        item["head"] = "one-to-one"
    assert sentence in page.render(facts(comparison))


def test_unmeasured_figures_are_marked(comparisons):
    text = page.render(facts(comparisons["bare"]))
    read = Read(text)
    assert texts(read.of(class_="after missing")) == ["not measured"] * 7
    content = " ".join(texts(read.of(tag="main")))
    for words in (
        "there is nothing to plot",
        "The layers of best.pt are unknown",
        "No item has a latency by stage",
        "No item has latency samples",
        "AP by class was not measured",
        "No images:",
        "No command was recorded",
        "None: no accuracy was measured on this machine",
    ):
        assert words in content  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_figure_is_nan_or_none(comparisons, kind):
    shown = " ".join(texts(Read(page.render(facts(comparisons[kind]))).of(tag="main")))
    assert not re.search(r"\b(nan|inf|null|undefined)\b", shown, re.IGNORECASE)
    assert not re.search(r"\bNone\b(?!: no accuracy)", shown)


def test_every_item_has_a_row_and_the_first_has_no_change(comparisons):
    read = Read(page.render(facts(comparisons["build"])))
    rows = read.table("All items")
    assert rows["original"][1:9] == ["6.52 MB", "3.01 M", "1.02 G", "9.84 ms", "–", "77.3", "0.261", "0.124"]
    assert rows["int8"][1:5] == ["2.31 MB−65 %", "2.04 M°−32 %", "765 M°−25 %", "4.05 ms"]
    assert rows["int8"][5:9] == ["2.43×", "140", "0.257−0.004", "0.120−0.004"]
    assert rows["pruned"][4:7] == ["–not measured", "–", "–not measured"]
    report = next(cells for name, cells in rows.items() if name.startswith("a41f03b2c7d9"))
    assert report[0].endswith("recorded")
    assert report[5] == "–" and report[7] == "0.250", "no change against another machine and other images"


def test_any_figure_may_be_missing(comparisons):
    whole = {**comparisons["build"], "gallery": None}
    for key in set(whole["items"][0]) - {"name", "recorded"}:
        for whom in (whole["items"], whole["items"][:1], whole["items"][5:6]):
            lacking = [{**item, key: None} if item in whom else item for item in whole["items"]]
            comparison = {**whole, "items": lacking}
            assert page.fragment(facts(comparison)) and page.pareto(facts(comparison))
            assert whom is not whole["items"] or page.render(facts(comparison))
    empty = {"data": None, "more": None, "gates": [], "created": "", "reproduce": [], "title": "", "classes": []}
    for key, value in empty.items():
        assert page.render(facts({**whole, key: value}))


def test_validation_images_that_were_trained_on_are_reported_first(comparisons):
    comparison = copy.deepcopy(comparisons["build"])
    comparison["data"]["train_in_val"] = 3
    warned = "3 validation images are also training images: no mAP on this page can be trusted."
    text = page.render(facts(comparison))
    assert warned in text and text.index(warned) < text.index("Summary</h2>")
    assert "can be trusted" not in page.render(facts(comparisons["build"]))


def test_latencies_are_compared_only_on_the_same_machine_and_runtime(comparisons):
    first, *_, report = facts(comparisons["build"]).items
    assert view.speedup(first, report) is None
    other = copy.deepcopy(first)
    assert view.speedup(first, other) == 1.0
    other.latency_ms.update(p50=4.92, speedup=None)
    assert view.speedup(first, other) == pytest.approx(2.0)
    other.latency_ms["threads"] = 2
    assert view.speedup(first, other) is None


def test_latency_with_a_caveat_is_not_compared(comparisons):
    comparison = copy.deepcopy(comparisons["build"])
    comparison["gallery"]["last"] = "int8-fp16"
    seen = view.PageView(facts(comparison))
    tiles = {f.name: f for f in summary.compared(seen, seen.first, seen.items[6])}
    latency = tiles["Latency, p50, of fp32"]
    assert latency.after == 7.12 and latency.change.text == "1.38× as fast"
    assert latency.note == f"fp32, the same network, on this machine's CPU; int8-fp16: {made.GPU_FILE}"
    assert tiles["FPS, end to end, of fp32"].change.sense == "better" and "Latency, p50" not in tiles
    # Without the FP32 file, no change is stated.
    del comparison["items"][3]
    seen = view.PageView(facts(comparison))
    tiles = {f.name: f for f in summary.compared(seen, seen.first, seen.items[5])}
    assert tiles["Latency, p50"].change is None and tiles["FPS, end to end"].change is None
    assert tiles["mAP50-95"].change.text == "−0.004"
    assert '<span class="quiet">1.06×</span>' in page.render(facts(comparison))


# -- the plots ---------------------------------------------------------------------------------------------------------
def fronts(comparison):
    paths = [
        e
        for e in Read(page.pareto(facts(comparison))).elements
        if e["tag"] == "path" and e.get("stroke-opacity") == "0.45"
    ]
    return [e["d"].count(" ") // 2 + 1 for e in paths]


def test_fronts_join_only_figures_of_one_machine_without_a_caveat(comparisons):
    comparison = copy.deepcopy(comparisons["build"])
    assert len(fronts(comparison)) == 1, "the report is on another machine"
    for item in comparison["items"][1:-1]:
        item["caveat"] = "not this one"
    assert fronts(comparison) == []
    report = copy.deepcopy(comparison["items"][-1])
    report.update(name="faster", map50_95=0.2)
    report["latency_ms"]["p50"] = 3.0
    comparison["items"].append(report)
    assert len(fronts(comparison)) == 1, "two reports of one machine"
    report["machine"] = "another"
    assert fronts(comparison) == []


def test_item_without_latency_is_listed_and_not_plotted(comparisons):
    text = page.render(facts(comparisons["build"]))
    assert "<b>pruned</b>: latency not measured (mAP50-95 0.223)" in text
    assert "pruned" not in page.pareto(facts(comparisons["build"]))
    assert "there is nothing to plot" in page.pareto(facts(comparisons["bare"]))


def test_names_in_the_plot_do_not_cover_each_other(comparisons):
    read = Read(page.pareto(facts(comparisons["compare"])))
    names = {i["name"] for i in comparisons["compare"]["items"]}
    placed = [e for e in read.elements if e["tag"] == "text" and (e["text"] in names or "…" in e["text"])]
    assert len(placed) >= 10
    boxes = [(float(e["x"]), float(e["y"]), len(e["text"]) * 6) for e in placed]
    for i, (x, y, w) in enumerate(boxes):
        for u, v, z in boxes[:i]:
            assert abs(y - v) >= 12 or x + w <= u or u + z <= x


def test_tail_percentile_needs_enough_samples(comparisons):
    read = Read(page.render(facts(comparisons["build"])))
    rows = read.table(f"Latency distribution, this machine, {made.RUNTIME}, 1 thread")
    assert rows["int8"][1] == "40" and rows["int8"][4:7] == [f"needs {n} samples" for n in (64, 130, 662)]
    board = read.table("Latency distribution, NVIDIA Jetson Orin Nano, TensorRT 10.3.0")["a41f03b2c7d9:int8 *"]
    assert board[1] == "1,500" and all(cell.endswith("ms") for cell in board[2:])


def test_channels_are_drawn_once_per_network_with_every_layer(comparisons):
    comparison = comparisons["build"]
    text = layers.section(view.PageView(facts(comparison)))
    assert "<b>pruned, tuned, fp32, int8, int8-fp16</b> against <b>original</b>" in text
    before, after = comparison["items"][0]["layers"], comparison["items"][1]["layers"]
    total = f"{sum(after.values()):,} of {sum(before.values()):,} output channels kept"
    assert total in text
    drawn = re.findall(r"<title>([\w.]+): (\d+) → (\d+) ", text)
    assert drawn[: len(before)] == [(name, str(before[name]), str(after[name])) for name in before]
    assert len(drawn) == 2 * len(before), "wide and narrow"


def test_networks_without_a_layer_in_common_are_not_compared(comparisons):
    comparison = copy.deepcopy(comparisons["build"])
    for item in comparison["items"][1:]:
        item["layers"] = item["layers"] and {f"other.{k}": v for k, v in item["layers"].items()}
    assert "shares no layer" in page.render(facts(comparison))


def test_classes_with_few_boxes_are_marked(comparisons):
    read = Read(page.render(facts(comparisons["build"])))
    rows = read.table("AP50-95 by class")
    assert rows["bus"][1] == "22 †" and rows["person"][1] == "611"
    truth = comparisons["build"]["items"]
    was, now = (next(c for c in truth[i]["per_class"] if c["name"] == "car")["map50_95"] for i in (0, 5))
    assert rows["car"][2] == f"{was:.3f}" and rows["car"][5] == f"{now:.3f}{figures.signed(now - was)}"


def test_stages_show_the_measured_latency_and_its_sum(comparisons):
    text = page.render(facts(comparisons["build"]))
    assert "int8: decode 1.61 ms, pre 0.920 ms, infer 4.05 ms, post 0.550 ms" in text
    assert Read(text).table("Latency by stage")["original"] == [
        "original",
        "1.61 ms",
        "0.920 ms",
        "9.84 ms",
        "0.550 ms",
        "12.9 ms",
        "77.3 FPS",
        "this machine",
    ]


# -- the gallery -------------------------------------------------------------------------------------------------------


def test_losses_are_marked_numbered_and_listed(tmp_path):
    comparison = made.build(tmp_path, 1, 160)
    shot = comparison["gallery"]["pictures"][0]
    shot.update(truth=[[2, 10, 10, 40, 40], [0, 60, 60, 90, 90]], lost=1, gained=1, width=160, height=160, found={
        "original": [[2, 0.83, 11, 10, 40, 41]],
        "int8": [[0, 0.52, 60, 61, 90, 90], [4, 0.4, 100, 100, 120, 120], [4, 0.1, 0, 0, 9, 9]],
    })  # fmt: skip
    text = page.render(facts(comparison))
    assert '1 lost</b>, <b class="good">1 gained</b>' in text
    assert "Lost by int8</b></p><ol><li>car<span>, 30 × 30 px; original 0.83" in text
    assert "Gained by int8</b></p><ul><li>person<span>, 30 × 30 px; int8 0.52" in text
    read = Read(text)
    (panel,) = [
        e
        for e in read.elements
        if (e.get("aria-label") or "").endswith("int8: 1 found, 1 lost, 1 gained, 1 not labelled")
    ]
    assert panel["role"] == "img"
    for kind in ("lost", "gained", "alarm"):
        assert len(read.of(tag="g", class_=f"b {kind}")) == 2, "in the legend and in the image"


def test_many_panels_show_the_steps_and_the_others_on_request(comparisons):
    def checked(comparison):
        boxes = [e for e in Read(page.render(facts(comparison))).elements if (e.get("id") or "").startswith("show-")]
        return ["checked" in e for e in boxes]

    comparison = copy.deepcopy(comparisons["build"])
    assert checked(comparison) == [True] * 5
    for shot in comparison["gallery"]["pictures"]:
        shot["found"] |= {name: [] for name in ("fp32", "fp16", "int8-fp16")}
    comparison["gallery"]["last"] = "int8-fp16"
    shown = dict(
        zip(("truth", "original", "pruned", "tuned", "fp32", "fp16", "int8", "int8-fp16"), checked(comparison))
    )
    assert [name for name, on in shown.items() if on] == ["truth", "original", "pruned", "tuned", "int8-fp16"]


# -- the document ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_document_is_consistent_and_loads_nothing(pages, kind):
    text = pages[kind].read_text("utf-8")
    read = Read(text)
    ids = [e["id"] for e in read.elements if "id" in e]
    assert len(ids) == len(set(ids))
    for element in read.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set((element.get(name) or "").split()) <= set(ids), element
        for name in ("href", "src", "xlink:href", "action", "poster", "data"):
            target = element.get(name)
            if target is not None and not target.startswith("data:"):
                assert target[0] == "#" and target[1:] in ids, element
        assert not [name for name in element if name.startswith("on")], element
    assert len(read.of(tag="script")) == 1
    assert {e["tag"] for e in read.elements}.isdisjoint({"img", "iframe", "object", "embed", "base", "form"})
    assert not re.search(r"url\(|@import", text.split("<style>")[1].split("</style>")[0])
    assert len(text.encode()) <= 3_000_000
    headings = [int(e["tag"][1]) for e in read.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))


def test_hostile_name_is_escaped(pages):
    text = pages["hostile"].read_text("utf-8")
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in text
    assert "<img" not in text and "\u202e" not in text
    assert html.tag("b", "<i>", title='"x"') == '<b title="&quot;x&quot;">&lt;i&gt;</b>'


def test_notebook_fragment_shows_before_and_after(comparisons):
    table = page.fragment(facts(comparisons["build"]))
    read = Read(table)
    rows = {row[0]["text"]: texts(row)[1:] for row in read.rows}
    assert rows["original"] == ["6.52 MB", "3.01 M", "1.02 G", "9.84 ms", "0.261", "0.124"]
    assert rows["int8"][:3] == ["6.52 → 2.31 MB−65 %", "3.01 → 2.04 M−32 %", "1.02 G → 765 M−25 %"]
    assert rows["int8"][3:] == ["9.84 → 4.05 ms2.43×", "0.261 → 0.257−0.004", "0.124 → 0.120−0.004"]
    assert rows["a41f03b2c7d9:int8 * (recorded)"][3:] == ["6.21 ms", "0.250", "0.118"]
    assert "4 of 5 gates passed" in table
    assert not re.search(r"[^-]color:(?!inherit)|background:(?!transparent)", table), "only the notebook's own colours"
    for kind in KINDS:
        shown = Read(page.fragment(facts(comparisons[kind])) + page.pareto(facts(comparisons[kind])))
        assert {e["tag"] for e in shown.elements}.isdisjoint({"script", "style", "link", "img"})
    assert page.pareto(facts(comparisons["build"])).startswith("<svg ")


def test_empty_comparison_renders():
    assert "Nothing was compared" in page.render(facts({**made.bare(), "items": []}))
    assert "Nothing was compared" in page.fragment(facts({**made.bare(), "items": []}))


# -- in a browser ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    flags = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
             "disable-component-update", "disable-sync")  # fmt: skip
    with playwright.sync_playwright() as driver:
        program = shutil.which("chromium")
        chromium = driver.chromium.launch(executable_path=program, args=[f"--{flag}" for flag in flags])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, pages):
    """open(kind, width, ...) -> a loaded page; asserts at the end that the console is empty and nothing was loaded."""
    contexts, heard, asked = [], [], []

    def open_(kind, width=1280, **more):
        context = browser.new_context(viewport={"width": width, "height": 900}, **more)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(pages[kind].as_uri())
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert heard == []
    assert [url for url in asked if not url.startswith(("data:", "file:///"))] == []
    assert {url for url in asked if url.startswith("file:")} <= {path.as_uri() for path in pages.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_page_never_scrolls_sideways_on_a_phone(opened, kind):
    tab = opened(kind, 360)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    tab.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert tab.locator(".narrow svg").first.is_visible() or kind == "bare"
    assert not tab.locator(".wide svg").first.is_visible()


def test_page_works_without_a_script(opened):
    tab = opened("build", java_script_enabled=False)
    for heading in tab.locator("main h2").all():
        assert heading.is_visible()
    assert tab.locator("button").count() == 0
    panels = tab.locator(".panel.p3")
    assert panels.count() == 3 and panels.first.is_visible()
    tab.locator("#show-3").uncheck()
    assert not panels.first.is_visible() and tab.locator(".panel.p4").first.is_visible()
    ground = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"
    tab.locator("label[for=theme-dark]").click()
    assert tab.evaluate(ground) == "rgb(18, 22, 28)"
    tab.get_by_text("Every layer").click()
    assert tab.locator(".layer").first.is_visible()


def test_gallery_shows_its_images(opened):
    """Pixels come through <use>; every other test would also pass with grey panels."""
    tab = opened("build")
    shot = tab.locator(".panel.p2 svg").first
    seen = np.asarray(Image.open(io.BytesIO(shot.screenshot())).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(seen, axis=0)) > 100


def test_boxes_are_thin_on_a_small_image(browser, tmp_path):
    """A stroke that scaled with a 32 px image would cover the object."""
    comparison = made.build(tmp_path, 1, 160)
    shot = comparison["gallery"]["pictures"][0]
    Image.new("RGB", (32, 32), (90, 160, 90)).save(shot["path"])
    shot.update(width=32, height=32, truth=[[0, 8, 8, 24, 24]], found={"original": [], "int8": []})
    (tmp_path / "small.html").write_text(page.render(facts(comparison)), "utf-8")
    tab = browser.new_page()
    tab.goto((tmp_path / "small.html").as_uri())
    seen = np.asarray(Image.open(io.BytesIO(tab.locator(".panel.p0 svg").first.screenshot())).convert("RGB"), dtype=int)
    tab.close()
    across = np.abs(seen[len(seen) // 2] - (90, 160, 90)).max(1) > 30
    assert 4 <= across.sum() <= 14, "two strokes of about 4 px"


def test_theme_is_remembered_and_commands_can_be_copied(opened, comparisons):
    tab = opened("build", permissions=["clipboard-read", "clipboard-write"])
    tab.locator("label[for=theme-dark]").click()
    tab.reload()
    assert tab.locator("#theme-dark").is_checked()
    tab.get_by_role("button").first.click()
    tab.get_by_text("Copied").wait_for(timeout=5000)
    assert tab.evaluate("navigator.clipboard.readText()") == comparisons["build"]["reproduce"][0]


_FOCUSABLE = """() => {
  const radios = new Set(), shown = e => e.checkVisibility({visibilityProperty: true});
  return [...document.querySelectorAll('a[href],button,input,summary,[tabindex="0"]')].filter(shown).filter(e => {
    if (e.type !== 'radio') return true;
    if (radios.has(e.name)) return false;
    return radios.add(e.name);
  }).length;
}"""
_FOCUSED = """() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  e.dataset.visited = (+e.dataset.visited || 0) + 1;
  const ring = getComputedStyle(e.type === 'radio' ? e.nextElementSibling : e);
  const box = e.getBoundingClientRect();
  return {visited: +e.dataset.visited, ring: ring.outlineStyle !== 'none' && parseFloat(ring.outlineWidth) >= 2,
          inside: box.bottom > 0 && box.top < innerHeight, what: e.outerHTML.slice(0, 90)};
}"""


def test_tab_key_reaches_every_control_and_shows_the_focus(opened):
    tab = opened("build", reduced_motion="reduce")
    reached = 0
    for _ in range(200):
        tab.keyboard.press("Tab")
        focus = tab.evaluate(_FOCUSED)
        if focus is None or focus["visited"] > 1:
            break
        assert focus["ring"], focus
        assert focus["inside"], focus
        reached += 1
        if reached == 1:
            assert "Skip to the summary" in focus["what"]
    assert reached == tab.evaluate(_FOCUSABLE) > 30


@pytest.fixture(scope="module")
def axe():
    """axe-core's source, from npm's registry or the cache of an earlier run."""
    folder = Path.home() / ".cache" / "edgeprune-tests" / "axe"
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not source.is_file():
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"npm's registry does not give axe-core: {done.stderr.strip()[-200:]}")
    return source.read_text("utf-8")


@pytest.mark.needs("npm")  # npm fetches axe-core
@pytest.mark.parametrize(
    ("kind", "scheme", "width"),
    [*(("build", scheme, width) for scheme in ("light", "dark") for width in (1280, 360)), ("bare", "light", 360)],
)
def test_axe_finds_no_violation(opened, axe, kind, scheme, width):
    tab = opened(kind, width, color_scheme=scheme)
    tab.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    tab.evaluate(axe)
    violations = tab.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    short = [(rule["id"], rule["help"], [n["html"][:120] for n in rule["nodes"]][:5]) for rule in violations]
    assert short == [], json.dumps(short, indent=1)


def test_printed_page_has_every_section_complete_and_in_colour(opened, tmp_path):
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed: pip install pypdfium2")
    tab = opened("build", color_scheme="dark", java_script_enabled=False)
    headings = tab.locator("main h2").all_text_contents()
    tab.pdf(path=tmp_path / "page.pdf", format="A4", print_background=False, prefer_css_page_size=True)
    paper = pdfium.PdfDocument(tmp_path / "page.pdf")
    text = " ".join(" ".join(sheet.get_textpage().get_text_range().split()) for sheet in paper)
    for words in (*headings, "model.22", "needs 662 samples", "scene-03000002.jpg", "Inference FPS", "sha256"):
        assert words in text, f"{words}: not on paper"  # also the parts that are folded on a screen
    assert "Skip to the summary" not in text
    pixels = [np.asarray(sheet.render(scale=0.5).to_pil().convert("RGB"), dtype=int) for sheet in paper]
    assert all(sheet[0, 0].min() > 250 for sheet in pixels), "paper is white in the dark theme, too"
    blue = [((sheet[..., 2] - sheet[..., 0]) > 60).sum() for sheet in pixels]
    assert sum(blue) > 2000, "bars are printed in colour"
    right = [sheet[:, -8:].min() for sheet in pixels]
    assert min(right) > 250, "nothing is cut off at the right edge"
