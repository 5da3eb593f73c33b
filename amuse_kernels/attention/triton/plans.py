"""p2c_attention by Triton: outputs, arguments and tile sizes of the launches.

`forward_launch`, `backward_launches` and nothing else decide what is launched; `p2c_attention_forward` and
`p2c_attention_backward` run it.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from amuse_kernels.attention.buffers import Gradients, empty_gradients, empty_outputs
from amuse_kernels.attention.inputs import DIFFERENT, AttentionInputs
from amuse_kernels.attention.triton.backward import attention_backward_keys, attention_backward_queries
from amuse_kernels.attention.triton.forward import attention_forward
from amuse_kernels.attention.triton.tiles import Tile, TileKey, choose_tile
from amuse_kernels.buffers import dense, fp32_products, int64, rows_dense
from amuse_kernels.dropout import drop_threshold
from amuse_kernels.launch import Launch, architecture, pack

_LOG2_E = 1.4426950408889634


def p2c_attention_forward(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """See `cpu.p2c_attention_forward`."""
    inputs = _in_place(inputs)
    out, lse = empty_outputs(inputs)
    device = inputs.query.device
    forward_launch(inputs, out, lse, architecture(device)).run(device)
    return out, lse


def p2c_attention_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor | None, lse: Tensor, inputs: AttentionInputs
) -> Gradients:
    """See `cpu.p2c_attention_backward`; `out` is not used."""
    inputs = _in_place(inputs)
    grads = empty_gradients(inputs)
    device = inputs.query.device
    lse, grad_lse = dense(lse, grad_lse)
    for launch in backward_launches(inputs, grads, rows_dense(grad_out), lse, grad_lse, architecture(device)):
        launch.run(device)
    return grads


def forward_launch(inputs: AttentionInputs, out: Tensor, lse: Tensor, arch: int | str) -> Launch:
    """The one launch of the forward pass; tensors have a contiguous last dim, lse is contiguous."""
    plan = _forward_plan(_layout(inputs, [out], [], arch))
    return plan.launch(attention_forward, (out, lse, *_tensors(inputs)))


def backward_launches(
    inputs: AttentionInputs, grads: Gradients, grad_out: Tensor, lse: Tensor, grad_lse: Tensor | None, arch: int | str
) -> list[Launch]:
    """One launch where one tile holds all queries, else one for queries and one for keys and gates."""
    plans = _backward_plans(_layout(inputs, [grad_out, grads.query], [*grads.keys, *grads.values], arch))
    tensors, grad_keys, grad_values = _tensors(inputs), tuple(grads.keys), tuple(grads.values)
    grad_gates = None if inputs.gates is None else grads.gates
    if len(plans) == 1:
        outputs = (grads.query, grad_keys, grad_values, grad_gates, None, None, None, None)
        return [plans[0].launch(attention_backward_queries, (*outputs, grad_out, lse, grad_lse, *tensors))]
    batch, heads, queries, _ = inputs.query.shape  # of packed samples all queries
    sources = len(grad_keys)
    rows = (batch, heads, 1 if inputs.joint else sources, queries)
    shifts, inverses, deltas = (lse.new_empty(rows) for _ in range(3))  # all aligned, unlike thirds of one
    gate_rows = lse.new_empty((batch, heads, sources, queries)) if inputs.joint else deltas
    between = (shifts, inverses, deltas, gate_rows, grad_out)
    return [
        plans[0].launch(attention_backward_queries, (grads.query, None, None, None, *between, lse, grad_lse, *tensors)),
        plans[1].launch(attention_backward_keys, (grad_keys, grad_values, grad_gates, *between, grad_lse, *tensors)),
    ]


def _tensors(inputs: AttentionInputs) -> tuple[Any, ...]:
    """The inputs, in the order of every kernel's signature."""
    masks, groups, relations = inputs.key_masks, inputs.key_groups, inputs.relations
    # placeholders for those that are missing
    a_mask = next((mask for mask in masks if mask is not None), None)
    a_group = next((group for group, relation in zip(groups, relations, strict=True) if relation), None)
    return (
        inputs.query,
        tuple(inputs.keys),
        tuple(inputs.values),
        inputs.gates,
        None if a_mask is None else tuple([(a_mask if m is None else m).view(torch.uint8) for m in masks]),
        None if a_group is None else inputs.query_groups,
        None if a_group is None else tuple([a_group if group is None else group for group in groups]),
        inputs.seed if inputs.dropout_p > 0 else None,
        inputs.cu_seq_q,
        None if inputs.cu_seq_k is None else tuple(inputs.cu_seq_k),
    )


class Layout(NamedTuple):
    """Everything about a call that decides its tile, grid, numbers and constants: no addresses and no elements."""

    arch: int | str  # see `launch.architecture`
    bytes: int  # of an element
    aligned: bool  # every tensor of tokens starts at a multiple of 16 bytes
    tokens: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # shapes and strides: query, keys, values, the others
    rows: int  # queries of all packed samples; 0 of a batch
    gates: tuple[int, ...] | None  # strides
    masks: tuple[int | None, ...]  # strides of the batch
    relations: tuple[int, ...]
    causal: tuple[bool, ...]
    joint: bool
    softmax_scale: float
    dropout_p: float
    products: str | None  # of fp32: "ieee" or "tf32"; None: as the tile has it


class Plan(NamedTuple):
    """A launch but for its tensors, the same for every call of one `Layout`."""

    grid: int
    numbers: tuple[Any, ...]  # the arguments that follow the tensors
    constexprs: dict[str, Any]
    tile: Tile

    @classmethod
    def of(cls, grid: int, numbers: tuple[Any, ...], constexprs: dict[str, Any], tile: Tile) -> "Plan":
        """With the tile's products and sizes among the constants."""
        of_tile = {"PRECISION": tile.products or "ieee", "BLOCK_Q": tile.queries, "BLOCK_K": tile.keys}
        return cls(grid, numbers, constexprs | of_tile, tile)

    def launch(self, kernel: Any, tensors: tuple[Any, ...]) -> Launch:
        return Launch(
            kernel=kernel,
            grid=self.grid,
            args=(*tensors, *self.numbers),
            constexprs=self.constexprs,
            num_warps=self.tile.num_warps,
            num_stages=self.tile.num_stages,
            max_registers=self.tile.max_registers,
        )


def _layout(inputs: AttentionInputs, of_queries: list[Tensor], of_keys: list[Tensor], arch: int | str) -> Layout:
    """With the tensors that a kernel has beside the inputs: laid out as the query, and as the keys and values."""
    tokens = [inputs.query, *inputs.keys, *inputs.values, *of_queries, *of_keys]
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [(t.shape, t.stride()) for t in tokens]
    if inputs.max_k is not None:
        # as if all samples were as long as the longest; the stride of the tokens in place of that of the batch
        of_stream = [*inputs.max_k, *inputs.max_k]
        longest = [inputs.max_q, *of_stream, *[inputs.max_q] * len(of_queries), *(of_stream if of_keys else ())]
        shapes = [
            ((inputs.samples, shape[1], length, shape[3]), (strides[2], strides[1], strides[2], 1))
            for (shape, strides), length in zip(shapes, longest, strict=True)
        ]
    return Layout(
        arch,
        inputs.query.element_size(),
        all(t.data_ptr() % 16 == 0 for t in tokens),
        tuple(shapes),
        inputs.query.shape[2] if inputs.packed else 0,
        None if inputs.gates is None else inputs.gates.stride(),
        tuple([None if mask is None else mask.stride(0) for mask in inputs.key_masks]),
        tuple(inputs.relations),
        tuple(inputs.causal),
        inputs.joint,
        inputs.softmax_scale,
        inputs.dropout_p,
        fp32_products() if isinstance(arch, int) else "ieee",
    )


@functools.lru_cache(maxsize=4096)
def _forward_plan(layout: Layout) -> Plan:
    shared = _Shared.of(layout)
    (batch, heads, queries, _), _ = layout.tokens[0]
    tile = choose_tile(_tile_key("forward", layout))
    scale = layout.softmax_scale
    [out] = shared.others
    numbers = (out, *shared.strides, *shared.sizes, abs(scale) * _LOG2_E if scale else 1.0, *shared.dropout)
    constexprs = shared.constexprs | {
        "SIGN": (scale > 0) - (scale < 0),
        "BLOCK_P": triton.next_power_of_2(len(layout.causal)),
    }
    return Plan.of(batch * heads * triton.cdiv(queries, tile.queries), numbers, constexprs, tile)


@functools.lru_cache(maxsize=4096)
def _backward_plans(layout: Layout) -> list[Plan]:
    shared = _Shared.of(layout)
    (batch, heads, queries, _), _ = layout.tokens[0]
    sources = len(layout.causal)
    tile = choose_tile(_tile_key("backward", layout))
    single = queries <= tile.queries
    grad_out, grad_query, *grads = shared.others
    key_strides = tuple(grads[:sources]), tuple(grads[sources:])
    scale = layout.softmax_scale
    inputs = (grad_out, *shared.strides, *shared.sizes, scale, scale * _LOG2_E, *shared.dropout)
    by_queries = Plan.of(
        batch * heads * (1 if single else triton.cdiv(queries, tile.queries)),
        (grad_query, *(key_strides if single else (None, None)), *inputs),
        shared.constexprs | {"ALL": single, "BLOCK_P": triton.next_power_of_2(sources)},
        tile,
    )
    if single:
        return [by_queries]
    tile = choose_tile(_tile_key("backward keys", layout))
    tiles = sum(max(1, triton.cdiv(length, tile.keys)) for length in shared.lengths)
    return [by_queries, Plan.of(batch * heads * tiles, (*key_strides, *inputs, tiles), shared.constexprs, tile)]


def forget_plans() -> None:
    """Plans are kept with the tiles that they were made with: to be called where the choice of tiles changes."""
    _forward_plan.cache_clear()
    _backward_plans.cache_clear()


def _tile_key(kernel: str, layout: Layout) -> TileKey:
    options = "plain"
    if layout.gates is not None or any(stride is not None for stride in layout.masks):
        options = "masks"
    if any(layout.relations) or any(layout.causal) or layout.dropout_p > 0:
        options = "all options"
    (_, _, queries, width), _ = layout.tokens[0]
    return TileKey(kernel, layout.arch, layout.bytes, options, width, queries, layout.products)


class _Shared(NamedTuple):
    """Arguments of every kernel."""

    others: list[tuple[int, ...]]  # strides of those tensors that a kernel has beside the inputs
    strides: tuple[Any, ...]  # of the inputs
    lengths: list[int]
    sizes: tuple[Any, ...]
    dropout: tuple[float, int]
    constexprs: dict[str, Any]

    @classmethod
    def of(cls, layout: Layout) -> "_Shared":
        (_, heads, queries, width), _ = layout.tokens[0]
        sources, masks, relations = len(layout.causal), layout.masks, layout.relations
        unit = 16 // layout.bytes  # elements in 16 bytes, if every row of every tensor starts at a multiple of those
        if not layout.aligned or any(s % unit for _, strides in layout.tokens for s in strides[:3]):
            unit = 1
        query, *tokens = [_strides(shape, strides, unit) for shape, strides in layout.tokens]
        lengths = [shape[2] for shape, _ in layout.tokens[1 : 1 + sources]]
        masked = any(stride is not None for stride in masks)
        return cls(
            others=tokens[2 * sources :],
            strides=(
                query,
                tuple(tokens[:sources]),
                tuple(tokens[sources : 2 * sources]),
                None if layout.gates is None else pack(layout.gates),
                pack([stride or 0 for stride in masks]) if masked else None,
            ),
            lengths=lengths,
            sizes=(
                pack(lengths),
                heads,
                queries,
                layout.rows,
                _bits(stride is not None for stride in masks),
                _bits(relations) if any(relations) else None,
                _bits(relation == DIFFERENT for relation in relations),
                _bits(layout.causal) if any(layout.causal) else None,
            ),
            dropout=(1 / (1 - layout.dropout_p), drop_threshold(layout.dropout_p)),
            constexprs={
                "JOINT": layout.joint,
                "UNIT": unit,
                "D": width,
                "BLOCK_D": max(16, triton.next_power_of_2(width)),
            },
        )


def _strides(shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> tuple[int, ...]:
    # inside of one (batch, head) slice the kernels count in 32 bits
    if shape[2] * strides[2] >= 2**31:
        raise ValueError(
            f"backend='triton': expected the rows of one (batch, head) slice within 2^31 elements, got shape "
            f"{tuple(shape)} with strides {strides}"
        )
    return pack([stride // unit for stride in strides[:3]])


def _bits(flags: Iterable[Any]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _in_place(inputs: AttentionInputs) -> AttentionInputs:
    """With tensors that kernels can read: a contiguous last dim, groups int64 and contiguous."""
    groups = inputs.query_groups, inputs.key_groups
    if any(inputs.relations):
        groups = int64(groups[0]), [int64(group) for group in groups[1]]
    return inputs._replace(
        query=rows_dense(inputs.query),
        keys=[rows_dense(key) for key in inputs.keys],
        values=[rows_dense(value) for value in inputs.values],
        key_masks=[None if mask is None else rows_dense(mask) for mask in inputs.key_masks],
        query_groups=groups[0],
        key_groups=groups[1],
        cu_seq_q=None if inputs.cu_seq_q is None else inputs.cu_seq_q.contiguous(),
        cu_seq_k=None if inputs.cu_seq_k is None else [starts.contiguous() for starts in inputs.cu_seq_k],
    )
