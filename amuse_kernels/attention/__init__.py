"""Peripheral-to-Central attention (paper Eq. 1): inputs, specification, op, and its kernels by backend."""
