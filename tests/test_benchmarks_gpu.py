"""The GPU benchmark without a GPU: its whole path runs, says that it measured nothing, and refuses wrong results."""

import csv
import json
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("matplotlib", reason="needs the extra: pip install amuse-kernels[bench]")

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import contenders
from benchmarks.gpu.suite import exact_attention
from benchmarks.workloads import Attention


def run(monkeypatch, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--dry-run", "--out", str(folder), *arguments])
    code = command.main()
    return code, json.loads((folder / "results.json").read_text())


def test_a_dry_run_walks_the_whole_path_and_says_that_it_measured_nothing(monkeypatch, tmp_path, capsys):
    code, content = run(
        monkeypatch, tmp_path / "out", "--no-compile", "--dtypes", "bf16,fp32", "--only", "1,5,fusion,step"
    )
    assert code == 0
    assert content["dry_run"]
    assert not content["refused"]
    assert not content["failed"]
    workloads = {record["workload"] for record in content["records"]}
    # attention by dtype, normalisation and shape, fusion by dtype, the training step
    assert len(workloads) == 2 * 2 * 2 + 2 + 1
    modes = {"forward", "backward", "forward+backward", "training step"}
    assert {record["mode"] for record in content["records"]} == modes
    assert {record["wall_ms"] for record in content["records"]} == {1.0}  # the clock's tick
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    assert names >= {"results.json", "results.csv", "summary.txt", "forward.svg", "forward+backward.svg"}
    with (tmp_path / "out" / "results.csv").open() as file:
        assert all(row["dry_run"] == "True" for row in csv.DictReader(file))
    assert "DRY RUN: nothing was measured on a GPU" in (tmp_path / "out" / "summary.txt").read_text()
    assert "DRY RUN: nothing was measured on a GPU" in capsys.readouterr().out


def test_a_wrong_kernel_of_ours_is_refused_and_has_no_times(monkeypatch, tmp_path):
    right = Attention.ours
    monkeypatch.setattr(Attention, "ours", lambda self, backend: right(self, backend) * 1.001)
    code, content = run(monkeypatch, tmp_path / "out", "--no-compile", "--only", "1", "--dtypes", "fp32")
    assert code == 1
    assert {entry["contender"] for entry in content["refused"]} == {"ours, cpu", "ours, reference"}
    assert all("above the budget" in entry["reason"] for entry in content["refused"])
    assert not any(record["contender"].startswith("ours") for record in content["records"])


def test_a_contender_that_cannot_run_is_listed_with_its_reason(monkeypatch, tmp_path):
    def broken(self):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(Attention, "sdpa_per_stream", broken)
    code, content = run(monkeypatch, tmp_path / "out", "--no-compile", "--only", "1", "--dtypes", "fp32")
    assert code == 0
    assert [entry["reason"] for entry in content["failed"]] == ["RuntimeError: no kernel image is available"]


def test_nothing_is_started_when_the_time_is_over(monkeypatch, tmp_path):
    _, content = run(monkeypatch, tmp_path / "out", "--minutes", "0", "--only", "1,step", "--dtypes", "fp32")
    assert not content["records"]
    assert {entry["reason"] for entry in content["failed"]} == {"out of time"}


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_fp64_reference_in_parts_is_the_reference_at_once(normalization):
    case = Attention.draw((2, 2, 5, (7, 4), False), normalization, dtype=torch.float64)
    upstream = torch.randn(2, 2, 5, 64, dtype=torch.float64)
    whole = exact_attention(case)(lambda _: upstream)
    parts = exact_attention(case, limit=0)(lambda _: upstream)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """What flash-attn documents, in plain PyTorch."""
    pieces = []
    for b in range(len(cu_seqlens_q) - 1):
        rows, keys = slice(*cu_seqlens_q[b : b + 2].tolist()), slice(*cu_seqlens_k[b : b + 2].tolist())
        assert keys.stop - keys.start <= max_seqlen_k
        heads_first = [x.transpose(0, 1) for x in (q[rows], k[keys], v[keys])]
        pieces.append(F.scaled_dot_product_attention(*heads_first).transpose(0, 1))
    return torch.cat(pieces)


def memory_efficient_attention_partial(query, key, value, attn_bias):
    """What xformers documents, in plain PyTorch: inputs (B, L, H, D), lse (B, H, L)."""
    scores = torch.einsum("bihd,bjhd->bhij", query, key) * query.shape[-1] ** -0.5 + attn_bias
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value), scores.logsumexp(-1)


def merge_attentions(outputs, lses, write_lse):
    assert not write_lse
    weights = torch.stack(lses).softmax(0).transpose(2, 3)[..., None]
    return (weights * torch.stack(outputs)).sum(0), None


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_optional_libraries_are_called_as_they_document(monkeypatch, normalization):
    libraries = {
        "flash_attn": SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func),
        "xformers.ops.fmha": SimpleNamespace(
            memory_efficient_attention_partial=memory_efficient_attention_partial, merge_attentions=merge_attentions
        ),
    }
    monkeypatch.setattr(contenders, "optional", libraries.get)
    case = Attention.draw((2, 2, 9, (7, 5), False), normalization, dtype=torch.bfloat16)
    found, forward_only = contenders.attention_contenders(case, compiled=False)
    name = "flash-attn varlen per stream" if normalization == "per_source" else "xformers, partial and merged"
    assert (name in forward_only) == (normalization == "joint")
    torch.testing.assert_close(found[name](), found["eager"](), rtol=0.05, atol=0.05)


def test_a_missing_library_is_no_contender(monkeypatch):
    assert contenders.optional("there_is_no_such_library") is None
