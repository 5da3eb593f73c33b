"""The benchmark suite measures what it says: checked contenders, real ratios, memory that sees what is allocated."""

import csv

import pytest
import torch

from amuse.config import Config, ModelConfig
from amuse.model.amuse import Amuse
from benchmarks import cpu, launches, meld, packed_attention, workloads
from benchmarks.measure import alternate, peak_extra_bytes

pytestmark = pytest.mark.slow

PEAKS = (1e9, 1e9)


@pytest.fixture
def small(monkeypatch):
    torch.manual_seed(0)
    shapes = {"ragged": (2, 2, 5, (7, 4), False), "dialogue": (1, 2, 6, (6, 6), True)}
    monkeypatch.setattr(workloads, "SHAPES", shapes)
    monkeypatch.setattr(workloads, "LAYER", (2, 2, 5, (7, 4)))
    monkeypatch.setattr(workloads, "FUSION", (9, 3, 8))


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
@pytest.mark.parametrize("shape", ["ragged", "dialogue"])
def test_all_attention_contenders_agree_and_are_measured(small, shape, normalization, capsys):
    records = cpu.measure(workloads.attention(shape, normalization), 1, PEAKS)
    assert len(records) == 6  # three contenders, forward and forward+backward
    assert all(float(record["median_ms"]) > 0 for record in records)
    assert {record["times_ours"] for record in records if record["contender"] == "ours"} == {"1.00"}
    assert "as fast as the fastest contender" in capsys.readouterr().out


@pytest.mark.parametrize("build", [workloads.layer, workloads.fusion])
def test_layer_and_fusion_contenders_agree(small, build):
    build().check()


def test_contenders_of_packed_attention_agree_and_one_that_is_wrong_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(packed_attention, "SAMPLES", 5)
    work = packed_attention.packed_attention()
    records = cpu.measure(work, 1, PEAKS)
    assert {record["contender"] for record in records} == {*work.layouts}
    assert "as fast as the fastest contender" in capsys.readouterr().out
    attend = work.contenders["SDPA per stream"]
    work.contenders["SDPA per stream"] = lambda: 1.01 * attend()
    with pytest.raises(AssertionError, match="SDPA per stream is off"):
        work.check()


def test_a_wrong_contender_is_refused(small):
    work = workloads.fusion()
    work.contenders["wrong"] = lambda: work.contenders["eager"]() * 1.01
    with pytest.raises(AssertionError, match="wrong is off"):
        work.check()


def test_a_wrong_gradient_is_refused(small):
    work = workloads.fusion()
    descriptors = work.leaves[0]
    work.contenders["wrong"] = lambda: work.contenders["eager"]() + (descriptors - descriptors.detach()).sum()
    with pytest.raises(AssertionError, match="wrong is off"):
        work.check()


def test_training_step_on_both_backends_gives_one_loss(capsys):
    config = Config(model=ModelConfig(d_model=16, num_heads=2))
    steps = workloads.training_steps(config, {"text": (3, 8), "audio": (4, 8)})
    assert len(cpu.measure_step("small", steps, 1)) == 2


def test_alternate_runs_in_turn():
    order = []
    medians = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3  # once to warm up
    assert set(medians) == {"a", "b"}


def test_host_times_launches_of_every_kind():
    pytest.importorskip("triton")
    from benchmarks import host

    with host.without_a_driver():
        runs = host.runs()
        results = {name: run() for name, run in runs.items()}
    assert {"Triton, forward", "Triton, backward, layout not seen before"} <= set(results)
    assert all(
        len(result) == (4 if "backward" in name else 2) for name, result in results.items() if "seen" not in name
    )


def test_memory_of_a_call_is_seen():
    megabytes = 64
    extra = peak_extra_bytes(lambda: torch.ones(megabytes * 2**18))
    if extra is None:
        pytest.skip("only Linux tells its peak")
    assert extra == pytest.approx(megabytes * 2**20, rel=0.1)
    assert peak_extra_bytes(lambda: None) < 2**20


def test_csv_and_plot(small, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    target = tmp_path / "cpu.csv"
    threads = str(torch.get_num_threads())
    arguments = ["--only", "fusion", "--repeats", "1", "--csv", str(target), "--threads", threads]
    monkeypatch.setattr("sys.argv", ["benchmarks.cpu", *arguments])
    monkeypatch.setattr(cpu, "machine_peaks", lambda clock: PEAKS)
    cpu.main()
    with target.open(newline="") as file:
        records = list(csv.DictReader(file))
    assert {record["contender"] for record in records} == {"ours", "eager"}
    assert all(record["processor"] and record["torch"] == torch.__version__ for record in records)
    assert "<svg" in plot.draw(target).read_text()


def test_the_stock_model_computes_what_ours_does_and_a_step_of_ours_never_waits():
    torch.manual_seed(0)
    batch = meld.half_to_full({"text": 5, "audio": 7, "video": 2}, utterances=3, count=2)
    meld.check([batch])
    config = meld.config()
    model = Amuse(config.model, meld.spec()).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    counter = launches.count(lambda: meld.training_step(model, (batch,), batch, config, optimizer))
    assert not counter.waiting
    assert counter.launching["lstm"] == counter.launching["lstm_backward"] == 5
    assert counter.launching["p2c_attention_forward"] == 15
