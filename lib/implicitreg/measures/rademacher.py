r"""Rademacher complexity: how well a class of functions can follow random signs on given points.

:math:`\mathcal R_m(F) = \mathbb E_\xi \frac1m \sup_{f\in F} \big|\sum_i \xi_i f(x_i)\big|`, with the absolute value, as
Neyshabur, Tomioka & Srebro (2015) define it. Up to 20 points the expectation is the mean over all sign patterns, and
the results are exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from implicitreg import checks

MOST_POINTS = 20  # 2**19 sign patterns, those with a first sign of +1
CHUNK = 2**12


@dataclass(frozen=True)
class RademacherComplexity:
    """A Rademacher complexity, with what is needed to trust it.

    Attributes
    ----------
    value
        Shape ``(...)``.
    standard_error
        Of the value, shape ``(...)``; 0 where all sign patterns were enumerated.
    n_signs
        Number of sign patterns that the value is the mean of.
    """

    value: Tensor
    standard_error: Tensor
    n_signs: int


class Maximum(NamedTuple):
    """A largest value, and where it is attained.

    Attributes
    ----------
    value
        Shape ``(...)``.
    direction
        Shape ``(..., 2)``.
    """

    value: Tensor
    direction: Tensor


def _dual(p: float) -> float:
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)


def sign_patterns(m: int) -> Tensor:
    r"""Return all patterns of ``m`` signs whose first is +1: one of each pair :math:`\xi, -\xi`.

    A mean over them of anything that does not change with :math:`\xi \to -\xi` is the mean over all :math:`2^m`.

    Parameters
    ----------
    m
        Number of signs, from 1 to 20.

    Returns
    -------
    Tensor
        Shape ``(2 ** (m - 1), m)``, entries ±1, int8.

    Raises
    ------
    ValueError
        ``m`` is out of range.

    Notes
    -----
    Cost: some passes over the result. Source: elementary.

    Examples
    --------
    >>> sign_patterns(2).tolist()
    [[1, 1], [1, -1]]
    """
    if checks.integer(m, "m", 1) > MOST_POINTS:
        raise ValueError(f"m: must be at most {MOST_POINTS} to enumerate all sign patterns, got {m}")
    bits = torch.arange(2 ** (m - 1))[:, None] >> torch.arange(m - 1, -1, -1)
    return (1 - 2 * (bits & 1)).to(torch.int8)


def _mean(
    supremum: Callable[[Tensor], Tensor], points: Tensor, m: int, draws: int | None, generator: torch.Generator | None
) -> RademacherComplexity:
    """Return the mean over sign patterns ``(n, m)`` of ``supremum``, which returns ``(..., n)``, divided by ``m``."""
    if (draws is None) != (generator is None):
        raise ValueError("draws: must be given together with a generator, or neither to enumerate all sign patterns")
    if draws is None:
        if m > MOST_POINTS:
            raise ValueError(
                f"draws: must be given, with a generator, for more than {MOST_POINTS} points, got {m} points"
            )
        signs = sign_patterns(m)
    else:
        checks.integer(draws, "draws", 2)
        checks.random(generator, "generator")  # type: ignore[arg-type]
        signs = 1 - 2 * torch.randint(2, (draws, m), generator=generator, dtype=torch.int8)
    signs = signs.to(points)
    suprema = torch.cat([supremum(signs[k : k + CHUNK]) for k in range(0, len(signs), CHUNK)], -1) / m
    value = suprema.mean(-1)
    error = torch.zeros_like(value) if draws is None else suprema.std(-1) / math.sqrt(draws)
    return RademacherComplexity(value, error, 2**m if draws is None else draws)


def rademacher_complexity(
    values: Tensor, *, draws: int | None = None, generator: torch.Generator | None = None
) -> RademacherComplexity:
    r"""Return the Rademacher complexity of a finite class of functions, or of its convex hull.

    :math:`\mathcal R_m = \mathbb E_\xi \frac1m \max_k \big|\sum_i \xi_i f_k(x_i)\big|`. A convex hull has the
    complexity of its extreme points. Functions sampled from an infinite class give a lower bound for it.

    Parameters
    ----------
    values
        Values :math:`f_k(x_i)`, shape ``(..., functions, m)``, float32 or float64.
    draws
        Number of random sign patterns; None to enumerate all, for at most 20 points.
    generator
        Source of randomness, on the CPU; with ``draws`` alone.

    Returns
    -------
    RademacherComplexity
        Of shape ``(...)``, in the units and dtype of ``values``; exact where all sign patterns are enumerated.

    Raises
    ------
    TypeError
        ``values`` is no tensor of dtype float32 or float64, or ``generator`` no generator.
    ValueError
        ``values`` is no stack of finite matrices, more than 20 points without ``draws``, or ``draws`` without
        ``generator``.

    Notes
    -----
    Cost: ``functions * m`` operations a sign pattern, :math:`2^{m-1}` patterns where all are enumerated.
    Source: Neyshabur et al. 2015, Norm-Based Capacity Control in Neural Networks.

    Examples
    --------
    Two points and two functions: one of them follows each sign pattern.

    >>> rademacher_complexity(torch.tensor([[1.0, 1.0], [1.0, -1.0]])).value.item()
    1.0
    """
    checks.matrices(values, "values")
    return _mean(
        lambda signs: (values @ signs.mT).abs().amax(-2),
        values,
        values.shape[-1],
        draws,
        generator,
    )


def linear_rademacher(
    x: Tensor, p: float, *, draws: int | None = None, generator: torch.Generator | None = None
) -> RademacherComplexity:
    r"""Return the Rademacher complexity of :math:`x \mapsto \langle u, x\rangle` with :math:`\|u\|_p \le 1`.

    :math:`\mathcal R_m = \mathbb E_\xi \frac1m \big\|\sum_i \xi_i x_i\big\|_{p^*}` with :math:`1/p + 1/p^* = 1`.

    Parameters
    ----------
    x
        Points, shape ``(..., m, D)``, float32 or float64.
    p
        Exponent, from 1 to ``inf``.
    draws, generator
        As for `rademacher_complexity`.

    Returns
    -------
    RademacherComplexity
        Of shape ``(...)``, in the units and dtype of ``x``.

    Raises
    ------
    TypeError, ValueError
        As `rademacher_complexity`, or ``p`` is no number >= 1.

    Notes
    -----
    Cost: ``m * D`` operations a sign pattern. Source: Neyshabur et al. 2015, Norm-Based Capacity Control in Neural
    Networks, for the definition.

    Examples
    --------
    >>> round(linear_rademacher(torch.eye(4), 2).value.item(), 6)  # every sign pattern has length 2
    0.5
    """
    checks.matrices(x, "x")
    dual = _dual(checks.at_least(p, "p", 1, infinite=True))
    return _mean(
        lambda signs: torch.linalg.vector_norm(signs @ x, dual, dim=-1),
        x,
        x.shape[-2],
        draws,
        generator,
    )


def _plane(x: Tensor) -> Tensor:
    checks.matrices(x, "x")
    if x.shape[-1] != 2:
        raise ValueError(f"x: must hold points of the plane, shape (..., m, 2), got {tuple(x.shape)}")
    return x


def _unit(u: Tensor, p: float) -> Tensor:
    """Return ``u`` with unit p-norm along the last dimension; 0 stays 0."""
    norm = torch.linalg.vector_norm(u, p, dim=-1, keepdim=True)
    return u / torch.where(norm > 0, norm, torch.ones_like(norm))


def largest_correlation(x: Tensor, coefficients: Tensor, p: float = 2.0) -> Maximum:
    r"""Return the largest correlation of one ReLU unit with given coefficients, exactly, for points of the plane.

    :math:`\max_{\|u\|_p \le 1} \big|\sum_i c_i\, [\langle u, x_i\rangle]_+\big|`. For signs :math:`c_i` it is the
    supremum in the Rademacher complexity; for residuals it is the dual norm that certifies that a network trained
    with weight decay is a global minimum.

    Parameters
    ----------
    x
        Points, shape ``(..., m, 2)``, float32 or float64.
    coefficients
        Shape ``(..., m)``, dtype of ``x``; leading dimensions broadcast with those of ``x``.
    p
        Exponent of the norm of the unit's incoming weights, from 1 to ``inf``.

    Returns
    -------
    Maximum
        ``value``, shape ``(...)``, and a ``direction`` of unit norm that attains it, shape ``(..., 2)``, in the dtype
        of the arguments.

    Raises
    ------
    TypeError
        ``x`` or ``coefficients`` is no tensor of dtype float32 or float64.
    ValueError
        ``x`` holds no points of the plane, the shapes do not meet, an entry is not finite, or ``p`` is no number
        >= 1.

    Notes
    -----
    The directions in which some :math:`\langle u, x_i\rangle = 0` cut the plane into at most ``2 m`` cones. In each
    the sum is linear in ``u``, so its maximum over the sphere lies at an edge of the cone, or where that linear
    function alone is largest. Every such direction is tried: there is no grid and no error but rounding.

    Cost: :math:`O(m^2)` for each vector of coefficients. Source: derived here.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> best = largest_correlation(x, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
    >>> [round(v, 6) for v in best.value.tolist()]  # along the diagonal; along one axis
    [1.414214, 1.0]
    """
    _plane(x)
    checks.floating(coefficients, "coefficients")
    p = checks.at_least(p, "p", 1, infinite=True)
    if not coefficients.ndim or coefficients.shape[-1] != x.shape[-2]:
        raise ValueError(
            f"coefficients: must have shape (..., {x.shape[-2]}), one for each point, got {tuple(coefficients.shape)}"
        )
    checks.finite(coefficients, "coefficients")
    leading = torch.broadcast_shapes(x.shape[:-2], coefficients.shape[:-1])  # type: ignore[no-untyped-call]
    x = x.expand(*leading, *x.shape[-2:])
    coefficients = coefficients.expand(*leading, x.shape[-2])[..., None]

    edge = torch.atan2(x[..., 0], -x[..., 1])
    edge = torch.cat([edge, edge + math.pi], -1).remainder(2 * math.pi).sort(-1).values
    middle = edge + torch.cat([edge[..., 1:], edge[..., :1] + 2 * math.pi], -1).sub(edge) / 2
    edges = _unit(torch.stack([edge.cos(), edge.sin()], -1), p)
    if p in (1, math.inf):  # corners of the ball, whatever the linear function
        corners = x.new_tensor([[1, 0], [0, 1]] if p == 1 else [[1, 1], [1, -1]])
        peaks = corners.expand(*x.shape[:-2], 2, 2)
    else:
        active = (torch.stack([middle.cos(), middle.sin()], -1) @ x.mT > 0).to(x)
        slopes = active @ (coefficients * x)
        # Scaled before the power, which is steep for p near 1.
        slopes = _unit(slopes, math.inf)
        peaks = _unit(slopes.sign() * slopes.abs().pow(_dual(p) - 1), p)
    candidates = torch.cat([edges, peaks, -peaks], -2)
    found = ((candidates @ x.mT).relu() @ coefficients)[..., 0].abs()
    value, best = found.max(-1)
    return Maximum(value, candidates.gather(-2, best[..., None, None].expand(*best.shape, 1, 2))[..., 0, :])


def width_exponent(p: float, q: float) -> float:
    r"""Return the exponent :math:`[1/p^* - 1/q]_+ = [1 - 1/p - 1/q]_+` of the width in the capacity of a norm ball.

    It is 0, so that the width does not matter, if and only if :math:`1/p + 1/q \ge 1`.

    Parameters
    ----------
    p
        Exponent over the incoming weights of a unit, from 1 to ``inf``.
    q
        Exponent over the units of a layer, from 1 to ``inf``.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        ``p`` or ``q`` is no number >= 1.

    Notes
    -----
    Cost: none. Source: Neyshabur et al. 2015, Norm-Based Capacity Control in Neural Networks, theorem 1 and
    corollary 2.

    Examples
    --------
    >>> width_exponent(2, float("inf")), width_exponent(2, 2), width_exponent(1, float("inf"))
    (0.5, 0.0, 0.0)
    """
    return max(0.0, 1 - 1 / checks.at_least(p, "p", 1, infinite=True) - 1 / checks.at_least(q, "q", 1, infinite=True))


def two_layer_rademacher(
    x: Tensor,
    p: float,
    q: float,
    hidden: int,
    norm: float = 1.0,
    *,
    draws: int | None = None,
    generator: torch.Generator | None = None,
) -> RademacherComplexity:
    r"""Return the Rademacher complexity of a norm ball of two-layer ReLU networks, for points of the plane.

    The networks :math:`\sum_j w_j [\langle u_j, x\rangle]_+` of ``hidden`` units with
    :math:`\|w\|_p\,\|U\|_{p,q} \le \gamma`. By Hölder's inequality they follow signs as well as one unit does, times
    :math:`\gamma H^{[1/p^* - 1/q]_+}`, and `largest_correlation` finds the best unit.

    Parameters
    ----------
    x
        Points, shape ``(..., m, 2)``, float32 or float64.
    p, q
        Exponents over the incoming weights of a unit and over the units, from 1 to ``inf``.
    hidden
        Number of hidden units ``H``, >= 1.
    norm
        Radius :math:`\gamma` of the ball, > 0.
    draws, generator
        As for `rademacher_complexity`.

    Returns
    -------
    RademacherComplexity
        Of shape ``(...)``, in the dtype of ``x``; exact where all sign patterns are enumerated.

    Raises
    ------
    TypeError, ValueError
        As `rademacher_complexity`; or ``x`` holds no points of the plane, or another argument is out of range.

    Notes
    -----
    Cost: :math:`O(m^2)` a sign pattern and data set. Source: Neyshabur et al. 2015, Norm-Based Capacity Control in
    Neural Networks, theorem 1 and lemma 17.

    Examples
    --------
    >>> x = torch.eye(2, dtype=torch.float64)
    >>> ball = two_layer_rademacher(x, 2, float("inf"), hidden=4)
    >>> round(ball.value.item(), 6)  # sqrt(4) * (sqrt(2) + 1) / 4
    1.207107
    """
    _plane(x)
    checks.integer(hidden, "hidden", 1)
    factor = checks.positive(norm, "norm") * hidden ** width_exponent(p, q)
    return _mean(
        lambda signs: factor * largest_correlation(x[..., None, :, :], signs, p).value,
        x,
        x.shape[-2],
        draws,
        generator,
    )


def norm_ball_bound(x: Tensor, p: float, q: float, hidden: int, depth: int, norm: float = 1.0) -> Tensor:
    r"""Return the bound on the Rademacher complexity of a norm ball of ReLU networks, with all its constants.

    For :math:`1 \le p \le 2`,

    .. math:: \mathcal R_m \le \gamma \big(2 H^{[1/p^* - 1/q]_+}\big)^{d-1}
        \sqrt{\min\{p^*, 4 \ln 2D\}\, \max_i \|x_i\|_{p^*}^2 / m},

    and for :math:`p > 2` the root is replaced by :math:`\sqrt2\, \max_i \|x_i\|_{p^*} / m^{1/p}`.

    Parameters
    ----------
    x
        Points, shape ``(..., m, D)``, float32 or float64.
    p, q
        Exponents over the incoming weights of a unit, ``1 <= p < inf``, and over the units, from 1 to ``inf``.
    hidden
        Number of units ``H`` of every hidden layer, >= 1.
    depth
        Number of layers ``d``, >= 1; the bound for linear functions where it is 1.
    norm
        Radius :math:`\gamma` of the ball of :math:`\prod_k \|W_k\|_{p,q}`, > 0.

    Returns
    -------
    Tensor
        Shape ``(...)``, dtype of ``x``.

    Raises
    ------
    TypeError, ValueError
        ``x`` is no stack of finite matrices, or another argument is out of range.

    Notes
    -----
    Cost: one norm a point. Source: Neyshabur et al. 2015, Norm-Based Capacity Control in Neural Networks, theorem 1.

    Examples
    --------
    >>> round(norm_ball_bound(torch.eye(2), 2, 2, hidden=64, depth=2).item(), 6)  # 2 * sqrt(2 / 2)
    2.0
    """
    checks.matrices(x, "x")
    p = checks.at_least(p, "p", 1)
    checks.integer(hidden, "hidden", 1)
    layers = checks.integer(depth, "depth", 1) - 1
    m, dim = x.shape[-2:]
    dual = _dual(p)
    linear = math.sqrt(min(dual, 4 * math.log(2 * dim)) / m) if p <= 2 else math.sqrt(2) / m ** (1 / p)
    factor = checks.positive(norm, "norm") * (2 * hidden ** width_exponent(p, q)) ** layers
    largest: Tensor = torch.linalg.vector_norm(x, dual, dim=-1).amax(-1)
    bound: Tensor = factor * linear * largest
    return bound
