"""Norms and ranks layer by layer, against dense matrices and closed forms."""

import copy
import math
import sys

import pytest
import torch
from mutation import mutated
from torch import nn

from implicitreg.measures import LayerNorms, effective_rank, layer_norms, spectral_product
from implicitreg.nets import Residual, gaussian_weights, perceptron

module = sys.modules["implicitreg.measures.layerwise"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU()), nn.Conv2d(4, 6, 2, stride=2)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).double()
    with torch.no_grad():
        for norm in (net[0], net[2]):
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_()
    return net.eval()


def check_layer_norms(measure):
    net = network()
    first, conv, norm = net[0], copy.deepcopy(net[1]), net[2]
    conv.weight.data.mul_((norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None, None, None])
    branch, shortcut = net[4].branch[0], net[4].shortcut
    scale = (first.weight / (first.running_var + first.eps).sqrt()).detach()
    expected = [
        ("0", "BatchNorm2d", scale.diag(), scale.diag()),
        ("1", "Conv2d", conv.weight.flatten(1), unrolled(conv, (2, 7, 7))),
        ("4.branch.0", "Conv2d", branch.weight.flatten(1), unrolled(branch, (4, 7, 7))),
        ("4.shortcut", "Conv2d", shortcut.weight.flatten(1), unrolled(shortcut, (4, 7, 7))),
        ("7", "Linear", net[7].weight, net[7].weight),
    ]
    found = measure(net, input_shape=(2, 7, 7))
    assert [(each.name, each.kind) for each in found] == [row[:2] for row in expected]
    for each, (_, _, weights, whole) in zip(found, expected, strict=True):
        assert isinstance(each, LayerNorms)
        assert math.prod(each.shape) in (weights.numel(), len(weights))
        sigma = torch.linalg.svdvals(weights.detach())
        shares = sigma / sigma.sum()
        numbers = {
            "spectral": torch.linalg.matrix_norm(whole.detach(), 2).item(),
            "frobenius": weights.detach().square().sum().sqrt().item(),
            "stable_rank": (weights.detach().square().sum() / sigma[0] ** 2).item(),
            "effective_rank": math.exp(-sum(s * math.log(s) for s in shares.tolist())),
        }
        for name, number in numbers.items():
            value = getattr(each, name)
            assert value.shape == ()
            assert not value.requires_grad
            assert value.item() == pytest.approx(number, rel=1e-12), (each.name, name)


def unrolled(conv, shape):
    """Return the matrix of a convolution on inputs of some shape."""
    without = copy.deepcopy(conv)
    without.bias = None
    with torch.no_grad():
        return without(torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)).flatten(1).T


def test_norms_of_each_layer():
    check_layer_norms(layer_norms)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("layer.kind == ly.CONV", "False"),
        ("sigma / sigma[..., :1]", "sigma / spectral"),
        (".square().sum(-1)", ".sum(-1)"),
        ("entropy_rank(sigma)", "entropy_rank(sigma.square())"),
        ("sigma[..., 0] * stable.sqrt()", "sigma[..., 0] * stable"),
    ],
)
def test_mutants_are_caught(right, wrong):
    mutant = mutated(module, "layer_norms", right, wrong)
    with pytest.raises(AssertionError):
        check_layer_norms(mutant.layer_norms)


def test_leading_dimensions_are_networks():
    members = [gaussian_weights((5, 4, 3), generator(i)) for i in range(6)]
    batch = [torch.stack(w).unflatten(0, (2, 3)) for w in zip(*members, strict=True)]
    together = layer_norms(batch)
    assert [(each.name, each.kind, each.shape) for each in together] == [
        ("weights[0]", "matrix", (2, 3, 4, 5)),
        ("weights[1]", "matrix", (2, 3, 3, 4)),
    ]
    for i, member in enumerate(members):
        for form in (member, perceptron(member)):
            for each, whole in zip(layer_norms(form), together, strict=True):
                for name in ("spectral", "frobenius", "stable_rank", "effective_rank"):
                    torch.testing.assert_close(getattr(whole, name)[i // 3, i % 3], getattr(each, name))


def test_their_product_is_the_spectral_product():
    net = nn.Sequential(*(layer for layer in network() if not isinstance(layer, Residual)))[:-1]
    norms = layer_norms(net, input_shape=(2, 7, 7))
    product = math.prod(each.spectral.item() for each in norms)
    assert spectral_product(net, input_shape=(2, 7, 7)).item() == pytest.approx(product, rel=1e-12)


def test_closed_forms():
    flat, single = 7 * torch.linalg.qr(torch.randn(4, 4, generator=generator()))[0], torch.ones(3, 4)
    orthogonal, rank_one = layer_norms([flat.double(), single.double()])
    assert orthogonal.stable_rank.item() == pytest.approx(4, rel=1e-6)
    assert orthogonal.effective_rank.item() == pytest.approx(4, rel=1e-6)
    assert orthogonal.spectral.item() == pytest.approx(7, rel=1e-6)
    assert rank_one.stable_rank.item() == pytest.approx(1, rel=1e-12)
    assert rank_one.effective_rank.item() == pytest.approx(1, rel=1e-12)
    # A layer's scale changes its norms alone, whatever the dtype can hold of their squares.
    w = torch.randn(3, 4, generator=generator())
    for scale in (1e-30, 1e30):
        plain, scaled = layer_norms([w])[0], layer_norms([scale * w])[0]
        torch.testing.assert_close(scaled.frobenius, scale * plain.frobenius)
        torch.testing.assert_close(scaled.stable_rank, plain.stable_rank)
        torch.testing.assert_close(scaled.effective_rank, plain.effective_rank)
    assert plain.spectral.dtype == torch.float32
    torch.testing.assert_close(plain.effective_rank, effective_rank(w))


def test_zero_weights_have_no_rank():
    zero = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for w in zero.parameters():
            w.zero_()
    found = layer_norms(zero, input_shape=(1, 4, 4))
    assert len(found) == 2
    for each in found:
        assert each.spectral == each.frobenius == 0
        assert each.stable_rank.isnan()
        assert each.effective_rank.isnan()
    both = layer_norms([torch.stack([torch.zeros(2, 2), torch.eye(2)])])[0]
    assert both.effective_rank.isnan().tolist() == [True, False]


def test_bad_input_is_named():
    net = network()
    with pytest.raises(ValueError, match=r"^input_shape: is needed"):
        layer_norms(net)
    with pytest.raises(ValueError, match=r"^input_shape: layer '7' \(Linear\)"):
        layer_norms(net, input_shape=(2, 9, 9))
    with pytest.raises(TypeError, match=r"^model: unsupported layer Tanh \(at '0'\)"):
        layer_norms(nn.Sequential(nn.Tanh(), nn.Linear(2, 2)))
    with torch.no_grad():
        net[7].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"^model: '7.weight': must be finite"):
        layer_norms(net, input_shape=(2, 7, 7))
    with pytest.raises(TypeError, match=r"^model: must be a torch.nn.Module or a sequence"):
        layer_norms("net")


def test_the_model_is_left_as_it_was():
    net = network().train()
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    expected = layer_norms(net.eval(), input_shape=(2, 7, 7))
    net.train()
    with torch.inference_mode():
        found = layer_norms(net, input_shape=(2, 7, 7))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.spectral, other.spectral)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(part.training for part in net.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
