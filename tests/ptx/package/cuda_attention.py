"""The launches of the package's CUDA backend, planned by its own C++ and run in the emulator, without a GPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from amuse_kernels.attention.inputs import AttentionInputs
from amuse_kernels.dropout import drop_threshold
from tests.ptx.emulator.arguments import Structure
from tests.ptx.emulator.launch import Launch
from tests.ptx.emulator.native import cache_folder, compiler
from tests.ptx.emulator.nvcc_kernels import compile_nvcc, split_kernels
from tests.ptx.emulator.poison import poisoned
from tests.ptx.emulator.report import Report
from tests.ptx.package.launcher import prepare

SOURCES = Path(__file__).parents[3] / "csrc" / "cuda"
DTYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}  # csrc/dtype.h
ELEMENTS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# AttentionKernel of csrc/cuda/attention_plan.h
FORWARD, FORWARD_SHORT, QUERIES, KEYS, FUSED, FUSED_SHORT = range(6)
# those that write out and lse, the gradient of the query, the other gradients
OF_OUT, OF_QUERY, OF_KEYS = (FORWARD, FORWARD_SHORT), (QUERIES, FUSED, FUSED_SHORT), (KEYS, FUSED, FUSED_SHORT)
MAX_SOURCES = 8
NO_MUTANTS: Mapping[str, str] = {}
I64, Pointer = ctypes.c_int64, ctypes.c_void_p


def _structure(name: str, *fields: tuple[str, Any], base: type[ctypes.Structure] = ctypes.Structure) -> Any:
    return type(name, (base,), {"_fields_": list(fields)})


# csrc/attention.h and csrc/cuda/attention_plan.h
AttentionTensor = _structure("AttentionTensor", ("data", Pointer), ("strides", I64 * 3))
AttentionSource = _structure(
    "AttentionSource",
    *(("key", AttentionTensor), ("value", AttentionTensor), ("length", I64), ("mask", Pointer), ("groups", Pointer)),
    *(("relation", ctypes.c_int), ("causal", ctypes.c_bool), ("cu_seq", Pointer)),
)
AttentionParams = _structure(
    "AttentionParams",
    *(("dtype", ctypes.c_int), ("joint", ctypes.c_bool)),
    *((name, I64) for name in ("b", "h", "lq", "d", "sources")),
    *(("softmax_scale", ctypes.c_double), ("dropout_p", ctypes.c_double)),
    *(("drop_threshold", ctypes.c_uint32), ("seed", ctypes.c_uint64)),
    *(("query", AttentionTensor), ("source", AttentionSource * MAX_SOURCES)),
    *(("query_groups", Pointer), ("gates", Pointer), ("gate_strides", I64 * 3)),
    *(("cu_seq_q", Pointer), ("tokens_q", I64)),
)
ForwardParams = _structure("ForwardParams", ("out", AttentionTensor), ("lse", Pointer), base=AttentionParams)
BackwardParams = _structure(
    "BackwardParams",
    *(("grad_out", AttentionTensor), ("out", AttentionTensor), ("lse", Pointer), ("grad_lse", Pointer)),
    *(("grad_query", AttentionTensor), ("grad_key", AttentionTensor * MAX_SOURCES)),
    *(("grad_value", AttentionTensor * MAX_SOURCES), ("grad_gates", Pointer)),
    base=AttentionParams,
)
Options = _structure(
    "Options",
    *(("seed", Pointer), ("workspace", Pointer), ("stream", Pointer), ("device", ctypes.c_int)),
    ("allow_tf32", ctypes.c_bool),
)
AttentionLaunch = _structure(
    "AttentionLaunch",
    *(("entry", ctypes.c_char * 48), ("kernel", ctypes.c_int), ("options", ctypes.c_bool)),
    *((name, ctypes.c_uint32) for name in ("grid", "block", "shared_bytes")),
)


@functools.cache
def library() -> ctypes.CDLL:
    """csrc/cuda/attention_plan.cpp with a probe for the layout of its structures, as a shared library."""
    build = cache_folder() / f"attention-plan-{_hash_of_sources()}.so"
    if not build.exists():
        probe = """
            #include <cstddef>
            #include "attention_plan.h"
            extern "C" size_t plan_layout(int which) {
              using namespace amuse;
              const size_t sizes[] = {sizeof(AttentionForwardParams), sizeof(AttentionBackwardParams),
                                      sizeof(CudaAttentionOptions), sizeof(AttentionLaunch), sizeof(AttentionPlan),
                                      offsetof(AttentionPlan, launch), offsetof(AttentionPlan, arguments),
                                      sizeof(AttentionArguments)};
              return sizes[which];
            }
        """
        unfinished = build.with_suffix(f".{os.getpid()}")
        command = [compiler(), "-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-invalid-offsetof", f"-I{SOURCES}"]
        command += [str(SOURCES / "attention_plan.cpp"), "-x", "c++", "-", "-o", str(unfinished)]
        subprocess.run(command, input=probe, text=True, check=True)
        os.replace(unfinished, build)
    loaded = ctypes.CDLL(str(build))
    loaded.plan_layout.restype = ctypes.c_size_t
    loaded.amuse_cuda_attention_workspace.restype = I64
    mirrored = (ForwardParams, BackwardParams, Options, AttentionLaunch)
    assert [ctypes.sizeof(s) for s in mirrored] == [loaded.plan_layout(i) for i in range(len(mirrored))]
    return loaded


@functools.cache
def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("attention*"), SOURCES / "mma.cuh", *SOURCES.parent.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


@functools.cache
def kernels(dtype: torch.dtype, padded_head_dim: int, arch: str = "sm_80") -> dict[str, str]:
    """PTX of the attention kernels of one element type and head dim, by name."""
    defined = {"AMUSE_ELEMENT": ELEMENTS[dtype], "AMUSE_HEAD_DIM": padded_head_dim, "SOURCES": _hash_of_sources()}
    flags = [f"-D{name}={value}" for name, value in defined.items()]
    return split_kernels(compile_nvcc(SOURCES / "attention_kernels.cu", arch, flags))


class Call:
    """The parameters of one call in C, and the tensors behind its pointers."""

    def __init__(self, params: Any, inputs: AttentionInputs, allow_tf32: bool) -> None:
        self.params, self.read, self.outputs, self.packed = params, [], {}, inputs.packed
        self.options = Options(seed=self.pointer(inputs.seed), allow_tf32=allow_tf32)
        params.dtype, params.joint, params.sources = DTYPES[inputs.query.dtype], inputs.joint, len(inputs.keys)
        params.b, params.h, params.lq, params.d = inputs.query.shape
        params.softmax_scale, params.dropout_p = inputs.softmax_scale, inputs.dropout_p
        params.drop_threshold = drop_threshold(inputs.dropout_p)
        params.query = self.rows(inputs.query)
        params.query_groups = self.pointer(inputs.query_groups)
        params.gates = self.pointer(inputs.gates)
        if inputs.gates is not None:
            params.gate_strides[:] = inputs.gates.stride()
        for p, (key, value, mask) in enumerate(zip(inputs.keys, inputs.values, inputs.key_masks, strict=True)):
            source = params.source[p]
            source.key, source.value, source.length = self.rows(key), self.rows(value), key.shape[2]
            source.mask = self.pointer(None if mask is None else mask.view(torch.uint8))
            source.groups = self.pointer(inputs.key_groups[p] if inputs.relations[p] else None)
            source.relation, source.causal = inputs.relations[p], inputs.causal[p]
        if inputs.packed:
            params.tokens_q, params.cu_seq_q = params.lq, self.pointer(inputs.cu_seq_q)
            params.b, params.lq = inputs.samples, inputs.max_q
            for p, (cu_seq, longest) in enumerate(zip(inputs.cu_seq_k or (), inputs.max_k or (), strict=True)):
                params.source[p].cu_seq, params.source[p].length = self.pointer(cu_seq), longest

    def pointer(self, tensor: torch.Tensor | None, writers: Sequence[int] = ()) -> int | None:
        """The address of a tensor, which only the kernels `writers` (numbers of AttentionKernel) may write."""
        if tensor is None or tensor.numel() == 0:
            return None
        for kernel in writers:
            self.outputs.setdefault(kernel, []).append(tensor)
        if not writers:
            self.read.append(tensor)
        return tensor.data_ptr()

    def rows(self, tensor: torch.Tensor, writers: Sequence[int] = (), behind: torch.Tensor | None = None) -> Any:
        """`(B, H, L, D)`, a view of the tensor `behind` it where that is given."""
        assert tensor.stride(3) == 1 or tensor.numel() == 0
        strides = (0 if self.packed else tensor.stride(0), *tensor.stride()[1:3])
        return AttentionTensor(self.pointer(tensor if behind is None else behind, writers), (I64 * 3)(*strides))

    def plan(self, function: str) -> tuple[list[Any], bytes]:
        """The launches, and the argument of their kernels."""
        plan = ctypes.create_string_buffer(library().plan_layout(4))
        if not getattr(library(), function)(ctypes.byref(self.params), ctypes.byref(self.options), plan):
            raise ValueError(f"{function}: the parameters are outside of the contract")
        count = int.from_bytes(plan.raw[:4], "little")
        launches = (AttentionLaunch * count).from_buffer_copy(plan.raw, library().plan_layout(5))
        start = library().plan_layout(6)
        return list(launches), plan.raw[start : start + library().plan_layout(7)]

    def launches(self, function: str, dtype: torch.dtype) -> list[Launch]:
        """The plan's launches without empty grids."""
        planned, argument = self.plan(function)
        found = []
        for launch in planned:
            if launch.grid:
                entry = launch.entry.decode()
                text = kernels(dtype, int(re.findall(r"_(\d+)", entry)[0]))[entry]
                structure = Structure(argument, self.read, self.outputs[launch.kernel])
                found.append(prepare(entry, text, launch.grid, launch.block, structure, launch.shared_bytes))
        return found


def forward_launches(
    inputs: AttentionInputs, *, allow_tf32: bool = False
) -> tuple[list[Launch], torch.Tensor, torch.Tensor]:
    """The launches of `cuda.p2c_attention_forward`, and its out and lse once they have run."""
    query = inputs.query
    batch, heads, queries, head_dim = query.shape
    out = poisoned((batch, queries, heads, head_dim), query.dtype)  # poisoned tensors are contiguous
    lse = poisoned((batch, heads, queries) if inputs.joint else (batch, heads, queries, len(inputs.keys)))
    call = Call(ForwardParams(), inputs, allow_tf32)
    call.params.out = call.rows(out.transpose(1, 2), OF_OUT, behind=out)
    call.params.lse = call.pointer(lse, OF_OUT)
    return call.launches("amuse_cuda_attention_plan_forward", query.dtype), out.transpose(1, 2), lse


def p2c_attention_forward(
    inputs: AttentionInputs, *, allow_tf32: bool = False, mutants: Mapping[str, str] = NO_MUTANTS, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, list[Report]]:
    """`cpu.p2c_attention_forward` in the emulator; out, lse, and the report of each launch. `mutants` replace PTX."""
    launches, out, lse = forward_launches(inputs, allow_tf32=allow_tf32)
    return out, lse, [launch.run(mutants.get(launch.entry), seed=seed) for launch in launches]


Gradients = tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], torch.Tensor | None]


def backward_launches(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    lse: torch.Tensor,
    inputs: AttentionInputs,
    *,
    allow_tf32: bool = False,
) -> tuple[list[Launch], Gradients]:
    """The launches of `cuda.p2c_attention_backward`, and the gradients once they have run."""
    query, keys, values, gates = inputs.query, inputs.keys, inputs.values, inputs.gates
    call = Call(BackwardParams(), inputs, allow_tf32)
    params = call.params
    grad_query = poisoned(query.shape, query.dtype)
    grad_keys = [poisoned(key.shape, key.dtype) for key in keys]
    # heads inside of tokens: laid out unlike the gradients of the keys; poisoned tensors are contiguous
    grad_values = [poisoned([value.shape[d] for d in (0, 2, 1, 3)], value.dtype) for value in values]
    grad_gates = None if gates is None else poisoned(gates.shape)
    params.grad_out, params.lse, params.grad_lse = call.rows(grad_out), call.pointer(lse), call.pointer(grad_lse)
    params.grad_query = call.rows(grad_query, OF_QUERY)
    for p, (grad_key, grad_value) in enumerate(zip(grad_keys, grad_values, strict=True)):
        params.grad_key[p] = call.rows(grad_key, OF_KEYS)
        params.grad_value[p] = call.rows(grad_value.transpose(1, 2), OF_KEYS, behind=grad_value)
    params.grad_gates = call.pointer(grad_gates, OF_KEYS)
    workspace = poisoned(library().amuse_cuda_attention_workspace(ctypes.byref(params)), torch.uint8)
    call.options.workspace = call.pointer(workspace, [QUERIES, KEYS])
    launches = call.launches("amuse_cuda_attention_plan_backward", query.dtype)
    return launches, (grad_query, grad_keys, [grad.transpose(1, 2) for grad in grad_values], grad_gates)


def p2c_attention_backward(
    *arguments: Any, allow_tf32: bool = False, mutants: Mapping[str, str] = NO_MUTANTS, seed: int = 1
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], torch.Tensor | None, list[Report]]:
    """`backward_launches` in the emulator; the gradients and the reports."""
    launches, gradients = backward_launches(*arguments, allow_tf32=allow_tf32)
    return *gradients, [launch.run(mutants.get(launch.entry), seed=seed) for launch in launches]
