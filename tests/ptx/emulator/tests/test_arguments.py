"""Launch arguments: typed by the kernel's declarations; mistakes name the argument."""

# ruff: noqa: E501 - lines of PTX

from __future__ import annotations

import numpy as np
import pytest
import torch

from .. import launch, poisoned
from ..sparse_memory import sparse_memory
from .snippets import kernel

STORE = "  ld.param.u64 %rd1, [out];\n  ld.param.{t} {r}, [x];\n  st.global.{t} [%rd1], {r};"


def run(text, *args, **options):
    return launch.run(text, "k", options.pop("grid", 1), options.pop("block", 1), list(args), **options)


@pytest.mark.parametrize(
    ("t", "register", "dtype", "value"),
    [
        ("u32", "%r1", torch.int32, 7),
        ("u32", "%r1", torch.int32, -1),
        ("s32", "%r1", torch.int32, -5),
        ("f32", "%f1", torch.float32, 1.5),
        ("f32", "%f1", torch.float32, 3),
        ("f32", "%f1", torch.float32, float("inf")),
        ("f64", "%fd1", torch.float64, 0.1),
        ("u64", "%rd2", torch.int64, 1 << 40),
        ("s64", "%rd2", torch.int64, -1),
        ("u16", "%h1", torch.int16, 9),
        ("s8", "%h1", torch.int8, -3),
        ("b32", "%r1", torch.float32, 2.5),
        ("b32", "%r1", torch.int32, 25),
        ("u32", "%r1", torch.int32, True),
        ("u32", "%r1", torch.int32, np.int64(12)),
        ("f32", "%f1", torch.float32, np.float32(0.5)),
    ],
)
def test_scalars(t, register, dtype, value):
    out = torch.zeros(1, dtype=dtype)
    run(kernel(STORE.format(t=t, r=register), f".u64 out, .{t} x"), out, value).assert_clean()
    assert out.item() == value


@pytest.mark.parametrize(
    ("t", "value", "error", "message"),
    [
        ("u32", 1 << 32, ValueError, "args[1] (x): 4294967296 does not fit"),
        ("s32", 1 << 31, ValueError, "args[1] (x)"),
        ("u32", 1.5, TypeError, "args[1] (x): a float was given for a .u32"),
        ("u32", "1", TypeError, "args[1] (x): expected a tensor or a number"),
        ("f32", None, TypeError, "args[1] (x): None"),
        ("f32", torch.ones(1), TypeError, "args[1] (x): a tensor was given for a .f32"),
    ],
)
def test_scalars_that_do_not_fit(t, value, error, message):
    register = "%f1" if t == "f32" else "%r1"
    with pytest.raises(error) as raised:
        run(kernel(STORE.format(t=t, r=register), f".u64 out, .{t} x"), torch.zeros(1), value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.float64,
        torch.uint8,
    ],
)
def test_tensors_of_every_type_are_changed_in_place(dtype):
    size = torch.empty(0, dtype=dtype).element_size()
    register = {1: "%h1", 2: "%h1", 4: "%r1", 8: "%rd2"}[size]
    x, out = torch.ones(3, dtype=dtype), torch.zeros(3, dtype=dtype)
    body = f"  ld.param.u64 %rd1, [out];\n  ld.param.u64 %rd3, [x];\n  ld.global.b{8 * size} {register}, [%rd3+{size}];\n  st.global.b{8 * size} [%rd1+{size}], {register};"
    run(kernel(body, ".u64 out, .u64 x"), out, x, readonly=[x]).assert_clean()
    assert out.tolist() == [0, 1, 0]


def test_structures_are_given_as_bytes():
    text = kernel(
        "  ld.param.u64 %rd1, [out];\n  ld.param.u32 %r1, [pair+4];\n  st.global.u32 [%rd1], %r1;",
        ".u64 out, .align 4 .b8 pair[8]",
    )
    out = torch.zeros(1, dtype=torch.int32)
    run(text, out, np.array([3, 4], np.int32).tobytes()).assert_clean()
    assert out.item() == 4
    with pytest.raises(ValueError, match=r"args\[1\] \(pair\): expected 8 bytes, got 4"):
        run(text, out, b"1234")


def test_number_of_arguments():
    text = kernel(STORE.format(t="u32", r="%r1"), ".u64 out, .u32 x")
    with pytest.raises(TypeError, match="has 2 parameters, got 1 arguments: x is missing"):
        run(text, torch.zeros(1))
    with pytest.raises(TypeError, match="has 2 parameters, got 3 arguments"):
        run(text, torch.zeros(1), 1, 2)
    # Triton declares two pointers at the end that most kernels never read.
    run(kernel("", ".u64 out, .u64 scratch"), torch.zeros(1)).assert_clean()


@pytest.mark.parametrize(
    ("grid", "block", "named"),
    [
        (0, 1, "grid"),
        ((1, 0), 1, "grid"),
        (1, 0, "block"),
        (1, 1025, "block"),
        (1, (32, 32, 2), "block"),
        (1, (1, 1, 65), "block"),
        ((1, 1, 1, 1), 1, "grid"),
        ("1", 1, "grid"),
        (1.0, 1, "grid"),
        ((1, 70000), 1, "grid"),
        (-1, 1, "grid"),
    ],
)
def test_launch_sizes(grid, block, named):
    with pytest.raises((TypeError, ValueError), match=f"^{named}:"):
        run(kernel(""), None, grid=grid, block=block)


@pytest.mark.parametrize(
    ("readonly", "error"), [([1], ValueError), ([torch.zeros(1)], ValueError), (["x"], TypeError), ([True], TypeError)]
)
def test_readonly_must_name_arguments(readonly, error):
    with pytest.raises(error, match="readonly"):
        run(kernel(""), torch.zeros(1), readonly=readonly)


def test_tensors_that_share_memory_share_addresses():
    packed = torch.zeros(8, dtype=torch.int32)
    body = "  ld.param.u64 %rd1, [out];\n  ld.param.u64 %rd2, [x];\n  sub.s64 %rd3, %rd2, %rd1;\n  st.global.u64 [%rd1], %rd3;"
    run(kernel(body, ".u64 out, .u64 x"), packed[:4], packed[4:]).assert_clean()
    assert packed[0] == 16


def test_empty_tensors_and_two_dimensional_launches():
    run(kernel("", ".u64 out"), torch.zeros(0)).assert_clean()
    body = """
  mov.u32 %r1, %tid.y;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.u32 %r4, %r1, %r2, %r3;
  mov.u32 %r5, %ctaid.z;
  mad.lo.u32 %r4, %r5, 15, %r4;
  ld.param.u64 %rd1, [out];
  mul.wide.u32 %rd2, %r4, 4;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r4;"""
    out = poisoned((2, 3, 5), torch.int32)
    run(kernel(body), out, grid=(1, 1, 2), block=(5, 3)).assert_clean()
    assert out.flatten().tolist() == list(range(30))


def test_module_variables():
    declarations = ".const .align 4 .u32 table[3] = {5, 6, 0x7};\n.global .align 4 .f32 scale = 0f40000000;\n.global .align 4 .b8 scratch[4];"
    body = """
  ld.const.u32 %r1, [table+4];
  ld.global.f32 %f1, [scale];
  mov.u64 %rd2, scratch;
  st.global.u32 [%rd2], %r1;
  ld.global.u32 %r2, [%rd2];
  cvt.rn.f32.u32 %f2, %r2;
  mul.f32 %f3, %f1, %f2;
  ld.param.u64 %rd1, [out];
  st.global.f32 [%rd1], %f3;"""
    out = torch.zeros(1)
    run(kernel(body, declarations=declarations), out).assert_clean()
    assert out.item() == 12
    report = run(
        kernel("  mov.u64 %rd1, table;\n  mov.u32 %r1, 0;\n  st.global.u32 [%rd1], %r1;", declarations=declarations),
        None,
    )
    assert report.kinds == {"readonly_write"}


def test_a_trap_is_an_error():
    with pytest.raises(RuntimeError, match="trap at line"):
        run(kernel("  trap;"), None)


def test_a_tensor_too_large_to_be_tracked_has_to_be_readonly():
    storage = torch.frombuffer(sparse_memory(2**31), dtype=torch.uint8)
    far = storage.as_strided((2,), (2**31 - 1,))
    with pytest.raises(ValueError, match=r"\(x\): expected at most 1073741824 bytes .* among `readonly`"):
        run(kernel("", ".u64 x"), far)
    run(kernel("", ".u64 x"), far, readonly=[far]).assert_clean()
