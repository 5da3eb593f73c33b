"""Triton's kernels compiled before there is a GPU, as a folder to bring along.

    python -m benchmarks.gpu.triton_cache --out DIR               the kernels of the sweep's stages smoke and cases
    python -m benchmarks.gpu.sweep --triton-cache DIR --out ...   starts with them

Triton finds a kernel by a hash of its source, its arguments' types, the chip, and Triton's own files: only the same
wheel of Triton, hence the same version of Python, finds it; any other compiles it again.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from amuse.files import write_text
from amuse_kernels.attention.triton import plans
from amuse_kernels.launch import Launch
from benchmarks.gpu.cases import CASES
from benchmarks.gpu.smoke import DTYPES, HEAD_DIMS, QUERIES, SOURCES
from tests.attention_cases import make_case
from tests.ptx.emulator.triton_kernels import chip
from tests.ptx.package.attention_calls import inputs_of
from tests.ptx.package.triton_launches import recorded

KEPT = (".cubin", ".json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the kernels")
    parser.add_argument("--arch", type=int, default=90, help="compute capability of the GPU")
    parser.add_argument("--minutes", type=float, default=30, help="nothing new is compiled after this time")
    options = parser.parse_args()
    os.environ["TRITON_CACHE_DIR"] = str(options.out.resolve())
    began, count = time.time(), 0
    for launch in launches(options.arch):
        if time.time() - began > 60 * options.minutes:
            break
        compile_ahead(launch, options.arch)
        count += 1
    strip(options.out)
    print(f"{count} launches of {options.out} in {time.time() - began:.0f} s")


def launches(arch: int) -> Iterator[Launch]:
    """The launches of smoke and cases on Triton's kernels of attention."""
    smoke = [
        {"queries": QUERIES[0], "lengths": SOURCES, "head_dim": head_dim, "masks": "holes"} for head_dim in HEAD_DIMS
    ]
    for sizes in (*smoke, *CASES.values()):
        for dtype in DTYPES.values():
            inputs = inputs_of(make_case(dtype=dtype, **sizes))
            with recorded(arch) as found:
                out, lse = plans.p2c_attention_forward(inputs)
                plans.p2c_attention_backward(torch.zeros_like(out), torch.zeros_like(lse), None, lse, inputs)
            yield from found


def compile_ahead(launch: Launch, arch: int) -> None:
    """Into the folder TRITON_CACHE_DIR, as the launch on a GPU would."""
    with chip(arch):
        launch.kernel.warmup(*launch.args, grid=(1,), **launch.options)


def strip(folder: Path) -> None:
    """Leaves of each kernel its machine code and what Triton has to know of it, a tenth of the bytes."""
    for group in folder.glob("*/__grp__*.json"):
        for name in json.loads(group.read_text(encoding="utf-8"))["child_paths"]:
            if not name.endswith(KEPT):
                (group.parent / name).unlink(missing_ok=True)


def adopt(folder: Path) -> Path:
    """Makes a folder that was brought along usable where it is now, since Triton writes down where its files are.

    Returns:
        What TRITON_CACHE_DIR has to be.

    Raises:
        FileNotFoundError: There are no kernels in the folder.
    """
    groups = sorted(folder.resolve().glob("*/__grp__*.json"))
    if not groups:
        raise FileNotFoundError(f"{folder}: expected kernels by benchmarks.gpu.triton_cache, found none")
    for group in groups:
        listed = json.loads(group.read_text(encoding="utf-8"))
        names = [name for name in listed["child_paths"] if name.endswith(KEPT)]
        listed["child_paths"] = {name: str(group.parent / name) for name in names}
        write_text(json.dumps(listed), group)
    return folder.resolve()


if __name__ == "__main__":
    main()
