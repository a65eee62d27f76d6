"""Recipes that make the activation, too."""

import math
from collections.abc import Callable, Sequence

from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import LogSlopeActivation
from implicitreg.nets.neuron import NODES, WEIGHTS
from implicitreg.overlaps.overlap import InfeasibleError, Overlap, point, sigma_at

# What a data set with input x sees of an activation is λ(w) = x (ln σ)'(wx): along its flow a²/2 grows by the integral
# of 1/λ, and along its solutions ln a falls by the integral of λ. Inputs whose intervals of wx are disjoint see two
# functions that have nothing to do with each other, so each can be chosen alone.
_Knots = list[tuple[float, float, float]]  # (w, ln λ, its derivative in w), of a Hermite spline


def bespoke_two_point(
    theta_0: Tensor | Sequence[float],
    p: Tensor | Sequence[float],
    q: Tensor | Sequence[float],
    x: Tensor | Sequence[float],
) -> Overlap:
    r"""Return a two-point overlap at a given start, with given points and inputs, and an activation made for it.

    Seen from an input :math:`x_i`, the activation is :math:`\lambda_i(w) = x_i\,(\ln\sigma)'(w x_i)` on
    :math:`w_0 \le w \le w_p`. With :math:`x_p` the input whose data set leads to p and :math:`x_q` the other one,
    these four conditions make the overlap:

    .. math::

        \int_{w_q}^{w_p}\lambda_p = \int_{w_q}^{w_p}\lambda_q = \ln\frac{a_q}{a_p},\qquad
        \int_{w_0}^{w_p}\frac{1}{\lambda_p} = \frac{a_p^2 - a_0^2}{2},\qquad
        \int_{w_0}^{w_q}\frac{1}{\lambda_q} = \frac{a_q^2 - a_0^2}{2}.

    Every positive, continuously differentiable :math:`\lambda_p, \lambda_q` that satisfy them will do, and every
    increasing continuation: a class of infinitely many dimensions. Here
    :math:`\lambda_i = e^{c + d(w - w_0)}`; where no such :math:`\lambda_p` exists, it is constant beyond
    :math:`w_q`, constant before, and steps down in between. A cubic in :math:`\ln(\ln\sigma)'` bridges the gap between
    the intervals.

    Parameters
    ----------
    theta_0, p, q
        Start and points :math:`(a, w)`, two numbers each, with :math:`0 < w_0 < w_q < w_p` and
        :math:`0 < a_0 < a_p < a_q`.
    x
        Positive inputs :math:`(x_p, x_q)`, in the order of the points that they lead to, such that the intervals
        :math:`[w_0 x_i, w_p x_i]` are disjoint.

    Returns
    -------
    Overlap
        With ``s2`` the data set of :math:`x_p`, which leads to p, and ``s1`` that of :math:`x_q`, which leads to q, as
        in every `Overlap`. Its activation is a `LogSlopeActivation` with value 1 at the least :math:`w_0 x_i`; float64.
        Cost: some hundred evaluations of closed forms.

    Raises
    ------
    InfeasibleError
        :math:`\frac12(a_p^2 - a_0^2)\ln(a_q/a_p) \le (w_p - w_q)^2`. By the inequality of Cauchy and Schwarz no
        increasing activation whatsoever has then these points and this start.
    ValueError
        Not two finite numbers, out of order, or intervals that overlap.

    Notes
    -----
    Near the bound of `InfeasibleError` activations are steep: :math:`\ln\sigma` must rise by at least
    :math:`(w_q - w_0)^2` over what the rise between the weights of q and p leaves of the third integral.

    Source: ours; in the spirit of the recipes that the abstract of Zhang et al. (2022) announces.

    Examples
    --------
    >>> overlap = bespoke_two_point((1, 1), p=(2, 2), q=(3, 1.5), x=(1, 3))
    >>> [round(float(y), 9) for _, y in (overlap.s2, overlap.s1)]
    [4.000272644, 8.793594422]
    """
    start, end_p, end_q = (point(v, name) for v, name in ((theta_0, "theta_0"), (p, "p"), (q, "q")))
    (a_0, w_0), (a_p, w_p), (a_q, w_q) = start.tolist(), end_p.tolist(), end_q.tolist()
    if not 0 < w_0 < w_q < w_p or not 0 < a_0 < a_p < a_q:
        raise ValueError(
            "theta_0, p, q: must have 0 < w_0 < w_q < w_p and 0 < a_0 < a_p < a_q, got "
            f"{(a_0, w_0)}, {(a_p, w_p)} and {(a_q, w_q)}"
        )
    x_p, x_q = _inputs(x, w_0, w_p)
    rise = math.log(a_q / a_p)
    area_p, area_q = (a_p**2 - a_0**2) / 2, (a_q**2 - a_0**2) / 2
    if rise * area_p <= (w_p - w_q) ** 2:
        raise InfeasibleError(
            f"p, q: no increasing activation makes them the limits: (a_p^2 - a_0^2) / 2 * ln(a_q / a_p) = "
            f"{rise * area_p:.6g} must exceed (w_p - w_q)^2 = {(w_p - w_q) ** 2:.6g}"
        )
    middle, length = w_q - w_0, w_p - w_0

    def excess(rate: float, end: float, area: float) -> float:
        """Return ln of the product of the two integrals of exp(rate (w - w_0)), over what it must be."""
        product = _log_integral(rate, middle, length) + _log_integral(-rate, 0, end)
        return product - math.log(rise * area)

    def exponential(rate: float) -> _Knots:
        """Return the knots of the exponential that has this rate and the right rise."""
        c = math.log(rise) - _log_integral(rate, middle, length)
        return [(w, c + rate * (w - w_0), rate) for w in (w_0, w_p)]

    # To q the product rises from 0 without bound. To p it is convex in the rate; the rising branch is taken.
    sees_q = exponential(_root(lambda d: excess(d, middle, area_q), -1 / length, 1 / length))
    lowest = minimize_scalar(lambda d: excess(d, length, area_p), bracket=(-1 / length, 1 / length))
    if lowest.fun <= 0:
        sees_p = exponential(_root(lambda d: excess(d, length, area_p), lowest.x, lowest.x + 1 / length))
    else:
        # Level on the rise, where the product is then least; before it, steps down from what leaves the right area.
        level = rise / (w_p - w_q)
        left = level * area_p - (w_p - w_q)
        width = min(left, middle) / 2
        step = (1 - NODES) ** 2 * (1 + 2 * NODES)  # from 1 to 0, as the Hermite spline goes

        def short(height: float) -> float:
            area = width * float((-height * step).exp() @ WEIGHTS) + (middle - width) * math.exp(-height)
            return float(left - area)

        height = _root(short, 0.0, 1.0)
        first = [(w, math.log(level) + height, 0.0) for w in (w_0, w_q - width)]
        sees_p = first + [(w, math.log(level), 0.0) for w in (w_q, w_p)]
    sigma = _seen({x_p: sees_p, x_q: sees_q})
    s1, s2 = ((x, a_p * sigma_at(sigma, w_p * x)) for x in (x_q, x_p))
    return Overlap(sigma, start, end_p, end_q, s1, s2)


def bespoke_one_point(
    theta_0: Tensor | Sequence[float],
    p: Tensor | Sequence[float],
    x: Tensor | Sequence[float],
    *,
    ratio: float = 3.0,
) -> Overlap:
    r"""Return a one-point overlap at a given start, with a given point and given inputs, and an activation made for it.

    With :math:`\lambda_i(w) = x_i\,(\ln\sigma)'(w x_i)` the condition is

    .. math:: \int_{w_0}^{w_p}\frac{1}{\lambda_1} = \int_{w_0}^{w_p}\frac{1}{\lambda_2} = \frac{a_p^2 - a_0^2}{2},

    here with constant :math:`\lambda_1` and :math:`\lambda_2 = e^{c + d(w - w_0)}`. The solution curves cross at p at
    an angle if :math:`\lambda_2(w_p) \ne \lambda_1(w_p)`:

    .. math:: \det[\nabla f(x_1; p), \nabla f(x_2; p)]
        = a_p\,\sigma(w_p x_1)\,\sigma(w_p x_2)\,(\lambda_2(w_p) - \lambda_1(w_p)).

    Each :math:`\lambda_i` goes on beyond its interval for a fifth of the gap between the two, so that points near p
    are limits of two data sets too.

    Parameters
    ----------
    theta_0, p
        Start and point :math:`(a, w)`, two numbers each, with :math:`0 < w_0 < w_p` and :math:`0 < a_0 < a_p`.
    x
        Positive inputs :math:`(x_1, x_2)` such that the intervals :math:`[w_0 x_i, w_p x_i]` are disjoint.
    ratio
        :math:`\lambda_2(w_p)/\lambda_1(w_p) > 0`. With 1 the curves touch at p, and there is no overlap in the sense
        that refutes a differentiable preference.

    Returns
    -------
    Overlap
        With q equal to p, and ``s1``, ``s2`` the data sets of :math:`x_1`, :math:`x_2`; float64.

    Raises
    ------
    ValueError
        Not two finite numbers, out of order, intervals that overlap, or a ratio that is not positive.

    Notes
    -----
    Source: ours; in the spirit of the recipes that the abstract of Zhang et al. (2022) announces.

    Examples
    --------
    >>> import torch
    >>> from implicitreg.overlaps import elasticity
    >>> overlap = bespoke_one_point((1, 1), p=(2, 2), x=(1, 3))
    >>> z = torch.tensor([1.5, 6.0], dtype=torch.float64)
    >>> elasticity(overlap.activation, z) / z  # (ln σ)' = λ_1 = 2/3 where z < 2, and λ_2 / 3 = 2/3 at w_p x_2 = 6
    tensor([0.6667, 0.6667], dtype=torch.float64)
    """
    start, end = point(theta_0, "theta_0"), point(p, "p")
    (a_0, w_0), (a_p, w_p) = start.tolist(), end.tolist()
    if not 0 < w_0 < w_p or not 0 < a_0 < a_p:
        raise ValueError(f"theta_0, p: must have 0 < w_0 < w_p and 0 < a_0 < a_p, got {(a_0, w_0)} and {(a_p, w_p)}")
    x_1, x_2 = _inputs(x, w_0, w_p)
    checks.positive(ratio, "ratio")
    length = w_p - w_0
    level = math.log(2 * length / (a_p**2 - a_0**2))
    # The mean of exp(rate (w_p - w)) over the interval is the ratio.
    target = math.log(length * ratio)
    rate = _root(lambda d: _log_integral(d, 0, length) - target, -1 / length, 1 / length)
    margin = (max(x_1, x_2) * w_0 - min(x_1, x_2) * w_p) / 5
    legs = {}
    for at, last, slope in ((x_1, level, 0.0), (x_2, level + math.log(ratio), rate)):
        beyond = (w_0, w_p + margin / at) if at == min(x_1, x_2) else (w_0 - margin / at, w_p)
        legs[at] = [(w, last + slope * (w - w_p), slope) for w in beyond]
    sigma = _seen(legs)
    s1, s2 = ((x, a_p * sigma_at(sigma, w_p * x)) for x in (x_1, x_2))
    return Overlap(sigma, start, end, end, s1, s2)


def _inputs(x: Tensor | Sequence[float], w_0: float, w_p: float) -> tuple[float, float]:
    """Return two positive inputs whose intervals of wx are disjoint."""
    given = x.tolist() if isinstance(x, Tensor) else x
    if isinstance(given, tuple | list) and len(given) == 2:
        first, second = (checks.number(v) for v in given)
        if 0 < min(first, second) * w_p < max(first, second) * w_0 < math.inf:
            return first, second
    raise ValueError(
        f"x: must be two inputs > 0, one of them more than w_p / w_0 = {w_p / w_0:.6g} times the other, so that what "
        f"they see of the activation is disjoint, got {x!r}"
    )


def _log_integral(rate: float, low: float, high: float) -> float:
    """Return ln of the integral of exp(rate s) over s from ``low`` to ``high``, without overflow."""
    t = abs(rate) * (high - low)
    ratio = math.log(-math.expm1(-t) / t) if t > 1e-12 else -t / 2
    return rate * (high if rate > 0 else low) + math.log(high - low) + ratio


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the zero of a rising function, from a first guess of a bracket."""
    while function(low) > 0:
        low, high = low - 2 * (high - low), low
    while function(high) < 0:
        low, high = high, high + 2 * (high - low)
    return float(brentq(function, low, high, xtol=1e-15, rtol=1e-14))


def _seen(legs: dict[float, _Knots]) -> LogSlopeActivation:
    """Return the activation of which each input x sees its own λ."""
    knots = sorted((w * x, m - math.log(x), rate / x) for x, leg in legs.items() for w, m, rate in leg)
    z, log_slopes, rates = zip(*knots, strict=True)
    return LogSlopeActivation(z, log_slopes, rates)
