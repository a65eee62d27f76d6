"""Top eigenvalue and trace of a Hessian against curvlinops, PyHessian and fresh double backward passes of torch."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional as F  # noqa: N812

from implicitreg.data import digits
from implicitreg.measures import hessian_eigenvalues, hessian_trace


def peer(name):
    """Return a package, or None where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what they import
        try:
            return __import__(name)
        except ImportError:
            return None


curvlinops, pyhessian = peer("curvlinops"), peer("pyhessian")
# What the peers leave behind, and which of torch's functions they use, is their business.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning")]
TOL = {torch.float64: 2e-5, torch.float32: 1e-4}


def problem(dtype, steps, width=256, n=1000):
    """Return 64-width-width-10 with biases after some steps of gradient descent with momentum, and n digits."""
    images = digits()
    x, y = images.images.flatten(1)[:n], images.labels[:n]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    net = nn.Sequential(*layers).double()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    optimiser.zero_grad()
    return net.to(dtype), x.to(dtype), y


def top(operator, tol):
    return float(eigsh(operator, 1, which="LA", tol=tol, return_eigenvectors=False)[0])


def by_curvlinops(net, x, y):
    loss, weights = nn.CrossEntropyLoss(), list(net.parameters())
    return curvlinops.HessianLinearOperator(net, loss, weights, [(x, y)], check_deterministic=False)


def by_torch(net, x, y):
    """Differentiate twice for each product, as one writes it down."""
    weights = list(net.parameters())
    sizes = [w.numel() for w in weights]

    def product(v):
        parts = torch.split(torch.from_numpy(v.reshape(-1)).to(x.dtype), sizes)
        gradient = torch.autograd.grad(F.cross_entropy(net(x), y), weights, create_graph=True)
        inner = sum((g * p.view_as(g)).sum() for g, p in zip(gradient, parts, strict=True))
        return torch.cat([h.flatten() for h in torch.autograd.grad(inner, weights)]).numpy()

    dtype = np.float64 if x.dtype == torch.float64 else np.float32
    return LinearOperator((sum(sizes), sum(sizes)), matvec=product, dtype=dtype)


def by_power_iteration(net, x, y):
    """PyHessian with its defaults; it leaves gradients, which are taken away."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value = pyhessian.hessian(net, F.cross_entropy, data=(x, y), cuda=False).eigenvalues()[0][0]
    for w in net.parameters():
        w.grad = None
    return value


def eigenvalue_methods(net, x, y):
    tol = TOL[x.dtype]
    return {
        "this library": lambda: float(hessian_eigenvalues(net, F.cross_entropy, x, y).values),
        "curvlinops + eigsh": curvlinops and (lambda: top(by_curvlinops(net, x, y).to_scipy(), tol)),
        "PyHessian": pyhessian and (lambda: by_power_iteration(net, x, y)),
        "torch + eigsh": lambda: top(by_torch(net, x, y), tol),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("steps", [100, 0], ids=["trained", "start"])
def test_top_eigenvalue(compare, grow, dtype, steps):
    net, x, y = problem(dtype, steps)
    # The Hessian of the rounded parameters, in float64.
    double = problem(dtype, steps)[0].double()
    exact = top(by_torch(double, x.double(), y), 1e-13)
    compare(
        f"top eigenvalue of the Hessian, {'after 100 steps' if steps else 'at the start'}, {str(dtype)[6:]}",
        eigenvalue_methods(net, x, y),
        error=lambda found: abs(found / exact - 1),
        budget=4,
    )
    if steps and dtype == torch.float64:

        def wide(width):
            found = eigenvalue_methods(*problem(dtype, steps, width))
            return {name: run for name, run in found.items() if run}

        grow("top eigenvalue of the Hessian, in the width", (64, 128, 256, 512), wide, budget=2)


def exact_trace(net, x, y):
    """Return the trace in closed form: a network of ReLUs has no second derivative in a single weight.

    So the diagonal of the Hessian is that of JᵀAJ, A the Hessian of the cross-entropy in the scores.
    """
    with torch.no_grad():
        inputs = [x]
        for layer in net:
            inputs.append(layer(inputs[-1]))
        p = torch.softmax(inputs[-1], -1)
        values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
        roots = (vectors * values.clamp_min(0).sqrt()[:, None]).unbind(-1)
        total = 0.0
        for slope in roots:
            for layer, a in zip(reversed(net), reversed(inputs[:-1]), strict=True):
                if isinstance(layer, nn.Linear):
                    total += float((slope.square().sum(-1) * (a.square().sum(-1) + 1)).sum())
                    slope = slope @ layer.weight
                else:
                    slope = slope * (a > 0)
        return total / len(x)


class Counted:
    """The Hessian for curvlinops' estimators, by the products of one graph: what they need is found out faster."""

    def __init__(self, net, x, y):
        self.weights = list(net.parameters())
        self.sizes = [w.numel() for w in self.weights]
        self.gradient = torch.autograd.grad(F.cross_entropy(net(x), y), self.weights, create_graph=True)
        self.shape, self.device, self.dtype = (sum(self.sizes),) * 2, x.device, x.dtype

    def __matmul__(self, columns):
        found = []
        for v in columns.T.contiguous():
            parts = [p.view_as(w) for p, w in zip(torch.split(v, self.sizes), self.weights, strict=True)]
            h = torch.autograd.grad(self.gradient, self.weights, parts, retain_graph=True)
            found.append(torch.cat([each.flatten() for each in h]))
        return torch.stack(found, 1)


def root_mean_square(estimate, exact, seeds):
    """Return the relative error of an estimate over some seeds of torch's generator."""
    errors = []
    for seed in range(seeds):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            errors.append(float(estimate()) / exact - 1)
    return math.sqrt(sum(e * e for e in errors) / seeds)


def needed(estimate, operator, exact, aim):
    """Return how many products make the error of an estimator that of ours, and that error.

    Beyond those that are tried, the error is taken to fall like that of Hutchinson's, as 1/√products.
    """
    for products in (12, 18, 24, 36, 54, 78):
        off = root_mean_square(lambda n=products: estimate(operator, n), exact, 6)
        if off <= aim:
            return products, off
    return round(products * (off / aim) ** 2), aim


def test_trace(benchmark, record, seconds):
    """Each estimator of curvlinops with as many products as make its error that of one call of ours."""
    net, x, y = problem(torch.float64, 100)
    exact = exact_trace(net, x, y)
    generator = torch.Generator().manual_seed(0)
    job = "trace of the Hessian, standard error 2 %, after 100 steps, float64"
    benchmark.group = job

    def ours():
        return hessian_trace(net, F.cross_entropy, x, y, generator, target_se=0.02 * abs(exact))

    benchmark.pedantic(ours)
    aim = root_mean_square(ours, exact, 20)
    assert aim < 0.03
    best, errors, methods = {"this library": math.inf}, {"this library": aim}, {}
    operator = Counted(net, x, y)
    for name in ("hutchpp", "xtrace", "hutchinson"):
        method = f"curvlinops, {name}"
        best[method] = None
        if curvlinops:
            estimate = getattr(curvlinops, "xtrace" if name == "xtrace" else f"{name}_trace")
            products, errors[method] = needed(estimate, operator, exact, aim)
            # A long run is extrapolated from a short one: its time is that of the products.
            methods[method] = estimate, min(products, 78), max(1, products / 78)
            best[method] = math.inf
    for _ in range(3):
        best["this library"] = min(best["this library"], *(seconds(1, ours)[0] for _ in range(3)))
        for method, (estimate, products, factor) in methods.items():
            took, _ = seconds(1, lambda e=estimate, n=products: e(by_curvlinops(net, x, y), n))
            best[method] = min(best[method], factor * took)
    record(job, "this library", best, errors)
