import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amuse.data.batch import DialogueBatches, collate, make_loader
from amuse.data.conversation import Conversations, Dialogue, Utterance

WIDTHS = {"text": 3, "words": 0}


@st.composite
def dialogue_lists(draw):
    dialogues = []
    for d in range(draw(st.integers(1, 4))):
        utterances = []
        for u in range(draw(st.integers(1, 5))):
            lengths = draw(st.fixed_dictionaries({m: st.none() | st.integers(0, 6) for m in WIDTHS}))
            features = {}
            if lengths["text"] is not None:
                features["text"] = torch.randn(lengths["text"], 3)
            if lengths["words"] is not None:
                features["words"] = torch.randint(0, 9, (lengths["words"],))
            speaker = draw(st.sampled_from(["Ada", "Ben", "Cleo"]))
            utterances.append(Utterance(f"d{d}u{u}", speaker, features, draw(st.none() | st.integers(0, 1))))
        dialogues.append(Dialogue(f"d{d}", utterances))
    return dialogues


@settings(max_examples=60, deadline=None)
@given(dialogue_lists())
def test_every_token_and_label_can_be_read_back_from_a_batch(dialogues):
    batch = collate(dialogues, WIDTHS)
    row = 0
    for d, dialogue in enumerate(dialogues):
        seen = list(dict.fromkeys(u.speaker for u in dialogue.utterances))
        for position, utterance in enumerate(dialogue.utterances):
            assert batch.ids[row] == (dialogue.id, utterance.id)
            where = (int(batch.dialogue[row]), int(batch.position[row]), seen[int(batch.speaker[row])])
            assert where == (d, position, utterance.speaker)
            for modality in WIDTHS:
                padded, masks = batch.padded(modality)
                kept = padded[row][masks[row]]
                tokens = utterance.features.get(modality)
                assert torch.equal(kept, padded[row][:0] if tokens is None else tokens)
                assert not padded[row][~masks[row]].any()
                start, stop = batch.layouts[modality].cu_seq[row : row + 2].tolist()
                assert torch.equal(batch.tokens[modality][start:stop], kept)
            if batch.labels is None:
                assert utterance.label is None
            else:
                assert batch.labels[row] == (-100 if utterance.label is None else utterance.label)
            row += 1
    assert len(batch) == row
    assert batch.num_dialogues == len(dialogues)
    assert all(mask.dtype == torch.bool and mask.shape[1] >= 1 for _, mask in map(batch.padded, WIDTHS))


def labelled(*labels):
    return [Dialogue("d", [Utterance(f"u{i}", "Ada", {}, label) for i, label in enumerate(labels)])]


def test_labels_are_none_only_when_nothing_is_labelled():
    assert collate(labelled(None, None), {}).labels is None
    assert collate(labelled(None, 3), {}).labels.tolist() == [-100, 3]
    regression = collate(labelled(None, 0.5), {}, regression=True).labels
    assert regression.dtype == torch.float32
    assert regression[0].isnan()
    assert regression[1] == 0.5


def test_nothing_to_collate_is_refused():
    with pytest.raises(ValueError, match="at least one dialogue"):
        collate([], WIDTHS)
    with pytest.raises(ValueError, match="dialogue 'd': expected at least one utterance"):
        collate([Dialogue("d", [])], WIDTHS)


def test_to_converts_every_tensor():
    batch = collate([Dialogue("d", [Utterance("u", "Ada", {"text": torch.ones(2, 3)}, 0)])], WIDTHS).to("meta")
    layouts = [*batch.layouts.values(), batch.dialogues]
    ours = [each for own in layouts for each in (own.cu_seq, own.row, own.position, own.steps.order, own.steps.inverse)]
    tensors = [*batch.tokens.values(), *ours, batch.speaker, batch.turns.order, batch.turns.inverse]
    assert all(tensor.device.type == "meta" for tensor in [*tensors, batch.labels])


LENGTHS = [int(n) for n in torch.randint(1, 20, (101,), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("max_utterances", [None, 30])
def test_an_epoch_holds_every_dialogue_once(shuffle, max_utterances):
    batches = list(DialogueBatches(LENGTHS, 8, shuffle=shuffle, max_utterances=max_utterances))
    assert sorted(i for batch in batches for i in batch) == list(range(len(LENGTHS)))
    assert all(0 < len(batch) <= 8 for batch in batches)
    if max_utterances:
        assert all(sum(LENGTHS[i] for i in batch) <= max_utterances for batch in batches)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    def epoch(seed, number):
        sampler = DialogueBatches(LENGTHS, 8, shuffle=True, seed=seed)
        sampler.set_epoch(number)
        torch.rand(3)  # the global generator plays no part
        return list(sampler)

    assert epoch(1, 2) == epoch(1, 2)
    assert epoch(1, 2) != epoch(1, 3)
    assert epoch(1, 2) != epoch(2, 2)


def test_shuffled_batches_hold_dialogues_of_similar_length():
    def padding(batches):
        return sum(len(b) * max(LENGTHS[i] for i in b) for b in batches) / sum(LENGTHS)

    ordered = padding(DialogueBatches(LENGTHS, 8, shuffle=False))
    assert padding(DialogueBatches(LENGTHS, 8, shuffle=True)) < 1.2 < ordered


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"max_utterances": 0}])
def test_sampler_refuses_impossible_arguments(changes):
    arguments = {"batch_size": 2, "shuffle": True, **changes}
    with pytest.raises(ValueError, match="expected"):
        DialogueBatches(LENGTHS, **arguments)


def test_loader_repeats_an_epoch_exactly_and_leaves_the_global_generator_alone():
    dialogues = [
        Dialogue(f"d{d}", [Utterance(f"d{d}u{u}", "Ada", {"text": torch.randn(2, 3)}, 0) for u in range(1 + d % 5)])
        for d in range(23)
    ]
    loader = make_loader(Conversations(dialogues, ["a"], {"text": 3}), 4, shuffle=True, seed=7)
    state = torch.get_rng_state()
    loader.set_epoch(3)
    first = [batch.ids for batch in loader]
    loader.set_epoch(4)
    other = [batch.ids for batch in loader]
    loader.set_epoch(3)
    assert [batch.ids for batch in loader] == first != other
    assert torch.equal(torch.get_rng_state(), state)
    assert len(loader) == len(first)
