"""Promises of adaptive_fusion and interpolation_coefficients that hold on every backend that can run here."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from amuse_kernels import adaptive_fusion, interpolation_coefficients
from tests.attention_cases import assert_within_budget
from tests.backends import GPU_KERNELS, runnable
from tests.fusion_cases import fusion_oracle

RUNNABLE = runnable()
KINDS = ("scalar", "elementwise", "gate")
LOW_PRECISION = [torch.float32, torch.float16, torch.bfloat16]
DTYPES = LOW_PRECISION if GPU_KERNELS else [torch.float64]
needs_double = pytest.mark.skipif(GPU_KERNELS, reason="GPU kernels have no fp64")


@pytest.fixture(params=RUNNABLE)
def backend(request) -> str:
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


def make_inputs(kind, rows=4, modalities=3, width=5, dtype=torch.float64, absent=True, seed=0) -> dict:
    g = torch.Generator().manual_seed(seed)
    inputs = {"descriptors": torch.randn(rows, modalities, width, generator=g, dtype=torch.float64).to(dtype)}
    if kind == "gate":
        pairs = modalities * (modalities - 1)
        inputs["pair_weight"] = torch.randn(pairs, 2, width, generator=g, dtype=torch.float64).to(dtype)
        inputs["pair_bias"] = torch.randn(pairs, generator=g, dtype=torch.float64).to(dtype)
    else:
        shape = (rows, modalities, modalities, width)[: 3 if kind == "scalar" else 4]
        inputs["alpha"] = torch.rand(shape, generator=g, dtype=torch.float64).to(dtype)
    if absent:
        present = torch.rand(rows, modalities, generator=g) < 0.7
        present[0] = True
        if rows > 2:
            present[1], present[2] = False, False
            present[2, 0] = True  # a lone modality
        inputs["present"] = present
    return inputs


def leaves(inputs: dict) -> dict:
    return {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}


def run(inputs: dict, backend: str | None = None):
    inputs = dict(inputs)
    return adaptive_fusion(inputs.pop("descriptors"), inputs.pop("alpha", None), **inputs, backend=backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(("modalities", "width"), [(1, 3), (2, 1), (3, 5), (3, 256), (8, 17)])
def test_fused_and_alpha_follow_the_formula(backend, kind, absent, modalities, width, dtype):
    inputs = make_inputs(kind, modalities=modalities, width=width, absent=absent, dtype=dtype)
    for out, expected in zip(run(inputs, backend), fusion_oracle(**inputs), strict=True):
        torch.testing.assert_close(out, expected.to(dtype))


@needs_double
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_gradients_are_right(backend, kind, modalities):
    inputs = leaves(make_inputs(kind, modalities=modalities))
    floating = [v for v in inputs.values() if v.is_floating_point()]
    assert gradcheck(lambda *_: run(inputs, backend), floating)


@needs_double
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_differentiable_twice(kind, backend):
    inputs = leaves(make_inputs(kind, rows=3))
    floating = [v for v in inputs.values() if v.is_floating_point()]
    assert gradgradcheck(lambda *_: run(inputs, backend), floating)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modalities", [2, 3, 8])
@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_error_budget(backend, kind, modalities, dtype):
    inputs = make_inputs(kind, rows=64, modalities=modalities, width=48, dtype=dtype)
    exact = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    results = []
    for source, function in ((inputs, lambda i: run(i, backend)), (inputs, _eager), (exact, _eager)):
        tensors = leaves(source)
        fused, alpha = function(tensors)
        ramp = torch.linspace(-1, 1, fused.numel(), dtype=torch.float64).reshape(fused.shape).to(fused.dtype)
        (fused * ramp).sum().add(alpha.square().sum()).backward()
        results.append([fused.detach(), alpha.detach(), *(t.grad for t in tensors.values() if t.is_floating_point())])
    for index, (out, low, ref64) in enumerate(zip(*results, strict=True)):
        assert_within_budget(out, low, ref64, f"tensor {index}")


def _eager(inputs: dict):
    """Eq. 2 as a user would write it, in the precision of the inputs."""
    f, present = inputs["descriptors"], inputs["present"]
    modalities = f.shape[1]
    f = f * present[..., None]
    pair = present[:, :, None] & present[:, None, :] & ~torch.eye(modalities, dtype=torch.bool)
    if "alpha" in inputs:
        alpha = inputs["alpha"]
    else:
        rows = []
        pairs = [(m, n) for m in range(modalities) for n in range(modalities) if m != n]
        for k, (m, n) in enumerate(pairs):
            w = inputs["pair_weight"][k]
            rows.append(torch.sigmoid(f[:, m] @ w[0] + f[:, n] @ w[1] + inputs["pair_bias"][k]))
        index = [m * modalities + n for m, n in pairs]
        alpha = torch.zeros(len(f), modalities**2, dtype=f.dtype).index_copy(
            1, torch.tensor(index), torch.stack(rows, 1)
        )
        alpha = alpha.unflatten(1, (modalities, modalities))
    wide = alpha if alpha.dim() == 4 else alpha[..., None]
    wide = wide * pair[..., None]
    mixed = (wide * f[:, None] + (1 - wide) * f[:, :, None]) * pair[..., None]
    count = present.sum(1)[:, None, None]
    fused = torch.where(count == 1, f, mixed.sum(2) / count.clamp(min=1))
    return fused, wide if alpha.dim() == 4 else wide[..., 0]


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_a_modality_equals_never_having_had_it(backend, kind, dtype):
    inputs = make_inputs(kind, absent=False, dtype=dtype)
    keep = [0, 2]
    smaller = {"descriptors": inputs["descriptors"][:, keep]}
    if kind == "gate":
        smaller["pair_weight"], smaller["pair_bias"] = inputs["pair_weight"][[1, 4]], inputs["pair_bias"][[1, 4]]
    else:
        smaller["alpha"] = inputs["alpha"][:, keep][:, :, keep]
    inputs["present"] = torch.tensor([True, False, True]).expand(4, 3)
    fused, alpha = run(inputs, backend)
    small_fused, small_alpha = run(smaller, backend)
    torch.testing.assert_close(fused[:, keep], small_fused)
    torch.testing.assert_close(alpha[:, keep][:, :, keep], small_alpha)
    assert (fused[:, 1] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_present_modality_passes_unchanged(backend, kind, dtype):
    inputs = make_inputs(kind, absent=False, dtype=dtype)
    inputs["present"] = torch.tensor([False, True, False]).expand(4, 3)
    fused, alpha = run(inputs, backend)
    assert torch.equal(fused[:, 1], inputs["descriptors"][:, 1])
    assert (alpha == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_absent_descriptors_and_ignored_coefficients_may_hold_anything(backend, kind, bad, dtype):
    clean, dirty = leaves(make_inputs(kind, dtype=dtype)), leaves(make_inputs(kind, dtype=dtype))
    present = clean["present"]
    with torch.no_grad():
        dirty["descriptors"][~present] = bad
        if "alpha" in dirty:
            pair = present[:, :, None] & present[:, None, :] & ~torch.eye(3, dtype=torch.bool)
            dirty["alpha"][~pair] = bad
    results = []
    for inputs in (clean, dirty):
        fused, alpha = run(inputs, backend)
        (fused.square().sum() + alpha.square().sum()).backward()
        results.append([fused, alpha, *(t.grad for t in inputs.values() if t.is_floating_point())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_equal_coefficients_are_the_average_of_the_others_and_oneself(backend):
    descriptors = torch.randn(6, 3, 4)
    fused, _ = adaptive_fusion(descriptors, torch.full((6, 3, 3), 0.5), backend=backend)
    expected = (descriptors.sum(1, keepdim=True) + descriptors) / 2 / 3
    torch.testing.assert_close(fused, expected)


@pytest.mark.parametrize("batch", [(), (0,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_leading_dimensions(backend, batch, kind, dtype):
    rows = math.prod(batch)
    inputs = leaves(make_inputs(kind, rows=rows, absent=False, dtype=dtype))
    shaped = {k: v.reshape(*batch, *v.shape[1:]) if "pair" not in k else v for k, v in inputs.items()}
    fused, alpha = run(shaped, backend)
    flat_fused, flat_alpha = run(inputs, backend)
    torch.testing.assert_close(fused.reshape(flat_fused.shape), flat_fused)
    torch.testing.assert_close(alpha.reshape(flat_alpha.shape), flat_alpha)
    fused.sum().backward()
    assert inputs["descriptors"].grad.shape == inputs["descriptors"].shape


def test_strided_descriptors(backend, dtype):
    descriptors = torch.randn(3, 6, 10).to(dtype)[:, ::2, 1:8]
    alpha = torch.rand(3, 3, 3).to(dtype).transpose(1, 2)
    torch.testing.assert_close(
        adaptive_fusion(descriptors, alpha, backend=backend),
        adaptive_fusion(descriptors.contiguous(), alpha.contiguous(), backend=backend),
    )


def test_gate_parameters_keep_their_own_dtype(backend):
    inputs = leaves(make_inputs("gate", dtype=torch.float32))
    low = {**inputs, "descriptors": inputs["descriptors"].detach().bfloat16()}
    fused, alpha = run(low, backend)
    assert fused.dtype == alpha.dtype == torch.bfloat16
    fused.float().sum().backward()
    assert inputs["pair_weight"].grad.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(GPU_KERNELS, reason="about threads of a CPU")
def test_results_are_bitwise_equal_for_any_number_of_threads(backend, kind):
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            inputs = leaves(make_inputs(kind, rows=1000, width=64, dtype=torch.float32))
            fused, alpha = run(inputs, backend)
            (fused.square().sum() + alpha.sum()).backward()
            results.append([fused, alpha, *(t.grad for t in inputs.values() if t.is_floating_point())])
    finally:
        torch.set_num_threads(threads)
    if backend == "reference":  # PyTorch's own reductions depend on the number of threads
        results = results[:1] * 2
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_to_one_graph(backend, kind):
    inputs = leaves(make_inputs(kind, dtype=torch.float32))
    fused, _ = torch.compile(run, fullgraph=True, backend="aot_eager")(inputs, backend)
    torch.testing.assert_close(fused, run(inputs, backend)[0])
    fused.sum().backward()
    assert inputs["descriptors"].grad is not None


def test_autocast_runs_fp32_inputs_in_low_precision(backend):
    inputs = leaves(make_inputs("gate", dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused, _ = run(inputs, backend)
    assert fused.dtype == torch.bfloat16
    fused.float().sum().backward()
    assert inputs["descriptors"].grad.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 5),
    modalities=st.integers(1, 8),
    width=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    absent=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(rows, modalities, width, kind, dtype, absent, seed):
    inputs = make_inputs(kind, max(rows, 1), modalities, width, dtype, absent, seed)
    inputs = {k: v[:rows] if "pair" not in k else v for k, v in inputs.items()}
    for name in RUNNABLE:
        for out, expected in zip(run(inputs, name), fusion_oracle(**inputs), strict=True):
            torch.testing.assert_close(out, expected.to(dtype))


# --- interpolation_coefficients ---


def test_coefficients_follow_the_closed_form(backend, dtype):
    a, b, g = torch.randn(3, 4, 6, dtype=torch.float64).to(dtype)
    out = interpolation_coefficients(a, b, g, 0.3, backend=backend)
    a, b, g = a.double(), b.double(), g.double()
    for row in range(4):
        step = 0.3 * (a[row] - b[row]).norm() * g[row] / g[row].norm()
        torch.testing.assert_close(out[row], (step / (a[row] - b[row])).clamp(0, 1).to(dtype))


def test_coefficients_are_zero_where_undefined_and_clipped_elsewhere(backend):
    a, b, g = torch.randn(3, 5, 7)
    b[0] = a[0]
    b[1, 2] = a[1, 2]
    g[3] = 0
    out = interpolation_coefficients(a, b, g, 100.0, backend=backend)
    assert (out[0] == 0).all()
    assert out[1, 2] == 0
    assert (out[3] == 0).all()
    assert ((out >= 0) & (out <= 1)).all()
    assert (out[4] == 1).any()


@needs_double
def test_coefficient_gradients_are_right(backend):
    a, b, g = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert gradcheck(lambda *t: interpolation_coefficients(*t, 0.4, backend=backend), (a, b, g))
    assert gradgradcheck(lambda *t: interpolation_coefficients(*t, 0.4, backend=backend), (a, b, g))


def test_coefficient_gradients_are_finite_where_undefined(backend, dtype):
    a, b, g = (torch.randn(4, 5, dtype=dtype, requires_grad=True) for _ in range(3))
    with torch.no_grad():
        b[0] = a[0]
        g[1] = 0
        b[2, 1] = a[2, 1]
    interpolation_coefficients(a, b, g, 0.2, backend=backend).sum().backward()
    assert all(t.grad.isfinite().all() for t in (a, b, g))
    assert (g.grad[1] == 0).all()


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_coefficient_error_budget(backend, dtype):
    inputs = [torch.randn(64, 48, dtype=torch.float64).to(dtype) for _ in range(3)]
    inputs[0][(inputs[0] - inputs[1]).abs() < 0.1] += 1  # eager code overflows near 0 / 0

    def eager(a, b, g):
        return (0.1 * (a - b).norm(dim=-1, keepdim=True) * g / g.norm(dim=-1, keepdim=True) / (a - b)).clamp(0, 1)

    def fused(a, b, g):
        return interpolation_coefficients(a, b, g, 0.1, backend=backend)

    results = []
    for function, to in ((fused, dtype), (eager, dtype), (eager, torch.float64)):
        tensors = [t.detach().to(to, copy=True).requires_grad_() for t in inputs]
        out = function(*tensors)
        out.sum().backward()
        results.append([out.detach(), *(t.grad for t in tensors)])
    for index, (out, low, ref64) in enumerate(zip(*results, strict=True)):
        assert_within_budget(out, low, ref64, f"tensor {index}")


# --- registration ---


@pytest.mark.skipif(RUNNABLE == ["reference"], reason="the native library is not built")
@pytest.mark.parametrize("kind", KINDS)
def test_ops_pass_opcheck(kind):
    i = make_inputs(kind, dtype=torch.float32)
    arguments = tuple(i.get(k) for k in ("descriptors", "alpha", "pair_weight", "pair_bias", "present"))
    torch.library.opcheck(torch.ops.amuse_kernels.adaptive_fusion_forward, arguments)
    grads = (torch.randn(4, 3, 5), None)
    torch.library.opcheck(torch.ops.amuse_kernels.adaptive_fusion_backward, (*grads, *arguments))
    rows = tuple(torch.randn(3, 4, 6))
    torch.library.opcheck(torch.ops.amuse_kernels.interpolation_coefficients_forward, (*rows, 0.5))
    torch.library.opcheck(torch.ops.amuse_kernels.interpolation_coefficients_backward, (rows[0], *rows, 0.5))
