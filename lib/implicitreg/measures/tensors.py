"""Measures of a tensor: how far from another, and how many rank-one terms it takes."""

import math
import warnings
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import khatri_rao

# From sweep WARM_UP on, a start is given up unless it would meet the tolerance if it went on HOPE times as fast.
WARM_UP, HOPE = 30, 4
# Weight of the Tikhonov term, relative to the mean diagonal: keeps the normal equations solvable.
RIDGE = 1e-12


def reconstruction_error(w: Tensor, target: Tensor, *, order: int | None = None) -> Tensor:
    r"""Return :math:`\|\mathcal W - \mathcal W^\star\|_F / \|\mathcal W^\star\|_F`.

    Parameters
    ----------
    w
        Tensors, shape ``(..., d_1, ..., d_N)``, float32 or float64.
    target
        :math:`\mathcal W^\star`, not zero, float32 or float64, of a shape that broadcasts with that of ``w``.
    order
        Number ``N >= 2`` of modes; ``None``: all dimensions of ``target`` are modes.

    Returns
    -------
    Tensor
        Shape ``(...)``; float64, unless both are float32.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or shapes do not meet.

    Notes
    -----
    Cost: some passes over the entries. Source: elementary; the measure of Razin & Cohen 2020, Implicit Regularization
    in Deep Learning May Not Be Explainable by Norms.

    Examples
    --------
    >>> target = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> reconstruction_error(torch.zeros(5, 2, 2), target).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    checks.floating(w, "w")
    modes = _modes(target, order, "target")
    if w.shape[-len(modes) :] != target.shape[-len(modes) :]:
        raise ValueError(f"w: must have the last {len(modes)} dimensions of target, {tuple(target.shape)}")
    norm = torch.linalg.vector_norm(target, dim=modes)
    if not (norm > 0).all():
        raise ValueError("target: must not be zero")
    try:
        error: Tensor = torch.linalg.vector_norm(w - target, dim=modes) / norm
    except RuntimeError:
        raise ValueError(f"w: shape {tuple(w.shape)} does not broadcast with {tuple(target.shape)}") from None
    return error


def _modes(tensor: Tensor, order: int | None, name: str) -> tuple[int, ...]:
    """Return the dimensions that are modes, counted from the end, of a finite tensor that has them."""
    order = checks.modes(tensor, order, name)
    checks.finite(tensor, name)
    return tuple(range(-order, 0))


@dataclass(frozen=True, eq=False)
class CPRank:
    """Estimated CP ranks, and what is needed to trust them.

    Attributes
    ----------
    rank
        Smallest rank at which the search met the tolerance, shape ``(...)``, int64: an upper bound of the smallest
        rank there is. Where none was found, ``max_rank + 1``, or ``lower`` if that is larger.
    lower
        No tensor of a rank below this one is within the tolerance, shape ``(...)``, int64: proved by the singular
        values of the unfoldings, up to rounding. Where it equals ``rank`` and that was found, the estimate is exact.
    mse
        Mean squared error met at ``rank``, shape ``(...)``, float64; where none was found, the least one seen at
        ``max_rank``, or infinity where ``lower`` rules that rank out.
    found
        Whether a rank was found, shape ``(...)``.
    monotone
        Whether fresh starts succeed at ``rank + 1`` too, as they should: a tensor of rank ``r`` is also a sum of
        ``r + 1`` terms. Where not, the starts are too few or the sweeps too short, and ``rank`` may be too large.
        Shape ``(...)``; true where nothing was left to test.
    """

    rank: Tensor
    lower: Tensor
    mse: Tensor
    found: Tensor
    monotone: Tensor


def _lower_bound(tensor: Tensor, tol: Tensor) -> Tensor:
    """Return the smallest rank that every unfolding of the tensors ``(n, d_1, ..., d_N)`` allows, shape ``(n,)``.

    A tensor of CP rank r has unfoldings of rank at most r, so by Eckart and Young the squared singular values that
    remain after the r largest bound the squared error of any such tensor from below.
    """
    dims = tensor.shape[1:]
    n, modes = len(tensor), range(1, tensor.ndim)
    lower = (tensor.flatten(1) != 0).any(-1).long()
    for size in range(1, len(dims) // 2 + 1):
        for left in combinations(modes, size):
            right = [mode for mode in modes if mode not in left]
            unfolded = tensor.permute(0, *left, *right).reshape(n, math.prod(tensor.shape[m] for m in left), -1)
            sigma = torch.linalg.svdvals(unfolded)
            rest = sigma.square().flip(-1).cumsum(-1).flip(-1)  # after r = 0, 1, ... of them
            # What rounding may have put there proves nothing.
            noise = sigma.shape[-1] * (max(unfolded.shape[1:]) * torch.finfo(sigma.dtype).eps * sigma[:, :1]).square()
            lower = torch.maximum(lower, (rest >= tol[:, None] * math.prod(dims) + noise).sum(-1))
    return lower


def _least_squares(tensor: Tensor, start: list[Tensor], sweeps: int, tol: Tensor) -> Tensor:
    """Return each tensor's least mean squared error over the starts of alternating least squares, shape ``(n,)``.

    Shapes: ``tensor`` (n, d_1, ..., d_N), ``start`` (s, d, r) for each mode, ``tol`` (n,). A tensor leaves when it
    meets its tolerance.
    """
    n, order, starts = len(tensor), tensor.ndim - 1, len(start[0])
    size = tensor[0].numel()
    unfolded = [tensor.movedim(k + 1, 1).flatten(2) for k in range(order)]
    square = tensor.flatten(1).square().sum(-1)
    best = tensor.new_full((n,), math.inf)
    # One member is one tensor from one start; members leave together with their tensor, or when hope is gone.
    whose = torch.arange(n, device=tensor.device).repeat_interleave(starts)
    factors = [f.repeat(n, 1, 1) for f in start]
    before = tensor.new_full((len(whose),), math.inf)
    diagonal = RIDGE * torch.eye(start[0].shape[-1], dtype=tensor.dtype, device=tensor.device)
    for sweep in range(1, sweeps + 1):
        grams = [f.mT @ f for f in factors]
        for k in range(order):
            others = [j for j in range(order) if j != k]
            gram = torch.stack([grams[j] for j in others]).prod(0)
            projected = unfolded[k][whose] @ khatri_rao([factors[j] for j in others])
            scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
            factors[k] = torch.linalg.solve_ex(gram + scale * diagonal, projected.mT)[0].mT
            if k < order - 1:
                factors[k] = factors[k] / torch.linalg.vector_norm(factors[k], dim=-2, keepdim=True).clamp(min=1e-300)
            grams[k] = factors[k].mT @ factors[k]
        fit = (projected * factors[-1]).sum((-2, -1))
        error = (square[whose] - 2 * fit + torch.stack(grams).prod(0).sum((-2, -1))).clamp(min=0) / size
        error = torch.where(error.isfinite(), error, math.inf)
        best.scatter_reduce_(0, whose, error, "amin")
        keep = (best >= tol)[whose] & error.isfinite()
        if sweep >= WARM_UP:
            keep &= error.log() + HOPE * (sweeps - sweep) * (error / before).log() < tol.log()[whose]
        if not keep.any():
            break
        before = error
        if not keep.all():
            whose, before, factors = whose[keep], before[keep], [f[keep] for f in factors]
    return best


def cp_rank(
    tensor: Tensor,
    tol: float = 1e-6,
    *,
    order: int | None = None,
    max_rank: int = 30,
    starts: int = 3,
    sweeps: int = 300,
    seed: int = 0,
) -> CPRank:
    r"""Estimate the CP rank: the least ``r`` for which a sum of ``r`` rank-one tensors is within a tolerance.

    Alternating least squares (CP-ALS) from several random starts, for ``r`` from the bound that the unfoldings give
    upwards, until the mean squared error is below ``tol``. Computing the CP rank is NP-hard: the search gives an
    upper bound, the unfoldings a lower one, and where they meet the estimate is exact.

    Parameters
    ----------
    tensor
        Shape ``(..., d_1, ..., d_N)``, float32 or float64; computed in float64.
    tol
        Mean squared error over all entries, > 0. For a tensor of Frobenius norm 1 with ``D`` entries the relative
        error is :math:`\sqrt{D\,\text{tol}}`: 2.3 % at 8×8×8 for 1e-6.
    order
        Number ``N >= 2`` of modes; ``None``: all dimensions are modes.
    max_rank
        Largest rank tried, >= 1.
    starts
        Random starts at each rank, >= 1; the same for each tensor.
    sweeps
        Updates of all modes from each start, >= 1.
    seed
        Seed of the starts, >= 0.

    Returns
    -------
    CPRank
        A zero tensor has rank 0, any other at least 1.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range.

    Warns
    -----
    RuntimeWarning
        No rank up to ``max_rank`` was found, or the search was not monotone: see `CPRank`.

    Notes
    -----
    Cost: a sweep over one tensor from one start is :math:`O(N r \prod_n d_n)`; all tensors and starts are one
    program. At order 2 the unfolding decides: the estimate is the rank. Sources: Razin & Cohen 2020, Implicit
    Regularization in Deep Learning May Not Be Explainable by Norms, whose code searches by bisection, from one start;
    Kolda & Bader 2009, Tensor Decompositions and Applications, for CP-ALS.

    Examples
    --------
    >>> e1, e2 = torch.eye(2, dtype=torch.float64)
    >>> identity = torch.stack([torch.outer(e1, e1), torch.outer(e2, e2)])  # e1⊗e1⊗e1 + e2⊗e2⊗e2
    >>> cp_rank(torch.stack([identity, identity[:1].expand(2, 2, 2)]), order=3).rank.tolist()
    [2, 1]
    """
    modes = _modes(tensor, order, "tensor")
    checks.positive(tol, "tol")
    checks.integer(max_rank, "max_rank", 1)
    checks.integer(starts, "starts", 1)
    checks.integer(sweeps, "sweeps", 1)
    checks.integer(seed, "seed", 0)
    batch, dims = tensor.shape[: -len(modes)], tensor.shape[-len(modes) :]
    flat = tensor.detach().double().reshape(-1, *dims)

    def search(who: Tensor, r: int) -> Tensor:
        """Return the mean squared errors met at rank ``r`` by some of the tensors."""
        generator = torch.Generator().manual_seed(seed + r)
        start = [torch.randn(starts, d, r, generator=generator, dtype=torch.float64).to(flat.device) for d in dims]
        return _least_squares(flat[who], start, sweeps, tols[who])

    # Neither tiny nor huge entries may leave the range of floating point when they are squared.
    scale = flat.flatten(1).abs().amax(-1).clamp(min=torch.finfo(flat.dtype).tiny)
    flat, tols = flat / scale.view(-1, *[1] * len(dims)), tol / scale / scale
    lower = _lower_bound(flat, tols)
    rank = torch.where(lower == 0, 0, lower.clamp(min=max_rank + 1))
    mse = torch.where(lower == 0, 0.0, math.inf).to(flat)
    found, monotone = lower == 0, torch.ones_like(lower, dtype=torch.bool)
    for r in range(1, max_rank + 1):
        again = (found & (rank == r - 1) & (lower > 0)).nonzero()[:, 0]
        open_ = (~found & (lower <= r)).nonzero()[:, 0]
        who = torch.cat([again, open_])
        if len(who):
            met = search(who, r)
            monotone[again] = met[: len(again)] < tols[again]
            mse[open_] = met[len(again) :] * scale[open_] * scale[open_]
            found[open_] = met[len(again) :] < tols[open_]
            rank[open_] = torch.where(found[open_], r, rank[open_])
    result = CPRank(*(x.reshape(batch) for x in (rank, lower, mse, found, monotone)))
    if not (found & monotone).all():
        warnings.warn(
            f"{int((~found).sum())} of {len(flat)} tensors have no rank up to {max_rank} within {tol:g}, and the "
            f"search was not monotone for {int((~monotone).sum())}",
            RuntimeWarning,
            stacklevel=2,
        )
    return result
