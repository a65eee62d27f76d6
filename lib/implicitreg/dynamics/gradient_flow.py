"""Gradient flow of any loss, from many starts at once."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy  # its submodules load when first used: importing a measure takes half a second less
import torch
from numpy.typing import NDArray
from torch import Tensor

from implicitreg import checks

Loss = Callable[[Tensor], Tensor]

METHODS = ("LSODA", "BDF", "Radau", "DOP853", "RK45", "RK23")
"""Scipy's solvers of initial value problems by name; the first three are for stiff problems."""

ZERO_LOSS = 1e-20
"""A loss up to this counts as zero where no other level is asked for."""

LONGEST = 1e12
"""Where no time is asked for, a flow that has not reached its level is given up then."""

LOCKED = 50
"""After so many equal steps LSODA is started afresh, where they are much shorter than a cautious first step."""

STALLED = 500
"""Where no time is asked for, a flow is given up after so many steps in which no loss above its level has fallen."""


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Solutions of gradient flow; called with times it returns the parameters there.

    Attributes
    ----------
    t
        The solver's times, shape ``(T,)``, float64: the first is 0.
    theta
        Parameters at these times, shape ``(T, ..., M)``.
    loss
        Losses at these times, shape ``(T, ...)``.
    end
        Parameters at the last time, shape ``(..., M)``.
    gradient_norm
        Euclidean norm of the gradient at the end, shape ``(...)``.
    converged
        Whether the loss at the end is zero up to the level asked for, shape ``(...)``.
    n_evaluations
        The solver's evaluations of the gradient, each for all members.
    """

    t: Tensor
    theta: Tensor
    loss: Tensor
    end: Tensor
    gradient_norm: Tensor
    converged: Tensor
    n_evaluations: int
    _dense: "scipy.integrate.OdeSolution | None" = field(repr=False)

    def __call__(self, t: float | Tensor) -> Tensor:
        """Return the parameters at times ``t``, shape ``(*t.shape, ..., M)``, by the solver's own interpolation.

        Raises
        ------
        ValueError
            A time before 0 or after the last one.
        """
        times = torch.as_tensor(t, dtype=torch.float64)
        if not ((times >= 0) & (times <= self.t[-1])).all():
            raise ValueError(f"t: must lie between 0 and {self.t[-1]:.6g}, where the flow ends")
        if self._dense is None or not times.numel():
            return self.end.expand(*times.shape, *self.end.shape)
        states = torch.from_numpy(self._dense(times.flatten().cpu().numpy()).T.copy())
        return states.reshape(*times.shape, *self.end.shape).to(self.end)


def gradient_flow(
    loss: Loss,
    theta0: Tensor,
    *,
    t_end: float | None = None,
    until: float | Tensor | None = None,
    rtol: float = 1e-12,
    atol: float = 1e-14,
    method: str = "LSODA",
    max_step: float = math.inf,
) -> GradientFlow:
    r"""Integrate gradient flow, :math:`\dot\theta = -\nabla L(\theta)`, :math:`\theta(0) = \theta_0`.

    Members of a batch do not interact, but share the solver's steps: they are one system of differential equations,
    whose Jacobian has blocks of size M.

    Parameters
    ----------
    loss
        Maps parameters of shape ``(..., M)``, always float64, to losses ``(...)``, each a function of its own row
        only; or a flat vector ``(M,)`` to a number, which is then mapped over the batch.
    theta0
        Starts, shape ``(..., M)``, float32 or float64.
    t_end
        Time at which to stop.
    until
        Loss to reach, one for all members or one for each, shape ``(...)``: the flow stops after the first step at
        whose end no member is above it. At least one of the two must be given; with both, the flow stops at what comes
        first.
    rtol, atol
        Relative and absolute tolerance of a step.
    method
        One of `METHODS`. LSODA chooses between methods for stiff and for other problems.
    max_step
        Longest step in time: a bound for losses with kinks, where a long step might not notice one.

    Returns
    -------
    GradientFlow
        Computed in float64, returned in the dtype and on the device of ``theta0``. Cost: a gradient of all members for
        each evaluation, a few hundred to a few thousand in all.

    Warns
    -----
    RuntimeWarning
        A member's loss at the end is not zero, that is above ``until``, or above `ZERO_LOSS` where that is not given;
        or the solver gave up before ``t_end``.

    Raises
    ------
    TypeError
        ``theta0`` is no tensor of dtype float32 or float64, or ``loss`` returns no tensor.
    ValueError
        No member or no parameter, a start, loss or gradient that is not finite, a loss of another shape, neither
        ``t_end`` nor ``until``, ``until`` alone with a bounded step or a method that is not for stiff problems (its
        steps would stay short for ever), or a number out of range.

    Notes
    -----
    With ``until`` alone, a flow that does not get there ends at time `LONGEST`, where solvers for stiff problems arrive
    soon when nothing moves any more; or, where rounding errors keep them from long steps, after `STALLED` steps in
    which no loss has fallen.

    Source: LSODA is Petzold's (1983).

    Examples
    --------
    Half the squared norm falls like :math:`e^{-2t}`.

    >>> flow = gradient_flow(lambda theta: theta.square().sum(-1) / 2, torch.tensor([3.0, 4.0]), until=1e-20)
    >>> flow(1.0), bool(flow.converged)
    (tensor([1.1036, 1.4715]), True)
    """
    checks.floating(theta0, "theta0")
    if theta0.ndim < 1 or not theta0.numel():
        raise ValueError(f"theta0: must have shape (..., M) with a member and a parameter, got {tuple(theta0.shape)}")
    checks.finite(theta0, "theta0")
    if method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {method!r}")
    checks.positive(max_step, "max_step", infinite=True)
    stiff = method in ("LSODA", "BDF", "Radau")
    if t_end is None:
        if until is None:
            raise ValueError("t_end, until: at least one of them must be given")
        if not stiff or math.isfinite(max_step):
            raise ValueError(f"t_end: must be given with method {method!r} and max_step {max_step:g}")
    horizon = LONGEST if t_end is None else checks.positive(t_end, "t_end")
    level = _levels(ZERO_LOSS if until is None else until, theta0)
    problem = _Problem(loss, theta0)
    tolerances = {"rtol": checks.positive(rtol, "rtol"), "atol": checks.positive(atol, "atol")}

    def cautious(time: float, state: NDArray[np.float64]) -> float | None:
        """Return a first step; left alone, LSODA tries one of the order of the whole interval."""
        fastest = np.abs(problem.value(state)[1]).max()
        return min(horizon - time, max_step, 1e-3 * (1 + np.abs(state).max()) / fastest) if fastest else None

    def solver_from(time: float, state: NDArray[np.float64]) -> "scipy.integrate.OdeSolver":
        return getattr(scipy.integrate, method)(
            lambda t, state: -problem.value(state)[1],
            time,
            state,
            horizon,
            max_step=max_step,
            first_step=cautious(time, state),
            **tolerances,
            **(problem.structure(method) if stiff else {}),
        )

    loss0 = problem.losses(problem.start)
    solver, same, before = solver_from(0.0, problem.start), 0, 0
    times, states, losses, pieces = [0.0], [problem.start], [loss0], []
    trouble, mark, since = None, loss0, 0
    with warnings.catch_warnings():
        # LSODA tells by a warning what the flow's own warning says, where it matters.
        warnings.simplefilter("ignore")
        while solver.status == "running" and (until is None or (losses[-1] > level).any()):
            solver.step()
            if solver.status == "failed":
                # The solvers' own words, such as "unexpected istate", help nobody.
                trouble = (
                    "no step meets the tolerances (try a larger rtol, unless the loss is unbounded or undefined beyond)"
                )
                break
            value = problem.losses(solver.y)
            # Where a loss falls without bound in finite time, some solvers stay there without a word.
            if solver.t == times[-1] or not np.isfinite(value).all():
                trouble = "its steps vanish" if np.isfinite(value).all() else "the loss is no longer finite"
                break
            times.append(solver.t)
            states.append(solver.y.copy())
            losses.append(value)
            pieces.append(solver.dense_output())
            # Over a kink LSODA's step shrinks to almost nothing, and may stay so: then it starts afresh.
            same = (
                same + 1
                if len(times) > 2 and math.isclose(solver.step_size, times[-2] - times[-3], rel_tol=1e-3)
                else 0
            )
            if same >= LOCKED and solver.status == "running" and method == "LSODA":
                step = cautious(solver.t, solver.y)
                if step and solver.step_size < 1e-3 * step:
                    solver, same, before = solver_from(solver.t, solver.y.copy()), 0, before + solver.nfev
            fallen = (value < mark - 1e-12 * np.abs(mark)) & (value > level)
            mark, since = (value, 0) if fallen.any() else (mark, since + 1)
            # In the rounding errors of a minimum that is not 0, steps may stay short for ever.
            if t_end is None and since == STALLED and (value > level).any():
                trouble = f"no loss has fallen for {STALLED} steps"
                break
    reached = losses[-1] <= level
    if trouble or not reached.all():
        why = f"the solver gave up at time {times[-1]:.4g}: {trouble}" if trouble else f"time {times[-1]:.4g}"
        warnings.warn(
            f"gradient_flow: {(~reached).sum()} of {reached.size} members did not converge to loss {level.min():g}: "
            f"{why}, largest loss {losses[-1].max():.4g}",
            RuntimeWarning,
            stacklevel=2,
        )
    return GradientFlow(
        t=torch.tensor(times, dtype=torch.float64),
        theta=torch.stack([problem.tensor(state) for state in states]),
        loss=torch.stack([problem.members(value) for value in losses]),
        end=problem.tensor(states[-1]),
        gradient_norm=problem.tensor(problem.value(states[-1])[1]).norm(dim=-1),
        converged=torch.from_numpy(reached).reshape(theta0.shape[:-1]).to(theta0.device),
        n_evaluations=before + solver.nfev,
        _dense=scipy.integrate.OdeSolution(times, pieces) if pieces else None,
    )


def _levels(value: float | Tensor, theta0: Tensor) -> NDArray[np.float64]:
    """Return the loss that each member must reach, flat."""
    batch = theta0.shape[:-1]
    if not isinstance(value, Tensor):
        return np.full(math.prod(batch), checks.positive(value, "until"))
    if value.shape != batch:
        raise ValueError(f"until: must be a number or have shape {tuple(batch)}, got {tuple(value.shape)}")
    if not (torch.isfinite(value) & (value > 0)).all():
        raise ValueError("until: must be finite and > 0 for every member")
    return np.asarray(value.detach().double().flatten().cpu())


class _Problem:
    """Loss and gradient of all members as functions of one flat state."""

    def __init__(self, loss: Loss, theta0: Tensor):
        self.like, self.shape = theta0, theta0.shape
        theta = theta0.detach().double()
        self.start = theta.flatten().cpu().numpy().copy()
        self.loss = _over_batch(loss, theta)
        value, gradient = self.value(self.start)
        if not (np.isfinite(value).all() and np.isfinite(gradient).all()):
            raise ValueError("loss: must be finite at the start, and its gradient too")

    def value(self, state: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the members' losses and the gradient of their sum, both flat."""
        theta = self._theta(state).requires_grad_()
        with torch.enable_grad():
            loss = self.loss(theta)
            (gradient,) = torch.autograd.grad(loss.sum(), theta)
        return np.array(loss.detach().flatten().cpu().numpy()), gradient.flatten().cpu().numpy()

    def losses(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the members' losses, flat."""
        with torch.no_grad():
            return np.array(self.loss(self._theta(state)).flatten().cpu().numpy())

    def _theta(self, state: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(state).to(self.like.device).reshape(self.shape)

    def structure(self, method: str) -> dict[str, Any]:
        """Return what spares a solver the Jacobian's zeros: members do not interact."""
        m = self.shape[-1]
        if method == "LSODA":
            return {"lband": m - 1, "uband": m - 1}
        return {"jac_sparsity": scipy.sparse.kron(scipy.sparse.eye(len(self.start) // m), np.ones((m, m)))}

    def tensor(self, state: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(state).reshape(self.shape).to(self.like)

    def members(self, value: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(value).reshape(self.shape[:-1]).to(self.like)


def _over_batch(loss: Loss, theta: Tensor) -> Loss:
    """Return ``loss`` if it treats each row of a batch by itself, else the loss of one flat vector mapped over it."""
    if not callable(loss):
        raise TypeError(f"loss: must be a function of a tensor, got {type(loss).__name__}")
    batch = theta.shape[:-1]
    if _by_rows(loss, theta):
        return loss
    mapped = loss
    for _ in batch:
        mapped = torch.func.vmap(mapped)
    if not batch or not _by_rows(mapped, theta):
        raise ValueError(
            f"loss: must map parameters {tuple(theta.shape)} to losses {tuple(batch)}, each of its own row"
        )
    return mapped


def _by_rows(loss: Loss, theta: Tensor) -> bool:
    """Tell whether ``loss`` has one value a row, and none of them depends on other rows."""
    theta = theta.clone().requires_grad_()
    with torch.enable_grad():
        try:
            value = loss(theta)
        except (IndexError, RuntimeError, ValueError):
            if theta.ndim == 1:
                raise
            return False
        if not isinstance(value, Tensor):
            raise TypeError(f"loss: must return a torch.Tensor, got {type(value).__name__}")
        if value.shape != theta.shape[:-1]:
            return False
        if not value.requires_grad:
            raise ValueError("loss: must depend on the parameters in a way that automatic differentiation can follow")
        rows = value.numel()

        def gradient(weights: Tensor) -> Tensor:
            # As the gradient of a sum: weights as an argument make torch import sympy, which takes half a second.
            (found,) = torch.autograd.grad((value * weights.reshape(value.shape)).sum(), theta, retain_graph=True)
            return found.reshape(rows, -1)

        # Weights on the values must come out as the same factors of the rows: powers of two, so that nothing is
        # rounded, which between them tell all rows apart.
        own, index = gradient(torch.ones_like(value)), torch.arange(rows, device=theta.device)
        for shift in range(0, (rows - 1).bit_length(), 4):
            weights = (index >> shift & 15).to(theta).exp2()
            error = gradient(weights) - weights[:, None] * own
            if (error.abs() > 1e-9 * weights[:, None] * own.abs().amax(1, keepdim=True)).any():
                return False
    return True
