"""Recipes for a given activation whose elasticity is not monotone."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import Activation
from implicitreg.overlaps.elasticity import path_integral, quadrature, solution_ratio, trend, value_and_slope
from implicitreg.overlaps.overlap import InfeasibleError, Overlap, point, sigma_at

Numbers = NDArray[np.float64]

# Inputs that the recipes search, relative to the weights, and how much a curve must turn to have an extremum there.
_SEARCH = np.geomspace(1e-9, 1e3, 1201)
_TURN = 1e-8
# At tiny inputs an activation like 1 - exp(-z) is lost in rounding, which has extrema of its own. Over so many
# neighbours, fourth differences of ln(values) that are not tiny, nor small beside the third ones, tell it.
_NEIGHBOURS, _TINY = 80, 1e-9


def two_point_overlap(
    activation: Activation, w_p: float, w_q: float, w_0: float, *, height: float = 0.9, ratio: float | None = None
) -> Overlap:
    r"""Return data sets on which gradient flow from one start chooses opposite ones of two common solutions.

    The ratio :math:`g(x) = \sigma(w_p x) / \sigma(w_q x)` of an activation whose elasticity is not monotone has an
    interior extremum :math:`g^*` for suitable weights; it takes a value r on either side, at :math:`x_1 < x_2`. Then

    .. math:: a_p^2 = 2\,\frac{H_{x_1}(w_0, w_q) - H_{x_2}(w_0, w_p)}{r^2 - 1}, \qquad a_q = r a_p, \qquad
        a_0^2 = a_q^2 - 2 H_{x_1}(w_0, w_q), \qquad y_i = a_p\,\sigma(w_p x_i).

    Parameters
    ----------
    activation
        The function :math:`\sigma`; positive and increasing where it is used.
    w_p, w_q
        Input weights of p and q, ``0 < w_q < w_p``.
    w_0
        Input weight of the start. Between 1.1 and 2.5 times ``w_p`` most draws are feasible for a sigmoid; 5 suits
        SiLU and GELU with weights 2 and 1.
    height
        Where r lies on the way from the nearer end of the ratio (0) to its extremum (1).
    ratio
        r itself, in place of ``height``.

    Returns
    -------
    Overlap
        ``s1`` has the smaller input. Cost: milliseconds.

    Raises
    ------
    TypeError
        ``activation`` is no function of a tensor that automatic differentiation follows.
    InfeasibleError
        :math:`a_p^2` or :math:`a_0^2` is not positive: another ``w_0`` will do. Or the ratio has no extremum for these
        weights, though the elasticity is not monotone.
    ValueError
        The elasticity is monotone for z from about 1e-9 to 1e3, so that no overlap exists there; a number is out of
        range; or the activation is not positive and increasing where it must be.

    Notes
    -----
    Source: derived here. The idea is that of Zhang et al. (2022), as their abstract tells it; their own recipe was not
    at hand.

    Examples
    --------
    >>> overlap = two_point_overlap(torch.sigmoid, 2, 1, 3.316534127157136739, ratio=6 / 5)
    >>> [[round(v, 9) for v in point.tolist()] for point in (overlap.p, overlap.q)]
    [[5.0, 2.0], [6.0, 1.0]]
    >>> two_point_overlap(torch.tanh, 2, 1, 3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: activation: its elasticity z σ'(z)/σ(z) is decreasing for z = wx in [5e-10, 1000], so there two...
    """
    if not checks.positive(w_q, "w_q") < checks.positive(w_p, "w_p"):
        raise ValueError(f"w_p: must be more than w_q, {w_q:g}, got {w_p!r}")
    if not math.isfinite(checks.number(w_0)):
        raise ValueError(f"w_0: must be a finite number, got {w_0!r}")

    def g(x: Numbers) -> Numbers:
        return np.asarray(solution_ratio(activation, w_p, w_q, torch.from_numpy(x)))

    curve = _Curve(activation, g, (w_p, w_q), "two-point")
    if ratio is None:
        if not 0 < checks.number(height) < 1:
            raise ValueError(f"height: must be a number > 0 and < 1, got {height!r}")
        ratio = curve.end + height * (curve.extremum - curve.end)
    x1, x2 = curve.cut(checks.number(ratio), "ratio")
    h1, h2 = (float(path_integral(activation, x, w_0, w)) for x, w in ((x1, w_q), (x2, w_p)))
    square_p = 2 * (h1 - h2) / (ratio**2 - 1)
    square_0 = ratio**2 * square_p - 2 * h1
    if not min(square_p, square_0) > 0:
        raise InfeasibleError(
            f"w_0: must give a_p² > 0 and a_0² > 0, got {square_p:.4g} and {square_0:.4g} for {w_0!r}; draw another"
        )
    a_p = math.sqrt(square_p)
    y1, y2 = (a_p * sigma_at(activation, w_p * x) for x in (x1, x2))
    points = [[math.sqrt(square_0), w_0], [a_p, w_p], [ratio * a_p, w_q]]
    theta_0, p, q = torch.tensor(points, dtype=torch.float64)
    return Overlap(activation, theta_0, p, q, (x1, y1), (x2, y2))


def one_point_overlap(activation: Activation, theta_0: Tensor | Sequence[float], w: float, level: float) -> Overlap:
    r"""Return two data sets on which gradient flow from one start ends in one point, on curves that cross there.

    As a function of the input x, the path integral :math:`H_x(w_0, w)` of an activation whose elasticity is not
    monotone has an interior extremum for suitable weights; it takes the value ``level`` on either side of it, at
    :math:`x_1 < x_2`, and both paths lead to :math:`p = (\sqrt{a_0^2 + 2\,\mathrm{level}}, w)`.

    Parameters
    ----------
    activation
        The function :math:`\sigma`; positive and increasing where it is used.
    theta_0
        The start, :math:`(a_0, w_0)`.
    w
        Input weight of the end, other than :math:`w_0`.
    level
        :math:`c = H_x(w_0, w) = \frac12 (a^2 - a_0^2)`.

    Returns
    -------
    Overlap
        With ``q`` equal to ``p``; ``s1`` has the smaller input. Cost: milliseconds.

    Raises
    ------
    TypeError
        ``activation`` is no function of a tensor that automatic differentiation follows.
    InfeasibleError
        :math:`a_0^2 + 2\,\mathrm{level}` is not positive. Or the path integral has no extremum for these weights,
        though the elasticity is not monotone.
    ValueError
        The elasticity is monotone for z from about 1e-9 to 1e3, so that no overlap exists there; the path integral does
        not reach ``level`` on both sides of its extremum; or the activation is not positive and increasing where it
        must be.

    Notes
    -----
    Source: derived here; see `two_point_overlap`.

    Examples
    --------
    For a sigmoid and the start (1, 0) the path integral to w = 1 is (x + exp(x) - 1) / x², and at x = 1 it is e.

    >>> overlap = one_point_overlap(torch.sigmoid, (1, 0), 1, math.e)
    >>> round(overlap.s1[0], 9), round(overlap.s2[0], 9), torch.equal(overlap.p, overlap.q)
    (1.0, 3.318266481, True)
    """
    start = point(theta_0, "theta_0")
    a_0, w_0 = start.tolist()
    if not math.isfinite(checks.number(w)) or w == w_0:
        raise ValueError(f"w: must be a finite number other than the start's, {w_0:g}, got {w!r}")

    def h(x: Numbers) -> Numbers:
        # A single input is the curve's own search for a root, which wants all digits.
        inputs = torch.from_numpy(x)
        if len(x) == 1:
            return np.asarray(path_integral(activation, inputs, w_0, w))
        first, last = (torch.full_like(inputs, v) for v in (w_0, w))
        return np.asarray(quadrature(activation, inputs, first, last, 2))

    curve = _Curve(activation, h, (w, w_0), "one-point")
    x1, x2 = curve.cut(checks.number(level), "level")
    square = a_0**2 + 2 * level
    if not square > 0:
        raise InfeasibleError(
            f"level: must give a² > 0, which is {square:.4g} for {level!r}; try one above {-(a_0**2) / 2:.4g}"
        )
    p = torch.tensor([math.sqrt(square), w], dtype=torch.float64)
    y1, y2 = (float(p[0]) * sigma_at(activation, w * x) for x in (x1, x2))
    return Overlap(activation, start, p, p, (x1, y1), (x2, y2))


class _Curve:
    """A function of the input x > 0, of one sign, with one interior extremum, and where it takes a value beside it."""

    def __init__(
        self,
        activation: Activation,
        function: Callable[[Numbers], Numbers],
        weights: tuple[float, float],
        kind: Literal["two-point", "one-point"],
    ):
        self.function, x = function, _SEARCH / max(map(abs, weights))
        with np.errstate(all="ignore"):
            values = function(x)
        # The finite stretch around the middle of the search: far out an activation over- or underflows.
        good = np.isfinite(values) & (values != 0)
        if not good.any():
            raise ValueError("activation: must be positive and increasing where it is used")
        middle = int(np.argmin(np.where(good, np.abs(np.log(_SEARCH)), np.inf)))
        ends = np.flatnonzero(~good)
        first = int(ends[ends < middle].max(initial=-1)) + 1
        last = int(ends[ends > middle].min(initial=len(x)))
        third, fourth = (np.abs(np.diff(np.log(np.abs(values[first:last])), n)) for n in (3, 4))
        rough = (fourth > _TINY) & (fourth > third[:-1] / 2)
        if len(rough) >= _NEIGHBOURS:
            first += int(np.argmin(np.convolve(rough, np.ones(_NEIGHBOURS), "valid") > _NEIGHBOURS / 4))
        self.x, self.values = x[first:last], values[first:last]
        for sign in (1.0, -1.0):
            v = sign * self.values
            top = int(np.argmax(v))
            if v[top] - max(v[0], v[-1]) > _TURN * abs(max(v[0], v[-1])):
                break
        else:
            self._refuse(activation, weights, kind)
        around = (self.x[top - 1], self.x[top + 1])
        found = minimize_scalar(
            lambda at: -sign * self._at(at), bounds=around, method="bounded", options={"xatol": 1e-9 * around[0]}
        )
        self.turn, self.extremum = float(found.x), -sign * float(found.fun)
        self.end = float(sign * max(v[0], v[-1]))

    def _at(self, x: float) -> float:
        return float(self.function(np.array([x]))[0])

    def _refuse(self, activation: Activation, weights: tuple[float, float], kind: str) -> None:
        """Say why there is no extremum: because of the activation, or of the weights."""
        # All of the elasticity that the search has met: at negative z, too, where a weight is negative.
        z = torch.from_numpy(np.unique([w * self.x for w in weights if w]))
        value, slope = value_and_slope(activation, z)
        e = z * slope / value
        met = torch.isfinite(e)
        way = trend(e[met], rounding=1e-7)
        if way == "non-monotone":
            name, advice = (
                ("w_p, w_q", "weights closer together") if kind == "two-point" else ("w", "one closer to w_0")
            )
            raise InfeasibleError(
                f"{name}: no {kind} overlap found with these weights, whose curve has no interior extremum beyond both "
                f"of its ends; try {advice}"
            )
        low, high = z[met][[0, -1]].tolist()
        so = {
            "two-point": "two different solution curves meet at most once",
            "one-point": "every point is the end of one path at most",
        }[kind]
        raise ValueError(
            f"activation: its elasticity z σ'(z)/σ(z) is {way} for z = wx in [{low:.4g}, {high:.4g}], so there {so}: "
            f"no {kind} overlap exists"
        )

    def cut(self, level: float, name: str) -> tuple[float, float]:
        """Return the nearest inputs on either side of the extremum where the function is ``level``."""
        low, high = sorted((self.end, self.extremum))
        if not low < level < high:
            raise ValueError(f"{name}: must lie between {low:.6g} and {high:.6g}, got {level!r}")
        above = (self.values - level) * (self.extremum - level) > 0
        left, right = self.x < self.turn, self.x > self.turn
        x1 = self._root(np.flatnonzero(left & ~above)[::-1], level)
        x2 = self._root(np.flatnonzero(right & ~above), level)
        return x1, x2

    def _root(self, beyond: NDArray[np.intp], level: float) -> float:
        """Return the root between the turn and the nearest of the search's points where the function is beyond it."""
        for edge in self.x[beyond]:
            # The search's own errors may place a point next to the root on its wrong side.
            if (self._at(edge) - level) * (self.extremum - level) < 0:
                return float(brentq(lambda x: self._at(x) - level, edge, self.turn, xtol=1e-300, rtol=8.9e-16))
        return float(edge)
