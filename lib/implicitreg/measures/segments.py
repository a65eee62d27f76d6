"""A piecewise linear network along the segment between two inputs: exact breakpoints, slopes and gradient gaps."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from implicitreg import checks
from implicitreg.measures.running import ordinary
from implicitreg.nets import layers as ly

GapDeviation = Literal["rms", "centered", "full"]
Deflection = Literal["rms", "end", "max", "maxchord", "bridge", "full", "sag"]

# The paper's own choice is not known: these three say which functional is meant where none is named.
GAP_DEVIATION: GapDeviation = "rms"
DEFLECTION: Deflection = "rms"
PER_UNIT_LENGTH = True
"""Slopes and gaps are per unit length of the segment; else per unit of t."""

_GAP_DEVIATIONS = ("rms", "centered", "full")
_DEFLECTIONS = ("rms", "end", "max", "maxchord", "bridge", "full", "sag")
_SUPPORTED = (
    "Sequential, Linear, Conv1d/2d/3d, ReLU, LeakyReLU, average and max pooling (adaptive too), BatchNorm1d/2d/3d, "
    "Flatten, Dropout, Identity and implicitreg.nets.Residual"
)

# Breakpoints closer than this are one: units that are copies of each other differ by rounding errors.
_TOGETHER = 2.0**-40

# Numbers that the rows of one program hold in a layer: as much as a core's cache takes in.
_WORKING_SET = 2**19

_MAX_POOLS = (
    (nn.MaxPool1d, nn.AdaptiveMaxPool1d),
    (nn.MaxPool2d, nn.AdaptiveMaxPool2d),
    (nn.MaxPool3d, nn.AdaptiveMaxPool3d),
)

_Watch: TypeAlias = Callable[[ly.Layer, Tensor, Tensor], None]

# How many more segments may follow at once: the first ones may have had fewer breakpoints than those that come.
_GROWTH = 32


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class SegmentProfile:
    r"""The outputs of a network along :math:`x_t = (1 - t)\,x_0 + t\,x_1`, as `segment_profile` finds them.

    Between breakpoints every output is linear in t. N is the number of breakpoints, k that of outputs. Slopes and
    gaps are per unit length of the segment, :math:`s(t) = \nabla f(x_t)^\top u` with
    :math:`u = (x_1 - x_0) / \|x_1 - x_0\|`. All is float64 or int64, on the device of the model.

    Attributes
    ----------
    t
        Breakpoints, sorted, distinct, in (0, 1): shape ``(N,)``.
    layer
        Which non-linearity the unit that switches belongs to, counted from 0: shape ``(N,)``. Max poolings count.
    unit
        Its index among the (flattened) units of that layer, shape ``(N,)``; those of a max pooling are its outputs.
    sign
        1 where it is switched on, -1 where it is switched off, 0 where the maximum passes to another input, shape
        ``(N,)``.
    switches
        Number of units that switch at the breakpoint, shape ``(N,)``: 1, or more where several do, such as copies
        of each other; their gaps are added, and ``layer``, ``unit`` and ``sign`` are those of the first.
    slopes
        Slopes of the N + 1 pieces, shape ``(N + 1, k)``.
    gaps
        Differences of the slopes at the breakpoints, shape ``(N, k)``: the gradient gaps.
    outputs
        Outputs at the breakpoints, shape ``(N, k)``.
    ends
        Outputs at :math:`x_0` and :math:`x_1`, shape ``(2, k)``.
    length
        :math:`\|x_1 - x_0\|`.
    gradients
        Gradients of the outputs in the flattened input on each piece, shape ``(N + 1, k, d)``, or None.
    """

    t: Tensor
    layer: Tensor
    unit: Tensor
    sign: Tensor
    switches: Tensor
    slopes: Tensor
    gaps: Tensor
    outputs: Tensor
    ends: Tensor
    length: float
    gradients: Tensor | None = None

    def __repr__(self) -> str:
        """Return its sizes."""
        return f"SegmentProfile({len(self)} breakpoints, {self.ends.shape[1]} outputs, length {self.length:.6g})"

    def __len__(self) -> int:
        """Return the number of breakpoints."""
        return len(self.t)

    def gap_deviation(self, kind: GapDeviation = GAP_DEVIATION) -> float:
        r"""Return the gradient gap deviation, the standard deviation of the gaps.

        ``"rms"`` is :math:`\sqrt{\frac1N \sum_k g_k^2}`, ``"centered"`` subtracts the mean of the gaps, ``"full"``
        takes :math:`\|G_k\|`, the norms of the gaps of the whole gradient. Squares are averaged over outputs.

        Raises
        ------
        ValueError
            ``kind`` is another one, or ``"full"`` and the profile has no gradients; or squares of gaps exceed the
            range of float64.

        Notes
        -----
        0 where there is no breakpoint.
        """
        _one_of(kind, _GAP_DEVIATIONS)
        if kind == "full":
            jumps = self._gradients().diff(dim=0).square().sum(-1)
            return math.sqrt(_in_range(jumps.mean() if len(jumps) else jumps.sum()))
        return straightness([self]).gap_deviation(kind)

    def total_gap_variance(self) -> float:
        r"""Return :math:`Q = \sum_k g_k^2`, averaged over outputs.

        Raises
        ------
        ValueError
            Squares of gaps exceed the range of float64.
        """
        return _in_range(self.gaps.square().sum(0).mean())

    def deflection(self, kind: Deflection = DEFLECTION) -> float:
        r"""Return the gradient deflection: how far the slope strays.

        With chord slope :math:`\bar s = (f(x_1) - f(x_0)) / \|x_1 - x_0\|`:

        - ``"rms"``: :math:`\big(\int_0^1 (s(t) - \bar s)^2\,dt\big)^{1/2}`;
        - ``"end"``: :math:`|s(1) - s(0)|`;
        - ``"max"``: :math:`\max_t |s(t) - s(0)|`;
        - ``"maxchord"``: :math:`\max_t |s(t) - \bar s|`;
        - ``"bridge"``: :math:`\max_k |S_k - \frac kN S_N|` with :math:`S_k = \sum_{j \le k} g_j`;
        - ``"full"``: :math:`\|\nabla f(x_1) - \nabla f(x_0)\|`;
        - ``"sag"``: :math:`\max_t |f(x_t) - (1 - t) f(x_0) - t f(x_1)|`, in units of the output.

        Squares are averaged over outputs.

        Raises
        ------
        ValueError
            ``kind`` is another one, or ``"full"`` and the profile has no gradients; or squares exceed the range of
            float64.

        Notes
        -----
        0 where the outputs have no kink.
        """
        _one_of(kind, _DEFLECTIONS)
        if kind == "full":
            gradients = self._gradients()
            each = (gradients[-1] - gradients[0]).norm(dim=-1)
        elif kind == "bridge":
            each = _bridge(self.gaps)
        elif kind == "max":
            each = (self.slopes - self.slopes[0]).abs().amax(0)
        else:
            summary = straightness([self])
            if kind == "maxchord":
                each = (self.slopes - summary.chord[0]).abs().amax(0)
            elif kind == "sag":
                each = summary.sag[0]
            else:
                each = {"rms": summary.deflection, "end": summary.end}[kind][0].sqrt()
        return math.sqrt(_in_range(each.square().mean()))

    def non_straightness(self) -> float:
        r"""Return :math:`\delta^2 / (\delta^2 + \bar s^2)` in [0, 1], with the rms deflection δ: 0 is straight."""
        return straightness([self]).non_straightness()

    def walk_ratio(self) -> float:
        r"""Return :math:`6 \delta^2 / Q`: 1 for a random walk of the slope, above 1 where it bends coherently.

        0 where the outputs have no kink.
        """
        return straightness([self]).walk_ratio()

    def end_ratio(self) -> float:
        r"""Return :math:`(s(1) - s(0))^2 / Q`: 1 in expectation where gaps are uncorrelated; 0 without a kink."""
        return straightness([self]).end_ratio()

    def _gradients(self) -> Tensor:
        if self.gradients is None:
            raise ValueError("kind: 'full' needs a profile with gradients, segment_profile(..., gradients=True)")
        return self.gradients


def _one_of(kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise ValueError(f"kind: must be one of {', '.join(kinds)}, got {kind!r}")


def _bridge(gaps: Tensor) -> Tensor:
    """Return max_k |S_k - k/N S_N| of gaps ``(..., N, k)``: shape ``(..., k)``."""
    n = gaps.shape[-2]
    if not n:
        return gaps.sum(-2)
    sums = gaps.cumsum(-2)
    share = torch.arange(1, n + 1, dtype=gaps.dtype, device=gaps.device)[:, None] / n
    return (sums - share * sums[..., -1:, :]).abs().amax(-2)


@dataclass(frozen=True, eq=False)
class Straightness:
    r"""What many profiles have in common to be averaged: b profiles, k outputs; all but ``breakpoints`` are float64.

    Its methods pool over all profiles and outputs that it holds: they are ratios of means, since means of ratios
    blow up where a profile has few breakpoints. Indexing selects profiles.

    Attributes
    ----------
    breakpoints
        Number of breakpoints, shape ``(b,)``, int64.
    total_gap_variance
        :math:`Q = \sum g^2`, shape ``(b, k)``.
    deflection
        Square of the rms deflection, :math:`\int (s - \bar s)^2 dt`, shape ``(b, k)``.
    chord
        Chord slope :math:`\bar s`, shape ``(b, k)``.
    end
        :math:`(s(1) - s(0))^2`, shape ``(b, k)``.
    sag
        Largest distance of the output from its chord, shape ``(b, k)``.
    rise
        :math:`|f(x_1) - f(x_0)|`, shape ``(b, k)``.
    """

    breakpoints: Tensor
    total_gap_variance: Tensor
    deflection: Tensor
    chord: Tensor
    end: Tensor
    sag: Tensor
    rise: Tensor

    def __getitem__(self, index: slice | Tensor) -> "Straightness":
        """Return the selected profiles: a slice, a mask or a tensor of indices."""
        if not isinstance(index, slice | Tensor):
            raise TypeError(f"index: must be a slice or a torch.Tensor, got {type(index).__name__}")
        return Straightness(*(every[index] for every in vars(self).values()))

    def gap_deviation(self, kind: GapDeviation = GAP_DEVIATION) -> float:
        """Return the rms of all gaps, or their standard deviation within each profile (``"centered"``)."""
        _one_of(kind, _GAP_DEVIATIONS[:2])
        squares = self.total_gap_variance
        if kind == "centered":
            squares = squares - self.end / self.breakpoints.clamp_min(1)[:, None]
        return math.sqrt(_ratio(squares.mean(-1).sum(), self.breakpoints.sum()))

    def non_straightness(self) -> float:
        r"""Return :math:`\delta^2 / (\delta^2 + \bar s^2)` from the means of δ² and of s̄²; 0 for constant outputs."""
        return _ratio(self.deflection.sum(), (self.deflection + self.chord.square()).sum())

    def walk_ratio(self) -> float:
        r"""Return :math:`6 \delta^2 / Q` from the means of δ² and of Q; 0 where no output has a kink."""
        return _ratio(6 * self.deflection.sum(), self.total_gap_variance.sum())

    def end_ratio(self) -> float:
        r"""Return :math:`(s(1) - s(0))^2 / Q` from the means of both; 0 where no output has a kink."""
        return _ratio(self.end.sum(), self.total_gap_variance.sum())

    def relative_sag(self) -> float:
        """Return the mean sag divided by the mean rise; 0 where no output has a kink, else infinite without a rise."""
        return _ratio(self.sag.sum(), self.rise.sum())


def _ratio(above: Tensor, below: Tensor) -> float:
    """Return a ratio, 0 where there is nothing above."""
    _in_range(above + below)
    return float(above / below) if above > 0 else 0.0


def _in_range(value: Tensor) -> float:
    """Return a number made of squares, which may have overflowed."""
    if not torch.isfinite(value):
        raise ValueError("profiles: squares of slopes, gaps or outputs exceed the range of float64")
    return float(value)


def straightness(profiles: Sequence[SegmentProfile]) -> Straightness:
    r"""Return what is averaged over segments, for all of them at once.

    .. math:: Q = \sum_k g_k^2, \quad \delta^2 = \int_0^1 (s(t) - \bar s)^2\,dt, \quad
        \bar s = \frac{f(x_1) - f(x_0)}{\|x_1 - x_0\|}

    of each output, the number of breakpoints, and what else `Straightness` lists.

    Parameters
    ----------
    profiles
        At least one, all with the same number of outputs.

    Returns
    -------
    Straightness
        Of all profiles, in the shapes and dtypes that it lists.

    Raises
    ------
    ValueError
        No profile, or profiles of different numbers of outputs.

    Notes
    -----
    Cost: some passes over the pieces of all profiles. Source: the functionals are reconstructed from the abstract of
    Kubo et al. 2019, Implicit Regularization in Over-parameterized Neural Networks.

    Examples
    --------
    >>> net = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])]  # |x|
    >>> ends = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    >>> summary = straightness(segment_profiles(net, *ends))
    >>> summary.breakpoints.tolist(), summary.sag.tolist()
    ([1, 0], [[1.0], [0.0]])
    """
    if not profiles:
        raise ValueError("profiles: must hold at least one profile")
    if len({p.ends.shape for p in profiles}) > 1:
        raise ValueError(f"profiles: must have the same number of outputs, got {[p.ends.shape[1] for p in profiles]}")
    device = profiles[0].slopes.device
    slopes = torch.cat([p.slopes for p in profiles])
    ends = torch.stack([p.ends for p in profiles])
    n = torch.tensor([len(p.t) for p in profiles], device=device)
    # Pieces of all profiles in a row: where a profile's first and last ones are, and what it owns.
    own = torch.arange(len(n), device=device).repeat_interleave(n + 1)
    last = (n + 1).cumsum(0) - 1
    first = last - n
    inner = torch.ones(len(own), dtype=torch.bool, device=device)
    inner[first] = False
    start = slopes.new_zeros(len(own))
    start[inner] = torch.cat([p.t for p in profiles])
    dt = torch.ones_like(start)
    dt[:-1] = start[1:]
    dt[last] = 1
    dt -= start

    def summed(values: Tensor, owner: Tensor) -> Tensor:
        return values.new_zeros(len(n), values.shape[1]).index_add_(0, owner, values)

    gaps = torch.cat([p.gaps for p in profiles])
    # Relative to the first slopes and outputs, what is straight is so without a rounding error.
    initial = slopes[first]
    slopes = slopes - initial[own]
    mean = summed(dt[:, None] * slopes, own)
    at = own[inner]
    line = torch.lerp(ends[at, 0], ends[at, 1], start[inner][:, None])
    sag = (torch.cat([p.outputs for p in profiles]) - line).abs()
    return Straightness(
        breakpoints=n,
        total_gap_variance=summed(gaps.square(), at),
        deflection=summed(dt[:, None] * (slopes - mean[own]).square(), own),
        chord=initial + mean,
        end=slopes[last].square(),
        sag=torch.zeros_like(ends[:, 0]).scatter_reduce_(0, at[:, None].expand_as(sag), sag, "amax"),
        rise=(ends[:, 1] - ends[:, 0]).abs(),
    )


def bridge_test(
    profiles: Sequence[SegmentProfile], generator: torch.Generator, *, draws: int = 20
) -> tuple[Tensor, Tensor]:
    r"""Compare the bridge of the gaps with that of the same gaps in random order.

    Where gaps are exchangeable, both agree in expectation; where a network bends coherently, what is observed is
    larger. Both are :math:`\max_k |S_k - \frac kN S_N| / T` with :math:`T = \sqrt{\sum g^2}`, averaged over the
    outputs that have a gap.

    Parameters
    ----------
    profiles
        Of any number of segments.
    generator
        Source of randomness, on the CPU.
    draws
        Permutations a profile, >= 1.

    Returns
    -------
    tuple of Tensor
        Observed, and the mean over the permutations: each of shape ``(len(profiles),)``, float64; 0 without a gap.

    Raises
    ------
    TypeError, ValueError
        ``generator`` is none, ``draws`` is out of range, or there is no profile.

    Notes
    -----
    Cost: ``draws`` permutations of a profile's gaps, and as many sums of them. Source: the test is this library's own,
    of the gaps of Kubo et al. 2019, Implicit Regularization in Over-parameterized Neural Networks.

    Examples
    --------
    >>> net = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])]  # |x|
    >>> profile = segment_profile(net, torch.tensor([-1.0]), torch.tensor([1.0]))
    >>> bridge_test([profile], torch.Generator())  # of a single gap there is one order
    (tensor([0.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """
    checks.random(generator, "generator")
    checks.integer(draws, "draws", 1)
    observed, permuted = [], []
    for profile in profiles:
        gaps = profile.gaps
        if len(gaps):
            # Scaled by a power of 2, so that squares do not leave the range of float64.
            gaps = gaps * 2.0 ** -math.frexp(max(float(gaps.abs().max()), sys.float_info.min))[1]
        total = gaps.square().sum(0).sqrt()
        some = total > 0
        weight = some / (total.where(some, 1) * some.sum().clamp_min(1))
        orders = torch.rand(draws, len(gaps), generator=generator).argsort(-1).to(gaps.device)
        observed.append((_bridge(gaps) * weight).sum())
        permuted.append((_bridge(gaps[orders]) * weight).sum(-1).mean())
    if not observed:
        raise ValueError("profiles: must hold at least one profile")
    return torch.stack(observed), torch.stack(permuted)


def segment_profile(model: ly.Network, x0: Tensor, x1: Tensor, *, gradients: bool = False) -> SegmentProfile:
    r"""Return where a network bends between two inputs, and by how much: exactly, not on a grid.

    Along :math:`x_t = (1 - t)\,x_0 + t\,x_1` the outputs of a piecewise linear network are piecewise linear. At a
    breakpoint one unit i of some layer changes its sign, or the maximum of a window of a max pooling passes to another
    input, and the gradient jumps. At a unit it does so by the *gradient gap*

    .. math:: g = u^\top \big(\nabla f(x_{t^+}) - \nabla f(x_{t^-})\big) = a_i\,|u^\top \nabla z_i|,

    with :math:`a_i = \partial f / \partial h_i` and the pre-activation :math:`z_i`. In the sense of distributions,
    :math:`u^\top \nabla^2 f\,u` is a point mass g at each breakpoint.

    Parameters
    ----------
    model
        A module built of Linear, convolutions, ReLU, LeakyReLU, average and max pooling, batch norm, dropout,
        Flatten, Identity, Sequential and `implicitreg.nets.Residual`, or weight matrices of a ReLU network without
        biases. It is not changed, taken as in evaluation mode, and computed in float64 whatever its dtype.
    x0, x1
        The ends, shape ``(d,)``, or the shape of one input such as ``(1, 8, 8)``; float32 or float64.
    gradients
        Keep the gradients of all pieces too, which the kinds ``"full"`` need.

    Returns
    -------
    SegmentProfile
        In float64, whatever the dtype of the arguments.

    Raises
    ------
    TypeError
        A layer is not supported (the message names it), or an end is no tensor of dtype
        float32 or float64.
    ValueError
        Ends of different or wrong shapes, numbers that are not finite or leave the range of float64, or weights of
        several networks, which `segment_profiles` takes.

    Notes
    -----
    Layer by layer, the pre-activations at all breakpoints of the layers below are linear in between, so that their
    sign changes give the breakpoints of this layer. Under a max pooling, so does the upper envelope of each window;
    its breakpoints are the kinks of the maximum. Cost: two products of matrices a layer, of as many rows as there are
    breakpoints below.

    A unit whose pre-activation vanishes on a whole piece is off there; where rounding errors are left of it, their
    sign changes are listed, with gaps of their size. Inputs of a window that differ by less than 1e-12 of its largest
    number count as equal. A breakpoint within 1e-12 of another one is put there, and one within 1e-12 of an end is
    none. Equal ends have one piece of slope 0. Gaps are differences of slopes, and share their rounding errors: a few
    1e-15 of the largest one.

    Source: the functional is reconstructed from the abstract of Kubo et al. 2019, Implicit Regularization in
    Over-parameterized Neural Networks.

    Examples
    --------
    >>> net = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])]  # |x|
    >>> profile = segment_profile(net, torch.tensor([-1.0]), torch.tensor([3.0]))
    >>> profile.t.tolist(), profile.slopes.flatten().tolist(), profile.gaps.item(), profile.switches.item()
    ([0.25], [-1.0, 1.0], 2.0, 2)
    """
    return _profiles(model, x0, x1, gradients, single=True)[0]


def segment_profiles(model: ly.Network, x0: Tensor, x1: Tensor, *, gradients: bool = False) -> list[SegmentProfile]:
    r"""Return the profiles of many segments, as one tensor program.

    Each is the piecewise linear :math:`t \mapsto f\big((1 - t)\,x_0 + t\,x_1\big)` between its own ends, with the
    gradient gaps :math:`g = u^\top \big(\nabla f(x_{t^+}) - \nabla f(x_{t^-})\big)` at its breakpoints: see
    `segment_profile`.

    Parameters
    ----------
    model
        As for `segment_profile`. Weight matrices with a leading dimension, ``(m, h_i, h_{i-1})``, are m networks.
    x0, x1
        The ends, shape ``(p, d)`` or ``(p, ...)``: one a segment. For m networks the same segments for all, or
        ``(m, p, d)``. float32 or float64.
    gradients
        Keep the gradients of all pieces too.

    Returns
    -------
    list of SegmentProfile
        One a segment, in order; for m networks ``m * p``, those of the first network first. In float64.

    Raises
    ------
    TypeError, ValueError
        As for `segment_profile`, but for several networks.

    Notes
    -----
    Cost: that of `segment_profile` for each, with several segments to a product of matrices. Source: as there.

    Examples
    --------
    >>> net = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])]  # |x|
    >>> ends = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    >>> [profile.t.tolist() for profile in segment_profiles(net, *ends)]
    [[0.5], []]
    """
    return _profiles(model, x0, x1, gradients, single=False)


def _profiles(model: ly.Network, x0: Tensor, x1: Tensor, gradients: bool, single: bool) -> list[SegmentProfile]:
    # The C library keeps freed memory only up to the size of the largest block ever freed, else every table is taken
    # from the system page by page. This block is not touched, and so costs nothing.
    torch.empty(2**24, dtype=torch.uint8)
    # Gradients are not to be had of what was made in inference mode.
    with torch.inference_mode(False), torch.no_grad():
        program = Program(model)
        starts, stops = program.inputs(x0, "x0", single), program.inputs(x1, "x1", single)
        if x0.shape != x1.shape:
            raise ValueError(f"x1: must have the shape of x0, {tuple(x0.shape)}, got {tuple(x1.shape)}")
        profiles: list[SegmentProfile] = []
        # The first segment tells how many breakpoints to expect, and so how many segments go together.
        together = 1
        while len(profiles) < len(starts):
            some = slice(len(profiles), len(profiles) + together)
            rows = program.walk(starts[some], stops[some], len(profiles), gradients)
            profiles += rows.profiles(program, starts[some], stops[some])
            together = max(1, min(len(starts[some]) * _WORKING_SET // rows.held, _GROWTH * together))
    return profiles


def input_gradients(model: ly.Network, x: Tensor) -> Tensor:
    r"""Return the gradients of all outputs in the input, :math:`(\nabla f_i(x))_j = \partial f_i / \partial x_j`.

    Parameters
    ----------
    model
        As for `segment_profile`; weight matrices ``(m, h_i, h_{i-1})`` are m networks.
    x
        Inputs, shape ``(n, d)`` or ``(n, ...)``; for m networks the same for all, or ``(m, n, d)``; float32
        or float64.

    Returns
    -------
    Tensor
        Shape ``(n, k, d)`` or ``(m, n, k, d)`` with flattened inputs, float64.

    Raises
    ------
    TypeError, ValueError
        As for `segment_profile`.

    Notes
    -----
    Where a pre-activation is 0, its unit counts as off; of several maxima of a window, the first counts. Cost: one
    pass forward, and one backward for each output. Source: elementary.

    Examples
    --------
    >>> net = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])]  # |x|
    >>> input_gradients(net, torch.tensor([[-1.0], [2.0]])).flatten().tolist()
    [-1.0, 1.0]
    """
    with torch.inference_mode(False), torch.no_grad():
        program = Program(model)
        inputs = program.inputs(x, "x")
        gradients = program.gradients(inputs, torch.arange(len(inputs), device=inputs.device))
    return gradients if program.networks is None else gradients.reshape(program.networks, -1, *gradients.shape[1:])


class TooManyRowsError(Exception):
    """There are more breakpoints than were allowed for."""


class Program:
    """What is done to the rows of a table of inputs, layer by layer."""

    def __init__(self, model: ly.Network) -> None:
        found = ly.layers(model, ly.PIECEWISE_LINEAR, _SUPPORTED, torch.float64)
        ly.finite(model)
        self.name = ""
        """Of the argument that the inputs come from, for messages."""
        self.networks: int | None = None
        self.each = 1
        """Number of inputs that each of several networks has."""
        if not isinstance(model, nn.Module):
            if any(w.ndim > 3 or w.shape[:-2] != model[0].shape[:-2] for w in model):
                shapes = [tuple(w.shape) for w in model]
                raise ValueError(f"model: weights must all have shapes (h, h') or (m, h, h'), got {shapes}")
            self.networks = model[0].shape[0] if model[0].ndim == 3 else None
            relu = ly.Layer(ly.POINTWISE, "", None)
            found = [step for layer in found for step in (layer, relu)][:-1]
        self.layers = [
            layer._replace(
                weight=None if layer.weight is None else ordinary(layer.weight),
                bias=None if layer.bias is None else ordinary(layer.bias),
            )
            for layer in found
        ]
        self.device = next(layer.weight.device for layer in self.layers if layer.weight is not None)

    def fitting(self, x: Tensor, name: str, single: bool = False) -> Tensor:
        """Return inputs, or a single one, as a table with a row for each network and input."""
        checks.located(checks.finite(checks.floating(x, name), name), self.device, name)
        if single and self.networks is not None:
            raise ValueError(f"model: must be one network, got weights of {self.networks}; segment_profiles takes them")
        first = self.layers[0]
        d = first.weight.shape[-1] if first.kind == ly.LINEAR and first.weight is not None else None
        networks = () if self.networks is None else (self.networks,)
        table = x[None] if single else x
        if networks and table.ndim == 2:
            table = table.expand(*networks, -1, -1)
        n = len(networks)
        if (
            table.ndim < n + 2
            or 0 in table.shape
            or table.shape[:n] != networks
            or (d is not None and table.shape[n + 1 :] != (d,))
        ):
            if single:
                shape = "(d, ...)" if d is None else f"({d},)"
            else:
                shape = f"(n, {'...' if d is None else d})" + (f" or ({networks[0]}, n, {d})" if networks else "")
            raise ValueError(f"{name}: must have shape {shape}, got {tuple(x.shape)}")
        self.each = table.shape[n]
        self.name = self.name or name
        return table.detach().flatten(0, n)

    def inputs(self, x: Tensor, name: str, single: bool = False) -> Tensor:
        """Return the same in float64."""
        return self.fitting(x, name, single).to(torch.float64)

    def affine(self, layer: ly.Layer, table: Tensor, segment: Tensor) -> Tensor:
        """Return what a layer without a non-linearity makes of tables ``(..., rows, units)``; bias for the first."""
        tables = table.shape[:2]
        try:
            if layer.kind == ly.LINEAR and layer.weight is not None:
                if table.ndim != 3:  # what a batch norm behind it normalises would be other units
                    raise ValueError
                if self.networks is not None:
                    return self._batched(layer.weight, table, segment)
                after = F.linear(table, layer.weight)
                bias = layer.bias
            else:
                flat = table.flatten(0, 1)
                bias = None
                if layer.kind == ly.CONV and layer.weight is not None:
                    if flat.ndim != layer.weight.ndim:  # one input without channels looks like channels without inputs
                        raise ValueError
                    # Written out for its windows the input is far larger: only for as many rows as the cache takes in.
                    some = max(1, _WORKING_SET // (layer.weight[0].numel() * math.prod(flat.shape[2:])))
                    parts = [ly.convolve(layer, part, layer.weight) for part in torch.split(flat, some)]
                    after = torch.cat(parts) if len(parts) > 1 else parts[0]
                    if layer.bias is not None:
                        bias = layer.bias.reshape(-1, *[1] * (after.ndim - 2))
                elif layer.kind == ly.BATCH_NORM and layer.weight is not None and layer.bias is not None:
                    if flat.shape[1] != len(layer.weight):
                        raise ValueError
                    wide = (-1, *[1] * (flat.ndim - 2))
                    after = flat * layer.weight.reshape(wide)
                    bias = layer.bias.reshape(wide)
                else:
                    after = layer.module.forward(flat)
                after = after.reshape(*tables, *after.shape[1:])
        except (RuntimeError, IndexError, ValueError):
            raise ly.misfit(layer, table.shape[2:], self.name) from None
        if bias is not None:
            after[0] += bias
        return after

    def _batched(self, weight: Tensor, table: Tensor, segment: Tensor) -> Tensor:
        """Multiply the rows of each network by its own matrix."""
        network = segment // self.each
        low, high = int(network[0]), int(network[-1]) + 1
        counts = torch.bincount(network - low, minlength=high - low)
        most = int(counts.max())
        # Rows are padded to the same number for every network.
        place = torch.arange(len(network), device=network.device)
        place = place - (counts.cumsum(0) - counts)[network - low] + (network - low) * most
        padded = table.new_zeros(len(table), (high - low) * most, table.shape[2])
        padded[:, place] = table
        after = padded.reshape(len(table), high - low, most, -1) @ weight[low:high].mT
        return after.flatten(1, 2).index_select(1, place)

    def walk(self, x0: Tensor, x1: Tensor, first: int = 0, gradients: bool = False, limit: float = math.inf) -> "_Rows":
        """Find the breakpoints of some segments, the first of which is number ``first``.

        Raises
        ------
        TooManyRowsError
            More than ``limit`` of them; nothing has been made for those.
        """
        rows = _Rows(x0, x1, first, gradients, limit)
        for layer in self.layers:
            if layer.kind == ly.BRANCH:
                rows.skips.append(rows.table.clone())  # ReLUs work in place
            elif layer.kind == ly.SHORTCUT:
                # What the branch made waits while its input goes through the shortcut.
                rows.skips[-1], rows.table = rows.table, rows.skips[-1]
            elif layer.kind == ly.JOIN:
                rows.table = self._joined(layer, rows.skips.pop(), rows.table)
            elif layer.kind in (ly.POINTWISE, ly.LEAKY):
                rows.bend(_below(layer))
            elif layer.kind == ly.MAXIMUM:
                rows.pool(layer, self._windows(layer, rows.table))
            else:
                rows.table = self.affine(layer, rows.table, rows.segment)
                rows.held = max(rows.held, rows.table[0].numel())
        self._flat(rows.table)
        if not (torch.isfinite(rows.table).all() and torch.isfinite(rows.length).all()):
            raise ValueError("model: outputs or slopes between x0 and x1 exceed the range of float64")
        return rows

    def through(
        self, table: Tensor, segment: Tensor, masks: Sequence[Tensor] = (), watch: _Watch | None = None
    ) -> Tensor:
        """Return what tables ``(..., rows, units)`` are behind the last layer: values, and whatever is linear in them.

        ``masks`` tell which units are on, and which input is a maximum; without them, the values do, and ``watch`` is
        told both.
        """
        known = iter(masks)

        def layer_by_layer(layer: ly.Layer, table: Tensor) -> Tensor:
            if layer.kind not in (ly.POINTWISE, ly.LEAKY, ly.MAXIMUM):
                return self.affine(layer, table, segment)
            z = table[0]
            if masks:
                which = next(known)
            elif layer.kind == ly.MAXIMUM:
                self._windows(layer, table)
                which = _maxima(layer, z)
            else:
                which = z > 0
            if watch is not None:
                watch(layer, z, which)
            if layer.kind == ly.MAXIMUM:
                return _picked(layer, table, which)
            return torch.where(which.reshape(z.shape), table, _below(layer) * table)

        return self._flat(ly.followed(self.layers, table, layer_by_layer, self._joined))

    def gradients(self, x: Tensor, segment: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return the gradients of the outputs at inputs ``(rows, ...)``: ``(rows, k, d)``; ``masks`` as above."""
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            (f,) = self.through(x[None], segment, masks)
            each = [torch.autograd.grad(one.sum(), x, retain_graph=True)[0].flatten(1) for one in f.unbind(1)]
        return torch.stack(each, 1)

    def _flat(self, table: Tensor) -> Tensor:
        if table.ndim != 3:
            raise ValueError(
                f"model: must have outputs of shape (n, k), got (n, {', '.join(map(str, table.shape[2:]))})"
            )
        return table

    def _joined(self, layer: ly.Layer, branch: Tensor, shortcut: Tensor) -> Tensor:
        if branch.shape != shortcut.shape:
            raise ly.misfit(layer, shortcut.shape[2:], self.name)
        return shortcut + branch

    def _windows(self, layer: ly.Layer, table: Tensor) -> Tensor:
        """Return which inputs of a channel each output of a max pooling is the largest of: ``(outputs, inputs)``."""
        try:
            return _windows(layer, table)
        except (RuntimeError, IndexError, ValueError):
            raise ly.misfit(layer, table.shape[2:], self.name) from None


def _below(layer: ly.Layer) -> float:
    """Return the slope of a non-linearity below 0."""
    return float(layer.module.negative_slope) if layer.kind == ly.LEAKY else 0.0


def _space(layer: ly.Layer) -> int:
    """Return over how many dimensions a max pooling goes."""
    return next(n for n, kinds in enumerate(_MAX_POOLS, start=1) if isinstance(layer.module, kinds))


def _maxima(layer: ly.Layer, z: Tensor) -> Tensor:
    """Return where each window has its maximum, as an index into its channel: ``(rows, ..., outputs)``."""
    m, n = layer.module, _space(layer)
    if isinstance(m, _MAX_POOLS[n - 1][1]):
        adaptive: Any = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[n - 1]
        _, index = adaptive(z, m.output_size, return_indices=True)
    else:
        plain: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
        _, index = plain(z, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, return_indices=True)
    found: Tensor = index
    return found


def _picked(layer: ly.Layer, table: Tensor, index: Tensor) -> Tensor:
    """Return the entries of tables ``(..., rows, ..., inputs)`` at indices into each row's channels."""
    n = _space(layer)
    flat = index.flatten(-n).expand(len(table), *[-1] * (index.ndim - n + 1))
    return table.flatten(-n).gather(-1, flat).reshape(len(table), *index.shape)


def changes(layer: ly.Layer, z: Tensor, which: Tensor) -> int:
    """Return how many units switch, once at least, between neighbouring rows of one segment.

    ``z`` is what reaches the non-linearity, and ``which`` tells what is on there, or the maximum.
    """
    before, after = which[:-1], which[1:]
    switch = before != after
    if layer.kind == ly.MAXIMUM:
        # Of several maxima only the first is known: what was less than the maximum has become it, and the other way.
        for table, loser, winner in ((z[1:], before, after), (z[:-1], after, before)):
            switch &= _picked(layer, table[None], loser)[0] < _picked(layer, table[None], winner)[0]
    return int(switch.sum())


def _windows(layer: ly.Layer, table: Tensor) -> Tensor:
    """Return the inputs of each window: ``(outputs, inputs)``, those in the padding replaced by others."""
    m, n = layer.module, _space(layer)
    if table.ndim - 2 not in (n, n + 1):
        raise ValueError
    sizes = table.shape[-n:]
    after = _maxima(layer, table[0, :1]).shape[-n:]
    index = torch.zeros(1, 1, dtype=torch.int64)
    inside = torch.ones(1, 1, dtype=torch.bool)
    for i, (size, count) in enumerate(zip(sizes, after, strict=True)):
        output = torch.arange(count)
        if isinstance(m, _MAX_POOLS[n - 1][1]):
            start, stop = output * size // count, ((output + 1) * size + count - 1) // count
            places = start[:, None] + torch.arange(int((stop - start).max()))
            there = places < stop[:, None]
        else:
            width, stride, padding, dilation = (
                each if isinstance(each, int) else each[i] for each in (m.kernel_size, m.stride, m.padding, m.dilation)
            )
            places = (output * stride - padding)[:, None] + torch.arange(width) * dilation
            there = (places >= 0) & (places < size)
        # Dimension by dimension, every window of those before with every one of this.
        index = (index[:, None, :, None] * size + places[None, :, None, :]).flatten(2).flatten(0, 1)
        inside = (inside[:, None, :, None] & there[None, :, None, :]).flatten(2).flatten(0, 1)
    if not inside.any(1).all():
        raise ValueError
    first = index.gather(1, inside.long().argmax(1, keepdim=True))
    return torch.where(inside, index, first).to(table.device)


def _overtakings(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the largest of numbers changes that go from ``a`` to ``b``, ``(windows, numbers)``, on lines.

    These are the kinks of upper envelopes: which window it is, and what share of the way, in order within a window.
    """
    # What differs by rounding errors, as inputs that are copies of each other do, is equal.
    close = _TOGETHER * torch.maximum(a.abs(), b.abs()).amax(1, keepdim=True)
    top = b.amax(1, keepdim=True) - close
    best = torch.where(a >= a.amax(1, keepdim=True) - close, b, -math.inf).argmax(1, keepdim=True)
    window = torch.arange(len(a), device=a.device)
    windows, shares = [], []
    for _ in range(a.shape[1]):
        some = (b.gather(1, best) < top)[:, 0]
        if not some.any():
            break
        if not some.all():
            window, a, b, best, top, close = (each[some] for each in (window, a, b, best, top, close))
        # Who is first to overtake the largest; of several the one that is then fastest.
        behind = a.gather(1, best) - a
        gain = b - b.gather(1, best) + behind
        share = torch.where(gain > close, behind / gain, math.inf)
        soonest = share.amin(1, keepdim=True)
        best = torch.where(share <= soonest, gain, -math.inf).argmax(1, keepdim=True)
        windows.append(window)
        shares.append(soonest[:, 0].clamp(0, 1))
    return torch.cat(windows or [window[:0]]), torch.cat(shares or [a[:0, 0]])


class _Rows:
    """Ends and breakpoints of some segments, in order, and what reaches the current layer there.

    ``table[0]`` holds the values in each row, ``table[1]`` their slopes in t on the piece that starts there; the
    values are linear on each piece.
    """

    def __init__(self, x0: Tensor, x1: Tensor, first: int, keep: bool, limit: float = math.inf) -> None:
        p, device = len(x0), x0.device
        slope = x1 - x0
        # Scaled, so that squares do not leave the range of float64.
        largest = slope.flatten(1).abs().amax(1, keepdim=True)
        self.length = (slope.flatten(1) / largest).norm(dim=1).nan_to_num() * largest[:, 0]
        self.segment = torch.arange(first, first + p, device=device).repeat_interleave(2)
        # Equal ends are at one place, where no row fits in between.
        self.t = torch.stack([torch.zeros_like(self.length), self.length.sign()], 1).flatten()
        self.lasts = torch.arange(1, 2 * p, 2, device=device)
        values, slopes = torch.stack([x0, x1], 1), torch.stack([slope, torch.zeros_like(slope)], 1)
        self.table = torch.stack([values.flatten(0, 1), slopes.flatten(0, 1)])
        self.skips: list[Tensor] = []
        # Which units are on, layer by layer: only gradients ask.
        self.masks: list[Tensor] | None = [] if keep else None
        # Row, layer, unit and sign of each unit that switches.
        self.switches = torch.empty(0, 4, dtype=torch.int64, device=device)
        self.depth = 0
        self.limit = limit
        self.held = self.table[0].numel()

    def bend(self, negative_slope: float) -> None:
        """Apply a ReLU, after adding a row wherever a unit changes its sign."""
        shape = self.table.shape[2:]
        z = self.table[0].flatten(1)
        positive = z > 0
        change = positive[1:] ^ positive[:-1]
        change[self.lasts[:-1]] = False
        row, unit = _places(change)
        before, after = z[row, unit], z[row + 1, unit]
        # Where one is 0, the sign changes at a row that is there.
        strict = (before != 0) & (after != 0)
        crossing = bool(strict.all())
        if not crossing:
            row, unit, before, after = row[strict], unit[strict], before[strict], after[strict]
        share = before / (before - after)
        t = torch.lerp(self.t[row], self.t[row + 1], share)
        order = t.argsort()
        order = order[row[order].argsort(stable=True)]
        row, unit, sign = row[order], unit[order], after.sign().long()[order]
        at, apart = self._insert(row, t[order], share[order])
        table = self.table.flatten(2)
        table[0, at, unit] = 0
        z, v = table
        positive = z > 0
        off = ~positive
        off[:-1] &= ~positive[1:]
        if not crossing or not apart:
            # Some units switch at rows that were there, or with others.
            off[self.lasts] = off[self.lasts - 1]
            change = off[1:] ^ off[:-1]
            change[self.lasts[:-1]] = False
            at, unit = _places(change)
            at = at + 1
            sign = 1 - 2 * off[at, unit].long()
        self.switches = torch.cat([self.switches, torch.stack([at, torch.full_like(at, self.depth), unit, sign], 1)])
        if negative_slope:
            z.copy_(torch.where(positive, z, negative_slope * z))
            v.copy_(torch.where(off, negative_slope * v, v))
        else:
            z.clamp_min_(0)
            v.masked_fill_(off, 0)
        self.table = table.reshape(*table.shape[:2], *shape)
        self.depth += 1
        if self.masks is not None:
            self.masks.append(~off)

    def pool(self, layer: ly.Layer, windows: Tensor) -> None:
        """Apply a max pooling, after adding a row wherever the maximum of a window passes to another input."""
        z = self.table[0]
        # A window whose maximum is at the same input in two rows has it there in between.
        index = _maxima(layer, z).flatten(1)
        change = index[1:] != index[:-1]
        change[self.lasts[:-1]] = False
        row, unit = _places(change)
        if len(row):
            channel = unit.div(len(windows), rounding_mode="floor")
            space = math.prod(z.shape[-_space(layer) :])
            inputs = windows[unit - channel * len(windows)] + (channel * space)[:, None]
            z = z.flatten(1)
            which, share = _overtakings(z[row[:, None], inputs], z[row[:, None] + 1, inputs])
            row, unit = row[which], unit[which]
        if len(row):
            t = torch.lerp(self.t[row], self.t[row + 1], share)
            order = t.argsort(stable=True)  # windows that overlap have breakpoints in common
            order = order[row[order].argsort(stable=True)]
            at, _ = self._insert(row[order], t[order], share[order])
            switch = torch.stack([at, torch.full_like(at, self.depth), unit[order], torch.zeros_like(at)], 1)
            self.switches = torch.cat([self.switches, switch])
        # The maximum of a piece is the one in its middle, also where several are as large at its start.
        z = self.table[0]
        index = _maxima(layer, torch.cat([z[:-1] + z[1:], z[-1:]]))
        index[self.lasts] = index[self.lasts - 1]
        self.table = _picked(layer, self.table, index)
        self.depth += 1
        if self.masks is not None:
            self.masks.append(index)

    def _insert(self, row: Tensor, t: Tensor, share: Tensor) -> tuple[Tensor, bool]:
        """Add rows at ``t``, sorted, ``share`` of the way from ``row`` to the next; return in which rows they are now.

        Those that are as good as at another one get no row of their own; also return whether all have one.
        """
        low, high = t - self.t[row] <= _TOGETHER, self.t[row + 1] - t <= _TOGETHER
        inside = ~(low | high)
        new = inside.clone()
        new[1:] &= ~(inside[:-1] & (row[1:] == row[:-1]) & (t[1:] - t[:-1] <= _TOGETHER))
        apart = bool(new.all())
        below, share = (row, share) if apart else (row[new], share[new])
        if len(self.t) + len(below) > self.limit:
            raise TooManyRowsError
        counts = torch.bincount(below, minlength=len(self.t))
        moved = torch.arange(len(self.t), device=t.device) + counts.cumsum(0) - counts
        places = below + 1 + torch.arange(len(below), device=t.device)
        at = places
        if not apart:
            at = moved[row + (high & ~low).long()]
            at[inside] = places[new.cumsum(0)[inside] - 1]
        if len(below):
            source = torch.arange(len(self.t), device=t.device).repeat_interleave(counts + 1)
            self.table, *self.skips = (
                _with_rows(table, source, places, below, share) for table in (self.table, *self.skips)
            )
            if self.masks is not None:
                self.masks = [mask[source] for mask in self.masks]
            self.t, self.segment = self.t[source], self.segment[source]
            self.t[places] = t if apart else t[new]
            self.lasts = moved[self.lasts]
            self.switches[:, 0] = moved[self.switches[:, 0]]
            self.held = max(self.held, self.table[0].numel())
        return at, apart

    def profiles(self, program: Program, x0: Tensor, x1: Tensor) -> list[SegmentProfile]:
        """Return what has been found, a segment at a time."""
        values, slopes = self.table
        own = self.segment - self.segment[0]
        if PER_UNIT_LENGTH:
            slopes = slopes / self.length.where(self.length > 0, 1)[own, None]
        piece = torch.ones(len(own), dtype=torch.bool, device=own.device)
        piece[self.lasts] = False
        firsts = torch.cat([self.lasts.new_zeros(1), self.lasts[:-1] + 1])
        inner = piece.clone()
        inner[firsts] = False
        at = inner.nonzero()[:, 0]
        switches = self.switches[self.switches[:, 0].argsort(stable=True)]
        number = torch.bincount(switches[:, 0], minlength=len(own))
        owner = switches[(number.cumsum(0) - number)[at]]
        breakpoints = (self.lasts - firsts - 1).tolist()
        pieces = [n + 1 for n in breakpoints]
        jacobians: Sequence[Tensor | None] = [None] * len(x0)
        if self.masks is not None:
            start = piece.nonzero()[:, 0]
            masks = [mask[start] for mask in self.masks]
            jacobians = torch.split(program.gradients(x0[own[start]], self.segment[start], masks), pieces)
        found: list[Sequence[Any]] = [
            *(torch.split(each, breakpoints) for each in (self.t[at], *owner[:, 1:].unbind(1), number[at])),
            torch.split(slopes[piece], pieces),
            torch.split(slopes[at] - slopes[at - 1], breakpoints),
            torch.split(values[at], breakpoints),
            torch.stack([values[firsts], values[self.lasts]], 1).unbind(0),
            self.length.tolist(),
            jacobians,
        ]
        return [SegmentProfile(*each) for each in zip(*found, strict=True)]


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of what is true, row by row."""
    # Over one dimension the search is faster.
    flat = mask.flatten().nonzero()[:, 0]
    row = flat.div(mask.shape[1], rounding_mode="floor")
    return row, flat - row * mask.shape[1]


def _with_rows(table: Tensor, source: Tensor, places: Tensor, below: Tensor, share: Tensor) -> Tensor:
    """Repeat rows, and put between ``below`` and the next, ``share`` of the way, what lies there on a line."""
    after = table.index_select(1, source)
    weight = share.reshape(-1, *[1] * (table.ndim - 2))
    before, behind = table[0].index_select(0, below), table[0].index_select(0, below + 1)
    after[0].index_copy_(0, places, torch.lerp(before, behind, weight))
    return after
