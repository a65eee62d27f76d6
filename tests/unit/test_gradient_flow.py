"""Gradient flow against exponentials, SciPy with gradients by hand, symmetries; flows that do not arrive, refusals."""

import itertools
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from mutation import mutated
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch.nn.functional import hardswish

from implicitreg.dynamics import gradient_flow, squared_loss
from implicitreg.nets import hidden_neuron, relu, single_neuron

module = sys.modules["implicitreg.dynamics.gradient_flow"]
METHODS = ("LSODA", "BDF", "Radau", "DOP853", "RK45", "RK23")
X1, X2 = math.log(2), math.log(3)
START, P, Q = (8.708080263031743537501559871, 3.316534127157136739020288663), (5.0, 2.0), (6.0, 1.0)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bowl(theta):
    return theta.square().sum(-1) / 2


def sigmoid_loss(x, y):
    """Return the loss of one hidden neuron on one sample, which any batch of parameters goes through."""
    x, y = tensor([x]), tensor(y)
    return lambda theta: squared_loss(hidden_neuron(theta, x, torch.sigmoid), y)


def by_hand(x, y, theta0, times):
    """Integrate the flow of a hidden sigmoid neuron with its gradient by hand: nothing shared with the library."""

    def velocity(_, theta):
        a, w = theta
        s = 1 / (1 + np.exp(-w * x))
        return -(a * s - y) * np.array([s, a * x * s * (1 - s)])

    found = solve_ivp(velocity, (0, times[-1]), theta0, "Radau", t_eval=times, rtol=1e-11, atol=1e-12)
    return found.y.T


# The loss


def test_squared_loss():
    outputs, targets = normal(3, 1, 4), normal(2, 4, seed=1)
    expected = 0.5 * ((outputs.numpy() - targets.numpy()) ** 2).sum(-1)
    np.testing.assert_allclose(squared_loss(outputs, targets), expected, rtol=1e-15)
    assert squared_loss(outputs.float(), targets.float()).dtype == torch.float32
    assert squared_loss(tensor(3.0), tensor(1.0)) == 2
    assert squared_loss(outputs, outputs).max() == 0
    leaf = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(squared_loss(leaf, targets[0]).sum(), leaf)
    torch.testing.assert_close(gradient, outputs - targets[0], rtol=0, atol=1e-15)


# Closed forms


def check_linear(flow=gradient_flow, tolerance=1e-10, **options):
    """Half a quadratic form goes to its minimum by the matrix exponential, from several starts."""
    factor, centre, theta0 = normal(3, 3, seed=4), normal(3, seed=1), normal(5, 3, seed=2)
    a = factor @ factor.T + 0.3 * torch.eye(3, dtype=torch.float64)

    def loss(theta):
        return ((theta - centre) @ a * (theta - centre)).sum(-1) / 2

    options = {"t_end": 3.0} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it is not there yet after such a short time
        found = flow(loss, theta0, **options)
    times = np.linspace(0, options["t_end"], 14)
    dense = found(torch.from_numpy(times))
    for t, at in zip(times, dense, strict=True):
        expected = centre + (theta0 - centre) @ torch.from_numpy(expm(-t * a.numpy()))
        torch.testing.assert_close(at, expected, rtol=0, atol=tolerance)
    for t, theta, value in zip(found.t.tolist(), found.theta, found.loss, strict=True):
        expected = centre + (theta0 - centre) @ torch.from_numpy(expm(-t * a.numpy()))
        torch.testing.assert_close(theta, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(value, loss(expected), rtol=0, atol=tolerance * 10)
    torch.testing.assert_close(found.gradient_norm, ((found.end - centre) @ a).norm(dim=-1), rtol=1e-12, atol=1e-15)
    assert found.t[0] == 0
    assert found.t[-1] == options["t_end"]
    assert torch.equal(found.theta[0], theta0)
    assert torch.equal(found.theta[-1], found.end)
    assert (found.t.diff() > 0).all()
    assert not found.converged.any()


@pytest.mark.parametrize("method", METHODS)
def test_quadratic_losses(method):
    coarse = method != "LSODA"
    check_linear(method=method, tolerance=1e-6 if coarse else 1e-9, **({"rtol": 1e-7, "atol": 1e-9} if coarse else {}))


@pytest.mark.parametrize(
    "mutant",
    [
        lambda loss, theta0, **k: gradient_flow(lambda theta: 2 * loss(theta), theta0, **k),
        lambda loss, theta0, **k: gradient_flow(lambda theta: -loss(theta), theta0, **k),
        lambda loss, theta0, **k: gradient_flow(loss, theta0.flip(0), **k),
        lambda loss, theta0, **k: gradient_flow(loss, theta0, **k | {"t_end": 2.9}),
        lambda loss, theta0, **k: gradient_flow(loss, theta0, rtol=1e-4, atol=1e-4, **k),
        lambda loss, theta0, **k: gradient_flow(loss, theta0, until=1e-3, **k),
    ],
)
def test_the_check_catches_mutants(mutant):
    with pytest.raises((AssertionError, ValueError)):
        check_linear(mutant)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("structure", '"lband": m - 1, "uband": m - 1', '"lband": 0, "uband": 0'),
        ("losses", "self.loss(", "2 * self.loss("),
        ("tensor", "reshape(self.shape)", "reshape(self.shape).flip(0)"),
        ("value", "grad(loss.sum(), theta)", "grad(loss.mean(), theta)"),
    ],
)
def test_mutants_are_caught(monkeypatch, name, right, wrong):
    mutant = mutated(module, f"_Problem.{name}", right, wrong)
    monkeypatch.setattr(module._Problem, name, getattr(mutant._Problem, name))
    if name == "structure":
        # A wrong Jacobian costs steps where the flow is stiff; it need not cost accuracy.
        with pytest.raises(AssertionError):
            check_evaluations()
    else:
        with pytest.raises(AssertionError):
            check_linear()


def narrow(theta):
    """Return a valley at an angle to the axes, ten thousand times as steep as it is long."""
    u, v = (theta[..., 0] + theta[..., 1]), (theta[..., 0] - theta[..., 1])
    return (u.square() + 1e4 * v.square()) / 2


def check_evaluations():
    with pytest.warns(RuntimeWarning, match="time 0.05"):
        found = gradient_flow(narrow, tensor(1.0, 0.5), t_end=0.05)
    torch.testing.assert_close(found.end, tensor(0.75, 0.75) * math.exp(-0.1), rtol=1e-10, atol=0)
    assert found.n_evaluations < 1500


def test_stiff_valleys_take_few_evaluations():
    check_evaluations()


def test_falls_like_an_exponential():
    theta0 = tensor([3.0, 4.0], [0.1, -0.2], [0.0, 0.0])
    found = gradient_flow(bowl, theta0, t_end=30.0)
    t = torch.linspace(0, 30, 50, dtype=torch.float64)
    torch.testing.assert_close(found(t), theta0 * (-t).exp()[:, None, None], rtol=0, atol=1e-10)
    assert found.converged.tolist() == [True] * 3
    # One cell with a kink-free power: theta' = -theta^3, so 1 / theta^2 grows by 2t.
    with pytest.warns(RuntimeWarning, match="1 of 1 members did not converge"):
        found = gradient_flow(lambda theta: theta[..., 0] ** 4 / 4, tensor(2.0), t_end=50.0)
    torch.testing.assert_close(found(t)[:, 0], (0.25 + 2 * t).rsqrt(), rtol=0, atol=1e-10)


def test_stops_at_the_level_asked_for():
    theta0 = tensor([3.0, 4.0], [0.1, -0.2])
    found = gradient_flow(bowl, theta0, until=1e-6)
    assert (found.loss[-1] <= 1e-6).all()
    assert (found.loss[-2] > 1e-6).any()
    torch.testing.assert_close(found.end, theta0 * math.exp(-float(found.t[-1])), rtol=1e-9, atol=0)
    each = gradient_flow(bowl, theta0, until=tensor(1e-12, 1e-3))
    assert (each.loss[-1] <= tensor(1e-12, 1e-3)).all()
    assert (each.loss[-2] > tensor(1e-12, 1e-3)).any()
    assert each.t[-1] > found.t[-1]
    both = gradient_flow(bowl, theta0, until=1e-6, t_end=1000.0)
    assert both.converged.all()
    assert both.t[-1] < 20
    # There already: no step, and the start at every time there is.
    still = gradient_flow(bowl, theta0, until=100.0)
    assert still.t.tolist() == [0.0]
    assert torch.equal(still(0.0), theta0)
    assert torch.equal(still(tensor(0.0, 0.0)), theta0.expand(2, 2, 2))
    assert still.converged.all()


# SciPy with the gradient by hand


def test_kinks_do_not_lock_the_steps():
    """Members that cross a kink at different times: after one of them LSODA would go on by steps of 1e-11."""
    starts = tensor([1.0, 0.4], [2.0, 1.5], [0.3, 1.0], [6.0, 1.5]).repeat_interleave(2, 0)
    x = tensor(2.9030216893891705, 3.910297124031897, 0.7741391171704455, 1.0427458997418393)
    x = torch.cat([x, tensor(1.1612086757556677, 1.5641188496127594, 1.5448904366225882, 2.0812975186520553)])
    y = tensor(2.393678639132986, 3.634692260880601, 6.153584569736367, 9.343938591688474)
    y = torch.cat([y, tensor(3.1090728773424794, 4.720985908903655, 5.149393524457035, 7.640130669002588)])
    found = gradient_flow(
        lambda theta: squared_loss(hidden_neuron(theta, x[:, None, None], hardswish), y[:, None]), starts, until=1e-24
    )
    assert found.n_evaluations < 20_000
    # Both data sets of a start lead to one point.
    torch.testing.assert_close(found.end[::2], found.end[1::2], rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["LSODA"])
def test_hidden_neurons_against_a_gradient_by_hand(method):
    times = np.array([0, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20])
    for x, y in ((X1, 4.0), (X2, 4.5)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # at t = 20 it may be near 1e-18
            found = gradient_flow(sigmoid_loss(x, y), tensor(*START), t_end=20.0, method=method)
        np.testing.assert_allclose(found(torch.from_numpy(times)), by_hand(x, y, START, times), rtol=0, atol=1e-8)


def test_both_data_sets_of_the_example_with_whole_numbers():
    x, y = tensor([[X1]], [[X2]]), tensor([4.0], [4.5])

    def loss(theta):
        return squared_loss(hidden_neuron(theta, x, torch.sigmoid), y)

    found = gradient_flow(loss, tensor(*START).expand(2, 2), until=1e-26)
    ends = tensor(Q, P)
    assert (found.end - ends).norm(dim=-1).max() < 5e-11
    assert found.converged.all()
    late = gradient_flow(loss, tensor(*START).expand(2, 2), t_end=200.0)
    assert (late.end - ends).norm(dim=-1).max() < 5e-11
    errors = (late(tensor(5.0, 10.0, 20.0)) - ends).norm(dim=-1)
    expected = tensor([6.0883e-3, 2.1570e-2], [9.2181e-6, 1.10783e-4], [2.12e-11, 2.9192e-9])
    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=5e-11)
    # On the other activation both end elsewhere.
    other = gradient_flow(
        lambda theta: squared_loss(hidden_neuron(theta, x, torch.tanh), y), tensor(*START).expand(2, 2), until=1e-24
    )
    torch.testing.assert_close(other.end, tensor([5.2911, 1.4236], [4.5075, 3.2243]), rtol=0, atol=1e-4)
    torch.testing.assert_close((other.end - ends).norm(dim=-1), tensor(0.826, 1.320), rtol=0, atol=1e-3)


def test_a_single_neuron_goes_to_the_nearest_solution():
    """Without an output weight, w - w(0) stays in the span of the inputs: Vardi & Shamir, Theorem 1."""
    x, truth, w0 = normal(3, 5), normal(5, seed=1) / 2, normal(5, seed=2) / 2
    y = torch.tanh(x @ truth)
    found = gradient_flow(lambda w: squared_loss(single_neuron(w, x, torch.tanh), y), w0, until=1e-24)
    nearest = w0 + torch.linalg.pinv(x) @ (torch.atanh(y) - x @ w0)
    torch.testing.assert_close(found.end, nearest, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("gamma", "expected"), [(1, -0.0407729198), (2, -0.1106964584), (5, -0.2090488123)])
def test_relu_from_zero(gamma, expected):
    """A kink, crossed once: Vardi & Shamir's construction, of which the limit is known in closed form."""
    x, y = tensor([3.0, -1, 0], [4, 2, 0], [0, gamma, gamma]), tensor(16.0, 18, 0)
    found = gradient_flow(
        lambda w: squared_loss(single_neuron(w, x, relu), y),
        torch.zeros(3).double(),
        t_end=8.0,
        until=1e-20,
        max_step=0.05,
    )
    assert found.converged
    torch.testing.assert_close(found.end, tensor(5.0, -1.0, expected), rtol=0, atol=1e-6)


# Batches, symmetries


def test_batches_are_single_calls():
    loss, theta0 = sigmoid_loss(X1, 4.0), tensor(*START) + normal(6, 2) / 4
    together = gradient_flow(loss, theta0, until=1e-24)
    for start, end in zip(theta0, together.end, strict=True):
        torch.testing.assert_close(gradient_flow(loss, start, until=1e-24).end, end, rtol=0, atol=1e-10)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = gradient_flow(loss, theta0[order], until=1e-24)
    torch.testing.assert_close(permuted.end, together.end[order], rtol=0, atol=1e-10)
    shaped = gradient_flow(loss, theta0.reshape(3, 1, 2, 2), until=1e-24)
    assert shaped.theta.shape == (len(shaped.t), 3, 1, 2, 2)
    assert shaped.loss.shape == shaped.theta.shape[:-1]
    assert shaped.converged.shape == shaped.gradient_norm.shape == (3, 1, 2)
    assert torch.equal(shaped.end.reshape(6, 2), together.end)
    repeated = gradient_flow(loss, theta0[:1].expand(4, 2), until=1e-24)
    assert (repeated.end == repeated.end[0]).all()


FLAT = {
    "two entries": lambda theta: (theta[0] - 1) ** 2 / 2 + (theta[1] - 2) ** 2,
    "coupled": lambda theta: (theta[0] - theta[1]) ** 2 / 2,
    "by dot": lambda theta: (theta - 1).dot(theta - 1) / 2,
}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("batch", [(2,), (2, 2)])
def test_losses_of_flat_vectors(name, batch):
    """With as many members as parameters, theta[0] could be taken for the first entry of every member."""
    loss, theta0 = FLAT[name], normal(*batch, 2)
    found = gradient_flow(loss, theta0, until=1e-22)
    for one, end in list(zip(theta0.reshape(-1, 2), found.end.reshape(-1, 2), strict=True))[1:2]:
        torch.testing.assert_close(gradient_flow(loss, one, until=1e-24).end, end, rtol=0, atol=1e-9)
    assert found.converged.shape == batch


def test_losses_across_rows_are_refused():
    theta0 = normal(3, 2)
    for loss in (
        lambda theta: theta.square().sum((-2, -1)).expand(3),
        lambda theta: bowl(theta[[1, 0, 2]]),
        lambda theta: bowl(theta).cumsum(0).reshape(3),
        lambda theta: bowl(theta - theta.mean(-2)),
        lambda theta: bowl(theta).flip(0) if theta.ndim > 1 else bowl(theta).expand(2),
        lambda theta: theta,
        lambda theta: theta.sum(-1, keepdim=True),
    ):
        with pytest.raises(ValueError, match=r"^loss: must map parameters \(3, 2\) to losses \(3,\), each of its own"):
            gradient_flow(loss, theta0, t_end=1.0)
    many = normal(300, 2)
    for i, j in ((0, 1), (298, 299), (0, 256), (3, 19), (31, 287)):

        def loss(theta, i=i, j=j):
            return bowl(theta).index_add(0, torch.tensor([i]), theta[j : j + 1, 0] / 1e3)

        with pytest.raises(ValueError, match=r"^loss: must map parameters \(300, 2\) to losses \(300,\)"):
            gradient_flow(loss, many, t_end=1.0)


def test_a_constant_factor_changes_time_alone():
    times = tensor(0.0, 0.3, 1.0, 4.0, 9.0)
    loss = sigmoid_loss(X1, 4.0)
    slow = gradient_flow(loss, tensor(*START), until=1e-24)
    fast = gradient_flow(lambda theta: 7 * loss(theta), tensor(*START), until=1e-24)
    torch.testing.assert_close(fast(times / 7), slow(times), rtol=0, atol=1e-10)
    torch.testing.assert_close(fast.end, slow.end, rtol=0, atol=1e-11)
    factors = tensor(1e-3, 1.0, 1e3)
    each = gradient_flow(lambda theta: factors * loss(theta), tensor(*START).expand(3, 2), until=1e-24 * factors)
    torch.testing.assert_close(each.end, slow.end.expand(3, 2), rtol=0, atol=1e-9)


def test_inputs_against_weights():
    """With x to cx and w to w / c the flow is another one; scaling the metric with it gives the same."""
    times, c = tensor(0.5, 2.0, 6.0), 4.0
    plain = gradient_flow(sigmoid_loss(X1, 4.0), tensor(*START), until=1e-24)
    scaled = gradient_flow(
        lambda v: sigmoid_loss(c * X1, 4.0)(v * tensor(1, 1 / c)), tensor(START[0], START[1]), until=1e-24
    )
    torch.testing.assert_close(scaled(times), plain(times), rtol=0, atol=1e-10)
    # Reflection: the output weight and the target change sign together.
    mirrored = gradient_flow(sigmoid_loss(X1, -4.0), tensor(-START[0], START[1]), until=1e-24)
    torch.testing.assert_close(mirrored.end, plain.end * tensor(-1, 1), rtol=0, atol=1e-12)


def test_dtypes_and_grad_modes():
    seen = set()

    def loss(theta):
        seen.add(theta.dtype)
        return bowl(theta - 1)

    theta0 = normal(4, 2)
    wide = gradient_flow(loss, theta0, until=1e-20)
    narrow = gradient_flow(loss, theta0.float(), until=1e-20)
    assert seen == {torch.float64}
    for value in (narrow.theta, narrow.loss, narrow.end, narrow.gradient_norm, narrow(1.0), narrow(tensor(0.0, 1.0))):
        assert value.dtype == torch.float32
    assert narrow.t.dtype == torch.float64
    assert narrow.converged.dtype == torch.bool
    torch.testing.assert_close(narrow(1.0).double(), wide(1.0), rtol=0, atol=1e-6)
    leaf = theta0.clone().requires_grad_()
    with torch.no_grad():
        again = gradient_flow(loss, leaf, until=1e-20)
    assert torch.equal(again.end, wide.end)
    assert not again.end.requires_grad
    assert leaf.grad is None
    assert torch.equal(leaf, theta0)


def test_what_is_kept_is_not_the_solvers_own_memory():
    """A loss that is a view of its argument, a start that others hold."""
    theta0 = tensor(2.0)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        found = gradient_flow(lambda theta: theta[..., 0], theta0, t_end=1.0)
    torch.testing.assert_close(found.theta[:, 0], 2 - found.t, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.loss, 2 - found.t, rtol=0, atol=1e-12)
    assert theta0.item() == 2


def test_dense_output():
    found = gradient_flow(sigmoid_loss(X1, 4.0), tensor(START, Q, P), until=1e-24)
    torch.testing.assert_close(found(found.t), found.theta, rtol=0, atol=1e-10)
    assert found(0.3).shape == (3, 2)
    assert found(tensor(0.3)).shape == (1, 3, 2)
    assert found(torch.zeros(2, 5, 1)).shape == (2, 5, 1, 3, 2)
    assert found(torch.zeros(0)).shape == (0, 3, 2)
    # Between steps it obeys the equation.
    t = torch.linspace(0.05, 8, 40, dtype=torch.float64)
    leaf = found(t).requires_grad_()
    (gradient,) = torch.autograd.grad(sigmoid_loss(X1, 4.0)(leaf).sum(), leaf)
    velocity = (found(t + 1e-4) - found(t - 1e-4)) / 2e-4
    torch.testing.assert_close(velocity, -gradient, rtol=0, atol=1e-5)
    for bad in (-1e-9, math.nan, math.inf, float(found.t[-1]) * 1.001, tensor(0.0, -1.0)):
        with pytest.raises(ValueError, match=r"^t: must lie between 0 and .*, where the flow ends"):
            found(bad)


# Flows that do not arrive


def flowed(message, *arguments, **options):
    with pytest.warns(RuntimeWarning, match=message) as caught:
        found = gradient_flow(*arguments, **options)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    return found


def test_flat_losses_say_so():
    found = flowed(
        "2 of 2 members did not converge to loss 1e-20: time 1e[+]12",
        lambda theta: bowl(theta) + 1,
        normal(2, 2),
        until=1e-20,
    )
    assert not found.converged.any()
    assert found.end.abs().max() < 1e-9
    found = flowed("1 of 1 members", lambda theta: 0 * theta[0] + 1, tensor(1.0, 2.0), until=1e-3)
    assert torch.equal(found.end, tensor(1.0, 2.0))
    found = flowed("1 of 3 members", bowl, tensor([0.0], [0.1], [9.0]), t_end=0.5, until=1.0)
    assert found.converged.tolist() == [True, True, False]


def test_data_that_cannot_be_fitted_say_so():
    x, y = tensor([1.0], [1.0]), tensor(1.0, 2.0)
    found = flowed(
        "1 of 1 members did not converge to loss 1e-20: .*largest loss 0.25",
        lambda theta: squared_loss(hidden_neuron(theta, x, torch.sigmoid), y),
        tensor(1.0, 0.0),
        until=1e-20,
    )
    assert hidden_neuron(found.end, x, torch.sigmoid).tolist() == pytest.approx([1.5, 1.5], abs=1e-8)
    assert found.gradient_norm < 1e-9
    found = flowed("largest loss", sigmoid_loss(X1, 4.0), tensor(*START), t_end=5.0)
    assert not found.converged
    assert found.t[-1] == 5
    # A dead unit.
    found = flowed("1 of 1", lambda w: squared_loss(single_neuron(w, x, torch.relu), y), tensor(-1.0), t_end=10.0)
    assert found.end.tolist() == [-1]
    assert found.gradient_norm == 0


def test_slow_plateaus_arrive():
    found = gradient_flow(sigmoid_loss(X1, 4.0), tensor(3.0, -25.0), until=1e-24)
    assert found.converged
    assert found.t[-1] > 1e3


def test_a_solver_that_fails_says_what_to_do():
    """Its own words would be "Unexpected istate in LSODA." and "Required step size is less than spacing"."""
    advice = r": no step meets the tolerances \(try a larger rtol, unless the loss is unbounded or undefined beyond\)"
    found = flowed(
        "1 of 1 members .* the solver gave up at time .*" + advice,
        lambda theta: ((30 * theta[..., 0]).sin() + 2) * theta.square().sum(-1),
        tensor(3.0, 4.0),
        t_end=5.0,
        rtol=100 * np.finfo(float).eps,
        atol=1e-300,
    )
    assert found.t[-1] < 1
    options = {"t_end": 2.0, "rtol": 1e-6, "atol": 1e-8, "method": "RK45"}
    flowed("gave up at time 1" + advice, lambda theta: -(theta[..., 0] ** 3) / 3, tensor(1.0), **options)


@pytest.mark.parametrize("method", ["LSODA", "DOP853"])
def test_losses_without_bound_end_with_a_warning(method):
    """1 / theta falls linearly and is 0 at time 1."""
    found = flowed(
        "the solver gave up at time 1: ",
        lambda theta: -(theta[..., 0] ** 3) / 3,
        tensor([1.0], [0.5]),
        t_end=2.0,
        method=method,
        rtol=1e-8,
        atol=1e-10,
    )
    assert found.t[-1].item() == pytest.approx(1, abs=1e-4)
    assert found.end[1].item() == pytest.approx(1, abs=1e-3)
    assert found.end.isfinite().all()
    torch.testing.assert_close(found(0.5), tensor([2.0], [2 / 3]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["LSODA", "DOP853", "RK45"])
def test_losses_that_end_to_be_numbers_end_with_a_warning(method):
    """Its parameter, with derivative -1 / (2 sqrt(theta)), reaches 0, beyond which there is nothing, at time 4/3."""
    found = flowed(
        "1 of 1 members did not converge .* the solver gave up at time 1.33",
        lambda theta: theta[..., 0].sqrt(),
        tensor(1.0),
        t_end=2.0,
        method=method,
        rtol=1e-6,
        atol=1e-8,
    )
    assert found.end.isfinite().all()
    assert found.loss.isfinite().all()
    torch.testing.assert_close(found(1.0), tensor(0.25 ** (2 / 3)), rtol=1e-4, atol=0)


# Refusals


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"theta0": [1.0]}, TypeError, r"^theta0: must be a torch.Tensor, got list"),
        ({"theta0": torch.ones(2).long()}, TypeError, r"^theta0: must have dtype float32 or float64, got int64"),
        ({"theta0": torch.tensor(1.0)}, ValueError, r"^theta0: must have shape \(\.\.\., M\) with a member"),
        ({"theta0": torch.ones(0, 2)}, ValueError, r"^theta0: must have shape .* got \(0, 2\)"),
        ({"theta0": torch.ones(2, 0)}, ValueError, r"^theta0: must have shape .* got \(2, 0\)"),
        ({"theta0": tensor(1.0, math.nan)}, ValueError, r"^theta0: must be finite"),
        ({"loss": 3}, TypeError, r"^loss: must be a function of a tensor, got int"),
        ({"loss": lambda theta: 0.0}, TypeError, r"^loss: must return a torch.Tensor, got float"),
        ({"loss": lambda theta: torch.tensor(1.0)}, ValueError, r"^loss: must depend on the parameters in a way"),
        ({"loss": lambda theta: bowl(theta.detach())}, ValueError, r"^loss: must depend on the parameters"),
        ({"loss": lambda theta: theta}, ValueError, r"^loss: must map parameters \(2,\) to losses \(\)"),
        ({"loss": lambda theta: (theta - 2).log().sum(-1)}, ValueError, r"^loss: must be finite at the start"),
        ({"loss": lambda theta: (theta - 1).abs().sqrt().sum(-1)}, ValueError, r"^loss: .* and its gradient too"),
        ({"t_end": None}, ValueError, r"^t_end, until: at least one of them must be given"),
        ({"t_end": None, "until": 1.0, "method": "RK45"}, ValueError, r"^t_end: must be given with method 'RK45'"),
        ({"t_end": None, "until": 1.0, "max_step": 1}, ValueError, r"^t_end: must be given with .* and max_step 1"),
        ({"t_end": 0}, ValueError, r"^t_end: must be a finite number > 0, got 0"),
        ({"t_end": math.inf}, ValueError, r"^t_end: must be a finite number > 0"),
        ({"until": -1.0}, ValueError, r"^until: must be a finite number > 0, got -1.0"),
        ({"until": math.nan}, ValueError, r"^until: must be a finite number > 0, got nan"),
        ({"until": torch.ones(2)}, ValueError, r"^until: must be a number or have shape \(\), got \(2,\)"),
        ({"until": torch.tensor(0.0)}, ValueError, r"^until: must be finite and > 0 for every member"),
        ({"rtol": 0}, ValueError, r"^rtol: must be a finite number > 0, got 0"),
        ({"atol": "small"}, ValueError, r"^atol: must be a finite number > 0, got 'small'"),
        ({"method": "Euler"}, ValueError, r"^method: must be LSODA|^method: must be one of LSODA, BDF, .* got 'Euler'"),
        ({"max_step": 0}, ValueError, r"^max_step: must be a number > 0, got 0"),
    ],
)
def test_refusals(changes, error, message):
    arguments = {"loss": bowl, "theta0": torch.ones(2), "t_end": 1.0} | changes
    with pytest.raises(error, match=message):
        gradient_flow(**arguments)


def test_refusals_of_the_squared_loss():
    for first, second in itertools.product([3.0, torch.ones(2).long(), None], repeat=2):
        with pytest.raises(TypeError, match=r"^outputs: must "):
            squared_loss(first, second)
    with pytest.raises(TypeError, match=r"^targets: must be a torch.Tensor, got list"):
        squared_loss(torch.ones(2), [1.0, 1.0])
    for outputs, targets in (((2,), (3,)), ((4, 2), (4, 1)), ((), (1,)), ((), ()), ((1,), ()), ((3, 2), (3,))):
        with pytest.raises(ValueError, match=r"^targets: must have as many entries in a row as outputs"):
            squared_loss(torch.ones(outputs), torch.ones(targets))
    with pytest.raises(ValueError, match=r"^targets: .* broadcast with \(3,\) of outputs, got \(4,\)"):
        squared_loss(torch.ones(3, 2), torch.ones(4, 2))
