"""Models to begin with, trained here on public data: neither weights nor data are distributed."""

from amuse.pretrained.runs import find, pretrain

__all__ = ["find", "pretrain"]
