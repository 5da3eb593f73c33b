"""p2c_attention by Triton, which importing this package needs."""

from amuse_kernels.attention.triton.plans import p2c_attention_backward, p2c_attention_forward

__all__ = ["p2c_attention_backward", "p2c_attention_forward"]
