"""Flows of many overlaps as one system against one by one; path integrals against SciPy's quadrature."""

import pytest
import torch
from scipy.integrate import quad
from torch.nn.functional import gelu

from implicitreg.overlaps import InfeasibleError, elasticity, path_integral, two_point_overlap, verify

OVERLAPS = 16
ACTIVATIONS = {"sigmoid": torch.sigmoid, "GELU": gelu}


def draws(activation, number):
    """Return overlaps at random."""
    generator, found = torch.Generator().manual_seed(0), []
    while len(found) < number:
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        w_q = 0.5 + u[0]
        w_p = w_q * (1.3 + 1.2 * u[1])
        try:
            overlap = two_point_overlap(activation, w_p, w_q, w_p * (1.1 + 1.4 * u[2]), height=0.3 + 0.65 * u[3])
        except InfeasibleError:
            continue
        found.append(overlap)
    return found


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_verify(compare, name):
    overlaps = draws(ACTIVATIONS[name], OVERLAPS)

    def error(found):
        assert all(v.holds() for v in found)
        return max(float(v.errors.max()) for v in found)

    compare(
        f"flows of an overlap of {OVERLAPS}, {name}",
        {"this library": lambda: verify(overlaps), "a system each": lambda: [o.verify() for o in overlaps]},
        per={"this library": OVERLAPS, "a system each": OVERLAPS},
        error=error,
    )


def test_path_integral(compare):
    """Path integrals as one tensor program against SciPy's, one by one."""
    x = torch.linspace(0.05, 3, 1000, dtype=torch.float64)
    some = 50

    def by_scipy(tolerance=1e-12):
        def integral(x):
            def integrand(u):
                return u / float(elasticity(torch.sigmoid, torch.tensor([u * x], dtype=torch.float64)))

            return quad(integrand, 0.5, 2.0, epsabs=0, epsrel=tolerance)[0]

        return [integral(each) for each in x[::some].tolist()]

    expected = torch.tensor(by_scipy(1e-13), dtype=torch.float64)

    def error(found):
        found = found[::some] if isinstance(found, torch.Tensor) else torch.tensor(found, dtype=torch.float64)
        return (found / expected - 1).abs().max()

    compare(
        f"a path integral of {len(x):,}, sigmoid",
        {"this library": lambda: path_integral(torch.sigmoid, x, 0.5, 2.0), "scipy quad": by_scipy},
        per={"this library": len(x), "scipy quad": len(x[::some])},
        error=error,
    )
