"""Triton kernels compiled ahead of time, without a GPU: they fit the chips, and sizes cause no new compilation."""

import importlib.util

import pytest
import torch

from tests import triton_interpreter

if importlib.util.find_spec("triton") is None or triton_interpreter.requested():
    pytest.skip("needs Triton's compiler", allow_module_level=True)

from triton.compiler import ASTSource

from amuse_kernels.attention.inputs import check_attention
from amuse_kernels.attention.triton import plans as attention
from amuse_kernels.fusion import triton as fusion
from amuse_kernels.interpolation import triton as interpolation
from benchmarks.gpu import triton_cache
from benchmarks.pages import written
from benchmarks.static import __main__ as static
from benchmarks.static import bound, compiled_cuda, counters, summary, table
from benchmarks.static.binaries import SHARED_LIMIT
from benchmarks.static.cases import AMD, ARCHITECTURES, Case
from benchmarks.static.compiled_triton import compiler, python_code, source_hash, usage
from benchmarks.static.sass import count_pipes, parse
from tests.ptx.emulator.triton_kernels import compile_triton
from tests.ptx.package.triton_launches import recorded

pytestmark = pytest.mark.slow

SAMPLE = [
    Case("triton", "attention forward, long", "fp16", 64, "per_source", "plain", 80),
    Case("triton", "attention forward", "bf16", 128, "joint", "masks", 90),
    Case("triton", "attention forward", "fp16", 64, "per_source", "all options", 80),
    Case("triton", "attention backward, one tile", "fp16", 64, "joint", "masks", 120),
    Case("triton", "attention backward", "bf16", 64, "per_source", "masks", 86),
    Case("triton", "fusion forward", "fp32", 256, "", "gate", 100),
    Case("triton", "fusion backward", "fp16", 256, "", "gate", 89),
    Case("triton", "interpolation backward", "bf16", 256, "", "", 90),
]


def of_the_table() -> bool:
    """Whether this Triton made the table: what another version does with registers is not promised."""
    return compiler() in {row["compiler"] for row in table.read()}


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: f"{case.call}-{case.dtype}-{case.arch}")
def test_kernels_fit_their_chip_without_spilling(case):
    for launch in case.launches():
        used = usage(launch, case.arch)
        if of_the_table():
            assert used.local_bytes == 0
        assert used.shared_bytes <= SHARED_LIMIT[case.arch]


def test_kernels_compiled_ahead_are_found_in_the_folder_that_was_brought_along(tmp_path, monkeypatch):
    [launch] = Case("triton", "interpolation forward", "fp32", 256, "", "", 90).launches()
    monkeypatch.delenv("TRITON_DEFAULT_FP_FUSION", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "here"))
    launch.kernel.device_caches.clear()
    triton_cache.compile_ahead(launch, 90)
    triton_cache.strip(tmp_path / "here")
    assert {path.suffix for path in tmp_path.glob("here/*/*")} == {".cubin", ".json"}
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(triton_cache.adopt(tmp_path / "there")))
    launch.kernel.device_caches.clear()
    monkeypatch.setattr(ASTSource, "make_ir", lambda *_: pytest.fail("compiled again"))
    triton_cache.compile_ahead(launch, 90)


def test_a_folder_without_kernels_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected kernels"):
        triton_cache.adopt(tmp_path)


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
            attention.p2c_attention_forward(check_attention(query, [key], [key]))
    assert compilations(launches) == 1


def test_every_row_of_the_table_fits_its_chip():
    rows = table.read()
    for backend, amd in (("triton", AMD), ("cuda", ()), ("plain", ())):
        archs = {row["arch"] for row in rows if row["backend"] == backend}
        assert archs == {*map(str, ARCHITECTURES), *amd}
    assert not table.over_limits(rows)


def test_the_gpu_page_shows_the_tables():
    assert written(static.DOCS, static.COMMAND) == summary.render(table.read()), f"run: {static.COMMAND}"
    assert written(counters.DOCS, counters.COMMAND) == counters.render(counters.read()), f"run: {counters.COMMAND}"


@pytest.mark.skipif(not of_the_table(), reason="the counts are of another version of Triton")
def test_counts_are_those_of_the_table_and_a_check_notices_others(monkeypatch):
    [triton, *_] = counters.backends()
    counted = list(counters.count_fusion(triton, "scalar"))
    known = [row for row in counters.read() if row["backend"] == "triton" and row["op"].endswith("scalar")]
    assert counted == known
    monkeypatch.setattr(counters, "count", lambda: iter(counted))
    assert counters.check() == []
    counted[0] |= {"launches": "3"}
    assert counters.check() == [
        f"fusion forward, scalar, triton: launches is 3, counters.csv says 1: run {counters.COMMAND}"
    ]


def test_a_check_notices_other_results(monkeypatch, tmp_path, capsys):
    case = Case("triton", "interpolation forward", "fp16", 256, "", "", 80)
    monkeypatch.setattr(table, "CSV", tmp_path / "kernels.csv")
    monkeypatch.setattr(table, "triton_cases", lambda: iter([case]))
    monkeypatch.setattr(table, "cuda_cases", lambda: iter([]))
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
    table.write([row | dict.fromkeys(table.PIPE_COLUMNS, "")])
    assert table.check() == []
    assert "of 1 launches, 1 are not in the table" in capsys.readouterr().out
    assert table.update(lambda: 1.0) == [row]


def test_a_check_makes_every_row_again_whose_source_has_changed(monkeypatch, tmp_path):
    forward = Case("triton", "interpolation forward", "fp16", 256, "", "", 80)
    monkeypatch.setattr(table, "CSV", tmp_path / "kernels.csv")
    monkeypatch.setattr(table, "SAMPLE", 1)
    monkeypatch.setattr(table, "triton_cases", lambda: iter([forward._replace(arch=arch) for arch in ARCHITECTURES]))
    monkeypatch.setattr(table, "cuda_cases", lambda: iter([]))
    rows = table.update(lambda: 1.0)
    wrong = [row | {"registers": "999"} for row in rows]
    table.write(wrong)
    assert len(table.check()) == 1  # the sample
    table.write([row | {"source": "another"} for row in wrong])
    assert len(table.check()) == len(ARCHITECTURES)


def test_a_run_that_is_cut_short_ends_and_is_continued(monkeypatch, tmp_path):
    forward = Case("triton", "interpolation forward", "fp16", 256, "", "", 80)
    monkeypatch.setattr(table, "CSV", tmp_path / "kernels.csv")
    monkeypatch.setattr(table, "triton_cases", lambda: iter([forward._replace(arch=arch) for arch in ARCHITECTURES]))
    monkeypatch.setattr(table, "cuda_cases", lambda: iter([]))
    assert 1 <= len(table.update(lambda: -1.0)) < len(ARCHITECTURES)
    assert len(table.update(lambda: 1.0)) == len(ARCHITECTURES)


def test_the_hash_is_of_the_family_of_a_kernel():
    [launch] = Case("triton", "fusion forward", "fp16", 256, "", "gate", 80).launches()
    [other] = Case("triton", "interpolation forward", "fp16", 256, "", "", 80).launches()
    assert source_hash(launch) != source_hash(other)


def test_the_hash_is_of_code_without_comments_and_docstrings():
    plain = python_code("def f(x):\n    return x\n")
    assert python_code('"""A."""\n\ndef f(x):\n    """B."""\n    return x  # C\n') == plain
    assert python_code("def f(x):\n    return -x\n") != plain


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


def test_pipes_of_known_instructions():
    counts = count_pipes(parse(LOOP))
    assert counts == {
        **{"tensor": 2, "shared": 1, "global": 0, "local": 0, "special": 1, "fma": 1},
        **{"alu": 1, "other": 2},  # MOV; BRA and EXIT
    }


def test_bound_of_a_known_loop():
    loop = bound.main_loop(parse(LOOP))
    assert [i.name for i in loop] == ["LDSM", "HMMA", "HMMA", "MUFU", "FFMA", "BRA"]
    found = bound.of_main_loop(parse(LOOP), 80)
    assert found.cycles == {"issue": 6, "shared": 16, "tensor": 16, "special": 8, "fma": 2}
    assert found.percent == 100
    assert bound.bound(loop, 90) == bound.Bound(50.0, "shared", {**found.cycles, "tensor": 8, "fma": 1})


def test_kernels_without_a_tensor_loop_or_listed_rates_have_no_bound():
    assert bound.of_main_loop(parse(LOOP), 100) is None
    assert bound.of_main_loop(parse(LOOP.replace("HMMA.16816", "FFMA")), 80) is None


@pytest.mark.skipif(80 not in compiled_cuda.architectures(), reason="the installed library has no CUDA code for sm_80")
def test_cuda_rows_are_what_the_library_holds():
    case = Case("cuda", "attention backward", "fp16", 64, "any", "masks", 80)
    known = {(row["kernel"], row["options"]): row for row in table.read() if row["backend"] == "cuda"}
    queries, keys = case.launches()
    for launch in (queries, keys):
        facts = compiled_cuda.facts(launch)
        used = compiled_cuda.usage(launch, 80)
        assert "HMMA" in used.code
        assert used.shared_bytes >= launch.shared_bytes > 0
        assert (facts["kernel"], "masks") in known
    assert compiled_cuda.usage(queries, 86) == compiled_cuda.usage(queries, 80)  # whose code runs there
    for arch in compiled_cuda.architectures():  # the build has code for all that it says
        assert compiled_cuda.usage(keys, arch).registers
