r"""Networks built by hand: the ones that fit every labelling of a hypercube, and two ways to build larger ones.

Bias-free ReLU networks are lists of weight matrices ``W_i`` of shape ``(..., h_i, h_{i-1})``; leading dimensions are an
ensemble.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import layers as ly

MOST_DIMENSIONS = 12  # 2**12 hidden units


def hypercube(dim: int, *, constant: bool = False) -> Tensor:
    r"""Return the corners of :math:`\{\pm1\}^D`.

    Parameters
    ----------
    dim
        Dimension ``D``, from 1 to 12.
    constant
        Append a constant coordinate 1, which carries the thresholds of a network without biases.

    Returns
    -------
    Tensor
        Shape ``(2 ** dim, dim)``, or ``(2 ** dim, dim + 1)``, float64; the first coordinate changes slowest, from
        +1 to -1.

    Raises
    ------
    ValueError
        ``dim`` is out of range.

    Examples
    --------
    >>> hypercube(2, constant=True).tolist()
    [[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]]
    """
    if checks.integer(dim, "dim", 1) > MOST_DIMENSIONS:
        raise ValueError(f"dim: must be at most {MOST_DIMENSIONS}, got {dim}")
    axes = [torch.tensor([1.0, -1.0], dtype=torch.float64)] * dim
    corners = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
    return torch.cat([corners, torch.ones(len(corners), 1, dtype=torch.float64)], -1) if constant else corners


def shattering_network(labels: Tensor, *, threshold: bool = True) -> list[Tensor]:
    r"""Return a two-layer ReLU network that has given values on the corners of a hypercube.

    One hidden unit for each corner :math:`s`: :math:`f(x) = \sum_s y_s\,[\langle s, x\rangle - (D-1)]_+`. At a corner
    :math:`x` the unit of :math:`s = x` gives 1 and all others 0. Its group norm, for labels ±1, is
    :math:`\gamma_{p,q} = 2^{D/q}\,(D + (D-1)^p)^{1/p}\,2^{D/p}`.

    Parameters
    ----------
    labels
        The values :math:`y_s` in the order of `hypercube`, shape ``(..., 2 ** D)``, float32 or float64; ±1 to
        shatter with unit margin, 0 and 1 for a network that `deepened` can extend.
    threshold
        Whether the units have the threshold :math:`D - 1`, as the weight of the constant coordinate of
        ``hypercube(D, constant=True)``. Without, as the proof of Neyshabur, Tomioka & Srebro (2015, Theorem 3) reads,
        the network does not fit most labellings from D = 3 on.

    Returns
    -------
    list of Tensor
        Two weight matrices, of shapes ``(..., 2 ** D, D + 1)``, or ``(..., 2 ** D, D)`` without threshold, and
        ``(..., 1, 2 ** D)``; dtype of ``labels``.

    Raises
    ------
    TypeError
        ``labels`` is no tensor of dtype float32 or float64.
    ValueError
        Their number is no power of two from 2 to 4,096, or one is not finite.

    Notes
    -----
    Cost: :math:`4^D D` operations to evaluate the network on all corners.

    Examples
    --------
    The parity of two bits:

    >>> w1, w2 = shattering_network(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    >>> x = hypercube(2, constant=True).float()
    >>> ((x @ w1.T).relu() @ w2.T).flatten().tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    checks.floating(labels, "labels")
    m = labels.shape[-1] if labels.ndim else 0
    dim = m.bit_length() - 1
    if m < 2 or m != 2**dim or dim > MOST_DIMENSIONS:
        raise ValueError(
            f"labels: must have shape (..., 2**D) with D from 1 to {MOST_DIMENSIONS}, got {tuple(labels.shape)}"
        )
    checks.finite(labels, "labels")
    first = hypercube(dim, constant=threshold).to(labels)
    if threshold:
        first[:, -1] = 1 - dim
    return [first.expand(*labels.shape[:-1], *first.shape).clone(), labels[..., None, :].clone()]


def deepened(weights: Sequence[Tensor], width: int, layers: int = 1) -> list[Tensor]:
    r"""Return a deeper network with the same outputs wherever they are not negative.

    The output row is copied ``width`` times, and the copies, after their ReLU, are averaged by an output row of
    entries ``1 / width``; ``layers`` times. Each time, the group norm :math:`\gamma_{p,q}` is multiplied by
    :math:`H^{1/q + 1/p - 1}`, ``H`` the width: where :math:`1/p + 1/q < 1`, width makes it as small as one likes.

    Parameters
    ----------
    weights
        Weight matrices, ``W_i`` of shape ``(..., h_i, h_{i-1})``, with a single output; float32 or float64.
    width
        Number of copies, >= 1.
    layers
        Number of layers to add, >= 0.

    Returns
    -------
    list of Tensor
        ``len(weights) + layers`` weight matrices.

    Raises
    ------
    TypeError, ValueError
        ``weights`` is no network of a single output, or another argument is out of range.

    References
    ----------
    Neyshabur, Tomioka & Srebro (2015), Theorem 3. A network of outputs ±1, as there, would lose its negative ones.

    Examples
    --------
    >>> [w.tolist() for w in deepened([torch.tensor([[3.0, 1.0]])], width=2)]
    [[[3.0, 1.0], [3.0, 1.0]], [[0.5, 0.5]]]
    """
    out = ly.matrices(weights, "weights")
    if out[-1].shape[-2] != 1:
        raise ValueError(f"weights: must have a single output, got {out[-1].shape[-2]}")
    checks.integer(width, "width", 1)
    for _ in range(checks.integer(layers, "layers", 0)):
        last = out[-1]
        copies = last.expand(*last.shape[:-2], width, last.shape[-1]).clone()
        out = [*out[:-1], copies, last.new_full((*last.shape[:-2], 1, width), 1 / width)]
    return out


def side_by_side(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    r"""Return the network that computes the sum of two, from their hidden units side by side.

    The first matrices are stacked, those between are block diagonal, the last are joined:
    :math:`\begin{pmatrix} U_1 \\ V_1 \end{pmatrix}`, :math:`\begin{pmatrix} U_k & 0 \\ 0 & V_k \end{pmatrix}`,
    :math:`(U_d\ V_d)`. With it the triangle inequality of a norm of functions is shown.

    Parameters
    ----------
    first, second
        Weight matrices of two networks of the same depth, inputs and outputs, and with the same leading dimensions;
        float32 or float64.

    Returns
    -------
    list of Tensor
        Weight matrices of hidden layers as wide as both together.

    Raises
    ------
    TypeError, ValueError
        One is no network, or the two do not match.

    References
    ----------
    Neyshabur, Tomioka & Srebro (2015), Theorem 4.

    Examples
    --------
    >>> u = [torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]])]
    >>> v = [torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0]])]
    >>> [w.tolist() for w in side_by_side(u, v)]
    [[[1.0, 0.0], [0.0, 1.0]], [[2.0, 3.0]]]
    """
    a, b = ly.matrices(first, "first"), ly.matrices(second, "second")
    same = len(a) == len(b) and all(u.shape[:-2] == v.shape[:-2] for u, v in zip(a, b, strict=True))
    if not same or a[0].shape[-1] != b[0].shape[-1] or a[-1].shape[-2] != b[-1].shape[-2]:
        raise ValueError("second: must have the depth, inputs, outputs and leading dimensions of first")
    if len(a) == 1:
        return [a[0] + b[0]]
    middle = []
    for u, v in zip(a[1:-1], b[1:-1], strict=True):
        block = u.new_zeros(*u.shape[:-2], u.shape[-2] + v.shape[-2], u.shape[-1] + v.shape[-1])
        block[..., : u.shape[-2], : u.shape[-1]] = u
        block[..., u.shape[-2] :, u.shape[-1] :] = v
        middle.append(block)
    return [torch.cat([a[0], b[0]], -2), *middle, torch.cat([a[-1], b[-1]], -1)]
