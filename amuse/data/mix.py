"""Mixup between the utterances of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Mix:
    """Mixup between utterances: `share` `(U,)` of an utterance in [1/2, 1], the rest of its `partner` `(U,)`."""

    partner: Tensor
    share: Tensor

    def apply(self, rows: Tensor) -> Tensor:
        """`(U, width)` interpolated with the partners' rows."""
        share = self.share[:, None].to(rows.dtype)
        return share * rows + (1 - share) * rows[self.partner]

    def to(self, device: torch.device) -> Mix:
        """This mixup on `device`."""
        return Mix(self.partner.to(device), self.share.to(device))
