import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amuse.data.batch import Batch, DialogueBatches, collate, make_loader
from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.layout import Layout, Merge

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
    ours = []
    for own in (*batch.layouts.values(), batch.dialogues):
        ours += [own.cu_seq, own.row, own.position, own.present, own.steps.order, own.steps.inverse]
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


def test_blocks_keep_neighbours_together_and_differ_by_epoch(monkeypatch):
    monkeypatch.setattr("amuse.data.batch.WINDOW", 4)
    sampler = DialogueBatches(LENGTHS[:100], 4, shuffle=True, block=5)
    epochs = []
    for number in range(2):
        sampler.set_epoch(number)
        epochs.append([i for batch in sampler for i in batch])
        assert sorted(epochs[-1]) == list(range(100))
        for begin in range(0, 100, 20):
            window = epochs[-1][begin : begin + 20]
            assert len({i // 5 for i in window}) == 4
            assert len({i // 5 for i in window[:5]}) > 1  # not one block after the other
    assert epochs[0] != epochs[1]


def test_shuffled_batches_hold_dialogues_of_similar_length():
    def padding(batches):
        return sum(len(b) * max(LENGTHS[i] for i in b) for b in batches) / sum(LENGTHS)

    ordered = padding(DialogueBatches(LENGTHS, 8, shuffle=False))
    assert padding(DialogueBatches(LENGTHS, 8, shuffle=True)) < 1.2 < ordered


def test_a_budget_of_tokens_bounds_a_batch_and_a_longer_dialogue_is_a_batch_of_its_own():
    tokens = [7 * n for n in LENGTHS]
    tokens[5] = 1000
    batches = list(DialogueBatches(LENGTHS, 99, shuffle=True, tokens=tokens, max_tokens=300, max_utterances=40))
    assert sorted(i for batch in batches for i in batch) == list(range(len(LENGTHS)))
    assert [5] in batches
    assert all(sum(tokens[i] for i in batch) <= 300 for batch in batches if batch != [5])
    assert all(sum(LENGTHS[i] for i in batch) <= 40 for batch in batches)
    assert max(sum(tokens[i] for i in batch) for batch in batches if batch != [5]) > 240  # and is made use of


def test_an_lstm_reads_packed_tokens_in_the_order_of_pytorchs_packed_sequences():
    lengths = torch.tensor([2, 0, 5, 1, 5, 3])
    layout = Layout.of(lengths)
    rows = [torch.randn(n, 4) for n in lengths.tolist() if n]
    expected = torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    assert torch.equal(torch.cat(rows)[layout.steps.order], expected.data)
    assert torch.equal(layout.steps.batch_sizes, expected.batch_sizes)
    assert torch.equal(layout.steps.order[layout.steps.inverse], torch.arange(16))
    assert (layout.max_len, layout.num_tokens, layout.present.tolist()) == (5, 16, [1, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_single_sequence_has_the_layout_that_it_has_beside_an_empty_one(length):
    alone, beside = Layout.of([length]), Layout.of([length, 0])
    for name in ("row", "position"):
        assert torch.equal(getattr(alone, name), getattr(beside, name))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(alone.steps, beside.steps, strict=True))
    assert torch.equal(alone.cu_seq, beside.cu_seq[:2])
    assert alone.cu_seq.dtype == beside.cu_seq.dtype
    assert torch.equal(alone.present, beside.present[:1])


def test_the_tokens_of_merged_streams_are_adjacent_in_every_utterance():
    first, second = (Layout.of(lengths) for lengths in ([2, 0, 3], [1, 4, 0]))
    merge = Merge.of([first, second])
    tokens = torch.tensor([10, 11, 30, 31, 32, 110, 120, 121, 122, 123])  # stream, utterance, token
    assert tokens[merge.order].tolist() == [10, 11, 110, 120, 121, 122, 123, 30, 31, 32]
    assert torch.equal(merge.order[merge.inverse], torch.arange(10))
    assert merge.layout.lengths.tolist() == [3, 4, 3]


@settings(max_examples=30, deadline=None)
@given(dialogue_lists())
def test_packed_tokens_are_what_is_left_of_padded_ones(dialogues):
    batch = collate(dialogues, WIDTHS)
    features, masks = (dict(zip(WIDTHS, each, strict=True)) for each in zip(*map(batch.padded, WIDTHS), strict=True))
    again = Batch.of_padded(features, masks, batch.dialogues.lengths, batch.speaker, batch.labels, batch.ids)
    for name in WIDTHS:
        assert torch.equal(again.tokens[name], batch.tokens[name])
        assert torch.equal(again.layouts[name].cu_seq, batch.layouts[name].cu_seq)
    assert torch.equal(again.turns.order, batch.turns.order)


def test_turns_are_the_utterances_of_each_speaker_of_each_dialogue():
    said = [["Ada", "Ben", "Ada"], ["Ben", "Ben", "Cleo", "Ben"]]
    dialogues = [Dialogue(f"d{d}", [Utterance(f"{u}", s, {}) for u, s in enumerate(who)]) for d, who in enumerate(said)]
    turns = collate(dialogues, {}).turns
    # Ben says most in the second dialogue, then Ada in the first; then those with a single turn
    assert turns.order.tolist() == [3, 0, 1, 5, 4, 2, 6]
    assert turns.batch_sizes.tolist() == [4, 2, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"max_utterances": 0},
        {"max_tokens": 0, "tokens": LENGTHS},
        {"max_tokens": 9},
        {"block": -1},
        {"block": 2, "weights": torch.ones(101)},
    ],
)
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
