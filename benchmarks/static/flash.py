# mypy: ignore-errors
"""A plain flash-attention forward, one stream without options: what the package's stands beside."""

import torch
import triton
import triton.language as tl

from amuse_kernels.triton.launch import Launch


@triton.jit
def flash_forward(
    q, k, v, o, seqlen, scale_log2, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """(slices, seqlen, D) contiguous; masks the keys past `seqlen` in every tile, as plain kernels do."""
    pid_q, pid_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_q = pid_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    o_d = tl.arange(0, D)
    start = pid_bh * seqlen * D
    p_q = start + o_q[:, None] * D + o_d[None, :]
    b_q = tl.load(q + p_q, mask=o_q[:, None] < seqlen, other=0.0)  # [BLOCK_Q, D]
    b_max = tl.full((BLOCK_Q,), -1e30, tl.float32)
    b_sum = tl.zeros((BLOCK_Q,), tl.float32)
    b_o = tl.zeros((BLOCK_Q, D), tl.float32)
    for start_k in range(0, seqlen, BLOCK_K):
        o_k = start_k + tl.arange(0, BLOCK_K)
        p_k = start + o_k[:, None] * D + o_d[None, :]
        b_k = tl.load(k + p_k, mask=o_k[:, None] < seqlen, other=0.0)  # [BLOCK_K, D]
        b_v = tl.load(v + p_k, mask=o_k[:, None] < seqlen, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k)) * scale_log2  # [BLOCK_Q, BLOCK_K]
        b_s = tl.where(o_k[None, :] < seqlen, b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        decay = tl.exp2(b_max - b_new)
        b_sum = b_sum * decay + tl.sum(b_p, 1)
        b_o = tl.dot(b_p.to(v.dtype.element_ty), b_v, b_o * decay[:, None])
        b_max = b_new
    tl.store(o + p_q, (b_o / b_sum[:, None]).to(o.dtype.element_ty), mask=o_q[:, None] < seqlen)


def flash_launch(ours: Launch) -> Launch:
    """The plain kernel with the tile of a launch of the package's forward."""
    tokens = torch.zeros(2, 512, ours.constexprs["D"], dtype=torch.float16)
    return Launch(
        kernel=flash_forward,
        grid=1,
        args=(tokens, tokens, tokens, tokens, 512, 0.18),
        constexprs={name: ours.constexprs[name] for name in ("D", "BLOCK_Q", "BLOCK_K")},
        num_warps=ours.num_warps,
        num_stages=ours.num_stages,
    )
