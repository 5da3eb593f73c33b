"""A PTX emulator: runs compiled GPU kernels on CPU tensors, checks every access, counts what they do. See README.md."""

from .errors import Unsupported
from .launch import load, run
from .poison import poisoned
from .report import Finding, Report

__all__ = ["Finding", "Report", "Unsupported", "load", "poisoned", "run"]
