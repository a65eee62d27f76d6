"""Neurons against NumPy and closed forms, activations made to order against quadrature, refusals."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from mutation import mutated
from scipy.integrate import quad
from scipy.interpolate import CubicHermiteSpline
from torch.nn.functional import gelu, silu

from implicitreg.nets import LogSlopeActivation, hidden_neuron, relu, single_neuron

module = sys.modules["implicitreg.nets.neuron"]
KNOTS, SLOPES, RATES = [0.5, 1.0, 2.5, 3.0], [-0.7, 0.4, -1.5, 0.8], [0.3, -2.0, 1.0, 4.0]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(activation, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(activation(z).sum(), z, create_graph=True)[0]


# Neurons


def check_neurons(single=single_neuron, hidden=hidden_neuron):
    theta, x = normal(3, 1, 5), normal(2, 6, 4, seed=1)
    a, w = theta.numpy()[..., :1], theta.numpy()[..., 1:]
    z = np.einsum("ind,mkd->min", x.numpy(), w)
    np.testing.assert_allclose(single(theta[..., 1:], x, torch.tanh), np.tanh(z), rtol=0, atol=1e-14)
    np.testing.assert_allclose(hidden(theta, x, torch.tanh), a * np.tanh(z), rtol=0, atol=1e-14)


def test_neurons_are_those_of_numpy():
    check_neurons()


@pytest.mark.parametrize(
    "mutant",
    [
        {"single": lambda w, x, f: single_neuron(w.flip(-1), x, f)},
        {"single": lambda w, x, f: torch.relu(single_neuron(w, x, f))},
        {"hidden": lambda theta, x, f: hidden_neuron(theta.roll(-1, -1), x, f)},  # the output weight last
        {"hidden": lambda theta, x, f: f(theta[..., :1] * single_neuron(theta[..., 1:], x, lambda z: z))},
        {"hidden": lambda theta, x, f: single_neuron(theta[..., 1:], x, f)},
    ],
)
def test_the_check_catches_mutants(mutant):
    with pytest.raises(AssertionError):
        check_neurons(**mutant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(dtype):
    theta, x = normal(3).to(dtype), normal(4, 2).to(dtype)
    assert hidden_neuron(theta, x, torch.exp).shape == (4,)
    assert single_neuron(theta[1:], x.expand(5, 1, 4, 2), torch.exp).shape == (5, 1, 4)
    assert hidden_neuron(theta.expand(5, 3), x, torch.exp).shape == (5, 4)
    assert hidden_neuron(theta.expand(5, 3), x[:0], torch.exp).shape == (5, 0)
    assert hidden_neuron(theta, x, torch.exp).dtype == dtype
    batch = hidden_neuron(normal(7, 3).to(dtype), x, silu)
    alone = torch.stack([hidden_neuron(one, x, silu) for one in normal(7, 3).to(dtype)])
    torch.testing.assert_close(batch, alone, rtol=0, atol=1e-15 if dtype == torch.float64 else 1e-6)


def test_symmetries():
    theta, x = normal(5, 4), normal(6, 3, seed=1)
    f = hidden_neuron(theta, x, torch.sigmoid)
    rotation = torch.linalg.qr(normal(3, 3, seed=2)).Q
    turned = torch.cat([theta[:, :1], theta[:, 1:] @ rotation.T], 1)
    torch.testing.assert_close(hidden_neuron(turned, x @ rotation.T, torch.sigmoid), f, rtol=0, atol=1e-14)
    scaled = torch.cat([3 * theta[:, :1], theta[:, 1:] / 8], 1)
    torch.testing.assert_close(hidden_neuron(scaled, 8 * x, torch.sigmoid), 3 * f, rtol=1e-14, atol=0)
    permuted = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(hidden_neuron(theta, x[permuted], torch.sigmoid), f[:, permuted])


def test_gradients_of_the_hidden_neuron():
    """The gradient at p in the one-point example, and in general."""
    p, x = (
        torch.tensor([math.sqrt(1 + 2 * math.e), 1.0], dtype=torch.float64),
        torch.tensor([[1.0], [3.31826648087592]]),
    )
    found = torch.func.jacrev(lambda theta: hidden_neuron(theta, x.double(), torch.sigmoid))(p)
    expected = torch.tensor([[0.73105858, 0.49881202], [0.96505017, 0.28394437]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(lambda theta: hidden_neuron(theta, normal(4, 2), gelu), normal(3).requires_grad_())


def test_relu_leaves_zero():
    z = torch.tensor([-2.0, -0.0, 0.0, 3.0, math.inf, -math.inf, math.nan], dtype=torch.float64, requires_grad=True)
    value = relu(z)
    torch.testing.assert_close(value[:-1], z.detach()[:-1].clamp_min(0), rtol=0, atol=0)
    assert value[-1].isnan()  # a lost number stays lost
    (found,) = torch.autograd.grad(value[:4].sum(), z)
    assert found.tolist()[:4] == [0, 1, 1, 1]
    assert relu(torch.ones(2)).dtype == torch.float32
    x = normal(4, 3)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(single_neuron(w, x, relu).sum(), w)
    torch.testing.assert_close(found, x.sum(0))
    (stuck,) = torch.autograd.grad(single_neuron(w, x, torch.relu).sum(), w)
    assert not stuck.any()


# Activations made to order


def by_quadrature(z, knots=KNOTS, slopes=SLOPES, rates=RATES, scale=1.0):
    """Return the activation by SciPy's spline and adaptive quadrature, piece by piece."""
    spline = CubicHermiteSpline(knots, slopes, rates)

    def m(u):
        end = 0 if u < knots[0] else -1 if u > knots[-1] else None
        return spline(u) if end is None else slopes[end] + rates[end] * (u - knots[end])

    ends = sorted([knots[0], *[k for k in knots if min(knots[0], z) < k < z], z])
    area = sum(quad(lambda u: math.exp(m(u)), a, b, epsabs=0, epsrel=1e-13)[0] for a, b in itertools.pairwise(ends))
    return scale * math.exp(area if z > knots[0] else -area), math.exp(m(z))


def check_made_to_order():
    z = np.linspace(-1.5, 4.5, 25)
    activation = LogSlopeActivation(KNOTS, SLOPES, RATES, scale=2.5)
    value, rate = np.array([by_quadrature(v, scale=2.5) for v in z]).T
    at = torch.from_numpy(z)
    np.testing.assert_allclose(activation(at), value, rtol=1e-12)
    np.testing.assert_allclose((slope(activation, at) / activation(at)).detach(), rate, rtol=1e-12)
    assert activation(torch.tensor(0.5, dtype=torch.float64)).item() == 2.5


def test_made_to_order_against_quadrature():
    check_made_to_order()


@pytest.mark.parametrize(
    ("method", "right", "wrong"),
    [
        ("__init__", "(0, -1)", "(0, 0)"),
        ("__init__", "r[i], 0, 0]", "0, 0, 0]"),
        ("__init__", ".cumsum(0)", ""),
        ("__init__", ".c[::-1]", ".c"),
        ("__init__", "[k[:1], k]", "[k, k[-1:]]"),
        ("__call__", "base[piece]", "base[1]"),
        ("__call__", "self.scale *", ""),
        ("__call__", "below[piece] +", ""),
    ],
)
def test_mutants_are_caught(monkeypatch, method, right, wrong):
    mutant = mutated(module, f"LogSlopeActivation.{method}", right, wrong)
    monkeypatch.setattr(LogSlopeActivation, method, getattr(mutant.LogSlopeActivation, method))
    with pytest.raises(AssertionError):
        check_made_to_order()


def test_closed_forms():
    z = torch.linspace(-3, 9, 50, dtype=torch.float64)
    power = LogSlopeActivation([0.0, 2.0], [math.log(0.7)] * 2, [0, 0], scale=3)
    torch.testing.assert_close(power(z), 3 * (0.7 * z).exp(), rtol=1e-13, atol=0)
    # A straight line in all pieces: (ln sigma)' = exp(c + dz).
    knots, c, d = [-1.0, 0.0, 0.3, 2.0], -1.0, 0.4
    gompertz = LogSlopeActivation(knots, [c + d * k for k in knots], [d] * 4, scale=math.exp(math.exp(c - d) / d))
    torch.testing.assert_close(gompertz(z).log(), (c + d * z).exp() / d, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close((slope(gompertz, z) / gompertz(z)).detach(), (c + d * z).exp(), rtol=1e-12, atol=0)


def test_it_is_twice_continuously_differentiable():
    activation = LogSlopeActivation(KNOTS, SLOPES, RATES)
    beside = torch.tensor(KNOTS, dtype=torch.float64)[:, None] + 1e-7 * torch.tensor([-1, 1], dtype=torch.float64)
    for order in range(3):
        function = activation
        for _ in range(order):
            function = (lambda f: lambda z: slope(f, z))(function)
        left, right = function(beside).detach().unbind(-1)
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    knots = torch.tensor(KNOTS, dtype=torch.float64)
    first = slope(activation, knots)
    second = slope(lambda z: slope(activation, z), knots)
    # m' at the knots is the given rate.
    m = (second / first - first / activation(knots)).detach()
    torch.testing.assert_close(m, torch.tensor(RATES, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(activation, torch.linspace(0.1, 3.6, 12, dtype=torch.float64).requires_grad_())


def test_shapes_and_dtypes_of_made_to_order():
    activation = LogSlopeActivation(KNOTS, SLOPES, RATES)
    z = normal(2, 3, 1).abs()
    assert activation(z).shape == z.shape
    assert activation(z[0, 0, 0]).shape == ()
    assert activation(z[:0]).shape == (0, 3, 1)
    assert activation(z.float()).dtype == torch.float32
    torch.testing.assert_close(activation(z.float()).double(), activation(z), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.func.vmap(activation)(z), activation(z), rtol=0, atol=0)
    alone = torch.stack([activation(v) for v in z.flatten()])
    torch.testing.assert_close(activation(z).flatten(), alone, rtol=1e-15, atol=0)
    assert activation(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]
    arrays = LogSlopeActivation(*(np.array(part) for part in (KNOTS, SLOPES, RATES)))
    assert torch.equal(arrays(z), activation(z))
    assert (activation(torch.linspace(-2, 3.5, 200)).diff() > 0).all()


# Refusals


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda x: hidden_neuron([1.0, 2.0], x, torch.exp), TypeError, r"^theta: must be a torch.Tensor, got list"),
        (lambda x: hidden_neuron(torch.ones(2), x, torch.exp), TypeError, r"^x: must have the dtype of theta, torch.f"),
        (lambda x: hidden_neuron(torch.ones(2).long(), x, torch.exp), TypeError, r"^theta: must have dtype float32"),
        (lambda x: hidden_neuron(x[0], x.half(), torch.exp), TypeError, r"^x: must have dtype float32 or float64"),
        (lambda x: hidden_neuron(x[0], None, torch.exp), TypeError, r"^x: must be a torch.Tensor, got NoneType"),
        (
            lambda x: hidden_neuron(x[0], x[:, 1:], "exp"),
            TypeError,
            r"^activation: must be a function of a tensor, got",
        ),
        (
            lambda x: hidden_neuron(x[0, 0], x, torch.exp),
            ValueError,
            r"^theta: must have shape \(\.\.\., 1 \+ d\), d >=",
        ),
        (lambda x: hidden_neuron(x[0, :1], x, torch.exp), ValueError, r"^theta: must have shape .* got \(1,\)"),
        (
            lambda x: hidden_neuron(x[0], x, torch.exp),
            ValueError,
            r"^x: must have shape \(\.\.\., n, 2\), got \(4, 3\)",
        ),
        (
            lambda x: hidden_neuron(x[0], x[0, 1:], torch.exp),
            ValueError,
            r"^x: must have shape \(\.\.\., n, 2\), got \(2",
        ),
        (lambda x: single_neuron(x[0], x[:, 1:], torch.exp), ValueError, r"^x: must have shape \(\.\.\., n, 3\), got"),
        (
            lambda x: single_neuron(x[0, :0], x[:, :0], torch.exp),
            ValueError,
            r"^w: must have shape \(\.\.\., d\), d >= 1",
        ),
        (
            lambda x: single_neuron(x[:3], x.expand(2, 4, 3), torch.exp),
            ValueError,
            r"^x: .* broadcast with \(3,\) of w,",
        ),
        (lambda x: hidden_neuron(x[:3], x[:, 1:].expand(2, 4, 2), torch.exp), ValueError, r"^x: must have leading dim"),
        (lambda x: LogSlopeActivation(KNOTS, SLOPES, RATES)(x.long()), TypeError, r"^z: must have dtype float32"),
        (lambda x: LogSlopeActivation(KNOTS, SLOPES, RATES)(1.0), TypeError, r"^z: must be a torch.Tensor, got float"),
        (
            lambda x: LogSlopeActivation([0], [0], [0]),
            ValueError,
            r"^knots: must be finite numbers, one for each of at",
        ),
        (lambda x: LogSlopeActivation(3, [0, 0], [0, 0]), ValueError, r"^knots: must be finite numbers"),
        (lambda x: LogSlopeActivation([0, 0], [0, 0], [0, 0]), ValueError, r"^knots: must be strictly increasing"),
        (lambda x: LogSlopeActivation([0, 1], [0, 0, 0], [0, 0]), ValueError, r"^log_slopes: must be finite numbers"),
        (lambda x: LogSlopeActivation([0, 1], [0, math.nan], [0, 0]), ValueError, r"^log_slopes: must be finite"),
        (lambda x: LogSlopeActivation([0, 1], [0, 0], [0, "1"]), ValueError, r"^rates: must be finite numbers"),
        (lambda x: LogSlopeActivation([0, math.inf], [0, 0], [0, 0]), ValueError, r"^knots: must be finite numbers"),
        (
            lambda x: LogSlopeActivation([0, 1], [0, 0], [0, 0], scale=0),
            ValueError,
            r"^scale: must be a finite number >",
        ),
    ],
)
def test_refusals(run, error, message):
    with pytest.raises(error, match=message):
        run(normal(4, 3))
