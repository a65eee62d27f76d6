"""A data-independent function where there is one: traced numerically, for an activation of monotone elasticity."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import Activation
from implicitreg.overlaps.elasticity import elasticity, elasticity_trend, quadrature, value_and_slope
from implicitreg.overlaps.overlap import point

Numbers = NDArray[np.float64]


def traced_preference(
    activation: Activation,
    theta_0: Tensor | Sequence[float],
    points: Tensor,
    *,
    reference: float | None = None,
    inputs: tuple[float, float] = (1e-3, 8.0),
) -> Tensor:
    r"""Return a data-independent J at points, traced numerically, for an activation of strictly monotone elasticity.

    Every point :math:`(a, w)` is the limit of one data set at most: its input x solves
    :math:`H_x(w_0, w) = \frac12(a^2 - a_0^2)`, which is monotone in x. The tangents of the solution curves at their
    limits are therefore a field of lines, :math:`d\ln a/d\ln w = -e(wx)`, and a function that is constant along the
    field lines has its strict minimum on every solution curve at the limit, or its maximum. Here its value is
    :math:`\ln a` where the field line meets :math:`w = w_\mathrm{ref}`; on the way

    .. math:: \frac{d\ln x}{d\ln w} = -\frac{a^2 e(wx) + w^2/e(wx)}{w^2/e(wx) - w_0^2/e(w_0x) - (a^2 - a_0^2)}.

    Parameters
    ----------
    activation
        The function :math:`\sigma`, positive and increasing for positive arguments, with an elasticity e that is
        strictly monotone.
    theta_0
        Start :math:`(a_0, w_0)`, both positive.
    points
        Points :math:`(a, w)`, shape ``(..., 2)``, float64, with :math:`w > w_0`.
    reference
        :math:`w_\mathrm{ref} > w_0`; the least w of all points where not given. Values with different
        references cannot be compared.
    inputs
        The least and the largest input x to look for, ``0 < least < largest``.

    Returns
    -------
    Tensor
        J, shape ``(...)``, float64, to about 1e-8; infinity where no input in the range leads to the point. Cost: 21
        path integrals and some hundred elasticities of all points.

    Warns
    -----
    RuntimeWarning
        Some field lines could not be followed to the reference; their values are NaN.

    Raises
    ------
    TypeError
        ``points`` is no tensor of dtype float64, or ``activation`` is no function of a tensor that automatic
        differentiation follows.
    ValueError
        A number or shape out of range, or an elasticity that is not strictly monotone on the range of :math:`wx`: then
        a point may be the limit of several data sets, or of all.

    Notes
    -----
    Source: ours.

    Examples
    --------
    For the exponential a closed form is known, :math:`\frac12 a^2 - a_0^2\ln a + (w - w_0)^2`, and the two are constant
    on the same lines.

    >>> point = torch.tensor([2.0, 1.5], dtype=torch.float64)
    >>> a = traced_preference(torch.exp, (1, 0.5), point, reference=0.9).exp().item()
    >>> round(2**2 / 2 - math.log(2) + 1.0**2, 6), round(a**2 / 2 - math.log(a) + 0.4**2, 6)
    (2.306853, 2.306853)
    """
    (a_0, w_0), low, high = point(theta_0, "theta_0").tolist(), *map(checks.number, inputs)
    if not min(a_0, w_0) > 0:
        raise ValueError(f"theta_0: must be two numbers > 0, got {(a_0, w_0)}")
    if not isinstance(points, Tensor) or points.dtype != torch.float64:
        raise TypeError("points: must be a torch.Tensor of dtype float64")
    if points.ndim < 1 or points.shape[-1] != 2 or not points.numel():
        raise ValueError(f"points: must have shape (..., 2) and hold a point, got {tuple(points.shape)}")
    a, w = checks.finite(points, "points").reshape(-1, 2).unbind(-1)
    if not (a > 0).all() or not (w > w_0).all():
        raise ValueError(f"points: must have a > 0 and w > w_0 = {w_0:g}")
    if not 0 < low < high < math.inf:
        raise ValueError(f"inputs: must be 0 < least < largest, got {inputs!r}")
    ref = float(w.min()) if reference is None else checks.positive(reference, "reference")
    if not ref > w_0:
        raise ValueError(f"reference: must be more than w_0 = {w_0:g}, got {reference!r}")
    least, most = low * w_0, high * float(w.max())
    trend = elasticity_trend(activation, least, most)
    if trend in ("constant", "non-monotone"):
        raise ValueError(
            f"activation: its elasticity z σ'(z)/σ(z) is {trend} for z in [{least:.4g}, {most:.4g}], so that a point "
            f"may be the limit of {'all' if trend == 'constant' else 'several'} data sets: nothing to trace"
        )
    level, start = (a.square() - a_0**2) / 2, torch.full_like(w, w_0)

    def rises(log_x: Tensor) -> Tensor:
        above: Tensor = quadrature(activation, log_x.exp(), start, w, 4) > level
        return above if trend == "decreasing" else ~above

    bottom, top = torch.full_like(w, math.log(low)), torch.full_like(w, math.log(high))
    reached = rises(top) & ~rises(bottom)
    for _ in range(16):
        middle = (bottom + top) / 2
        over = rises(middle)
        bottom, top = torch.where(over, bottom, middle), torch.where(over, middle, top)
    result = torch.full_like(w, math.inf)
    if reached.any():
        a, w, level, start, log_x = (part[reached] for part in (a, w, level, start, (bottom + top) / 2))
        for _ in range(3):  # Newton's method from there
            x = log_x.exp()
            path = quadrature(activation, x, start, w, 4)
            slope = w.square() / elasticity(activation, w * x) - w_0**2 / elasticity(activation, w_0 * x) - 2 * path
            log_x = log_x - (path - level) / slope
        lines = torch.stack([a.log(), log_x, w.log()], -1)
        result[reached] = _follow(activation, a_0, w_0, lines, math.log(ref))
    return result.reshape(points.shape[:-1])


def _follow(activation: Activation, a_0: float, w_0: float, lines: Tensor, target: float) -> Tensor:
    """Return ln a where the field lines through (ln a, ln x, ln w) have ln w = ``target``."""
    log_w, way = lines[:, 2], target - lines[:, 2]

    def inverse(z: Tensor) -> Tensor:
        value, slope = value_and_slope(activation, z)
        return value / (z * slope)

    def field(time: float, state: Numbers) -> Numbers:
        log_a, log_x = torch.from_numpy(state).reshape(-1, 2).unbind(-1)
        square, x, w = (2 * log_a).exp(), log_x.exp(), (log_w + time * way).exp()
        e = 1 / inverse(w * x)
        rise = w.square() / e
        moves = -(square * e + rise) / (rise - w_0**2 * inverse(w_0 * x) - (square - a_0**2))
        return (torch.stack([-e, moves], -1) * way[:, None]).flatten().numpy()

    options = {"rtol": 1e-10, "atol": 1e-12, "lband": 1, "uband": 1}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = solve_ivp(field, (0, 1), lines[:, :2].flatten().numpy(), "LSODA", **options)
    log_a, log_x = torch.from_numpy(found.y[:, -1].copy()).reshape(-1, 2).unbind(-1)
    square, start = (2 * log_a).exp(), torch.full_like(log_a, w_0)
    reached = quadrature(activation, log_x.exp(), start, torch.full_like(log_a, math.exp(target)), 8)
    good = ((reached - (square - a_0**2) / 2).abs() <= 1e-6 * square) & found.success
    if not good.all():
        warnings.warn(
            f"traced_preference: {int((~good).sum())} of {len(good)} field lines lost on the way",
            RuntimeWarning,
            stacklevel=3,
        )
    return torch.where(good, log_a, math.nan)
