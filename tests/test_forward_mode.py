"""Forward-mode derivatives of the public ops and layers: right by default, refused by a backend that has none."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from amuse_kernels import (
    BackendUnavailableError,
    adaptive_fusion,
    interpolation_coefficients,
    p2c_attention,
    p2c_attention_varlen,
)
from amuse_kernels.nn import AdaptiveFusion, PeripheralCentralAttention
from tests.backends import GPU_KERNELS, runnable

pytestmark = pytest.mark.skipif(GPU_KERNELS, reason="about the choice of the backend; GPU kernels have no fp64")
CU_SEQ = torch.tensor([0, 2, 5]).int()


def draw(*shape):
    return torch.rand(*shape, dtype=torch.float64) + 0.1


def attention(query, key, value, gates, **options):
    options |= {"dropout_p": 0.2, "seed": 3, "return_lse": True}
    return p2c_attention(query, [key], [value], gates=gates, **options)


def joint_attention(query, key, value, gates, **options):
    return p2c_attention(query, [key], [value], gates=gates, normalization="joint", return_lse=True, **options)


def varlen(query, key, value, gates, **options):
    return p2c_attention_varlen(
        query, [key], [value], CU_SEQ, [CU_SEQ], 3, [3], gates=gates, return_lse=True, **options
    )


def learned_fusion(descriptors, weight, bias, **options):
    return adaptive_fusion(descriptors, pair_weight=weight, pair_bias=bias, **options)


def interpolation(a, b, grad_b, **options):
    return (interpolation_coefficients(a, b, grad_b, 0.1, **options),)


HEADS = (draw(2, 1, 3, 8), draw(2, 1, 4, 8), draw(2, 1, 4, 8), draw(1))
OPS = {
    "attention": (attention, HEADS),
    "joint attention": (joint_attention, HEADS),
    "varlen": (varlen, (draw(5, 1, 8), draw(5, 1, 8), draw(5, 1, 8), draw(2, 1, 1))),
    "fusion": (adaptive_fusion, (draw(2, 3, 4), draw(2, 3, 3))),
    "learned fusion": (learned_fusion, (draw(2, 3, 4), draw(6, 2, 4), draw(6))),
    "interpolation": (interpolation, (draw(2, 4), draw(2, 4), draw(2, 4))),
}
ops = pytest.mark.parametrize(("op", "inputs"), OPS.values(), ids=OPS)


def reverse_product(op, inputs, tangents, upstream) -> Tensor:
    """<J tangents, upstream> by reverse mode."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    grads = torch.autograd.grad(op(*leaves), leaves, upstream)
    return sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))


@ops
def test_jvp_agrees_with_reverse_mode(op, inputs):
    tangents = [torch.randn_like(t) for t in inputs]
    outputs, derivatives = torch.func.jvp(op, inputs, tuple(tangents))
    torch.testing.assert_close(outputs, op(*inputs))
    upstream = [torch.randn_like(out) for out in outputs]
    found = sum((d * u).sum() for d, u in zip(derivatives, upstream, strict=True))
    torch.testing.assert_close(found, reverse_product(op, inputs, tangents, upstream))


@ops
def test_one_dual_input_is_enough(op, inputs):
    """Every input alone: one that is ignored would have a derivative of 0."""
    for i, primal in enumerate(inputs):
        tangents = [torch.randn_like(t) if i == j else torch.zeros_like(t) for j, t in enumerate(inputs)]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(primal, tangents[i])
            outputs = op(*inputs[:i], dual, *inputs[i + 1 :])
            derivatives = [forward_ad.unpack_dual(out).tangent for out in outputs]
        upstream = [torch.randn_like(out) for out in outputs]
        pairs = zip(derivatives, upstream, strict=True)
        found = sum((d * u).sum() for d, u in pairs if d is not None)
        torch.testing.assert_close(found, reverse_product(op, inputs, tangents, upstream))


@ops
def test_jacfwd_is_the_jacobian(op, inputs):
    def first(x):
        return op(x, *inputs[1:])[0]

    torch.testing.assert_close(
        torch.func.jacfwd(first)(inputs[0]), torch.autograd.functional.jacobian(first, inputs[0])
    )


@ops
def test_a_dual_upstream_gradient_is_differentiated(op, inputs):
    """Reverse mode is linear in the upstream gradient: the tangent of the result is the result of the tangent."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    outputs = op(*leaves)
    upstream, tangents = ([torch.randn_like(out) for out in outputs] for _ in range(2))
    expected = torch.autograd.grad(outputs, leaves, tangents, retain_graph=True)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(u, t) for u, t in zip(upstream, tangents, strict=True)]
        grads = torch.autograd.grad(outputs, leaves, duals)
        found = [forward_ad.unpack_dual(grad).tangent for grad in grads]
    torch.testing.assert_close(found, list(expected))


@pytest.mark.skipif("cpu" not in runnable(), reason="needs the native library")
@ops
def test_a_backend_without_forward_mode_refuses(op, inputs):
    tangents = tuple(torch.ones_like(t) for t in inputs)
    with pytest.raises(BackendUnavailableError, match=r"cannot run .*: it has no forward-mode derivatives"):
        torch.func.jvp(lambda *given: op(*given, backend="cpu"), inputs, tangents)
    op(*inputs, backend="cpu")


def test_frozen_layers_have_forward_mode_derivatives():
    attention = PeripheralCentralAttention(16, 2, [16], gate="input", dtype=torch.float64).requires_grad_(False)
    fusion = AdaptiveFusion(16, 2).double().requires_grad_(False)

    def run(query, source):
        out, _ = attention(query, [source])
        return (fusion(torch.stack([out.mean(1), source.mean(1)], 1))[0],)

    inputs = draw(2, 3, 16), draw(2, 4, 16)
    tangents = tuple(torch.randn_like(t) for t in inputs)
    (out,), (derivative,) = torch.func.jvp(run, inputs, tangents)
    upstream = torch.randn_like(out)
    torch.testing.assert_close((derivative * upstream).sum(), reverse_product(run, inputs, tangents, [upstream]))
