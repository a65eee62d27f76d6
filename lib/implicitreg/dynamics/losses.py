"""Losses: of classification, with their gradients in the scores, and of regression."""

import math

import torch
from torch import Tensor

from implicitreg import checks

KNEE = -11.0
"""Below this difference of scores the exponential is replaced by a parabola."""

FLOOR = -13.0
"""Below this difference of scores a class costs nothing."""

_HEIGHT = math.exp(KNEE)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, ``(..., n)``, from scores ``(..., n, k)`` and classes ``(..., n)``.

    Examples
    --------
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """
    index = labels.expand(scores.shape[:-1])[..., None]
    return -torch.log_softmax(scores, -1).gather(-1, index).squeeze(-1)


def truncated_exponential(z: Tensor) -> Tensor:
    r"""Return f(z): :math:`e^z` for :math:`z \ge -11`, else :math:`e^{-11} [z + 13]_+^2 / 4`.

    It is continuously differentiable, exactly 0 below -13, and within :math:`2.71 \cdot 10^{-6}` of :math:`e^z`.

    Parameters
    ----------
    z
        Any shape, floating-point.

    Examples
    --------
    >>> truncated_exponential(torch.tensor([0.0, -13.0, -20.0]))
    tensor([1., 0., 0.])
    """
    return torch.where(z >= KNEE, z.exp(), _HEIGHT / 4 * (z - FLOOR).clamp_min(0).square())


def truncated_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    r"""Return the truncated cross-entropy :math:`\ln \sum_i f(s_i - s_c)` of each sample.

    f is `truncated_exponential`. Unlike the cross-entropy it is exactly 0 where the margin is at least 13, so that
    training can reach zero loss; it differs from the cross-entropy by at most :math:`2.71 \cdot 10^{-6}` times
    the number of other classes.

    Parameters
    ----------
    scores
        Outputs of the network, shape ``(..., n, k)``, float32 or float64.
    labels
        Shape ``(..., n)``, int64, in 0 ... k - 1.

    Returns
    -------
    Tensor
        Shape ``(..., n)``; differentiable.

    Raises
    ------
    TypeError
        ``scores`` is no tensor of dtype float32 or float64.
    ValueError
        ``labels`` do not fit ``scores``.

    Notes
    -----
    Source: Neyshabur et al. 2015, In Search of the Real Inductive Bias (recalled).

    Examples
    --------
    >>> truncated_cross_entropy(torch.tensor([[13.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]))
    tensor([0.0000, 0.6931])
    """
    checks.scored(labels, scores, "labels")
    difference = scores - scores.gather(-1, labels.expand(scores.shape[:-1])[..., None])
    # The largest difference is taken out, so that no exponential overflows; the label's own is 0.
    top = difference.amax(-1, keepdim=True)
    below = _HEIGHT / 4 * (difference - FLOOR).clamp_min(0).square() * (-top).exp()
    terms = torch.where(difference >= KNEE, (difference - top).exp(), below)
    return top.squeeze(-1) + terms.sum(-1).log()


def score_gradient(scores: Tensor, labels: Tensor, *, truncated: bool, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample, ``(..., n)``, and its gradient in the scores, ``(..., n, k)``.

    The cross-entropy, or `truncated_cross_entropy`: what a training loop needs, without recording a graph. Classes
    are the last dimension of the scores, or with ``dim=-2`` the last but one, which is faster where they are few.
    """
    index = labels.unsqueeze(dim)
    if not truncated:
        log = torch.log_softmax(scores, dim)
        loss = -log.gather(dim, index).squeeze(dim)
        gradient = log.exp_()
        return loss, gradient.scatter_add_(dim, index, gradient.new_full((), -1.0).expand(index.shape))
    difference = scores - scores.gather(dim, index)
    top = difference.amax(dim, keepdim=True)
    far = difference < KNEE
    rest = (difference - FLOOR).clamp_min(0)
    scale = _HEIGHT * (-top).exp()
    near = (difference - top).exp()
    terms = torch.where(far, scale / 4 * rest.square(), near)
    total = terms.sum(dim, keepdim=True)
    gradient = torch.where(far, scale / 2 * rest, near) / total
    gradient.scatter_(dim, index, 0.0)
    gradient.scatter_(dim, index, -gradient.sum(dim, keepdim=True))
    return (top + total.log()).squeeze(dim), gradient


def squared_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Return half the sum of squares, :math:`\frac12 \sum_i (f_i - y_i)^2`, over the last dimension.

    Parameters
    ----------
    outputs
        Shape ``(..., n)``, float32 or float64.
    targets
        Shape ``(..., n)``; the two broadcast.

    Returns
    -------
    Tensor
        Shape ``(...)``.

    Raises
    ------
    TypeError
        One of the two is no tensor of dtype float32 or float64.
    ValueError
        Their last dimensions differ, or the others do not broadcast.

    Examples
    --------
    >>> squared_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(2.)
    """
    checks.floating(outputs, "outputs")
    checks.floating(targets, "targets")
    if not outputs.ndim or outputs.shape[-1:] != targets.shape[-1:]:
        raise ValueError(
            f"targets: must have as many entries in a row as outputs {tuple(outputs.shape)}, got {tuple(targets.shape)}"
        )
    try:
        difference = outputs - targets
    except RuntimeError:
        checks.broadcastable(targets.shape[:-1], outputs.shape[:-1], "targets", "outputs")
        raise
    return difference.square().sum(-1) / 2
