"""Norms of the weights against brute force, dense operators and closed forms; what they refuse and leave alone."""

import copy
import math
import sys

import pytest
import torch
from mutation import mutated
from torch import nn

from implicitreg.measures import frobenius_product, group_norm, path_norm, spectral_product
from implicitreg.nets import ReLURecurrent, Residual, gaussian_weights, perceptron, rescale_nodes

norms_module = sys.modules["implicitreg.measures.norms"]
INF = math.inf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def convolutional(batch_norm=True):
    """Return a small network with every supported kind of layer that has a true operator norm."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=1, padding=2, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).double()
    if batch_norm:
        with torch.no_grad():
            net[1].running_mean.normal_()
            net[1].running_var.uniform_(0.5, 2)
            net[1].weight.normal_()
            net[1].bias.normal_()
    return net


def dense(linear, shape):
    """Return the matrix of a linear map on inputs of ``shape``, column by column."""
    with torch.no_grad():
        columns = [linear(e.view(1, *shape)).flatten() for e in torch.eye(math.prod(shape), dtype=torch.float64)]
    return torch.stack(columns, 1)


MEASURES = [
    lambda net: path_norm(net, input_shape=(2, 8, 8)),
    lambda net: path_norm(net, 1, input_shape=(2, 8, 8), bias=True, log=True),
    lambda net: group_norm(net, 1, INF),
    frobenius_product,
    lambda net: spectral_product(net, input_shape=(2, 8, 8)),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_the_model_is_left_as_it_was(measure):
    net = convolutional().train()
    net[4].eval()
    for i, w in enumerate(net.parameters()):
        w.grad = torch.full_like(w, i)
    calls = []
    hooks = [part.register_forward_hook(lambda *_: calls.append(1)) for part in net]
    before = copy.deepcopy(net)
    modes, grads = [part.training for part in net.modules()], [w.grad.clone() for w in net.parameters()]
    state = torch.random.get_rng_state()
    measure(net)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert all(torch.equal(w.grad, g) for w, g in zip(net.parameters(), grads, strict=True))
    assert [part.training for part in net.modules()] == modes
    assert all(w.requires_grad and w.is_leaf for w in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert hooks
    assert not calls


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "9.bias"])
@pytest.mark.parametrize("value", [math.nan, INF])
def test_weights_that_are_not_finite_are_named(measure, name, value):
    net = convolutional()
    with torch.no_grad():
        net.state_dict()[name].view(-1)[0] = value
    if name == "9.bias" and measure is MEASURES[0]:
        assert measure(net).isfinite()  # biases do not count
        return
    if name == "1.running_var" and value == INF and measure is MEASURES[0]:
        assert measure(net).isfinite()  # a unit of variance infinity is 0
        return
    with pytest.raises(ValueError, match=rf"^model: '{name}': must be finite"):
        measure(net)


@pytest.mark.parametrize("measure", [path_norm, lambda w: path_norm(w, log=True), frobenius_product, spectral_product])
def test_matrices_that_are_not_finite_are_named(measure):
    w = gaussian_weights((3, 4, 2), generator())
    w[1][0, 1] = math.nan
    with pytest.raises(ValueError, match=r"^model: 'weights\[1\]': must be finite"):
        measure(w)


class Squared(nn.Module):
    def forward(self, x):
        return x.square()


@pytest.mark.parametrize("measure", MEASURES)
def test_unsupported_layers_are_named(measure):
    for part in (Squared(), nn.Tanh(), nn.ConvTranspose2d(2, 2, 3)):
        with pytest.raises(TypeError, match=rf"^model: unsupported layer {type(part).__name__} \(at '1'\)"):
            measure(nn.Sequential(nn.Conv2d(2, 2, 3), part))
    with pytest.raises(TypeError, match=r"^model: must be a torch.nn.Module or a sequence"):
        measure("network")
    with pytest.raises(ValueError, match=r"^model: must have at least one layer"):
        measure(nn.Sequential(nn.ReLU()))


# Path norm: sums over paths have tests of their own


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2, 3])
def test_path_norm_takes_the_root(p):
    w = gaussian_weights((3, 5, 4, 2), generator())
    product = w[2].abs()[:, :, None, None] * w[1].abs()[None, :, :, None] * w[0].abs()[None, None]
    paths = product.pow(p).sum()
    value = path_norm(w, p)
    torch.testing.assert_close(value, paths.pow(1 / p), rtol=1e-12, atol=0)
    assert value.shape == ()
    torch.testing.assert_close(path_norm(perceptron(w), p), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(path_norm(w, p, log=True), value.log(), rtol=1e-12, atol=1e-12)
    ensemble = [torch.stack([each, 2 * each]) for each in w]
    torch.testing.assert_close(path_norm(ensemble, p), torch.stack([value, 8 * value]), rtol=1e-12, atol=0)
    torch.testing.assert_close(path_norm(ensemble, p, log=True), path_norm(ensemble, p).log(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_path_norm_and_its_logarithm_do_not_see_rescaled_units(bias):
    net = convolutional(batch_norm=False)
    other = rescale_nodes(net, generator(1), scale=2.0)
    for p in (1, 2, 3):
        value = path_norm(net, p, input_shape=(2, 8, 8), bias=bias)
        rescaled = path_norm(other, p, input_shape=(2, 8, 8), bias=bias)
        torch.testing.assert_close(rescaled, value, rtol=1e-12, atol=0)
        log = path_norm(other, p, input_shape=(2, 8, 8), bias=bias, log=True)
        torch.testing.assert_close(log, value.log(), rtol=1e-12, atol=1e-12)
    assert group_norm(other, 2, 2) > 1.5 * group_norm(net, 2, 2)


def test_path_norm_is_differentiable():
    w = [each.requires_grad_() for each in gaussian_weights((3, 4, 2), generator())]
    for p in (1, 1.5, 2, 3):
        assert torch.autograd.gradcheck(lambda *w, p=p: path_norm(list(w), p), w)
    net = perceptron([each.detach() for each in w])
    path_norm(net).backward()
    assert all(each.grad.isfinite().all() for each in net.parameters())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_sixty_layers_in_float32(scale):
    """The sum leaves the range of float32, the logarithm and, where there is one, the norm do not."""
    w = [scale * each for each in gaussian_weights((16,) * 61, generator(), dtype=torch.float32)]
    double = [each.double() for each in w]
    exact = torch.ones(16, dtype=torch.float64)
    log = 0.0
    for each in double:
        exact = each.square() @ exact
        log += exact.sum().log().item()
        exact /= exact.sum()
    assert path_norm(w, log=True).item() == pytest.approx(log / 2, rel=1e-6)
    assert path_norm(perceptron(w), log=True).item() == pytest.approx(log / 2, rel=1e-6)
    assert path_norm(w, log=True).dtype == torch.float32
    assert path_norm(w).item() == (pytest.approx(math.exp(log / 2), rel=1e-4) if scale == 1 else [0, INF][scale > 1])


def test_the_root_is_found_where_the_sum_leaves_the_range():
    small, large = ([torch.full((3, 3), 10.0**e)] * 4 for e in (-8, 7))
    for p in (2, 3):
        assert path_norm(small, p).item() == pytest.approx(3 ** (5 / p) * 1e-32, rel=1e-4)
        assert path_norm(large, p).item() == pytest.approx(3 ** (5 / p) * 1e28, rel=1e-4)
    both = [torch.stack([a, b]) for a, b in zip(small, large, strict=True)]
    assert path_norm(both).tolist() == [path_norm(small).item(), path_norm(large).item()]


def test_no_path_has_norm_0():
    w = [torch.zeros(2, 3), torch.ones(1, 2)]
    assert path_norm(w) == 0
    assert path_norm(w, log=True) == -INF
    assert frobenius_product(w) == spectral_product(w) == 0


@pytest.mark.parametrize("p", [0, -1, INF, math.nan, "2", True, None])
def test_exponents_of_paths_must_be_positive(p):
    for log in (False, True):
        with pytest.raises(ValueError, match=r"^p: must be a finite number > 0"):
            path_norm([torch.ones(1, 1)], p, log=log)


def test_the_input_shape_is_asked_for():
    for measure in (path_norm, spectral_product):
        with pytest.raises(ValueError, match=r"^input_shape: is needed"):
            measure(convolutional())
        with pytest.raises(ValueError, match=r"^input_shape: layer '9' \(Linear\)"):
            measure(convolutional(), input_shape=(2, 16, 16))
        with pytest.raises(ValueError, match=r"^input_shape: layer '0' \(Conv2d\)"):
            measure(convolutional(), input_shape=(3, 8, 8))
        with pytest.raises(ValueError, match=r"^input_shape: layer '0' \(Conv2d\)"):
            measure(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten()), input_shape=(8, 8))
        with pytest.raises(ValueError, match=r"^input_shape: "):
            measure([torch.ones(2, 3)], input_shape=(4,))
        with pytest.raises(ValueError, match=r"^input_shape: must be a sequence of integers"):
            measure(convolutional(), input_shape=8)


def test_a_recurrent_network_has_paths_but_no_layers():
    net = ReLURecurrent(torch.ones(3, 2), torch.eye(3), torch.ones(1, 3), steps=4)
    assert path_norm(net) > 0
    for measure in (frobenius_product, spectral_product):
        with pytest.raises(TypeError, match="unsupported layer ReLURecurrent"):
            measure(net)


# Group norms


def brute_group_norm(w, p, q):
    """Return the group norm of one matrix entry by entry, as its definition reads."""
    rows = []
    for row in w.tolist():
        entries = [abs(entry) for entry in row]
        rows.append(max(entries) if p == INF else sum(entry**p for entry in entries) ** (1 / p))
    return max(rows) if q == INF else sum(row**q for row in rows) ** (1 / q)


def check_group_norm(measure):
    w = gaussian_weights((3, 5, 4, 2), generator())
    for p in (0.5, 1, 1.5, 2, INF):
        for q in (1, 2, 3, INF):
            expected = math.prod(brute_group_norm(each, p, q) for each in w)
            assert measure(w, p, q).item() == pytest.approx(expected, rel=1e-12)
            assert measure(perceptron(w), p, q).item() == pytest.approx(expected, rel=1e-12)
    ensemble = [torch.stack([each, -3 * each]) for each in w]
    torch.testing.assert_close(measure(ensemble, 1, INF), measure(w, 1, INF) * torch.tensor([1.0, 27.0]).double())


def test_group_norm_against_its_definition():
    check_group_norm(group_norm)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(_matrix(layer), p, dim=-1)", "(_matrix(layer), p, dim=-2)"),  # outgoing weights
        ("(row, q, dim=-1)", "(row, p, dim=-1)"),
        ("(_matrix(layer), p,", "(_matrix(layer), q,"),
        ("for row in rows]).prod(0)", "for row in rows]).sum(0)"),
    ],
)
def test_mutants_of_the_group_norm_are_caught(right, wrong):
    mutant = mutated(norms_module, "group_product", right, wrong)
    with pytest.raises((AssertionError, IndexError)):
        check_group_norm(mutant.group_norm)


def test_group_norm_closed_forms():
    w = [each.double() for each in (torch.full((4, 3), 2.0), torch.ones(2, 4))]
    assert group_norm(w, 2, 2) == frobenius_product(w) == pytest.approx(48**0.5 * 8**0.5)
    assert group_norm(w, 1, 1) == pytest.approx(24 * 8)
    assert group_norm(w, INF, INF) == pytest.approx(2)
    assert group_norm(w, 1, INF) == pytest.approx(6 * 4)
    frobenius = math.prod(torch.linalg.matrix_norm(each).item() for each in w)
    assert frobenius_product(w).item() == pytest.approx(frobenius, rel=1e-12)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 2), (1, INF), (2, INF), (1.5, 3)])
def test_the_sum_over_units_bounds_the_product(p, q):
    """The norm over all units, mu, is at least d^(1/q) gamma^(1/d), with equality where the layers are balanced."""

    def mu(w):
        rows = torch.cat([torch.linalg.vector_norm(each, p, dim=-1) for each in w])
        return torch.linalg.vector_norm(rows, q)

    d = 3
    for seed in range(20):
        w = gaussian_weights((4, 6, 5, 2), generator(seed))
        gamma = group_norm(w, p, q)
        least = d ** (1 / q) * gamma ** (1 / d)
        assert mu(w) >= least * (1 - 1e-12)
        balanced = [gamma ** (1 / d) * each / group_norm([each], p, q) for each in w]
        torch.testing.assert_close(mu(balanced), least, rtol=1e-12, atol=0)
        torch.testing.assert_close(group_norm(balanced, p, q), gamma, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_path_norm_is_at_most_the_product_of_units(p):
    for seed in range(20):
        w = gaussian_weights((4, 6, 5, 1), generator(seed))
        assert path_norm(w, p) <= group_norm(w, p, INF) * (1 + 1e-12)
        assert path_norm(w, 2) <= frobenius_product(w) * (1 + 1e-12)


def test_a_filter_counts_once_and_batch_norm_is_folded():
    net = convolutional()
    scale = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    first, second, last = (
        (net[0].weight * scale[:, None, None, None]).flatten(1),
        net[4].weight.flatten(1),
        net[9].weight,
    )
    for p, q in ((2, 2), (1, INF), (2, 1)):
        expected = math.prod(brute_group_norm(w, p, q) for w in (first, second, last))
        assert group_norm(net, p, q).item() == pytest.approx(expected, rel=1e-12)
    alone = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2)).double()
    alone[1].running_var.copy_(torch.tensor([1.0, 4.0, 0.25]))
    expected = (1 + 0.25 + 4) ** 0.5 * alone[2].weight.norm().item()
    assert frobenius_product(alone).item() == pytest.approx(expected, rel=1e-4)


def test_group_norm_is_differentiable():
    w = [each.requires_grad_() for each in gaussian_weights((3, 4, 2), generator())]
    for p, q in ((2, 2), (1, INF)):
        assert torch.autograd.gradcheck(lambda *w, p=p, q=q: group_norm(list(w), p, q), w)


@pytest.mark.parametrize("value", [0, -2, math.nan, "1"])
def test_exponents_of_groups_must_be_positive(value):
    for arguments, name in (((value, 2), "p"), ((2, value), "q")):
        with pytest.raises(ValueError, match=rf"^{name}: must be a number > 0"):
            group_norm([torch.ones(2, 2)], *arguments)


# Spectral norms


def test_spectral_product_of_matrices():
    w = gaussian_weights((7, 5, 6, 3), generator())
    expected = math.prod(torch.linalg.matrix_norm(each, 2).item() for each in w)
    assert spectral_product(w).item() == pytest.approx(expected, rel=1e-12)
    assert spectral_product(perceptron(w)).item() == pytest.approx(expected, rel=1e-12)
    assert spectral_product(perceptron(w), input_shape=(7,)).item() == pytest.approx(expected, rel=1e-12)
    ensemble = [torch.stack([each, 2 * each])[:, None] for each in w]
    values = spectral_product(ensemble)
    assert values.shape == (2, 1)
    torch.testing.assert_close(values.flatten(), expected * torch.tensor([1.0, 8.0]).double(), rtol=1e-12, atol=0)
    orthogonal = [torch.linalg.qr(torch.randn(4, 4, generator=generator(i)))[0] for i in range(3)]
    assert spectral_product(orthogonal).item() == pytest.approx(1, rel=1e-5)


CONVOLUTIONS = [
    (nn.Conv1d, {"kernel_size": 5, "padding": 2}, (2, 9)),
    (nn.Conv2d, {"kernel_size": 3}, (2, 5, 6)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (2, 5, 6)),
    (nn.Conv2d, {"kernel_size": 3, "padding": "same"}, (2, 5, 6)),
    (nn.Conv2d, {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 2)}, (2, 6, 6)),
    (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": 2}, (2, 7, 7)),
    (nn.Conv2d, {"kernel_size": 3, "groups": 2, "stride": 2, "padding": 1}, (2, 6, 6)),
    (nn.Conv3d, {"kernel_size": 2, "padding": 1}, (2, 3, 3, 2)),
]


@pytest.mark.parametrize(("kind", "options", "shape"), CONVOLUTIONS)
def test_the_norm_of_a_convolution_is_that_of_its_map(kind, options, shape):
    torch.manual_seed(0)
    net = kind(2, 4, **options).double()
    without = copy.deepcopy(net)
    without.bias = None
    expected = torch.linalg.matrix_norm(dense(without, shape), 2).item()
    assert spectral_product(net, input_shape=shape).item() == pytest.approx(expected, rel=1e-12)
    # Not that of the reshaped kernel.
    assert abs(torch.linalg.matrix_norm(net.weight.flatten(1), 2).item() / expected - 1) > 1e-3


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"kernel_size": 3, "padding": 1}, (1, 33, 33)),
        ({"kernel_size": 3, "dilation": 2, "groups": 2}, (2, 24, 24)),
        ({"kernel_size": 2, "stride": 2, "padding": 1}, (4, 31, 32)),
    ],
)
def test_large_convolutions(options, shape):
    torch.manual_seed(1)
    net = nn.Conv2d(shape[0], 4, bias=False, **options).double()
    matrix = net(torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)).flatten(1).detach()
    assert min(matrix.shape) > 1024
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    expected = torch.linalg.eigvalsh(gram)[-1].sqrt().item()
    assert spectral_product(net, input_shape=shape).item() == pytest.approx(expected, rel=1e-10)
    single = spectral_product(net.float(), input_shape=shape)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kernel", [[-1.0, 0.0, 1.0], [-1.0, 2.0, -1.0], [1.0, 1.0, 1.0]])
def test_symmetric_filters_of_large_images(kernel):
    """The sought image may be antisymmetric or constant: no start of the iterations may exclude it."""
    net = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False).double()
    net.weight.data.copy_(torch.tensor(kernel))
    row = dense(net, (1, 1, 40))
    expected = torch.linalg.matrix_norm(row, 2).item()
    assert spectral_product(net, input_shape=(1, 40, 40)).item() == pytest.approx(expected, rel=1e-10)


def test_pooling_does_not_count_and_batch_norms_do():
    eye = nn.Conv2d(2, 2, 1, bias=False).double()
    eye.weight.data.copy_(torch.eye(2)[:, :, None, None])

    def norm(*parts, shape=(2, 8, 8)):
        return spectral_product(nn.Sequential(eye, *parts).double(), input_shape=shape).item()

    for pool in (
        nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(3, stride=1, padding=1), nn.MaxPool2d(2),
        nn.MaxPool2d(3, stride=2), nn.AdaptiveMaxPool2d(3),
    ):  # fmt: skip
        assert norm(pool) == pytest.approx(1, rel=1e-12)
        # What comes behind has the inputs that it leaves.
        last = nn.Conv2d(2, 1, 2, padding=1).double()
        shape = pool(torch.zeros(1, 2, 8, 8)).shape[1:]
        assert norm(pool, last) == pytest.approx(spectral_product(last, input_shape=shape).item(), rel=1e-12)
    bn = nn.BatchNorm2d(2)
    bn.weight.data.copy_(torch.tensor([-3.0, 1.0]))
    assert norm(bn) == pytest.approx(3, rel=1e-4)
    assert norm(nn.MaxPool2d(2), bn) == pytest.approx(3, rel=1e-4)
    # Without convolutions, no shape is needed.
    pooled = nn.Sequential(nn.MaxPool1d(2), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    expected = math.prod(torch.linalg.matrix_norm(w, 2).item() for w in (pooled[1].weight, pooled[3].weight))
    assert spectral_product(pooled).item() == pytest.approx(expected, rel=1e-12)


def test_layers_that_do_not_fit_are_the_fault_of_the_model():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2))
    for measure in (path_norm, frobenius_product, spectral_product):
        with pytest.raises(ValueError, match=r"^model: layer '2' \(Linear\) cannot take the units of shape \(4,\)"):
            measure(net)


@pytest.mark.parametrize("made_there", [False, True])
def test_inference_mode_does_not_matter(made_there):
    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 33 * 33, 2)).double()

    given = made()
    expected = [spectral_product(given, input_shape=(1, 33, 33)), path_norm(given, input_shape=(1, 33, 33)).detach()]
    with torch.inference_mode():
        given = made() if made_there else given
        found = [measure(given, input_shape=(1, 33, 33)) for measure in (spectral_product, path_norm)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_spectral_product_of_a_whole_network_bounds_its_slope():
    net = convolutional().eval()
    scale = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    folded = copy.deepcopy(net[0])
    folded.weight.data.mul_(scale.detach()[:, None, None, None])
    folded.bias = None
    expected = (
        torch.linalg.matrix_norm(dense(folded, (2, 8, 8)), 2)
        * torch.linalg.matrix_norm(dense(net[4], (4, 4, 4)), 2)
        * torch.linalg.matrix_norm(net[9].weight.detach(), 2)
    )
    value = spectral_product(net, input_shape=(2, 8, 8))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    x, y = torch.randn(2, 200, 2, 8, 8, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        slopes = (net(x) - net(y)).norm(dim=-1) / (x - y).flatten(1).norm(dim=-1)
    assert (slopes <= value).all()


def residual():
    """Return a network with two residual blocks, and the layers of each of its paths, batch norms folded."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d, nn.Linear
    first, inner, beside = conv(2, 3, 3, padding=1), conv(3, 4, 3, stride=2), conv(3, 4, 2, 2)
    one, two, norm = linear(36, 5), linear(5, 36), nn.BatchNorm1d(36)
    net = nn.Sequential(
        first,
        nn.ReLU(),
        Residual(nn.Sequential(nn.ReLU(), inner), beside),
        nn.Flatten(),
        Residual(nn.Sequential(one, nn.ReLU(), two)),
        norm,
        nn.ReLU(),
        linear(36, 2),
    ).double()
    with torch.no_grad():
        norm.running_var.uniform_(0.5, 2)
        norm.weight.normal_()
    return net.eval(), (first, inner, beside, one, two, norm, net[-1])


def test_a_residual_block_bounds_the_slope_by_the_sum_of_its_paths():
    net, (first, inner, beside, one, two, norm, last) = residual()
    shapes = ((2, 7, 7), (3, 7, 7), (3, 7, 7))
    for layer in (first, inner, beside):
        layer.bias = None
    a, b, c = (
        torch.linalg.matrix_norm(dense(layer, shape), 2)
        for layer, shape in zip((first, inner, beside), shapes, strict=True)
    )
    d, e, g = (torch.linalg.matrix_norm(layer.weight.detach(), 2) for layer in (one, two, last))
    f = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs().max().detach()
    value = spectral_product(net, input_shape=(2, 7, 7))
    torch.testing.assert_close(value, a * (b + c) * (1 + d * e) * f * g, rtol=1e-12, atol=0)
    x, y = torch.randn(2, 200, 2, 7, 7, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        slopes = (net(x) - net(y)).norm(dim=-1) / (x - y).flatten(1).norm(dim=-1)
    assert (slopes <= value).all()


def test_the_bound_is_reached():
    """Of Residual(c I) on positive inputs; without the 1 of the skip connection it would be too small."""
    layer = nn.Linear(3, 3, bias=False).double()
    layer.weight.data.copy_(2 * torch.eye(3))
    net = nn.Sequential(Residual(nn.Sequential(layer, nn.ReLU())), nn.ReLU())
    assert spectral_product(net).item() == pytest.approx(3, rel=1e-12)
    x = torch.rand(2, 3, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close((net(x)[0] - net(x)[1]).norm(), 3 * (x[0] - x[1]).norm())
    assert spectral_product(nn.Sequential(Residual(Residual(nn.ReLU())), layer)).item() == pytest.approx(6, rel=1e-12)
    nested = Residual(nn.Sequential(layer, Residual(layer)), nn.Sequential(layer, layer))
    assert spectral_product(nested).item() == pytest.approx(2 * (1 + 2) + 2 * 2, rel=1e-12)


def test_group_norms_of_a_residual_network_count_the_layers_of_both_paths():
    net, (*layers, norm, last) = residual()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None]
    weights = [*(layer.weight.detach().flatten(1) for layer in layers), scale, last.weight]
    for p, q in ((2, 2), (1, INF), (2, 1)):
        expected = math.prod(brute_group_norm(w, p, q) for w in weights)
        assert group_norm(net, p, q).item() == pytest.approx(expected, rel=1e-12)


def test_units_that_are_added_to_others_are_not_rescaled():
    for net in (residual()[0], nn.Sequential(Residual(nn.Linear(2, 2)))):
        with pytest.raises(TypeError, match=r"^model: Residual \(at '\d'\) adds its units to others, which cannot be"):
            rescale_nodes(net, generator())


@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e170])
def test_large_convolutions_of_any_scale(scale):
    torch.manual_seed(0)
    net = nn.Conv2d(1, 4, 3, bias=False).double()
    expected = spectral_product(net, input_shape=(1, 20, 20)).item()
    net.weight.data.mul_(scale)
    assert spectral_product(net, input_shape=(1, 20, 20)).item() == pytest.approx(scale * expected, rel=1e-12)
    net.weight.data.zero_()
    assert spectral_product(net, input_shape=(1, 20, 20)) == 0


def test_iterations_that_do_not_converge_are_told(monkeypatch):
    monkeypatch.setattr(norms_module, "_ITERATIONS", 9)
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 4, 3))
    with pytest.warns(RuntimeWarning, match=r"^the operator norm of layer '1' has not converged in 9 Lanczos"):
        value = spectral_product(net, input_shape=(1, 20, 20))
    monkeypatch.undo()
    assert value == pytest.approx(spectral_product(net, input_shape=(1, 20, 20)).item(), rel=0.1)
