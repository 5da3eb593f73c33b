"""p2c_attention as the attention of a transformers model: `attn_implementation="p2c"`.

It works for models with transformers' attention interface whose masks are causal or cover only padding, and whose heads
have 8 to 256 channels, a multiple of 8. Anything else is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import (
    AttentionMaskInterface,
    bidirectional_mask_function,
    causal_mask_function,
    prepare_padding_mask,
)

from amuse_kernels import p2c_attention

P2C = "p2c"
# arguments of other attentions that change the result
UNKNOWN = ("position_bias", "softcap", "s_aux", "sliding_window")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over one source, as transformers calls it.

    Args:
        module: The calling module; its `is_causal` and `num_key_value_groups` are read.
        query: `(B, H, Lq, D)`. key, value: `(B, H / groups, Lk, D)`.
        attention_mask: As `key_mask` makes it.
        dropout: Probability that a weight is dropped.
        scaling: Factor of the scores.
        is_causal: None = the module's.

    Returns:
        `(B, Lq, H, D)`, and None for the weights.

    Raises:
        ValueError: An option that this attention does not support.
    """
    for name in UNKNOWN:
        if kwargs.get(name) is not None:
            raise ValueError(f"{name}: not supported by attn_implementation={P2C!r}; use 'sdpa' or 'eager'")
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if query.shape[2] == 1:  # the newest token attends to everything
        causal = False
    elif causal and query.shape[2] != key.shape[2]:
        raise ValueError(
            f"query: attn_implementation={P2C!r} takes one new token at a time after cached ones, or all tokens at "
            f"once; got {query.shape[2]} queries for {key.shape[2]} keys"
        )
    out = p2c_attention(
        query,
        [key],
        [value],
        key_masks=None if attention_mask is None else [attention_mask],
        causal=causal,
        softmax_scale=scaling,
        dropout_p=dropout,
    )
    assert isinstance(out, Tensor)
    return out.transpose(1, 2), None


def key_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    **kwargs: Any,
) -> Tensor | None:
    """The key padding mask, bool `(B, Lk)`; causality is taken from the module.

    A static cache has its final length from the start: keys after the newest query are not written yet, and are masked.

    Raises:
        ValueError: Another pattern, such as a sliding window or packed sequences.
    """
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise ValueError(f"attn_implementation={P2C!r}: expected a causal mask or one of padding only, got another one")
    mask = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if mask is not None:
        mask = mask[:, kv_offset : kv_offset + kv_length].bool()
    newest = q_offset + q_length
    if mask_function is bidirectional_mask_function or (isinstance(newest, int) and kv_offset + kv_length <= newest):
        return mask
    device = mask.device if mask is not None else newest.device if isinstance(newest, Tensor) else kwargs.get("device")
    written = torch.arange(kv_offset, kv_offset + kv_length, device=device) < newest
    return written.expand(batch_size, -1) if mask is None else mask & written


AttentionInterface.register(P2C, attend)
# without a mask of its own, transformers passes none, and padding would be attended to
AttentionMaskInterface.register(P2C, key_mask)
