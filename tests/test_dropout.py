"""Promises of the model's dropout: `nn.Dropout`'s distribution, from torch's generator, with the right gradients."""

import pytest
import torch

from amuse.model.dropout import LEVELS, Dropout


def drawn(p, shape=(1000, 257), seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return Dropout(p)(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_elements_are_dropped_with_their_probability_and_the_mean_stays(p):
    kept = drawn(p) != 0
    assert kept.float().mean() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / kept.numel()) ** 0.5)
    torch.testing.assert_close(drawn(p)[kept], torch.full((int(kept.sum()),), 1 / (1 - p)), atol=0, rtol=2e-4)
    # neighbours, which share a random number, are independent: each of the four parts of a number, and every pair
    parts = kept.flatten()[: kept.numel() // 4 * 4].unflatten(0, (-1, 4)).double()
    torch.testing.assert_close(parts.mean(0), torch.full((4,), 1 - p).double(), atol=0.01, rtol=0)
    assert (torch.corrcoef(parts.T) - torch.eye(4)).abs().max() < 0.02


def test_a_seed_decides_and_another_one_decides_otherwise():
    assert torch.equal(drawn(0.3, seed=1), drawn(0.3, seed=1))
    assert not torch.equal(drawn(0.3, seed=1), drawn(0.3, seed=2))
    torch.manual_seed(3)
    layer = Dropout(0.3)
    assert not torch.equal(*(layer(torch.ones(50)) for _ in range(2)))


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_shape_and_dtype(shape, dtype):
    out = drawn(0.5, shape, dtype=dtype)
    assert out.shape == shape
    assert out.dtype == dtype


def test_the_gradient_is_that_of_what_was_kept():
    layer, x, residual = Dropout(0.4), torch.randn(8, 9, requires_grad=True), torch.randn(8, 9, requires_grad=True)
    upstream, scale = torch.randn(8, 9), LEVELS / (LEVELS - round(0.4 * LEVELS))
    out = layer(x)
    kept = out != 0
    torch.testing.assert_close(out, x * kept * scale)
    torch.testing.assert_close(torch.autograd.grad(out, x, upstream)[0], upstream * kept * scale)
    out = layer.add(residual, x)
    kept = (out - residual).abs() > 1e-6
    torch.testing.assert_close(out, residual + x * kept * scale)
    found = torch.autograd.grad(out, [residual, x], upstream)
    torch.testing.assert_close(found, (upstream, upstream * kept * scale))


def test_nothing_is_dropped_in_evaluation_or_with_probability_0():
    x, residual = torch.randn(2, 4, 5)
    for layer in (Dropout(0.0), Dropout(0.7).eval()):
        assert torch.equal(layer(x), x)
        assert torch.equal(layer.add(residual, x), residual + x)


def test_it_compiles_without_a_break():
    layer = Dropout(0.5)
    out = torch.compile(layer.add, fullgraph=True, backend="aot_eager")(torch.zeros(100, 40), torch.ones(100, 40))
    assert (out != 0).float().mean() == pytest.approx(0.5, abs=0.05)
