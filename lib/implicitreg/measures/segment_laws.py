r"""What random initialisation does along a segment between two inputs: expectations in closed form.

All of it is for ReLU networks of ``L`` hidden layers at He initialisation: weights
:math:`W^l_{ij} \sim \mathcal N(0, 2/n_{l-1})` with :math:`n_0 = d` inputs, an output layer
:math:`\mathcal N(0, v/n_L)`, and biases zero or :math:`\mathcal N(0, \sigma_b^2)`, all independent. Slopes are per unit
length and of one output; what is expected is an average over networks. Squares of slopes are proportional to ``v``.

Along a segment of length ``D`` three numbers count: the input dimension, the angle :math:`\theta` of the ends at the
origin, and :math:`q = \cos\beta_0 \cos\beta_1 = \|x_0\| \|x_1\| \sin^2\theta / D^2`, where :math:`\beta_j` is the
angle of an end from the foot of the perpendicular that is dropped from the origin on the line.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from implicitreg import checks


def angle(x0: Tensor, x1: Tensor) -> Tensor:
    r"""Return the angle at the origin between two points, from 0 to π; 0 where one of them is the origin.

    .. math:: \theta = 2 \arctan \frac{\|\hat x_0 - \hat x_1\|}{\|\hat x_0 + \hat x_1\|},
        \quad \hat x = x / \|x\|,

    which is accurate at all angles, as the arc cosine is not. The convention for the origin is the one that the
    laws need: a network without biases is linear along a ray.

    Parameters
    ----------
    x0, x1
        Points of shape ``(..., d)``, float32 or float64, whose leading dimensions broadcast.

    Returns
    -------
    Tensor
        Shape ``(...)``, float64, in radians.

    Raises
    ------
    TypeError
        A point is no tensor of dtype float32 or float64.
    ValueError
        A point has no dimension, is not finite, or the two do not fit each other.

    Notes
    -----
    Cost: some passes over the points. Source: elementary.

    Examples
    --------
    >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]]))
    tensor([1.5708, 3.1416, 0.0000], dtype=torch.float64)
    """
    x0, x1 = _points(x0, x1)
    return _ends(x0, x1).theta


def augmented(x: Tensor, layer: int, bias_std: float) -> Tensor:
    r"""Return points with one coordinate more, :math:`\sigma_b \sqrt{l d / 2}`, which stands for the biases below.

    Biases are weights of an input that is constantly 1. The units of hidden layer ``l`` see, to leading order in the
    widths, :math:`l` biases of variance :math:`\sigma_b^2` beside weights of variance :math:`2/d`: on a segment they
    behave like those of the first layer of a network without biases on these points.

    Parameters
    ----------
    x
        Points of shape ``(..., d)``, float32 or float64.
    layer
        Hidden layer, the first is 1.
    bias_std
        Standard deviation :math:`\sigma_b \ge 0` of the biases.

    Returns
    -------
    Tensor
        Shape ``(..., d + 1)``, float64.

    Raises
    ------
    TypeError
        ``x`` is no tensor of dtype float32 or float64.
    ValueError
        ``x`` has no dimension or is not finite, or ``layer`` or ``bias_std`` is out of range.

    Notes
    -----
    Exact for the first layer at any width; for deeper ones in the limit of large widths.

    Cost: one copy of the points. Source: derived here.

    Examples
    --------
    >>> augmented(torch.tensor([3.0, 4.0]), layer=4, bias_std=0.5)
    tensor([3., 4., 1.], dtype=torch.float64)
    """
    x, _ = _points(x, x, names=("x", "x"))
    layer, bias_std = checks.integer(layer, "layer", 1), checks.at_least(bias_std, "bias_std", 0)
    extra = x.new_full((*x.shape[:-1], 1), bias_std * math.sqrt(layer * x.shape[-1] / 2))
    return torch.cat([x, extra], -1)


def foot_integral(x0: Tensor, x1: Tensor) -> Tensor:
    r"""Return :math:`C = \int_{\beta_0}^{\beta_1} \cos^2\beta \, d\beta` over a segment.

    :math:`\beta` is the angle from the foot of the perpendicular that is dropped from the origin on the line. In closed
    form

    .. math:: C = \frac{\theta}{2} + \frac{\sin 2\beta_1 - \sin 2\beta_0}{4}
        = \frac{2\theta - \sin 2\theta}{4} + q \sin\theta, \quad
        q = \frac{\|x_0\| \|x_1\| \sin^2 \theta}{\|x_1 - x_0\|^2},

    which is :math:`(\theta + \sin\theta)/2` for ends of equal norm. It is 0 where the ends lie on one ray.

    Parameters, errors and shapes are those of `angle`.

    Notes
    -----
    Cost: that of `angle`. Source: derived here.

    Examples
    --------
    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> foot_integral(a, b).item() == torch.pi / 4 + 0.5
    True
    >>> round(foot_integral(a, 3 * b).item(), 6)  # foot of the perpendicular at (0.9, 0.3)
    1.085398
    """
    x0, x1 = _points(x0, x1)
    return _ends(x0, x1).integral


def expected_breakpoints(x0: Tensor, x1: Tensor, widths: Sequence[int], *, bias_std: float = 0.0) -> Tensor:
    r"""Return how many units of each hidden layer switch on a segment, on average over random networks.

    .. math:: E N_l = \frac{n_l}{\pi} \theta_l, \quad
        \theta_l = \angle\big((x_0, c_l), (x_1, c_l)\big), \quad c_l = \sigma_b \sqrt{l d / 2}.

    Without biases all :math:`\theta_l` are the angle :math:`\theta` of the ends: the number does not depend on norms,
    the scale of the weights, or how units are spread over layers.

    Parameters
    ----------
    x0, x1
        Ends of shape ``(..., d)``, float32 or float64, whose leading dimensions broadcast.
    widths
        Widths :math:`n_1, \dots, n_L` of the hidden layers.
    bias_std
        Standard deviation :math:`\sigma_b \ge 0` of the biases of the hidden layers.

    Returns
    -------
    Tensor
        Shape ``(..., L)``, one a layer, float64.

    Raises
    ------
    TypeError
        An end is no tensor of dtype float32 or float64.
    ValueError
        An end has no dimension or is not finite, the ends do not fit each other, or another argument is out of range.

    Notes
    -----
    The first layer's number is exact at any width, a unit's chance to switch being :math:`\theta_1 / \pi`; the
    others are limits of large widths: a unit is :math:`\langle w, \tilde h(t) \rangle` with isotropic ``w``, whose
    expected number of zeros is the length of the curve :math:`\tilde h / \|\tilde h\|` over π, and rectified layers
    keep that length to leading order (Edelman and Kostlan 1995 for the zeros; the rest is derived). At 16 units it
    holds to one per cent. Between opposite ends, without biases, all units switch at once, at the origin.

    Cost: that of `angle`, with biases once a layer. Source: derived here, for the segments of Kubo et al. 2019,
    Implicit Regularization in Over-parameterized Neural Networks; the zeros are those of Edelman and Kostlan 1995, How
    Many Zeros of a Random Polynomial Are Real?

    Examples
    --------
    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
    >>> expected_breakpoints(a, b, [64, 32])
    tensor([32., 16.], dtype=torch.float64)
    >>> line = torch.tensor([-1e9]), torch.tensor([1e9])  # in one dimension every unit has one breakpoint
    >>> expected_breakpoints(*line, [150, 150], bias_std=1.0).round(decimals=4)
    tensor([150., 150.], dtype=torch.float64)
    """
    pairs, n, _ = _layers(x0, x1, widths, bias_std)
    return torch.stack([pair.theta for pair in pairs], -1) * n / math.pi


def expected_total_gap_variance(
    x0: Tensor,
    x1: Tensor,
    widths: Sequence[int],
    *,
    bias_std: float = 0.0,
    output_variance: float = 2.0,
) -> Tensor:
    r"""Return each hidden layer's share of the total gap variance :math:`Q = \sum_k g_k^2`, on average.

    .. math:: E Q_l = \frac{v}{2} \, \frac{8}{\pi d} \, C_l, \quad
        C_l = \int \cos^2 \beta \, d\beta \text{ over the segment from } (x_0, c_l) \text{ to } (x_1, c_l)

    with :math:`c_l` of `augmented` and the integral of `foot_integral`. It does not depend on the widths, which
    only enter through their number; it is dimensionless per output and unit of length squared of the slope.

    Parameters
    ----------
    x0, x1, widths, bias_std
        As for `expected_breakpoints`.
    output_variance
        Variance ``v > 0`` of the output layer's weights, times its number of inputs: 2 is He's, 1 LeCun's.

    Returns
    -------
    Tensor
        Shape ``(..., L)``, one a layer, float64. Their sum is :math:`E Q`.

    Raises
    ------
    TypeError
        An end is no tensor of dtype float32 or float64.
    ValueError
        An end has no dimension or is not finite, the ends do not fit each other, or another argument is out of range.

    Notes
    -----
    Exact at any width for one hidden layer; else a limit of large widths. Derivation: breakpoints come at rate
    :math:`n_l \, d\beta / \pi`, the squared slope of the output in a unit has mean :math:`v/n_l`, and the squared slope
    of a unit at its own zero, weighted by its size, as zeros are, has mean :math:`(4/d) \cos^2 \beta`.

    Cost: that of `angle`, with biases once a layer. Source: derived here, for a
    functional reconstructed from the abstract of Kubo et al. 2019, Implicit Regularization in Over-parameterized Neural
    Networks.

    Examples
    --------
    >>> x0, x1 = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0, 0.0])
    >>> expected_total_gap_variance(x0, x1, [16, 16])  # (8 / 4 π) (π / 2) each
    tensor([1., 1.], dtype=torch.float64)
    """
    pairs, _, d = _layers(x0, x1, widths, bias_std)
    v = checks.positive(output_variance, "output_variance")
    return torch.stack([pair.integral for pair in pairs], -1) * (4 * v / (math.pi * d))


def expected_gap_deviation(
    x0: Tensor,
    x1: Tensor,
    widths: Sequence[int],
    *,
    kind: Literal["rms", "full"] = "rms",
    bias_std: float = 0.0,
    output_variance: float = 2.0,
) -> Tensor:
    r"""Return the gap deviation :math:`\sigma = \sqrt{E Q / E N}`: a ratio of means over random networks.

    .. math:: \sigma^2 = \frac{v}{2} \, \frac{8}{\pi d} \, \frac{\sum_l C_l}{\sum_l n_l \theta_l / \pi}
        = \frac{v}{2} \, \frac{8}{d n} \, \frac{C}{\theta} \quad \text{(no biases, equal widths)}

    for the gaps of the slope along the segment, and for those of the whole gradient, ``kind="full"``, which without
    biases have :math:`E \|G\|^2 = 2v/n_l` in layer ``l``,

    .. math:: \sigma^2 = \frac{2 v L}{\sum_l n_l}.

    For a short segment of ends with equal norms the directional gaps follow Laplace's law, of scale
    :math:`\sigma/\sqrt 2`: a Gaussian weight times a Rayleigh slope.

    Parameters
    ----------
    x0, x1, widths, bias_std, output_variance
        As for `expected_total_gap_variance`.
    kind
        ``"rms"`` for gaps along the segment, ``"full"`` for the norms of the gaps of the gradient (without biases).

    Returns
    -------
    Tensor
        Shape ``(...)``, float64: slope per unit length. 0 where no breakpoint is expected, as for equal ends.

    Raises
    ------
    TypeError
        An end is no tensor of dtype float32 or float64.
    ValueError
        An end has no dimension or is not finite, the ends do not fit each other, ``kind`` is unknown, or is ``"full"``
        with biases, or another argument is out of range.

    Notes
    -----
    Exact at any width for one hidden layer (of both kinds); else a limit of large widths.

    Cost: twice that of `expected_breakpoints`. Source: derived here, for a
    functional reconstructed from the abstract of Kubo et al. 2019, Implicit Regularization in Over-parameterized Neural
    Networks.

    Examples
    --------
    >>> x0, x1 = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    >>> expected_gap_deviation(x0, x1, [16])  # 8 / (2 · 16), of which the integral takes half
    tensor(0.3536, dtype=torch.float64)
    >>> expected_gap_deviation(x0, x1, [16, 16], kind="full")
    tensor(0.5000, dtype=torch.float64)
    """
    _known(kind, ("rms", "full"))
    count = expected_breakpoints(x0, x1, widths, bias_std=bias_std).sum(-1)
    if kind == "full":
        if bias_std != 0:
            raise ValueError(f"bias_std: must be 0 where kind is 'full', got {bias_std!r}")
        v = checks.positive(output_variance, "output_variance")
        return (count > 0).double() * math.sqrt(2 * v * len(widths) / sum(widths))
    q = expected_total_gap_variance(x0, x1, widths, bias_std=bias_std, output_variance=output_variance).sum(-1)
    return torch.where(count > 0, q / count, 0.0).sqrt()


def nngp_kernel(x0: Tensor, x1: Tensor, depth: int, *, output_variance: float = 2.0) -> Tensor:
    r"""Return the covariance of a network's outputs at two points over its random weights.

    .. math:: K(x_0, x_1) = \frac{v}{d} \|x_0\| \|x_1\| \, \kappa_L(\cos\theta), \quad
        \kappa_L = \hat\kappa \circ \dots \circ \hat\kappa, \quad
        \hat\kappa(\cos\theta) = \frac{\sin\theta + (\pi - \theta) \cos\theta}{\pi}

    for :math:`L` hidden layers without biases.

    Parameters
    ----------
    x0, x1
        Points of shape ``(..., d)``, float32 or float64, whose leading dimensions broadcast.
    depth
        Number ``L`` of hidden layers.
    output_variance
        Variance ``v > 0`` of the output layer's weights, times its number of inputs.

    Returns
    -------
    Tensor
        Shape ``(...)``, float64.

    Raises
    ------
    TypeError
        A point is no tensor of dtype float32 or float64.
    ValueError
        A point has no dimension or is not finite, the points do not fit each other, or another argument is out of
        range.

    Notes
    -----
    Exact at any width for one hidden layer, and for equal points; else the limit of large widths, in which the network
    is a Gaussian process.

    Cost: that of `angle`, and ``depth`` steps on the angles. Sources: Cho and Saul 2009, Kernel Methods for Deep
    Learning, for :math:`\hat\kappa`; Lee et al. 2018, Deep Neural Networks as Gaussian Processes, for the composition.

    Examples
    --------
    >>> x0, x1 = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    >>> nngp_kernel(x0, x1, 1)  # 1, 0 and 3 / π
    tensor([1.0000, 0.0000, 0.9549], dtype=torch.float64)
    """
    x0, x1 = _points(x0, x1)
    d, v = x0.shape[-1], checks.positive(output_variance, "output_variance")
    ends = _ends(x0, x1)
    kernel = _compose(ends.theta, checks.integer(depth, "depth", 1))
    return v / d * ends.r0 * ends.r1 * kernel.value


def expected_deflection(
    x0: Tensor,
    x1: Tensor,
    depth: int,
    *,
    kind: Literal["rms", "end", "full", "midpoint"] = "rms",
    output_variance: float = 2.0,
) -> Tensor:
    r"""Return the mean *square* of a deflection over random networks without biases.

    Slopes are per unit length. With the kernel ``K`` of `nngp_kernel`, the direction ``u`` and the length ``D`` of the
    segment, and :math:`\theta_0 = \theta`, :math:`\cos\theta_{l+1} = \hat\kappa(\cos\theta_l)`:

    - ``"rms"``, of the slope about that of the chord,

      .. math:: E \delta^2 = \frac{v}{d} - \frac{K(x_0, x_0) + K(x_1, x_1) - 2 K(x_0, x_1)}{D^2}
          = \frac{v}{d} \cdot \frac{2 \|x_0\| \|x_1\|}{D^2} (\kappa_L(\cos\theta) - \cos\theta);

    - ``"end"``, of the slope at one end from that at the other,
      :math:`E (s_1 - s_0)^2 = 2v/d - 2 \, \partial_u \partial_{u'} K(x_0, x_1)`;
    - ``"full"``, of the whole gradient,

      .. math:: E \|\nabla f(x_1) - \nabla f(x_0)\|^2 = 2v \, \Big[1 - \kappa_L' - \frac{\cos\theta}{d}
          \big(\kappa_L - \kappa_L' \cos\theta - \kappa_L'' \sin^2\theta\big)\Big], \quad
          \kappa_L' = \prod_{l=0}^{L-1} \Big(1 - \frac{\theta_l}{\pi}\Big),

      of which the last term is 0 for one hidden layer, and small in many dimensions;
    - ``"midpoint"``, of the output from the chord, halfway: :math:`E (f_m - (f_0 + f_1)/2)^2`, in units of the output.

    Parameters
    ----------
    x0, x1
        Ends of shape ``(..., d)``, float32 or float64, whose leading dimensions broadcast.
    depth
        Number ``L`` of hidden layers.
    kind
        Which deflection.
    output_variance
        Variance ``v > 0`` of the output layer's weights, times its number of inputs.

    Returns
    -------
    Tensor
        Shape ``(...)``, float64. 0 where the ends lie on one ray, along which the network is linear.

    Raises
    ------
    TypeError
        An end is no tensor of dtype float32 or float64.
    ValueError
        An end has no dimension or is not finite, the ends do not fit each other, or another argument is out of range.

    Notes
    -----
    None depends on the width. Exact at any width for one hidden layer; else limits of large widths. The derivatives
    of the kernel are closed forms. ``"full"`` takes the sum of :math:`\partial_i \partial_i' K` over all directions.
    Along the line, in polar coordinates of its plane, the angle changes by :math:`\cos\beta / r` and the norm by
    :math:`\sin\beta` per unit length, so that

    .. math:: \partial_u \partial_{u'} K = \frac{v}{d} \big[ \kappa_L (\cos\theta - q) +
        \kappa_L' (\sin^2\theta + q \cos\theta) - \kappa_L'' q \sin^2\theta \big], \quad q = \cos\beta_0 \cos\beta_1,

    the derivatives of :math:`\kappa_L` taken at :math:`\cos\theta`. For one hidden layer ``"end"`` equals
    `expected_total_gap_variance`, gaps being uncorrelated, as in a random walk; for more it lies below its sum.

    Cost: that of `nngp_kernel`, three times for ``"midpoint"``. Source: derived here, for a
    functional reconstructed from the abstract of Kubo et al. 2019, Implicit Regularization in Over-parameterized Neural
    Networks.

    Examples
    --------
    >>> x0, x1 = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> expected_deflection(x0, x1, 1, kind="rms")  # 1 / π
    tensor(0.3183, dtype=torch.float64)
    >>> [round(expected_deflection(x0, x1, L, kind="full").item(), 3) for L in (1, 2, 4)]  # cos θ = 0
    [2.0, 2.794, 3.434]
    >>> walk = expected_total_gap_variance(x0, x1, [1]).item()
    >>> [round(expected_deflection(x0, x1, L, kind="end").item() / (L * walk), 3) for L in (1, 2, 4)]
    [1.0, 0.662, 0.392]
    """
    _known(kind, ("rms", "end", "full", "midpoint"))
    x0, x1 = _points(x0, x1)
    depth, d = checks.integer(depth, "depth", 1), x0.shape[-1]
    v = checks.positive(output_variance, "output_variance")
    ends = _ends(x0, x1)
    kernel = _compose(ends.theta, depth)
    if kind == "rms":
        return v / d * ends.over * kernel.excess
    theta, q = ends.theta, ends.q
    c, s2, slope = theta.cos(), theta.sin() ** 2, kernel.log_slope.exp()
    if kind == "full":
        product = torch.expm1(kernel.log_slope) + c / d * (kernel.value - slope * c - kernel.bend)
        return torch.where(theta > 0, -2 * v * product, 0.0)
    if kind == "end":
        covariance = kernel.value * (c - q) + slope * (s2 + c * q) - kernel.bend * q
        return torch.where(theta > 0, 2 * v / d * (1 - covariance), 0.0)
    # The part of the kernel that is linear in both points has no sag: only the excess counts.
    middle = (x0 + x1) / 2
    first, second = _ends(x0, middle), _ends(middle, x1)
    near = [pair.r0 * pair.r1 * _compose(pair.theta, depth).excess for pair in (first, second)]
    return v / d * (ends.r0 * ends.r1 * kernel.excess / 2 - near[0] - near[1]).clamp(min=0)


def expected_non_straightness(x0: Tensor, x1: Tensor, depth: int) -> Tensor:
    r"""Return which part of the mean squared slope is not that of the chord, over random networks without biases.

    .. math:: \frac{E \delta_{\mathrm{rms}}^2}{E \delta_{\mathrm{rms}}^2 + E \bar s^2}
        = \frac{2 \|x_0\| \|x_1\|}{D^2} (\kappa_L(\cos\theta) - \cos\theta)
        = \frac{\kappa_L(\cos\theta) - \cos\theta}{1 - \cos\theta} \quad \text{(equal norms)}:

    a ratio of means, from 0, straight, to 1. It depends neither on widths and the number of inputs nor on the scale of
    inputs, weights or outputs.

    Parameters
    ----------
    x0, x1
        Ends of shape ``(..., d)``, float32 or float64, whose leading dimensions broadcast.
    depth
        Number ``L`` of hidden layers.

    Returns
    -------
    Tensor
        Shape ``(...)``, float64. 0 where the ends lie on one ray.

    Raises
    ------
    TypeError
        An end is no tensor of dtype float32 or float64.
    ValueError
        An end has no dimension or is not finite, the ends do not fit each other, or ``depth`` is out of range.

    Notes
    -----
    Exact at any width for one hidden layer; else a limit of large widths. Cost: that of `nngp_kernel`.

    Source: derived here, for a functional reconstructed from the abstract of Kubo et al. 2019, Implicit Regularization
    in Over-parameterized Neural Networks.

    Examples
    --------
    >>> x0, x1 = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> [round(expected_non_straightness(x0, x1, L).item(), 4) for L in (1, 2, 3, 4, 5, 10)]
    [0.3183, 0.4937, 0.6048, 0.681, 0.7359, 0.8715]
    """
    x0, x1 = _points(x0, x1)
    ends = _ends(x0, x1)
    return ends.over * _compose(ends.theta, checks.integer(depth, "depth", 1)).excess


def _known(kind: str, kinds: tuple[str, ...]) -> None:
    if kind not in kinds:
        raise ValueError(f"kind: must be one of {', '.join(map(repr, kinds))}, got {kind!r}")


def _points(x0: Tensor, x1: Tensor, names: tuple[str, str] = ("x0", "x1")) -> tuple[Tensor, Tensor]:
    """Return two points as float64 tensors whose leading dimensions are known to broadcast."""
    for x, name in zip((x0, x1), names, strict=True):
        checks.floating(x, name)
        if x.ndim < 1 or x.shape[-1] < 1:
            raise ValueError(f"{name}: must have shape (..., d) with d >= 1, got {tuple(x.shape)}")
        checks.finite(x, name)
    try:
        torch.broadcast_shapes(x0.shape[:-1], x1.shape[:-1])  # type: ignore[no-untyped-call]
    except RuntimeError:
        fits = False
    else:
        fits = x0.shape[-1] == x1.shape[-1]
    if not fits:
        raise ValueError(f"{names[1]}: must fit x0 of shape {tuple(x0.shape)}, got {tuple(x1.shape)}")
    return x0.double(), x1.double()


def _layers(x0: Tensor, x1: Tensor, widths: Sequence[int], bias_std: float) -> tuple[list["_Ends"], Tensor, int]:
    """Return the ends that each hidden layer sees, the widths as a tensor, and the number of inputs."""
    x0, x1 = _points(x0, x1)
    if not isinstance(widths, tuple | list | torch.Size) or not len(widths):
        raise ValueError(f"widths: must be a sequence of at least 1 integer >= 1, got {widths!r}")
    n = x0.new_tensor([checks.integer(width, "widths", 1) for width in widths])
    bias_std = checks.at_least(bias_std, "bias_std", 0)
    if bias_std == 0:
        return [_ends(x0, x1)] * len(widths), n, x0.shape[-1]
    pairs = [_ends(augmented(x0, i + 1, bias_std), augmented(x1, i + 1, bias_std)) for i in range(len(widths))]
    return pairs, n, x0.shape[-1]


class _Ends(NamedTuple):
    """What the laws need to know of two points."""

    r0: Tensor
    r1: Tensor
    theta: Tensor
    over: Tensor  # 2 |x0| |x1| / D², 0 where the ends lie on one ray
    q: Tensor  # cos β0 cos β1
    integral: Tensor


def _ends(x0: Tensor, x1: Tensor) -> _Ends:
    """Return the norms, angle and integral of pairs of points, accurately at all angles and scales."""
    r0, r1 = torch.linalg.vector_norm(x0, dim=-1), torch.linalg.vector_norm(x1, dim=-1)
    a, b = x0 / r0.clamp(min=_TINY)[..., None], x1 / r1.clamp(min=_TINY)[..., None]
    apart, along = torch.linalg.vector_norm(a - b, dim=-1), torch.linalg.vector_norm(a + b, dim=-1)
    theta = torch.where((r0 > 0) & (r1 > 0), 2 * torch.atan2(apart, along), 0.0)
    # D² / |x0| |x1|, without the cancellation of a difference of norms.
    bend = theta > 0
    ratio = torch.where(bend, r0, 1.0).sqrt() / torch.where(bend, r1, 1.0).sqrt()
    over = torch.where(bend, 2 / ((ratio - 1 / ratio) ** 2 + 4 * (theta / 2).sin() ** 2), 0.0)
    q = over * theta.sin() ** 2 / 2
    return _Ends(r0, r1, theta, over, q, _less_sine(2 * theta) / 4 + q * theta.sin())


# Below the smallest normal number a norm has lost its digits, and one divided by it would not be 1.
_TINY = torch.finfo(torch.float64).tiny


def _less_sine(y: Tensor) -> Tensor:
    """Return y - sin y, which cancels for small y."""
    series = y**3 / 6 * (1 - y**2 / 20 * (1 - y**2 / 42 * (1 - y**2 / 72 * (1 - y**2 / 110))))
    return torch.where(y < 0.5, series, y - y.sin())


class _Kernel(NamedTuple):
    """The composed kernel and its derivatives at cos θ."""

    value: Tensor
    excess: Tensor  # κ_L(cos θ) - cos θ
    log_slope: Tensor  # ln κ_L'
    bend: Tensor  # κ_L'' sin² θ


def _compose(theta: Tensor, depth: int) -> _Kernel:
    """Return κ_L of an angle: the steps are summed, so that small angles lose no digits."""
    turn, fall = theta, 2 * (theta / 2).sin() ** 2  # θ_l and 1 - cos θ_l
    excess, log_slope, bend = torch.zeros_like(theta), torch.zeros_like(theta), torch.zeros_like(theta)
    across = theta.sin() ** 2
    for _ in range(depth):
        # κ̂(cos θ) - cos θ = (sin θ - θ cos θ) / π = (2 θ sin² (θ/2) - (θ - sin θ)) / π
        step = (turn * fall - _less_sine(turn)) / math.pi
        slope = 1 - turn / math.pi
        sine = turn.sin()
        curved = torch.where(sine > 0, across / torch.where(sine > 0, sine, 1.0), 0.0) / math.pi
        bend = curved * (2 * log_slope).exp() + slope * bend
        log_slope = log_slope + torch.log1p(-(turn / math.pi).clamp(max=1))
        excess, fall = excess + step, fall - step
        turn = 2 * (fall.clamp(min=0) / 2).sqrt().asin()
    return _Kernel(1 - fall, excess, log_slope, bend)
