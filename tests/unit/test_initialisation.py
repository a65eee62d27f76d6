"""He initialisation: the variances that are promised, the same draws in lists and in modules, and what is refused."""

import itertools
import math
import sys

import pytest
import torch
from mutation import mutated
from torch import nn

from implicitreg.nets import gaussian_weights, he_normal_, he_weights, outputs, perceptron

module = sys.modules["implicitreg.nets.initialisation"]
SIZES = (6, 40, 30, 5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 7),
        nn.ReLU(),
        nn.Linear(7, 3, bias=False),
    ).double()


class Twisted(nn.Module):
    """No chain of layers: the output layer is the last one in the order of its modules."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.out = nn.Linear(4, 2)


def check_variances():
    """4 standard errors of the mean square of N draws, which is sqrt(2/N) of it."""
    for variance, scale in ((2.0, 1.0), (0.5, 3.0)):
        weights = he_weights(SIZES, generator(), networks=300, output_variance=variance, scale=scale)
        assert [w.shape for w in weights] == [(300, h, below) for below, h in itertools.pairwise(SIZES)]
        for w, below, v in zip(weights, SIZES, (2.0, 2.0, variance), strict=False):
            squares = w.square().mean().item() * below / (v * scale**2)
            assert abs(squares - 1) < 4 * math.sqrt(2 / w.numel())
            assert abs(w.mean().item()) < 4 * w.std().item() / math.sqrt(w.numel())


def test_variances():
    check_variances()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("len(sizes) - 2", "0"),
        ("else 2.0)", "else 1.0)"),
        ("/ below)", "/ units)"),
        ("scale * deviation", "deviation"),
        ("** 0.5", "** 1"),
    ],
)
def test_mutants_are_caught(monkeypatch, right, wrong):
    monkeypatch.setitem(globals(), "he_weights", mutated(module, "he_weights", right, wrong).he_weights)
    with pytest.raises(AssertionError):
        check_variances()


def test_the_size_of_outputs_does_not_depend_on_depth():
    """E f(x)^2 = 2 |x|^2 / d for one hidden layer and for four; with variances 1/n it would halve at each."""
    x = torch.randn(1, 10, generator=generator(9), dtype=torch.float64)
    expected = 2 * x.square().sum().item() / 10
    for sizes in ((10, 50, 1), (10, 50, 50, 50, 50, 1)):
        f = outputs(he_weights(sizes, generator(), networks=4000), x).flatten()
        error = f.square().std().item() / math.sqrt(4000)
        assert abs(f.square().mean().item() - expected) < 4 * error < 0.2 * expected
    narrow = outputs([w * 0.5**0.5 for w in he_weights((10, 50, 1), generator(), networks=4000)], x)
    assert narrow.square().mean().item() < expected / 3


def test_one_network_several_and_a_dtype():
    one = he_weights(SIZES, generator())
    assert [w.shape for w in one] == [(h, below) for below, h in itertools.pairwise(SIZES)]
    alone = he_weights(SIZES, generator(), networks=1)
    assert all(torch.equal(a, b[0]) for a, b in zip(one, alone, strict=True))
    single = he_weights(SIZES, generator(), dtype=torch.float32)
    assert all(torch.equal(a.float(), b) for a, b in zip(one, single, strict=True))
    several = he_weights(SIZES, generator(), networks=2)
    assert not torch.equal(several[0][0], several[0][1])
    assert not torch.equal(one[0], he_weights(SIZES, generator(1))[0])
    # The balanced start of the same draws is smaller by the square root of 2.
    balanced = gaussian_weights(SIZES, generator())
    assert all(torch.allclose(a, 2**0.5 * b) for a, b in zip(one, balanced, strict=True))


def test_a_module_gets_the_same_draws():
    start = he_weights(SIZES, generator(), output_variance=0.7, scale=2.0)
    net = perceptron(he_weights(SIZES, generator(5)))
    assert he_normal_(net, generator(), output_variance=0.7, scale=2.0) is net
    assert all(torch.equal(a, b) for a, b in zip(start, net.parameters(), strict=True))
    single = he_normal_(perceptron(start).float(), generator(), output_variance=0.7, scale=2.0)
    assert all(torch.equal(a.float(), b) for a, b in zip(start, single.parameters(), strict=True))


def test_a_convolution():
    net = convolutional()
    before = {name: value.clone() for name, value in net[1].state_dict().items()}
    he_normal_(net, generator(), output_variance=1.0, bias_std=0.3, scale=2.0)
    g = generator()

    def draw(shape, deviation):
        return 2.0 * deviation * torch.randn(shape, generator=g, dtype=torch.float64)

    for layer, fan, v in ((net[0], 2 * 9, 2), (net[4], 24, 2), (net[6], 7, 1)):
        torch.testing.assert_close(layer.weight.detach(), draw(layer.weight.shape, (v / fan) ** 0.5))
        if layer.bias is not None:
            torch.testing.assert_close(layer.bias.detach(), draw(layer.bias.shape, 0.3))
    assert all(torch.equal(value, net[1].state_dict()[name]) for name, value in before.items())


def test_biases_of_0_draw_nothing():
    net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 5)).double()
    he_normal_(net, generator())
    start = he_weights((6, 40, 5), generator())
    assert torch.equal(net[0].weight, start[0])
    assert torch.equal(net[2].weight, start[1])
    assert not net[0].bias.any()
    assert not net[2].bias.any()


def test_any_module_of_linear_layers():
    net = he_normal_(Twisted(), generator(), output_variance=1e-12)
    assert net.out.weight.abs().max() < 1e-5 < net.inner[0].weight.abs().min()


def test_what_else_a_module_has_stays():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net.eval()
    net[0].weight.requires_grad_(False)
    state = torch.random.get_rng_state()
    he_normal_(net, generator(), bias_std=1.0)
    assert not net.training
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sizes": (4,)}, ValueError, "sizes: must be a sequence of at least 2 integers"),
        ({"sizes": (4, 0, 2)}, ValueError, "sizes: must be an integer >= 1, got 0"),
        ({"generator": 0}, TypeError, "generator: must be a torch.Generator, got int"),
        ({"networks": 0}, ValueError, "networks: must be an integer >= 1, got 0"),
        ({"output_variance": 0.0}, ValueError, "output_variance: must be a finite number > 0"),
        ({"scale": -1.0}, ValueError, "scale: must be a finite number > 0"),
        ({"dtype": torch.float16}, TypeError, "dtype: must be torch.float32 or torch.float64"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {"sizes": SIZES, "generator": generator(), **change}
    with pytest.raises(error, match=f"^{words}"):
        he_weights(**arguments)


def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": SIZES}, TypeError, "model: must be a torch.nn.Module, got tuple"),
        ({"model": nn.ReLU()}, ValueError, "model: must have at least one linear or convolutional layer"),
        ({"model": nn.Sequential(nn.LazyLinear(3))}, TypeError, "model: '0' has no weights yet"),
        (
            {"model": nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))},
            TypeError,
            "model: the weight of '0' is computed from others",
        ),
        ({"model": tied()}, TypeError, "model: two layers share a weight"),
        ({"generator": None}, TypeError, "generator: must be a torch.Generator"),
        ({"output_variance": math.inf}, ValueError, "output_variance: "),
        ({"bias_std": -1}, ValueError, "bias_std: must be a finite number >= 0"),
        ({"scale": 0}, ValueError, "scale: "),
    ],
)
def test_bad_arguments_of_a_module_are_named(change, error, words):
    arguments = {"model": nn.Linear(3, 2), "generator": generator(), **change}
    with pytest.raises(error, match=f"^{words}"):
        he_normal_(**arguments)
