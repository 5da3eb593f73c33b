"""Promises of processes that draw from blocks of their own: nothing twice, nothing left out, few files read by two."""

import json
import shutil
from collections import Counter
from contextlib import nullcontext
from itertools import chain, pairwise

import pytest
import torch

from amuse.config import Config
from amuse.data import own_blocks as module
from amuse.data.batch import DialogueBatches
from amuse.data.own_blocks import OwnBlocks
from amuse.model.amuse import Amuse
from amuse.training.shuffling import Shuffling
from amuse.training.state import History, TrainingState
from amuse.training.train import train_on
from amuse.world import World
from tests.own_blocks_worker import CONFIG, WINDOW, make_run, splits_in
from tests.processes import run_module

LENGTHS = [3 + 7 * i % 11 for i in range(100)]  # 20 blocks of 5


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("limits", [{}, {"max_utterances": 40}, {"max_tokens": 500}])
def test_every_dialogue_is_in_one_share_of_the_epoch_and_every_block_has_one_owner(processes, limits):
    batches = OwnBlocks(LENGTHS, 8, block=5, processes=processes, tokens=[9 * n for n in LENGTHS], **limits)
    epochs = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        shares = [batches.shares(rank, processes) for rank in range(processes)]
        assert {len(own) for own in shares} == {len(batches)}
        assert sorted(chain(*chain(*shares))) == list(range(100))
        owners = [{dialogue // 5 for dialogue in chain(*own)} for own in shares]
        assert all(not one & other for i, one in enumerate(owners) for other in owners[:i])
        assert list(batches) == [list(chain(*step)) for step in zip(*shares, strict=True)]
        epochs.append(list(batches))
    assert epochs[0] != epochs[1]
    batches.set_epoch(0)
    assert list(batches) == epochs[0]


@pytest.mark.parametrize(
    ("dialogues", "block", "processes", "batch_size"),
    [(1000, 90, 8, 32), (1100, 64, 16, 32), (2100, 128, 16, 64), (103, 5, 4, 8), (130, 65, 2, 8), (1001, 65, 7, 28)],
)
def test_processes_have_equal_parts_of_blocks_that_cannot_be_dealt_evenly(dialogues, block, processes, batch_size):
    lengths = [1 + i % 40 for i in range(dialogues)]
    batches = OwnBlocks(lengths, batch_size, block=block, processes=processes)
    shares = [batches.shares(rank, processes) for rank in range(processes)]
    assert sorted(chain(*chain(*shares))) == list(range(dialogues))
    counts = [sum(map(len, own)) for own in shares]
    assert max(counts) - min(counts) <= 1
    assert len(batches) == len(DialogueBatches(lengths, batch_size, shuffle=True))
    sizes = sorted(map(len, batches))
    assert sizes[1:] == [batch_size] * (len(sizes) - 1)
    assert all(max(map(len, step)) - min(map(len, step)) <= 1 for step in zip(*shares, strict=True))
    read = [{dialogue // block for dialogue in chain(*own)} for own in shares]
    assert sum(map(len, read)) <= -(-dialogues // block) + processes - 1


def test_shares_of_a_batch_are_of_similar_length_and_as_many_as_the_batch_size_says():
    lengths = [1 + i % 40 for i in range(1600)]
    batches = OwnBlocks(lengths, 16, block=25, processes=4)
    shares = [batches.shares(rank, 4) for rank in range(4)]
    longest = [[max((lengths[i] for i in share), default=0) for share in step] for step in zip(*shares, strict=True)]
    full = [step for step in longest if all(step)]
    assert len(full) >= 0.9 * len(longest)
    assert sum(max(step) - min(step) for step in full) / len(full) < 10  # without regard to length it would be 13
    sizes = Counter(len(share) for own in shares for share in own)
    assert max(sizes) == 4
    assert sizes[4] >= 0.9 * sum(sizes.values())


def test_a_process_reads_no_more_blocks_at_a_time_than_its_part_of_the_window(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)
    own = OwnBlocks([2] * 96, 4, block=4, processes=2).shares(1, 2)
    order = [[dialogue // 4 for dialogue in share] for share in own]
    windows = [order[i : i + 4] for i in range(0, len(order), 4)]  # two blocks of four, two a step
    assert all(len(set(chain(*window))) == 2 for window in windows)
    assert all(not set(chain(*one)) & set(chain(*other)) for one, other in pairwise(windows))


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match=r"train\.batch_size: expected a multiple of the 4 processes, .* got 6"):
        OwnBlocks(LENGTHS, 6, block=5, processes=4)
    with pytest.raises(ValueError, match=r"train\.shuffle_block: expected a block for each of 4 processes, got 3 bloc"):
        OwnBlocks(LENGTHS, 8, block=34, processes=4)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_module(*torchrun, "-m", "tests.own_blocks_worker", str(folder))
    return folder


@pytest.fixture
def small_window(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", WINDOW)


def seen_by(folder):
    """For every epoch what each process saw."""
    return list(zip(*(json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)), strict=True))


@pytest.mark.slow
def test_two_processes_read_every_utterance_once_and_no_file_of_each_other(two_processes, small_window):
    splits = splits_in(two_processes / "data")
    every = sorted(utterance.id for utterance in splits.train.utterances())
    batches = OwnBlocks([len(d) for d in splits.train.dialogues], 4, block=2, processes=2)
    for epoch, both in enumerate(seen_by(two_processes)):
        assert sorted(chain(*(chain(*seen["steps"]) for seen in both))) == every
        assert len(both[0]["steps"]) == len(both[1]["steps"]) == len(batches)
        batches.set_epoch(epoch)
        for rank, seen in enumerate(both):
            own = {f"train-{i // 2:06d}.safetensors" for i in chain(*batches.shares(rank, 2))}
            assert seen["files"] == sorted(own)
        assert not set(both[0]["files"]) & set(both[1]["files"])
        assert [len(seen["files"]) for seen in both] == [4, 4]


@pytest.mark.slow
def test_two_processes_with_their_own_blocks_have_the_losses_of_one_with_the_same_batches(
    two_processes, small_window, tmp_path
):
    splits = splits_in(two_processes / "data")
    run = make_run(tmp_path, splits, World(torch.device("cpu")))
    batches = OwnBlocks([len(d) for d in splits.train.dialogues], 4, block=2, processes=2)
    run.micro_batches.batches = Replayed(batches)
    for epoch in (0, 1):
        run.history.epoch = epoch
        losses = run.run_epoch(progress=False)
        for seen in seen_by(two_processes)[epoch]:
            assert seen["losses"] == pytest.approx(losses, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_a_run_interrupted_within_an_epoch_of_blocks_resumes_to_the_same_bits(two_processes, tmp_path):
    whole, cut = (Amuse.from_pretrained(two_processes / name / "best") for name in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    shutil.copytree(two_processes / "for one", tmp_path / "one")
    with pytest.raises(ValueError, match=r"within an epoch of 2 processes .*; expected as many to resume it, got 1"):
        train_on(splits_in(two_processes / "data"), CONFIG, tmp_path / "one", resume=True, progress=False)


@pytest.mark.parametrize(
    ("setting", "saved", "processes", "step", "own", "here", "refused"),
    [
        (None, True, 1, 3, False, 1, None),  # one process draws the same either way
        ("false", True, 1, 3, False, 3, None),
        ("true", False, 1, 0, True, 4, None),  # an epoch of its own
        (None, True, 4, 0, False, 3, None),  # decided otherwise for three processes
        (None, True, 4, 3, False, 3, "within an epoch of 4 processes with .*, got 3"),
        (None, True, 1, 3, True, 2, r"own_blocks: the run was started with false, .* --set train\.own_blocks=false"),
        ("false", True, 4, 0, False, 4, r"own_blocks: the run was started with true, .* --set train\.own_blocks=true"),
        (None, False, 3, 3, True, 4, r"own_blocks: the run was started with false"),
        (None, True, 4, 3, True, 4, None),
    ],
)
def test_a_run_resumes_wherever_the_epoch_keeps_its_order(setting, saved, processes, step, own, here, refused):
    config = Config.load(None, [] if setting is None else [f"train.own_blocks={setting}"])
    world = World(torch.device("cpu"), size=here)
    state = TrainingState(config, Shuffling(2, own), *[None] * 5, History(), world)
    found = {
        "shuffling": {"block": 2, "own_blocks": saved},
        "config": {"train": {"own_blocks": None}},
        "rng": [None] * processes,
        "history": {"step": step},
    }
    with nullcontext() if refused is None else pytest.raises(ValueError, match=refused):
        state._check_shuffling(found)


class Replayed(DialogueBatches):
    """The batches of several processes, in one."""

    def __init__(self, batches):
        self.batches = batches

    def set_epoch(self, epoch):
        self.batches.set_epoch(epoch)

    def _batches(self):
        return list(self.batches)
