"""Measures of a matrix that depend on its singular values alone."""

import torch
from torch import Tensor

from implicitreg import checks


def schatten_norm(w: Tensor, p: float) -> Tensor:
    r"""Return the Schatten-p (quasi-)norm :math:`\|W\|_{S_p} = \big(\sum_r \sigma_r^p\big)^{1/p}`.

    ``p=1`` is the nuclear norm, ``p=2`` the Frobenius norm, ``p=inf`` the spectral norm. For :math:`p < 1` it is
    a quasi-norm: the triangle inequality holds with the factor :math:`2^{1/p-1}`.

    Parameters
    ----------
    w
        Matrices, shape ``(..., d, d')``, float32 or float64.
    p
        Exponent, > 0, ``inf`` allowed.

    Returns
    -------
    Tensor
        Shape ``(...)``, dtype and device of ``w``; differentiable where ``w`` has full rank.

    Raises
    ------
    TypeError
        ``w`` is no tensor of dtype float32 or float64.
    ValueError
        ``w`` is no stack of finite matrices, or ``p`` is not > 0.

    Notes
    -----
    Cost: one singular value decomposition without vectors, :math:`O(d d' \min(d, d'))` a matrix. The largest
    singular value is factored out, so that neither small ``p`` nor extreme scales overflow early. Source: elementary.

    Examples
    --------
    >>> w = torch.diag(torch.tensor([3.0, 4.0]))
    >>> [round(schatten_norm(w, p).item(), 4) for p in (1, 2, float("inf"), 0.5)]
    [7.0, 5.0, 4.0, 13.9282]
    """
    checks.matrices(w, "w")
    p = checks.positive(p, "p", infinite=True)
    sigma: Tensor = torch.linalg.svdvals(w)
    largest = sigma[..., 0]
    if p == float("inf"):
        return largest
    # A zero matrix has norm 0; dividing by 1 there keeps 0/0 out.
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return largest * (sigma / scale[..., None]).pow(p).sum(-1).pow(1 / p)


def effective_rank(w: Tensor) -> Tensor:
    r"""Return the effective rank: the exponential of the entropy of the normalised singular values.

    :math:`\operatorname{erank}(W) = \exp\big(-\sum_r \rho_r \ln \rho_r\big)` with
    :math:`\rho_r = \sigma_r / \sum_s \sigma_s` and :math:`0 \ln 0 = 0`. It lies between 1 (rank one) and
    :math:`\min(d, d')` (all singular values equal), and does not change with the scale of ``w``.

    Parameters
    ----------
    w
        Matrices, shape ``(..., d, d')``, float32 or float64.

    Returns
    -------
    Tensor
        Shape ``(...)``, dtype and device of ``w``; differentiable where ``w`` has full rank.

    Raises
    ------
    TypeError
        ``w`` is no tensor of dtype float32 or float64.
    ValueError
        ``w`` is no stack of finite matrices, or one of them is zero: its effective rank is not defined.

    Notes
    -----
    Cost: one singular value decomposition without vectors, :math:`O(d d' \min(d, d'))` a matrix.
    Source: Roy & Vetterli 2007, The Effective Rank: A Measure of Effective Dimensionality.

    Examples
    --------
    >>> round(effective_rank(torch.eye(5)).item(), 6)
    5.0
    >>> w = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> round(effective_rank(w).item(), 6)
    1.803113
    """
    checks.matrices(w, "w")
    sigma: Tensor = torch.linalg.svdvals(w)
    if not (sigma[..., 0] > 0).all():
        raise ValueError("w: the effective rank of a zero matrix is not defined")
    return entropy_rank(sigma)


def entropy_rank(sigma: Tensor) -> Tensor:
    """Return the effective rank from singular values ``(..., r)``, largest first: NaN where all are 0."""
    # Dividing by the largest first keeps the sum of huge singular values from overflowing.
    rho = sigma / sigma[..., :1]
    rho = rho / rho.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(rho).sum(-1)
    return entropy.exp()


def distance_from_rank(w: Tensor, r: int) -> Tensor:
    r"""Return the Frobenius distance to the matrices of rank at most ``r``.

    :math:`D(W, \mathcal M_r) = \min_{\operatorname{rank} W' \le r} \|W - W'\|_F
    = \big(\sum_{k > r} \sigma_k^2\big)^{1/2}`.

    Parameters
    ----------
    w
        Matrices, shape ``(..., d, d')``, float32 or float64.
    r
        Rank, an integer >= 0; from ``min(d, d')`` on the distance is 0.

    Returns
    -------
    Tensor
        Shape ``(...)``, dtype and device of ``w``; differentiable where ``w`` has full rank and the distance is not 0.

    Raises
    ------
    TypeError
        ``w`` is no tensor of dtype float32 or float64.
    ValueError
        ``w`` is no stack of finite matrices, or ``r`` is no integer >= 0.

    Notes
    -----
    Cost: one singular value decomposition without vectors, :math:`O(d d' \min(d, d'))` a matrix.
    Source: Eckart & Young 1936, The Approximation of One Matrix by Another of Lower Rank.

    Examples
    --------
    >>> w = torch.diag(torch.tensor([5.0, 4.0, 3.0]))
    >>> [round(distance_from_rank(w, r).item(), 4) for r in (0, 1, 2, 3)]
    [7.0711, 5.0, 3.0, 0.0]
    """
    checks.matrices(w, "w")
    checks.integer(r, "r", 0)
    rest = torch.linalg.svdvals(w)[..., r:]
    if not rest.shape[-1]:
        return w.new_zeros(w.shape[:-2])
    # Scaled by the largest of them, so that no square overflows or vanishes.
    largest = rest[..., 0]
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    root: Tensor = (rest / scale[..., None]).square().sum(-1).sqrt()
    return scale * root
