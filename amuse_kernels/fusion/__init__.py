"""Adaptive fusion (paper Eq. 2): inputs, specification, op, and its kernels by backend."""
