"""Tensor completion: a step of an ensemble against autograd, by itself and through tensorly."""

import warnings
from importlib.util import find_spec

import pytest
import torch

from implicitreg.data import TensorCompletion, low_rank_tensors, nested_observations
from implicitreg.dynamics import group_rmsprop
from implicitreg.nets import cp_tensor, gaussian_cp_factors

CUBE, HYPERCUBE = (8,) * 3, (8,) * 4


def setting(dims, count, n, dtype):
    generator = torch.Generator().manual_seed(0)
    target = low_rank_tensors(1, dims, 1, generator)[0].to(dtype)
    problem = TensorCompletion(target, nested_observations(dims, [count], generator)[0])
    return [f.to(dtype) for f in gaussian_cp_factors(n, dims, None, 1e-2, generator)], problem


def train(factors, problem, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return group_rmsprop(factors, problem, max_steps=steps, tol=1e-30).factors


def plain(factors, problem, steps, dense):
    """Train one member with autograd on the dense tensor and the optimiser's formula: what one writes first."""
    parameters, mean = [f[0].clone().requires_grad_() for f in factors], torch.zeros(())
    for t in range(1, steps + 1):
        gradients = torch.autograd.grad(problem.loss(dense(parameters)), parameters)
        mean = 0.99 * mean + 0.01 * sum(g.square().sum() for g in gradients)
        rate = 0.01 / ((mean / (1 - 0.99**t)).sqrt() + 1e-6)
        with torch.no_grad():
            for parameter, g in zip(parameters, gradients, strict=True):
                parameter -= rate * g
    return [p.detach() for p in parameters]


def by_tensorly(factors, problem, steps):
    """Do the same with tensorly's reconstruction of the tensor."""
    import tensorly

    with tensorly.backend_context("pytorch"):
        return plain(factors, problem, steps, lambda parameters: tensorly.cp_to_tensor((None, parameters)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("dims", "count", "n", "steps"),
    [pytest.param(CUBE, 200, 100, 100, id="order 3"), pytest.param(HYPERCUBE, 1000, 4, 20, id="order 4")],
)
def test_step(compare, dims, count, n, steps, dtype):
    factors, problem = setting(dims, count, n, dtype)
    expected = plain([f[:1].double() for f in factors], setting(dims, count, n, torch.float64)[1], steps, cp_tensor)

    def error(found):
        pairs = zip(found, expected, strict=True)
        first = [((f[0] if f.ndim == 3 else f).double() - g).norm() / g.norm() for f, g in pairs]
        return max(float(each) for each in first)

    names = "this library", "autograd, dense", "autograd, tensorly"
    compare(
        f"step of completion, {'×'.join(map(str, dims))}, {str(dtype)[6:]}",
        {
            names[0]: lambda: train(factors, problem, steps),
            names[1]: lambda: plain(factors, problem, steps, cp_tensor),
            names[2]: (lambda: by_tensorly(factors, problem, steps)) if find_spec("tensorly") else None,
        },
        per={names[0]: n * steps, names[1]: steps, names[2]: steps},
        error=error,
    )
