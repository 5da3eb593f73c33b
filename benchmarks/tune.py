"""`python -m benchmarks.tune`: measures launch configurations of the attention kernels on this machine's GPU.

Puts the fastest tile of each class of calls in front of the rows of amuse_kernels/attention/triton/tiles.csv, in place
of rows that were measured for the same architecture before. A class is a kernel, an element size, options, a head dim
and a number of queries; all of them together take hours, so --bytes, --head-dims and --options choose among them.
"""

import argparse
import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from unittest import mock

import torch
import triton

from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.attention.triton import plans as attention
from amuse_kernels.attention.triton import tiles
from amuse_kernels.attention.triton.tiles import Row, Tile, TileKey
from amuse_kernels.launch import architecture

KERNELS = ("forward", "backward", "backward keys")
DTYPES = {2: torch.float16, 4: torch.float32}
OPTIONS = ("masks", "all options")  # "masks" serves plain calls too
HEAD_DIMS = (32, 64, 128, 256)
QUERIES = {"16": 16, "64": 64, "any": 256}  # the bound of a row, and how many stand for it
BATCH, HEADS, SOURCES = 32, 8, 3

Time = Callable[[TileKey, Tile], float]  # of a call, infinity where the chip cannot run it


def candidates(queries: int) -> Iterator[Tile]:
    """Every tile worth a try; none has twice the rows that the queries need."""
    for tile in itertools.starmap(Tile, itertools.product((16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3))):
        if tile.queries < 2 * queries and tile.queries * tile.keys <= 128 * 64:
            yield tile


def measure(keys: Iterable[tuple[TileKey, str]], time: Time, chosen_by: str) -> Iterator[Row]:
    """The fastest tile of each key, as a row for calls with up to the given number of queries."""
    for key, queries in keys:
        times = {tile: time(key, tile) for tile in candidates(key.queries)}
        best = min(times, key=lambda tile: times[tile])
        if math.isinf(times[best]):
            raise RuntimeError(f"no candidate ran for {key}")
        print(f"{key}: {best}, {times[best] * 1000:.1f} us", flush=True)
        yield Row(key.kernel, str(key.arch), key.bytes, key.options, key.head_dim, queries, best, chosen_by)


def in_front(measured: list[Row], rows: list[Row]) -> list[Row]:
    """Measured rows, then those of `rows` that they do not replace: the first row that serves a launch is taken."""
    classes = {row[: Row._fields.index("tile")] for row in measured}
    kept = [row for row in rows if row.chosen_by == "registers" or row[: Row._fields.index("tile")] not in classes]
    return sorted(
        [*measured, *(row for row in kept if row.chosen_by != "registers")],
        key=lambda row: (
            *(row.kernel, row.arch, row.bytes, OPTIONS.index(row.options), row.head_dim),
            math.inf if row.queries == "any" else int(row.queries),
        ),
    ) + [row for row in kept if row.chosen_by == "registers"]


@contextlib.contextmanager
def tried(key: TileKey, tile: Tile) -> Iterator[None]:
    """Inside, launches of the kernel of `key` have this tile."""

    def choose(other: TileKey) -> Tile:
        return tile if other.kernel == key.kernel else tiles.choose_tile(other)

    attention.forget_plans()
    try:
        with mock.patch.object(attention, "choose_tile", choose):
            yield
    finally:
        attention.forget_plans()


def time_on_gpu(key: TileKey, tile: Tile) -> float:
    """Median milliseconds of a call with random tokens."""
    inputs = _inputs(key)
    out, lse = attention.p2c_attention_forward(inputs)
    with tried(key, tile):
        try:
            if key.kernel == "forward":
                return triton.testing.do_bench(lambda: attention.p2c_attention_forward(inputs), return_mode="median")
            return triton.testing.do_bench(
                lambda: attention.p2c_attention_backward(out, None, out, lse, inputs), return_mode="median"
            )
        except triton.runtime.errors.OutOfResources:
            return math.inf


def _inputs(key: TileKey) -> AttentionInputs:
    every = key.options == "all options"

    def tokens() -> torch.Tensor:
        return torch.randn(BATCH, HEADS, key.queries, key.head_dim, dtype=DTYPES[key.bytes], device="cuda")

    groups = torch.randint(0, 3, (BATCH, key.queries), device="cuda") if every else None
    return AttentionInputs(
        query=tokens(),
        keys=[tokens() for _ in range(SOURCES)],
        values=[tokens() for _ in range(SOURCES)],
        gates=torch.ones(BATCH, HEADS, SOURCES, device="cuda"),
        key_masks=[torch.ones(BATCH, key.queries, dtype=torch.bool, device="cuda")] * SOURCES,
        query_groups=groups,
        key_groups=[groups] * SOURCES,
        relations=[1 if every else 0] * SOURCES,
        causal=[every] * SOURCES,
        joint=False,
        softmax_scale=key.head_dim**-0.5,
        dropout_p=0.1 if every else 0.0,
        seed=torch.zeros((), dtype=torch.int64, device="cuda") if every else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--bytes", type=int, nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--head-dims", type=int, nargs="+", choices=HEAD_DIMS, default=[*HEAD_DIMS])
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=[*OPTIONS])
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "python -m benchmarks.tune: needs an NVIDIA GPU, and this PyTorch finds none "
            f"(torch {torch.__version__}, torch.cuda.is_available() is False)"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    keys = [
        (TileKey(kernel, architecture(device), size, options, head_dim, count), queries)
        for kernel, size, options, head_dim, (queries, count) in itertools.product(
            KERNELS, chosen.bytes, chosen.options, chosen.head_dims, QUERIES.items()
        )
    ]
    measured = []
    for row in measure(keys, time_on_gpu, torch.cuda.get_device_name(device)):
        measured.append(row)
        tiles.write(in_front(measured, tiles.read()))
    print(f"{len(measured)} rows in {tiles.TILES}")


if __name__ == "__main__":
    main()
