"""Bugs planted in the source of the GPU kernels, and the test that has to fail for each.

`python -m tests.ptx.package.planted_bugs` plants one at a time in a copy of the repository, runs its test there and
prints a table; it fails where a test passes all the same. `--only WORD` takes the bugs whose names contain the word.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
CUDA, TRITON = "csrc/cuda", "amuse_kernels/attention/triton"
CUDA_TEST = "tests/ptx/package/test_cuda_attention.py::"
PACKED_TEST = "test_packed_samples_are_the_dense_op_with_masks_bit_by_bit"
FUSION_TEST = "tests/ptx/package/test_cuda_fusion.py::"
TRITON_TEST = "tests/ptx/package/test_triton_kernels.py::"


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    original: str
    planted: str
    test: str
    also: tuple[str, str] | None = None  # a second place, original and planted


BUGS = (
    Bug(
        "CUDA: the running maximum is not reset between streams",
        f"{CUDA}/attention_forward.cuh",
        "maximum[group][0] = maximum[group][1] = far_below;",
        "if (!stashed) maximum[group][0] = maximum[group][1] = far_below;",
        CUDA_TEST + "test_attention[far apart-torch.float32-None]",
    ),
    Bug(
        "Triton: the running maximum is not reset between streams",
        f"{TRITON}/forward.py",
        "b_max = tl.full((BLOCK_Q,), FAR_BELOW, tl.float32)",
        "b_max = top",
        TRITON_TEST + "test_attention[far apart-120-torch.float32]",
        also=("finish(b_max * scale_log2, b_sum)", "finish(b_max * scale_log2, b_sum)\n            top = b_max"),
    ),
    Bug(
        "CUDA: a hole in the mask off by one at a tile's edge",
        f"{CUDA}/attention_streams.cuh",
        "whole = start + __ffs(hidden) - 1;",
        "whole = start + __ffs(hidden);",
        CUDA_TEST + "test_attention[holes-torch.float16-None]",
    ),
    Bug(
        "Triton: a hole in the mask off by one at a tile's edge",
        f"{TRITON}/blocks.py",
        "tl.where(m_k, length, o_k)",
        "tl.where(m_k, length, o_k + 1)",
        TRITON_TEST + "test_attention[holes-80-torch.float16]",
    ),
    Bug(
        "CUDA: the end of the visible keys off by one at a tile's edge",
        f"{CUDA}/attention_streams.cuh",
        "end = start + 32 - __clz(seen);",
        "end = start + 31 - __clz(seen);",
        CUDA_TEST + "test_attention[holes-torch.float16-None]",
    ),
    Bug(
        "CUDA: dV with K's strides",
        f"{CUDA}/attention_key_gradients.cuh",
        "source.grad_value.stride_l",
        "source.grad_key.stride_l",
        CUDA_TEST + "test_attention[holes-torch.float16-None]",
    ),
    Bug(
        "Triton: dV with K's strides",
        f"{TRITON}/backward.py",
        "p_dv = tile(pick(grad_values, p), pick_strides(grad_value_strides, p, UNIT)",
        "p_dv = tile(pick(grad_values, p), pick_strides(grad_key_strides, p, UNIT)",
        TRITON_TEST + "test_attention[holes-80-torch.float16]",
    ),
    Bug(
        "CUDA: offsets of batch and head in 32 bits",
        f"{CUDA}/attention_tile.cuh",
        "b * tensor.stride_b + h * tensor.stride_h",
        "static_cast<int32_t>(b * tensor.stride_b + h * tensor.stride_h)",
        CUDA_TEST + "test_offsets_above_2_to_the_31[0-64-20]",
    ),
    Bug(
        "Triton: offsets of batch and head in 32 bits",
        f"{TRITON}/blocks.py",
        "base + at * s_b + h * s_h + (o_row",
        "base + (at * s_b + h * s_h).to(tl.int32) + (o_row",
        TRITON_TEST + "test_offsets_above_2_to_the_31[one tile-1]",
    ),
    Bug(
        "CUDA: offsets of rows in 32 bits",
        f"{CUDA}/attention_tile.cuh",
        "from + (first + first_row) * stride",
        "from + static_cast<int32_t>((first + first_row) * stride)",
        CUDA_TEST + "test_offsets_above_2_to_the_31[2-64-20]",
    ),
    Bug(
        "CUDA: offsets of rows in 32 bits, element by element",
        f"{CUDA}/attention_tile.cuh",
        "from[(first + row) * stride + column + e]",
        "from[static_cast<int32_t>((first + row) * stride) + column + e]",
        CUDA_TEST + "test_offsets_above_2_to_the_31[2-1-20]",
    ),
    Bug(
        "Triton: rows beyond 32 bits are not refused",
        f"{TRITON}/plans.py",
        "shape[2] * strides[2] >= 2**31",
        "shape[2] * strides[2] >= 2**63",
        TRITON_TEST + "test_rows_of_a_slice_farther_apart_than_2_to_the_31_are_refused",
    ),
    Bug(
        "CUDA: the gate's gradient is summed over 32 tiles of queries only",
        f"{CUDA}/attention_backward_keys.cuh",
        "for (int tile = threadIdx.x; tile < args.query_tiles; tile += 32) sum",
        "if (const int tile = threadIdx.x; tile < args.query_tiles) sum",
        CUDA_TEST + "test_attention[gates of many tiles-torch.float32-None]",
    ),
    Bug(
        "Triton: the gate's gradient is summed over 32 tiles of queries only",
        f"{TRITON}/backward.py",
        "for first in range(0, queries, BLOCK_Q):",
        "for first in range(0, tl.minimum(queries, 32 * BLOCK_Q), BLOCK_Q):",
        TRITON_TEST + "test_attention[gates of many tiles-120-torch.float32]",
    ),
    Bug(
        "CUDA: a causal key sees one query less in the backward",
        f"{CUDA}/attention_key_gradients.cuh",
        "first + row + 8 * (i / 2) <= at",
        "first + row + 8 * (i / 2) < at",
        CUDA_TEST + "test_attention[causal-torch.float32-24]",
    ),
    Bug(
        "CUDA: no barrier before a tile's buffer is used again",
        f"{CUDA}/attention_forward.cuh",
        "    wait_copies<0>();\n    __syncthreads();\n",
        "    wait_copies<0>();\n",
        CUDA_TEST + "test_attention[plain-torch.float16-None]",
    ),
    Bug(
        "CUDA: dropout drawn for another query in the backward",
        f"{CUDA}/attention_key_gradients.cuh",
        "dropout.kept(quad, query + 8 * n + 2 * t + mine % 2, p)",
        "dropout.kept(quad, query + 8 * n + 2 * t + mine / 2, p)",
        CUDA_TEST + "test_attention[dropout-torch.float32-24]",
    ),
    Bug(
        "Triton: the gradient of lse is left out",
        f"{TRITON}/backward.py",
        "return b_w * (gate * (b_dw - delta) + dlse), b_w * b_dw",
        "return b_w * (gate * (b_dw - delta)), b_w * b_dw",
        TRITON_TEST + "test_attention[plain-80-torch.float16]",
    ),
    Bug(
        "CUDA: groups of the first sample for all",
        f"{CUDA}/attention_streams.cuh",
        "first_key(source, queries.b, streams.keys[tile.p].offset)",
        "first_key(source, 0, streams.keys[tile.p].offset)",
        CUDA_TEST + "test_attention[groups-torch.float16-None]",
    ),
    Bug(
        "CUDA: a packed sample reads the next one's keys beyond its own",
        f"{CUDA}/attention_tile.cuh",
        "min(cu_seq[b + 1] - start, longest)",
        "longest",
        CUDA_TEST + f"{PACKED_TEST}[torch.float32-24-70-plain]",
    ),
    Bug(
        "CUDA: groups of packed samples from the first token on",
        f"{CUDA}/attention_streams.cuh",
        "b * source.length : offset",
        "b * source.length : 0",
        CUDA_TEST + f"{PACKED_TEST}[torch.bfloat16-64-70-groups]",
    ),
    Bug(
        "CUDA: recomputed weights are not divided by their sum",
        f"{CUDA}/attention_query_gradients.cuh",
        "return total == 0.f ? 0.f : 1.f / total;",
        "return total == 0.f ? 0.f : 1.f;",
        CUDA_TEST + "test_large_scores_stay_within_the_error_budget[torch.float32-per_source-3770]",
    ),
    Bug(
        "CUDA: a query that sees no key takes part in the keys' gradients",
        f"{CUDA}/attention_backward_keys.cuh",
        "if (!__syncthreads_or(blind)) return;",
        "if (__syncthreads_or(blind) < 2) return;",
        CUDA_TEST + "test_nan_in_a_query_that_sees_no_key_reaches_no_gradient[joint-70]",
    ),
    Bug(
        "CUDA: a query that sees no key of a source takes part in its keys' gradients, one tile of queries",
        f"{CUDA}/attention_backward_fused.cuh",
        "if (copied && seeing == present) return;",
        "if (copied) return;",
        CUDA_TEST + "test_nan_in_a_query_reaches_the_keys_of_no_source_in_which_it_sees_none[40-relations1]",
    ),
    Bug(
        "CUDA: gradients of keys in tiles that no query sees are not written, one tile of queries",
        f"{CUDA}/attention_backward_fused.cuh",
        "if (p < args.sources) zero_keys(key);",
        "",
        CUDA_TEST + "test_keys_in_tiles_that_no_query_sees_get_gradients_of_zero[torch.float16-50]",
    ),
    Bug(
        "CUDA: keys take the rows' numbers of the source before, one tile of queries",
        f"{CUDA}/attention_backward_fused.cuh",
        "    next_key = at.start + columns;\n    __syncthreads();\n",
        "    next_key = at.start + columns;\n",
        CUDA_TEST + "test_attention[50 queries, holes-torch.float16-None]",
    ),
    Bug(
        "CUDA: the gate's gradient lacks a warp, one tile of queries",
        f"{CUDA}/attention_backward_fused.cuh",
        "for (int warp = 0; warp < tile.warps; ++warp)",
        "for (int warp = 1; warp < tile.warps; ++warp)",
        CUDA_TEST + "test_attention[20 queries, holes, joint-torch.float32-None]",
    ),
    Bug(
        "CUDA: queries of packed samples from the first token on, one tile of queries",
        f"{CUDA}/attention_backward_fused.cuh",
        "const Tokens all{queries.offset, queries.count}",
        "const Tokens all{0, queries.count}",
        CUDA_TEST + f"{PACKED_TEST}[torch.bfloat16-64-20-groups]",
    ),
    Bug(
        "CUDA: a warp with one query computes nothing, few queries",
        f"{CUDA}/attention_forward.cuh",
        "if (first_row_of_warp() >= queries.count) return;",
        "if (first_row_of_warp() >= queries.count - 1) return;",
        CUDA_TEST + "test_attention[ragged-torch.float16-None]",
    ),
    Bug(
        "CUDA: a warp with one query computes nothing in the backward, few queries",
        f"{CUDA}/attention_query_gradients.cuh",
        "if (Share::warp_row() >= queries.count) return;",
        "if (Share::warp_row() >= queries.count - 1) return;",
        CUDA_TEST + "test_attention[ragged-torch.float16-None]",
    ),
    Bug(
        "CUDA: few queries are launched with the block of many",
        f"{CUDA}/attention_plan.cpp",
        "const AttentionTile tile = forward_tile(bytes, padded, few);",
        "const AttentionTile tile = forward_tile(bytes, padded, false);",
        CUDA_TEST + "test_attention[20 queries, holes-torch.float32-None]",
    ),
    Bug(
        "CUDA: one of the three TF32 products is left out",
        f"{CUDA}/mma.cuh",
        "if (!kSwapped) multiply_tf32(c, high, small(b0), small(b1));",
        "",
        CUDA_TEST + "test_attention[plain-torch.float32-24]",
    ),
    Bug(
        "CUDA: two rows of a block share the sums of their warps",
        f"{CUDA}/interpolation.cu",
        "sums + rows.row * rows.parts()",
        "sums",
        FUSION_TEST + "test_interpolation_coefficients[9-200-torch.float32]",
    ),
    Bug(
        "Triton: one TF32 product instead of three",
        f"{TRITON}/plans.py",
        '"PRECISION": tile.products or "ieee"',
        '"PRECISION": "tf32" if tile.products else "ieee"',
        TRITON_TEST + "test_attention[ragged-80-torch.float32]",
    ),
    Bug(
        "Triton: rows beyond the last key are stored",
        f"{TRITON}/backward.py",
        "    store_rows(p_dv, b_dv * value_scale, o_k < length, D, BLOCK_D)\n",
        "    store_rows(p_dv, b_dv * value_scale, o_k < length + 1, D, BLOCK_D)\n",
        TRITON_TEST + "test_attention[groups-80-torch.float16]",
    ),
)


def plant(bug: Bug, copy: Path) -> None:
    """Plants a bug in a copy of the repository.

    Raises:
        ValueError: The kernel has changed: the original text is not there, or not what the bug means.
    """
    path = copy / bug.file
    text = path.read_text()
    for original, planted in ((bug.original, bug.planted), *filter(None, [bug.also])):
        if original not in text:
            raise ValueError(f"{bug.name}: {bug.file} has no {original!r}; plant the bug in what the kernel is now")
        # the last of several places: in the backward, the one with tiles of its own for the keys
        before, _, after = text.rpartition(original)
        text = before + planted + after
    path.write_text(text)


def copy_of_repository(to: Path) -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "amuse_kernels").glob("_[Cb]*")]
    for name in [*filter(None, files), *built]:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def failure(test: str, copy: Path) -> str:
    """The last complaint of a test that fails in a copy; empty where it passes."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", test]
    run = subprocess.run(
        command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=600
    )
    if run.returncode not in (0, 1):
        raise RuntimeError(f"{test} did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    complaints = [line.removeprefix("E").strip() for line in run.stdout.splitlines() if line.startswith("E  ")]
    if run.returncode and not complaints:
        raise RuntimeError(f"{test} failed without a reason:\n{run.stdout[-2000:]}")
    return next((line for line in complaints if line), "") if run.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.package.planted_bugs", description=__doc__)
    parser.add_argument("--only", default="", help="only bugs whose name contains this")
    word = parser.parse_args().only
    missed = 0
    for bug in BUGS:
        if word not in bug.name:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            copy_of_repository(Path(folder))
            plant(bug, Path(folder))
            reason = failure(bug.test, Path(folder))
        missed += not reason
        verdict = f"caught: {reason[:150]}" if reason else "NOT CAUGHT"
        print(f"{bug.name}\n    {bug.test}\n    {verdict} ({time.perf_counter() - started:.0f} s)", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
