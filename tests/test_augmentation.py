"""Promises of what training does against overfitting and imbalance, and of activation checkpointing."""

import pytest
import torch

from amuse.config import Config, LossConfig, ModelConfig, TrainConfig
from amuse.data import collate, synthetic_conversations
from amuse.data.batch import DialogueBatches
from amuse.data.mix import Mix
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from amuse.model.focal import focal_loss
from amuse.training.augmentation import augment, draw_mix
from amuse.training.losses import amuse_loss
from amuse.training.optimization import class_weights, dialogue_weights
from amuse.training.train import train

CONVERSATIONS = synthetic_conversations("train", num_dialogues=40, imbalance=8.0)


def make_batch(count=4):
    return collate(CONVERSATIONS.dialogues[:count], CONVERSATIONS.modalities)


def make_model(**options) -> Amuse:
    base = {"d_model": 16, "num_heads": 2, "man_layers": 1}
    return Amuse(ModelConfig(**{**base, **options}), DataSpec(CONVERSATIONS.modalities, CONVERSATIONS.label_names))


def test_mixup_interpolates_descriptors_and_losses():
    model, batch = make_model(temporal="none").eval(), make_batch()
    mix = Mix(torch.randperm(len(batch)), torch.rand(len(batch)) / 2 + 0.5)
    inputs = []
    model.temporal.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    model(batch)
    output = model(batch, mix)
    share = mix.share[:, None]
    torch.testing.assert_close(inputs[1], share * inputs[0] + (1 - share) * inputs[0][mix.partner])
    found = amuse_loss(output, batch.labels, LossConfig(), mix=mix)["final"]
    each, other = (focal_loss(output.logits, labels) for labels in (batch.labels, batch.labels[mix.partner]))
    torch.testing.assert_close(found, (mix.share * each + (1 - mix.share) * other).mean())


def test_a_mix_keeps_the_larger_share_and_leaves_unlabelled_utterances_alone():
    labels = torch.arange(200) % 6
    labels[:50] = -100
    mix = draw_mix(labels, alpha=0.4)
    assert (mix.share >= 0.5).all()
    assert (mix.share <= 1).all()
    assert (mix.share[:50] == 1).all()
    assert (mix.share[mix.partner < 50] == 1).all()
    assert mix.share[(mix.partner >= 50) & (labels >= 0)].std() > 0.05
    assert draw_mix(labels, 0.0) is None
    assert draw_mix(None, 0.4) is None


def test_streams_of_one_modality_are_dropped_and_swapped_together():
    config = ModelConfig(
        streams={"av": ["audio", "video"]},
        modality_dropout={"av": 0.5},
        modality_swap={"av": 0.5},
    )
    batch = make_batch()
    for name in ("audio", "video"):  # every utterance marked by its row
        batch.tokens[name] = (batch.layouts[name].row + 1.0)[:, None].expand_as(batch.tokens[name])
    found = augment(batch, config, config.groups(CONVERSATIONS.modalities))
    audio, video = (found.layouts[name].present for name in ("audio", "video"))
    assert torch.equal(audio, video)
    assert 0 < audio.sum() < len(batch)
    assert found.layouts["text"].present.all()
    rows = [found.padded(name)[0][:, 0, 0] for name in ("audio", "video")]
    assert torch.equal(*rows)
    assert (rows[0] != torch.arange(1.0, len(batch) + 1)).any()


def drawn_counts(weights):
    """How often each class is seen in ten epochs."""
    lengths = [len(dialogue) for dialogue in CONVERSATIONS.dialogues]
    batches = DialogueBatches(lengths, 4, shuffle=True, weights=weights)
    counts = torch.zeros(6)
    for epoch in range(10):
        batches.set_epoch(epoch)
        for batch in batches:
            for index in batch:
                for utterance in CONVERSATIONS.dialogues[index].utterances:
                    counts[utterance.label] += 1
    return counts


def test_balanced_sampling_shows_rare_classes_more_often():
    weights = dialogue_weights(CONVERSATIONS, TrainConfig(balance=2.0))
    plain, balanced = drawn_counts(None), drawn_counts(weights)
    rarest, commonest = plain.argmin(), plain.argmax()
    assert balanced[rarest] / balanced[commonest] > 1.3 * plain[rarest] / plain[commonest]


def test_class_weights_are_inverse_frequencies_of_mean_one():
    weights = class_weights(CONVERSATIONS, LossConfig(class_weights=1.0))
    assert weights.mean() == pytest.approx(1.0, rel=1e-5)
    products = weights * CONVERSATIONS.class_counts()
    torch.testing.assert_close(products, products[:1].expand(6), rtol=1e-5, atol=0)


def saved_bytes(model, batch) -> tuple[int, list[torch.Tensor]]:
    """Memory that the backward pass keeps, and the gradients."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = amuse_loss(model(batch), batch.labels, LossConfig())["loss"]
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept = sum(sizes.values())
    return kept, list(torch.autograd.grad(loss, parameters))


def test_recomputing_activations_keeps_less_and_changes_nothing():
    model, batch = make_model(man_layers=4, dropout=0.3).train(), make_batch(16)
    plain, expected = saved_bytes(model, batch)
    model.recompute_activations()
    less, found = saved_bytes(model, batch)
    assert less < plain / 2
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        ["train.mixup=0.4", "train.balance=0.5", "loss.label_smoothing=0.1", "train.ema=0.9"],
        ["train.mixup=0.4", "train.precision=bf16", "train.recompute=true", "train.accumulate=2"],
    ],
)
def test_all_guards_train_together(tmp_path, options):
    tiny = ["data.num_dialogues=6", "model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=2"]
    model = train(Config.load(None, [*tiny, *options]), tmp_path, progress=False)
    assert all(p.isfinite().all() for p in model.parameters())


def test_accumulation_works_with_one_modality_which_has_nothing_to_contrast(tmp_path):
    tiny = ["data.num_dialogues=4", "model.d_model=16", "model.num_heads=2", "train.epochs=1", "train.accumulate=2"]
    model = train(Config.load(None, [*tiny, "data.modalities=[text]"]), tmp_path, progress=False)
    assert all(p.isfinite().all() for p in model.parameters())
