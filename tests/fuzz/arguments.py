"""Arguments of the public ops: valid ones in every layout and magnitude, and wild values to put in their place."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from amuse_kernels import BackendUnavailableError

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (*FLOATING, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)


def refusal(call: Callable[[], Any], names: Sequence[str]) -> Any:
    """The result of `call`, or None where it refuses, which has to be of a promised kind and begin with a name."""
    try:
        return call()
    except BackendUnavailableError as error:
        assert str(error).startswith("backend=")  # noqa: PT017  (only some calls refuse)
    except (TypeError, ValueError) as error:
        assert re.match(rf"({'|'.join(names)})\b", str(error)), f"names no argument: {error!r}"  # noqa: PT017
    except RuntimeError as error:  # PyTorch's own, of any op whose other inputs learn
        assert str(error).startswith("Inference tensors cannot be saved for backward"), repr(error)  # noqa: PT017
    return None


@st.composite
def tensors(draw, shape: Sequence[int], dtype: torch.dtype = torch.float32, magnitude: float = 1.0) -> Tensor:
    """Finite normal numbers of a magnitude in one of the memory layouts in which tensors come."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    layout = draw(st.sampled_from(["dense", "dense", "transposed", "sliced", "shifted", "expanded", "columns"]))
    shape = list(shape)
    stored, view = list(shape), lambda x: x
    if layout == "transposed" and len(shape) > 2:
        stored[1], stored[2] = shape[2], shape[1]
        view = lambda x: x.transpose(1, 2)  # noqa: E731
    elif layout == "sliced" and shape:
        stored[0] = 2 * shape[0] + 1
        view = lambda x: x[1::2]  # noqa: E731
    elif layout == "shifted" and shape:  # rows that are not aligned to a vector
        stored[-1] = shape[-1] + 1
        view = lambda x: x[..., 1:]  # noqa: E731
    elif layout == "expanded" and shape:
        stored[0] = min(shape[0], 1)
        view = lambda x: x.expand(shape)  # noqa: E731
    elif layout == "columns" and len(shape) > 1:  # the last dimension is not the dense one
        stored[-1], stored[-2] = shape[-2], shape[-1]
        view = lambda x: x.mT  # noqa: E731
    numbers = torch.randn(stored, generator=generator, dtype=torch.float64) * magnitude
    if dtype.is_floating_point:
        limit = torch.finfo(dtype).max
        return view(numbers.clamp(-limit, limit).to(dtype))
    return view((numbers > 0) if dtype == torch.bool else (3 * numbers).abs().to(dtype))


def masks(shape: Sequence[int]) -> st.SearchStrategy[Tensor]:
    """About half True; entirely False and entirely True too."""
    return st.one_of(
        tensors(shape, torch.bool),
        st.sampled_from([False, True]).map(lambda value: torch.full(tuple(shape), value)),
    )


def wild_tensors() -> st.SearchStrategy[Tensor]:
    """Tensors of any shape, dtype and kind."""
    shapes = st.lists(st.integers(0, 9), max_size=5)
    plain = st.tuples(shapes, st.sampled_from(DTYPES)).flatmap(lambda chosen: tensors(*chosen))
    return st.one_of(plain, plain.flatmap(disguised))


@st.composite
def disguised(draw, tensor: Tensor) -> Tensor:
    """The same numbers in another kind of tensor, dtype or shape; one disguise at a time."""
    if tensor.device.type != "cpu" or tensor.is_nested or tensor.layout is not torch.strided or tensor.is_inference():
        return tensor
    kinds = {
        "meta": lambda: tensor.to("meta"),
        "sparse": lambda: tensor.to_sparse(),
        "nested": lambda: torch.nested.nested_tensor([tensor, tensor]),
        "negated": lambda: torch._neg_view(tensor),
        "conjugated": lambda: tensor.to(torch.complex64).conj(),
        "parameter": lambda: torch.nn.Parameter(tensor, requires_grad=False),
        "inference": lambda: _inference(tensor),
        "dtype": lambda: tensor.to(draw(st.sampled_from(DTYPES))),
        "unsqueezed": lambda: tensor[None],
        "squeezed": lambda: tensor[0] if tensor.dim() and len(tensor) else tensor,
        "longer": lambda: torch.cat([tensor, tensor], -1) if tensor.dim() else tensor,
        "flipped": lambda: tensor.permute(tuple(reversed(range(tensor.dim())))),
        "empty": lambda: tensor[:0] if tensor.dim() else tensor,
    }
    allowed = {*kinds} if tensor.dtype in FLOATING else {*kinds} - {"negated", "parameter"}
    return kinds[draw(st.sampled_from(sorted(allowed)))]()


def _inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def wild_scalars() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.integers(),
        st.just(10**400),
        st.floats(),
        st.complex_numbers(),
        st.text(max_size=8),
        st.sampled_from(["joint", "same", "any", "cpu", "triton", "cuda", "reference", torch.float32, object()]),
    )


def wild_values() -> st.SearchStrategy[Any]:
    """Anything that a caller may hand over by mistake."""
    entries = st.one_of(wild_scalars(), wild_tensors())
    lists = st.lists(entries, max_size=9)
    return st.one_of(entries, lists, lists.map(tuple), st.dictionaries(st.text(max_size=2), entries, max_size=2))
