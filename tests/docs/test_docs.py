"""Every command block of README and docs/ is run, page by page, in a fresh folder (world.py says what the names in it
mean here). What cannot run here is marked in the page, with the reason, and its command lines are parsed; so are those
of device/README."""

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
#: README's fence "sh tests" is what .ci/run runs.
ELSEWHERE = ("tests",)
LANGUAGES = ("sh", "python", "json", "yaml", "text")
#: Options in the running text that are other programs'.
FOREIGN = {"--loadEngine", "--system-site-packages", "--strict"}


def runs(block, slow):
    return block.language in ("sh", "python") and block.mark != "parse" and (slow or block.mark != "slow") and (
        block.info not in ELSEWHERE
    )  # fmt: skip


def needs_drone(found):
    text = "\n".join(block.text for block in found)
    return bool(re.search(r"@drone\b", text)) or any(block.mark == "drone" for block in found)


def pages(slow):
    """Those with such blocks, marked with the programs that their blocks call."""
    for page in PAGES:
        found = [block for block in BLOCKS[page] if runs(block, slow) and (block.mark == "slow") >= slow]
        tools = ["ssh", "sshd"] if needs_drone(found) else []
        if any(re.search(r"\bdrone\.img\b", block.text) for block in found):
            tools += ["sfdisk", "mke2fs", "debugfs"]
        if found:
            yield pytest.param(page, marks=[pytest.mark.needs(*tools)] if tools else [])


@pytest.fixture(scope="session")
def drone(tmp_path_factory):
    """The drone, or why there is none."""
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
    found = [b for b in BLOCKS[page] if b.title or runs(b, slow)]
    if needs_drone(found):
        if isinstance(drone, str):
            pytest.skip(drone)
        world.set_up()
    made = world.page(f"{page}-{slow}")
    for block in found:
        if block.language == "sh" or block.title:
            made.run(block)
    python = [b for b in BLOCKS[page] if b.language == "python" and not b.title]
    if python:
        made.run_python(python)


@pytest.mark.parametrize("page", list(pages(slow=False)))
def test_the_blocks_run(page, world, drone):
    run_page(page, world, drone, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", list(pages(slow=True)))
def test_the_slow_blocks_run_too(page, world, drone):
    run_page(page, world, drone, slow=True)


@functools.cache
def parser(name):
    found = cli.commands()
    assert name in found, f"unknown command {name}"
    made = cli.Parser(prog=f"edgeprune {name}")
    importlib.import_module(found[name].value).configure(made)
    return made


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_one_that_the_parser_takes(page):
    for block in BLOCKS[page]:
        if block.language not in ("sh", ""):  # device/README's fences say no language
            continue
        for words in blocks.commands(block.text):
            if words and not words[0].startswith("-"):
                try:
                    parser(words[0]).parse_all(words[1:])
                except InputError as error:
                    pytest.fail(f"{block}: edgeprune {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_the_running_text_names_commands_and_options_that_there_are(page):
    known = {option for name in cli.commands() for option in parser(name)._option_string_actions} | FOREIGN
    for span in blocks.spans(ROOT / page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            assert option in known, f"{page}: `{span}`: there is no {option}"
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
        assert block.why or block.mark in ("", "drone"), f"{block}: say why it is marked {block.mark}"
    marks = len(re.findall(r"^<!-- (?:slow|parse|drone)", text, re.M))
    assert marks == sum(bool(b.mark) for b in BLOCKS[page]), "a mark that no fence follows"


def test_what_is_only_parsed_is_little():
    """Where it grows, more of the documentation is unproven: see whether a stand-in can run it."""
    parsed = [str(b) for found in BLOCKS.values() for b in found if b.mark == "parse"]
    assert len(parsed) <= 12, parsed
