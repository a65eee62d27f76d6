"""The margin on the training set, and the four capacities that are normalised by it."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from implicitreg import checks
from implicitreg.measures.norms import group_product, operator_product, path_norm
from implicitreg.measures.running import alone, misfit, run
from implicitreg.nets import layers as ly
from implicitreg.nets.perceptron import outputs

# Hidden units held at once, over networks and samples: 128 MiB in float64. And inputs of a module, in bytes: some
# dozens of images, whose hidden units then mostly stay in the cache, or some thousand vectors.
_HELD, _INPUTS = 2**24, 2**20


def _in_parts(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the outputs, of some samples at a time where the hidden units of all would need much memory."""
    held = max(math.prod(w.shape[:-1]) for w in weights)
    rows = max(1, _HELD // held)
    if x.ndim < 2 or x.shape[-2] <= rows:
        return outputs(weights, x)
    parts = [outputs(weights, x[..., i : i + rows, :]) for i in range(0, x.shape[-2], rows)]
    return torch.cat(parts, -2)


def scores(model: ly.Network, x: Tensor, y: Tensor) -> Tensor:
    """Return the outputs of a network in evaluation mode, ``(..., n, k)``, checked to be finite and to fit ``y``."""
    checks.floating(x, "x")
    if not x.ndim or 0 in x.shape:
        raise ValueError(f"x: must hold at least one sample, got shape {tuple(x.shape)}")
    weights = None if isinstance(model, nn.Module) else ly.matrices(model)
    own = next(model.parameters(), x) if isinstance(model, nn.Module) else model[0]
    for name, given in (("x", x), ("y", y)):
        if isinstance(given, Tensor):
            checks.located(given, own.device, name)
    try:
        with torch.no_grad():
            if isinstance(model, nn.Module):
                with ly.evaluation(model):
                    parts = torch.tensor_split(x, math.ceil(x.nbytes / _INPUTS))  # as large as each other
                    z = alone(model, x, torch.cat([run(model, part) for part in parts if len(part)]))
            else:
                with misfit(x):
                    z = _in_parts(weights or [], x)
                checks.finite(z, "model: outputs")
    except ValueError:
        checks.finite(x, "x")
        raise
    if z.ndim < 2 or z.shape[-1] < 2 or (weights is None and z.ndim > 2):
        many = "" if weights is None else "..., "
        raise ValueError(f"model: outputs must have shape ({many}n, k) with k >= 2, got {tuple(z.shape)}")
    checks.scored(y, z, "y")
    return z


def margins(model: ly.Network, x: Tensor, y: Tensor) -> Tensor:
    r"""Return the margin of each sample, :math:`f_w(x_i)[y_i] - \max_{c \ne y_i} f_w(x_i)[c]`.

    Positive where the sample is classified correctly.

    Parameters
    ----------
    model
        Any module with outputs ``(n, k)``, k >= 2, or weight matrices ``(..., h_i, h_{i-1})``. In evaluation mode
        the outputs of one sample must depend on that sample alone.
    x
        Inputs: shape ``(n, ...)`` for a module, ``(..., n, h_0)`` for weight matrices.
    y
        Classes, shape ``(n,)`` or ``(..., n)``, int64.

    Returns
    -------
    Tensor
        Shape ``(n,)`` or ``(..., n)``.

    Raises
    ------
    TypeError
        ``x`` or ``y`` is no tensor of the right dtype.
    ValueError
        No sample, inputs that do not fit the model, a label outside the range, fewer than two outputs, or inputs or
        outputs that are not finite.

    Notes
    -----
    Cost: one forward pass, in evaluation mode; the model is not changed. Source: Neyshabur et al. 2017, Exploring
    Generalization in Deep Learning.

    Examples
    --------
    >>> margins([torch.eye(2)], torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    tensor([ 2., -2.])
    """
    return margins_of(scores(model, x, y), y)


def margins_of(z: Tensor, y: Tensor) -> Tensor:
    """Return the margins from scores ``(..., n, k)``."""
    index = y.expand(z.shape[:-1])[..., None]
    own = z.gather(-1, index).squeeze(-1)
    return own - z.scatter(-1, index, -math.inf).amax(-1)


def margin(model: ly.Network, x: Tensor, y: Tensor, quantile: float = 0.05) -> Tensor:
    """Return the margin of the training set: a low quantile of `margins`, by default the 5th percentile.

    Between two samples it is interpolated linearly. Arguments, errors, cost and source are those of `margins`; in
    addition ``quantile`` must be a number from 0 to 1. A tensor of shape ``()`` or ``(...)`` is returned, of the
    outputs' dtype.

    Examples
    --------
    >>> x = torch.arange(21.0)[:, None] * torch.tensor([1.0, 0.0])
    >>> margin([torch.eye(2)], x, torch.zeros(21, dtype=torch.int64))
    tensor(1.)
    """
    quantile = checks.share(quantile, "quantile")
    return quantile_of(margins(model, x, y), quantile)


def quantile_of(values: Tensor, q: float) -> Tensor:
    """Return a quantile over the last dimension, linearly interpolated, of however many values."""
    position = q * (values.shape[-1] - 1)
    low = min(math.floor(position), values.shape[-1] - 1)
    least = values.topk(min(low + 2, values.shape[-1]), -1, largest=False).values
    return torch.lerp(least[..., low], least[..., -1], position - low) if position > low else least[..., low]


@dataclass(frozen=True)
class Capacities:
    r"""The four capacities of *Exploring Generalization in Deep Learning*, each divided by the squared margin γ².

    Attributes
    ----------
    l2
        :math:`\prod_i \|W_i\|_F^2 / \gamma^2`, with factors times :math:`4^d`.
    l1_path
        :math:`\phi_1^2 / \gamma^2`, with factors times :math:`4^d`.
    l2_path
        :math:`\phi_2^2 / \gamma^2`, with factors times :math:`\prod_i 4 h_i`.
    spectral
        :math:`\prod_i \|W_i\|_2^2 / \gamma^2`, with factors times :math:`\prod_i h_i`.
    margin
        γ.
    """

    l2: Tensor
    l1_path: Tensor
    l2_path: Tensor
    spectral: Tensor
    margin: Tensor


def capacities(
    model: ly.Network,
    x: Tensor,
    y: Tensor,
    quantile: float = 0.05,
    factors: bool = False,
    *,
    input_shape: Sequence[int] | None = None,
) -> Capacities:
    r"""Return the four capacities: squared norms of the weights over the squared margin.

    They are meant to be compared between networks that fit their training set, at the same training loss. Where
    the margin is not positive the bounds are void: the capacities are infinite, and a warning says so.

    Parameters
    ----------
    model
        A module built of supported layers, or weight matrices ``(..., h_i, h_{i-1})``.
    x, y
        Training inputs and classes, as for `margins`.
    quantile
        Which quantile of the margins is γ.
    factors
        Whether the factors that depend on depth and width alone are included, as the theory has them; the
        published figures leave them out. d is the number of layers with weights, and :math:`h_i` the number of units
        of layer i, outputs included; for a convolution the number of its channels. The theory knows no skip
        connections: here the layers of branch and shortcut all count, a shortcut without weights does not.
    input_shape
        Shape of one input; by default that of ``x``.

    Returns
    -------
    Capacities
        Of tensors of shape ``()`` or ``(...)``, of the weights' dtype.

    Raises
    ------
    TypeError, ValueError
        As for `path_norm`, `group_norm`, `spectral_product` and `margin`.

    Warns
    -----
    RuntimeWarning
        A margin is not positive.

    Notes
    -----
    Cost: one forward pass over the data, three passes over the weights and one singular value decomposition a
    layer. Sources: Neyshabur et al. 2017, Exploring Generalization in Deep Learning (secondary; the figures'
    version was read off the captions).

    Examples
    --------
    >>> weights = [2 * torch.eye(2), torch.eye(2)]
    >>> c = capacities(weights, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> [round(value.item(), 4) for value in (c.margin, c.l2, c.l1_path, c.l2_path, c.spectral)]
    [2.0, 4.0, 4.0, 2.0, 1.0]
    """
    shape = tuple(x.shape[1:]) if input_shape is None and isinstance(x, Tensor) else input_shape
    return capacities_at(model, margin(model, x, y, quantile), shape, factors)


def capacities_at(
    model: ly.Network, gamma: Tensor, input_shape: Sequence[int] | None, factors: bool = False
) -> Capacities:
    """Return the four `capacities` of a network whose margin is known."""
    shape = input_shape if isinstance(model, nn.Module) else None
    with torch.no_grad():
        void = gamma <= 0
        if void.any():
            warnings.warn(
                f"the margin is not positive ({gamma.min().item():.3g}): the capacities are infinite",
                RuntimeWarning,
                stacklevel=3,
            )
        ly.finite(model)
        found = ly.layers(model)
        ly.unhooked(model)
        norm = torch.stack(
            [
                group_product(found, 2, 2),
                path_norm(model, 1, input_shape=shape),
                path_norm(model, 2, input_shape=shape),
                operator_product(found, shape),
            ]
        )
        l2, l1_path, l2_path, spectral = torch.where(void, math.inf, (norm / gamma).square())
    if factors:
        weights = [(layer.weight, layer.kind) for layer in found if layer.weight is not None]
        units = [weight.shape[-2 if kind == ly.LINEAR else 0] for weight, kind in weights]
        four, width = 4.0 ** len(units), float(math.prod(units))
        l2, l1_path, l2_path, spectral = four * l2, four * l1_path, four * width * l2_path, width * spectral
    return Capacities(l2=l2, l1_path=l1_path, l2_path=l2_path, spectral=spectral, margin=gamma)
