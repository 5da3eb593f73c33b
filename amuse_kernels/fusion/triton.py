"""Adaptive fusion (paper Eq. 2) on NVIDIA GPUs: every descriptor is read from memory once.

A program holds whole rows of all modalities in registers, so that the gate's dot products, the mixing and their
gradients happen in one pass. Absent descriptors are not loaded at all. With s present modalities and g_m the gradient
of fused_m:

    d alpha_mn = <g_m, f_n - f_m> / s + grad_alpha_mn
    d f_m      = sum over n of ((1 - alpha_mn) g_m + alpha_nm g_n) / s, and with a gate, z_mn its logit,
    d z_mn     = d alpha_mn alpha_mn (1 - alpha_mn), which adds w_mn[0] d z_mn to d f_m and w_mn[1] d z_mn to d f_n.

The gate's parameters get their gradients from a second kernel, which reads the descriptors once more: a partial sum
for each block of rows, and then their sum in a fixed order, so that results are bitwise reproducible.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from amuse_kernels.buffers import dense, rows_dense
from amuse_kernels.fusion.buffers import fusion_outputs
from amuse_kernels.launch import Launch

_WEIGHT_ROWS, _WEIGHT_WIDTH = 128, 64  # tile of the kernel that sums the pair weights' gradient over rows


@triton.jit(do_not_specialize=["rows"])
def fusion_forward(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_m = tl.arange(0, BLOCK_M)
    o_n, m_n, o_d, m_d = _tile(rows, width, BLOCK_N, BLOCK_D)
    there = _presence(present, o_m, o_n, m_n, M)
    b_f = _load_rows(descriptors, stride_n, stride_m, there, o_m, o_n, o_d, m_d)
    count = tl.sum(there.to(tl.int32), 0)[:, None]
    for m in range(M):
        b_f_m = _select(b_f, o_m == m)  # [BLOCK_N, BLOCK_D]
        pair = _pairs(there, o_m, m)
        p_alpha, m_alpha = _alpha_row(o_m, o_n, m_n, o_d, m_d, width, m, M, ELEMENTWISE)
        if alpha is None:
            w_m, w_n, bias = _gate_parameters(pair_weight, pair_bias, o_m, o_d, m_d, width, m, M)
            b_alpha = _gate(b_f_m, b_f, w_m, w_n, bias, pair)
        else:
            b_alpha = tl.load(alpha + p_alpha, mask=m_alpha & pair, other=0.0).to(tl.float32)
        b_mixed = tl.where(pair, b_alpha * b_f + (1 - b_alpha) * b_f_m[None, :, :], 0.0)
        b_fused = tl.where(count == 1, b_f_m, tl.sum(b_mixed, 0) / tl.maximum(count, 1))
        p_fused = fused + (o_n * M + m)[:, None] * width + o_d[None, :]
        tl.store(p_fused, b_fused.to(fused.dtype.element_ty), mask=m_n[:, None] & m_d[None, :])
        tl.store(alpha_out + p_alpha, b_alpha.to(alpha_out.dtype.element_ty), mask=m_alpha)


@triton.jit(do_not_specialize=["rows"])
def fusion_backward(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of descriptors and of alpha, or with a gate of its logits, `(rows, M, M)` in fp32."""
    o_m = tl.arange(0, BLOCK_M)
    o_n, m_n, o_d, m_d = _tile(rows, width, BLOCK_N, BLOCK_D)
    there = _presence(present, o_m, o_n, m_n, M)
    b_f = _load_rows(descriptors, stride_n, stride_m, there, o_m, o_n, o_d, m_d)
    b_g = _load_rows(grad_fused, M * width, width, there, o_m, o_n, o_d, m_d)
    count = tl.sum(there.to(tl.int32), 0)[:, None]
    b_df = tl.where((count == 1)[None, :, :], b_g, 0.0)
    for m in range(M):
        b_f_m = _select(b_f, o_m == m)  # [BLOCK_N, BLOCK_D]
        b_g_m = _select(b_g, o_m == m) / tl.maximum(count, 1)
        pair = _pairs(there, o_m, m)
        p_alpha, m_alpha = _alpha_row(o_m, o_n, m_n, o_d, m_d, width, m, M, ELEMENTWISE)
        # Sums across lanes are of two terms or of selected ones: a lone product would be contracted with the first
        # addition, differently in each lane, and the lanes' copies of the sum would not be equal.
        b_dalpha = b_g_m[None, :, :] * b_f - (b_g_m * b_f_m)[None, :, :]
        if not ELEMENTWISE:
            b_dalpha = tl.sum(b_dalpha, 2)[:, :, None]
        b_dalpha = tl.where(pair, b_dalpha, 0.0)
        if grad_alpha is not None:
            b_dalpha += tl.load(grad_alpha + p_alpha, mask=m_alpha & pair, other=0.0).to(tl.float32)
        if alpha is None:
            w_m, w_n, bias = _gate_parameters(pair_weight, pair_bias, o_m, o_d, m_d, width, m, M)
            b_alpha = _gate(b_f_m, b_f, w_m, w_n, bias, pair)
            b_dz = b_dalpha * b_alpha * (1 - b_alpha)
            tl.store(grad_logits + p_alpha, b_dz, mask=m_alpha)
            b_df += b_dz * w_n
        else:
            b_alpha = tl.load(alpha + p_alpha, mask=m_alpha & pair, other=0.0).to(tl.float32)
            tl.store(grad_alpha_in + p_alpha, b_dalpha.to(grad_alpha_in.dtype.element_ty), mask=m_alpha)
        b_df_m = tl.where(pair, (1 - b_alpha) * b_g_m[None, :, :], 0.0)
        if alpha is None:
            b_df_m += b_dz * w_m
        b_df_m = tl.sum(b_df_m, 0)
        b_df += b_alpha * b_g_m[None, :, :] + tl.where((o_m == m)[:, None, None], b_df_m[None, :, :], 0.0)
    p_out = grad_descriptors + (o_n[None, :] * M + o_m[:, None])[:, :, None] * width + o_d[None, None, :]
    m_out = (m_n[None, :] & (o_m < M)[:, None])[:, :, None] & m_d[None, None, :]
    tl.store(p_out, b_df.to(grad_descriptors.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["rows"])
def fusion_weight_backward(
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
    partial += block * (M * (M - 1) * 2) * width + o_d
    p_f = descriptors + o_n[:, None] * stride_n + o_d[None, :]
    for m in range(M):
        here = m_n
        if present is not None:
            here = tl.load(present + o_n * M + m, mask=m_n, other=0) != 0
        b_f = tl.load(p_f, mask=here[:, None] & m_d[None, :], other=0.0).to(tl.float32)
        p_f += stride_m
        for n in range(M):
            if m != n:  # w_mn[0] meets f_m, and so does w_nm[1]
                b_dz = tl.load(grad_logits + (o_n * M + m) * M + n, mask=m_n, other=0.0)
                tl.store(partial + _pair_index(m, n, M) * 2 * width, tl.sum(b_dz[:, None] * b_f, 0), mask=m_d)
                b_dz = tl.load(grad_logits + (o_n * M + n) * M + m, mask=m_n, other=0.0)
                tl.store(partial + (_pair_index(n, m, M) * 2 + 1) * width, tl.sum(b_dz[:, None] * b_f, 0), mask=m_d)


@triton.jit
def _tile(rows, width, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows and columns of this program, and which of them exist; tiles of one row are neighbours."""
    tiles = tl.cdiv(width, BLOCK_D)
    pid = tl.program_id(0)
    o_n = (pid // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = pid % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    return o_n, o_n < rows, o_d, o_d < width


@triton.jit
def _presence(present, o_m, o_n, m_n, M: tl.constexpr):
    """Which modalities each row has [BLOCK_M, BLOCK_N]."""
    there = (o_m < M)[:, None] & m_n[None, :]
    if present is not None:
        there = tl.load(present + o_n[None, :] * M + o_m[:, None], mask=there, other=0) != 0
    return there


@triton.jit
def _load_rows(x, stride_n, stride_m, there, o_m, o_n, o_d, m_d):
    """The rows as fp32 [BLOCK_M, BLOCK_N, BLOCK_D], 0 where a modality is absent."""
    o_x = o_m.to(tl.int64)[:, None] * stride_m + o_n[None, :] * stride_n
    p_x = x + o_x[:, :, None] + o_d[None, None, :]
    return tl.load(p_x, mask=there[:, :, None] & m_d[None, None, :], other=0.0).to(tl.float32)


@triton.jit
def _select(blocks, chosen):
    """The block [BLOCK_N, BLOCK_D] of the one modality that is chosen."""
    return tl.sum(tl.where(chosen[:, None, None], blocks, 0.0), 0)


@triton.jit
def _pairs(there, o_m, m):
    """For which n the pair (m, n) exists [BLOCK_M, BLOCK_N, 1]."""
    here = tl.max((there & (o_m == m)[:, None]).to(tl.int32), 0) != 0
    return (there & here[None, :] & (o_m != m)[:, None])[:, :, None]


@triton.jit
def _alpha_row(o_m, o_n, m_n, o_d, m_d, width, m, M: tl.constexpr, ELEMENTWISE: tl.constexpr):
    """Offsets of alpha[m, n] for all n, and which exist: [BLOCK_M, BLOCK_N, 1 or, element-wise, BLOCK_D]."""
    o_alpha = ((o_n * M + m)[None, :] * M + o_m[:, None])[:, :, None]
    m_alpha = ((o_m < M)[:, None] & m_n[None, :])[:, :, None]
    if ELEMENTWISE:
        o_alpha = o_alpha * width + o_d[None, None, :]
        m_alpha = m_alpha & m_d[None, None, :]
    return o_alpha, m_alpha


@triton.jit
def _pair_index(m, n, M: tl.constexpr):
    """Position of (m, n), m != n, among the ordered pairs."""
    return m * (M - 1) + n - (n > m)


@triton.jit
def _gate_parameters(pair_weight, pair_bias, o_m, o_d, m_d, width, m, M: tl.constexpr):
    """w_mn[0] and w_mn[1] [BLOCK_M, 1, BLOCK_D] and b_mn [BLOCK_M, 1, 1] for all n."""
    o_pair = _pair_index(m, o_m, M)[:, None, None]
    exists = ((o_m < M) & (o_m != m))[:, None, None]
    p_weight = pair_weight + o_pair * 2 * width + o_d[None, None, :]
    w_m = tl.load(p_weight, mask=exists & m_d[None, None, :], other=0.0)
    w_n = tl.load(p_weight + width, mask=exists & m_d[None, None, :], other=0.0)
    return w_m, w_n, tl.load(pair_bias + o_pair, mask=exists, other=0.0)


@triton.jit
def _gate(b_f_m, b_f, w_m, w_n, bias, pair):
    """alpha[m, n] for all n [BLOCK_M, BLOCK_N, 1], 0 where the pair does not exist."""
    b_logit = tl.sum(b_f_m[None, :, :] * w_m + b_f * w_n, 2)[:, :, None] + bias
    return tl.where(pair, tl.sigmoid(b_logit), 0.0)


def adaptive_fusion_forward(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """descriptors `(N, M, d)`; see `amuse_kernels.adaptive_fusion`."""
    descriptors = rows_dense(descriptors)
    alpha, pair_weight, pair_bias, present = dense(alpha, pair_weight, pair_bias, present)
    fused, alpha_out = fusion_outputs(descriptors, alpha)
    args = (descriptors, alpha, pair_weight, pair_bias, present, fused, alpha_out)
    _launch(fusion_forward, args, descriptors, alpha).run(descriptors.device)
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
    descriptors = rows_dense(descriptors)
    grad_fused, grad_alpha, alpha = dense(grad_fused, grad_alpha, alpha)
    pair_weight, pair_bias, present = dense(pair_weight, pair_bias, present)
    rows, modalities, _ = descriptors.shape
    grad_descriptors = descriptors.new_empty(descriptors.shape)
    grad_alpha_in = descriptors.new_empty(0 if alpha is None else alpha.shape)
    logits = 0 if pair_weight is None else (rows, modalities, modalities)
    grad_logits = descriptors.new_empty(logits, dtype=torch.float32)
    inputs = (grad_fused, grad_alpha, descriptors, alpha, pair_weight, pair_bias, present)
    args = (*inputs, grad_descriptors, grad_alpha_in, grad_logits)
    _launch(fusion_backward, args, descriptors, alpha).run(descriptors.device)
    if pair_weight is None:
        grad_weight, grad_bias = grad_logits.new_empty(0), grad_logits.new_empty(0)
    else:
        grad_weight, grad_bias = _gate_gradient(descriptors, present, grad_logits)
    return grad_descriptors, grad_alpha_in, grad_weight, grad_bias


def _gate_gradient(descriptors: Tensor, present: Tensor | None, grad_logits: Tensor) -> tuple[Tensor, Tensor]:
    rows, modalities, width = descriptors.shape
    blocks = triton.cdiv(rows, _WEIGHT_ROWS)
    partial = grad_logits.new_empty((blocks, modalities * (modalities - 1), 2, width))
    Launch(
        kernel=fusion_weight_backward,
        grid=blocks * triton.cdiv(width, _WEIGHT_WIDTH),
        args=(descriptors, present, grad_logits, partial, rows, width, *descriptors.stride()[:2]),
        constexprs={"M": modalities, "BLOCK_N": _WEIGHT_ROWS, "BLOCK_D": _WEIGHT_WIDTH},
        num_warps=4,
        num_stages=1,
    ).run(descriptors.device)
    pairs = grad_logits.sum(0).flatten()[1:]  # of every row but the last, the diagonal entry is now the last one
    off_diagonal = pairs.unflatten(0, (modalities - 1, modalities + 1))[:, :-1] if modalities > 1 else pairs
    return partial.sum(0), off_diagonal.reshape(-1)


def _launch(kernel: Any, args: tuple[Any, ...], descriptors: Tensor, alpha: Tensor | None) -> Launch:
    """A launch over tiles of rows, with eight columns of every modality a thread: none is spread over threads."""
    rows, modalities, width = descriptors.shape
    elementwise = alpha is not None and alpha.dim() == 4
    block_d = triton.next_power_of_2(min(width, 256) if elementwise else width)
    block_n = min(max(1024 // block_d, 1), 16)
    return Launch(
        kernel=kernel,
        grid=triton.cdiv(rows, block_n) * triton.cdiv(width, block_d),
        args=(*args, rows, width, *descriptors.stride()[:2]),
        constexprs={
            "M": modalities,
            "ELEMENTWISE": elementwise,
            "BLOCK_M": triton.next_power_of_2(modalities),
            "BLOCK_N": block_n,
            "BLOCK_D": block_d,
        },
        num_warps=min(max(block_n * block_d // 256, 1), 16),
        num_stages=1,
    )
