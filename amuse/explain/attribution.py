"""Attribution of one prediction to feature groups: LIME, Shapley values, occlusion, integrated gradients.

All of them give one score per group in units of the explained output (probability of the target class, or the value of
a regression): positive scores raised it, negative ones lowered it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from amuse.data.conversation import TOKEN_IDS
from amuse.explain.perturbation import Perturbation

KERNEL_WIDTH = 0.25  # for LIME's kernel on the cosine distance
RIDGE = 1.0  # penalty of LIME's linear model; captum's default, Lasso, gives zeros on probabilities


@dataclass
class Attribution:
    """Scores of G groups, read as an additive model of the output: base + sum of the scores of the groups kept.

    Attributes:
        method: A key of `METHODS`.
        target: Class index; 0 for regression.
        scores: float64 `(G,)`.
        base: The additive model's output without any group.
    """

    method: str
    target: int
    scores: Tensor
    base: float

    def predict(self, kept: Tensor) -> Tensor:
        """The additive model's output `(S,)` for bool `(S, G)`."""
        return self.base + kept.double() @ self.scores


def neighbourhood(count: int, num_groups: int, seed: int) -> tuple[Tensor, Tensor]:
    """Perturbations as LIME draws them for text: bool `(count, G)`, the first one complete, and weights `(count,)`.

    The number of groups left out is drawn uniformly, then which ones; the weight is sqrt(exp(-(distance / 0.25)^2)) of
    the cosine distance to the complete utterance.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(count, num_groups, generator=generator).argsort(dim=1).argsort(dim=1)
    removed = torch.randint(1, num_groups + 1, (count, 1), generator=generator)
    removed[0] = 0
    kept = ranks >= removed
    distance = 1 - (kept.double().mean(dim=1)).sqrt()
    return kept, torch.exp(-((distance / KERNEL_WIDTH) ** 2)).sqrt()


def lime(perturbation: Perturbation, target: int, samples: int, seed: int) -> Attribution:
    """LIME (Ribeiro et al. 2016) over the groups of all modalities at once: a weighted ridge regression."""
    from sklearn.linear_model import Ridge

    kept, weights = neighbourhood(samples, len(perturbation.groups), seed)
    values = perturbation(kept)[:, target].double()
    surrogate = Ridge(alpha=RIDGE).fit(kept.numpy(), values.numpy(), sample_weight=weights.numpy())
    return Attribution("lime", target, torch.from_numpy(surrogate.coef_), float(surrogate.intercept_))


def shap(perturbation: Perturbation, target: int, samples: int, seed: int) -> Attribution:
    """KernelShap (Lundberg & Lee 2017), every coalition with its complement; exact where all fit into `samples`.

    The scores sum to the output for the whole utterance minus that for nothing, to rounding.
    """
    count = len(perturbation.groups)
    ends = torch.stack([torch.zeros(count), torch.ones(count)]).bool()
    empty, whole = perturbation(ends)[:, target].double().tolist()
    if count == 1:
        return Attribution("shap", target, torch.tensor([whole - empty], dtype=torch.float64), empty)
    kept, weights = _coalitions(count, samples, seed)
    values = perturbation(kept)[:, target].double() - empty
    # the last score is whole - empty minus the others, so that the sum is exact
    z = kept.double()
    design = z[:, :-1] - z[:, -1:]
    outcome = values - z[:, -1] * (whole - empty)
    root = weights.sqrt()[:, None]
    first = torch.linalg.lstsq(root * design, root * outcome[:, None], driver="gelsd").solution.squeeze(1)
    last = whole - empty - first.sum()
    return Attribution("shap", target, torch.cat([first, last[None]]), empty)


def _coalitions(count: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Proper non-empty coalitions bool `(S, G)` and their weights in the Shapley regression `(S,)`."""
    sizes = torch.arange(1, count, dtype=torch.float64)
    if 2**count - 2 <= samples:
        rows = [c for size in range(1, count) for c in combinations(range(count), size)]
        kept = torch.zeros(len(rows), count, dtype=torch.bool)
        for row, members in zip(kept, rows, strict=True):
            row[list(members)] = True
        kernel = [(count - 1) / (math.comb(count, len(r)) * len(r) * (count - len(r))) for r in rows]
        return kept, torch.tensor(kernel, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    half = max(samples // 2, 1)
    drawn = torch.multinomial(1 / (sizes * (count - sizes)), half, replacement=True, generator=generator) + 1
    ranks = torch.rand(half, count, generator=generator).argsort(dim=1).argsort(dim=1)
    kept = ranks < drawn[:, None]
    return torch.cat([kept, ~kept]), torch.ones(2 * half, dtype=torch.float64)


def occlusion(perturbation: Perturbation, target: int, samples: int = 0, seed: int = 0) -> Attribution:
    """How much the output falls when a single group is left out. Deterministic."""
    count = len(perturbation.groups)
    kept = torch.cat([torch.ones(1, count).bool(), ~torch.eye(count).bool()])
    whole, *parts = perturbation(kept)[:, target].double()
    scores = torch.stack([whole - part for part in parts])
    return Attribution("occlusion", target, scores, float(whole - scores.sum()))


def integrated_gradients(perturbation: Perturbation, target: int, samples: int = 64, seed: int = 0) -> Attribution:
    """Integrated gradients (Sundararajan et al. 2017) from features of 0, by captum. Deterministic.

    Standardised features are 0 at their mean over the training split.

    Args:
        perturbation: One of a model whose streams are all features.
        target: Class index.
        samples: Steps of the integral.

    Raises:
        ValueError: A stream of token ids, which have no gradient.
        ImportError: captum is missing.
    """
    for stream, width in perturbation.model.spec.modalities.items():
        if width == TOKEN_IDS:
            raise ValueError(f"stream {stream!r}: token ids have no gradient; expected method lime, shap or occlusion")
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise ImportError("integrated gradients need captum: pip install amuse-kernels[explain]") from None
    names = list(perturbation.features)

    def output(*features: Tensor) -> Tensor:
        masks = {name: perturbation.masks[name].expand(len(features[0]), -1) for name in names}
        return perturbation.evaluate(dict(zip(names, features, strict=True)), masks)[:, target]

    inputs = tuple(perturbation.features[name][None] for name in names)
    method = IntegratedGradients(output, multiply_by_inputs=True)
    parts = method.attribute(inputs, n_steps=samples, internal_batch_size=perturbation.chunk)
    scores = torch.zeros(len(perturbation.groups) + 1, dtype=torch.float64)  # the last: tokens of no group
    for name, part in zip(names, parts, strict=True):
        index = torch.where(perturbation.masks[name], perturbation.group_of[name], -1).cpu() % len(scores)
        scores.index_add_(0, index, part[0].detach().double().sum(-1).cpu())
    scores = scores[:-1]
    whole = float(perturbation(torch.ones(1, len(scores)))[0, target])
    return Attribution("gradients", target, scores, whole - float(scores.sum()))


METHODS: dict[str, Callable[[Perturbation, int, int, int], Attribution]] = {
    "lime": lime,
    "shap": shap,
    "occlusion": occlusion,
    "gradients": integrated_gradients,
}
