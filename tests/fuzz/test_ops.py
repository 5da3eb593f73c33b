"""Any arguments of an op give a result or an error that names one of them; finite numbers never give NaN."""

import inspect

import torch
from hypothesis import given
from hypothesis import strategies as st

from amuse_kernels import (
    adaptive_fusion,
    interpolation_coefficients,
    p2c_attention,
    p2c_attention_varlen,
    p2c_attention_weights,
)
from tests.attention_cases import assert_close
from tests.fuzz.arguments import FLOATING, disguised, masks, refusal, tensors, wild_values

MAGNITUDES = [0.0, 1e-30, 1e-3, 1.0, 30.0, 1e4, 1e8]
BACKENDS = st.sampled_from([None, None, None, "cpu", "reference", "triton", "cuda"])


@st.composite
def attention_arguments(draw, dtype=None, magnitude=None):
    """Valid arguments of p2c_attention by name."""
    dtype = dtype or draw(st.sampled_from(FLOATING))
    magnitude = draw(st.sampled_from(MAGNITUDES)) if magnitude is None else magnitude
    batch, heads, queries = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 7))
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 5, queries, 17]), min_size=1, max_size=4))
    head_dim = 8 * draw(st.integers(1, 5))

    def rows(length):
        return draw(tensors((batch, heads, length, head_dim), dtype, magnitude))

    keys = [rows(length) for length in lengths]
    values = [rows(length) for length in lengths]
    arguments = {
        "query": rows(queries),
        "keys": keys,
        "values": values,
        "normalization": draw(st.sampled_from(["per_source", "joint"])),
        "return_lse": True,
        "dropout_p": draw(st.sampled_from([0.0, 0.0, 0.1, 0.99])),
        "seed": draw(st.one_of(st.none(), st.integers(0, 2**63 - 1))),
    }
    shape = draw(st.sampled_from([(len(lengths),), (heads, len(lengths)), (batch, 1, len(lengths)), (1, 1, 1), ()]))
    if draw(st.booleans()):
        gates = draw(tensors(shape, draw(st.sampled_from(FLOATING))))
        arguments["gates"] = gates.abs() if arguments["normalization"] == "joint" else gates
    if draw(st.booleans()):
        arguments["key_masks"] = [draw(st.one_of(st.none(), masks((batch, length)))) for length in lengths]
    if draw(st.booleans()):
        integers = draw(st.sampled_from([torch.int64, torch.int32, torch.uint8]))
        arguments["query_groups"] = draw(tensors((batch, queries), integers))
        arguments["key_groups"] = [draw(tensors((batch, length), integers)) for length in lengths]
        arguments["relations"] = [draw(st.sampled_from(["any", "same", "different"])) for _ in lengths]
    if draw(st.booleans()):
        arguments["causal"] = [length == queries and draw(st.booleans()) for length in lengths]
    if draw(st.booleans()):
        arguments["softmax_scale"] = draw(st.sampled_from([0.0, -1.0, 1e-3, 2.0]))
    return arguments


@st.composite
def varlen_arguments(draw, dtype=None, magnitude=None):
    """Valid arguments of p2c_attention_varlen by name."""
    dtype = dtype or draw(st.sampled_from(FLOATING))
    magnitude = draw(st.sampled_from(MAGNITUDES)) if magnitude is None else magnitude
    samples, heads, head_dim = draw(st.integers(0, 3)), draw(st.integers(0, 3)), 8 * draw(st.integers(1, 5))
    sources = draw(st.integers(1, 3))

    def lengths():
        return draw(st.lists(st.sampled_from([0, 1, 2, 5, 17]), min_size=samples, max_size=samples))

    def rows(of_samples):
        return draw(tensors((sum(of_samples), heads, head_dim), dtype, magnitude))

    def offsets(of_samples):
        return torch.tensor([0, *of_samples]).cumsum(0).int()

    queries = lengths()
    causal = [draw(st.booleans()) for _ in range(sources)]
    keys = [queries if same else lengths() for same in causal]
    arguments = {
        "query": rows(queries),
        "keys": [rows(of_samples) for of_samples in keys],
        "values": [rows(of_samples) for of_samples in keys],
        "cu_seq_q": offsets(queries),
        "cu_seq_k": [offsets(of_samples) for of_samples in keys],
        "max_q": max(queries, default=0) + draw(st.sampled_from([0, 0, 3])),
        "max_k": [max(of_samples, default=0) + draw(st.sampled_from([0, 0, 3])) for of_samples in keys],
        "causal": causal,
        "normalization": draw(st.sampled_from(["per_source", "joint"])),
        "return_lse": True,
        "dropout_p": draw(st.sampled_from([0.0, 0.0, 0.1])),
        "seed": draw(st.one_of(st.none(), st.integers(0, 2**63 - 1))),
    }
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(sources,), (heads, sources), (samples, 1, sources), ()]))
        gates = draw(tensors(shape, draw(st.sampled_from(FLOATING))))
        arguments["gates"] = gates.abs() if arguments["normalization"] == "joint" else gates
    if draw(st.booleans()):
        integers = draw(st.sampled_from([torch.int64, torch.int32, torch.uint8]))
        arguments["query_groups"] = draw(tensors((sum(queries),), integers))
        arguments["key_groups"] = [draw(tensors((sum(of_samples),), integers)) for of_samples in keys]
        arguments["relations"] = [draw(st.sampled_from(["any", "same", "different"])) for _ in keys]
    return arguments


@st.composite
def fusion_arguments(draw, dtype=None, magnitude=None):
    """Valid arguments of adaptive_fusion by name."""
    dtype = dtype or draw(st.sampled_from(FLOATING))
    magnitude = draw(st.sampled_from(MAGNITUDES)) if magnitude is None else magnitude
    leading = draw(st.lists(st.integers(0, 4), max_size=2))
    modalities, width = draw(st.integers(1, 8)), draw(st.sampled_from([1, 3, 8, 33]))
    arguments = {"descriptors": draw(tensors((*leading, modalities, width), dtype, magnitude))}
    kind = draw(st.sampled_from(["scalar", "elementwise", "gate"]))
    pairs = modalities * (modalities - 1)
    if kind == "gate":
        arguments["pair_weight"] = draw(tensors((pairs, 2, width), draw(st.sampled_from(FLOATING))))
        arguments["pair_bias"] = draw(tensors((pairs,), draw(st.sampled_from(FLOATING))))
    else:
        shape = (*leading, modalities, modalities, *([width] if kind == "elementwise" else []))
        arguments["alpha"] = draw(tensors(shape, dtype)).sigmoid()
    if draw(st.booleans()):
        arguments["present"] = draw(masks((*leading, modalities)))
    return arguments


@st.composite
def interpolation_arguments(draw, dtype=None, magnitude=None):
    """Valid arguments of interpolation_coefficients by name."""
    dtype = dtype or draw(st.sampled_from(FLOATING))
    shape = (*draw(st.lists(st.integers(0, 4), max_size=2)), draw(st.sampled_from([1, 3, 8, 33])))
    chosen = st.sampled_from(MAGNITUDES) if magnitude is None else st.just(magnitude)
    names = ("a", "b", "grad_b")
    return {name: draw(tensors(shape, dtype, draw(chosen))) for name in names} | {
        "epsilon": draw(st.sampled_from([0.0, 1e-3, 0.1, 10.0, 1e6]))
    }


OPS = {
    p2c_attention: attention_arguments,
    p2c_attention_varlen: varlen_arguments,
    p2c_attention_weights: attention_arguments,
    adaptive_fusion: fusion_arguments,
    interpolation_coefficients: interpolation_arguments,
}


def floating(arguments):
    """Every floating tensor in arguments, lists of tensors included."""
    values = [entry for value in arguments.values() for entry in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


def flat(results):
    return [results] if isinstance(results, torch.Tensor) else [x for result in results for x in flat(result)]


def gradients(results, arguments):
    """With respect to every floating argument, for an upstream gradient of ones that is expanded, as `sum` gives."""
    outputs = [x for x in flat(results) if x.requires_grad]
    finite = [torch.where(x.isfinite(), x, 0.0).sum() for x in outputs]
    leaves = [x for x in floating(arguments) if x.requires_grad]
    return [g for g in torch.autograd.grad(finite, leaves, allow_unused=True) if g is not None] if outputs else []


def require_gradients(arguments):
    def leaf(value):
        return value.detach().requires_grad_() if value.is_floating_point() else value

    def changed(value):
        if isinstance(value, list):
            return [leaf(x) if isinstance(x, torch.Tensor) else x for x in value]
        return leaf(value) if isinstance(value, torch.Tensor) else value

    return {name: changed(value) for name, value in arguments.items()}


@given(data=st.data(), op=st.sampled_from([*OPS]))
def test_any_arguments_give_a_result_or_an_error_that_names_one(data, op):
    known = list(inspect.signature(op).parameters)
    arguments = {k: v for k, v in data.draw(OPS[op]()).items() if k in known}
    for name in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)):
        value, kind = arguments.get(name), data.draw(st.sampled_from(["replace", "replace", "entry", "leave out"]))
        if isinstance(value, torch.Tensor) and data.draw(st.booleans()):
            arguments[name] = data.draw(disguised(value))
        elif kind == "leave out" and inspect.signature(op).parameters[name].default is not inspect.Parameter.empty:
            arguments.pop(name, None)
        elif kind == "entry" and isinstance(value, list) and value:
            place = data.draw(st.integers(0, len(value) - 1))
            same = isinstance(value[place], torch.Tensor) and data.draw(st.booleans())
            value[place] = data.draw(disguised(value[place]) if same else wild_values())
        else:
            arguments[name] = data.draw(wild_values())
    results = refusal(lambda: op(**arguments), known)
    if results is not None and all(x.device.type == "cpu" for x in flat(results)):
        gradients(results, arguments)


@given(data=st.data(), op=st.sampled_from([*OPS]))
def test_finite_input_never_gives_nan(data, op):
    arguments = data.draw(OPS[op]())
    if op is p2c_attention_weights:
        arguments.pop("values")
    else:
        arguments["backend"] = data.draw(BACKENDS)
    arguments = require_gradients(arguments)
    results = refusal(lambda: op(**arguments), ["backend"])
    if results is None:
        return
    for result in flat(results):
        assert not result.isnan().any()
    for gradient in gradients(results, arguments):
        assert not gradient.isnan().any()


@given(data=st.data(), op=st.sampled_from([op for op in OPS if op is not p2c_attention_weights]))
def test_every_layout_gives_the_result_of_the_reference(data, op):
    arguments = data.draw(OPS[op](dtype=torch.float64, magnitude=1.0))
    if arguments.get("dropout_p"):
        arguments["seed"] = arguments["seed"] or 0
    found, expected = [], []
    for results, backend in ((found, None), (expected, "reference")):
        leaves = require_gradients(arguments)
        outputs = flat(op(**leaves, backend=backend))
        results += [*outputs, *gradients(outputs, leaves)]
    for result, wanted in zip(found, expected, strict=True):
        assert_close(result.detach(), wanted.detach(), roundings=20_000)  # a dropout of 0.99 multiplies by 100
