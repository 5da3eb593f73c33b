"""Every mma shape and type, ldmatrix, stmatrix and movmatrix against plain numpy, by the layouts of the PTX manual."""

# ruff: noqa: E501 - lines of PTX

from __future__ import annotations

import numpy as np
import pytest
import torch

from .. import poisoned, run
from ..opcodes_memory import INTERCHANGEABLE, MMA
from .snippets import kernel

BITS = {"f64": 64, "tf32": 32, "f16": 16, "bf16": 16, "s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8, "s4": 4, "u4": 4, "b1": 1}


def operand(rows, columns, name, random):
    """A random matrix: its elements' bits and its values."""
    shape = (rows, columns)
    if name in ("s8", "u8", "s4", "u4", "b1"):
        bits = random.integers(0, 1 << BITS[name], shape)
        signed = bits - (bits >> (BITS[name] - 1) << BITS[name]) if name[0] == "s" else bits
        return bits, signed.astype(np.float64)
    values = random.standard_normal(shape)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}.get(
        name
    )
    if dtype:
        tensor = torch.from_numpy(values).to(dtype)
        view = tensor.view(torch.int16 if BITS[name] == 16 else torch.uint8).numpy()
        return view.astype(np.int64) & ((1 << BITS[name]) - 1), tensor.double().numpy()
    if name == "tf32":
        bits = values.astype(np.float32).view(np.uint32) & 0xFFFFE000
        return bits.astype(np.int64), bits.view(np.float32).astype(np.float64)
    return values.view(np.int64), values


def fragment(bits, name, per_lane, place):
    """Registers by lane: element `index` of `lane` lies at place(lane, index) of the matrix."""
    size = max(32, BITS[name])
    per = size // BITS[name]
    registers = np.zeros((32, per_lane // per), np.uint64)
    for lane in range(32):
        for index in range(per_lane):
            registers[lane, index // per] |= np.uint64(
                int(bits[place(lane, index)]) << (index % per * BITS[name]) & ((1 << 64) - 1)
            )
    return registers


def a_place(rows, name):
    """The manual's tables for A, written out: i counts the elements of a lane."""
    per = max(1, 32 // BITS[name])

    def place(lane, i):
        row = lane >> 2
        if rows == 16 and (i // per) % 2 == 1:
            row += 8
        group = i // (2 * per) if rows == 16 else i // per
        return row, (lane % 4) * per + i % per + group * 4 * per

    return place


def b_place(name):
    per = max(1, 32 // BITS[name])
    return lambda lane, i: ((lane % 4) * per + i % per + i // per * 4 * per, lane >> 2)


def c_place(lane, i):
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + i % 2


def all_forms():
    for shape, types in MMA.items():
        for a, sums in types.items():
            for b in next((sorted(group) for group in INTERCHANGEABLE if a in group), [a]):
                for d in sums.split():
                    yield pytest.param(shape, a, b, d, id=f"{shape}-{a}-{b}-{d}")


@pytest.mark.parametrize(("shape", "a_type", "b_type", "d_type"), list(all_forms()))
def test_mma(shape, a_type, b_type, d_type):
    random = np.random.default_rng(2)
    rows, k = int(shape[1 : shape.index("n")]), int(shape[shape.index("k") + 1 :])
    (a_bits, a), (b_bits, b) = operand(rows, k, a_type, random), operand(k, 8, b_type, random)
    c = np.round(random.standard_normal((rows, 8)) * (1 if d_type[0] == "f" else 1000), 2)
    c = c.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64, "s32": np.int32}[d_type])
    a_registers = fragment(a_bits, a_type, rows * k // 32, a_place(rows, a_type))
    b_registers = fragment(b_bits, b_type, k * 8 // 32, b_place(b_type))
    size = {"f16": 16, "f32": 32, "s32": 32, "f64": 64}[d_type]
    c_bits = c.view({16: np.uint16, 32: np.uint32, 64: np.uint64}[size]).astype(np.int64)
    per = 2 if d_type == "f16" else 1
    c_registers = np.zeros((32, rows // 4 // per), np.uint64)
    for lane in range(32):
        for i in range(rows // 4):
            c_registers[lane, i // per] |= np.uint64(int(c_bits[c_place(lane, i)]) << (i % per * 16) & ((1 << 64) - 1))
    product = a @ b
    results = {"xor.popc": (a[:, :, None] != b[None]).sum(1), "and.popc": product} if a_type == "b1" else {"": product}
    for operation, wanted in results.items():
        got = run_mma(
            f"mma.sync.aligned.{shape}.row.col.{d_type}.{a_type}.{b_type}.{d_type}{'.' + operation if operation else ''}",
            [a_registers, b_registers, c_registers],
            c_registers.shape[1],
            size == 64,
            a_type == "f64",
        )
        for lane in range(32):
            for i in range(rows // 4):
                bits = int(got[lane, i // per]) >> (i % per * 16)
                raw = np.array([bits & ((1 << size) - 1)], {16: np.uint16, 32: np.uint32, 64: np.uint64}[size])
                value = raw.view(c.dtype)[0]
                expected = wanted[c_place(lane, i)] + float(c[c_place(lane, i)])
                tolerance = {"f16": 2e-2, "f32": 2e-5, "f64": 1e-12, "s32": 0}[d_type] * (1 + abs(expected) + k**0.5)
                assert abs(float(value) - expected) <= tolerance, (lane, i, value, expected)


def run_mma(opcode, inputs, outputs, wide_sum, wide_operands):
    body, names, first = ["  mov.u32 %r70, %tid.x;"], [], 0
    for letter, registers, wide in zip("abc", inputs, (wide_operands, wide_operands, wide_sum), strict=False):
        count = registers.shape[1]
        body.append(
            f"  ld.param.u64 %rd20, [{letter}];\n  mul.wide.u32 %rd21, %r70, {8 * count};\n  add.s64 %rd20, %rd20, %rd21;"
        )
        listed = [
            f"{'%rd' if wide else '%r'}{first + n if not wide else 22 + len(names) * 10 + n}" for n in range(count)
        ]
        body += [f"  ld.global.b{64 if wide else 32} {name}, [%rd20+{8 * n}];" for n, name in enumerate(listed)]
        names.append("{" + ", ".join(listed) + "}")
        first += count
    results = [f"{'%rd' if wide_sum else '%r'}{(34 if wide_sum else 40) + n}" for n in range(outputs)]
    body.append(f"  {opcode} {{{', '.join(results)}}}, {', '.join(names)};")
    body.append(
        f"  ld.param.u64 %rd18, [out];\n  mul.wide.u32 %rd19, %r70, {8 * outputs};\n  add.s64 %rd18, %rd18, %rd19;"
    )
    body += [f"  st.global.b{64 if wide_sum else 32} [%rd18+{8 * n}], {name};" for n, name in enumerate(results)]
    text = kernel("\n".join(body), ".u64 out, .u64 a, .u64 b, .u64 c").replace(".b64 %rd<40>", ".b64 %rd<90>")
    text = (
        text.replace("%rd34", "%rd80").replace("%rd35", "%rd81").replace("%rd36", "%rd82").replace("%rd37", "%rd83")
        if wide_sum
        else text
    )
    out = torch.zeros(32, outputs, dtype=torch.int64)
    run(
        text, "k", 1, 32, [out, *(torch.from_numpy(x.view(np.int64)) for x in inputs)], readonly=(1, 2, 3)
    ).assert_clean()
    return out.numpy().view(np.uint64)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_stmatrix(count, transposed):
    """Lane l of a tile holds row l / 4, columns 2 (l % 4) and the next one; transposed, rows and columns change places."""
    tiles = torch.arange(count * 64, dtype=torch.int16).reshape(count, 8, 8)
    suffix = ".trans" if transposed else ""
    registers = ", ".join(f"%r{10 + n}" for n in range(count))
    body = (
        f"""
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, tile;
  rem.u32 %r3, %r1, {8 * count};
  mad.lo.u32 %r4, %r3, 16, %r2;
  ld.param.u64 %rd1, [a];
  mul.wide.u32 %rd2, %r3, 16;
  add.s64 %rd3, %rd1, %rd2;
  ld.global.v4.b32 {{%r5, %r6, %r7, %r8}}, [%rd3];
  st.shared.v4.b32 [%r4], {{%r5, %r6, %r7, %r8}};
  bar.sync 0;
  ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16 {{{registers}}}, [%r4];
  ld.param.u64 %rd4, [out];
  mul.wide.u32 %rd5, %r1, {4 * count};
  add.s64 %rd4, %rd4, %rd5;
"""
        + "\n".join(f"  st.global.b32 [%rd4+{4 * n}], %r{10 + n};" for n in range(count))
        + f"""
  bar.sync 0;
  stmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16 [%r4+512], {{{registers}}};
  bar.sync 0;
  ld.shared.v4.b32 {{%r5, %r6, %r7, %r8}}, [%r4+512];
  ld.param.u64 %rd6, [back];
  add.s64 %rd6, %rd6, %rd2;
  st.global.v4.b32 [%rd6], {{%r5, %r6, %r7, %r8}};"""
    )
    out, back = poisoned((32, count, 2), torch.int16), poisoned(tiles.shape, torch.int16)
    text = kernel(body, ".u64 out, .u64 a, .u64 back", ".shared .align 16 .b8 tile[1024];")
    run(text, "k", 1, 32, [out, tiles, back], readonly=[1]).assert_clean()
    for lane in range(32):
        for tile in range(count):
            for half in range(2):
                row, column = lane // 4, lane % 4 * 2 + half
                wanted = tiles[tile, column, row] if transposed else tiles[tile, row, column]
                assert out[lane, tile, half] == wanted
    assert torch.equal(back, tiles)


def test_movmatrix():
    text = kernel("""
  mov.u32 %r1, %tid.x;
  ld.param.u64 %rd1, [out];
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  ld.global.b32 %r2, [%rd3];
  movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r2;
  st.global.b32 [%rd3], %r3;""")
    tile = torch.arange(64, dtype=torch.int16)
    run(text, "k", 1, 32, [tile]).assert_clean()
    assert torch.equal(tile.reshape(8, 8), torch.arange(64, dtype=torch.int16).reshape(8, 8).T)
