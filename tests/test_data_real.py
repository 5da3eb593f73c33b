"""The published data sets, where they are available (see the fixture shared_data)."""

import pytest

from amuse.data.meld import read_meld
from amuse.data.mosi import read_mosi


@pytest.mark.parametrize(
    ("split", "utterances", "dialogues", "counts"),
    [
        ("train", 9989, 1038, [4710, 1205, 268, 683, 1743, 271, 1109]),
        ("dev", 1109, 114, [470, 150, 40, 111, 163, 22, 153]),
        ("test", 2610, 280, [1256, 281, 50, 208, 402, 68, 345]),
    ],
)
def test_meld_is_read_whole(shared_data, split, utterances, dialogues, counts):
    conversations = read_meld(shared_data / "meld", split)
    assert (conversations.num_utterances, len(conversations)) == (utterances, dialogues)
    assert conversations.class_counts().tolist() == counts
    assert all(u.text and u.end >= u.start for u in conversations.utterances())


@pytest.mark.parametrize(("split", "utterances", "videos"), [("train+valid", 1447, 62), ("test", 752, 31)])
def test_mosi_is_read_whole(shared_data, split, utterances, videos):
    conversations = read_mosi(shared_data / "mosi_features", split)
    assert (conversations.num_utterances, len(conversations)) == (utterances, videos)
    for dialogue in conversations.dialogues:
        # every segment is there, in the order in which it was said
        assert [u.id for u in dialogue.utterances] == [f"{dialogue.id}_{i}" for i in range(1, len(dialogue) + 1)]


def test_mosi_validation_videos_come_from_the_training_part(shared_data):
    parts = {
        s: {d.id for d in read_mosi(shared_data / "mosi_features", s).dialogues} for s in ("train", "valid", "test")
    }
    assert len(parts["train"]) + len(parts["valid"]) == 62
    assert not parts["train"] & parts["valid"]
    assert not (parts["train"] | parts["valid"]) & parts["test"]
