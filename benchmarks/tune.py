"""`python -m benchmarks.tune`: measures launch configurations of the attention kernels on this machine's GPU.

Puts the fastest tile of each class of calls in front of the rows of amuse_kernels/attention/triton/tiles.csv, in place
of rows that were measured for the same architecture before. A class is a kernel, an element size, options, a head dim
and a number of queries; all of them together take hours, so --bytes, --head-dims and --options choose among them.

A tile counts where the results with it are within the error budget, and is timed in a CUDA graph: what the GPU takes,
without the launches' cost to the host. The backward is timed as a whole, whatever kernel of it is being tuned.
"""

import argparse
import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from unittest import mock

import torch
from torch import Tensor

from amuse_kernels.attention.triton import plans as attention
from amuse_kernels.attention.triton import tiles
from amuse_kernels.attention.triton.tiles import Row, Tile, TileKey
from amuse_kernels.launch import architecture
from benchmarks.gpu.device import Gpu
from benchmarks.gpu.journal import reason_of
from tests.ptx.package.attention_calls import AttentionCall

KERNELS = ("forward", "backward", "backward keys")
DTYPES = {2: torch.float16, 4: torch.float32}
OPTIONS = ("masks", "all options")  # "masks" serves plain calls too
HEAD_DIMS = (32, 64, 128, 256)
QUERIES = {"16": 16, "64": 64, "any": 256}  # the bound of a row, and how many queries represent it
BATCH, HEADS, SOURCES = 32, 8, 3
REGISTERS = 255  # the limit that tells ptxas not to spill
SECONDS = 0.05  # that a time takes

Time = Callable[[TileKey, Tile], float]  # seconds of a call, infinity where it cannot run or is wrong


def candidates(key: TileKey) -> Iterator[Tile]:
    """The tile in use, then every other worth a try, those most like it first.

    None has twice the rows that the queries need.
    """
    in_use = tiles.choose_tile(key)

    def distance(tile: Tile) -> float:
        doublings = [math.log2(a / b) for a, b in zip(tile[:3], in_use[:3], strict=True)]
        return sum(map(abs, doublings)) + abs(tile.num_stages - in_use.num_stages)

    limit, products = (None,), ("ieee", "tf32x3") if key.bytes == 4 else (None,)
    sizes = (16, 32, 64, 128)
    every = itertools.starmap(Tile, itertools.product(sizes, sizes, (4, 8), (1, 2, 3), limit, products))
    small = [t for t in every if t.queries < 2 * key.queries and t.queries * t.keys <= 128 * 64]
    yield in_use
    yield from sorted((t for t in small if t != in_use._replace(max_registers=None)), key=distance)


def search(key: TileKey, time: Time, most: int | None = None) -> Iterator[tuple[Tile, float]]:
    """Tiles with their times: at most `most` of them, and the fastest once more under another limit of registers."""
    found = []
    for tile in itertools.islice(candidates(key), most):
        found.append((tile, time(key, tile)))
        yield found[-1]
    best, _ = min(found, key=lambda pair: pair[1])
    other = best._replace(max_registers=None if best.max_registers else REGISTERS)
    if other not in [tile for tile, _ in found]:
        yield other, time(key, other)


def measure(keys: Iterable[tuple[TileKey, str]], time: Time, chosen_by: str) -> Iterator[Row]:
    """The fastest tile of each key, as a row for calls with up to the given number of queries."""
    for key, queries in keys:
        best, fastest = min(search(key, time), key=lambda pair: pair[1])
        if math.isinf(fastest):
            raise RuntimeError(f"no candidate ran for {key}")
        print(f"{key}: {best}, {fastest * 1000:.1f} us", flush=True)
        yield row_of(key, queries, best, chosen_by)


def row_of(key: TileKey, queries: str, tile: Tile, chosen_by: str) -> Row:
    return Row(key.kernel, str(key.arch), key.bytes, key.options, key.head_dim, queries, tile, chosen_by)


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


def is_reached(key: TileKey) -> bool:
    """Whether a call of the key's size launches its kernel: that of keys runs where queries fill several tiles."""
    return key.kernel != "backward keys" or key.queries > tiles.choose_tile(key._replace(kernel="backward")).queries


@lru_cache(maxsize=1)
def call_of(key: TileKey) -> tuple[AttentionCall, AttentionCall]:
    """The call that represents a key on the GPU, large enough to fill it, and one of its samples on the CPU."""
    torch.manual_seed(0)
    every = key.options == "all options"
    options = {"causal": True, "groups": True, "dropout_p": 0.1, "seed": 0} if every else {}
    lengths = (key.queries,) * SOURCES
    call = AttentionCall.make(key.queries, lengths, key.head_dim, DTYPES[key.bytes], batch=2, heads=HEADS, **options)
    return _larger(call, BATCH // 2), call


def _larger(call: AttentionCall, times: int) -> AttentionCall:
    """The samples of a call several times, on the GPU. Dropout draws by (batch, head): the first samples are alike."""

    def many(tensor: Tensor) -> Tensor:
        return tensor.repeat(times, *[1] * (tensor.ndim - 1)).cuda()

    def many_or_none(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else many(tensor)

    given = call.inputs
    inputs = given._replace(
        query=many(given.query),
        keys=[*map(many, given.keys)],
        values=[*map(many, given.values)],
        gates=many_or_none(given.gates),
        key_masks=[*map(many_or_none, given.key_masks)],
        query_groups=many_or_none(given.query_groups),
        key_groups=[*map(many_or_none, given.key_groups)],
        seed=None if given.seed is None else given.seed.cuda(),
    )
    return AttentionCall(inputs, many(call.grad_out))


def time_on_gpu(key: TileKey, tile: Tile) -> float:
    """Median milliseconds on the GPU, infinity where the tile does not run or its results are wrong; prints why."""
    try:
        return checked_time(key, tile)
    except Exception as error:  # Triton's and ptxas's own errors too, which share no base class
        print(f"{key}: {tile}: {reason_of(error)}", flush=True)
        if Gpu().is_lost():
            raise
        return math.inf


def checked_time(key: TileKey, tile: Tile) -> float:
    """Median milliseconds on the GPU.

    Raises:
        AssertionError: the results are not within the error budget.
    """
    large, small = call_of(key)
    samples = small.inputs.query.shape[0]
    with tried(key, tile):
        out, lse = attention.p2c_attention_forward(large.inputs)
        if small.grad_lse is None:
            small.draw_upstream(lse[:samples].cpu())
        assert small.grad_lse is not None
        grad_lse = small.grad_lse.repeat(BATCH // samples, *[1] * (lse.ndim - 1)).cuda()
        arguments = (large.grad_out, grad_lse, out, lse, large.inputs)
        grads = attention.p2c_attention_backward(*arguments)

        def first(tensor: Tensor) -> Tensor:
            return tensor[:samples].cpu()

        keys, values = [*map(first, grads.keys)], [*map(first, grads.values)]
        small.assert_within_budget(first(out), first(lse), first(grads.query), keys, values, first(grads.gates))
        if key.kernel == "forward":
            return 1e3 * Gpu().graph(lambda: attention.p2c_attention_forward(large.inputs), SECONDS)
        return 1e3 * Gpu().graph(lambda: attention.p2c_attention_backward(*arguments), SECONDS)


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
    reached = [(key, queries) for key, queries in keys if is_reached(key)]
    for row in measure(reached, time_on_gpu, torch.cuda.get_device_name(device)):
        measured.append(row)
        tiles.write(in_front(measured, tiles.read()))
    print(f"{len(measured)} rows in {tiles.TILES}")


if __name__ == "__main__":
    main()
