r"""CP tensor factorization: a sum of rank-one tensors, :math:`\mathcal W = \sum_{r=1}^R \bigotimes_{n=1}^N w_r^{(n)}`.

The factors of an ensemble are one list of ``N`` tensors, the factor matrix of mode ``n`` of shape ``(..., d_n, R)``
with the vectors :math:`w_r^{(n)}` as its columns: batch dimensions lead.
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from implicitreg import checks


def cp_factors(factors: Sequence[Tensor], name: str = "factors") -> list[Tensor]:
    """Return the factor matrices as a list if they belong to one CP factorization.

    Parameters
    ----------
    factors
        ``N >= 2`` tensors, that of mode ``n`` of shape ``(..., d_n, R)`` with ``d_n, R >= 1``, all float32 or all
        float64, on one device.
    name
        What a complaint calls them.

    Returns
    -------
    list of Tensor

    Raises
    ------
    TypeError, ValueError
        They are something else.

    Examples
    --------
    >>> cp_factors([torch.ones(2, 3), torch.ones(2, 4)])
    Traceback (most recent call last):
    ...
    ValueError: factors: must share their batch shape, number of components R, dtype and device
    """
    if not isinstance(factors, list | tuple | nn.ParameterList) or len(factors) < 2:
        raise ValueError(f"{name}: must be a sequence of at least two tensors, one for each mode")
    first = factors[0]
    for factor in factors:
        checks.floating(factor, name)
        if factor.ndim < 2 or 0 in factor.shape[-2:]:
            raise ValueError(f"{name}: must have shape (..., d_n, R) with d_n, R >= 1, got {tuple(factor.shape)}")
        if (factor.shape[:-2], factor.shape[-1]) != (first.shape[:-2], first.shape[-1]) or (
            (factor.dtype, factor.device) != (first.dtype, first.device)
        ):
            raise ValueError(f"{name}: must share their batch shape, number of components R, dtype and device")
    return list(factors)


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    r"""Return the column-wise Kronecker product :math:`F^{(1)} \odot \cdots \odot F^{(k)}`.

    Parameters
    ----------
    factors
        ``k >= 1`` tensors, factor ``n`` of shape ``(..., d_n, R)``.

    Returns
    -------
    Tensor
        Shape ``(..., d_1 ... d_k, R)``; the last mode's index runs fastest.

    Examples
    --------
    >>> khatri_rao([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])])[:, 0].tolist()
    [3.0, 4.0, 6.0, 8.0]
    """
    return reduce(lambda left, right: (left[..., :, None, :] * right[..., None, :, :]).flatten(-3, -2), factors)


def cp_tensor(factors: Sequence[Tensor]) -> Tensor:
    r"""Return the tensor :math:`\sum_r \bigotimes_n w_r^{(n)}` of a CP factorization.

    Parameters
    ----------
    factors
        ``N >= 2`` tensors, that of mode ``n`` of shape ``(..., d_n, R)``.

    Returns
    -------
    Tensor
        Shape ``(..., d_1, ..., d_N)``.

    Raises
    ------
    TypeError, ValueError
        ``factors`` are no factor matrices of one factorization.

    Notes
    -----
    Cost: :math:`O(R \prod_n d_n)`, one matrix product of the Khatri-Rao products of the first and the last modes.

    Examples
    --------
    >>> e1, e2 = torch.eye(2)
    >>> cp_tensor([torch.stack([e1, e2], 1)] * 3)[1, 1].tolist()  # e1⊗e1⊗e1 + e2⊗e2⊗e2
    [0.0, 1.0]
    """
    factors = cp_factors(factors)
    half = len(factors) // 2
    w = khatri_rao(factors[:half]) @ khatri_rao(factors[half:]).mT
    return w.reshape(*w.shape[:-2], *(factor.shape[-2] for factor in factors))


def component_norms(factors: Sequence[Tensor]) -> Tensor:
    r"""Return the norms of the components, :math:`\|\otimes_n w_r^{(n)}\|_F = \prod_n \|w_r^{(n)}\|_2`.

    Parameters
    ----------
    factors
        ``N >= 2`` tensors, that of mode ``n`` of shape ``(..., d_n, R)``.

    Returns
    -------
    Tensor
        Shape ``(..., R)``.

    Raises
    ------
    TypeError, ValueError
        ``factors`` are no factor matrices of one factorization.

    References
    ----------
    Razin, Maman & Cohen (2021), arXiv:2102.09972: under gradient flow these norms grow one after the other.

    Examples
    --------
    >>> component_norms([torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0]])]).tolist()
    [10.0]
    """
    return torch.stack([torch.linalg.vector_norm(factor, dim=-2) for factor in cp_factors(factors)]).prod(0)


def gaussian_cp_factors(
    n: int, dims: Sequence[int], rank: int | None, std: float, generator: torch.Generator
) -> list[Tensor]:
    r"""Return factor matrices with independent :math:`\mathcal N(0, \text{std}^2)` entries.

    Parameters
    ----------
    n
        Number of members, >= 1.
    dims
        Dimensions of the modes, at least two, each >= 1.
    rank
        Number of components ``R >= 1``; ``None`` for :math:`\prod_n d_n / \max_n d_n`, with which every tensor of
        these dimensions can be written.
    std
        Standard deviation of each entry, > 0.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    list of Tensor
        For each mode shape ``(n, d, R)``, float64.

    Raises
    ------
    ValueError
        An argument is out of range.

    Examples
    --------
    >>> [tuple(f.shape) for f in gaussian_cp_factors(5, (8, 8, 8), None, 1e-3, torch.Generator().manual_seed(0))]
    [(5, 8, 64), (5, 8, 64), (5, 8, 64)]
    """
    checks.integer(n, "n", 1)
    dims = checks.dimensions(dims, "dims")
    rank = math.prod(dims) // max(dims) if rank is None else checks.integer(rank, "rank", 1)
    checks.positive(std, "std")
    checks.random(generator, "generator")
    return [std * torch.randn(n, d, rank, generator=generator, dtype=torch.float64) for d in dims]


class CPFactorization(nn.Module):
    r"""CP tensor factorization as a module, for optimisers of `torch.optim`.

    Parameters
    ----------
    factors
        Initial factor matrices, as for `cp_tensor`; copied.

    Examples
    --------
    >>> net = CPFactorization([torch.ones(2, 3), torch.ones(2, 3)])
    >>> net().tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """

    def __init__(self, factors: Sequence[Tensor]):
        super().__init__()
        self.factors = nn.ParameterList([nn.Parameter(f.detach().clone()) for f in cp_factors(factors)])

    def forward(self) -> Tensor:
        """Return the tensor, shape ``(..., d_1, ..., d_N)``."""
        return cp_tensor(list(self.factors))
