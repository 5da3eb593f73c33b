"""Promises of a training step: nothing in it waits for a value, and padding is never computed."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amuse.config import LossConfig, ModelConfig
from amuse.data import Batch, Dialogue, Utterance, collate, synthetic_conversations
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse
from amuse.training.augmentation import augment, draw_mix
from amuse.training.losses import LossDenominators, amuse_loss
from amuse_kernels.attention import inputs, varlen
from amuse_kernels.nn import sources

CONVERSATIONS = synthetic_conversations("train", num_dialogues=5, seed=0, absent_rate=0.2)
# ops whose result, or the shape of whose result, depends on values: on a GPU the host waits for them
WAITING = {
    *(
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "allclose",
        "count_nonzero",
        "_is_any_true",
        "_is_all_true",
    ),
    *("nonzero", "nonzero_static", "masked_select", "repeat_interleave", "bincount"),
    *("unique", "unique_consecutive", "unique_dim", "_unique", "_unique2"),
}
CASES = {
    "paper": {},
    "closed form": {"fusion": "closed_form"},
    "chain": {"fusion": "chain", "temporal": "none"},
    "random": {"fusion": "random"},
    "concatenation": {"man": False, "fusion": "concat"},
    "attention": {"temporal": "attention", "causal": True, "temporal_layers": 2},
    "window": {"temporal": "attention", "causal": True, "context_window": 3},
    "no Bi-LSTM": {"unimodal_lstm": False, "unimodal_layers": 2},
    "mapped scores": {"man_score_map": True},
    "streams": {"streams": {"av": ["audio", "video"]}, "man_lstm": True, "man_gate": "input"},
    "options": {"gate_teacher": True, "speaker_head": True, "man_gate": "learned", "input_dropout": 0.1},
    "augmented": {"modality_dropout": {"audio": 0.5}, "modality_swap": {"video": 0.5}},
    "regression": {"label_names": None},
    "infonce": {"contrastive_kind": "infonce"},
}


class Waiting(TorchDispatchMode):
    """Refuses ops that would make the host wait for a GPU; reading `on_host` tensors is free."""

    def __init__(self, on_host: list[torch.Tensor]) -> None:
        super().__init__()
        self.on_host = {tensor.untyped_storage().data_ptr() for tensor in on_host}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        # tensor[mask] finds out where the mask is True
        masks = (
            [index for index in args[1] if index is not None] if name in ("index", "index_put", "index_put_") else []
        )
        by_mask = any(index.dtype in (torch.bool, torch.uint8) for index in masks)
        copied = name == "_to_copy" and "device" in (kwargs or {}) and kwargs["device"] is not None
        if name in WAITING or by_mask or copied:
            tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
            if not all(tensor.untyped_storage().data_ptr() in self.on_host for tensor in tensors):
                raise AssertionError(f"{function} waits for the value of a tensor")
        return function(*args, **(kwargs or {}))


def host_tensors(batch: Batch) -> list[torch.Tensor]:
    layouts = [*batch.layouts.values(), batch.dialogues, *(merge.layout for merge in batch.merges.values())]
    sizes = [layout.steps.batch_sizes for layout in layouts]
    return [*sizes, *(layout.lengths for layout in layouts), batch.turns.batch_sizes]


def make_model(**options) -> tuple[Amuse, LossConfig]:
    torch.manual_seed(0)
    names = options.pop("label_names", CONVERSATIONS.label_names)
    loss = LossConfig(contrastive_kind=options.pop("contrastive_kind", "nce"), label_smoothing=0.1)
    config = ModelConfig(**{"d_model": 16, "num_heads": 2, "man_layers": 2, "head_merge": "concat", **options})
    return Amuse(config, DataSpec(CONVERSATIONS.modalities, names)).train(), loss


@pytest.mark.parametrize("name", CASES)
def test_a_step_never_waits_for_a_value(name, monkeypatch):
    for module in (inputs, varlen, sources):  # offsets are looked into on the CPU only
        monkeypatch.setattr(module, "can_read", lambda tensor: False)
    model, loss_config = make_model(**CASES[name])
    weights = None if model.spec.label_names is None else torch.rand(len(model.spec.label_names))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = augment(collate(CONVERSATIONS.dialogues, CONVERSATIONS.modalities), model.config, model.groups)
    if model.spec.label_names is None:
        batch.labels = batch.labels.float()
    for streams in model.groups.values():
        batch.merge(streams)
    mix = draw_mix(batch.labels, 0.4)
    with Waiting(host_tensors(batch)):
        output = model(batch, mix)
        denominators = LossDenominators.of(batch.labels, output.present, weights, mix, batch)
        losses = amuse_loss(output, batch.labels, loss_config, weights, batch=batch, mix=mix, denominators=denominators)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("op", [lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: float(x.sum()), torch.unique])
def test_the_check_itself_refuses_what_waits(op):
    with pytest.raises(AssertionError, match="waits for the value"), Waiting([]):
        op(torch.randn(5))


def test_no_layer_sees_padding():
    """The rows that linear layers compute are the tokens that there are, and no more."""
    model, _ = make_model()
    long = Utterance("long", "Ada", {m: torch.randn(40, w) for m, w in CONVERSATIONS.modalities.items()}, 0)
    batch = collate([*CONVERSATIONS.dialogues, Dialogue("d", [long])], CONVERSATIONS.modalities)
    seen = {}
    for m, stage in enumerate([*model.unimodal]):
        for network in (stage, model.central[m]):
            for module in network.modules():
                if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
                    module.register_forward_hook(lambda _, given, out, m=m: seen.setdefault(m, set()).add(len(out)))
    model(batch)
    tokens = [
        sum(len(u.features.get(m, ())) for d in CONVERSATIONS.dialogues for u in d.utterances) + 40 for m in WIDTHS
    ]
    assert [seen[m] for m in range(3)] == [{count} for count in tokens]


WIDTHS = CONVERSATIONS.modalities


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("random", "augmented")])
def test_a_batch_without_a_token_gives_every_weight_a_gradient_of_0(name):
    """Other processes wait for these gradients."""
    model, loss_config = make_model(**CASES[name])
    batch = collate(CONVERSATIONS.dialogues[:1], CONVERSATIONS.modalities)
    none = torch.zeros(len(batch), dtype=torch.int64)
    batch = batch.with_tokens({m: x[:0] for m, x in batch.tokens.items()}, dict.fromkeys(batch.tokens, none))
    batch = dataclasses.replace(batch, labels=None)
    amuse_loss(model(batch), None, loss_config, batch=batch)["loss"].backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.numel() and not parameter_name.startswith(("temporal", "classifier", "voice", "fusion")):
            assert parameter.grad is not None, parameter_name
        assert parameter.grad is None or not parameter.grad.any(), parameter_name
