"""Rademacher complexities: all sign patterns by hand, the best unit by a fine grid, the theorem's constants."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from implicitreg.measures import (
    largest_correlation,
    linear_rademacher,
    norm_ball_bound,
    rademacher_complexity,
    sign_patterns,
    two_layer_rademacher,
    width_exponent,
)

INF = math.inf
EXPONENTS = [1, 1.1, 1.5, 2, 3, 10, INF]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def directions(n, p):
    angle = torch.linspace(0, 2 * math.pi, n, dtype=torch.float64)
    u = torch.stack([angle.cos(), angle.sin()], -1)
    return u / torch.linalg.vector_norm(u, p, dim=-1, keepdim=True)


# Finite classes


def test_all_sign_patterns_by_hand():
    values = points(4, 3, 5)
    by_hand = [
        sum(max(abs(np.dot(signs, f)) for f in member) for signs in itertools.product((1, -1), repeat=5)) / 2**5 / 5
        for member in values.numpy()
    ]
    found = rademacher_complexity(values)
    np.testing.assert_allclose(found.value, by_hand, rtol=1e-13)
    assert found.standard_error.tolist() == [0.0] * 4
    assert found.n_signs == 32


@pytest.mark.parametrize("m", [1, 2, 6])
def test_sign_patterns_are_one_of_each_pair(m):
    patterns = {tuple(row) for row in sign_patterns(m).tolist()}
    assert patterns | {tuple(-s for s in row) for row in patterns} == set(itertools.product((1, -1), repeat=m))
    assert len(patterns) == 2 ** (m - 1)


def test_random_signs_agree_with_all_signs():
    values = points(3, 20, 10)
    exact, drawn = rademacher_complexity(values), rademacher_complexity(values, draws=20_000, generator=generator(1))
    assert ((exact.value - drawn.value).abs() < 4 * drawn.standard_error).all()
    assert (drawn.standard_error > 0).all()
    assert drawn.n_signs == 20_000


def test_chunks_of_sign_patterns_make_no_difference():
    values = points(3, 15)  # more patterns than one chunk
    by_hand = (values @ sign_patterns(15).double().T).abs().amax(0).mean() / 15
    torch.testing.assert_close(rademacher_complexity(values).value, by_hand, rtol=1e-13, atol=0)


def test_a_convex_hull_has_the_complexity_of_its_extreme_points():
    values = points(4, 6)
    shares = torch.rand(500, 4, dtype=torch.float64, generator=generator())
    shares = shares / shares.sum(-1, keepdim=True)
    hull = torch.cat([values, shares @ values])
    value = rademacher_complexity(values).value
    torch.testing.assert_close(rademacher_complexity(hull).value, value, rtol=1e-12, atol=0)


def test_the_two_classes_that_show_why_relu_costs_a_factor():
    hull = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.float64)
    positive = torch.cat([hull, torch.tensor([[0.5, 0, 0], [0, 0.5, 0]], dtype=torch.float64)])
    assert rademacher_complexity(hull).value.item() == 1 / 2
    assert rademacher_complexity(positive).value.item() == pytest.approx(float(Fraction(13, 24)), rel=1e-15)
    # A mutant without the absolute value tells other numbers.
    signs = torch.cat([sign_patterns(3), -sign_patterns(3)]).double()
    for values, signed in ((hull, 1 / 6), (positive[:3], 13 / 48)):
        assert (signs @ values.T).amax(1).mean() / 3 == pytest.approx(signed)


# Linear functions


@pytest.mark.parametrize("p", EXPONENTS)
def test_linear_functions_against_their_grid(p):
    x = points(6, 2)
    grid = rademacher_complexity(torch.cat([directions(4001, p), directions(5, p)]) @ x.T).value
    exact = linear_rademacher(x, p).value
    assert grid <= exact * (1 + 1e-12)
    torch.testing.assert_close(grid, exact, rtol=1e-3, atol=0)


# One unit, points of the plane


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("m", [1, 2, 3, 7, 12])
def test_best_unit_against_a_grid_of_directions(p, m):
    x, c = points(5, m, 2, seed=m), points(5, m, seed=m + 1)
    best = largest_correlation(x, c, p)
    grid = ((directions(20_001, p) @ x.mT).relu() @ c[..., None]).abs().amax((-1, -2))
    assert (grid <= best.value * (1 + 1e-12)).all()
    torch.testing.assert_close(grid, best.value, rtol=2e-3, atol=1e-6)
    # The direction attains the value and has unit norm.
    torch.testing.assert_close(torch.linalg.vector_norm(best.direction, p, dim=-1), torch.ones(5).double())
    attained = ((best.direction[:, None] @ x.mT).relu() @ c[..., None]).abs()[:, 0, 0]
    torch.testing.assert_close(attained, best.value, rtol=1e-12, atol=0)


def test_edges_and_peaks_are_both_needed():
    x, c = points(200, 6, 2), points(200, 6, seed=1)
    best = largest_correlation(x, c)
    on_an_edge = (best.direction[:, None] * x).sum(-1).abs().amin(-1) < 1e-9
    assert on_an_edge.any()
    assert not on_an_edge.all()


def test_rotation_scale_and_sign():
    x, c = points(3, 8, 2), points(3, 8, seed=1)
    value = largest_correlation(x, c).value
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(largest_correlation(x @ turn, c).value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(largest_correlation(3 * x, -2 * c).value, 6 * value, rtol=1e-12, atol=0)


def test_degenerate_points():
    zero = torch.zeros(3, 2, dtype=torch.float64)
    assert largest_correlation(zero, torch.ones(3).double()).value == 0
    line = torch.tensor([[1, 0], [2, 0], [-1, 0]], dtype=torch.float64)
    assert largest_correlation(line, torch.tensor([1, 1, 5]).double()).value == pytest.approx(5)
    assert largest_correlation(line, torch.zeros(3).double()).value == 0


def test_coefficients_broadcast_against_points():
    x, c = points(4, 1, 6, 2), points(5, 6)
    both = largest_correlation(x, c)
    assert both.value.shape == (4, 5)
    assert both.direction.shape == (4, 5, 2)
    torch.testing.assert_close(both.value[2, 3], largest_correlation(x[2, 0], c[3]).value)


# Balls of two-layer networks


@pytest.mark.parametrize(("p", "value", "linear"), [(1, 0.2873, 0.3084), (2, 0.3228, 0.3441)])
def test_known_values_on_ten_gaussian_points(p, value, linear):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((10, 2)))
    assert two_layer_rademacher(x, p, p, hidden=7).value.item() == pytest.approx(value, abs=5e-5)
    assert linear_rademacher(x, p).value.item() == pytest.approx(linear, abs=5e-5)
    bound = {1: 1.731, 2: 1.044}[p]
    assert norm_ball_bound(x, p, p, hidden=7, depth=1).item() == pytest.approx(bound, abs=5e-4)


@pytest.mark.parametrize(("p", "q"), [(1, INF), (2, 2), (2, INF), (3, 4), (1.5, 1), (INF, INF)])
def test_no_random_network_follows_signs_better(p, q):
    hidden, x = 5, points(6, 2)
    u, w = points(4000, hidden, 2, seed=3), points(4000, hidden, seed=4)
    u = u / torch.linalg.vector_norm(torch.linalg.vector_norm(u, p, dim=-1), q, dim=-1)[:, None, None]
    w = w / torch.linalg.vector_norm(w, p, dim=-1, keepdim=True)
    sampled = rademacher_complexity(((u @ x.T).relu() * w[..., None]).sum(1)).value
    exact = two_layer_rademacher(x, p, q, hidden).value
    assert 0.3 * exact < sampled <= exact


def test_ensembles_radius_and_random_signs():
    x = points(3, 7, 2)
    all_three = two_layer_rademacher(x, 2, INF, 9, norm=2.0)
    one = two_layer_rademacher(x[1], 2, 2, 9)
    torch.testing.assert_close(all_three.value[1], 6 * one.value)
    drawn = two_layer_rademacher(points(30, 2), 2, 2, 1, draws=400, generator=generator())
    assert drawn.standard_error > 0


@pytest.mark.parametrize(("p", "q", "exponent"), [(1, INF, 0), (2, 2, 0), (2, INF, 0.5), (4, 4, 0.5), (INF, INF, 1)])
def test_width_exponent(p, q, exponent):
    assert width_exponent(p, q) == pytest.approx(exponent)


def test_bound_with_its_constants():
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    assert norm_ball_bound(x, 1, INF, 50, 3, norm=2).item() == pytest.approx(2 * 4 * math.sqrt(4 * math.log(4) / 2) * 4)
    assert norm_ball_bound(x, 2, INF, 16, 2).item() == pytest.approx(2 * 4 * math.sqrt(2 / 2) * 5)
    assert norm_ball_bound(x, 4, 4, 16, 2).item() == pytest.approx(
        2 * 4 * math.sqrt(2) * (3 ** (4 / 3) + 4 ** (4 / 3)) ** 0.75 / 2**0.25
    )


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 8])
def test_bound_holds_for_linear_functions(p):
    x = points(50, 8, 5)
    assert (linear_rademacher(x, p).value <= norm_ball_bound(x, p, p, 1, 1)).all()


# Refusals


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rademacher_complexity([[1.0]]), TypeError, "values: must be a torch.Tensor"),
        (lambda: rademacher_complexity(torch.ones(3)), ValueError, "values: must have shape"),
        (lambda: rademacher_complexity(torch.full((2, 2), math.nan)), ValueError, "values: must be finite"),
        (lambda: rademacher_complexity(torch.ones(2, 21)), ValueError, "draws: must be given, with a generator"),
        (lambda: rademacher_complexity(torch.ones(2, 3), draws=5), ValueError, "draws: must be given together"),
        (lambda: rademacher_complexity(torch.ones(2, 3), draws=5, generator=0), TypeError, "generator: must be"),
        (lambda: rademacher_complexity(torch.ones(2, 3), draws=1, generator=generator()), ValueError, "draws: must be"),
        (lambda: sign_patterns(21), ValueError, "m: must be at most 20"),
        (lambda: sign_patterns(0), ValueError, "m: must be an integer >= 1"),
        (lambda: linear_rademacher(torch.ones(2, 3), 0.5), ValueError, "p: must be a number >= 1"),
        (lambda: linear_rademacher(torch.ones(2, 3), True), ValueError, "p: must be a number >= 1"),
        (lambda: largest_correlation(torch.ones(4, 3), torch.ones(4)), ValueError, "x: must hold points of the plane"),
        (lambda: largest_correlation(torch.ones(4, 2), torch.ones(3)), ValueError, "coefficients: must have shape"),
        (lambda: largest_correlation(torch.ones(4, 2), torch.tensor(1.0)), ValueError, "coefficients: must have shape"),
        (lambda: largest_correlation(torch.ones(1, 2), torch.tensor([INF])), ValueError, "coefficients: must be finit"),
        (lambda: two_layer_rademacher(torch.ones(4, 2), 2, 2, 0), ValueError, "hidden: must be an integer >= 1"),
        (lambda: two_layer_rademacher(torch.ones(4, 2), 2, 2, 1, -1.0), ValueError, "norm: must be a finite number"),
        (lambda: width_exponent(2, math.nan), ValueError, "q: must be a number >= 1"),
        (lambda: norm_ball_bound(torch.ones(4, 2), INF, 2, 1, 1), ValueError, "p: must be a finite number >= 1"),
        (lambda: norm_ball_bound(torch.ones(4, 2), 2, 2, 1, 0), ValueError, "depth: must be an integer >= 1"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
