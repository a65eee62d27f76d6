"""Random targets: matrices and tensors of low rank, and without structure."""

from collections.abc import Sequence
from string import ascii_lowercase

import torch
from torch import Tensor

from implicitreg import checks


def _scaled(w: Tensor, norm: float) -> Tensor:
    w *= (norm / torch.linalg.vector_norm(w.flatten(1), dim=1)).view(-1, *[1] * (w.ndim - 1))
    return w


def low_rank_tensors(
    n: int, dims: Sequence[int], rank: int, generator: torch.Generator, *, norm: float = 1.0
) -> Tensor:
    r"""Return random tensors :math:`\sum_{r=1}^{R} \bigotimes_k v_r^{(k)}`, scaled to one Frobenius norm.

    All :math:`v_r^{(k)}` have independent standard normal entries. Matrices are tensors with two modes.

    Parameters
    ----------
    n
        Number of tensors, >= 1.
    dims
        Dimensions of the modes, at least two, at most 24.
    rank
        Number of terms ``R >= 1``: the CP rank with probability 1 as long as it is no more than the smallest
        dimension.
    generator
        Source of randomness, on the CPU.
    norm
        Frobenius norm of each tensor, > 0.

    Returns
    -------
    Tensor
        Shape ``(n, *dims)``, float64.

    Raises
    ------
    ValueError
        An argument is out of range.

    References
    ----------
    Razin & Cohen (2020), arXiv:2005.06398, the authors' data generator.

    Examples
    --------
    >>> w = low_rank_tensors(1, (4, 5), 2, torch.Generator().manual_seed(0))
    >>> torch.linalg.matrix_rank(w).item(), round(torch.linalg.matrix_norm(w).item(), 12)
    (2, 1.0)
    """
    checks.integer(n, "n", 1)
    checks.random(generator, "generator")
    dims = checks.dimensions(dims, "dims")
    checks.integer(rank, "rank", 1)
    checks.positive(norm, "norm")
    if len(dims) > 24:
        raise ValueError(f"dims: must have at most 24 modes, got {len(dims)}")
    factors = [torch.randn(n, d, rank, generator=generator, dtype=torch.float64) for d in dims]
    modes = ascii_lowercase[: len(dims)]
    return _scaled(torch.einsum(",".join(f"y{k}z" for k in modes) + f"->y{modes}", *factors), norm)


def gaussian_tensors(n: int, dims: Sequence[int], generator: torch.Generator, *, norm: float = 1.0) -> Tensor:
    """Return tensors with independent normal entries, scaled to one Frobenius norm: targets without low rank.

    Parameters
    ----------
    n
        Number of tensors, >= 1.
    dims
        Dimensions of the modes, at least two.
    generator
        Source of randomness, on the CPU.
    norm
        Frobenius norm of each tensor, > 0.

    Returns
    -------
    Tensor
        Shape ``(n, *dims)``, float64.

    Raises
    ------
    ValueError
        An argument is out of range.

    Examples
    --------
    >>> gaussian_tensors(1, (8, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([1, 8, 8, 8])
    """
    checks.integer(n, "n", 1)
    checks.random(generator, "generator")
    dims = checks.dimensions(dims, "dims")
    checks.positive(norm, "norm")
    return _scaled(torch.randn(n, *dims, generator=generator, dtype=torch.float64), norm)
