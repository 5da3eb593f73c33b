"""Packed samples laid out with padding, for the reference. Nothing here reads a tensor's contents on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amuse_kernels.attention.inputs import AttentionInputs


class Padding(NamedTuple):
    """Sample b has the tokens from `cu_seq[b]` to `cu_seq[b + 1]`, padded to `length`."""

    cu_seq: Tensor
    length: int

    @property
    def samples(self) -> int:
        return self.cu_seq.shape[0] - 1

    def pad(self, tokens: Tensor, fill: float = 0) -> Tensor:
        """`(1, H, T, ...)` as `(B, H, length, ...)`; `(1, T)` as `(B, length)`."""
        dim = min(tokens.dim() - 2, 1) + 1
        tokens = tokens.squeeze(0).movedim(dim - 1, 0)
        rows = torch.cat([tokens, tokens.new_full((1, *tokens.shape[1:]), fill)])  # the last one is the padding
        places = torch.where(self.mask(), self._places(), tokens.shape[0]).flatten()
        return rows.index_select(0, places).unflatten(0, (self.samples, self.length)).movedim(1, dim)

    def unpad(self, padded: Tensor, tokens: int) -> Tensor:
        """The inverse of `pad` for `(B, H, length, ...)`: `(1, H, tokens, ...)`."""
        places = torch.arange(tokens, device=padded.device)
        sample = torch.searchsorted(self._ends(), places.to(self.cu_seq.dtype), right=True)
        sample = sample.clamp(max=self.samples - 1)  # offsets that are wrong must not leave the tensor
        rows = sample * self.length + (places - self.cu_seq.index_select(0, sample)).clamp(0, max(self.length - 1, 0))
        return padded.transpose(1, 2).flatten(0, 1).index_select(0, rows).transpose(0, 1).unsqueeze(0)

    def mask(self) -> Tensor:
        """Bool `(B, length)`: which places hold a token."""
        return self._places() < self._ends().unsqueeze(1)

    def _places(self) -> Tensor:
        starts = self.cu_seq.narrow(0, 0, self.samples)
        return starts.unsqueeze(1) + torch.arange(self.length, device=self.cu_seq.device)

    def _ends(self) -> Tensor:
        return self.cu_seq.narrow(0, 1, self.samples)


class PaddedInputs(NamedTuple):
    """Packed inputs as dense ones, with masks for the padding of the keys."""

    inputs: AttentionInputs
    queries: Padding
    keys: Sequence[Padding]

    @classmethod
    def of(cls, inputs: AttentionInputs) -> "PaddedInputs":
        sources = range(len(inputs.keys))
        assert inputs.cu_seq_q is not None
        assert inputs.cu_seq_k is not None
        assert inputs.max_k is not None
        # no sample is longer than all of them, whatever maximum was given
        queries = Padding(inputs.cu_seq_q, torch.sym_min(inputs.max_q, inputs.query.shape[2]))
        longest = [torch.sym_min(inputs.max_k[p], inputs.keys[p].shape[2]) for p in sources]
        # a causal source is as long as the queries, in the dense op also where it is padded
        lengths = [queries.length if inputs.causal[p] else longest[p] for p in sources]
        keys = [Padding(cu_seq, length) for cu_seq, length in zip(inputs.cu_seq_k, lengths, strict=True)]
        groups = [None if group is None else keys[p].pad(group) for p, group in enumerate(inputs.key_groups)]
        padded = inputs._replace(
            query=queries.pad(inputs.query),
            keys=[keys[p].pad(inputs.keys[p]) for p in sources],
            values=[keys[p].pad(inputs.values[p]) for p in range(len(inputs.values))],
            key_masks=[padding.mask() for padding in keys],
            query_groups=None if inputs.query_groups is None else queries.pad(inputs.query_groups),
            key_groups=groups,
            cu_seq_q=None,
            cu_seq_k=None,
            max_q=0,
            max_k=None,
        )
        return cls(padded, queries, keys)
