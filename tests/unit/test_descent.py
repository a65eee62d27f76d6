"""Batched descent: against autograd and a plain optimiser, against the flow, and its own bookkeeping."""

import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch

from implicitreg.data import MatrixCompletion, two_by_two
from implicitreg.dynamics import balanced_flow, descent, gradient_descent
from implicitreg.nets import (
    DeepLinear,
    balanced_factors,
    gaussian_factors,
    gaussian_matrices,
    identity_factors,
    imbalance,
    product,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(factors, problem, lr, losses):
    """One member after another with torch.optim.SGD: steps and matrices where the loss first meets each level."""
    net = DeepLinear(factors)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr)
    steps, matrices, now, levels = [], [], 0, list(losses)
    while levels:
        optimiser.zero_grad()
        w = net()
        loss = problem.loss(w)
        while levels and loss.item() <= levels[0]:
            steps.append(now)
            matrices.append(w.detach().clone())
            levels.pop(0)
        loss.backward()
        optimiser.step()
        now += 1
    return steps, torch.stack(matrices)


def wide():
    """Return a 3×4 problem with hidden dimensions 2 and 3: nothing square, so that a misplaced transpose shows."""
    problem = MatrixCompletion(
        torch.randn(3, 4, dtype=torch.float64, generator=generator(1)), torch.rand(3, 4, generator=generator(2)) < 0.6
    )
    dims = (3, 2, 3, 4)
    factors = [0.7 * torch.randn(5, m, n, dtype=torch.float64, generator=generator(m + n)) for m, n in pairwise(dims)]
    return problem, factors


def compare(run, factors, problem, lr, losses):
    """Hold every member of a batched run against the plain optimiser."""
    for i in range(len(factors[0])):
        steps, matrices = plain([a[i] for a in factors], problem, lr, losses)
        assert run.step[i].tolist() == steps
        np.testing.assert_allclose(run.w[i], matrices, rtol=1e-10, atol=1e-12)


def check(descend):
    problem, factors = wide()
    losses = [problem.loss(product(factors)).min().item() * f for f in (0.9, 0.7, 0.5)]
    compare(descend(factors, problem, 0.02, losses=losses), factors, problem, 0.02, losses)


def test_agrees_with_autograd():
    check(gradient_descent)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda factors, problem, lr, **k: gradient_descent(factors, problem, 2 * lr, **k),  # factor 1/2 lost
        lambda factors, problem, lr, **k: gradient_descent(factors, problem, lr * 1.001, **k),
        lambda factors, problem, lr, **k: gradient_descent([a.roll(1, 0) for a in factors], problem, lr, **k),
    ],
)
def test_the_check_catches_mutants(mutant):
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_other_depths(depth):
    problem = two_by_two()
    factors = [0.5 * a for a in gaussian_factors(3, depth, 1.0, generator(depth))]
    levels = [problem.loss(product(factors)).min().item() * f for f in (1.0, 0.1, 0.02)]
    compare(gradient_descent(factors, problem, 0.05, losses=levels), factors, problem, 0.05, levels)


def test_a_step_size_for_each_member():
    w0 = gaussian_matrices(1, 0.1, generator(), determinant_sign=1).expand(3, 2, 2)
    rates = torch.tensor([0.01, 0.02, 0.04], dtype=torch.float64)
    together = gradient_descent(balanced_factors(w0, 3), two_by_two(), rates, losses=[0.1, 0.01])
    for i, lr in enumerate(rates.tolist()):
        alone = gradient_descent(balanced_factors(w0[i], 3), two_by_two(), lr, losses=[0.1, 0.01])
        assert alone.step.tolist() == together.step[i].tolist()
        torch.testing.assert_close(alone.w, together.w[i], rtol=1e-12, atol=0)


def test_records_what_it_says():
    factors = gaussian_factors(4, 3, 0.8, generator(3))
    before = [a.clone() for a in factors]
    start = two_by_two().loss(product(factors))
    run = gradient_descent(factors, two_by_two(), 1e-3, losses=[start.min().item(), 0.05])
    assert all(torch.equal(a, b) for a, b in zip(factors, before, strict=True))
    assert run.step[start.argmin(), 0] == 0
    at_start = [a[start.argmin()] for a in factors]
    torch.testing.assert_close(run.determinant[start.argmin(), 0], torch.linalg.det(torch.stack(at_start)).prod())
    torch.testing.assert_close(run.imbalance[start.argmin(), 0], imbalance(at_start))
    torch.testing.assert_close(two_by_two().loss(run.w), run.loss, rtol=1e-12, atol=0)
    assert (run.loss <= torch.tensor([start.min().item(), 0.05])).all()


def test_small_steps_follow_the_flow_at_first_order():
    w0 = gaussian_matrices(1, 0.05, generator(), determinant_sign=1)[0]
    path = balanced_flow(w0, 3, losses=[0.1, 0.02])
    errors = []
    for lr in (0.02, 0.01, 0.005):
        run = gradient_descent(balanced_factors(w0, 3), two_by_two(), lr, losses=[0.1, 0.02])
        flow = balanced_flow(w0, 3, losses=run.loss)  # at the losses that descent really met
        errors.append((run.step * lr - flow.t).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)
    assert path.converged


def test_identity_keeps_its_sign_where_a_random_start_loses_it():
    """The trap at depth 2: a finite step breaks balance and the determinant flips; the identity stays symmetric."""
    levels = [0.4, 0.1, 0.01]
    safe = gradient_descent(identity_factors(0.1, 2), two_by_two(), 3e-3, losses=levels)
    w0 = gaussian_matrices(4, 1e-3, generator(), determinant_sign=1)
    trapped = gradient_descent(balanced_factors(w0, 2), two_by_two(), 3e-3, losses=levels)
    assert (safe.determinant > 0).all()
    assert (trapped.determinant[:, 0] > 0).all()
    assert (trapped.determinant[:, -1] < 0).all()


def test_a_descent_that_fails_says_so():
    factors = identity_factors(0.1, 3)
    with pytest.warns(RuntimeWarning, match="1 of 1 descents"):
        short = gradient_descent(factors, two_by_two(), 0.01, losses=[0.5, 1e-3], max_steps=500)
    assert short.step.tolist()[1] == -1
    assert short.w[1].isnan().all()
    assert not short.converged
    with pytest.warns(RuntimeWarning, match="1 of 2 descents"):
        mixed = gradient_descent(
            [a.expand(2, 2, 2) for a in factors],
            two_by_two(),
            torch.tensor([0.01, 50.0], dtype=torch.float64),
            losses=[1e-2],
            max_steps=10_000,
        )
    assert mixed.converged.tolist() == [True, False]


def test_float32_stays_float32():
    factors = [a.float() for a in identity_factors(0.1, 3)]
    run = gradient_descent(factors, two_by_two(), 0.01, losses=[0.1])
    assert run.w.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": torch.tensor([1e-60, 0.1], dtype=torch.float64), "factors": [torch.ones(2, 2, 2)] * 2}, "lr"),
        ({"lr": torch.tensor(0.1j)}, "lr"),
        ({"losses": [0.1, 0.1 - 1e-12], "factors": [torch.ones(2, 2, 2)] * 2}, "losses"),
        ({"lr": torch.tensor([0.1, -1.0])}, "lr"),
        ({"losses": [0.1, 0.2]}, "losses"),
        ({"losses": [7.0]}, "losses"),
        ({"lr": torch.tensor([0.1, 0.1, 0.1])}, "lr"),
        ({"losses": None}, "losses"),
        ({"max_steps": -1}, "max_steps"),
        ({"factors": []}, "factors"),
        ({"factors": torch.ones(2, 2, 2)}, "factors"),
        ({"factors": [torch.ones(0, 2, 2)] * 2}, "factors"),
        ({"factors": [torch.ones(2, 2), torch.ones(2, 2).double()]}, "factors"),
        ({"factors": identity_factors(0.1, 2, dim=3)}, "factors"),
        ({"factors": [torch.full((2, 2), float("nan"))] * 2}, "factors"),
        ({"factors": [torch.ones(2, 2, 2), torch.ones(3, 2, 2)]}, "factors"),
    ],
)
def test_bad_arguments_are_named(change, name):
    arguments = {
        "factors": gaussian_factors(2, 2, 0.1, generator()),
        "problem": two_by_two(),
        "lr": 0.01,
        "losses": [0.1],
    }
    with pytest.raises(ValueError, match=rf"^{name}: "):
        gradient_descent(**{**arguments, **change})


def interpreted(source):
    """Return the loop as Python from its source, in place of the compiled one."""
    namespace = dict(vars(descent))
    exec(source, namespace)
    return namespace["_loop"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("p[q] -= lr * g[q]", "p[q] += lr * g[q]"),  # uphill
        (
            "in range(len(p)):\n                p[q] -=",
            "in range(start[1], len(p)):\n                p[q] -=",
        ),  # frozen
        ("loss /= 2", "loss /= 2.02"),
        (
            "for j in range(n):\n                            total",
            "for j in range(n - 1):\n                            total",
        ),
        ("h, spare = spare, h", "pass"),  # a stale residual
        ("* mask[i, j]", ""),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_mutants_of_the_loop_are_caught(monkeypatch, right, wrong):
    """Not compiled, the loop gives the same numbers; broken, the comparison with autograd notices."""
    source = inspect.getsource(descent._loop)
    problem, factors = wide()
    losses = [problem.loss(product(factors)).min().item() * f for f in (0.9, 0.7)]
    compiled = gradient_descent(factors, problem, 0.02, losses=losses)
    monkeypatch.setattr(descent, "_compiled", interpreted(source))
    plain_python = gradient_descent(factors, problem, 0.02, losses=losses)
    assert torch.equal(compiled.w, plain_python.w)
    assert source.count(right) == 1
    monkeypatch.setattr(descent, "_compiled", interpreted(source.replace(right, wrong)))
    with pytest.raises(AssertionError):
        check(lambda *a, **k: gradient_descent(*a, **k, max_steps=500))


def test_a_member_moves_alike_alone_and_in_pieces(monkeypatch):
    problem, factors = wide()
    losses = [problem.loss(product(factors)).min().item() * f for f in (0.9, 0.5)]
    together = gradient_descent(factors, problem, 0.02, losses=losses)
    monkeypatch.setattr(descent, "PATIENCE", 7)
    alone = gradient_descent([a[2] for a in factors], problem, 0.02, losses=losses)
    assert torch.equal(together.step[2], alone.step)
    assert torch.equal(together.w[2], alone.w)
