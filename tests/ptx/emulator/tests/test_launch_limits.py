"""Launches that a driver refuses are refused here too, with the reason."""

from __future__ import annotations

import pytest

from .. import launch
from .snippets import kernel

KB = 1024
STATIC = ".shared .align 16 .b8 tile[9088];"  # declared and used
USES_STATIC = "  mov.u32 %r1, tile;"


def run(directives="", grid=1, block=1, body="", declarations="", target="sm_90a", **options):
    text = kernel(body, declarations=declarations).replace(")\n{", f")\n{directives}\n{{").replace("sm_90a", target)
    return launch.run(text, "k", grid, block, [None], **options)


def test_launch_bounds_of_the_kernel():
    run(".reqntid 64", block=64).assert_clean()
    with pytest.raises(ValueError, match="requires"):
        run(".reqntid 64", block=32)
    with pytest.raises(ValueError, match="at most 64"):
        run(".maxntid 64, 1, 1", block=65)


def test_more_shared_memory_than_the_chip_has():
    run(dynamic_shared=227 * KB, max_dynamic_shared=227 * KB).assert_clean()
    with pytest.raises(ValueError, match="166913 bytes and 0 static ones are asked for, sm_80 has 166912"):
        run(target="sm_80", dynamic_shared=163 * KB + 1, max_dynamic_shared=163 * KB + 1)
    with pytest.raises(ValueError, match="dynamic_shared"):
        run(dynamic_shared=-1)


def test_static_and_dynamic_shared_memory_above_48_kib_need_an_opt_in():
    static = {"body": USES_STATIC, "declarations": STATIC}
    run(dynamic_shared=48 * KB).assert_clean()
    run(**static, dynamic_shared=48 * KB - 9088).assert_clean()
    with pytest.raises(ValueError, match=r"needs 58240 bytes of shared memory, 9088 of them static.*without an opt-in"):
        run(**static, dynamic_shared=48 * KB)
    run(**static, dynamic_shared=48 * KB, max_dynamic_shared=48 * KB).assert_clean()
    with pytest.raises(ValueError, match="as opted in to"):
        run(**static, dynamic_shared=48 * KB, max_dynamic_shared=48 * KB - 1)
    with pytest.raises(ValueError, match="and 9088 static ones are asked for"):
        run(**static, dynamic_shared=48 * KB, max_dynamic_shared=227 * KB)
    with pytest.raises(ValueError, match="49168 bytes of static shared memory"):
        run(body=USES_STATIC, declarations=STATIC.replace("9088", "49168"))


def test_a_grid_is_made_of_whole_clusters():
    run(".reqnctapercluster 2, 1, 1", grid=(4, 3)).assert_clean()
    with pytest.raises(ValueError, match=r"grid: .* not divisible by the clusters of .2, 1, 1. CTAs"):
        run(".reqnctapercluster 2, 1, 1", grid=(3, 2))
    with pytest.raises(ValueError, match="the limit is 8"):
        run(".reqnctapercluster 16", grid=16)


def test_the_registers_of_a_block_fit_a_multiprocessor():
    run(block=512, registers=128).assert_clean()
    with pytest.raises(ValueError, match="512 threads of 129 registers take 69632 registers"):
        run(block=512, registers=129)
    with pytest.raises(ValueError, match="1024 threads of 72 registers"):
        run(".maxnreg 72", block=1024)
