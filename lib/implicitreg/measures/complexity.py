"""The geometric complexity of a network: how much its outputs change with its inputs, on average."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from implicitreg import checks
from implicitreg.measures.running import alone, blaming, held, run
from implicitreg.nets import layers as ly
from implicitreg.nets.perceptron import as_module

# Bytes that a batch keeps for its backward passes.
_KEPT = 2**27


@dataclass(frozen=True)
class GeometricComplexity:
    """What `geometric_complexity` returns.

    Attributes
    ----------
    value
        Mean over the samples.
    standard_error
        Its standard error over the samples.
    """

    value: float
    standard_error: float

    def __float__(self) -> float:
        return self.value


def geometric_complexity(model: ly.Network, x: Tensor, *, batch: int | None = None) -> GeometricComplexity:
    r"""Return the geometric complexity, a discrete Dirichlet energy of the scores f over the samples.

    It is :math:`\frac1n \sum_{i=1}^n \|\nabla_x f(x_i)\|_F^2`.

    Parameters
    ----------
    model
        Any module whose outputs ``(n, k)`` are scores before a softmax, differentiable in the inputs; or the weight
        matrices ``(h_i, h_{i-1})`` of a ReLU network without biases. It is not changed, and taken as in evaluation
        mode, in which the scores of one sample must not depend on the others.
    x
        Inputs, shape ``(n, ...)``, n >= 2, float32 or float64 as the weights.
    batch
        Samples at a time, >= 1; by default as many as keep 128 MiB for the backward passes, but at least one.

    Returns
    -------
    GeometricComplexity

    Raises
    ------
    TypeError
        ``x`` is no tensor of dtype float32 or float64, or a batch norm has no running statistics.
    ValueError
        Fewer than two samples, inputs that do not fit the model, outputs of another shape, which are not
        differentiable in x, or numbers that are not finite.

    Notes
    -----
    Cost: one pass forward, and k backward. Squares are added in float64. Where a network has a kink, gradients are
    those that automatic differentiation takes.

    Source: Dherin, Munn, Rosca & Barrett 2022, Why neural networks find simple solutions: the many regularizers of
    geometric complexity.

    Examples
    --------
    >>> weights = [torch.tensor([[3.0, 0.0], [0.0, 4.0]])]  # a linear map: its squared Frobenius norm, everywhere
    >>> geometric_complexity(weights, torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    GeometricComplexity(value=25.0, standard_error=0.0)
    """
    if batch is not None:
        checks.integer(batch, "batch", 1)
    checks.floating(x, "x")
    model = as_module(model)
    checks.located(x, next(model.parameters(), x).device, "x")
    checks.finite(x, "x")
    if x.ndim < 2 or len(x) < 2 or 0 in x.shape:
        raise ValueError(f"x: must have shape (n, ...) with n >= 2, got {tuple(x.shape)}")
    # In inference mode there are no gradients.
    with torch.inference_mode(False), torch.enable_grad(), ly.evaluation(model):
        x = x.detach()
        if batch is None:
            two = x[:2].clone().requires_grad_()
            both = held(lambda: _scores(model, two), (*model.parameters(), *model.buffers()))
            batch = max(1, 2 * _KEPT // max(1, both))
        found, z = zip(*[_squares(model, part) for part in torch.split(x, batch)], strict=True)
        alone(model, x, torch.cat(z))
        squares = torch.cat(found)
    value, error = float(squares.mean()), float(squares.std()) / math.sqrt(len(squares))
    if not math.isfinite(value + error):
        raise ValueError("model: gradients in x, or their squares, are not finite")
    return GeometricComplexity(value, error)


def _scores(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs, with their graph."""
    z = run(model, x)
    if z.ndim != 2 or not z.numel():
        raise ValueError(f"model: outputs must have shape (n, k) with k >= 1, got {tuple(z.shape)}")
    return z


def _squares(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared norm of the Jacobian matrix of each sample, in float64, and the outputs."""
    x = x.clone().requires_grad_()
    z = _scores(model, x)
    each = z.unbind(1)
    squares = x.new_zeros(len(x), dtype=torch.float64)
    for left, f in zip(reversed(range(len(each))), each, strict=True):
        with blaming("model: outputs must be differentiable in x"):
            (gradient,) = torch.autograd.grad(f.sum(), x, retain_graph=left > 0)
        squares += gradient.flatten(1).double().square().sum(1)
    return squares, z.detach()
