"""The page that says which layer works with which measure: each of its cells, measured."""

import math
import re
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from implicitreg.dynamics import PathSGD
from implicitreg.dynamics.losses import cross_entropy
from implicitreg.measures import (
    capacities,
    expected_sharpness,
    frobenius_product,
    geometric_complexity,
    group_norm,
    hessian_eigenvalues,
    hessian_trace,
    input_gradients,
    layer_norms,
    margin,
    margins,
    pac_bayes_kl,
    pac_bayes_kl_at,
    path_norm,
    sampled_straightness,
    segment_profile,
    segment_profiles,
    sharpness,
    spectral_product,
)
from implicitreg.nets import ReLURecurrent, Residual, log_path_sum, path_scales, path_sum, rescale_nodes

PAGE = (Path(__file__).parents[2] / "book/supported-layers.md").read_text("utf8")
X = torch.randn(12, 2, 5, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


class Net(nn.Module):
    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


def linear(n=6, k=6):
    return nn.Linear(n, k)


def flat(*parts):
    """Return networks with parts that take six units and return six; and inputs."""
    return [(nn.Sequential(nn.Linear(250, 6), part, nn.Linear(6, 3)), X.flatten(1)) for part in parts]


def shaped(kinds, make):
    """Return networks with layers in one, two and three dimensions, of images with two channels; and these."""
    found = []
    for n, x in ((1, X.flatten(2)), (2, X.flatten(2, 3)), (3, X)):
        for kind in kinds:
            body = nn.Sequential(getattr(nn, f"Conv{n}d")(2, 2, 1), make(getattr(nn, f"{kind}{n}d")))
            units = body.eval()(x[:1].float()).numel()
            found.append((nn.Sequential(body, nn.Flatten(), nn.Linear(units, 3)), x))
    return found


def shared():
    layer = linear()
    return nn.Sequential(layer, nn.ReLU(), layer)


def dense_connections(x, a, b, c):
    y = a(x)
    return c(b(y) + x) + y


def once(part):
    return Net(lambda x, a, b: b(a(x)), part, nn.ReLU())


def adding(x, a, b):
    x = x + b(a(x).relu())
    return torch.relu(x)


def adding_in_place(x, a, b):
    y = a(x)
    y += b(x)
    return y


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 1, batch_first=True)

    def forward(self, x):
        return self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        return self.cell(x[:, None])[0][:, 0]


ROWS = {
    "`Sequential`, `Identity`": lambda: flat(nn.Identity(), nn.Sequential(nn.Sequential(), nn.Sequential(linear()))),
    "`Linear`": lambda: flat(linear(), nn.Linear(6, 6, bias=False)),
    "`Conv1d`, `Conv2d`, `Conv3d`": lambda: shaped(["Conv"], lambda layer: layer(2, 2, 2, padding=1, stride=2)),
    "Convolutions padded otherwise than with zeros": lambda: shaped(
        ["Conv"], lambda layer: layer(2, 2, 3, padding=1, padding_mode="reflect")
    ),
    "`ReLU`": lambda: flat(nn.ReLU(), nn.ReLU(inplace=True)),
    "`LeakyReLU`": lambda: flat(nn.LeakyReLU(0.2)),
    "`AvgPool1d` to `3d`, `AdaptiveAvgPool1d` to `3d`": lambda: shaped(["AvgPool", "AdaptiveAvgPool"], lambda p: p(2)),
    "`MaxPool1d` to `3d`, `AdaptiveMaxPool1d` to `3d`": lambda: shaped(["MaxPool", "AdaptiveMaxPool"], lambda p: p(2)),
    "`BatchNorm1d` to `3d`": lambda: shaped(["BatchNorm"], lambda layer: layer(2)) + flat(nn.BatchNorm1d(6)),
    "`Flatten`": lambda: flat(nn.Flatten()),
    "`Dropout`, `Dropout1d` to `3d`": lambda: shaped(["Dropout"], lambda layer: layer()) + flat(nn.Dropout()),
    "`implicitreg.nets.Residual`": lambda: flat(Residual(linear()), Residual(nn.Sequential(linear()), linear())),
    "A forward of one's own": lambda: flat(once(linear()), Net(lambda x, a: torch.relu(a(x.view(-1, 6))), linear())),
    "A forward of one's own that adds": lambda: flat(
        Net(adding, linear(), linear()), Net(adding_in_place, linear(), linear())
    ),
    "A forward that concatenates, multiplies or branches on values": lambda: flat(
        Net(lambda x, a: torch.cat([a(x)[:, :3], x[:, :3]], 1), linear()),
        Net(lambda x, a: a(x) * x, linear()),
        Net(lambda x, a: a(x) if x.sum() > 0 else x, linear()),
    ),
    "Skip connections that are not nested": lambda: flat(Net(dense_connections, linear(), linear(), linear())),
    "A layer that is used twice": lambda: flat(shared(), Net(lambda x, a: a(a(x).relu()), linear())),
    "Parametrisations, such as a spectral norm": lambda: flat(
        parametrizations.orthogonal(linear(), orthogonal_map="cayley"), parametrizations.spectral_norm(linear())
    ),
    "Weights that a hook computes, as in pruning": lambda: flat(prune.random_unstructured(linear(), "weight", 0.5)),
    "`Tanh`, `GELU`, `Sigmoid` and other smooth activations": lambda: flat(
        nn.Tanh(), nn.GELU(), nn.Sigmoid(), nn.SiLU(), nn.Softplus(), Net(lambda x: x.tanh())
    ),
    "`LayerNorm`, `GroupNorm`, `InstanceNorm1d` to `3d`": lambda: (
        flat(nn.LayerNorm(6), nn.GroupNorm(2, 6)) + shaped(["InstanceNorm"], lambda layer: layer(2))
    ),
    "`ConvTranspose1d` to `3d`, attention, recurrent layers": lambda: (
        shaped(["ConvTranspose"], lambda layer: layer(2, 2, 2)) + flat(Attention(), Recurrent())
    ),
}


def classes(net, x):
    """Return the predictions of a network, so that its margins are positive."""
    net.eval()
    with torch.no_grad():
        return net(x).argmax(1)


def stepped(net, x):
    """Make a step of Path-SGD and return the weights."""
    optimiser = PathSGD(net, lr=1e-9, input_shape=x.shape[1:])
    net(x).square().sum().backward()
    optimiser.step()
    return dict(net.named_parameters())


COLUMNS = {
    "Path norms": [
        lambda net, x: path_norm(net, input_shape=x.shape[1:]),
        lambda net, x: path_sum(net, 1, input_shape=x.shape[1:]),
        lambda net, x: log_path_sum(net, input_shape=x.shape[1:], bias=True),
        lambda net, x: group_norm(net, 1, math.inf),
        lambda net, x: frobenius_product(net),
        lambda net, x: capacities(net, x, classes(net, x)).l2_path,
    ],
    "Layer norms": [
        lambda net, x: layer_norms(net, input_shape=x.shape[1:])[-1].spectral,
        lambda net, x: spectral_product(net, input_shape=x.shape[1:]),
    ],
    "Path scales": [lambda net, x: path_scales(net, input_shape=x.shape[1:]), stepped],
    "Rescaling": [lambda net, x: rescale_nodes(net, generator())],
    "Segments": [
        lambda net, x: segment_profile(net, x[0], x[1]).outputs,
        lambda net, x: segment_profiles(net, x[:2], x[2:4])[1].slopes,
        lambda net, x: torch.tensor(sampled_straightness(net, x, generator(), pairs=2).deflection.value),
        lambda net, x: input_gradients(net, x),
    ],
    "Any module": [
        lambda net, x: margin(net, x, classes(net, x)),
        lambda net, x: margins(net, x, classes(net, x)),
        lambda net, x: sharpness(net, x, classes(net, x), steps=2),
        lambda net, x: torch.tensor(
            float(expected_sharpness(net, x, classes(net, x), 1e-3, generator(), draws=2).value)
        ),
        lambda net, x: pac_bayes_kl(net, 1e-3),
        lambda net, x: pac_bayes_kl_at(net, x, classes(net, x), generator(), draws=2),
        lambda net, x: geometric_complexity(net, x).value,
        lambda net, x: hessian_eigenvalues(net, cross_entropy, x, classes(net, x), tol=1e-2).values,
        lambda net, x: hessian_trace(net, cross_entropy, x, classes(net, x), generator(), max_products=32).value,
    ],
}


def table():
    """Return the cells of the page's table by row and column."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    (_, *columns), *rows = lines
    assert columns == list(COLUMNS)
    return {(row, column): cell for row, *cells in rows for column, cell in zip(columns, cells, strict=True)}


def test_the_table_is_complete():
    assert list(table()) == list(product(ROWS, COLUMNS))


def found(measure, net, x):
    """Return ✓ where a network is measured, – where it is refused by name."""
    try:
        with warnings.catch_warnings():
            # Of a margin or a sharpness that such networks have not; what is asked is whether they are measured.
            warnings.simplefilter("ignore")
            value = measure(net, x)
    except TypeError as error:
        refusal = str(error)
        if not re.match("model: .*(unsupported|not supported|used twice|parametri|out of date|cannot be)", refusal):
            raise
        return "–"
    for each in value.values() if isinstance(value, dict) else [value]:
        assert isinstance(each, nn.Module) or torch.as_tensor(each).isfinite().all()
    return "✓"


@pytest.mark.parametrize("row", ROWS)
def test_each_cell_is_what_happens(row):
    cells = table()
    for column, measures in COLUMNS.items():
        for i, measure in enumerate(measures):
            torch.manual_seed(0)
            for j, (net, x) in enumerate(ROWS[row]()):
                assert found(measure, net.double().eval(), x) == cells[row, column], (column, i, j, net)


def test_what_the_page_says_of_lists_and_recurrent_networks():
    weights = [torch.randn(3, 4, 5, generator=generator()), torch.randn(3, 2, 4, generator=generator())]
    assert path_norm(weights).shape == spectral_product(weights).shape == group_norm(weights, 1, 2).shape == (3,)
    assert layer_norms(weights)[1].spectral.shape == (3,)
    assert input_gradients(weights, torch.ones(2, 5)).shape == (3, 2, 2, 5)
    recurrent = ReLURecurrent(torch.ones(3, 2), torch.eye(3), torch.ones(1, 3), steps=4)
    assert path_norm(recurrent) > 0
    assert set(path_scales(recurrent)) == {"w_in", "w_rec", "w_out"}
    for measure in (frobenius_product, layer_norms, lambda net: rescale_nodes(net, generator())):
        with pytest.raises(TypeError, match="unsupported layer ReLURecurrent"):
            measure(recurrent)


def test_a_batch_norm_without_statistics_is_refused():
    ((net, x),) = flat(nn.BatchNorm1d(6, track_running_stats=False))
    for column in ("Path norms", "Layer norms", "Path scales", "Rescaling", "Segments"):
        for measure in COLUMNS[column]:
            with pytest.raises(TypeError, match=r"^model: .*[bB]atch ?[nN]orm"):
                measure(net.double(), x)


def test_the_refusals_are_quoted():
    quoted = re.search(r":name: refusals\n\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
    given = [
        nn.Tanh(),
        Net(lambda x, a: torch.cat([a(x), x], 1), linear()),
        Net(dense_connections, linear(), linear(), linear()),
    ]
    for line, part in zip(quoted, given, strict=True):
        with pytest.raises(TypeError) as refused:
            path_norm(nn.Sequential(linear(), part))
        assert f"TypeError: {refused.value}".startswith(line.removesuffix("…"))
