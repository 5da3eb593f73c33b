"""Drop-in layers on the public ops."""

from amuse_kernels.nn.attention import PeripheralCentralAttention, ProjectedSource, project_sources
from amuse_kernels.nn.fusion import AdaptiveFusion

__all__ = ["AdaptiveFusion", "PeripheralCentralAttention", "ProjectedSource", "project_sources"]
