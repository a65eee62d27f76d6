"""Gradient descent on a deep matrix factorization: an ensemble in one tensor program."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.data import MatrixCompletion
from implicitreg.dynamics.levels import decreasing
from implicitreg.nets import imbalance, product

# Members whose loss is no longer finite are given up at the next multiple of this many steps.
PATROL = 1024


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


class _Product:
    """A batched small matrix product into a fixed place, members last, as a short list of fused operations.

    For small matrices a call costs more than its arithmetic: every view is made once, the batch is contiguous, and
    ``out[i, j] = sum_k left[i, k] * right[k, j]`` takes one operation for each ``k``.
    """

    def __init__(self, left: Tensor, right: Tensor, out: Tensor):
        self.out = out
        self.terms = [(left[:, k, None], right[None, k]) for k in range(left.shape[1])]

    def __call__(self) -> None:
        (left, right), *rest = self.terms
        torch.mul(left, right, out=self.out)
        for left, right in rest:
            self.out.addcmul_(left, right)


class _Program:
    """One gradient step of all members, members in the last dimension, without an allocation.

    With prefix products ``P_l = A_0 ... A_{l-1}`` and ``H_{L-1} = G``, ``H_{l-1} = H_l A_l^T``, the gradient of
    factor ``l`` is ``P_l^T H_l``.
    """

    def __init__(self, factors: Sequence[Tensor], problem: MatrixCompletion, lr: Tensor):
        n = factors[0].shape[0]
        sizes = [a.shape[1] * a.shape[2] for a in factors]
        new = factors[0].new_empty
        # All factors in one tensor, and all gradients, so that the update is one operation.
        self.parameters, self.gradients = new(sum(sizes), n), new(sum(sizes), n)
        shapes = [a.shape[1:] for a in factors]
        self.factors = [p.view(*s, n) for p, s in zip(torch.split(self.parameters, sizes), shapes, strict=True)]
        slopes = [g.view(*s, n) for g, s in zip(torch.split(self.gradients, sizes), shapes, strict=True)]
        for mine, given in zip(self.factors, factors, strict=True):
            mine.copy_(given.movedim(0, -1))
        self.lr = lr.to(self.parameters)
        self.target, self.mask = (x.to(self.parameters)[..., None] for x in (problem.target, problem.observed))
        rows, depth = shapes[0][0], len(factors)

        prefixes = [self.factors[0]]
        self.forward = []
        for a in self.factors[1:]:
            prefixes.append(new(rows, a.shape[1], n))
            self.forward.append(_Product(prefixes[-2], a, prefixes[-1]))
        self.w = prefixes[-1]
        # H_0 is itself the gradient of the first factor: it is written where that belongs.
        self.residual = slopes[0] if depth == 1 else new(self.w.shape)
        self.backward = []
        h = self.residual
        for k in range(depth - 1, 0, -1):
            self.backward.append(_Product(prefixes[k - 1].transpose(0, 1), h, slopes[k]))
            before = slopes[0] if k == 1 else new(rows, shapes[k][0], n)
            self.backward.append(_Product(h, self.factors[k].transpose(0, 1), before))
            h = before
        self.square, self.loss = new(self.w.shape), new(n)

    def evaluate(self) -> Tensor:
        """Return the loss of every member, shape ``(n,)``; overwritten by the next call."""
        for multiply in self.forward:
            multiply()
        torch.sub(self.w, self.target, out=self.residual).mul_(self.mask)
        torch.mul(self.residual, self.residual, out=self.square)
        return torch.sum(self.square, dim=(0, 1), out=self.loss).mul_(0.5)

    def step(self) -> None:
        """Update every factor from the same forward pass, that of the last `evaluate`."""
        for multiply in self.backward:
            multiply()
        self.parameters.addcmul_(self.gradients, self.lr, value=-1)

    def members(self, which: Tensor) -> list[Tensor]:
        """Return copies of some members' factors, batch first."""
        return [a[..., which].movedim(-1, 0).contiguous() for a in self.factors]


def _determinant(factors: Sequence[Tensor]) -> Tensor:
    if any(a.shape[-1] != a.shape[-2] for a in factors):
        return factors[0].new_full(factors[0].shape[:1], torch.nan)
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
    level, and leaves the batch after the last one.

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
    Cost: ``3 (L - 1)`` batched products a step, :math:`O(L d^3)` a member. Written for ensembles of small matrices:
    at 2×2 and depth 3 a step takes about 40 µs for 100 members and 60 µs for 1,000 on one CPU thread.

    Not to be confused with gradient flow: a finite step does not conserve balancedness, and at depth 2 the
    imbalance outgrows the small singular value, so that the determinant changes sign.

    Examples
    --------
    >>> from implicitreg.data import two_by_two
    >>> from implicitreg.nets import identity_factors
    >>> run = gradient_descent(identity_factors(0.1, 3), two_by_two(), 0.01, losses=[0.1, 0.01])
    >>> run.step.tolist(), [round(x, 3) for x in run.w[:, 0, 0].tolist()]
    ([386, 3135], [1.888, 6.973])
    """
    if isinstance(factors, Tensor) or not factors:
        raise ValueError("factors: must be a sequence of at least one tensor")
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
        lr = torch.tensor(checks.positive(lr, "lr"), dtype=first.dtype)
    if lr.shape not in ((), batch) or not ((lr > 0) & lr.isfinite()).all():
        raise ValueError(f"lr: must be a finite number > 0, or one for each member, shape {tuple(batch)}")
    rates = lr.detach().to(first).broadcast_to(batch).reshape(count)
    checks.integer(max_steps, "max_steps", 0)
    levels = decreasing(losses, problem.loss(product(factors))).to(first)

    total = len(levels)
    blank = first.new_full((count, total), torch.nan)
    loss, determinant, drift = blank, blank.clone(), blank.clone()
    w = first.new_full((count, total, *shape[-2:]), torch.nan)
    step = torch.full((count, total), -1, dtype=torch.int64, device=first.device)

    running = torch.arange(count, device=step.device)
    met = torch.zeros(count, dtype=torch.int64, device=step.device)
    threshold = levels[0].repeat(count)
    program = _Program([a.detach().reshape(count, *a.shape[-2:]) for a in factors], problem, rates)
    for now in range(max_steps + 1):
        current = program.evaluate()
        keep = None
        if bool((current <= threshold).any()):
            hit = (current <= threshold).nonzero()[:, 0]
            mine = program.members(hit)
            facts = [current[hit], product(mine), _determinant(mine), imbalance(mine)]
            while len(hit):
                who, row = running[hit], met[hit]
                step[who, row] = now
                for table, fact in zip((loss, w, determinant, drift), facts, strict=True):
                    table[who, row] = fact
                met[hit] += 1
                threshold[hit] = levels[met[hit].clamp(max=total - 1)]
                again = (met[hit] < total) & (current[hit] <= threshold[hit])
                hit, facts = hit[again], [fact[again] for fact in facts]
            keep = met < total
        if now % PATROL == 0:
            finite = current.isfinite()
            keep = finite if keep is None else keep & finite
        if keep is not None and not keep.all():
            running, met, threshold = running[keep], met[keep], threshold[keep]
            if not len(running):
                break
            program = _Program(program.members(keep), problem, rates[running])
            program.evaluate()
        if now < max_steps:
            program.step()
    converged = step[:, -1] >= 0
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {count} descents diverged or did not meet their last loss level within "
            f"{max_steps} steps",
            RuntimeWarning,
            stacklevel=2,
        )
    return Descent(*(x.reshape((*batch, *x.shape[1:])) for x in (step, loss, w, determinant, drift, converged)))
