"""How far an attribution can be trusted: does it predict what the model does when parts are left out?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from amuse.explain.attribution import Attribution, neighbourhood
from amuse.explain.perturbation import Perturbation

RELIABLE_R2 = 0.5
"""An attribution must explain at least half of how the output varies to be shown as a reason."""


@dataclass(frozen=True)
class Fidelity:
    """Faithfulness of an attribution.

    Attributes:
        r2: Weighted R^2 of the additive model on perturbations that it was not fitted on: 1 is perfect, 0 is no better
            than a constant, NaN means that the output never changes.
        deletion: Area under the output as groups are removed, highest score first; low is good.
        insertion: Area under the output as groups are added, highest score first; high is good.
        random: The same area for random orders; between the two for a good attribution.
    """

    r2: float
    deletion: float
    insertion: float
    random: float

    @property
    def reliable(self) -> bool:
        """Whether the additive model explains enough, and its order is no worse than a random one."""
        slack = 1e-3  # the areas of a few groups differ by rounding only
        return self.r2 >= RELIABLE_R2 and self.deletion - slack <= self.random <= self.insertion + slack


def measure(perturbation: Perturbation, attribution: Attribution, seed: int, samples: int = 200) -> Fidelity:
    """Fidelity on `samples` fresh perturbations and the curves of deletion and insertion (Petsiuk et al. 2018)."""
    count, target = len(perturbation.groups), attribution.target
    generator = torch.Generator().manual_seed(seed)
    order = attribution.scores.argsort(descending=True, stable=True)
    shuffled = [torch.randperm(count, generator=generator) for _ in range(5)]
    # keeping all but the first k of an order is deletion; keeping all but the first k of its reverse is insertion
    orders = [order, order.flip(0), *shuffled]
    kept, weights = neighbourhood(samples, count, seed=seed + 1)
    values = perturbation(torch.cat([kept, *map(_deletions, orders)]))[:, target].double()
    curves = values[samples:].view(len(orders), count + 1)
    areas = torch.trapezoid(curves, dim=1) / count
    r2 = weighted_r2(values[:samples], attribution.predict(kept), weights)
    return Fidelity(r2, float(areas[0]), float(areas[1]), float(areas[2:].mean()))


def weighted_r2(values: Tensor, predicted: Tensor, weights: Tensor) -> float:
    """1 - weighted residual variance / weighted variance; NaN for constant values."""
    mean = (weights * values).sum() / weights.sum()
    total = (weights * (values - mean) ** 2).sum()
    if total < 1e-12 * weights.sum():
        return float("nan")
    return float(1 - (weights * (values - predicted) ** 2).sum() / total)


def _deletions(order: Tensor) -> Tensor:
    """bool `(G + 1, G)`: row k lacks the first k of the order."""
    count = len(order)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    return rank >= torch.arange(count + 1)[:, None]
