"""Attention over a batch of MELD's utterances: the words attend to sound and faces, packed by ours, padded by others.

Every contender gets its tokens in its own layout; it builds its masks in every call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from amuse_kernels import p2c_attention, p2c_attention_varlen
from benchmarks import meld
from benchmarks.workloads import HEAD_DIM, Workload

SAMPLES, HEADS = 160, 4


class Stream(NamedTuple):
    """How many tokens of a stream each sample has, on the host and as offsets."""

    lengths: Sequence[int]
    cu_seq: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Stream":
        return cls(lengths, torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths))

    def draw(self) -> Tensor:
        return torch.randn(sum(self.lengths), HEADS, HEAD_DIM)

    def mask(self) -> Tensor:
        return torch.arange(self.longest) < torch.tensor(self.lengths)[:, None]

    def pad(self, tokens: Tensor) -> Tensor:
        """`(T, H, D)` as `(B, H, L, D)`."""
        pieces = tokens.split(list(self.lengths))
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).transpose(1, 2).contiguous()

    def unpad(self, padded: Tensor) -> Tensor:
        return padded.transpose(1, 2)[self.mask()]


class Layout(NamedTuple):
    """One way to hold the tokens of a stream, from packed ones and back."""

    of_packed: Callable[[Stream, Tensor], Tensor]
    to_packed: Callable[[Stream, Tensor], Tensor]


PACKED = Layout(lambda _stream, tokens: tokens.clone(), lambda _stream, tokens: tokens)
PADDED = Layout(Stream.pad, Stream.unpad)


@dataclass
class LaidOutWorkload(Workload):
    """Contenders that hold the same tokens in different layouts; `leaves` are packed.

    Attributes:
        streams: of the output and of each leaf.
        layouts: of each contender.
        inputs: the leaves of each contender, in its layout.
    """

    streams: list[Stream] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, layout: Layout, attend: Callable[..., Any]) -> None:
        """A contender; `attend` is called with its leaves."""
        pairs = zip(self.streams[1:], self.leaves, strict=True)
        inputs = [layout.of_packed(stream, leaf).requires_grad_() for stream, leaf in pairs]
        self.layouts[name], self.inputs[name] = layout, inputs
        self.contenders[name] = lambda: attend(*inputs)

    def gradients(self, contender: str, upstream: Any) -> tuple[Tensor, ...]:
        """`upstream` is what `check` returned."""
        return torch.autograd.grad(self.contenders[contender](), self.inputs[contender], upstream[contender])

    def check(self, tolerance: float = 2e-4) -> Any:
        """Every contender gives the output and the gradients of "eager"; upstream gradients by contender."""
        packed = torch.randn_like(self.leaves[0])
        upstream = {name: layout.of_packed(self.streams[0], packed) for name, layout in self.layouts.items()}
        results = {}
        for name, layout in self.layouts.items():
            found = [self.contenders[name]().detach(), *self.gradients(name, upstream)]
            results[name] = [layout.to_packed(*pair) for pair in zip(self.streams, found, strict=True)]
        for name, found in results.items():
            for got, want in zip(found, results["eager"], strict=True):
                error = float((got - want).abs().max() / want.abs().max())
                if not error <= tolerance:
                    raise AssertionError(f"{self.name}: {name} is off by {error:.2g} of the largest value")
        return upstream


def packed_attention() -> LaidOutWorkload:
    """The first utterances of MELD's lengths; the paper's constant gates."""
    utterances = [*islice(chain.from_iterable(meld.dialogues()), SAMPLES)]
    words, *sources = [Stream.of([utterance[m] for utterance in utterances]) for m in ("text", "audio", "video")]
    gates = torch.full((2,), 1 / 3)
    offsets = [stream.cu_seq.long() for stream in (words, *sources)]  # one object per stream, which says what is alike

    def masks() -> list[Tensor]:
        return [stream.mask()[:, None, None] for stream in sources]

    def ours(query: Tensor, *tokens: Tensor) -> Any:
        layout = words.cu_seq, [s.cu_seq for s in sources], words.longest, [s.longest for s in sources]
        return p2c_attention_varlen(query, tokens[:2], tokens[2:], *layout, gates=gates, backend="cpu")

    def dense(query: Tensor, *tokens: Tensor) -> Any:
        key_masks = [stream.mask() for stream in sources]
        return p2c_attention(query, tokens[:2], tokens[2:], gates=gates, key_masks=key_masks, backend="cpu")

    def eager(query: Tensor, *tokens: Tensor) -> Tensor:
        out = torch.zeros_like(query)
        for gate, mask, key, value in zip(gates, masks(), tokens[:2], tokens[2:], strict=True):
            scores = HEAD_DIM**-0.5 * query @ key.mT
            out = out + gate * scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value
        return out

    def sdpa(query: Tensor, *tokens: Tensor) -> Any:
        calls = zip(gates, masks(), tokens[:2], tokens[2:], strict=True)
        return sum(g * F.scaled_dot_product_attention(query, k, v, attn_mask=m) for g, m, k, v in calls)

    def sdpa_nested(query: Tensor, *tokens: Tensor) -> Any:
        nested = [
            torch.nested.nested_tensor_from_jagged(rows, offsets[i], max_seqlen=(words, *sources)[i].longest)
            for rows, i in zip((query, *tokens), (0, 1, 2, 1, 2), strict=True)
        ]
        nested = [rows.transpose(1, 2) for rows in nested]
        calls = zip(gates, nested[1:3], nested[3:], strict=True)
        return sum(g * F.scaled_dot_product_attention(nested[0], k, v) for g, k, v in calls).transpose(1, 2).values()

    pairs = sum(q * (k + n) for q, k, n in zip(words.lengths, *(s.lengths for s in sources), strict=True))
    rows = 2 * sum(words.lengths) + 2 * sum(sum(s.lengths) for s in sources)
    work = LaidOutWorkload(
        f"packed attention: {SAMPLES} utterances of MELD's lengths, H{HEADS}",
        [stream.draw() for stream in (words, *sources, *sources)],
        {},
        flops=4.0 * HEADS * HEAD_DIM * pairs,
        bytes=4.0 * HEADS * HEAD_DIM * rows,
        streams=[words, words, *sources, *sources],
    )
    work.add("ours", PACKED, ours)
    work.add("ours, padded", PADDED, dense)
    work.add("eager", PADDED, eager)
    work.add("SDPA per stream", PADDED, sdpa)
    work.add("SDPA per stream, jagged", PACKED, sdpa_nested)
    return work
