"""Every kind of misbehaviour is reported by its own name and at its own line, and the correct twin is clean."""

# ruff: noqa: E501 - lines of PTX

from __future__ import annotations

import pytest
import torch

from .. import poisoned, run
from .snippets import kernel, line_of

THREAD = (
    "  mov.u32 %r1, %tid.x;\n  ld.param.u64 %rd1, [out];\n  mul.wide.u32 %rd2, %r1, 4;\n  add.s64 %rd3, %rd1, %rd2;\n"
)
SHARED = ".shared .align 16 .b8 tile[256];"
SLOT = "  mov.u32 %r2, tile;\n  shl.b32 %r3, %r1, 2;\n  add.u32 %r4, %r2, %r3;\n"


def launch(text, *args, grid=1, block=32, **options):
    return run(text, "k", grid, block, list(args), **options)


def expect(text, kind, part, *args, **options):
    report = launch(text, *args, **options)
    assert {(f.kind, f.line) for f in report.findings} == {(kind, line_of(text, part))}, [
        str(f) for f in report.findings
    ]
    return report


def test_a_correct_kernel_is_clean_and_writes_in_place():
    out = poisoned(32, torch.int32)
    report = launch(kernel(THREAD + "  st.global.u32 [%rd3], %r1;"), out)
    report.assert_clean()
    assert out.tolist() == list(range(32))


@pytest.mark.parametrize(
    "instruction", ["st.global.u32 [%rd3], %r1;", "ld.global.u32 %r9, [%rd3];", "red.global.add.u32 [%rd3], 1;"]
)
def test_global_access_past_the_end(instruction):
    report = expect(
        kernel(THREAD + "  " + instruction), "out_of_bounds", instruction, torch.zeros(31, dtype=torch.int32)
    )
    assert report.findings[0].lane == 31
    assert "args[0] (out)" in report.findings[0].message


def test_global_access_before_the_start():
    expect(
        kernel(THREAD + "  ld.global.u32 %r9, [%rd3+-4];"),
        "out_of_bounds",
        "[%rd3+-4]",
        torch.zeros(32, dtype=torch.int32),
    )


def test_gaps_of_a_strided_view_are_out_of_bounds():
    base = torch.zeros(64, dtype=torch.int32)
    text = kernel(THREAD + "  st.global.u32 [%rd3], %r1;")
    expect(text, "out_of_bounds", "st.global", base[::2])
    launch(kernel(THREAD + "  add.s64 %rd3, %rd3, %rd2;\n  st.global.u32 [%rd3], %r1;"), base[::2]).assert_clean()
    assert base[::2].tolist() == list(range(32))


def test_a_null_pointer_is_out_of_bounds():
    expect(kernel(THREAD + "  st.global.u32 [%rd3], %r1;"), "out_of_bounds", "st.global", None)


def test_shared_access_past_the_end():
    expect(
        kernel(THREAD + SLOT + "  st.shared.u32 [%r4+192], %r1;", declarations=SHARED),
        "out_of_bounds",
        "st.shared",
        torch.zeros(1),
    )
    dynamic = ".extern .shared .align 16 .b8 tile[];"
    text = kernel(THREAD + SLOT + "  st.shared.u32 [%r4], %r1;", declarations=dynamic)
    launch(text, torch.zeros(1), dynamic_shared=128).assert_clean()
    expect(text, "out_of_bounds", "st.shared", torch.zeros(1), dynamic_shared=124)


def test_local_access_past_the_end():
    text = kernel(
        "  .local .align 4 .b8 stack[8];\n  mov.u64 %rd1, stack;\n  mov.u32 %r1, 7;\n  st.local.u32 [%rd1+4], %r1;\n  st.local.u32 [%rd1+8], %r1;"
    )
    expect(text, "out_of_bounds", "[%rd1+8]", torch.zeros(1))


def test_misaligned_vector_access():
    text = kernel(THREAD + "  ld.global.v2.u32 {%r5, %r6}, [%rd1+4];")
    expect(text, "misaligned", "ld.global", torch.zeros(8, dtype=torch.int32), block=1)
    text = kernel(THREAD + SLOT + "  st.shared.u32 [%r4+2], %r1;", declarations=SHARED)
    expect(text, "misaligned", "st.shared", torch.zeros(1), block=1)
    # A view that starts at an odd element has the alignment of that element.
    text = kernel(THREAD + "  ld.global.v2.u32 {%r5, %r6}, [%rd1];")
    expect(text, "misaligned", "ld.global", torch.zeros(8, dtype=torch.int32)[1:], block=1)


def test_uninitialised_shared_memory():
    text = kernel(THREAD + SLOT + "  ld.shared.u32 %r5, [%r4];\n  st.global.u32 [%rd3], %r5;", declarations=SHARED)
    expect(text, "uninitialised_read", "ld.shared", torch.zeros(32, dtype=torch.int32))


@pytest.mark.parametrize("use", ["st.global.u32 [%rd3], %r7;", "add.u32 %r8, %r7, 1;", "mul.lo.u32 %r8, %r1, %r7;"])
def test_uninitialised_register(use):
    expect(kernel(THREAD + "  " + use), "uninitialised_read", use, torch.zeros(32, dtype=torch.int32))


def test_undefined_lanes_are_reported_where_they_matter():
    partly = THREAD + "  setp.lt.u32 %p1, %r1, 16;\n  @%p1 mov.u32 %r5, 1;\n  add.u32 %r6, %r5, 1;\n"
    out = torch.zeros(32, dtype=torch.int32)
    launch(kernel(partly + "  @%p1 st.global.u32 [%rd3], %r6;"), out).assert_clean()
    expect(kernel(partly + "  st.global.u32 [%rd3], %r6;"), "uninitialised_read", "add.u32 %r6", out)


def test_compilers_may_leave_half_of_a_pair_unwritten():
    out = torch.zeros(32, dtype=torch.int32)
    pair = THREAD + "  mov.b64 %rd5, {{%r1, %r9}};\n  mov.b64 {{%r5, {half}}}, %rd5;\n  st.global.u32 [%rd3], %r5;"
    launch(kernel(pair.format(half="_")), out).assert_clean()
    nothing = pair.format(half="_").replace("{%r1, %r9}", "{%r8, %r9}")
    expect(kernel(nothing), "uninitialised_read", "mov.b64 %rd5", out)


def test_undefined_predicate():
    expect(
        kernel(THREAD + "  @%p3 st.global.u32 [%rd3], %r1;"),
        "uninitialised_read",
        "@%p3",
        torch.zeros(32, dtype=torch.int32),
    )


def test_poisoned_memory_must_not_be_read():
    text = kernel(THREAD + "  ld.global.u32 %r5, [%rd3];\n  st.global.u32 [%rd3], %r5;")
    expect(text, "uninitialised_read", "ld.global", poisoned(32, torch.int32))
    launch(text, torch.zeros(32, dtype=torch.int32)).assert_clean()


def test_poisoned_output_must_be_stored_completely():
    out = poisoned((4, 9), torch.int32)
    report = launch(kernel(THREAD + "  st.global.u32 [%rd3], %r1;"), out)
    assert [f.kind for f in report.findings] == ["uninitialised_read"]
    assert "4 of 36 elements were never stored, the first at (3, 5)" in report.findings[0].message
    # What the first kernel stored, a second one may read.
    second = launch(kernel(THREAD + "  ld.global.u32 %r5, [%rd3];\n  st.global.u32 [%rd3+16], %r5;"), out, block=1)
    assert [f.line for f in second.findings] == [0]


@pytest.mark.parametrize("as_index", [True, False])
def test_write_to_a_readonly_buffer(as_index):
    tensor = torch.ones(32, dtype=torch.int32)
    text = kernel(THREAD + "  st.global.u32 [%rd3], %r1;")
    expect(text, "readonly_write", "st.global", tensor, readonly=(0,) if as_index else (tensor,))
    assert tensor.tolist() == [1] * 32


EXCHANGE = """
  st.shared.u32 [%r4], %r1;
  {barrier}
  xor.b32 %r5, %r3, {distance};
  add.u32 %r5, %r5, %r2;
  ld.shared.u32 %r6, [%r5];
  st.global.u32 [%rd3], %r6;"""


@pytest.mark.parametrize(("distance", "enough"), [(128, ["bar.sync 0;"]), (4, ["bar.sync 0;", "bar.warp.sync -1;"])])
def test_race_between_and_inside_warps(distance, enough):
    out = torch.zeros(64, dtype=torch.int32)
    for barrier in ["", "bar.warp.sync -1;", "bar.sync 0;"]:
        text = kernel(THREAD + SLOT + EXCHANGE.format(barrier=barrier, distance=distance), declarations=SHARED)
        if barrier in enough:
            launch(text, out, block=64).assert_clean()
        else:
            kinds = launch(text, out, block=64).kinds
            assert kinds in ({"race"}, {"uninitialised_read"}, {"race", "uninitialised_read"}), barrier


def test_race_write_after_read():
    body = THREAD + SLOT + EXCHANGE.format(barrier="bar.sync 0;", distance=128)
    text = kernel(body + "\n  st.shared.u32 [%r4], %r6;", declarations=SHARED)
    # Which of the two accesses comes second, and is reported, depends on the order of the warps.
    assert launch(text, torch.zeros(64, dtype=torch.int32), block=64).kinds == {"race"}
    launch(text, torch.zeros(64, dtype=torch.int32), block=64, races=False).assert_clean()


def test_equal_values_in_one_cta_are_no_race_and_different_ones_are():
    out = torch.zeros(1, dtype=torch.int32)
    launch(kernel(THREAD + "  mov.u32 %r5, 3;\n  st.global.u32 [%rd1], %r5;"), out, block=64).assert_clean()
    expect(kernel(THREAD + "  st.global.u32 [%rd1], %r1;"), "race", "st.global", out, block=64)


def test_race_between_ctas_on_global_memory():
    out = torch.zeros(32, dtype=torch.int32)
    same_place = kernel(THREAD + "  st.global.u32 [%rd3], %r1;")
    expect(same_place, "race", "st.global", out, grid=2)
    launch(same_place, out, grid=2, races=False).assert_clean()
    launch(kernel(THREAD + "  red.global.add.u32 [%rd3], 1;"), out, grid=2).assert_clean()


def test_release_and_acquire_order_ctas():
    body = """
  ld.param.u64 %rd1, [out];
  mov.u32 %r1, %ctaid.x;
  setp.eq.u32 %p1, %r1, 0;
  @%p1 st.global.u32 [%rd1], 7;
  {fence}
  atom.{order}global.add.u32 %r2, [%rd1+4], 1;
  @!%p1 ld.global.u32 %r3, [%rd1];
  @!%p1 st.global.u32 [%rd1+8], %r3;"""
    out = torch.zeros(3, dtype=torch.int32)
    for fence, order, clean in [("", "", False), ("membar.gl;", "", True), ("", "acq_rel.gpu.", True)]:
        text = kernel(body.format(fence=fence, order=order))
        assert launch(text, out, grid=2, block=1).clean == clean, (fence, order)


COPY = """
  ld.param.u64 %rd4, [source];
  cvt.u64.u32 %rd5, %r3;
  add.s64 %rd5, %rd4, %rd5;
  cp.async.ca.shared.global [%r4], [%rd5], 4;
  cp.async.commit_group;
  {wait}
  ld.shared.u32 %r5, [%r4];
  st.global.u32 [%rd3], %r5;
  {end}"""


@pytest.mark.parametrize(
    ("wait", "end", "part"),
    [
        ("", "cp.async.wait_all;", "ld.shared"),
        ("cp.async.wait_group 1;", "cp.async.wait_all;", "ld.shared"),
        ("st.shared.u32 [%r4], %r1;", "cp.async.wait_all;", "st.shared"),
        ("cp.async.wait_group 0;", "", ""),
        ("cp.async.wait_all;", "", ""),
    ],
)
def test_access_to_a_pending_copy(wait, end, part):
    text = kernel(THREAD + SLOT + COPY.format(wait=wait, end=end), ".u64 out, .u64 source", SHARED)
    out, source = torch.zeros(32, dtype=torch.int32), torch.arange(32, dtype=torch.int32)
    if part:
        report = launch(text, out, source)
        assert ("pending_async_access", line_of(text, part)) in {(f.kind, f.line) for f in report.findings}
    else:
        launch(text, out, source, readonly=[1]).assert_clean()
        assert torch.equal(out, source)


def test_exit_with_a_pending_copy():
    text = kernel(THREAD + SLOT + COPY.split("{wait}")[0], ".u64 out, .u64 source", SHARED)
    expect(text, "pending_async_access", "cp.async.ca", torch.zeros(32), torch.zeros(32))


def test_copies_of_fewer_bytes_fill_with_zeros():
    text = kernel(
        THREAD
        + SLOT
        + COPY.format(wait="cp.async.wait_all;", end="")
        .replace(", 4;", ", 4, %r7;")
        .replace("cvt.u64.u32 %rd5, %r3;", "cvt.u64.u32 %rd5, %r3;\n  and.b32 %r7, %r1, 3;"),
        ".u64 out, .u64 source",
        SHARED,
    )
    out = torch.zeros(32, dtype=torch.int32)
    launch(text, out, torch.full((32,), -1, dtype=torch.int32)).assert_clean()
    assert out[:4].tolist() == [0, 0xFF, 0xFFFF, 0xFFFFFF]


def test_barrier_in_divergent_code():
    body = (
        THREAD
        + "  setp.lt.u32 %p1, %r1, 16;\n  @!%p1 bra skip;\n  bar.sync 0;\nskip:\n  st.global.u32 [%rd3], %r1;\n  bar.sync 0;"
    )
    report = launch(kernel(body), torch.zeros(32, dtype=torch.int32))
    assert "barrier_divergence" in report.kinds
    expect(
        kernel(THREAD + "  setp.lt.u32 %p1, %r1, 16;\n  @%p1 bar.sync 0;"),
        "barrier_divergence",
        "@%p1 bar.sync",
        torch.zeros(1),
    )


@pytest.mark.parametrize("waiting", ["bar.sync 0;", "shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;"])
def test_lanes_that_exit_while_others_wait_for_them(waiting):
    body = THREAD + "  setp.lt.u32 %p1, %r1, 16;\n  @!%p1 bra done;\n  " + waiting + "\ndone:"
    expect(kernel(body), "barrier_divergence", waiting, torch.zeros(1))
    launch(kernel(body), torch.zeros(1), block=16).assert_clean()


def test_shuffle_without_the_lanes_it_names():
    body = (
        THREAD
        + "  setp.lt.u32 %p1, %r1, 16;\n  @!%p1 bra skip;\n  shfl.sync.bfly.b32 %r5, %r1, 1, 31, {mask};\nskip:\n  bar.warp.sync -1;"
    )
    expect(kernel(body.format(mask="-1")), "barrier_divergence", "shfl.sync", torch.zeros(1))
    launch(kernel(body.format(mask="0xffff")), torch.zeros(1)).assert_clean()


def test_lanes_that_left_are_not_waited_for():
    body = THREAD + "  setp.lt.u32 %p1, %r1, 16;\n  @!%p1 ret;\n  bar.sync 0;\n  st.global.u32 [%rd3], %r1;"
    launch(kernel(body), torch.zeros(16, dtype=torch.int32)).assert_clean()


def test_deadlock_at_a_barrier():
    body = THREAD + "  setp.lt.u32 %p1, %r1, 32;\n  @!%p1 bra skip;\n  bar.sync 1, 64;\nskip:\n"
    expect(kernel(body), "deadlock", "bar.sync 1", torch.zeros(1), block=64)
    body = (
        THREAD + "  setp.lt.u32 %p1, %r1, 32;\n  @%p1 bra other;\n  bar.sync 1, 64;\n  ret;\nother:\n  bar.sync 2, 64;"
    )
    assert launch(kernel(body), torch.zeros(1), block=64).kinds == {"deadlock"}


def test_deadlock_of_a_loop_that_waits_for_nobody():
    body = THREAD + "wait:\n  ld.volatile.global.u32 %r5, [%rd1];\n  setp.eq.u32 %p1, %r5, 0;\n  @%p1 bra wait;"
    assert launch(kernel(body), torch.zeros(1, dtype=torch.int32)).kinds == {"deadlock"}


def test_a_warp_may_wait_for_another_warp():
    body = (
        THREAD
        + """
  setp.ge.u32 %p1, %r1, 32;
  @%p1 bra give;
wait:
  ld.acquire.gpu.global.u32 %r5, [%rd1];
  setp.eq.u32 %p2, %r5, 0;
  @%p2 bra wait;
  ld.global.u32 %r6, [%rd1+4];
  st.global.u32 [%rd3+8], %r6;
  ret;
give:
  mov.u32 %r7, 9;
  st.global.u32 [%rd1+4], %r7;
  st.release.gpu.global.u32 [%rd1], %r7;"""
    )
    out = torch.zeros(34, dtype=torch.int32)
    launch(kernel(body), out, block=33).assert_clean()
    assert out.tolist() == [9] * 34


def test_a_lane_may_wait_for_another_lane():
    body = (
        THREAD
        + """
again:
  atom.global.cas.b32 %r5, [%rd1], 0, 1;
  setp.ne.u32 %p1, %r5, 0;
  @%p1 bra again;
  ld.volatile.global.u32 %r6, [%rd1+4];
  add.u32 %r6, %r6, 1;
  st.volatile.global.u32 [%rd1+4], %r6;
  membar.gl;
  atom.global.exch.b32 %r7, [%rd1], 0;"""
    )
    out = torch.zeros(2, dtype=torch.int32)
    assert launch(kernel(body), out, block=8).kinds <= {"race"}
    assert out.tolist() == [0, 8]


def test_results_do_not_depend_on_the_seed():
    text = kernel(THREAD + SLOT + EXCHANGE.format(barrier="bar.sync 0;", distance=128), declarations=SHARED)
    for seed in range(5):
        out = torch.zeros(64, dtype=torch.int32)
        launch(text, out, block=64, seed=seed).assert_clean()
        assert out.tolist() == [*range(32, 64), *range(32)]


def test_findings_name_everything():
    text = kernel(THREAD + "  .loc 1 42 3\n  st.global.u32 [%rd3], %r1;", declarations='.file 1 "kernel.cu"')
    finding = launch(text, torch.zeros(4, dtype=torch.int32), grid=(1, 2)).findings[0]
    assert finding.kernel == "k"
    assert finding.source == "kernel.cu:42"
    assert "st.global.u32" in finding.instruction
    assert finding.cta == (0, 0, 0)
    assert finding.lane == 4
    assert finding.count == 56
    with pytest.raises(AssertionError, match="out_of_bounds in k, line"):
        launch(text, torch.zeros(4, dtype=torch.int32)).assert_clean()


# lanes 0 to 15 store, lanes 16 to 31 store; then each lane reads the slot of the lane that XOR names
HALVES = (
    THREAD
    + SLOT
    + "  setp.lt.u32 %p1, %r1, 16;\n  selp.b32 %r8, 0xffff, 0xffff0000, %p1;\n  st.shared.u32 [%r4], %r1;\n"
    + "  {barrier}\n  xor.b32 %r5, %r4, {distance};\n  ld.shared.u32 %r6, [%r5];\n  st.global.u32 [%rd3], %r6;"
)


@pytest.mark.parametrize(
    ("barrier", "distance", "clean"),
    [
        ("bar.warp.sync %r8;", 4, True),  # the neighbour is in the same half
        ("bar.warp.sync %r8;", 64, False),  # lane ^ 16 is in the other half
        ("bar.warp.sync -1;", 64, True),
    ],
)
def test_a_part_of_a_warp_that_synchronises_orders_only_itself(barrier, distance, clean):
    text = kernel(HALVES.format(barrier=barrier, distance=distance), declarations=SHARED)
    if clean:
        launch(text, poisoned(32, torch.int32)).assert_clean()
    else:
        expect(text, "race", "ld.shared", poisoned(32, torch.int32))


def test_order_is_handed_from_part_to_part_of_a_warp():
    """Lane 0 meets lanes 0 to 15, then lane 0 meets lane 16, then lane 16 meets lanes 16 to 31."""
    chain = "bar.warp.sync %r8;\n  @%p2 bar.warp.sync 0x10001;\n  bar.warp.sync %r8;"  # %p2: lanes 0 and 16
    head = "  and.b32 %r9, %r1, 15;\n  setp.eq.u32 %p2, %r9, 0;\n"
    text = kernel(HALVES.format(barrier=head + "  " + chain, distance=64), declarations=SHARED)
    launch(text, poisoned(32, torch.int32)).assert_clean()
    without = text.replace("  @%p2 bar.warp.sync 0x10001;\n", "")
    assert launch(without, poisoned(32, torch.int32)).kinds == {"race"}


def test_a_write_after_reads_of_another_part_of_the_warp():
    body = (
        SLOT.replace("%r4, %r2, %r3", "%r4, %r2, 0")
        + "  setp.lt.u32 %p1, %r1, 16;\n  st.shared.u32 [%r4], 7;\n  bar.warp.sync -1;\n  ld.shared.u32 %r6, [%r4];\n"
        + "  {barrier}\n  setp.eq.u32 %p3, %r1, 3;\n  @%p3 st.shared.u32 [%r4], 8;"
    )
    head = "  mov.u32 %r1, %tid.x;\n"
    whole = kernel(head + body.format(barrier="bar.warp.sync -1;"), declarations=SHARED)
    launch(whole, torch.zeros(1)).assert_clean()
    part = kernel(head + body.format(barrier="@%p1 bar.warp.sync 0xffff;"), declarations=SHARED)
    expect(part, "race", "@%p3 st.shared", torch.zeros(1))


WGMMA = "  wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%f0, %f1, %f2, %f3}}, {a}, %rd5, 1, 1, 1{more};\n"
WGMMA_FROM_SHARED = WGMMA.format(a="%rd5", more=", 0, 0")
WGMMA_FROM_REGISTERS = WGMMA.format(a="{%r10, %r11, %r12, %r13}", more=", 0")
WGMMA_DONE = "  wgmma.commit_group.sync.aligned;\n  wgmma.wait_group.sync.aligned 0;\n"
FENCE = "  wgmma.fence.sync.aligned;\n"
ACCUMULATORS = "".join(f"  mov.f32 %f{k}, 0f00000000;\n" for k in range(4))
FRAGMENTS = "".join(f"  mov.b32 %r{k}, 0;\n" for k in range(10, 14))


def warpgroup(body):
    """Four warps, a tile of zeros in shared memory, %rd5 its descriptor."""
    head = (
        "  mov.u32 %r1, %tid.x;\n  mov.u32 %r2, tile;\n  shl.b32 %r3, %r1, 4;\n  add.u32 %r4, %r2, %r3;\n"
        "  st.shared.v4.b32 [%r4], {0, 0, 0, 0};\n  bar.sync 0;\n  fence.proxy.async;\n"
        "  cvt.u64.u32 %rd4, %r2;\n  shr.u64 %rd4, %rd4, 4;\n  or.b64 %rd5, %rd4, 0x80010000;\n"
    )
    return kernel(head + body, declarations=".shared .align 128 .b8 tile[4096];")


@pytest.mark.parametrize(
    ("body", "clean"),
    [
        (ACCUMULATORS + FENCE + WGMMA_FROM_SHARED + WGMMA_DONE, True),
        (ACCUMULATORS + FENCE + WGMMA_FROM_SHARED + WGMMA_DONE + WGMMA_FROM_SHARED + WGMMA_DONE, True),
        (ACCUMULATORS + WGMMA_FROM_SHARED + WGMMA_DONE, False),
        (FENCE + ACCUMULATORS + WGMMA_FROM_SHARED + WGMMA_DONE, False),
        (ACCUMULATORS + FENCE + FRAGMENTS + WGMMA_FROM_REGISTERS + WGMMA_DONE, False),
        (ACCUMULATORS + FRAGMENTS + FENCE + WGMMA_FROM_REGISTERS + WGMMA_DONE, True),
    ],
)
def test_a_wgmma_sees_only_registers_written_before_a_fence(body, clean):
    report = launch(warpgroup(body), torch.zeros(1), block=128)
    assert report.kinds == (set() if clean else {"missing_fence"}), [str(f) for f in report.findings]
    assert all("wgmma.mma_async" in finding.instruction for finding in report.findings)
