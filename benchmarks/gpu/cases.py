"""Calls of several tiles of queries and of keys, with every option, in every element type, against fp64."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.checked import call_attention, check_attention
from benchmarks.gpu.journal import Record
from benchmarks.gpu.smoke import DTYPES
from benchmarks.gpu.stage import Context, Item
from tests.attention_cases import Case, make_case, spread_out

DIALOGUE = {"causal": True, "groups": True}
DROPOUT = {"dropout_p": 0.3, "seed": 5}
# options of make_case
CASES: dict[str, dict[str, Any]] = {
    "holes": {"queries": 150, "lengths": (130, 150), "head_dim": 64, "masks": "holes", "layouts": True},
    "joint": {"queries": 150, "lengths": (150, 70), "head_dim": 64, "masks": "holes", "normalization": "joint"},
    "dialogue": {"queries": 150, "lengths": (150, 150), "head_dim": 64, **DIALOGUE},
    "all options": {"queries": 130, "lengths": (130, 130), "head_dim": 32, "masks": "holes", **DIALOGUE, **DROPOUT},
    "joint, all options": {
        **{"queries": 70, "lengths": (70, 70), "head_dim": 40, "normalization": "joint", "layouts": True},
        **DIALOGUE,
        **DROPOUT,
    },
    "plain": {"queries": 300, "lengths": (300, 40), "head_dim": 128, "gates": False, "masks": False},
    "dropout": {"queries": 65, "lengths": (40, 170), "head_dim": 128, "layouts": True, **DROPOUT},
    "few queries": {"queries": 3, "lengths": (33, 1, 0, 200), "head_dim": 64},
    "one tile of queries": {"queries": 50, "lengths": (150, 70), "head_dim": 64, "masks": "holes", "layouts": True},
    "few queries, all options": {"queries": 20, "lengths": (20, 20), "head_dim": 64, **DIALOGUE, **DROPOUT},
    "gates of many tiles": {"queries": 2100, "lengths": (3, 2), "head_dim": 8, "masks": False},
    "wide": {"queries": 70, "lengths": (70, 130), "head_dim": 256, "masks": "holes", "layouts": True},
}


def items(context: Context) -> Iterator[Item]:
    chosen = {"few queries": CASES["few queries"]} if context.device.dry else CASES
    for name, sizes in chosen.items():
        for backend in context.backends:
            for dtype_name, dtype in DTYPES.items():
                yield Item(f"{name} {backend} {dtype_name}", partial(_checked, context, backend, dtype, sizes))
    for backend in context.backends:
        yield Item(f"offsets above 2^31 {backend}", partial(_far, context, backend))


def _checked(context: Context, backend: str, dtype: torch.dtype, sizes: dict[str, Any]) -> list[Record]:
    return [check_attention(context.device, backend, dtype, **sizes)]


def _far(context: Context, backend: str) -> Iterator[Record]:
    """The same as with dense tensors; three of 4 GB."""
    case = make_case(queries=20, lengths=(40, 3), head_dim=32, dtype=torch.float16)
    if not context.device.dry and torch.cuda.mem_get_info()[0] < 20 * 2**30:
        yield {"status": "not run", "reason": "less than 20 GB of memory are free"}
        return
    far = Case(spread_out(case.query, 0), [spread_out(key, 0) for key in case.keys], case.values, dict(case.options))
    _, (expected, *_) = call_attention(case, backend, context.device.device)
    _, (out, *_) = call_attention(far, backend, context.device.device)
    if torch.equal(out, expected):
        yield {"contender": f"ours, {backend}"}
    else:
        yield {"status": "wrong", "contender": f"ours, {backend}", "reason": "differs from the call on dense tensors"}
