"""Bad arguments get an error that names the argument, what it was and what was expected, before anything runs."""

import pytest
import torch

import amuse_kernels
from amuse_kernels import (
    BackendUnavailableError,
    adaptive_fusion,
    interpolation_coefficients,
    p2c_attention,
    p2c_attention_weights,
)
from amuse_kernels.dispatch import unavailable_reason
from amuse_kernels.nn import AdaptiveFusion, PeripheralCentralAttention


def attend(**changes):
    t = torch.randn
    arguments = {
        "query": t(2, 2, 4, 8),
        "keys": [t(2, 2, 4, 8), t(2, 2, 3, 8)],
        "values": [t(2, 2, 4, 8), t(2, 2, 3, 8)],
        **changes,
    }
    return p2c_attention(arguments.pop("query"), arguments.pop("keys"), arguments.pop("values"), **arguments)


T = torch.zeros
ATTENTION_MISTAKES = {
    "query rank": ({"query": T(2, 4, 8)}, ValueError, r"query: expected 4 dimensions .*\(2, 4, 8\)"),
    "query dtype": ({"query": T(2, 2, 4, 8).long()}, TypeError, "query: .*torch.int64"),
    "query type": ({"query": [1.0]}, TypeError, "query: .*list"),
    "head dim": ({"query": T(2, 2, 4, 12)}, ValueError, "query: head dim must be a multiple of 8.*12"),
    "head dim too wide": ({"query": T(2, 2, 4, 264)}, ValueError, "264"),
    "no source": ({"keys": [], "values": []}, ValueError, "keys: expected 1 to 8 sources, got 0"),
    "nine sources": ({"keys": [T(2, 2, 1, 8)] * 9}, ValueError, "keys: .* got 9"),
    "keys a tensor": ({"keys": T(2, 2, 4, 8)}, TypeError, "keys: expected a list or tuple"),
    "key heads": (
        {"keys": [T(2, 2, 4, 8), T(2, 3, 3, 8)]},
        ValueError,
        r"keys\[1\]: expected \(2, 2, L, 8\), got \(2, 3, 3, 8\)",
    ),
    "key dtype": (
        {"keys": [T(2, 2, 4, 8), T(2, 2, 3, 8).half()]},
        TypeError,
        r"keys\[1\]: .*torch.float32.*torch.float16",
    ),
    "key device": (
        {"keys": [T(2, 2, 4, 8, device="meta"), T(2, 2, 3, 8)]},
        ValueError,
        r"keys\[0\]: expected device cpu, got meta",
    ),
    "value count": ({"values": [T(2, 2, 4, 8)]}, ValueError, "values: expected 2 entries, one per source, got 1"),
    "no values": ({"values": None}, TypeError, "values: expected a list or tuple .* got None"),
    "value length": (
        {"values": [T(2, 2, 5, 8), T(2, 2, 3, 8)]},
        ValueError,
        r"values\[0\]: expected the shape of keys\[0\]",
    ),
    "gates shape": ({"gates": T(3)}, ValueError, r"gates: .*\(2, 2, 2\), got \(3,\)"),
    "gates dtype": ({"gates": torch.ones(2).long()}, TypeError, "gates: .*torch.int64"),
    "negative joint gate": (
        {"gates": torch.tensor([1.0, -1.0]), "normalization": "joint"},
        ValueError,
        "gates: .*negative.*-1.0",
    ),
    "integer mask": (
        {"key_masks": [T(2, 4).long(), None]},
        TypeError,
        r"key_masks\[0\]: expected a torch.bool tensor \(True = attend\), got torch.int64",
    ),
    "float mask": ({"key_masks": [T(2, 4), None]}, TypeError, r"key_masks\[0\]"),
    "mask shape": (
        {"key_masks": [None, T(2, 4).bool()]},
        ValueError,
        r"key_masks\[1\]: expected \(2, 3\), got \(2, 4\)",
    ),
    "mask a tensor": ({"key_masks": T(2, 4).bool()}, TypeError, "key_masks: expected a list or tuple"),
    "float groups": ({"query_groups": T(2, 4)}, TypeError, "query_groups: .*torch.float32"),
    "group shape": ({"query_groups": T(2, 5).long()}, ValueError, r"query_groups: expected \(2, 4\)"),
    "relation without groups": (
        {"relations": ["same", "any"]},
        ValueError,
        r"query_groups: .*relations\[0\] is 'same'",
    ),
    "relation without key groups": (
        {"relations": ["any", "same"], "query_groups": T(2, 4).long()},
        ValueError,
        r"key_groups\[1\]: .*relations\[1\]",
    ),
    "unknown relation": ({"relations": ["any", "other"]}, ValueError, r"relations\[1\]: .*'other'"),
    "relations a string": ({"relations": "same"}, TypeError, "relations: .*'same'"),
    "causal lengths": (
        {"causal": True},
        ValueError,
        r"causal\[1\]: needs as many keys as queries, got 3 keys, 4 queries",
    ),
    "causal type": ({"causal": [True, 1]}, TypeError, r"causal\[1\]: expected a bool"),
    "normalization": ({"normalization": "softmax"}, ValueError, "normalization: .*'softmax'"),
    "scale": ({"softmax_scale": float("nan")}, ValueError, "softmax_scale: expected a finite number"),
    "dropout": ({"dropout_p": 1.0}, ValueError, r"dropout_p: expected a probability in \[0, 1\), got 1.0"),
    "dropout type": ({"dropout_p": "0.1"}, TypeError, "dropout_p"),
    "seed type": ({"dropout_p": 0.1, "seed": 1.5}, TypeError, "seed: .*float 1.5"),
    "seed range": ({"dropout_p": 0.1, "seed": -1}, ValueError, "seed: .*-1"),
    "backend": (
        {"backend": "cudnn"},
        ValueError,
        "backend: expected one of triton, cuda, cpu, reference or None, got 'cudnn'",
    ),
}


@pytest.mark.parametrize("name", ATTENTION_MISTAKES)
def test_attention_names_the_bad_argument(name):
    changes, error, message = ATTENTION_MISTAKES[name]
    with pytest.raises(error, match=message):
        attend(**changes)


FUSION_MISTAKES = {
    "rank": ({"descriptors": T(3)}, ValueError, "descriptors: expected"),
    "modalities": ({"descriptors": T(2, 9, 4)}, ValueError, "descriptors: expected 1 to 8 modalities.*9"),
    "dtype": ({"descriptors": T(2, 3, 4).int()}, TypeError, "descriptors: .*torch.int32"),
    "nothing": ({}, ValueError, "alpha: expected either alpha.*none of them"),
    "both": (
        {"alpha": T(2, 3, 3), "pair_weight": T(6, 2, 4), "pair_bias": T(6)},
        ValueError,
        "alpha and pair_weight and pair_bias",
    ),
    "half a gate": ({"pair_weight": T(6, 2, 4)}, ValueError, "got pair_weight"),
    "alpha shape": ({"alpha": T(2, 3)}, ValueError, r"alpha: expected \(2, 3, 3\) or \(2, 3, 3, 4\), got \(2, 3\)"),
    "alpha dtype": ({"alpha": T(2, 3, 3).double()}, TypeError, "alpha: .*torch.float64"),
    "weight shape": (
        {"pair_weight": T(3, 2, 4), "pair_bias": T(6)},
        ValueError,
        r"pair_weight: expected \(6, 2, 4\), got \(3, 2, 4\)",
    ),
    "bias shape": (
        {"pair_weight": T(6, 2, 4), "pair_bias": T(6, 1)},
        ValueError,
        r"pair_bias: expected \(6,\), got \(6, 1\)",
    ),
    "integer present": (
        {"alpha": T(2, 3, 3), "present": T(2, 3).int()},
        TypeError,
        "present: expected a torch.bool tensor",
    ),
    "present shape": (
        {"alpha": T(2, 3, 3), "present": T(2, 4).bool()},
        ValueError,
        r"present: expected \(2, 3\), got \(2, 4\)",
    ),
}


@pytest.mark.parametrize("name", FUSION_MISTAKES)
def test_fusion_names_the_bad_argument(name):
    changes, error, message = FUSION_MISTAKES[name]
    arguments = {"descriptors": T(2, 3, 4), **changes}
    with pytest.raises(error, match=message):
        adaptive_fusion(arguments.pop("descriptors"), arguments.pop("alpha", None), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((T(2, 4), T(2, 5), T(2, 4), 0.1), ValueError, r"b: expected \(2, 4\), got \(2, 5\)"),
        ((T(2, 4), T(2, 4), T(2, 4).half(), 0.1), TypeError, "grad_b: .*torch.float16"),
        ((T(2, 4), T(2, 4), T(2, 4), float("inf")), ValueError, "epsilon: expected a finite number"),
        ((T(2, 4), T(2, 4), T(2, 4), "0.1"), TypeError, "epsilon: expected a float"),
        ((T(2, 0), T(2, 0), T(2, 0), 0.1), ValueError, "a: expected .* d of at least 1"),
    ],
)
def test_interpolation_names_the_bad_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        interpolation_coefficients(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PeripheralCentralAttention(20, 4, [8]), "embed_dim: .*multiple of 8.*20"),
        (lambda: PeripheralCentralAttention(512, 1, [8]), "num_heads: head dim 512"),
        (lambda: PeripheralCentralAttention(32, 4, []), "source_dims: .*got 0"),
        (lambda: PeripheralCentralAttention(32, 4, [8], gate="soft"), "gate: .*'soft'"),
        (lambda: PeripheralCentralAttention(32, 4, [8], head_merge="sum"), "head_merge: .*'sum'"),
        (lambda: PeripheralCentralAttention(32, 4, [8], dropout=1.0), "dropout"),
        (lambda: PeripheralCentralAttention(32, 4, [8], normalization="l2"), "normalization: .*'l2'"),
        (lambda: AdaptiveFusion(8, 9), "num_modalities: .*9"),
        (lambda: AdaptiveFusion(8, 3)(T(2, 2, 8)), r"descriptors: expected \(..., 3, 8\), got \(2, 2, 8\)"),
        (lambda: PeripheralCentralAttention(32, 4, [8])(T(2, 3, 32), []), "sources: expected 1 entries, got 0"),
        (lambda: PeripheralCentralAttention(32, 4, [8])(T(2, 3, 16), [T(2, 3, 8)]), r"query: expected \(B, Lq, 32\)"),
        (
            lambda: PeripheralCentralAttention(32, 4, [8])(T(2, 3, 32), [T(2, 3, 9)]),
            r"sources\[0\] \(key\): .*\(2, 3, 9\)",
        ),
    ],
)
def test_layers_name_the_bad_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_named_backend_never_falls_back(backend):
    for call in (
        lambda: attend(backend=backend),
        lambda: adaptive_fusion(T(2, 3, 4), T(2, 3, 3), backend=backend),
        lambda: interpolation_coefficients(T(2, 4), T(2, 4), T(2, 4), 0.1, backend=backend),
    ):
        with pytest.raises(BackendUnavailableError, match=f"backend='{backend}' cannot run"):
            call()


def test_the_reference_runs_everywhere():
    assert all(unavailable_reason("reference", device) is None for device in ("cpu", "cuda"))


def test_weights_are_computed_by_the_reference_only():
    with pytest.raises(ValueError, match=r"backend: .*'triton'"):
        p2c_attention_weights(T(1, 1, 2, 8), [T(1, 1, 2, 8)], backend="triton")


def test_the_public_names_are_those_of_the_contract():
    for name in ("p2c_attention", "p2c_attention_weights", "adaptive_fusion", "interpolation_coefficients"):
        assert callable(getattr(amuse_kernels, name))
    assert amuse_kernels.nn.PeripheralCentralAttention is PeripheralCentralAttention
