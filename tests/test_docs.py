"""Documentation that is true: every Python block runs and prints what it says, every named place exists."""

import contextlib
import importlib
import importlib.util
import inspect
import io
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config
from tests.processes import run_module

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
def test_code_blocks_run_and_print_what_they_say(code, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what they write
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "documentation", "exec"), {})
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
            elif word == "-m" and rest[0] == "amuse.cli.main":
                check_command(typer.main.get_command(app), rest[1:])
            elif word == "-m":
                assert importlib.util.find_spec(rest[0]), f"no module {rest[0]}"
            elif word == "make" and position == 0:
                assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), rest[0]


SMALL = ["data.num_dialogues=20", "train.epochs=1"]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "quickstart.md"], ids=lambda page: page.name)
def test_commands_on_the_demos_run_work_in_the_order_of_the_page(page, tmp_path, monkeypatch):
    """All that need neither recordings nor a server; training is smaller than it says."""
    monkeypatch.chdir(tmp_path)
    Path("amuse").symlink_to(ROOT / "amuse")
    lines = [line for block in SHELL.findall(page.read_text()) for line in block.splitlines() if "runs/demo" in line]
    done = []
    for line in lines:
        _, *words = shlex.split(line, comments=True)
        small = [word for setting in SMALL for word in ("--set", setting)] if words[0] == "train" else []
        result = CliRunner().invoke(app, [*words, *small], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}: {result.output}"
        done.append(words[0])
    assert done[:3] == ["train", "eval", "explain"]
    assert Path("report.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_are_configurations(page, tmp_path):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        (tmp_path / "config.yaml").write_text(block)
        read = Config.load(tmp_path / "config.yaml").data
        assert {name: getattr(read, name) for name in yaml.safe_load(block)["data"]} == yaml.safe_load(block)["data"]


def test_no_block_of_code_is_left_out():
    kinds = {kind for page in PAGES for kind in re.findall(r"^```(.+)$", page.read_text(), re.MULTILINE)}
    assert kinds == {"python", "bash", "yaml", "text"}


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

    for file in ("CITATION.cff", "CHANGELOG.md"):
        assert __version__ in (ROOT / file).read_text(), file


API_NAMES = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", API_NAMES)
def test_names_of_the_api_page_exist_and_are_documented(name):
    module, _, attribute = name.rpartition(".")
    assert inspect.getdoc(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("module", ["amuse", "amuse_kernels", "amuse_kernels.nn"])
def test_the_api_page_has_every_public_name(module):
    public = set(getattr(importlib.import_module(module), "__all__", ())) - {"nn"}
    assert public <= {name.rpartition(".")[2] for name in API_NAMES}


def test_the_site_builds_without_warnings_and_shows_signatures_and_arguments(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra: pip install amuse-kernels[docs]")
    run_module("mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path))
    page = re.sub(r"<[^>]+>", "", (tmp_path / "api.html").read_text())
    assert "query: Tensor" in page
    assert "also return the natural log-sum-exp of the scores" in page
    assert (tmp_path / "MODEL_CARD.html").is_file()


def test_the_drawings_are_those_of_the_script():
    made = runpy.run_path(str(ROOT / "docs" / "drawings.py"))
    for name in ("model", "packages"):
        assert (made["FOLDER"] / f"{name}.svg").read_text() == made[name]().render(), "run: python docs/drawings.py"
