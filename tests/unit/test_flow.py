"""The exact flow: against the factors' own differential equation, closed forms, symmetries, reference values."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from implicitreg.data import MatrixCompletion, two_by_two
from implicitreg.dynamics import balanced_flow
from implicitreg.nets import balanced_factors, gaussian_matrices

EYE = torch.eye(2, dtype=torch.float64)


def starts(n, std, sign, seed=0):
    return gaussian_matrices(n, std, torch.Generator().manual_seed(seed), determinant_sign=sign)


def by_factors(w0, depth, problem, times):
    """Integrate the gradient flow of the factors themselves: nothing shared with the library but the problem."""
    mask, target = problem.observed.numpy(), problem.target.numpy()

    def velocity(_, y):
        factors = y.reshape(depth, 2, 2)
        residual = mask * (np.linalg.multi_dot([*factors, np.eye(2)]) - target)
        slopes = []
        for k in range(depth):
            before = np.linalg.multi_dot([np.eye(2), *factors[:k], np.eye(2)])
            after = np.linalg.multi_dot([np.eye(2), *factors[k + 1 :], np.eye(2)])
            slopes.append(-before.T @ residual @ after.T)
        return np.stack(slopes).ravel()

    y0 = torch.stack(balanced_factors(w0, depth)).numpy().ravel()
    path = solve_ivp(velocity, (0, times[-1]), y0, "DOP853", t_eval=times, rtol=1e-11, atol=1e-13)
    return np.stack([np.linalg.multi_dot([*y.reshape(depth, 2, 2), np.eye(2)]) for y in path.y.T])


PROBLEMS = {
    "plain": two_by_two(),
    "perturbed": two_by_two(-2.0, 0.5, 0.1),
    "another entry": MatrixCompletion(
        torch.tensor([[0.3, 1.0], [0.0, -0.5]], dtype=torch.float64), torch.tensor([[True, True], [False, True]])
    ),
}


def check_against_factors(flow, depth, sign, problem):
    w0 = starts(1, 0.3, sign, seed=depth)[0]
    # At depth 2 the reference itself fails further down: the factors drift out of balance, and the determinant flips.
    fractions = (0.8, 0.4, 0.1) if depth == 2 else (0.8, 0.4, 0.1, 0.03, 0.01)
    path = flow(w0, depth, problem, losses=[problem.loss(w0).item() * f for f in fractions])
    expected = by_factors(w0, depth, problem, path.t.numpy())
    np.testing.assert_allclose(path.w, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(problem.loss(path.w), path.loss, rtol=1e-7)
    assert (path.determinant_sign == sign).all()
    logs = np.log(np.linalg.svd(expected, compute_uv=False))
    seen = logs > math.log(1e-6)
    np.testing.assert_allclose(path.log_singular_values.numpy()[seen], logs[seen], atol=1e-4)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_is_the_flow_of_the_factors(depth, sign, problem):
    check_against_factors(balanced_flow, depth, sign, PROBLEMS[problem])


@pytest.mark.parametrize(
    "mutant",
    [
        lambda w0, depth, problem, **k: balanced_flow(w0, depth + 1, problem, **k),
        lambda w0, depth, problem, **k: balanced_flow(w0.mT, depth, problem, **k),
        lambda w0, depth, problem, **k: balanced_flow(w0 * 1.01, depth, problem, **k),
        lambda w0, depth, problem, **k: balanced_flow(w0, depth, problem, rtol=1e-3, atol=1e-3, **k),
    ],
)
def test_the_check_catches_mutants(mutant):
    with pytest.raises(AssertionError):
        check_against_factors(mutant, 3, 1, PROBLEMS["perturbed"])


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_reference_values_from_small_starts(depth):
    path = balanced_flow(starts(8, 1e-3, +1), depth, losses=[1e-1, 1e-2, 1e-3, 1e-4])
    entry = path.w[..., 0, 0].abs()
    assert (entry[:, -1] - 70.70).abs().max() < 0.15
    assert path.t[:, -1].median().item() == pytest.approx({2: 59070, 3: 10744, 4: 4250}[depth], rel=0.005)
    tightness = entry * (2 * path.loss).sqrt()
    for column, expected in enumerate((0.82, 0.981, 0.998, 0.9998)):
        assert (tightness[:, column] - expected).abs().max() < 0.01


def test_wrong_sign_stops():
    path = balanced_flow(starts(20, 1e-3, -1), 2, losses=[1e-1, 1e-12])
    assert path.w[:, -1, 0, 0].abs().median() < 1
    assert (torch.linalg.det(path.w[:, -1]) + 1).abs().max() < 1e-4


def test_wrong_sign_reference_ends():
    """End points for starts with a wrong-sign component of known size: a rotation of (1.2, -delta)."""
    u, v = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    for depth, expected in ((2, (1.771, 2.975)), (3, (3.598, 14.10))):
        w0 = torch.stack([1.2 * torch.outer(u, u) - delta * torch.outer(v, v) for delta in (1e-2, 1e-4)])
        path = balanced_flow(w0, depth, losses=[1e-2, 1e-10])
        np.testing.assert_allclose(path.w[:, -1, 0, 0].abs(), expected, rtol=1e-3)


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 2.0, 10.0])
def test_scaled_identity_follows_the_polynomial_system(alpha):
    def velocity(_, y):
        a, b, c, _ = y
        return [2 * b * (1 - b), a * (1 - b) + c - 2 * b * c, 2 * b * (1 - b) - 2 * c * c, -2 * c]

    path = balanced_flow(alpha * EYE, 2, losses=[0.3, 1e-2, 1e-4])
    exact = solve_ivp(
        velocity,
        (0, path.t[-1]),
        [alpha, 0, alpha, 2 * math.log(alpha)],
        "LSODA",
        t_eval=path.t,
        rtol=1e-10,
        atol=1e-13,
    ).y.T
    np.testing.assert_allclose(path.w.flatten(-2)[:, [0, 1, 3]], exact[:, :3], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(path.log_singular_values.sum(-1), exact[:, 3], rtol=1e-5)
    assert path.w[-1, 0, 0].item() == pytest.approx(70.6965, abs=1e-3)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_scaled_identity_is_the_limit_of_starts_nearby(depth):
    losses = [0.3, 1e-2, 1e-4]
    nudge = torch.tensor([[1e-6, 2e-7], [-1e-7, 0.0]], dtype=torch.float64)
    exact, near = (balanced_flow(w0, depth, losses=losses) for w0 in (0.1 * EYE, 0.1 * (EYE + nudge)))
    torch.testing.assert_close(near.w, exact.w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(near.t, exact.t, rtol=1e-4, atol=0)


def test_negative_identity_is_the_mirror_image():
    plus, minus = (balanced_flow(sign * 0.5 * EYE, 3, losses=[0.1, 1e-4]) for sign in (1, -1))
    mirror = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(minus.w, plus.w * mirror, rtol=1e-6, atol=1e-6)


def test_depth_1_has_a_closed_form():
    problem, w0 = two_by_two(), torch.tensor([[0.3, 0.1], [-0.2, 0.4]], dtype=torch.float64)
    path = balanced_flow(w0, 1, losses=[0.5, 0.1, 1e-6])
    assert (path.w[:, 0, 0] == 0.3).all()
    torch.testing.assert_close(problem.loss(path.w), path.loss)
    torch.testing.assert_close(path.t, 0.5 * (problem.loss(w0) / path.loss).log())


def test_symmetries():
    w0, losses = starts(4, 0.1, +1, seed=7), [0.3, 1e-2, 1e-4]
    path = balanced_flow(w0, 3, losses=losses)
    flipped = balanced_flow(w0.mT, 3, losses=losses)
    torch.testing.assert_close(flipped.w, path.w.mT, rtol=1e-5, atol=1e-5)
    # Signs of one row and of the other column: keeps the off-diagonal, turns the diagonal.
    mirror = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(balanced_flow(w0 * mirror, 3, losses=losses).w, path.w * mirror, rtol=1e-5, atol=1e-5)


def test_batch_shape_and_default_levels():
    w0 = starts(6, 1e-2, +1).view(3, 2, 2, 2)
    path = balanced_flow(w0, 3, until=1e-2, points=11)
    assert path.w.shape == (3, 2, 11, 2, 2)
    assert path.t.shape == path.loss.shape == path.determinant_sign.shape == (3, 2, 11)
    assert path.converged.shape == path.n_evaluations.shape == (3, 2)
    torch.testing.assert_close(path.loss[..., 0], two_by_two().loss(w0), rtol=1e-12, atol=0)
    assert (path.t.diff() > 0).all()
    assert (path.t[..., 0] == 0).all()
    alone = balanced_flow(w0[1, 1], 3, until=1e-2, points=11)
    assert torch.equal(alone.w, path.w[1, 1])


def test_a_flow_that_is_cut_short_says_so():
    with pytest.warns(RuntimeWarning, match="2 of 2 flows did not meet"):
        path = balanced_flow(starts(2, 1e-3, +1), 2, losses=[0.1, 1e-2, 1e-4], t_max=1000.0)
    assert not path.converged.any()
    assert path.t[:, :2].isfinite().all()
    assert path.t[:, 2].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w0": torch.ones(2, 2, dtype=torch.float64)}, "w0: must have full rank"),
        ({"w0": torch.eye(3)}, "w0: must have shape"),
        ({"w0": torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)}, "w0: its two singular values"),
        ({"w0": EYE, "problem": two_by_two(1.0, 0.5)}, "w0: its two singular values"),
        ({"depth": 0}, "depth: "),
        ({"depth": 2.5}, "depth: "),
        ({"losses": [1e-2, 1e-1]}, "losses: must be"),
        ({"losses": [5.0, 1e-1]}, "losses: must start at or below"),
        ({"losses": []}, "losses: "),
        ({"until": 3.0}, "until: "),
        ({"until": -1.0}, "until: "),
        ({"points": 1}, "points: "),
        ({"max_evaluations": 0}, "max_evaluations: "),
        ({"w0": torch.zeros(0, 2, 2)}, "w0: must have shape"),
        ({"losses": "abc"}, "losses: must be"),
        ({"t_max": 0.0}, "t_max: "),
        ({"rtol": 0.0}, "rtol: "),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        balanced_flow(**{"w0": starts(1, 0.1, +1), "depth": 2, **arguments})


def test_far_down_and_deep_the_flow_converges_or_says_so():
    """Plateaus of any length, large depths; levels below the end of double precision; losses that stall."""
    for depth, std in ((2, 1e-100), (3, 1e-30), (6, 1e-10), (10, 1e-8)):
        assert balanced_flow(starts(2, std, +1), depth, losses=[0.1, 1e-4]).converged.all()
    assert balanced_flow(starts(2, 20.0, +1), 4, until=1e-8).converged.all()
    with pytest.warns(RuntimeWarning, match="2 of 2 flows"):
        path = balanced_flow(starts(2, 1e-3, +1), 3, losses=[0.1, 1e-8, 1e-13])
    assert path.t[:, 1].isfinite().all()
    # From a positive definite start no flow reaches w22 = -0.1: the loss tends to 0.1**2 / 2.
    with pytest.warns(RuntimeWarning, match="1 of 1 flows"):
        path = balanced_flow(EYE, 2, two_by_two(epsilon=-0.1), until=1e-4, t_max=1e6)
    assert path.loss[path.t.isfinite()].min() > 0.005
    with pytest.warns(RuntimeWarning, match="max_evaluations"):
        path = balanced_flow(starts(1, 1e-3, +1)[0], 3, losses=[0.1, 1e-4], max_evaluations=100)
    assert not path.converged
    assert path.n_evaluations < 200


def test_mutants_of_the_velocity_are_caught(monkeypatch):
    """Wrong signs and swapped terms inside the routine, not in its arguments."""
    from implicitreg.dynamics import flow

    right = flow._LogSingular.velocity

    def mutant(change):
        return lambda self, t, y: change(right(self, t, y))

    for change in (
        lambda v: (v[0], v[1], v[3], v[2]),  # the two angles exchanged
        lambda v: (v[0], -v[1], v[2], v[3]),  # the sign of the smaller singular value forgotten
        lambda v: (v[0], v[1], 1.01 * v[2], v[3]),
        lambda v: tuple(x / 2 for x in v),  # a clock that runs at half speed
    ):
        monkeypatch.setattr(flow._LogSingular, "velocity", mutant(change))
        with pytest.raises((AssertionError, RuntimeWarning)):  # a wrong path, or one that never gets down
            check_against_factors(balanced_flow, 3, 1, PROBLEMS["perturbed"])
