"""What a user did wrong is told in one line that names the file once, without an error number of the system."""

import io
import socket
import sys
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.cli.main import main
from amuse.data.conversation import Dialogue, Utterance
from amuse.data.spec import DataSpec
from amuse.data.transcript import read_transcript
from amuse.errors import in_words
from amuse.inference.prediction import PredictedUtterance, lacking, rows, table
from amuse.live.sources import replay
from amuse.media.decode import read_audio
from amuse.media.sources import Span
from amuse.media.tracks import MediaError
from amuse.progress import progress_bar
from amuse.speech import transcribe


def test_an_error_of_the_system_is_told_without_its_number(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match="Errno") as missing:
        (tmp_path / "gone.csv").open()
    with pytest.raises(OSError, match="Errno") as no_folder:
        (tmp_path / "a" / "b").mkdir()
    assert in_words(missing.value) == f"{tmp_path / 'gone.csv'}: no such file or directory"
    assert in_words(no_folder.value) == f"{tmp_path / 'a' / 'b'}: not a directory"
    refused = urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))
    assert in_words(refused) == "name or service not known"
    assert in_words(OSError("no microphone")) == "no microphone"
    assert in_words(ValueError("rate: expected 1, got 2")) == "rate: expected 1, got 2"


@pytest.mark.parametrize(
    "command",
    [
        "predict gone.mp4",
        "predict gone gone.mp4",
        "predict folder talk.mp4 --transcript gone.csv",
        "explain gone.mp4",
        "live folder --file gone.mp4",
        "live talk.mp4",
        "transcribe talk.mp4 -o gone/talk.csv",
        "eval gone",
        "eval talk.mp4",
        "plot gone",
        "export gone --out new",
        "train --out new --data gone",
        "train --out new --config gone.yaml",
        "train --out talk.mp4/run",
        "data prepare gone --out new",
        "data push gone new",
        "data pull ./gone --out new",
        "differences gone gone",
    ],
)
def test_a_missing_or_wrong_file_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.mp4").write_bytes(b"no media file")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(sys, "argv", ["amuse", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    message = str(ended.value)
    assert message.startswith("amuse: ")
    assert "Errno" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("transcribe folder", "folder: expected a video or audio file, got a folder"),
        ("live folder --file folder", "folder: expected a video or audio file, got a folder"),
        ("data prepare talk.mp4 --out new", "talk.mp4: expected a folder of recordings, got a file"),
    ],
)
def test_a_folder_and_a_file_are_told_apart(command, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.mp4").write_bytes(b"no media file")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(sys, "argv", ["amuse", *command.split()])
    with pytest.raises(SystemExit, match=f"^amuse: {message}$"):
        main()


@pytest.mark.parametrize(
    "command",
    [
        "predict talk.mp4 --json gone/rows.json",
        "explain talk.mp4 -o gone/report.html",
        "transcribe talk.mp4 -o gone/talk.csv",
        "live --file talk.mp4 -o gone/live.csv",
        "eval run --json gone/scores.json",
        "differences run --csv gone/rows.csv",
    ],
)
def test_a_missing_folder_of_the_result_is_told_before_any_work(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.mp4").touch()
    monkeypatch.setattr(sys, "argv", ["amuse", *command.split()])
    with pytest.raises(SystemExit, match=r"gone/\w+\.\w+: expected a file in a folder that exists, got no folder gone"):
        main()


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_swapped_arguments_are_told_in_their_order(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.mp4").touch()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(sys, "argv", ["amuse", command, "talk.mp4", "run"])
    with pytest.raises(SystemExit, match=r"the run first, then the recording: run talk\.mp4"):
        main()
    monkeypatch.setattr(sys, "argv", ["amuse", command, "talk.mp4", "other.mp4"])
    with pytest.raises(SystemExit, match=r"RUN: expected the folder of a run, got the file talk\.mp4"):
        main()


def test_a_broken_recording_is_named_once(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no media file")
    listener = SimpleNamespace(looks=False, seconds=0.0)
    for read in (
        lambda: read_audio(Span(broken), 30, lambda kind, message: None),
        lambda: transcribe(broken, None),
        lambda: replay(broken, listener, speed=0.0),
    ):
        with pytest.raises((MediaError, ValueError)) as error:
            read()
        assert str(error.value).count("broken") == 1
        assert "cannot be read as a media file" in str(error.value)
        assert "Errno" not in str(error.value)


def test_a_missing_transcript_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.csv: no such file; expected a transcript"):
        read_transcript(tmp_path / "gone.csv", print)


def predicted(text, absent):
    return PredictedUtterance(0.0, 1.0, "Ann", text, "joy", 0.6, {"joy": 0.6, "anger": 0.4}, None, [], absent=absent)


def test_an_utterance_says_what_it_lacks():
    found = [predicted("Hello.", ["face"]), predicted("Where?", ["audio", "face"])]
    first, second, last = table(found).splitlines()
    assert first.endswith("Hello.")
    assert second.endswith("Where?  [without audio]")
    assert last == "all of them without face, which the model reads too"
    assert lacking(found) == (["face"], [[], ["audio"]])
    assert table([predicted("Hello.", [])]).endswith("Hello.")


def test_a_prediction_names_the_modalities_that_its_utterance_lacks():
    spec, times = DataSpec({"text": 4, "audio": 2}, ["calm", "angry"]), {"start": 0.0, "end": 1.0}
    said = [
        Utterance("0", "Ann", {"text": torch.ones(1, 4)}, **times),
        Utterance("1", "Ann", {"audio": torch.ones(1, 2)}, text="Yes", **times),  # words that a session encodes itself
        Utterance("2", "Ann", {}, **times),
    ]
    found = rows(Dialogue("d", said), torch.zeros(3, 2), spec, 1.0)
    assert [row.absent for row in found] == [["audio"], [], ["text", "audio"]]


def test_long_work_without_a_terminal_says_what_it_does_in_one_line(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar("encoding 3 utterances", 3) as bar:
        for _ in np.arange(3):
            bar.update()
    with progress_bar("something else", 3, shown=False) as bar:
        bar.update()
    assert log.getvalue() == "encoding 3 utterances\n"


def test_what_was_done_before_does_not_count_towards_the_rate_of_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("encoding 1000 utterances", 1000, initial=900) as bar:
        assert bar.n == 900
        assert "900/1000" in terminal.getvalue()
        found = {**bar.format_dict, "n": 910, "elapsed": 10.0, "rate": None}
        assert "1.00it/s" in bar.format_meter(**found)
