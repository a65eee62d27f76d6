"""Networks that use a module twice, store, count, mix samples or take one precision alone: right, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, spectral_norm

from implicitreg.measures import (
    expected_sharpness,
    geometric_complexity,
    hessian_eigenvalues,
    hessian_trace,
    margin,
    margins,
    pac_bayes_kl_at,
    report,
    sharpness,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n=40, d=8, k=3):
    x = torch.randn(n, d, generator=generator(), dtype=torch.float64)
    return x, torch.randint(k, (n,), generator=generator(1))


def drawn(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


MEASURES = {
    "margin": margin,
    "sharpness": lambda net, x, y: sharpness(net, x, y, steps=5),
    "expected sharpness": lambda net, x, y: float(expected_sharpness(net, x, y, 0.1, generator(), draws=5)),
    "PAC-Bayes": lambda net, x, y: pac_bayes_kl_at(net, x, y, generator(), draws=5),
    "eigenvalues": lambda net, x, y: hessian_eigenvalues(net, F.cross_entropy, x, y).values,
    "trace": lambda net, x, y: float(hessian_trace(net, F.cross_entropy, x, y, generator())),
    "complexity": lambda net, x, y: float(geometric_complexity(net, x)),
}


def twice():
    """Return a network that holds a layer under two names, and the same with two layers that share their weights."""
    layer, norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
    one = nn.Sequential(layer, norm, nn.Tanh(), layer, norm, nn.Tanh(), nn.Linear(8, 3))
    two = copy.deepcopy(one)
    for i, j in ((0, 3), (1, 4)):
        two[j] = copy.deepcopy(two[i])
        two[j].weight, two[j].bias = two[i].weight, two[i].bias
    return one, two


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MEASURES)
def test_a_module_under_two_names_counts_once_and_is_left_as_it_was(name, dtype):
    one, two = (net.to(dtype) for net in drawn(twice))
    x, y = data()
    before, own = copy.deepcopy(one.state_dict()), dict(one.named_parameters())
    found, wanted = (torch.as_tensor(MEASURES[name](net, x.to(dtype), y)) for net in (one, two))
    torch.testing.assert_close(found, wanted, rtol=1e-5 if dtype == torch.float32 else 1e-9, atol=0)
    assert all(own[key] is w and isinstance(w, nn.Parameter) for key, w in one.named_parameters())
    assert all(torch.equal(before[key], w) for key, w in one.state_dict().items())


def hooked():
    net = nn.Sequential(spectral_norm(nn.Linear(8, 6)), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        net(torch.ones(1, 8))  # so that the weight is no part of a graph
    return net


class Storing(nn.Module):
    """Stores what it computes, and counts its calls, which changes what it computes."""

    def __init__(self):
        super().__init__()
        self.net, self.calls, self.seen = nn.Linear(8, 3), 0, []

    def forward(self, x):
        self.calls += 1
        self.last = self.net(x) * self.calls
        self.seen.append(self.last)
        return self.last


def unchanged(net, run):
    """Run something, and demand that no attribute of a module is another afterwards."""
    parts = [(part, dict(vars(part))) for part in net.modules()]
    run()
    for part, before in parts:
        assert vars(part).keys() == before.keys()
        assert all(vars(part)[key] is value for key, value in before.items())
    copy.deepcopy(net)


@pytest.mark.parametrize("name", MEASURES)
def test_weights_that_a_hook_sets_are_left_as_they_were(name):
    net, (x, y) = drawn(hooked).eval(), data()
    unchanged(net, lambda: MEASURES[name](net, x.float(), y))


@pytest.mark.parametrize("name", MEASURES)
def test_what_a_forward_pass_stores_and_counts_is_refused_or_forgotten(name):
    net, (x, y) = drawn(Storing).double(), data()

    def run():
        if name in ("eigenvalues", "trace"):  # each pass starts from what was there
            wanted = MEASURES[name](net.net, x, y)
            torch.testing.assert_close(torch.as_tensor(MEASURES[name](net, x, y)), torch.as_tensor(wanted))
        else:
            with pytest.raises(ValueError, match=r"^model: outputs of a sample must .* be the same every time"):
                MEASURES[name](net, x, y)

    unchanged(net, run)
    assert net.calls == 0
    assert not net.seen


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x):
        return self.net(x - x.mean(0))


@pytest.mark.parametrize("name", MEASURES)
def test_outputs_that_mix_samples_are_refused(name):
    net = drawn(Mixing).double()
    with pytest.raises(ValueError, match=r"^model: outputs of a sample must depend on that sample alone"):
        MEASURES[name](net, *data(200))


def test_outputs_in_parts_are_those_of_the_whole():
    net = drawn(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))
    x, y = data(40_000)
    x, sizes = x.float(), []
    hook = net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found = margins(net, x, y)
    hook.remove()
    *parts, alone = sizes
    assert sum(parts) == 40_000
    assert max(parts) - min(parts) <= 1 < len(parts)
    assert alone == 32
    z = net(x).detach()
    own = z.gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(found, own - z.scatter(1, y[:, None], -torch.inf).amax(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [50, 500, None])
def test_weights_of_rare_classes_are_found_out(batch):
    net = drawn(lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))).double()
    x, _ = data(60_000)
    y = (torch.arange(len(x)) % 1999 == 7).long()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 200.0]).double())
    with pytest.raises(ValueError, match=r"^loss: must be the mean over the samples .*of 60000 samples it is"):
        hessian_eigenvalues(net, loss, x, y, batch=batch)


class Shifted(nn.Module):
    """Takes inputs that single precision does not tell apart."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def forward(self, x):
        return self.net(x - 1e8)


def test_a_trace_that_single_precision_gets_wrong_comes_from_double():
    net, (x, y) = drawn(Shifted), data()
    found = hessian_trace(net, F.cross_entropy, x + 1e8, y, generator())
    wanted = hessian_trace(net.net, F.cross_entropy, x, y, generator(), target_se=1e-5)
    assert abs(found.value - wanted.value) < 3 * found.standard_error


class Only(nn.Module):
    """Refuses another precision in a way of its own."""

    def __init__(self, dtype, how):
        super().__init__()
        self.dtype, self.how = dtype, how
        self.net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)

    def forward(self, x):
        if self.how == "assert":
            assert x.dtype == self.dtype
        return self.net(x) * {self.dtype: 1}[x.dtype]


@pytest.mark.parametrize("how", ["assert", "look up"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_of_one_precision(dtype, how):
    net, (x, y) = drawn(lambda: Only(dtype, how)), data()
    x = x.to(dtype)
    found, wanted = (hessian_eigenvalues(each, F.cross_entropy, x, y).values for each in (net, net.net))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    found, wanted = (hessian_trace(each, F.cross_entropy, x, y, generator()) for each in (net, net.net))
    assert abs(found.value - wanted.value) < 3 * (found.standard_error + wanted.standard_error)


@pytest.mark.parametrize(("which", "most"), [("largest", 19), ("both", 62)])
def test_the_range_of_single_precision_is_left_with_few_products(which, most):
    net = nn.Linear(60, 1, bias=False).double()
    with torch.no_grad():
        net.weight.fill_(1e-20)
    x = 1e22 * torch.randn(50, 60, generator=generator(), dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="eigenvalues were found"):
        found = hessian_eigenvalues(net, F.mse_loss, x, torch.zeros(50, 1).double(), which=which, max_products=most)
    assert not found.converged


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), nn.Unflatten(1, (2, 2, 2)), nn.BatchNorm1d(2)), (8,)),
        (nn.Bilinear(8, 8, 3), (8,)),
        (nn.LSTM(8, 3), (2, 2, 8)),
    ],
    ids=["dimensions", "arguments", "a layer's own words"],
)
def test_inputs_that_do_not_fit_are_blamed(name, net, shape):
    x, y = torch.randn(40, *shape, generator=generator()), data()[1]
    with pytest.raises(ValueError, match=r"^x: of shape \(\d+, .*\) and torch.float32 does not fit the model: "):
        MEASURES[name](net, x, y)


class Steps(nn.Module):
    """Has outputs for each of four steps."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 12)

    def forward(self, x):
        return self.net(x).reshape(-1, 4, 3)


@pytest.mark.parametrize("name", ["margin", "sharpness", "expected sharpness", "PAC-Bayes", "complexity"])
def test_outputs_have_two_dimensions(name):
    with pytest.raises(ValueError, match=r"^model: outputs must have shape \(n, k\) with k >= \d, got \(\d+, 4, 3\)"):
        MEASURES[name](Steps().double(), data()[0], torch.tensor([0, 1, 2, 0]))


def test_numbers_that_are_not_real_are_refused():
    class Complex(nn.Module):
        def forward(self, x):
            return torch.complex(x[:, :3], x[:, 3:6])

    x, y = data()
    with pytest.raises(TypeError, match=r"^model: outputs: must have dtype float32 or float64, got complex128"):
        margin(Complex(), x, y)
    with pytest.raises(TypeError, match=r"^model: outputs: must have dtype float32 or float64, got bfloat16"):
        margin(nn.Sequential(nn.Linear(8, 3), Cast()), x.float(), y)


class Cast(nn.Module):
    def forward(self, x):
        return x.bfloat16()


def test_attention_has_a_hessian():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.layer(x.reshape(-1, 2, 4)).flatten(1))

    net, (x, y) = drawn(Attending).double(), data()
    found = hessian_eigenvalues(net, F.cross_entropy, x, y)
    assert found.converged
    # The curvature along the eigenvector, from three losses.
    sizes = [w.numel() for w in net.parameters()]
    losses = []
    for step in (-1e-3, 0, 1e-3):
        moved = copy.deepcopy(net).eval()
        with torch.no_grad():
            for w, v in zip(moved.parameters(), torch.split(found.vectors[0], sizes), strict=True):
                w += step * v.view_as(w)
            losses.append(F.cross_entropy(moved(x), y))
    assert float(losses[0] - 2 * losses[1] + losses[2]) / 1e-6 == pytest.approx(float(found.values), rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_wrapped_networks_are_named():
    net, (x, y) = nn.Linear(8, 3).double(), data()
    for wrapped, match in (
        (nn.DataParallel(net), "^model: must not be a DataParallel; give the module in it"),
        (torch.jit.script(net), "^model: must be the Python module"),
    ):
        for name in ("sharpness", "expected sharpness", "PAC-Bayes", "eigenvalues", "trace"):
            with pytest.raises(TypeError, match=match):
                MEASURES[name](wrapped, x, y)
        found = report(wrapped, x, y)
        assert {each.name for each in found} >= {"loss", "margin", "geometric complexity"}
        assert "sharpness" in found.refused


def test_wrong_second_derivatives_are_refused():
    net, (x, y) = (
        drawn(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 6)), nn.Tanh())).double(),
        data(),
    )
    for measure in (hessian_eigenvalues, lambda *a: hessian_trace(*a, generator())):
        with pytest.raises(ValueError, match=r"^model: second derivatives are not symmetric, but off by"):
            measure(net, F.cross_entropy, x, y)
    orthogonal = drawn(lambda: parametrizations.orthogonal(nn.Linear(8, 6), orthogonal_map="cayley")).double()
    assert hessian_eigenvalues(orthogonal, F.cross_entropy, x, y).converged
