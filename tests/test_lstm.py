"""Promises of the Bi-LSTM whose backward pass is by hand: it is `nn.LSTM`, forward and backward."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from amuse.layout import Layout
from amuse.model.lstm import bi_lstm, by_hand_here
from amuse.model.packed import BiLSTM

LENGTHS = [[3], [4, 2, 2, 0, 1], [1, 7, 3, 3, 7, 1, 2], [2, 1, 1, 1]]


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_outputs_and_gradients_are_those_of_nn_lstm(lengths, num_layers):
    lstm = nn.LSTM(6, 8, num_layers, bidirectional=True, dtype=torch.float64)
    steps = Layout.of(lengths).steps
    x = torch.randn(sum(lengths), 6, dtype=torch.float64, requires_grad=True)
    assert by_hand_here(x)
    found, expected = bi_lstm(lstm, x, steps.batch_sizes), lstm(PackedSequence(x, steps.batch_sizes))[0].data
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-12)
    inputs, upstream = [x, *lstm.parameters()], torch.randn_like(found)
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=1e-11)


def test_features_without_a_gradient_and_no_gradients_at_all():
    layer, layout = BiLSTM(6, 16), Layout.of([3, 1, 2])
    x = torch.randn(6, 6)
    out = layer(x, layout.steps)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    with torch.no_grad():
        torch.testing.assert_close(layer(x, layout.steps), out)


def test_each_sequence_is_read_by_itself():
    layer = BiLSTM(6, 16)
    lengths = [3, 5, 1]
    sequences = [torch.randn(n, 6) for n in lengths]
    together = layer(torch.cat(sequences), Layout.of(lengths).steps).split(lengths)
    for alone, found in zip(sequences, together, strict=True):
        torch.testing.assert_close(layer(alone, Layout.of([len(alone)]).steps), found, atol=1e-6, rtol=1e-5)


def test_dropout_between_layers_is_drawn_in_training_only():
    layer, layout, x = BiLSTM(6, 16, num_layers=2, dropout=0.5), Layout.of([4, 2, 3]), torch.randn(9, 6)
    assert not torch.equal(*(layer(x, layout.steps) for _ in range(2)))
    layer.eval()
    assert torch.equal(*(layer(x, layout.steps) for _ in range(2)))
