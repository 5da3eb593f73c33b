"""Hugging Face data sets: every row of every kind of file ends up as the right utterance, or in the report."""

import json
import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.cli.main import app
from amuse.data.hub import read_hub_dataset
from amuse.data.hub_files import dataset_folder
from amuse.media.sources import Span, hub_source
from tests.media_files import tone, write_talks, write_video, write_wav
from tests.test_transcripts import DOCS, Problems

WORDS = ["Where were you?", "At work.", "Fine.", "Sorry."]


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def read(folder, **options):
    problems = Problems()
    return read_hub_dataset(folder, media=None, report=problems, **options), problems


def utterances(dataset, split):
    names = dataset.splits[split].label_names
    return [
        (u.speaker, u.text, None if u.label is None else names[u.label]) for u in dataset.splits[split].utterances()
    ]


def write_parquet(path, columns, features=None):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra: pip install amuse-kernels[datasets]")
    from pyarrow import parquet

    table = pyarrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
    return path


def test_example_in_the_documentation_is_read(tmp_path):
    (name, content), *_ = re.findall(
        r"`(clips/train\.csv)`:\n\n```text\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    write(tmp_path, name, content)
    for number in range(2):
        (tmp_path / "clips" / f"talk_{number}.mp4").touch()
    source = hub_source(str(tmp_path / "clips"), None)
    assert source.problems == []
    found, _ = read(tmp_path / "clips")
    assert utterances(found, "train") == [("Ann", "Well, where were you?", "angry"), ("Bob", "At work.", None)]
    assert [d.id for d in found.splits["train"].dialogues] == ["talk"]
    assert [clip.sound for clip in source.clips["train"]] == [
        Span(tmp_path / "clips" / f"talk_{i}.mp4") for i in (0, 1)
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_rows_that_name_their_recordings_are_read_in_every_kind_of_file(tmp_path, kind):
    columns = ["file_name", "conversation_id", "speaker", "transcription", "emotion"]
    rows = [[f"{i}.wav", f"c{i // 2}", "AB"[i % 2], WORDS[i], ["calm", "angry"][i % 2]] for i in range(4)]
    for split in ("train", "validation", "test"):
        for i in range(4):
            write_wav(tmp_path / split / f"{i}.wav", tone(0.2))
        if kind == "jsonl":
            content = "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        else:
            mark = "," if kind == "csv" else "\t"
            content = "".join(mark.join(row) + "\n" for row in (columns, *rows))
        write(tmp_path, f"{split}/metadata.{kind}", content)
    found, problems = read(tmp_path)
    assert (problems, found.drawn, list(found.splits)) == ([], [], ["train", "valid", "test"])
    for split, folder in (("train", "train"), ("valid", "validation"), ("test", "test")):
        assert utterances(found, split) == [("AB"[i % 2], WORDS[i], ["calm", "angry"][i % 2]) for i in range(4)]
        assert [len(dialogue) for dialogue in found.splits[split].dialogues] == [2, 2]
        clips = list(found.clips[split].values())
        assert [clip.sound for clip in clips] == [tmp_path / folder / f"{i}.wav" for i in range(4)]
        assert [clip.picture for clip in clips] == [None] * 4


FEATURES = {
    "audio": {"_type": "Audio"},
    "video": {"_type": "Video"},
    "label": {"_type": "ClassLabel", "names": ["calm", "angry"]},
}


def test_recordings_inside_of_parquet_give_the_features_of_the_files(tmp_path):
    """The same four clips as Parquet and as paths: the same features, prepared twice without encoding again."""
    sound, picture = [], []
    for i in range(4):
        sound.append(write_wav(tmp_path / "clips" / f"{i}.wav", tone(0.4, 300.0 * (1 + i % 2))))
        picture.append(write_video(tmp_path / "clips" / f"{i}.mp4", 0.4, sound=False))
    labels, talks = [0, 1, 1, -1], [0, 0, 1, 1]
    for split in ("train", "valid", "test"):
        rows = "".join(f"{i}.wav,{i}.mp4,{WORDS[i]},{['calm', 'angry', ''][labels[i]]},{talks[i]}\n" for i in range(4))
        write(tmp_path / "clips", f"{split}.csv", "audio,video,text,label,dialogue_id\n" + rows)
        inside = {
            "audio": [{"bytes": path.read_bytes(), "path": path.name} for path in sound],
            "video": [{"bytes": path.read_bytes(), "path": path.name} for path in picture],
            "text": WORDS,
            "label": labels,
            "dialogue_id": talks,
        }
        write_parquet(tmp_path / "table" / "data" / f"{split}-00000-of-00001.parquet", inside, FEATURES)
    found, problems = read(tmp_path / "table")
    assert [kind for kind in problems.kinds if kind != "missing_speaker"] == []
    assert [label for *_, label in utterances(found, "test")] == ["calm", "angry", "angry", None]
    results = {}
    for name in ("clips", "table", "table"):
        out = tmp_path / f"{name}_data"
        command = ["data", "prepare", str(tmp_path / name), "--dataset", "hf", "--out", str(out), "--no-faces"]
        done = CliRunner().invoke(app, [*command, "--workers", "1", "--strict"])
        assert done.exit_code == 0, done.output
        assert "usable: audio 12, video 12" in done.output
        shards = sorted((out / "shards").iterdir())
        times = [path.stat().st_mtime_ns for path in shards]
        assert results.get(name, times) == times
        results[name] = times
    from safetensors.torch import load_file

    for split in ("train", "valid", "test"):
        one, other = (
            load_file(tmp_path / f"{n}_data" / "shards" / f"{split}-000000.safetensors") for n in ("clips", "table")
        )
        assert one.keys() == other.keys()
        assert all((one[key] == other[key]).all() for key in one)


def test_dry_run_writes_nothing(tmp_path):
    content = [{"bytes": b"x", "path": "a.wav"}] * 3
    write_parquet(
        tmp_path / "table" / "train.parquet", {"audio": content, "label": [0, 1, 0], "talk": [0, 1, 2]}, FEATURES
    )
    command = ["data", "prepare", str(tmp_path / "table"), "--dataset", "hf", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "calm" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table"]


def test_a_recording_of_several_rows_is_cut_by_their_times(tmp_path):
    write_wav(tmp_path / "long.wav", tone(4.0))
    write_wav(tmp_path / "short.wav", tone(1.0))
    rows = "long.wav,b,2,3\nlong.wav,a,0,1.5\nlong.wav,lost,,\nshort.wav,whole,,\nshort.wav,again,,\n"
    write(tmp_path, "train.csv", "audio,text,start,end\n" + rows)
    found, problems = read(tmp_path)
    clips = {u.text: found.clips[split][u.id] for split in found.splits for u in found.splits[split].utterances()}
    assert {text: (clip.sound.name, clip.begin, clip.end) for text, clip in clips.items()} == {
        "a": ("long.wav", 0.0, 1.5),
        "b": ("long.wav", 2.0, 3.0),
        "whole": ("short.wav", 0.0, None),
        "again": ("short.wav", 0.0, None),
    }
    assert problems.kinds == ["missing_speaker", "bad_row"]
    assert problems[1].place == "train.csv, line 4"
    dialogues = [[u.text for u in d.utterances] for part in found.splits.values() for d in part.dialogues]
    assert ["a", "b"] in dialogues


def test_rows_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "0.wav").touch()
    rows = (
        "0.wav,1,a,calm,x,1\n"  # of use
        "0.wav,1,b,calm,x,1,surplus\n"
        '0.wav,1,"c,calm,x,1\n'
        "9.wav,1,d,calm,x,2\n"  # its words are of use
        "9.wav,1,,calm,x,3\n"
        "0.wav,1,e,Calm,x,1\n"  # an id that was there
        "0.wav,1,f,calm,x,4,,\n" + "x" * 5000 + ".wav,1,g,calm,x,5\n"
    )
    write(tmp_path, "train.csv", "file_name,dialog_id,text,label,mood,id\n" + rows)
    found, problems = read(tmp_path)
    assert [text for split in found.splits for _, text, _ in utterances(found, split)] == ["a", "d", "f", "g"]
    assert {(p.kind, p.place.rpartition(" ")[2]) for p in problems if "line" in p.place} == {
        ("bad_row", "3"), ("bad_row", "4"), ("missing_file", "5"), ("missing_file", "6"), ("bad_row", "6"),
        ("duplicate_id", "7"), ("missing_file", "9"),
    }  # fmt: skip
    assert "columns: mood" in next(p.message for p in problems if p.kind == "unused")


def test_cells_of_json_are_read_by_what_they_hold(tmp_path):
    for name in ("a.wav", "b.wav", "c.wav", "spare.wav"):
        (tmp_path / name).touch()
    rows = [
        {"audio": {"path": "a.wav", "array": [0.1], "sampling_rate": 16000}, "text": "a", "label": "calm"},
        {"audio": "b.wav", "text": float("nan"), "label": float("nan")},
        {"audio": "c.wav", "text": "c", "label": ["calm", "angry"]},
        {"audio": 7, "text": "d", "label": "calm"},
        {"audio": None, "text": "e", "label": "calm"},
        {"audio": {"path": None, "array": [0.1], "sampling_rate": 16000}, "text": "f", "label": "calm"},
    ]
    write(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found, problems = read(tmp_path)
    media = {id: clip.sound for clips in found.clips.values() for id, clip in clips.items()}
    assert {id: sound and sound.name for id, sound in media.items()} == {
        "train_0": "a.wav",
        "train_1": "b.wav",
        "train_2": None,
    }
    texts = {u.text: u.label for part in found.splits.values() for u in part.utterances()}
    assert texts == {"a": 0, None: None, "e": 0}
    told = {p.place: p.message for p in problems if p.kind == "bad_row"}
    assert told["train.jsonl, line 3"].startswith("label: expected text or a number, got ['calm'")
    assert told["train.jsonl, line 4"] == "audio: expected a recording or its path, got 7"
    assert told["train.jsonl, line 6"].startswith("audio: expected a recording or its path, got {")
    assert [p.message for p in problems if p.kind == "stray_file"] == ["recordings that no usable row names: 2"]


def test_rows_whose_conversation_is_nan_are_not_one_conversation(tmp_path):
    rows = [{"conversation": name, "text": text} for name, text in (("a", "1"), (math.nan, "2"), (math.nan, "3"))]
    write(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found, _ = read(tmp_path)
    dialogues = [[u.text for u in d.utterances] for part in found.splits.values() for d in part.dialogues]
    assert sorted(dialogues) == [["1"], ["2"], ["3"]]


def test_times_in_milliseconds_are_reported(tmp_path):
    (tmp_path / "a.wav").touch()
    write(tmp_path, "train.csv", "audio,start,end,text\na.wav,0,2400,a\na.wav,2400,3900,b\n")
    found, problems = read(tmp_path)
    clips = [clip for clips in found.clips.values() for clip in clips.values()]
    assert [(clip.begin, clip.end) for clip in clips] == [(0.0, 2.4), (2.4, 3.9)]
    assert "milliseconds" in problems.kinds


def test_rows_with_the_same_columns_of_times_have_the_same_unit(tmp_path):
    (tmp_path / "a.wav").touch()
    rows = [{"audio": "a.wav", "start": 200 * i, "end": 200 * i + 5, "text": str(i)} for i in range(4)]
    rows[3] |= {"end": 800, "label": "calm"}  # the only one with a label, and longer than usual
    write(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found, problems = read(tmp_path)
    ends = [clip.end for clips in found.clips.values() for clip in clips.values()]
    assert sorted(ends) == [5, 205, 405, 800]
    assert "milliseconds" not in problems.kinds


def test_splits_that_are_missing_are_drawn_from_the_training_split(tmp_path):
    rows = "".join(f"c{i},word,{['calm', 'angry'][i % 2]}\n" for i in range(12))
    write(tmp_path, "train.csv", "conversation,text,label\n" + rows)
    found, _ = read(tmp_path)
    assert found.drawn == ["valid", "test"]
    assert {split: part.class_counts().tolist() for split, part in found.splits.items()} == {
        "train": [4, 4],
        "valid": [1, 1],
        "test": [1, 1],
    }
    write(tmp_path, "test.csv", "conversation,text,label\nz,word,calm\n")
    found, _ = read(tmp_path)
    assert found.drawn == ["valid"]
    assert (len(found.splits["train"]), len(found.splits["test"])) == (10, 1)


CARD = """---
license: mit
configs:
- config_name: dialogues
  data_files:
  - split: train
    path: talk/*.csv
  - split: validation
    path: [talk_dev.csv]
- config_name: monologues
  data_files: alone.csv
---
# Talks
"""


def test_card_says_which_files_make_a_split(tmp_path):
    for name in ("talk/a.csv", "talk/b.csv", "talk_dev.csv", "alone.csv"):
        write(tmp_path, name, f"conversation,text\n{Path(name).stem},{Path(name).stem}\n")
    write(tmp_path, "README.md", CARD)
    found, _ = read(tmp_path, subset="dialogues")
    assert [text for _, text, _ in utterances(found, "valid")] == ["talk_dev"]
    assert {text for split in found.splits for _, text, _ in utterances(found, split)} == {"a", "b", "talk_dev"}
    found, _ = read(tmp_path, subset="monologues")
    assert utterances(found, "train") == [("unknown", "alone", None)]
    for subset in (None, "songs"):
        with pytest.raises(
            ValueError, match=f"--subset: expected one of dialogues, monologues, got {subset or 'none'}"
        ):
            read(tmp_path, subset=subset)
    write(tmp_path, "README.md", CARD.replace("alone.csv", "gone.csv"))
    with pytest.raises(ValueError, match=r"names 'gone\.csv' for the split train, no such file"):
        read(tmp_path, subset="monologues")
    write(tmp_path, "README.md", CARD.replace("alone.csv", "x" * 5000))
    with pytest.raises(ValueError, match=r"expected a pattern of files, got 'xxx|no such file of rows"):
        read(tmp_path, subset="monologues")
    write(tmp_path, "README.md", CARD.replace("alone.csv", "../alone.csv"))
    with pytest.raises(ValueError, match="patterns of files inside"):
        read(tmp_path, subset="monologues")


def test_classes_are_named_and_numbers_are_refused(tmp_path):
    columns = {"text": list("abc"), "talk_id": [1, 1, 1], "label": [1, 0, 7]}
    write_parquet(tmp_path / "train.parquet", columns, FEATURES)
    found, problems = read(tmp_path)
    assert [label for *_, label in utterances(found, "train")] == ["angry", "calm"]
    assert [(p.place, p.message) for p in problems if p.kind == "bad_row"] == [
        ("train.parquet, row 3", "expected a class from 0 to 1, or -1 for none, got 7")
    ]
    write_parquet(tmp_path / "train.parquet", columns | {"label": [0.5, 1.0, -2.0]})
    with pytest.raises(ValueError, match=r"label: expected classes, got numbers such as 0\.5"):
        read(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"train\.parquet: not a Parquet file"):
        read(tmp_path)


def test_data_sets_of_the_hub_go_by_their_names(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra: pip install amuse-kernels[datasets]")

    def download(name, repo_type):
        if (name, repo_type) != ("owner/talks", "dataset"):
            raise ConnectionError("offline")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert dataset_folder("owner/talks") == tmp_path
    with pytest.raises(
        FileNotFoundError, match="owner/others: no such folder, and the hub does not provide it: offline"
    ):
        dataset_folder("owner/others")
    with pytest.raises(FileNotFoundError, match="talks: expected a folder, or a data set"):
        dataset_folder("talks")


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="files of rows, found none"):
        read(tmp_path)
    write(tmp_path, "train.csv", "text,label\n")
    with pytest.raises(ValueError, match="expected rows with recordings or words, found none"):
        read(tmp_path)
    write_talks(tmp_path / "talks", count=1)
    done = CliRunner().invoke(app, ["data", "prepare", str(tmp_path), "--subset", "x", "--out", str(tmp_path / "out")])
    assert "--subset: expected --dataset hf with it, got folder" in str(done.exception)
