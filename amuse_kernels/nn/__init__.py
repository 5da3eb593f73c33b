"""Drop-in layers on the public ops."""

from amuse_kernels.nn.attention import PeripheralCentralAttention
from amuse_kernels.nn.fusion import AdaptiveFusion

__all__ = ["AdaptiveFusion", "PeripheralCentralAttention"]
