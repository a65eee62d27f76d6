"""Networks built by hand: every labelling of the hypercube, depth that costs no norm, sums of networks."""

import itertools
import math

import pytest
import torch

from implicitreg.nets import deepened, gaussian_weights, hypercube, outputs, shattering_network, side_by_side


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labelings(dim, n=None):
    if n is None:
        return torch.tensor(list(itertools.product((1.0, -1.0), repeat=2**dim)), dtype=torch.float64)
    return 1.0 - 2 * torch.randint(2, (n, 2**dim), generator=generator(dim)).double()


def group_norm(weights, p, q):
    rows = [torch.linalg.vector_norm(torch.linalg.vector_norm(w, p, dim=-1), q, dim=-1) for w in weights]
    return torch.stack(rows).prod(0)


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_hypercube(dim):
    x = hypercube(dim)
    assert [tuple(row) for row in x.tolist()] == list(itertools.product((1.0, -1.0), repeat=dim))
    assert torch.equal(hypercube(dim, constant=True), torch.cat([x, torch.ones(2**dim, 1)], -1))


@pytest.mark.parametrize(("dim", "n"), [(1, None), (2, None), (3, None), (4, 500), (6, 50)])
def test_every_labelling_is_met_exactly(dim, n):
    labels = labelings(dim, n)
    f = outputs(shattering_network(labels), hypercube(dim, constant=True))
    assert torch.equal(f[..., 0], labels)


@pytest.mark.parametrize(("p", "q"), [(1, math.inf), (2, math.inf), (2, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_norm_of_the_construction(dim, p, q):
    found = group_norm(shattering_network(labelings(dim, 3)), p, q)
    per_layer = 1 if q == math.inf else 2 ** (dim / q)
    formula = per_layer * (dim + (dim - 1) ** p) ** (1 / p) * 2 ** (dim / p)
    torch.testing.assert_close(found, torch.full((3,), formula, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_without_threshold_most_labellings_are_missed_from_three_dimensions_on(dim):
    labels = labelings(dim) if dim < 4 else labelings(dim, 500)
    network = shattering_network(labels, threshold=False)
    met = (labels * outputs(network, hypercube(dim))[..., 0] >= 1 - 1e-9).all(-1).double().mean()
    assert met == 1 if dim < 3 else met < 0.5


@pytest.mark.parametrize("dim", [3, 5])
def test_parity_is_out_of_reach_of_two_layers_without_threshold(dim):
    x = hypercube(dim)
    weights = gaussian_weights((dim, 40, 1), generator())
    correlation = (x.prod(-1) * outputs(weights, x)[:, 0]).mean()
    assert abs(correlation) < 1e-12
    three = gaussian_weights((dim, 40, 40, 1), generator())
    assert abs((x.prod(-1) * outputs(three, x)[:, 0]).mean()) > 1e-6


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_depth_keeps_outputs_and_changes_the_norm_as_told(layers, width):
    labels = (labelings(3, 5) + 1) / 2
    base = shattering_network(labels)
    deep = deepened(base, width, layers)
    x = hypercube(3, constant=True)
    assert len(deep) == 2 + layers
    torch.testing.assert_close(outputs(deep, x)[..., 0], labels, rtol=1e-13, atol=1e-13)
    for p, q in ((2, math.inf), (4, 4), (1, math.inf), (2, 2), (1, 1)):
        factor = width ** (layers * ((0 if q == math.inf else 1 / q) + 1 / p - 1))
        torch.testing.assert_close(group_norm(deep, p, q), factor * group_norm(base, p, q), rtol=1e-12, atol=0)


def test_depth_loses_negative_outputs():
    labels = labelings(2, 5)
    f = outputs(deepened(shattering_network(labels), 3), hypercube(2, constant=True))[..., 0]
    torch.testing.assert_close(f, labels.clamp_min(0))


@pytest.mark.parametrize("sizes", [(3, 2), (3, 4, 2), (3, 4, 5, 1), (2, 3, 4, 5, 6)])
def test_side_by_side_is_the_sum(sizes):
    wider = (sizes[0], *(h + 2 for h in sizes[1:-1]), sizes[-1])
    u = [torch.stack(w) for w in zip(*(gaussian_weights(sizes, generator(k)) for k in range(4)), strict=True)]
    v = [torch.stack(w) for w in zip(*(gaussian_weights(wider, generator(9 + k)) for k in range(4)), strict=True)]
    x = torch.randn(7, sizes[0], dtype=torch.float64, generator=generator(5))
    torch.testing.assert_close(outputs(side_by_side(u, v), x), outputs(u, x) + outputs(v, x), rtol=1e-12, atol=1e-12)


def test_float32_stays_float32_and_weights_are_copies():
    labels = labelings(2, 2).float()
    weights = shattering_network(labels)
    assert {w.dtype for w in weights} == {torch.float32}
    before = labels.clone()
    for w in weights:
        w.zero_()
    assert torch.equal(labels, before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hypercube(0), ValueError, "dim: must be an integer >= 1"),
        (lambda: hypercube(13), ValueError, "dim: must be at most 12"),
        (lambda: shattering_network([1.0, -1.0]), TypeError, "labels: must be a torch.Tensor"),
        (lambda: shattering_network(torch.ones(3)), ValueError, r"labels: must have shape \(..., 2\*\*D\)"),
        (lambda: shattering_network(torch.ones(1)), ValueError, r"labels: must have shape \(..., 2\*\*D\)"),
        (lambda: shattering_network(torch.tensor(1.0)), ValueError, r"labels: must have shape \(..., 2\*\*D\)"),
        (lambda: shattering_network(torch.tensor([1.0, math.nan])), ValueError, "labels: must be finite"),
        (lambda: deepened([torch.ones(2, 3)], 4), ValueError, "weights: must have a single output, got 2"),
        (lambda: deepened([torch.ones(1, 3)], 0), ValueError, "width: must be an integer >= 1"),
        (lambda: deepened([torch.ones(1, 3)], 2, -1), ValueError, "layers: must be an integer >= 0"),
        (lambda: deepened([], 2), ValueError, "weights: must hold at least one weight matrix"),
        (
            lambda: deepened(torch.nn.Linear(2, 1), 2),
            TypeError,
            "^weights: must be a sequence of weight matrices, got Li",
        ),
        (lambda: side_by_side([], []), ValueError, "first: must hold at least one weight matrix"),
        (lambda: side_by_side([torch.ones(1, 3)], [torch.ones(3)]), ValueError, r"second\[0\]: must have shape"),
        (lambda: side_by_side([torch.ones(1, 3)], [torch.ones(1, 2)]), ValueError, "second: must have the depth"),
        (
            lambda: side_by_side([torch.ones(1, 3)], [torch.ones(2, 3), torch.ones(1, 2)]),
            ValueError,
            "second: must have the depth",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
