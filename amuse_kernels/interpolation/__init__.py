"""Interpolation coefficients in closed form (paper Eq. 6): inputs, specification, op, and its kernels by backend."""
