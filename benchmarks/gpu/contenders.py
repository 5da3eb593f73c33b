"""Everything installed here that computes what p2c_attention computes, each as its user would have to call it.

flash-linear-attention and Liger-Kernel have no op that does (softmax attention of queries to several other sequences
with lengths of their own), so they are not among them.
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from amuse_kernels.dispatch import unavailable_reason
from benchmarks.workloads import Attention, flex_attention

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def attention_contenders(case: Attention, compiled: bool) -> tuple[dict[str, Callable[[], Tensor]], set[str]]:
    """Contenders by name, and which of them have no backward; "eager" first, then ours."""
    device = case.query.device.type
    contenders: dict[str, Callable[[], Tensor]] = {"eager": case.eager}
    for backend in ("triton", "cuda") if device == "cuda" else ("cpu", "reference"):
        if unavailable_reason(backend, device, case.query.dtype) is None:
            contenders[f"ours, {backend}"] = lambda backend=backend: case.ours(backend)
    sdpa = case.sdpa_concatenated if case.normalization == "joint" else case.sdpa_per_stream
    how = "concatenated" if case.normalization == "joint" else "per stream"
    for name, backend in BACKENDS.items() if device == "cuda" else ():
        contenders[f"SDPA {how}, {name}"] = lambda backend=backend: _with(backend, sdpa)
    contenders[f"SDPA {how}, as PyTorch chooses"] = sdpa
    forward_only = set()
    if compiled:
        contenders["compiled eager"] = torch.compile(case.eager, dynamic=False)
    if case.key_masks is not None and case.normalization == "per_source":
        if compiled:
            contenders["FlexAttention per stream"] = flex_attention(case, backward=device == "cuda")
            forward_only |= set() if device == "cuda" else {"FlexAttention per stream"}
        if device == "cuda" and case.query.dtype in (torch.float16, torch.bfloat16):
            contenders["torch varlen_attn per stream"] = varlen(case, _torch_varlen)
        if (flash := optional("flash_attn")) is not None and case.query.dtype in (torch.float16, torch.bfloat16):
            contenders["flash-attn varlen per stream"] = varlen(case, flash.flash_attn_varlen_func)
    if case.key_masks is not None and case.normalization == "joint":
        xformers = optional("xformers.ops.fmha")
        if xformers is not None:
            contenders["xformers, partial and merged"] = lambda: xformers_merged(case, xformers)
            forward_only.add("xformers, partial and merged")
    return contenders, forward_only


def optional(name: str) -> ModuleType | None:
    """A library, or None where it is not installed or does not import, such as one built for another PyTorch."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def _with(backend: SDPBackend, run: Callable[[], Tensor]) -> Tensor:
    with sdpa_kernel(backend):
        return run()


def _torch_varlen(query, key, value, starts_q, starts_k, longest_q, longest_k) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, starts_q, starts_k, longest_q, longest_k)


def varlen(case: Attention, attend: Callable[..., Tensor]) -> Callable[[], Tensor]:
    """Packed keys and values. The places of the visible ones are found once, as a model does for all its layers."""
    batch, heads, queries, width = case.query.shape
    device = case.query.device
    starts_q = torch.arange(0, (batch + 1) * queries, queries, dtype=torch.int32, device=device)
    places = []
    for mask in case.key_masks:
        lengths = mask.sum(1)
        starts = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        places.append((mask.flatten().nonzero().squeeze(1), starts, int(lengths.max())))

    def packed(tensor: Tensor, index: Tensor) -> Tensor:
        return tensor.transpose(1, 2).reshape(-1, heads, width)[index]

    def run() -> Tensor:
        query = case.query.transpose(1, 2).reshape(-1, heads, width)
        total = 0
        for gate, key, value, (index, starts, longest) in zip(case.gates, case.keys, case.values, places, strict=True):
            keys, values = packed(key, index), packed(value, index)
            total = total + gate * attend(query, keys, values, starts_q, starts, queries, longest)
        return total.unflatten(0, (batch, queries)).transpose(1, 2)

    return run


def xformers_merged(case: Attention, fmha: ModuleType) -> Tensor:
    """One softmax over all sources: partial attention per source, merged by lse, log-gates added to the lse."""
    outputs, lses = [], []
    query = case.query.detach().transpose(1, 2)
    for gate, key, value, mask in case.streams():
        bias = torch.where(mask, 0.0, -torch.inf).to(query.dtype)
        bias = bias.expand(query.shape[0], query.shape[2], query.shape[1], -1).contiguous()
        keys, values = key.detach().transpose(1, 2), value.detach().transpose(1, 2)
        out, lse = fmha.memory_efficient_attention_partial(query, keys, values, attn_bias=bias)
        outputs.append(out)
        lses.append(lse + gate.detach().log())
    merged, _ = fmha.merge_attentions(outputs, lses, write_lse=False)
    return merged.transpose(1, 2)
