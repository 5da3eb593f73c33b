"""A bidirectional LSTM as ONNX's operator, which reads sequences of different lengths from padded ones."""

from typing import Any

import torch
from torch import Tensor, nn


class OnnxBiLSTM(nn.Module):
    """The ONNX operator LSTM with the weights of a bidirectional `nn.LSTM`; for export only, it computes nothing here.

    torch.export would write a loop of a fixed number of steps.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.width, self.num_layers = lstm.hidden_size, lstm.num_layers
        weights: Any = lstm
        for layer in range(lstm.num_layers):
            names = [f"l{layer}", f"l{layer}_reverse"]
            of_input, of_state, bias, state_bias = (
                torch.stack([_in_onnx_order(getattr(weights, f"{kind}_{name}").detach()) for name in names])
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            self.register_buffer(f"w{layer}", of_input)
            self.register_buffer(f"r{layer}", of_state)
            self.register_buffer(f"b{layer}", torch.cat([bias, state_bias], dim=1))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`(S, L, width)` sequences of these `(S,)` lengths, 0 allowed, to `(S, L, d_model)`."""
        steps = x.transpose(0, 1)
        for layer in range(self.num_layers):
            out = torch.onnx.ops.symbolic(
                "LSTM",
                (
                    steps,
                    getattr(self, f"w{layer}"),
                    getattr(self, f"r{layer}"),
                    getattr(self, f"b{layer}"),
                    lengths.to(torch.int32),
                ),
                attrs={"hidden_size": self.width, "direction": "bidirectional"},
                dtype=x.dtype,
                shape=(steps.shape[0], 2, steps.shape[1], self.width),
            )  # (L, direction, S, width)
            steps = out.transpose(1, 2).flatten(2)
        return steps.transpose(0, 1)


def _in_onnx_order(rows: Tensor) -> Tensor:
    """The gates in ONNX's order, input, output, forget, cell; PyTorch has input, forget, cell, output."""
    entry, forget, cell, output = rows.chunk(4)
    return torch.cat([entry, output, forget, cell])
