"""`amuse data prepare`: the same result however it was interrupted or divided, and nothing lost silently."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.data.prepared import read_manifest, read_prepared
from amuse.media.extract import Options
from amuse.media.prepare import prepare
from amuse.media.sources import folder_source, meld_source
from amuse.progress import progress_bar
from tests.media_files import write_meld, write_talks

ROOT = Path(__file__).parents[1]
FILES = ("index.json", "manifest.json", "report.json")
KILLS = 10 if "AMUSE_SOAK_STEPS" in os.environ else 2


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return write_talks(tmp_path_factory.mktemp("talks"), count=6, utterances=4)


@pytest.fixture(scope="module")
def reference(talks, tmp_path_factory):
    """A folder made by one process without interruption."""
    out = tmp_path_factory.mktemp("reference")
    run(talks, out)
    return out


def run(source, out, **changes):
    return prepare(folder_source(source), out, Options(), **{"shard_size": 3, "progress": False, **changes})


def command(source, out, *more):
    options = ["--dataset", "folder", "--no-faces", "--shard-size", "3", "--out", str(out), *more]
    return [sys.executable, "-m", "amuse.cli.main", "data", "prepare", str(source), *options]


def assert_same(one, other):
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    shards = [sorted(path.name for path in (folder / "shards").iterdir()) for folder in (one, other)]
    assert shards[0] == shards[1]
    for name in shards[0]:
        assert (one / "shards" / name).read_bytes() == (other / "shards" / name).read_bytes(), name


def test_prepared_folder_is_read_as_conversations(talks, reference):
    source = folder_source(talks)
    for split, expected in source.splits.items():
        read = read_prepared(reference, split)
        assert read.modalities == {"audio": 128, "video": 192}
        assert read.label_names == expected.label_names
        for ours, theirs in zip(read.utterances(), expected.utterances(), strict=True):
            for name in ("id", "speaker", "text", "label", "start", "end"):
                assert getattr(ours, name) == getattr(theirs, name)
            assert {m: len(x) for m, x in ours.features.items()} == {"audio": 2, "video": 4}
    first = {u.label: u.features["audio"] for u in read_prepared(reference, "train").utterances()}
    assert (first[0] - first[1]).abs().max() > 1  # the pitch tells the label


def test_manifest_records_what_the_features_depend_on(talks, reference):
    manifest = read_manifest(reference)
    assert manifest["options"]["audio"] == "logmel"
    assert manifest["faces"] is None
    assert manifest["encoders"]["video"]["name"] == "hog"
    assert manifest["versions"]["av"]
    assert set(manifest["sources"]) == {f"talk{i}.mp4" for i in range(6)}
    import hashlib

    assert manifest["sources"]["talk2.mp4"] == hashlib.sha256((talks / "talk2.mp4").read_bytes()).hexdigest()
    assert str(talks) not in (reference / "manifest.json").read_text()


def test_second_run_encodes_nothing(talks, reference, monkeypatch):
    monkeypatch.setattr("amuse.media.local.make_shard", lambda *_: pytest.fail("encoded again"))
    times = {path: path.stat().st_mtime_ns for path in (reference / "shards").iterdir()}
    run(talks, reference)
    assert times == {path: path.stat().st_mtime_ns for path in (reference / "shards").iterdir()}


def test_a_bar_begins_with_the_utterances_that_are_there(talks, reference, tmp_path, monkeypatch):
    out = Path(shutil.copytree(reference, tmp_path / "out"))
    (out / "shards" / "train-000000.safetensors").unlink()
    bars = []

    def noted(what, total, unit, *, initial, shown):
        bars.append((total, initial))
        return progress_bar(what, total, unit, initial=initial, shown=shown)

    monkeypatch.setattr("amuse.media.prepare.progress_bar", noted)
    run(talks, out)
    assert bars == [(24, 21)]
    assert_same(out, reference)


@pytest.mark.slow
def test_workers_make_the_same_files(talks, reference, tmp_path):
    run(talks, tmp_path, workers=2)
    assert_same(tmp_path, reference)


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_or_corrupt(talks, reference, tmp_path):
    """SIGKILL several times, then to the end: the same bytes as without."""
    draw = random.Random(0)
    moments = []
    while len(moments) < KILLS:
        process = subprocess.Popen(
            command(talks, tmp_path, "--workers", str(1 + len(moments) // 2 % 2)),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        began, there = time.monotonic(), shards(tmp_path)
        # half of them while it starts, half while it works
        working = len(moments) % 2 == 0
        while working and process.poll() is None and shards(tmp_path) == there:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1 if working else 3))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            moments.append((round(time.monotonic() - began, 2), len(shards(tmp_path))))
            print(f"killed: seconds, and files out of {len(shards(reference))}: {moments[-1]}", flush=True)
        for name in shards(tmp_path):
            assert (tmp_path / "shards" / name).read_bytes() == (reference / "shards" / name).read_bytes()
        if len(shards(tmp_path)) == len(shards(reference)):  # too late: from the beginning
            shutil.rmtree(tmp_path)
    subprocess.run(command(talks, tmp_path), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert_same(tmp_path, reference)


def shards(out):
    return sorted(path.name for path in out.glob("shards/*.safetensors"))


@pytest.mark.slow
def test_workers_end_with_their_killed_parent(talks, tmp_path):
    process = subprocess.Popen(
        command(talks, tmp_path, "--workers", "2"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while len(members(process.pid)) < 4 and process.poll() is None:  # the parent, multiprocessing's helper, two workers
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120  # on a busy machine they are still importing
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(process.pid) == []


def members(session):
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(path.parent.name)
    return found


def test_half_written_files_are_swept_away(talks, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "out")
    (tmp_path / "out" / "shards" / ".train-000000.safetensors.123").write_bytes(b"half")
    victim = tmp_path / "out" / "shards" / "test-000000.safetensors"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(ValueError, match="does not match the index"):
        read_prepared(tmp_path / "out", "test")
    run(talks, tmp_path / "out")
    assert_same(tmp_path / "out", reference)


def test_changed_clips_are_encoded_again_and_other_options_refused(tmp_path):
    write_talks(tmp_path / "raw", count=4)
    out = tmp_path / "out"
    run(tmp_path / "raw", out)
    before = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    write_talks(tmp_path / "raw", count=1, labels=("calm", "calm"))
    run(tmp_path / "raw", out)
    changed = {path.name for path in (out / "shards").iterdir() if path.read_bytes() != before[path.name]}
    assert 0 < len(changed) < len(before)
    with pytest.raises(FileExistsError, match=r"has data prepared with options = .*choose another folder"):
        prepare(folder_source(tmp_path / "raw"), out, Options(frames=2), shard_size=3, progress=False)
    with pytest.raises(FileExistsError, match="shard_size = 3, now it is 5"):
        run(tmp_path / "raw", out, shard_size=5)


def test_broken_clips_are_skipped_reported_and_stay_as_utterances(tmp_path):
    raw = write_meld(tmp_path / "raw")
    clips = raw / "train_splits"
    (clips / "dia0_utt0.mp4").write_bytes(b"")
    (clips / "dia0_utt1.mp4").unlink()
    data = (clips / "dia1_utt1.mp4").read_bytes()
    (clips / "dia1_utt1.mp4").write_bytes(data.replace(b"mp4v", b"xyz9").replace(b"esds", b"free", 1))
    result = prepare(meld_source(raw), tmp_path / "out", Options(), progress=False)
    train = read_prepared(tmp_path / "out", "train")
    assert train.num_utterances == 6
    modalities = {u.id: sorted(u.features) for u in train.utterances()}
    assert modalities["dia0_utt0"] == modalities["dia0_utt1"] == []
    assert modalities["dia1_utt1"] == ["audio"]
    assert modalities["dia0_utt2"] == ["audio", "video"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["counts"] == {"codec": 1, "missing_file": 1, "unreadable": 2}
    assert {p["place"] for p in report["problems"]} == {"train dia0_utt0", "train dia0_utt1", "train dia1_utt1"}
    assert all(problem["lost"] for problem in report["problems"])
    assert len(result.problems) == 4


def test_clip_much_longer_than_its_utterance_is_reported(tmp_path):
    from tests.media_files import write_video

    raw = write_meld(tmp_path / "raw")
    write_video(raw / "output_repeated_splits_test" / "dia1_utt2.mp4", 8.0)
    result = prepare(meld_source(raw), tmp_path / "out", Options(max_seconds=5), progress=False)
    assert {(p.kind, p.place) for p in result.problems} == {
        ("long_clip", "test dia1_utt2"),
        ("long_utterance", "test dia1_utt2"),
    }
    assert len(read_prepared(tmp_path / "out", "test")[1].utterances[2].features["audio"]) == 25


def test_exit_code_tells_whether_anything_was_usable(tmp_path):
    from typer.testing import CliRunner

    from amuse.cli.main import app

    raw = write_talks(tmp_path / "raw", count=3, utterances=1)

    def exit_code(out, *more):
        options = ["--out", str(tmp_path / out), "--workers", "1", "--no-faces", *more]
        return CliRunner().invoke(app, ["data", "prepare", str(raw), *options]).exit_code

    assert exit_code("sound", "--strict") == 0
    (raw / "talk0.mp4").write_bytes(b"broken")
    assert exit_code("one") == 0
    assert exit_code("strict", "--strict") == 1
    for number in range(3):
        (raw / f"talk{number}.mp4").write_bytes(b"broken")
    assert exit_code("all") == 1


def test_modality_that_the_training_part_lacks_is_left_out(tmp_path):
    from tests.media_files import tone, write_wav

    for split in ("train", "valid", "test"):
        write_wav(tmp_path / "raw" / split / "a.wav", tone(1.0))
        (tmp_path / "raw" / split / "a.csv").write_text("start,end,speaker,label\n0,1,Ann,calm\n")
    run(tmp_path / "raw", tmp_path / "out")
    train = read_prepared(tmp_path / "out", "train")
    assert train.modalities == {"audio": 128}
    assert read_manifest(tmp_path / "out")["text"] is False
    assert torch.isfinite(train[0].utterances[0].features["audio"]).all()


def test_unknown_split_and_format_are_refused(reference, tmp_path):
    with pytest.raises(ValueError, match="expected one of its splits train, valid, test, got 'dev'"):
        read_prepared(reference, "dev")
    shutil.copytree(reference, tmp_path / "out")
    index = json.loads((reference / "index.json").read_text())
    (tmp_path / "out" / "index.json").write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(ValueError, match="expected format 1, got 99"):
        read_prepared(tmp_path / "out", "train")
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    (tmp_path / "out" / "shards" / "train-000001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"shards/train-000001\.safetensors: no such file"):
        read_prepared(tmp_path / "out", "train")
