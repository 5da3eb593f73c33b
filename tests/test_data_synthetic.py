from itertools import combinations

import numpy as np
import pytest
import torch

from amuse.config import Config
from amuse.data.load import load_split
from amuse.data.synthetic import (
    CLOCK,
    EMOTION_OF,
    EMOTIONS,
    MODALITIES,
    VOICES,
    WORDS,
    oracle_accuracy,
    shared_vectors,
    synthetic_conversations,
)
from tests.batches import missing_counts

SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(MODALITIES, size)]


def equal(a, b):
    return all(
        x.id == y.id and x.label == y.label and all(torch.equal(x.features[m], y.features[m]) for m in MODALITIES)
        for x, y in zip(a.utterances(), b.utterances(), strict=True)
    )


def test_same_arguments_give_the_same_conversations_and_splits_differ():
    first = synthetic_conversations("train", num_dialogues=3, seed=5)
    assert equal(first, synthetic_conversations("train", num_dialogues=3, seed=5))
    other = synthetic_conversations("valid", num_dialogues=3, seed=5)
    assert first[0].utterances[0].text != other[0].utterances[0].text


def burst_level(utterance):
    token = utterance.features["audio"][utterance.evidence["audio"][0], :-CLOCK].numpy()
    directions = np.stack([shared_vectors().onset, shared_vectors().level])
    return round(float(np.linalg.lstsq(directions.T, token, rcond=None)[0][1]))


@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_label_follows_from_the_planted_evidence_and_the_speaker(contrast):
    split = synthetic_conversations("test", num_dialogues=40, label_noise=0.0, noise=0.05, contrast=contrast)
    for dialogue in split.dialogues:
        levels = {u.speaker: set() for u in dialogue.utterances}
        for utterance in dialogue.utterances:
            levels[utterance.speaker].add(burst_level(utterance))
        for utterance in dialogue.utterances:
            words = utterance.text.split()
            assert len(words) == len(utterance.features["text"])
            tones = [t for t in WORDS for i in utterance.evidence["text"] if words[i] in WORDS[t]] or ["plain"]
            apex = utterance.features["video"][utterance.evidence["video"][0], :-CLOCK].numpy()
            rest = utterance.features["video"][:, :-CLOCK].numpy().mean(axis=0)
            face = "smile" if (apex - rest) @ shared_vectors().expression > 0 else "frown"
            heard = levels[utterance.speaker]
            assert not {-1, 1} <= heard  # a speaker is quiet or loud, never both
            level = burst_level(utterance)
            if level == 0 and not heard & {-1, 1}:
                continue  # nothing in this dialogue tells how loud the speaker is
            loud = 1 in heard
            voice = VOICES[level + 1 - loud]
            assert EMOTIONS[utterance.label] == EMOTION_OF[tones[0], voice, face]


def test_mean_of_the_voice_tells_nothing():
    split = synthetic_conversations("test", num_dialogues=30, noise=0.0)
    for utterance in split.utterances():
        mean = utterance.features["audio"][:, :-CLOCK].mean(dim=0)
        assert mean.abs().max() < 1e-5


def test_text_features_are_the_vectors_of_the_words():
    for utterance in synthetic_conversations("valid", num_dialogues=3, noise=0.0).utterances():
        vectors = torch.from_numpy(np.stack([shared_vectors().words[word] for word in utterance.text.split()])).float()
        assert torch.equal(utterance.features["text"][:, :-CLOCK], vectors)


@pytest.mark.parametrize("options", [{}, {"contrast": 0.3}, {"absent_rate": 0.2}, {"imbalance": 1, "label_noise": 0}])
def test_every_modality_and_the_speaker_raise_the_ceiling(options):
    best = {subset: oracle_accuracy(subset, **options) for subset in SUBSETS}
    for subset, accuracy in best.items():
        for larger in SUBSETS:
            if set(subset) < set(larger):
                assert accuracy < best[larger] - 0.02
    assert max(best[subset] for subset in SUBSETS[:3]) < 0.45
    for subset in SUBSETS:
        assert oracle_accuracy(subset, speaker_context=False, **options) <= best[subset] + 1e-12
    trimodal = tuple(MODALITIES)
    assert oracle_accuracy(trimodal, speaker_context=False, **options) < best[trimodal] - 0.1


def test_ceiling_of_everything_is_one_minus_label_noise():
    assert oracle_accuracy(tuple(MODALITIES), label_noise=0.1) == pytest.approx(0.9)
    assert oracle_accuracy(tuple(MODALITIES), label_noise=0.0, contrast=0.5) == pytest.approx(1.0)
    assert oracle_accuracy(tuple(MODALITIES), contrast=0.5, timing=False) == pytest.approx(0.835, abs=0.0005)
    with pytest.raises(ValueError, match="modalities: expected some of"):
        oracle_accuracy(["smell"])
    with pytest.raises(ValueError, match="modalities: expected some of"):
        oracle_accuracy([])


def test_modalities_are_absent_at_the_given_rate_and_never_all():
    split = synthetic_conversations("train", num_dialogues=150, absent_rate=0.3)
    for missing in missing_counts(split).values():
        assert 0.24 < missing / split.num_utterances < 0.34
    assert all(u.features and u.evidence.keys() == u.features.keys() for u in split.utterances())


def test_shapes_speakers_and_imbalance_are_as_documented():
    split = synthetic_conversations("train", num_dialogues=200, imbalance=4.0)
    assert split.modalities == MODALITIES
    assert all(3 <= len(x) <= 10 for u in split.utterances() for x in u.features.values())
    assert all(5 <= len(d) <= 12 and len({u.speaker for u in d.utterances}) <= 4 for d in split.dialogues)
    counts = split.class_counts()
    assert 2.5 < counts[0] / counts[-1] < 6


@pytest.mark.parametrize(
    "wrong", [{"split": "dev"}, {"num_dialogues": 0}, {"turns": (0, 3)}, {"absent_rate": 1.0}, {"imbalance": 0.5}]
)
def test_impossible_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        synthetic_conversations(**{"split": "train", "num_dialogues": 1, **wrong})


def test_contrast_can_be_set_in_a_configuration():
    def both_tones(*options):
        test = load_split(Config.load(None, ["data.num_dialogues=40", *options]).data, "test")
        words = [set(utterance.text.split()) for utterance in test.utterances()]
        return sum(bool(said & set(WORDS["kind"])) and bool(said & set(WORDS["harsh"])) for said in words) / len(words)

    assert both_tones() == 0
    # kind and harsh words are said in about two of three utterances
    assert 0.2 < both_tones("data.contrast=0.5") < 0.45
