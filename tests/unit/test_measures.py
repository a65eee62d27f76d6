"""Spectral measures: against numpy, closed forms, invariances, and mutants that the same checks must catch."""

import math

import numpy as np
import pytest
import torch

from implicitreg.data import two_by_two
from implicitreg.measures import distance_from_rank, effective_rank, schatten_norm

P = (0.25, 0.5, 1.0, 2.0, 3.5, 8.0, math.inf)


def matrices(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check_schatten(function):
    w = matrices(4, 3, 5, 3)
    for p in P:
        sigma = np.linalg.svd(w.numpy(), compute_uv=False)
        expected = sigma.max(-1) if p == math.inf else (sigma**p).sum(-1) ** (1 / p)
        np.testing.assert_allclose(function(w, p), expected, rtol=1e-12)


def check_erank(function):
    w = matrices(4, 3, 5, 3)
    sigma = np.linalg.svd(w.numpy(), compute_uv=False)
    rho = sigma / sigma.sum(-1, keepdims=True)
    np.testing.assert_allclose(function(w), np.exp(-(rho * np.log(rho)).sum(-1)), rtol=1e-12)


def check_distance(function):
    w = matrices(4, 3, 5, 3)
    u, s, vh = np.linalg.svd(w.numpy(), full_matrices=False)
    for r in range(5):
        nearest = (u[..., :r] * s[..., None, :r]) @ vh[..., :r, :]
        np.testing.assert_allclose(function(w, r), np.linalg.norm(w.numpy() - nearest, axis=(-2, -1)), atol=1e-12)


def svd(w):
    return torch.linalg.svdvals(w)


def test_agree_with_numpy():
    check_schatten(schatten_norm)
    check_erank(effective_rank)
    check_distance(distance_from_rank)


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        (check_schatten, lambda w, p: svd(w).pow(p).sum(-1)),  # root forgotten
        (check_schatten, lambda w, p: w.abs().pow(min(p, 99)).sum((-2, -1)).pow(1 / p)),  # entries, not singular values
        (check_schatten, lambda w, p: svd(w).pow(min(p, 99)).mean(-1).pow(1 / p)),  # mean, not sum
        (check_erank, lambda w: torch.special.entr(svd(w) / svd(w).sum(-1, True)).sum(-1)),  # exponential forgotten
        (check_erank, lambda w: torch.special.entr(svd(w).square() / svd(w).square().sum(-1, True)).sum(-1).exp()),
        (check_erank, lambda w: (torch.special.entr(svd(w) / svd(w).sum(-1, True)) / math.log(2)).sum(-1).exp()),
        (check_distance, lambda w, r: svd(w)[..., r:].sum(-1)),  # nuclear instead of Frobenius
        (check_distance, lambda w, r: svd(w)[..., r + 1 :].square().sum(-1).sqrt()),  # off by one
        (check_distance, lambda w, r: svd(w)[..., :r].square().sum(-1).sqrt()),  # the wrong end
    ],
)
def test_checks_catch_mutants(check, mutant):
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.parametrize("x", [0.0, 0.5, 1.0, 5.0, 70.7, 1000.0])
def test_closed_forms_on_the_solutions(x):
    w = two_by_two().solutions(torch.tensor(x, dtype=torch.float64))
    root = math.sqrt(x**2 + 4)
    s1, s2 = (root + x) / 2, 2 / (root + x)
    assert schatten_norm(w, 2).item() == pytest.approx(math.sqrt(x**2 + 2), rel=1e-12)
    assert schatten_norm(w, 1).item() == pytest.approx(root, rel=1e-12)
    assert schatten_norm(w, math.inf).item() == pytest.approx(s1, rel=1e-12)
    assert schatten_norm(w, 0.5).item() == pytest.approx((math.sqrt(s1) + math.sqrt(s2)) ** 2, rel=1e-12)
    assert distance_from_rank(w, 1).item() == pytest.approx(s2, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "nuclear", "erank", "gap"), [(1, 2.236068, 1.803113, 0.618034), (5, 5.385165, 1.166762, 0.192582)]
)
def test_published_spot_values(x, nuclear, erank, gap):
    w = two_by_two().solutions(torch.tensor(float(x), dtype=torch.float64))
    assert schatten_norm(w, 1).item() == pytest.approx(nuclear, abs=1e-6)
    assert effective_rank(w).item() == pytest.approx(erank, abs=1e-6)
    assert distance_from_rank(w, 1).item() == pytest.approx(gap, abs=1e-6)


def test_rotations_change_nothing():
    w = matrices(7, 4, 3)
    left, right = torch.linalg.qr(matrices(7, 4, 4, seed=1)).Q, torch.linalg.qr(matrices(7, 3, 3, seed=2)).Q
    turned = left @ w @ right
    for measure in (lambda m: schatten_norm(m, 0.5), effective_rank, lambda m: distance_from_rank(m, 1)):
        torch.testing.assert_close(measure(turned), measure(w), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(measure(w.mT), measure(w), rtol=1e-12, atol=1e-12)


def test_scaling():
    w = matrices(5, 3, 3)
    for factor in (1e-200, 1e-3, 1e200):
        torch.testing.assert_close(effective_rank(factor * w), effective_rank(w), rtol=1e-10, atol=0)
        torch.testing.assert_close(
            distance_from_rank(factor * w, 1), factor * distance_from_rank(w, 1), rtol=1e-10, atol=0
        )
        torch.testing.assert_close(schatten_norm(factor * w, 0.25), factor * schatten_norm(w, 0.25), rtol=1e-10, atol=0)


def test_edges():
    zero, one = torch.zeros(2, 3), torch.ones(3, 3, dtype=torch.float64)
    assert [schatten_norm(zero, p).item() for p in P] == [0.0] * len(P)
    assert distance_from_rank(one, 1).item() < 1e-14
    assert effective_rank(one).item() == pytest.approx(1.0, abs=1e-12)
    assert effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))).item() == pytest.approx(2.0, abs=1e-6)
    assert distance_from_rank(one, 17).item() == 0.0
    assert schatten_norm(torch.tensor([[-3.0]]), 0.5).item() == pytest.approx(3.0)


def test_shape_dtype_and_input_are_kept():
    w = matrices(2, 1, 3, 4, dtype=torch.float32)
    before = w.clone()
    for value in (schatten_norm(w, 1), effective_rank(w), distance_from_rank(w, 2)):
        assert value.shape == (2, 1)
        assert value.dtype == torch.float32
    assert torch.equal(w, before)


def test_gradients_are_finite_at_full_rank():
    w = matrices(3, 2, 2).requires_grad_()
    (schatten_norm(w, 1).sum() + effective_rank(w).sum() + distance_from_rank(w, 1).sum()).backward()
    assert torch.isfinite(w.grad).all()


@pytest.mark.parametrize("measure", [lambda w: schatten_norm(w, 1), effective_rank, lambda w: distance_from_rank(w, 1)])
@pytest.mark.parametrize(
    ("w", "error"),
    [
        ([[1.0]], TypeError),
        (torch.ones(2, 2, dtype=torch.int64), TypeError),
        (torch.ones(2, 2, dtype=torch.float16), TypeError),
        (torch.ones(2), ValueError),
        (torch.ones(3, 0), ValueError),
        (torch.tensor([[float("nan")]]), ValueError),
        (torch.tensor([[float("inf")]]), ValueError),
    ],
)
def test_bad_matrices_are_refused(measure, w, error):
    with pytest.raises(error, match=r"^w: "):
        measure(w)


def test_bad_numbers_are_refused():
    w = torch.eye(2)
    for p in (0, -1, math.nan, "nuc", None):
        with pytest.raises(ValueError, match=r"^p: "):
            schatten_norm(w, p)
    for r in (-1, 1.0, True):
        with pytest.raises(ValueError, match=r"^r: "):
            distance_from_rank(w, r)
    with pytest.raises(ValueError, match="zero matrix"):
        effective_rank(torch.zeros(2, 2, 2))
