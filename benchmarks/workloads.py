"""What is measured: inputs, and contenders that all compute the same from them, ours among them.

A contender does in every call what its user would have to do in every call, mask building included.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse.config import Config, LossConfig, ModelConfig
from amuse.data.batch import Batch
from amuse.losses import amuse_loss
from amuse.model import Amuse
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
}
LAYER = (32, 8, 64, (128, 64))
FUSION = (4096, 3, 256)


@dataclass
class Workload:
    """Contenders with the same result; "ours" and "eager" are always among them."""

    name: str
    leaves: list[Tensor]  # gradients are taken with respect to these
    contenders: dict[str, Callable[[], Tensor]]
    flops: float = 0.0  # of the forward; a backward has 2.5 times as many
    bytes: float = 0.0  # of the forward's inputs and outputs; forward and backward move 3 times as many
    forward_only: set[str] = field(default_factory=set)

    def gradients(self, contender: str, upstream: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.contenders[contender](), self.leaves, upstream)

    def check(self, tolerance: float = 2e-4) -> Tensor:
        """Every contender gives the output and the gradients of "eager". Returns the upstream gradient used.

        Raises:
            AssertionError: one does not; its times would mean nothing.
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


def attention(shape: str, normalization: str = "per_source", compiled: bool = False) -> Workload:
    """p2c_attention: key masks ragged between half and full length, or a dialogue with groups and the causal flag."""
    batch, heads, queries, lengths, dialogue = SHAPES[shape]
    randn = [torch.randn(batch, heads, n, HEAD_DIM, requires_grad=True) for n in (queries, *lengths, *lengths)]
    query, keys, values = randn[0], randn[1 : 1 + len(lengths)], randn[1 + len(lengths) :]
    gates = torch.rand(len(lengths)).add(0.1).requires_grad_()
    scale = HEAD_DIM**-0.5
    if dialogue:
        groups = torch.randint(0, 3, (batch, queries))
        options = {"query_groups": groups, "key_groups": [groups] * 2, "relations": ["same", "any"], "causal": True}
    else:
        key_masks = ragged_masks(batch, lengths)
        options = {"key_masks": key_masks}

    def masks() -> list[Tensor]:
        if not dialogue:
            return [mask[:, None, None] for mask in key_masks]
        causal = torch.ones(queries, queries, dtype=torch.bool).tril()
        return [causal & (groups[:, None, :, None] == groups[:, None, None]), causal[None, None]]

    def eager() -> Tensor:
        scores = [
            (scale * query @ key.mT).masked_fill(~mask, -torch.inf) for key, mask in zip(keys, masks(), strict=True)
        ]
        if normalization == "joint":
            scores = [score + gate.log() for score, gate in zip(scores, gates, strict=True)]
            weights = torch.cat(scores, -1).softmax(-1).split(lengths, -1)
        else:
            weights = [gate * score.softmax(-1) for score, gate in zip(scores, gates, strict=True)]
        return sum(weight @ value for weight, value in zip(weights, values, strict=True))

    def sdpa_per_stream() -> Tensor:
        streams = zip(gates, keys, values, masks(), strict=True)
        return sum(g * F.scaled_dot_product_attention(query, k, v, attn_mask=m) for g, k, v, m in streams)

    def sdpa_concatenated() -> Tensor:
        bias = [
            torch.where(mask, gate.log(), -torch.inf).expand(batch, 1, queries if dialogue else 1, -1)
            for mask, gate in zip(masks(), gates, strict=True)
        ]
        key, value = torch.cat(keys, 2), torch.cat(values, 2)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=torch.cat(bias, -1))

    def ours() -> Tensor:
        return p2c_attention(query, keys, values, gates=gates, normalization=normalization, backend="cpu", **options)

    contenders = {"ours": ours, "eager": eager}
    if normalization == "joint":
        contenders["SDPA, concatenated"] = sdpa_concatenated
    else:
        contenders["SDPA per stream"] = sdpa_per_stream
    if compiled:
        contenders["compiled eager"] = torch.compile(eager, dynamic=False)
        if normalization == "per_source" and not dialogue:
            contenders["FlexAttention"] = _flex(query, keys, values, gates, key_masks)

    visible = sum(float(mask.expand(batch, 1, queries, -1).sum()) for mask in masks())
    used = sum(float(mask.any(-2).sum()) for mask in masks())
    return Workload(
        f"attention {shape}: B{batch} H{heads} Lq{queries} Lp{'+'.join(map(str, lengths))} {normalization}",
        [query, *keys, *values, gates],
        contenders,
        flops=4 * heads * HEAD_DIM * visible,
        bytes=4 * HEAD_DIM * heads * (2 * batch * queries + 2 * used),
        forward_only={"FlexAttention"},  # it has no backward on CPUs
    )


def ragged_masks(batch: int, lengths: tuple[int, ...]) -> list[Tensor]:
    kept = [torch.randint(length // 2, length + 1, (batch,)) for length in lengths]
    return [torch.arange(length) < count[:, None] for length, count in zip(lengths, kept, strict=True)]


def _flex(query, keys, values, gates, key_masks) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    flex = torch.compile(flex_attention, dynamic=False)
    batch, queries = query.shape[0], query.shape[2]

    def stream(key, value, mask):
        block_mask = create_block_mask(lambda b, h, i, j: mask[b, j], batch, None, queries, key.shape[2], device="cpu")
        return flex(query, key, value, block_mask=block_mask)

    # it refuses CPU tensors that require a gradient
    query, gates = query.detach(), gates.detach()
    streams = [(g, k.detach(), v.detach(), m) for g, k, v, m in zip(gates, keys, values, key_masks, strict=True)]
    return lambda: sum(gate * stream(key, value, mask) for gate, key, value, mask in streams)


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


def fusion(compiled: bool = False) -> Workload:
    """Adaptive fusion with a learned gate."""
    rows, modalities, width = FUSION
    descriptors = torch.randn(rows, modalities, width, requires_grad=True)
    weight = (torch.randn(modalities * (modalities - 1), 2, width) * 0.05).requires_grad_()
    bias = torch.zeros(modalities * (modalities - 1), requires_grad=True)

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
        return adaptive_fusion(descriptors, pair_weight=weight, pair_bias=bias, backend="cpu")[0]

    contenders = {"ours": ours, "eager": eager}
    if compiled:
        contenders["compiled eager"] = torch.compile(eager, dynamic=False)
    return Workload(
        f"fusion: N{rows} M{modalities} d{width}",
        [descriptors, weight, bias],
        contenders,
        bytes=8.0 * rows * modalities * width,
    )


def training_steps(config: Config, tokens: dict[str, tuple[int, int]]) -> dict[str, Callable[[], Tensor]]:
    """A training step of AMuSE, forward to optimiser, on the fused ops ("ours") and on the reference; gives the loss.

    16 dialogues of 10 utterances in 7 classes; `tokens` is modality -> (length, width) of its features.
    """
    dialogues, length, classes = 16, 10, 7
    count = dialogues * length
    batch = Batch(
        features={m: torch.randn(count, *shape) for m, shape in tokens.items()},
        masks={
            m: torch.arange(n) < torch.randint((n + 1) // 2, n + 1, (count,))[:, None] for m, (n, _) in tokens.items()
        },
        dialogue=torch.arange(dialogues).repeat_interleave(length),
        position=torch.arange(length).repeat(dialogues),
        speaker=torch.randint(0, 3, (count,)),
        labels=torch.randint(0, classes, (count,)),
        ids=[(str(i // length), str(i)) for i in range(count)],
    )
    config.model.modalities = {m: width for m, (_, width) in tokens.items()}
    config.model.label_names = [str(c) for c in range(classes)]

    def step_on(backend: str) -> Callable[[], Tensor]:
        torch.manual_seed(0)
        model = Amuse(replace(config.model, backend=backend)).train()
        optimizer = torch.optim.AdamW(model.parameters())

        def step() -> Tensor:
            loss = amuse_loss(model(batch), batch.labels, config.loss)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    return {"ours": step_on("cpu"), "reference": step_on("reference")}


def trimodal_config() -> Config:
    """The whole network of the paper: Bi-LSTM and self-attention, MAN of 4 layers, learned fusion, two contexts."""
    return Config(model=ModelConfig(d_model=256, num_heads=4), loss=LossConfig())
