"""Triton kernels compiled ahead of time, without a GPU: they fit the chips, and sizes cause no new compilation."""

import importlib.util

import pytest
import torch

from tests import triton_interpreter

if importlib.util.find_spec("triton") is None or triton_interpreter.requested():
    pytest.skip("needs Triton's compiler", allow_module_level=True)

from amuse_kernels.triton import attention, fusion, interpolation
from benchmarks.static import bound, table
from benchmarks.static.binaries import SHARED_LIMIT, source_hash, usage
from benchmarks.static.cases import ARCHITECTURES, Case
from tests.ptx.package_launches import recorded
from tests.ptx.triton_kernels import compile_triton

SAMPLE = [
    Case("attention forward, long", "fp16", 64, "per_source", "plain", 80),
    Case("attention forward", "bf16", 128, "joint", "masks", 90),
    Case("attention forward", "fp16", 64, "per_source", "all options", 80),
    Case("attention backward, one tile", "fp16", 64, "joint", "masks", 120),
    Case("attention backward", "bf16", 64, "per_source", "masks", 86),
    Case("fusion forward", "fp32", 256, "", "gate", 100),
    Case("fusion backward", "fp16", 256, "", "gate", 89),
    Case("interpolation backward", "bf16", 256, "", "", 90),
]


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: f"{case.call}-{case.dtype}-{case.arch}")
def test_kernels_fit_their_chip_without_spilling(case):
    for launch in case.launches():
        used = usage(launch, case.arch)
        assert used.local_bytes == 0
        assert used.shared_bytes <= SHARED_LIMIT[case.arch]


def random_sizes(count: int) -> list[int]:
    return torch.randint(1, 5000, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def compilations(launches) -> int:
    """How many different kernels Triton would compile for launches on one GPU."""
    return len({id(compile_triton(launch.kernel, *launch.args, arch=80, **launch.options)[0]) for launch in launches})


def test_one_compilation_serves_any_number_of_rows():
    with recorded(80) as launches:
        for rows in random_sizes(50):
            x = torch.zeros(rows, 3, 64, dtype=torch.float16)
            fusion.adaptive_fusion_forward(x, x[..., :3], None, None, None)
            interpolation.interpolation_coefficients_forward(x[:, 0], x[:, 1], x[:, 2], 0.1)
    assert len(launches) == 100
    assert compilations(launches) == 2


def test_few_compilations_serve_any_lengths_of_attention():
    with recorded(80) as launches:
        for length in random_sizes(50):
            query, key = (torch.zeros(1, 1, n, 64, dtype=torch.float16) for n in (64, length))
            options = (None, [None], None, [None], [0], [False], False, 0.125, 0.0, None)
            attention.p2c_attention_forward(query, [key], [key], *options)
    assert compilations(launches) == 1


def test_every_row_of_the_table_fits_its_chip():
    rows = table.read()
    assert {row["arch"] for row in rows} == {str(arch) for arch in ARCHITECTURES}
    assert not table.over_limits(rows)


def test_a_check_notices_other_results(monkeypatch, tmp_path, capsys):
    case = Case("interpolation forward", "fp16", 256, "", "", 80)
    monkeypatch.setattr(table, "CSV", tmp_path / "kernels.csv")
    monkeypatch.setattr(table, "cases", lambda: iter([case]))
    assert table.check() == []
    assert "of 1 launches, 1 are not in the table" in capsys.readouterr().out
    [row] = table.update(lambda: 1.0)
    assert table.check() == []
    table.write([row | {"source": "another"}])
    assert table.check() == []
    assert "1 have a new source" in capsys.readouterr().out
    table.write([row | {"source": "another", "registers": str(int(row["registers"]) + 1)}])
    assert "the table says" in table.check()[0]
    assert table.over_limits([row | {"shared_bytes": "999999"}])


def test_the_hash_is_of_the_family_of_a_kernel():
    [launch] = Case("fusion forward", "fp16", 256, "", "gate", 80).launches()
    [other] = Case("interpolation forward", "fp16", 256, "", "", 80).launches()
    assert source_hash(launch) != source_hash(other)


LOOP = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;        /* 0x00000a0000017a02 */
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;      /* 0x000000000204783b */
        /*0020*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0030*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0040*/                   MUFU.EX2 R3, R3 ;
        /*0050*/                   FFMA R3, R3, R5, R7 ;
        /*0060*/               @P0 BRA 0x10 ;
        /*0070*/                   EXIT ;
"""


def test_bound_of_a_known_loop():
    loop = bound.main_loop(bound.parse(LOOP))
    assert [i.name for i in loop] == ["LDSM", "HMMA", "HMMA", "MUFU", "FFMA", "BRA"]
    found = bound.bound(loop, 80)
    assert found.cycles == {"issue": 6, "shared": 16, "tensor": 16, "mufu": 8, "fma": 2}
    assert found.percent == 100
    assert bound.bound(loop, 90) == bound.Bound(50.0, "shared", {**found.cycles, "tensor": 8, "fma": 1})
