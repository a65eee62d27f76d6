"""One neuron, and one hidden neuron with an output weight, for any activation."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy  # its submodules load when first used
import torch
from torch import Tensor

from implicitreg import checks

Activation = Callable[[Tensor], Tensor]
"""A function of one real variable, applied to every entry of a tensor; automatic differentiation follows it."""

# Gauss-Legendre on [0, 1]: exact to rounding for the exponential of the cubics between knots.
NODES, WEIGHTS = (torch.from_numpy(part) / 2 for part in np.polynomial.legendre.leggauss(32))
NODES += 0.5


def relu(z: Tensor) -> Tensor:
    """Return max(0, z), with derivative 1 at 0, where torch's own has 0.

    With it gradient flow leaves the start ``w = 0`` of `single_neuron`. Any shape and floating-point dtype.

    Source: the convention of Vardi & Shamir (2021).

    Examples
    --------
    >>> z = torch.zeros(1, requires_grad=True)
    >>> torch.autograd.grad(relu(z).sum(), z)
    (tensor([1.]),)
    """
    return torch.where(z < 0, 0, z)


def single_neuron(w: Tensor, x: Tensor, activation: Activation) -> Tensor:
    r"""Return the outputs :math:`\sigma(\langle x_i, w\rangle)` of single neurons.

    Parameters
    ----------
    w
        Weights, shape ``(..., d)``, float32 or float64.
    x
        Inputs, shape ``(..., n, d)``, of the same dtype; leading dimensions broadcast.
    activation
        The function :math:`\sigma`.

    Returns
    -------
    Tensor
        Shape ``(..., n)``. Cost: O(n d).

    Raises
    ------
    TypeError
        Not tensors of one dtype, float32 or float64, or ``activation`` is no function.
    ValueError
        Shapes that do not fit.

    Examples
    --------
    >>> w, x = torch.tensor([3.0, -4.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> single_neuron(w, x, torch.relu)
    tensor([3., 0.])
    """
    return _neuron(w, x, activation, "w", 0)


def hidden_neuron(theta: Tensor, x: Tensor, activation: Activation) -> Tensor:
    r"""Return the outputs :math:`a\,\sigma(\langle x_i, w\rangle)` of networks with one hidden neuron.

    Parameters
    ----------
    theta
        Parameters :math:`(a, w)`, output weight first: shape ``(..., 1 + d)``, float32 or float64.
    x
        Inputs, shape ``(..., n, d)``, of the same dtype; leading dimensions broadcast.
    activation
        The function :math:`\sigma`.

    Returns
    -------
    Tensor
        Shape ``(..., n)``. Cost: O(n d).

    Raises
    ------
    TypeError
        Not tensors of one dtype, float32 or float64, or ``activation`` is no function.
    ValueError
        Shapes that do not fit.

    Examples
    --------
    >>> x = torch.tensor([[2.0], [3.0]]).log()
    >>> hidden_neuron(torch.tensor([[5.0, 2.0], [6.0, 1.0]]), x, torch.sigmoid)
    tensor([[4.0000, 4.5000],
            [4.0000, 4.5000]])
    """
    sigma = _neuron(theta, x, activation, "theta", 1)
    return theta[..., :1] * sigma


def _neuron(theta: Tensor, x: Tensor, activation: Activation, name: str, skip: int) -> Tensor:
    """Return the neuron's outputs; ``w`` is what follows the first ``skip`` entries of ``theta``."""
    checks.floating(theta, name)
    checks.floating(x, "x")
    if theta.dtype != x.dtype:
        raise TypeError(f"x: must have the dtype of {name}, {theta.dtype}, got {x.dtype}")
    if not callable(activation):
        raise TypeError(f"activation: must be a function of a tensor, got {type(activation).__name__}")
    if theta.ndim < 1 or theta.shape[-1] <= skip:
        raise ValueError(f"{name}: must have shape (..., {'1 + d' if skip else 'd'}), d >= 1, got {tuple(theta.shape)}")
    d = theta.shape[-1] - skip
    if x.ndim < 2 or x.shape[-1] != d:
        raise ValueError(f"x: must have shape (..., n, {d}), got {tuple(x.shape)}")
    try:
        z = (x * theta[..., None, skip:]).sum(-1)
    except RuntimeError:
        checks.broadcastable(x.shape[:-2], theta.shape[:-1], "x", name)
        raise
    return activation(z)


class LogSlopeActivation:
    r"""An activation made to order: positive, increasing, with a given logarithmic derivative.

    .. math:: \sigma(z) = s\,\exp\int_{k_0}^z e^{m(u)}\,du, \qquad (\ln\sigma)'(z) = e^{m(z)},

    where :math:`m` is the cubic Hermite spline through given values and derivatives at the knots :math:`k_0<k_1<\dots`,
    and runs on straight outside. :math:`\sigma` is twice continuously differentiable.

    Parameters
    ----------
    knots
        The points :math:`k_i`, strictly increasing, at least two.
    log_slopes
        :math:`m(k_i)`, one for each knot.
    rates
        :math:`m'(k_i)`, one for each knot.
    scale
        :math:`s = \sigma(k_0) > 0`.

    Raises
    ------
    ValueError
        Numbers that are not finite, knots that do not increase, lengths that differ, or a scale that is not positive.

    Notes
    -----
    The integral is taken by 32 Gauss-Legendre nodes between neighbouring knots, which is exact to rounding as long as
    :math:`m` changes by less than about 10 from knot to knot. Calling it costs 32 exponentials for each entry.

    Examples
    --------
    With a constant logarithmic derivative it is the exponential.

    >>> exponential = LogSlopeActivation([0, 1], [0, 0], [0, 0])
    >>> exponential(torch.tensor([0.0, 1.0, 2.0]))
    tensor([1.0000, 2.7183, 7.3891])
    """

    def __init__(
        self, knots: Sequence[float], log_slopes: Sequence[float], rates: Sequence[float], *, scale: float = 1.0
    ):
        given = {"knots": knots, "log_slopes": log_slopes, "rates": rates}
        arrays = {
            name: np.array([checks.number(v) for v in values] if isinstance(values, Iterable) else [])
            for name, values in given.items()
        }
        for name, array in arrays.items():
            if len(array) != len(arrays["knots"]) or len(array) < 2 or not np.isfinite(array).all():
                raise ValueError(
                    f"{name}: must be finite numbers, one for each of at least two knots, got {given[name]!r}"
                )
        k, m, r = arrays.values()
        if (np.diff(k) <= 0).any():
            raise ValueError(f"knots: must be strictly increasing, got {knots!r}")
        self.scale = checks.positive(scale, "scale")
        # Pieces: straight to the left of the knots, the cubics, straight to the right; powers of z - base rise.
        cubics = scipy.interpolate.CubicHermiteSpline(k, m, r).c[::-1].T
        straight = [[m[i], r[i], 0, 0] for i in (0, -1)]
        self._knots = torch.from_numpy(k)
        self._base = torch.from_numpy(np.concatenate([k[:1], k]))
        self._powers = torch.from_numpy(np.concatenate([straight[:1], cubics, straight[1:]]))
        self._below = torch.zeros(len(k) + 1, dtype=torch.float64)
        pieces = torch.arange(1, len(k))
        self._below[2:] = self._area(self._knots[1:] - self._knots[:-1], pieces, self._powers).cumsum(0)

    @staticmethod
    def _area(far: Tensor, piece: Tensor, powers: Tensor) -> Tensor:
        """Return the integral of exp(m) over ``far`` from the base of each piece on."""
        d = far[..., None] * NODES.to(far)
        c = powers[piece].unsqueeze(-2)
        m = c[..., 0] + d * (c[..., 1] + d * (c[..., 2] + d * c[..., 3]))
        return far * (m.exp() * WEIGHTS.to(far)).sum(-1)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the activation of every entry, float32 or float64."""
        checks.floating(z, "z")
        knots, base, powers, below = (part.to(z) for part in (self._knots, self._base, self._powers, self._below))
        z = z[..., None]
        piece = (z >= knots).sum(-1, keepdim=True)
        return self.scale * (below[piece] + self._area(z - base[piece], piece, powers)).exp().squeeze(-1)
