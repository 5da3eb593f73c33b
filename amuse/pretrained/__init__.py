"""Pretrained models, which are trained on the user's machine on public data: no weights or data are distributed."""

from amuse.pretrained.runs import find, pretrain

__all__ = ["find", "pretrain"]
