"""Files appear complete or not at all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import amuse
from amuse.files import replace_file, write_csv

PACKAGE = Path(amuse.__path__[0])
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# the writer itself; rows that are there as soon as they are spoken
EXCEPTIONS = ("files.py", "live/writing.py")
# journals, complete after every line; files of one run in a folder that is deleted after it; a counter of the kernel's
OF_BENCHMARKS = {"gpu/journal.py", "gpu/training.py", "live.py", "measure.py", "scaling.py", "streamed.py"}


def writes(source: str) -> Iterator[int]:
    """Lines that open a file for writing or write one directly."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            modes = {each.value for each in given if isinstance(each, ast.Constant)} & {"w", "wb", "a", "ab", "x", "xb"}
            by_path = isinstance(node.func, ast.Attribute) and name in ("write_text", "write_bytes")
            if by_path or (name == "open" and modes):
                yield node.lineno


def files_that_write(folder: Path) -> set[str]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    return {name for name, path in files.items() if [*writes(path.read_text())]}


def test_every_file_of_the_package_is_written_by_its_one_writer():
    # PyAV's containers: a buffer in memory, and a file under the temporary name that replace_file gives
    assert files_that_write(PACKAGE) == {*EXCEPTIONS, "report/figures.py", "media/cartoon.py"}


def test_every_table_of_a_benchmark_is_written_by_that_writer():
    assert files_that_write(BENCHMARKS) == OF_BENCHMARKS


def test_the_search_finds_every_way_of_writing():
    ways = [
        "open(p, 'w')",
        "p.open(mode='wb')",
        "p.open('a')",
        "p.write_text(t)",
        "p.write_bytes(b)",
        "open(p)",
        "f(p, 'w')",
    ]
    assert [*writes("\n".join(ways))] == [1, 2, 3, 4, 5]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "talk.csv"
    write_csv([["start", "end"], [0, 1.5]], path)
    assert path.read_text() == "start,end\n0,1.5\n"

    def interrupted(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, interrupted)
    assert path.read_text() == "start,end\n0,1.5\n"
    assert [*tmp_path.iterdir()] == [path]


def test_an_interrupted_cartoon_leaves_no_video(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
    from amuse.media import cartoon

    encode = cartoon._encode

    def interrupted(video: Path, *content: object) -> None:
        encode(video, *content)
        raise KeyboardInterrupt

    monkeypatch.setattr(cartoon, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cartoon.write_talk(tmp_path / "talk.webm", utterances=1)
    assert [*tmp_path.iterdir()] == []
