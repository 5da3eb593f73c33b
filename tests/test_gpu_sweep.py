"""The sweep without a GPU: its whole path runs, every record is kept, and nothing that fails stops what follows."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import contenders, promises, stages
from benchmarks.gpu import stage as stage_module
from benchmarks.gpu import sweep as sweep_module
from benchmarks.gpu.device import Nothing
from benchmarks.gpu.journal import Journal, read
from benchmarks.gpu.rivals import exact_attention
from benchmarks.gpu.stage import LOST, Context, Item
from benchmarks.gpu.sweep import PLAN, supervise, sweep
from benchmarks.gpu.table import has_failed, table
from benchmarks.workloads import Attention

SLOW = ("promises", "training")  # seconds each


def walk(name, folder, seconds=100.0):
    """A stage's records, in this process."""
    path = folder / "records.jsonl"
    context = Context(Nothing(), folder, time.time() + seconds)
    assert stage_module.run(stages.items_of(name)(context), context, Journal(path, name, time.time())) == 0
    return read(path)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in PLAN])
def test_a_dry_run_walks_every_stage(name, tmp_path):
    records = walk(name, tmp_path)
    assert {record["stage"] for record in records} == {name}
    statuses = {record["status"] for record in records}
    assert "done" in statuses
    assert not statuses & {"wrong", "failed"}, table(records)
    if name == "smoke":
        assert "DRY RUN: nothing was measured on a GPU" in table(records)
    if name == "training":
        assert "Self CPU time total" in (tmp_path / "profiles.txt").read_text()
        assert "training fp32, step: 1.000 ms ours, cpu | 1.000 ms reference | 1.00x" in table(records)
    if name == "rivals":
        modes = {record["mode"] for record in records if "wall_ms" in record}
        assert modes == {"forward", "backward", "forward+backward"}
        assert {record["wall_ms"] for record in records if "wall_ms" in record} == {1.0}  # the clock's tick


def test_the_command_makes_the_records_and_the_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu.sweep", "--dry-run", "--only", "tuning", "--out", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {record["stage"] for record in read(tmp_path / "records.jsonl")} == {"tuning"}
    assert (tmp_path / "table.txt").read_text().strip() in printed


class PTXASError(Exception):
    """Triton's own errors share no base class with anything."""


def test_an_item_that_raises_is_recorded_and_the_next_one_runs(tmp_path):
    def fails(error):
        def run():
            yield {"value": 1}
            raise error

        return run

    context = Context(Nothing(), tmp_path, time.time() + 100)
    errors = [PTXASError("ptxas:\n out of registers"), torch.OutOfMemoryError("none left"), KeyError("fp32")]
    items = [Item(f"item {i}", fails(error)) for i, error in enumerate(errors)]
    journal = Journal(tmp_path / "records.jsonl", "smoke", time.time())
    assert stage_module.run([*items, Item("last", lambda: [{"value": 2}])], context, journal) == 0
    records = read(journal.path)
    reasons = [record["reason"] for record in records if record["status"] == "failed"]
    assert reasons == ["PTXASError: ptxas: out of registers", "OutOfMemoryError: none left", "KeyError: 'fp32'"]
    assert [record["value"] for record in records if record["status"] == "ok"] == [1, 1, 1, 2]
    assert records[-1] == records[-1] | {"item": "last", "status": "done"}


def test_a_lost_gpu_ends_the_process_after_the_record(tmp_path):
    device = Nothing()
    device.is_lost = lambda: True

    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    journal = Journal(tmp_path / "records.jsonl", "smoke", time.time())
    context = Context(device, tmp_path, time.time() + 100)
    assert stage_module.run([Item("bad", fails), Item("next", lambda: [])], context, journal) == LOST
    assert [record["item"] for record in read(journal.path)] == ["bad", "bad"]


def test_nothing_is_started_when_the_time_is_over(tmp_path):
    records = walk("cases", tmp_path, seconds=-1)
    [record] = records
    assert record["status"] == "not run"
    assert "out of time" in record["reason"]


# What a stage's process does, in a process without PyTorch: item 1 crashes, hangs or loses the GPU.
FAKE = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu.journal import Journal
kind, path, skip = sys.argv[1], Path(sys.argv[2]), int(sys.argv[4])
if kind == "missing":
    raise ImportError("no module named flash_attn")
journal = Journal(path, kind, time.time())
for item in range(skip, 4):
    journal.write("started", str(item))
    if item == 1 and kind == "crash":
        print("Segmentation fault", flush=True)
        os._exit(139)
    if item == 1 and kind == "hang":
        time.sleep(60)
    if item == 1 and kind == "lost":
        journal.write("failed", str(item), reason="an illegal memory access")
        sys.exit(3)
    journal.write("done", str(item))
"""


def fake(kind, path):
    return [sys.executable, "-c", FAKE, kind, str(path)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("crash", "the process ended with 139"),
        ("hang", "killed: no record for 2 s"),
        ("lost", "an illegal memory access"),
    ],
)
def test_a_stage_continues_after_what_ended_its_process(kind, reason, tmp_path):
    path = tmp_path / "records.jsonl"
    supervise(Journal(path, kind, time.time()), fake(kind, path), time.time() + 60, patience=2)
    records = read(path)
    assert [record["item"] for record in records if record["status"] == "done"] == ["0", "2", "3"]
    [failed] = [record for record in records if record["status"] == "failed"]
    assert failed["item"] == "1"
    assert failed["reason"] == reason
    if kind == "crash":
        assert "Segmentation fault" in failed["output"]


def test_a_stage_is_killed_when_its_time_is_over(tmp_path):
    path = tmp_path / "records.jsonl"
    began = time.time()
    supervise(Journal(path, "hang", began), fake("hang", path), began + 2, patience=60)
    assert time.time() - began < 20
    assert read(path)[-1]["reason"] == "killed: the stage's time is over"


def test_a_stage_that_cannot_start_is_one_failure_and_the_others_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep_module, "PLAN", {"missing": (0.5, 10), "fine": (1.0, 10)})
    path = tmp_path / "records.jsonl"
    path.write_text("from an earlier sweep")
    assert sweep(["missing", "fine"], tmp_path, 60, lambda stage, until, began: fake(stage, path)) == 1
    records = read(path)
    [failed] = [record for record in records if record["status"] == "failed"]
    assert failed["stage"] == "missing"
    assert "no module named flash_attn" in failed["output"]
    assert [record["item"] for record in records if record["status"] == "done"] == ["0", "1", "2", "3"]
    printed = capsys.readouterr().out
    assert "FAILED: missing: missing: the process ended with 1" in printed
    assert (tmp_path / "table.txt").read_text().strip() in printed


def test_a_journal_that_was_cut_off_keeps_what_was_whole(tmp_path):
    journal = Journal(tmp_path / "records.jsonl", "smoke", time.time())
    journal.write("ok", "a", output="x" * 10_000)
    with journal.path.open("a") as file:
        file.write(json.dumps({"stage": "smoke", "item": "b"})[:-5])
    [record] = read(journal.path)
    assert len(record["output"]) < 5000


def test_the_table_compares_ours_with_the_fastest_other():
    times = [("ours, triton", 2.0, None), ("ours, cuda", 1.0, 0.5), ("eager", 3.0, None), ("SDPA", 2.0, 1.0)]
    records = [
        {"stage": "rivals", "item": "a", "status": "ok", "contender": c, "mode": "forward", "wall_ms": w, "graph_ms": g}
        for c, w, g in times
    ]
    assert "a, forward: 0.500 ms ours, cuda | 1.000 ms SDPA | 2.00x" in table(records)
    assert not has_failed(records)
    failure = {"stage": "rivals", "item": "a", "status": "failed", "reason": "no kernel image"}
    assert not has_failed([failure | {"contender": "xformers"}])
    assert has_failed([failure | {"contender": "ours, cuda"}])


def test_pytest_s_lines_are_understood_with_and_without_workers():
    plain = promises.OUTCOME.search("tests/test_p2c_attention.py::test_a[x y-cuda] PASSED      [  3%]")
    assert (plain[3], plain[4]) == ("tests/test_p2c_attention.py::test_a[x y-cuda]", "PASSED")
    worker = promises.OUTCOME.search("[gw3] [ 12%] FAILED tests/test_p2c_attention.py::test_a[x-cuda] ")
    assert (worker[1], worker[2].strip()) == ("FAILED", "tests/test_p2c_attention.py::test_a[x-cuda]")
    reason = promises.REASON.match("FAILED tests/test_p2c_attention.py::test_a[x-cuda] - AssertionError: off")
    assert reason[2] == "AssertionError: off"


def test_a_wrong_kernel_of_ours_is_refused_and_has_no_times(monkeypatch, tmp_path):
    right = Attention.ours
    monkeypatch.setattr(Attention, "ours", lambda self, backend: right(self, backend) * 1.1)
    records = walk("rivals", tmp_path)
    wrong = {record["contender"] for record in records if record["status"] == "wrong"}
    assert wrong == {"ours, cpu", "ours, reference"}
    assert all("above the budget" in record["reason"] for record in records if record["status"] == "wrong")
    timed = [record for record in records if "wall_ms" in record and record["item"].startswith("attention")]
    assert timed
    assert not any(record["contender"].startswith("ours") for record in timed)
    assert has_failed(records)


def test_a_contender_that_cannot_run_is_listed_with_its_reason(monkeypatch, tmp_path):
    def broken(self):
        raise PTXASError("no kernel image is available")

    monkeypatch.setattr(Attention, "sdpa_per_stream", broken)
    records = walk("rivals", tmp_path)
    reasons = {record["reason"] for record in records if record["status"] == "failed"}
    assert reasons == {"PTXASError: no kernel image is available"}
    assert not has_failed(records)


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_fp64_reference_in_parts_is_the_reference_at_once(normalization):
    case = Attention.draw((2, 2, 5, (7, 4), False), normalization, dtype=torch.float64)
    upstream = torch.randn(2, 2, 5, 64, dtype=torch.float64)
    whole = exact_attention(case)(lambda _: upstream)
    parts = exact_attention(case, limit=0)(lambda _: upstream)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """flash-attn's function as documented, in plain PyTorch."""
    pieces = []
    for b in range(len(cu_seqlens_q) - 1):
        rows, keys = slice(*cu_seqlens_q[b : b + 2].tolist()), slice(*cu_seqlens_k[b : b + 2].tolist())
        assert keys.stop - keys.start <= max_seqlen_k
        heads_first = [x.transpose(0, 1) for x in (q[rows], k[keys], v[keys])]
        pieces.append(F.scaled_dot_product_attention(*heads_first).transpose(0, 1))
    return torch.cat(pieces)


def memory_efficient_attention_partial(query, key, value, attn_bias):
    """xformers' function as documented, in plain PyTorch: inputs (B, L, H, D), lse (B, H, L)."""
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
