"""CP tensor factorizations trained by GroupRMSprop: an ensemble in one tensor program."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.data import TensorCompletion
from implicitreg.nets import cp_factors


@dataclass(frozen=True, eq=False)
class Training:
    """Trained factorizations, each as it was when its training stopped.

    Attributes
    ----------
    factors
        Factor matrices, that of mode ``n`` of shape ``(..., d_n, R)``.
    loss
        Mean squared error over the observed entries, shape ``(...)``.
    step
        Updates made, shape ``(...)``, int64.
    converged
        Whether the loss was below the tolerance at as many checks in a row as were asked for, shape ``(...)``.
    """

    factors: list[Tensor]
    loss: Tensor
    step: Tensor
    converged: Tensor


class _Block:
    """The Khatri-Rao product of neighbouring modes, and how a gradient passes back through it."""

    def __init__(self, factors: Sequence[Tensor], slopes: Sequence[Tensor]):
        self.factors, self.slopes = factors, slopes
        self.products = [factors[0]]
        for factor in factors[1:]:
            n, rows, r = self.products[-1].shape
            self.products.append(factor.new_empty(n, rows * factor.shape[1], r))
        self.scratch = torch.empty_like(self.products[-1])
        # The gradient of a single mode is written where it belongs.
        self.gradient = slopes[0] if len(factors) == 1 else torch.empty_like(self.products[-1])

    def forward(self) -> Tensor:
        for left, factor, out in zip(self.products, self.factors[1:], self.products[1:], strict=False):
            by_entry = out.view(len(out), left.shape[1], factor.shape[1], -1)
            torch.mul(left[:, :, None], factor[:, None], out=by_entry)
        return self.products[-1]

    def backward(self) -> None:
        """Turn the gradient of the product into those of the factors, the last mode first."""
        gradient = self.gradient
        for k in range(len(self.factors) - 1, 0, -1):
            factor, before = self.factors[k], self.products[k - 1]
            by_entry = gradient.view(len(gradient), before.shape[1], factor.shape[1], -1)
            scratch = self.scratch[:, : gradient.shape[1]].view(by_entry.shape)
            torch.sum(torch.mul(by_entry, before[:, :, None], out=scratch), 1, out=self.slopes[k])
            torch.mul(by_entry, factor[:, None], out=scratch)
            gradient = self.slopes[0] if k == 1 else torch.empty_like(before)
            torch.sum(scratch, 2, out=gradient)


class _Program:
    """Loss and gradient of all members; the factors of all modes lie in one tensor ``(n, d_1 + ... + d_N, R)``.

    The modes are unfolded into two blocks of near equal size, the rows and columns of a matrix: the tensor is one
    matrix product ``W = A B^T`` of their Khatri-Rao products, and the gradients of ``A`` and ``B`` are two more.
    """

    def __init__(self, parameters: Tensor, dims: Sequence[int], target: Tensor, weight: Tensor):
        self.parameters, self.gradients = parameters, torch.empty_like(parameters)
        half = len(dims) // 2
        factors, slopes = (torch.split(x, list(dims), 1) for x in (self.parameters, self.gradients))
        self.rows = _Block(factors[:half], slopes[:half])
        self.columns = _Block(factors[half:], slopes[half:])
        shape = len(parameters), math.prod(dims[:half]), math.prod(dims[half:])
        self.target, self.weight = target.reshape(shape), weight.reshape(shape)
        self.error, self.residual = torch.empty_like(self.target), torch.empty_like(self.target)

    def forward(self) -> None:
        torch.bmm(self.rows.forward(), self.columns.forward().mT, out=self.error)
        torch.mul(self.error.sub_(self.target), self.weight, out=self.residual)

    def loss(self) -> Tensor:
        """Return the loss of every member at the last `forward`, shape ``(n,)``."""
        return (self.error * self.residual).sum((1, 2))

    def backward(self) -> Tensor:
        """Return half the gradient at the last `forward`, shape ``(n, d_1 + ... + d_N, R)``."""
        torch.bmm(self.residual, self.columns.products[-1], out=self.rows.gradient)
        torch.bmm(self.residual.mT, self.rows.products[-1], out=self.columns.gradient)
        self.rows.backward()
        self.columns.backward()
        return self.gradients


def group_rmsprop(
    factors: Sequence[Tensor],
    problem: TensorCompletion,
    lr: float = 0.01,
    *,
    beta: float = 0.99,
    eps: float = 1e-6,
    tol: float = 1e-6,
    patience: int = 3,
    check_every: int = 100,
    max_steps: int = 20_000,
) -> Training:
    r"""Train CP factorizations by GroupRMSprop: gradient descent whose step size is set by the gradient's norm.

    All parameters :math:`\theta` of a member move along the plain gradient :math:`g_t`, with one step size:

    .. math::

        v_t = \beta v_{t-1} + (1 - \beta) \|g_t\|^2, \qquad
        \theta_{t+1} = \theta_t - \frac{\eta}{\sqrt{v_t / (1 - \beta^t)} + \epsilon}\, g_t .

    For small :math:`\eta` the trajectory is that of gradient descent and only the clock differs, which crosses the
    plateaus of small initialisation in reasonable time. Where :math:`\|g\| \ll \epsilon`, as at order 4 from scale
    1e-3, the step size is :math:`\eta / \epsilon` and the plateau is long again.

    Parameters
    ----------
    factors
        ``N >= 2`` initial factor matrices, that of mode ``n`` of shape ``(..., d_n, R)``, float32 or float64; not
        changed.
    problem
        What is observed, of dimensions ``(d_1, ..., d_N)``; its batch dimensions broadcast to those of ``factors``.
    lr
        :math:`\eta > 0`.
    beta
        Decay of the running mean, in [0, 1).
    eps
        :math:`\epsilon > 0`.
    tol
        A member stops when its loss has been below ``tol > 0`` at ``patience`` checks in a row.
    patience
        Checks in a row, >= 1.
    check_every
        Steps between two checks, >= 1.
    max_steps
        Updates after which the members still running are given up.

    Returns
    -------
    Training
        In the dtype and on the device of ``factors``.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or shapes do not meet.

    Warns
    -----
    RuntimeWarning
        A member diverged, or did not converge within ``max_steps``.

    Notes
    -----
    Cost: three matrix products a step, :math:`O(R \prod_n d_n)` a member. On one CPU thread, in float64 and for
    members at 8×8×8, ``R = 64``, about 20 µs a step and member in ensembles of 50, at 8×8×8×8, ``R = 512``, about
    0.4 ms; half of that in float32.

    References
    ----------
    Razin & Cohen (2020), arXiv:2005.06398, the authors' code; the optimiser is that of Arora et al. (2019),
    arXiv:1905.13655.

    Examples
    --------
    >>> from implicitreg.data import low_rank_tensors, nested_observations
    >>> from implicitreg.nets import cp_tensor, gaussian_cp_factors
    >>> generator = torch.Generator().manual_seed(0)
    >>> target = low_rank_tensors(1, (5, 5, 5), 1, generator)
    >>> problem = TensorCompletion(target, nested_observations((5, 5, 5), [80], generator), order=3)
    >>> run = group_rmsprop(gaussian_cp_factors(1, (5, 5, 5), None, 1e-3, generator), problem)
    >>> run.converged.tolist(), bool((cp_tensor(run.factors) - target).norm() < 1e-3)  # the 45 others are met too
    ([True], True)
    """
    factors = [checks.matrices(factor, "factors") for factor in cp_factors(factors)]
    first, dims = factors[0], [factor.shape[-2] for factor in factors]
    if not isinstance(problem, TensorCompletion):
        raise TypeError(f"problem: must be a TensorCompletion, got {type(problem).__name__}")
    batch, count = first.shape[:-2], first.shape[:-2].numel()
    if not count:
        raise ValueError(f"factors: must have at least one member, got the batch shape {tuple(batch)}")
    if tuple(dims) != problem.dims:
        raise ValueError(f"factors: belong to a tensor of dimensions {tuple(dims)}, the problem to {problem.dims}")
    try:
        target, weight = (
            x.to(first).broadcast_to((*batch, *dims)).reshape(count, *dims) for x in (problem.target, problem.weight)
        )
    except RuntimeError:
        raise ValueError(
            f"problem: its batch dimensions {problem.batch} must broadcast to those of factors, {tuple(batch)}"
        ) from None
    checks.positive(lr, "lr")
    if not (isinstance(beta, Real) and 0 <= beta < 1):
        raise ValueError(f"beta: must be a number >= 0 and < 1, got {beta!r}")
    checks.positive(eps, "eps")
    checks.positive(tol, "tol")
    beta = float(beta)
    patience = checks.integer(patience, "patience", 1)
    check_every = checks.integer(check_every, "check_every", 1)
    max_steps = checks.integer(max_steps, "max_steps", 0)

    final = torch.cat([factor.detach() for factor in factors], -2).reshape(count, sum(dims), -1)
    loss = final.new_empty(count)
    step = torch.zeros(count, dtype=torch.int64, device=final.device)
    converged = torch.zeros(count, dtype=torch.bool, device=final.device)

    running = torch.arange(count, device=final.device)
    mean_square, streak = final.new_zeros(count), torch.zeros_like(running)
    program = _Program(final.clone(), dims, target, weight)
    for now in range(max_steps + 1):
        program.forward()
        if now % check_every == 0 or now == max_steps:
            current = program.loss()
            if now % check_every == 0:
                streak = torch.where(current < tol, streak + 1, 0)
            done = streak >= patience
            stop = done | ~current.isfinite() | (now == max_steps)
            if stop.any():
                who, keep = running[stop], ~stop
                final[who], loss[who] = program.parameters[stop], current[stop]
                step[who], converged[who] = now, done[stop]
                running, mean_square, streak = running[keep], mean_square[keep], streak[keep]
                if not len(running):
                    break
                program = _Program(program.parameters[keep], dims, target[running], weight[running])
                program.forward()
        gradient = program.backward()
        mean_square.lerp_(4 * torch.linalg.vector_norm(gradient.flatten(1), dim=1).square(), 1 - beta)
        rate = 2 * lr / ((mean_square / (1 - beta ** (now + 1))).sqrt() + eps)
        program.parameters.addcmul_(gradient, rate[:, None, None], value=-1)
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {count} trainings diverged or did not stay below the loss {tol:g} within "
            f"{max_steps} steps",
            RuntimeWarning,
            stacklevel=2,
        )
    trained = torch.split(final.reshape(*batch, *final.shape[1:]), dims, -2)
    return Training([x.contiguous() for x in trained], *(x.reshape(batch) for x in (loss, step, converged)))
