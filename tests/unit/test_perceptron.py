"""Bias-free perceptrons: starts, forward pass, and rescalings that leave the function alone."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from implicitreg.nets import (
    gaussian_weights,
    outputs,
    path_sum,
    perceptron,
    rescale_nodes,
    unbalanced_weights,
)

perceptrons = pytest.mark.parametrize("sizes", [(6, 40, 3), (5, 12, 16, 8, 2)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


# Starts


def test_gaussian_weights_are_balanced():
    weights = gaussian_weights((400, 500, 300), generator())
    assert [tuple(w.shape) for w in weights] == [(500, 400), (300, 500)]
    for w in weights:
        assert w.dtype == torch.float64
        assert (w.std() * w.shape[1] ** 0.5).item() == pytest.approx(1, rel=0.01)
        norms = w.norm(dim=1)
        assert norms.max() / norms.median() < 1.2
    assert not torch.equal(gaussian_weights((3, 2), generator())[0], gaussian_weights((3, 2), generator(1))[0])


def test_float32_starts_where_float64_does():
    single = gaussian_weights((7, 5, 2), generator(), dtype=torch.float32)
    for a, b in zip(single, gaussian_weights((7, 5, 2), generator()), strict=True):
        assert torch.equal(a, b.float())


@pytest.mark.parametrize("sizes", [(3,), 3, (3, 0), (3, 2.0), None])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match=r"^sizes: must be|^sizes: "):
        gaussian_weights(sizes, generator())


# The forward pass


@perceptrons
def test_outputs_are_those_of_the_module(sizes):
    weights, x = gaussian_weights(sizes, generator()), normal(9, sizes[0])
    net = perceptron(weights)
    torch.testing.assert_close(net(x), outputs(weights, x))
    assert [type(m) for m in net] == [nn.Linear, nn.ReLU] * (len(sizes) - 2) + [nn.Linear]
    assert [(m.in_features, m.out_features) for m in net[::2]] == list(itertools.pairwise(sizes))
    assert net[0].bias is None
    assert net[0].weight.data_ptr() != weights[0].data_ptr()


def test_outputs_of_many_networks():
    members = [gaussian_weights((3, 5, 2), generator(i)) for i in range(4)]
    together = [torch.stack(w) for w in zip(*members, strict=True)]
    x, own = normal(7, 3), normal(4, 7, 3)
    torch.testing.assert_close(outputs(together, x), torch.stack([outputs(w, x) for w in members]))
    torch.testing.assert_close(
        outputs(together, own), torch.stack([outputs(w, z) for w, z in zip(members, own, strict=True)])
    )


def test_a_module_is_one_network():
    with pytest.raises(ValueError, match=r"^weights: a module is one network"):
        perceptron([torch.ones(2, 3, 4)])
    with pytest.raises(TypeError, match=r"^weights: must be a sequence of weight matrices, got Linear"):
        perceptron(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^weights\[1\]: "):
        perceptron([torch.ones(3, 4), torch.ones(2, 2)])


def test_building_a_module_draws_nothing():
    state = torch.get_rng_state()
    perceptron([torch.ones(3, 4)])
    assert torch.equal(state, torch.get_rng_state())


# Unbalanced starts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unbalanced_weights_keep_function_and_path_norm(dtype):
    weights = gaussian_weights((50, 800, 800, 10), generator(), dtype=dtype)
    unbalanced = unbalanced_weights(weights, generator(1))
    x = normal(30, 50).to(dtype)
    before, after = outputs(weights, x), outputs(unbalanced, x)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (after - before).norm() < tolerance * before.norm()
    assert path_sum(unbalanced).item() == pytest.approx(path_sum(weights).item(), rel=tolerance / 10)
    touched = torch.cat([(u.norm(dim=1) / w.norm(dim=1)) for u, w in zip(unbalanced[:1], weights[:1], strict=True)])
    share = (touched.log().abs() > 1e-3).double().mean().item()
    assert share == pytest.approx(1 - math.exp(-0.25), abs=0.05)
    assert touched.max() > 10 * touched.median()
    assert touched.median().item() == pytest.approx(1, rel=1e-5)


def test_dividing_the_outgoing_weights_alone_changes_the_function():
    weights = gaussian_weights((50, 800, 10), generator())
    unbalanced, x = unbalanced_weights(weights, generator(1)), normal(30, 50)
    half = outputs([weights[0], unbalanced[1]], x)
    before = outputs(weights, x)
    assert (half - before).norm() > 0.1 * before.norm()


def test_unbalanced_weights_refuse():
    with pytest.raises(ValueError, match=r"^weights: must have at least one hidden layer"):
        unbalanced_weights(gaussian_weights((3, 2), generator()), generator())
    for function in (unbalanced_weights, rescale_nodes):
        with pytest.raises(TypeError, match=r"^generator: must be a torch\.Generator, got int"):
            function([torch.ones(2, 2), torch.ones(2, 2)], 0)


# Rescaling


@perceptrons
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_rescaled_weights_keep_function_and_path_norm(sizes, p):
    weights = gaussian_weights(sizes, generator())
    scaled = rescale_nodes(weights, generator(2), scale=2.0)
    x = normal(20, sizes[0])
    torch.testing.assert_close(outputs(scaled, x), outputs(weights, x), rtol=1e-11, atol=1e-12)
    assert path_sum(scaled, p).item() == pytest.approx(path_sum(weights, p).item(), rel=1e-12)
    assert math.prod(w.norm().item() for w in scaled) > 10 * math.prod(w.norm().item() for w in weights)


def test_every_network_of_a_batch_is_rescaled_by_itself():
    weights = [torch.stack([w, w]) for w in gaussian_weights((4, 6, 3), generator())]
    scaled = rescale_nodes(weights, generator(2))
    assert not torch.equal(scaled[0][0], scaled[0][1])
    torch.testing.assert_close(path_sum(scaled), path_sum(weights), rtol=1e-12, atol=0)


def randomised(net, seed=0):
    net, g = net.double(), generator(seed)
    with torch.no_grad():
        for q in net.parameters():
            q.copy_(torch.randn(q.shape, generator=g, dtype=torch.float64))
        for name, b in net.named_buffers():
            if b.is_floating_point():
                noise = torch.randn(b.shape, generator=g, dtype=torch.float64)
                b.copy_(noise.square() + 0.1 if "var" in name else noise)
    return net.eval()


relu = nn.ReLU
NETS = {
    "biases": ((5,), (nn.Linear(5, 7), relu(), nn.Linear(7, 6), relu(), nn.Linear(6, 2))),
    "convolution": (
        (1, 6, 6),
        (
            nn.Conv2d(1, 3, 3, padding=1),
            relu(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 2),
            relu(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
    ),
    "flattened maps": (
        (2, 5, 5),
        (nn.Conv2d(2, 3, 3), relu(), nn.Flatten(), nn.Linear(27, 4), relu(), nn.Linear(4, 2)),
    ),
    "groups": (
        (4, 5, 5),
        (nn.Conv2d(4, 6, 2, groups=2), relu(), nn.Conv2d(6, 9, 2, groups=3), relu(), nn.Conv2d(9, 2, 2)),
    ),
    "depthwise": ((2, 6), (nn.Conv1d(2, 4, 2), relu(), nn.Conv1d(4, 8, 2, groups=4), relu(), nn.Conv1d(8, 1, 2))),
    "batch norm": (
        (1, 6, 6),
        (
            nn.Conv2d(1, 3, 3, bias=False),
            nn.BatchNorm2d(3),
            relu(),
            nn.Flatten(),
            nn.Linear(48, 5),
            nn.BatchNorm1d(5),
            relu(),
            nn.Linear(5, 2),
            nn.BatchNorm1d(2),
        ),
    ),
    "batch norm after ReLU": (
        (4,),
        (nn.Linear(4, 6), relu(), nn.BatchNorm1d(6), nn.Linear(6, 5), relu(), nn.Linear(5, 2)),
    ),
    "batch norm first": ((2, 4), (nn.BatchNorm1d(2), nn.Conv1d(2, 3, 2), relu(), nn.Flatten(), nn.Linear(9, 2))),
    "partly flattened": ((1, 6, 6), (nn.Conv2d(1, 3, 3), relu(), nn.Flatten(2), nn.Conv1d(3, 2, 4, 4))),
    "flattened by number": ((1, 3, 3), (nn.Conv2d(1, 3, 2), relu(), nn.Flatten(1, 3), nn.Linear(12, 2))),
    "batch norm after flattening": (
        (1, 3, 3),
        (nn.Conv2d(1, 3, 2), relu(), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4), relu(), nn.Linear(4, 2)),
    ),
    "nested": ((5,), (nn.Sequential(nn.Linear(5, 7), relu()), nn.Sequential(nn.Sequential(nn.Linear(7, 2))))),
}


@pytest.mark.parametrize("name", NETS)
def test_rescaled_modules_keep_function_and_path_norm(name):
    shape, built = NETS[name]
    net = randomised(nn.Sequential(*copy.deepcopy(built)))
    before, x = copy.deepcopy(net.state_dict()), normal(8, *shape)
    other = rescale_nodes(net, generator(3), scale=1.5)
    # Nothing of the model is shared or changed.
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert not {q.data_ptr() for q in net.parameters()} & {q.data_ptr() for q in other.parameters()}
    expected, got = net(x), other(x)
    assert (got - expected).norm() < 1e-12 * expected.norm()
    for p, bias in itertools.product((1, 2, 3), (False, True)):
        assert path_sum(other, p, input_shape=shape, bias=bias).item() == pytest.approx(
            path_sum(net, p, input_shape=shape, bias=bias).item(), rel=1e-12
        )
    # The weights do change, and rescaling a bias is part of it.
    weights = [[m.weight for m in other_or.modules() if hasattr(m, "weight")] for other_or in (net, other)]
    changed = [not torch.allclose(a, b, rtol=0.05) for a, b in zip(*weights, strict=True)]
    assert sum(changed) >= 2
    mutant = copy.deepcopy(other)
    mutant.load_state_dict({k: before[k] if "bias" in k else v for k, v in other.state_dict().items()})
    if any("bias" in k for k in before):
        assert (mutant(x) - expected).norm() > 1e-3 * expected.norm()


def test_a_rescaled_model_keeps_mode_and_flags():
    net = randomised(nn.Sequential(nn.Linear(3, 4), relu(), nn.Linear(4, 2)))
    net[0].weight.requires_grad_(False)
    other = rescale_nodes(net.train(), generator())
    assert other.training
    assert [q.requires_grad for q in other.parameters()] == [False, True, True, True]


def test_what_cannot_be_rescaled_is_refused():
    layer = nn.Linear(3, 3)
    for net, words in (
        (nn.Sequential(layer, relu(), layer), "used twice"),
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), relu(), nn.Linear(3, 2)), "no parameter"),
        (
            nn.Sequential(nn.Linear(3, 4), relu(), nn.MaxPool1d(2), nn.Linear(2, 2)),
            "MaxPool1d .* pools different units",
        ),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), relu(), nn.Linear(4, 2)), "affine=False"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), "unsupported layer Tanh"),
    ):
        with pytest.raises(TypeError, match=rf"^model: .*{words}"):
            rescale_nodes(net, generator())
    conv, channels = nn.Conv2d(1, 4, 3), "takes in channels that no Flatten"
    for parts, words in (
        ((conv, relu(), nn.Linear(4, 2)), channels),
        ((conv, relu(), nn.MaxPool2d(2), nn.Linear(4, 2)), channels),
        ((conv, relu(), nn.Flatten(2), nn.Linear(16, 2)), channels),
        ((conv, relu(), nn.Flatten(1, 2), nn.Linear(4, 2)), channels),
        ((conv, relu(), nn.Flatten(0, -1), nn.Linear(16, 2)), channels),
        ((nn.BatchNorm2d(4), nn.Linear(4, 2)), channels),
        ((nn.BatchNorm1d(2), nn.Linear(4, 2)), channels),
        ((nn.Linear(3, 4), relu(), nn.Flatten(), nn.Linear(8, 2)), "takes in units of several positions"),
        ((nn.Linear(3, 4), relu(), nn.Conv1d(4, 2, 1)), "takes in units that are not its channels"),
        ((nn.Linear(3, 4), relu(), nn.BatchNorm1d(2), nn.Linear(4, 2)), "normalises other units"),
    ):
        with pytest.raises(TypeError, match=rf"^model: \w+ \(at '\d'\) {words}"):
            rescale_nodes(nn.Sequential(*parts), generator())
    with pytest.raises(ValueError, match=r"^model: layer '2' \(Linear\) cannot take the units of shape \(4,\)"):
        rescale_nodes(nn.Sequential(nn.Linear(3, 4), relu(), nn.Linear(5, 2)), generator())
    for scale in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^scale: must be a finite number > 0"):
            rescale_nodes(nn.Sequential(layer), generator(), scale=scale)
