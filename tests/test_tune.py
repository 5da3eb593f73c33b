"""Tuning of launch configurations: what is searched and what is written, with a clock that a test brings."""

import importlib.util
import math
import sys

import pytest
import torch

from tests import triton_interpreter

if importlib.util.find_spec("triton") is None or triton_interpreter.requested():
    pytest.skip("needs Triton, not interpreted", allow_module_level=True)

from amuse_kernels.attention.triton import tiles
from amuse_kernels.attention.triton.tiles import OPTIONS, Tile, TileKey, choose_tile
from benchmarks import tune

KEY = TileKey("forward", 80, 2, "masks", 64, 256)


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A copy of the table that a test may write."""
    copy = tmp_path / "tiles.csv"
    copy.write_text(tiles.TILES.read_text())
    monkeypatch.setattr(tiles, "TILES", copy)
    monkeypatch.setattr(tiles, "_rows", tiles.read)
    choose_tile.cache_clear()
    yield copy
    choose_tile.cache_clear()


def measured(best: Tile, *keys, by="a GPU"):
    def time(_tile_key, tile):
        return math.inf if tile.num_stages == 3 else abs(tile.queries - best.queries) + abs(tile.keys - best.keys) + 1

    return [*tune.measure(keys, time, by)]


def test_the_fastest_candidate_wins_and_one_that_does_not_fit_never():
    [row] = measured(Tile(32, 64, 4, 1), (KEY, "any"))
    assert (row.tile.queries, row.tile.keys) == (32, 64)
    assert row.tile.num_stages != 3
    assert (row.arch, row.queries, row.chosen_by) == ("80", "any", "a GPU")
    with pytest.raises(RuntimeError, match="no candidate ran"):
        [*tune.measure([(KEY, "any")], lambda *_: math.inf, "a GPU")]


def test_measured_rows_are_taken_on_their_architecture_only(table):
    before = choose_tile(KEY._replace(arch=86))
    rows = measured(Tile(32, 128, 4, 1), (KEY._replace(queries=64), "64"), (KEY, "any"))
    tiles.write(tune.in_front(rows[::-1], tiles.read()))
    assert tiles.read()[:2] == rows
    choose_tile.cache_clear()
    assert choose_tile(KEY)[:2] == (32, 128)
    assert choose_tile(KEY._replace(options="plain", queries=40))[:2] == (32, 128)
    assert choose_tile(KEY._replace(arch=86)) == before


def test_measuring_again_replaces_and_keeps_what_was_not_measured(table):
    first = measured(Tile(32, 128, 4, 1), (KEY, "any"), (KEY._replace(arch=90), "any"))
    again = measured(Tile(64, 32, 4, 1), (KEY, "any"), by="the same GPU")
    rows = tiles.read()
    assert tune.in_front(again, tune.in_front(first, rows)) == [again[0], first[1], *rows]


def test_the_table_survives_writing(table):
    text = table.read_text()
    tiles.write(tiles.read())
    assert table.read_text() == text


@pytest.mark.parametrize("kernel", tune.KERNELS)
@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120, 130])
def test_every_call_has_a_tile_of_no_more_rows_than_it_needs(kernel, arch):
    for size in (2, 4):
        for options in OPTIONS:
            for head_dim in range(8, 257, 8):
                for queries in (1, 16, 17, 64, 65, 5000):
                    tile = choose_tile(TileKey(kernel, arch, size, options, head_dim, queries))
                    assert 16 <= tile.queries < max(2 * queries, 17)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_is_refused_with_a_clear_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tune"])
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        tune.main()
