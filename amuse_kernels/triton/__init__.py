"""Triton kernels. Importing this package needs no triton; its modules do."""
