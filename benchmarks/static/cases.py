"""The launches that the table lists: every kernel by dtype, head dim, normalization, options and architecture."""

import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch

from amuse_kernels.attention import cuda as attention_cuda
from amuse_kernels.attention.inputs import AttentionInputs, Offsets
from amuse_kernels.attention.triton import plans as attention
from amuse_kernels.attention.triton.tiles import TileKey, choose_tile
from amuse_kernels.fusion import cuda as fusion_cuda
from amuse_kernels.fusion import triton as fusion
from amuse_kernels.interpolation import cuda as interpolation_cuda
from amuse_kernels.interpolation import triton as interpolation
from benchmarks.static import flash
from benchmarks.static.compiled_cuda import CudaLaunch
from tests.ptx.package import cuda_launches, triton_launches

ARCHITECTURES = (80, 90, 86, 89, 120, 100)
AMD = ("gfx942", "gfx1100")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_DIMS = (64, 128, 32, 256)
NORMALIZATIONS = ("per_source", "joint")
SHORT, FEW, LONG = 32, 64, 512  # queries


class Case(NamedTuple):
    """One call, which is one to three launches.

    Attributes:
        backend: Triton, cuda, or plain: flash attention for one source with the tile of Triton's call.
        width: Head dim, or width of a descriptor.
        normalization: Of attention; CUDA's kernels serve any.
        arch: See `launch.architecture`.
    """

    backend: str
    call: str
    dtype: str
    width: int
    normalization: str
    options: str
    arch: int | str

    def launches(self) -> list[Any]:
        """The launches of the call on its architecture; shapes that do not change the code are small."""
        if self.backend == "plain":
            return flash.like(self._replace(backend="triton").launches())
        if self.backend == "cuda":
            with cuda_launches.recorded() as planned:
                _CALLS[self.call](self)
            return [CudaLaunch(*launch) for launch in planned]
        with triton_launches.recorded(self.arch) as launches:
            _CALLS[self.call](self)
        return launches

    def glue(self, triton: ModuleType, cuda: ModuleType) -> ModuleType:
        """The module with the backend's calls."""
        return cuda if self.backend == "cuda" else triton


def triton_cases() -> Iterator[Case]:
    """In the order in which a run that is cut short makes them, the plain kernel's next to those of the same tile."""
    yield from _row_cases("triton")
    for options, normalization, width in (
        *(("masks", normalization, width) for width in HEAD_DIMS for normalization in NORMALIZATIONS),
        ("all options", "per_source", 64),
        ("packed", "per_source", 64),
        *(("plain", normalization, 64) for normalization in NORMALIZATIONS),
    ):
        calls = ["attention forward, long", "attention forward"]
        calls += ["attention backward, one tile", "attention backward"]
        if options == "plain":  # fewer instructions than with masks; of interest where its tile is another
            calls = calls[:1]
        for dtype, arch, call in itertools.product(DTYPES, ARCHITECTURES, calls):
            case = Case("triton", call, dtype, width, normalization, options, arch)
            if call != "attention forward, long" or _has_own_tile(case):
                yield case
                compared = options != "all options" and "one tile" not in call
                if compared and (dtype, width, normalization) == ("fp16", 64, "per_source"):
                    yield case._replace(backend="plain")
    yield from _amd_cases()


def _amd_cases() -> Iterator[Case]:
    """A sample for AMD's GPUs: what a model with gates calls, in fp16 and fp32."""
    calls = ("attention forward", "attention backward, one tile", "attention backward")
    for arch, dtype in itertools.product(AMD, ("fp16", "fp32")):
        for call in ("fusion forward", "fusion backward"):
            yield Case("triton", call, dtype, 256, "", "gate", arch)
        for options, width in (("masks", 64), ("masks", 128), ("packed", 64), ("all options", 64)):
            for call in calls:
                yield Case("triton", call, dtype, width, "per_source", options, arch)


def cuda_cases() -> Iterator[Case]:
    """A kernel serves both normalizations, with or without gates and masks; few queries have their own up to D 64."""
    yield from _row_cases("cuda")
    for options, width in itertools.product(("masks", "all options"), HEAD_DIMS):
        calls = ["attention forward", "attention backward"]
        if width <= 64:
            calls += ["attention forward, short", "attention backward, one tile", "attention backward, short"]
        for dtype, arch, call in itertools.product(DTYPES, ARCHITECTURES, calls):
            yield Case("cuda", call, dtype, width, "any", options, arch)


def _row_cases(backend: str) -> Iterator[Case]:
    """Cases of fusion and interpolation."""
    for dtype, arch, call in itertools.product(DTYPES, ARCHITECTURES, ("fusion forward", "fusion backward")):
        for kind in ("scalar", "elementwise", "gate"):
            yield Case(backend, call, dtype, 256, "", kind, arch)
    for dtype, arch in itertools.product(DTYPES, ARCHITECTURES):
        for call in ("interpolation forward", "interpolation backward"):
            yield Case(backend, call, dtype, 256, "", "", arch)


def _has_own_tile(long: Case) -> bool:
    """Whether the forward of many queries is compiled otherwise than that of few."""
    [many], [few] = long.launches(), long._replace(call="attention forward").launches()
    return many.constexprs != few.constexprs


def _attention_inputs(case: Case, queries: int) -> AttentionInputs:
    dtype, sources = DTYPES[case.dtype], 3
    every = case.options == "all options"
    masked = every or case.options == "masks"
    tokens = torch.zeros(1, 2, queries, case.width, dtype=dtype)
    groups = torch.zeros(1, queries, dtype=torch.int64) if every else None
    packed = {}
    if case.options == "packed":
        offsets = torch.tensor([0, queries], dtype=torch.int32)
        packed = Offsets(offsets, [offsets] * sources, queries, [queries] * sources)._asdict()
    return AttentionInputs(
        query=tokens,
        keys=[tokens] * sources,
        values=[tokens] * sources,
        gates=torch.ones(1, 2, sources) if masked or packed else None,
        key_masks=[torch.ones(1, queries, dtype=torch.bool) if masked else None] * sources,
        query_groups=groups,
        key_groups=[groups] * sources,
        relations=[1 if every else 0] * sources,
        causal=[every] * sources,
        joint=case.normalization == "joint",
        softmax_scale=case.width**-0.5,
        dropout_p=0.1 if every else 0.0,
        seed=torch.zeros((), dtype=torch.int64) if every else None,
        **packed,
    )


def _attention_forward(case: Case, queries: int = FEW) -> None:
    case.glue(attention, attention_cuda).p2c_attention_forward(_attention_inputs(case, queries))


def _attention_forward_short(case: Case) -> None:
    _attention_forward(case, SHORT)


def _attention_forward_long(case: Case) -> None:
    _attention_forward(case, LONG)


def _attention_backward(case: Case, queries: int = LONG) -> None:
    inputs = _attention_inputs(case, queries)
    lse = torch.zeros(1, 2, queries) if inputs.joint else torch.zeros(1, 2, queries, len(inputs.keys))
    grad_lse = lse if case.options == "all options" else None
    case.glue(attention, attention_cuda).p2c_attention_backward(inputs.query, grad_lse, None, lse, inputs)


def _attention_backward_one_tile(case: Case) -> None:
    """With as many queries as one tile holds."""
    if case.backend == "cuda":
        _attention_backward(case, FEW)
        return
    options = "masks" if case.options == "packed" else case.options  # the gates
    key = TileKey("backward", case.arch, DTYPES[case.dtype].itemsize, options, case.width, LONG)
    _attention_backward(case, choose_tile(key).queries)


def _attention_backward_short(case: Case) -> None:
    _attention_backward(case, SHORT)


def _fusion_inputs(case: Case) -> tuple[torch.Tensor | None, ...]:
    rows, modalities, dtype = 1000, 3, DTYPES[case.dtype]
    shape = (rows, modalities, modalities, case.width)
    alpha = {"scalar": torch.zeros(shape[:3], dtype=dtype), "elementwise": torch.zeros(shape, dtype=dtype)}
    gate = case.options == "gate"
    return (
        torch.zeros(rows, modalities, case.width, dtype=dtype),
        alpha.get(case.options),
        torch.zeros(6, 2, case.width) if gate else None,
        torch.zeros(6) if gate else None,
        torch.ones(rows, modalities, dtype=torch.bool),
    )


def _fusion_forward(case: Case) -> None:
    case.glue(fusion, fusion_cuda).adaptive_fusion_forward(*_fusion_inputs(case))


def _fusion_backward(case: Case) -> None:
    descriptors, alpha, *gate = _fusion_inputs(case)
    case.glue(fusion, fusion_cuda).adaptive_fusion_backward(descriptors, alpha, descriptors, alpha, *gate)


def _interpolation_forward(case: Case) -> None:
    rows = torch.zeros(1000, case.width, dtype=DTYPES[case.dtype])
    case.glue(interpolation, interpolation_cuda).interpolation_coefficients_forward(rows, rows, rows, 0.1)


def _interpolation_backward(case: Case) -> None:
    rows = torch.zeros(1000, case.width, dtype=DTYPES[case.dtype])
    case.glue(interpolation, interpolation_cuda).interpolation_coefficients_backward(rows, rows, rows, rows, 0.1)


_CALLS = {
    "attention forward": _attention_forward,
    "attention forward, long": _attention_forward_long,
    "attention forward, short": _attention_forward_short,
    "attention backward, one tile": _attention_backward_one_tile,
    "attention backward": _attention_backward,
    "attention backward, short": _attention_backward_short,
    "fusion forward": _fusion_forward,
    "fusion backward": _fusion_backward,
    "interpolation forward": _interpolation_forward,
    "interpolation backward": _interpolation_backward,
}
