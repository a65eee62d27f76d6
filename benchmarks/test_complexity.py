"""Geometric complexity against Jacobian matrices by torch.func and against a backward pass for each sample."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from implicitreg.data import digits
from implicitreg.measures import geometric_complexity


def network(kind, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "64-256×2-10":
            layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
        else:
            layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
        return nn.Sequential(*layers).to(dtype).eval()


def by_jacobians(net, x):
    """Take the Jacobian matrices of all samples at once, as torch.func documents it."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def single(x):
        return functional_call(net, parameters, (x[None],))[0]

    return vmap(jacrev(single), chunk_size=100)(x).square().sum((1, 2)).mean()


def by_samples(net, x):
    """Pass back once for each output of each sample."""
    total = 0.0
    for each in x.clone()[:, None]:
        each.requires_grad_()
        for f in net(each)[0]:
            (gradient,) = torch.autograd.grad(f, each, retain_graph=True)
            total += float(gradient.square().sum())
    return total / len(x)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("64-256×2-10", torch.float32), ("64-256×2-10", torch.float64), ("convolutional", torch.float32)],
    ids=["perceptron-float32", "perceptron-float64", "convolutional-float32"],
)
def test_geometric_complexity(compare, grow, kind, dtype):
    n = 1000 if kind == "64-256×2-10" else 300
    x = digits(dtype=dtype).images.flatten(1)[:n]
    net = network(kind, dtype)
    expected = by_samples(network(kind, dtype).double(), x.double())

    def methods(n):
        return {
            "this library": lambda: geometric_complexity(net, x[:n]),
            "vmap of jacrev": lambda: by_jacobians(net, x[:n]),
        }

    compare(
        f"geometric complexity, {kind}, {str(dtype)[6:]}",
        {**methods(n), "a sample at a time": lambda: by_samples(net, x)},
        error=lambda found: abs(float(found) / expected - 1),
    )
    if kind == "64-256×2-10" and dtype == torch.float64:
        grow("geometric complexity, in the samples", (125, 250, 500, 1000), methods)
