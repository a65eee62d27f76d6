"""The truncated cross-entropy: what it approximates, where it is 0; written-out gradients against autograd."""

import math
import sys

import pytest
import torch
from mutation import mutated
from torch.nn import functional as F  # noqa: N812

from implicitreg.dynamics import truncated_cross_entropy, truncated_exponential
from implicitreg.dynamics.losses import FLOOR, KNEE, score_gradient

losses_module = sys.modules["implicitreg.dynamics.losses"]
GAP = 2.71e-6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(scale, shape=(5, 40, 7), dtype=torch.float64):
    scores = scale * torch.randn(shape, generator=generator(), dtype=torch.float64)
    return scores.to(dtype), torch.randint(shape[-1], shape[:-1], generator=generator(1))


def cross_entropy(scores, labels):
    return F.cross_entropy(scores.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


# The function


def check_exponential(function):
    z = torch.linspace(-30, 5, 350_001, dtype=torch.float64)
    gap = (function(z) - z.exp()).abs()
    assert 2.69e-6 < gap.max() < GAP
    assert torch.equal(function(z[z >= KNEE]), z[z >= KNEE].exp())
    assert (function(z[z <= FLOOR]) == 0).all()
    assert (function(z[z > FLOOR + 1e-3]) > 0).all()
    # Continuous with its derivative: at the knee from both sides, and at the floor.
    for at, value, slope in ((KNEE, math.exp(KNEE), math.exp(KNEE)), (FLOOR, 0.0, 0.0)):
        for side in (-1e-7, 1e-7):
            point = torch.tensor(at + side, dtype=torch.float64, requires_grad=True)
            image = function(point)
            (derivative,) = torch.autograd.grad(image, point)
            assert image.item() == pytest.approx(value, abs=1e-11)
            assert derivative.item() == pytest.approx(slope, abs=1e-11)


def test_truncated_exponential():
    check_exponential(truncated_exponential)


@pytest.mark.parametrize(
    ("right", "wrong"), [("/ 4", "/ 2"), ("z >= KNEE", "z >= -5"), (".square()", ""), ("z - FLOOR", "z - KNEE")]
)
def test_mutants_of_the_exponential_are_caught(right, wrong):
    mutant = mutated(losses_module, "truncated_exponential", right, wrong)
    with pytest.raises(AssertionError):
        check_exponential(mutant.truncated_exponential)


@pytest.mark.parametrize("scale", [0.1, 1, 5, 20, 100])
@pytest.mark.parametrize("k", [2, 7])
def test_the_truncated_loss_is_close_to_the_cross_entropy(scale, k):
    scores, labels = drawn(scale, (500, k))
    loss = truncated_cross_entropy(scores, labels)
    own = scores.gather(-1, labels[:, None])
    torch.testing.assert_close(loss, truncated_exponential(scores - own).sum(-1).log(), rtol=1e-12, atol=1e-15)
    gap = cross_entropy(scores, labels) - loss
    assert gap.abs().max() <= GAP * (k - 1)
    small = cross_entropy(scores, labels) < 1e-2
    if scale >= 5:
        assert (gap[small] != 0).any()


def test_it_is_exactly_0_from_a_margin_of_13():
    for dtype in (torch.float32, torch.float64):
        scores = torch.tensor([[20.0, 7.0, 7.0], [13.0, 0.0, -900.0], [12.9, 0.0, 0.0], [0.0, 12.9, 0.0]], dtype=dtype)
        scores.requires_grad_()
        loss = truncated_cross_entropy(scores, torch.tensor([0, 0, 0, 1]))
        assert loss[:2].tolist() == [0, 0]
        (slope,) = torch.autograd.grad(loss.sum(), scores)
        assert (slope[:2] == 0).all()
        if dtype == torch.float64:
            assert (loss[2:] > 0).all()
            torch.testing.assert_close(loss[2], loss[3])


def test_labels_of_all_networks_can_be_shared():
    scores, labels = drawn(3)
    shared = truncated_cross_entropy(scores, labels[0])
    torch.testing.assert_close(shared[2], truncated_cross_entropy(scores[2], labels[0]))


def test_bad_arguments_are_named():
    scores, labels = drawn(1)
    with pytest.raises(ValueError, match=r"^labels: must lie in 0 \.\.\. 6, got 1 \.\.\. 7"):
        truncated_cross_entropy(scores, labels + 1)
    with pytest.raises(ValueError, match=r"^labels: must have one class for each of \(5, 40\), got \(5, 39\)"):
        truncated_cross_entropy(scores, labels[:, 1:])
    with pytest.raises(ValueError, match=r"^scores: must have shape"):
        truncated_cross_entropy(scores[:, :0], labels[:, :0])
    with pytest.raises(TypeError, match=r"^scores: must have dtype float32 or float64, got int64"):
        truncated_cross_entropy(scores.long(), labels)
    with pytest.raises(TypeError, match=r"^labels: must be a torch.Tensor of dtype int64"):
        truncated_cross_entropy(scores, labels.double())


# Gradients

LOSSES = {False: cross_entropy, True: truncated_cross_entropy}


def check_gradient(function):
    for truncated, loss in LOSSES.items():
        for scale in (0.1, 1, 5, 20, 100):
            scores, labels = drawn(scale)
            before = scores.clone()
            values, gradient = function(scores, labels, truncated=truncated)
            columns = function(scores.mT.contiguous(), labels, truncated=truncated, dim=-2)
            torch.testing.assert_close(columns, (values, gradient.mT), rtol=1e-12, atol=1e-15)
            assert torch.equal(scores, before)
            leaf = scores.requires_grad_()
            expected = loss(leaf, labels)
            (slope,) = torch.autograd.grad(expected.sum(), leaf)
            torch.testing.assert_close(values, expected.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-14)


def test_score_gradient_against_autograd():
    check_gradient(score_gradient)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("-1.0).expand", "-0.99).expand"),
        ("scale / 2 * rest", "scale / 4 * rest"),
        ("scale / 4 * rest.square()", "scale / 4 * rest"),
        ("(-top).exp()", "1.0"),
        ("/ total\n", "\n"),
        ("-gradient.sum(dim, keepdim=True)", "gradient.sum(dim, keepdim=True)"),
        ("index, 0.0)", "index, 1.0)"),
    ],
)
def test_mutants_of_the_gradient_are_caught(right, wrong):
    mutant = mutated(losses_module, "score_gradient", right, wrong)
    with pytest.raises(AssertionError):
        check_gradient(mutant.score_gradient)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [800.0, -800.0, 0.0])
def test_large_scores_do_not_overflow(truncated, dtype, own):
    scores = torch.tensor([[own, 0.0, 1.0], [own, -800.0, 800.0], [own, own, own]], dtype=dtype)
    labels = torch.zeros(3, dtype=torch.int64)
    values, gradient = score_gradient(scores, labels, truncated=truncated)
    leaf = scores.clone().requires_grad_()
    expected = LOSSES[truncated](leaf, labels)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    exact = torch.logsumexp(scores.double(), -1) - scores[:, 0].double()
    torch.testing.assert_close(values.double(), exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-7)
    assert gradient.sum(-1).abs().max() < 1e-6
