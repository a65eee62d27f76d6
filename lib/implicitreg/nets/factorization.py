r"""Deep matrix factorization: a linear network :math:`W = A_0 A_1 \cdots A_{L-1}`.

The factors of an ensemble are one list of ``L`` tensors, factor ``l`` of shape ``(..., d_l, d_{l+1})``: batch
dimensions lead, so that seeds, scales and starts are members of one tensor program.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from implicitreg import checks


def _one_or_more(factors: Sequence[Tensor]) -> None:
    if isinstance(factors, Tensor) or not factors:
        raise ValueError("factors: must be a sequence of at least one tensor")
    if any(a.ndim < 2 for a in factors):
        raise ValueError("factors: must have shape (..., d_l, d_{l+1})")


def product(factors: Sequence[Tensor]) -> Tensor:
    r"""Return the end-to-end matrix :math:`A_0 A_1 \cdots A_{L-1}`.

    Parameters
    ----------
    factors
        ``L >= 1`` tensors, factor ``l`` of shape ``(..., d_l, d_{l+1})``.

    Returns
    -------
    Tensor
        Shape ``(..., d_0, d_L)``.

    Raises
    ------
    ValueError
        No factors, one that is no stack of matrices, or neighbours whose dimensions do not meet.

    Examples
    --------
    >>> product([2 * torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])]).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    _one_or_more(factors)
    for left, right in pairwise(factors):
        if left.shape[-1] != right.shape[-2]:
            raise ValueError(f"factors: {tuple(left.shape)} and {tuple(right.shape)} do not meet")
    return reduce(torch.matmul, factors)


def imbalance(factors: Sequence[Tensor]) -> Tensor:
    r"""Return :math:`\sum_l \|A_l^\top A_l - A_{l+1} A_{l+1}^\top\|_F`, 0 exactly where the factors are balanced.

    Gradient flow conserves each term's matrix; gradient descent with step :math:`\eta` lets it drift.

    Parameters
    ----------
    factors
        ``L >= 1`` tensors, factor ``l`` of shape ``(..., d_l, d_{l+1})``.

    Returns
    -------
    Tensor
        Shape ``(...)``; 0 for a single factor.

    Raises
    ------
    ValueError
        No factors, or one that is no stack of matrices.

    Examples
    --------
    >>> imbalance([torch.eye(2), 2 * torch.eye(2)]).item()  # |1 - 4| on both diagonal entries
    4.242640495300293
    """
    _one_or_more(factors)
    gaps = [torch.linalg.matrix_norm(left.mT @ left - right @ right.mT) for left, right in pairwise(factors)]
    return sum(gaps, start=factors[0].new_zeros(factors[0].shape[:-2]))


def balanced_factors(w: Tensor, depth: int) -> list[Tensor]:
    r"""Return balanced factors of a matrix: :math:`U S^{1/L},\ S^{1/L}, \dots,\ S^{1/L} V^\top` from its SVD.

    Parameters
    ----------
    w
        End-to-end matrices :math:`W = U S V^\top`, shape ``(..., d, d')``, float32 or float64.
    depth
        Number of factors ``L >= 1``.

    Returns
    -------
    list of Tensor
        ``L`` factors with hidden dimension ``min(d, d')`` whose product is ``w`` and whose `imbalance` is 0, both
        to rounding.

    Raises
    ------
    TypeError, ValueError
        ``w`` is no stack of finite matrices, or ``depth`` is no integer >= 1.

    Examples
    --------
    >>> w = torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=torch.float64)
    >>> factors = balanced_factors(w, 3)
    >>> torch.allclose(product(factors), w), imbalance(factors).item() < 1e-12
    (True, True)
    """
    checks.matrices(w, "w")
    checks.integer(depth, "depth", 1)
    if depth == 1:
        return [w.clone()]
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    root = s.pow(1 / depth)
    return [u * root[..., None, :], *[torch.diag_embed(root) for _ in range(depth - 2)], root[..., :, None] * vh]


def identity_factors(alpha: float, depth: int, dim: int = 2) -> list[Tensor]:
    r"""Return ``depth`` factors :math:`\alpha^{1/L} I`, whose product is :math:`\alpha I`; balanced exactly.

    Parameters
    ----------
    alpha
        Scale of the product, > 0.
    depth
        Number of factors ``L >= 1``.
    dim
        Dimension of the square matrices, >= 1.

    Returns
    -------
    list of Tensor
        Shape ``(dim, dim)``, float64.

    Raises
    ------
    ValueError
        An argument is out of range.

    Examples
    --------
    >>> [a.tolist() for a in identity_factors(4.0, 2)]
    [[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 2.0]]]
    """
    checks.positive(alpha, "alpha")
    checks.integer(depth, "depth", 1)
    checks.integer(dim, "dim", 1)
    return [alpha ** (1 / depth) * torch.eye(dim, dtype=torch.float64) for _ in range(depth)]


def gaussian_factors(
    n: int,
    depth: int,
    std: float,
    generator: torch.Generator,
    dim: int = 2,
    *,
    determinant_sign: int | None = None,
) -> list[Tensor]:
    r"""Return factors with independent :math:`\mathcal N(0, \text{std}^2)` entries; not balanced.

    Every entry of the product of ``L`` factors has standard deviation :math:`\text{std}^L\, d^{(L-1)/2}`.

    Parameters
    ----------
    n
        Number of members, >= 1.
    depth
        Number of factors ``L >= 1``.
    std
        Standard deviation of each entry, > 0.
    generator
        Source of randomness, on the CPU.
    dim
        Dimension ``d`` of the square factors, >= 1.
    determinant_sign
        ``1`` or ``-1`` for products with that sign of the determinant; ``None`` for all. Where the sign is the
        other one, the first row of the first factor is flipped, which leaves the entries' distribution given the
        sign.

    Returns
    -------
    list of Tensor
        ``L`` tensors of shape ``(n, dim, dim)``, float64.

    Raises
    ------
    ValueError
        An argument is out of range.

    Examples
    --------
    >>> [tuple(a.shape) for a in gaussian_factors(5, 3, 0.1, torch.Generator().manual_seed(0))]
    [(5, 2, 2), (5, 2, 2), (5, 2, 2)]
    """
    checks.integer(n, "n", 1)
    checks.integer(depth, "depth", 1)
    checks.positive(std, "std")
    checks.integer(dim, "dim", 1)
    checks.random(generator, "generator")
    _sign(determinant_sign)
    factors = [torch.randn(n, dim, dim, generator=generator, dtype=torch.float64) for _ in range(depth)]
    if determinant_sign is not None:
        signs = torch.stack([torch.linalg.det(a).sign() for a in factors]).prod(0)
        factors[0][:, 0] *= (determinant_sign * signs)[:, None]
    return [std * a for a in factors]


def _sign(determinant_sign: int | None) -> None:
    if isinstance(determinant_sign, Tensor) or determinant_sign not in (1, -1, None):
        raise ValueError(f"determinant_sign: must be 1, -1 or None, got {determinant_sign!r}")


def gaussian_matrices(
    n: int,
    std: float,
    generator: torch.Generator,
    *,
    shape: tuple[int, int] = (2, 2),
    determinant_sign: int | None = None,
) -> Tensor:
    r"""Return matrices with independent :math:`\mathcal N(0, \text{std}^2)` entries.

    Parameters
    ----------
    n
        Number of matrices, >= 1.
    std
        Standard deviation of each entry, > 0.
    generator
        Source of randomness, on the CPU.
    shape
        Dimensions ``(d, d')`` of each, >= 1.
    determinant_sign
        ``1`` or ``-1`` to keep only draws with that sign of the determinant (rejection); ``None`` for all. Square
        matrices only.

    Returns
    -------
    Tensor
        Shape ``(n, d, d')``, float64.

    Raises
    ------
    ValueError
        An argument is out of range.

    Examples
    --------
    >>> w = gaussian_matrices(100, 1e-3, torch.Generator().manual_seed(0), determinant_sign=-1)
    >>> bool((torch.linalg.det(w) < 0).all())
    True
    """
    checks.integer(n, "n", 1)
    checks.positive(std, "std")
    rows, columns = checks.dimensions(shape, "shape", 2)
    checks.random(generator, "generator")
    _sign(determinant_sign)
    if determinant_sign is not None and rows != columns:
        raise ValueError(f"determinant_sign: must be None for matrices that are not square, got {determinant_sign!r}")
    kept = torch.empty(0, rows, columns, dtype=torch.float64)
    while len(kept) < n:
        drawn = torch.randn(n - len(kept), rows, columns, generator=generator, dtype=torch.float64)
        if determinant_sign is not None:
            drawn = drawn[torch.linalg.det(drawn).sign() == determinant_sign]
        kept = torch.cat([kept, drawn])
    return std * kept


class DeepLinear(nn.Module):
    r"""Deep matrix factorization as a module, for optimisers of `torch.optim`.

    Parameters
    ----------
    factors
        Initial factors, as for `product`; copied.

    Examples
    --------
    >>> net = DeepLinear(identity_factors(0.25, 2))
    >>> net().tolist()
    [[0.25, 0.0], [0.0, 0.25]]
    """

    def __init__(self, factors: Sequence[Tensor]):
        super().__init__()
        product(factors)  # refuses what does not multiply
        self.factors = nn.ParameterList([nn.Parameter(factor.detach().clone()) for factor in factors])

    def forward(self) -> Tensor:
        """Return the end-to-end matrix, shape ``(..., d_0, d_L)``."""
        return product(list(self.factors))
