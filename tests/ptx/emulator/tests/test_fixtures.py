"""Real kernels, compiled by Triton and by nvcc, run right and clean over ragged lengths, for every chip and type."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from .. import poisoned, run
from ..fixtures import cases
from ..nvcc_kernels import launch_nvcc, nvcc

needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="nvcc was not found on PATH nor below $CUDA_HOME")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
LENGTHS = [(1, 1), (17, 33), (63, 64), (64, 129), (100, 77)]


@needs_nvcc
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), LENGTHS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_nvcc_attention(arch, seqlen_q, seqlen_k):
    problem = cases.Problem.random(torch.float16, seqlen_q, seqlen_k)
    launch, outputs = cases.nvcc_forward(problem, arch)
    launch.run(seed=seqlen_q).assert_clean()
    assert problem.error(outputs) <= 1
    assert all(name in launch.ptx for name in ("mma.sync", "ldmatrix", "cp.async"))


@needs_triton
@pytest.mark.parametrize(("seqlen_q", "seqlen_k", "causal"), [(17, 33, False), (100, 77, False), (70, 70, True)])
@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        (80, torch.float16),
        (80, torch.bfloat16),
        (80, torch.float32),
        (86, torch.float16),
        (89, torch.bfloat16),
        (90, torch.float16),
        (90, torch.bfloat16),
        (90, torch.float32),
        (120, torch.float16),
    ],
)
def test_triton_attention_forward_and_backward(arch, dtype, seqlen_q, seqlen_k, causal):
    problem = cases.Problem.random(dtype, seqlen_q, seqlen_k, causal)
    launch, outputs = cases.triton_forward(problem, arch)
    launch.run(seed=seqlen_q).assert_clean()
    assert problem.error(outputs) <= 1
    launches, outputs = cases.triton_backward(problem, arch)
    for launch in launches:
        launch.run(seed=seqlen_k).assert_clean()
    assert problem.error(outputs) <= 1


@needs_triton
def test_hopper_kernels_use_warpgroup_instructions():
    launch, outputs = cases.triton_forward(problem := cases.Problem.random(torch.float16, 70, 45), 90)
    assert "wgmma.mma_async" in launch.ptx
    launch.run().assert_clean()
    assert problem.error(outputs) <= 1
    # Without the wait, the accumulators are read while they are still being computed.
    early = launch.ptx.replace("wgmma.wait_group.sync.aligned 0;", "")
    assert "pending_async_access" in launch.run(early).kinds


@needs_triton
def test_launch_triton_has_the_launch_signature_of_triton():
    from ..fixtures.attention_triton import attention_delta
    from ..triton_kernels import launch_triton

    o, do = torch.randn(2, 40, 64), torch.randn(2, 40, 64)
    delta = poisoned((2, 40))
    report = launch_triton(
        attention_delta,
        lambda meta: (-(-meta["seqlen_q"] // meta["BLOCK_M"]), 2),
        o,
        do,
        delta,
        40,
        BLOCK_M=16,
        D=64,
        num_warps=2,
        readonly=[o, do],
    )
    report.assert_clean()
    torch.testing.assert_close(delta, (o * do).sum(-1), rtol=1e-5, atol=1e-5)
    # An argument that equals 1 becomes a constant, as it would on a GPU.
    delta = poisoned((2, 1))
    launch_triton(
        attention_delta, (1, 2), o[:, :1].contiguous(), do[:, :1].contiguous(), delta, 1, BLOCK_M=16, D=64
    ).assert_clean()
    with pytest.raises(TypeError, match=r"triton\.jit"):
        launch_triton(lambda: None, 1)


REDUCTION = r"""
extern "C" __global__ void row_sums(const float* x, float* out, int columns) {
  __shared__ float partial[8];
  float sum = 0.f;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += x[blockIdx.x * columns + c];
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  BARRIER
  if (threadIdx.x == 0) {
    for (int w = 1; w < (blockDim.x + 31) / 32; w++) sum += partial[w];
    out[blockIdx.x] = sum;
  }
}
"""


@needs_nvcc
@pytest.mark.parametrize("columns", [1, 33, 500])
def test_launch_nvcc_reports_with_source_lines(columns):
    x, out = torch.randn(3, columns), poisoned(3)
    launch_nvcc(
        REDUCTION.replace("BARRIER", "__syncthreads();"), "row_sums", 3, 256, [x, out, columns], readonly=[x]
    ).assert_clean()
    torch.testing.assert_close(out, x.sum(1), rtol=1e-5, atol=1e-5)
    report = launch_nvcc(REDUCTION.replace("BARRIER", ""), "row_sums", 3, 256, [x, poisoned(3), columns], readonly=[x])
    assert report.kinds <= {"race", "uninitialised_read"}
    assert report.findings
    assert all("kernel.cu:" in finding.source for finding in report.findings)


def test_counters_of_a_known_kernel():
    """A transposition of 32 x 32 floats through shared memory, with and without padding."""
    from .snippets import kernel

    body = """
  mov.u32 %r1, %tid.x;
  and.b32 %r2, %r1, 31;
  shr.u32 %r3, %r1, 5;
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [x];
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd2, %rd3;
  ld.global.f32 %f1, [%rd4];
  mov.u32 %r4, tile;
  mad.lo.u32 %r5, %r3, PITCH, %r4;
  shl.b32 %r6, %r2, 2;
  add.u32 %r5, %r5, %r6;
  st.shared.f32 [%r5], %f1;
  bar.sync 0;
  mad.lo.u32 %r7, %r2, PITCH, %r4;
  shl.b32 %r8, %r3, 2;
  add.u32 %r7, %r7, %r8;
  ld.shared.f32 %f2, [%r7];
  add.s64 %rd5, %rd1, %rd3;
  st.global.f32 [%rd5], %f2;"""
    for pitch, conflicts in [(128, 32 * 31), (132, 0)]:
        x, out = torch.randn(32, 32), poisoned((32, 32))
        text = kernel(body.replace("PITCH", str(pitch)), ".u64 out, .u64 x", ".shared .align 4 .b8 tile[4224];")
        report = run(text, "k", 1, 1024, [out, x], readonly=[1])
        report.assert_clean()
        assert torch.equal(out, x.T)
        counters = report.counters
        assert counters["bank_conflicts"] == conflicts
        assert counters["global_bytes_read"] == counters["global_bytes_read_distinct"] == 4096
        assert counters["global_bytes_written"] == counters["global_bytes_written_distinct"] == 4096
        assert counters["global_sectors"] == counters["global_sectors_ideal"] == 256
        assert counters["barriers"] == 32
        assert counters["instructions_global"] == 64
        assert counters["instructions_shared"] == 64
        assert (
            counters["instructions"]
            == 32 * 21
            == sum(value for name, value in counters.items() if name.startswith("instructions_"))
        )


@needs_nvcc
def test_the_counters_command(capsys, monkeypatch):
    from .. import __main__ as command

    monkeypatch.setattr("sys.argv", ["tests.ptx.emulator", "--seqlen-q", "17", "--seqlen-k", "20"])
    command.main()
    printed = capsys.readouterr().out
    assert "nvcc forward" in printed
    assert "bank conflicts" in printed
    assert "global sectors" in printed
