"""Modules with a forward of their own: the layers found compute the same, and measures agree with references."""

import copy
import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from implicitreg.dynamics import PathSGD
from implicitreg.measures import (
    capacities,
    frobenius_product,
    input_gradients,
    layer_norms,
    path_norm,
    rescale_nodes,
    segment_profile,
    spectral_product,
)
from implicitreg.nets import Residual, log_path_sum, path_scales, path_sum
from implicitreg.nets import layers as ly


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(net, seed=0):
    """Return the net in float64, every parameter and running statistic drawn, in evaluation mode."""
    net, g = net.double(), generator(seed)
    with torch.no_grad():
        for q in net.parameters():
            fan = max(1, q[0].numel()) if q.ndim > 1 else 1
            q.copy_(torch.randn(q.shape, generator=g, dtype=torch.float64) / fan**0.5)
        for name, b in net.named_buffers():
            if b.is_floating_point():
                noise = torch.randn(b.shape, generator=g, dtype=torch.float64)
                b.copy_(noise.square() + 0.1 if "var" in name else noise)
    return net.eval()


def computed(net, x, kinds=ly.PIECEWISE_LINEAR):
    """Return what the layers that were found make of an input, one after the other."""
    skips = []
    for _, module, kind in list(ly.modules(net, kinds=kinds)):
        if kind == ly.BRANCH:
            skips.append(x)
        elif kind == ly.SHORTCUT:
            skips[-1], x = x, skips[-1]
        elif kind == ly.JOIN:
            x = x + skips.pop()
        else:
            x = copy.deepcopy(module).eval()(x.clone())
    assert not skips
    return x


# Networks as everybody writes them


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.drop = nn.Dropout(0.2)

    def forward(self, x, features=False):
        x = F.relu(self.fc1(x.view(x.size(0), -1)))
        x = F.dropout(x, p=0.5, training=self.training)
        h = torch.relu(self.fc2(self.drop(x)))
        if features:
            return h
        return self.fc3(h)


class LeNet(nn.Module):
    """Functions for everything; the flattening by a number of units."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(4 * 2 * 2, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x), inplace=True), kernel_size=2, stride=2)
        x = x.view(-1, 4 * 2 * 2)
        x = self.fc1(x).relu_()
        return self.fc2(x)


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        built, channels = [], 2
        for width in (4, "M", 6, 6, "M"):
            if width == "M":
                built.append(nn.MaxPool2d(2, 2))
            else:
                built += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*built)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(nn.Linear(24, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 3))

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        inner = max(1, outputs // 2)
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(torch.add(self.shortcut(x), self.bn3(self.conv3(out))))


class PreActivation(nn.Module):
    """The shortcut starts behind the first activation where it has weights, else before it."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return shortcut + out


class ResNet(nn.Module):
    """As ResNet-18, narrow: a stem, two stages of two blocks, global average pooling."""

    def __init__(self, block):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3, 1, 1, bias=False), nn.BatchNorm2d(3)
        self.layer1 = nn.Sequential(block(3, 3), block(3, 3))
        self.layer2 = nn.Sequential(block(3, 4, 2), block(4, 4))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        x = self.avgpool(x)
        return self.fc(x.reshape(x.shape[0], -1))


NETWORKS = {
    "perceptron": (Perceptron, (6,)),
    "LeNet": (LeNet, (1, 10, 10)),
    "VGG": (VGG, (2, 9, 8)),
    "ResNet": (lambda: ResNet(BasicBlock), (2, 6, 6)),
    "bottleneck": (lambda: ResNet(Bottleneck), (2, 6, 6)),
    "pre-activation": (lambda: ResNet(PreActivation), (2, 6, 6)),
}
EACH = pytest.mark.parametrize("name", NETWORKS)


def made(name, seed=0):
    build, shape = NETWORKS[name]
    return randomised(build(), seed), shape


def inputs(*shape, seed=5):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


# The layers compute the same


@EACH
@pytest.mark.parametrize("training", [False, True])
def test_the_layers_compute_what_the_network_does(name, training):
    net, shape = made(name)
    x = inputs(7, *shape)
    expected = net(x.clone())
    torch.testing.assert_close(computed(net.train(training), x), expected, rtol=1e-12, atol=1e-12)
    # Inside of other modules too.
    torch.testing.assert_close(computed(nn.Sequential(nn.Identity(), net), x), expected, rtol=1e-12, atol=1e-12)


def test_layers_have_the_names_of_their_modules():
    net, _ = made("ResNet")
    names = {module: name for name, module in net.named_modules()}
    found = list(ly.modules(net))
    weighted = [(name, module) for name, module, kind in found if kind <= ly.BATCH_NORM]
    assert all(names[module] == name for name, module in weighted)
    assert {module for _, module in weighted} == {m for m in names if next(m.parameters(False), None) is not None}
    blocks = [(name, type(m).__name__) for name, m, kind in found if kind == ly.JOIN]
    assert blocks == [(f"layer{i}.{j}", "BasicBlock") for i in (1, 2) for j in (0, 1)]
    outer = nn.Sequential(nn.Identity(), net)
    assert [name for name, _, _ in ly.modules(outer)][1:] == [f"1.{name}" for name, _, _ in found]


class Grown(nn.Module):
    """A network of layers and sums that are drawn: written as a tree, which the forward follows."""

    def __init__(self, seed):
        super().__init__()
        g = generator(seed)

        def draw(n):
            return int(torch.randint(n, (), generator=g))

        def grown(depth):
            choice = draw(9) if depth else draw(5)
            if choice == 0:
                return self.add(nn.Linear(4, 4))
            if choice == 1:
                return self.add(nn.ReLU(inplace=bool(draw(2))))
            if choice < 5:
                functions = (
                    F.relu,
                    torch.relu_,
                    lambda x: x.flatten(1),
                    lambda x: x,
                    lambda x: F.relu(x, inplace=True),
                )
                return functions[draw(5)]
            if choice < 7:
                parts = [grown(depth - 1) for _ in range(1 + draw(3))]
                return lambda x: self.chained(parts, x)
            one, other, way = grown(depth - 1), grown(depth - 1), draw(4)
            return lambda x: self.summed(one(x), other(x), way)

        self.parts = nn.ModuleList()
        self.first = nn.Linear(4, 4)
        self.tree = [grown(3) for _ in range(3)]

    def add(self, module):
        self.parts.append(module)
        return lambda x: module(x)

    @staticmethod
    def chained(parts, x):
        for part in parts:
            x = part(x)
        return x

    @staticmethod
    def summed(one, other, way):
        if way == 0:
            return one + other
        if way == 1:
            return torch.add(other, one)
        if way == 2:
            one += other
            return one
        return one.add(other)

    def forward(self, x):
        return self.chained(self.tree, self.first(x))


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_whatever_is_understood_is_understood_rightly(start):
    """Among others where values are changed in place, under all of their names."""
    x, understood = inputs(5, 4), 0
    for seed in range(start, start + 50):
        net = randomised(Grown(seed), seed)
        expected = net(x.clone()).detach()
        try:
            found = computed(net, x).detach()
        except TypeError as error:
            refusal = str(error)
            if not re.search("changes in place what it uses elsewhere|not nested", refusal):
                raise
        else:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
            understood += 1
    assert understood >= 30


# Measures, against references that do not know of layers


def squared(net):
    """Return a copy whose forward adds up paths: every weight and every scale of a batch norm squared, no shifts."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.weight.copy_(m.weight.square() / (m.running_var + m.eps))
                m.running_var.fill_(1 - m.eps)
                m.running_mean.zero_()
            elif isinstance(m, nn.Linear | nn.Conv2d):
                m.weight.square_()
            if getattr(m, "bias", None) is not None:
                m.bias.zero_()
    return net


@EACH
def test_path_norms_by_a_forward_pass_with_squared_weights(name):
    for seed in range(3):
        net, shape = made(name, seed)
        with torch.no_grad():
            total = squared(net)(torch.ones(1, *shape, dtype=torch.float64)).sum().item()
        # Averages of k inputs have weights 1/k, whose squares make the mean 1/k as large. VGG averages the 2 by 2
        # positions that are left one by one.
        total /= {"perceptron": 1, "LeNet": 4, "VGG": 1}.get(name, 9)
        given = None if name == "perceptron" else shape
        assert path_sum(net, input_shape=given).item() == pytest.approx(total, rel=1e-12)
        assert log_path_sum(net, input_shape=shape).item() == pytest.approx(math.log(total), rel=1e-12, abs=1e-12)
        assert path_norm(net, input_shape=shape).item() == pytest.approx(total**0.5, rel=1e-12)


def unrolled(module, shape):
    """Return the matrix of the linear part of a module on inputs of some shape."""
    with torch.no_grad():
        basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return (module(basis) - module(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_spectral_products_by_dense_matrices(block):
    net = randomised(ResNet(block))
    x = inputs(1, 2, 6, 6)

    def norm(*modules, at):
        return torch.linalg.matrix_norm(unrolled(nn.Sequential(*modules), tuple(at.shape[1:])), 2).item()

    expected = norm(net.conv1, net.bn1, at=x) * torch.linalg.matrix_norm(net.fc.weight.detach(), 2).item()
    h = net.bn1(net.conv1(x))
    for part in (*net.layer1, *net.layer2):
        main, a = 1.0, h
        for i in (1, 2, 3)[: 2 if block is BasicBlock else 3]:
            pair = getattr(part, f"conv{i}"), getattr(part, f"bn{i}")
            main *= norm(*pair, at=a)
            a = pair[1](pair[0](a))
        beside = part.downsample if block is BasicBlock else part.shortcut
        expected *= main + (norm(*beside, at=h) if beside else 1)
        h = part(h.clone())
    value = spectral_product(net, input_shape=(2, 6, 6)).item()
    assert value == pytest.approx(expected, rel=1e-10)
    a, b = inputs(2, 100, 2, 6, 6)
    with torch.no_grad():
        slopes = (net(a.clone()) - net(b.clone())).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
    assert (slopes <= value).all()


@EACH
def test_layers_have_norms(name):
    net, shape = made(name)
    found = layer_norms(net, input_shape=shape)
    names = [part for part, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert [each.name for each in found if each.kind != "BatchNorm2d"] == names
    product = math.prod(each.frobenius.item() for each in found)
    assert frobenius_product(net).item() == pytest.approx(product, rel=1e-12)


@EACH
def test_capacities_are_those_of_the_norms(name):
    net, shape = made(name)
    x = inputs(40, *shape)
    with torch.no_grad():
        y = net(x.clone()).argmax(1)
    c = capacities(net, x, y)
    torch.testing.assert_close(c.l2_path * c.margin.square(), path_sum(net, input_shape=shape).detach())
    torch.testing.assert_close(c.spectral * c.margin.square(), spectral_product(net, input_shape=shape).square())


@pytest.mark.parametrize("name", ["perceptron", "ResNet", "bottleneck", "pre-activation"])
def test_segments_and_gradients(name):
    net, shape = made(name)
    x = inputs(3, *shape).requires_grad_()
    z = net(x.clone())
    expected = torch.stack([torch.autograd.grad(f.sum(), x, retain_graph=True)[0].flatten(1) for f in z.T], 1)
    torch.testing.assert_close(input_gradients(net, x.detach()), expected, rtol=1e-10, atol=1e-10)
    profile = segment_profile(net, x[0].detach(), x[1].detach())
    with torch.no_grad():
        torch.testing.assert_close(profile.ends, z[:2].detach(), rtol=1e-10, atol=1e-10)
        points = torch.lerp(x[0], x[1], profile.t.reshape(-1, *[1] * len(shape)))
        torch.testing.assert_close(profile.outputs, net(points.clone()), rtol=1e-9, atol=1e-9)
    assert len(profile) >= 3


def test_path_scales_and_what_uses_them():
    net, shape = made("LeNet")
    x = inputs(1, *shape)
    scales = path_scales(net, input_shape=shape)
    assert list(scales) == [name for name, _ in net.named_parameters()]
    total = path_sum(net, input_shape=shape, bias=True)
    grads = torch.autograd.grad(total, list(net.parameters()))
    for w, k, g in zip(net.parameters(), scales.values(), grads, strict=True):
        torch.testing.assert_close(2 * w * k, g, rtol=1e-10, atol=1e-12)
    optimiser = PathSGD(net, lr=0.1, input_shape=shape)
    net(x).sum().backward()
    before = net.fc2.weight.detach().clone()
    optimiser.step()
    step = 0.1 * net.fc2.weight.grad / scales["fc2.weight"]
    torch.testing.assert_close(before - net.fc2.weight, step, rtol=1e-10, atol=1e-14)


def test_a_layer_that_is_not_used_is_on_no_path():
    net = made("perceptron")[0]
    expected = path_scales(net)
    net.auxiliary = nn.Linear(7, 2)
    scales = path_scales(net)
    assert (scales.pop("auxiliary.weight") == 0).all()
    assert (scales.pop("auxiliary.bias") == 0).all()
    assert all(torch.equal(scales[key], expected[key]) for key in expected)


def test_units_are_rescaled():
    for name, shape in (("perceptron", (6,)), ("LeNet", (1, 10, 10))):
        net, _ = made(name)
        other = rescale_nodes(net, generator(1))
        x = inputs(4, *shape)
        torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
        assert frobenius_product(other) > 1.01 * frobenius_product(net)
        torch.testing.assert_close(path_norm(other, input_shape=shape), path_norm(net, input_shape=shape))
    with pytest.raises(TypeError, match=r"^model: BasicBlock \(at 'layer1\.0'\) adds its units to others"):
        rescale_nodes(made("ResNet")[0], generator())


# Small forwards


class Forward(nn.Module):
    """Four layers and a function of them and the input."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function = function
        self.a, self.b, self.c = (*parts, *[nn.Linear(4, 4) for _ in range(3 - len(parts))])
        self.register_buffer("passes", torch.zeros(()))
        self.ways = nn.ModuleList([nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)])
        self.seen = []

    def forward(self, x, *, unused=None):
        return self.function(self, x)


class Product(nn.Module):
    def forward(self, x, y):
        return x * y


class Sum(nn.Module):
    def forward(self, x, y):
        return x + y


def in_place_on_a_view(m, x):
    y = m.a(x)
    z = y.flatten(1)
    y.relu_()
    return m.b(z)


def in_place_before_a_skip(m, x):
    x = m.a(x)
    y = F.relu(x, inplace=True)
    return x + m.b(y)


def in_place_without_a_name(m, x):
    x = m.a(x)
    skip = x
    x.relu_()
    x.add_(m.b(x))
    return skip + m.c(x)


def sum_under_another_name(m, x):
    skip = x = m.a(x)
    x += m.b(x)
    return skip + m.c(x)


def repeated(m, x):
    for layer in m.ways:
        x = layer(x)
    return x


def three_ways(m, x):
    return x + m.a(x) + m.b(m.c(x).relu())


def counted(m, x):
    m.passes += 1
    m.seen.append(x)
    m.last = m.a(x)
    return m.last


FORWARDS = {
    "nothing": lambda m, x: m.a(x).contiguous(),
    "by keyword": lambda m, x: m.a(input=x),
    "flattened": lambda m, x: m.a(torch.flatten(x, start_dim=1)),
    "reshaped": lambda m, x: m.a(x.reshape(x.size()[0], -1)),
    "reshaped by a tuple": lambda m, x: m.a(x.reshape((x.shape[0], -1))),
    "by units": lambda m, x: m.a(x.view(-1, 4)),
    "by batch and units": lambda m, x: m.a(x.view(x.size(0), 4)),
    "leaky": lambda m, x: F.leaky_relu(m.a(x), 0.3),
    "doubled": lambda m, x: (lambda y: y + y)(m.a(x)),
    "subtree twice": lambda m, x: (lambda y: y + m.b(y))(m.a(x).relu()),
    "not computed in evaluation": lambda m, x: m.a(x).sigmoid() if m.training else m.a(x),
    "clone": lambda m, x: (lambda y: y.clone().relu_() + m.b(y))(m.a(x)),
    "dead": lambda m, x: (m.b(x).exp(), m.a(x))[1],
    "shared": lambda m, x: m.a(m.a(x).relu()),
    "in the middle": lambda m, x: m.b(m.a(x) + m.c(m.a(x))),
    "parts with two arguments": lambda m, x: m.c(m.a(x), m.b(x)),
    "before a skip": in_place_before_a_skip,
    "without a name": in_place_without_a_name,
    "under another name": sum_under_another_name,
    "a list": repeated,
    "three ways": three_ways,
    "counted": counted,
}


@pytest.mark.parametrize("name", FORWARDS)
def test_small_forwards(name):
    parts = [nn.Linear(4, 4), nn.Linear(4, 4), Sum()] if "arguments" in name else []
    net = randomised(Forward(FORWARDS[name], *parts))
    x = inputs(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(computed(net, x), net(x.clone()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: F.max_pool1d(x, 2, 1), (2, 6)),
        (lambda x: F.max_pool2d(x, kernel_size=3, stride=2, padding=1, ceil_mode=True), (2, 6, 6)),
        (lambda x: F.max_pool3d(x, 2), (1, 4, 4, 4)),
        (lambda x: F.avg_pool1d(x, 3, 1, 1, False, False), (2, 6)),
        (lambda x: F.avg_pool2d(x, (2, 3), divisor_override=5), (2, 6, 6)),
        (lambda x: F.avg_pool3d(x, 2), (1, 4, 4, 4)),
        (lambda x: F.adaptive_avg_pool1d(x, 3), (2, 7)),
        (lambda x: F.adaptive_avg_pool2d(x, (2, None)), (2, 5, 4)),
        (lambda x: F.adaptive_avg_pool3d(x, 2), (1, 4, 4, 4)),
        (lambda x: F.adaptive_max_pool1d(x, output_size=3), (2, 7)),
        (lambda x: F.adaptive_max_pool2d(x, 2), (2, 5, 5)),
        (lambda x: F.adaptive_max_pool3d(x, 2), (1, 4, 4, 4)),
        (lambda x: x.mean((2, 3)), (2, 5, 4)),
        (lambda x: torch.mean(x, dim=[3, 2]), (2, 5, 4)),
        (lambda x: x.mean((2, 3), keepdim=True), (2, 5, 4)),
        (lambda x: x.mean([2, 3, 4]), (2, 3, 3, 2)),
        (lambda x: F.dropout2d(x, training=False), (2, 5, 4)),
        (lambda x: torch.dropout(x, 0.5, False), (2, 5, 4)),
    ],
)
def test_functions_are_the_layers_of_their_names(function, shape):
    net = Forward(lambda m, x: function(x))
    x = inputs(3, *shape)
    torch.testing.assert_close(computed(net.double(), x), function(x), rtol=1e-13, atol=0)


def test_a_wrong_number_of_units_is_told():
    net = Forward(lambda m, x: m.a(m.b(x).view(-1, 2)), nn.Linear(2, 3), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"^model: layer 'view' \(Flattened\) cannot take the units of shape \(4,\)"):
        path_sum(net)


def test_a_residual_block_of_a_sequence_and_of_ones_own_are_the_same():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    class Skip(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    own, ours = nn.Sequential(nn.Linear(3, 4), Skip(*branch)), nn.Sequential(nn.Linear(3, 4), Residual(branch))
    ours[0] = own[0]
    assert [kind for _, _, kind in ly.modules(own)] == [kind for _, _, kind in ly.modules(ours)]
    assert torch.equal(path_norm(own), path_norm(ours))
    inside = Forward(lambda m, x: m.b(m.a(x)), Residual(branch, nn.Linear(4, 4)))
    x = inputs(2, 4)
    torch.testing.assert_close(computed(inside.double(), x), inside(x))


def test_subclasses_of_a_residual_block_are_residual_blocks():
    class Named(Residual):
        pass

    class Own(Residual):
        def forward(self, x):
            return x + self.branch(x)

    torch.manual_seed(0)
    branch = nn.Linear(4, 4)
    expected = [(name, kind) for name, _, kind in ly.modules(Residual(branch))]
    assert [(name, kind) for name, _, kind in ly.modules(Named(branch))] == expected
    assert [(name, kind) for name, _, kind in ly.modules(Own(branch))] == expected
    outer = Forward(lambda m, x: m.b(m.a(x)), Named(branch))
    x = inputs(2, 4)
    torch.testing.assert_close(computed(outer.double(), x), outer(x))


def test_shared_layers_are_refused_where_they_were():
    net = Forward(FORWARDS["shared"])
    assert path_sum(net) > 0
    with pytest.raises(TypeError, match=r"^model: a layer that is used twice shares its weights"):
        path_scales(net)


# Refusals


def values(m, x):
    return m.a(x) if x.sum() > 0 else m.b(x)


def shapes(m, x):
    return m.a(x) if x.shape[0] > 3 else m.b(x)


def dense(m, x):
    a = m.a(x)
    b = m.b(a) + x
    return m.b(b) + a


def constant(m, x):
    return m.a(x) + torch.ones(4)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: torch.cat([m.a(x), x], 1), r"calls cat"),
        (lambda m, x: m.a(x).tanh(), r"calls tanh"),
        (lambda m, x: F.gelu(m.a(x)), r"calls gelu"),
        (lambda m, x: torch.log2(m.a(x)), r"calls log2"),
        (lambda m, x: F.linear(m.a(x), m.b.weight), r"calls linear"),
        (lambda m, x: m.a(x) * m.b(x), r"calls mul"),
        (lambda m, x: m.a(x) - x, r"calls sub"),
        (lambda m, x: 2 * m.a(x), r"calls mul"),
        (lambda m, x: m.a(x) + 1, r"calls add with what no layer returned"),
        (lambda m, x: m.a(x) + m.b.bias, r"calls add with what no layer returned"),
        (lambda m, x: m.a(x).add(x, alpha=2), r"calls add with other arguments than two tensors"),
        (lambda m, x: torch.add(m.a(x), x, out=m.b(x)), r"calls add with other arguments"),
        (lambda m, x: m.a(x)[:, :2], r"calls getitem"),
        (lambda m, x: m.a(x).T, r"calls getattr"),
        (lambda m, x: m.a(torch.flatten(x)), r"calls flatten other than with a start_dim >= 1"),
        (lambda m, x: m.a(x).view(-1), r"calls view other than to flatten everything but the batch"),
        (lambda m, x: m.a(x).view(2, -1), r"calls view other than"),
        (lambda m, x: m.a(x).reshape(x.size(1), -1), r"calls reshape other than"),
        (lambda m, x: m.a(x).view(-1, x.size(1)), r"calls view other than"),
        (lambda m, x: m.a(x).mean(1), r"calls mean other than over all positions"),
        (lambda m, x: F.dropout(m.a(x)), r"calls dropout, which stays active in evaluation mode"),
        (lambda m, x: F.avg_pool1d(m.a(x), x.size(1)), r"calls avg_pool1d with arguments that are no constants"),
        (lambda m, x: F.max_pool1d(m.a(x), 2, return_indices=True)[0], r"calls getitem|calls max_pool1d"),
        (lambda m, x: (m.a(x), x), r"returns something else than one tensor"),
        (lambda m, x: None, r"returns something else than one tensor"),
        (lambda m, x: m.c(m.a(x), x), r"calls mul"),
        (values, r"cannot be followed: .*control flow"),
        (shapes, r"cannot be followed: .*control flow"),
        (dense, r"has skip connections that are not nested"),
        (constant, r"cannot be followed: a tensor is neither its input nor the result of a layer"),
        (in_place_on_a_view, r"calls b|changes in place what it uses elsewhere"),
        (lambda m, x: m.a(x).mul_(2), r"calls mul_"),
        (lambda m, x: (m.a(x), m.b(x))[0].float(), r"calls float"),
        (lambda m, x: m.nothing(x), r"cannot be followed: .*no attribute 'nothing'"),
        (lambda m, x: m.a(x, x), r"calls 'a' with more than one argument|cannot be followed"),
    ],
)
@pytest.mark.parametrize("measure", [path_sum, lambda net: spectral_product(net, input_shape=(4,))])
def test_what_is_not_understood_is_named(function, reason, measure):
    net = Forward(function, nn.Linear(4, 4), nn.Linear(4, 4), Product())
    with pytest.raises(TypeError, match=rf"^model: unsupported layer \w+.*: its forward ({reason}).*; supported"):
        measure(net)
    with pytest.raises(TypeError, match=r"^model: unsupported layer (Forward|Product) \(at '1(\.c)?'\): its forward"):
        measure(nn.Sequential(nn.Identity(), net))


def test_unsupported_layers_inside_are_named_with_their_place():
    class Inner(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(x)

    for part in (nn.Tanh(), nn.LayerNorm(4), nn.LazyLinear(3), nn.LSTM(4, 4), nn.ConvTranspose1d(4, 4, 1)):
        net, name = nn.Sequential(nn.Linear(4, 4), Inner(Inner(part))), type(part).__name__
        with pytest.raises(TypeError, match=rf"^model: unsupported layer {name} \(at '1\.part\.part'\);"):
            path_sum(net)
    with pytest.raises(TypeError, match=r"^model: unsupported layer Inner \(at '1\.part'\): its forward calls exp"):
        path_sum(nn.Sequential(nn.Linear(4, 4), Inner(Inner(lambda x: x.exp()))))
    with pytest.raises(TypeError, match=r"its forward calls leaky_relu; supported"):
        path_sum(Forward(FORWARDS["leaky"]))


def test_other_modules_without_layers():
    class Nothing(nn.Module):
        def forward(self):
            return 1

    class Missing(nn.Module):
        pass

    for net in (Nothing(), Missing(), nn.ModuleList([nn.Linear(2, 2)])):
        with pytest.raises(TypeError, match=rf"^model: unsupported layer {type(net).__name__}"):
            path_sum(net)
    replaced = Forward(FORWARDS["nothing"])
    replaced.forward = lambda x: x
    with pytest.raises(TypeError, match=r"its forward has been replaced"):
        path_sum(replaced)
    with pytest.raises(ValueError, match=r"^model: must have at least one layer with weights"):
        path_sum(Forward(lambda m, x: x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"^model: unsupported layer RecursiveScriptModule; supported"):
        path_sum(script)
    with pytest.raises(TypeError, match=r"^model: unsupported layer OptimizedModule"):
        path_sum(torch.compile(made("perceptron")[0], backend="eager"))


# The model is left alone


@EACH
def test_nothing_is_changed(name):
    net, shape = made(name)
    net.train()
    next(net.children()).eval()
    calls = []
    for part in net.modules():
        part.register_forward_hook(lambda *_: calls.append(1))
        part.register_forward_pre_hook(lambda *_: calls.append(1))
        part.register_full_backward_hook(lambda *_: None)
    for i, w in enumerate(net.parameters()):
        w.grad = torch.full_like(w, i)
    before, modes = copy.deepcopy(net.state_dict()), [part.training for part in net.modules()]
    attributes = [{key: id(value) for key, value in vars(part).items()} for part in net.modules()]
    state = torch.random.get_rng_state()
    path_norm(net, input_shape=shape)
    spectral_product(net, input_shape=shape)
    assert not calls
    assert [part.training for part in net.modules()] == modes
    assert [{key: id(value) for key, value in vars(part).items()} for part in net.modules()] == attributes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all((w.grad == i).all() for i, w in enumerate(net.parameters()))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_a_forward_pass_stores_or_draws_is_not_kept():
    def draws(m, x):
        torch.rand(3)
        return counted(m, x)

    for function in (counted, draws):
        net = Forward(function)
        net.last = "nothing"
        state, buffer = torch.random.get_rng_state(), net.passes
        path_norm(net)
        assert net.passes is buffer
        assert net.passes == 0
        assert net.seen == []
        assert net.last == "nothing"
        assert torch.equal(torch.random.get_rng_state(), state)

    def fails(m, x):
        m.last = x
        raise ValueError("no")

    net = Forward(fails).train()
    with pytest.raises(TypeError, match="its forward cannot be followed: no"):
        path_norm(net)
    assert not hasattr(net, "last")
    assert all(part.training for part in net.modules())


def test_nothing_goes_stale():
    net = Forward(lambda m, x: m.b(m.a(x).relu()))
    before = path_norm(net).item()
    net.a = nn.Linear(2, 4)
    assert path_norm(net).item() != before
    net.function = lambda m, x: m.b(x)
    assert path_norm(net).item() == pytest.approx(net.b.weight.square().sum().sqrt().item())
