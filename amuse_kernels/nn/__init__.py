"""Drop-in layers on the public ops."""

from amuse_kernels.nn.attention import PeripheralCentralAttention
from amuse_kernels.nn.fusion import AdaptiveFusion
from amuse_kernels.nn.packed import Packed
from amuse_kernels.nn.sources import ProjectedSource, project_sources

__all__ = ["AdaptiveFusion", "Packed", "PeripheralCentralAttention", "ProjectedSource", "project_sources"]
