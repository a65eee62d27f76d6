"""Exact breakpoints against a walk from region to region and against grids; batches against single calls."""

import math

import pytest
import torch

from implicitreg.measures import segment_profile, segment_profiles, straightness
from implicitreg.nets import he_weights, perceptron

# The angle between two inputs fixes the number of breakpoints of a He network: L n angle / pi.
NETWORKS = {
    "64-256-256-10": (1.57, (1_000, 10_000)),
    "64-256-256-256-256-256-256-10": (0.88, (1_000, 10_000)),
    "784-1024-1024-1024-10": (1.54, (1_000,)),
}
BATCHES = {
    "64-64-64-10": 1.57,
    "64-256-256-10": 1.57,
}
PAIRS = 100


def network(name):
    return he_weights([int(units) for units in name.split("-")], torch.Generator().manual_seed(0))


def pairs(d, angle, number=1):
    """Return ends of norm sqrt(d) with some angle between them, ``(number, d)`` each."""
    frames = torch.randn(number, d, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = torch.linalg.qr(frames).Q.mul(math.sqrt(d)).unbind(-1)
    return a, math.cos(angle) * a + math.sin(angle) * b


def region_walk(weights, x0, x1):
    """Return the crossings found by stepping to the nearest zero of a pre-activation, one region after another."""
    found = []
    t = 0.0
    rows = torch.stack([x0, x1 - x0])
    while True:
        a = torch.stack([x0 + t * rows[1], rows[1]])
        nearest = math.inf
        for w in weights[:-1]:
            z, v = a = a @ w.T
            step = -z / v
            nearest = min(nearest, float(step.where(step > 1e-12, math.inf).min()))
            a = a * (z > 0)
        t += nearest
        if t >= 1:
            return found
        found.append(t)
        t += 1e-9


def grid(weights, x0, x1, points):
    """Return how many cells of a grid there are between whose ends a unit changes."""
    cells = 0
    t = torch.linspace(0, 1, points, dtype=torch.float64)[:, None]
    for first in range(0, points - 1, 1000):
        x = torch.lerp(x0, x1, t[first : first + 1001])
        changed = torch.zeros(len(x) - 1, dtype=torch.bool)
        for w in weights[:-1]:
            x = (x @ w.T).clamp_min_(0)
            on = x > 0
            changed |= (on[1:] ^ on[:-1]).any(1)
        cells += int(changed.sum())
    return cells


@pytest.mark.parametrize("name", NETWORKS)
def test_segment_profile(compare, grow, name):
    angle, grids = NETWORKS[name]
    weights = network(name)
    (x0,), (x1,) = pairs(len(weights[0].T), angle)
    n = len(segment_profile(weights, x0, x1))

    def missed(found):
        """Return the share of breakpoints that were not found, or not told apart; a grid cannot find too many."""
        found = found if isinstance(found, int) else len(found)
        assert found <= n
        return 1 - found / n

    methods = {
        "this library": lambda: segment_profile(weights, x0, x1),
        "region walk": lambda: region_walk(weights, x0, x1),
        **{f"grid of {points:,}": lambda points=points: grid(weights, x0, x1, points) for points in grids},
    }
    compare(f"{n:,} breakpoints, {short(name)}", methods, error=missed)
    if len(weights) < 5:
        return
    ends = {}
    for wider in (0.2, 0.4, 0.8, 1.6, 3.0):
        (x0,), (x1,) = pairs(64, wider)
        ends[len(segment_profile(weights, x0, x1))] = weights, x0, x1
    grow(
        "breakpoints, in their number",
        ends,
        lambda n: {"this library": lambda: segment_profile(*ends[n]), "region walk": lambda: region_walk(*ends[n])},
    )


def short(name):
    """Return a network's sizes with a power for layers of the same width."""
    first, *hidden, last = name.split("-")
    return f"{first}-{hidden[0]}" + f"×{len(hidden)}-{last}"


@pytest.mark.parametrize("name", BATCHES)
def test_many_pairs(compare, name):
    """100 pairs as one program against 100 calls."""
    weights = network(name)
    x0, x1 = pairs(64, BATCHES[name], PAIRS)

    def one_by_one():
        return [segment_profile(weights, *ends) for ends in zip(x0, x1, strict=True)]

    expected = one_by_one()

    def error(found):
        return max(float((p.t - q.t).abs().max()) for p, q in zip(found, expected, strict=True))

    compare(
        f"breakpoints of a pair of {PAIRS}, {short(name)}",
        {"this library": lambda: segment_profiles(weights, x0, x1), "a call a pair": one_by_one},
        per={"this library": PAIRS, "a call a pair": PAIRS},
        error=error,
    )


def test_straightness(compare):
    """The deflection of 100 pairs, exactly, against slopes at many places between."""
    weights = network("64-256-256-10")
    net = perceptron(weights)
    x0, x1 = pairs(64, 0.8, PAIRS)
    lengths = (x1 - x0).norm(dim=1)

    def exact():
        return straightness(segment_profiles(weights, x0, x1)).deflection

    @torch.no_grad()
    def sampled(points):
        """Take slopes from differences of the outputs at equidistant places."""
        t = torch.linspace(0, 1, points + 1, dtype=torch.float64)[:, None]
        found = []
        for a, b, length in zip(x0, x1, lengths, strict=True):
            slopes = net(torch.lerp(a, b, t)).diff(dim=0) * points / length
            found.append(slopes.var(0, correction=0))
        return torch.stack(found)

    expected = exact()
    compare(
        f"deflection of a pair of {PAIRS}, 64-256×2-10",
        {"this library": exact, "grid of 100": lambda: sampled(100), "grid of 1,000": lambda: sampled(1000)},
        per=dict.fromkeys(("this library", "grid of 100", "grid of 1,000"), PAIRS),
        error=lambda found: (found / expected - 1).abs().max(),
    )
