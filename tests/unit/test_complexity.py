"""Geometric complexity against Jacobian matrices, finite differences and closed forms; invariances, refusals."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from implicitreg.measures import geometric_complexity, input_gradients
from implicitreg.nets import Residual, he_weights, perceptron


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def filled(net, seed=0):
    """Return a module with seeded numbers in all parameters and statistics, in float64 and evaluation mode."""
    random = generator(seed)
    with torch.no_grad():
        for name, w in [*net.named_parameters(), *net.named_buffers()]:
            if w.is_floating_point():
                w.copy_(
                    torch.randn(w.shape, generator=random).abs() + 0.5
                    if "running_var" in name
                    else 0.5 * w.normal_(generator=random)
                )
    return net.double().eval()


class Own(nn.Module):
    """A forward of its own: functions, a sum over two ways, a layer used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = F.gelu(self.first(x.flatten(1)))
        h = h + torch.tanh(self.twice(F.relu(self.twice(h))))
        return self.last(F.dropout(h, 0.5, self.training))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


NETS = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)), (5,)),
    "one output": (lambda: nn.Sequential(nn.Linear(5, 9), nn.ELU(), nn.Linear(9, 1)), (5,)),
    "own": (Own, (3, 2)),
    "convolutional": (convolutional, (2, 7, 5)),
}


def squares(net, x):
    """Return the squared norm of each sample's own Jacobian matrix, one sample at a time."""
    each = [torch.autograd.functional.jacobian(lambda one: net(one[None])[0], one) for one in x]
    return torch.stack([jacobian.square().sum() for jacobian in each])


@pytest.mark.parametrize("batch", [None, 1, 2, 100])
@pytest.mark.parametrize("name", NETS)
def test_it_is_the_mean_over_jacobian_matrices(name, batch):
    build, shape = NETS[name]
    net, x = filled(build()), normal(7, *shape)
    expected = squares(net, x)
    found = geometric_complexity(net, x, batch=batch)
    assert math.isclose(found.value, expected.mean(), rel_tol=1e-12)
    error = (expected - expected.mean()).square().sum().div(6 * 7).sqrt()
    assert math.isclose(found.standard_error, error, rel_tol=1e-10, abs_tol=1e-14 * found.value)
    assert float(found) == found.value


@pytest.mark.parametrize("name", NETS)
def test_finite_differences(name):
    build, shape = NETS[name]
    net, x = filled(build()), normal(3, *shape)
    steps = 1e-6 * torch.eye(math.prod(shape)).double().reshape(-1, 1, *shape)
    with torch.no_grad():
        slopes = torch.stack([(net(x + step) - net(x - step)) / 2e-6 for step in steps])
    assert math.isclose(geometric_complexity(net, x).value, slopes.square().sum() / 3, rel_tol=1e-6)


@pytest.mark.parametrize("kept", [1, 20_000])
def test_memory_decides_how_many_go_together(monkeypatch, kept):
    net, x = filled(convolutional()), normal(9, 2, 7, 5)
    whole = geometric_complexity(net, x)
    sizes = []
    hook = net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr("implicitreg.measures.complexity._KEPT", kept)
    parts = geometric_complexity(net, x)
    hook.remove()
    first, *between, last = sizes  # what they hold is tried on the first, what they are on some alone
    assert (first, last) == (2, 9)
    assert max(between) < 9
    assert sum(between) == 9
    assert math.isclose(parts.value, whole.value, rel_tol=1e-13)
    assert math.isclose(parts.standard_error, whole.standard_error, rel_tol=1e-11)


def test_weights_do_not_count_as_memory_of_a_sample(monkeypatch):
    net, sizes = perceptron(he_weights((8, 100, 100, 2), generator())), []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr("implicitreg.measures.complexity._KEPT", 20_000)  # a quarter of the weights
    geometric_complexity(net, normal(6, 8))
    assert sizes == [2, 6, 6]


def test_a_linear_map_has_its_frobenius_norm_everywhere():
    w = normal(4, 6)
    found = geometric_complexity([w], normal(8, 6))
    assert math.isclose(found.value, w.square().sum(), rel_tol=1e-13)
    assert found.standard_error < 1e-13 * found.value
    # A product of matrices, where no unit is off.
    positive = [w.abs() for w in he_weights((6, 9, 2), generator())]
    assert math.isclose(
        geometric_complexity(positive, normal(8, 6).abs()).value,
        (positive[1] @ positive[0]).square().sum(),
        rel_tol=1e-13,
    )


def test_matrices_are_their_module():
    weights, x = he_weights((6, 20, 20, 3), generator()), normal(10, 6)
    found = geometric_complexity(weights, x)
    assert found == geometric_complexity(perceptron(weights), x)
    gradients = input_gradients(weights, x).square().sum((1, 2))
    assert math.isclose(found.value, gradients.mean(), rel_tol=1e-13)
    # Where all pre-activations are 0, units are off, as for input_gradients.
    assert geometric_complexity(weights, torch.zeros(2, 6).double()).value == 0


def test_invariances():
    weights, x = he_weights((6, 20, 3), generator()), normal(10, 6)
    found = geometric_complexity(weights, x)
    turn, _ = torch.linalg.qr(normal(6, 6))
    turned = geometric_complexity([weights[0] @ turn, weights[1]], x @ turn)
    mixed, _ = torch.linalg.qr(normal(3, 3))
    for other in (
        turned,
        geometric_complexity([weights[0], mixed @ weights[1]], x),
        geometric_complexity(weights, 7 * x),
    ):
        assert math.isclose(other.value, found.value, rel_tol=1e-12)
        assert math.isclose(other.standard_error, found.standard_error, rel_tol=1e-11)
    assert math.isclose(geometric_complexity([weights[0], 3 * weights[1]], x).value, 9 * found.value, rel_tol=1e-12)
    order = torch.randperm(10, generator=generator())
    assert math.isclose(geometric_complexity(weights, x[order], batch=3).value, found.value, rel_tol=1e-13)


def test_float32_agrees_with_float64():
    net, x = filled(convolutional()), normal(9, 2, 7, 5)
    exact = geometric_complexity(net, x)
    single = geometric_complexity(net.float(), x.float())
    assert math.isclose(single.value, exact.value, rel_tol=1e-5)
    assert math.isclose(single.standard_error, exact.standard_error, rel_tol=1e-4)


def test_the_model_is_left_as_it_was():
    net, x = filled(convolutional()).train(), normal(5, 2, 7, 5)
    net[1].eval()
    for i, w in enumerate(net.parameters()):
        w.grad = torch.full_like(w, i)
        w.requires_grad_(i % 2 == 0)
    inputs = x.clone().requires_grad_()
    before, grads = copy.deepcopy(net), [w.grad.clone() for w in net.parameters()]
    modes, state = [part.training for part in net.modules()], torch.random.get_rng_state()
    found = geometric_complexity(net, inputs)
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert inputs.grad is None
    assert torch.equal(inputs.detach(), x)
    for w, v, grad in zip(net.parameters(), before.parameters(), grads, strict=True):
        assert torch.equal(w, v)
        assert w.requires_grad == v.requires_grad
        assert torch.equal(w.grad, grad)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before.buffers(), strict=True))
    assert found == geometric_complexity(net.eval(), x)
    with torch.no_grad():
        assert found == geometric_complexity(net, x)
    with torch.inference_mode():
        assert found == geometric_complexity(net, x.clone())


def test_the_mode_comes_back_after_an_error():
    net = convolutional().train()
    with pytest.raises(ValueError, match=r"^x: of shape \(2, 3, 7, 5\) and torch.float32 does not fit the model"):
        geometric_complexity(net, torch.ones(4, 3, 7, 5))
    assert all(part.training for part in net.modules())


class Cut(nn.Module):
    """Its outputs have no gradient in the inputs."""

    def __init__(self, kind):
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.ones(3)), kind

    def forward(self, x):
        if self.kind == "detached":
            return x.detach()
        return self.weight.expand(len(x), 3) if self.kind == "constant" else (x.sum(), x)


def test_refusals():
    net, x = nn.Linear(3, 2), torch.ones(4, 3)
    for wrong, error, match in (
        ([1.0], TypeError, "x: must be a torch.Tensor, got list"),
        (torch.ones(4, 3, dtype=torch.int64), TypeError, "x: must have dtype float32 or float64, got int64"),
        (torch.ones(4, 3).double(), ValueError, r"x: of shape \(2, 3\) and torch.float64 does not fit the model"),
        (torch.full((4, 3), math.nan), ValueError, "x: must be finite, got NaN or infinity"),
        (torch.ones(1, 3), ValueError, r"x: must have shape \(n, ...\) with n >= 2, got \(1, 3\)"),
        (torch.ones(0, 3), ValueError, r"x: must have shape \(n, ...\) with n >= 2, got \(0, 3\)"),
        (torch.ones(3), ValueError, r"x: must have shape \(n, ...\) with n >= 2, got \(3,\)"),
        (torch.ones(4, 5), ValueError, r"x: of shape \(2, 5\) and torch.float32 does not fit the model"),
    ):
        for model in (net, [net.weight]):
            with pytest.raises(error, match=f"^{match}"):
                geometric_complexity(model, wrong)
    with pytest.raises(ValueError, match=r"^x: must be on meta, where the model is, got cpu"):
        geometric_complexity(copy.deepcopy(net).to("meta"), x)
    for batch in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"^batch: must be an integer >= 1, got"):
            geometric_complexity(net, x, batch=batch)
    with pytest.raises(TypeError, match=r"^model: must be a torch.nn.Module or a sequence"):
        geometric_complexity("network", x)
    with pytest.raises(ValueError, match=r"^model: must be one network, got weights of shapes \[\(2, 4, 3\)\]"):
        geometric_complexity([torch.ones(2, 4, 3)], x)
    with pytest.raises(TypeError, match=r"^model: batch norm '1' without running statistics has no evaluation mode"):
        geometric_complexity(nn.Sequential(net, nn.BatchNorm1d(2, track_running_stats=False)), x)
    for kind, match in (
        ("detached", "outputs must be differentiable in x"),
        ("constant", "outputs must be differentiable in x"),
        ("pair", r"outputs must have shape \(n, ...\) with n = 2 samples, got tuple"),
    ):
        with pytest.raises(ValueError, match=f"^model: {match}"):
            geometric_complexity(Cut(kind), x)
    with pytest.raises(ValueError, match=r"^model: outputs must have shape \(n, k\) with k >= 1, got \(2, 1, 3\)"):
        geometric_complexity(nn.Unflatten(1, (1, 3)), x)
    with pytest.raises(ValueError, match=r"^model: outputs: must be finite"):
        geometric_complexity([torch.full((2, 3), math.nan)], x)
    with pytest.raises(ValueError, match=r"^model: gradients in x, or their squares, are not finite"):
        geometric_complexity([torch.full((2, 3), 1e200, dtype=torch.float64)], 1e-190 * x.double())
