"""What decides whether data sets collide: elasticity, path integral and ratio of an activation."""

import math
import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import Activation
from implicitreg.nets.neuron import NODES, WEIGHTS

Trend = Literal["constant", "increasing", "decreasing", "non-monotone"]

RANGE = (0.02, 6.0)
"""Where `elasticity_trend` looks."""


def elasticity(activation: Activation, z: Tensor) -> Tensor:
    r"""Return :math:`e(z) = z\,\sigma'(z) / \sigma(z)`: per cent of change in the activation per per cent in z.

    Parameters
    ----------
    activation
        The function :math:`\sigma`.
    z
        Any shape, float32 or float64.

    Returns
    -------
    Tensor
        Of the shape of ``z``. Cost: one pass forward and backward.

    Raises
    ------
    TypeError
        ``z`` is no tensor of dtype float32 or float64, or ``activation`` is no function of a tensor that automatic
        differentiation follows.
    ValueError
        The activation is 0 or not finite somewhere, or does not map entry by entry.

    Examples
    --------
    >>> elasticity(torch.exp, torch.tensor([1.0, 2.0])), elasticity(torch.square, torch.tensor([1.0, 2.0]))
    (tensor([1., 2.]), tensor([2., 2.]))
    """
    value, slope = value_and_slope(activation, checks.floating(z, "z"))
    if not (torch.isfinite(value) & torch.isfinite(slope) & (value != 0)).all():
        raise ValueError("activation: must be finite at z, with a finite derivative, and not 0")
    return z * slope / value


def elasticity_trend(
    activation: Activation, low: float = RANGE[0], high: float = RANGE[1], points: int = 2000
) -> Trend:
    """Tell whether the elasticity rises, falls, stays or turns on a grid.

    Parameters
    ----------
    activation
        The function.
    low, high
        The range, ``0 < low < high``.
    points
        Number of grid points, equally spaced.

    Returns
    -------
    str
        ``"constant"``, ``"increasing"``, ``"decreasing"`` or ``"non-monotone"``; a rise or fall up to 1e-9 of the
        largest value is rounding.

    Raises
    ------
    TypeError
        ``activation`` is no function of a tensor that automatic differentiation follows.
    ValueError
        The range is empty, there are fewer than three points, or the activation is 0 or not finite on it.

    Examples
    --------
    >>> [elasticity_trend(f) for f in (torch.relu, torch.exp, torch.tanh, torch.sigmoid)]
    ['constant', 'increasing', 'decreasing', 'non-monotone']
    """
    if not checks.positive(low, "low") < checks.positive(high, "high"):
        raise ValueError(f"high: must be more than low, {low:g}, got {high!r}")
    z = torch.linspace(low, high, checks.integer(points, "points", 3), dtype=torch.float64)
    return trend(elasticity(activation, z))


def solution_ratio(activation: Activation, w_p: float, w_q: float, x: Tensor) -> Tensor:
    r"""Return :math:`g(x) = \sigma(w_p x) / \sigma(w_q x)`.

    A point p with weight ``w_p`` and a point q with weight ``w_q`` have equal outputs at x if :math:`a_q / a_p = g(x)`.

    Parameters
    ----------
    activation
        The function :math:`\sigma`.
    w_p, w_q
        Input weights.
    x
        Inputs, any shape, float32 or float64.

    Raises
    ------
    TypeError
        ``x`` is no tensor of dtype float32 or float64, or ``activation`` is no function of a tensor that automatic
        differentiation follows.
    ValueError
        A weight is not a finite number, or the activation does not map entry by entry.

    Examples
    --------
    For a sigmoid and weights 2 and 1 it is 6/5 at ln 2 and at ln 3.

    >>> solution_ratio(torch.sigmoid, 2, 1, torch.tensor([2.0, 3.0]).log())
    tensor([1.2000, 1.2000])
    """
    checks.floating(x, "x")
    for name, w in (("w_p", w_p), ("w_q", w_q)):
        if not math.isfinite(checks.number(w)):
            raise ValueError(f"{name}: must be a finite number, got {w!r}")
    return applied(activation, w_p * x) / applied(activation, w_q * x)


def path_integral(activation: Activation, x: float | Tensor, w_0: float | Tensor, w: float | Tensor) -> Tensor:
    r"""Return :math:`H_x(w_0, w) = \int_{w_0}^{w} \frac{\sigma(ux)}{x\,\sigma'(ux)}\,du`.

    Gradient flow on one sample with input x moves from :math:`(a_0, w_0)` along
    :math:`\frac12(a^2 - a_0^2) = H_x(w_0, w)`.

    Parameters
    ----------
    activation
        The function :math:`\sigma`; positive and increasing on the way.
    x, w_0, w
        Input > 0, weight at the start and weight at the end: numbers or tensors that broadcast.

    Returns
    -------
    Tensor
        Float64. Relative accuracy about 1e-13, less where the derivative itself loses digits, as that of a sigmoid
        above 20. Cost: 160 evaluations for each entry; more, one entry after another, where these do not do.

    Raises
    ------
    TypeError
        ``activation`` is no function of a tensor that automatic differentiation follows.
    ValueError
        Not finite numbers of shapes that broadcast, an input that is not positive, or an activation that is not
        positive and increasing between ``w_0 x`` and ``w x``.

    Warns
    -----
    RuntimeWarning
        The relative accuracy is estimated to be worse than 1e-8.

    Examples
    --------
    For the exponential it is (w - w_0) / x.

    >>> path_integral(torch.exp, 2.0, 1.0, torch.tensor([2.0, 3.0])).tolist()
    [0.5, 1.0]
    """
    given = {name: _numbers(value, name) for name, value in (("x", x), ("w_0", w_0), ("w", w))}
    if not (given["x"] > 0).all():
        raise ValueError("x: must be finite and > 0")
    for name, other in (("w_0", "x"), ("w", "x"), ("w", "w_0")):
        checks.broadcastable(given[name].shape, given[other].shape, name, other)
    shape = np.broadcast_shapes(*(tuple(value.shape) for value in given.values()))
    inputs, first, last = (value.expand(shape) for value in given.values())
    coarse, found = (quadrature(activation, inputs, first, last, panels) for panels in (2, 3))
    if not torch.isfinite(found).all():
        raise ValueError("activation: must be positive and increasing between w_0 x and w x")
    # What rounding leaves of a small derivative, no quadrature improves.
    lost = torch.stack(
        [value / slope for value, slope in (value_and_slope(activation, inputs * v) for v in (first, last))]
    )
    noise = 1e-13 + 1e-15 * torch.nan_to_num(lost, posinf=0).amax(0)
    for i in ((found - coarse).abs() > noise * found.abs()).nonzero().tolist():
        at = tuple(i)
        found[at] = _adaptive(activation, *(part[at].item() for part in (inputs, first, last)))
    if not torch.isfinite(found).all():
        raise ValueError("activation: must be positive and increasing between w_0 x and w x")
    return found


def path_invariant(activation: Activation, theta: Tensor, x: float | Tensor, w_0: float | Tensor) -> Tensor:
    r"""Return :math:`\frac{a^2}{2} - H_x(w_0, w)`, which gradient flow on one sample with input x conserves.

    Parameters
    ----------
    activation
        The function.
    theta
        Points (a, w), shape ``(..., 2)``.
    x
        Input > 0: a number, or a tensor that broadcasts with ``(...)``.
    w_0
        Weight from which the integral is taken; another one adds a constant.

    Returns
    -------
    Tensor
        Shape ``(...)``, float64.

    Raises
    ------
    TypeError
        ``theta`` is no tensor of dtype float32 or float64, or as `path_integral`.
    ValueError
        ``theta`` has another shape, or as `path_integral`.

    Examples
    --------
    >>> path_invariant(torch.exp, torch.tensor([[2.0, 1.0], [0.0, 1.0]]), 2.0, 0.0).tolist()
    [1.5, -0.5]
    """
    checks.floating(theta, "theta")
    if theta.ndim < 1 or theta.shape[-1] != 2:
        raise ValueError(f"theta: must have shape (..., 2), got {tuple(theta.shape)}")
    a, w = theta.double().unbind(-1)
    return a.square() / 2 - path_integral(activation, x, w_0, w)


def trend(values: Tensor, rounding: float = 1e-9) -> Trend:
    """Tell which way a sampled curve goes, up to rises and falls that are rounding, relative to the largest value."""
    size = rounding * values.abs().max()
    up, down = (bool((v - v.cummin(0).values > size).any()) for v in (values, -values))
    return "non-monotone" if up and down else "increasing" if up else "decreasing" if down else "constant"


def applied(activation: Activation, z: Tensor) -> Tensor:
    """Return the activation at ``z``, or say why it is none; with a graph only where ``z`` asks for one."""
    needed = "activation: must be a function of a tensor"
    if not callable(activation):
        raise TypeError(f"{needed}, got {type(activation).__name__}")
    leaf = z if z.requires_grad else z.detach().requires_grad_()
    with torch.enable_grad():
        try:
            value = activation(leaf)
        except (TypeError, ValueError, RuntimeError) as error:
            # NumPy's functions refuse a tensor that wants a derivative, those of math one of several entries.
            raise TypeError(f"{needed} made of torch's operations; it raised {error!r}") from error
    if not isinstance(value, Tensor):
        raise TypeError(f"{needed} made of torch's operations; it returned {type(value).__name__}")
    if not value.requires_grad:
        raise TypeError(f"{needed} made of torch's operations, so that automatic differentiation follows")
    if value.shape != z.shape:
        raise ValueError(
            f"activation: must map a tensor entry by entry; it made {tuple(value.shape)} of {tuple(z.shape)}"
        )
    return value if z.requires_grad else value.detach()


def value_and_slope(activation: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return activation and derivative, entry by entry."""
    z = z.detach().requires_grad_()
    value = applied(activation, z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def quadrature(activation: Activation, x: Tensor, w_0: Tensor, w: Tensor, panels: int) -> Tensor:
    """Return the path integral by 32 Gauss-Legendre nodes on each of so many panels; infinite where it has no sense."""
    at = (torch.arange(panels, dtype=torch.float64)[:, None] + NODES).flatten() / panels
    value, slope = value_and_slope(activation, torch.lerp(w_0[..., None], w[..., None], at) * x[..., None])
    integrand = torch.where((value > 0) & (slope > 0), value / slope, torch.inf)
    return (w - w_0) / x * (integrand * WEIGHTS.repeat(panels)).sum(-1) / panels


def _adaptive(activation: Activation, x: float, w_0: float, w: float) -> float:
    """Return one path integral by adaptive quadrature, for activations with kinks or steep parts."""
    low, high = (torch.tensor([value], dtype=torch.float64) for value in (w_0, w))
    found = error = 0.0
    # Halves of the intervals that are not exact yet; where rounding is all that is left, they become too many.
    for _ in range(60):
        middle = (low + high) / 2
        whole, first, second = (
            quadrature(activation, torch.full_like(low, x), start, end, 1)
            for start, end in ((low, high), (low, middle), (middle, high))
        )
        both = first + second
        gap = (both - whole).abs()
        rough = gap > 1e-14 * abs(found + float(both.sum()))
        if rough.sum() > 250:
            rough[:] = False
        found, error = found + float(both[~rough].sum()), error + float(gap[~rough].sum())
        if not rough.any():
            break
        low, middle, high = low[rough], middle[rough], high[rough]
        low, high = torch.cat([low, middle]), torch.cat([middle, high])
    else:
        found, error = found + float(both[rough].sum()), error + float(gap[rough].sum())
    if error > 1e-8 * abs(found):
        warnings.warn(f"path_integral: relative accuracy {error / abs(found):.1g} only", RuntimeWarning, stacklevel=3)
    return found


def _numbers(value: float | Tensor, name: str) -> Tensor:
    """Return a finite number or a tensor of them as a float64 tensor."""
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: must be a finite number or a tensor of them, got {value!r}") from None
    if not torch.isfinite(numbers).all():
        raise ValueError(f"{name}: must be finite")
    return numbers.detach()
