"""Eigenvalues and traces of Hessians against dense matrices, closed forms, scipy's solver and central differences."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from mutation import mutated
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from implicitreg.dynamics import cross_entropy
from implicitreg.measures import hessian, hessian_eigenvalues, hessian_trace
from implicitreg.nets import gaussian_weights, perceptron

module = sys.modules["implicitreg.measures.hessian"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n=40, d=4, k=3, seed=0, dtype=torch.float64):
    source = generator(seed)
    x = torch.randn(n, d, generator=source, dtype=torch.float64).to(dtype)
    return x, torch.randint(k, (n,), generator=source)


def network(*parts, dtype=torch.float64, seed=0):
    """Return a module with drawn parameters and buffers."""
    net, source = nn.Sequential(*parts).to(dtype), generator(seed)
    for w in net.parameters():
        w.data = (0.5 * torch.randn(w.shape, generator=source, dtype=torch.float64)).to(dtype)
    return net


def smooth(dtype=torch.float64, seed=0):
    return network(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), dtype=dtype, seed=seed)


def rectified(dtype=torch.float64):
    return network(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), dtype=dtype)


def convolutional(dtype=torch.float64):
    parts = (nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2))
    net = network(*parts, nn.Flatten(), nn.Dropout(0.5), nn.Linear(3, 3), dtype=dtype)
    net[2].running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    net[2].running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    return net


def tied(dtype=torch.float64):
    net = network(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3), dtype=dtype)
    net[2].weight = net[0].weight
    return net


def convex():
    return network(nn.Linear(30, 3))


def half(values, targets):
    return (values - targets).square().sum(-1) / 2


def first(scores, labels):
    return scores[:, 0]


NETWORKS = {"smooth": smooth, "rectified": rectified, "convolutional": convolutional, "tied": tied}
CASES = {**NETWORKS, "convex": convex}


def dense(model, x, y, loss=F.cross_entropy):
    """Return the Hessian in the flat parameters, sample by sample."""
    net = copy.deepcopy(perceptron(model) if isinstance(model, list) else model).eval().double()
    names = [name for name, _ in net.named_parameters()]
    shapes = [w.shape for w in net.parameters()]
    flat = torch.cat([w.detach().flatten() for w in net.parameters()])

    def mean(flat):
        cut = torch.split(flat, [math.prod(shape) for shape in shapes])
        named = {name: w.view(shape) for name, w, shape in zip(names, cut, shapes, strict=True)}
        total = sum(
            loss(functional_call(net, named, (a[None],)), b[None]).sum() for a, b in zip(x.double(), y, strict=True)
        )
        return total / len(x)

    return torch.func.jacrev(torch.func.jacrev(mean))(flat)


def ends(h, k):
    values = torch.linalg.eigvalsh(h).flip(0)
    return values[:k], values[-k:]


# Eigenvalues


def check_eigenvalues(measure):
    for name, make in CASES.items():
        # The last has far fewer samples than parameters and is convex: most eigenvalues are 0.
        model, (x, y) = make(), data(2 if name == "convex" else 30, 30 if name == "convex" else 4)
        h = dense(model, x, y)
        for k in (1, 6):
            large, small = ends(h, k)
            scale = float(h.norm())
            for which, expected in (("largest", large), ("smallest", small), ("both", torch.cat([large, small]))):
                found = measure(model, F.cross_entropy, x, y, k, which=which, tol=1e-9)
                torch.testing.assert_close(found.values, expected, rtol=1e-10, atol=1e-11 * scale, msg=name)
                residual = torch.linalg.vector_norm(found.vectors @ h - found.values[:, None] * found.vectors, dim=-1)
                torch.testing.assert_close(found.residuals, residual, rtol=1e-3, atol=1e-13 * scale)
                assert (residual <= 1e-8 * scale).all()
                norms = torch.linalg.vector_norm(found.vectors, dim=-1)
                torch.testing.assert_close(norms, torch.ones_like(norms))
                assert found.converged is True


def test_eigenvalues_against_the_dense_matrix():
    check_eigenvalues(hessian_eigenvalues)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("hessian_eigenvalues", "descending=True", "descending=False"),
        ("hessian_eigenvalues", "value = (v * hv).sum(-1)", "value = (hv * hv).sum(-1).sqrt()"),
        ("hessian_eigenvalues", "hv - value[:, None] * v", "hv - v"),
        ("hessian_eigenvalues", '"both" else', '"smallest" else'),
        ("_lanczos", '"LA" if largest else "SA"', '"LM"'),
        ("_lanczos", "2 * float(first.norm() / start.norm()) or 1.0", "0.0"),
        ("_Hessian", "(len(x) / len(self.x))", "1"),
        ("_Hessian", "with ly.evaluation(self.network.model), ", "with "),
        ("_Hessian", "a.add_(b)", "b"),
    ],
)
def test_mutants_of_the_eigenvalues_are_caught(name, right, wrong):
    measure = mutated(module, name, right, wrong).hessian_eigenvalues
    with pytest.raises((AssertionError, RuntimeWarning, ValueError)):
        check_eigenvalues(lambda *a, **k: measure(*a, batch=7, **k))


def test_a_quadratic_loss_has_the_second_moments_of_the_inputs():
    """Half the squares of a linear network: H = 1 ⊗ X'X/n, each eigenvalue once for every output."""
    x, _ = data(50, 40)
    moments = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)
    w, y = [torch.ones(2, 40, dtype=torch.float64)], torch.ones(50, 2, dtype=torch.float64)
    found = hessian_eigenvalues(w, half, x, y, 4, which="both")
    exact = torch.stack([moments, moments], 1).flatten()
    # A Krylov space holds one vector of each eigenspace until rounding brings the others.
    torch.testing.assert_close(found.values[0], exact[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.values[-1], exact[-1], rtol=1e-7, atol=0)
    trace = hessian_trace(w, half, x, y, generator())
    assert abs(float(trace) - exact.sum().item()) <= 3 * trace.standard_error.item()


def test_eigenvalues_against_scipy_on_products_of_torch():
    torch.manual_seed(0)
    net = network(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    x, y = data(100, 20, 5)
    weights = list(net.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(net(x), y), weights, create_graph=True)
    p = sum(w.numel() for w in weights)

    def product(v):
        cut = torch.split(torch.from_numpy(v.reshape(-1)), [w.numel() for w in weights])
        cut = [c.view_as(w) for c, w in zip(cut, weights, strict=True)]
        return torch.cat([t.flatten() for t in torch.autograd.grad(gradient, weights, cut, retain_graph=True)]).numpy()

    operator = LinearOperator((p, p), matvec=product, dtype="float64")
    for which, code in (("largest", "LA"), ("smallest", "SA")):
        expected = sorted(eigsh(operator, 3, which=code, tol=1e-12, return_eigenvectors=False), reverse=True)
        found = hessian_eigenvalues(net, F.cross_entropy, x, y, 3, which=which)
        torch.testing.assert_close(found.values, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0)
        assert found.products < p / 2


def test_the_product_is_the_slope_of_the_gradient():
    """Central differences of the gradient, which know nothing of second derivatives."""
    net, (x, y) = smooth(), data()
    product = module._Hessian(net, F.cross_entropy, x, y, None)
    v = torch.randn(product.size, generator=generator(1), dtype=torch.float64)

    def gradient(step):
        moved, at = copy.deepcopy(net), 0
        for w in moved.parameters():
            w.data += step * v[at : at + w.numel()].view_as(w)
            at += w.numel()
        F.cross_entropy(moved(x), y).backward()
        return torch.cat([w.grad.flatten() for w in moved.parameters()])

    expected = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    torch.testing.assert_close(product(v), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_is_close_to_float64(name):
    x, y = data()
    exact = hessian_eigenvalues(NETWORKS[name](), F.cross_entropy, x, y, 2)
    found = hessian_eigenvalues(NETWORKS[name](torch.float32), F.cross_entropy, x.float(), y, 2)
    assert found.values.dtype == found.residuals.dtype == found.vectors.dtype == torch.float32
    assert found.converged
    torch.testing.assert_close(found.values.double(), exact.values, rtol=2e-6, atol=0)
    trace = hessian_trace(NETWORKS[name](torch.float32), F.cross_entropy, x.float(), y, generator(), target_se=0.05)
    assert trace.value.dtype == torch.float32
    exact = dense(NETWORKS[name](), x, y).trace().item()
    assert abs(float(trace) - exact) <= 3 * trace.standard_error.item() + 1e-5 * abs(exact)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kept", [True, False])
def test_batches_do_not_matter(name, kept, monkeypatch):
    model, (x, y) = NETWORKS[name](), data()
    expected = hessian_eigenvalues(model, F.cross_entropy, x, y, 2, which="both")
    trace = hessian_trace(model, F.cross_entropy, x, y, generator())
    if not kept:
        monkeypatch.setattr(module, "_KEPT", 0)
        monkeypatch.setattr(module, "_HELD", 40_000)
    for batch in (None, 1, 7, 40, 1000) if kept else (None, 11):
        found = hessian_eigenvalues(model, F.cross_entropy, x, y, 2, which="both", batch=batch)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-9, atol=1e-10)
        other = hessian_trace(model, cross_entropy, x, y, generator(), batch=batch)
        torch.testing.assert_close(other.value, trace.value, rtol=1e-6, atol=0)


def test_losses_of_each_sample_and_their_mean_agree():
    model, (x, y) = smooth(), data()
    expected = hessian_eigenvalues(model, F.cross_entropy, x, y).values
    for loss in (cross_entropy, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")):
        torch.testing.assert_close(hessian_eigenvalues(model, loss, x, y).values, expected)
    scores = nn.Sequential(model, nn.LogSoftmax(-1))
    torch.testing.assert_close(hessian_eigenvalues(scores, nn.NLLLoss(), x, y).values, expected)
    weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), reduction="none")
    h = dense(model, x, y, weighted)
    torch.testing.assert_close(hessian_eigenvalues(model, weighted, x, y).values, ends(h, 1)[0])
    target = F.one_hot(y, 3).double()
    for loss in (F.mse_loss, nn.MSELoss(), nn.SmoothL1Loss(), nn.BCEWithLogitsLoss()):
        found = hessian_eigenvalues(model, loss, x, target, 2, which="both")
        torch.testing.assert_close(found.values, torch.cat(ends(dense(model, x, target, loss), 2)))


def test_matrices_and_the_module_of_them_agree():
    w = gaussian_weights((4, 6, 3), generator())
    x, y = data()
    expected = torch.cat(ends(dense(w, x, y), 2))
    for model in (w, perceptron(w)):
        found = hessian_eigenvalues(model, F.cross_entropy, x, y, 2, which="both")
        torch.testing.assert_close(found.values, expected)


def test_the_order_of_samples_and_units_does_not_matter():
    w = gaussian_weights((4, 6, 3), generator())
    x, y = data()
    expected = hessian_eigenvalues(w, F.cross_entropy, x, y, 2).values
    order = torch.randperm(len(x), generator=generator(1))
    torch.testing.assert_close(hessian_eigenvalues(w, F.cross_entropy, x[order], y[order], 2).values, expected)
    units = torch.randperm(6, generator=generator(1))
    other = [w[0][units], w[1][:, units]]
    torch.testing.assert_close(hessian_eigenvalues(other, F.cross_entropy, x, y, 2).values, expected)
    twice = hessian_eigenvalues(w, F.cross_entropy, torch.cat([x, x]), torch.cat([y, y]), 2).values
    torch.testing.assert_close(twice, expected)
    scaled = hessian_eigenvalues(w, lambda s, c: 7 * cross_entropy(s, c), x, y, 2).values
    torch.testing.assert_close(scaled, 7 * expected)


@pytest.mark.parametrize("p", [1, 2, 3, 17, 18, 19, 26, 27])
def test_few_parameters(p):
    x, _ = data(60, p)
    y = torch.zeros(60, 1, dtype=torch.float64)
    w = [torch.ones(1, p, dtype=torch.float64)]
    exact = torch.linalg.eigvalsh(x.T @ x / 60).flip(0)
    for k in {1, max(1, p // 2), p - 1, p} - {0}:
        for which, expected in (("largest", exact[:k]), ("smallest", exact[-k:])):
            torch.testing.assert_close(hessian_eigenvalues(w, half, x, y, k, which=which).values, expected)
    with pytest.raises(ValueError, match=rf"^k: must be at most {p} for {p} parameters"):
        hessian_eigenvalues(w, half, x, y, p + 1)
    trace = hessian_trace(w, half, x, y, generator())
    assert abs(float(trace) - exact.sum().item()) <= 3 * trace.standard_error.item() + 1e-12
    assert (trace.standard_error == 0) == (p <= 26)


def test_a_loss_without_curvature():
    x, y = data(30, 40)
    w = [torch.ones(3, 40, dtype=torch.float64)]
    for k, which in ((1, "largest"), (2, "smallest"), (1, "both")):
        found = hessian_eigenvalues(w, first, x, y, k, which=which)
        assert found.converged
        assert (found.values == 0).all()
        assert (found.residuals == 0).all()
    trace = hessian_trace(w, first, x, y, generator())
    assert (float(trace), trace.standard_error.item(), trace.converged) == (0, 0, True)
    assert (hessian_eigenvalues(w, lambda s, c: 0 * s.square().sum(-1), x, y).values == 0).all()


def test_many_eigenvalues_of_zero_are_found():
    """Fewer samples than directions: all but a few eigenvalues of a convex loss are 0, at both ends of interest."""
    x, y = data(3, 40)
    w = [torch.zeros(3, 40, dtype=torch.float64)]
    h = dense(w, x, y)
    large, small = ends(h, 8)
    found = hessian_eigenvalues(w, F.cross_entropy, x, y, 8)
    torch.testing.assert_close(found.values, large, rtol=1e-6, atol=1e-6)
    found = hessian_eigenvalues(w, F.cross_entropy, x, y, 2, which="smallest")
    torch.testing.assert_close(found.values, small[-2:], rtol=0, atol=1e-6)


def test_the_kink_of_a_relu_has_no_curvature():
    """At 0 the derivative is taken to be 0: a network whose hidden units are all there is constant to second order."""
    w = [torch.zeros(4, 2, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)]
    x, y = data(20, 2)
    for model in (w, perceptron(w)):
        assert (hessian_eigenvalues(model, F.cross_entropy, x, y, which="both").values == 0).all()


def test_frozen_parameters_count():
    model, (x, y) = smooth(), data()
    expected = hessian_eigenvalues(model, F.cross_entropy, x, y).values
    for w in list(model.parameters())[:3]:
        w.requires_grad_(False)
    torch.testing.assert_close(hessian_eigenvalues(model, F.cross_entropy, x, y).values, expected)
    model.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    torch.testing.assert_close(hessian_eigenvalues(model, F.cross_entropy, x, y).values, expected)


def test_the_start_is_fixed_unless_a_generator_is_given():
    model, (x, y) = smooth(), data()
    runs = [hessian_eigenvalues(model, F.cross_entropy, x, y) for _ in range(2)]
    assert torch.equal(runs[0].vectors, runs[1].vectors)
    other = hessian_eigenvalues(model, F.cross_entropy, x, y, generator=generator(5))
    assert not torch.equal(other.vectors, runs[0].vectors)
    torch.testing.assert_close(other.values, runs[0].values)


def test_too_few_products_are_said():
    net = network(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    x, y = data(100, 20, 5)
    with pytest.warns(RuntimeWarning, match=r"^\d of 4 eigenvalues were found by \d+ products") as caught:
        found = hessian_eigenvalues(net, F.cross_entropy, x, y, 4, which="smallest", tol=1e-12, max_products=60)
    assert caught[0].filename == __file__
    assert not found.converged
    assert found.products <= 60
    assert found.values.isnan().any()
    with pytest.raises(ValueError, match=r"^max_products: must be at least 31 for k = 4"):
        hessian_eigenvalues(net, F.cross_entropy, x, y, 4, max_products=30)
    for most in (32, 40, 77):
        with pytest.warns(RuntimeWarning, match="has a standard error of") as caught:
            trace = hessian_trace(net, F.cross_entropy, x, y, generator(), target_se=1e-6, max_products=most)
        assert caught[0].filename == __file__
        assert not trace.converged
        assert trace.products <= most
        assert trace.standard_error > 1e-6


# Trace


def spectrum(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed), dtype=torch.float64)).Q
    return q * values @ q.T


def between(p=300):
    """Return a matrix that is large between its three blocks, and small in them."""
    a = torch.randn(p, p, generator=generator(3), dtype=torch.float64)
    for i in range(0, p, p // 3):
        a[i : i + p // 3, i : i + p // 3] = spectrum(torch.rand(p // 3, generator=generator(i)) / 4)
    return (a + a.T) / 2


MATRICES = {
    "rank 1": spectrum([5.0] + 119 * [0.0]),
    "harmonic": spectrum(1 / torch.arange(1, 121)),
    "outliers": spectrum(torch.cat([torch.linspace(10, 1, 12), torch.rand(108, generator=generator()) / 10])),
    "indefinite": spectrum(torch.randn(120, generator=generator()) + 1),
    "between blocks": between(),
    "identity": torch.eye(120, dtype=torch.float64),
    "ones": torch.ones(120, 120, dtype=torch.float64),
}


def check_coverage(estimate, names=MATRICES, seeds=100):
    """Assert that the error is as small as asked for, not too small, and holds: two of it in at least 95 of 100."""
    for name in names:
        h = MATRICES[name]
        exact = h.trace().item()
        for target in (0.05 * exact, None):
            within, squares = 0, []
            for seed in range(seeds):
                value, error, converged = estimate(
                    lambda v, h=h: h @ v, h.new_zeros(len(h)), 3 * [len(h) // 3], generator(seed), target, 1000
                )
                assert converged, name
                assert error <= (abs(value) / 20 if target is None else target), name
                z = (value - exact) / (error + 1e-10 * abs(exact))
                within, squares = within + (abs(z) <= 2), [*squares, z * z]
            assert within >= 0.95 * seeds, (name, target, within)
            assert sum(squares) < 1.2 * seeds, (name, target)


@pytest.mark.parametrize("name", MATRICES)
def test_standard_errors_hold(name):
    check_coverage(module._trace, [name])


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("_trace", "2 * square / len(found)", "square / len(found) / 4"),
        ("_trace", "rest.trace + float(quadratic.mean())", "float(quadratic.mean())"),
        ("_trace", "rest.trace + float(quadratic.mean())", "rest.trace"),
        ("_trace", "torch.split(all_blocks, list(blocks))[i]", "torch.split(all_blocks, list(blocks))[0]"),
        ("_Rest", "h - (v @ h) @ v", "h"),
        ("_Rest", "self.trace += a", "self.trace += self.below"),
    ],
)
def test_mutants_of_the_trace_are_caught(name, right, wrong):
    estimate = mutated(module, name, right, wrong)._trace
    with pytest.raises(AssertionError):
        check_coverage(estimate, ["outliers", "between blocks", "harmonic", "indefinite"], seeds=40)


def check_rest(space):
    for h in MATRICES.values():
        g, start = torch.randn(2, len(h), generator=generator(), dtype=torch.float64)
        rest = space(lambda v, h=h: h @ v, start, 9)
        for _ in range(9):
            rest.grow()
            v = rest.basis[: rest.steps]
            torch.testing.assert_close(v @ v.T, torch.eye(rest.steps, dtype=torch.float64), rtol=0, atol=1e-12)
            outside = torch.eye(len(h), dtype=torch.float64) - v.T @ v
            b = outside @ h @ outside
            torch.testing.assert_close(rest.times(g, rest.outside(h @ g)), b @ g, rtol=0, atol=1e-10 * float(h.norm()))
            assert rest.trace + b.trace().item() == pytest.approx(h.trace().item(), rel=1e-10)
            left = h.square().sum().item() - sum(rest.gains)
            if rest.invariant:
                break
        assert b.square().sum().item() == pytest.approx(left, abs=1e-8 * h.square().sum().item())


def test_the_rest_is_what_is_orthogonal_to_the_space():
    check_rest(module._Rest)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("- self.below * (self.basis[self.steps - 1] @ g) * self.after", ""),
        ("w -= (v @ w) @ v", "pass"),
        ("2 * self.below**2", "self.below**2"),
        ("self.trace += a", "self.trace -= a"),
    ],
)
def test_mutants_of_the_rest_are_caught(right, wrong):
    mutant = mutated(module, "_Rest", right, wrong)
    with pytest.raises(AssertionError):
        check_rest(mutant._Rest)


def test_blocks_spare_products_where_most_lies_between_them():
    for name, most in (("between blocks", 0.5), ("outliers", 1.01)):
        h, used = MATRICES[name], []
        for blocks in (3 * [len(h) // 3], [len(h)]):
            counted = []

            def product(v, h=h, counted=counted):
                counted.append(v)
                return h @ v

            module._trace(product, h.new_zeros(len(h)), blocks, generator(), None, 5000)
            used.append(len(counted))
        assert used[0] <= most * used[1], (name, used)


@pytest.mark.parametrize("name", NETWORKS)
def test_trace_against_the_dense_matrix(name):
    model, (x, y) = NETWORKS[name](), data()
    exact = dense(model, x, y).trace().item()
    within = 0
    for seed in range(20):
        found = hessian_trace(model, F.cross_entropy, x, y, generator(seed))
        assert found.converged
        assert found.standard_error <= 0.05 * abs(float(found)) * (1 + 1e-12)
        within += abs(float(found) - exact) <= 2 * found.standard_error + 1e-12
    assert within >= 18
    exactly = hessian_trace(model, F.cross_entropy, x, y, generator(), target_se=1e-9)
    assert float(exactly) == pytest.approx(exact, abs=1e-8)


# The model is left as it was; memory; refusals


MEASURES = {
    "eigenvalues": lambda *a, **k: hessian_eigenvalues(*a, **k).values,
    "trace": lambda *a, **k: hessian_trace(*a, generator(), **k).value,
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("kept", [2**29, 0])
def test_the_model_is_left_as_it_was(name, kept, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", kept)
    model, (x, y) = convolutional(), data()
    expected = MEASURES[name](model, F.cross_entropy, x, y)
    model.train()
    model[1].eval()
    model[-1].bias.requires_grad_(False)
    for i, w in enumerate(model.parameters()):
        w.grad = torch.full_like(w, i)
    before, modes = copy.deepcopy(model), [part.training for part in model.modules()]
    grads, versions = [w.grad.clone() for w in model.parameters()], [w._version for w in model.parameters()]
    state, copies = torch.random.get_rng_state(), (x.clone(), y.clone())
    value = MEASURES[name](model, F.cross_entropy, x, y)
    assert torch.equal(value, expected)
    assert not value.requires_grad
    assert [part.training for part in model.modules()] == modes
    pairs = zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(w.grad, g) for w, g in zip(model.parameters(), grads, strict=True))
    assert [w._version for w in model.parameters()] == versions
    assert [w.requires_grad for w in model.parameters()] == [True] * (len(grads) - 1) + [False]
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(name, mode):
    expected = MEASURES[name](smooth(), F.cross_entropy, *data())
    model = smooth()
    with mode():
        torch.testing.assert_close(MEASURES[name](model, F.cross_entropy, *data()), expected)
        made_there = smooth()
        torch.testing.assert_close(MEASURES[name](made_there, F.cross_entropy, *data()), expected)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(MEASURES[name](made_there, F.cross_entropy, *data()), expected)


def test_many_samples_fit_in_two_gigabytes():
    """60,000 images of MNIST's size: what their graphs hold, and what a product of all would need, is too much."""
    code = """
import resource, torch
from torch.nn import functional as F
from implicitreg.measures.hessian import _Hessian
from implicitreg.nets import gaussian_weights
torch.set_num_threads(1)
w = gaussian_weights((784, 256, 256, 10), torch.Generator().manual_seed(0))
x = torch.rand(60_000, 784, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
product = _Hessian(w, F.cross_entropy, x, torch.arange(60_000) % 10, None)
assert not product.kept
product(torch.ones(product.size, dtype=torch.float64))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(run.stdout) < 1.6 * 2**20  # KiB, leaving some for what holds the vectors


@pytest.mark.parametrize("name", MEASURES)
def test_bad_data_are_named(name):
    measure, (x, y) = MEASURES[name], data()
    for model in (gaussian_weights((4, 6, 3), generator()), smooth()):

        def call(x=x, y=y, model=model, loss=F.cross_entropy, **k):
            return measure(model, loss, x, y, **k)

        for bad in (y + 1, y - 1):
            with pytest.raises(ValueError, match=r"^y: must lie in 0 \.\.\. 2"):
                call(y=bad)
        with pytest.raises(ValueError, match=r"^x: must hold at least one sample"):
            call(x[:0], y[:0])
        with pytest.raises(ValueError, match=r"^x: of shape \(\d+, 3\) and torch.float64 does not fit the model"):
            call(x[:, 1:])
        with pytest.raises(ValueError, match=r"^x: of shape \(\d+, 4\) and torch.float32 does not fit the model"):
            call(x.float())
        with pytest.raises(TypeError, match=r"^x: must have dtype float32 or float64, got int64"):
            call(x.long())
        with pytest.raises(TypeError, match=r"^x: must be a torch.Tensor, got list"):
            call(x.tolist())
        with pytest.raises(ValueError, match=r"^x: must be finite"):
            call(x * math.nan)
        last = x.clone()
        last[33, 2] = math.inf
        with pytest.raises(ValueError, match=r"^x: must be finite"):
            call(last)
        with pytest.raises(ValueError, match=r"^y: must have one entry for each of the 40 samples"):
            call(y=y[1:])
        with pytest.raises(TypeError, match=r"^y: must have dtype int64, float32 or float64, got int32"):
            call(y=y.int())
        with pytest.raises(TypeError, match=r"^y: must be a torch.Tensor, got list"):
            call(y=y.tolist())
        with pytest.raises(ValueError, match=r"^x: must be on cpu, where the model is, got meta"):
            call(x.to("meta"))
        with pytest.raises(ValueError, match=r"^y: must be on cpu, where the model is, got meta"):
            call(y=y.to("meta"))
        with pytest.raises(ValueError, match=r"^y: must be finite"):
            call(y=torch.full((40, 3), math.nan, dtype=torch.float64), loss=F.mse_loss)
        for width in (1, 2):  # the first would broadcast
            with pytest.raises(ValueError, match=r"^y: must have the shape of the outputs"):
                call(y=torch.zeros(40, width, dtype=torch.float64), loss=F.mse_loss)
        for batch in (0, 1.5, True):
            with pytest.raises(ValueError, match=r"^batch: must be an integer >= 1"):
                call(batch=batch)
        with pytest.raises(ValueError, match=r"^max_products: must be an integer >= "):
            call(max_products=0)


@pytest.mark.parametrize("name", MEASURES)
def test_bad_models_are_named(name):
    measure, (x, y) = MEASURES[name], data()
    mixed = smooth()
    mixed[0].float()
    broken = smooth()
    broken[2].weight.data[0, 0] = math.nan
    cases = {
        r"^model: must have parameters": nn.Identity(),
        r"^model: parameters must have one dtype, got torch.float32, torch.float64": mixed,
        r"^model: '2.weight': must be finite": broken,
        r"^model: parameters must have values, got device meta": smooth().to("meta"),
        r"^model: must be one network": [torch.ones(2, 3, 4, dtype=torch.float64)],
        r"^model: outputs must have shape \(n, \.\.\.\)": network(nn.Linear(4, 3), nn.Flatten(0)),
        r"^model: outputs: must be finite": nn.Sequential(smooth(), Logarithm()),
    }
    for message, model in cases.items():
        with pytest.raises(ValueError, match=message):
            measure(model, F.cross_entropy, x, y)
    for model in (None, len, {}):
        with pytest.raises(TypeError, match=r"^model: must be a torch.nn.Module or a sequence"):
            measure(model, F.cross_entropy, x, y)
    with pytest.raises(TypeError, match=r"must have dtype float32 or float64, got bfloat16"):
        measure(smooth().bfloat16(), F.cross_entropy, x, y)


class Logarithm(nn.Module):
    def forward(self, x):
        return x.log()


@pytest.mark.parametrize("name", MEASURES)
def test_bad_losses_are_named(name):
    measure, model, (x, y) = MEASURES[name], smooth(), data()
    target = F.one_hot(y, 3).double()

    def summed(scores, labels):
        return F.cross_entropy(scores, labels, reduction="sum")

    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    for loss, targets in (
        (summed, y),
        (nn.CrossEntropyLoss(weights), y),
        (nn.MSELoss(reduction="sum"), target),
        (lambda f, t: (f - t).norm(), target),
    ):
        with pytest.raises(ValueError, match=r"^loss: must be the mean over the samples or the loss of each"):
            measure(model, loss, x, targets)
        if loss is summed:
            with pytest.raises(ValueError, match=r"^loss: must be the mean"):
                measure(model, loss, x[:1], targets[:1])
    cases = {
        r"^loss: must return the loss of each sample, shape \(\d+,\), or their mean, got \(\d+, 3\)": lambda f, t: f,
        r"^loss: must return the loss of each sample, shape \(\d+,\), or their mean, got float": lambda f, t: 1.0,
        r"^loss: must be a differentiable function of the parameters": lambda f, t: (f.argmax(-1) != t).double(),
        r"^loss: must be finite": lambda f, t: f.sum(-1) * math.nan,
        r"^loss: second derivatives: must be finite": lambda f, t: (f - f.detach()).square().sum(-1).sqrt() + f.sum(-1),
        r"^loss: must be twice differentiable": lambda f, t: torch.cdist(f, f.new_zeros(1, 3), p=3).square().mean(),
    }
    for message, loss in cases.items():
        with pytest.raises(ValueError, match=message):
            measure(model, loss, x, y)
    with pytest.raises(TypeError, match=r"^loss: must be callable, got str"):
        measure(model, "mse", x, y)
    one = network(nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"^y: must have the shape of the outputs, \(\d+, 1\), got \(\d+,\)"):
        measure(one, F.mse_loss, x, torch.zeros(40, dtype=torch.float64))


def test_other_bad_arguments_are_named():
    model, (x, y) = smooth(), data()
    for k in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match=r"^k: must be an integer >= 1"):
            hessian_eigenvalues(model, F.cross_entropy, x, y, k)
    with pytest.raises(ValueError, match=r"^k: must be at most 41 for 83 parameters and which='both', got 42"):
        hessian_eigenvalues(model, F.cross_entropy, x, y, 42, which="both")
    with pytest.raises(ValueError, match=r"^which: must be 'largest', 'smallest' or 'both', got 'LM'"):
        hessian_eigenvalues(model, F.cross_entropy, x, y, which="LM")
    for tol in (0, 1, -1e-3, math.nan, "1"):
        with pytest.raises(ValueError, match=r"^tol: must be a number > 0 and < 1"):
            hessian_eigenvalues(model, F.cross_entropy, x, y, tol=tol)
    with pytest.raises(TypeError, match=r"^generator: must be a torch.Generator"):
        hessian_eigenvalues(model, F.cross_entropy, x, y, generator=0)
    with pytest.raises(TypeError, match=r"^generator: must be a torch.Generator"):
        hessian_trace(model, F.cross_entropy, x, y, None)
    for target in (0, -1, math.nan, math.inf, "1", True):
        with pytest.raises(ValueError, match=r"^target_se: must be a finite number > 0"):
            hessian_trace(model, F.cross_entropy, x, y, generator(), target_se=target)


# Eigenvectors in float32, values in float64


class Precise(nn.Module):
    """Takes float64 alone, or leaves the range of float32."""

    def __init__(self, scale=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        self.scale = scale

    def forward(self, x):
        if self.scale is None:
            return self.net(x) @ torch.eye(3, dtype=torch.float64)
        return self.net(x) * self.scale / self.scale


@pytest.mark.parametrize("model", [Precise(), Precise(1e200), Precise(1.0)], ids=["float64 alone", "range", "either"])
@pytest.mark.parametrize("which", ["largest", "both"])
def test_precision_does_not_depend_on_where_vectors_are_looked_for(model, which):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (40,), generator=generator)
    found = hessian_eigenvalues(model, F.cross_entropy, x, y, which=which)
    tight = hessian_eigenvalues(model, F.cross_entropy, x, y, which=which, tol=1e-12)
    assert found.converged
    torch.testing.assert_close(found.values, tight.values, rtol=1e-8, atol=1e-11)
    operator = hessian._Hessian(model, F.cross_entropy, x, y, None)
    residuals = [(operator(v) - value * v).norm() for v, value in zip(found.vectors, found.values, strict=True)]
    torch.testing.assert_close(found.residuals, torch.stack(residuals).detach(), rtol=1e-3, atol=1e-13)
    assert (operator.cast(torch.float32) is None) == (model.scale != 1)


class Single(nn.Module):
    """Takes float32 alone."""

    def __init__(self):
        super().__init__()
        self.net = network(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)).float()

    def forward(self, x):
        return self.net(x) @ torch.eye(5)


def test_values_of_networks_in_float32_come_from_products_in_float64():
    model = Single()
    x, y = data(100, 20, 5)
    for tol in (None, 1e-12):
        found = hessian_eigenvalues(model.net, F.cross_entropy, x.float(), y, 2, tol=tol)
        exact = hessian_eigenvalues(
            copy.deepcopy(model.net).double(), F.cross_entropy, x.float().double(), y, 2, tol=tol
        )
        assert found.converged
        assert found.values.dtype == found.vectors.dtype == torch.float32
        torch.testing.assert_close(found.values.double(), exact.values, rtol=1e-7, atol=0)
    single = hessian_eigenvalues(model, F.cross_entropy, x.float(), y, 2)
    assert single.converged
    torch.testing.assert_close(single.values, found.values, rtol=1e-5, atol=0)
    # There its rounding is larger than what is asked for.
    with pytest.warns(RuntimeWarning, match="eigenvalues were found"):
        found = hessian_eigenvalues(model, F.cross_entropy, x.float(), y, tol=1e-12)
    assert not found.converged


def test_products_of_both_precisions_are_counted_and_bounded(monkeypatch):
    model = Precise(1.0)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(40) % 3
    count = []
    original = hessian._Hessian.__call__
    monkeypatch.setattr(hessian._Hessian, "__call__", lambda self, v: count.append(self.dtype) or original(self, v))
    found = hessian_eigenvalues(model, F.cross_entropy, x, y)
    assert found.products == len(count) - 2  # by which symmetry is tried, on some samples
    # Vectors that single precision is made to get wrong are found out, and looked for in double precision.
    monkeypatch.setattr(
        hessian._Hessian, "__call__", lambda self, v: original(self, v) * (1 if self.weights[0].dtype == x.dtype else v)
    )
    again = hessian_eigenvalues(model, F.cross_entropy, x, y)
    assert again.converged
    assert again.products > found.products
    torch.testing.assert_close(again.values, found.values, rtol=1e-8, atol=0)
    with pytest.warns(RuntimeWarning, match="eigenvalues were found by"):
        few = hessian_eigenvalues(model, F.cross_entropy, x, y, max_products=20)
    assert few.products <= 20


@pytest.mark.parametrize("model", [Precise(), Precise(1e200), Precise(1.0)], ids=["float64 alone", "range", "either"])
def test_the_trace_is_as_precise_as_it_says(model):
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(40) % 3
    operator = hessian._Hessian(model, F.cross_entropy, x, y, None)
    exact = float(hessian._dense(operator, torch.zeros(operator.size, dtype=torch.float64)).trace())
    for target in (None, 0.01 * exact, 1e-7 * exact):
        found = hessian_trace(
            model, F.cross_entropy, x, y, torch.Generator().manual_seed(1), target_se=target, max_products=5000
        )
        assert found.converged
        assert abs(float(found) - exact) <= 4 * float(found.standard_error) + 1e-9 * exact
        assert found.standard_error <= (exact / 19 if target is None else target)
