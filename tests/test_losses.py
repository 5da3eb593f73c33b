"""Promises of the losses (III-E), checked against the formulas written out."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from amuse.config import LossConfig
from amuse.model.focal import focal_logit_gradient, focal_loss
from amuse.model.output import Output
from amuse.training.contrastive import contrastive_loss
from amuse.training.losses import amuse_loss


def test_focal_loss_is_equation_5_with_its_logarithm():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 2])
    p = logits.softmax(-1)[range(6), labels]
    torch.testing.assert_close(focal_loss(logits, labels, gamma=2.0), -((1 - p) ** 2) * p.log())


def final_loss(logits, labels, class_weights=None, **options):
    output = make_output(*logits.shape[:1], classes=logits.shape[-1])
    return amuse_loss(dataclasses.replace(output, logits=logits), labels, LossConfig(**options), class_weights)["final"]


def test_gamma_zero_is_the_cross_entropy():
    logits, labels, weights = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, -100]), torch.rand(4) + 0.1
    torch.testing.assert_close(final_loss(logits, labels, gamma=0.0), F.cross_entropy(logits, labels))
    weighted = final_loss(logits, labels, weights, gamma=0.0)
    torch.testing.assert_close(weighted, F.cross_entropy(logits, labels, weights))
    smoothed = final_loss(logits, labels, gamma=0.0, label_smoothing=0.2)
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, labels, label_smoothing=0.2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.75, 1.0, 1.25, 2.0])
def test_focal_loss_has_finite_gradients_even_for_certain_predictions(gamma):
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0], [0.1, 0.2]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0, 1]), gamma).mean().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_closed_form_gradient_is_autograds(gamma):
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, (7,))
    focal_loss(logits, labels, gamma).sum().backward()
    expected = logits.grad  # focal_loss computes in fp32
    torch.testing.assert_close(focal_logit_gradient(logits.detach(), labels, gamma), expected, atol=1e-6, rtol=1e-5)


def test_nothing_labelled_costs_nothing():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = final_loss(logits, torch.full((3,), -100))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def equation_4(anchors, candidates, temperature):
    """Eq. 4 of one ordered pair of modalities, as docs/paper.md corrects it."""
    similarity = F.normalize(anchors, dim=-1) @ F.normalize(candidates, dim=-1).T / temperature
    p, count = similarity.softmax(-1), len(anchors)
    total = 0.0
    for j in range(count):
        for k in range(count):
            h = p[j, k] / (p[j, k] + (count - 1) / count)
            total -= torch.log(h) if k == j else torch.log(1 - h)
    return total / count


def of_two(first, second, **options):
    """The contrastive loss of two modalities, none absent."""
    present = torch.ones(len(first), 2, dtype=torch.bool)
    return contrastive_loss(torch.stack([first, second], 1), present, LossConfig(**options))


def test_nce_is_equation_4_corrected():
    first, second = torch.randn(2, 5, 8)
    expected = (equation_4(first, second, 0.2) + equation_4(second, first, 0.2)) / 2
    torch.testing.assert_close(of_two(first, second, temperature=0.2), expected)


@pytest.mark.parametrize("kind", ["nce", "infonce"])
def test_contrastive_losses_prefer_partners_that_agree(kind):
    anchors = torch.randn(8, 16)
    agreeing = of_two(anchors, anchors, contrastive_kind=kind)
    assert agreeing < of_two(anchors, anchors.roll(1, 0), contrastive_kind=kind)
    assert of_two(anchors[:1], anchors[:1], contrastive_kind=kind) == 0


def test_infonce_over_ordered_pairs_is_the_symmetric_loss():
    f = torch.randn(6, 2, 8)
    similarity = F.normalize(f[:, 0], dim=-1) @ F.normalize(f[:, 1], dim=-1).T / 0.1
    expected = (F.cross_entropy(similarity, torch.arange(6)) + F.cross_entropy(similarity.T, torch.arange(6))) / 2
    loss = contrastive_loss(f, torch.ones(6, 2, dtype=torch.bool), LossConfig(contrastive_kind="infonce"))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["nce", "infonce"])
def test_contrastive_losses_of_parts_add_up_to_the_batchs(kind):
    config = LossConfig(contrastive_kind=kind)
    f = torch.randn(9, 3, 8, dtype=torch.float64, requires_grad=True)
    present = torch.rand(9, 3) > 0.2
    expected = contrastive_loss(f, present, config)
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in ((0, 4), (4, 4), (4, 9)):

        def gather(rows, start=start):
            return torch.cat([f, present[..., None].double()], -1), start

        total = total + contrastive_loss(f[start:stop], present[start:stop], config, gather)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, f)[0] for loss in (total, expected)))


def make_output(utterances=6, modalities=3, classes=4, width=8):
    present = torch.ones(utterances, modalities, dtype=torch.bool)
    return Output(
        logits=torch.randn(utterances, classes, requires_grad=True),
        modality_logits=torch.randn(utterances, modalities, classes, requires_grad=True),
        descriptors=torch.randn(utterances, modalities, width, requires_grad=True),
        alpha=None,
        present=present,
    )


def test_contrastive_loss_sums_ordered_pairs_over_the_number_of_modalities():
    output = make_output()
    f = output.descriptors
    pairs = [(m, n) for m in range(3) for n in range(3) if m != n]
    expected = sum(equation_4(f[:, m], f[:, n], 0.1) for m, n in pairs) / 3
    torch.testing.assert_close(contrastive_loss(f, output.present, LossConfig(temperature=0.1)), expected)


def test_absent_modalities_take_no_part():
    output, labels = make_output(), torch.tensor([0, 1, 2, 3, 0, 1])
    output.present[2:, 1] = False
    amuse_loss(output, labels, LossConfig())["loss"].backward()
    assert (output.modality_logits.grad[2:, 1] == 0).all()
    assert (output.modality_logits.grad[:2, 1] != 0).any()
    assert (output.descriptors.grad[2:, 1] == 0).all()


def test_the_total_is_the_weighted_sum_of_its_parts():
    output, labels = make_output(), torch.tensor([0, 1, 2, -100, 0, 1])
    config = LossConfig(final=0.5, modality=2.0, contrastive=0.3)
    losses = amuse_loss(output, labels, config)
    expected = 0.5 * losses["final"] + 2.0 * losses["modality"] + 0.3 * losses["contrastive"]
    torch.testing.assert_close(losses["loss"], expected)
    assert all(value > 0 for value in losses.values())
    off = amuse_loss(output, labels, LossConfig(contrastive_kind="none"))
    assert off["contrastive"] == 0
    unlabelled = amuse_loss(output, None, config)
    assert unlabelled["final"] == unlabelled["modality"] == 0


def test_regression_leaves_out_unlabelled_targets():
    output = make_output(classes=1)
    labels = torch.tensor([0.5, math.nan, 1.0, math.nan, -1.0, 0.0])
    losses = amuse_loss(output, labels, LossConfig())
    expected = F.smooth_l1_loss(output.logits[[0, 2, 4, 5], 0], labels[[0, 2, 4, 5]])
    torch.testing.assert_close(losses["final"], expected)
