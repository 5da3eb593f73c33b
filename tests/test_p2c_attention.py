"""Promises of p2c_attention that hold on every backend that can run here."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from amuse_kernels import p2c_attention, p2c_attention_weights
from amuse_kernels.attention.inputs import RELATIONS
from amuse_kernels.dropout import philox
from benchmarks.large_scores import Call
from tests.attention_cases import Case, assert_close, assert_within_budget, make_case, oracle, spread_out
from tests.backends import GPU_KERNELS, INTERPRETED, runnable

RUNNABLE = runnable()
LOW_PRECISION = [torch.float32, torch.float16, torch.bfloat16]
DTYPE = torch.float32 if GPU_KERNELS else torch.float64  # for cases where the dtype does not matter
needs_double = pytest.mark.skipif(GPU_KERNELS, reason="GPU kernels have no fp64")
TILES = {"batch": 1, "queries": 37, "lengths": (41, 35), "masks": "holes", "layouts": True}
OPTIONS = {
    "plain": {"gates": False, "masks": False},
    "gates_masks": {},
    "joint": {"normalization": "joint"},
    "groups": {"groups": True},
    "causal": {"queries": 6, "lengths": (6, 6), "causal": True},
    "causal_per_source": {"queries": 6, "lengths": (6, 4), "causal": [True, False]},
    "dialogue": {"queries": 6, "lengths": (6, 6), "groups": True, "relations": ["same", "any"], "causal": True},
    "joint_groups": {"normalization": "joint", "groups": True, "lengths": (5, 4, 3)},
    "scale": {"softmax_scale": 0.7},
    "one_source": {"lengths": (9,)},
    "eight_sources": {"lengths": (3, 0, 1, 4, 2, 5, 1, 2), "groups": True},
    # several tiles of queries and of keys, which the interpreter has of 16
    "tiles": TILES,
    "tiles_joint": {**TILES, "normalization": "joint"},
    "tiles_dialogue": {
        **{**TILES, "lengths": (37, 37), "groups": True, "causal": True},
        "relations": ["same", "different"],
    },
    "wide_heads": {"head_dim": 40, "lengths": (17, 33), "queries": 19},
}


@pytest.fixture(params=RUNNABLE)
def backend(request) -> str:
    return request.param


@pytest.fixture(params=OPTIONS, ids=str)
def case(request) -> Case:
    return make_case(**OPTIONS[request.param], dtype=DTYPE)


@pytest.mark.parametrize("dtype", LOW_PRECISION if GPU_KERNELS else [torch.float64], ids=str)
def test_output_lse_and_weights_follow_the_formula(case, backend, dtype):
    case = case.to(dtype)
    out, lse = case.run(return_lse=True, backend=backend)
    expected, expected_lse, expected_weights = oracle(case)
    assert_close(out, expected)
    assert_close(lse, expected_lse)
    weights = p2c_attention_weights(case.query, case.keys, **case.options)
    for weight, expected_weight in zip(weights, expected_weights, strict=True):
        assert_close(weight, expected_weight)


@needs_double
def test_gradients_are_right(case, backend):
    case = case.leaves()

    def run(*_):
        return case.run(return_lse=True, backend=backend)

    _out, lse = run()
    finite = lse.isfinite()

    def finite_outputs(*_):
        out, lse = run()
        return out, lse[finite]

    assert gradcheck(finite_outputs, case.floating(), fast_mode=True)


def test_sources_whose_scores_are_far_apart_have_their_own_maximum(backend):
    """exp of the difference is 0 in fp32."""
    case = make_case(queries=19, lengths=(35, 33), masks="holes", score_offsets=(70, -60), dtype=torch.float32)
    out, lse = case.run(return_lse=True, backend=backend)
    expected, expected_lse, _ = oracle(case)
    assert_close(out, expected, roundings=200)
    assert_close(lse, expected_lse, roundings=200)


@pytest.mark.skipif(GPU_KERNELS, reason="GPU tensors and the interpreter's copies have all the memory between the rows")
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_above_2_to_the_31(backend, dim):
    case = make_case(queries=5, lengths=(7, 3), dtype=DTYPE)
    far = replace(
        case,
        query=spread_out(case.query, dim),
        keys=[spread_out(key, dim) for key in case.keys],
        values=[spread_out(value, dim) for value in case.values],
    )
    results = []
    for c in (case, far):
        inputs = [t.detach().requires_grad_() for t in (c.query, *c.keys, *c.values)]
        out = Case(inputs[0], inputs[1:3], inputs[3:], c.options).run(backend=backend)
        # gradients of an upstream that is as far apart
        grads = torch.autograd.grad(out, inputs, spread_out(case.query.square(), dim))
        results.append([out, *grads])
    for near, other in zip(*results, strict=True):
        torch.testing.assert_close(other, near)


def test_gate_gradients_add_up_over_more_than_32_tiles_of_queries(backend):
    queries = 530 if INTERPRETED else 2100  # the interpreter's tiles are of 16
    case = make_case(batch=1, heads=1, queries=queries, lengths=(3,), masks=False, dtype=DTYPE).leaves()
    case.run(backend=backend).square().sum().backward()
    exact = replace(case, options=case.options | {"gates": case.options["gates"].detach().double()}).to(torch.float64)
    exact = exact.leaves()
    _eager(exact).square().sum().backward()
    torch.testing.assert_close(case.options["gates"].grad.double(), exact.options["gates"].grad, rtol=1e-4, atol=0)


@needs_double
@pytest.mark.parametrize("name", ["gates_masks", "joint", "dialogue"])
def test_it_is_differentiable_twice(name, backend):
    case = make_case(**{"batch": 2, "heads": 1, "queries": 3, "lengths": (3, 2), **_small(OPTIONS[name])}).leaves()
    assert gradgradcheck(lambda *_: case.run(backend=backend), case.floating())


def _small(options):
    if options.get("causal"):
        return {**options, "queries": 3, "lengths": (3, 3)}
    return options


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_error_budget(case, backend, dtype):
    low_case, exact = case.to(dtype), case.to(dtype).to(torch.float64)
    results = []
    for c, run in ((low_case, lambda c: c.run(backend=backend)), (low_case, _eager), (exact, _eager)):
        c = c.leaves()
        out = run(c)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype))
        results.append([out.detach(), *(t.grad for t in c.floating())])
    for index, (out, low, ref64) in enumerate(zip(*results, strict=True)):
        assert_within_budget(out, low, ref64, f"tensor {index}")


def _eager(case: Case):
    """The same formula as a user would write it, in the precision of the inputs."""
    o = case.options
    batch, heads, queries, head_dim = case.query.shape
    sources = len(case.keys)
    causal = o.get("causal", False)
    causal = [causal] * sources if isinstance(causal, bool) else causal
    gates = o.get("gates")
    gates = torch.ones(batch, heads, sources, dtype=case.query.dtype) if gates is None else gates
    exps, hidden = [], []
    for p, key in enumerate(case.keys):
        seen = torch.ones(batch, 1, queries, key.shape[2], dtype=torch.bool)
        if o.get("key_masks"):
            seen = seen & o["key_masks"][p][:, None, None]
        if o.get("relations", ["any"] * sources)[p] != "any":
            same = o["query_groups"][:, None, :, None] == o["key_groups"][p][:, None, None]
            seen = seen & (same if o["relations"][p] == "same" else ~same)
        if causal[p]:
            seen = seen & torch.ones(queries, queries, dtype=torch.bool).tril()
        scores = (case.query @ key.mT) * (o.get("softmax_scale") or head_dim**-0.5)
        exps.append(torch.where(seen, scores, -torch.inf).exp())
        hidden.append(seen)
    sums = [e.sum(-1, keepdim=True) for e in exps]
    gate = [g[..., None, None] for g in gates.unbind(-1)]
    if o.get("normalization") == "joint":
        sums = [sum(g * s for g, s in zip(gate, sums, strict=True))] * sources
    return sum(
        g * (e / torch.where(s == 0, 1.0, s)) @ v for g, e, s, v in zip(gate, exps, sums, case.values, strict=True)
    )


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_absent_modality_contributes_nothing(backend, normalization):
    case = make_case(lengths=(4, 3), masks=False, normalization=normalization, dtype=DTYPE)
    with_absent = case.leaves()
    with_absent.options["key_masks"] = [None, torch.zeros(2, 3, dtype=torch.bool)]
    out, lse = with_absent.run(return_lse=True, backend=backend)
    alone = p2c_attention(
        case.query, case.keys[:1], case.values[:1], gates=case.options["gates"][..., :1], normalization=normalization
    )
    torch.testing.assert_close(out, alone)
    if normalization == "per_source":
        assert (lse[..., 1] == -math.inf).all()
    out.sum().backward()
    assert (with_absent.keys[1].grad == 0).all()
    assert (with_absent.values[1].grad == 0).all()
    assert (with_absent.options["gates"].grad[..., 1] == 0).all()


@pytest.mark.parametrize("bad", [math.nan] if INTERPRETED else [math.nan, math.inf, -math.inf])
def test_values_behind_a_mask_never_matter(case, backend, bad):
    if not case.options.get("key_masks"):
        case.options["key_masks"] = [torch.arange(k.shape[2]).expand(2, -1) < 2 for k in case.keys]
    clean, poisoned = case.leaves(), case.leaves()
    with torch.no_grad():
        for p, mask in enumerate(case.options["key_masks"]):
            for tensor in (poisoned.keys[p], poisoned.values[p]):
                tensor.masked_fill_(~mask[:, None, :, None], bad)
    results = []
    for c in (clean, poisoned):
        out, lse = c.run(return_lse=True, backend=backend)
        torch.where(lse.isfinite(), lse, 0.0).sum().backward(retain_graph=True)
        out.square().sum().backward()
        results.append([out, lse, *(t.grad for t in c.floating())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_keys_that_no_query_relates_to_never_matter(backend):
    case = make_case(queries=3, lengths=(4,), masks=False, groups=True, relations=["same"], dtype=DTYPE)
    case.options["query_groups"] = torch.zeros(2, 3, dtype=torch.int32)
    case.options["key_groups"] = [torch.tensor([[0, 7, 0, 7]] * 2)]
    expected = case.run(backend=backend)
    case.values[0][:, :, 1] = math.nan
    case.keys[0][:, :, 3] = math.inf
    torch.testing.assert_close(case.run(backend=backend), expected)


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
@pytest.mark.parametrize("queries", [5, 100])
def test_a_query_that_sees_no_key_may_hold_nan(backend, normalization, queries):
    """So may its upstream gradients."""
    keys = [torch.randn(2, 2, length, 16) for length in (7, 300)]
    values = [torch.randn_like(key) for key in keys]
    groups = torch.zeros(2, queries, dtype=torch.long)
    groups[0, 1], groups[1, -1] = 1, 1
    options = {
        "query_groups": groups,
        "key_groups": [torch.zeros(2, 7).long(), torch.zeros(2, 300).long()],
        "relations": ["same", "same"],
        "gates": torch.tensor([0.5, 2.0]),
        "normalization": normalization,
    }
    results = []
    for value in (0.0, math.nan):
        query = torch.randn(2, 2, queries, 16, generator=torch.Generator().manual_seed(0))
        query[groups[:, None].expand(2, 2, queries) == 1] = value
        leaves = [t.clone().requires_grad_() for t in (query, *keys, *values, options["gates"])]
        given = options | {"gates": leaves[5]}
        out, lse = p2c_attention(leaves[0], leaves[1:3], leaves[3:5], **given, return_lse=True, backend=backend)
        upstream = torch.ones_like(out)
        upstream[groups[:, None].expand(2, 2, queries) == 1] = value
        finite = torch.where(lse > -torch.inf, torch.ones_like(lse), value)
        results.append((out, lse, *torch.autograd.grad((out, lse), leaves, (upstream, finite))))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_visible_nan_is_not_hidden(backend):
    case = make_case(masks=False, dtype=DTYPE)
    case.values[0][1, 0, 2, 3] = math.nan
    out = case.run(backend=backend)
    assert out[1, 0, :, 3].isnan().all()
    assert out[0].isfinite().all()


def test_a_masked_key_equals_a_key_that_is_not_there(backend):
    case = make_case(lengths=(6,), masks=False, dtype=DTYPE)
    case.options["key_masks"] = [torch.tensor([[True, True, False, True, False, True]] * 2)]
    kept = case.options["key_masks"][0][0]
    short = p2c_attention(
        case.query, [case.keys[0][:, :, kept]], [case.values[0][:, :, kept]], gates=case.options["gates"]
    )
    torch.testing.assert_close(case.run(backend=backend), short)


def test_one_source_is_scaled_dot_product_attention(backend):
    case = make_case(lengths=(11,), gates=False, masks=False, dtype=DTYPE)
    expected = torch.nn.functional.scaled_dot_product_attention(case.query, case.keys[0], case.values[0])
    torch.testing.assert_close(case.run(backend=backend), expected)


def test_joint_is_attention_over_the_concatenation(backend):
    case = make_case(gates=False, masks=False, normalization="joint", dtype=DTYPE)
    expected = torch.nn.functional.scaled_dot_product_attention(
        case.query, torch.cat(case.keys, 2), torch.cat(case.values, 2)
    )
    torch.testing.assert_close(case.run(backend=backend), expected)


def test_joint_gate_of_zero_closes_a_source_even_with_huge_scores(backend):
    case = make_case(masks=False, normalization="joint", dtype=torch.float32)
    case.keys[1] = case.keys[1] * 300
    case.options["gates"] = torch.tensor([1.0, 0.0])
    leaves = case.leaves()
    out = leaves.run(backend=backend)
    alone = p2c_attention(case.query, case.keys[:1], case.values[:1], normalization="joint")
    torch.testing.assert_close(out, alone)
    out.sum().backward()
    assert leaves.query.grad.isfinite().all()
    assert (leaves.keys[1].grad == 0).all()


def test_large_scores_do_not_overflow(backend):
    case = make_case(dtype=torch.float32, masks=False)
    case.query *= 1000
    out, lse = case.run(return_lse=True, backend=backend)
    assert out.isfinite().all()
    assert lse.isfinite().all()


@pytest.mark.parametrize("size", [1, 100])
def test_joint_rows_that_see_keys_of_closed_sources_only_are_exactly_0(backend, size):
    case = make_case(queries=5, lengths=(7, 40), masks=False, normalization="joint", dtype=torch.float32)
    case.query *= size
    gates = case.options["gates"]
    gates[0, 0] = 0  # every source closed
    gates[1, :, 1] = 0  # the other one is masked
    case.options["key_masks"] = [torch.tensor([[True], [False]]).expand(2, 7), None]
    leaves = case.leaves()
    out, lse = leaves.run(return_lse=True, backend=backend)
    zero = torch.tensor([[True, False], [True, True]])  # (B, H)
    assert (lse[zero] == -math.inf).all()
    assert lse[~zero].isfinite().all()
    finite = torch.where(lse == -math.inf, 0.0, lse)
    (out.square().sum() + out.sum() + finite.sum()).backward()
    for tensor in (out, *(leaf.grad for leaf in leaves.floating())):
        assert (tensor[zero] == 0).all()
    assert (leaves.query.grad[~zero] != 0).any()


@pytest.mark.parametrize("score", [419, 3_770, 15_080])
@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_large_scores_stay_within_the_error_budget(backend, normalization, dtype, score):
    call = Call.draw(score, normalization, dtype)

    def attention(inputs):
        options = {"gates": inputs.gates, "normalization": normalization, "return_lse": True}
        return p2c_attention(inputs.query, inputs.keys, inputs.values, **options, backend=backend)

    shares = call.shares(call.differentiated(attention, dtype))
    assert max(shares) <= 1, shares


@pytest.mark.parametrize("gates_shape", [(2,), (2, 2), (2, 1, 2), (1, 2, 1), (1,), ()])
def test_gates_broadcast_and_get_gradients_in_their_own_shape_and_dtype(backend, gates_shape):
    case = make_case(gates=False, dtype=torch.float32)
    gates = torch.rand(gates_shape, dtype=torch.float64, requires_grad=True)
    case.options["gates"] = gates
    case.run(backend=backend).sum().backward()
    assert gates.grad.shape == gates_shape
    assert gates.grad.dtype == torch.float64
    full = gates.detach().expand(2, 2, 2).clone().requires_grad_()
    case.options["gates"] = full
    case.run(backend=backend).sum().backward()
    # computed and added up in fp32
    torch.testing.assert_close(gates.grad, full.grad.sum_to_size(gates_shape), rtol=1.3e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_groups_of_any_integer_dtype(backend, dtype):
    case = make_case(groups=True, dtype=DTYPE)
    expected = case.run(backend=backend)
    case.options["query_groups"] = case.options["query_groups"].to(dtype)
    torch.testing.assert_close(case.run(backend=backend), expected)


def test_output_merges_its_heads_without_a_copy(backend):
    out = make_case(queries=5, dtype=DTYPE).run(backend=backend)
    merged = out.transpose(1, 2).reshape(2, 5, -1)
    assert merged.data_ptr() == out.data_ptr()
    assert merged.is_contiguous()


def test_strided_inputs_are_read_in_place(backend):
    case = make_case(lengths=(6, 6), masks=False, dtype=DTYPE)
    expected = case.run(backend=backend)
    packed = torch.stack([*case.keys, *case.values], dim=3).transpose(1, 2).contiguous().transpose(1, 2)
    query = case.query.transpose(1, 2).contiguous().transpose(1, 2)
    keys, values = list(packed[:, :, :, :2].unbind(3)), list(packed[:, :, :, 2:].unbind(3))
    assert not keys[0].is_contiguous()
    torch.testing.assert_close(Case(query, keys, values, case.options).run(backend=backend), expected)


@pytest.mark.parametrize(
    "shape", [{"batch": 0}, {"queries": 0}, {"lengths": (0, 0)}, {"lengths": (0, 4)}, {"queries": 1, "lengths": (1,)}]
)
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_empty_sizes(backend, shape, normalization):
    case = make_case(**shape, normalization=normalization, dtype=DTYPE).leaves()
    out, lse = case.run(return_lse=True, backend=backend)
    expected, expected_lse, _ = oracle(case)
    assert_close(out, expected)
    assert_close(lse, expected_lse)
    out.sum().backward()
    assert all(t.grad is not None and t.grad.shape == t.shape for t in case.floating())


@pytest.mark.skipif(INTERPRETED, reason="the interpreter knows one order only")
def test_backward_is_bitwise_deterministic(case, backend):
    grads = []
    for _ in range(2):
        c = case.to(torch.float32).leaves()
        c.run(backend=backend).square().sum().backward()
        grads.append([t.grad for t in c.floating()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


# --- dropout ---


def test_philox_known_answers():
    """Random123's published test vectors for philox4x32-10."""
    zero, ones = torch.tensor(0), torch.tensor(0xFFFFFFFF)
    words = [int(w) for w in philox((zero,) * 4, (zero, zero))]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = [int(w) for w in philox((ones,) * 4, (ones, ones))]
    assert words == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [torch.tensor(w) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)]
    words = [int(w) for w in philox(tuple(pi[:4]), tuple(pi[4:]))]
    assert words == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("normalization", ["per_source", "joint"])
def test_dropout_drops_the_stated_share_and_rescales_the_rest(normalization):
    case = make_case(queries=64, lengths=(65, 30), masks=False, normalization=normalization)
    plain = p2c_attention_weights(case.query, case.keys, **case.options)
    dropped = p2c_attention_weights(case.query, case.keys, **case.options, dropout_p=0.25, seed=3)
    for before, after in zip(plain, dropped, strict=True):
        kept = after != 0
        torch.testing.assert_close(after[kept], before[kept] / 0.75)
        assert abs(kept.double().mean() - 0.75) < 0.02
        assert (kept[0, 0] != kept[0, 1]).any()
        assert (kept[0] != kept[1]).any()


def test_dropout_is_a_function_of_the_seed_and_the_pair(backend):
    case = make_case(dtype=torch.float32)
    first = case.run(dropout_p=0.5, seed=11, backend=backend)
    assert torch.equal(first, case.run(dropout_p=0.5, seed=11, backend=backend))
    assert not torch.equal(first, case.run(dropout_p=0.5, seed=12, backend=backend))
    assert not torch.equal(first, case.run(dropout_p=0.5, seed=11 + 2**32, backend=backend))
    # fewer keys or queries: the pairs that remain keep their fate
    wide = p2c_attention_weights(case.query, case.keys, dropout_p=0.5, seed=11)[0] != 0
    keys = [key[:, :, :2] for key in case.keys]
    narrow = p2c_attention_weights(case.query[:, :, :3], keys, dropout_p=0.5, seed=11)[0] != 0
    assert torch.equal(narrow, wide[:, :, :3, :2])


def test_every_backend_drops_the_same_pairs(case, backend):
    results = []
    for name in (backend, "reference"):
        c = case.leaves()
        out = c.run(dropout_p=0.4, seed=5, backend=name)
        out.square().sum().backward()
        results.append([out, *(t.grad for t in c.floating())])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, roundings=256)  # gradients are sums; a pair dropped by one alone differs by far more


def test_dropout_without_a_seed_follows_torch_manual_seed(backend):
    case = make_case(dtype=DTYPE)
    torch.manual_seed(1)
    first, second = case.run(dropout_p=0.5, backend=backend), case.run(dropout_p=0.5, backend=backend)
    torch.manual_seed(1)
    assert torch.equal(first, case.run(dropout_p=0.5, backend=backend))
    assert not torch.equal(first, second)


# --- transforms ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gates_masks", "joint", "dialogue"])
def test_compiles_to_one_graph(backend, name):
    case = make_case(**OPTIONS[name], dtype=torch.float32).leaves()
    compiled = torch.compile(case.run, fullgraph=True, backend="aot_eager")
    out = compiled(backend=backend)
    torch.testing.assert_close(out, case.run(backend=backend))
    out.sum().backward()
    assert case.query.grad is not None


@pytest.mark.slow
def test_compiles_with_dropout_and_a_drawn_seed(backend):
    case = make_case(dtype=torch.float32)
    out = torch.compile(case.run, fullgraph=True, backend="aot_eager")(dropout_p=0.5, backend=backend)
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_runs_fp32_inputs_in_low_precision(backend, dtype):
    case = make_case(dtype=torch.float32).leaves()
    with torch.autocast("cpu", dtype=dtype):
        out = case.run(backend=backend)
    assert out.dtype == dtype
    low = case.to(dtype)
    low.options["gates"] = case.options["gates"]
    torch.testing.assert_close(out, low.run(backend=backend))
    out.sum().backward()
    assert case.query.grad.dtype == torch.float32


@pytest.mark.skipif(RUNNABLE == ["reference"], reason="needs the native library")
@pytest.mark.parametrize("name", ["gates_masks", "joint_groups", "dialogue"])
def test_ops_pass_opcheck(name):
    case = make_case(**OPTIONS[name], dtype=torch.float32)
    o, sources = case.options, len(case.keys)
    nothing = [None] * sources
    joint, causal = o.get("normalization") == "joint", [o.get("causal", False)] * sources
    relations = [RELATIONS.index(relation) for relation in o.get("relations", ["any"] * sources)]
    inputs = (case.query, case.keys, case.values, o["gates"], o["key_masks"], o.get("query_groups"))
    arguments = (*inputs, o.get("key_groups", nothing), relations, causal, joint, 0.3, 0.25, torch.tensor(7))
    torch.library.opcheck(torch.ops.amuse_kernels.p2c_attention_forward, arguments)
    out, lse = torch.ops.amuse_kernels.p2c_attention_forward(*arguments)
    upstream = (torch.randn_like(out), torch.randn_like(lse), out if joint else None, lse)
    torch.library.opcheck(torch.ops.amuse_kernels.p2c_attention_backward, (*upstream, *arguments))


@pytest.mark.skipif("cpu" not in RUNNABLE, reason="needs the native library")
@pytest.mark.parametrize("normalization", ["per_source", "joint"])
@pytest.mark.parametrize("sizes", [(3, 2, 20, (40, 9)), (1, 1, 100, (300, 150))], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(sizes, normalization):
    batch, heads, queries, lengths = sizes
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 5):
        case = make_case(
            batch, heads, queries, lengths, head_dim=64, dtype=torch.float32, normalization=normalization
        ).leaves()
        torch.set_num_threads(count)
        try:
            out = case.run(backend="cpu", dropout_p=0.1, seed=1)
            out.square().sum().backward()
        finally:
            torch.set_num_threads(threads)
        results.append([out, *(t.grad for t in case.floating())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_vmap_and_func_grad_on_the_reference():
    case = make_case(gates=False, masks=False)

    def loss(query):
        return p2c_attention(query, case.keys, case.values, backend="reference").sum()

    grad = torch.func.grad(loss)(case.query)
    leaf = case.query.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(grad, leaf.grad)
    stacked = torch.stack([case.query, 2 * case.query])
    losses = torch.func.vmap(loss)(stacked)
    torch.testing.assert_close(losses, torch.stack([loss(case.query), loss(2 * case.query)]))


@settings(max_examples=10 if INTERPRETED else 40, deadline=None)
@given(data=st.data())
def test_any_shape_and_mask(data):
    draw = data.draw
    queries = draw(st.integers(0, 9))
    lengths = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
    case = make_case(
        batch=draw(st.integers(0, 3)),
        heads=draw(st.integers(1, 3)),
        queries=queries,
        lengths=lengths,
        head_dim=8 * draw(st.integers(1, 3)),
        groups=draw(st.booleans()),
        gates=draw(st.booleans()),
        masks=False,
        normalization=draw(st.sampled_from(["per_source", "joint"])),
        dtype=DTYPE,
        causal=[length == queries and draw(st.booleans()) for length in lengths],
        seed=draw(st.integers(0, 99)),
    )
    batch = case.query.shape[0]
    case.options["key_masks"] = [
        torch.tensor(draw(st.lists(st.booleans(), min_size=batch * n, max_size=batch * n))).reshape(batch, n).bool()
        for n in lengths
    ]
    expected, expected_lse, _ = oracle(case)
    for name in RUNNABLE:
        out, lse = case.run(return_lse=True, backend=name)
        assert_close(out, expected)
        assert_close(lse, expected_lse)
