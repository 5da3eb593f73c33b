"""An oracle of adaptive fusion that shares no code with the package: loops over the formula in fp64."""

import torch
from torch import Tensor


def fusion_oracle(
    descriptors: Tensor,
    alpha: Tensor | None = None,
    pair_weight: Tensor | None = None,
    pair_bias: Tensor | None = None,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows, modalities, width = descriptors.shape
    elementwise = alpha is not None and alpha.dim() == 4
    fused = torch.zeros(rows, modalities, width, dtype=torch.float64)
    used = torch.zeros(rows, modalities, modalities, width, dtype=torch.float64)
    for r in range(rows):
        there = [m for m in range(modalities) if present is None or present[r, m]]
        pair = -1
        for m in range(modalities):
            for n in range(modalities):
                if n == m:
                    continue
                pair += 1
                if m not in there or n not in there:
                    continue
                f_m, f_n = descriptors[r, m].double(), descriptors[r, n].double()
                if alpha is None:
                    assert pair_weight is not None
                    assert pair_bias is not None
                    w = pair_weight[pair].double()
                    coefficient = torch.sigmoid(w[0] @ f_m + w[1] @ f_n + pair_bias[pair].double())
                else:
                    coefficient = alpha[r, m, n].double()
                used[r, m, n] = coefficient
                fused[r, m] += (coefficient * f_n + (1 - coefficient) * f_m) / len(there)
        if len(there) == 1:
            fused[r, there[0]] = descriptors[r, there[0]].double()
    return fused, used if elementwise else used[..., 0]
