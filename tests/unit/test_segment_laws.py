"""Closed-form laws along a segment against tables, quadrature, differences of the kernel and simulation."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from implicitreg.measures import (
    angle,
    augmented,
    expected_breakpoints,
    expected_deflection,
    expected_gap_deviation,
    expected_non_straightness,
    expected_total_gap_variance,
    foot_integral,
    nngp_kernel,
    segment_profiles,
    straightness,
)
from implicitreg.nets import he_weights

laws = sys.modules["implicitreg.measures.segment_laws"]
KINDS = ("rms", "end", "full", "midpoint")


def pair(theta, r0=1.0, r1=1.0, d=2):
    """Return ends of given norms, an angle apart."""
    x0, x1 = torch.zeros(2, d, dtype=torch.float64)
    x0[0] = r0
    x1[0], x1[1] = r1 * math.cos(theta), r1 * math.sin(theta)
    return x0, x1


def random_pairs(n, d, seed=0):
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Non-straightness and squared full deflection at equal norms, by angle, for 1, 2, 3, 4, 5 and 10 hidden layers.
DEPTHS = (1, 2, 3, 4, 5, 10)
TABLE = {
    0.1: ((0.0212, 0.0418, 0.0617, 0.0809, 0.0996, 0.185), (0.127, 0.249, 0.366, 0.478, 0.586, 1.06)),
    0.4: ((0.0847, 0.1588, 0.2240, 0.2819, 0.3333, 0.522), (0.509, 0.934, 1.292, 1.595, 1.854, 2.71)),
    1.0: ((0.2085, 0.3546, 0.4617, 0.5431, 0.6066, 0.785), (1.273, 2.038, 2.532, 2.868, 3.106, 3.65)),
    math.pi / 2: ((0.3183, 0.4937, 0.6048, 0.6810, 0.7359, 0.872), (2.000, 2.794, 3.199, 3.434, 3.582, 3.87)),
}


@pytest.mark.parametrize("theta", TABLE)
def test_tables_of_straightness_and_of_the_full_deflection(theta):
    for depth, straight, full in zip(DEPTHS, *TABLE[theta], strict=True):
        digits = 3 if depth == 10 else 4
        assert round(expected_non_straightness(*pair(theta), depth).item(), digits) == straight
        # The table is that of many dimensions.
        measured = expected_deflection(*pair(theta, d=100_000), depth, kind="full").item()
        assert abs(measured - full) <= (5.1e-3 if depth == 10 else 5.1e-4)


def test_table_of_deflections_in_thirty_dimensions():
    ends = pair(1.2, d=30)
    for depth, deflection, walk, ratio in (
        (1, None, None, 1),
        (2, 0.02723, 0.0302, 0.7030),
        (4, 0.0400, 0.0603, 0.4281),
    ):
        q = expected_total_gap_variance(*ends, [7] * depth).sum().item()
        end = expected_deflection(*ends, depth, kind="end").item()
        assert end / q == pytest.approx(ratio, abs=5.1e-5)
        if deflection:
            assert expected_deflection(*ends, depth).item() == pytest.approx(deflection, abs=5.1e-5)
            assert q / 6 == pytest.approx(walk, abs=5.1e-5)
    many = expected_deflection(*pair(1.2, d=100_000), 4, kind="full").item()
    assert many == pytest.approx(3.114, abs=5.1e-4)


def test_table_of_counts_with_biases():
    rng = np.random.default_rng(11)
    x0, x1 = torch.from_numpy(rng.standard_normal(20)), torch.from_numpy(rng.standard_normal(20))
    assert angle(x0, x1).item() == pytest.approx(1.67351, abs=5.1e-6)
    for layer, expected in ((1, 1.50992), (2, 1.38789), (3, 1.29198)):
        lifted = augmented(x0, layer, 0.5), augmented(x1, layer, 0.5)
        assert angle(*lifted).item() == pytest.approx(expected, abs=5.1e-6)
        assert lifted[0][-1].item() == pytest.approx(0.5 * math.sqrt(10 * layer))
    counts = expected_breakpoints(x0, x1, [200] * 3, bias_std=0.5)
    assert counts.tolist() == pytest.approx([96.12, 88.36, 82.25], abs=5.1e-3)
    shares = expected_total_gap_variance(x0, x1, [200] * 3, bias_std=0.5)
    assert shares.tolist() == pytest.approx([0.15932, 0.15062, 0.14314], abs=5.1e-6)
    # The biases of all layers taken for those of the first are told apart.
    assert counts[2] < 0.9 * expected_breakpoints(x0, x1, [200], bias_std=0.5)[0]


def test_angle_against_the_arc_cosine_and_where_that_fails():
    x0, x1 = random_pairs(50, 5)
    cosine = (x0 * x1).sum(-1) / (x0.norm(dim=-1) * x1.norm(dim=-1))
    torch.testing.assert_close(angle(x0, x1), cosine.arccos())
    for theta in (1e-14, 1e-9, 1e-3, 3.0):
        assert angle(*pair(theta, 2.0, 5.0)).item() == pytest.approx(theta, rel=1e-12)
    assert angle(*pair(math.pi - 1e-9)).item() == pytest.approx(math.pi - 1e-9, abs=1e-15)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_foot_integral_against_quadrature(scale):
    for x0, x1 in zip(*random_pairs(20, 4), strict=True):
        u = (x1 - x0) / (x1 - x0).norm()
        foot = x0 - (x0 @ u) * u
        low, high = (math.atan2(float((x - foot) @ u), float(foot.norm())) for x in (x0, x1))
        assert angle(x0, x1).item() == pytest.approx(high - low)
        expected, _ = quad(lambda beta: math.cos(beta) ** 2, low, high)
        assert foot_integral(scale * x0, scale * x1).item() == pytest.approx(expected, rel=1e-12)


def test_foot_integral_keeps_its_digits_at_small_angles():
    # Nearly along a ray both terms are of third order: θ³ / 3 + q θ, of which the first would cancel.
    for theta in (1e-3, 1e-6):
        over = 2 * 5 / (3**2 + 2 * 2 * 5 * 2 * math.sin(theta / 2) ** 2)
        expected = theta**3 * (1 / 3 + over)
        assert foot_integral(*pair(theta, 2.0, 5.0)).item() == pytest.approx(expected, rel=2 * theta**2 + 1e-13)
        assert foot_integral(*pair(theta)).item() == pytest.approx(theta, rel=theta**2)


def kernel_by_recursion(x0, x1, depth):
    """Compose Gaussian expectations of rectified pairs, from covariances and without angles."""
    d = len(x0)
    k00, k11, k01 = (2 / d * (a @ b) for a, b in ((x0, x0), (x1, x1), (x0, x1)))
    for _ in range(depth):
        norm = math.sqrt(k00 * k11)
        c = min(1.0, max(-1.0, k01 / norm))
        # 2 E[max(a, 0) max(b, 0)] = the polar integral of a rectified pair
        inner, _ = quad(lambda s, c=c: (c + s) / math.pi / math.sqrt((1 - s) * (1 + s)), -c, 1, limit=200)
        k01 = norm * inner
    return k01


def test_kernel_against_quadrature():
    for x0, x1 in zip(*random_pairs(6, 4), strict=True):
        for depth in (1, 2, 4):
            expected = kernel_by_recursion(x0.numpy(), x1.numpy(), depth)
            assert nngp_kernel(x0, x1, depth).item() == pytest.approx(expected, rel=1e-6)
            assert nngp_kernel(x0, x0, depth).item() == pytest.approx(2 / 4 * x0.square().sum().item())
        assert nngp_kernel(x0, x1, 2, output_variance=1.0) == nngp_kernel(x0, x1, 2) / 2


ENDS = [
    pair(0.3, d=5),
    pair(1.2, d=5),
    pair(1.0, 1.0, 2.5, d=5),
    pair(2.8, 3.0, 0.2, d=5),
    *zip(*random_pairs(3, 5), strict=True),
]


@pytest.mark.parametrize(("ends", "depth"), list(itertools.product(ENDS, (1, 2, 4))))
def test_deflections_against_differences_of_the_kernel(ends, depth):
    x0, x1 = ends
    d, length = len(x0), (x1 - x0).norm()
    u = (x1 - x0) / length

    def k(a, b):
        return nngp_kernel(a, b, depth).item()

    expected = 2 / d - (k(x0, x0) + k(x1, x1) - 2 * k(x0, x1)) / length.item() ** 2
    assert expected_deflection(x0, x1, depth).item() == pytest.approx(expected, rel=1e-10)
    assert expected_non_straightness(x0, x1, depth).item() == pytest.approx(expected * d / 2, rel=1e-10)
    m = (x0 + x1) / 2
    sag = k(m, m) + (k(x0, x0) + k(x1, x1) + 2 * k(x0, x1)) / 4 - k(x0, m) - k(x1, m)
    assert expected_deflection(x0, x1, depth, kind="midpoint").item() == pytest.approx(sag, rel=1e-8)
    h = 1e-4
    signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
    covariance = sum(i * j * k(x0 + i * h * u, x1 + j * h * u) for i, j in signs) / (4 * h * h)
    end = expected_deflection(x0, x1, depth, kind="end").item()
    assert end == pytest.approx(4 / d - 2 * covariance, rel=2e-5)
    directions = torch.eye(d, dtype=torch.float64)
    overlap = sum(i * j * k(x0 + i * h * e, x1 + j * h * e) / (4 * h * h) for e in directions for i, j in signs)
    assert expected_deflection(x0, x1, depth, kind="full").item() == pytest.approx(4 - 2 * overlap, rel=2e-5)
    q = expected_total_gap_variance(x0, x1, [3] * depth).sum().item()
    assert end == pytest.approx(q, rel=1e-12) if depth == 1 else end < 0.99 * q


@pytest.mark.parametrize("kind", KINDS)
def test_rms_deflection_is_a_mean_over_the_segment(kind):
    # E f² on the chord's scale: the mean over t of the deflection of the output must follow from the kernel too.
    x0, x1 = pair(1.2, 1.0, 2.0, d=3)
    double = expected_deflection(x0, x1, 2, kind=kind, output_variance=4.0)
    assert double.item() == pytest.approx(2 * expected_deflection(x0, x1, 2, kind=kind).item())
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    rotated = expected_deflection(x0 @ turned, x1 @ turned, 2, kind=kind)
    assert rotated.item() == pytest.approx(expected_deflection(x0, x1, 2, kind=kind).item())
    swapped = expected_deflection(x1, x0, 2, kind=kind)
    assert swapped.item() == pytest.approx(expected_deflection(x0, x1, 2, kind=kind).item())
    scaled = expected_deflection(3 * x0, 3 * x1, 2, kind=kind).item()
    size = 9 if kind == "midpoint" else 1
    assert scaled == pytest.approx(size * expected_deflection(x0, x1, 2, kind=kind).item())


def test_small_angles_are_walks():
    for depth in (1, 3):
        x0, x1 = pair(1e-5, d=7)
        q = expected_total_gap_variance(x0, x1, [5] * depth).sum().item()
        assert q == pytest.approx(8 * depth * 1e-5 / (math.pi * 7), rel=1e-9)
        assert expected_deflection(x0, x1, depth).item() == pytest.approx(q / 6, rel=1e-4)
        assert expected_deflection(x0, x1, depth, kind="full").item() == pytest.approx(
            4 * depth * 1e-5 / math.pi, rel=1e-4
        )
        assert expected_deflection(x0, x1, depth, kind="end").item() == pytest.approx(q, rel=1e-4)
    assert expected_deflection(*pair(1e-9), 1).item() == pytest.approx(4e-9 / (6 * math.pi), rel=1e-7)


def test_gap_deviation_is_a_ratio_of_means():
    x0, x1 = pair(0.7, 1.0, 3.0, d=6)
    for std in (0.0, 0.4):
        count = expected_breakpoints(x0, x1, [10, 30], bias_std=std).sum()
        q = expected_total_gap_variance(x0, x1, [10, 30], bias_std=std).sum()
        torch.testing.assert_close(expected_gap_deviation(x0, x1, [10, 30], bias_std=std), (q / count).sqrt())
    assert expected_gap_deviation(*pair(1e-6, d=6), [10, 10]).item() == pytest.approx(math.sqrt(8 / 60))
    half = expected_gap_deviation(x0, x1, [10, 30], output_variance=1.0)
    torch.testing.assert_close(half * math.sqrt(2), expected_gap_deviation(x0, x1, [10, 30]))
    full = expected_gap_deviation(x0, x1, [10, 30], kind="full", output_variance=1.0)
    assert full.item() == pytest.approx(math.sqrt(2 * 2 / 40))


@pytest.mark.parametrize("bias_std", [0.0, 1e-9])
def test_ends_without_a_breakpoint_between_them(bias_std):
    x = torch.tensor([1.0, 2.0, -1.0])
    zero = torch.zeros(3)
    for x0, x1 in ((x, x), (x, 3 * x), (zero, x), (x, zero), (zero, zero)):
        results = [
            expected_breakpoints(x0, x1, [8, 8], bias_std=bias_std),
            expected_total_gap_variance(x0, x1, [8, 8], bias_std=bias_std),
            angle(x0, x1),
            foot_integral(x0, x1),
            *(expected_deflection(x0, x1, 2, kind=kind) for kind in KINDS),
            expected_non_straightness(x0, x1, 2),
        ]
        for value in results:
            assert value.abs().max() < (1e-15 if bias_std == 0 else 20)
    if bias_std == 0:
        for kind in ("rms", "full"):
            assert expected_gap_deviation(x, x, [8, 8], kind=kind) == 0
            assert expected_gap_deviation(zero, x, [8, 8], kind=kind) == 0


def test_opposite_ends():
    x = torch.tensor([3.0, 4.0])
    assert expected_breakpoints(x, -2 * x, [8, 4]).tolist() == pytest.approx([8, 4])
    assert foot_integral(x, -2 * x).item() == pytest.approx(math.pi / 2)
    # One unit's output is |w·x| then: its slopes at the ends are independent, of variance 1 each in two dimensions.
    for kind, expected in (("end", 2), ("full", 4), ("rms", 0.5 * 2 * 2 * 2 / 9)):
        assert expected_deflection(x, -2 * x, 1, kind=kind).item() == pytest.approx(expected)
    middle = expected_deflection(x, -x, 1, kind="midpoint").item()
    assert middle == pytest.approx((25 + 25) / 4)  # K(x, -x) = 0


def test_one_dimension():
    right, apart = (torch.tensor([1.0]), torch.tensor([2.0])), (torch.tensor([-1.0]), torch.tensor([2.0]))
    assert expected_breakpoints(*right, [9]).item() == 0
    assert expected_breakpoints(*apart, [9]).item() == pytest.approx(9)
    # With biases units switch where a Cauchy variable falls: at -b / w, of scale σ_b √(d l / 2).
    scale = 0.5 * math.sqrt(1 / 2)
    between = (math.atan(2 / scale) - math.atan(1 / scale)) / math.pi
    assert expected_breakpoints(*right, [9], bias_std=0.5).item() == pytest.approx(9 * between)
    far = torch.tensor([-1e4]), torch.tensor([1e4])
    assert expected_breakpoints(*far, [150] * 3, bias_std=1.0).tolist() == pytest.approx([149.99] * 3, abs=0.01)
    assert expected_total_gap_variance(*far, [150] * 3, bias_std=1.0).tolist() == pytest.approx([4.0] * 3, abs=1e-3)


def test_leading_dimensions_broadcast():
    x0, x1 = random_pairs(6, 4)
    a, b = x0[:3, None], x1[None, 3:]
    calls = [
        angle,
        foot_integral,
        lambda p, q: nngp_kernel(p, q, 3),
        lambda p, q: expected_non_straightness(p, q, 3),
        lambda p, q: expected_gap_deviation(p, q, [4, 5], bias_std=0.3),
        lambda p, q: expected_gap_deviation(p, q, [4, 5], kind="full"),
        lambda p, q: expected_breakpoints(p, q, [4, 5], bias_std=0.3).sum(-1),
        lambda p, q: expected_total_gap_variance(p, q, [4, 5]).sum(-1),
        *(lambda p, q, kind=kind: expected_deflection(p, q, 3, kind=kind) for kind in KINDS),
    ]
    for call in calls:
        table = call(a, b)
        assert table.shape == (3, 3)
        assert table.dtype == torch.float64
        for i, j in itertools.product(range(3), repeat=2):
            torch.testing.assert_close(table[i, j], call(x0[i], x1[3 + j]))
    assert expected_breakpoints(a, b, [4, 5]).shape == (3, 3, 2)
    assert augmented(a, 2, 0.5).shape == (3, 1, 5)
    # Single precision is told from the inputs alone.
    assert angle(x0.float(), x1.float()).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: angle(x, x[:1]), ValueError, r"x1: must fit x0 of shape \(2,\), got \(1,\)"),
        (lambda x: angle(x.expand(3, 2), x.expand(2, 2)), ValueError, r"x1: must fit x0"),
        (lambda x: angle(x, x[0]), ValueError, r"x1: must have shape \(\.\.\., d\) with d >= 1, got \(\)"),
        (lambda x: angle(x[:0], x[:0]), ValueError, r"x0: must have shape"),
        (lambda x: angle(x * math.nan, x), ValueError, "x0: must be finite"),
        (lambda x: angle(x.long(), x), TypeError, "x0: must have dtype float32 or float64"),
        (lambda x: angle([1.0, 2.0], x), TypeError, "x0: must be a torch.Tensor"),
        (lambda x: augmented(x, 0, 1.0), ValueError, "layer: must be an integer >= 1"),
        (lambda x: augmented(x, 1, -1.0), ValueError, "bias_std: must be a finite number >= 0"),
        (lambda x: expected_breakpoints(x, x, []), ValueError, "widths: must be a sequence of at least 1 integer"),
        (lambda x: expected_breakpoints(x, x, 8), ValueError, "widths: must be a sequence of at least 1 integer"),
        (lambda x: expected_breakpoints(x, x, [8, 0]), ValueError, "widths: must be an integer >= 1, got 0"),
        (lambda x: expected_breakpoints(x, x, [8], bias_std=math.inf), ValueError, "bias_std: must be a finite"),
        (
            lambda x: expected_gap_deviation(x, x, [8], kind="centered"),
            ValueError,
            "kind: must be one of 'rms', 'full'",
        ),
        (
            lambda x: expected_gap_deviation(x, x, [8], kind="full", bias_std=0.1),
            ValueError,
            "bias_std: must be 0 where",
        ),
        (lambda x: expected_total_gap_variance(x, x, [8], output_variance=0), ValueError, "output_variance: must be"),
        (
            lambda x: expected_deflection(x, x, 1, kind="sag"),
            ValueError,
            "kind: must be one of 'rms', 'end', 'full', 'm",
        ),
        (lambda x: expected_deflection(x, x, 0), ValueError, "depth: must be an integer >= 1"),
        (lambda x: expected_non_straightness(x, x, 1.5), ValueError, "depth: must be an integer >= 1"),
        (lambda x: nngp_kernel(x, x, 1, output_variance=-1), ValueError, "output_variance: must be"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2))


def test_against_random_networks():
    d, networks, n = 12, 400, 24
    x0, x1 = pair(1.2, 1.0, 2.0, d=d)
    for depth in (1, 2):
        w = he_weights((d, *[n] * depth, 8), torch.Generator().manual_seed(depth), networks=networks)
        seen = straightness(segment_profiles(w, x0[None], x1[None]))
        laws = {
            "breakpoints": expected_breakpoints(x0, x1, [n] * depth).sum(),
            "total_gap_variance": expected_total_gap_variance(x0, x1, [n] * depth).sum(),
            "deflection": expected_deflection(x0, x1, depth),
            "end": expected_deflection(x0, x1, depth, kind="end"),
        }
        for name, law in laws.items():
            values = getattr(seen, name).double().reshape(networks, -1).mean(1)
            error = (values.std() / networks**0.5).item()
            assert abs(values.mean().item() - law.item()) < 5 * error, name
            assert error < 0.06 * law.item()


MUTANTS = {
    "the angle alone": ("integral", lambda ends: ends.theta),
    "half the angle": ("integral", lambda ends: ends.theta / 2),
    "ends of equal norms": ("integral", lambda ends: (ends.theta + ends.theta.sin()) / 2),
    "no foot": ("q", lambda ends: torch.zeros_like(ends.q)),
    "the cosine for q": ("q", lambda ends: ends.theta.cos()),
    "the chord of equal norms": ("over", lambda ends: 1 / (1 - ends.theta.cos())),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_formulas_are_noticed(mutant, monkeypatch):
    field, wrong = MUTANTS[mutant]
    right = laws._ends

    def mutated(x0, x1):
        ends = right(x0, x1)
        return ends._replace(**{field: wrong(ends)})

    monkeypatch.setattr(laws, "_ends", mutated)
    with pytest.raises(AssertionError):
        test_deflections_against_differences_of_the_kernel(pair(1.0, 1.0, 2.5, d=5), 1)


@pytest.mark.parametrize("field", ["excess", "log_slope", "bend"])
def test_one_layer_too_few_is_noticed(field, monkeypatch):
    right = laws._compose

    def mutated(theta, depth):
        return right(theta, depth)._replace(**{field: getattr(right(theta, depth - 1), field)})

    monkeypatch.setattr(laws, "_compose", mutated)
    with pytest.raises(AssertionError):
        test_deflections_against_differences_of_the_kernel(pair(1.2, d=5), 2)
