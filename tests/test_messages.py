"""Errors are sentences for people: choices as plain lists, what helps next, and nothing that contradicts them."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import amuse
import amuse_kernels
from amuse.cli.main import app
from amuse.data.load import guess_dataset, load_split
from amuse.data.problems import Problem
from amuse.experiments.settings import combinations
from amuse.inference.prediction import log_problem
from amuse.report.plots import plot_run
from tests.media_files import tone, write_wav

PACKAGES = [Path(package.__path__[0]) for package in (amuse, amuse_kernels)]
COLLECTIONS = (ast.Tuple, ast.List, ast.Set, ast.Dict)


def constants(files: Iterable[Path]) -> set[str]:
    """Names in capitals that stand for collections in some file."""
    names = set()
    for node in (node for path in files for node in ast.parse(path.read_text("utf-8")).body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, COLLECTIONS):
            names |= {ast.unparse(name) for name in getattr(node, "targets", None) or [node.target]}
    return {name for name in names if name.isupper()}


def collections_in_errors(path: Path, constants: set[str]) -> list[str]:
    """Lists, dictionaries and the like that a file's errors show as Python writes them, with brackets and quotes."""
    found = []
    for error in (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Raise)):
        for shown in (node.value for node in ast.walk(error) if isinstance(node, ast.FormattedValue)):
            called = shown.func.id if isinstance(shown, ast.Call) and isinstance(shown.func, ast.Name) else ""
            named = shown.args[0] if called == "tuple" else shown  # tuple(TARGETS), but not tuple(x.shape)
            if (
                called in ("dict", "list", "set", "sorted")
                or isinstance(shown, COLLECTIONS)
                or (isinstance(named, ast.Name) and named.id in constants)
            ):
                found.append(f"{path.name}, line {shown.lineno}: {ast.unparse(shown)}")
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_errors_list_choices_with_commas(package):
    files = sorted(package.rglob("*.py"))
    known = constants(files)
    assert "SPLITS" in known or package.name != "amuse"
    assert [place for path in files for place in collections_in_errors(path, known)] == []


def test_the_search_finds_collections_in_errors(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        'LIMIT = 3\nKINDS = ("a", "b")\n'
        'raise ValueError(f"one of {list(x)}, {KINDS}, not {x.shape}, {tuple(x.shape)}, {sorted(x)[0]} or {LIMIT}")\n'
    )
    assert collections_in_errors(path, constants([path])) == ["a.py, line 3: list(x)", "a.py, line 3: KINDS"]


def test_an_unknown_split_or_format_is_named_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"^split: expected one of train, valid, test, got 'foo'$"):
        load_split(amuse.Config().data, "foo")
    with pytest.raises(ValueError, match=r"^file_format: expected one of png, svg, got 'gif'$"):
        plot_run(tmp_path, tmp_path, file_format="gif")


def test_a_folder_that_does_not_exist_is_the_only_problem(tmp_path):
    result = CliRunner().invoke(app, ["data", "prepare", str(tmp_path / "no"), "--out", str(tmp_path), "--dry-run"])
    assert isinstance(result.exception, FileNotFoundError)
    assert str(result.exception) == f"{tmp_path / 'no'}: expected a folder of recordings, no such folder"
    with pytest.raises(FileNotFoundError, match=r"no: expected a folder of data, no such folder$"):
        guess_dataset(tmp_path / "no")


def test_what_is_wrong_with_recordings_is_told_with_the_error(tmp_path):
    (tmp_path / "talk.mp4").touch()
    (tmp_path / "talk.csv").write_text("nothing of a transcript")
    result = CliRunner().invoke(app, ["data", "prepare", str(tmp_path), "--out", str(tmp_path), "--dry-run"])
    assert "found none that can be used\n      1  bad_transcript" in str(result.exception)


@pytest.mark.parametrize("place", ["talk.mp4", "train/talk.wav"])
def test_training_on_recordings_says_how_features_are_made(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    with pytest.raises(ValueError, match=rf"found none of them; .*: amuse data prepare {tmp_path} --out DATA$"):
        guess_dataset(tmp_path)


def test_a_folder_without_recordings_gets_no_such_advice(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"found none of them$"):
        guess_dataset(tmp_path)


def test_an_unknown_layout_is_named(tmp_path):
    result = CliRunner().invoke(app, ["data", "prepare", str(tmp_path), "--out", str(tmp_path), "--dataset", "ravdess"])
    assert str(result.exception) == "dataset: expected meld, iemocap, folder or hf, got 'ravdess'"


def test_preparing_says_what_is_left_out_for_want_of_a_package(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

    def missing(*arguments):
        raise ImportError("no such package")

    monkeypatch.setattr("amuse.media.faces.FaceDetector", missing)
    monkeypatch.setattr("amuse.speech.automatic.recognizer_of_folder", missing)
    write_wav(tmp_path / "talks" / "talk.wav", tone(1.0))
    (tmp_path / "talks" / "talk.csv").write_text("start,end,label\n0,1,calm\n")
    command = ["data", "prepare", str(tmp_path / "talks"), "--out", str(tmp_path / "data"), "--workers", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    assert "recordings without a transcript are left out: no such package" in result.output
    assert "faces are not separated from the background: no such package" in result.output


def test_problems_go_to_the_log_where_nobody_takes_them(caplog):
    with caplog.at_level("WARNING"):
        log_problem(Problem("silent", "talk.wav", "12 s"))
    assert "talk.wav: silent: 12 s" in caplog.text


def test_the_help_of_resume_says_what_happens_without_a_run():
    printed = " ".join(CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "Continue an interrupted run in OUT from its last state; else start one." in printed
    assert "--no-resume" not in printed


def test_a_choice_that_is_no_yaml_is_named():
    with pytest.raises(ValueError, match=r"--choose train.epochs=\[1: expected a YAML value after '=', got '\[1'"):
        combinations(["train.epochs=[1"])
