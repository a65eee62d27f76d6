"""Sampled straightness against whole segments: expectations, standard errors, memory, what is refused."""

import copy
import itertools
import math
import sys

import pytest
import torch
from mutation import mutated
from torch import nn

from implicitreg.measures import Estimate, sampled_straightness, segment_profile, segment_profiles, straightness
from implicitreg.nets import he_normal_, he_weights, perceptron

module = sys.modules["implicitreg.measures.segment_samples"]
segments = sys.modules["implicitreg.measures.segments"]
NAMES = ("gap_deviation", "deflection", "breakpoints", "non_straightness")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def mlp(*sizes, seed=0):
    parts = []
    for below, units in itertools.pairwise(sizes):
        parts += [nn.Linear(below, units), nn.ReLU()]
    return he_normal_(nn.Sequential(*parts[:-1]).double(), generator(seed), bias_std=0.1)


def convolutional(seed=0):
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    return he_normal_(net.double(), generator(seed), bias_std=0.1)


def tents(depth):
    """Return a zigzag with 2^depth pieces on [0, 1], of 2 depth units."""
    parts = []
    for i in range(depth):
        units = nn.Linear(2 if i else 1, 2).double()
        with torch.no_grad():
            units.weight.copy_(torch.tensor([[2.0, -4.0]] * 2) if i else torch.ones(2, 1))
            units.bias.copy_(torch.tensor([0.0, -0.5]))
        parts += [units, nn.ReLU()]
    last = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[2.0, -4.0]]))
    return nn.Sequential(*parts, last)


def of_all(summary):
    """Return the four numbers of whole segments."""
    n = summary.breakpoints.double().mean()
    return {
        "gap_deviation": summary.gap_deviation(),
        "deflection": float(summary.deflection.mean().sqrt()),
        "breakpoints": float(n),
        "non_straightness": summary.non_straightness(),
    }


def population(net, x):
    """Return the four numbers over all pairs of samples."""
    first, second = torch.combinations(torch.arange(len(x))).T
    return of_all(straightness(segment_profiles(net, x[first], x[second])))


def drawn(net, x, seed, pairs):
    """Return whole profiles of the pairs that a seed draws."""
    program = segments.Program(net)
    return straightness(segment_profiles(net, *module._pairs(program, x, generator(seed), pairs)))


@pytest.mark.parametrize(("net", "shape"), [(mlp(9, 20, 20, 3), (9,)), (convolutional(), (2, 8, 8))])
def test_whole_segments_and_the_jackknife(net, shape):
    x = normal(10, *shape)
    found = sampled_straightness(net, x, generator(3), pairs=7)
    assert found.exact
    assert found.pairs == 7
    summary = drawn(net, x, 3, 7)
    without = [of_all(summary[torch.arange(7) != i]) for i in range(7)]
    for name, value in of_all(summary).items():
        estimate = getattr(found, name)
        assert math.isclose(estimate.value, value, rel_tol=1e-12), name
        left = torch.tensor([each[name] for each in without], dtype=torch.float64)
        error = ((left - left.mean()).square().sum() * 6 / 7).sqrt()
        assert math.isclose(estimate.standard_error, error, rel_tol=1e-9), name
        assert float(estimate) == estimate.value


CASES = {
    "mlp": (lambda: mlp(9, 24, 24, 3), (9,), 48 * 20),
    "convolutional": (convolutional, (2, 8, 8), 1000 * 25),
}


def check_expectations(name, draws, pairs):
    """Compare parts of segments with all segments: expectations, and what standard errors promise."""
    build, shape, budget = CASES[name]
    net, x = build(), normal(9, *shape, seed=1)
    truth = population(net, x)
    found = [sampled_straightness(net, x, generator(seed), pairs=pairs, budget=budget) for seed in range(draws)]
    assert not any(each.exact for each in found)
    for key, value in truth.items():
        values = torch.tensor([getattr(each, key).value for each in found], dtype=torch.float64)
        errors = torch.tensor([getattr(each, key).standard_error for each in found], dtype=torch.float64)
        # Ratios and roots of means are biased by about the square of their error.
        bias = (values.std() / value).square() * value
        assert (values.mean() - value).abs() < 4 * values.std() / math.sqrt(draws) + bias, key
        spread = 4 / math.sqrt(2 * draws)
        assert 1 - spread < errors.square().mean().sqrt() / values.std() < 1 + spread, key
        # Gaps have long tails: two standard errors hold the truth nine times of ten.
        inside = ((values - value).abs() < 2 * errors).double().mean()
        assert inside > 0.9 - 4 * math.sqrt(0.09 / draws), key


def test_expectations_and_standard_errors():
    check_expectations("mlp", 100, pairs=20)


def test_expectations_and_standard_errors_with_pooling():
    check_expectations("convolutional", 20, pairs=10)


def test_breakpoints_in_one_corner():
    """Every place is in a part with the same probability, ends and crowded places too."""
    units = nn.Linear(1, 60).double()
    last = nn.Linear(60, 1).double()
    with torch.no_grad():
        units.weight.fill_(1.0)
        units.bias.copy_(-(torch.arange(60) / 60 + 0.01).pow(3))
        last.weight.copy_(torch.linspace(0.1, 2, 60))
    net, x = nn.Sequential(units, nn.ReLU(), last), torch.tensor([[0.0], [1.0]]).double()
    found = [sampled_straightness(net, x, generator(seed), pairs=2, budget=60 * 24) for seed in range(200)]
    n = torch.tensor([each.breakpoints.value for each in found])
    q = torch.tensor([each.breakpoints.value * each.gap_deviation.value**2 for each in found])
    for estimates, value in ((n, 60), (q, float(last.weight.detach().square().sum()))):
        assert abs(estimates.mean() - value) < 4 * estimates.std() / math.sqrt(200)
        assert estimates.std() < 0.5 * value


def check_parts():
    test_breakpoints_in_one_corner()
    check_expectations("mlp", 16, pairs=12)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("covered = n * width / (1 + width)", "covered = 1"),
        ("covered = n * width / (1 + width)", "covered = width / (1 + width)"),
        ("[0] * (1 + width) - width", "[0] * (1 - width)"),
        ("starts = _stratified(generator, 1, n)[0] * (1 + width) - width", "starts = torch.zeros(n) + width"),
        ("(slopes[1:-1] / length - chord)", "(slopes[1:-1] / length)"),
        ("chord).square().mean()", "chord).abs().mean()"),
        ("chord = (f[-1] - f[0]) / length", "chord = f[-1] - f[0]"),
        ("/ covered,\n        bent", ",\n        bent"),
        ("part.gaps.square().sum(0).mean()", "part.gaps.square().mean()"),
    ],
)
def test_mutants_are_caught(monkeypatch, right, wrong):
    monkeypatch.setattr(module, "_measured", mutated(module, "_measured", right, wrong)._measured)
    with pytest.raises((AssertionError, ValueError)):
        check_parts()


def test_the_error_shrinks_with_the_budget():
    net, x = mlp(9, 24, 24, 3), normal(9, 9, seed=1)
    errors = [
        [
            sampled_straightness(net, x, generator(seed), budget=48 * rows).gap_deviation.standard_error
            for seed in range(8)
        ]
        for rows in (8, 25)
    ]
    little, much = (sum(each) for each in errors)
    assert little > 1.2 * much
    assert sampled_straightness(net, x, generator(), budget=10**9).exact
    assert not sampled_straightness(net, x, generator(), budget=1).exact


def test_more_breakpoints_than_foreseen():
    """A zigzag of few units has many times as many breakpoints as units that differ between any places."""
    net, x = tents(8), torch.tensor([[0.001], [0.999]], dtype=torch.float64)
    whole = segment_profile(net, *x)
    assert len(whole) > 250
    sums = []
    for seed in range(10):
        # Enough for what is foreseen, not for the whole.
        found = sampled_straightness(net, x, generator(seed), pairs=4, budget=60 * 17)
        assert not found.exact
        sums.append(found.breakpoints.value)
        assert abs(found.gap_deviation.value / whole.gap_deviation() - 1) < 1e-9  # all gaps are of one size
    sums = torch.tensor(sums)
    assert abs(sums.mean() - len(whole)) < 4 * sums.std() / math.sqrt(10)
    assert sampled_straightness(net, x, generator(), pairs=2, budget=200 * 17).breakpoints == Estimate(len(whole), 0.0)


@pytest.mark.parametrize("held", [1, 1200])
def test_memory_cuts_whole_segments(monkeypatch, held):
    """Cut where they are too long for one table, they are the same."""
    for net, x in (
        (mlp(9, 40, 40, 3), normal(5, 9)),
        (convolutional(), normal(5, 2, 8, 8)),
        (perceptron(he_weights((6, 30, 30, 2), generator())), torch.cat([normal(1, 6), -normal(1, 6)])),
    ):
        monkeypatch.undo()
        expected = sampled_straightness(net, x, generator(), pairs=4)
        walks, walk = [], segments.Program.walk

        def counted(*arguments, walks=walks, walk=walk, **keywords):
            walks.append(walk(*arguments, **keywords))
            return walks[-1]

        monkeypatch.setattr(module, "_HELD", held)
        monkeypatch.setattr(segments.Program, "walk", counted)
        found = sampled_straightness(net, x, generator(), pairs=4)
        assert found.exact
        for name in NAMES:
            one, other = getattr(found, name), getattr(expected, name)
            assert math.isclose(one.value, other.value, rel_tol=1e-11)
            assert math.isclose(one.standard_error, other.standard_error, rel_tol=1e-8, abs_tol=1e-12)
        largest = max(16, held // 40)
        assert all(len(rows.t) <= largest for rows in walks)
        assert len(walks) > 4 or len(x) == 2  # all units switch at one place there


def test_memory_cuts_parts(monkeypatch):
    net, x = mlp(9, 90, 90, 3), normal(9, 9, seed=1)
    monkeypatch.setattr(module, "_BREAKPOINTS", 40)
    expected = sampled_straightness(net, x, generator(), budget=180 * 60)
    walks, walked = [], module._walked
    monkeypatch.setattr(module, "_HELD", 1)
    monkeypatch.setattr(module, "_walked", lambda *a: walks.append(walked(*a)) or walks[-1])
    found = sampled_straightness(net, x, generator(), budget=180 * 60)
    assert not found.exact
    assert max(len(parts) for parts in walks if parts) > 2
    for name in NAMES:
        assert math.isclose(getattr(found, name).value, getattr(expected, name).value, rel_tol=1e-11)


@pytest.mark.parametrize("budget", [10**9, 48 * 20])
def test_scales(monkeypatch, budget):
    net, x = [w.double() for w in he_weights((9, 24, 24, 3), generator())], normal(6, 9)
    found = sampled_straightness(net, x, generator(1), budget=budget)
    steep = sampled_straightness([net[0], 4 * net[1], net[2]], x, generator(1), budget=budget)
    wide = sampled_straightness(net, 4 * x, generator(1), budget=budget)
    for name, factor in zip(NAMES, (4, 4, 1, 1), strict=True):
        one = getattr(found, name)
        for other, ratio in ((steep, factor), (wide, 1)):
            assert math.isclose(getattr(other, name).value, ratio * one.value, rel_tol=1e-11)
            assert math.isclose(getattr(other, name).standard_error, ratio * one.standard_error, rel_tol=1e-9)
    assert sampled_straightness(perceptron(net), x, generator(1), budget=budget) == found
    # Per unit of t: two samples have one distance.
    pair, distance = x[:2], float((x[1] - x[0]).norm())
    by_length = sampled_straightness(net, pair, generator(1), budget=budget)
    monkeypatch.setattr(segments, "PER_UNIT_LENGTH", False)
    by_t = sampled_straightness(net, pair, generator(1), budget=budget)
    for name, factor in zip(NAMES, (distance, distance, 1, 1), strict=True):
        assert math.isclose(getattr(by_t, name).value, factor * getattr(by_length, name).value, rel_tol=1e-11)


def test_straight_networks():
    x = normal(5, 4)
    for net in ([normal(3, 4)], nn.Linear(4, 3).double(), [normal(6, 4).abs(), -normal(6, 6).abs(), normal(2, 6)]):
        for samples in (x, x.abs()):
            if isinstance(net, list) and len(net) == 3 and samples is x:
                continue
            for budget in (1, 10**6):
                found = sampled_straightness(net, samples, generator(), budget=budget)
                for name in NAMES:
                    assert abs(getattr(found, name).value) < 1e-14
                    assert getattr(found, name).standard_error < 1e-14
            assert found.exact
            assert found.deflection == Estimate(0.0, 0.0)


def test_pairs_are_samples_that_differ():
    """Drawn with replacement, all pairs alike; equal samples are no pair."""
    program = segments.Program([torch.eye(2)])
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    first, second = module._pairs(program, x, generator(), 14_000)
    assert len(first) == len(second) == 14_000
    counts = torch.bincount((first[:, 0] * 3 / 2 + second[:, 0] / 2).long(), minlength=9)
    expected = torch.tensor([0, 3, 3, 3, 0, 1, 3, 1, 0]) * 1000.0
    assert ((counts - expected).abs() <= 4 * expected.sqrt()).all()


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(9, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3)).train()
    for w in net.parameters():
        w.grad = torch.ones_like(w)
    before, state, x = copy.deepcopy(net.state_dict()), torch.random.get_rng_state(), normal(6, 9).float()
    inputs = x.clone().requires_grad_()
    found = sampled_straightness(net, inputs, generator())
    assert all(part.training for part in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.values(), strict=True))
    assert all(torch.equal(w.grad, torch.ones_like(w)) for w in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert inputs.grad is None
    with torch.inference_mode():
        assert found == sampled_straightness(net.eval(), x.clone(), generator())
    assert found == sampled_straightness(copy.deepcopy(net).double(), x.double(), generator())


def test_refusals():
    net, x = mlp(3, 4, 2), normal(5, 3)
    for arguments, error, match in (
        ((net, x, 0), TypeError, "generator: must be a torch.Generator, got int"),
        ((net, [1.0], generator()), TypeError, "x: must be a torch.Tensor, got list"),
        ((net, torch.ones(5, 3, dtype=torch.int64), generator()), TypeError, "x: must have dtype float32 or float64"),
        ((net, torch.full((5, 3), math.inf), generator()), ValueError, "x: must be finite"),
        ((net, x[:, :2], generator()), ValueError, r"x: must have shape \(n, 3\), got \(5, 2\)"),
        ((net, x[0], generator()), ValueError, r"x: must have shape \(n, 3\), got \(3,\)"),
        ((net, x[:0], generator()), ValueError, r"x: must have shape \(n, 3\), got \(0, 3\)"),
        ((net, x[:1], generator()), ValueError, "x: must hold two samples that differ, got 1 equal ones"),
        ((net, torch.ones(4, 3), generator()), ValueError, "x: must hold two samples that differ, got 4 equal ones"),
        (([torch.ones(2, 4, 3)], x, generator()), ValueError, "model: must be one network, got weights of 2"),
        ((nn.Tanh(), x, generator()), TypeError, "model: unsupported layer Tanh"),
        ((convolutional(), normal(5, 3, 8, 8), generator()), ValueError, r"x: layer '0' \(Conv2d\) cannot take the"),
        (
            (convolutional()[:5], normal(5, 2, 8, 8), generator()),
            ValueError,
            r"model: must have outputs of shape \(n, k",
        ),
        (([1e200 * w for w in net[0].weight[None]], x, generator()), ValueError, "model: squares of slopes or gaps"),
    ):
        with pytest.raises(error, match=f"^{match}"):
            sampled_straightness(*arguments)
    for name, least in (("pairs", 2), ("budget", 1)):
        for value in (least - 1, 2.5, True):
            with pytest.raises(ValueError, match=f"^{name}: must be an integer >= {least}, got"):
                sampled_straightness(net, x, generator(), **{name: value})
