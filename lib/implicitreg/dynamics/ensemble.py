"""Minibatch training of many small networks as one tensor program."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.dynamics.data_paths import data_path_scales
from implicitreg.dynamics.losses import score_gradient
from implicitreg.nets.layers import matrices

Method = Literal["sgd", "path-sgd", "ddp-sgd", "adagrad"]
METHODS = ("sgd", "path-sgd", "ddp-sgd", "adagrad")
LOSSES = ("cross_entropy", "truncated")

# What the members of one program hold at a time, in numbers: beyond a core's share of the cache, batching costs more
# memory traffic than it saves in overhead.
_WORKING_SET = 2**18

# Samples at a time where a loss is taken of all of them.
_CHUNK = 512


@dataclass(frozen=True)
class Trained:
    """What `train_networks` returns; the first dimension of each tensor is the member.

    Attributes
    ----------
    weights
        Trained matrices, shapes ``(m, h_i, h_{i-1})``.
    loss
        Running mean of the minibatch losses over each member's last epoch, shape ``(m,)``; NaN or infinite where
        training diverged. With ``exact`` or dropout: the loss on the training set after that epoch.
    history
        The same for every epoch, shape ``(m, epochs)``; NaN after a member has stopped.
    epochs
        Number of epochs that each member was trained, shape ``(m,)``, int64.
    reached
        Whether the loss fell below ``stop``, shape ``(m,)``, bool; the others were ended by the cap, or diverged.
    """

    weights: list[Tensor]
    loss: Tensor
    history: Tensor
    epochs: Tensor
    reached: Tensor


def train_networks(
    weights: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    *,
    lr: float | Tensor,
    epochs: int,
    shuffles: Sequence[torch.Generator],
    batch: int = 100,
    momentum: float | tuple[float, float, float] = 0.0,
    decay: float = 1.0,
    stop: float = 0.0,
    weight_decay: float | Tensor = 0.0,
    loss: Literal["cross_entropy", "truncated"] = "cross_entropy",
    method: Method = "sgd",
    alpha: float = 0.0,
    dropout: float = 0.0,
    exact: bool = False,
) -> Trained:
    r"""Train an ensemble of ReLU networks without biases by minibatch descent, each on data of its own.

    One epoch visits a member's samples once, in an order drawn from its generator, by

    .. math:: v \leftarrow \mu v + g / \kappa + \lambda w, \qquad w \leftarrow w - \eta v,

    where g is the gradient of the minibatch's mean loss, and κ = 1 for ``"sgd"``, `path_scales` for ``"path-sgd"``,
    `data_path_scales` of the minibatch for ``"ddp-sgd"``, and :math:`\sqrt{\sum g^2} + 10^{-8}` for ``"adagrad"``.
    A member stops as soon as the mean of its minibatch losses over an epoch, each taken before its step, is below
    ``stop``, or when it diverges; the others go on. This mean lags behind: where final losses are to match, ``exact``
    puts the loss on the training set after the epoch in its place. With dropout, whose minibatch losses are those of
    thinned networks, it is always that of the whole network after the epoch.

    Parameters
    ----------
    weights
        Starts, shapes ``(m, h_i, h_{i-1})``, float32 or float64; not changed.
    x
        Inputs, shape ``(n, h_0)`` or ``(m, n, h_0)``.
    y
        Classes, shape ``(n,)`` or ``(m, n)``, int64.
    lr
        Step size η, > 0, or one for each member, shape ``(m,)``.
    epochs
        Cap, >= 1.
    shuffles
        One generator for each member; members with equally seeded ones see the same minibatches.
    batch
        Size of a minibatch; the last one of an epoch may be smaller.
    momentum
        μ in [0, 1), or ``(first, step, most)``: it starts at ``first`` and grows by ``step`` an epoch up to ``most``.
    decay
        Factor of η from one epoch to the next, in (0, 1].
    stop
        Loss at which a member stops, >= 0.
    weight_decay
        λ >= 0, or one for each member.
    loss
        ``"cross_entropy"`` or ``"truncated"``, see `truncated_cross_entropy`.
    method
        What divides the gradient.
    alpha
        Dependence on data of ``"ddp-sgd"``, in [0, 1).
    dropout
        Probability p in [0, 1) with which the output of a hidden unit is set to 0, for each sample of a minibatch
        anew, drawn from the member's generator; the others are multiplied by :math:`1/(1-p)`. Not for ``"ddp-sgd"``.
    exact
        Compare ``stop`` with the loss on the training set after each epoch.

    Returns
    -------
    Trained

    Raises
    ------
    TypeError, ValueError
        An argument is not as said above; the message names it.

    Notes
    -----
    Cost: gradients are written out, so that a step is six products of matrices for two layers and a handful of
    passes over them; members share these operations as long as they fit into a core's cache. Members do not
    influence each other. An exact loss costs up to a third of an epoch, and dropout the masks besides.

    Examples
    --------
    >>> from implicitreg.nets import gaussian_weights, outputs
    >>> g = torch.Generator().manual_seed(0)
    >>> x = torch.randn(40, 5, generator=g, dtype=torch.float64)
    >>> y = (x[:, 0] > 0).long()
    >>> start = [w.expand(2, -1, -1) for w in gaussian_weights((5, 8, 2), g)]
    >>> shuffles = [torch.Generator().manual_seed(i) for i in range(2)]
    >>> result = train_networks(start, x, y, lr=0.5, epochs=200, batch=10, stop=0.05, shuffles=shuffles)
    >>> result.reached.tolist(), (outputs(result.weights, x).argmax(-1) == y).all().item()
    ([True, True], True)
    """
    weights = matrices(weights, "weights")
    m = weights[0].shape[0]
    if any(w.ndim != 3 or w.shape[0] != m for w in weights):
        raise ValueError(f"weights: must have shapes (m, h, h'), got {[tuple(w.shape) for w in weights]}")
    for i, w in enumerate(weights):
        checks.matrices(w, f"weights[{i}]")
    x, y = _data(x, y, weights)
    rates = checks.per_member(lr, "lr", weights[0])
    decays = checks.per_member(weight_decay, "weight_decay", weights[0], zero=True)
    epochs, batch = checks.integer(epochs, "epochs", 1), checks.integer(batch, "batch", 1)
    schedule = momentum if isinstance(momentum, tuple) else (momentum, 0.0, momentum)
    if (
        len(schedule) != 3
        or not all(isinstance(v, int | float) for v in schedule)
        or not (0 <= schedule[0] <= schedule[2] < 1 and schedule[1] >= 0)
    ):
        raise ValueError(
            "momentum: must be in [0, 1), or (first, step, most) with first <= most < 1 and step >= 0, "
            f"got {momentum!r}"
        )
    if not 0 < checks.number(decay) <= 1:
        raise ValueError(f"decay: must be in (0, 1], got {decay!r}")
    checks.at_least(stop, "stop", 0, infinite=True)
    if loss not in LOSSES:
        raise ValueError(f"loss: must be one of {', '.join(LOSSES)}, got {loss!r}")
    if method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {method!r}")
    if checks.fraction(alpha, "alpha") and method != "ddp-sgd":
        raise ValueError(f"alpha: must be 0 where the method is not 'ddp-sgd', got {alpha!r}")
    if checks.fraction(dropout, "dropout") and method == "ddp-sgd":
        raise ValueError(f"dropout: must be 0 where the method is 'ddp-sgd', got {dropout!r}")
    if len(shuffles) != m:
        raise ValueError(f"shuffles: must hold one generator for each of {m} members, got {len(shuffles)}")
    for generator in shuffles:
        checks.random(generator, "shuffles")

    final = [w.detach().clone() for w in weights]
    history = torch.full((m, epochs), torch.nan, dtype=final[0].dtype, device=final[0].device)
    trained = torch.zeros(m, dtype=torch.int64)
    held = 3 * sum(w[0].numel() for w in weights) + 2 * batch * sum(w.shape[1] for w in weights)
    together = max(1, _WORKING_SET // held)
    with torch.no_grad():
        for lowest in range(0, m, together):
            members = torch.arange(lowest, min(m, lowest + together))
            _train(
                final, x, y, rates, decays, members, shuffles, history, trained,
                epochs, batch, schedule, decay, stop, loss == "truncated", method, alpha, dropout, exact,
            )  # fmt: skip
    last = history.gather(1, (trained - 1).to(history.device)[:, None])[:, 0]
    return Trained(weights=final, loss=last, history=history, epochs=trained, reached=last < stop)


def _data(x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return inputs ``(m or 1, n, h_0)`` and classes ``(m or 1, n)``."""
    m, inputs, classes = weights[0].shape[0], weights[0].shape[2], weights[-1].shape[1]
    checks.matrices(x, "x")
    if x.ndim not in (2, 3) or x.shape[-1] != inputs or 0 in x.shape or (x.ndim == 3 and x.shape[0] != m):
        raise ValueError(f"x: must have shape (n, {inputs}) or ({m}, n, {inputs}) with n >= 1, got {tuple(x.shape)}")
    if x.dtype != weights[0].dtype or x.device != weights[0].device:
        raise ValueError(
            f"x: must have the dtype and device of the weights, {weights[0].dtype} on {weights[0].device}, "
            f"got {x.dtype} on {x.device}"
        )
    checks.scored(y, x.new_empty(()).expand(m, x.shape[-2], classes), "y")
    if y.ndim == 2 and y.shape[0] != m:
        raise ValueError(f"y: must have shape ({x.shape[-2]},) or ({m}, {x.shape[-2]}), got {tuple(y.shape)}")
    return (x if x.ndim == 3 else x[None]), (y if y.ndim == 2 else y[None])


def _train(
    final: list[Tensor], x: Tensor, y: Tensor, rates: Tensor, decays: Tensor, members: Tensor,
    shuffles: Sequence[torch.Generator], history: Tensor, trained: Tensor,
    epochs: int, batch: int, momentum: tuple[float, float, float], decay: float, stop: float, truncated: bool,
    method: Method, alpha: float, dropout: float, exact: bool,
) -> None:  # fmt: skip
    """Train ``members`` together; write their weights, losses and numbers of epochs where they belong."""
    device = final[0].device
    n = x.shape[1]
    w = [f[members] for f in final]
    velocity = [torch.zeros_like(each) for each in w]
    squares = [torch.zeros_like(each) for each in w]
    xs, ys = _of(x, members), _of(y, members)
    wide = (-1, 1, 1)
    eta, shrink = rates[members].view(wide), decays[members].view(wide)
    shrinks = bool((shrink > 0).any())
    kept = 1 / (1 - dropout)
    for epoch in range(epochs):
        mu = min(momentum[2], momentum[0] + momentum[1] * epoch)
        order = torch.stack([torch.randperm(n, generator=shuffles[i]) for i in members.tolist()]).to(device)
        xe, ye = _ordered(xs, order), _ordered(ys, order)
        total = xe.new_zeros(len(members))
        for low in range(0, n, batch):
            # Samples are columns: over few classes, operations along the last dimension would be slow.
            hidden = [xe[:, low : low + batch].mT]
            for each in w[:-1]:
                hidden.append(torch.bmm(each, hidden[-1]).clamp_min_(0))
                if dropout:
                    hidden[-1].mul_(_masks(hidden[-1], dropout, [shuffles[i] for i in members.tolist()])).mul_(kept)
            losses, back = score_gradient(
                torch.bmm(w[-1], hidden[-1]), ye[:, low : low + batch], truncated=truncated, dim=-2
            )
            total += losses.sum(-1)
            back /= losses.shape[-1]
            scales = None
            if method in ("path-sgd", "ddp-sgd"):
                scales = data_path_scales(w, [h.mT for h in hidden], alpha)
            steps = []
            for i in reversed(range(len(w))):
                v, h = velocity[i], hidden[i]
                if method == "sgd":
                    v.baddbmm_(back, h.mT, beta=mu)
                else:
                    gradient = torch.bmm(back, h.mT)
                    if scales is not None:
                        # A weight on no path has no gradient either: 0/0 is no step.
                        gradient = torch.where(gradient == 0, gradient, gradient / scales[i])
                    else:
                        squares[i].addcmul_(gradient, gradient)
                        gradient /= squares[i].sqrt().add_(1e-8)
                    v.mul_(mu).add_(gradient)
                if shrinks:
                    v.addcmul_(w[i], shrink)
                steps.append((i, v))
                if i:
                    # What a mask has set to 0 counts as switched off.
                    back = torch.ops.aten.threshold_backward(torch.bmm(w[i].mT, back), h, 0)
                    if dropout:
                        back *= kept
            for i, v in steps:
                w[i].addcmul_(v, eta, value=-1)
        eta = eta * decay
        mean = _loss(w, xs, ys, truncated) if exact or dropout else total / n
        history[members, epoch] = mean
        trained[members] = epoch + 1
        going = torch.isfinite(mean) & (mean >= stop)
        if not going.all():
            keep, done = going.cpu(), ~going.cpu()
            for f, each in zip(final, w, strict=True):
                f[members[done]] = each[done]
            members = members[keep]
            if not len(members):
                return
            w, velocity, squares = ([each[keep] for each in group] for group in (w, velocity, squares))
            xs, ys, eta, shrink = (each if len(each) == 1 < len(keep) else each[keep] for each in (xs, ys, eta, shrink))
    for f, each in zip(final, w, strict=True):
        f[members] = each


def _masks(hidden: Tensor, dropout: float, sources: Sequence[torch.Generator]) -> Tensor:
    """Return which outputs of hidden units stay, each member's from its own generator, as ``hidden`` is shaped."""
    drawn = [torch.rand(hidden.shape[1:], generator=source) for source in sources]
    return (torch.stack(drawn) >= dropout).to(hidden)


def _loss(w: Sequence[Tensor], x: Tensor, y: Tensor, truncated: bool) -> Tensor:
    """Return each member's mean loss on all of its samples, nothing dropped."""
    m, n = len(w[0]), x.shape[1]
    total = x.new_zeros(m)
    for low in range(0, n, _CHUNK):
        h = x[:, low : low + _CHUNK].mT.expand(m, -1, -1)
        for each in w[:-1]:
            h = torch.bmm(each, h).clamp_min_(0)
        labels = y[:, low : low + _CHUNK].expand(m, -1)
        total += score_gradient(torch.bmm(w[-1], h), labels, truncated=truncated, dim=-2)[0].sum(-1)
    return total / n


def _ordered(data: Tensor, order: Tensor) -> Tensor:
    """Return the samples of each member in its order, ``(members, n, ...)``."""
    rows = order
    if len(data) > 1:
        rows = order + data.shape[1] * torch.arange(len(data), device=order.device)[:, None]
    # Whole rows are copied, which is twenty times as fast as gathering numbers.
    return data.flatten(0, 1).index_select(0, rows.flatten()).view(*order.shape, *data.shape[2:])


def _of(data: Tensor, members: Tensor) -> Tensor:
    """Return the members' own data, or what all share."""
    return data if len(data) == 1 else data[members]
