"""Overlaps against worked examples, quadrature and symmetries; every claim of a recipe put to its flows; refusals."""

import dataclasses
import itertools
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from mutation import mutated
from scipy.integrate import quad, solve_ivp
from torch.nn.functional import gelu, hardswish, mish, silu, softplus, softsign

from implicitreg.dynamics import gradient_flow, squared_loss
from implicitreg.nets import LogSlopeActivation, hidden_neuron
from implicitreg.overlaps import (
    InfeasibleError,
    Overlap,
    PreferenceGraph,
    elasticity,
    elasticity_trend,
    one_point_overlap,
    path_integral,
    path_invariant,
    preference_graph,
    rationalizable,
    solution_ratio,
    traced_preference,
    two_point_overlap,
    verify,
)

standard = sys.modules["implicitreg.overlaps.standard"]
paths = sys.modules["implicitreg.overlaps.elasticity"]
X1, X2 = math.log(2), math.log(3)
W_0 = 3.316534127157136739020288663


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def gompertz(z):
    return (-(-z).exp()).exp()


def cubed(z):
    return torch.sigmoid(z) ** 3


def product(z):
    return torch.sigmoid(3 * z) * torch.sigmoid(z)


def bent(z):
    return z / 5 + torch.sigmoid(3 * z)


def algebraic(z):
    return 1 + z / (1 + z * z).sqrt()


def cube(z):
    return z**3


INCREASING = {"exp": torch.exp, "softplus": softplus, "parabola": lambda z: 1 + z * z}
DECREASING = {"tanh": torch.tanh, "arctan": torch.arctan, "erf": torch.erf, "softsign": softsign}
CONSTANT = {"relu": torch.relu, "square": torch.square, "cube": cube}
TURNING = {
    "sigmoid": torch.sigmoid,
    "SiLU": silu,
    "GELU": gelu,
    "Mish": mish,
    "Gaussian cdf": torch.special.ndtr,
    "Gompertz": gompertz,
    "cubed": cubed,
    "product": product,
    "algebraic": algebraic,
    "hardswish": hardswish,
}


def h(x, w):
    """Return the antiderivative of the sigmoid's path integral."""
    return (w * x + math.exp(w * x)) / x**2


# Elasticity, ratio, path integral


def test_elasticities_in_closed_form():
    z = torch.linspace(0.02, 6, 100, dtype=torch.float64)
    s = torch.sigmoid(z)
    density = (-z * z / 2).exp() / math.sqrt(2 * math.pi)
    for activation, expected in (
        (torch.exp, z),
        (torch.square, torch.full_like(z, 2)),
        (torch.relu, torch.ones_like(z)),
        (softplus, z * s / (1 + z.exp()).log()),
        (torch.tanh, 2 * z / (2 * z).sinh()),
        (torch.sigmoid, z * (1 - s)),
        (silu, 1 + z * (1 - s)),
        (gelu, 1 + z * density / torch.special.ndtr(z)),
    ):
        found = elasticity(activation, z)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(elasticity(activation, z.reshape(5, 20)), found.reshape(5, 20), rtol=1e-13, atol=0)
        assert elasticity(activation, z.float()).dtype == torch.float32
    for activation, top, where in (
        (torch.sigmoid, 0.278465, 1.27846),
        (silu, 1.278465, 1.27846),
        (gelu, 1.294528, 0.83992),
    ):
        fine = torch.linspace(0.5, 2, 30001, dtype=torch.float64)
        value, at = elasticity(activation, fine).max(0)
        assert value.item() == pytest.approx(top, abs=1e-6)
        assert fine[at].item() == pytest.approx(where, abs=1e-4)


@pytest.mark.parametrize("group", ["increasing", "decreasing", "constant", "non-monotone"])
def test_trends(group):
    members = {"increasing": INCREASING, "decreasing": DECREASING, "constant": CONSTANT, "non-monotone": TURNING}
    for name, activation in members[group].items():
        assert elasticity_trend(activation) == group, name
    if group == "decreasing":
        assert elasticity_trend(torch.sin, 0.02, math.pi / 2) == group
        assert elasticity_trend(lambda z: (-z * z / 2).exp()) == group
    # Where one looks matters.
    assert elasticity_trend(torch.sigmoid, 0.1, 1.2) == "increasing"
    assert elasticity_trend(torch.sigmoid, 1.3, 6, points=3) == "decreasing"


def test_solution_ratio():
    x = torch.linspace(0.1, 4, 20, dtype=torch.float64)
    g = solution_ratio(torch.sigmoid, 2, 1, x)
    torch.testing.assert_close(g, (1 + (-x).exp()) / (1 + (-2 * x).exp()), rtol=1e-14, atol=0)
    assert solution_ratio(torch.sigmoid, 2, 1, tensor(math.log(1 + math.sqrt(2)))).item() == pytest.approx(
        (1 + math.sqrt(2)) / 2, abs=1e-15
    )
    torch.testing.assert_close(
        solution_ratio(torch.sigmoid, 2, 1, tensor(X1, X2)), tensor(1.2, 1.2), rtol=1e-15, atol=0
    )
    torch.testing.assert_close(solution_ratio(silu, 1, 2, x) * solution_ratio(silu, 2, 1, x), torch.ones(20).double())
    # d ln g / d ln x is the difference of elasticities.
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(solution_ratio(gelu, 2, 1, leaf).log().sum(), leaf)
    torch.testing.assert_close(slope * x, elasticity(gelu, 2 * x) - elasticity(gelu, x), rtol=1e-10, atol=1e-12)


def check_path_integrals():
    x, w = tensor(0.3, 1, 2.5)[:, None], tensor(0.5, 1, 3)
    start = -0.7
    torch.testing.assert_close(path_integral(torch.exp, x, start, w), (w - start) / x, rtol=1e-13, atol=0)
    torch.testing.assert_close(path_integral(cube, x, 0.2, w), (w**2 - 0.04) / 6 + 0 * x, rtol=1e-13, atol=0)
    expected = [[h(u, v) - h(u, start) for v in w.tolist()] for u in x.flatten().tolist()]
    torch.testing.assert_close(path_integral(torch.sigmoid, x, start, w), tensor(*expected), rtol=1e-12, atol=0)
    sinh = ((2 * w * x).cosh() - (2 * 0.2 * x).cosh()) / (4 * x**2)
    torch.testing.assert_close(path_integral(torch.tanh, x, 0.2, w), sinh, rtol=1e-11, atol=0)


def test_path_integrals_in_closed_form():
    check_path_integrals()


@pytest.mark.parametrize("name", TURNING)
def test_path_integrals_against_quadrature(name):
    activation = TURNING[name]
    for x, start, end in ((0.4, 0.5, 3.0), (1.7, 2.0, 0.3), (2.5, 0.1, 2.2)):

        def integrand(u, x=x):
            return float(u / elasticity(activation, tensor(u * x))[0])

        kink = [3 / x] if activation is hardswish and min(start, end) < 3 / x < max(start, end) else []
        ends = [start, *kink, end]
        expected = sum(quad(integrand, a, b, epsabs=0, epsrel=1e-12)[0] for a, b in itertools.pairwise(ends))
        found = path_integral(activation, x, start, end)
        assert found.dtype == torch.float64
        assert found.shape == ()
        assert found.item() == pytest.approx(expected, rel=1e-10)
        assert path_integral(activation, x, end, start).item() == pytest.approx(-expected, rel=1e-10)


def test_rules_of_path_integrals():
    for activation in (torch.sigmoid, gelu):
        whole = path_integral(activation, 1.3, 0.2, 2.0)
        parts = path_integral(activation, 1.3, 0.2, 0.9) + path_integral(activation, 1.3, 0.9, 2.0)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
        scaled = path_integral(activation, 1.3 / 7, 7 * 0.2, 7 * 2.0)
        torch.testing.assert_close(scaled, 49 * whole, rtol=1e-12, atol=0)
        assert path_integral(activation, 1.3, 0.4, 0.4) == 0
        grid = path_integral(
            activation, tensor(0.5, 1.5)[:, None, None], tensor(0.1, 0.2)[:, None], tensor(1.0, 2.0, 3.0)
        )
        assert grid.shape == (2, 2, 3)
        assert grid[1, 0, 2] == path_integral(activation, 1.5, 0.1, 3.0)
    assert path_integral(torch.exp, torch.ones(2), 0, 1).dtype == torch.float64
    # The closed form at its least: (e^2 + 1) / 4 at x = 2, by a start at w = 0.
    x = torch.linspace(1.99, 2.01, 201, dtype=torch.float64)
    least, at = path_integral(torch.sigmoid, x, 0, 1).min(0)
    assert least.item() == pytest.approx((math.e**2 + 1) / 4, rel=1e-13)
    assert x[at].item() == pytest.approx(2, abs=1e-6)


def test_kinks_and_steep_parts_are_integrated_adaptively():
    # At a jump of the slope from 1 / e^m to another: exact by pieces.
    found = path_integral(lambda z: torch.where(z < 1, z.exp(), math.e * (3 * (z - 1)).exp()), 1.0, 0.0, 2.0)
    assert found.item() == pytest.approx(1 + 1 / 3, rel=1e-10)
    assert path_integral(torch.sigmoid, 1.0, 0.0, 25.0).item() == pytest.approx(h(1, 25) - h(1, 0), rel=1e-5)
    assert path_integral(torch.exp, 1.0, 0.0, 500.0).item() == pytest.approx(500, rel=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "GELU", "tanh"])
def test_flows_conserve_the_path_invariant(name):
    activation = (TURNING | DECREASING)[name]
    for x, y in ((X1, 2.0), (X2, 1.3)):
        start = tensor(3.0, 2.0)
        flow = gradient_flow(
            lambda theta, x=x, y=y: squared_loss(hidden_neuron(theta, tensor([x]), activation), tensor(y)),
            start,
            until=1e-22,
        )
        along = path_invariant(activation, flow.theta, x, 2.0)
        assert along.shape == flow.t.shape
        torch.testing.assert_close(along, torch.full_like(along, 4.5), rtol=0, atol=1e-9)
        assert (path_invariant(torch.exp, flow.theta, x, 2.0) - 4.5).abs().max() > 0.05  # another activation's
    for x, expected in ((X1, 12.394566997099821), (X2, 3.222702499534318)):
        theta = tensor(8.708080263031743537501559871, W_0)
        # With h_x(w) in place of the integral from w_0: the same up to h_x(w_0).
        assert (path_invariant(torch.sigmoid, theta, x, 0.0) - h(x, 0)).item() == pytest.approx(expected, abs=1e-11)
    batch = path_invariant(torch.exp, torch.rand(4, 3, 2) + 1, torch.rand(4, 1) + 1, 0.5)
    assert batch.shape == (4, 3)


# Two points


def test_the_example_with_whole_numbers():
    overlap = two_point_overlap(torch.sigmoid, 2, 1, W_0, ratio=6 / 5)
    torch.testing.assert_close(overlap.p, tensor(5, 2.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(overlap.q, tensor(6, 1.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(overlap.theta_0, tensor(8.708080263031743537501559871, W_0), rtol=0, atol=1e-12)
    assert overlap.s1 == pytest.approx((X1, 4), abs=1e-13)
    assert overlap.s2 == pytest.approx((X2, 4.5), abs=1e-13)
    assert not overlap.one_point
    exact = dataclasses.replace(
        overlap, theta_0=(8.708080263031743537501559871, W_0), p=(5, 2), q=(6, 1), s1=(X1, 4), s2=(X2, 4.5)
    )
    for each in (overlap, exact):
        found = each.verify()
        assert found.holds(1e-11)
        assert found.residuals.abs().max() < 1e-14 * 100
        assert found.errors.max() < 5e-11
        torch.testing.assert_close(found.ends, tensor([6, 1.0], [5, 2.0]), rtol=0, atol=1e-10)
        assert found.converged.tolist() == [True, True]
        assert found.size == pytest.approx(math.hypot(8.70808026303, W_0), rel=1e-9)
    assert exact.loss(exact.p).max() < 1e-28
    torch.testing.assert_close(exact.loss(exact.theta_0), tensor(7.9137417495 - 4, 8.4860975796 - 4.5).square() / 2)
    assert exact.loss(torch.zeros(3, 2, 2).double()).shape == (3, 2)


EXAMPLES = {
    "from (1, 0)": (
        (torch.sigmoid, 0.375554562138671552, 0.250369708092447701, 0.0),
        {"ratio": 1.044756271200879804},
        [0.798818681076829986, 0.837623218244707920, 11.22504598475037848, 1.436935977587278707],
        [1.0, 0.0, 1.458149760386446678, 0.375554562138671552, 1.523411106513800388, 0.250369708092447701],
    ),
    "SiLU": (
        (silu, 2, 1, 5),
        {"ratio": 2.372792306135736},
        [0.5715720941773507, 0.2379751292063108, 1.279229190125112, 0.6519377882148983],
        [4.474746195842902, 5, 0.27454557378306011, 2, 0.65143962515606605, 1],
    ),
    "GELU": (
        (gelu, 2, 1, 5),
        {"ratio": 2.3953878532213566},
        [0.3784760305093177, 0.2311174211094748, 0.8097845703908187, 0.6040998990370000],
        [4.528818796891347, 5, 0.39373544210094653, 2, 0.94314909539134806, 1],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_to_their_digits(name):
    arguments, options, samples, points = EXAMPLES[name]
    overlap = two_point_overlap(*arguments, **options)
    assert [*overlap.s1, *overlap.s2] == pytest.approx(samples, rel=1e-8)
    assert torch.cat([overlap.theta_0, overlap.p, overlap.q]).tolist() == pytest.approx(points, abs=1e-8)
    found = overlap.verify()
    assert found.holds(1e-10)
    assert found.sines.min() > 0.01


def test_height_is_that_of_the_ratio():
    """The ratio of SiLU rises from 2 to 1 + sqrt 2, and back to 2."""
    for height in (0.8, 0.85, 0.9):
        overlap = two_point_overlap(silu, 2, 1, 5, **({} if height == 0.9 else {"height": height}))
        r = 2 + height * (math.sqrt(2) - 1)
        assert (overlap.q[0] / overlap.p[0]).item() == pytest.approx(r, abs=1e-9)
        at = solution_ratio(silu, 2, 1, tensor(overlap.s1[0], overlap.s2[0]))
        torch.testing.assert_close(at, tensor(r, r), rtol=0, atol=1e-9)
        assert overlap.s1[0] < math.log(1 + math.sqrt(2)) < overlap.s2[0]


def draw(activation, generator):
    """Return an overlap at random: draws that are not feasible are drawn again."""
    for _ in range(60):
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        w_q = 0.5 + u[0]
        w_p = w_q * (1.3 + 1.2 * u[1])
        try:
            return two_point_overlap(activation, w_p, w_q, w_p * (1.1 + 1.4 * u[2]), height=0.3 + 0.65 * u[3])
        except InfeasibleError:
            pass
    raise AssertionError("no feasible draw")


@pytest.mark.parametrize("name", TURNING)
def test_two_point_recipe(name):
    """For any activation with an elasticity that turns: the recipe knows nothing of sigmoids."""
    generator = torch.Generator().manual_seed(2)
    overlaps = [draw(TURNING[name], generator) for _ in range(3)]
    for overlap, found in zip(overlaps, verify(overlaps), strict=True):
        assert found.holds(1e-7 if name != "hardswish" else 1e-5)
        assert found.sines.min() > 1e-4
        assert overlap.s1[0] < overlap.s2[0]
        assert overlap.q[0] > overlap.p[0]


def test_flows_of_overlaps_by_scipy():
    """One drawn overlap, its flows with the gradient by hand and another solver."""
    overlap = draw(torch.sigmoid, torch.Generator().manual_seed(5))
    for (x, y), end in ((overlap.s1, overlap.q), (overlap.s2, overlap.p)):

        def velocity(_, theta, x=x, y=y):
            s = 1 / (1 + np.exp(-theta[1] * x))
            return -(theta[0] * s - y) * np.array([s, theta[0] * x * s * (1 - s)])

        found = solve_ivp(velocity, (0, 3000), overlap.theta_0.numpy(), "LSODA", rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(found.y[:, -1], end, rtol=0, atol=1e-7)


def test_scaling_inputs_against_weights():
    plain = two_point_overlap(silu, 2, 1, 5)
    for c in (1e-3, 0.5, 8.0, 1e4):
        scaled = two_point_overlap(silu, 2 / c, 1 / c, 5 / c)
        for name in ("theta_0", "p", "q"):
            torch.testing.assert_close(getattr(scaled, name) * c, getattr(plain, name), rtol=1e-9, atol=0)
        for name in ("s1", "s2"):
            (x, y), (u, v) = getattr(scaled, name), getattr(plain, name)
            assert (x / c, y * c) == pytest.approx((u, v), rel=1e-9)
    for c in (1e-3, 0.5, 8.0, 1e4):
        one = one_point_overlap(torch.sigmoid, (1 / c, 0), 1 / c, math.e / c**2)
        assert (one.s1[0] / c, one.s2[0] / c) == pytest.approx((1, 3.318266480875920), rel=1e-9)


def test_batches_of_overlaps_are_single_ones():
    generator = torch.Generator().manual_seed(3)
    overlaps = [draw(torch.sigmoid, generator) for _ in range(2)] + [
        one_point_overlap(torch.sigmoid, (1, 0), 1, math.e)
    ]
    together = verify(overlaps)
    for overlap, found in zip(overlaps, together, strict=True):
        alone = overlap.verify()
        for name in ("residuals", "determinants", "sines"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.ends, alone.ends, rtol=0, atol=1e-8)
        assert found.size == pytest.approx(alone.size)
    for one, other in zip(verify(overlaps[::-1]), together[::-1], strict=True):
        torch.testing.assert_close(one.ends, other.ends, rtol=0, atol=1e-8)
        torch.testing.assert_close(one.determinants, other.determinants, rtol=1e-12, atol=0)
    coarse = verify(overlaps, rtol=1e-4, atol=1e-6)
    assert max(v.errors.max() for v in coarse) > 1e-6


def test_names_of_the_points_are_arbitrary():
    """With both the points and the data sets renamed it is the same overlap; with one of the two it is none."""
    o = two_point_overlap(torch.sigmoid, 2, 1, W_0, ratio=6 / 5)
    renamed = Overlap(o.activation, o.theta_0, o.q, o.p, o.s2, o.s1).verify()
    found = o.verify()
    assert renamed.holds(1e-10)
    assert torch.equal(renamed.errors, found.errors.flip(0))
    torch.testing.assert_close(renamed.residuals, found.residuals.flip(0, 1), rtol=0, atol=0)
    torch.testing.assert_close(renamed.determinants, -found.determinants.flip(0), rtol=1e-12, atol=0)
    for wrong in (
        Overlap(o.activation, o.theta_0, o.q, o.p, o.s1, o.s2),
        Overlap(o.activation, o.theta_0, o.p, o.q, o.s2, o.s1),
    ):
        verification = wrong.verify()
        assert verification.converged.all()
        assert verification.residuals.abs().max() < 1e-12
        assert verification.errors.min() > 1.4
        assert not verification.holds(0.1)


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({"activation": torch.tanh}, (0.826, 1.320)),
        ({"theta_0": (9.208080263031743, W_0)}, (0.602, 0.492)),
    ],
)
def test_other_activations_and_starts_end_elsewhere(changes, errors):
    overlap = two_point_overlap(torch.sigmoid, 2, 1, W_0, ratio=6 / 5)
    found = dataclasses.replace(overlap, **changes).verify()
    assert found.errors.tolist() == pytest.approx(errors, abs=1e-3)
    assert not found.holds(1e-2)


def test_another_target_is_no_longer_fitted():
    overlap = two_point_overlap(torch.sigmoid, 2, 1, W_0, ratio=6 / 5)
    found = dataclasses.replace(overlap, s2=(X2, 4.4)).verify()
    torch.testing.assert_close(found.residuals, tensor([0, 0], [0.1, 0.1]), rtol=0, atol=1e-12)
    assert not found.holds()


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [
        (two_point_overlap, "(h1 - h2)", "(h2 - h1)"),
        (two_point_overlap, "((x1, w_q), (x2, w_p))", "((x1, w_p), (x2, w_q))"),
        (two_point_overlap, "(ratio**2 - 1)", "(ratio - 1)"),
        (two_point_overlap, "- 2 * h1", "- 2 * h2"),
        (two_point_overlap, "activation, w_p * x)", "activation, w_q * x)"),
        (two_point_overlap, "[ratio * a_p, w_q]", "[a_p / ratio, w_q]"),
        (one_point_overlap, "a_0**2 + 2 * level", "a_0**2 + level"),
        (one_point_overlap, "sigma_at(activation, w * x)", "sigma_at(activation, w)"),
        (paths.quadrature, "(w - w_0) / x", "(w - w_0)"),
        (paths.quadrature, "value / slope", "slope / value"),
        (verify, "points.flip(1)", "points"),
        (verify, "y[:, None, :, 0]).mT", "y[:, None, :, 0])"),
        (verify, "torch.linalg.det(gradients)", "torch.linalg.det(gradients.flip(1))"),
    ],
)
def test_mutants_are_caught(monkeypatch, function, right, wrong):
    home, name = sys.modules[function.__module__], function.__name__
    monkeypatch.setattr(home, name, getattr(mutated(home, name, right, wrong), name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises((AssertionError, ValueError)):
            check_overlaps()


def test_overlaps_hold():
    check_overlaps()


def check_overlaps():
    two = standard.two_point_overlap(torch.sigmoid, 2, 1, W_0, ratio=6 / 5)
    run = sys.modules[Overlap.__module__].verify
    (found,) = run([two])
    assert found.holds(1e-9)
    x = two.x[:, 0]
    for point, determinant in zip((two.p, two.q), found.determinants, strict=True):
        gradients = torch.func.jacrev(lambda theta: hidden_neuron(theta, x, torch.sigmoid))(point)
        torch.testing.assert_close(determinant, torch.linalg.det(gradients), rtol=1e-9, atol=0)
    one = standard.one_point_overlap(torch.sigmoid, (1, 0), 1, math.e)
    assert run([one])[0].holds(1e-9)
    (other,) = run([dataclasses.replace(two, s2=(X2, 4.4))])
    torch.testing.assert_close(other.residuals, tensor([0, 0], [0.1, 0.1]), rtol=0, atol=1e-9)


# One point


def test_the_one_point_example():
    overlap = one_point_overlap(torch.sigmoid, (1, 0), 1, math.e)
    torch.testing.assert_close(overlap.p, tensor(2.537038363312248, 1), rtol=0, atol=1e-14)
    assert overlap.s1 == pytest.approx((1, 1.854723659812846), abs=1e-12)
    assert overlap.s2 == pytest.approx((3.318266480875920, 2.448369303453965), abs=1e-12)
    assert overlap.one_point
    found = overlap.verify()
    assert found.holds(1e-10)
    assert found.determinants[0].item() == pytest.approx(-0.273798658, abs=1e-9)
    assert found.determinants[0] == found.determinants[1]
    assert math.degrees(math.asin(found.sines[0])) == pytest.approx(17.911, abs=1e-3)


def test_the_region_reached_twice():
    """From (1, 0), a sigmoid: the quick grid."""
    overlaps = [
        one_point_overlap(torch.sigmoid, (1, 0), w, (math.e**2 + 1) / 4 * w**2 * factor)
        for w in (0.3, 0.7, 1, 1.6)
        for factor in (1.05, 1.3, 2, 4)
    ]
    found = verify(overlaps)
    assert all(v.holds(1e-10) for v in found)
    assert min(v.sines.min() for v in found) == pytest.approx(0.150, abs=1e-3)
    for overlap in overlaps:
        z1, z2 = (overlap.p[1].item() * s[0] for s in (overlap.s1, overlap.s2))
        assert z1 < 2 < z2
        level = ((overlap.p[0] ** 2 - 1) / (2 * overlap.p[1] ** 2)).item()
        assert [(z + math.exp(z) - 1) / z**2 for z in (z1, z2)] == pytest.approx([level, level], rel=1e-12)


@pytest.mark.parametrize("name", TURNING)
def test_one_point_recipe(name):
    activation, overlaps = TURNING[name], []
    starts = [((1, 0.4), 0.8), ((6, 1.5), 0.8)]
    for theta_0, w in starts:
        x = torch.logspace(-3, 1.5, 400, dtype=torch.float64) / max(theta_0[1], w)
        values = paths.quadrature(activation, x, *(torch.full_like(x, v) for v in (theta_0[1], w)), 8)
        finite = values[values.isfinite()]
        for best, end in ((finite.min(), finite[[0, -1]].min()), (finite.max(), finite[[0, -1]].max())):
            if abs(best - end) > 1e-3 * abs(end):
                level = best + 0.1 * (end - best).clamp(-abs(best), abs(best))
                overlaps.append(one_point_overlap(activation, theta_0, w, float(level)))
    assert len(overlaps) == 2
    for overlap, found in zip(overlaps, verify(overlaps), strict=True):
        assert found.holds(1e-7 if name != "hardswish" else 1e-5)
        assert found.sines.min() > 1e-4
        assert overlap.s1[0] < overlap.s2[0]


def test_levels_on_the_grid_of_the_search():
    """An input of the search that is the root up to rounding, on either side of it."""
    for i in (900, 910):
        x = float(standard._SEARCH[i])
        level = path_integral(torch.sigmoid, x, 0.0, 1.0).item()
        for _ in range(3):
            level = math.nextafter(level, -math.inf)
        for _ in range(6):
            overlap = one_point_overlap(torch.sigmoid, (1, 0), 1, level)
            assert overlap.s1[0] == pytest.approx(x, rel=1e-13)
            level = math.nextafter(level, math.inf)


# None where the elasticity is monotone


@pytest.mark.parametrize("name", INCREASING | DECREASING | CONSTANT)
def test_monotone_activations_are_refused(name):
    activation = (INCREASING | DECREASING | CONSTANT)[name]
    trend = elasticity_trend(activation)
    start = rf"^activation: its elasticity .* is {trend} .*"
    with pytest.raises(ValueError, match=start + "solution curves meet .* no two-point") as caught:
        two_point_overlap(activation, 2, 1, 3)
    assert not isinstance(caught.value, InfeasibleError)  # other weights would not help
    with pytest.raises(ValueError, match=start + "the end of one path .* no one-point") as caught:
        one_point_overlap(activation, (1, 0.5), 1, 2.0)
    assert not isinstance(caught.value, InfeasibleError)


def test_infeasible_draws_say_so():
    # Its elasticity rises, falls and rises, and so do its curves, past none of their ends.
    assert elasticity_trend(bent) == "non-monotone"
    with pytest.raises(
        InfeasibleError, match=r"^w_p, w_q: no two-point .* beyond both of its ends; try weights closer"
    ):
        two_point_overlap(bent, 2, 1, 3)
    with pytest.raises(InfeasibleError, match=r"^w: no one-point .* beyond both of its ends; try one closer to w_0"):
        one_point_overlap(bent, (1, 0.4), 0.8, 0.1)
    with pytest.raises(InfeasibleError, match=r"^w_0: must give a_p² > 0 and a_0² > 0, got .* and -"):
        two_point_overlap(torch.sigmoid, 2, 1, -17.2256135 / 2, ratio=6 / 5)
    with pytest.raises(InfeasibleError, match=r"^w_0: must give a_p² > 0"):
        two_point_overlap(torch.sigmoid, 2, 1, 1.0, ratio=6 / 5)
    with pytest.raises(InfeasibleError, match=r"^level: must give a² > 0, which is -.*; try one above -0.005$"):
        one_point_overlap(torch.sigmoid, (0.1, 2), 1, -6.0)
    assert issubclass(InfeasibleError, ValueError)


# Preferences


def closed(edges, n):
    """Return which candidate is chosen over which by some chain: n times is enough."""
    reach = np.zeros((n, n), dtype=bool)
    for chosen, rejected, _ in edges:
        reach[chosen, rejected] = True
    for _ in range(n):
        reach |= (reach.astype(int) @ reach.astype(int)) > 0
    return reach


def test_the_example_has_a_cycle():
    overlap = two_point_overlap(torch.sigmoid, 2, 1, W_0, ratio=6 / 5)
    candidates = torch.stack([overlap.p, overlap.q, overlap.theta_0])
    losses = overlap.loss(candidates[:, None].expand(3, 2, 2)).T
    graph = preference_graph(overlap.verify().ends, candidates, losses, zero=1e-20)
    assert set(graph.edges) == {(1, 0, 0), (0, 1, 1)}
    found = rationalizable(graph)
    assert not found
    assert found.ranks is None
    assert found.cycle in ((0, 1, 0), (1, 0, 1))
    assert found.verify()
    half = rationalizable(dataclasses.replace(graph, edges=graph.edges[:1]))
    assert half
    assert half.verify()
    assert half.ranks[1] < half.ranks[0]


def test_cycles_of_three_and_more():
    points = torch.eye(5)
    for n in (2, 3, 4, 5):
        edges = tuple((i, (i + 1) % n, i) for i in range(n))
        found = rationalizable(PreferenceGraph(points, edges))
        assert not found
        assert found.verify()
        assert len(found.cycle) == n + 1
        assert set(itertools.pairwise(found.cycle)) == {edge[:2] for edge in edges}
        broken = rationalizable(PreferenceGraph(points, edges[1:]))
        assert broken
        assert broken.verify()
    # Three data sets with pairs of solutions: no two of them contradict each other.
    candidates, losses = torch.eye(3), torch.ones(3, 3) - torch.eye(3).roll(-1, 0)
    graph = preference_graph(
        candidates, candidates, 1 - losses.where(losses == 0, 0) - torch.eye(3) - torch.eye(3).roll(1, 1)
    )
    assert {edge[:2] for edge in graph.edges} == {(0, 1), (1, 2), (2, 0)}
    assert not rationalizable(graph)


@pytest.mark.parametrize("density", [0.05, 0.15, 0.4])
def test_random_graphs_against_transitive_closures(density):
    verdicts = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 8))
        edges = tuple(
            (i, j, int(rng.integers(3))) for i in range(n) for j in range(n) if i != j and rng.random() < density
        )
        found = rationalizable(PreferenceGraph(torch.eye(n), edges))
        assert bool(found) == (not closed(edges, n).diagonal().any())
        assert found.verify()
        assert (found.ranks is None) != (found.cycle is None)
        if found:
            assert sorted(found.ranks.tolist()) == list(range(n))
        order = rng.permutation(n)
        renamed = tuple((int(order[i]), int(order[j]), k) for i, j, k in edges)
        assert bool(rationalizable(PreferenceGraph(torch.eye(n), renamed))) == bool(found)
        verdicts.append(bool(found))
    assert len(set(verdicts)) == 2


def test_certificates_that_lie_are_caught():
    graph = PreferenceGraph(torch.eye(3), ((0, 1, 0), (1, 2, 1)))
    found = rationalizable(graph)
    assert not dataclasses.replace(found, ranks=found.ranks.flip(0)).verify()
    assert not dataclasses.replace(found, ranks=torch.zeros(3)).verify()  # a tie is no strict minimum
    for cycle in (None, (), (0,), (0, 0), (0, 1), (1, 0, 1), (0, 1, 2), (0, 1, 2, 0)):
        assert not dataclasses.replace(found, ranks=None, cycle=cycle).verify()


def test_ties_and_tolerances_of_preferences():
    candidates = tensor([0, 0], [1, 0], [0, 1])
    limits = candidates[[0, 2]] + 1e-9
    losses = tensor([0, 1e-17, 1e-15], [1e-3, 1e-20, 0])
    assert preference_graph(limits, candidates, losses).edges == ((0, 1, 0), (2, 1, 1))
    assert preference_graph(limits, candidates, losses, zero=1e-14).edges == ((0, 1, 0), (0, 2, 0), (2, 1, 1))
    assert preference_graph(limits, candidates, losses, zero=1e-18).edges == ((2, 1, 1),)
    # The same choice twice is no contradiction, and ties of the losses among the rejected do not matter.
    twice = preference_graph(limits[[0, 0]], candidates, torch.zeros(2, 3).double())
    assert len(twice.edges) == 4
    assert rationalizable(twice).ranks[0] == 0
    alone = preference_graph(limits[:1], candidates[:1], torch.zeros(1, 1).double())
    assert alone.edges == ()
    assert rationalizable(alone)
    assert preference_graph(limits.float(), candidates, losses.float(), atol=1e-6).edges[0] == (0, 1, 0)


def test_many_candidates_keep_their_digits():
    """Distances by matrix products would have errors of 1e-6 here."""
    candidates = 100 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = preference_graph(candidates.flip(0), candidates, torch.zeros(60, 60).double())
    assert len(graph.edges) == 60 * 59
    assert not rationalizable(graph)
    close = torch.cat([candidates, candidates[:1] + 1e-7])
    assert len(preference_graph(close[:1], close, torch.zeros(1, 61).double()).edges) == 60
    with pytest.raises(ValueError, match=r"^candidates: must be further apart"):
        preference_graph(close[:1], close, torch.zeros(1, 61).double(), atol=1e-6)


def test_an_exponential_family_is_rationalizable():
    """From one start, on many samples: the closed form of J ranks as the choices do."""
    start = tensor(1.0, 0.5)
    generator = torch.Generator().manual_seed(1)
    x = 0.3 + 1.5 * torch.rand(20, 1, 1, generator=generator, dtype=torch.float64)
    y = (
        hidden_neuron(start, x, torch.exp)
        * torch.rand(20, 1, generator=generator, dtype=torch.float64).mul(3).sub(1).exp()
    )
    ends = gradient_flow(
        lambda t: squared_loss(hidden_neuron(t, x, torch.exp), y), start.expand(20, 2), until=1e-26
    ).end
    # Beside each limit, two more solutions of its data set.
    shifted = ends[:, 1:] + tensor(-0.4, 0.3)
    others = torch.stack([y / (x[..., 0] * shifted).exp(), shifted], -1).reshape(-1, 2)
    candidates = torch.cat([ends, others])
    losses = squared_loss(hidden_neuron(candidates[None], x[:, None], torch.exp), y[:, None])
    graph = preference_graph(ends, candidates, losses, zero=1e-22)
    assert len(graph.edges) >= 40
    found = rationalizable(graph)
    assert found
    assert found.verify()
    a, w = candidates.unbind(-1)
    value = a.square() / 2 - a.log() + (w - 0.5).square()
    assert dataclasses.replace(found, ranks=value).verify()


# Dtypes, refusals


def test_overlaps_keep_points_of_their_own():
    point = torch.tensor([1.0, 2.0], requires_grad=True)
    overlap = Overlap(torch.sigmoid, point, [2, 1], (2, 1), (1, 2), [3.0, 4])
    with torch.no_grad():
        point.add_(1)
    assert overlap.theta_0.tolist() == [1, 2]
    assert overlap.theta_0.dtype == torch.float64
    assert not overlap.theta_0.requires_grad
    assert overlap.one_point
    assert overlap.s2 == (3.0, 4.0)
    assert overlap.x.shape == (2, 1, 1)
    assert overlap.y.shape == (2, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        overlap.p = point


def test_two_clones_of_one_activation_are_verified_apart():
    made = [LogSlopeActivation([0, 1], [0, 0], [0, 0]) for _ in range(2)]
    overlaps = [Overlap(f, (1, 0), (math.e, 1), (math.e, 1), (1, 2), (1, 2)) for f in made]
    with pytest.raises(ValueError, match=r"^overlaps: must be at least one, all with the same activation"):
        verify(overlaps)


def test_flows_that_do_not_arrive_say_so():
    overlap = Overlap(torch.sigmoid, (1, 0), (3, 1), (2, 2), (0.0, 1.0), (1.0, 2.0))
    # With x = 0 the gradient in w is 0: the flow arrives, elsewhere.
    assert overlap.verify().converged.all()
    stuck = Overlap(torch.relu, (1, -1), (3, 1), (2, 2), (1.0, 1.0), (1.0, 2.0))
    with pytest.warns(RuntimeWarning, match="2 of 2 members did not converge"):
        found = stuck.verify()
    assert not found.converged.any()
    assert not found.holds(1e9)


SIGMOID = two_point_overlap(torch.sigmoid, 2, 1, W_0, ratio=6 / 5)
POINTS = torch.eye(2)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: elasticity(torch.exp, 1.0), TypeError, "z: must be a torch.Tensor, got float"),
        (lambda: elasticity(torch.exp, torch.ones(2).long()), TypeError, "z: must have dtype float32"),
        (lambda: elasticity("exp", torch.ones(2)), TypeError, "activation: must be a function of a tensor, got str"),
        (lambda: elasticity(torch.relu, tensor(1, -1.0)), ValueError, "activation: must be finite at z, .*and not 0"),
        (lambda: elasticity(torch.log, tensor(0.0)), ValueError, "activation: must be finite at z"),
        (lambda: elasticity(torch.exp, tensor(math.nan)), ValueError, "activation: must be finite at z"),
        (lambda: elasticity(torch.ones_like, tensor(1.0)), TypeError, "activation: must .* automatic differentiation"),
        (lambda: elasticity(torch.sum, tensor(1.0, 2)), ValueError, "activation: must map a tensor entry by entry"),
        (lambda: elasticity_trend(torch.exp, 0), ValueError, "low: must be a finite number > 0"),
        (lambda: elasticity_trend(torch.exp, 2, 1), ValueError, "high: must be more than low, 2, got 1"),
        (lambda: elasticity_trend(torch.exp, 1, math.inf), ValueError, "high: must be a finite number > 0"),
        (lambda: elasticity_trend(torch.exp, points=2), ValueError, "points: must be an integer >= 3"),
        (lambda: elasticity_trend(lambda z: torch.relu(z - 1)), ValueError, "activation: must be finite at z"),
        (lambda: solution_ratio(torch.exp, 1, 2, 3.0), TypeError, "x: must be a torch.Tensor, got float"),
        (lambda: solution_ratio(None, 1, 2, POINTS), TypeError, "activation: must be a function"),
        (lambda: solution_ratio(torch.exp, "1", 2, POINTS), ValueError, "w_p: must be a finite number, got '1'"),
        (lambda: solution_ratio(torch.exp, 1, math.nan, POINTS), ValueError, "w_q: must be a finite number, got nan"),
        (lambda: path_integral(torch.exp, 0.0, 0, 1), ValueError, "x: must be finite and > 0"),
        (lambda: path_integral(torch.exp, -POINTS, 0, 1), ValueError, "x: must be finite and > 0"),
        (lambda: path_integral(torch.exp, math.nan, 0, 1), ValueError, "x: must be finite"),
        (lambda: path_integral(torch.exp, 1, math.nan, 1), ValueError, "w_0: must be finite"),
        (lambda: path_integral(torch.exp, 1, 0, math.inf), ValueError, "w: must be finite"),
        (lambda: path_integral(torch.exp, 1, "0", 1), ValueError, "w_0: must be a finite number or a tensor of them"),
        (lambda: path_integral(torch.exp, torch.ones(2), torch.ones(3), 1), ValueError, "w_0: .* broadcast .* of x"),
        (lambda: path_integral(torch.exp, 1, torch.ones(2), torch.ones(3)), ValueError, "w: .* broadcast .* of w_0"),
        (lambda: path_integral(0, 1, 0, 1), TypeError, "activation: must be a function of a tensor, got int"),
        (
            lambda: path_integral(torch.tanh, 1, -1, 1),
            ValueError,
            "activation: must be positive and increasing between",
        ),
        (lambda: path_integral(torch.cos, 1, 0.1, 1), ValueError, "activation: must be positive and increasing"),
        (lambda: path_integral(silu, 1, -3, -2), ValueError, "activation: must be positive and increasing"),
        (lambda: path_invariant(torch.exp, [1, 1], 1, 0), TypeError, "theta: must be a torch.Tensor, got list"),
        (lambda: path_invariant(torch.exp, torch.ones(3), 1, 0), ValueError, r"theta: must have shape \(\.\.\., 2\)"),
        (lambda: path_invariant(torch.exp, torch.tensor(1.0), 1, 0), ValueError, "theta: must have shape"),
        (lambda: path_invariant(torch.exp, POINTS, -1, 0), ValueError, "x: must be finite and > 0"),
        (lambda: Overlap(torch.exp, (1,), (1, 2), (1, 2), (1, 2), (1, 2)), ValueError, "theta_0: must be two finite"),
        (
            lambda: Overlap(torch.exp, (1, 2), (1, math.nan), (1, 2), (1, 2), (1, 2)),
            ValueError,
            "p: must be two finite",
        ),
        (lambda: Overlap(torch.exp, (1, 2), (1, 2), "12", (1, 2), (1, 2)), ValueError, "q: must be two finite"),
        (
            lambda: Overlap(torch.exp, (1, 2), (1, 2), (1, 2), (1,), (1, 2)),
            ValueError,
            "s1: must be two finite numbers",
        ),
        (
            lambda: Overlap(torch.exp, (1, 2), (1, 2), (1, 2), (1, 2), (1, math.inf)),
            ValueError,
            "s2: must be two finite",
        ),
        (lambda: Overlap(torch.exp, (1, 2), (1, 2), (1, 2), (1, 2), 3), ValueError, "s2: must be two finite numbers"),
        (lambda: SIGMOID.loss([1.0, 2.0]), TypeError, "theta: must be a torch.Tensor"),
        (lambda: SIGMOID.verify().holds(0), ValueError, "tolerance: must be a finite number > 0"),
        (lambda: SIGMOID.verify(rtol=0), ValueError, "rtol: must be a finite number > 0"),
        (lambda: verify([]), ValueError, "overlaps: must be at least one"),
        (lambda: verify(SIGMOID), TypeError, "overlaps: must be a sequence of Overlap"),
        (lambda: verify([SIGMOID, None]), TypeError, "overlaps: must be a sequence of Overlap"),
        (lambda: two_point_overlap(torch.sigmoid, 1, 1, 3), ValueError, "w_p: must be more than w_q, 1, got 1"),
        (lambda: two_point_overlap(torch.sigmoid, 2, 0, 3), ValueError, "w_q: must be a finite number > 0, got 0"),
        (lambda: two_point_overlap(torch.sigmoid, 2, 1, "3"), ValueError, "w_0: must be a finite number, got '3'"),
        (lambda: two_point_overlap(torch.sigmoid, 2, 1, math.nan), ValueError, "w_0: must be a finite number, got nan"),
        (
            lambda: two_point_overlap(torch.sigmoid, 2, 1, 3, height=0),
            ValueError,
            "height: must be a number > 0 and < 1",
        ),
        (
            lambda: two_point_overlap(torch.sigmoid, 2, 1, 3, height=1),
            ValueError,
            "height: must be a number > 0 and < 1",
        ),
        (
            lambda: two_point_overlap(torch.sigmoid, 2, 1, 3, ratio=1.3),
            ValueError,
            "ratio: must lie between 1 and 1.2071",
        ),
        (lambda: two_point_overlap(torch.sigmoid, 2, 1, 3, ratio=math.nan), ValueError, "ratio: must lie between"),
        (lambda: two_point_overlap("sigmoid", 2, 1, 3), TypeError, "activation: must be a function of a tensor"),
        (lambda: two_point_overlap(lambda z: torch.relu(z - 1), 2, 1, 3), ValueError, "activation: "),
        (lambda: two_point_overlap(torch.cos, 2, 1, 3), ValueError, "activation: must be positive and increasing"),
        (lambda: two_point_overlap(lambda z: -torch.sigmoid(z), 2, 1, 3), ValueError, "activation: must be positive"),
        (
            lambda: one_point_overlap(torch.sigmoid, (1,), 1, 2),
            ValueError,
            r"theta_0: must be two finite numbers \(a, w",
        ),
        (
            lambda: one_point_overlap(torch.sigmoid, (1, 0), 0, 2),
            ValueError,
            "w: must be a finite number other than the",
        ),
        (lambda: one_point_overlap(torch.sigmoid, (1, 0), math.inf, 2), ValueError, "w: must be a finite number other"),
        (lambda: one_point_overlap(torch.sigmoid, (1, 0), 1, 2.09), ValueError, "level: must lie between 2.09726 and"),
        (lambda: one_point_overlap(torch.sigmoid, (1, 0), 1, None), ValueError, "level: must lie between 2.09726 and"),
        (lambda: preference_graph([[1.0]], POINTS, POINTS), TypeError, "limits: must be a torch.Tensor"),
        (lambda: preference_graph(POINTS[None], POINTS, POINTS), ValueError, "limits: must have two dimensions"),
        (lambda: preference_graph(POINTS, torch.eye(3), POINTS), ValueError, r"candidates: must have shape \(n, 2\)"),
        (lambda: preference_graph(POINTS, POINTS, torch.zeros(1, 2)), ValueError, r"losses: must have shape \(2, 2\)"),
        (lambda: preference_graph(POINTS, POINTS, POINTS * math.nan), ValueError, "losses: must be finite"),
        (lambda: preference_graph(POINTS, POINTS, POINTS.long()), TypeError, "losses: must have dtype"),
        (
            lambda: preference_graph(POINTS, POINTS, POINTS),
            ValueError,
            "limits: number 0 must be a candidate, .* with zero",
        ),
        (
            lambda: preference_graph(POINTS + 1, POINTS, 0 * POINTS),
            ValueError,
            "limits: number 0 must be a candidate, up",
        ),
        (lambda: preference_graph(POINTS, POINTS, 0 * POINTS, atol=2), ValueError, "candidates: must be further apart"),
        (lambda: preference_graph(POINTS, POINTS, 0 * POINTS, atol=0), ValueError, "atol: must be a finite number > 0"),
        (
            lambda: preference_graph(POINTS, POINTS, 0 * POINTS, zero=-1),
            ValueError,
            "zero: must be a finite number > 0",
        ),
        (lambda: rationalizable(((0, 1, 0),)), TypeError, "graph: must be a PreferenceGraph, got tuple"),
        (
            lambda: rationalizable(PreferenceGraph(POINTS, ((0, 2, 0),))),
            ValueError,
            "graph: must have edges between cand",
        ),
        (lambda: rationalizable(PreferenceGraph(POINTS, ((-1, 0, 0),))), ValueError, "graph: must have edges between"),
    ],
)
def test_refusals(run, error, message):
    with pytest.raises(error, match="^" + message):
        run()


NOT_TORCH = {
    "np.tanh": (np.tanh, "it raised RuntimeError"),
    "math.tanh": (math.tanh, "it (raised|returned)"),
    "an array": (lambda z: np.tanh(z.detach().numpy()), "it returned ndarray"),
    "an array of several": (lambda z: np.tanh(np.asarray(z.tolist())), "it returned ndarray"),
    "by way of an array": (
        lambda z: torch.from_numpy(np.tanh(z.detach().numpy())),
        "so that automatic differentiation",
    ),
    "not even a function": (None, None),
}


@pytest.mark.parametrize("name", NOT_TORCH)
@pytest.mark.parametrize(
    "run",
    [
        lambda f: elasticity(f, tensor(1.0, 2)),
        lambda f: elasticity_trend(f),
        lambda f: solution_ratio(f, 2, 1, tensor(1.0, 2)),
        lambda f: path_integral(f, 1, 0, 1),
        lambda f: path_integral(f, 1, 1, 1),
        lambda f: path_invariant(f, tensor(1.0, 2), 1.0, 0.0),
        lambda f: two_point_overlap(f, 2, 1, 3),
        lambda f: one_point_overlap(f, (1, 0), 1, 2.0),
        lambda f: traced_preference(f, (1, 0.5), tensor([2.0, 1.5])),
        lambda f: dataclasses.replace(SIGMOID, activation=f),
    ],
)
def test_an_activation_is_made_of_torchs_operations(name, run):
    activation, found = NOT_TORCH[name]
    if found is None:
        message = "^activation: must be a function of a tensor, got NoneType"
    else:
        message = f"^activation: must be a function of a tensor made of torch's operations[;,] {found}"
    with pytest.raises(TypeError, match=message):
        run(activation)


def test_derivatives_pass_through_the_ratio_only_where_asked_for():
    x = tensor(0.5, 2.0)
    assert not solution_ratio(torch.sigmoid, 2, 1, x).requires_grad
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(solution_ratio(torch.sigmoid, 2, 1, leaf).sum(), leaf)
    e = [elasticity(torch.sigmoid, w * x) for w in (2, 1)]
    torch.testing.assert_close(slope, solution_ratio(torch.sigmoid, 2, 1, x) * (e[0] - e[1]) / x)
