"""Closed-form interpolation coefficients (paper Eq. 6) on NVIDIA GPUs, a whole row in registers, in one pass.

With D = a - b and x = epsilon ||D|| / ||g|| * g / D, the coefficient is clip(x, 0, 1), and 0 where D = 0 or ||g|| = 0.
With h the upstream gradient where 0 <= x <= 1, else 0, and t = <h, x>:

    d g = epsilon ||D|| / ||g|| * h / D - g t / ||g||^2,    d a = -h x / D + D t / ||D||^2,    d b = -d a
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from amuse_kernels.buffers import dense
from amuse_kernels.launch import Launch


@triton.jit(do_not_specialize=["rows"])
def interpolation_forward(a, b, grad_b, out, epsilon, rows, width, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """The coefficients of BLOCK_N rows."""
    o_x, m_x = _tile(rows, width, BLOCK_N, BLOCK_D)
    _, _, b_x, defined, _, _ = _ratio(a, b, grad_b, o_x, m_x, epsilon)
    # comparisons with NaN are false, so that NaN stays, as in torch.clamp
    b_x = tl.where(b_x < 0, 0.0, tl.where(b_x > 1, 1.0, b_x))
    tl.store(out + o_x, tl.where(defined, b_x, 0.0).to(out.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["rows"])
def interpolation_backward(
    grad,
    a,
    b,
    grad_b,
    grad_a_in,
    grad_b_in,
    grad_grad_b,
    epsilon,
    rows,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradients of a, b and g of BLOCK_N rows."""
    o_x, m_x = _tile(rows, width, BLOCK_N, BLOCK_D)
    b_difference, b_gradient, b_x, defined, distance, length = _ratio(a, b, grad_b, o_x, m_x, epsilon)
    b_upstream = tl.load(grad + o_x, mask=m_x, other=0.0).to(tl.float32)
    # 0 wherever no gradient flows, which keeps 0 / 0 out of the sum
    flows = defined & (b_x >= 0) & (b_x <= 1)
    b_quotient = tl.where(flows, b_upstream / tl.where(defined, b_difference, 1.0), 0.0)
    total = tl.sum(tl.where(flows, b_upstream * b_x, 0.0), 1)[:, None]
    distance, length = _nonzero(distance), _nonzero(length)
    b_grad_a = total / distance / distance * b_difference - tl.where(flows, b_quotient * b_x, 0.0)
    b_grad_g = epsilon * distance / length * b_quotient - total / length / length * b_gradient
    tl.store(grad_a_in + o_x, b_grad_a.to(grad_a_in.dtype.element_ty), mask=m_x)
    tl.store(grad_b_in + o_x, (-b_grad_a).to(grad_b_in.dtype.element_ty), mask=m_x)
    tl.store(grad_grad_b + o_x, b_grad_g.to(grad_grad_b.dtype.element_ty), mask=m_x)


@triton.jit
def _tile(rows, width, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Offsets of this program's rows and which exist, [BLOCK_N, BLOCK_D]."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    return o_n[:, None] * width + o_d[None, :], (o_n < rows)[:, None] & (o_d < width)[None, :]


@triton.jit
def _ratio(a, b, grad_b, o_x, m_x, epsilon):
    """D, g and x [BLOCK_N, BLOCK_D], where x is defined, ||D|| and ||g|| [BLOCK_N, 1]."""
    b_difference = tl.load(a + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_difference -= tl.load(b + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_gradient = tl.load(grad_b + o_x, mask=m_x, other=0.0).to(tl.float32)
    distance, length = _norm(b_difference), _norm(b_gradient)
    defined = (b_difference != 0) & (length != 0)
    b_x = epsilon * distance / _nonzero(length) * b_gradient / tl.where(defined, b_difference, 1.0)
    return b_difference, b_gradient, b_x, defined, distance, length


@triton.jit
def _norm(b_x):
    return tl.sqrt_rn(tl.sum(b_x * b_x, 1))[:, None]


@triton.jit
def _nonzero(x):
    return tl.where(x == 0, 1.0, x)


def interpolation_coefficients_forward(a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float) -> Tensor:
    """a, b, grad_b `(N, d)`; see `amuse_kernels.interpolation_coefficients`."""
    a, b, grad_b = dense(a, b, grad_b)
    out = a.new_empty(a.shape)
    _launch(interpolation_forward, (a, b, grad_b, out, epsilon), a).run(a.device)
    return out


def interpolation_coefficients_backward(
    grad: Tensor, a: Tensor, b: Tensor, grad_b: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and grad_b."""
    inputs = dense(grad, a, b, grad_b)
    grads = (a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(a.shape))
    _launch(interpolation_backward, (*inputs, *grads, epsilon), a).run(a.device)
    return grads


def _launch(kernel: Any, args: tuple[Any, ...], a: Tensor) -> Launch:
    rows, width = a.shape
    block_d = triton.next_power_of_2(width)
    block_n = min(max(1024 // block_d, 1), 16)
    return Launch(
        kernel=kernel,
        grid=triton.cdiv(rows, block_n),
        args=(*args, rows, width),
        constexprs={"BLOCK_N": block_n, "BLOCK_D": block_d},
        num_warps=min(max(block_n * block_d // 256, 1), 16),
        num_stages=1,
    )
