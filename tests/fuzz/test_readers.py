"""Data files that are cut, overwritten or foreign are read right or refused with an error that names the file."""

import hashlib
import json
import re
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from amuse.data.folder import read_folder
from amuse.data.hub import read_hub_dataset
from amuse.data.iemocap import read_iemocap
from amuse.data.meld import read_meld
from amuse.data.mosi import read_mosi
from amuse.data.prepared import read_manifest, read_prepared
from amuse.data.tables import read_tables
from amuse.data.transcript import read_transcript
from tests import test_data_meld, test_data_mosi
from tests.fuzz.corruption import corrupted, corrupted_json
from tests.test_hub_data import FEATURES, write_parquet
from tests.test_transcripts import EXAMPLES

UTF16 = (b"\xff\xfe", b"\xfe\xff")
SRT = "1\n00:00:01,000 --> 00:00:02,500\nAnn: Hello <i>there</i>\n\n2\n00:00:03,000 --> 00:00:04,000\n[Bob]: Hm.\n"
CSV = "start,end,speaker,text,label,id\n0,1.5,Ann,Hello,calm,a\n0:02,0:03,Bob,No!,angry,b\n"
IEMOCAP = "% header\n\n[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]\nC-E2:\tNeutral;\n"


def _meld(folder):
    rows = torch.randn(2, 4)
    files = {"dev_sent_emo.csv": (test_data_meld.HEADER + "".join(test_data_meld.ROWS)).encode()}
    return files | {"audio.safetensors": save({"dia0_utt0": rows, "dia1_utt3": rows[0].half()})}


def _mosi(folder):
    test_data_mosi.write(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _iemocap(folder):
    files = {}
    for session in (1, 2, 3, 5):
        name, root = f"Ses0{session}F_impro01", f"Session{session}/dialog"
        files[f"{root}/EmoEvaluation/{name}.txt"] = IEMOCAP.replace("Ses01F", f"Ses0{session}F").encode()
        files[f"{root}/transcriptions/{name}.txt"] = f"{name}_F000 [006.2901-008.2357]: Excuse me.\n".encode()
    return files


def _prepared(folder):
    shard = save({"a/audio": torch.randn(3, 4), "b/audio": torch.randn(1, 4)})
    utterances = [
        {"id": i, "speaker": "Ann", "text": "x", "label": 0, "start": 0.0, "end": 1.0, "evidence": {}} for i in "ab"
    ]
    content = {
        "shards": [{"file": "test-0.safetensors", "sha256": hashlib.sha256(shard).hexdigest()}],
        "dialogues": [{"id": "talk", "utterances": utterances}],
    }
    index = {"format": 1, "label_names": ["calm"], "modalities": {"audio": 4}, "splits": {"test": content}}
    manifest = {"format": 1, "text": True, "modalities": {"audio": {"width": 4}}}
    return {
        "index.json": json.dumps(index).encode(),
        "manifest.json": json.dumps(manifest).encode(),
        "shards/test-0.safetensors": shard,
    }


def _transcripts(folder):
    return {"a.csv": CSV.encode(), "a.wav": b"", "b.srt": SRT.encode(), "b.wav": b""}


HUB_CSV = "audio,conversation_id,text,emotion\na.wav,1,Where were you,angry\na.wav,1,nowhere,calm\nb.wav,2,Sorry,calm\n"


def _hub(name, content):
    return lambda folder: {"README.md": CARD, name: content, "a.wav": b"", "b.wav": b""}


def _hub_parquet(folder):
    pytest.importorskip("pyarrow", reason="needs the extra: pip install amuse-kernels[datasets]")
    recordings = [{"bytes": b"RIFF", "path": "a.wav"}, {"bytes": None, "path": "b.wav"}, None]
    columns = {"audio": recordings, "label": [0, 1, -1], "text": ["Hello", "No!", "Sorry"]}
    path = write_parquet(folder / "train.parquet", columns, FEATURES)
    return {"train.parquet": path.read_bytes(), "b.wav": b""}


def _tables(folder):
    rows = b"a,1,Ann,joy,train\na,2,Bob,anger,train\nb,3,Ann,joy,valid\n"
    return {
        "utterances.csv": b"dialogue,id,speaker,label,split\n" + rows,
        "audio.csv": b"id,loudness,pitch\n1,0.5,180\n2,,190\n2,0.1,200\n",
    }


CARD = b"---\nconfigs:\n- config_name: default\n  data_files: '*'\n---\n"
HUB_JSON_LINES = "".join(
    json.dumps({"audio": f"{name}.wav", "text": text, "label": "calm", "start": 0.5, "end": 1}) + "\n"
    for name, text in (("a", "Where were you"), ("b", "nowhere"))
)
TRANSCRIPTS = {f"{name} of the documentation": content for name, content in EXAMPLES.items()}
# times of single words repeat what the segment says
TRANSCRIPTS["talk.json of the documentation"] = EXAMPLES["talk.json"].replace(', "words": []', "")
TRANSCRIPTS |= {
    "a.csv": CSV,
    "a.srt": SRT,
    "b.srt": "00:00:00,000-->00:00:02,000\n- Ann: first\n- Bob: second\n"
    "00:00:02,000 --> 00:00:03,000\nAnn (sad): third\n12\n",
    "b.csv": 'sep=;\nStartTime;EndTime;Utterance;Emotion;Extra\n00:00:01,5;2;first;calm;x\n3;4;"se;cond";sad;y\n',
}


@cache
def words(content):
    """The words of a transcript that are found in what is read from it."""
    lines, _ = transcript_lines(*content)
    return frozenset(re.findall(r"\w{4,}", " ".join(map(str, lines))))


def transcript_lines(name, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name.split()[0])
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        problems = []
        try:
            lines = read_transcript(path, problems.append)
        except ValueError as error:
            assert folder in str(error), f"names no file: {error!r}"  # noqa: PT017  (only some files are refused)
            return [], ["refused"]
    return [(line.speaker, line.text, line.label, line.id) for line in lines], problems


def read_hub(folder):
    return read_hub_dataset(folder, media=folder / "media", report=[].append)


READERS = {
    "MELD": (_meld, lambda f: read_meld(f, "dev", features={"audio": f / "audio.safetensors"})),
    "MELD, reported": (_meld, lambda f: read_meld(f, "dev", report=[].append)),
    "CMU-MOSI": (_mosi, lambda f: read_mosi(f, "train+valid")),
    "IEMOCAP": (_iemocap, lambda f: read_iemocap(f)),
    "IEMOCAP, reported": (_iemocap, lambda f: read_iemocap(f, report=[].append)),
    "prepared": (_prepared, lambda f: (read_manifest(f), read_prepared(f, "test"))),
    "folder": (_transcripts, lambda f: read_folder(f, report=[].append)),
    "hub CSV": (_hub("train.csv", HUB_CSV.encode()), read_hub),
    "hub JSON lines": (_hub("train.jsonl", HUB_JSON_LINES.encode()), read_hub),
    "hub Parquet": (_hub_parquet, read_hub),
    "tables": (_tables, lambda f: read_tables(f)),
    "CSV transcript": (_transcripts, lambda f: read_transcript(f / "a.csv", [].append)),
    "SRT transcript": (_transcripts, lambda f: read_transcript(f / "b.srt", [].append)),
}


@cache
def sound_files(name):
    with tempfile.TemporaryDirectory() as folder:
        return READERS[name][0](Path(folder))


def read(name, files):
    with tempfile.TemporaryDirectory() as folder:
        for place, content in files.items():
            path = Path(folder, place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            return READERS[name][1](Path(folder))
        except (ValueError, FileNotFoundError) as error:
            assert folder in str(error), f"names no file: {error!r}"  # noqa: PT017  (only some files are refused)
            return None


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read(name):
    assert read(name, sound_files(name)) is not None


@pytest.mark.parametrize("name", TRANSCRIPTS)
@given(data=st.data())
def test_no_word_of_a_broken_transcript_is_lost_without_a_report(name, data):
    content = TRANSCRIPTS[name]
    broken = data.draw(corrupted(content.encode()))
    lines, problems = transcript_lines(name, broken)
    if not problems:
        text = broken.decode("utf-16" if broken[:2] in UTF16 else "utf-8-sig")
        if ".ass" in name:  # the rest is not said
            text = "\n".join(re.findall(r"^Dialogue:.*", text.partition("[Events]")[2], re.MULTILINE))
        there = set(re.findall(r"\w{4,}", text))
        read = " ".join(map(str, lines))
        assert not {word for word in words((name, content)) & there if word not in read}


@pytest.mark.parametrize(("name", "content"), [("train.csv", HUB_CSV), ("train.jsonl", HUB_JSON_LINES)])
@given(data=st.data())
def test_no_word_of_a_broken_data_set_of_the_hub_is_lost_without_a_report(name, content, data):
    broken = data.draw(corrupted(content.encode()))
    with tempfile.TemporaryDirectory() as folder:
        for recording in "ab":
            Path(folder, f"{recording}.wav").touch()
        Path(folder, name).write_bytes(broken)
        problems = []
        try:
            found = read_hub_dataset(folder, media=None, report=problems.append)
        except (ValueError, FileNotFoundError):
            return
    told = {problem.kind for problem in problems} - {"no_conversations", "missing_speaker"}
    if not told:
        spoken = " ".join(u.text or "" for part in found.splits.values() for u in part.utterances())
        kept = [word for word in ("Where", "were", "nowhere", "Sorry") if word.encode() in broken and word in content]
        assert not [word for word in kept if word not in spoken]


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_broken_files_are_read_right_or_refused_by_name(name, data):
    files = dict(sound_files(name))
    place = data.draw(st.sampled_from(sorted(files)))
    change = corrupted_json if place.endswith(".json") else corrupted
    files[place] = data.draw(change(files[place]))
    read(name, files)
