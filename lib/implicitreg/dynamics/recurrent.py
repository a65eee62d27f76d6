"""Minibatch training of many small recurrent networks as one tensor program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.nets.paths import shared_path_scales

METHODS = ("sgd", "path-sgd")


@dataclass(frozen=True, eq=False)
class TrainedRecurrent:
    """What `train_recurrent` returns.

    Attributes
    ----------
    weights
        Trained ``w_in``, ``w_rec`` and ``w_out``, shapes ``(m, h, inputs)``, ``(m, h, h)`` and ``(m, outputs, h)``.
    updates
        Numbers of updates after which the test error was taken, shape ``(k,)``, int64.
    error
        Mean squared error on the test sequences then, shape ``(m, k)``; NaN or infinite where training diverged.
    """

    weights: tuple[Tensor, Tensor, Tensor]
    updates: Tensor
    error: Tensor


def train_recurrent(
    weights: Sequence[Tensor],
    draw: Callable[[int], tuple[Tensor, Tensor]],
    x_test: Tensor,
    y_test: Tensor,
    *,
    lr: float | Tensor,
    updates: int,
    batch: int = 50,
    momentum: float = 0.0,
    method: Literal["sgd", "path-sgd"] = "sgd",
    second: bool = True,
    damping: float = 0.0,
    clip: float | None = None,
    resolution: float = 0.0,
    check_every: int = 100,
) -> TrainedRecurrent:
    r"""Train an ensemble of `ReLURecurrent` networks to answer after the last step, by the mean squared error.

    The update is that of `PathSGD`, or with ``"sgd"`` the same with κ = 1, for each member by itself:

    .. math:: u = \frac{g}{\kappa + \delta \max \kappa}, \qquad v \leftarrow \mu v + u \min\{1, c / \|u\|\}, \qquad
              w \leftarrow w - \eta v .

    Parameters
    ----------
    weights
        Starts ``w_in``, ``w_rec``, ``w_out``, shapes ``(m, h, inputs)``, ``(m, h, h)`` and ``(m, outputs, h)``, float32
        or float64; not changed.
    draw
        Returns n new sequences ``(m, n, T, inputs)``, or ``(1, ...)`` for all members alike, with their targets
        ``(m, n, outputs)``.
    x_test, y_test
        Sequences ``(n, T, inputs)`` and targets ``(n, outputs)`` to test on.
    lr
        Step size η > 0, or one for each member, shape ``(m,)``.
    updates
        Number of updates, >= 1.
    batch
        Sequences an update, >= 1.
    momentum
        μ in [0, 1).
    method
        ``"sgd"`` or ``"path-sgd"``.
    second
        Whether κ has both its terms, see `shared_path_scales`.
    damping
        δ >= 0, for Path-SGD; the maximum is over a matrix.
    clip
        c > 0, or None; the norm is over the three matrices.
    resolution
        The (divided, clipped) gradient is rounded to multiples of it; >= 0, a power of two to be exact, or 0 for no
        rounding. Training from the identity is chaotic: the last digit, in which the matrix products of two machines
        differ, grows to the size of the errors within some 200 updates, unless it is rounded away at each.
    check_every
        Updates between two test errors, >= 1.

    Returns
    -------
    TrainedRecurrent

    Raises
    ------
    TypeError, ValueError
        An argument is not as said above; the message names it.

    Notes
    -----
    Gradients through time are written out: per update and sequence three products with the recurrent weights a step.
    Members do not influence each other.

    Examples
    --------
    >>> from implicitreg.data import addition_problem
    >>> g = torch.Generator().manual_seed(0)
    >>> def draw(n):
    ...     x, y = addition_problem(n, 4, g)
    ...     return x[None], y[None]
    >>> start = [torch.randn(2, *shape, generator=g, dtype=torch.float64) / 4 for shape in ((16, 2), (16, 16), (1, 16))]
    >>> test = addition_problem(200, 4, g)
    >>> trained = train_recurrent(start, draw, *test, lr=0.1, updates=500, momentum=0.9, clip=1.0)
    >>> (trained.error[:, -1] < 0.01).tolist()  # always to answer 1 would give 1/6
    [True, True]
    """
    if len(weights) != 3:
        raise ValueError(f"weights: must be w_in, w_rec and w_out, got {len(weights)} tensors")
    names = ("w_in", "w_rec", "w_out")
    w = [checks.matrices(each, name).detach().clone() for each, name in zip(weights, names, strict=True)]
    m, h, inputs = w[0].shape if w[0].ndim == 3 else (0, 0, 0)
    if not m or w[1].shape != (m, h, h) or w[2].ndim != 3 or w[2].shape[::2] != (m, h):
        got = ", ".join(str(tuple(each.shape)) for each in w)
        raise ValueError(f"weights: must have shapes (m, h, inputs), (m, h, h) and (m, outputs, h), got {got}")
    if x_test.ndim != 3 or x_test.shape[2] != inputs or y_test.shape != (len(x_test), w[2].shape[1]):
        raise ValueError(
            f"x_test: must have shape (n, T, {inputs}) and y_test (n, {w[2].shape[1]}), got {tuple(x_test.shape)} and "
            f"{tuple(y_test.shape)}"
        )
    rate = checks.per_member(lr, "lr", w[0])[:, None, None]
    if method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {method!r}")
    updates, batch = checks.integer(updates, "updates", 1), checks.integer(batch, "batch", 1)
    check_every = checks.integer(check_every, "check_every", 1)
    momentum = checks.fraction(momentum, "momentum")
    damping = checks.at_least(damping, "damping", 0)
    if clip is not None:
        checks.positive(clip, "clip")
    resolution = checks.at_least(resolution, "resolution", 0)

    velocity = [torch.zeros_like(each) for each in w]
    taken, errors = [], []
    with torch.no_grad():
        for now in range(1, updates + 1):
            gradients = _gradients(w, *draw(batch))
            if method == "path-sgd":
                scales = shared_path_scales(w[0], w[1], w[2], x_test.shape[1], second=second)
                for g, k in zip(gradients, scales, strict=True):
                    damped = k + damping * k.amax((-2, -1), keepdim=True) if damping else k
                    g.div_(damped.masked_fill(damped == 0, torch.inf))
            if clip is not None:
                norm = torch.stack([g.square().sum((-2, -1)) for g in gradients]).sum(0).sqrt()
                shrink = (clip / norm.clamp_min(clip))[:, None, None]
                gradients = [g.mul_(shrink) for g in gradients]
            for each, v, g in zip(w, velocity, gradients, strict=True):
                v.mul_(momentum).add_(g.div_(resolution).round_().mul_(resolution) if resolution else g)
                # Two roundings on every machine, where one instruction for both would have one.
                each.sub_(v * rate)
            if now % check_every == 0 or now == updates:
                taken.append(now)
                errors.append(_errors(w, x_test.to(w[0]), y_test.to(w[0])))
    return TrainedRecurrent((w[0], w[1], w[2]), torch.tensor(taken), torch.stack(errors, -1))


def _states(w: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the hidden units at every step, the zeros before the first included, shape ``(T + 1, m, n, h)``."""
    m, n, steps = len(w[0]), *x.shape[1:3]
    states = w[0].new_zeros(steps + 1, m, n, w[1].shape[-1])
    torch.matmul(x.movedim(2, 0), w[0].mT, out=states[1:])
    again = w[1].mT
    states[1].clamp_min_(0)
    for t in range(2, steps + 1):
        states[t].baddbmm_(states[t - 1], again).clamp_min_(0)
    return states


def _errors(w: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return every member's mean squared error, one after the other: all states at once would take much memory."""
    errors = []
    for i in range(len(w[0])):
        alone = [each[i : i + 1] for each in w]
        errors.append((_states(alone, x[None])[-1, 0] @ alone[2][0].mT - y).square().mean())
    return torch.stack(errors)


def _gradients(w: Sequence[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the gradients of the mean squared error of every member."""
    states = _states(w, x)
    last = states[-1]
    back = torch.baddbmm(y.expand(len(w[0]), -1, -1), last, w[2].mT, beta=-1).mul_(2 / y[0].numel())
    into, again, out = torch.zeros_like(w[0]), torch.zeros_like(w[1]), torch.bmm(back.mT, last)
    back = torch.bmm(back, w[2])
    for t in range(len(states) - 1, 0, -1):
        back = torch.ops.aten.threshold_backward(back, states[t], 0)
        into.baddbmm_(back.mT, x[:, :, t - 1].expand(len(w[0]), -1, -1))
        if t > 1:
            again.baddbmm_(back.mT, states[t - 1])
            back = torch.bmm(back, w[1])
    return [into, again, out]
