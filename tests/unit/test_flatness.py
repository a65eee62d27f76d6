"""Sharpness against the corners of the box, expected sharpness and PAC-Bayes against closed forms."""

import copy
import itertools
import math

import pytest
import torch
from mutation import mutated
from torch import nn

from implicitreg.dynamics import cross_entropy
from implicitreg.measures import (
    expected_sharpness,
    flatness,
    pac_bayes_kl,
    pac_bayes_kl_at,
    path_norm,
    rescale_nodes,
    sharpness,
)
from implicitreg.nets import gaussian_weights, outputs, perceptron


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def setting(sizes=(4, 6, 3), n=30, seed=0):
    w = gaussian_weights(sizes, generator(seed))
    x = torch.randn(n, sizes[0], generator=generator(seed + 1), dtype=torch.float64)
    return w, x, outputs(w, x).argmax(-1)


def stacked(*networks):
    return [torch.stack(each) for each in zip(*networks, strict=True)]


def squares(scores, labels):
    """Return half the squared outputs: a loss whose mean over Gaussian weights is known, whatever the labels."""
    return scores.square().sum(-1) / 2


def zero_one(scores, labels):
    return (scores.argmax(-1) != labels).to(scores.dtype)


# Maximum sharpness


def corners(w, x, y, alpha):
    """Return the largest sharpness over the corners of the box: of a convex loss the maximum over the box."""
    start = nn.functional.cross_entropy(x @ w.T, y)
    radius = alpha * (w.abs() + 1)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=w.numel())), dtype=w.dtype).view(-1, *w.shape)
    moved = (w + radius * signs) @ x.T
    losses = nn.functional.cross_entropy(moved.mT.flatten(0, 1), y.repeat(len(signs)), reduction="none")
    return ((losses.view(len(signs), -1).mean(-1).max() - start) / (1 + start)).item()


def check_sharpness(measure):
    for seed, alpha in itertools.product(range(4), (5e-4, 1e-2)):
        w, x, y = setting((3, 3), seed=seed)
        value = measure(w, x, y, alpha).item()
        assert value == pytest.approx(corners(w[0], x, y, alpha), rel=1e-9)
        assert measure(perceptron(w), x, y, alpha).item() == pytest.approx(value, rel=1e-12)


def test_sharpness_of_a_convex_loss_is_reached_at_a_corner():
    check_sharpness(sharpness)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("alpha * (w.abs() + 1)", "alpha * w.abs()"),
        ("alpha * (w.abs() + 1)", "alpha * (10 * w.abs() + 1)"),
        ("/ (1 + start)", ""),
        ("v.add_(", "v.sub_("),
        ("-r, r, out=v", "-r / 2, r / 2, out=v"),
    ],
)
def test_mutants_of_the_sharpness_are_caught(right, wrong):
    mutant = mutated(flatness, "sharpness", right, wrong)
    with pytest.raises(AssertionError):
        check_sharpness(mutant.sharpness)


def test_sharpness_never_exceeds_the_maximum_and_comes_close():
    for seed in range(4):
        w, x, y = setting((3, 3), seed=seed)
        best = corners(w[0], x, y, 0.3)
        assert 0.9 * best <= sharpness(w, x, y, 0.3).item() <= best * (1 + 1e-12)


def test_sharpness_grows_with_the_box_and_is_not_negative():
    w, x, y = setting((4, 8, 8, 3))
    values = [sharpness(w, x, y, alpha).item() for alpha in (1e-5, 1e-4, 5e-4, 1e-3, 1e-2, 0.1)]
    assert values == sorted(values)
    assert values[0] > 0
    flat = [torch.zeros(4, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)]
    assert sharpness(flat, x, y) == 0  # without a slope there is nothing to climb
    top = [torch.zeros(3, 4, dtype=torch.float64)]
    assert sharpness(top, x, y, loss=lambda s, c: -squares(s, c)) == 0  # at a maximum already


def test_one_step_is_a_tenth_of_the_box():
    w, x, y = setting((3, 3))
    start = nn.functional.cross_entropy(x @ w[0].T, y)
    leaf = w[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(x @ leaf.T, y), leaf)
    moved = nn.functional.cross_entropy(x @ (w[0] + 0.1 * 0.01 * (w[0].abs() + 1) * slope.sign()).T, y)
    value = sharpness(w, x, y, 0.01, steps=1)
    torch.testing.assert_close(value, (moved - start) / (1 + start), rtol=1e-10, atol=0)


def test_sharpness_of_a_batch_is_that_of_each():
    networks = [setting(seed=seed) for seed in range(3)]
    x = networks[0][1]
    y = torch.stack([outputs(w, x).argmax(-1) for w, _, _ in networks])
    together = sharpness(stacked(*(w for w, _, _ in networks)), x, y, 1e-2)
    alone = [sharpness(w, x, labels, 1e-2) for (w, _, _), labels in zip(networks, y, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=0)
    modules = [sharpness(perceptron(w), x, labels, 1e-2) for (w, _, _), labels in zip(networks, y, strict=True)]
    torch.testing.assert_close(together, torch.stack(modules), rtol=1e-9, atol=0)


def test_sharpness_sees_rescaled_units_and_the_path_norm_does_not():
    w, x, y = setting((4, 16, 3))
    other = rescale_nodes(w, generator(1), scale=3.0)
    torch.testing.assert_close(outputs(other, x), outputs(w, x))
    torch.testing.assert_close(path_norm(other), path_norm(w))
    assert sharpness(other, x, y) > 2 * sharpness(w, x, y)
    flat, sharp = (expected_sharpness(each, x, y, 1e-2, generator(), draws=200) for each in (w, other))
    assert sharp.value > 2 * flat.value


# Expected sharpness


def closed_form(w, x, alpha):
    """Return the expected sharpness of one matrix under `squares`: half the sum of sigma² x²."""
    sigma = alpha * (10 * w.abs() + 1)
    return (sigma.square() @ x.square().T).sum(0).mean().item() / 2


def check_expected_sharpness(measure):
    """Assert that the value is unbiased, and its error as large as it says."""
    w, x, y = setting((5, 3), n=10)
    for alpha in (1e-3, 0.05):
        exact = closed_form(w[0], x, alpha)
        found = [measure(w, x, y, alpha, generator(seed), draws=60, loss=squares) for seed in range(300)]
        z = torch.tensor([(float(each) - exact) / each.standard_error.item() for each in found])
        assert z.mean().abs() < 4 / 300**0.5
        assert 0.85 < z.std() < 1.2
        many = measure(w, x, y, alpha, generator(7), draws=20_000, loss=squares)
        assert float(many) == pytest.approx(exact, abs=4 * many.standard_error.item())
    assert many.standard_error < 0.05 * exact


def test_expected_sharpness_against_its_closed_form():
    check_expected_sharpness(expected_sharpness)


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [
        ("expected_sharpness", "found.std(0) / math.sqrt(draws)", "found.std(0)"),
        ("expected_sharpness", "found.mean(0)", "found.median(0).values"),
        ("_deviations", "10 * w.abs() + 1", "w.abs() + 1"),
        ("_increases", "s * _over(alpha, model)", "(s * _over(alpha, model)) ** 2"),  # variance as deviation
        ("_noise", "torch.randn(", "torch.rand("),
        ("_increases", "mean(moved) - start", "mean(moved)"),
    ],
)
def test_mutants_of_the_expected_sharpness_are_caught(function, right, wrong):
    mutant = mutated(flatness, function, right, wrong)
    with pytest.raises(AssertionError):
        check_expected_sharpness(mutant.expected_sharpness)


@pytest.mark.parametrize("loss", [cross_entropy, zero_one])
def test_expected_sharpness_is_the_mean_over_draws(loss):
    w, x, y = setting()
    source, alpha = generator(3), 0.05
    start, found = loss(outputs(w, x), y).mean(), []
    for _ in range(20):
        moved = [
            each + alpha * (10 * each.abs() + 1) * torch.randn(each.shape, generator=source, dtype=torch.float64)
            for each in w
        ]
        found.append((loss(outputs(moved, x), y).mean() - start).item())
    found = torch.tensor(found, dtype=torch.float64)
    for model in (w, perceptron(w)):
        result = expected_sharpness(model, x, y, alpha, generator(3), draws=20, loss=loss)
        assert float(result) == pytest.approx(found.mean().item(), rel=1e-10)
        assert result.standard_error.item() == pytest.approx(found.std().item() / 20**0.5, rel=1e-10)
    assert found.mean() > 0


def test_expected_sharpness_of_a_batch():
    w, x, y = setting()
    single = expected_sharpness(w, x, y, 0.02, generator(), draws=500)
    one = expected_sharpness([each[None] for each in w], x, y, 0.02, generator(), draws=500)
    torch.testing.assert_close(one.value, single.value[None])
    other, _, _ = setting(seed=5)
    pair = expected_sharpness(stacked(w, other), x, y, 0.02, generator(1), draws=500)
    assert pair.value.shape == pair.standard_error.shape == (2,)
    alone = [single, expected_sharpness(other, x, y, 0.02, generator(2), draws=500)]
    for i, each in enumerate(alone):
        error = (each.standard_error.square() + pair.standard_error[i].square()).sqrt()
        assert (pair.value[i] - each.value).abs() < 4 * error


# PAC-Bayes


def test_kl_against_its_closed_form():
    w, _, _ = setting()
    sigma = [0.03 * (10 * each.abs() + 1) for each in w]
    posterior = [torch.distributions.Normal(each, s) for each, s in zip(w, sigma, strict=True)]
    prior = [torch.distributions.Normal(torch.zeros_like(s), s) for s in sigma]
    kl = sum(torch.distributions.kl_divergence(a, b).sum() for a, b in zip(posterior, prior, strict=True))
    torch.testing.assert_close(pac_bayes_kl(w, 0.03), kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(pac_bayes_kl(perceptron(w), 0.03), kl, rtol=1e-12, atol=0)
    # α² KL does not depend on α.
    torch.testing.assert_close(pac_bayes_kl(w, 0.3) * 100, kl, rtol=1e-12, atol=0)
    other, _, _ = setting(seed=1)
    both = pac_bayes_kl(stacked(w, other), torch.tensor([0.03, 0.06], dtype=torch.float64))
    torch.testing.assert_close(both, torch.stack([kl, pac_bayes_kl(other, 0.06)]), rtol=1e-12, atol=0)
    assert pac_bayes_kl([each.float() for each in w], 0.03).dtype == torch.float32


def test_kl_saturates():
    """However large the weights, it stays below 1/(200 α²) a parameter."""
    w, _, _ = setting()
    ceiling = sum(each.numel() for each in w) / (200 * 0.05**2)
    values = [pac_bayes_kl([scale * each for each in w], 0.05).item() for scale in (0, 1, 10, 1e4)]
    assert values[0] == 0
    assert values == sorted(values)
    assert 0.99 * ceiling < values[-1] < ceiling


def test_kl_at_an_expected_sharpness_has_a_closed_form():
    """Of a quadratic loss the expected sharpness of given draws is a known polynomial of α."""
    w, x, y = setting((5, 3), n=10)
    source = generator(4)
    noise = torch.stack([torch.randn(3, 5, generator=source, dtype=torch.float64) for _ in range(40)])
    noise *= 10 * w[0].abs() + 1
    moved = noise @ x.T
    slope = (moved * (w[0] @ x.T)).sum(1).mean().item()
    curvature = moved.square().sum(1).mean().item() / 2
    for target in (0.05, 0.5):
        alpha = (-slope + math.sqrt(slope**2 + 4 * curvature * target)) / (2 * curvature)
        value = pac_bayes_kl_at(w, x, y, generator(4), sharpness=target, draws=40, loss=squares).item()
        assert value == pytest.approx(pac_bayes_kl(w, alpha).item(), rel=1.1e-3)


def test_kl_at_is_where_the_expected_sharpness_is_reached():
    networks = [setting((4, 8, 3), seed=seed)[0] for seed in range(3)]
    x = setting()[1]
    y = torch.stack([outputs(w, x).argmax(-1) for w in networks])
    ensemble = stacked(*networks)
    kl = pac_bayes_kl_at(ensemble, x, y, generator(), draws=100)
    assert kl.shape == (3,)
    for i in range(3):
        alpha = (pac_bayes_kl(networks[i], 1.0) / kl[i]).sqrt().item()
        reached = expected_sharpness(ensemble, x, y, alpha, generator(), draws=100).value[i].item()
        assert reached == pytest.approx(0.05, rel=5e-3)
        module = pac_bayes_kl_at(perceptron(networks[i]), x, y[i], generator(), draws=100)
        alone = pac_bayes_kl_at(networks[i], x, y[i], generator(), draws=100)
        torch.testing.assert_close(module, alone, rtol=1e-12, atol=0)
        assert alone.item() == pytest.approx(kl[i].item(), rel=0.5)  # other draws
    flatter = pac_bayes_kl_at(ensemble, x, y, generator(), draws=100, sharpness=0.2)
    assert (flatter < kl).all()


def test_kl_at_does_not_depend_on_what_noise_is_held(monkeypatch):
    w, x, y = setting()
    for model in (w, perceptron(w)):
        drawn, again = generator(), generator()
        kl = pac_bayes_kl_at(model, x, y, drawn, draws=20)
        with monkeypatch.context() as patch:
            patch.setattr(flatness, "_KEPT", 0)
            assert torch.equal(pac_bayes_kl_at(model, x, y, again, draws=20), kl)
        assert torch.equal(drawn.get_state(), again.get_state())


def test_out_of_reach_is_said():
    w, x, y = setting()
    never = [torch.zeros_like(each) for each in w[:1]] + w[1:]
    ensemble = stacked(w, never)
    with pytest.warns(RuntimeWarning, match=r"0\.05 is not reached for α in 0\.0001 \.\.\. 0\.1 by 1 of 2") as caught:
        kl = pac_bayes_kl_at(ensemble, x, y, generator(), draws=20, most=0.1)
    assert caught[0].filename == __file__
    assert kl[0].isfinite()
    assert kl[1].isnan()
    for bracket in ({"least": 0.9, "most": 1.0}, {"least": 1e-6, "most": 1e-5}):
        with pytest.warns(RuntimeWarning, match="by 1 of 1 networks"):
            assert pac_bayes_kl_at(w, x, y, generator(), draws=20, **bracket).isnan()


# The model is left as it was; refusals


MEASURES = {
    "sharpness": lambda net, x, y, **k: sharpness(net, x, y, steps=5, **k),
    "expected_sharpness": lambda net, x, y, **k: expected_sharpness(net, x, y, 0.1, generator(), draws=5, **k).value,
    "pac_bayes_kl_at": lambda net, x, y, **k: pac_bayes_kl_at(net, x, y, generator(), draws=5, **k),
}


@pytest.mark.parametrize("name", [*MEASURES, "pac_bayes_kl"])
@pytest.mark.filterwarnings("ignore:an expected sharpness")
def test_the_model_is_left_as_it_was(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    net[4].bias.requires_grad_(False)
    _, x, y = setting()

    def measure():
        return MEASURES[name](net, x, y) if name in MEASURES else pac_bayes_kl(net, 0.1)

    expected = measure()
    net.train()
    net[0].eval()
    for i, w in enumerate(net.parameters()):
        w.grad = torch.full_like(w, i)
    before, modes = copy.deepcopy(net), [part.training for part in net.modules()]
    grads, state = [w.grad.clone() for w in net.parameters()], torch.random.get_rng_state()
    for model in (net, [w.detach() for w in setting()[0]]):
        copied = [w.clone() for w in model] if isinstance(model, list) else None
        value = MEASURES[name](model, x, y) if name in MEASURES else pac_bayes_kl(model, 0.1)
        assert not value.requires_grad
        if copied is None:
            assert torch.equal(value, expected) or value.isnan()
        else:
            assert all(torch.equal(a, b) for a, b in zip(model, copied, strict=True))
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert all(torch.equal(w.grad, g) for w, g in zip(net.parameters(), grads, strict=True))
    assert [w.requires_grad for w in net.parameters()] == [True] * 5 + [False]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("made_there", [False, True])
@pytest.mark.filterwarnings("ignore:an expected sharpness")
def test_inference_mode_does_not_matter(name, made_there):
    def made():
        _, x, y = setting()
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
        for i, w in enumerate(net.parameters()):
            w.detach().copy_(torch.randn(w.shape, generator=generator(i), dtype=torch.float64))
        return net, x, y

    given = made()
    weights = setting()[0]
    expected = [MEASURES[name](model, *given[1:]) for model in (given[0], weights)]
    with torch.inference_mode():
        if made_there:
            given, weights = made(), [w.clone() for w in weights]
        found = [MEASURES[name](model, *given[1:]) for model in (given[0], weights)]
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found, expected, equal_nan=True)
    if made_there:  # and so may be what was made there
        torch.testing.assert_close(MEASURES[name](*given), expected[0], equal_nan=True)


def test_parameters_without_use_do_not_matter():
    w, x, y = setting()
    net = perceptron(w)
    net.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    torch.testing.assert_close(sharpness(net, x, y, steps=20), sharpness(w, x, y, steps=20))


@pytest.mark.parametrize("name", MEASURES)
def test_bad_data_and_models_are_named(name):
    w, x, y = setting()
    measure = MEASURES[name]
    for model in (w, perceptron(w)):
        with pytest.raises(ValueError, match=r"^y: must lie in 0 \.\.\. 2"):
            measure(model, x, y + 2)
        with pytest.raises(ValueError, match=r"^x: must hold at least one sample"):
            measure(model, x[:0], y[:0])
        with pytest.raises(ValueError, match=r"^x: of shape"):
            measure(model, x[:, 1:], y)
        with pytest.raises(ValueError, match=r"^x: must be finite"):
            measure(model, x * math.nan, y)
    with pytest.raises(ValueError, match=r"^model: must have parameters"):
        measure(nn.Identity(), x, y)
    with pytest.raises(TypeError, match=r"^model: must be a torch.nn.Module or a sequence"):
        measure(len, x, y)


@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf, "1", None, True])
def test_alpha_is_positive(alpha):
    w, x, y = setting()
    for call in (
        lambda: sharpness(w, x, y, alpha),
        lambda: expected_sharpness(w, x, y, alpha, generator()),
        lambda: pac_bayes_kl(w, alpha),
    ):
        with pytest.raises(ValueError, match=r"^alpha: must be a finite number > 0"):
            call()


def test_other_bad_arguments_are_named():
    w, x, y = setting()
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"^steps: must be an integer >= 1"):
            sharpness(w, x, y, steps=steps)
    with pytest.raises(ValueError, match=r"^loss: must be differentiable"):
        sharpness(w, x, y, loss=zero_one)
    for draws in (1, 2.0):
        with pytest.raises(ValueError, match=r"^draws: must be an integer >= 2"):
            expected_sharpness(w, x, y, 0.1, generator(), draws=draws)
        with pytest.raises(ValueError, match=r"^draws: must be an integer >= 2"):
            pac_bayes_kl_at(w, x, y, generator(), draws=draws)
    for call in (lambda g: expected_sharpness(w, x, y, 0.1, g), lambda g: pac_bayes_kl_at(w, x, y, g)):
        with pytest.raises(TypeError, match=r"^generator: must be a torch.Generator"):
            call(0)
    for name in ("sharpness", "least", "most"):
        with pytest.raises(ValueError, match=rf"^{name}: must be a finite number > 0"):
            pac_bayes_kl_at(w, x, y, generator(), **{name: 0})
    with pytest.raises(ValueError, match=r"^most: must be > least"):
        pac_bayes_kl_at(w, x, y, generator(), least=0.1, most=0.1)
    with pytest.raises(ValueError, match=r"^alpha: must be finite and > 0 for every network"):
        pac_bayes_kl(stacked(w, w), torch.tensor([0.1, 0.0]))
    with pytest.raises(ValueError, match=r"^alpha: must be finite and > 0 for every network"):
        pac_bayes_kl(stacked(w, w), torch.tensor([0.1, math.inf]))
    with pytest.raises(ValueError, match=r"^alpha: must be one number for one network, got shape \(2,\)"):
        pac_bayes_kl(perceptron(w), torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"^model: 'weights\[0\]': must be finite"):
        pac_bayes_kl([math.nan * w[0], w[1]], 0.1)
    with pytest.raises(TypeError, match=r"^model: must be"):
        pac_bayes_kl(None, 0.1)
