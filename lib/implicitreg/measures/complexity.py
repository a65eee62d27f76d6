"""The geometric complexity of a network: how much its outputs change with its inputs, on average."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from implicitreg import checks
from implicitreg.nets import layers as ly
from implicitreg.nets.perceptron import perceptron

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
    checks.finite(checks.floating(x, "x"), "x")
    if x.ndim < 2 or len(x) < 2 or 0 in x.shape:
        raise ValueError(f"x: must have shape (n, ...) with n >= 2, got {tuple(x.shape)}")
    if not isinstance(model, nn.Module):
        if any(w.ndim != 2 for w in ly.matrices(model)):
            raise ValueError(f"model: must be one network, got weights of shapes {[tuple(w.shape) for w in model]}")
        model = perceptron(model)
    own = next(model.parameters(), x)
    checks.located(x, own.device, "x")
    # In inference mode there are no gradients.
    with torch.inference_mode(False), torch.enable_grad(), ly.evaluation(model):
        x = x.detach()
        together = batch or max(1, _KEPT // _kept(model, x[:1]))
        squares = torch.cat([_squares(model, part) for part in torch.split(x, together)])
    value, error = float(squares.mean()), float(squares.std()) / math.sqrt(len(squares))
    if not math.isfinite(value + error):
        raise ValueError("model: gradients in x, or their squares, are not finite")
    return GeometricComplexity(value, error)


def _scores(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs, with their graph."""
    try:
        z: Tensor = model(x)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"x: of shape {tuple(x.shape)} and {x.dtype} does not fit the model: {error}") from error
    if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(x) or not z.numel():
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"model: outputs for {len(x)} samples must have shape ({len(x)}, k), k >= 1, got {got}")
    return checks.finite(z, "model: outputs")


def _kept(model: nn.Module, x: Tensor) -> int:
    """Return how many bytes of these samples are kept for the backward passes, at least 1."""
    own = {w.untyped_storage().data_ptr() for w in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        _graph = _scores(model, x.clone().requires_grad_())  # held, so that no storage is used twice
    return max(1, sum(kept.values()))


def _squares(model: nn.Module, x: Tensor) -> Tensor:
    """Return the squared norm of the Jacobian matrix of each sample, in float64."""
    x = x.clone().requires_grad_()
    each = _scores(model, x).unbind(1)
    squares = x.new_zeros(len(x), dtype=torch.float64)
    for left, f in zip(reversed(range(len(each))), each, strict=True):
        try:
            (gradient,) = torch.autograd.grad(f.sum(), x, retain_graph=left > 0)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"model: outputs must be differentiable in x: {error}") from error
        squares += gradient.flatten(1).double().square().sum(1)
    return squares
