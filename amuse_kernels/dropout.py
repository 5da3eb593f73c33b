"""Counter-based dropout: Philox 4x32-10 on (seed, b, h, i, p, j), the same pairs dropped by every backend."""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox 4x32-10 (Salmon et al., SC 2011): four 32-bit words of counter and two of key, in int64, broadcast.

    An int64 product wraps modulo 2^64, so its bits are those of the unsigned product.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _WORD, (k1 + _KEY_INCREMENTS[1]) & _WORD
    return c0, c1, c2, c3


def drop_threshold(dropout_p: float) -> int:
    """A pair is dropped when its random word is below this number."""
    return int(dropout_p * 2**32)


def keep_mask(seed: Tensor, dropout_p: float, shape: tuple[int, int, int, int], source: int) -> Tensor:
    """Which pairs of one source survive, bool of `shape` (B, H, Lq, Lp).

    Counter words are (j // 4, i, b * H + h, p), the key is the seed's low and high word, and the pair (i, j) reads
    word j % 4 of the result, so a kernel draws four neighbouring keys at once.

    Args:
        seed: int64 scalar tensor.
        dropout_p: probability of a drop, in [0, 1).
        shape: (B, H, Lq, Lp) of the source.
        source: index p of the source.
    """
    batch, heads, queries, keys = shape
    device = seed.device
    block = torch.arange((keys + 3) // 4, device=device)
    query = torch.arange(queries, device=device)[:, None]
    row = torch.arange(batch * heads, device=device)[:, None, None]
    stream = torch.full((), source, dtype=torch.int64, device=device)
    words = philox((block, query, row, stream), (seed & _WORD, (seed >> 32) & _WORD))
    random = torch.stack(words, dim=-1).reshape(batch, heads, queries, 4 * len(block))[..., :keys]
    return random >= drop_threshold(dropout_p)
