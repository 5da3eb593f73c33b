"""Documentation that is true: every Python block runs and prints what it says, every named place exists."""

import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from amuse.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", re.DOTALL)
BLOCKS = [
    pytest.param(code, output, id=f"{page.name}-{index}")
    for page in PAGES
    for index, (code, output) in enumerate(BLOCK.findall(page.read_text()))
]

SHELL = re.compile(r"```bash\n(.*?)```", re.DOTALL)
SHELL_BLOCKS = [
    pytest.param(block, id=f"{page.name}-{index}")
    for page in PAGES
    for index, block in enumerate(SHELL.findall(page.read_text()))
]


@pytest.mark.parametrize(("code", "output"), BLOCKS)
def test_code_blocks_run_and_print_what_they_say(code, output, tmp_path):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "documentation", "exec"), {"RUN_FOLDER": tmp_path / "run"})
    if output:
        assert printed.getvalue().strip() == output.strip()


@pytest.mark.parametrize("block", SHELL_BLOCKS)
def test_shell_blocks_name_commands_options_modules_and_targets_that_exist(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("[", " ").replace("]", " "), comments=True)
        for position, word in enumerate(words):
            rest = words[position + 1 :]
            if word == "amuse":
                check_command(typer.main.get_command(app), rest)
            elif word == "-m" and rest[0] == "amuse.cli":
                check_command(typer.main.get_command(app), rest[1:])
            elif word == "-m":
                assert importlib.util.find_spec(rest[0]), f"no module {rest[0]}"
            elif word == "make" and position == 0:
                assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), rest[0]


def check_command(command, words):
    """The command and each of its long options are known to the command line."""
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"amuse {words[0]}: no such command"
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{command.name}: no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_places_exist(page):
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text()):
        assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_one_version():
    from amuse_kernels import __version__

    for file in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        assert __version__ in (ROOT / file).read_text(), file


def test_the_api_page_is_up_to_date():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    assert made["TARGET"].read_text() == made["render"](), "run: python docs/make_api.py"
