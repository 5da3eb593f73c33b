"""Effects, not shapes, of parts of the paper that are options: streams of one modality, Eq. 6 as teacher, speakers."""

import dataclasses

import pytest
import torch

from amuse.config import LossConfig, ModelConfig
from amuse.data import collate, synthetic_conversations
from amuse.data.spec import DataSpec
from amuse.explain.influence import attention_flow, attention_weights
from amuse.layout import Layout
from amuse.model.amuse import Amuse
from amuse.model.packed import pack
from amuse.model.stages import inject
from amuse.training.auxiliary import gate_loss, speaker_loss
from amuse.training.losses import LossDenominators, amuse_loss
from tests.batches import repadded, without

CONVERSATIONS = synthetic_conversations("train", num_dialogues=6, absent_rate=0.1)
GROUPED = {"av": ["audio", "video"]}


def make_model(**options) -> Amuse:
    torch.manual_seed(0)
    base = {"d_model": 16, "num_heads": 2, "man_layers": 1, "dropout": 0.0}
    return Amuse(ModelConfig(**{**base, **options}), DataSpec(CONVERSATIONS.modalities, CONVERSATIONS.label_names))


def make_batch():
    return collate(CONVERSATIONS.dialogues, CONVERSATIONS.modalities)


def fit(model, loss_of, steps=60):
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    values = []
    for _ in range(steps):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


# --- options of the stages ---


def test_the_softmax_of_the_man_may_run_over_all_sources():
    talk = synthetic_conversations("test", num_dialogues=2)
    batch = collate(talk.dialogues, talk.modalities)
    for normalization, expected in (("joint", 1.0), ("per_source", 2 / 3)):  # of the paper, 1 / |M| for each source
        flow = attention_flow(make_model(man_normalization=normalization), batch)
        total = flow["text", "audio"].sum(1) + flow["text", "video"].sum(1)
        torch.testing.assert_close(total, torch.full_like(total, expected))


def test_without_layer_norms_descriptors_keep_their_size():
    for norm in (True, False):
        stage = make_model(descriptor_norm=norm, unimodal_lstm=False, unimodal_layers=0).eval().unimodal[0]
        x = torch.randn(5, stage.project.in_features)
        layout = Layout.of([1] * 5)
        zero, once, twice = (stage(factor * x, layout) for factor in (0.0, 1.0, 2.0))
        grown = (twice - zero).norm() / (once - zero).norm()
        assert grown < 1.5 if norm else abs(grown - 2) < 1e-4


def test_a_gate_of_scale_0_starts_at_the_equal_mix_and_learns():
    batch = make_batch()
    model = make_model(gate_scale=0.0)
    output = model.eval()(batch)
    present = output.present[:, :, None] & output.present[:, None]
    ordered = present & ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(output.alpha[ordered], torch.full_like(output.alpha[ordered], 0.5))
    output.logits.logsumexp(-1).sum().backward()
    assert (model.fusion.pair_weight.grad.norm(dim=-1) > 0).all()
    start, half = (make_model(gate_scale=scale).fusion.pair_weight for scale in (1.0, 0.5))
    assert torch.equal(half, 0.5 * start)
    assert start.std() > 0.1
    with pytest.raises(ValueError, match="gate_scale: expected"):
        ModelConfig(gate_scale=-1.0)


# --- face and background: streams of one modality (III-A) ---


def test_streams_make_one_modality_and_each_of_them_counts():
    model, batch = make_model(streams=GROUPED).eval(), make_batch()
    assert model.modalities == ["text", "av"]
    output = model(batch)
    assert output.descriptors.shape[1] == 2
    for name in ("audio", "video"):
        changed = make_batch()
        here = changed.layouts[name].present
        changed.tokens[name] += 1.0
        difference = (model(changed).descriptors - output.descriptors)[:, 1].abs().amax(-1)
        assert (difference[here] > 1e-4).all()
        assert (difference[~here] == 0).all()


def test_a_modality_without_one_of_its_streams_is_what_the_other_makes_of_it():
    model, batch = make_model(streams=GROUPED).eval(), without(make_batch(), "video")
    output = model(batch)
    assert torch.equal(output.present[:, 1], batch.layouts["audio"].present)
    assert output.logits.isfinite().all()


def test_self_attention_relates_the_streams():
    """Without it, the two streams would only be averaged together."""
    attended, separate = (make_model(streams=GROUPED, unimodal_layers=n, man=False).eval() for n in (1, 0))
    batch, silent = make_batch(), make_batch()
    silent.tokens["video"] += 1.0

    def audio_tokens(model, batch):
        stage, names = model.unimodal[1], GROUPED["av"]
        merge = batch.merge(names)
        out = stage([batch.tokens[n] for n in names], [batch.layouts[n] for n in names], merge)
        return out[merge.inverse[: len(batch.tokens["audio"])]]

    for model, related in ((attended, True), (separate, False)):
        moved = (audio_tokens(model, batch) - audio_tokens(model, silent)).abs().max()
        assert (moved > 1e-4) == related


def test_the_bi_lstm_before_fusion_does_not_see_the_padding_between_streams():
    model, batch = make_model(streams=GROUPED, man_lstm=True).eval(), make_batch()
    wider = repadded(make_batch(), 0.0, extra=9)
    torch.testing.assert_close(model(wider).descriptors, model(batch).descriptors, atol=1e-5, rtol=1e-5)


def test_the_explanation_reads_the_weights_of_mapped_scores():
    model, batch = make_model(man_score_map=True).eval(), make_batch()
    layer = model.central[0].layers[0].attention
    masks = [torch.arange(7) < torch.tensor([[7], [3]]), torch.ones(2, 7, dtype=torch.bool)]
    texts, *audios = (Layout.of(lengths) for lengths in ([5, 5], [7, 3], [7, 7]))
    sources = [inject(torch.randn(own.num_tokens, 16), own, [(layer, p)])[0] for p, own in enumerate(audios)]
    weights = attention_weights(layer, pack(torch.randn(10, 16), texts), sources)
    for weight, mask in zip(weights, masks, strict=True):
        torch.testing.assert_close(weight.sum(-1), torch.full((2, 5), 1 / 3))
        assert (weight.transpose(1, 2)[~mask] == 0).all()
    assert model(batch).logits.isfinite().all()


def test_a_model_with_streams_survives_its_checkpoint(tmp_path):
    model, batch = make_model(streams=GROUPED, speaker_head=True).eval(), make_batch()
    model.save_pretrained(tmp_path)
    assert torch.equal(Amuse.from_pretrained(tmp_path)(batch).logits, model(batch).logits)


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"video": ["face"]}, "expected names out of"),
        ({"av": ["audio"], "va": ["audio"]}, "every stream once"),
        ({"text": ["audio", "video"]}, "names a modality that the data have too"),
    ],
)
def test_bad_streams_are_refused(streams, message):
    with pytest.raises(ValueError, match=message):
        make_model(streams=streams)


# --- Eq. 6 as teacher of the gate ---


@pytest.mark.slow
def test_the_gate_comes_to_follow_the_closed_form():
    model, batch = make_model(gate_teacher=True, epsilon=1.0), make_batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fusion."))
    batch.labels[:] = torch.randint(6, (len(batch),))

    def distance(model):
        return amuse_loss(model(batch), batch.labels, LossConfig())["gate"]

    distances = fit(model, distance, steps=200)
    assert distances[-1] < distances[0] / 2
    # better than the best constant, so the gate has learned what depends on the instance
    output = model(batch)
    target = output.teacher.mean(-1)
    pairs = output.present[:, :, None] & output.present[:, None] & ~torch.eye(3, dtype=torch.bool)
    constant = (target - (target * pairs).sum(0) / pairs.sum(0))[pairs].square().mean()
    assert distances[-1] < constant


def test_the_teacher_is_given_the_true_label_in_training_only():
    model, batch, other = make_model(gate_teacher=True), make_batch(), make_batch()
    other.labels = (other.labels + 1) % 6
    model.train()
    assert not torch.equal(model(batch).teacher, model(other).teacher)
    model.eval()
    assert model(batch).teacher is None
    assert torch.equal(model(batch).logits, model(other).logits)


def test_the_teacher_is_not_taught():
    model, batch = make_model(gate_teacher=True).train(), make_batch()
    output = model(batch)
    assert not output.teacher.requires_grad
    denominators = LossDenominators.of(batch.labels, output.present)
    loss = gate_loss(output.alpha, output.teacher, output.present, denominators.gate)
    gradients = torch.autograd.grad(loss, list(model.heads.parameters()), allow_unused=True)
    assert all(g is None for g in gradients)


def test_a_teacher_needs_a_learned_gate():
    with pytest.raises(ValueError, match="gate_teacher: needs fusion 'learned'"):
        make_model(gate_teacher=True, fusion="equal")


# --- speaker identification ---


def nearest_is_same(voices, batch):
    """Share of utterances whose nearest other one of the dialogue is by the same speaker."""
    same_dialogue = batch.dialogue[:, None] == batch.dialogue
    others = same_dialogue & ~torch.eye(len(voices), dtype=torch.bool)
    same = others & (batch.speaker[:, None] == batch.speaker)
    nearest = (voices @ voices.T).masked_fill(~others, -2).argmax(-1)
    rows = same.any(-1)
    return same[torch.arange(len(voices)), nearest][rows].float().mean()


@pytest.mark.slow
def test_descriptors_learn_to_tell_speakers_apart_also_unknown_ones():
    model, batch = make_model(speaker_head=True), make_batch()
    unseen = synthetic_conversations("test", num_dialogues=8)
    unseen_batch = collate(unseen.dialogues, unseen.modalities)
    before = nearest_is_same(model(unseen_batch).voices, unseen_batch)
    fit(model, lambda m: amuse_loss(m(batch), batch.labels, LossConfig(), batch=batch)["speaker"], steps=80)
    assert nearest_is_same(model(batch).voices, batch) > 0.9
    after = nearest_is_same(model(unseen_batch).voices, unseen_batch)
    assert after > before + 0.04


def test_the_speaker_loss_is_the_softmax_over_the_dialogue():
    batch = make_batch()
    voices = torch.nn.functional.normalize(torch.randn(len(batch), 8, dtype=torch.float64), dim=-1)
    present = torch.ones(len(batch), 3, dtype=torch.bool)
    total = LossDenominators.of(batch.labels, present, batch=batch).speaker
    expected, count = 0.0, 0
    for i in range(len(batch)):
        others = [j for j in range(len(batch)) if j != i and batch.dialogue[j] == batch.dialogue[i]]
        same = [j for j in others if batch.speaker[j] == batch.speaker[i]]
        if same:
            scores = (voices[others] @ voices[i] / 0.1).log_softmax(-1)
            expected -= sum(scores[others.index(j)] for j in same) / len(same)
            count += 1
    assert total == count
    torch.testing.assert_close(speaker_loss(voices, batch, present, 0.1, total), expected / count)


def test_voices_know_nothing_of_the_speakers_names():
    model, batch = make_model(speaker_head=True).eval(), make_batch()
    renamed = dataclasses.replace(batch, speaker=torch.zeros_like(batch.speaker))
    assert torch.equal(model(batch).voices, model(renamed).voices)
