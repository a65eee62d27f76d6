"""The 2×2 completion problem: exact flow, batched descent, and the plain loop they replace, in one run.

``make bench`` prints pytest-benchmark's table, then microseconds per seed and step with the ratio to the plain loop.
"""

import warnings

import pytest
import torch

from implicitreg.data import two_by_two
from implicitreg.dynamics import balanced_flow, gradient_descent
from implicitreg.nets import DeepLinear, balanced_factors, gaussian_matrices

STEPS = 2000
PROBLEM = two_by_two()


def starts(n, std):
    return gaussian_matrices(n, std, torch.Generator().manual_seed(0), determinant_sign=1)


@pytest.mark.parametrize("depth", [2, 3, 4, 10])
def test_exact_flow_to_loss_1e_4(benchmark, depth):
    benchmark.group = "one exact trajectory to loss 1e-4"
    path = benchmark(balanced_flow, starts(1, 1e-3)[0], depth, losses=[0.1, 1e-4])
    assert path.converged


def descend(factors):
    """Take STEPS steps of the library's batched descent; the level is out of reach on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        gradient_descent(factors, PROBLEM, 6e-3, losses=[1e-30], max_steps=STEPS)


@pytest.mark.parametrize("seeds", [1, 100, 1000])
def test_batched_descent(benchmark, seeds):
    benchmark.group = f"{STEPS} steps of descent, 2×2, depth 3, float64, one thread"
    benchmark.extra_info.update(seeds=seeds, steps=STEPS)
    benchmark.pedantic(descend, [balanced_factors(starts(seeds, 1e-2), 3)], rounds=5, warmup_rounds=1)


def test_plain_loop(benchmark):
    """One seed after another, autograd and torch.optim.SGD: what one writes first."""

    def loop():
        net = DeepLinear(balanced_factors(starts(1, 1e-2)[0], 3))
        optimiser = torch.optim.SGD(net.parameters(), lr=6e-3)
        for _ in range(STEPS):
            optimiser.zero_grad()
            PROBLEM.loss(net()).backward()
            optimiser.step()

    benchmark.group = f"{STEPS} steps of descent, 2×2, depth 3, float64, one thread"
    benchmark.extra_info.update(seeds=1, steps=STEPS)
    benchmark.pedantic(loop, rounds=5, warmup_rounds=1)
