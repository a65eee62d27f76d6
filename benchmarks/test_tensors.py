"""Tensor completion: one step of an ensemble against a plain loop with autograd, and the published grid, in one run."""

import warnings

import pytest
import torch

from implicitreg.data import TensorCompletion, low_rank_tensors, nested_observations
from implicitreg.dynamics import group_rmsprop
from implicitreg.measures import cp_rank
from implicitreg.nets import CPFactorization, cp_tensor, gaussian_cp_factors

CUBE, HYPERCUBE = (8,) * 3, (8,) * 4
COUNTS = (50, 100, 150, 200, 250, 300, 350, 400, 450, 511)


def setting(dims, count, n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    target = low_rank_tensors(1, dims, 1, generator)[0].to(dtype)
    problem = TensorCompletion(target, nested_observations(dims, [count], generator)[0])
    return [f.to(dtype) for f in gaussian_cp_factors(n, dims, None, 1e-2, generator)], problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("dims", "count", "n", "steps"),
    [pytest.param(CUBE, 200, 100, 300, id="order 3"), pytest.param(HYPERCUBE, 1000, 4, 50, id="order 4")],
)
def test_tensor_ensemble(benchmark, dims, count, n, steps, dtype):
    factors, problem = setting(dims, count, n, dtype)
    benchmark.group = f"order {len(dims)}: a step of GroupRMSprop, one thread"
    benchmark.extra_info.update(seeds=n, steps=steps, alternative=f"test_tensor_plain_loop[order {len(dims)}]")

    def train():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            group_rmsprop(factors, problem, max_steps=steps, tol=1e-30)

    benchmark.pedantic(train, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize(
    ("dims", "count", "steps"),
    [pytest.param(CUBE, 200, 300, id="order 3"), pytest.param(HYPERCUBE, 1000, 30, id="order 4")],
)
def test_tensor_plain_loop(benchmark, dims, count, steps):
    """One member, autograd on the dense tensor, the optimiser's formula: what one writes first."""
    factors, problem = setting(dims, count, 1)

    def train():
        net, mean = CPFactorization([f[0] for f in factors]), torch.zeros(())
        for t in range(1, steps + 1):
            gradients = torch.autograd.grad(problem.loss(net()), list(net.parameters()))
            mean = 0.99 * mean + 0.01 * sum(g.square().sum() for g in gradients)
            rate = 0.01 / ((mean / (1 - 0.99**t)).sqrt() + 1e-6)
            with torch.no_grad():
                for parameter, g in zip(net.parameters(), gradients, strict=True):
                    parameter -= rate * g

    benchmark.group = f"order {len(dims)}: a step of GroupRMSprop, one thread"
    benchmark.extra_info.update(seeds=1, steps=steps, alternative=f"test_tensor_plain_loop[order {len(dims)}]")
    benchmark.pedantic(train, rounds=5, warmup_rounds=1)


def test_published_grid_of_order_3(benchmark):
    """10 numbers of observations × 2 initial scales × 5 repetitions, with the rank of each result."""
    benchmark.group = "order 3: 100 trainings with rank estimates, one thread"
    generator = torch.Generator().manual_seed(0)
    target = low_rank_tensors(1, CUBE, 1, generator)[0]
    problem = TensorCompletion(target, nested_observations(CUBE, COUNTS, generator)[None, :, None], order=3)
    std = torch.tensor([1e-2, 1e-3], dtype=torch.float64)[:, None, None]
    start = gaussian_cp_factors(5, CUBE, None, 1.0, generator)
    factors = [(f[:, None, None] * std).expand(5, 10, 2, -1, -1) for f in start]

    def grid():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return cp_rank(cp_tensor(group_rmsprop(factors, problem).factors), order=3).rank

    assert benchmark.pedantic(grid, rounds=2, warmup_rounds=0)[:, 4:].eq(1).all()
