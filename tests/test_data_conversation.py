from dataclasses import replace

import pytest
import torch

from amuse.data.clock import clock
from amuse.data.conversation import Conversations, Dialogue, Utterance
from tests.batches import missing_counts

NAMES = ["calm", "angry"]
WIDTHS = {"text": 4, "words": 0}


def utterance(name="u0", **changes):
    features = {"text": torch.zeros(3, 4), "words": torch.tensor([5, 6])}
    return replace(Utterance(name, "Ada", features, label=1, text="a b c"), **changes)


def conversations(*utterances, label_names=NAMES):
    return Conversations([Dialogue("d0", list(utterances))], label_names, WIDTHS)


@pytest.mark.parametrize(
    ("label", "label_names"),
    [(2, NAMES), (-1, NAMES), (True, NAMES), (0.5, NAMES), (float("nan"), NAMES), (float("nan"), None), ("joy", None)],
)
def test_impossible_label_is_refused_with_its_place(label, label_names):
    with pytest.raises(ValueError, match=r"dialogue 'd0', utterance 'u0', label: expected .* got"):
        conversations(utterance(label=label), label_names=label_names)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"text": torch.zeros(3, 5)}, r"expected torch.float32 \(L, 4\), got torch.float32 \(3, 5\)"),
        ({"text": torch.zeros(4)}, r"got torch.float32 \(4,\)"),
        ({"text": torch.zeros(3, 4, dtype=torch.float64)}, "got torch.float64"),
        ({"text": [[0.0] * 4]}, "got list"),
        ({"text": torch.tensor([[0.0] * 4, [float("nan")] * 4])}, "NaN or infinity in token 1"),
        ({"text": torch.full((1, 4), float("inf"))}, "NaN or infinity in token 0"),
        ({"words": torch.zeros(3, 4)}, r"expected token ids, torch.int64 \(L,\)"),
        ({"words": torch.tensor([-1])}, "expected token ids >= 0, got -1"),
        ({"smell": torch.zeros(3, 4)}, "expected a modality out of"),
    ],
)
def test_malformed_features_are_refused_with_their_place(features, expected):
    with pytest.raises(ValueError, match=rf"dialogue 'd0', utterance 'u0', features.*{expected}"):
        conversations(utterance(features=features))


def test_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="utterance 'u0': expected distinct utterance ids"):
        conversations(utterance(), utterance())
    with pytest.raises(ValueError, match="dialogue 'd0': expected distinct dialogue ids"):
        Conversations([Dialogue("d0", [utterance("a")]), Dialogue("d0", [utterance("b")])], NAMES, WIDTHS)


def test_empty_dialogue_and_empty_split_are_refused():
    with pytest.raises(ValueError, match="dialogue 'd0': expected at least one utterance, got none"):
        conversations()
    with pytest.raises(ValueError, match="expected at least one dialogue"):
        Conversations([], NAMES, WIDTHS)


def test_unlabelled_and_absent_are_fine_and_counted():
    split = conversations(utterance(label=None), utterance("u1", features={}), utterance("u2", label=0))
    assert split.class_counts().tolist() == [1, 1]
    assert missing_counts(split) == {"text": 1, "words": 1}
    assert split.num_utterances == 3


def test_regression_has_no_class_counts():
    split = conversations(utterance(label=-0.5), utterance("u1", label=None), label_names=None)
    assert split.regression
    with pytest.raises(ValueError, match="regression"):
        split.class_counts()


def test_select_keeps_the_named_modalities_and_leaves_the_original_alone():
    split = conversations(utterance())
    alone = split.select(["words"])
    assert alone.modalities == {"words": 0}
    assert list(alone[0].utterances[0].features) == ["words"]
    assert list(split[0].utterances[0].features) == ["text", "words"]
    with pytest.raises(ValueError, match="'smell'"):
        split.select(["smell"])


def test_added_features_are_checked_and_absent_where_there_is_no_entry():
    split = conversations(utterance(), utterance("u1")).with_features("face", 2, {"u0": torch.ones(1, 2)})
    assert missing_counts(split)["face"] == 1
    with pytest.raises(ValueError, match=r"features\['face'\]"):
        split.with_features("face", 2, {"u0": torch.ones(1, 3)})


def test_subset_holds_the_dialogues_at_the_indices():
    dialogues = [Dialogue(f"d{i}", [utterance(f"u{i}")]) for i in range(3)]
    assert [d.id for d in Conversations(dialogues, NAMES, WIDTHS).subset([2, 0]).dialogues] == ["d2", "d0"]


@pytest.mark.parametrize(
    ("seconds", "decimals", "written"),
    [
        (0, 0, "0:00"),
        (125.4, 0, "2:05"),
        (59.6, 0, "1:00"),
        (2.4, 2, "0:02.40"),
        (59.999, 2, "1:00.00"),
        (3725.5, 2, "1:02:05.50"),
    ],
)
def test_times_are_written_as_minutes_and_seconds(seconds, decimals, written):
    assert clock(seconds, decimals) == written
