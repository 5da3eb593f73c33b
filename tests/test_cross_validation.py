"""Promises of cross-validation: groups never split, choices inside, pooled scores, folds that resume and reload."""

import json
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config
from amuse.data.folds import cut_fold, groups_of
from amuse.data.load import load_fold, load_splits
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import evaluate, predict
from amuse.experiments import contender
from amuse.experiments.cross_validation import cross_validate, read_scores
from amuse.experiments.paired import compare_folders
from amuse.experiments.settings import combinations

TINY = ["model.d_model=16", "model.num_heads=2", "model.man_layers=1", "model.unimodal_lstm=false", "train.epochs=2"]


def write_tables(folder, regression=False, dialogues=8):
    """Dialogues of two actors each; an utterance's first feature says its label."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    label = "target" if regression else "label"
    utterances, audio, video = [f"dialogue,id,speaker,actor,{label}"], ["id,x,y"], ["id,z"]
    for d in range(dialogues):
        for u in range(5):
            value = int(rng.integers(3))
            answer = f"{20 + 5 * value}" if regression else "abc"[value]
            utterances.append(f"d{d},d{d}_{u},s{u % 2},actor{d // 2},{answer}")
            audio.append(f"d{d}_{u},{value + 0.1 * rng.standard_normal():.3f},{rng.standard_normal():.3f}")
            video.append(f"d{d}_{u},{rng.standard_normal():.3f}")
    for name, lines in (("utterances", utterances), ("audio", audio), ("video", video)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def configure(folder, *overrides):
    return Config.load(None, [f"data.path={folder}", "data.dataset=tables", "data.folds=3", *TINY, *overrides])


@given(
    sizes=st.lists(st.integers(1, 5), min_size=4, max_size=12),
    folds=st.integers(2, 4),
    grouping=st.integers(0, 1000),
    share=st.floats(0.01, 0.5),
)
def test_groups_are_never_split_and_every_dialogue_is_tested_once(sizes, folds, grouping, share):
    groups = {f"d{g}_{i}": f"g{g}" for g, size in enumerate(sizes) for i in range(size)}
    tested = []
    for fold in range(folds):
        try:
            part = cut_fold(groups, folds, fold, grouping, share)
        except ValueError:
            assert len(sizes) - -(-len(sizes) // folds) < 2 or share > 0.4
            return
        lists = (part.train, part.valid, part.test)
        assert sorted([*part.train, *part.valid, *part.test]) == sorted(groups)
        assert all(lists)
        owners = [{groups[name] for name in names} for names in lists]
        assert sum(map(len, owners)) == len(sizes)
        tested += part.test
        assert part == cut_fold(groups, folds, fold, grouping, share)
    assert sorted(tested) == sorted(groups)


def test_groupings_differ_and_folds_validate_on_different_groups():
    groups = {f"d{i}": f"d{i}" for i in range(20)}
    tests = {tuple(cut_fold(groups, 5, 0, grouping, 0.2).test) for grouping in range(5)}
    assert len(tests) == 5
    valids = {tuple(cut_fold(groups, 5, fold, 0, 0.2).valid) for fold in range(5)}
    assert len(valids) == 5


def test_groups_are_a_column_and_a_dialogue_with_several_values_is_refused(tmp_path):
    write_tables(tmp_path)
    parts = load_fold(configure(tmp_path, "data.groups=actor").data)
    actors = [{int(dialogue.id[1:]) // 2 for dialogue in part.dialogues} for part in parts]
    assert sum(map(len, actors)) == len(set().union(*actors)) == 4
    with pytest.raises(ValueError, match="'speaker' has several values in dialogue 'd0'"):
        load_fold(configure(tmp_path, "data.groups=speaker").data)
    with pytest.raises(ValueError, match="expected one of dialogue, speaker, actor, got 'city'"):
        load_fold(configure(tmp_path, "data.groups=city").data)
    with pytest.raises(ValueError, match=r"expected 2 to 4 folds.* got 5 and 0"):
        load_fold(configure(tmp_path, "data.groups=actor", "data.folds=5").data)
    assert groups_of({"g": {"a": {"x"}}}, "g") == {"a": "x"}


def test_folds_of_a_data_set_with_splits_pool_those_that_are_asked_for():
    config = Config.load(None, ["data.num_dialogues=8", "data.folds=4"]).data
    parts = load_fold(config)
    assert sum(map(len, parts)) == 8 + 4 + 4
    names = [dialogue.id.split("/")[0] for part in parts for dialogue in part.dialogues]
    assert sorted(set(names)) == ["test", "train", "valid"]
    config.fold_splits = ["valid"]
    assert sum(map(len, load_fold(config))) == 4


def test_statistics_of_a_fold_come_from_its_training_part(tmp_path):
    splits = load_splits(configure(write_tables(tmp_path)).data)
    train = torch.cat([u.features["audio"] for u in splits.train.utterances()])
    rest = torch.cat([u.features["audio"] for part in (splits.valid, splits.test) for u in part.utterances()])
    assert train.mean(0).abs().max() < 1e-6
    assert rest.mean(0).abs().min() > 1e-4


@pytest.mark.parametrize("regression", [False, True])
def test_predictions_of_all_folds_are_pooled_into_one_score(tmp_path, regression):
    config = configure(write_tables(tmp_path / "data", regression), "data.groups=actor")
    done = cross_validate(config, tmp_path / "runs", groupings=2, progress=False)
    for grouping in range(2):
        labels, outputs = [], []
        for fold in range(3):
            folder = tmp_path / "runs" / f"grouping{grouping}" / f"fold{fold}"
            model, test, _ = load_run(folder, "test")
            found = predict(model, test)
            labels.append(found.labels)
            outputs.append(found.logits)
            row = next(f for f in done.folds if (f.grouping, f.fold) == (grouping, fold))
            metrics = evaluate(model, test).to_dict()
            expected = metrics["pearson"] if regression else 100 * metrics["weighted_f1"]
            assert row.score == pytest.approx(expected, nan_ok=True)
            assert row.test == len(found.labels)
            assert row.train + row.test == 40
        y, z = torch.cat(labels), torch.cat(outputs)
        assert len(y) == 40
        if regression:
            expected = np.corrcoef(y, z[:, 0])[0, 1], (y - z[:, 0]).abs().mean().item()
        else:
            f1 = [
                2 * ((z.argmax(1) == c) & (y == c)).sum() / ((z.argmax(1) == c).sum() + (y == c).sum())
                for c in range(3)
            ]
            weighted = sum(f1[c] * (y == c).sum() for c in range(3)) / len(y)
            expected = 100 * weighted.item(), 100 * (z.argmax(1) == y).double().mean().item()
        assert done.pooled[grouping] == pytest.approx(expected, abs=1e-4)
    text = done.to_markdown().splitlines()
    digits = 3 if regression else 2
    first = [row[0] for row in done.pooled]
    assert f"{statistics.fmean(first):.{digits}f} ± {statistics.stdev(first):.{digits}f}" in text[-1]
    assert ("Pearson r" if regression else "weighted F1") in text[0]
    assert read_scores(tmp_path / "runs") == done
    assert [(each.seed, each.grouping) for each in done.tested] == [(0, 0), (1, 1)]
    assert done.tested[0].digest != done.tested[1].digest
    for fold in done.folds:
        place = tmp_path / "runs" / f"grouping{fold.grouping}" / f"fold{fold.fold}"
        model, trained_on, _ = load_run(place, "train")
        seen = evaluate(model, trained_on)
        assert fold.training == pytest.approx(
            seen.pearson if regression else 100 * seen.weighted_f1, abs=1e-4, nan_ok=True
        )


def test_runs_are_compared_with_those_of_the_same_groupings_and_seeds_only(tmp_path):
    data = write_tables(tmp_path / "data")
    for name, changes in (
        ("first", []),
        ("narrower", ["model.d_model=16", "train.epochs=1"]),
        ("seeded", ["train.seed=7"]),
        ("regrouped", ["data.grouping=3"]),
    ):
        cross_validate(configure(data, *changes), tmp_path / name, 1, progress=False)
    _, rows = compare_folders([tmp_path / "first", tmp_path / "narrower"])
    assert rows[1].difference is not None
    for name, kind in (("seeded", "seeds"), ("regrouped", "groupings")):
        with pytest.raises(ValueError, match=f"{name}: expected the {kind} of the first folder, got "):
            compare_folders([tmp_path / "first", tmp_path / name])
    utterances = data / "utterances.csv"
    utterances.write_text(utterances.read_text().replace(",a\n", ",b\n"))
    cross_validate(configure(data), tmp_path / "relabelled", 1, progress=False)
    with pytest.raises(ValueError, match="relabelled: expected the test utterances of the first folder, got others"):
        compare_folders([tmp_path / "first", tmp_path / "relabelled"])


def test_choices_are_made_on_the_validation_part_inside_each_fold(tmp_path, monkeypatch):
    config = configure(write_tables(tmp_path / "data"))
    looked_at = []

    def noted(model, conversations, batch_size):
        looked_at.append([dialogue.id for dialogue in conversations.dialogues])
        return predict(model, conversations, batch_size)

    monkeypatch.setattr(contender, "predict", noted)
    # a learning rate of nearly 0 leaves the model as it began
    done = cross_validate(config, tmp_path / "runs", 1, ["train.learning_rate=[1.0e-9, 0.02]"], progress=False)
    for fold in done.folds:
        fold_config = configure(tmp_path / "data", f"data.fold={fold.fold}").data
        train, valid, test = load_fold(fold_config)
        seen = [[dialogue.id for dialogue in part.dialogues] for part in (valid, valid, test, train)]
        assert looked_at[4 * fold.fold : 4 * fold.fold + 4] == seen
        scores = []
        for number in range(2):
            folder = tmp_path / "runs" / "grouping0" / f"fold{fold.fold}" / f"choice{number}"
            model, part, _ = load_run(folder, "valid")
            scores.append(evaluate(model, part).weighted_f1)
        assert fold.chosen == [["train.learning_rate=1e-09"], ["train.learning_rate=0.02"]][int(scores[1] > scores[0])]
    assert "| train.learning_rate=0.02 |" in done.to_markdown()


def test_combinations_of_choices():
    assert combinations([]) == [[]]
    assert combinations(["model.dropout=[0.1, 0.2]", "model.fusion=[concat]"]) == [
        ["model.dropout=0.1", 'model.fusion="concat"'],
        ["model.dropout=0.2", 'model.fusion="concat"'],
    ]
    with pytest.raises(ValueError, match=r"--choose model\.dropout=0\.1: expected section\.key=\[value, \.\.\.\]"):
        combinations(["model.dropout=0.1"])


def test_the_command_resumes_and_says_what_is_wrong(tmp_path):
    data = write_tables(tmp_path / "data")
    small = [part for setting in TINY for part in ("--set", setting)]
    arguments = ["repeat", "--data", str(data), "--out", str(tmp_path / "runs"), "--folds", "2", "--groups", "actor"]
    first = CliRunner().invoke(app, [*arguments, "--seeds", "1", *small])
    assert first.exit_code == 0, first.output
    states = sorted((tmp_path / "runs").rglob("state.pt"))
    assert len(states) == 2
    times = [state.stat().st_mtime_ns for state in states]
    again = CliRunner().invoke(app, [*arguments, "--seeds", "1", *small])
    assert again.stdout == first.stdout
    assert times == [state.stat().st_mtime_ns for state in states]
    assert json.loads((tmp_path / "runs" / "scores.json").read_text())["measure"] == "weighted F1"
    for words, message in (
        (
            ["--choose", "model.dropout=[0.1]"],
            "--choose, --groups, --rival, --trials, --ensemble: expected --folds with them",
        ),
        (["--folds", "2", "--choose", "model.colour=[1]"], "expected a key of model, loss or train"),
        (["--folds", "2", "--seeds", "0"], "groupings: expected at least 1, got 0"),
        (["--folds", "1"], "expected 0 or at least 2 folds"),
    ):
        result = CliRunner().invoke(app, ["repeat", "--data", str(data), "--out", str(tmp_path / "x"), *words])
        assert message in str(result.exception)


def test_a_regression_starts_at_the_mean_of_its_training_labels(tmp_path):
    config = configure(write_tables(tmp_path / "data", regression=True), "train.learning_rate=1.0e-9")
    cross_validate(config, tmp_path / "runs", 1, progress=False)
    model, train, _ = load_run(tmp_path / "runs" / "grouping0" / "fold0", "train")
    centre = statistics.fmean(u.label for u in train.utterances())
    for head in (model.classifier, *model.heads):
        assert head.bias.item() == pytest.approx(centre, abs=1e-4)
    classifier = configure(write_tables(tmp_path / "classes"), "train.learning_rate=1.0e-9")
    cross_validate(classifier, tmp_path / "runs2", 1, progress=False)
    assert load_run(tmp_path / "runs2" / "grouping0" / "fold0", "train")[0].classifier.bias.abs().max() < 0.5
