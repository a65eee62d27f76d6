"""Ensembles of recurrent networks: against autograd with Path-SGD and SGD, one network at a time."""

import pytest
import torch

from implicitreg.data import addition_problem
from implicitreg.dynamics import PathSGD, train_recurrent
from implicitreg.nets import ReLURecurrent

T = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start(m=3, h=8):
    g = generator()
    w = [torch.randn(m, *shape, generator=g, dtype=torch.float64) / 4 for shape in ((h, 2), (h, h), (1, h))]
    w[1] += torch.eye(h, dtype=torch.float64)
    return w


def stream(seeds):
    """Return draws of sequences, one stream for each member."""
    members = [generator(s) for s in seeds]

    def draw(n):
        pairs = [addition_problem(n, T, g) for g in members]
        return tuple(torch.stack(part) for part in zip(*pairs, strict=True))

    return draw


test_set = addition_problem(50, T, generator(99))


def alone(w, draw, make, updates):
    """Train one network with autograd; return its weights and test error."""
    net = ReLURecurrent(*w, T)
    optimiser, clip = make(net)
    for _ in range(updates):
        x, y = draw(20)
        optimiser.zero_grad()
        (net(x[0]) - y[0]).square().mean().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimiser.step()
    x, y = test_set
    return [p.detach() for p in net.parameters()], (net(x) - y).square().mean().detach()


@pytest.mark.parametrize("clip", [None, 0.1])
def test_sgd_is_that_of_torch(clip):
    w, rates = start(), [0.01, 0.02, 0.05]
    trained = train_recurrent(
        w, stream([1, 2, 3]), *test_set, lr=torch.tensor(rates), updates=25, batch=20, momentum=0.9, clip=clip
    )
    for k, lr in enumerate(rates):
        expected, error = alone(
            [each[k] for each in w],
            stream([k + 1]),
            lambda net, lr=lr: (torch.optim.SGD(net.parameters(), lr, momentum=0.9), clip),
            25,
        )
        for a, b in zip(trained.weights, expected, strict=True):
            # The rates come in float32 here.
            torch.testing.assert_close(a[k], b, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(trained.error[k, -1], error, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [{}, {"second": False}, {"damping": 0.01, "clip": 0.05}, {"second": False, "damping": 0.1}],
)
def test_path_sgd_is_that_of_the_optimiser(options):
    w = start()
    trained = train_recurrent(
        w, stream([1, 2, 3]), *test_set, lr=1e-3, updates=25, batch=20, momentum=0.5, method="path-sgd", **options
    )
    for k in range(3):
        expected, error = alone(
            [each[k] for each in w],
            stream([k + 1]),
            lambda net: (PathSGD(net, 1e-3, momentum=0.5, **options), None),
            25,
        )
        for a, b in zip(trained.weights, expected, strict=True):
            torch.testing.assert_close(a[k], b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(trained.error[k, -1], error, rtol=1e-9, atol=1e-12)


def test_members_may_share_their_data_and_starts_are_kept():
    w = start()
    before = [each.clone() for each in w]
    shared = train_recurrent(w, stream([4]), *test_set, lr=0.01, updates=7, batch=20, check_every=3)
    apart = train_recurrent(w, stream([4, 4, 4]), *test_set, lr=0.01, updates=7, batch=20, check_every=3)
    assert shared.updates.tolist() == [3, 6, 7]
    assert shared.error.shape == (3, 3)
    torch.testing.assert_close(shared.error, apart.error)
    assert all(torch.equal(a, b) for a, b in zip(w, before, strict=True))


def test_a_coarse_gradient_keeps_rounding_errors_from_growing():
    w = start(h=16)
    w[1] = torch.eye(16, dtype=torch.float64).expand(3, 16, 16)
    x, y = addition_problem(50, 20, generator(99))
    grown = []
    for resolution in (0.0, 2.0**-18):
        ends = []
        for first in (w[0], w[0] * (1 + 1e-15)):
            members = [generator(s) for s in (1, 2, 3)]

            def draw(n, members=members):
                pairs = [addition_problem(n, 20, g) for g in members]
                return tuple(torch.stack(part) for part in zip(*pairs, strict=True))

            trained = train_recurrent(
                [first, *w[1:]], draw, x, y, lr=0.01, updates=250, batch=8, momentum=0.9, clip=1.0,
                resolution=resolution,
            )  # fmt: skip
            ends.append(trained.error[:, -1])
        grown.append((ends[0] / ends[1] - 1).abs().max())
    assert grown[0] > 1e-6
    assert grown[1] < 1e-11


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resolution": -1.0}, "resolution"),
        ({"lr": 0.0}, "lr: must be a finite number > 0"),
        ({"lr": torch.ones(2)}, "lr: must be a number or have shape"),
        ({"updates": 0}, "updates: must be an integer >= 1"),
        ({"batch": 0}, "batch"),
        ({"momentum": 1}, "momentum: must be a number >= 0 and < 1"),
        ({"method": "adam"}, "method: must be one of sgd, path-sgd, got 'adam'"),
        ({"damping": -1.0}, "damping"),
        ({"clip": 0.0}, "clip"),
        ({"check_every": 0}, "check_every"),
        ({"weights": start()[:2]}, "weights: must be w_in, w_rec and w_out, got 2"),
        ({"weights": [w[0] for w in start()]}, r"weights: must have shapes \(m, h, inputs\)"),
        ({"x_test": test_set[0][..., :1]}, "x_test: must have shape"),
        ({"y_test": test_set[1][:4]}, "y_test"),
    ],
)
def test_refusals(arguments, words):
    given = {"weights": start(), "x_test": test_set[0], "y_test": test_set[1], "lr": 0.1, "updates": 1, **arguments}
    with pytest.raises(ValueError, match=words):
        train_recurrent(draw=stream([1]), **given)
