"""The cost model against what is there: parameters, operations, kept activations, exchanged bytes."""

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from amuse.config import ModelConfig
from amuse.data.batch import Batch
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from benchmarks.cost_model import Device, activation_bytes, cost, forward_flops, parameters

WIDTHS = {"text": 48, "audio": 24, "video": 40}
TOKENS = {"text": 12, "audio": 30, "video": 20}
NAMES = ["a", "b", "c"]
LAYOUTS = {
    "paper": {},
    "wide": {"d_model": 64, "num_heads": 4, "head_merge": "concat", "temporal_layers": 2},
    "attention": {"temporal": "attention", "temporal_layers": 2, "causal": True},
    "no lstm": {"unimodal_lstm": False, "unimodal_layers": 2, "temporal": "none", "man_gate": "learned"},
    "options": {"man_gate": "input", "fusion": "chain", "speaker_head": True},
    "concatenation": {"man": False, "fusion": "concat", "streams": {"av": ["audio", "video"]}},
    "regression": {"label_names": None},
}


def make_config(name: str, **more) -> tuple[ModelConfig, DataSpec]:
    options = {"label_names": NAMES, "d_model": 32, "num_heads": 2, "man_layers": 4, **LAYOUTS[name], **more}
    names = options.pop("label_names")
    return ModelConfig(**options), DataSpec(WIDTHS, names)


def make_batch(utterances: int, ragged: bool = False) -> Batch:
    """`TOKENS` per utterance, in the mean where ragged, as utterances are."""
    shift = torch.arange(utterances) % 2 * 8 - 4 if ragged else 0
    return Batch.of(
        {m: torch.randn(utterances * TOKENS[m], width) for m, width in WIDTHS.items()},
        {m: torch.full((utterances,), TOKENS[m]) + shift for m in WIDTHS},
        [10] * (utterances // 10),
        speaker=torch.arange(utterances) % 2,
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_parameters_are_counted_exactly(name):
    config = make_config(name)
    assert parameters(*config) == sum(p.numel() for p in Amuse(*config).parameters())


@pytest.mark.parametrize("options", [{}, {"temporal": "attention", "temporal_layers": 2}, {"man": False}])
def test_operations_agree_with_torchs_counter(options):
    config = make_config("no lstm", man_gate="mean", backend="reference", **options)
    model, batch = Amuse(*config).eval(), make_batch(20)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    # the counter knows nothing of element-wise work, such as the gate's inner products
    assert forward_flops(*config, TOKENS) * 20 == pytest.approx(counter.get_total_flops(), rel=0.03)


def peak_bytes(run) -> int:
    """The most memory that tensors made in a call take at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    changes = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("name", ["paper", "wide", "no lstm", "concatenation"])
def test_activations_are_estimated_to_a_quarter(name):
    config = make_config(name, dropout=0.1)
    model, batch = Amuse(*config).train(), make_batch(40, ragged=True)
    weights = {p.data_ptr() for p in model.parameters()}
    sizes = {}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch)
    kept = sum(sizes.values()) / 40
    assert activation_bytes(*config, TOKENS) == pytest.approx(kept, rel=0.25)


@pytest.mark.parametrize("name", ["paper", "wide", "no lstm"])
def test_the_memory_of_recomputed_activations_is_estimated_to_a_third(name):
    config = make_config(name, dropout=0.1)
    model, batch = Amuse(*config).train(), make_batch(100, ragged=True)
    model.recompute_activations()

    def step() -> None:
        model(batch).logits.sum().backward()

    step()  # the gradients of the weights are there
    estimate = 100 * activation_bytes(*config, TOKENS, recompute=True)
    assert estimate == pytest.approx(peak_bytes(step), rel=0.33)
    assert estimate < 0.8 * 100 * activation_bytes(*config, TOKENS)


def test_fsdp_holds_less_and_sends_more():
    device = Device(flops=1e13, memory=80e9, bandwidth=1e10)
    ddp, fsdp = (cost(1e9, 1e10, 1e6, 64, device, 8, strategy=strategy) for strategy in ("ddp", "fsdp"))
    assert fsdp.memory < ddp.memory / 2
    assert fsdp.traffic == pytest.approx(1.5 * ddp.traffic)
    assert ddp.traffic == pytest.approx(2 * 7 / 8 * 4e9)


def test_one_device_exchanges_nothing_and_two_do_twice_as_much():
    device = Device(flops=1e13, memory=80e9, bandwidth=1e12)
    one, two = (cost(1e7, 1e9, 1e6, 64, device, n) for n in (1, 2))
    assert one.exchange == one.traffic == 0
    assert one.hours(1e6, 10, 64, 1) == pytest.approx(2 * two.hours(1e6, 10, 64, 2), rel=0.01)
