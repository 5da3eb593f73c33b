"""Adaptive fusion (paper Eq. 2) on NVIDIA GPUs: every descriptor is read from memory once.

A program holds whole rows of all modalities in registers, so that the gate's dot products, the mixing and their
gradients happen in one pass. Absent descriptors are not loaded at all. With s present modalities and g_m the gradient
of fused_m:

    d alpha_mn = <g_m, f_n - f_m> / s + grad_alpha_mn
    d f_m      = sum over n of ((1 - alpha_mn) g_m + alpha_nm g_n) / s, and with a gate, z_mn its logit,
    d z_mn     = d alpha_mn alpha_mn (1 - alpha_mn), which adds w_mn[0] d z_mn to d f_m and w_mn[1] d z_mn to d f_n.

The gate's parameters get their gradients from a second kernel: one partial sum for each block of rows, added up in
order, so results are bitwise reproducible.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from amuse_kernels.triton.launch import Launch

_WEIGHT_ROWS, _WEIGHT_WIDTH = 128, 64  # tile of the kernel that sums the pair weights' gradient over rows


@triton.jit
def _forward(
    descriptors,
    alpha,
    pair_weight,
    pair_bias,
    present,
    fused,
    alpha_out,
    rows,
    width,
    stride_n,
    stride_m,
    M: tl.constexpr,
    ELEMENTWISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_n, m_n, o_d, m_d = _tile(rows, width, BLOCK_N, BLOCK_D)
    there = _presence(present, o_n, m_n, M)
    b_f = _load_rows(descriptors, stride_n, stride_m, there, o_n, o_d, m_d, M)
    b_count = _count(there, M)
    for m in tl.static_range(M):
        b_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for n in tl.static_range(M):
            p_alpha, m_alpha = _pair_entry(o_n, m_n, o_d, m_d, width, m, n, M, ELEMENTWISE)
            if m == n:
                b_alpha = tl.zeros(p_alpha.shape, tl.float32)
            else:
                pair = (there[m] & there[n])[:, None]
                if alpha is None:
                    w_m, w_n, bias = _pair_parameters(pair_weight, pair_bias, m, n, o_d, m_d, width, M)
                    b_alpha = _gate(b_f[m], b_f[n], w_m, w_n, bias, pair)
                else:
                    b_alpha = tl.load(alpha + p_alpha, mask=m_alpha & pair, other=0.0).to(tl.float32)
                b_sum += tl.where(pair, b_alpha * b_f[n] + (1 - b_alpha) * b_f[m], 0.0)
            tl.store(alpha_out + p_alpha, b_alpha.to(alpha_out.dtype.element_ty), mask=m_alpha)
        b_fused = tl.where(b_count == 1, b_f[m], b_sum / tl.maximum(b_count, 1))
        p_fused = (o_n * M + m)[:, None] * width + o_d[None, :]
        tl.store(fused + p_fused, b_fused.to(fused.dtype.element_ty), mask=m_n[:, None] & m_d[None, :])


@triton.jit
def _backward(
    grad_fused,
    grad_alpha,
    descriptors,
    alpha,
    pair_weight,
    pair_bias,
    present,
    grad_descriptors,
    grad_alpha_in,
    grad_logits,
    rows,
    width,
    stride_n,
    stride_m,
    M: tl.constexpr,
    ELEMENTWISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of descriptors and of alpha, or of the gate's logits `(rows, M (M - 1))` in fp32."""
    o_n, m_n, o_d, m_d = _tile(rows, width, BLOCK_N, BLOCK_D)
    there = _presence(present, o_n, m_n, M)
    b_f = _load_rows(descriptors, stride_n, stride_m, there, o_n, o_d, m_d, M)
    b_g = _load_rows(grad_fused, M * width, width, there, o_n, o_d, m_d, M)
    b_count = _count(there, M)
    b_df = ()
    for m in tl.static_range(M):
        b_df = b_df + (tl.where(b_count == 1, b_g[m], 0.0),)
    for m in tl.static_range(M):
        b_g_m = b_g[m] / tl.maximum(b_count, 1)
        for n in tl.static_range(M):
            p_alpha, m_alpha = _pair_entry(o_n, m_n, o_d, m_d, width, m, n, M, ELEMENTWISE)
            if m == n:
                if alpha is not None:
                    b_zero = tl.zeros(p_alpha.shape, grad_alpha_in.dtype.element_ty)
                    tl.store(grad_alpha_in + p_alpha, b_zero, mask=m_alpha)
            else:
                pair = (there[m] & there[n])[:, None]
                b_dalpha = b_g_m * (b_f[n] - b_f[m])
                if not ELEMENTWISE:
                    b_dalpha = tl.sum(b_dalpha, 1)[:, None]
                b_dalpha = tl.where(pair, b_dalpha, 0.0)
                if grad_alpha is not None:
                    b_dalpha += tl.load(grad_alpha + p_alpha, mask=m_alpha & pair, other=0.0).to(tl.float32)
                if alpha is None:
                    w_m, w_n, bias = _pair_parameters(pair_weight, pair_bias, m, n, o_d, m_d, width, M)
                    b_alpha = _gate(b_f[m], b_f[n], w_m, w_n, bias, pair)
                    b_dz = b_dalpha * b_alpha * (1 - b_alpha)
                    b_df = _add_to(b_df, m, b_dz * w_m[None, :])
                    b_df = _add_to(b_df, n, b_dz * w_n[None, :])
                    p_logit = o_n[:, None] * (M * (M - 1)) + _pair_index(m, n, M)
                    tl.store(grad_logits + p_logit, b_dz, mask=m_alpha)
                else:
                    b_alpha = tl.load(alpha + p_alpha, mask=m_alpha & pair, other=0.0).to(tl.float32)
                    tl.store(grad_alpha_in + p_alpha, b_dalpha.to(grad_alpha_in.dtype.element_ty), mask=m_alpha)
                b_df = _add_to(b_df, m, tl.where(pair, (1 - b_alpha) * b_g_m, 0.0))
                b_df = _add_to(b_df, n, b_alpha * b_g_m)
    for m in tl.static_range(M):
        p_out = (o_n * M + m)[:, None] * width + o_d[None, :]
        b_out = b_df[m].to(grad_descriptors.dtype.element_ty)
        tl.store(grad_descriptors + p_out, b_out, mask=m_n[:, None] & m_d[None, :])


@triton.jit
def _weight_backward(
    descriptors,
    present,
    grad_logits,
    partial,
    rows,
    width,
    stride_n,
    stride_m,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums over a block of rows: `partial` (blocks, M (M - 1), 2, width) in fp32."""
    o_n, m_n, o_d, m_d = _tile(rows, width, BLOCK_N, BLOCK_D)
    block = tl.program_id(0).to(tl.int64) // tl.cdiv(width, BLOCK_D)
    there = _presence(present, o_n, m_n, M)
    for m in tl.static_range(M):
        b_f = _load_row(descriptors, stride_n, stride_m, m, there[m], o_n, o_d, m_d)
        for n in tl.static_range(M):
            if m != n:
                for side in tl.static_range(2):  # w_mn[0] meets f_m, and so does w_nm[1]
                    pair = _pair_index(m, n, M) if side == 0 else _pair_index(n, m, M)
                    p_logit = grad_logits + o_n * (M * (M - 1)) + pair
                    b_dz = tl.load(p_logit, mask=m_n, other=0.0)
                    p_weight = partial + ((block * (M * (M - 1)) + pair) * 2 + side) * width + o_d
                    tl.store(p_weight, tl.sum(b_dz[:, None] * b_f, 0), mask=m_d)


@triton.jit
def _tile(rows, width, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows and columns of this program, and which of them exist; neighbours along the columns come first."""
    tiles = tl.cdiv(width, BLOCK_D)
    pid = tl.program_id(0)
    o_n = (pid // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = pid % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    return o_n, o_n < rows, o_d, o_d < width


@triton.jit
def _presence(present, o_n, m_n, M: tl.constexpr):
    """Which rows have each modality: M blocks [BLOCK_N]."""
    there = ()
    for m in tl.static_range(M):
        if present is None:
            there = there + (m_n,)
        else:
            there = there + (tl.load(present + o_n * M + m, mask=m_n, other=0) != 0,)
    return there


@triton.jit
def _count(there, M: tl.constexpr):
    """The number of present modalities [BLOCK_N, 1]."""
    count = there[0].to(tl.int32)
    for m in tl.static_range(1, M):
        count += there[m].to(tl.int32)
    return count[:, None]


@triton.jit
def _load_row(x, stride_n, stride_m, m: tl.constexpr, there, o_n, o_d, m_d):
    """Modality m as fp32 [BLOCK_N, BLOCK_D], 0 where it is absent."""
    p_x = x + tl.full((), m, tl.int64) * stride_m + o_n[:, None] * stride_n + o_d[None, :]
    return tl.load(p_x, mask=there[:, None] & m_d[None, :], other=0.0).to(tl.float32)


@triton.jit
def _load_rows(x, stride_n, stride_m, there, o_n, o_d, m_d, M: tl.constexpr):
    b_x = ()
    for m in tl.static_range(M):
        b_x = b_x + (_load_row(x, stride_n, stride_m, m, there[m], o_n, o_d, m_d),)
    return b_x


@triton.jit
def _pair_index(m: tl.constexpr, n: tl.constexpr, M: tl.constexpr):
    """Position of (m, n), m != n, among the ordered pairs."""
    return m * (M - 1) + (n if n < m else n - 1)


@triton.jit
def _pair_entry(
    o_n, m_n, o_d, m_d, width, m: tl.constexpr, n: tl.constexpr, M: tl.constexpr, ELEMENTWISE: tl.constexpr
):
    """Offsets of alpha[m, n] and which exist, [BLOCK_N, 1] or, element-wise, [BLOCK_N, BLOCK_D]."""
    o_alpha = ((o_n * M + m) * M + n)[:, None]
    if ELEMENTWISE:
        return o_alpha * width + o_d[None, :], m_n[:, None] & m_d[None, :]
    else:
        return o_alpha, m_n[:, None]


@triton.jit
def _pair_parameters(pair_weight, pair_bias, m: tl.constexpr, n: tl.constexpr, o_d, m_d, width, M: tl.constexpr):
    pair: tl.constexpr = _pair_index(m, n, M)
    p_weight = pair_weight + pair * 2 * width + o_d
    w_m = tl.load(p_weight, mask=m_d, other=0.0)  # [BLOCK_D]
    w_n = tl.load(p_weight + width, mask=m_d, other=0.0)
    return w_m, w_n, tl.load(pair_bias + pair)


@triton.jit
def _gate(b_f_m, b_f_n, w_m, w_n, bias, pair):
    """alpha[m, n] as [BLOCK_N, 1], 0 where a member of the pair is absent."""
    b_logit = tl.sum(b_f_m * w_m[None, :] + b_f_n * w_n[None, :], 1)[:, None] + bias
    return tl.where(pair, tl.sigmoid(b_logit), 0.0)


@triton.jit
def _add_to(blocks, index: tl.constexpr, addend):
    """The tuple with `addend` added to one entry."""
    out = ()
    for i in tl.static_range(len(blocks)):
        out = out + (blocks[i] + addend if i == index else blocks[i],)
    return out


def adaptive_fusion_forward(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """descriptors `(N, M, d)`; see `amuse_kernels.adaptive_fusion`."""
    descriptors = _rows_dense(descriptors)
    alpha, pair_weight, pair_bias, present = _dense(alpha, pair_weight, pair_bias, present)
    rows, modalities, width = descriptors.shape
    fused = descriptors.new_empty(descriptors.shape)
    alpha_out = descriptors.new_empty((rows, modalities, modalities) if alpha is None else alpha.shape)
    args = (descriptors, alpha, pair_weight, pair_bias, present, fused, alpha_out)
    _launch(_forward, args, descriptors, alpha, held=1).run(descriptors.device)
    return fused, alpha_out


def adaptive_fusion_backward(
    grad_fused: Tensor,
    grad_alpha: Tensor | None,
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of descriptors, alpha, pair_weight and pair_bias; empty for those that are None."""
    descriptors = _rows_dense(descriptors)
    grad_fused, grad_alpha, alpha = _dense(grad_fused, grad_alpha, alpha)
    pair_weight, pair_bias, present = _dense(pair_weight, pair_bias, present)
    rows, modalities, _ = descriptors.shape
    grad_descriptors = descriptors.new_empty(descriptors.shape)
    grad_alpha_in = descriptors.new_empty(0 if alpha is None else alpha.shape)
    pairs = 0 if pair_weight is None else modalities * (modalities - 1)
    grad_logits = descriptors.new_empty((rows, pairs), dtype=torch.float32)
    inputs = (grad_fused, grad_alpha, descriptors, alpha, pair_weight, pair_bias, present)
    args = (*inputs, grad_descriptors, grad_alpha_in, grad_logits)
    _launch(_backward, args, descriptors, alpha, held=3).run(descriptors.device)
    if pair_weight is None:
        grad_weight, grad_bias = grad_logits.new_empty(0), grad_logits.new_empty(0)
    else:
        grad_weight, grad_bias = _weight_gradient(descriptors, present, grad_logits), grad_logits.sum(0)
    return grad_descriptors, grad_alpha_in, grad_weight, grad_bias


def _weight_gradient(descriptors: Tensor, present: Tensor | None, grad_logits: Tensor) -> Tensor:
    rows, modalities, width = descriptors.shape
    blocks = triton.cdiv(rows, _WEIGHT_ROWS)
    partial = grad_logits.new_empty((blocks, grad_logits.shape[1], 2, width))
    Launch(
        kernel=_weight_backward,
        grid=blocks * triton.cdiv(width, _WEIGHT_WIDTH) if modalities > 1 else 0,
        args=(descriptors, present, grad_logits, partial, rows, width, *descriptors.stride()[:2]),
        constexprs={"M": modalities, "BLOCK_N": _WEIGHT_ROWS, "BLOCK_D": _WEIGHT_WIDTH},
        num_warps=4,
        num_stages=1,
    ).run(descriptors.device)
    return partial[0] if blocks == 1 else partial.sum(0)


def _launch(kernel, args: tuple, descriptors: Tensor, alpha: Tensor | None, held: int) -> Launch:
    """A launch over tiles of rows; `held` is the number of blocks that a modality keeps in registers."""
    rows, modalities, width = descriptors.shape
    elementwise = alpha is not None and alpha.dim() == 4
    block_d = triton.next_power_of_2(min(width, 256) if elementwise else width)
    row = modalities * held * block_d
    block_n = min(max(8192 // triton.next_power_of_2(row), 1), 16)
    num_warps = min(max(triton.next_power_of_2(row * block_n // 2048), 1), 16)  # 64 values a thread
    return Launch(
        kernel=kernel,
        grid=triton.cdiv(rows, block_n) * triton.cdiv(width, block_d),
        args=(*args, rows, width, *descriptors.stride()[:2]),
        constexprs={"M": modalities, "ELEMENTWISE": elementwise, "BLOCK_N": block_n, "BLOCK_D": block_d},
        num_warps=num_warps,
        num_stages=1,
    )


def _dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _rows_dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
