"""The measured workloads: inputs, and contenders that all compute the same from them, ours among them.

A contender does in every call what its user would have to do in every call, mask building included.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse.config import Config, LossConfig, ModelConfig
from amuse.data.batch import Batch
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from amuse.training.losses import amuse_loss
from amuse_kernels import adaptive_fusion, p2c_attention
from amuse_kernels.nn import PeripheralCentralAttention

HEAD_DIM = 64
SHAPES = {  # B, H, Lq, (Lp, ...), dialogue
    "1": (32, 8, 64, (128, 64), False),
    "2": (64, 4, 32, (50, 16), False),
    "3": (8, 8, 128, (256, 128), False),
    "4": (2, 8, 512, (1024, 512), False),
    "5": (1, 4, 24, (24, 24), True),
    "long": (1, 8, 4096, (4096, 4096), False),
    "batch": (256, 8, 64, (128, 64), False),  # a batch of utterances
    "dialogues": (16, 4, 24, (24, 24), True),
    "8k": (1, 16, 8192, (8192, 2048), False),
}
LAYER = (32, 8, 64, (128, 64))
FUSION = (4096, 3, 256)


@dataclass
class Workload:
    """Contenders with the same result; "ours" and "eager" are always among them."""

    name: str
    leaves: list[Tensor]  # gradients are taken with respect to these
    contenders: dict[str, Callable[[], Tensor]]
    flops: float = 0.0  # FLOPs of the forward; a backward has 2.5 times as many
    bytes: float = 0.0  # bytes of the forward's inputs and outputs; forward and backward move 3 times as many
    forward_only: set[str] = field(default_factory=set)

    def gradients(self, contender: str, upstream: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.contenders[contender](), self.leaves, upstream)

    def check(self, tolerance: float = 2e-4) -> Tensor:
        """Every contender gives the output and the gradients of "eager". Returns the upstream gradient used.

        Raises:
            AssertionError: One does not; its times would mean nothing.
        """
        expected = self.contenders["eager"]()
        upstream = torch.randn_like(expected)
        wanted = [expected.detach(), *self.gradients("eager", upstream)]
        for name, run in self.contenders.items():
            with torch.set_grad_enabled(name not in self.forward_only):
                found = [run().detach()]
            if name not in self.forward_only:
                found += self.gradients(name, upstream)
            for got, want in zip(found, wanted, strict=False):
                error = float((got - want).abs().max() / want.abs().max())
                if not error <= tolerance:
                    raise AssertionError(f"{self.name}: {name} is off by {error:.2g} of the largest value")
        return upstream


@dataclass
class Attention:
    """Inputs of p2c_attention: key masks ragged between half and full length, or a dialogue with groups and causal."""

    normalization: str
    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    gates: Tensor
    key_masks: list[Tensor] | None
    groups: Tensor | None

    @classmethod
    def draw(
        cls,
        shape: tuple,
        normalization: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        head_dim: int = HEAD_DIM,
    ) -> Self:
        batch, heads, queries, lengths, dialogue = shape
        rows = [
            torch.randn(batch, heads, n, head_dim, device=device, dtype=dtype, requires_grad=True)
            for n in (queries, *lengths, *lengths)
        ]
        gates = torch.rand(len(lengths)).add(0.1).to(device).requires_grad_()
        key_masks = None if dialogue else [mask.to(device) for mask in ragged_masks(batch, lengths)]
        groups = torch.randint(0, 3, (batch, queries)).to(device) if dialogue else None
        end = 1 + len(lengths)
        return cls(normalization, rows[0], rows[1:end], rows[end:], gates, key_masks, groups)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.query, *self.keys, *self.values, self.gates]

    @property
    def options(self) -> dict:
        """The keyword arguments of p2c_attention."""
        options = {"gates": self.gates, "normalization": self.normalization}
        if self.groups is None:
            return options | {"key_masks": self.key_masks}
        groups = {"query_groups": self.groups, "key_groups": [self.groups] * 2, "relations": ["same", "any"]}
        return options | groups | {"causal": True}

    def masks(self) -> list[Tensor]:
        """The masks that PyTorch's own attention needs instead, built by every call that uses them."""
        if self.key_masks is not None:
            return [mask[:, None, None] for mask in self.key_masks]
        queries = self.query.shape[2]
        causal = torch.ones(queries, queries, dtype=torch.bool, device=self.query.device).tril()
        return [causal & (self.groups[:, None, :, None] == self.groups[:, None, None]), causal[None, None]]

    def streams(self) -> list[tuple[Tensor, ...]]:
        """Gate, keys, values and mask of each source."""
        return [*zip(self.gates, self.keys, self.values, self.masks(), strict=True)]

    def ours(self, backend: str | None) -> Tensor:
        return p2c_attention(self.query, self.keys, self.values, backend=backend, **self.options)

    def eager(self) -> Tensor:
        streams = self.streams()
        scale = self.query.shape[3] ** -0.5
        scores = [(scale * self.query @ k.mT).masked_fill(~mask, -torch.inf) for _, k, _, mask in streams]
        if self.normalization == "joint":
            scores = [score + gate.log() for score, gate in zip(scores, self.gates, strict=True)]
            weights = torch.cat(scores, -1).softmax(-1).split([k.shape[2] for k in self.keys], -1)
        else:
            weights = [gate * score.softmax(-1) for score, gate in zip(scores, self.gates, strict=True)]
        return sum(weight @ value for weight, value in zip(weights, self.values, strict=True))

    def sdpa_per_stream(self) -> Tensor:
        return sum(g * F.scaled_dot_product_attention(self.query, k, v, attn_mask=m) for g, k, v, m in self.streams())

    def sdpa_concatenated(self) -> Tensor:
        batch = self.query.shape[0]
        bias = [
            torch.where(mask, gate.log(), -torch.inf).to(self.query.dtype).expand(batch, 1, mask.shape[2], -1)
            for gate, _, _, mask in self.streams()
        ]
        key, value = torch.cat(self.keys, 2), torch.cat(self.values, 2)
        return F.scaled_dot_product_attention(self.query, key, value, attn_mask=torch.cat(bias, -1))

    def flops_and_bytes(self) -> tuple[float, float]:
        """FLOPs of a forward pass over the visible pairs, bytes of reading and writing each row that matters once."""
        batch, heads, queries, head_dim = self.query.shape
        masks = [mask.expand(batch, 1, queries, -1) for mask in self.masks()]
        visible = sum(int(mask.sum()) for mask in masks)
        used = sum(int(mask.any(-2).sum()) for mask in masks)
        moved = self.query.element_size() * head_dim * heads * (2 * batch * queries + 2 * used)
        return 4.0 * heads * head_dim * visible, float(moved)


def attention(shape: str, normalization: str = "per_source", compiled: bool = False) -> Workload:
    """p2c_attention on the CPU."""
    batch, heads, queries, lengths, dialogue = SHAPES[shape]
    case = Attention.draw(SHAPES[shape], normalization)
    contenders = {"ours": lambda: case.ours("cpu"), "eager": case.eager}
    if normalization == "joint":
        contenders["SDPA, concatenated"] = case.sdpa_concatenated
    else:
        contenders["SDPA per stream"] = case.sdpa_per_stream
    if compiled:
        contenders["compiled eager"] = torch.compile(case.eager, dynamic=False)
        if normalization == "per_source" and not dialogue:
            contenders["FlexAttention"] = flex_attention(case, backward=False)
    flops, moved = case.flops_and_bytes()
    return Workload(
        f"attention {shape}: B{batch} H{heads} Lq{queries} Lp{'+'.join(map(str, lengths))} {normalization}",
        case.leaves,
        contenders,
        flops=flops,
        bytes=moved,
        forward_only={"FlexAttention"},  # it has no backward on CPUs
    )


def ragged_masks(batch: int, lengths: tuple[int, ...]) -> list[Tensor]:
    kept = [torch.randint(length // 2, length + 1, (batch,)) for length in lengths]
    return [torch.arange(length) < count[:, None] for length, count in zip(lengths, kept, strict=True)]


def flex_attention(case: Attention, backward: bool) -> Callable[[], Tensor]:
    """FlexAttention, a call and a block mask per source; without `backward` on detached tensors, which CPUs need."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as uncompiled

    flex = torch.compile(uncompiled, dynamic=False)
    batch, queries, device = case.query.shape[0], case.query.shape[2], case.query.device.type

    def given(tensor: Tensor) -> Tensor:
        return tensor if backward else tensor.detach()

    def stream(key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        block_mask = create_block_mask(lambda b, h, i, j: mask[b, j], batch, None, queries, key.shape[2], device=device)
        return flex(given(case.query), given(key), given(value), block_mask=block_mask)

    sources = [*zip(case.gates, case.keys, case.values, case.key_masks, strict=True)]
    return lambda: sum(given(gate) * stream(key, value, mask) for gate, key, value, mask in sources)


def layer() -> Workload:
    """The layer against one nn.MultiheadAttention a source, same weights, outputs added; gradients of tokens only."""
    batch, heads, queries, lengths = LAYER
    width = heads * HEAD_DIM
    tokens = [torch.randn(batch, n, width, requires_grad=True) for n in (queries, *lengths)]
    query, sources = tokens[0], tokens[1:]
    key_masks = ragged_masks(batch, lengths)
    fused = PeripheralCentralAttention(width, heads, [width] * len(lengths), gate=1.0, bias=False, backend="cpu")
    fused.requires_grad_(False)
    attentions = []
    for key, value in zip(fused.k_proj, fused.v_proj, strict=True):
        attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True).requires_grad_(False)
        attention.in_proj_weight.copy_(torch.cat([fused.q_proj.weight, key.weight, value.weight]))
        attention.out_proj.weight.copy_(fused.out_proj.weight)
        attentions.append(attention)

    def heads_of(tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (heads, HEAD_DIM)).transpose(1, 2)

    def eager() -> Tensor:
        q, total = heads_of(fused.q_proj(query)), 0
        for key, value, source, mask in zip(fused.k_proj, fused.v_proj, sources, key_masks, strict=True):
            scores = HEAD_DIM**-0.5 * q @ heads_of(key(source)).mT
            total = total + scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1) @ heads_of(value(source))
        return fused.out_proj(total.transpose(1, 2).flatten(2))

    def multihead() -> Tensor:
        return sum(
            attention(query, source, source, key_padding_mask=~mask, need_weights=False)[0]
            for attention, source, mask in zip(attentions, sources, key_masks, strict=True)
        )

    contenders = {
        "ours": lambda: fused(query, sources, key_masks=key_masks)[0],
        "eager": eager,
        "nn.MultiheadAttention per source": multihead,
    }
    name = f"layer: B{batch} d{width} H{heads} Lq{queries} Lp{'+'.join(map(str, lengths))}"
    return Workload(name, [query, *sources], contenders)


def fusion(
    compiled: bool = False,
    *,
    backend: str | None = "cpu",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, int, int] | None = None,
) -> Workload:
    """Adaptive fusion with a learned gate; `sizes` are rows, modalities and width, default `FUSION`."""
    rows, modalities, width = sizes or FUSION
    kind = {"device": device, "dtype": dtype}
    descriptors = torch.randn(rows, modalities, width, **kind, requires_grad=True)
    weight = (torch.randn(modalities * (modalities - 1), 2, width, **kind) * 0.05).requires_grad_()
    bias = torch.zeros(modalities * (modalities - 1), **kind, requires_grad=True)

    def eager() -> Tensor:
        outputs, pair = [], 0
        for m in range(modalities):
            mixed = 0
            for n in range(modalities):
                if n == m:
                    continue
                f_m, f_n = descriptors[:, m], descriptors[:, n]
                alpha = torch.sigmoid(f_m @ weight[pair, 0] + f_n @ weight[pair, 1] + bias[pair])[:, None]
                mixed = mixed + alpha * f_n + (1 - alpha) * f_m
                pair += 1
            outputs.append(mixed / modalities)
        return torch.stack(outputs, 1)

    def ours() -> Tensor:
        return adaptive_fusion(descriptors, pair_weight=weight, pair_bias=bias, backend=backend)[0]

    contenders = {"ours": ours, "eager": eager}
    if compiled:
        contenders["compiled eager"] = torch.compile(eager, dynamic=False)
    return Workload(
        f"fusion: N{rows} M{modalities} d{width}",
        [descriptors, weight, bias],
        contenders,
        bytes=2.0 * descriptors.element_size() * rows * modalities * width,
    )


def training_steps(
    config: Config,
    tokens: dict[str, tuple[int, int]],
    backend: str | None = "cpu",
    device: torch.device | str = "cpu",
) -> dict[str, Callable[[], Tensor]]:
    """A training step of AMuSE, forward to optimiser, on the fused ops ("ours") and on the reference: the loss."""
    batch, spec = training_batch(tokens)
    batch = batch.to(device)

    def step_on(backend: str | None) -> Callable[[], Tensor]:
        torch.manual_seed(0)
        model = Amuse(replace(config.model, backend=backend), spec).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters())

        def step() -> Tensor:
            loss = amuse_loss(model(batch), batch.labels, config.loss)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    return {"ours": step_on(backend), "reference": step_on("reference")}


def training_batch(tokens: dict[str, tuple[int, int]], dialogues: int = 16, length: int = 10) -> tuple[Batch, DataSpec]:
    """Dialogues of `length` utterances in 7 classes; `tokens` is modality -> (length, width) of its features."""
    classes, count = 7, dialogues * length
    lengths = {m: torch.randint((n + 1) // 2, n + 1, (count,)) for m, (n, _) in tokens.items()}
    batch = Batch.of(
        {m: torch.randn(int(lengths[m].sum()), width) for m, (_, width) in tokens.items()},
        lengths,
        [length] * dialogues,
        speaker=torch.randint(0, 3, (count,)),
        labels=torch.randint(0, classes, (count,)),
    )
    return batch, DataSpec({m: width for m, (_, width) in tokens.items()}, [str(c) for c in range(classes)])


def trimodal_config() -> Config:
    """The whole network of the paper: Bi-LSTM and self-attention, MAN of 4 layers, learned fusion, two contexts."""
    return Config(model=ModelConfig(d_model=256, num_heads=4), loss=LossConfig())
