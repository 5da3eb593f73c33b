"""Tuning of launch configurations: what is searched and what is written, with a clock that a test brings."""

import importlib.util
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from tests import triton_interpreter

if importlib.util.find_spec("triton") is None or triton_interpreter.requested():
    pytest.skip("needs Triton, not interpreted", allow_module_level=True)

from amuse_kernels.attention.triton import tiles
from amuse_kernels.attention.triton.tiles import OPTIONS, Row, Tile, TileKey, choose_tile
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


def test_what_is_in_use_is_tried_first_with_its_limit_of_registers_and_the_best_with_another():
    in_use = choose_tile(KEY._replace(bytes=4, head_dim=128, options="all options"))
    key = KEY._replace(bytes=4, head_dim=128, options="all options")
    tried = [tile for tile, _ in tune.search(key, lambda _, tile: float(tile != in_use), most=5)]
    assert tried[0] == in_use
    assert len(tried) == len(set(tried)) == 6
    assert tried[-1]._replace(max_registers=None) == in_use._replace(max_registers=None)
    assert tried[-1].max_registers != in_use.max_registers


def test_kernels_that_a_call_does_not_launch_are_not_tuned():
    by_keys = KEY._replace(kernel="backward keys")
    assert [tune.is_reached(by_keys._replace(queries=count)) for count in (16, 64, 256)] == [False, False, True]
    assert tune.is_reached(KEY._replace(kernel="backward", queries=16))


def test_a_tile_that_raises_or_is_wrong_does_not_win(monkeypatch, capsys):
    class OutOfResources(Exception):
        pass

    def checked_time(_key, tile):
        if tile.num_stages == 1:
            raise OutOfResources("shared memory")
        if tile.num_stages == 2:
            raise AssertionError("tensor 0: error 1 above the budget 0.1")
        return float(tile.keys)

    monkeypatch.setattr(tune, "checked_time", checked_time)
    monkeypatch.setattr(tune, "Gpu", lambda: SimpleNamespace(is_lost=lambda: False))
    [row] = tune.measure([(KEY, "any")], tune.time_on_gpu, "a GPU")
    assert row.tile.num_stages == 3
    printed = capsys.readouterr().out
    assert "OutOfResources: shared memory" in printed
    assert "AssertionError: tensor 0: error 1 above the budget 0.1" in printed


def test_the_table_survives_writing(table):
    text = table.read_text()
    tiles.write(tiles.read())
    assert table.read_text() == text


def test_an_interrupted_write_leaves_the_table_in_use(table):
    text, first = table.read_text(), tiles.read()[0]

    def rows():
        yield first
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiles.write(rows())
    assert table.read_text() == text
    assert [*table.parent.iterdir()] == [table]


@pytest.mark.parametrize("kernel", tune.KERNELS)
@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120, 130])
def test_every_call_has_a_tile_of_no_more_rows_than_it_needs(kernel, arch):
    for size, products in ((2, None), (4, None), (4, "ieee"), (4, "tf32")):
        for options in OPTIONS:
            for head_dim in range(8, 257, 8):
                for queries in (1, 16, 17, 64, 65, 5000):
                    tile = choose_tile(TileKey(kernel, arch, size, options, head_dim, queries, products))
                    assert 16 <= tile.queries < max(2 * queries, 17)
                    assert products in (None, tile.products)


# 8 warps for tiles of 16 x 32, four of which repeat the scores of the others: with 4 warps they spill.
IDLE = {
    *(("backward", 2, 128), ("backward", 2, 256), ("backward keys", 2, 256)),
    *(("backward", 4, 64), ("forward", 4, 128)),
}


def test_warps_follow_rows(table):
    """No warp of an NVIDIA GPU is without a part of every product, but for the rows above."""
    nvidia = [row for row in tiles.read() if not row.arch.startswith("gfx")]
    idle = {row for row in nvidia if row.tile.num_warps > tiles.warps_fed(row.tile, row.head_dim)}
    assert {(row.kernel, row.bytes, row.head_dim) for row in idle} == IDLE
    wide = Row("forward", "any", 2, "all options", 256, "any", Tile(128, 32, 8, 2), "registers")
    tiles.write([wide, *tiles.read()])
    choose_tile.cache_clear()
    chosen = {queries: choose_tile(KEY._replace(queries=queries)).num_warps for queries in (128, 64, 32, 16)}
    assert chosen == {128: 8, 64: 8, 32: 8, 16: 4}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_is_refused_with_a_clear_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tune"])
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        tune.main()
