"""Path sums: against all paths enumerated, against the dense matrices that each layer is, and their derivatives."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from implicitreg.measures import capacities, group_norm, path_norm, spectral_product
from implicitreg.nets import (
    ReLURecurrent,
    Residual,
    gaussian_weights,
    log_path_sum,
    path_scales,
    path_sum,
    perceptron,
    shared_path_scales,
)
from implicitreg.nets import layers as ly

POWERS = (1, 1.5, 2, 3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(net, seed=0):
    """Return the net in float64, every parameter and running statistic drawn, in evaluation mode."""
    net, g = net.double(), generator(seed)
    with torch.no_grad():
        for q in net.parameters():
            q.copy_(torch.randn(q.shape, generator=g, dtype=torch.float64))
        for name, b in net.named_buffers():
            if b.is_floating_point():
                noise = torch.randn(b.shape, generator=g, dtype=torch.float64)
                b.copy_(noise.square() + 0.1 if "var" in name else noise)
    return net.eval()


def mlp(*sizes, bias=True, seed=0):
    built = []
    for a, b in itertools.pairwise(sizes):
        built += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return randomised(nn.Sequential(*built[:-1]), seed)


def enumerated(weights, p, biases=None):
    """Return the sum over all paths, one by one."""
    sizes = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    total = 0.0
    for path in itertools.product(*(range(h) for h in sizes)):
        total += math.prod(
            abs(w[j, i].item()) ** p for w, (i, j) in zip(weights, itertools.pairwise(path), strict=True)
        )
    for start, b in enumerate(biases or ()):
        for path in itertools.product(*(range(h) for h in sizes[start + 1 :])):
            edges = zip(weights[start + 1 :], itertools.pairwise(path), strict=True)
            total += abs(b[path[0]].item()) ** p * math.prod(abs(w[j, i].item()) ** p for w, (i, j) in edges)
    return total


def flat_layers(net):
    for module in net.children() if isinstance(net, nn.Sequential) else (net,):
        if isinstance(module, nn.Sequential):
            yield from flat_layers(module)
        else:
            yield module


def unrolled(net, shape, p, *, bias=False):
    """Return the path sum from the dense matrix of every layer: its outputs on an identity basis."""
    sums, shape = torch.ones(math.prod(shape), dtype=torch.float64), tuple(shape)
    maps = []
    # A batch norm is folded where it follows a layer with weights: that pair is one affine map.
    for module in flat_layers(net):
        if isinstance(module, nn.ReLU | nn.MaxPool2d | nn.AdaptiveMaxPool2d):
            maps.append([module])
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and maps and hasattr(maps[-1][-1], "weight"):
            maps[-1].append(module)
        elif not isinstance(module, nn.Dropout | nn.Identity):
            maps.append([module])
    for group in maps:
        if isinstance(group[0], nn.ReLU):
            continue
        if isinstance(group[0], nn.MaxPool2d | nn.AdaptiveMaxPool2d):
            image = group[0](sums.reshape(1, *shape))
            sums, shape = image.flatten(), tuple(image.shape[1:])
            continue
        with torch.no_grad():
            apply = nn.Sequential(*group)
            basis = torch.eye(len(sums), dtype=torch.float64).reshape(len(sums), *shape)
            shift = apply(torch.zeros(1, *shape, dtype=torch.float64))
            matrix = (apply(basis) - shift).flatten(1).T
        sums = matrix.abs().pow(p) @ sums + (shift.flatten().abs().pow(p) if bias else 0)
        shape = tuple(shift.shape[1:])
    return sums.sum().item()


# Multilayer perceptrons


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("sizes", [(3, 4, 5, 2), (4, 3), (2, 3, 3, 2, 1)])
def test_path_sum_is_the_sum_over_all_paths(sizes, p):
    net = mlp(*sizes)
    weights, biases = ([getattr(m, k) for m in net if isinstance(m, nn.Linear)] for k in ("weight", "bias"))
    for bias in (False, True):
        expected = enumerated(weights, p, biases if bias else None)
        assert path_sum(net, p, bias=bias).item() == pytest.approx(expected, rel=1e-12)
        assert path_sum(net, p, input_shape=(sizes[0],), bias=bias).item() == pytest.approx(expected, rel=1e-12)
        assert log_path_sum(net, p, bias=bias).item() == pytest.approx(math.log(expected), rel=1e-12)
    assert path_sum([w.detach() for w in weights], p).item() == pytest.approx(enumerated(weights, p), rel=1e-12)


def test_signed_weights_would_be_another_number():
    weights = gaussian_weights((3, 4, 5, 2), generator())
    signed = torch.ones(3, dtype=torch.float64)
    for w in weights:
        signed = w.pow(3) @ signed
    assert signed.sum().item() != pytest.approx(enumerated(weights, 3), rel=0.1)


@pytest.mark.parametrize("p", POWERS)
def test_leading_dimensions_are_networks(p):
    batches = [
        torch.stack(w) for w in zip(*(gaussian_weights((3, 5, 4, 2), generator(i)) for i in range(6)), strict=True)
    ]
    nested = [w.unflatten(0, (2, 3)) for w in batches]
    for function in (path_sum, log_path_sum):
        single = torch.stack([function([w[i] for w in batches], p) for i in range(6)])
        torch.testing.assert_close(function(batches, p), single, rtol=1e-13, atol=0)
        torch.testing.assert_close(function(nested, p), single.reshape(2, 3), rtol=1e-13, atol=0)
        torch.testing.assert_close(function(batches, p, input_shape=(3,)), single, rtol=1e-13, atol=0)
        # A layer that all networks share.
        shared = [batches[0][0], *batches[1:]]
        single = torch.stack([function([shared[0], *(w[i] for w in shared[1:])], p) for i in range(6)])
        torch.testing.assert_close(function(shared, p), single, rtol=1e-13, atol=0)


# Convolutions, pooling, batch norms


def conv_nets():
    relu = nn.ReLU
    yield "padding", (1, 6, 6), (nn.Conv2d(1, 3, 3, padding=1), relu(), nn.Conv2d(3, 2, 3, padding=1))
    yield (
        "stride and dilation",
        (2, 9, 8),
        (
            nn.Conv2d(2, 3, 3, stride=2, padding=(2, 1)),
            relu(),
            nn.Conv2d(3, 2, (2, 3), dilation=(2, 1)),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
    )
    yield "groups", (4, 5, 5), (nn.Conv2d(4, 6, 2, groups=2, bias=False), relu(), nn.Conv2d(6, 6, 3, groups=6))
    yield "same", (1, 5, 5), (nn.Conv2d(1, 2, (3, 5), padding="same"), relu(), nn.Conv2d(2, 2, 2, padding="valid"))
    yield "one dimension", (2, 11), (nn.Conv1d(2, 3, 3, padding=1), relu(), nn.AvgPool1d(3, 2, 1), nn.Conv1d(3, 2, 2))
    yield (
        "three dimensions",
        (1, 4, 4, 4),
        (nn.Conv3d(1, 2, 3, padding=1), relu(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(16, 2)),
    )
    head = (nn.Conv2d(1, 3, 3, padding=1), relu())
    tail = (nn.Flatten(), nn.LazyLinear(2))
    for pool in (
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d((2, 3), stride=(1, 2), divisor_override=5),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveAvgPool2d((2, None)),
        nn.AdaptiveAvgPool2d(1),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.AdaptiveMaxPool2d(3),
    ):
        yield repr(pool), (1, 7, 8), (*head, pool, *copy.deepcopy(tail))
    yield "uneven windows in one dimension", (3, 7), (nn.AdaptiveAvgPool1d(3), nn.Conv1d(3, 2, 2))
    yield "uneven windows in three", (1, 3, 5, 4), (nn.AdaptiveAvgPool3d((2, 3, 3)), nn.Conv3d(1, 2, 2))
    yield (
        "norm folded",
        (1, 5, 5),
        (
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            relu(),
            nn.Flatten(),
            nn.Linear(27, 4, bias=False),
            nn.BatchNorm1d(4),
            relu(),
            nn.Linear(4, 2),
        ),
    )
    yield (
        "norm folded past identity",
        (3,),
        (nn.Linear(3, 4), nn.Dropout(), nn.Identity(), nn.BatchNorm1d(4), relu(), nn.Linear(4, 2)),
    )
    yield "norm after ReLU", (1, 5, 5), (nn.Conv2d(1, 3, 3), relu(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 2))
    yield "norm first", (2, 4, 4), (nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), relu(), nn.Flatten(), nn.Linear(12, 2))
    yield (
        "norm of linear units",
        (3,),
        (nn.BatchNorm1d(3), nn.Linear(3, 4), relu(), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)),
    )
    yield (
        "nested",
        (1, 4, 4),
        (nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), relu()), nn.Flatten()), nn.Sequential(nn.Linear(8, 3))),
    )
    yield "flat already", (3,), (nn.Linear(3, 8), nn.Flatten(), relu(), nn.Linear(8, 2))
    yield "units pooled", (3,), (nn.Linear(3, 8), relu(), nn.AvgPool1d(2), nn.Linear(4, 2))


@pytest.mark.parametrize(("shape", "built"), [pytest.param(s, b, id=i) for i, s, b in conv_nets()])
def test_path_sum_is_that_of_the_unrolled_network(shape, built):
    net = nn.Sequential(*copy.deepcopy(built))
    net(torch.ones(2, *shape))  # lazy layers take their shapes
    net = randomised(net)
    for p in POWERS:
        for bias in (False, True):
            expected = unrolled(net, shape, p, bias=bias)
            assert path_sum(net, p, input_shape=shape, bias=bias).item() == pytest.approx(expected, rel=1e-12)
            assert log_path_sum(net, p, input_shape=shape, bias=bias).item() == pytest.approx(
                math.log(expected), rel=1e-12, abs=1e-12
            )


def test_fixed_weights_of_average_pooling_are_raised_to_p():
    net = randomised(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 1)))
    # One pass with parameters alone replaced leaves 1/4 where 1/16 belongs.
    naive = copy.deepcopy(net)
    with torch.no_grad():
        for q in naive.parameters():
            q.copy_(q.square())
        for m in (naive[0], naive[4]):
            m.bias.zero_()
        naive = naive(torch.ones(1, 1, 6, 6, dtype=torch.float64)).sum()
    torch.testing.assert_close(naive, 4 * path_sum(net, 2, input_shape=(1, 6, 6)), rtol=1e-13, atol=0)


def test_max_pooling_keeps_the_largest_sum_of_each_window():
    net = nn.Sequential(
        nn.Conv1d(1, 1, 2, bias=False), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(2, 1, bias=False)
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[1.0, 2.0]]]))
        net[4].weight.copy_(torch.tensor([[3.0, 4.0]]))
    assert path_sum(net, 1, input_shape=(1, 5)) == 3 * 3 + 4 * 3
    torch.testing.assert_close(path_sum(net, 2, input_shape=(1, 5)).detach(), torch.tensor(5.0 * 25))


# Skip connections


def residual_nets():
    """Return networks with skip connections of every form: name, shape of an input, modules."""
    conv, relu, norm = nn.Conv2d, nn.ReLU, nn.BatchNorm2d
    block = Residual(nn.Sequential(nn.Linear(4, 5), relu(), nn.Linear(5, 4)))
    yield "identity", (3,), (nn.Linear(3, 4), relu(), block, relu(), nn.Linear(4, 2))
    yield "first", (3,), (Residual(nn.Linear(3, 3)), relu(), nn.Linear(3, 2))
    yield "no weights", (3,), (Residual(relu()), nn.Linear(3, 2))
    yield "projection", (3,), (Residual(nn.Linear(3, 4), nn.Linear(3, 4, bias=False)), relu(), nn.Linear(4, 2))
    yield "norm after the addition", (3,), (nn.Linear(3, 4), copy.deepcopy(block), nn.BatchNorm1d(4), nn.Linear(4, 2))
    nested = Residual(nn.Sequential(nn.Linear(4, 4), Residual(nn.Linear(4, 4), nn.BatchNorm1d(4)), relu()))
    yield "nested", (3,), (nn.Linear(3, 4), Residual(nested, Residual(nn.Linear(4, 4))), nn.Linear(4, 2))
    yield (
        "ResNet",
        (2, 6, 6),
        (
            conv(2, 3, 3, padding=1, bias=False),
            norm(3),
            relu(),
            Residual(
                nn.Sequential(conv(3, 3, 3, padding=1), norm(3), relu(), conv(3, 3, 3, padding=1, bias=False), norm(3))
            ),
            relu(),
            Residual(
                nn.Sequential(norm(3), relu(), conv(3, 4, 3, stride=2, padding=1), relu(), conv(4, 4, 1)),
                nn.Sequential(conv(3, 4, 1, stride=2, bias=False), norm(4)),
            ),
            norm(4),
            relu(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
    )
    pooled = Residual(nn.Sequential(conv(2, 2, 3, padding=1), relu(), nn.MaxPool2d(2)), nn.AvgPool2d(2))
    yield "pooled", (2, 4, 4), (pooled, nn.Flatten(), nn.Linear(8, 2))


def through_blocks(modules, sums, p, bias):
    """Return the path sums behind modules from those before, each layer or chain of them as a dense matrix."""
    chain = []

    def close(sums):
        nonlocal chain
        if chain:
            matrix, shift, shape = dense(nn.Sequential(*chain), sums.shape)
            sums = (matrix.abs().pow(p) @ sums.flatten() + (shift.abs().pow(p) if bias else 0)).reshape(shape)
            chain = []
        return sums

    for module in modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and chain:
            chain.append(module)  # folded
            continue
        sums = close(sums)
        if isinstance(module, Residual):
            shortcut = () if module.shortcut is None else flat_layers(module.shortcut)
            branch = through_blocks(flat_layers(module.branch), sums, p, bias)
            sums = branch + through_blocks(shortcut, sums, p, bias)
        elif isinstance(module, nn.MaxPool2d):
            sums = module(sums[None])[0]
        elif not isinstance(module, nn.ReLU):
            chain = [module]
    return close(sums)


def dense(module, shape):
    """Return the matrix and the shift of an affine map on inputs of some shape, and the shape of its outputs."""
    with torch.no_grad():
        shift = module(torch.zeros(1, *shape, dtype=torch.float64))
        basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return (module(basis) - shift).flatten(1).T, shift.flatten(), shift.shape[1:]


@pytest.mark.parametrize(("shape", "built"), [pytest.param(s, b, id=i) for i, s, b in residual_nets()])
def test_paths_run_through_both_sides_of_a_skip_connection(shape, built):
    net = randomised(nn.Sequential(*copy.deepcopy(built)))
    assert net(torch.ones(2, *shape, dtype=torch.float64)).shape == (2, 2)
    for p in POWERS:
        for bias in (False, True):
            expected = through_blocks(net, torch.ones(shape, dtype=torch.float64), p, bias).sum().item()
            assert path_sum(net, p, input_shape=shape, bias=bias).item() == pytest.approx(expected, rel=1e-12)
            assert log_path_sum(net, p, input_shape=shape, bias=bias).item() == pytest.approx(
                math.log(expected), rel=1e-12, abs=1e-12
            )
    if len(shape) == 1:
        torch.testing.assert_close(path_sum(net), path_sum(net, input_shape=shape), rtol=1e-13, atol=0)


@pytest.mark.parametrize("p", POWERS)
def test_a_skip_connection_has_edges_of_weight_1(p):
    first, last = (nn.Linear(*size, bias=False) for size in ((3, 4), (4, 2)))
    branch = [nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False)]
    net = randomised(nn.Sequential(first, nn.ReLU(), Residual(nn.Sequential(branch[0], nn.ReLU(), branch[1])), last))
    a, b, c, d = (layer.weight.detach() for layer in (first, *branch, last))
    around = enumerated([a, d], p)
    assert path_sum(net, p).item() == pytest.approx(around + enumerated([a, b, c, d], p), rel=1e-12)
    with torch.no_grad():
        branch[1].weight.zero_()
    assert path_sum(net, p).item() == pytest.approx(around, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_sixty_residual_blocks_neither_underflow_nor_overflow(scale):
    blocks = [Residual(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))) for _ in range(60)]
    net = randomised(nn.Sequential(nn.Linear(3, 8), *blocks, nn.Linear(8, 2)))
    with torch.no_grad():
        for q in net.parameters():
            q.mul_(scale)
    expected = 0.0
    sums = net[0].weight.square().sum(1)
    for block in blocks:
        sums = sums + block.branch[2].weight.square() @ block.branch[0].weight.square() @ sums
        expected += sums.max().log().item()
        sums = sums / sums.max()
    expected += (net[-1].weight.square() @ sums).sum().log().item()
    assert log_path_sum(net).item() == pytest.approx(expected, rel=1e-12)
    if scale > 1:
        assert path_sum(net) == math.inf
        assert log_path_sum(net.float()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("function", [path_sum, log_path_sum, path_scales, spectral_product])
def test_both_sides_of_a_skip_connection_must_have_one_shape(function):
    for block, shape in (
        (Residual(nn.Linear(4, 3)), (3,)),
        (Residual(nn.Linear(4, 1)), (1,)),  # would be added to every unit
        (Residual(nn.Linear(4, 2), nn.Linear(4, 3)), (2,)),
    ):
        with pytest.raises(ValueError, match=rf"^model: layer '1' \(Residual\) cannot take .* \({shape[0]},\)"):
            function(nn.Sequential(nn.Linear(3, 4), block))
    net = nn.Sequential(Residual(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"^input_shape: layer '0' \(Residual\)"):
        function(net, input_shape=(1, 4, 4))
    with pytest.raises(TypeError, match=r"^model: unsupported layer Tanh \(at '0\.shortcut\.0'\)"):
        function(nn.Sequential(Residual(nn.Linear(3, 3), nn.Sequential(nn.Tanh()))))
    with pytest.raises(TypeError, match=r"^model: inplace=True of '1\.branch\.0' changes the input of the skip"):
        function(nn.Sequential(nn.Linear(3, 3), Residual(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)))))


# Depth


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("bias", [False, True])
def test_sixty_layers_neither_underflow_nor_overflow(scale, bias):
    net = mlp(*[8] * 61)
    with torch.no_grad():
        for q in net.parameters():
            q.mul_(scale)
    expected = log_path_sum(net, bias=bias).item()
    assert math.isfinite(expected)
    if not bias:
        assert expected == pytest.approx(
            log_path_sum([m.weight / scale for m in net if isinstance(m, nn.Linear)]).item() + 120 * math.log(scale),
            rel=1e-12,
        )
    elif scale < 1:
        # Only paths from the last layers' biases matter: float64 holds them.
        assert expected == pytest.approx(path_sum(net, bias=True).log().item(), rel=1e-12)
    net = net.float()
    assert path_sum(net).item() in (0, math.inf)
    assert log_path_sum(net, bias=bias).item() == pytest.approx(expected, rel=1e-6)


def test_sixty_layers_with_pooling():
    built = [nn.Conv2d(1, 2, 3, padding=1)]
    for _ in range(58):
        built += [nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.Conv2d(2, 2, 3, padding=1)]
    net = randomised(nn.Sequential(*built, nn.Flatten(), nn.Linear(32, 2)))
    with torch.no_grad():
        for q in net.parameters():
            q.mul_(0.1)
    expected = path_sum(net, input_shape=(1, 4, 4)).log().item()
    assert log_path_sum(net, input_shape=(1, 4, 4)).item() == pytest.approx(expected, rel=1e-12)
    assert path_sum(net.float(), input_shape=(1, 4, 4)) == 0
    assert log_path_sum(net, input_shape=(1, 4, 4)).item() == pytest.approx(expected, rel=1e-6)


def test_no_path_has_log_minus_infinity():
    net = mlp(3, 4, 2)
    with torch.no_grad():
        for q in net.parameters():
            q.zero_()
    for bias in (False, True):
        assert path_sum(net, bias=bias) == 0
        assert log_path_sum(net, bias=bias) == -math.inf
    with torch.no_grad():
        net[2].bias.fill_(2.0)
    assert log_path_sum(net, bias=True).item() == pytest.approx(math.log(8))


# What is left alone


@pytest.mark.parametrize("function", [path_sum, log_path_sum, path_scales])
def test_the_model_is_not_changed(function):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(12, 2))
    if function is not path_scales:
        net.insert(1, nn.BatchNorm2d(3))
    net(torch.ones(2, 1, 6, 6)).sum().backward()
    net[0].bias.requires_grad_(False)
    net[-1].register_forward_hook(lambda *_: pytest.fail("a hook of the user ran"))
    before = copy.deepcopy(net.state_dict()), [None if q.grad is None else q.grad.clone() for q in net.parameters()]
    state = torch.get_rng_state()
    function(net, input_shape=(1, 6, 6))
    assert torch.equal(state, torch.get_rng_state())
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[0][key]), key
    for q, grad in zip(net.parameters(), before[1], strict=True):
        assert (q.grad is None) == (grad is None)
        assert grad is None or torch.equal(q.grad, grad)
    assert [q.requires_grad for q in net.parameters()].count(False) == 1
    assert all(m.training for m in net.modules())


def test_path_sum_is_differentiable_in_the_weights():
    net = mlp(3, 4, 2)
    (grad,) = torch.autograd.grad(path_sum(net, 2), [net[0].weight])
    torch.testing.assert_close(grad, 2 * net[0].weight * path_scales(net)["0.weight"], rtol=1e-12, atol=1e-12)


# Refusals


class Custom(nn.Module):
    def forward(self, x):
        return x.tanh()


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (Custom(), "Custom"),
        (nn.LSTM(3, 3), "LSTM"),
        (nn.LayerNorm(3), "LayerNorm"),
        (nn.Tanh(), "Tanh"),
        (nn.ConvTranspose1d(3, 3, 2), "ConvTranspose1d"),
        (nn.ModuleList([nn.Linear(3, 3)]), "ModuleList"),
        (Twice(3, 3), "Twice"),
        (Scaled(nn.Linear(3, 3)), "Scaled"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("function", [path_sum, log_path_sum, path_scales])
def test_unsupported_layers_are_named(function, layer, name):
    with pytest.raises(
        TypeError,
        match=rf"^model: unsupported layer {name} \(at '1\.0'\)(: its forward calls \w+)?; supported are Sequential",
    ):
        function(nn.Sequential(nn.Linear(3, 3), nn.Sequential(layer)))
    with pytest.raises(TypeError, match=rf"^model: unsupported layer {name}(: .*)?; supported"):
        function(layer)


@pytest.mark.parametrize("p", [0, -1, math.nan, math.inf, "2", True])
@pytest.mark.parametrize("function", [path_sum, log_path_sum, path_scales])
def test_exponents_are_positive_and_finite(function, p):
    with pytest.raises(ValueError, match=r"^p: must be a finite number > 0"):
        function(mlp(3, 2), p)


@pytest.mark.parametrize("function", [path_sum, log_path_sum, path_scales])
def test_input_shapes_are_checked(function):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match=r"^input_shape: is needed, because the first layer Conv2d does not tell"):
        function(net)
    with pytest.raises(ValueError, match=r"^input_shape: layer '3' \(Linear\) cannot take the units of shape \(27,\)"):
        function(net, input_shape=(1, 5, 5))
    with pytest.raises(
        ValueError, match=r"^input_shape: layer '0' \(Conv2d\) cannot take the units of shape \(2, 4, 4\)"
    ):
        function(net, input_shape=(2, 4, 4))
    with pytest.raises(ValueError, match=r"^input_shape: layer '0' \(Conv2d\) cannot take the units of shape \(4, 4\)"):
        function(net, input_shape=(4, 4))
    for bad in ((), 4, (1, 0, 4), (1, 4.0, 4), "144"):
        with pytest.raises(ValueError, match=r"^input_shape: must be"):
            function(net, input_shape=bad)
    assert torch.is_tensor(path_sum(net, input_shape=torch.Size((1, 4, 4))))
    # A flattening is missing.
    with pytest.raises(ValueError, match=r"^input_shape: layer '1' \(Linear\)"):
        function(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Linear(2, 2)), input_shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"^model: layer '1' \(Linear\) .* \(4,\)"):
        function(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)))
    with pytest.raises(ValueError, match=r"^input_shape: layer '1' \(AvgPool2d\)"):
        function(nn.Sequential(nn.Conv2d(1, 1, 3), nn.AvgPool2d(3)), input_shape=(1, 4, 4))
    for network, shape in ((mlp(3, 4, 2), (2,)), (mlp(3, 2), (2, 3)), ([torch.ones(2, 3)], (2,))):
        with pytest.raises(ValueError, match=r"^input_shape: must be \(3,\) to fit the weights"):
            function(network, input_shape=shape)


@pytest.mark.parametrize("function", [path_sum, log_path_sum, path_scales])
def test_other_refusals(function):
    with pytest.raises(TypeError, match=r"padding_mode 'reflect' of '0' is not supported, only 'zeros'"):
        function(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), input_shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"^model: must have at least one layer with weights"):
        function(nn.Sequential(nn.ReLU()))
    with pytest.raises(TypeError, match=r"weight: must have dtype float32 or float64, got bfloat16"):
        function(nn.Sequential(nn.Linear(3, 2).bfloat16()))
    for bad in (torch.ones(2, 2), "net", None):
        with pytest.raises(TypeError, match=r"^model: must be a torch\.nn\.Module or a sequence of weight matrices"):
            function(bad)
    with pytest.raises(ValueError, match=r"^model: must hold at least one weight matrix"):
        function([])
    with pytest.raises(TypeError, match=r"^weights\[0\]: must be a torch\.Tensor"):
        function([[[1.0]]])
    mixed = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2).double())
    with pytest.raises(ValueError, match=r"^model: must have weights of one dtype, got float32 \(at '0'\), float64"):
        function(mixed)
    with pytest.raises(TypeError, match=r"^model: unsupported layer LazyLinear \(at '0'\)"):
        function(nn.Sequential(nn.LazyLinear(3)))
    pool = nn.Sequential(nn.Conv1d(1, 1, 1), nn.MaxPool1d(2, return_indices=True))
    with pytest.raises(TypeError, match=r"^model: return_indices=True of '1' is not supported"):
        function(pool, input_shape=(1, 4))
    for bad in (
        [torch.ones(2)],
        [torch.ones(0, 2)],
        [torch.ones(2, 3), torch.ones(2, 3)],
        [torch.ones(2, 3), torch.ones(1, 2).double()],
    ):
        with pytest.raises(ValueError, match=r"^weights\[\d\]: "):
            function(bad)


def test_a_batch_norm_needs_running_statistics():
    with pytest.raises(TypeError, match=r"without running statistics"):
        path_sum(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)))


def test_parametrised_layers_are_what_they_compute():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)).double()
    plain = [net[0].weight.detach(), net[2].weight.detach()]
    torch.testing.assert_close(path_sum(net).detach(), path_sum(plain))
    with pytest.raises(TypeError, match=r"^model: a parametrised layer has other weights than its parameters"):
        path_scales(net)


def iterated():
    """Return a network with a spectral norm far from converged, in training mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(3, 4)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 2))
    ).double()
    nn.init.normal_(net[0].parametrizations.weight.original)
    return net


MEASURES = [
    path_sum,
    log_path_sum,
    path_norm,
    lambda net: group_norm(net, 1, 2),
    spectral_product,
    lambda net: capacities(net, torch.eye(3).double(), torch.zeros(3, dtype=torch.int64)).l2_path,
]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.filterwarnings("ignore:the margin")
def test_reading_a_spectral_norm_does_not_iterate_it(measure):
    net = iterated()
    before = copy.deepcopy(net.state_dict())
    expected = measure(copy.deepcopy(net).eval())
    for _ in range(3):
        torch.testing.assert_close(measure(net), expected, rtol=1e-12, atol=0)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(part.training for part in net.modules())
    # Reading it in training mode does.
    assert not torch.equal(net[0].weight, net[0].weight)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("measure", MEASURES[:-1])
def test_weights_that_hooks_compute_are_refused(measure):
    pruned = prune.random_unstructured(nn.Linear(3, 4), "weight", 0.5)
    without = prune.random_unstructured(nn.Linear(3, 4), "bias", 0.5)
    for layer, key in ((pruned, "weight"), (nn.utils.weight_norm(nn.Linear(3, 4)), "weight"), (without, "bias")):
        with pytest.raises(TypeError, match=rf"^model: {key} of '1' \(Linear\) is no parameter and may be out of date"):
            measure(nn.Sequential(nn.Linear(3, 3), layer))
    prune.remove(pruned, "weight")
    assert measure(pruned).isfinite()


# Scales of the weights


@pytest.mark.parametrize("p", [1, 2, 3])
def test_path_scales_by_enumeration(p):
    weights = gaussian_weights((3, 4, 2, 2), generator())
    scales = path_scales(weights, p)
    for layer, (w, scale) in enumerate(zip(weights, scales, strict=True)):
        assert scale.shape == w.shape
        for j, i in itertools.product(*map(range, w.shape)):
            # The paths through one edge: the others into its layer are cut, and its own weight is 1.
            only = torch.zeros_like(w)
            only[j, i] = 1
            expected = enumerated([*weights[:layer], only, *weights[layer + 1 :]], p) ** (2 / p)
            assert scale[j, i].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
        Residual(nn.Conv2d(2, 2, 2, 2), nn.Conv2d(2, 2, 1, 2)),
        nn.Sequential(Residual(nn.Conv2d(2, 2, 1)), nn.AvgPool2d(2)),
    ],
)
def test_path_scales_by_finite_differences(p, pool):
    net = randomised(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 3)))
    with torch.no_grad():
        for q in net.parameters():
            q.copy_(q.sign() * q.abs().clamp_min(0.05))  # of which |w|^p can be changed by h
    scales = path_scales(net, p, input_shape=(1, 4, 4))
    assert list(scales) == [name for name, _ in net.named_parameters()]
    h = 1e-6
    for name, w in net.named_parameters():
        for k in range(0, w.numel(), 3):
            sums = []
            for sign in (1, -1):
                other = copy.deepcopy(net)
                with torch.no_grad():
                    entry = dict(other.named_parameters())[name].view(-1)[k : k + 1]
                    entry.copy_((entry.abs().pow(p) + sign * h).pow(1 / p))
                sums.append(path_sum(other, p, input_shape=(1, 4, 4), bias=True).item())
            expected = ((sums[0] - sums[1]) / (2 * h)) ** (2 / p)
            assert scales[name].view(-1)[k].item() == pytest.approx(expected, rel=1e-4)


def test_path_scales_are_half_the_curvature_of_the_path_norm():
    weights = gaussian_weights((3, 4, 2), generator())
    for k, scale in enumerate(path_scales(weights)):
        curvature = torch.autograd.functional.hessian(
            lambda w, k=k: path_sum([*weights[:k], w, *weights[k + 1 :]]), weights[k]
        )
        torch.testing.assert_close(curvature.flatten(2).flatten(0, 1).diagonal() / 2, scale.flatten())


def test_path_scales_of_batches():
    members = [gaussian_weights((3, 5, 4, 2), generator(i)) for i in range(4)]
    together = path_scales([torch.stack(w) for w in zip(*members, strict=True)], 1.5)
    for i, member in enumerate(members):
        for a, b in zip(together, path_scales(member, 1.5), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-13, atol=0)


def test_path_scales_rescale_inversely_to_the_weights():
    first, second = gaussian_weights((3, 4, 2), generator())
    c = torch.tensor([0.1, 1.0, 3.0, 50.0], dtype=torch.float64)
    for p in (1, 2, 3):
        plain, scaled = path_scales([first, second], p), path_scales([first * c[:, None], second / c], p)
        torch.testing.assert_close(scaled[0], plain[0] / c[:, None].square())
        torch.testing.assert_close(scaled[1], plain[1] * c.square())


def test_path_scales_refuse_shared_layers_and_batch_norm():
    layer = nn.Linear(3, 3)
    with pytest.raises(TypeError, match=r"^model: a layer that is used twice shares its weights"):
        path_scales(nn.Sequential(layer, nn.ReLU(), layer))
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    with pytest.raises(TypeError, match=r"used twice"):
        path_scales(tied)
    with pytest.raises(TypeError, match=r"^model: unsupported layer BatchNorm"):
        path_scales(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    # Their path sum is well defined.
    assert path_sum(tied) > 0


# Recurrence


def recurrent(steps, seed=0, h=3):
    g = generator(seed)
    return ReLURecurrent(*(torch.randn(s, generator=g, dtype=torch.float64) for s in ((h, 2), (h, h), (2, h))), steps)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_recurrent_path_sum_is_that_of_the_unrolled_network(steps, p):
    net = recurrent(steps)
    # Inputs at step t have steps - 1 - t recurrent edges before them.
    expected = sum(enumerated([net.w_in, *[net.w_rec] * r, net.w_out], p) for r in range(steps))
    assert path_sum(net, p).item() == pytest.approx(expected, rel=1e-12)
    assert log_path_sum(net, p).item() == pytest.approx(math.log(expected), rel=1e-12)


def test_recurrent_path_sum_neither_underflows_nor_overflows():
    net = recurrent(400)
    with torch.no_grad():
        net.w_rec.mul_(10)
    assert path_sum(net) == math.inf
    growth = torch.linalg.eigvals(net.w_rec.square()).abs().max().log().item()
    assert log_path_sum(net).item() == pytest.approx(399 * growth, rel=0.01)
    with torch.no_grad():
        net.w_rec.mul_(1e-3)
        net.w_in.mul_(1e-200)
    assert path_sum(net) == 0
    assert math.isfinite(log_path_sum(net).item())


def test_recurrent_scales_are_those_of_its_edges():
    net = recurrent(4)
    scales = path_scales(net)
    assert list(scales) == ["w_in", "w_rec", "w_out"]
    first = shared_path_scales(net.w_in.detach(), net.w_rec.detach(), net.w_out.detach(), 4, second=False)
    for a, b in zip(scales.values(), first, strict=True):
        torch.testing.assert_close(a, b)


def test_a_recurrent_network_computes_its_recursion():
    net, x = recurrent(3), torch.randn(5, 3, 2, generator=generator(), dtype=torch.float64)
    h = torch.zeros(5, 3, dtype=torch.float64)
    for t in range(3):
        h = torch.relu(x[:, t] @ net.w_in.T + h @ net.w_rec.T)
    torch.testing.assert_close(net(x), h @ net.w_out.T)
    assert net(x).requires_grad
    with pytest.raises(ValueError, match=r"^x: must have shape \(n, 3, 2\)"):
        net(x[:, :2])
    w = torch.ones(3, 3)
    for bad in ((w[:, :2], w[:2], w), (w, w, w[:, :2]), (w, w * math.nan, w), (w[None], w, w)):
        with pytest.raises(ValueError, match=r"^w_(in|rec|out): "):
            ReLURecurrent(*bad, 3)
    with pytest.raises(ValueError, match=r"^steps: "):
        ReLURecurrent(w, w, w, 0)


# The layers themselves


def test_a_folded_batch_norm_computes_the_same():
    net = randomised(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4), nn.BatchNorm1d(4))
    )
    x = torch.randn(6, 2, 5, 5, generator=generator(), dtype=torch.float64)
    conv, flat, linear = ly.layers(net)
    folded = torch.nn.functional.conv2d(x, conv.weight, conv.bias).flatten(1) @ linear.weight.T + linear.bias
    assert flat.kind == ly.FLATTEN
    torch.testing.assert_close(folded, net(x), rtol=1e-12, atol=1e-12)
    unfolded = torch.nn.functional.conv2d(x, net[0].weight, conv.bias).flatten(1) @ linear.weight.T + linear.bias
    assert (unfolded - net(x)).abs().max() > 0.1


def test_perceptrons_are_modules_of_their_weights():
    weights = gaussian_weights((3, 5, 2), generator())
    net = perceptron(weights)
    torch.testing.assert_close(path_sum(net).detach(), path_sum(weights), rtol=1e-13, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_path_norms_refuse_weights_that_are_not_finite(bad):
    net, weights = mlp(3, 4, 2), gaussian_weights((3, 4, 2), generator())
    with torch.no_grad():
        net[2].weight[0, 0] = bad
    weights[1][0, 0] = bad
    for log in (False, True):
        with pytest.raises(ValueError, match=r"^model: '2\.weight': must be finite, got NaN or infinity"):
            path_norm(net, log=log)
        with pytest.raises(ValueError, match=r"^model: 'weights\[1\]': must be finite"):
            path_norm(weights, log=log)


def test_path_norms_are_roots_of_path_sums():
    net = mlp(3, 4, 2)
    for p in POWERS:
        expected = path_sum(net, p).item() ** (1 / p)
        assert path_norm(net, p).item() == pytest.approx(expected, rel=1e-12)
        assert path_norm(net, p, log=True).item() == pytest.approx(math.log(expected), rel=1e-12)
        assert path_norm(net, p).requires_grad
