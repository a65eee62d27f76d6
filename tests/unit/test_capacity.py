"""Margins and capacities: against formulas written out, in evaluation mode, and what is refused."""

import copy
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from mutation import mutated
from torch import nn

from implicitreg.measures import (
    Capacities,
    capacities,
    capacity,
    frobenius_product,
    margin,
    margins,
    path_norm,
    rescale_nodes,
    spectral_product,
)
from implicitreg.nets import Residual, gaussian_weights, outputs, perceptron


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def classified(sizes=(5, 8, 6, 3), n=60, seed=0):
    """Return weights, inputs and the classes that the network gives them."""
    w = gaussian_weights(sizes, generator(seed))
    x = torch.randn(n, sizes[0], generator=generator(seed + 1), dtype=torch.float64)
    return w, x, outputs(w, x).argmax(-1)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 3, bias=False),
    ).double()


# Margins


def test_margins_against_a_loop():
    w, x, _ = classified()
    y = torch.randint(3, (60,), generator=generator(5))
    expected = []
    for scores, label in zip(outputs(w, x).tolist(), y.tolist(), strict=True):
        expected.append(scores[label] - max(s for c, s in enumerate(scores) if c != label))
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(margins(w, x, y), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(margins(perceptron(w), x, y), expected, rtol=1e-13, atol=1e-13)
    right = outputs(w, x).argmax(-1) == y
    assert right[expected > 0].all()
    assert (expected[~right] <= 0).all()


def test_ties_have_margin_0():
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert margins([torch.eye(3)], scores, torch.tensor([0, 2, 0])).tolist() == [0, 0, -1]


def test_margins_of_ensembles():
    w, x, y = classified()
    ensemble = [torch.stack([each, 2 * each]) for each in w]
    both = margins(ensemble, x, y)
    torch.testing.assert_close(both, torch.stack([margins(w, x, y), 8 * margins(w, x, y)]))
    labels, inputs = torch.stack([y, y.roll(1)]), torch.stack([x, x + 1])
    own = margins(ensemble, inputs, labels)
    torch.testing.assert_close(own[1], margins([2 * each for each in w], x + 1, y.roll(1)))
    torch.testing.assert_close(margin(ensemble, inputs, labels)[1], margin([2 * each for each in w], x + 1, y.roll(1)))


def test_many_samples_are_passed_in_parts(monkeypatch):
    w, x, y = classified()
    ensemble, inputs = [torch.stack([each, 2 * each]) for each in w], torch.stack([x, -x])
    whole = margins(w, x, y), margins(ensemble, inputs, y), margins(ensemble, x, y)
    for held in (1, 100, 10**6):
        monkeypatch.setattr(capacity, "_HELD", held)
        parts = margins(w, x, y), margins(ensemble, inputs, y), margins(ensemble, x, y)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 60, 1001])
@pytest.mark.parametrize("quantile", [0, 0.001, 0.05, 0.07, 0.1, 1 / 3, 0.5, 0.999, 1])
def test_margin_agrees_with_numpy(n, quantile):
    w, x, y = classified(n=n)
    expected = np.percentile(margins(w, x, y).numpy(), 100 * quantile)
    np.testing.assert_allclose(margin(w, x, y, quantile).item(), expected, rtol=1e-12, atol=1e-15)


def test_any_number_is_a_quantile():
    given = classified()
    assert margin(*given, Fraction(1, 4)) == margin(*given, np.float32(0.25)) == margin(*given, 0.25)


@pytest.mark.parametrize("quantile", [-0.1, 1.1, math.nan, "0.05", True, None])
def test_quantiles_lie_between_0_and_1(quantile):
    with pytest.raises(ValueError, match=r"^quantile: must be a number from 0 to 1"):
        margin(*classified(), quantile)
    with pytest.raises(ValueError, match=r"^quantile: must be a number from 0 to 1"):
        capacities(*classified(), quantile)


# Capacities


def check_capacities(measure):
    w, x, y = classified()
    gamma = np.percentile(margins(w, x, y).numpy(), 5)
    a, b, c = (each.abs() for each in w)
    one = torch.ones(3, dtype=torch.float64)
    expected = {
        "l2": math.prod(each.square().sum().item() for each in w) / gamma**2,
        "l1_path": (one @ c @ b @ a).sum().item() ** 2 / gamma**2,
        "l2_path": (one @ c**2 @ b**2 @ a**2).sum().item() / gamma**2,
        "spectral": math.prod(torch.linalg.matrix_norm(each, 2).item() ** 2 for each in w) / gamma**2,
        "margin": gamma,
    }
    widths = 8 * 6 * 3
    factors = {"l2": 64, "l1_path": 64, "l2_path": 64 * widths, "spectral": widths, "margin": 1}
    for model in (w, perceptron(w)):
        plain, theory = measure(model, x, y), measure(model, x, y, factors=True)
        assert isinstance(plain, Capacities)
        for name, value in expected.items():
            assert getattr(plain, name).shape == ()
            assert getattr(plain, name).item() == pytest.approx(value, rel=1e-12)
            assert getattr(theory, name).item() == pytest.approx(factors[name] * value, rel=1e-12)


def test_capacities_against_their_formulas():
    check_capacities(capacities)


@pytest.mark.parametrize(
    ("where", "right", "wrong"),
    [
        ("capacities_at", "(norm / gamma).square()", "(norm.square() / gamma)"),  # as the published code divides
        ("capacities_at", "(norm / gamma).square()", "(norm / gamma)"),
        ("capacities_at", "path_norm(model, 1, input_shape=shape)", "path_norm(model, 1, input_shape=shape).sqrt()"),
        ("capacities_at", "4.0 ** len(units)", "4.0"),
        ("capacities_at", "-2 if kind == ly.LINEAR else 0", "-1"),
        ("capacities_at", "four * width * l2_path", "four * l2_path"),
        ("capacities_at", "width * spectral", "four * width * spectral"),
        ("capacities", "margin(model, x, y, quantile)", "margin(model, x, y, 0.5)"),
    ],
)
def test_mutants_of_the_capacities_are_caught(where, right, wrong):
    mutant = mutated(capacity, where, right, wrong)
    with pytest.raises(AssertionError):
        check_capacities(mutant.capacities)


def test_capacities_of_a_convolutional_network():
    net = convolutional().eval()
    x = torch.randn(40, 1, 6, 6, generator=generator(), dtype=torch.float64)
    y = net(x).argmax(-1)
    c = capacities(net, x, y)
    gamma = margin(net, x, y)
    shape = (1, 6, 6)
    for value, norm in (
        (c.l2, frobenius_product(net)),
        (c.l1_path, path_norm(net, 1, input_shape=shape)),
        (c.l2_path, path_norm(net, 2, input_shape=shape)),
        (c.spectral, spectral_product(net, input_shape=shape)),
    ):
        torch.testing.assert_close(value, norm.detach().square() / gamma.square(), rtol=1e-12, atol=0)
        assert not value.requires_grad
    # Units are channels.
    theory = capacities(net, x, y, factors=True)
    torch.testing.assert_close(theory.l2_path, 16 * 4 * 3 * c.l2_path)
    torch.testing.assert_close(theory.spectral, 4 * 3 * c.spectral)
    # The shape of an input can be told where that of x is another.
    flat = nn.Sequential(nn.Unflatten(1, shape), *net)
    with pytest.raises(TypeError, match="unsupported layer Unflatten"):
        capacities(flat, x.flatten(1), y)
    assert torch.equal(capacities(net, x, y, input_shape=shape).spectral, c.spectral)


def test_capacities_of_a_residual_network():
    torch.manual_seed(0)
    block = Residual(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 7)), nn.Linear(6, 7))
    skip = Residual(nn.Sequential(nn.ReLU(), nn.Linear(7, 7)))
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), block, skip, nn.Linear(7, 3)).double()
    y = net(X).argmax(-1)
    c, theory = capacities(net, X, y), capacities(net, X, y, factors=True)
    gamma = margin(net, X, y)
    torch.testing.assert_close(c.l2_path, path_norm(net).detach().square() / gamma.square(), rtol=1e-12, atol=0)
    torch.testing.assert_close(c.spectral, spectral_product(net).square() / gamma.square(), rtol=1e-12, atol=0)
    torch.testing.assert_close(c.l2, frobenius_product(net).detach().square() / gamma.square(), rtol=1e-12, atol=0)
    # Six layers with weights, those of both paths among them.
    units = 6 * 4 * 7 * 7 * 7 * 3
    for name, factor in (("l2", 4**6), ("l1_path", 4**6), ("l2_path", 4**6 * units), ("spectral", units)):
        torch.testing.assert_close(getattr(theory, name), factor * getattr(c, name), rtol=1e-12, atol=0)


def test_path_capacities_do_not_see_rescaled_units():
    w, x, y = classified()
    before, after = capacities(w, x, y), capacities(rescale_nodes(w, generator(3), scale=2.0), x, y)
    for name in ("l1_path", "l2_path", "margin"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-12, atol=0)
    assert after.l2 > 10 * before.l2
    assert after.spectral > 10 * before.spectral


def test_capacities_do_not_see_a_scale():
    """All of them are homogeneous: ten times the weights, the same capacity."""
    w, x, y = classified()
    before, after = capacities(w, x, y), capacities([10 * each for each in w], x, y)
    for name in ("l2", "l1_path", "l2_path", "spectral"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-12, atol=0)
    tiny = capacities([1e-9 * each.float() for each in w], x.float(), y)  # the margin's square is 0 in float32
    torch.testing.assert_close(tiny.l2_path.double(), before.l2_path, rtol=1e-4, atol=0)


def test_without_a_positive_margin_capacities_are_infinite():
    w, x, y = classified()
    wrong = [-each if i == 2 else each for i, each in enumerate(w)]
    zero = [0 * each for each in w]
    ensemble = [torch.stack(each) for each in zip(w, wrong, zero, strict=True)]
    with pytest.warns(RuntimeWarning, match=r"the margin is not positive .*infinite") as caught:
        c = capacities(ensemble, x, y)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert c.margin[0] > 0 > c.margin[1]
    assert c.margin[2] == 0
    for name in ("l2", "l1_path", "l2_path", "spectral"):
        assert getattr(c, name)[0].isfinite()
        assert getattr(c, name)[1:].tolist() == [math.inf] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capacities(w, x, y)


# The model is evaluated, and left as it was


@pytest.mark.parametrize("measure", [margins, margin, capacities])
def test_a_module_in_training_mode_is_evaluated_and_left_so(measure):
    net = convolutional()
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    x = torch.randn(40, 1, 6, 6, generator=generator(), dtype=torch.float64)
    y = net.eval()(x).argmax(-1)
    expected = measure(net, x, y)
    net.train()
    net[0].eval()
    for i, w in enumerate(net.parameters()):
        w.grad = torch.full_like(w, i)
    before, modes = copy.deepcopy(net), [part.training for part in net.modules()]
    grads = [w.grad.clone() for w in net.parameters()]
    state = torch.random.get_rng_state()
    value = measure(net, x, y)
    for name in ("l2", "l1_path", "l2_path", "spectral", "margin") if measure is capacities else [None]:
        a, b = (value, expected) if name is None else (getattr(value, name), getattr(expected, name))
        assert torch.equal(a, b)
        assert not a.requires_grad
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert all(torch.equal(w.grad, g) for w, g in zip(net.parameters(), grads, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_mode_is_put_back_after_an_error():
    net = convolutional()
    net[4].eval()
    modes = [part.training for part in net.modules()]
    with pytest.raises(ValueError, match=r"^x: of shape \(2, 3, 6, 6\)"):
        margins(net, torch.ones(2, 3, 6, 6, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    assert [part.training for part in net.modules()] == modes
    assert torch.is_grad_enabled()


# Refusals


W, X, Y = classified()


@pytest.mark.parametrize("measure", [margins, margin, capacities])
@pytest.mark.parametrize("form", [list, perceptron])
@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (X, Y + 1, ValueError, r"^y: must lie in 0 \.\.\. 2, got 1 \.\.\. 3"),
        (X, Y - 1, ValueError, r"^y: must lie in 0"),
        (X, Y[:-1], ValueError, r"^y: must have one class for each of \(60,\), got \(59,\)"),
        (X, Y[None], ValueError, r"^y: must have one class for each"),
        (X, Y[:, None], ValueError, r"^y: must have one class for each"),
        (X, Y.double(), TypeError, r"^y: must be a torch.Tensor of dtype int64, got float64"),
        (X, Y.int(), TypeError, r"^y: must be a torch.Tensor of dtype int64, got int32"),
        (X, Y.tolist(), TypeError, r"^y: must be a torch.Tensor of dtype int64, got list"),
        (X, Y[0], ValueError, r"^y: must have shape"),
        (X[:0], Y[:0], ValueError, r"^x: must hold at least one sample, got shape \(0, 5\)"),
        (torch.tensor(1.0), Y, ValueError, r"^x: "),
        (X.tolist(), Y, TypeError, r"^x: must be a torch.Tensor, got list"),
        (X.long(), Y, TypeError, r"^x: must have dtype float32 or float64, got int64"),
        (X.float(), Y, ValueError, r"^x: of shape \(60, 5\) and torch.float32 does not fit the model"),
        (X[:, :4], Y, ValueError, r"^x: of shape \(60, 4\) and torch.float64 does not fit the model"),
        (X * math.nan, Y, ValueError, r"^x: must be finite"),
        (X * math.inf, Y, ValueError, r"^x: must be finite"),
    ],
)
def test_bad_data_are_named(measure, form, x, y, error, words):
    with pytest.raises(error, match=words):
        measure(form(W), x, y)


@pytest.mark.parametrize("measure", [margins, margin, capacities])
def test_bad_models_are_named(measure):
    with pytest.raises(ValueError, match=r"^model: outputs must have shape \(\.\.\., n, k\) with k >= 2"):
        measure([W[0][:1]], X, torch.zeros_like(Y))
    with pytest.raises(ValueError, match=r"^model: outputs: must be finite"):
        measure([math.nan * W[0], *W[1:]], X, Y)
    with pytest.raises(TypeError, match=r"^model: must be a torch.nn.Module or a sequence"):
        measure(torch.relu, X, Y)
    with pytest.raises(ValueError, match=r"^y: must have one class for each of \(2, 60\), got \(3, 60\)"):
        measure([torch.stack([w, w]) for w in W], X, torch.stack([Y, Y, Y]))


def test_capacities_refuse_layers_without_weights_to_count():
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    assert margins(net, X, Y).shape == (60,)  # whatever computes scores has a margin
    with pytest.raises(TypeError, match=r"^model: unsupported layer Tanh \(at '1'\)"):
        capacities(net, X, net(X).argmax(-1))
