"""Every command block of README and docs/ runs, page by page, in a fresh folder (world.py provides the files that it
names). Blocks that cannot run here are marked in the page, with the reason, and only parsed, as are the blocks of
device/README."""

import functools
import importlib
import re
import subprocess
import sys

import pytest
from edgeprune_device import cli
from edgeprune_device.errors import InputError

from . import blocks
from .drone import Drone, missing
from .world import ROOT, World

PAGES = ["README.md", "device/README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
BLOCKS = {page: blocks.read(ROOT / page, page) for page in PAGES}
#: .ci/run runs README's fence "sh tests".
ELSEWHERE = ("tests",)
LANGUAGES = ("sh", "python", "json", "yaml", "text", "cpp")
#: Options of other programs in the running text.
FOREIGN = {"--loadEngine", "--system-site-packages", "--strict"}
#: Options of trtexec in docs/coming-from.md.
FOREIGN |= {
    "--onnx", "--saveEngine", "--fp16", "--int8", "--stronglyTyped", "--calib", "--memPoolSize", "--timingCacheFile",
    "--minShapes", "--optShapes", "--maxShapes", "--useDLACore", "--loadInputs", "--warmUp", "--duration",
    "--iterations", "--avgRuns", "--useCudaGraph", "--noDataTransfers", "--infStreams", "--percentile",
    "--exportTimes", "--dumpProfile", "--exportProfile",
}  # fmt: skip


def runs(block, slow):
    return block.language in ("sh", "python") and block.mark != "parse" and (slow or block.mark != "slow") and (
        block.info not in ELSEWHERE
    )  # fmt: skip


def needs_drone(blocks):
    text = "\n".join(block.text for block in blocks)
    return bool(re.search(r"@drone\b", text)) or any(block.mark == "drone" for block in blocks)


def pages(slow):
    """The pages with such blocks, marked with the programs that their blocks call."""
    for page in PAGES:
        blocks = [block for block in BLOCKS[page] if runs(block, slow) and (block.mark == "slow") >= slow]
        tools = ["ssh", "sshd"] if needs_drone(blocks) else []
        if any(re.search(r"\bdrone\.img\b", block.text) for block in blocks):
            tools += ["sfdisk", "mke2fs", "debugfs"]
        if blocks:
            yield pytest.param(page, marks=[pytest.mark.needs(*tools)] if tools else [])


@pytest.fixture(scope="session")
def drone(tmp_path_factory):
    """The drone, or the reason why it cannot run."""
    why = missing() or _registry(tmp_path_factory.mktemp("asked"))
    if why:
        yield why
        return
    made = Drone(tmp_path_factory.mktemp("drone") / "board")
    yield made
    made.close()


def _registry(folder):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "pycparser", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"the package registry does not answer: {done.stderr.strip()[-200:]}" if done.returncode else None


@pytest.fixture(scope="session")
def world(tmp_path_factory, drone):
    made = World(tmp_path_factory.mktemp("docs") / "world", drone if isinstance(drone, Drone) else None)
    yield made
    made.close()


def run_page(page, world, drone, slow):
    blocks = [b for b in BLOCKS[page] if b.title or runs(b, slow)]
    if needs_drone(blocks):
        if isinstance(drone, str):
            pytest.skip(drone)
        world.set_up()
    made = world.page(f"{page}-{slow}")
    for block in blocks:
        if block.language == "sh" or block.title:
            made.run(block)
    python = [b for b in BLOCKS[page] if b.language == "python" and not b.title]
    if python:
        made.run_python(python)


@pytest.mark.parametrize("page", list(pages(slow=False)))
def test_command_blocks_run(page, world, drone):
    run_page(page, world, drone, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", list(pages(slow=True)))
def test_slow_command_blocks_run(page, world, drone):
    run_page(page, world, drone, slow=True)


@functools.cache
def parser(name):
    known = cli.commands()
    assert name in known, f"unknown command {name}"
    made = cli.Parser(prog=f"edgeprune {name}")
    importlib.import_module(known[name].value).configure(made)
    return made


@pytest.mark.parametrize("page", PAGES)
def test_the_parser_accepts_every_command_line(page):
    for block in BLOCKS[page]:
        if block.language not in ("sh", ""):  # device/README's fences have no language
            continue
        for words in blocks.commands(block.text):
            if words and not words[0].startswith("-"):
                try:
                    parser(words[0]).parse_all(words[1:])
                except InputError as error:
                    pytest.fail(f"{block}: edgeprune {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_in_the_running_text_exist(page):
    known = {option for name in cli.commands() for option in parser(name)._option_string_actions} | FOREIGN
    for span in blocks.spans(ROOT / page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            assert option in known, f"{page}: `{span}`: unknown option {option}"
        name = re.match(r"edgeprune ([a-z]+)", span)
        if name:
            options = parser(name[1])._option_string_actions
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
                assert option in options, f"{page}: `{span}`: {name[1]} has no {option}"


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_has_a_language_and_every_mark_a_reason(page):
    text = (ROOT / page).read_text()
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(BLOCKS[page]), "a fence is not closed, or indented"
    for block in BLOCKS[page]:
        assert block.language in LANGUAGES or page == "device/README.md", f"{block}: ```{block.language}"
        assert block.why or block.mark in ("", "drone"), f"{block}: give a reason for the mark {block.mark}"
    marks = len(re.findall(r"^<!-- (?:slow|parse|drone)", text, re.M))
    assert marks == sum(bool(b.mark) for b in BLOCKS[page]), "a mark without a fence after it"


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_compiles(page):
    for block in BLOCKS[page]:
        if block.language == "python":
            compile(block.text, str(block), "exec")


def test_few_blocks_are_only_parsed():
    """If the number grows, more of the documentation is untested; check whether a stand-in can run it."""
    parsed = [str(b) for blocks in BLOCKS.values() for b in blocks if b.mark == "parse"]
    assert len(parsed) <= 12, parsed
