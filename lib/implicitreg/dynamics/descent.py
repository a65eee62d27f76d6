"""Gradient descent on a deep matrix factorization of small size: a compiled loop for each member."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from implicitreg import checks
from implicitreg.data import MatrixCompletion
from implicitreg.dynamics.levels import decreasing
from implicitreg.nets import imbalance, product

# The compiled loop comes back after this many steps, a fraction of a second, so that it can be interrupted.
PATIENCE = 1_000_000

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Descent:
    """Gradient-descent trajectories, recorded where the loss first falls to each level.

    Attributes
    ----------
    step
        Updates made until then, shape ``(..., T)``, int64; -1 where a level was not met.
    loss
        Loss found there, at or just below the level, shape ``(..., T)``; NaN where a level was not met, as below.
    w
        End-to-end matrices, shape ``(..., T, d, d')``.
    determinant
        Product of the determinants of the factors, shape ``(..., T)``: its sign is right where that of the
        end-to-end matrix drowns in rounding. NaN where a factor is not square.
    imbalance
        `implicitreg.nets.imbalance` of the factors, shape ``(..., T)``.
    converged
        Whether the last level was met, shape ``(...)``.
    """

    step: Tensor
    loss: Tensor
    w: Tensor
    determinant: Tensor
    imbalance: Tensor
    converged: Tensor


def _loop(dims: tuple[int, ...]) -> Callable[..., tuple[int, int]]:
    """Return the loop over the steps of one member whose factors have these dimensions.

    With prefix products ``P_l = A_0 ... A_{l-1}`` and ``H_{L-1} = G``, ``H_{l-1} = H_l A_l^T``, the gradient of
    factor ``l`` is ``P_l^T H_l``. Factor ``l`` lies in ``p[start[l]:start[l + 1]]``. Written as loops because it is
    compiled: for 2×2 matrices a call of any array library costs ten times the arithmetic. The dimensions are
    constants of the loop, so that the compiler unrolls it: that is another factor of two or three.
    """
    shape, depth, rows, columns, widest = np.array(dims), len(dims) - 1, dims[0], dims[-1], max(dims)
    start = np.cumsum([0, *(m * n for m, n in pairwise(dims))])

    def descend(
        p: Array,
        target: Array,
        mask: Array,
        lr: Array,
        levels: Array,
        row: int,
        now: int,
        last: int,
        steps: Array,
        losses: Array,
        kept: Array,
    ) -> tuple[int, int]:
        """Take steps ``now`` to ``last`` in place; return the next level's row and the next step."""
        g = np.zeros_like(p)
        prefix = np.zeros((depth, rows, widest), p.dtype)
        h, spare = np.zeros((rows, widest), p.dtype), np.zeros((rows, widest), p.dtype)
        zero = np.zeros(1, p.dtype)[0]
        while True:
            for i in range(rows):
                for j in range(shape[1]):
                    prefix[0, i, j] = p[i * shape[1] + j]
            for layer in range(1, depth):
                n = shape[layer + 1]
                for i in range(rows):
                    for j in range(n):
                        prefix[layer, i, j] = zero
                    for k in range(shape[layer]):
                        x = prefix[layer - 1, i, k]
                        for j in range(n):
                            prefix[layer, i, j] += x * p[start[layer] + k * n + j]
            loss = zero
            for i in range(rows):
                for j in range(columns):
                    h[i, j] = (prefix[depth - 1, i, j] - target[i, j]) * mask[i, j]
                    loss += h[i, j] * h[i, j]
            loss /= 2
            while loss <= levels[row]:
                steps[row], losses[row] = now, loss
                for q in range(len(p)):
                    kept[row, q] = p[q]
                row += 1
                if row == len(levels):
                    return row, now
            if now == last or not np.isfinite(loss):
                return row, now
            for layer in range(depth - 1, 0, -1):
                n, m = shape[layer + 1], shape[layer]
                for q in range(start[layer], start[layer + 1]):
                    g[q] = zero
                for k in range(m):
                    for i in range(rows):
                        x = prefix[layer - 1, i, k]
                        for j in range(n):
                            g[start[layer] + k * n + j] += x * h[i, j]
                for i in range(rows):
                    for k in range(m):
                        total = zero
                        for j in range(n):
                            total += h[i, j] * p[start[layer] + k * n + j]
                        spare[i, k] = total
                h, spare = spare, h
            for i in range(rows):
                for j in range(shape[1]):
                    g[i * shape[1] + j] = h[i, j]
            for q in range(len(p)):
                p[q] -= lr * g[q]
            now += 1

    return descend


@cache
def _compiled(dims: tuple[int, ...]) -> Any:
    import numba  # here, because only descents need it

    try:
        return numba.njit(cache=True)(_loop(dims))
    except RuntimeError:  # no folder in which the compiled code could be kept
        return numba.njit(_loop(dims))


def _determinant(factors: Sequence[Tensor]) -> Tensor:
    if any(a.shape[-1] != a.shape[-2] for a in factors):
        return factors[0].new_full(factors[0].shape[:-2], torch.nan)
    return torch.stack([torch.linalg.det(a) for a in factors]).prod(0)


def gradient_descent(
    factors: Sequence[Tensor],
    problem: MatrixCompletion,
    lr: float | Tensor,
    *,
    losses: Tensor | list[float],
    max_steps: int = 10_000_000,
) -> Descent:
    r"""Run constant-step gradient descent on the factors of :math:`W = A_0 A_1 \cdots A_{L-1}`.

    All factors move at once: :math:`A_l \leftarrow A_l - \eta\, (A_0 \cdots A_{l-1})^\top\, \nabla\ell(W)\,
    (A_{l+1} \cdots A_{L-1})^\top`. A member is recorded, before its update, where its loss first falls to each
    level, and stops after the last one.

    Parameters
    ----------
    factors
        ``L >= 1`` tensors, factor ``l`` of shape ``(..., d_l, d_{l+1})``, float32 or float64; not changed.
    problem
        What is observed, of shape ``(d_0, d_L)``.
    lr
        Step size :math:`\eta > 0`, a number or one for each member, shape ``(...)``.
    losses
        Levels at which to record, shape ``(T,)``, strictly decreasing, none above a member's loss at the start.
    max_steps
        Updates after which the members still running are given up.

    Returns
    -------
    Descent
        In the dtype and on the device of ``factors``.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or shapes do not meet.

    Warns
    -----
    RuntimeWarning
        A member diverged, or did not meet its last level within ``max_steps``.

    Notes
    -----
    Cost: :math:`O(L d^3)` a step and member, on the CPU whatever the device of ``factors``, one member after the
    other: at 2×2 about 0.03, 0.05 and 0.06 µs a step at depths 2, 3 and 4, at 5×5 and depth 3 about 0.3 µs. The
    loop is compiled at the first call ever for each shape and dtype, which takes a second. It makes no use of BLAS:
    for matrices of dimension 50 and more, `DeepLinear` with an optimiser of `torch.optim` is the better tool.

    A member takes the same steps, to the last bit, alone and in an ensemble.

    Not to be confused with gradient flow: a finite step does not conserve balancedness, and at depth 2 the
    imbalance outgrows the small singular value, so that the determinant changes sign.

    References
    ----------
    Razin & Cohen (2020), arXiv:2005.06398, for the experiments; Arora et al. (2018), arXiv:1802.06509, for balance.

    Examples
    --------
    >>> from implicitreg.data import two_by_two
    >>> from implicitreg.nets import identity_factors
    >>> run = gradient_descent(identity_factors(0.1, 3), two_by_two(), 0.01, losses=[0.1, 0.01])
    >>> run.step.tolist(), [round(x, 3) for x in run.w[:, 0, 0].tolist()]
    ([386, 3135], [1.888, 6.973])
    """
    if not isinstance(factors, list | tuple) or not factors:
        raise ValueError("factors: must be a sequence of at least one tensor")
    if not isinstance(problem, MatrixCompletion):
        raise TypeError(f"problem: must be a MatrixCompletion, got {type(problem).__name__}")
    first = checks.matrices(factors[0], "factors")
    for a in factors[1:]:
        checks.matrices(a, "factors")
        if (a.shape[:-2], a.dtype, a.device) != (first.shape[:-2], first.dtype, first.device):
            raise ValueError("factors: must share their batch shape, dtype and device")
    shape = product(factors).shape
    if shape[-2:] != problem.target.shape:
        raise ValueError(f"factors: their product has shape {tuple(shape)}, the problem {tuple(problem.target.shape)}")
    batch, count = shape[:-2], shape[:-2].numel()
    if not count:
        raise ValueError(f"factors: must have at least one member, got the batch shape {tuple(batch)}")
    if not isinstance(lr, Tensor):
        lr = torch.tensor(checks.positive(lr, "lr"), dtype=torch.float64)
    # Judged as they will be used: a number may vanish in float32.
    rates = lr.detach().cpu().real.to(first.dtype)
    if lr.is_complex() or rates.shape not in ((), batch) or not ((rates > 0) & rates.isfinite()).all():
        raise ValueError(f"lr: must be a finite number > 0, or one for each member, shape {tuple(batch)}")
    rates = rates.broadcast_to(batch).reshape(count)
    max_steps = checks.integer(max_steps, "max_steps", 0)
    levels = decreasing(losses, problem.loss(product(factors))).to(first.dtype)
    if not (levels > 0).all() or not (levels.diff() < 0).all():
        raise ValueError(f"losses: must differ in the dtype of factors, {str(first.dtype).removeprefix('torch.')}")

    flat = torch.cat([a.detach().reshape(count, -1) for a in factors], -1).cpu().contiguous()
    sizes = [a.shape[-2] * a.shape[-1] for a in factors]
    descend = _compiled((first.shape[-2], *(a.shape[-1] for a in factors)))
    constants = [x.to(flat).numpy() for x in (problem.target, problem.observed)]
    step = torch.full((count, len(levels)), -1)
    loss = flat.new_full((count, len(levels)), torch.nan)
    kept = flat.new_full((count, len(levels), flat.shape[-1]), torch.nan)
    for member, rate in enumerate(rates.numpy()):
        p, row, now = flat[member].numpy().copy(), 0, 0
        tables = [table[member].numpy() for table in (step, loss, kept)]
        while True:
            last = min(now + PATIENCE, max_steps)
            row, now = descend(p, *constants, rate, levels.numpy(), row, now, last, *tables)
            if row == len(levels) or now < last or now == max_steps:
                break
    found = [
        x.reshape(*x.shape[:-1], *a.shape[-2:]) for x, a in zip(torch.split(kept, sizes, -1), factors, strict=True)
    ]
    converged = step[:, -1] >= 0
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {count} descents diverged or did not meet their last loss level within "
            f"{max_steps} steps",
            RuntimeWarning,
            stacklevel=2,
        )
    facts = step, loss, product(found), _determinant(found), imbalance(found), converged
    return Descent(*(x.reshape((*batch, *x.shape[1:])).to(first.device) for x in facts))
