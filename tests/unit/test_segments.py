"""Segments against activation patterns on grids, autograd, dense operators and formulas; edge cases, refusals."""

import copy
import itertools
import math
import sys
from functools import partial

import pytest
import torch
from mutation import mutated
from torch import nn

from implicitreg.measures import (
    SegmentProfile,
    bridge_test,
    input_gradients,
    segment_profile,
    segment_profiles,
    straightness,
)
from implicitreg.nets import Residual, he_normal_, he_weights, perceptron

module = sys.modules["implicitreg.measures.segments"]
GAP_DEVIATIONS = ("rms", "centered", "full")
DEFLECTIONS = ("rms", "end", "max", "maxchord", "bridge", "full", "sag")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def mlp(*sizes, seed=0, bias=0.1, activation=nn.ReLU):
    parts = []
    for below, units in itertools.pairwise(sizes):
        parts += [nn.Linear(below, units), activation()]
    return he_normal_(nn.Sequential(*parts[:-1]).double(), generator(seed), bias_std=bias)


def convolutional(seed=0):
    """Stride, padding, dilation, groups, batch norm folded and alone, both poolings."""
    net = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(4, 6, 2, stride=2, padding=2, groups=2, dilation=2, bias=False),
        nn.LeakyReLU(0.2),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.Identity(),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).double()
    he_normal_(net, generator(seed), bias_std=0.1)
    for part in net:
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator(seed + 1))
            part.running_var.uniform_(0.5, 2, generator=generator(seed + 2))
    return net.eval()


def residual(seed=0):
    def block(width):
        return Residual(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))

    inner = Residual(nn.Sequential(nn.ReLU(), nn.Linear(10, 10), Residual(nn.LeakyReLU(0.3)), nn.Linear(10, 10)))
    net = nn.Sequential(nn.Linear(6, 10), inner, block(10), nn.ReLU(), block(10), nn.Linear(10, 2)).double()
    return he_normal_(net, generator(seed), bias_std=0.1, scale=0.7)


# What is true of any profile, from nothing but the module's own forward pass


def module_of(net):
    return net if isinstance(net, nn.Module) else perceptron([w.double() for w in net])


def patterns(net, x):
    """Return which units are on, ``(n, units)`` a non-linearity, as hooks see them."""
    seen = []
    parts = [p for p in net.modules() if isinstance(p, nn.ReLU | nn.LeakyReLU)]
    hooks = [p.register_forward_pre_hook(lambda _, z: seen.append(z[0].flatten(1) > 0)) for p in parts]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return seen


def check_breakpoints(net, x0, x1, profile, points=2001):
    """Every change between neighbours of a grid is an odd number of breakpoints there; return how many are unseen."""
    net = module_of(net)
    flips = []
    for cells in torch.arange(points - 1).split(20_000):
        t = torch.arange(int(cells[0]), int(cells[-1]) + 2).double() / (points - 1)
        t = t.reshape(-1, *[1] * x0.ndim)
        for layer, on in enumerate(patterns(net, (1 - t) * x0 + t * x1)):
            cell, unit = (on[1:] != on[:-1]).nonzero().T
            flips += zip(
                (cell + cells[0]).tolist(), itertools.repeat(layer), unit.tolist(), on[cell + 1, unit].tolist()
            )
    cell = (profile.t * (points - 1)).long()
    # Where several units switch together, only the first is named: then their number is compared.
    together = cell[profile.switches > 1].tolist()
    for where in together:
        assert profile.switches[cell == where].sum() == sum(flip[0] == where for flip in flips)
    flips = [flip for flip in flips if flip[0] not in together]
    found = {}
    for *where, sign in torch.stack([cell, profile.layer, profile.unit, profile.sign], 1).tolist():
        if where[0] not in together:
            found.setdefault(tuple(where), []).append(sign == 1)
    odd = {(*where, signs[-1]) for where, signs in found.items() if len(signs) % 2}
    assert odd == set(flips)
    return sum(map(len, found.values())) - len(flips)


def autograd_slopes(net, x0, x1, profile):
    """Return the slopes at the middle of each piece."""
    net = module_of(net)
    knots = torch.cat([torch.zeros(1), profile.t, torch.ones(1)])
    t = ((knots[1:] + knots[:-1]) / 2).reshape(-1, *[1] * x0.ndim)
    x = ((1 - t) * x0 + t * x1).requires_grad_()
    u = ((x1 - x0) / (x1 - x0).norm()).flatten()
    f = net(x)
    return torch.stack([torch.autograd.grad(each.sum(), x, retain_graph=True)[0].flatten(1) @ u for each in f.T], 1)


def check_slopes(net, x0, x1, profile, tolerance=1e-12):
    slopes = autograd_slopes(net, x0, x1, profile)
    assert (profile.slopes - slopes).abs().max() <= tolerance * slopes.abs().max()
    jumps = slopes.diff(dim=0)
    if len(profile):
        # Gaps that are small beside the slopes, as of leaky units, hold the rounding errors of the slopes.
        rounding = max(tolerance * jumps.abs().max(), 1e-14 * slopes.abs().max())
        assert (profile.gaps - jumps).abs().max() <= rounding


def check_sums(net, x0, x1, profile, tolerance=1e-12):
    """Integrals: outputs from slopes, slopes from gaps."""
    t, slopes, length = profile.t, profile.slopes, profile.length
    scale = slopes.abs().max() * length + profile.ends.abs().max() + 1e-300
    dt = torch.cat([torch.zeros(1), t, torch.ones(1)]).diff()[:, None]
    climbed = profile.ends[0] + (slopes * dt).cumsum(0) * length
    torch.testing.assert_close(climbed[:-1], profile.outputs, rtol=0, atol=float(tolerance * scale))
    torch.testing.assert_close(climbed[-1], profile.ends[1], rtol=0, atol=float(tolerance * scale))
    torch.testing.assert_close(
        profile.gaps.sum(0), slopes[-1] - slopes[0], rtol=0, atol=float(tolerance * slopes.abs().max())
    )
    with torch.no_grad():
        net = module_of(net)
        torch.testing.assert_close(profile.ends, net(torch.stack([x0, x1])), rtol=0, atol=float(tolerance * scale))
        if len(t):
            at = t.reshape(-1, *[1] * x0.ndim)
            outputs = net((1 - at) * x0 + at * x1)
            torch.testing.assert_close(profile.outputs, outputs, rtol=0, atol=float(tolerance * scale))
    assert math.isclose(length, float((x1 - x0).norm()), rel_tol=1e-14)


def check(net, x0, x1, points=2001, tolerance=1e-12):
    profile = segment_profile(net, x0, x1)
    assert bool((profile.t.diff() > 0).all())
    assert bool(((profile.t > 0) & (profile.t < 1)).all())
    unseen = check_breakpoints(net, x0, x1, profile, points)
    check_slopes(net, x0, x1, profile, tolerance)
    check_sums(net, x0, x1, profile, tolerance)
    return profile, unseen


def same(p, q, tolerance=1e-12):
    """Assert that two profiles agree to rounding errors; slopes relative to the largest one."""
    for name in ("layer", "unit", "sign", "switches"):
        assert torch.equal(getattr(p, name), getattr(q, name)), name
    torch.testing.assert_close(p.t, q.t, rtol=0, atol=tolerance)
    for name in ("slopes", "gaps", "outputs", "ends"):
        a, b = getattr(p, name), getattr(q, name)
        scale = max(float(b.abs().max()), float(q.slopes.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)
    assert math.isclose(p.length, q.length, rel_tol=1e-14)


# Exactness


@pytest.mark.parametrize("bias", [0.0, 0.3])
@pytest.mark.parametrize("widths", [(64,), (64, 64), (50, 40, 30), (24,) * 6])
def test_breakpoints_are_those_of_a_fine_grid(widths, bias):
    net = mlp(20, *widths, 3, seed=len(widths), bias=bias)
    profile, unseen = check(net, *normal(2, 20, seed=5), points=200_001)
    assert unseen % 2 == 0
    assert len(profile) > sum(widths) / 4


@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize(
    "sizes",
    [(1, 8, 8, 1), (2, *[2] * 6, 1), (3, *[3] * 5, 2), (5, 4, 3, 2, 3, 4, 2), (7, 1, 9, 1, 9, 2), (4, *[10] * 15, 3)],
)
def test_narrow_and_deep_networks(sizes, bias):
    """In the narrowest, whole layers are dead."""
    found = 0
    for seed in range(8):
        net = mlp(*sizes, seed=seed, bias=bias)
        ends = normal(2, sizes[0], seed=seed)
        if sizes[0] == 1 and not bias:
            ends = ends.abs()  # all switch together at 0: another test
        found += len(check(net, *ends, points=20_001)[0])
    assert found > 0 or (sizes[0] == 1 and not bias)


def test_lists_of_weights_are_networks_without_biases():
    for seed in range(5):
        weights = he_weights((10, 20, 20, 3), generator(seed))
        profile, _ = check(weights, *normal(2, 10, seed=seed))
        same(profile, segment_profile(perceptron(weights), *normal(2, 10, seed=seed)), 0)


@pytest.mark.parametrize("build", [residual, lambda seed: mlp(6, 12, 12, 2, seed=seed, activation=nn.LeakyReLU)])
def test_residual_blocks_and_leaky_units(build):
    for seed in range(6):
        check(build(seed), *normal(2, 6, seed=seed))


def test_convolutional_networks():
    for seed in range(3):
        check(convolutional(seed), *normal(2, 2, 7, 6, seed=seed))


def unrolled(net, shape):
    """Return the same network with a dense matrix for each of its layers, from the images of unit vectors."""
    parts = []
    for part in net:
        units = math.prod(shape)
        with torch.no_grad():
            zero = part(torch.zeros(1, *shape).double())
            if not isinstance(part, nn.ReLU | nn.LeakyReLU):
                dense = nn.Linear(units, zero.numel()).double()
                dense.bias.copy_(zero.flatten())
                dense.weight.copy_((part(torch.eye(units).double().reshape(-1, *shape)) - zero).flatten(1).T)
                parts.append(dense)
            else:
                parts.append(part)
        shape = zero.shape[1:]
    return nn.Sequential(*parts)


def test_convolutional_networks_agree_with_their_dense_operators():
    for seed in range(5):
        net = convolutional(seed)
        ends = normal(2, 2, 7, 6, seed=seed)
        profile = segment_profile(net, *ends, gradients=True)
        dense = segment_profile(unrolled(net, (2, 7, 6)), *ends.flatten(1), gradients=True)
        same(profile, dense)
        torch.testing.assert_close(profile.gradients, dense.gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        ([nn.Conv1d(2, 3, 3, stride=2), nn.BatchNorm1d(3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten()], (2, 9)),
        ([nn.Conv3d(1, 2, 2), nn.ReLU(), nn.BatchNorm3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten()], (1, 3, 4, 3)),
        ([nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.BatchNorm1d(5)], (3, 2, 2)),
        ([nn.BatchNorm1d(6), nn.ReLU(), nn.Sequential(nn.Linear(6, 4), nn.Dropout())], (6,)),
        ([nn.ReLU(), nn.Linear(3, 3), nn.Sequential(), nn.ReLU(inplace=True)], (3,)),
        ([nn.Conv2d(1, 2, 2), Residual(nn.Conv2d(2, 2, 3, padding=1)), nn.ReLU(), nn.Flatten()], (1, 4, 4)),
    ],
)
def test_other_chains_of_layers(parts, shape):
    net = he_normal_(nn.Sequential(*parts).double().eval(), generator(), bias_std=0.1)
    for seed in range(4):
        profile, _ = check(net, *normal(2, *shape, seed=seed))
    assert len(profile)


def analytic_gaps(weights, x0, x1, profile):
    """Return a_i |u grad z_i| of each breakpoint, by products of masked matrices before it."""
    u = (x1 - x0) / (x1 - x0).norm()
    knots = torch.cat([torch.zeros(1), profile.t])
    gaps = []
    for k, (layer, unit) in enumerate(zip(profile.layer.tolist(), profile.unit.tolist(), strict=True)):
        x = torch.lerp(x0, x1, (knots[k] + knots[k + 1]) / 2)
        gradient, after = torch.eye(len(x0)).double(), None
        for depth, w in enumerate(weights):
            z = w @ x
            gradient = w @ gradient
            if after is not None:
                after = w @ after
            if depth == layer:
                slope = gradient[unit] @ u
                after = torch.zeros(len(w)).double()
                after[unit] = 1.0
            elif depth < len(weights) - 1:
                gradient = gradient * (z > 0)[:, None]
                after = None if after is None else after * (z > 0)
            if depth == layer:
                gradient = gradient * (z > 0)[:, None]
            x = z.clamp_min(0)
        gaps.append(after * slope.abs())
    return torch.stack(gaps)


def test_each_gap_is_the_slope_of_its_unit_times_what_leaves_it():
    """What remains is the rounding error of the slopes that are subtracted, also where a gap is small."""
    for seed in range(4):
        weights = he_weights((10, 24, 24, 24, 3), generator(seed))
        ends = normal(2, 10, seed=seed)
        profile = segment_profile(weights, *ends)
        gaps = analytic_gaps(weights, *ends, profile)
        assert (profile.gaps - gaps).abs().max() <= 1e-14 * gaps.abs().max()
        assert ((profile.gaps - gaps).norm(dim=1) <= 1e-12 * gaps.norm(dim=1)).all()


@pytest.mark.parametrize(
    ("method", "right", "wrong"),
    [
        ("bend", "positive[1:] ^ positive[:-1]", "positive[1:] & ~positive[:-1]"),  # only those switched on
        ("bend", "\n        change[self.lasts[:-1]]", "\n        change[self.depth :: 3]"),  # some are dropped
        ("bend", "off[:-1] &= ~positive[1:]", "off[1:] &= ~positive[:-1]"),
        ("bend", "v.masked_fill_(off, 0)", "v.masked_fill_(~positive, 0)"),  # slopes of the piece before
        ("bend", "v.masked_fill_(off, 0)", "pass"),
        ("bend", "table[0, at, unit] = 0", "table[0, at, unit] = 1e-9"),
        ("bend", "before / (before - after)", "after / (after - before)"),
        ("_insert", "places = below + 1 +", "places = below +"),
        ("_insert", "self.switches[:, 0] = moved[self.switches[:, 0]]", "pass"),
        ("_insert", "self.lasts = moved[self.lasts]", "pass"),
        ("profiles", "slopes[at] - slopes[at - 1]", "values[at] - values[at - 1]"),
        ("profiles", "slopes / self.length", "slopes * self.length"),
    ],
)
def test_mutants_are_caught(monkeypatch, method, right, wrong):
    mutant = mutated(module, f"_Rows.{method}", right, wrong)
    monkeypatch.setattr(module._Rows, method, getattr(mutant._Rows, method))
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        check(mlp(8, 16, 16, 2), *normal(2, 8))


def test_profiles_that_lie_are_caught():
    """What the checks above see: a layer without its breakpoints, another unit, a sign, a gap."""
    net, ends = mlp(8, 16, 16, 2), normal(2, 8)
    profile = segment_profile(net, *ends)
    part = profile.layer == 0
    without = {name: getattr(profile, name)[part] for name in ("t", "layer", "unit", "sign", "switches")}
    other = {"unit": profile.unit.roll(1)}, {"sign": -profile.sign}, {"layer": 1 - profile.layer}, without
    for changes in other:
        values = {name: getattr(profile, name) for name in profile.__slots__} | changes
        with pytest.raises(AssertionError):
            check_breakpoints(net, *ends, SegmentProfile(**values))
    values = {name: getattr(profile, name) for name in profile.__slots__} | {"gaps": profile.gaps * (1 + 1e-11)}
    with pytest.raises(AssertionError):
        check_slopes(net, *ends, SegmentProfile(**values))


# Max pooling


POOLS = [
    (nn.MaxPool1d(3), (2, 11)),
    (nn.MaxPool1d(3, stride=2, padding=1, dilation=2, ceil_mode=True), (2, 11)),
    (nn.MaxPool1d(4, stride=1), (1, 9)),
    (nn.AdaptiveMaxPool1d(4), (2, 11)),
    (nn.MaxPool2d(2), (2, 6, 7)),
    (nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 6, 7)),
    (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (3, 7, 6)),
    (nn.AdaptiveMaxPool2d((3, None)), (2, 7, 4)),
    (nn.AdaptiveMaxPool2d(1), (2, 4, 4)),
    (nn.MaxPool3d(2, stride=1), (1, 3, 4, 3)),
    (nn.MaxPool3d((1, 2, 3), stride=(1, 2, 2), padding=(0, 1, 1), ceil_mode=True), (2, 3, 4, 5)),
    (nn.AdaptiveMaxPool3d((2, 1, 2)), (1, 3, 4, 3)),
    (nn.MaxPool1d(1), (1, 5)),
]


def envelope(a, b):
    """Return the kinks of t -> max_i (1 - t) a_i + t b_i in (0, 1), from all crossings of two lines."""
    kinks = []
    for i, j in itertools.combinations(range(len(a)), 2):
        behind, gain = a[i] - a[j], (a[i] - a[j]) - (b[i] - b[j])
        if gain != 0 and 0 < behind / gain < 1:
            t = behind / gain
            at = [(1 - t) * x + t * y for x, y in zip(a, b, strict=True)]
            if at[i] >= max(at) - 1e-13:
                kinks.append(t)
    return sorted(kinks)


def windows_of(pool, shape):
    """Return which inputs each output of a pooling sees, from what moves it."""
    n = math.prod(shape)
    with torch.no_grad():
        raised = pool(torch.zeros(1, *shape) + 1e3 * torch.eye(n).reshape(n, *shape)).flatten(1)
    return [column.nonzero()[:, 0].tolist() for column in raised.T]


@pytest.mark.parametrize(("pool", "shape"), POOLS)
def test_max_pooling_of_lines_is_their_upper_envelope(pool, shape):
    """Padding is minus infinity: all numbers are negative."""
    net = nn.Sequential(pool, nn.Flatten(), nn.Identity())
    outputs = net(torch.zeros(1, *shape)).numel()
    net.append(nn.Linear(outputs, outputs, bias=False).double())
    nn.init.eye_(net[-1].weight)
    windows = windows_of(pool, shape)
    for seed in range(3):
        x0, x1 = -normal(2, *shape, seed=seed).abs()
        profile = segment_profile(net, x0, x1, gradients=True)
        a, b = x0.flatten().tolist(), x1.flatten().tolist()
        kinks = [envelope([a[i] for i in window], [b[i] for i in window]) for window in windows]
        found = [[] for _ in windows]
        for t, unit, switches in zip(profile.t.tolist(), profile.unit.tolist(), profile.switches.tolist(), strict=True):
            if switches == 1:
                found[unit].append(t)
        everything = sorted(itertools.chain(*kinks))
        assert profile.switches.sum() == len(everything)
        torch.testing.assert_close(
            profile.t.repeat_interleave(profile.switches),
            torch.tensor(everything, dtype=torch.float64),
            rtol=0,
            atol=1e-13,
        )
        for ours, theirs in zip(found, kinks, strict=True):  # where windows share two inputs, only one is named
            assert all(min(abs(t - s) for s in theirs) < 1e-13 for t in ours)
        assert not profile.sign.any()
        assert not profile.layer.any()
        assert (profile.gaps >= -1e-13).all()  # a maximum is convex
        assert (profile.gaps.amax(1) > 1e-9).all()  # and every one of its kinks is seen
        check_slopes(net, x0, x1, profile)
        check_sums(net, x0, x1, profile)
        slopes = profile.gradients @ (x1 - x0).flatten() / profile.length
        torch.testing.assert_close(slopes, profile.slopes, rtol=0, atol=1e-13)
    assert len(profile) or pool.__dict__.get("kernel_size") == 1


def test_a_window_of_many_lines():
    """Tangents of a parabola are all seen, each at its place; of random lines few are."""
    slope = torch.linspace(-1, 1, 41, dtype=torch.float64)
    net = nn.Sequential(nn.MaxPool1d(41), nn.Flatten(), nn.Linear(1, 1, bias=False).double())
    nn.init.ones_(net[2].weight)
    order = torch.randperm(41, generator=generator())
    tangents = torch.stack([-slope.square() / 2 - slope, -slope.square() / 2 + slope])[:, order][:, None]
    profile = segment_profile(net, *tangents)
    # Tangents at neighbouring places cross in the middle: x = 2 t - 1.
    torch.testing.assert_close(2 * profile.t - 1, (slope[1:] + slope[:-1]) / 2, rtol=0, atol=1e-13)
    torch.testing.assert_close(profile.gaps[:, 0] * profile.length, 2 * slope.diff(), rtol=0, atol=1e-12)
    # Lines through one point: only the last to overtake is ever the maximum.
    fan = torch.stack([-slope, slope])[:, order][:, None]
    profile = segment_profile(net, *fan)
    assert len(profile) == 1
    torch.testing.assert_close(profile.t, torch.tensor([0.5]).double(), rtol=0, atol=1e-15)
    assert math.isclose(profile.gaps.item() * profile.length, 4, rel_tol=1e-12)


def pooling(seed=0):
    """Max pooling before and behind units, overlapping, in a residual branch, behind another one."""
    branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        Residual(branch),
        nn.MaxPool2d(2),
        nn.LeakyReLU(0.1),
        nn.AdaptiveMaxPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).double()
    return he_normal_(net, generator(seed), bias_std=0.1).eval()


def test_networks_with_max_pooling():
    for seed in range(4):
        net = pooling(seed)
        x0, x1 = normal(2, 2, 8, 7, seed=seed)
        profile = segment_profile(net, x0, x1, gradients=True)
        check_slopes(net, x0, x1, profile)
        check_sums(net, x0, x1, profile)
        assert set(profile.layer.tolist()) >= {0, 1, 2, 3, 4}
        assert (profile.sign == 0).sum() > 20
        torch.testing.assert_close(
            profile.gradients @ (x1 - x0).flatten() / profile.length, profile.slopes, rtol=0, atol=1e-12
        )
        # On a grid the output is straight but where there is a breakpoint, and there it bends by the gap.
        points = 20_001
        t = torch.linspace(0, 1, points, dtype=torch.float64)[:, None, None, None]
        with torch.no_grad():
            bend = net(torch.lerp(x0, x1, t)).diff(n=2, dim=0) * (points - 1)
        cell = (profile.t * (points - 1)).long()
        near = torch.zeros(points - 1, dtype=torch.bool)
        near[cell] = True
        assert bend[~(near[:-1] | near[1:])].abs().max() < 1e-9
        alone = (cell.diff(prepend=cell[:1] - 9) > 1) & (cell.diff(append=cell[-1:] + 9) > 1)
        alone &= (cell > 0) & (cell < points - 2)
        cell, gaps = cell[alone], profile.gaps[alone] * profile.length
        torch.testing.assert_close(bend[cell - 1] + bend[cell], gaps, rtol=0, atol=1e-9)
        assert (gaps.abs().amax(1) > 1e-3).sum() > 20


def test_batches_with_max_pooling_are_single_calls():
    net = pooling()
    x0, x1 = normal(2, 6, 2, 8, 7)
    x1[2] = x0[2]
    for profile, *ends in zip(segment_profiles(net, x0, x1, gradients=True), x0, x1, strict=True):
        single = segment_profile(net, *ends, gradients=True)
        same(profile, single, 1e-13)
        torch.testing.assert_close(profile.gradients, single.gradients, rtol=0, atol=1e-12)
    p, q = segment_profile(net, x0[0], x1[0]), segment_profile(net, x1[0], x0[0])
    torch.testing.assert_close(1 - q.t.flip(0), p.t, rtol=0, atol=1e-13)
    torch.testing.assert_close(q.gaps.flip(0), p.gaps, rtol=0, atol=1e-12)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda each: net(each[None])[0]))(x0)
    torch.testing.assert_close(input_gradients(net, x0), jacobians.flatten(2), rtol=0, atol=1e-12)


def visible(profile):
    """Return places and gaps of the breakpoints that the output sees."""
    seen = profile.gaps.abs().amax(1) > 1e-9
    return profile.t[seen], profile.gaps[seen]


def test_the_order_of_inputs_in_a_window_does_not_matter():
    net = nn.Sequential(nn.Conv1d(2, 4, 1), nn.MaxPool1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    he_normal_(net, generator(), bias_std=0.1)
    x0, x1 = normal(2, 2, 15)
    order = torch.cat([5 * i + torch.randperm(5, generator=generator(i)) for i in range(3)])
    profile = segment_profile(net, x0, x1)
    same(segment_profile(net, x0[:, order], x1[:, order]), profile)
    assert (profile.layer == 0).sum() > 10


def test_rectifier_and_maximum_change_places():
    for seed in range(4):
        x0, x1 = normal(2, 2, 15, seed=seed)
        parts = nn.Conv1d(2, 4, 1), nn.ReLU(), nn.MaxPool1d(3, 2, 1), nn.Flatten(), nn.Linear(32, 3)
        before = he_normal_(nn.Sequential(*parts).double(), generator(seed), bias_std=0.1)
        behind = nn.Sequential(*(parts[i] for i in (0, 2, 1, 3, 4)))
        profiles = [segment_profile(net, x0, x1) for net in (before, behind)]
        for found in zip(*map(visible, profiles), strict=True):
            torch.testing.assert_close(*found, rtol=0, atol=1e-12)
        assert len(visible(profiles[0])[0]) > 20


def test_a_unit_is_the_maximum_with_0():
    for seed in range(4):
        net, ends = mlp(6, 12, 12, 3, seed=seed), normal(2, 6, seed=seed)
        parts = []
        for part in net:
            if isinstance(part, nn.ReLU):
                parts.append(nn.MaxPool1d(2))
            elif part is not net[-1]:
                wide = nn.Linear(part.in_features, 24).double()
                with torch.no_grad():
                    wide.weight.zero_()[1::2] = part.weight
                    wide.bias.zero_()[1::2] = part.bias
                parts.append(wide)
            else:
                parts.append(part)
        p, q = segment_profile(net, *ends), segment_profile(nn.Sequential(*parts), *ends)
        for name in ("layer", "unit", "switches"):
            assert torch.equal(getattr(p, name), getattr(q, name))
        torch.testing.assert_close(q.t, p.t, rtol=0, atol=1e-13)
        for name in ("slopes", "gaps", "outputs", "ends"):
            torch.testing.assert_close(getattr(q, name), getattr(p, name), rtol=0, atol=1e-12)
        assert not q.sign.any()


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-15])
def test_copies_in_a_window_are_one(factor):
    """Exact ones, and those that differ by rounding errors, as where an image is constant."""
    x0, x1 = normal(2, 2, 12)
    x0[:, 8:] = x1[:, 8:] = 0
    net = nn.Sequential(nn.Conv1d(2, 4, 1), nn.MaxPool1d(4), nn.Flatten(), nn.Linear(12, 3)).double()
    he_normal_(net, generator(), bias_std=0.1)
    profile = segment_profile(net, x0, x1)
    assert ((profile.unit % 3) < 2).all()  # in the last windows all is equal
    wide = nn.Sequential(net[0], nn.MaxPool1d(8), *net[2:])
    double = torch.stack([x0, x1]).repeat_interleave(2, -1)
    double[..., 1::2] *= factor
    copies = segment_profile(wide, *double)
    for name in ("layer", "unit", "sign", "switches"):
        assert torch.equal(getattr(copies, name), getattr(profile, name))
    torch.testing.assert_close(copies.t, profile.t, rtol=0, atol=1e-13)
    torch.testing.assert_close(copies.slopes * copies.length, profile.slopes * profile.length, rtol=0, atol=1e-12)


def test_ties_at_the_ends_and_at_units_that_are_off():
    net = nn.Sequential(nn.MaxPool1d(3), nn.Linear(1, 1, bias=False).double())
    nn.init.ones_(net[1].weight)
    zero, other = torch.zeros(3).double(), torch.tensor([1.0, 2.0, -1.0]).double()
    for ends, slope in (((zero, other), 2), ((other, zero), -2), ((zero, -other), 1)):
        profile = segment_profile(net, *ends, gradients=True)
        assert len(profile) == 0
        assert math.isclose(profile.slopes.item() * profile.length, slope)
        torch.testing.assert_close(profile.gradients[0] @ (ends[1] - ends[0]), torch.tensor([slope]).double())
    # All off, then the second on, then the third on and above it: no breakpoint where an input is 0 with others.
    net = nn.Sequential(nn.ReLU(), *net)
    profile = segment_profile(net, torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-0.5, 1.0, 2.0]))
    torch.testing.assert_close(profile.t, torch.tensor([0.5, 0.5 + 0.0]).double()[:1])
    assert profile.switches.item() == 2
    profile = segment_profile(net, torch.tensor([-1.0, -1.0, -4.0]), torch.tensor([-0.5, 1.0, 2.0]))
    torch.testing.assert_close(profile.t, torch.tensor([1 / 2, 2 / 3, 3 / 4]).double())
    assert profile.layer.tolist() == [0, 0, 1]
    assert profile.sign.tolist() == [1, 1, 0]
    torch.testing.assert_close(profile.slopes[:, 0] * profile.length, torch.tensor([0, 2, 2, 6]).double())


def check_max_pooling():
    for case in POOLS:
        test_max_pooling_of_lines_is_their_upper_envelope(*case)
    test_a_window_of_many_lines()
    test_batches_with_max_pooling_are_single_calls()
    test_ties_at_the_ends_and_at_units_that_are_off()


@pytest.mark.parametrize(
    ("method", "right", "wrong"),
    [
        ("_overtakings", "torch.where(share <= soonest, gain, -math.inf)", "torch.where(share >= 0, gain, -math.inf)"),
        ("_overtakings", "behind / gain, math.inf", "(behind / gain).clamp(0, 0.5), math.inf"),
        ("_overtakings", "for _ in range(a.shape[1])", "for _ in range(1)"),
        ("_overtakings", "close, b, -math.inf).argmax", "close, -b, -math.inf).argmax"),
        ("_windows", "(output * stride - padding)", "(output * stride)"),
        ("_windows", "* dilation", "* 1"),
        ("_windows", "torch.where(inside, index, first)", "index.clamp_min(0)"),
        ("_windows", "output * size // count, (", "output * (size // count), ("),
        ("pool", "torch.cat([z[:-1] + z[1:], z[-1:]])", "z"),
        ("pool", "index[self.lasts] = index[self.lasts - 1]", "pass"),
        ("pool", "index[1:] != index[:-1]", "index[1:] < index[:-1]"),
        ("pool", "(channel * space)[:, None]", "0"),
        ("pool", "torch.zeros_like(at)", "torch.ones_like(at)"),
    ],
)
def test_mutants_of_max_pooling_are_caught(monkeypatch, method, right, wrong):
    if method == "pool":
        mutant = mutated(module, "_Rows.pool", right, wrong)
        monkeypatch.setattr(module._Rows, method, mutant._Rows.pool)
    else:
        mutant = mutated(module, method, right, wrong)
        monkeypatch.setattr(module, method, getattr(mutant, method))
    with pytest.raises((AssertionError, IndexError, RuntimeError, ValueError)):
        check_max_pooling()


# Dtypes, batches, ensembles, symmetries


@pytest.mark.parametrize("build", [lambda: mlp(6, 20, 20, 2), residual, convolutional])
def test_modules_in_float32_are_computed_in_float64(build):
    net = build().float()
    shape = (2, 7, 6) if build is convolutional else (6,)
    ends = normal(2, *shape).float()
    profile = segment_profile(net, *ends)
    same(profile, segment_profile(copy.deepcopy(net).double(), *ends.double()), 0)
    for name in ("t", "slopes", "gaps", "outputs", "ends"):
        assert getattr(profile, name).dtype == torch.float64
    for name in ("layer", "unit", "sign", "switches"):
        assert getattr(profile, name).dtype == torch.int64
    check(copy.deepcopy(net).double(), *ends.double())


@pytest.mark.parametrize("working_set", [1, 10_000, 2**19])
def test_batches_are_single_calls(monkeypatch, working_set):
    monkeypatch.setattr(module, "_WORKING_SET", working_set)
    for net, shape in ((mlp(9, 20, 20, 3), (9,)), (residual(), (6,)), (convolutional(), (2, 7, 6))):
        x0, x1 = normal(2, 12, *shape)
        x1[3] = x0[3]
        profiles = segment_profiles(net, x0, x1, gradients=True)
        assert len(profiles) == 12
        for profile, *ends in zip(profiles, x0, x1, strict=True):
            single = segment_profile(net, *ends, gradients=True)
            assert torch.equal(profile.t, single.t)
            same(profile, single, 1e-13)
            torch.testing.assert_close(profile.gradients, single.gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("working_set", [1, 5_000, 2**19])
def test_ensembles_are_single_networks(monkeypatch, working_set):
    monkeypatch.setattr(module, "_WORKING_SET", working_set)
    weights = he_weights((5, 12, 12, 2), generator(), networks=4)
    x0, x1 = normal(2, 3, 5)
    x0[1] = 0
    profiles = segment_profiles(weights, x0, x1, gradients=True)
    assert len(profiles) == 12
    other = normal(2, 4, 3, 5, seed=1)
    own = segment_profiles(weights, *other)
    for i in range(4):
        net = [w[i] for w in weights]
        for j, (a, b) in enumerate(zip(x0, x1, strict=True)):
            single = segment_profile(net, a, b, gradients=True)
            same(profiles[3 * i + j], single, 1e-13)
            torch.testing.assert_close(profiles[3 * i + j].gradients, single.gradients, rtol=0, atol=1e-12)
            same(own[3 * i + j], segment_profile(net, *other[:, i, j]), 1e-13)
    repeated = segment_profiles(weights, x0.expand(4, 3, 5), x1.expand(4, 3, 5))
    for p, q in zip(profiles, repeated, strict=True):
        same(p, q, 0)
    alone = segment_profiles([w[:1] for w in weights], x0, x1)
    for p, q in zip(profiles[:3], alone, strict=True):
        same(p, q, 1e-13)


def test_swapped_ends_mirror_everything():
    for net, shape in ((mlp(9, 20, 20, 3), (9,)), (residual(), (6,)), (convolutional(), (2, 7, 6))):
        x0, x1 = normal(2, *shape)
        p, q = segment_profile(net, x0, x1), segment_profile(net, x1, x0)
        torch.testing.assert_close(1 - q.t.flip(0), p.t, rtol=0, atol=1e-14)
        for name in ("layer", "unit", "switches"):
            assert torch.equal(getattr(q, name).flip(0), getattr(p, name))
        assert torch.equal(-q.sign.flip(0), p.sign)
        for name, sign in (("slopes", -1), ("gaps", 1), ("outputs", 1), ("ends", 1)):
            torch.testing.assert_close(sign * getattr(q, name).flip(0), getattr(p, name), rtol=0, atol=1e-12)
        for kind in DEFLECTIONS:
            if kind not in ("full", "max"):  # "max" is measured from the slope at x0
                assert math.isclose(p.deflection(kind), q.deflection(kind), rel_tol=1e-10)


def test_scaled_weights_and_inputs():
    weights = he_weights((6, 15, 15, 2), generator())
    ends = normal(2, 6)
    p = segment_profile(weights, *ends)
    wide = segment_profile(weights, *(2 * ends))
    assert torch.equal(wide.t, p.t)
    assert torch.equal(wide.slopes, p.slopes)
    assert torch.equal(wide.ends, 2 * p.ends)
    heavy = segment_profile([4 * weights[0], *weights[1:]], *ends)
    assert torch.equal(heavy.t, p.t)
    assert torch.equal(heavy.gaps, 4 * p.gaps)
    # Rescaled units are the same function.
    unit = torch.ones(15).double()
    unit[::3] = 2.0**5
    rescaled = segment_profile([weights[0] * unit[:, None], weights[1] / unit, weights[2]], *ends)
    same(rescaled, p, 0)
    # A part of a segment has the breakpoints that lie there.
    half = segment_profile(weights, ends[0], ends.mean(0))
    n = len(half)
    torch.testing.assert_close(half.t / 2, p.t[:n], rtol=0, atol=1e-14)
    assert (p.t[n:] > 0.5).all()
    torch.testing.assert_close(half.slopes, p.slopes[: n + 1], rtol=0, atol=1e-13)


# Edge cases


def empty(profile):
    """No breakpoint: everything is there, of length 0, and every measure is 0."""
    assert len(profile) == 0
    assert len(profile.slopes) == 1
    for name in ("t", "layer", "unit", "sign", "switches", "gaps", "outputs"):
        assert len(getattr(profile, name)) == 0
    assert profile.gaps.shape[1] == profile.slopes.shape[1]
    for kind in GAP_DEVIATIONS:
        assert profile.gap_deviation(kind) == 0
    for kind in DEFLECTIONS:
        assert profile.deflection(kind) == 0
    assert profile.total_gap_variance() == profile.walk_ratio() == profile.end_ratio() == 0
    assert profile.non_straightness() == 0
    assert straightness([profile]).relative_sag() == 0
    assert [each.item() for each in bridge_test([profile], generator())] == [0, 0]
    return profile


def test_identical_ends():
    for net, shape in ((mlp(5, 9, 2), (5,)), (convolutional(), (2, 7, 6))):
        x = normal(*shape)
        profile = empty(segment_profile(net, x, x.clone(), gradients=True))
        assert profile.length == 0
        assert not profile.slopes.any()
        with torch.no_grad():
            torch.testing.assert_close(profile.ends, net(x[None]).expand(2, -1))
    on_a_kink = segment_profile([torch.eye(2).double()] * 2, torch.zeros(2), torch.zeros(2), gradients=True)
    empty(on_a_kink)


@pytest.mark.parametrize("shift", [0.0, 1e-17, -1e-17, 1e-13, -1e-13])
def test_an_end_on_a_kink_is_no_breakpoint(shift):
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[0].bias.copy_(torch.tensor([shift, 0.3]))
        net[2].weight.fill_(1.0)
    kink, far = torch.zeros(1).double(), torch.ones(1).double()
    for x0, x1, piece, slope in ((kink, far, 0, 0), (far, kink, 1, 0), (kink, -far, 0, 1), (-far, kink, 0, -1)):
        profile = segment_profile(net, x0, x1, gradients=True)
        assert profile.unit.tolist() == [1] * (slope == 0)  # on the right side the other unit has its kink
        assert profile.slopes[piece].item() == slope
        assert torch.equal(profile.gradients[..., 0] * (x1 - x0).sign(), profile.slopes)
    # Where the two segments that meet at a kink are one, it is one breakpoint.
    assert len(segment_profile(net, -far, far)) == 2


def test_ends_on_kinks_of_a_random_network():
    """Cut at its own breakpoints, a segment has the others."""
    net = mlp(6, 12, 12, 2)
    x0, x1 = normal(2, 6)
    whole = segment_profile(net, x0, x1)
    for i in range(0, len(whole) - 1, 3):
        t = whole.t[[i, i + 2]]
        part = segment_profile(net, torch.lerp(x0, x1, t[0]), torch.lerp(x0, x1, t[1]))
        assert part.unit.tolist() == [whole.unit[i + 1].item()]
        torch.testing.assert_close(part.slopes, whole.slopes[i + 1 : i + 3], rtol=0, atol=1e-12)


def test_duplicated_units_are_one_breakpoint():
    w1, w2, out = he_weights((7, 10, 10, 2), generator())
    ends = normal(2, 7)
    p = segment_profile([w1, w2, out], *ends)
    copies = 3
    factor = torch.tensor([1.0, 3.0, 0.1]).repeat_interleave(10).double()[:, None]
    v1 = w1.repeat(copies, 1) * factor
    v2 = (w2.repeat(copies, copies) / factor.T / copies) * factor
    q = segment_profile([v1, v2, out.repeat(1, copies) / factor.T / copies], *ends)
    assert len(q) == len(p)
    assert (q.switches == copies).all()
    torch.testing.assert_close(q.t, p.t, rtol=0, atol=1e-14)
    torch.testing.assert_close(q.slopes, p.slopes, rtol=0, atol=1e-13)
    torch.testing.assert_close(q.gaps, p.gaps, rtol=0, atol=1e-13)
    assert torch.equal(q.layer, p.layer)
    assert torch.equal(q.unit % 10, p.unit)
    assert torch.equal(q.sign, p.sign)
    # A unit and its negative switch together as well, one on and one off.
    both = segment_profile([torch.cat([w1, -w1]), torch.cat([out, out], 1)], *ends)
    assert (both.switches == 2).all()
    check_slopes([torch.cat([w1, -w1]), torch.cat([out, out], 1)], *ends, both)


def test_breakpoints_of_several_layers_at_one_place():
    """One unit follows another: z^2 = h^1 is 0 where h^1 is, and beyond."""
    one = torch.eye(2).double()
    x0, x1 = torch.tensor([-1.0, 1.0]), torch.tensor([3.0, 2.0])
    profile = segment_profile([one, one, one, torch.ones(1, 2).double()], x0, x1)
    assert profile.t.tolist() == [0.25]
    assert profile.switches.tolist() == [3]
    assert (profile.layer.item(), profile.unit.item(), profile.sign.item()) == (0, 0, 1)
    torch.testing.assert_close(profile.slopes * profile.length, torch.tensor([[1.0], [5.0]]).double())
    # Off, and the next one on at the same place: they are one breakpoint with the sum of their gaps.
    hat = [torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double(), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()]
    profile = segment_profile([*hat, torch.tensor([[1.0, 1.0]]).double()], x0, x1)
    assert profile.switches.tolist() == [4]
    torch.testing.assert_close(profile.gaps * profile.length, torch.tensor([[8.0]]).double())


def test_dead_layers_and_units_that_vanish():
    ends = normal(2, 4)
    weights = he_weights((4, 6, 6, 2), generator())
    dead = segment_profile([weights[0], -weights[1].abs(), weights[2]], *ends, gradients=True)
    assert len(dead) == len(segment_profile(weights[:1] + weights[2:], *ends))
    assert not dead.slopes.any()
    assert not dead.gaps.any()
    assert not dead.gradients.any()
    assert not dead.ends.any()
    for kind in GAP_DEVIATIONS:
        assert dead.gap_deviation(kind) == 0
    for kind in DEFLECTIONS:
        assert dead.deflection(kind) == 0
    assert dead.walk_ratio() == dead.end_ratio() == dead.non_straightness() == 0
    assert [each.item() for each in bridge_test([dead], generator())] == [0, 0]
    vanishing = [w.clone() for w in weights]
    vanishing[0][2] = 0
    vanishing[1][3] = 0
    p = segment_profile(vanishing, *ends)
    assert not ((p.layer == 0) & (p.unit == 2) | (p.layer == 1) & (p.unit == 3)).any()
    check_slopes(vanishing, *ends, p)
    empty(segment_profile([torch.zeros(3, 4), torch.ones(2, 3)], *ends, gradients=True))


def test_breakpoints_without_an_effect():
    """Where the output does not see the units that switch, it is straight to the last bit."""
    branch = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 4))
    net = he_normal_(nn.Sequential(Residual(branch), nn.Linear(4, 3)).double(), generator(), bias_std=0.1)
    for weight in (net[0].branch[2].weight, net[1].weight):  # a slope that is not 0, and constant outputs
        nn.init.zeros_(weight)
        profile, _ = check(net, *normal(2, 4))
        assert len(profile) > 4
        assert profile.deflection() == profile.deflection("maxchord") == profile.deflection("end") == 0
        assert profile.walk_ratio() == profile.end_ratio() == profile.non_straightness() == 0
        assert straightness([profile]).relative_sag() < 1e-14
    assert straightness([profile]).relative_sag() == 0


def test_profiles_are_shown_by_their_sizes():
    profile = segment_profile([normal(3, 2)], torch.zeros(2), torch.tensor([3.0, 4.0]))
    assert repr(profile) == "SegmentProfile(0 breakpoints, 3 outputs, length 5)"


def test_no_breakpoint_and_no_hidden_layer():
    ends = normal(2, 4).abs()
    positive = [w.abs() for w in he_weights((4, 6, 6, 2), generator())]
    profile = empty(segment_profile(positive, *ends, gradients=True))
    check_slopes(positive, *ends, profile)
    for linear in ([normal(3, 4)], nn.Linear(4, 3).double(), nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()):
        check_slopes(linear, *ends, empty(segment_profile(linear, *ends, gradients=True)))


def test_one_input_without_biases():
    """All units of a network on the line switch at 0, or none does."""
    weights = he_weights((1, 8, 8, 8, 1), generator(3))
    left, right = torch.tensor([-1.0]), torch.tensor([3.0])
    profile = segment_profile(weights, left, right, gradients=True)
    assert profile.t.tolist() == [0.25]
    assert profile.layer.tolist() == [0]
    assert profile.unit.tolist() == [0]
    assert profile.switches.item() == 8 + sum(
        int(((a > 0) != (b > 0)).sum())
        for a, b in zip(*(preactivations(weights, x.double())[1:] for x in (left, right)), strict=True)
    )
    with torch.no_grad():
        slopes = perceptron(weights)(torch.tensor([[-1.0], [1.0]]).double()) * torch.tensor([[-1.0], [1.0]])
    torch.testing.assert_close(profile.slopes, slopes, rtol=1e-14, atol=0)
    empty(segment_profile(weights, right, 2 * right, gradients=True))
    empty(segment_profile(weights, left, 0 * left, gradients=True))
    empty(segment_profile(weights, 0 * left, right, gradients=True))


def preactivations(weights, x):
    found = []
    for w in weights[:-1]:
        found.append(w @ x)
        x = found[-1].clamp_min(0)
    return found


def test_segments_through_the_origin():
    """Without biases a network is linear on either side: its units all switch together."""
    weights = he_weights((6, 20, 20, 2), generator())
    x = normal(6)
    profile = segment_profile(weights, -x, 2.3 * x)
    assert len(profile) == 1
    torch.testing.assert_close(profile.t, torch.tensor([1 / 3.3], dtype=torch.float64), rtol=1e-14, atol=0)
    check_sums(weights, -x, 2.3 * x, profile)


@pytest.mark.parametrize("scale", [1e150, 1e-150])
def test_huge_and_tiny_weights(scale):
    weights = he_weights((5, 8, 3), generator())
    ends = normal(2, 5)
    p, q = segment_profile(weights, *ends), segment_profile([weights[0] * scale, weights[1]], *ends)
    torch.testing.assert_close(q.t, p.t, rtol=1e-13, atol=0)
    assert torch.equal(q.unit, p.unit)
    torch.testing.assert_close(q.gaps, p.gaps * scale, rtol=1e-10, atol=0)
    for kind in ("max", "maxchord", "bridge", "sag"):
        assert math.isfinite(q.deflection(kind))
    back = segment_profile([weights[0] * scale, weights[1] / scale], *ends)
    torch.testing.assert_close(back.gaps, p.gaps, rtol=1e-10, atol=0)
    far = segment_profile(weights, *(ends * scale))
    torch.testing.assert_close(far.t, p.t, rtol=1e-13, atol=0)
    torch.testing.assert_close(far.gaps, p.gaps, rtol=1e-10, atol=0)
    assert math.isclose(far.length, scale * p.length, rel_tol=1e-14)


def test_numbers_that_leave_float64_are_refused():
    weights = he_weights((5, 8, 8, 3), generator())
    ends = normal(2, 5)
    with pytest.raises(ValueError, match=r"^model: outputs or slopes between x0 and x1 exceed the range of float64"):
        segment_profile([w * 1e150 for w in weights], *ends)
    profile = segment_profile([w * 1e80 for w in weights], *ends, gradients=True)
    plain = segment_profile(weights, *ends)
    measures = [
        profile.total_gap_variance,
        profile.non_straightness,
        profile.walk_ratio,
        profile.end_ratio,
        *(partial(profile.gap_deviation, kind) for kind in GAP_DEVIATIONS),
        *(partial(profile.deflection, kind) for kind in DEFLECTIONS),
    ]
    for measure in measures:
        with pytest.raises(ValueError, match=r"^profiles: squares of slopes, gaps or outputs exceed the range"):
            measure()
    small = segment_profile([w * 1e-80 for w in weights], *ends)
    expected = bridge_test([plain], generator())
    for scaled in (profile, small):
        for seen, what in zip(bridge_test([scaled], generator()), expected, strict=True):
            torch.testing.assert_close(seen, what, rtol=1e-12, atol=0)


# What is left alone


@pytest.mark.parametrize("build", [convolutional, residual, pooling])
def test_the_model_is_left_as_it_was(build):
    net = build().train()
    shape = {convolutional: (2, 7, 6), residual: (6,), pooling: (2, 8, 7)}[build]
    next(net.children()).eval()
    for i, w in enumerate(net.parameters()):
        w.grad = torch.full_like(w, i)
    calls = []
    hooks = [part.register_forward_hook(lambda *_: calls.append(1)) for part in net.modules()]
    before = copy.deepcopy(net.state_dict())
    modes, grads = [part.training for part in net.modules()], [w.grad.clone() for w in net.parameters()]
    state = torch.random.get_rng_state()
    x = normal(2, 3, *shape)
    ends = x.clone().requires_grad_()
    profiles = segment_profiles(net, *ends, gradients=True)
    input_gradients(net, ends[0])
    assert not any(each.requires_grad for p in profiles for each in (p.t, p.slopes, p.gaps, p.gradients))
    assert ends.grad is None
    assert torch.equal(ends.detach(), x)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.values(), strict=True))
    assert all(torch.equal(w.grad, g) for w, g in zip(net.parameters(), grads, strict=True))
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert hooks
    assert not calls
    for hook in hooks:
        hook.remove()
    for profile, *pair in zip(profiles, *x, strict=True):  # what is profiled is the network in evaluation mode
        check_sums(copy.deepcopy(net).eval(), *pair, profile)
        if build is not pooling:
            check(copy.deepcopy(net).eval(), *pair, points=201)
        same(profile, segment_profile(net.eval(), *pair), 1e-13)


def test_inference_mode_and_views():
    with torch.inference_mode():
        net = convolutional()
        weights = he_weights((6, 9, 2), generator())
        x = normal(2, 3, 2, 7, 6)
        inside = segment_profiles(net, *x, gradients=True), segment_profiles(weights, *x[:, :, 0, 0], gradients=True)
        jacobians = input_gradients(net, x[0])
    outside = segment_profiles(net, *x, gradients=True), segment_profiles(weights, *x[:, :, 0, 0], gradients=True)
    for p, q in zip(itertools.chain(*inside), itertools.chain(*outside), strict=True):
        same(p, q, 0)
        assert torch.equal(p.gradients, q.gradients)
    torch.testing.assert_close(jacobians, input_gradients(net, x[0]), rtol=0, atol=0)
    turned = normal(6, 3, 2).permute(2, 1, 0)
    for p, q in zip(segment_profiles(weights, *turned), segment_profiles(weights, *turned.contiguous()), strict=True):
        same(p, q, 0)
    sparse = [w.T.contiguous().T for w in he_weights((6, 9, 2), generator())]
    same(segment_profile(sparse, *turned[:, 0]), segment_profile(weights, *turned[:, 0]), 1e-13)


def test_parametrised_and_shared_layers():
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
    net = nn.Sequential(linear, nn.ReLU(), linear, nn.ReLU(), nn.Linear(5, 2)).double()
    for seed in range(4):
        check(net, *normal(2, 5, seed=seed))


# Functionals


def direct(profile, kind):
    """Return each functional in plain arithmetic, from pieces, one output after another."""
    t = [0.0, *profile.t.tolist(), 1.0]
    each = []
    for c in range(profile.slopes.shape[1]):
        s = profile.slopes[:, c].tolist()
        g = [b - a for a, b in itertools.pairwise(s)]
        chord = sum((b - a) * v for (a, b), v in zip(itertools.pairwise(t), s, strict=True))
        if kind == "rms":
            each.append(
                math.sqrt(sum((b - a) * (v - chord) ** 2 for (a, b), v in zip(itertools.pairwise(t), s, strict=True)))
            )
        elif kind == "end":
            each.append(abs(s[-1] - s[0]))
        elif kind == "max":
            each.append(max(abs(v - s[0]) for v in s))
        elif kind == "maxchord":
            each.append(max(abs(v - chord) for v in s))
        elif kind == "bridge":
            n = len(g)
            each.append(max(abs(sum(g[:k]) - k / n * sum(g)) for k in range(1, n + 1)))
        elif kind == "full":
            each.append(float((profile.gradients[-1, c] - profile.gradients[0, c]).norm()))
        else:
            f = [profile.ends[0, c], *profile.outputs[:, c], profile.ends[1, c]]
            each.append(max(abs(float(v - (1 - at) * f[0] - at * f[-1])) for at, v in zip(t, f, strict=True)))
    return math.sqrt(sum(v**2 for v in each) / len(each))


def test_functionals_are_their_formulas():
    for seed in range(3):
        net, ends = mlp(6, 14, 14, 3, seed=seed), normal(2, 6, seed=seed)
        p = segment_profile(net, *ends, gradients=True)
        for kind in DEFLECTIONS:
            assert math.isclose(p.deflection(kind), direct(p, kind), rel_tol=1e-12), kind
        assert p.deflection() == p.deflection("rms")
        g = p.gaps
        squares = (g - g.mean(0)).square()
        assert math.isclose(p.gap_deviation(), g.square().mean().sqrt(), rel_tol=1e-12)
        assert math.isclose(p.gap_deviation("centered"), squares.mean().sqrt(), rel_tol=1e-10)
        jumps = p.gradients.diff(dim=0).norm(dim=-1)
        assert math.isclose(p.gap_deviation("full"), jumps.square().mean().sqrt(), rel_tol=1e-12)
        q = g.square().sum(0).mean()
        chord = ((p.ends[1] - p.ends[0]) / p.length).square().mean()
        assert math.isclose(p.total_gap_variance(), q, rel_tol=1e-12)
        assert math.isclose(p.walk_ratio(), 6 * p.deflection() ** 2 / q, rel_tol=1e-12)
        assert math.isclose(p.end_ratio(), p.deflection("end") ** 2 / q, rel_tol=1e-12)
        assert math.isclose(p.non_straightness(), p.deflection() ** 2 / (p.deflection() ** 2 + chord), rel_tol=1e-12)


def test_functionals_on_a_grid():
    """The integral, the largest deviation and the sag, from outputs and autograd slopes at 20,001 points."""
    net, (x0, x1) = mlp(6, 14, 14, 2), normal(2, 6)
    p = segment_profile(net, x0, x1, gradients=True)
    t = torch.linspace(0, 1, 20_001).double()[:, None]
    x = torch.lerp(x0, x1, t).requires_grad_()
    f = net(x)
    u = (x1 - x0) / p.length
    s = torch.stack([torch.autograd.grad(each.sum(), x, retain_graph=True)[0] @ u for each in f.T], 1)
    f = f.detach()
    chord = (f[-1] - f[0]) / p.length
    grid = {
        "rms": (s - chord).square().mean(0).sqrt(),
        "end": s[-1] - s[0],
        "max": (s - s[0]).abs().amax(0),
        "maxchord": (s - chord).abs().amax(0),
        "sag": (f - (1 - t) * f[0] - t * f[-1]).abs().amax(0),
    }
    for kind, each in grid.items():
        assert math.isclose(p.deflection(kind), each.square().mean().sqrt(), rel_tol=1e-3), kind


def test_two_units_by_hand():
    """f(x) = 2 relu(x) + relu(x - 1) from -1 to 3: slopes 0, 2, 3."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.copy_(torch.tensor([0.0, -1.0]))
        net[2].weight.copy_(torch.tensor([[2.0, 1.0]]))
    p = segment_profile(net, torch.tensor([-1.0]), torch.tensor([3.0]), gradients=True)
    assert p.t.tolist() == [0.25, 0.5]
    assert p.slopes.flatten().tolist() == [0, 2, 3]
    assert p.gaps.flatten().tolist() == [2, 1]
    assert p.outputs.flatten().tolist() == [0, 2]
    assert p.ends.flatten().tolist() == [0, 8]
    assert p.gradients.flatten().tolist() == [0, 2, 3]
    expected = {"end": 3, "max": 3, "maxchord": 2, "bridge": 0.5, "full": 3, "sag": 2, "rms": math.sqrt(1.5)}
    for kind, value in expected.items():
        assert math.isclose(p.deflection(kind), value, rel_tol=1e-14), kind
    assert math.isclose(p.gap_deviation(), math.sqrt(2.5), rel_tol=1e-14)
    assert math.isclose(p.gap_deviation("centered"), 0.5, rel_tol=1e-14)
    assert math.isclose(p.gap_deviation("full"), math.sqrt(2.5), rel_tol=1e-14)
    assert math.isclose(p.non_straightness(), 1.5 / 5.5, rel_tol=1e-14)
    assert math.isclose(p.walk_ratio(), 9 / 5, rel_tol=1e-14)
    assert math.isclose(p.end_ratio(), 9 / 5, rel_tol=1e-14)
    assert math.isclose(straightness([p]).relative_sag(), 2 / 8, rel_tol=1e-14)


def test_slopes_per_unit_of_t(monkeypatch):
    net, ends = mlp(6, 14, 3), normal(2, 6)
    p = segment_profile(net, *ends)
    monkeypatch.setattr(module, "PER_UNIT_LENGTH", False)
    q = segment_profile(net, *ends)
    torch.testing.assert_close(q.slopes, p.slopes * p.length, rtol=1e-14, atol=0)
    torch.testing.assert_close(q.gaps, q.slopes.diff(dim=0), rtol=0, atol=0)


def test_straightness_pools_and_selects():
    net = mlp(5, 12, 12, 3)
    x0, x1 = normal(2, 9, 5)
    x1[4] = x0[4]
    x1[7] = x0[7] + 1e-6 * x1[7]
    profiles = segment_profiles(net, x0, x1)
    s = straightness(profiles)
    assert s.breakpoints.tolist() == [len(p) for p in profiles]
    assert s.deflection.shape == s.sag.shape == (9, 3)
    for i, p in enumerate(profiles):
        assert math.isclose(s.deflection[i].mean(), p.deflection() ** 2, rel_tol=1e-12, abs_tol=1e-28)
        assert math.isclose(s.end[i].mean(), p.deflection("end") ** 2, rel_tol=1e-12, abs_tol=1e-28)
        assert math.isclose(s.sag[i].square().mean().sqrt(), p.deflection("sag"), rel_tol=1e-12, abs_tol=1e-14)
        assert math.isclose(s.total_gap_variance[i].mean(), p.total_gap_variance(), rel_tol=1e-12)
        torch.testing.assert_close(s.rise[i], (p.ends[1] - p.ends[0]).abs())
        torch.testing.assert_close(s.chord[i] * p.length, p.ends[1] - p.ends[0], rtol=0, atol=1e-12)
        only = s[i : i + 1]
        for name in ("gap_deviation", "non_straightness", "walk_ratio", "end_ratio"):
            assert math.isclose(getattr(only, name)(), getattr(p, name)(), rel_tol=1e-10, abs_tol=1e-14)
    g = torch.cat([p.gaps for p in profiles])
    assert math.isclose(s.gap_deviation(), g.square().mean().sqrt(), rel_tol=1e-12)
    within = torch.cat([p.gaps - p.gaps.mean(0) for p in profiles if len(p)])
    assert math.isclose(s.gap_deviation("centered"), within.square().mean().sqrt(), rel_tol=1e-10)
    assert math.isclose(s.walk_ratio(), 6 * s.deflection.sum() / s.total_gap_variance.sum(), rel_tol=1e-12)
    assert math.isclose(s.end_ratio(), s.end.sum() / s.total_gap_variance.sum(), rel_tol=1e-12)
    assert math.isclose(s.relative_sag(), s.sag.sum() / s.rise.sum(), rel_tol=1e-12)
    bent = s.deflection.sum()
    assert math.isclose(s.non_straightness(), bent / (bent + s.chord.square().sum()), rel_tol=1e-12)
    mask = torch.arange(9) % 2 == 0
    for index in (mask, mask.nonzero()[:, 0], slice(0, 9, 2)):
        some = s[index]
        assert torch.equal(some.breakpoints, s.breakpoints[::2])
        chosen = straightness([p for p, kept in zip(profiles, mask, strict=True) if kept])
        assert math.isclose(some.walk_ratio(), chosen.walk_ratio(), rel_tol=1e-12)


def walks(steps):
    """Return the profiles of functions of one variable whose gaps are given, at even places."""
    profiles = []
    for gaps in steps:
        n = len(gaps)
        net = nn.Sequential(nn.Linear(1, n), nn.ReLU(), nn.Linear(n, 1)).double()
        with torch.no_grad():
            net[0].weight.fill_(1.0)
            net[0].bias.copy_(-torch.arange(1, n + 1) / (n + 1))
            net[2].weight.copy_(gaps[None])
        profiles.append(segment_profile(net, torch.zeros(1), torch.ones(1)))
    return profiles


def test_the_bridge_sees_order():
    """Shuffled, the observed bridge is that of random orders, 0.83 T in the limit of long walks; sorted, it is not."""
    gaps = normal(60, 100)
    observed, permuted = bridge_test(walks(gaps), generator(), draws=30)
    assert observed.shape == permuted.shape == (60,)
    assert observed.dtype == torch.float64
    difference = observed - permuted
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(60)
    assert abs(permuted.mean() - 0.8) < 0.05
    coherent, again = bridge_test(walks(gaps.sort(1).values), generator(), draws=30)
    assert (coherent > 2 * again).all()
    # T and the bridge by hand: gaps 1, -1, 0 have S_k - k/N S_N = 1, 0, 0.
    (p,) = walks(torch.tensor([[3.0, -3.0]]).double())
    torch.testing.assert_close(bridge_test([p], generator())[0], torch.tensor([1 / math.sqrt(2)]).double())
    torch.testing.assert_close(bridge_test([p], generator())[1], torch.tensor([1 / math.sqrt(2)]).double())
    # Outputs are averaged, those without a gap left out; the scale does not matter.
    two = segment_profile(
        [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]])], -torch.ones(1), torch.ones(1)
    )
    assert bridge_test([two], generator())[0].tolist() == [0]
    tiny = bridge_test(walks(gaps[:3] * 1e-100), generator(), draws=3)
    torch.testing.assert_close(tiny, bridge_test(walks(gaps[:3]), generator(), draws=3))


@pytest.mark.parametrize("build", [lambda: mlp(6, 12, 12, 3), convolutional, residual])
def test_gradients_are_those_of_autograd(build):
    net = build()
    x = normal(5, 2, 7, 6) if build is convolutional else normal(5, 6)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda each: net(each[None])[0]))(x)
    torch.testing.assert_close(input_gradients(net, x), jacobians.flatten(2), rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(input_gradients(net.float(), x.float()), jacobians.flatten(2), rtol=0, atol=1e-4)


def test_gradients_of_several_networks():
    weights = he_weights((6, 12, 3), generator(), networks=4)
    x = normal(4, 5, 6)
    gradients = input_gradients(weights, x)
    assert gradients.shape == (4, 5, 3, 6)
    for i in range(4):
        own = input_gradients([w[i] for w in weights], x[i])
        torch.testing.assert_close(gradients[i], own, rtol=0, atol=1e-13)
        torch.testing.assert_close(
            input_gradients(weights, x[0])[i, 0], input_gradients([w[i] for w in weights], x[0])[0]
        )
    # Slopes of profiles are gradients along the segment, on every piece.
    for p, a, b in zip(
        segment_profiles(weights, x[:, 0][:, None], x[:, 1][:, None], gradients=True), x[:, 0], x[:, 1], strict=True
    ):
        torch.testing.assert_close(p.gradients @ (b - a) / p.length, p.slopes, rtol=0, atol=1e-13)


# Refusals


@pytest.mark.parametrize("run", [segment_profile, segment_profiles, lambda m, x, _, **__: input_gradients(m, x)])
def test_unsupported_models_are_named(run):
    x = normal(2, 3)
    for part in (nn.Tanh(), nn.PReLU(), nn.GELU(), nn.LPPool1d(2, 2)):
        name = type(part).__name__
        with pytest.raises(TypeError, match=rf"^model: unsupported layer {name} \(at '1'\); supported are Sequential"):
            run(nn.Sequential(nn.Linear(3, 3), part), x, x)
    with pytest.raises(TypeError, match=r"^model: return_indices=True of '1' is not supported"):
        run(nn.Sequential(nn.Linear(3, 3), nn.MaxPool1d(1, return_indices=True)), x, x)
    with pytest.raises(TypeError, match=r"^model: unsupported layer Tanh \(at '0.branch.1'\)"):
        run(nn.Sequential(Residual(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))), x, x)
    with pytest.raises(TypeError, match=r"^model: must be a torch.nn.Module or a sequence"):
        run("network", x, x)
    with pytest.raises(ValueError, match=r"^model: must have at least one layer with weights"):
        run(nn.Sequential(nn.ReLU()), x, x)
    with pytest.raises(ValueError, match=r"^model: 'weights\[0\]': must be finite"):
        run([torch.full((2, 3), math.nan)], x, x)
    with pytest.raises(ValueError, match=r"^model: weights must all have shapes \(h, h'\) or \(m, h, h'\)"):
        run([torch.ones(2, 4, 3), torch.ones(1, 4)], x, x)
    with pytest.raises(ValueError, match=r"^model: weights must all have shapes"):
        run([torch.ones(2, 2, 4, 3)], x, x)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([1.0, 2.0, 3.0], TypeError, "must be a torch.Tensor, got list"),
        (torch.ones(3, dtype=torch.int64), TypeError, "must have dtype float32 or float64, got int64"),
        (torch.tensor([1.0, math.nan, 0.0]), ValueError, "must be finite"),
        (torch.ones(4), ValueError, r"must have shape \(3,\), got \(4,\)"),
        (torch.ones(1, 3), ValueError, r"must have shape \(3,\), got \(1, 3\)"),
        (torch.tensor(1.0), ValueError, r"must have shape \(3,\), got \(\)"),
        (torch.ones(0), ValueError, r"must have shape \(3,\), got \(0,\)"),
    ],
)
def test_wrong_ends_are_named(x, error, match):
    net = mlp(3, 4, 2)
    with pytest.raises(error, match=f"^x0: {match}"):
        segment_profile(net, x, torch.ones(3))
    with pytest.raises(error, match=f"^x1: {match}"):
        segment_profile(net, torch.ones(3), x)


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(2, 4), torch.ones(0, 3), torch.ones(2, 2, 3), torch.ones(())])
def test_wrong_batches_are_named(x):
    got = rf"got \({', '.join(map(str, x.shape))},?\)"
    for net, shape in (
        (mlp(3, 4, 2), r"\(n, 3\)"),
        (he_weights((3, 4, 2), generator(), networks=4), r"\(n, 3\) or \(4, n, 3\)"),
    ):
        with pytest.raises(ValueError, match=rf"^x0: must have shape {shape}, {got}$"):
            segment_profiles(net, x, torch.ones(2, 3))
        with pytest.raises(ValueError, match=rf"^x1: must have shape {shape}, {got}$"):
            segment_profiles(net, torch.ones(2, 3), x)
        with pytest.raises(ValueError, match=rf"^x: must have shape {shape}, {got}$"):
            input_gradients(net, x)


def test_other_refusals():
    net, x = mlp(3, 4, 2), torch.ones(3)
    with pytest.raises(ValueError, match=r"^x1: must have the shape of x0, \(2, 3\), got \(1, 3\)"):
        segment_profiles(net, torch.ones(2, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"^model: must be one network, got weights of 4; segment_profiles takes them"):
        segment_profile(he_weights((3, 4, 2), generator(), networks=4), x, x)
    images = torch.ones(2, 7, 6)
    with pytest.raises(ValueError, match=r"^x0: layer '1' \(Conv2d\) cannot take the units of shape"):
        segment_profile(convolutional()[1:], images[:1], images[:1])
    with pytest.raises(ValueError, match=r"^x0: layer '0' \(BatchNorm2d\) cannot take the units of shape \(1, 7, 6\)"):
        segment_profile(convolutional(), images[:1], images[:1])
    with pytest.raises(ValueError, match=r"^x0: layer '1' \(Linear\) cannot take the units of shape \(65,\)"):
        segment_profile(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.ones(65), torch.ones(65))
    with pytest.raises(ValueError, match=r"^x0: layer '0' \(Conv2d\) cannot take the units of shape \(8, 8\)"):
        segment_profile(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten()), torch.ones(8, 8), torch.ones(8, 8))
    with pytest.raises(ValueError, match=r"^model: must have outputs of shape \(n, k\), got \(n, 4, 6, 6\)"):
        segment_profile(nn.Sequential(nn.Conv2d(1, 4, 3)), torch.ones(1, 8, 8), torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match=r"^x0: layer '0' \(Residual\) cannot take the units of shape \(3,\)"):
        segment_profile(nn.Sequential(Residual(nn.Linear(3, 1))), x, x)
    for pool, units in ((nn.MaxPool2d(2), (8,)), (nn.MaxPool1d(9), (1, 8)), (nn.AdaptiveMaxPool1d(2), (1, 8, 8))):
        name = rf"layer '0' \({type(pool).__name__}\) cannot take the units of shape \({', '.join(map(str, units))}"
        broken = nn.Sequential(pool, nn.Flatten(), nn.Linear(4, 2))
        with pytest.raises(ValueError, match=f"^x0: {name}"):
            segment_profile(broken, torch.ones(units), torch.ones(units))
        with pytest.raises(ValueError, match=f"^x: {name}"):
            input_gradients(broken, torch.ones(1, *units))
    padding = nn.Sequential(nn.MaxPool1d(2, 1, 1, dilation=4), nn.Linear(1, 1))  # where there is no input at all
    with pytest.raises(ValueError, match=r"^x0: layer '0' \(MaxPool1d\) cannot take the units of shape \(1, 3\)"):
        segment_profile(padding, torch.ones(1, 3), torch.zeros(1, 3))
    profile = segment_profile(net, x, -x)
    for run in (profile.gap_deviation, profile.deflection, straightness([profile]).gap_deviation):
        with pytest.raises(ValueError, match=r"^kind: must be one of rms, .*, got 'other'"):
            run("other")
    for run in (profile.gap_deviation, profile.deflection):
        with pytest.raises(ValueError, match=r"^kind: 'full' needs a profile with gradients"):
            run("full")
    with pytest.raises(ValueError, match=r"^kind: must be one of rms, centered, got 'full'"):
        straightness([profile]).gap_deviation("full")
    for run in (straightness, lambda p: bridge_test(p, generator())):
        with pytest.raises(ValueError, match=r"^profiles: must hold at least one profile"):
            run([])
    other = segment_profile(mlp(3, 4, 1), x, -x)
    with pytest.raises(ValueError, match=r"^profiles: must have the same number of outputs, got \[2, 1\]"):
        straightness([profile, other])
    assert len(bridge_test([profile, other], generator())[0]) == 2
    with pytest.raises(TypeError, match=r"^index: must be a slice or a torch.Tensor, got int"):
        straightness([profile])[0]
    with pytest.raises(TypeError, match=r"^generator: must be a torch.Generator, got int"):
        bridge_test([profile], 0)
    with pytest.raises(ValueError, match=r"^draws: must be an integer >= 1, got 0"):
        bridge_test([profile], generator(), draws=0)
    with pytest.raises(TypeError, match=r"^branch: must be a torch.nn.Module, got function"):
        Residual(lambda x: x)
    with pytest.raises(ValueError, match=r"^branch: must keep the shape \(1, 3\) of its input, got \(1, 1\)"):
        Residual(nn.Linear(3, 1))(torch.ones(1, 3))
