"""Memory for tensors with huge strides: far more addresses than the machine has bytes, few of them touched."""

import mmap

# Python names it from 3.13 on; 0x4000 on Linux
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def sparse_memory(size: int) -> mmap.mmap:
    """`size` bytes of zeros, of which only the touched pages take memory."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
