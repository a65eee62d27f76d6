"""Activations made to order against their conditions by quadrature, traced preferences against closed forms."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from implicitreg.overlaps import bespoke_one_point, bespoke_two_point, elasticity, path_integral, traced_preference

module = sys.modules["implicitreg.overlaps"]
TWO = {"theta_0": (1, 1), "p": (2, 2), "q": (3, 1.5), "x": (1, 3)}
ONE = {"theta_0": (1, 1), "p": (2, 2), "x": (1, 3)}
# The product of the two integrals is above what any activation needs, but below what exponentials reach.
STEEP = {"theta_0": (1, 1), "p": (1.5, 2), "q": (2.4, 1.5), "x": (1, 3)}


def seen(activation, x):
    """Return λ(w) = x (ln σ)'(wx), by automatic differentiation."""

    def value(w):
        z = torch.tensor([w * x], dtype=torch.float64)
        return float(elasticity(activation, z)) / w

    return value


def defects(overlap, x, p, q, theta_0):
    """Return by how much the four conditions are missed, relatively, integrating piece by piece."""
    (a_0, w_0), (a_p, w_p), (a_q, w_q) = theta_0, p, q
    found = []
    for at in x:
        see = seen(overlap.activation, at)
        found.append(quad(see, w_q, w_p, epsabs=1e-13)[0] / math.log(a_q / a_p) - 1)
    knots = [float(k) / x[0] for k in overlap.activation._knots]
    inside = [w for w in knots if w_0 < w < w_p]
    area = quad(lambda w: 1 / seen(overlap.activation, x[0])(w), w_0, w_p, points=inside or None, epsabs=1e-13)[0]
    found.append(2 * area / (a_p**2 - a_0**2) - 1)
    area = quad(lambda w: 1 / seen(overlap.activation, x[1])(w), w_0, w_q, epsabs=1e-13)[0]
    return np.abs([*found, 2 * area / (a_q**2 - a_0**2) - 1])


# Two points


def test_the_example_with_whole_numbers():
    overlap = bespoke_two_point(**TWO)
    assert overlap.s1 == pytest.approx((3, 8.793594421950), abs=1e-11)
    assert overlap.s2 == pytest.approx((1, 4.000272644310), abs=1e-11)
    w = np.linspace(1, 2, 7)
    for x, c, d in ((1, -0.7288818227780146, 0.6858839443293571), (3, -2.7928677287074573, 3.296720640577144)):
        np.testing.assert_allclose([seen(overlap.activation, x)(v) for v in w], np.exp(c + d * (w - 1)), rtol=1e-12)
    found = overlap.verify()
    assert found.holds(1e-9)
    assert found.errors.max() < 1e-10
    assert abs(found.determinants).min() > 1


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("case", [TWO, STEEP])
def test_the_four_conditions_hold_by_quadrature(case, flipped):
    case = {**case, "x": case["x"][::-1] if flipped else case["x"]}
    overlap = bespoke_two_point(**case)
    assert defects(overlap, **case).max() < 1e-9
    assert (overlap.s2[0], overlap.s1[0]) == case["x"]
    assert overlap.verify().holds(1e-8)


def test_random_draws_verify():
    generator, built = np.random.default_rng(0), 0
    while built < 4:
        w = np.cumprod([*generator.uniform(0.5, 1.5, 1), *generator.uniform(1.1, 1.6, 2)])
        a = np.cumprod([*generator.uniform(0.5, 1.5, 1), *generator.uniform(1.2, 2, 2)])
        x = generator.uniform(0.5, 1) * np.array([1, 1.2 * w[2] / w[0]])
        case = {"theta_0": (a[0], w[0]), "p": (a[1], w[2]), "q": (a[2], w[1]), "x": tuple(x)}
        if math.log(a[2] / a[1]) * (a[1] ** 2 - a[0] ** 2) / 2 <= (w[2] - w[1]) ** 2:
            with pytest.raises(module.InfeasibleError, match=r"no increasing activation"):
                bespoke_two_point(**case)
            continue
        built += 1
        assert bespoke_two_point(**case).verify().holds(1e-8)


def test_nothing_is_feasible_beyond_the_inequality():
    """Just above it the recipe works; at it and below, it says that nothing does."""
    a_q = 1.5 * math.exp(0.25 / 0.625)  # (a_p² - a_0²)/2 = 0.625, (w_p - w_q)² = 0.25
    case = {**STEEP, "q": (1.02 * a_q, 1.5)}
    assert defects(bespoke_two_point(**case), **case).max() < 1e-9
    with pytest.raises(module.InfeasibleError, match=r"must exceed \(w_p - w_q\)\^2 = 0.25"):
        bespoke_two_point(**{**STEEP, "q": (a_q * (1 - 1e-9), 1.5)})


def test_a_wrong_activation_fails():
    overlap = bespoke_two_point(**TWO)
    wrong = bespoke_two_point(**{**TWO, "q": (3, 1.4)}).activation
    assert not module.Overlap(wrong, overlap.theta_0, overlap.p, overlap.q, overlap.s1, overlap.s2).verify().holds()


# One point


def test_the_second_slope_has_the_ratio():
    overlap = bespoke_one_point(**ONE)
    w = np.linspace(1, 2, 7)
    np.testing.assert_allclose([seen(overlap.activation, 1)(v) for v in w], 2 / 3, rtol=1e-13)
    exact = np.exp(-1.2106665138804382 + 1.9038136944403834 * (w - 1))
    np.testing.assert_allclose([seen(overlap.activation, 3)(v) for v in w], exact, rtol=1e-12)
    found = overlap.verify()
    assert overlap.one_point
    assert found.holds(1e-9)
    y_1, y_2 = overlap.s1[1], overlap.s2[1]
    assert found.determinants[0] == pytest.approx(y_1 * y_2 / 2 * (2 - 2 / 3), rel=1e-10)


def test_points_nearby_are_reached_twice_too():
    overlap = bespoke_one_point(**ONE)
    for a, w in ((2.03, 1.97), (1.97, 2.03)):
        level = torch.tensor([(a**2 - 1) / 2])
        for centre, width in ((1.0, 0.12), (3.0, 0.2)):
            ends = torch.tensor([centre - width, centre + width], dtype=torch.float64)
            sides = path_integral(overlap.activation, ends, 1.0, w) - level
            assert sides[0] > 0 > sides[1]


def test_with_ratio_one_the_curves_touch():
    found = bespoke_one_point(**ONE, ratio=1).verify()
    assert found.holds(1e-9)
    assert abs(found.determinants[0]) < 1e-12
    assert found.sines[0] < 1e-12


@pytest.mark.parametrize("ratio", [0.3, 0.999999, 5.0])
@pytest.mark.parametrize("x", [(1, 3), (3, 1)])
def test_any_ratio_either_way(ratio, x):
    overlap = bespoke_one_point((0.5, 0.8), (1.5, 1.2), x, ratio=ratio)
    assert overlap.verify().holds(1e-8)
    first, second = (seen(overlap.activation, at)(1.2) for at in x)
    assert second / first == pytest.approx(ratio, rel=1e-9)


# Traced preferences


def closed(a, w):
    """Return the closed form for the exponential from (1, 0.5)."""
    return a**2 / 2 - a.log() + (w - 0.5) ** 2


def draw(activation, n, seed=0):
    """Return limits p of flows from (1, 0.5), and other points q of their solution curves, shape (2, n, 2)."""
    g = torch.Generator().manual_seed(seed)
    w, x, shift = torch.rand(3, n, generator=g, dtype=torch.float64)
    w, x, shift = 0.8 + w, 0.4 + 1.2 * x, (0.6 * shift - 0.3).exp()
    a = (1 + 2 * path_integral(activation, x, 0.5, w)).sqrt()
    a_q = a * activation(w * x) / activation(w * shift * x)
    return torch.stack([torch.stack([a, w], -1), torch.stack([a_q, w * shift], -1)])


def test_traced_values_agree_with_the_closed_form_of_the_exponential():
    points = draw(torch.exp, 40)
    traced = traced_preference(torch.exp, (1, 0.5), points, reference=0.55)
    known = traced.isfinite()
    assert known[0].all()
    assert known.sum() > 50
    meets = closed(traced.exp(), torch.tensor(0.55))
    assert (meets - closed(*points.unbind(-1)))[known].abs().max() < 1e-6


@pytest.mark.parametrize("activation", [torch.tanh, torch.exp, torch.nn.functional.softplus])
def test_limits_have_the_least_value_on_their_curves(activation):
    points = draw(activation, 40, seed=1)
    chosen, passed_over = traced_preference(activation, (1, 0.5), points)
    known = passed_over.isfinite()
    assert known.sum() > 20
    assert (chosen < passed_over)[known].all()
    # A mutant: the order is not that of the distance from the start.
    away = (points - torch.tensor([1, 0.5])).square().sum(-1)
    assert not (away[0] < away[1])[known].all()


def test_the_reference_moves_along_the_lines_and_shapes_are_kept():
    points = draw(torch.tanh, 6)
    low, high = (traced_preference(torch.tanh, (1, 0.5), points[0], reference=r) for r in (0.6, 0.7))
    assert (high < low).all()
    assert torch.equal(low.argsort(), high.argsort())
    shaped = traced_preference(torch.tanh, (1, 0.5), points.reshape(3, 4, 2), reference=0.6)
    torch.testing.assert_close(shaped.flatten()[:6], low, rtol=0, atol=1e-8)


def test_points_that_nothing_leads_to():
    points = torch.tensor([[0.9, 0.8], [50.0, 0.8], [1.1, 0.8]], dtype=torch.float64)
    found = traced_preference(torch.exp, (1, 0.5), points)
    assert found[:2].isinf().all()
    assert found[2].isfinite()


def test_lost_lines_are_told():
    point = torch.tensor([[1.001, 0.8]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="field lines lost"):
        found = traced_preference(torch.exp, (1, 0.5), point, reference=3.0, inputs=(1e-3, 500.0))
    assert found.isnan().all()


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": (2, 1.4)}, "w_0 < w_q < w_p"),
        ({"p": (4, 2)}, "a_0 < a_p < a_q"),
        ({"theta_0": (1, -1)}, "theta_0, p, q: must have"),
        ({"q": (3, math.nan)}, "q: must be two finite numbers"),
        ({"q": (3, 1.5, 1)}, "q: must be two finite numbers"),
        ({"x": (1, 1.9)}, "x: must be two inputs > 0"),
        ({"x": (-1, 3)}, "x: must be two inputs > 0"),
        ({"x": 3}, "x: must be two inputs > 0"),
        ({"x": (1, math.inf)}, "x: must be two inputs > 0"),
    ],
)
def test_two_point_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        bespoke_two_point(**{**TWO, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": (0.5, 2)}, "0 < a_0 < a_p"),
        ({"p": (2, 1)}, "0 < w_0 < w_p"),
        ({"x": (1, 2)}, "x: must be two inputs > 0"),
        ({"ratio": 0}, "ratio: must be a finite number > 0"),
    ],
)
def test_one_point_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        bespoke_one_point(**{**ONE, **change})


GOOD = {"activation": torch.tanh, "theta_0": (1, 0.5), "points": torch.tensor([[2.0, 1.0]], dtype=torch.float64)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": torch.sigmoid}, ValueError, "non-monotone .* several data sets"),
        ({"activation": torch.relu}, ValueError, "constant .* all data sets"),
        ({"theta_0": (0, 0.5)}, ValueError, "theta_0: must be two numbers > 0"),
        ({"points": GOOD["points"].float()}, TypeError, "points: must be a torch.Tensor of dtype float64"),
        ({"points": GOOD["points"][:, :1]}, ValueError, r"points: must have shape \(..., 2\)"),
        ({"points": GOOD["points"] - 0.5}, ValueError, "points: must have a > 0 and w > w_0"),
        ({"points": GOOD["points"] * math.nan}, ValueError, "points: must be finite"),
        ({"reference": 0.5}, ValueError, "reference: must be more than w_0"),
        ({"inputs": (1, 1)}, ValueError, "inputs: must be 0 < least < largest"),
    ],
)
def test_tracing_refusals(change, error, message):
    with pytest.raises(error, match=message):
        traced_preference(**{**GOOD, **change})
