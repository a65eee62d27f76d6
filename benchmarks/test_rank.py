"""Matrix completion: exact flow and batched descent against general solvers and autograd."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import LSODA

from implicitreg.data import MatrixCompletion, two_by_two
from implicitreg.dynamics import balanced_flow, gradient_descent
from implicitreg.nets import DeepLinear, balanced_factors, gaussian_factors, gaussian_matrices

PROBLEM = two_by_two()


def starts(n, std):
    return gaussian_matrices(n, std, torch.Generator().manual_seed(0), determinant_sign=1)


# The exact flow


def by_factors(w0, depth):
    """Follow the flow of all factors with SciPy's LSODA, to the same tolerance and loss."""
    factors = torch.stack(balanced_factors(w0, depth)).numpy()
    target, observed = PROBLEM.target.numpy(), PROBLEM.observed.numpy()

    def product(a):
        w = np.eye(2)
        for each in a:
            w = w @ each
        return w

    def velocity(t, y):
        a = y.reshape(factors.shape)
        gradient = np.where(observed, product(a) - target, 0)
        return np.stack([-product(a[:i]).T @ gradient @ product(a[i + 1 :]).T for i in range(depth)]).ravel()

    def loss(y):
        return 0.5 * (np.where(observed, product(y.reshape(factors.shape)) - target, 0) ** 2).sum()

    solver = LSODA(velocity, 0, factors.ravel(), 1e18, rtol=1e-8, atol=1e-10, first_step=1e-3)
    while loss(solver.y) > 1e-4 and solver.status == "running":
        last = solver.y.copy()
        solver.step()
    low, high, between = solver.t_old, solver.t, solver.dense_output()
    assert loss(last) > 1e-4 >= loss(solver.y), "the solver must reach the loss"
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(between(middle)) > 1e-4 else (low, middle)
    return product(between(high).reshape(factors.shape))[0, 0]


@pytest.mark.parametrize("depth", [2, 3])
def test_exact_flow(compare, grow, depth):
    w0 = starts(1, 1e-3)[0]
    tight = balanced_flow(w0, depth, losses=[1e-4], rtol=1e-11, atol=1e-13)

    def flow(depth):
        return {"this library": lambda: balanced_flow(w0, depth, losses=[1e-4])}

    def error(found):
        entry = found if isinstance(found, float) else float(found.w[0, 0, 0])
        return abs(entry / float(tight.w[0, 0, 0]) - 1)

    compare(
        f"exact flow to loss 1e-4, 2×2, depth {depth}",
        {**flow(depth), "LSODA on the factors": lambda: by_factors(w0, depth)},
        error=error,
    )
    if depth == 2:
        grow("exact flow, in the depth", (2, 4, 8, 16), flow)


# Gradient descent


def descend(factors, problem, lr, steps):
    """Take steps of the library's batched descent; the level is out of reach on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        gradient_descent(factors, problem, lr, losses=[1e-30], max_steps=steps)


def plain(factors, problem, lr, steps):
    """Autograd and torch.optim.SGD: what one writes first."""
    net = DeepLinear(factors)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        problem.loss(net()).sum().backward()
        optimiser.step()


@pytest.mark.parametrize("seeds", [1, 1000])
def test_descent_2x2(compare, seeds):
    factors = balanced_factors(starts(seeds, 1e-2), 3)
    alone = [f[0] for f in factors]
    steps, few = 2000, 200
    compare(
        f"step of descent, 2×2, depth 3, {seeds:,} seed{'s' * (seeds > 1)}",
        {
            "this library": lambda: descend(factors, PROBLEM, 6e-3, steps),
            "autograd, one by one": lambda: plain(alone, PROBLEM, 6e-3, few),
            **({"autograd, one batch": lambda: plain(factors, PROBLEM, 6e-3, few)} if seeds > 1 else {}),
        },
        per={
            "this library": seeds * steps,
            "autograd, one by one": few,
            "autograd, one batch": seeds * few,
        },
    )


def completion(d):
    generator = torch.Generator().manual_seed(0)
    target = gaussian_matrices(1, 1.0, generator, shape=(d, d))[0].float()
    problem = MatrixCompletion(target, torch.rand(d, d, generator=generator) < 0.5)
    return [f[0].float() for f in gaussian_factors(1, 3, 1 / math.sqrt(d), generator, dim=d)], problem


@pytest.mark.parametrize("d", [10, 100])
def test_descent(compare, grow, d):
    """One seed of larger matrices: the library's loop makes no use of BLAS."""
    steps = 20

    def methods(d):
        factors, problem = completion(d)
        return {
            "this library": lambda: descend(factors, problem, 1e-4, steps),
            "autograd and SGD": lambda: plain(factors, problem, 1e-4, steps),
        }

    compare(
        f"step of descent, {d}×{d}, depth 3, float32",
        methods(d),
        per={"this library": steps, "autograd and SGD": steps},
    )
    if d == 100:
        grow("descent of depth 3, in the dimension", (16, 32, 64, 128), methods)
