r"""Exact gradient flow of deep matrix factorization on a 2×2 completion problem.

Under balanced initialisation the end-to-end matrix of depth ``L`` moves by itself (Arora et al. 2018),

.. math:: \dot W = -\sum_{j=1}^{L} (W W^\top)^{\frac{j-1}{L}}\, \nabla\ell(W)\, (W^\top W)^{\frac{L-j}{L}},

so no factor has to be followed. In the logarithms of the singular values it stays accurate while the smaller one
falls a thousand orders of magnitude.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy  # its submodules load when first used
import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.data import MatrixCompletion, two_by_two
from implicitreg.dynamics.levels import decreasing

Entries = tuple[float, float, float, float]
"""The entries (1,1), (1,2), (2,1), (2,2) of a 2×2 matrix. Plain floats: ten times faster than small arrays."""


@dataclass(frozen=True, eq=False)
class Flow:
    """Gradient-flow trajectories, sampled at loss levels.

    Attributes
    ----------
    t
        Time at which the flow meets each level, shape ``(..., T)``.
    loss
        The levels, shape ``(..., T)``, decreasing.
    w
        End-to-end matrices, shape ``(..., T, 2, 2)``.
    log_singular_values
        Natural logarithms of the singular values, larger first, shape ``(..., T, 2)``: exact where the smaller one
        has long left the range of floating point.
    determinant_sign
        Sign of the determinant at each level, 1 or -1, shape ``(..., T)``; at depth 2 and more it never changes.
    converged
        Whether the last level was met, shape ``(...)``. Where it was not, the levels out of reach hold NaN.
    n_evaluations
        Evaluations of the velocity, shape ``(...)``.
    """

    t: Tensor
    loss: Tensor
    w: Tensor
    log_singular_values: Tensor
    determinant_sign: Tensor
    converged: Tensor
    n_evaluations: Tensor


class _Chart(Protocol):
    """Coordinates of the balanced flow: where it starts, how it moves, which matrix a state stands for."""

    start: list[float]
    weights: list[float]
    """What the solver's tolerances are multiplied by, one for each coordinate."""

    def velocity(self, t: float, y: np.ndarray) -> Entries: ...

    def entries(self, y: Sequence[float]) -> Entries: ...

    def log_singular_values(self, y: Sequence[float]) -> tuple[float, float]: ...

    def onward(self, y: Sequence[float]) -> "_LogSingular":
        """Return the chart for the rest of the way from a state where the singular values are far apart."""
        ...


class _Problem:
    """The completion problem in plain floats: residuals are 0 where nothing is observed."""

    def __init__(self, problem: MatrixCompletion):
        self.mask = tuple(problem.observed.double().flatten().tolist())
        self.target = tuple(problem.target.double().flatten().tolist())

    def residual(self, w: Entries) -> Entries:
        m, b = self.mask, self.target
        return m[0] * (w[0] - b[0]), m[1] * (w[1] - b[1]), m[2] * (w[2] - b[2]), m[3] * (w[3] - b[3])

    def loss(self, w: Entries) -> float:
        a, b, c, d = self.residual(w)
        return 0.5 * (a * a + b * b + c * c + d * d)


class _LogSingular:
    r""":math:`W = g R(\theta) \operatorname{diag}(e^{x_1}, s e^{x_2}) R(\varphi)^\top`, state ``(x1, x2, θ, φ)``.

    ``s`` is the sign of the determinant and ``g`` that of the larger singular direction, both constant. With
    :math:`M = g R(\theta)^\top \nabla\ell\, R(\varphi)`:
    :math:`\dot x_1 = -L e^{(1-2/L) x_1} M_{11}`, :math:`\dot x_2 = -s L e^{(1-2/L) x_2} M_{22}`,
    :math:`\dot\theta = -(s \sigma_2 M_{12} + \sigma_1 M_{21}) / (\sigma_1^{2/L} - \sigma_2^{2/L})`, and
    :math:`\dot\varphi` the same with :math:`M_{12}` and :math:`M_{21}` exchanged.
    """

    def __init__(self, start: list[float], sign: float, depth: int, problem: _Problem, weights: list[float]):
        x1, x2, *angles = start
        # Whole turns by pi go into g, so that an angle that tends to a multiple of pi tends to 0, where floating
        # point is densest: an entry of the residual is the product of a huge singular value and a tiny angle.
        turns = [round(angle / math.pi) for angle in angles]
        self.start = [x1, x2, *(angle - turn * math.pi for angle, turn in zip(angles, turns, strict=True))]
        self.g = -1.0 if sum(turns) % 2 else 1.0
        self.sign, self.depth, self.problem, self.weights = sign, depth, problem, weights

    @classmethod
    def of(cls, w0: Tensor, depth: int, problem: _Problem) -> "_LogSingular":
        u, s, vh = torch.linalg.svd(w0)
        v = vh.mT
        # Make both factors rotations; what the reflections carried is the determinant's sign.
        sign = float(torch.linalg.det(u).sign() * torch.linalg.det(v).sign())
        angles = [math.atan2(q[1, 0].item(), q[0, 0].item()) for q in (u, v)]
        return cls([*s.log().tolist(), *angles], sign, depth, problem, [1.0] * 4)

    def onward(self, y: Sequence[float]) -> "_LogSingular":
        # From here on the angles shrink as the larger singular value grows: only their relative error may count.
        angles = (y[2], y[3] if self.g > 0 else y[3] + math.pi)
        return _LogSingular([y[0], y[1], *angles], self.sign, self.depth, self.problem, [1.0, 1.0, 1e-5, 1e-5])

    def velocity(self, t: float, y: np.ndarray) -> Entries:
        x1, x2, theta, phi = y.tolist()
        depth, sign, g = self.depth, self.sign, self.g
        c, d, p, q = math.cos(theta), math.sin(theta), g * math.cos(phi), g * math.sin(phi)
        s1, s2 = math.exp(x1), sign * math.exp(x2)
        g11, g12, g21, g22 = self.problem.residual(_rotated(s1, s2, c, d, p, q))
        # M = R(theta)^T G R(phi), first G R(phi) row by row.
        h11, h12 = g11 * p + g12 * q, g12 * p - g11 * q
        h21, h22 = g21 * p + g22 * q, g22 * p - g21 * q
        m11, m12, m21, m22 = c * h11 + d * h21, c * h12 + d * h22, c * h21 - d * h11, c * h22 - d * h12
        power, root = 1 - 2 / depth, 2 / depth
        gap = math.exp(root * x1) - math.exp(root * x2)
        return (
            -depth * math.exp(power * x1) * m11,
            -sign * depth * math.exp(power * x2) * m22,
            -(s2 * m12 + s1 * m21) / gap,
            -(s2 * m21 + s1 * m12) / gap,
        )

    def entries(self, y: Sequence[float]) -> Entries:
        x1, x2, theta, phi = y
        p, q = self.g * math.cos(phi), self.g * math.sin(phi)
        return _rotated(math.exp(x1), self.sign * math.exp(x2), math.cos(theta), math.sin(theta), p, q)

    def log_singular_values(self, y: Sequence[float]) -> tuple[float, float]:
        return y[0], y[1]


def _rotated(s1: float, s2: float, c: float, d: float, p: float, q: float) -> Entries:
    """Return ``R diag(s1, s2) R'^T`` for the rotations with cosine and sine ``(c, d)`` and ``(p, q)``."""
    return c * s1 * p + d * s2 * q, c * s1 * q - d * s2 * p, d * s1 * p - c * s2 * q, d * s1 * q + c * s2 * p


class _Symmetric:
    r""":math:`W = g\begin{pmatrix} a & b \\ b & c \end{pmatrix}` positive definite, state ``(a, b, c, ln det)``.

    From a scaled identity a symmetric problem keeps ``W`` symmetric and definite. The singular values start equal,
    where angles have no meaning; the matrix itself has no such singularity. At depth 2 with ``g = 1`` this is
    :math:`\dot a = 2b(1-b)`, :math:`\dot b = a(1-b) + c - 2bc`, :math:`\dot c = 2b(1-b) - 2c^2`,
    :math:`\tfrac{d}{dt} \ln\det W = -2c`.
    """

    def __init__(self, alpha: float, depth: int, problem: _Problem):
        self.g, self.depth, self.problem = math.copysign(1.0, alpha), depth, problem
        self.start = [abs(alpha), 0.0, abs(alpha), 2 * math.log(abs(alpha))]
        # A residual is a difference of entries here, not a product with a small angle.
        self.weights = [1e-3] * 4

    def _angle(self, a: float, b: float, c: float) -> float:
        """Return the direction of the larger eigenvalue; any, where the two are equal."""
        return math.atan2(b, (a - c) / 2) / 2

    def onward(self, y: Sequence[float]) -> _LogSingular:
        angle = self._angle(*y[:3])
        start = [*self.log_singular_values(y), angle, angle if self.g > 0 else angle + math.pi]
        return _LogSingular(start, 1.0, self.depth, self.problem, [1.0, 1.0, 1e-5, 1e-5])

    def velocity(self, t: float, y: np.ndarray) -> Entries:
        depth, g = self.depth, self.g
        a, b, c, _ = state = y.tolist()
        g11, g12, _, g22 = (g * r for r in self.problem.residual(self.entries(state)))
        x1, x2 = self.log_singular_values(state)
        angle = self._angle(a, b, c)
        p, q = math.cos(angle), math.sin(angle)  # eigenvectors (p, q) and (-q, p)
        m11 = g11 * p * p + 2 * g12 * p * q + g22 * q * q
        m22 = g11 * q * q - 2 * g12 * p * q + g22 * p * p
        m12 = (g22 - g11) * p * q + g12 * (p * p - q * q)
        f11, f22 = (depth * math.exp((2 - 2 / depth) * x) for x in (x1, x2))
        f12 = sum(math.exp(2 * (j * x1 + (depth - 1 - j) * x2) / depth) for j in range(depth))
        d11, d12, d22 = -f11 * m11, -f12 * m12, -f22 * m22
        shrink = sum(-depth * math.exp((1 - 2 / depth) * x) * m for x, m in ((x1, m11), (x2, m22)))
        return (
            d11 * p * p - 2 * d12 * p * q + d22 * q * q,
            (d11 - d22) * p * q + d12 * (p * p - q * q),
            d11 * q * q + 2 * d12 * p * q + d22 * p * p,
            shrink,
        )

    def entries(self, y: Sequence[float]) -> Entries:
        a, b, c, _ = y
        return self.g * a, self.g * b, self.g * b, self.g * c

    def log_singular_values(self, y: Sequence[float]) -> tuple[float, float]:
        a, b, c, log_det = y
        # The smaller one from the determinant: as a difference it would drown in rounding.
        x1 = math.log((a + c) / 2 + math.hypot((a - c) / 2, b))
        return x1, log_det - x1


@dataclass(frozen=True)
class _Sample:
    """The flow where it meets a level."""

    t: float
    y: list[float]
    chart: _Chart


class _Walk:
    """One member's way down the levels.

    Parameters
    ----------
    problem
        The problem.
    t_max, budget
        The time, and the number of evaluations of the velocity, after which the way is given up.
    rtol, atol
        Tolerances of the solver.
    """

    def __init__(self, problem: _Problem, t_max: float, budget: int, rtol: float, atol: float):
        self.problem, self.t_max, self.budget, self.rtol, self.atol = problem, t_max, budget, rtol, atol
        self.samples: list[_Sample] = []
        self.evaluations = 0

    def descend(self, chart: _Chart, levels: Sequence[float]) -> None:
        """Take samples at the levels, as far as they are met."""
        early = [level for level in levels if level > SETTLED]
        if len(early) == len(levels) or self.problem.loss(chart.entries(chart.start)) <= SETTLED:
            self._leg(chart, levels, 0.0, None)
            return
        step = self._leg(chart, [*early, SETTLED], 0.0, None)
        if len(self.samples) <= len(early):
            return
        turn = self.samples[-1]
        if levels[len(early)] != SETTLED:
            self.samples.pop()
        self._leg(chart.onward(turn.y), levels[len(self.samples) :], turn.t, step)

    def _leg(self, chart: _Chart, levels: Sequence[float], t: float, first_step: float | None) -> float:
        """Integrate in one chart from time ``t``; return the last step size."""

        def loss(y: np.ndarray) -> float:
            return self.problem.loss(chart.entries(y.tolist()))

        def solver(t: float, y: np.ndarray, first_step: float | None) -> "scipy.integrate.LSODA":
            weights = np.array(chart.weights)
            return scipy.integrate.LSODA(
                chart.velocity,
                t,
                y,
                self.t_max,
                # Relative tolerances below 100 eps are raised by the solver with a warning; absolute ones are free.
                rtol=np.maximum(self.rtol * weights.clip(1e-3), 3e-14),
                atol=self.atol * weights,
                # Left alone, the solver tries a first step of the order of the whole interval.
                first_step=None if first_step is None else min(first_step, self.t_max - t),
            )

        walker = solver(t, np.array(chart.start), first_step)
        step, pending = first_step or 1.0, list(levels)
        if pending and loss(walker.y) <= pending[0]:
            self.samples.append(_Sample(t, chart.start, chart))
            pending.pop(0)
        while pending and walker.status == "running" and self.evaluations + walker.nfev < self.budget:
            last = walker.t, walker.y.copy()
            try:
                walker.step()
            except (ArithmeticError, ValueError):
                # A trial step left the range of floating point. Set out anew from the last good state, more carefully.
                step *= 1e-2
                self.evaluations += walker.nfev
                if last[0] + step == last[0]:
                    return step
                walker = solver(*last, step)
                continue
            if walker.status == "failed":
                break
            step = walker.step_size or step
            now = loss(walker.y)
            while pending and now <= pending[0]:
                self.samples.append(_Sample(*_meet(walker, loss, pending.pop(0)), chart))
        self.evaluations += walker.nfev
        return step


def _meet(
    walker: "scipy.integrate.LSODA", loss: Callable[[np.ndarray], float], level: float
) -> tuple[float, list[float]]:
    """Return time and state at which the last step met a level."""
    between = walker.dense_output()

    def excess(t: float) -> float:
        return math.log(loss(between(t)) / level)

    # Where rounding puts the level outside the step that met it, the nearer end of the step will do.
    if excess(walker.t_old) <= 0:
        t = walker.t_old
    elif excess(walker.t) >= 0:
        t = walker.t
    else:
        t = float(scipy.optimize.brentq(excess, walker.t_old, walker.t, rtol=1e-12))
    return t, between(t).tolist()


# Below this loss the larger singular direction has settled, and the flow changes to the chart for the rest.
SETTLED = 1e-2


def _chart(w0: Tensor, depth: int, problem: MatrixCompletion, floats: _Problem) -> _Chart:
    """Return the coordinates in which the flow from ``w0`` is regular."""
    s = torch.linalg.svdvals(w0)
    # Of a singular matrix, round-off may leave a second singular value, but none of the determinant.
    determinant = w0[0, 0] * w0[1, 1] - w0[0, 1] * w0[1, 0]
    if s[1] <= 0 or (determinant == 0 and s[1] <= torch.finfo(s.dtype).eps * s[0]):
        raise ValueError("w0: must have full rank; the flow from a singular matrix never leaves the singular matrices")
    if s[0] > s[1]:
        return _LogSingular.of(w0, depth, floats)
    symmetric = torch.equal(problem.target, problem.target.mT) and torch.equal(problem.observed, problem.observed.mT)
    if w0[0, 0] == w0[1, 1] and w0[0, 1] == 0 == w0[1, 0] and symmetric:
        return _Symmetric(w0[0, 0].item(), depth, floats)
    raise ValueError(
        "w0: its two singular values must differ, unless it is a scaled identity and the problem is symmetric"
    )


def balanced_flow(
    w0: Tensor,
    depth: int,
    problem: MatrixCompletion | None = None,
    *,
    losses: Tensor | list[float] | None = None,
    until: float = 1e-4,
    points: int = 200,
    t_max: float = 1e18,
    max_evaluations: int = 200_000,
    rtol: float = 1e-8,
    atol: float = 1e-10,
) -> Flow:
    r"""Follow the exact gradient flow of a balanced deep factorization of a 2×2 matrix.

    The loss falls strictly along the flow, so it serves as the coordinate: every member of the batch is sampled at
    loss levels, which makes trajectories with very different clocks comparable.

    Parameters
    ----------
    w0
        End-to-end matrices at the start, shape ``(..., 2, 2)``, full rank. The two singular values must differ,
        or the matrix be a scaled identity (the reduced system of a symmetric matrix is used there).
    depth
        Number of factors ``L >= 1``. At depth 1 the flow has a closed form.
    problem
        What is observed; `implicitreg.data.two_by_two` by default.
    losses
        Levels at which to sample, shape ``(T,)``, strictly decreasing, none above a member's loss at the start.
        By default ``points`` levels, geometric from each member's own start to ``until``.
    until, points
        Last level and number of levels where ``losses`` is not given.
    t_max, max_evaluations
        Time, and number of evaluations of the velocity, after which a member is given up.
    rtol, atol
        Tolerances of the solver (LSODA) on ``(ln σ1, ln σ2, θ, φ)``; tightened for the angles once the loss is below
        0.01, and for a scaled identity, which starts in the entries of the matrix.

    Returns
    -------
    Flow
        In float64, on the device of ``w0``.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or ``w0`` has a start that the coordinates do not cover.

    Warns
    -----
    RuntimeWarning
        A member did not meet its last level; its `Flow.converged` is false.

    Notes
    -----
    Cost: 0.01 to 0.05 s a member down to loss 1e-4, at any depth. Accuracy with the default tolerances, against a
    run a thousand times tighter: times and entries at a given loss to 5e-6 (relative). With positive determinant the
    problem stiffens without bound as the loss falls; somewhere below 1e-9 double precision ends, and the flow says
    that it did not converge. So does one that tends to a positive loss.

    References
    ----------
    End-to-end dynamics: Arora, Cohen & Hazan (2018), arXiv:1802.06509. Singular values: Arora, Cohen, Hu & Luo
    (2019), arXiv:1905.13655. The problem: Razin & Cohen (2020), arXiv:2005.06398.

    Examples
    --------
    The unobserved entry at loss 1e-4, from a scaled identity at depth 2; every norm of the matrix is larger:

    >>> flow = balanced_flow(0.001 * torch.eye(2, dtype=torch.float64), depth=2, losses=[1e-2, 1e-4])
    >>> [round(x, 2) for x in flow.w[:, 0, 0].tolist()], round(flow.t[-1].item(), -2)
    ([6.93, 70.7], 59100.0)
    """
    checks.matrices(w0, "w0")
    if w0.shape[-2:] != (2, 2) or not w0.numel():
        raise ValueError(f"w0: must have shape (..., 2, 2) with at least one member, got {tuple(w0.shape)}")
    checks.integer(depth, "depth", 1)
    for name, value in (("until", until), ("t_max", t_max), ("rtol", rtol), ("atol", atol)):
        checks.positive(value, name)
    checks.integer(points, "points", 2)
    checks.integer(max_evaluations, "max_evaluations", 1)
    problem = two_by_two() if problem is None else problem
    if problem.target.shape != (2, 2):
        raise ValueError(f"problem: must be of 2x2 matrices, got {tuple(problem.target.shape)}")

    members = w0.detach().to("cpu", torch.float64).reshape(-1, 2, 2)
    start = problem.loss(members)
    if losses is None:
        if not (start > until).all():
            raise ValueError(f"until: must lie below every member's loss at the start, {start.min():.6g}, got {until}")
        levels = np.stack([np.geomspace(loss, until, points) for loss in start.tolist()])
    else:
        levels = decreasing(losses, start).numpy()[None].repeat(len(members), axis=0)

    t = torch.full(levels.shape, torch.nan, dtype=torch.float64)
    w = torch.full((*levels.shape, 2, 2), torch.nan, dtype=torch.float64)
    logs = torch.full((*levels.shape, 2), torch.nan, dtype=torch.float64)
    sign = torch.linalg.det(members).sign()[:, None].repeat(1, levels.shape[1])
    evaluations = torch.zeros(len(members), dtype=torch.int64)
    floats = _Problem(problem)
    for i, member in enumerate(members):
        if depth == 1:
            t[i] = 0.5 * (start[i].log() - torch.from_numpy(levels[i]).log())
            w[i] = member - problem.gradient(member) * (1 - torch.exp(-t[i]))[:, None, None]
            logs[i] = torch.linalg.svdvals(w[i]).log()
            sign[i] = torch.linalg.det(w[i]).sign()
            continue
        chart = _chart(member, depth, problem, floats)
        walk = _Walk(floats, t_max, max_evaluations, rtol, atol)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the solver's own complaints: ours follows below
            walk.descend(chart, levels[i].tolist())
        evaluations[i] = walk.evaluations
        for k, sample in enumerate(walk.samples):
            t[i, k] = sample.t
            w[i, k] = torch.tensor(sample.chart.entries(sample.y), dtype=torch.float64).view(2, 2)
            logs[i, k] = torch.tensor(sample.chart.log_singular_values(sample.y), dtype=torch.float64)
    converged = t[:, -1].isfinite()
    if not converged.all():
        warnings.warn(
            f"{int((~converged).sum())} of {len(members)} flows did not meet their last loss level: t_max or "
            "max_evaluations reached, or double precision at its end",
            RuntimeWarning,
            stacklevel=2,
        )

    def batched(x: Tensor) -> Tensor:
        return x.reshape((*w0.shape[:-2], *x.shape[1:])).to(w0.device)

    return Flow(*map(batched, (t, torch.from_numpy(levels), w, logs, sign, converged, evaluations)))
