"""DDP-SGD: its two rules against autograd and Path-SGD, its invariance, and where the data come from."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from implicitreg.dynamics import DDPSGD, PathSGD, data_path_scales, path_factors
from implicitreg.dynamics.data_paths import fisher_scales
from implicitreg.nets import gaussian_weights, outputs, path_scales, rescale_nodes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(bias, sizes=(10, 16, 16, 3)):
    g = generator()
    parts = []
    for below, h in itertools.pairwise(sizes):
        layer = nn.Linear(below, h, bias=bias).double()
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / below**0.5)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def filled(layer, value):
    nn.init.constant_(layer.weight, value)
    return layer


def problem(n=200, inputs=10):
    return torch.randn(n, inputs, generator=generator(1), dtype=torch.float64), torch.arange(n) % 3


def train(model, optimiser, steps):
    x, y = problem()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model(x).detach()


def hidden(weights, x, biases=None):
    """Return what each layer takes in."""
    found = [x]
    for i, w in enumerate(weights[:-1]):
        z = found[-1] @ w.mT
        found.append((z if biases is None else z + biases[i]).clamp_min(0))
    return found


def fisher(model, x):
    """Return the mean over the data, and the sum over outputs, of squared derivatives, one at a time."""
    scales = [torch.zeros_like(p) for p in model.parameters()]
    for row in x:
        for out in model(row):
            for s, g in zip(scales, torch.autograd.grad(out, list(model.parameters()), retain_graph=True), strict=True):
                s += g.square() / len(x)
    return scales


# Scales


def test_the_mix_at_one_is_the_diagonal_fisher_information():
    x, _ = problem(20)
    model = mlp(True)
    linear = [m for m in model if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in linear], [m.bias.detach() for m in linear]
    expected = fisher(model, x)
    found, offsets = fisher_scales(weights, hidden(weights, x, biases), biases=True)
    for i in range(3):
        torch.testing.assert_close(found[i], expected[2 * i], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(offsets[i], expected[2 * i + 1], rtol=1e-12, atol=1e-14)
    # In the step too.
    optimiser = DDPSGD(model, 0.1, 1.0, rule="mix")
    before = [p.detach().clone() for p in model.parameters()]
    model(x).square().sum().backward()
    optimiser.step()
    for b, p, k in zip(before, model.parameters(), expected, strict=True):
        torch.testing.assert_close(b - p, 0.1 * p.grad.where(k == 0, p.grad / k), rtol=1e-9, atol=1e-13)


def test_the_fisher_scale_is_half_the_second_derivative_of_the_second_moment():
    weights, (x, _) = gaussian_weights((10, 16, 16, 3), generator()), problem(50)
    scales = data_path_scales(weights, hidden(weights, x), 1.0, "mix")
    step = 1e-4
    for i in range(3):
        for index in ((0, 0), (2, 5)):
            values = []
            for shift in (-step, 0, step):
                moved = [w.clone() for w in weights]
                moved[i][index] += shift
                values.append(outputs(moved, x).square().sum(-1).mean().item())
            expected = (values[0] - 2 * values[1] + values[2]) / (2 * step**2)
            assert scales[i][index].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("bias", [False, True])
def test_the_recursion_node_by_node(alpha, bias):
    x, _ = problem(30)
    model = mlp(bias, (10, 6, 5, 3))
    linear = [m for m in model if isinstance(m, nn.Linear)]
    weights = [m.weight.detach() for m in linear]
    biases = [m.bias.detach() for m in linear] if bias else None
    inputs = hidden(weights, x, biases)
    gamma = [torch.ones(10, dtype=torch.float64)]
    for i, w in enumerate(weights):
        row = []
        for v in range(len(w)):
            z = inputs[i] @ w[v] + (biases[i][v] if bias else 0)
            path = (gamma[i] * w[v] ** 2).sum() + (biases[i][v] ** 2 if bias else 0)
            row.append(alpha * (z**2).mean() + (1 - alpha) * path)
        gamma.append(torch.stack(row))
    slope = torch.ones(3, dtype=torch.float64)
    found = data_path_scales(weights, inputs, alpha, biases=biases)
    factors = path_factors(weights, inputs, alpha, biases=biases)
    for i in (2, 1, 0):
        kappa = slope[:, None] * (alpha * (inputs[i] ** 2).mean(0) + (1 - alpha) * gamma[i])
        torch.testing.assert_close(found[i], kappa, rtol=1e-12, atol=0)
        torch.testing.assert_close(factors[i][0], slope, rtol=1e-12, atol=0)
        slope = (1 - alpha) * weights[i].square().T @ slope


@pytest.mark.parametrize("rule", ["recursion", "mix"])
def test_without_data_they_are_the_scales_of_paths(rule):
    weights, (x, _) = gaussian_weights((10, 16, 3), generator()), problem()
    for a, b in zip(data_path_scales(weights, hidden(weights, x), 0, rule), path_scales(weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("alpha", "rule"), [(0.5, "recursion"), (0.5, "mix"), (1, "mix")])
def test_an_ensemble_is_its_members(alpha, rule):
    members = [gaussian_weights((10, 8, 6, 3), generator(i)) for i in range(4)]
    weights = [torch.stack(ws) for ws in zip(*members, strict=True)]
    x = torch.randn(4, 20, 10, generator=generator(9), dtype=torch.float64)
    together = data_path_scales(weights, hidden(weights, x), alpha, rule)
    for k, member in enumerate(members):
        for a, b in zip(together, data_path_scales(member, hidden(member, x[k]), alpha, rule), strict=True):
            torch.testing.assert_close(a[k], b, rtol=1e-12, atol=1e-15)


# The step


@pytest.mark.parametrize("rule", ["recursion", "mix"])
@pytest.mark.parametrize("bias", [False, True])
def test_without_data_it_is_path_sgd(rule, bias):
    a, b = mlp(bias), mlp(bias)
    train(a, DDPSGD(a, 0.02, 0.0, momentum=0.9, rule=rule), 30)
    train(b, PathSGD(b, 0.02, momentum=0.9), 30)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("alpha", "rule"), [(0.25, "recursion"), (0.5, "recursion"), (0.9, "recursion"), (0.5, "mix"), (1.0, "mix")]
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rescaled_networks_follow_one_path(alpha, rule, bias, momentum):
    model = mlp(bias)
    other = rescale_nodes(model, generator(3))
    start = model(problem()[0]).detach()
    lr = 0.002 if momentum else 0.02
    # The diagonal of the Fisher information is small where a unit is rarely alive: some 30 steps are stable.
    steps = 30 if alpha == 1 else 200
    a, b = (
        train(net, DDPSGD(net, lr / 10 if alpha == 1 else lr, alpha, rule=rule, momentum=momentum), steps)
        for net in (model, other)
    )
    assert (a - start).norm() > 0.01 * start.norm()
    assert (a - b).norm() < 1e-10 * a.norm()


@pytest.mark.parametrize("breaking", [{"damping": 1e-3}, {"clip": 0.1}])
def test_damping_and_clipping_break_it(breaking):
    model = mlp(False)
    other = rescale_nodes(model, generator(3))
    a, b = (train(net, DDPSGD(net, 0.02, 0.5, rule="mix", **breaking), 30) for net in (model, other))
    assert (a - b).norm() > 1e-3 * a.norm()


def test_the_step_depends_on_alpha_and_on_the_data():
    ends = []
    for alpha in (0.0, 0.5):
        model = mlp(False)
        ends.append(train(model, DDPSGD(model, 0.02, alpha), 5))
    assert (ends[0] - ends[1]).norm() > 1e-3
    x, y = problem()
    steps = []
    for watched in (x, 3 * x):
        model = mlp(False)
        before = model[0].weight.detach().clone()
        optimiser = DDPSGD(model, 0.02, 0.5)
        F.cross_entropy(model(x), y).backward()
        model(watched)
        optimiser.step()
        steps.append(before - model[0].weight)
    assert (steps[0] - steps[1]).norm() > 0.1 * steps[0].norm()


def test_dead_units_stay():
    model = mlp(False)
    with torch.no_grad():
        model[0].weight[3] = 0
    x, y = problem()
    optimiser = DDPSGD(model, 0.1, 1.0, rule="mix")
    F.cross_entropy(model(x), y).backward()
    optimiser.step()
    assert (model[0].weight[3] == 0).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())


# The data


def test_evaluation_passes_are_not_data():
    x, y = problem()
    ends = []
    for disturb in (False, True):
        model = mlp(False)
        optimiser = DDPSGD(model, 0.02, 0.5)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if disturb:
                model.eval()
                model(5 * x)
                model.train()
                with torch.no_grad():
                    model(5 * x)
            optimiser.step()
        ends.append(model[0].weight.detach())
    assert torch.equal(*ends)


def test_a_copy_of_the_model_is_not_the_model():
    x, y = problem()
    model = mlp(False)
    optimiser = DDPSGD(model, 0.02, 0.5)
    F.cross_entropy(model(x), y).backward()
    copy.deepcopy(model)(7 * x)
    other = mlp(False)
    theirs = DDPSGD(other, 0.02, 0.5)
    F.cross_entropy(other(x), y).backward()
    optimiser.step()
    theirs.step()
    assert torch.equal(model[0].weight, other[0].weight)
    # A copied pair goes on as the original does, and a model with an optimiser can be saved.
    torch.save(model, io.BytesIO())
    pair = copy.deepcopy((model, optimiser))
    assert torch.equal(train(model, optimiser, 3), train(*pair, 3))


def test_state_goes_round():
    model, other = mlp(True), mlp(True)
    optimiser = DDPSGD(model, 0.01, 0.5, momentum=0.9)
    train(model, optimiser, 4)
    fresh = DDPSGD(other, 1.0, 0.5)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(optimiser.state_dict())
    assert torch.equal(train(model, optimiser, 4), train(other, fresh, 4))
    assert len(other._forward_pre_hooks) == 1


def test_a_flatten_may_come_first():
    model = nn.Sequential(nn.Flatten(), *mlp(True, (8, 6, 3)))
    plain = nn.Sequential(*mlp(True, (8, 6, 3)))
    x, y = torch.randn(12, 2, 4, generator=generator(), dtype=torch.float64), torch.arange(12) % 3
    for net, data in ((model, x), (plain, x.flatten(1))):
        optimiser = DDPSGD(net, 0.1, 0.5)
        F.cross_entropy(net(data), y).backward()
        optimiser.step()
    assert torch.equal(model[1].weight, plain[0].weight)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": -0.1}, "alpha: must be a number from 0 to 1, got -0.1"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": 1.0, "rule": "recursion"}, r"alpha: the recursion degenerates at 1.*rule='mix'"),
        ({"rule": "both"}, "rule: must be 'recursion' or 'mix', got 'both'"),
        ({"lr": 0.0}, "lr: must be a finite number > 0"),
        ({"momentum": 1.0}, "momentum: must be a number >= 0 and < 1"),
    ],
)
def test_refused_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        DDPSGD(mlp(False), **{"lr": 0.1, "alpha": 0.5, **arguments})


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Conv2d(1, 2, 3), nn.ReLU()], "unsupported layer Conv2d"),
        ([nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)], "unsupported layer BatchNorm1d"),
        ([nn.Linear(3, 4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 2)], "unsupported layer Dropout"),
        ([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)], "unsupported layer Tanh"),
        ([nn.Linear(3, 4), nn.Linear(4, 2)], "one ReLU between"),
        ([nn.Linear(3, 4), nn.ReLU()], "none at the end"),
    ],
)
def test_refused_models(layers, words):
    with pytest.raises(TypeError, match=words):
        DDPSGD(nn.Sequential(*layers), 0.1, 0.5)


def test_the_rule_follows_from_alpha():
    weights, (x, _) = gaussian_weights((10, 6, 3), generator()), problem()
    for alpha, rule in ((0.0, "recursion"), (0.5, "recursion"), (1.0, "mix")):
        a, b = (
            train(net, DDPSGD(net, 1e-3, alpha, **rules), 5)
            for net, rules in ((mlp(True), {}), (mlp(True), {"rule": rule}))
        )
        assert torch.equal(a, b)
        for a, b in zip(
            *(data_path_scales(weights, hidden(weights, x), alpha, *r) for r in ((), (rule,))), strict=True
        ):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"^alpha: the recursion degenerates at 1"):
        data_path_scales(weights, hidden(weights, x), 1.0, "recursion")


def test_other_refusals():
    with pytest.raises(ValueError, match=r"^model: '0\.weight': must be finite"):
        DDPSGD(nn.Sequential(filled(nn.Linear(2, 2), torch.nan)), 0.1, 0.5)
    with pytest.raises(TypeError, match="parametrised"):
        DDPSGD(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), 0.1, 0.5)
    with pytest.raises(TypeError, match=r"model: must be a torch\.nn\.Module"):
        DDPSGD([torch.ones(2, 2)], 0.1, 0.5)
    model = mlp(False)
    x, y = problem()
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(ValueError, match="forward pass in training mode"):
        DDPSGD(model, 0.1, 0.5).step()
    weights = gaussian_weights((10, 4, 3), generator())
    with pytest.raises(ValueError, match="hidden: must hold what each of the 2 layers takes in, got 1"):
        data_path_scales(weights, [x], 0.5)
    with pytest.raises(ValueError, match="hidden"):
        path_factors(weights, alpha=0.5)
    with pytest.raises(ValueError, match="p: must be 2"):
        path_factors(weights, hidden(weights, x), 0.5, p=1)
