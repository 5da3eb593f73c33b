"""The model against the paper's equations: whatever Output shows is what tests/paper_equations.py computes."""

import pytest
import torch

from amuse.config import ModelConfig
from amuse.data import Dialogue, collate, synthetic_conversations
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from tests import paper_equations as paper

CONVERSATIONS = synthetic_conversations("train", num_dialogues=3, seed=3, absent_rate=0.25)
MODALITIES = list(CONVERSATIONS.modalities)
UTTERANCES = list(CONVERSATIONS.utterances())
PRESENT = [[m in utterance.features for m in MODALITIES] for utterance in UTTERANCES]
LABELS = [utterance.label for utterance in UTTERANCES]
EPSILON, HEADS, WIDTH, MAN_LAYERS = 0.2, 2, 16, 2


def make_model(**options) -> Amuse:
    torch.manual_seed(5)
    sizes = {"d_model": WIDTH, "num_heads": HEADS, "man_layers": MAN_LAYERS, "dropout": 0.0, "epsilon": EPSILON}
    model = Amuse(
        ModelConfig(**{**sizes, **options}), DataSpec(CONVERSATIONS.modalities, CONVERSATIONS.label_names)
    ).eval()
    with torch.no_grad():  # biases and norms that start at 0 and 1 would hide what they are added to
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def run(**options):
    """A model's weights in fp64 and its output, in evaluation."""
    model = make_model(**options)
    return paper.double(model.state_dict()), model(collate(CONVERSATIONS.dialogues, CONVERSATIONS.modalities))


def close(ours, expected, tolerance=2e-5):
    torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=tolerance)


def by_dialogue(rows):
    """Rows of all utterances cut into dialogues, each with its speakers."""
    start = 0
    for dialogue in CONVERSATIONS.dialogues:
        yield rows[start : start + len(dialogue)], [u.speaker for u in dialogue.utterances]
        start += len(dialogue)


def test_the_made_conversations_have_what_the_equations_distinguish():
    assert any(all(row) for row in PRESENT)
    assert any(not all(row) for row in PRESENT)
    for _, speakers in by_dialogue(UTTERANCES):
        assert 1 < len(set(speakers)) < len(speakers)


# --- III-A, III-B, Eq. 1 ---


@pytest.mark.parametrize("merge", ["mean", "concat"])
@pytest.mark.parametrize("layers", [1, 4])
def test_descriptors_are_equation_1_with_its_heads_pooled(merge, layers):
    weights, output = run(head_merge=merge, man_layers=layers)
    for row, utterance in enumerate(UTTERANCES):
        features = [utterance.features.get(m) for m in MODALITIES]
        sizes = {"unimodal_layers": 1, "man_layers": layers, "heads": HEADS, "merge": merge}
        close(output.descriptors[row], paper.descriptors(weights, features, **sizes))


@pytest.mark.parametrize("merge", ["mean", "concat"])
def test_the_linear_map_around_the_scores_mixes_the_heads_of_each_source(merge):
    weights, output = run(man_score_map=True, head_merge=merge)
    assert (weights["central.0.layers.0.attention.score_map"] != torch.eye(HEADS)).all()
    for row, utterance in enumerate(UTTERANCES):
        features = [utterance.features.get(m) for m in MODALITIES]
        sizes = {"unimodal_layers": 1, "man_layers": MAN_LAYERS, "heads": HEADS, "merge": merge}
        close(output.descriptors[row], paper.descriptors(weights, features, **sizes))


def test_the_bi_lstm_of_figure_1_runs_over_the_central_networks_tokens():
    weights, output = run(man_lstm=True)
    for row, utterance in enumerate(UTTERANCES):
        features = [utterance.features.get(m) for m in MODALITIES]
        sizes = {"unimodal_layers": 1, "man_layers": MAN_LAYERS, "heads": HEADS, "merge": "mean"}
        close(output.descriptors[row], paper.descriptors(weights, features, **sizes, man_lstm=True))


def test_the_unimodal_stage_is_a_bi_lstm_and_stacked_self_attention():
    weights, output = run(man=False, unimodal_layers=2, head_merge="mean")
    for row, utterance in enumerate(UTTERANCES):
        for m, name in enumerate(MODALITIES):
            if name in utterance.features:
                tokens = utterance.features[name].double()
                f = paper.unimodal(weights, f"unimodal.{m}", tokens, 2, HEADS, "mean")
                close(output.descriptors[row, m], f.mean(0))


def test_every_central_network_has_a_classifier_of_its_own_on_its_descriptor():
    weights, output = run()
    for m in range(len(MODALITIES)):
        close(output.modality_logits[:, m], paper.linear(weights, f"heads.{m}", output.descriptors[:, m].double()))


# --- Eq. 2, Eq. 6, III-E2: the coefficients ---


def test_the_closed_form_is_equation_6_for_the_predicted_label():
    weights, output = run(fusion="closed_form", temporal="none")
    inside = 0
    for row, present in enumerate(PRESENT):
        f = output.descriptors[row].double()
        alpha = paper.closed_form(weights, f, present, EPSILON)
        close(output.alpha[row], alpha, 1e-4)
        close(output.context[row], paper.own_descriptor(weights, paper.equation_2(f, alpha, present)), 1e-4)
        inside += int(((alpha > 0) & (alpha < 1)).sum())
    assert inside > 100  # most coefficients are not at a bound, where a wrong one would go unseen


def test_the_teacher_is_equation_6_for_the_true_label():
    model = make_model(gate_teacher=True)
    batch = collate(CONVERSATIONS.dialogues, CONVERSATIONS.modalities)
    output, weights = model.train()(batch), paper.double(model.state_dict())
    predicted = output.modality_logits.argmax(-1)
    assert (predicted != batch.labels[:, None]).any()
    for row, present in enumerate(PRESENT):
        here = torch.tensor(present)
        pairs = here[:, None] & here & ~torch.eye(len(here), dtype=torch.bool)
        expected = paper.closed_form(weights, output.descriptors[row].detach().double(), present, EPSILON, LABELS[row])
        close(output.teacher[row][pairs], expected[pairs], 1e-4)


def test_the_chain_mixes_the_modalities_one_after_the_other():
    weights, output = run(fusion="chain", temporal="none")
    assert output.alpha is None
    for row, present in enumerate(PRESENT):
        fused = paper.chain(weights, output.descriptors[row].double(), present, EPSILON)
        close(output.context[row], paper.own_descriptor(weights, fused), 1e-4)


def test_the_chains_coefficients_are_those_of_the_paper():
    """a1 a2, a2 (1 - a1) and 1 - a2, which add up to 1."""
    weights, output = run(fusion="chain", temporal="none")
    for row, present in enumerate(PRESENT):
        if all(present):
            f_1, f_2, f_3 = output.descriptors[row].double()
            a_1 = paper.equation_6(f_1, f_2, paper.loss_gradient(weights, 1, f_2, None), EPSILON)
            u_1 = a_1 * f_1 + (1 - a_1) * f_2
            a_2 = paper.equation_6(u_1, f_3, paper.loss_gradient(weights, 2, f_3, None), EPSILON)
            u_2 = a_1 * a_2 * f_1 + a_2 * (1 - a_1) * f_2 + (1 - a_2) * f_3
            close(output.context[row], paper.own_descriptor(weights, u_2), 1e-4)


def test_the_gate_is_a_sigmoid_of_two_inner_products_per_ordered_pair():
    weights, output = run(fusion="learned", temporal="none")
    pairs = [(m, n) for m in range(3) for n in range(3) if m != n]
    for row, present in enumerate(PRESENT):
        f = output.descriptors[row].double()
        alpha = f.new_zeros(3, 3)
        for k, (m, n) in enumerate(pairs):
            if present[m] and present[n]:
                to_m, to_n = weights["fusion.pair_weight"][k]
                alpha[m, n] = torch.sigmoid(to_m @ f[m] + to_n @ f[n] + weights["fusion.pair_bias"][k])
        close(output.alpha[row], alpha)
        close(output.context[row], paper.own_descriptor(weights, paper.equation_2(f, alpha, present)))


def test_equal_alpha_is_one_half():
    weights, output = run(fusion="equal", temporal="none")
    half = torch.full((3, 3), 0.5, dtype=torch.float64)
    for row, present in enumerate(PRESENT):
        here = torch.tensor(present)
        pairs = here[:, None] & here & ~torch.eye(3, dtype=torch.bool)
        assert torch.equal(output.alpha[row], 0.5 * pairs.float())
        fused = paper.equation_2(output.descriptors[row].double(), half, present)
        close(output.context[row], paper.own_descriptor(weights, fused))


def test_random_alpha_is_uniform_and_drawn_for_every_instance_and_call():
    model = make_model(fusion="random", temporal="none")
    batch, weights = collate(CONVERSATIONS.dialogues, CONVERSATIONS.modalities), paper.double(model.state_dict())
    outputs = [model(batch) for _ in range(30)]
    for row, present in enumerate(PRESENT):
        f = outputs[0].descriptors[row].double()
        fused = paper.equation_2(f, outputs[0].alpha[row].double(), present)
        close(outputs[0].context[row], paper.own_descriptor(weights, fused))
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    whole = torch.tensor(PRESENT).all(-1)
    drawn = torch.stack([output.alpha[whole][:, off_diagonal] for output in outputs]).double()  # (calls, rows, 6)
    assert drawn.unique().numel() > 0.99 * drawn.numel()
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        error = 4 * (share * (1 - share) / drawn.numel()) ** 0.5
        assert (drawn < share).double().mean() == pytest.approx(share, abs=error)


def test_concatenation_leaves_the_descriptors_as_they_are():
    weights, output = run(fusion="concat", temporal="none")
    assert output.alpha is None
    close(output.context, paper.own_descriptor(weights, output.descriptors.flatten(1).double()))


# --- III-D: the contexts and the classifier ---


def test_dialogue_and_speaker_context_are_two_bi_lstms_beside_the_utterance():
    weights, output = run()
    for context, speakers in by_dialogue(output.context.double()):
        own, dialogue, speaker = context.split(WIDTH, dim=-1)
        close(dialogue, paper.dialogue_context(weights, own))
        close(speaker, paper.speaker_context(weights, own, speakers))


@pytest.mark.parametrize("causal", [False, True])
def test_context_by_attention_has_the_sources_same_and_any_speaker(causal):
    weights, output = run(temporal="attention", temporal_layers=2, causal=causal)
    for context, speakers in by_dialogue(output.context.double()):
        own, attended = context.split(WIDTH, dim=-1)
        close(attended, paper.attended_context(weights, own, speakers, 2, HEADS, causal))


def test_a_context_window_sees_the_last_utterances_only():
    window = 2
    model = make_model(temporal="attention", causal=True, context_window=window)
    weights = paper.double(model.state_dict())
    output = model(collate(CONVERSATIONS.dialogues, CONVERSATIONS.modalities))
    for context, speakers in by_dialogue(output.context.double()):
        own, attended = context.split(WIDTH, dim=-1)
        code = paper.sinusoids(*own.shape)
        for last in range(len(speakers)):
            # the last utterance of a dialogue that is cut to the window, at its own position
            start = max(last - window + 1, 0)
            part = own[start : last + 1] + code[start : last + 1] - paper.sinusoids(last + 1 - start, WIDTH)
            expected = paper.attended_context(weights, part, speakers[start : last + 1], 1, HEADS, True)
            close(attended[last], expected[-1])


@pytest.mark.parametrize("temporal", ["bilstm", "attention", "none"])
def test_the_classifier_is_linear_on_the_contexts(temporal):
    weights, output = run(temporal=temporal)
    close(output.logits, paper.linear(weights, "classifier", output.context.double()))


def test_an_utterance_alone_has_a_dialogue_and_a_speaker_context_too():
    model = make_model()
    alone = Dialogue("alone", CONVERSATIONS.dialogues[0].utterances[:1])
    context = model(collate([alone], CONVERSATIONS.modalities)).context.double()
    own, dialogue, speaker = context.split(WIDTH, dim=-1)
    weights = paper.double(model.state_dict())
    close(dialogue, paper.dialogue_context(weights, own))
    close(speaker, paper.speaker_context(weights, own, ["Ann"]))
