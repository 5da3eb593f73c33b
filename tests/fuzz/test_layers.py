"""Any arguments of a layer's constructor and call give a layer and an output, or an error that names one of them."""

import inspect

import torch
from hypothesis import given
from hypothesis import strategies as st

from amuse_kernels import Packed
from amuse_kernels.nn import AdaptiveFusion, PeripheralCentralAttention
from tests.fuzz.arguments import disguised, masks, refusal, tensors, wild_values

SIZES = st.integers(-2, 5).map(lambda n: 8 * n)


@st.composite
def attention_layer_arguments(draw):
    return {
        "embed_dim": draw(SIZES),
        "num_heads": draw(st.integers(-1, 4)),
        "source_dims": draw(st.lists(st.one_of(st.integers(0, 9), st.tuples(SIZES, SIZES)), max_size=4)),
        "normalization": draw(st.sampled_from(["per_source", "joint"])),
        "gate": draw(st.sampled_from(["learned", "mean", "input", 1.0, 0, [0.5], [0.2, 2]])),
        "head_merge": draw(st.sampled_from(["concat", "mean"])),
        "dropout": draw(st.sampled_from([0.0, 0.5])),
    }


@st.composite
def fusion_layer_arguments(draw):
    return {"embed_dim": draw(st.integers(-1, 20)), "num_modalities": draw(st.integers(-1, 9))}


def moderate(value):
    """Whether it holds no integer so large that a layer of that size would fill the memory."""
    if isinstance(value, list | tuple):
        return all(map(moderate, value))
    return not isinstance(value, int) or abs(value) < 100


def disturbed(data, arguments):
    """One of the arguments replaced by anything."""
    name = data.draw(st.sampled_from(sorted(arguments)))
    value = arguments[name]
    if isinstance(value, torch.Tensor) and data.draw(st.booleans()):
        return {**arguments, name: data.draw(disguised(value))}
    return {**arguments, name: data.draw(wild_values().filter(moderate))}


def packed(data, tokens):
    """The samples of `(B, L, dim)` one after the other; now and then with offsets or a maximum that is wrong."""
    if not isinstance(tokens, torch.Tensor):
        return type(tokens)(packed(data, entry) for entry in tokens)
    batch, length, _ = tokens.shape
    cu_seq, longest = torch.arange(batch + 1, dtype=torch.int32) * length, length
    if data.draw(st.integers(0, 9)) == 0:
        cu_seq = data.draw(disturbances(cu_seq))
    if data.draw(st.integers(0, 9)) == 0:
        longest = data.draw(wild_values())
    return Packed(tokens.flatten(0, 1), cu_seq, longest)


def disturbances(tensor):
    return st.one_of(disguised(tensor), wild_values(), st.just(tensor.flip(0)), st.just(tensor + 1))


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


@given(data=st.data())
def test_attention_layer(data):
    names = parameters(PeripheralCentralAttention)
    arguments = data.draw(attention_layer_arguments())
    if data.draw(st.booleans()):
        arguments = disturbed(data, arguments)
    layer = refusal(lambda: PeripheralCentralAttention(**arguments), names)
    if layer is None:
        return
    batch, queries = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 4))
    lengths = [data.draw(st.integers(0, 4)) for _ in layer.source_dims]
    call = {
        "query": data.draw(tensors((batch, queries, layer.embed_dim))),
        "sources": [
            (data.draw(tensors((batch, n, key))), data.draw(tensors((batch, n, value))))
            for n, (key, value) in zip(lengths, layer.source_dims, strict=True)
        ],
        "query_mask": data.draw(st.one_of(st.none(), masks((batch, queries)))),
        "key_masks": [data.draw(st.one_of(st.none(), masks((batch, n)))) for n in lengths],
        "need_weights": data.draw(st.booleans()),
    }
    if data.draw(st.booleans()):
        call = {name: packed(data, call[name]) for name in ("query", "sources")}
    if data.draw(st.booleans()):
        call = disturbed(data, call)
    result = refusal(lambda: layer(**call), [*parameters(layer.forward), "keys", "values", "cu_seq_[qk]", "max_[qk]"])
    if result is None:
        return
    values = result[0].values if isinstance(result[0], Packed) else result[0]
    if values.device.type == "cpu" and not values.is_nested:
        assert not values.isnan().any()


@given(data=st.data())
def test_fusion_layer(data):
    names = parameters(AdaptiveFusion)
    arguments = data.draw(fusion_layer_arguments())
    if data.draw(st.booleans()):
        arguments = disturbed(data, arguments)
    layer = refusal(lambda: AdaptiveFusion(**arguments), names)
    if layer is None:
        return
    batch, modalities = data.draw(st.integers(0, 3)), layer.num_modalities
    call = {
        "descriptors": data.draw(tensors((batch, modalities, layer.embed_dim))),
        "present": data.draw(st.one_of(st.none(), masks((batch, modalities)))),
        "alpha": data.draw(st.one_of(st.none(), tensors((batch, modalities, modalities)))),
    }
    if data.draw(st.booleans()):
        call = disturbed(data, call)
    result = refusal(lambda: layer(**call), parameters(layer.forward))
    if result is not None and result[0].device.type == "cpu":
        assert not result[0].isnan().any()
