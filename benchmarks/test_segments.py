"""Exact breakpoints against a walk from region to region and against grids; batches against single calls.

``make bench`` prints pytest-benchmark's table, and tables of what grids miss, of batches, and of cost against the
number of breakpoints.
"""

import math

import pytest
import torch

from implicitreg.measures import segment_profile, segment_profiles
from implicitreg.nets import he_weights

# The angle between two inputs fixes the number of breakpoints of a He network: L n angle / pi.
NETWORKS = {
    "64-256-256-10": (1.57, (1_000, 10_000, 100_000)),
    "64-256-256-256-256-256-256-10": (0.88, (1_000, 10_000, 100_000)),
    "784-1024-1024-1024-10": (1.54, (1_000, 10_000)),
}
BATCHES = {
    "64-64-64-10": 1.57,
    "64-256-256-10": 1.57,
    "64-256-256-256-256-256-256-10": 0.88,
}
PAIRS = 100


def network(name):
    return he_weights([int(units) for units in name.split("-")], torch.Generator().manual_seed(0))


def pairs(d, angle, number=1):
    """Return ends of norm sqrt(d) with some angle between them, ``(number, d)`` each."""
    frames = torch.randn(number, d, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = torch.linalg.qr(frames).Q.mul(math.sqrt(d)).unbind(-1)
    return a, math.cos(angle) * a + math.sin(angle) * b


def one_by_one(weights, x0, x1):
    """Return the profiles of some pairs, a call each."""
    return [segment_profile(weights, *ends) for ends in zip(x0, x1, strict=True)]


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
    """Return how many changes of units there are between neighbours of a grid: there and back is none."""
    changes = 0
    t = torch.linspace(0, 1, points, dtype=torch.float64)[:, None]
    for first in range(0, points - 1, 1000):
        x = torch.lerp(x0, x1, t[first : first + 1001])
        for w in weights[:-1]:
            x = (x @ w.T).clamp_min_(0)
            on = x > 0
            changes += int((on[1:] ^ on[:-1]).sum())
    return changes


@pytest.mark.parametrize("name", NETWORKS)
def test_segment_profile(benchmark, name, seconds):
    angle, grids = NETWORKS[name]
    weights = network(name)
    (x0,), (x1,) = pairs(len(weights[0].T), angle)
    n = len(segment_profile(weights, x0, x1))
    large = len(weights[0].T) > 64
    benchmark.group = f"breakpoints and gaps of {name}, float64, one thread"
    benchmark.pedantic(segment_profile, (weights, x0, x1), rounds=5 if large else 50, warmup_rounds=2)
    best, profile = benchmark.stats.stats.min, segment_profile(weights, x0, x1)
    walk, found = seconds(1 if large else 3, region_walk, weights, x0, x1)
    closest = float(torch.cat([torch.zeros(1), profile.t, torch.ones(1)]).diff().min())
    table = [
        f"{'':>16}{'ms':>10}{'ratio':>9}{'missed':>9}{'merged':>9}",
        f"{'this library':>16}{1e3 * best:10.1f}{1:8.1f}×{0:9.1%}{0:9.1%}   {n} breakpoints",
        f"{'region walk':>16}{1e3 * walk:10.1f}{walk / best:8.1f}×{1 - len(found) / n:9.1%}{0:9.1%}",
    ]
    for points in grids:
        took, changes = seconds(1, grid, weights, x0, x1, points)
        assert changes <= n
        each = torch.bincount((profile.t * (points - 1)).long())
        merged = int(each[each > 1].sum()) / n
        name = f"grid of {points:,}"
        table.append(f"{name:>16}{1e3 * took:10.1f}{took / best:8.1f}×{1 - changes / n:9.1%}{merged:9.1%}")
    # Neighbours of a grid must be closer than the closest breakpoints to tell all of them apart.
    more = 1 / closest / points
    table.append(
        f"{'sure grid':>16}{1e3 * took * more:10.1e}{took / best * more:8.0e}×{0:9.1%}{0:9.1%}"
        f"   {1 / closest:.0e} points, by extrapolation"
    )
    table.append(
        "missed: units that switch there and back in one cell; merged: breakpoints with another one in their cell"
    )
    benchmark.extra_info["table"] = table


def test_batches(benchmark, seconds):
    """100 pairs as one program against 100 calls, by turns."""
    best = {}
    for name, angle in BATCHES.items():
        weights = network(name)
        x0, x1 = pairs(64, angle, PAIRS)
        times = best[name] = [math.inf, math.inf]
        for _ in range(3 if len(weights) > 4 else 8):
            took, together = seconds(1, segment_profiles, weights, x0, x1)
            times[0] = min(times[0], took)
            took, alone = seconds(1, one_by_one, weights, x0, x1)
            times[1] = min(times[1], took)
        assert all(torch.equal(p.t, q.t) for p, q in zip(together, alone, strict=True))
        times.append(sum(map(len, together)) / PAIRS)
    weights = network("64-64-64-10")
    x0, x1 = pairs(64, BATCHES["64-64-64-10"], PAIRS)
    benchmark.group = f"{PAIRS} pairs of 64-64-64-10 as one program, float64, one thread"
    benchmark.pedantic(segment_profiles, (weights, x0, x1), rounds=20, warmup_rounds=2)
    benchmark.extra_info["table"] = [
        f"{'':>30}{'breakpoints':>13}{'batch':>9}{'single':>9}{'ratio':>8}   ms a pair, of {PAIRS} pairs",
        *(
            f"{name:>30}{n:13.0f}{1e3 * batch / PAIRS:9.2f}{1e3 * single / PAIRS:9.2f}{single / batch:7.1f}×"
            for name, (batch, single, n) in best.items()
        ),
    ]


def test_cost_against_breakpoints(benchmark, seconds):
    """The same network between inputs further and further apart."""
    table = [f"{'':>30}{'breakpoints':>13}{'ms':>9}{'µs each':>10}"]
    for name in ("64-256-256-256-256-256-256-10", "784-1024-1024-1024-10"):
        weights = network(name)
        points = []
        for angle in (0.2, 0.4, 0.8, 1.6, 3.0):
            (x0,), (x1,) = pairs(len(weights[0].T), angle)
            took, profile = seconds(3, segment_profile, weights, x0, x1)
            points.append((len(profile), took))
            table.append(f"{name:>30}{len(profile):13}{1e3 * took:9.1f}{1e6 * took / len(profile):10.1f}")
        x, y = torch.tensor(points, dtype=torch.float64).log().T
        x, y = x - x.mean(), y - y.mean()
        table.append(f"{'':>30}{'exponent':>13}{float(x @ y / (x @ x)):9.2f}   fitted to logarithms")
    benchmark.group = "64-64-64-10 between one pair, float64, one thread"
    weights = network("64-64-64-10")
    (x0,), (x1,) = pairs(64, 1.57)
    benchmark.pedantic(segment_profile, (weights, x0, x1), rounds=50, warmup_rounds=5)
    benchmark.extra_info["table"] = table
