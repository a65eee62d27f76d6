"""Gaps and deflection of networks with very many breakpoints: segments between random samples, walked in parts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.measures import segments
from implicitreg.nets import layers as ly

BUDGET = 3 * 2**20
"""Units of the non-linearities times places where they are evaluated, a pair."""

# Places a pair where the slope is taken, and breakpoints that a part should have.
_SLOPES = 2
_BREAKPOINTS = 8

# Length of a part that is not cut.
_SHORTEST = 2.0**-30

# Numbers that a table may hold: 256 MiB for values and slopes.
_HELD = 2**24


@dataclass(frozen=True)
class Estimate:
    """A number and how far it may be off.

    Attributes
    ----------
    value
        The estimate.
    standard_error
        Its standard error.
    """

    value: float
    standard_error: float

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class SampledStraightness:
    r"""What `sampled_straightness` returns: means over segments between two samples, and all outputs.

    Attributes
    ----------
    gap_deviation
        Root of the mean square of all gaps, as ``Straightness.gap_deviation``.
    deflection
        Root of the mean of the squared rms deflections.
    breakpoints
        Mean number of breakpoints of a segment.
    non_straightness
        :math:`\delta^2 / (\delta^2 + \bar s^2)` from the means of both, as ``Straightness.non_straightness``.
    pairs
        Number of segments.
    exact
        Whether all of them were walked as a whole: then only the choice of pairs is random.
    """

    gap_deviation: Estimate
    deflection: Estimate
    breakpoints: Estimate
    non_straightness: Estimate
    pairs: int
    exact: bool


def sampled_straightness(
    model: ly.Network, x: Tensor, generator: torch.Generator, *, pairs: int = 20, budget: int = BUDGET
) -> SampledStraightness:
    r"""Estimate gradient gaps and deflection between random samples, whatever the number of breakpoints.

    Segments between pairs of samples are walked as a whole, as `segment_profile` does, where ``budget`` allows.
    Longer ones are walked in short parts :math:`[t, t + w]` at random places. Every breakpoint is as likely as any
    other to lie in one, so that the number of breakpoints and :math:`Q = \sum g^2`, divided by that chance, have
    their true expectations; so has :math:`\int_0^1 (s - \bar s)^2 dt`, from exact slopes s at other random places
    and the chord slope :math:`\bar s` from the ends.

    Parameters
    ----------
    model
        As for `segment_profile`: a module of supported layers, or weight matrices of one network.
    x
        Samples, shape ``(n, d)`` or ``(n, ...)``, of which at least two differ.
    generator
        Source of randomness, on the CPU.
    pairs
        Number of pairs, >= 2. Each is drawn with replacement from the pairs of samples that differ.
    budget
        Units of the non-linearities times places where they are evaluated, for each pair, roughly; >= 1. Of four times
        as much, parts give errors half as large; those that stem from the choice of pairs stay.

    Returns
    -------
    SampledStraightness

    Raises
    ------
    TypeError
        A layer is not supported (the message names it), ``x`` is no tensor of dtype float32 or float64, or
        ``generator`` is none.
    ValueError
        Weights of several networks; samples of a wrong shape, equal or not finite; numbers out of range, or that
        leave the range of float64.

    Notes
    -----
    Standard errors are jackknife estimates over pairs, of ratios of means: they hold what is random in pairs, parts
    and places. As gaps have long tails, two of them hold the truth about nine times of ten. How many breakpoints a
    segment has is foreseen from the units that differ between its ends and the places in between, and does not depend
    on where its parts are.

    Cost: about 10 evaluations of values and slopes a pair, in float64, where a network has 258,000 units; more where it
    has fewer, so that units times places are the same. Gaps, breakpoints and deflection of 20 pairs then have standard
    errors of about 10, 10 and 4 %. No table takes more than 256 MiB.

    Source: the functionals are reconstructed from the abstract of Kubo et al. 2019, Implicit Regularization in
    Over-parameterized Neural Networks.

    Examples
    --------
    >>> net = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])]  # |x|
    >>> ends = torch.tensor([[-1.0], [1.0]])
    >>> sampled_straightness(net, ends, torch.Generator(), pairs=5).gap_deviation
    Estimate(value=2.0, standard_error=0.0)
    """
    checks.random(generator, "generator")
    checks.integer(pairs, "pairs", 2)
    checks.integer(budget, "budget", 1)
    with torch.inference_mode(False), torch.no_grad():
        program = segments.Program(model)
        if program.networks is not None:
            raise ValueError(f"model: must be one network, got weights of {program.networks}")
        first, second = _pairs(program, x, generator, pairs)
        places = _stratified(generator, pairs, _SLOPES)
        each = [
            _measured(program, x0, x1, t, budget, generator) for x0, x1, t in zip(first, second, places, strict=True)
        ]
    n, q, bent, chord = torch.tensor([found[:4] for found in each], dtype=torch.float64).T
    if not math.isfinite(float((n + q + bent + chord).sum())):
        raise ValueError("model: squares of slopes or gaps exceed the range of float64")
    one = torch.ones_like(n)
    return SampledStraightness(
        gap_deviation=_jackknifed(lambda a, b: _ratio(a, b).sqrt(), q, n),
        deflection=_jackknifed(lambda a, b: _ratio(a, b).sqrt(), bent, one),
        breakpoints=_jackknifed(_ratio, n, one),
        non_straightness=_jackknifed(_ratio, bent, bent + chord),
        pairs=pairs,
        exact=all(found.whole for found in each),
    )


def _jackknifed(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Estimate:
    """Return a function of the sums over pairs, and its standard error from those with each pair left out."""
    without = function(a.sum() - a, b.sum() - b)
    error = ((len(a) - 1) * without.var(correction=0)).sqrt()
    return Estimate(float(function(a.sum(), b.sum())), float(error))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a > 0, a / b, 0.0)


def _stratified(generator: torch.Generator, rows: int, n: int) -> Tensor:
    """Return n sorted random places in [0, 1), one in each nth part, for each row."""
    return (torch.arange(n) + torch.rand(rows, n, generator=generator, dtype=torch.float64)) / n


def _pairs(program: segments.Program, x: Tensor, generator: torch.Generator, pairs: int) -> tuple[Tensor, Tensor]:
    """Return the ends of the segments, drawn from the pairs of samples that differ."""
    program.fitting(x, "x")
    if not (x != x[:1]).any():
        raise ValueError(f"x: must hold two samples that differ, got {len(x)} equal ones")
    found = torch.empty(2, 0, dtype=torch.int64)
    while found.shape[1] < pairs:
        drawn = torch.randint(len(x), (2, pairs), generator=generator)
        there = drawn.to(x.device)
        differ = (x[there[0]] != x[there[1]]).flatten(1).any(1).cpu()
        found = torch.cat([found, drawn[:, differ]], 1)
    first, second = found[:, :pairs].to(x.device)
    return program.inputs(x[first], "x"), program.inputs(x[second], "x")


class _Measured(NamedTuple):
    """Number of breakpoints, total gap variance, squared deflection and squared chord slope of a segment."""

    n: float
    q: float
    bent: float
    chord: float
    whole: bool


class _Census:
    """Sizes of a network, and how many units switch at least, between the places that it is evaluated at."""

    def __init__(self, x: Tensor) -> None:
        self.units, self.largest, self.switches = 1, x[0].numel(), 0

    def __call__(self, layer: ly.Layer, z: Tensor, which: Tensor) -> None:
        self.units += which[0].numel()
        self.largest = max(self.largest, z[0].numel())
        self.switches += segments.changes(layer, z, which)


def _measured(
    program: segments.Program, x0: Tensor, x1: Tensor, places: Tensor, budget: int, generator: torch.Generator
) -> _Measured:
    """Measure one segment: as a whole where the budget allows, else in parts."""
    t = torch.cat([places.new_zeros(1), places, places.new_ones(1)]).to(x0.device)
    x, along = torch.lerp(x0, x1, t.reshape(-1, *[1] * x0.ndim)), x1 - x0
    census = _Census(x)
    f, slopes = program.through(
        torch.stack([x, along.expand_as(x)]), t.new_zeros(len(t), dtype=torch.int64), (), census
    )
    rows, most = budget // census.units, max(16, _HELD // census.largest)
    expected = census.switches
    if expected + 2 <= rows:
        whole = _walked(program, x0, x1, [(0.0, 1.0)], most, 2 * rows)
        if whole is not None:
            return _whole(whole)
        expected = 2 * rows
    left = max(rows - len(t), 3)
    n = max(1, round(left / (_BREAKPOINTS + 2)))
    width = min(1.0, max(1.0, left / n - 2) / max(expected, 1))
    # Parts stick out over the ends, and are cut there: so all places are as likely to be in one.
    starts = _stratified(generator, 1, n)[0] * (1 + width) - width
    parts = _walked(program, x0, x1, [(max(a, 0.0), min(a + width, 1.0)) for a in starts.tolist()], most) or []
    covered = n * width / (1 + width)
    largest = along.abs().max()
    length = (along / largest).norm() * largest if segments.PER_UNIT_LENGTH else 1.0
    chord = (f[-1] - f[0]) / length
    return _Measured(
        n=sum(len(part.gaps) for part in parts) / covered,
        q=sum(part.gaps.square().sum(0).mean().item() for part in parts) / covered,
        bent=(slopes[1:-1] / length - chord).square().mean().item(),
        chord=chord.square().mean().item(),
        whole=False,
    )


class _Part(NamedTuple):
    """Lengths in t of the pieces of a part of a segment, slopes there, and the gaps in between."""

    dt: Tensor
    slopes: Tensor
    gaps: Tensor


def _walked(
    program: segments.Program,
    x0: Tensor,
    x1: Tensor,
    spans: Sequence[tuple[float, float]],
    most: int,
    rows: float = math.inf,
) -> list[_Part] | None:
    """Walk from a to b for each (a, b), at most ``most`` rows at a time; None where all are more than ``rows``."""
    parts = []
    spans = list(spans)
    while spans:
        a, b = spans.pop()
        start, stop = (torch.lerp(x0, x1, end)[None] for end in (a, b))
        # What is that close together is not parted by cutting.
        limit = min(most, rows) if b - a > _SHORTEST else rows
        try:
            walk = program.walk(start, stop, limit=limit)
        except segments.TooManyRowsError:
            if limit == rows:
                return None
            # Not in the middle, where symmetric segments have their breakpoints.
            cut = a + 0.382 * (b - a)
            spans += [(a, cut), (cut, b)]
            continue
        rows -= len(walk.t)
        (profile,) = walk.profiles(program, start, stop)
        ends = profile.t.new_tensor([0.0, 1.0])
        scale = 1.0 if segments.PER_UNIT_LENGTH else b - a
        dt = (b - a) * torch.cat([ends[:1], profile.t, ends[1:]]).diff()
        parts.append(_Part(dt, profile.slopes / scale, profile.gaps / scale))
    return parts


def _whole(parts: Sequence[_Part]) -> _Measured:
    """Measure a segment all of whose parts are known."""
    dt, slopes, gaps = (torch.cat(each) for each in zip(*parts, strict=True))
    # Relative to one of the slopes, what is straight is so without a rounding error.
    relative, dt = slopes - slopes[0], dt[:, None]
    mean = (dt * relative).sum(0)
    return _Measured(
        n=len(gaps),
        q=gaps.square().sum(0).mean().item(),
        bent=(dt * (relative - mean).square()).sum(0).mean().item(),
        chord=(slopes[0] + mean).square().mean().item(),
        whole=True,
    )
