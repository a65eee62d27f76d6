"""Flows of many overlaps as one system against one by one; path integrals against SciPy's quadrature.

``make bench`` prints pytest-benchmark's table, and tables of ratios.
"""

import pytest
import torch
from scipy.integrate import quad
from torch.nn.functional import gelu, silu

from implicitreg.overlaps import InfeasibleError, elasticity, path_integral, two_point_overlap, verify

OVERLAPS = 60
ACTIVATIONS = {"sigmoid": torch.sigmoid, "SiLU": silu, "GELU": gelu}


def draws(activation, number):
    """Return overlaps at random, and how many draws they took."""
    generator, found, n = torch.Generator().manual_seed(0), [], 0
    while len(found) < number:
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        w_q, n = 0.5 + u[0], n + 1
        w_p = w_q * (1.3 + 1.2 * u[1])
        try:
            overlap = two_point_overlap(activation, w_p, w_q, w_p * (1.1 + 1.4 * u[2]), height=0.3 + 0.65 * u[3])
        except InfeasibleError:
            continue
        found.append(overlap)
    return found, n


def one_by_one(overlaps):
    """Return the verifications of some overlaps, a system each."""
    return [overlap.verify() for overlap in overlaps]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_verify(benchmark, name, seconds):
    build, (overlaps, n) = seconds(1, draws, ACTIVATIONS[name], OVERLAPS)
    benchmark.group = f"{OVERLAPS} two-point overlaps of {name}, both flows of each, as one system, one thread"
    benchmark.pedantic(verify, (overlaps,), rounds=3, warmup_rounds=1)
    together, best = verify(overlaps), benchmark.stats.stats.min
    alone, single = seconds(1, one_by_one, overlaps)
    assert all(v.holds() for v in together)
    assert all(v.holds() for v in single)
    errors = [max(float(v.errors.max()) for v in found) for found in (together, single)]
    benchmark.extra_info["table"] = [
        f"{'':>16}{'ms each':>10}{'ratio':>9}{'largest error':>15}",
        f"{'one system':>16}{1e3 * best / OVERLAPS:10.1f}{1:8.1f}×{errors[0]:15.0e}",
        f"{'one by one':>16}{1e3 * alone / OVERLAPS:10.1f}{alone / best:8.1f}×{errors[1]:15.0e}",
        f"{'building them':>16}{1e3 * build / OVERLAPS:10.1f}{build / best:8.1f}×   {n} draws for {OVERLAPS} overlaps",
    ]


def test_path_integral(benchmark, seconds):
    """A thousand path integrals as one tensor program against SciPy's, one by one."""
    x = torch.linspace(0.05, 3, 1000, dtype=torch.float64)
    benchmark.group = f"{len(x)} path integrals of a sigmoid, one thread"
    benchmark.pedantic(path_integral, (torch.sigmoid, x, 0.5, 2.0), rounds=20, warmup_rounds=2)
    found, best = path_integral(torch.sigmoid, x, 0.5, 2.0), benchmark.stats.stats.min

    def by_scipy(x):
        def integrand(u):
            return u / float(elasticity(torch.sigmoid, torch.tensor([u * x], dtype=torch.float64)))

        return quad(integrand, 0.5, 2.0, epsabs=0, epsrel=1e-12)[0]

    part = x[::50].tolist()
    took, expected = seconds(1, lambda: [by_scipy(at) for at in part])
    torch.testing.assert_close(found[::50], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)
    each = took / len(part)
    benchmark.extra_info["table"] = [
        f"{'':>16}{'µs each':>10}{'ratio':>9}",
        f"{'this library':>16}{1e6 * best / len(x):10.1f}{1:8.1f}×",
        f"{'scipy.quad':>16}{1e6 * each:10.1f}{each * len(x) / best:8.0f}×",
    ]
