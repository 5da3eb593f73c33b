"""The examples of own data, on made files in the layout of the published ones and on those where they are there."""

import csv

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from amuse.config import Config
from amuse.data.load import load_fold, load_splits
from amuse.data.tables import read_tables
from amuse.examples import acted, enjoyment, meld_vectors
from amuse.experiments.cross_validation import cross_validate
from amuse.files import load_tensors
from tests.batches import missing_counts

CONFIGS = enjoyment.Path(enjoyment.__file__).parents[1] / "configs"


def output(function, *arguments):
    app = typer.Typer()
    app.command()(function)
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def write_enjoyment(folder):
    """Two participants with two exchanges, three coders; P3's audio is named with a leading zero."""
    (folder / "turn_taking").mkdir(parents=True)
    ratings = ["Coder,Participant,Overal,Turn 1,Turn 2,Turn 3"]
    ratings += [f"Annot{c},{p},4,{c},{p},{4 if p == 3 else ''}" for c in (1, 2, 3) for p in (2, 3)]
    (folder / "enjoyment_labels.csv").write_text("\n".join(ratings) + "\n")
    ids = [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
    audio = ["filename,f0,loud", *(f"P{p:02}_T{t},{p},{t}" for p, t in reversed(ids))]
    (folder / "Opensmile_features.csv").write_text("\n".join(audio) + "\n")
    (folder / "Audio_Features.csv").write_text("\n".join(["filename,en", *(f"P{p}_T{t},{t}" for p, t in ids)]) + "\n")
    lengths = np.array([2, 1, 3, 1, 1])
    participants, turns = (np.array(column) for column in zip(*ids, strict=True))
    tokens = np.arange(16, dtype=np.float16).reshape(8, 2)
    columns = np.array(["AU01", "AU02"])
    np.savez(
        folder / "video_tokens.npz",
        participant=participants,
        turn=turns,
        length=lengths,
        tokens=tokens,
        columns=columns,
    )
    for p in (2, 3):
        rows = [f"{t}\t{10 * p}\t{t}" for q, t in ids if q == p]
        (folder / "turn_taking" / f"turn_taking_{p}.tsv").write_text("\n".join(["Turn\tLength\tPause", *rows]) + "\n")
    return folder


def test_enjoyment_becomes_tables(tmp_path):
    printed = output(enjoyment.run, write_enjoyment(tmp_path / "data"), "--out", tmp_path / "tables")
    assert "2 dialogues, 5 exchanges; actions 6, audio 2, prosody 1, timing 2, video 2" in printed
    tables = read_tables(tmp_path / "tables")
    assert [[u.id for u in d.utterances] for d in tables.dialogues] == [["P2_T1", "P2_T2"], ["P3_T1", "P3_T2", "P3_T3"]]
    labels = [u.label for d in tables.dialogues for u in d.utterances]
    assert labels == [2.0, 2.0, 2.0, 3.0, 4.0]  # the mean of three coders
    assert tables.features["audio"]["P3_T2"].tolist() == [[3, 2]]
    assert tables.features["timing"]["P2_T2"].tolist() == [[20, 2]]
    assert tables.features["video"]["P3_T1"].tolist() == [[6, 7], [8, 9], [10, 11]]
    deviation = (8 / 3) ** 0.5
    assert tables.features["actions"]["P3_T1"][0].tolist() == pytest.approx(
        [8, 9, deviation, deviation, 9, 10], abs=1e-5
    )


def test_the_face_is_cut_into_actions_expressions_and_pose():
    header = ["id", "AU01", "anger", "Yaw", "AU43"]
    assert enjoyment.parts_of_face(header) == {"actions": [1, 4], "expressions": [2], "pose": [3]}


def test_features_per_actor_are_relative_to_the_actors_own_clips():
    cells = np.array([[1.0, 5.0], [3.0, np.nan], [10.0, 7.0], [10.0, 9.0]])
    found = acted.relative(cells, ["a", "a", "b", "b"])
    np.testing.assert_allclose(found, [[-1, 0], [1, np.nan], [0, -1], [0, 1]])
    assert not acted.relative(np.full((6, 1), 0.1), ["a"] * 6).any()  # whose mean is rounded


def test_vectors_of_meld_follow_the_rows_of_its_csv(tmp_path):
    lines = ["Dialogue_ID,Utterance_ID,Utterance", "0,0,a", "0,1,b", "1,0,c"]
    (tmp_path / "dev.csv").write_text("\n".join(lines) + "\n")
    np.save(tmp_path / "v.npy", np.array([[1.0, 2.0], [3.0, 4.0]]))
    arguments = [tmp_path / "v.npy", "--csv", tmp_path / "dev.csv", "--out", tmp_path / "v.safetensors"]
    assert "2 of 3 utterances, width 2" in output(meld_vectors.run, *arguments, "--without", "0:1")
    found = load_tensors(tmp_path / "v.safetensors")
    assert {name: x.tolist() for name, x in found.items()} == {"dia0_utt0": [1, 2], "dia1_utt0": [3, 4]}
    with pytest.raises(SystemExit, match=r"expected 3 rows, as .* got \(2, 2\)"):
        meld_vectors.run(tmp_path / "v.npy", tmp_path / "dev.csv", tmp_path / "x.safetensors")
    with pytest.raises(SystemExit, match=r"--without: expected dialogue:utterance of .*, got 9:9"):
        meld_vectors.run(tmp_path / "v.npy", tmp_path / "dev.csv", tmp_path / "x.safetensors", ["9:9"])


def test_acted_clips_become_tables_with_gaps(tmp_path):
    source = tmp_path / "summary.csv"
    rows = [["f0", "cpp", "file", "AU01", "emotion", "intensity", "actor", "gender"]]
    rows += [[1, "", "01-01-03-01-01-01-17", 0.5, "happy", "normal", 17, "male"]]
    rows += [[2, 4, "01-01-08-01-01-01-02", 0.1, "surprised", "normal", 2, "female"]]
    with source.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert "2 clips of 2 actors; audio 2, video 1" in output(acted.run, source, "--out", tmp_path / "tables")
    tables = read_tables(tmp_path / "tables")
    assert tables.label_names == ["happy", "surprised"]
    assert [d.utterances[0].label for d in tables.dialogues] == [0, 1]
    assert tables.features["audio"]["01-01-03-01-01-01-17"].isnan().tolist() == [[False, True]]
    assert tables.columns["actor"]["01-01-03-01-01-01-17"] == {"17"}


def test_the_published_enjoyment_data_are_whole(shared_data, tmp_path):
    if not (shared_data / "enjoyment_hri").is_dir():
        pytest.skip("no enjoyment_hri there")
    output(enjoyment.run, shared_data / "enjoyment_hri", "--out", tmp_path)
    config = Config.load(CONFIGS / "enjoyment.yaml", [f"data.path={tmp_path}"])
    parts = load_fold(config.data)
    assert sum(map(len, parts)) == 25
    assert sum(part.num_utterances for part in parts) == 590
    for part in parts:
        assert missing_counts(part) == dict.fromkeys(["audio", "actions", "expressions", "pose", "timing"], 0)
        assert all(1 <= u.label <= 5 for u in part.utterances())
    assert sum(len(tokens) for tokens in read_tables(tmp_path).features["video"].values()) == 37_653


def test_the_published_acted_clips_are_cut_by_actor_and_learned(shared_data, tmp_path):
    if not (shared_data / "ravdess_features").is_dir():
        pytest.skip("no ravdess_features there")
    output(acted.run, shared_data / "ravdess_features" / "combined_summary.csv", "--out", tmp_path / "tables")
    changes = [f"data.path={tmp_path / 'tables'}", "data.folds=2", "train.epochs=6"]
    config = Config.load(CONFIGS / "acted.yaml", changes)
    splits = load_splits(config.data)
    actors = [{u.speaker for u in part.utterances()} for part in (splits.train, splits.valid, splits.test)]
    assert sum(map(len, actors)) == len(set().union(*actors)) == 24
    for part in (splits.train, splits.valid, splits.test):
        assert torch.stack([u.features["audio"] for u in part.utterances()]).isfinite().all()
    done = cross_validate(config, tmp_path / "runs", groupings=1, progress=False)
    assert done.pooled[0][0] > 40  # chance is 13
