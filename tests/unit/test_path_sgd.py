"""Path-SGD: its scales against finite differences, its invariance, and its manners as an optimiser."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from implicitreg.dynamics import PathSGD, path_factors
from implicitreg.nets import (
    ReLURecurrent,
    gaussian_weights,
    path_scales,
    path_sum,
    perceptron,
    rescale_nodes,
    shared_path_scales,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def filled(model, seed=0):
    """Draw all parameters, so that no global randomness is used."""
    model = model.double()
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / max(1, p[0].numel()) ** 0.5)
    return model


def mlp(bias, sizes=(10, 32, 32, 3)):
    parts = []
    for below, h in itertools.pairwise(sizes):
        parts += [nn.Linear(below, h, bias=bias), nn.ReLU()]
    return filled(nn.Sequential(*parts[:-1]))


def conv_net():
    return filled(
        nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 16),
            nn.ReLU(),
            nn.Linear(16, 3),
        )
    )


def problem(model, n=64):
    shape = (1, 8, 8) if isinstance(model[0], nn.Conv2d) else (model[0].in_features,)
    return normal(n, *shape, seed=1), torch.randint(3, (n,), generator=generator(2))


def train(model, optimiser, steps):
    x, y = problem(model)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model(x).detach()


def apart(make, model, steps, scale=1.0):
    """Return the relative distance of the outputs after training from a start and from a rescaled one."""
    other = rescale_nodes(model, generator(3), scale=scale)
    model = copy.deepcopy(model)
    start = model(problem(model)[0]).detach()
    a, b = (train(net, make(net), steps) for net in (model, other))
    assert (a - start).norm() > 0.1 * start.norm()
    return ((a - b).norm() / a.norm()).item()


# Scales


def second_difference(function, w, index, step=1e-3):
    values = []
    for shift in (-step, 0, step):
        moved = w.clone()
        moved[index] += shift
        values.append(function(moved).item())
    return (values[0] - 2 * values[1] + values[2]) / (2 * step**2)


def test_scales_are_half_the_second_derivative():
    weights = gaussian_weights((4, 6, 5, 3), generator())
    factors = path_factors(weights)
    for i, (outer, inner) in enumerate(factors):
        kappa = outer[:, None] * inner
        torch.testing.assert_close(kappa, path_scales(weights)[i], rtol=1e-12, atol=0)
        for index in ((0, 0), (2, 3)):

            def path(w, i=i):
                return path_sum([*weights[:i], w, *weights[i + 1 :]])

            assert second_difference(path, weights[i], index) == pytest.approx(kappa[index].item(), rel=1e-6)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_factors_agree_with_autograd(p, bias):
    model = mlp(bias)
    linear = [m for m in model if isinstance(m, nn.Linear)]
    factors = path_factors([m.weight for m in linear], biases=[m.bias for m in linear], p=p)
    scales = path_scales(model, p)
    for i, (outer, inner) in enumerate(factors):
        torch.testing.assert_close(outer[:, None] * inner, scales[f"{2 * i}.weight"], rtol=1e-12, atol=0)
        if bias:
            torch.testing.assert_close(outer, scales[f"{2 * i}.bias"], rtol=1e-12, atol=0)


def test_factors_of_an_ensemble_are_those_of_its_members():
    weights = [
        torch.stack(ws) for ws in zip(*(gaussian_weights((3, 5, 2), generator(i)) for i in range(4)), strict=True)
    ]
    together = path_factors(weights)
    for k in range(4):
        for (a, b), (c, d) in zip(together, path_factors([w[k] for w in weights]), strict=True):
            torch.testing.assert_close(a[k], c)
            torch.testing.assert_close(b[k], d)


def recurrent(h=5, steps=6, seed=0, identity=False):
    w_rec = torch.eye(h, dtype=torch.float64) if identity else normal(h, h, seed=seed + 1) / h**0.5
    return ReLURecurrent(normal(h, 2, seed=seed), w_rec, normal(2, h, seed=seed + 2), steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_shared_scales_are_half_the_second_derivative(steps):
    net = recurrent(steps=steps)
    weights = [net.w_in.detach(), net.w_rec.detach(), net.w_out.detach()]
    scales = shared_path_scales(*weights, steps)
    first = shared_path_scales(*weights, steps, second=False)
    for i, name in enumerate(("w_in", "w_rec", "w_out")):
        torch.testing.assert_close(first[i], path_scales(net)[name], rtol=1e-12, atol=0)
        for index in ((0, 0), (1, 1), (1, 0)):

            def path(w, i=i):
                return path_sum(ReLURecurrent(*weights[:i], w, *weights[i + 1 :], steps))

            expected = second_difference(path, weights[i], index)
            assert scales[i][index].item() == pytest.approx(expected, rel=1e-4, abs=1e-8)
    # Without the factor 2 for ordered pairs it is another number.
    if steps > 2:
        halved = first[1] + (scales[1] - first[1]) / 2
        expected = second_difference(
            lambda w: path_sum(ReLURecurrent(weights[0], w, weights[2], steps)), weights[1], (1, 1)
        )
        assert halved[1, 1].item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("steps", [3, 10, 30])
def test_second_term_of_an_identity_start(steps):
    weights = list(recurrent(h=7, identity=True).parameters())
    both, first = (shared_path_scales(*weights, steps, second=s)[1] for s in (True, False))
    ratio = (both - first) / first
    torch.testing.assert_close(ratio.diagonal(), torch.full((7,), 4 * (steps - 2) / 3, dtype=torch.float64))
    assert (ratio - ratio.diagonal().diag()).abs().max() < 1e-14


def test_shared_scales_of_an_ensemble():
    nets = [list(recurrent(seed=10 * i).parameters()) for i in range(3)]
    together = shared_path_scales(*(torch.stack(ws) for ws in zip(*nets, strict=True)), 6)
    for k, net in enumerate(nets):
        for a, b in zip(together, shared_path_scales(*net, 6), strict=True):
            torch.testing.assert_close(a[k], b)
            assert not b.requires_grad


# Invariance


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_perceptrons_follow_one_path(bias, momentum):
    lr = 0.005 if momentum else 0.05
    assert apart(lambda m: PathSGD(m, lr, momentum=momentum), mlp(bias), 200) < 1e-10


@pytest.mark.parametrize("p", [1, 1.5, 3])
def test_every_exponent_is_invariant(p):
    assert apart(lambda m: PathSGD(m, 0.02, p), mlp(True), 60) < 1e-10


@pytest.mark.parametrize("given", [True, False])
def test_conv_nets_with_max_pooling_follow_one_path(given):
    shape = (1, 8, 8) if given else None
    assert apart(lambda m: PathSGD(m, 0.02, momentum=0.9, input_shape=shape), conv_net(), 200) < 1e-10


def test_average_pooling_too():
    net = filled(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )
    )  # fmt: skip
    assert apart(lambda m: PathSGD(m, 0.01, momentum=0.5), net, 100) < 1e-10


def test_amortised_scales_are_invariant_and_differ_from_exact_ones():
    assert apart(lambda m: PathSGD(m, 0.02, momentum=0.5, every=7), mlp(True), 100) < 1e-10
    a, b = (train(net, PathSGD(net, 0.02, every=k), 20) for net, k in ((mlp(True), 1), (mlp(True), 7)))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: torch.optim.SGD(m.parameters(), lr=0.001),
        lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
        lambda m: PathSGD(m, 0.05, damping=0.01),
        lambda m: PathSGD(m, 0.05, clip=0.1),
    ],
    ids=["sgd", "adam", "damped", "clipped"],
)
def test_others_do_not(make):
    assert apart(make, mlp(False), 200) > 0.01


def rescaled(net, seed=5):
    d = normal(net.w_rec.shape[0], seed=seed).exp()[:, None]
    return ReLURecurrent(d * net.w_in, d * net.w_rec / d.T, net.w_out / d.T, net.steps)


@pytest.mark.parametrize("second", [True, False])
def test_recurrent_networks_follow_one_path(second):
    x, y = normal(32, 6, 2, seed=8).abs(), normal(32, 2, seed=9)
    ends = []
    for net in (recurrent(), rescaled(recurrent())):
        optimiser = PathSGD(net, 1e-3, momentum=0.9, second=second)
        for _ in range(100):
            optimiser.zero_grad()
            (net(x) - y).square().mean().backward()
            optimiser.step()
        ends.append(net(x).detach())
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)
    assert (ends[0] - recurrent()(x)).norm() > 0.01


# The step


def one_step(model, optimiser):
    before = [p.detach().clone() for p in model.parameters()]
    x, y = problem(model)
    optimiser.zero_grad()
    F.cross_entropy(model(x), y).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    optimiser.step()
    return grads, [a - b.detach() for a, b in zip(before, model.parameters(), strict=True)]


@pytest.mark.parametrize("make", [lambda: mlp(False), lambda: mlp(True), conv_net])
def test_a_step_is_the_gradient_over_the_scales(make):
    model = make()
    scales = path_scales(model, input_shape=(1, 8, 8) if isinstance(model[0], nn.Conv2d) else None)
    grads, steps = one_step(model, PathSGD(model, 0.1))
    for g, s, k in zip(grads, steps, scales.values(), strict=True):
        torch.testing.assert_close(s, 0.1 * g / k, rtol=1e-9, atol=1e-13)


def test_the_step_is_not_that_of_sgd_and_scales_do_not_accumulate():
    # A released implementation loops over an exhausted generator, which leaves gradients as they are, and adds its
    # scales up from step to step.
    model, plain = mlp(False), mlp(False)
    _, steps = one_step(model, PathSGD(model, 0.1))
    _, theirs = one_step(plain, torch.optim.SGD(plain.parameters(), 0.1))
    assert all((a - b).norm() > 0.1 * b.norm() for a, b in zip(steps, theirs, strict=True))
    still = mlp(False)
    optimiser = PathSGD(still, 1e-300)
    tiny = [one_step(still, optimiser)[0] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(tiny[0], tiny[2], strict=True))
    kept = [[f.clone() for p in still.parameters() for f in optimiser._scales()[p]] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[2], strict=True))


def test_momentum_is_that_of_sgd_on_divided_gradients():
    model, other = mlp(True), mlp(True)
    x, y = problem(model)
    ours, plain = PathSGD(model, 0.02, momentum=0.8), torch.optim.SGD(other.parameters(), 0.02, momentum=0.8)
    for _ in range(5):
        for net, optimiser in ((model, ours), (other, plain)):
            optimiser.zero_grad()
            F.cross_entropy(net(x), y).backward()
        scales = path_scales(other)
        for name, p in other.named_parameters():
            p.grad /= scales[name]
        ours.step()
        plain.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_weights_on_no_path_stay():
    weights = gaussian_weights((4, 6, 3), generator())
    weights[1][:, 2] = 0  # unit 2 leads nowhere: the scales of what leads into it are 0
    model = perceptron(weights)
    _, steps = one_step(model, PathSGD(model, 0.1, momentum=0.5))
    assert (steps[0][2] == 0).all()
    assert all(torch.isfinite(s).all() for s in steps)
    assert (steps[1] != 0).any()
    # Max pooling on a 2x2 image: five of nine kernel entries are on no largest path, yet have a gradient.
    net = filled(
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    )
    optimiser = PathSGD(net, 0.1)
    x = normal(16, 1, 2, 2)
    before = net[0].weight.detach().clone()
    kappa = path_scales(net, input_shape=(1, 2, 2))["0.weight"]
    F.cross_entropy(net(x), torch.arange(16) % 3).backward()
    optimiser.step()
    assert torch.isfinite(net[0].weight).all()
    assert (kappa == 0).any()
    assert (net[0].weight.grad[kappa == 0] != 0).any()
    assert torch.equal(before[kappa == 0], net[0].weight[kappa == 0])
    assert not torch.equal(before, net[0].weight)


def test_damping_and_clipping():
    model = mlp(False)
    scales = path_scales(model)
    grads, steps = one_step(model, PathSGD(model, 0.1, damping=0.3))
    for g, s, k in zip(grads, steps, scales.values(), strict=True):
        torch.testing.assert_close(s, 0.1 * g / (k + 0.3 * k.max()), rtol=1e-9, atol=1e-13)
    model = mlp(False)
    _, steps = one_step(model, PathSGD(model, 1.0, clip=0.01))
    assert torch.cat([s.flatten() for s in steps]).norm().item() == pytest.approx(0.01)
    model = mlp(False)
    grads, loose = one_step(model, PathSGD(model, 1.0, clip=1e6))
    for g, s, k in zip(grads, loose, scales.values(), strict=True):
        torch.testing.assert_close(s, g / k, rtol=1e-9, atol=1e-13)


def test_the_first_step_refuses_scales_that_are_not_finite():
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(20)])
    for layer in model:
        nn.init.constant_(layer.weight, 1e3)
    optimiser = PathSGD(model, 1e-3)
    model(torch.ones(1, 1)).sum().backward()
    with pytest.raises(ValueError, match=r"not finite.*overflow float32"):
        optimiser.step()


def deep(value, layers=20, dtype=torch.float32):
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(layers)])
    for w in model.parameters():
        nn.init.constant_(w, value)
    return model.to(dtype)


def gradients(model):
    """Give all weights a small gradient, as deep networks of small weights have."""
    for w in model.parameters():
        w.grad = torch.full_like(w, 1e-25)


@pytest.mark.parametrize("value", [0.05, 0.1])  # κ is 0, or subnormal
@pytest.mark.parametrize("every", [1, 3])
def test_scales_that_underflow_are_told_once(value, every):
    model = deep(value)
    kappa = path_scales(model)["0.weight"]
    assert kappa < torch.finfo(torch.float32).tiny
    assert (kappa == 0) == (value == 0.05)
    optimiser = PathSGD(model, 1e-45, every=every)
    before = copy.deepcopy(model)
    gradients(model)
    with pytest.warns(RuntimeWarning, match=r"^sums over paths underflow float32: .* use float64") as caught:
        optimiser.step()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    if value == 0.05:
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), before.parameters(), strict=True))
    # Not once more, by a copy neither.
    copy.deepcopy(optimiser).step()
    optimiser.step()
    double = deep(value, dtype=torch.float64)
    gradients(double)
    before = copy.deepcopy(double)
    PathSGD(double, 1e-12 * value**38 / 1e-25).step()
    for w, start in zip(double.parameters(), before.parameters(), strict=True):
        assert (start - w).item() == pytest.approx(1e-12, rel=1e-3)


def test_no_path_is_no_underflow():
    for damping in (0.0, 0.1):
        model = mlp(True)
        with torch.no_grad():
            model[2].weight[:, 3] = 0
            model[2].weight[5] = 0
            model[2].bias[5] = 0
        assert (path_scales(model)["0.weight"] == 0).any()
        train(model, PathSGD(model, 0.01, momentum=0.5, damping=damping), 5)


def test_no_path_through_max_pooling_is_no_underflow():
    net = filled(
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    )
    optimiser = PathSGD(net, 0.1, input_shape=(1, 2, 2))
    gradients(net)
    optimiser.step()  # warnings are errors


def test_construction_in_inference_mode():
    for make in (lambda: mlp(True), conv_net):
        models = make(), make()
        first = PathSGD(models[0], 0.01, input_shape=None if len(models[0]) < 8 else (1, 8, 8))
        with torch.inference_mode():
            second = PathSGD(models[1], 0.01, input_shape=None if len(models[0]) < 8 else (1, 8, 8))
        assert torch.equal(train(models[0], first, 2), train(models[1], second, 2))


def test_weights_that_are_not_finite_are_named():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^model: '0\.weight': must be finite"):
            PathSGD(deep(bad), 0.1)


# Manners


def test_state_goes_round_and_goes_on():
    x, y = problem(mlp(True))

    def some(model, optimiser, n):
        for _ in range(n):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()

    for every in (1, 4):
        model = mlp(True)
        optimiser = PathSGD(model, 0.01, momentum=0.9, every=every)
        some(model, optimiser, 6)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, file)
        some(model, optimiser, 6)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        fresh = mlp(True)
        other = PathSGD(fresh, 1.0, every=every)
        fresh.load_state_dict(saved["model"])
        other.load_state_dict(saved["optimiser"])
        assert other.param_groups[0]["lr"] == 0.01
        some(fresh, other, 6)
        for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("every", [1, 3])
def test_state_does_not_alias(every):
    model = mlp(True)
    optimiser = PathSGD(model, 0.01, momentum=0.9, every=every)
    one_step(model, optimiser)
    held = [t for s in optimiser.state.values() for v in s.values() for t in (v if isinstance(v, list) else [v])]
    held = [t.data_ptr() for t in held if isinstance(t, torch.Tensor)]
    others = [t.data_ptr() for p in model.parameters() for t in (p, p.grad)]
    assert held
    assert len(set(held)) == len(held)
    assert not set(held) & set(others)


def test_copies_train_on_their_own():
    net = conv_net()
    optimiser = PathSGD(net, 0.02)  # learns the shape of its inputs from the first forward pass
    pair = copy.deepcopy((net, optimiser))
    a, b = train(net, optimiser, 3), train(*pair, 3)
    torch.testing.assert_close(a, b)
    torch.save(net, io.BytesIO())
    assert not net._forward_pre_hooks


def test_closure_schedule_and_frozen_parameters():
    model = mlp(True)
    x, y = problem(model)
    model[2].bias.requires_grad_(False)
    frozen = model[2].bias.clone()
    optimiser = PathSGD(model, 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5)

    def closure():
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(optimiser.step(closure).item())
        schedule.step()
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.0125)
    assert losses[2] < losses[0]
    assert torch.equal(model[2].bias, frozen)
    assert PathSGD(mlp(False), 0.1).step() is None


def test_training_mode_gradients_and_buffers_are_left_alone():
    model = nn.Sequential(nn.Flatten(), *mlp(True), nn.Dropout(0.5)).train()
    x, y = problem(mlp(True))
    optimiser = PathSGD(model, 0.1)
    F.cross_entropy(model(x), y).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    optimiser.step()
    assert model.training
    assert model[-1].training
    for p, g in zip(model.parameters(), grads, strict=True):
        assert torch.equal(p.grad, g)
        assert p.requires_grad


def test_float32_follows_float64():
    model = mlp(True)
    single = mlp(True).float()
    x, y = problem(model)
    for net, data, optimiser in ((model, x, PathSGD(model, 0.05)), (single, x.float(), PathSGD(single, 0.05))):
        for _ in range(10):
            optimiser.zero_grad()
            F.cross_entropy(net(data), y).backward()
            optimiser.step()
    torch.testing.assert_close(model(x).float(), single(x.float()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": 0}, "lr: must be a finite number > 0, got 0"),
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"momentum": 1.0}, "momentum: must be a number >= 0 and < 1, got 1.0"),
        ({"momentum": -0.1}, "momentum"),
        ({"p": 0}, "p: must be a finite number > 0"),
        ({"p": float("inf")}, "p: "),
        ({"every": 0}, "every: must be an integer >= 1"),
        ({"damping": -1}, "damping: must be a finite number >= 0"),
        ({"damping": float("nan")}, "damping"),
        ({"clip": 0}, "clip: must be a finite number > 0"),
        ({"input_shape": (0,)}, "input_shape"),
        ({"input_shape": (7,)}, "input_shape"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=words):
        PathSGD(**{"model": mlp(True), "lr": 0.1, **arguments})


def test_refused_models():
    with pytest.raises(TypeError, match=r"model: must be a torch.nn.Module, got list"):
        PathSGD(gaussian_weights((3, 2), generator()), 0.1)
    with pytest.raises(TypeError, match="BatchNorm"):
        PathSGD(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), 0.1)
    with pytest.raises(TypeError, match="unsupported layer Tanh"):
        PathSGD(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 0.1)
    twice = nn.Linear(3, 3)
    with pytest.raises(TypeError, match="used twice"):
        PathSGD(nn.Sequential(twice, nn.ReLU(), twice), 0.1)
    with pytest.raises(ValueError, match="p: must be 2 for shared weights unless second=False"):
        PathSGD(recurrent(), 0.1, p=1)
    assert PathSGD(recurrent(), 0.1, p=1, second=False)._scales()
    with pytest.raises(TypeError, match="parametrised"):
        PathSGD(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)), 0.1)


def test_a_step_without_any_forward_pass_asks_for_the_shape():
    net = conv_net()
    x, y = problem(net)
    F.cross_entropy(net(x), y).backward()
    with pytest.raises(ValueError, match="input_shape: is needed"):
        PathSGD(net, 0.1).step()
