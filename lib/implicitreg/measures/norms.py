"""Norms of the weights of a network: what might bound its capacity."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import layers as ly
from implicitreg.nets.paths import log_path_sum, path_sum


def path_norm(
    model: ly.Network,
    p: float = 2.0,
    *,
    input_shape: Sequence[int] | None = None,
    bias: bool = False,
    log: bool = False,
) -> Tensor:
    r"""Return the path norm :math:`\phi_p`: the ℓp norm of the vector of products of weights along all paths.

    .. math:: \phi_p(w) = \Big(\sum_{\text{input} \to v_1 \to \cdots \to \text{output}} \prod_e |w_e|^p\Big)^{1/p}.

    It does not change when the incoming weights of a hidden unit are multiplied and its outgoing ones divided by
    the same number, and is the least product of per-unit norms that such rescalings reach.

    Conventions: paths run from every input to every output. Zero padding adds none. Average pooling is a layer of
    fixed weights 1/k. Max pooling passes the largest sum of a window on. Batch norm is folded into the layer
    before it, in evaluation mode.

    Parameters
    ----------
    model
        A module built of Linear, Conv, ReLU, pooling, BatchNorm, Flatten, Sequential, or a `ReLURecurrent`; or
        the weight matrices ``(..., h_i, h_{i-1})`` of networks without biases, whose leading dimensions are kept.
    p
        Exponent, > 0 and finite.
    input_shape
        Shape of one input, without the batch dimension: needed where the first layer does not tell it.
    bias
        Whether biases count, as edges from a node that is constantly 1. The theory has none.
    log
        Return :math:`\ln \phi_p`, which never under- or overflows.

    Returns
    -------
    Tensor
        Shape ``()``, or ``(...)`` for weight matrices; dtype and device of the weights. Differentiable, unless
        ``log`` is set or the sum left the range of the dtype.

    Raises
    ------
    TypeError
        A layer is not supported; the message names it.
    ValueError
        ``p`` is not > 0, a weight is not finite, ``input_shape`` is missing or does not fit, or layers do not fit each
        other.

    Notes
    -----
    Cost: one forward pass on a single input. Sources: Neyshabur et al. 2015, Norm-Based Capacity Control in Neural
    Networks, equation 7.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> _ = [w.data.copy_(torch.tensor(v)) for w, v in zip(net.parameters(), ([[1., -2.], [0., 3.]], [[2., -1.]]))]
    >>> path_norm(net, p=1).item(), round(path_norm(net).item() ** 2, 4)
    (9.0, 29.0)
    """
    if not log:
        total = path_sum(model, p, input_shape=input_shape, bias=bias)
        if _plain(total):
            return total.sqrt() if p == 2 else total if p == 1 else total.pow(1 / p)
    ly.finite(model)
    result = log_path_sum(model, p, input_shape=input_shape, bias=bias) / p
    return result if log else result.exp()


def _plain(total: Tensor) -> bool:
    """Whether a sum is positive and finite, so that nothing under- or overflowed and no weight was NaN."""
    if total.ndim == 0:
        return 0.0 < total.item() < math.inf
    return bool(((total > 0) & torch.isfinite(total)).all())


def _matrix(layer: ly.Layer) -> Tensor:
    """Return a layer's weights as a matrix, one row a unit: a filter's weights for a convolution."""
    assert layer.weight is not None
    if layer.kind == ly.BATCH_NORM:
        return layer.weight[:, None]
    return layer.weight if layer.kind == ly.LINEAR else layer.weight.flatten(1)


def group_norm(model: ly.Network, p: float, q: float) -> Tensor:
    r"""Return the product over layers of the group norms, :math:`\gamma_{p,q} = \prod_i \|W_i\|_{p,q}`.

    .. math:: \|W\|_{p,q} = \Big(\sum_j \Big(\sum_k |W_{jk}|^p\Big)^{q/p}\Big)^{1/q}:

    ℓp over the incoming weights of a unit, then ℓq over the units of the layer; ``q=inf`` takes the largest unit.
    A filter of a convolution counts once, not once for every position. Biases do not count, batch norms are
    folded into the layer before.

    Parameters
    ----------
    model
        A module built of supported layers, or weight matrices ``(..., h_i, h_{i-1})``.
    p, q
        Exponents, > 0; ``inf`` allowed.

    Returns
    -------
    Tensor
        Shape ``()``, or ``(...)`` for weight matrices; differentiable.

    Raises
    ------
    TypeError
        A layer is not supported; the message names it.
    ValueError
        ``p`` or ``q`` is not > 0, or a weight is not finite.

    Notes
    -----
    Cost: one pass over the weights. Source: Neyshabur et al. 2015, Norm-Based Capacity Control in Neural Networks,
    equations 3 to 5.

    Examples
    --------
    >>> w = [torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[1.0, -1.0]])]
    >>> group_norm(w, p=1, q=float("inf")), group_norm(w, p=2, q=1)
    (tensor(14.), tensor(8.4853))
    """
    p, q = checks.positive(p, "p", infinite=True), checks.positive(q, "q", infinite=True)
    ly.finite(model)
    return group_product(ly.layers(model), p, q)


def group_product(found: Sequence[ly.Layer], p: float, q: float) -> Tensor:
    """Return `group_norm` of layers whose weights are known to be finite."""
    rows = [torch.linalg.vector_norm(_matrix(layer), p, dim=-1) for layer in found if layer.affine]
    return torch.stack([torch.linalg.vector_norm(row, q, dim=-1) for row in rows]).prod(0)


def frobenius_product(model: ly.Network) -> Tensor:
    r"""Return the product of the Frobenius norms of the layers, :math:`\prod_i \|W_i\|_F`, `group_norm` at p = q = 2.

    Arguments and errors are those of `group_norm`.

    Examples
    --------
    >>> frobenius_product([torch.ones(2, 2), torch.ones(1, 2)])
    tensor(2.8284)
    """
    return group_norm(model, 2, 2)


def spectral_product(model: ly.Network, *, input_shape: Sequence[int] | None = None) -> Tensor:
    r"""Return the product of the operator norms of the layers with weights, :math:`\prod_i \|W_i\|_2`.

    It bounds the Lipschitz constant of the network in ℓ2 where the windows of its pooling layers do not overlap:
    pooling, which has no weights, does not enter. A convolution counts with the norm of the linear map between its
    inputs and outputs, padding and stride included, not with that of its reshaped kernel. Batch norms are folded into
    the layer before; one that follows no such layer counts by itself.

    Parameters
    ----------
    model
        A module built of supported layers, or weight matrices ``(..., h_i, h_{i-1})``.
    input_shape
        Shape of one input, without the batch dimension: needed for convolutions.

    Returns
    -------
    Tensor
        Shape ``()``, or ``(...)`` for weight matrices.

    Raises
    ------
    TypeError
        A layer is not supported; the message names it.
    ValueError
        A weight is not finite, layers do not fit each other, or ``input_shape`` is missing or does not fit.

    Notes
    -----
    Cost: one singular value decomposition a linear layer; for a convolution a dense one below 1,024 inputs or
    outputs, else Lanczos iterations to relative accuracy 1e-10, whose products are convolutions.

    Examples
    --------
    >>> spectral_product([torch.diag(torch.tensor([3.0, 4.0])), torch.tensor([[0.0, 2.0]])])
    tensor(8.)
    """
    ly.finite(model)
    return operator_product(ly.layers(model), input_shape)


def operator_product(found: Sequence[ly.Layer], input_shape: Sequence[int] | None) -> Tensor:
    """Return `spectral_product` of layers whose weights are known to be finite."""
    # Convolutions of large images need gradients, whatever the mode of the caller.
    with torch.inference_mode(False), torch.no_grad():
        a = None
        convolutional = any(layer.kind == ly.CONV for layer in found)
        if convolutional or input_shape is not None:
            shape = ly.input_dimensions(found, input_shape)
            first = next(layer.weight for layer in found if layer.weight is not None)
            a = first.new_ones((1, *shape)) if convolutional else None
        norms: list[Tensor] = []
        for layer in found:
            after = None if a is None else _after(layer, a, "model" if input_shape is None else "input_shape")
            if layer.kind == ly.CONV and a is not None:
                norms.append(_operator_norm(layer, a))
            elif layer.weight is not None:
                w = layer.weight
                norms.append(w.abs().amax() if layer.kind == ly.BATCH_NORM else _largest_singular_value(w))
            a = after
    return torch.stack(norms).prod(0)


def _largest_singular_value(w: Tensor) -> Tensor:
    sigma: Tensor = torch.linalg.svdvals(w)
    return sigma[..., 0]


def _apply(layer: ly.Layer, a: Tensor) -> Tensor:
    """Apply the linear part of a layer."""
    if layer.kind == ly.CONV and layer.weight is not None:
        # Without a dimension for channels a convolution would take the batch for it.
        if a.ndim != layer.weight.ndim:
            raise RuntimeError
        return ly.convolve(layer, a, layer.weight)
    if layer.kind == ly.LINEAR and layer.weight is not None:
        return a @ layer.weight.mT
    if layer.kind in (ly.AVERAGE, ly.MAXIMUM, ly.FLATTEN):
        return layer.module.forward(a)  # type: ignore[no-any-return]
    return a


def _after(layer: ly.Layer, a: Tensor, blamed: str) -> Tensor:
    try:
        return _apply(layer, a)
    except (RuntimeError, IndexError) as error:
        raise ly.misfit(layer, a.shape[1:], blamed) from error


def _operator_norm(layer: ly.Layer, a: Tensor) -> Tensor:
    """Return the largest singular value of a layer's linear map on inputs like ``a``."""
    shape, size, out = a.shape[1:], a.numel(), _apply(layer, a)
    if min(size, out.numel()) <= 1024 and size * out.numel() <= 2**22:
        images = _apply(layer, torch.eye(size, dtype=a.dtype, device=a.device).view(size, *shape))
        return _largest_singular_value(images.flatten(1))
    from scipy.sparse.linalg import LinearOperator, svds

    def forward(v: object) -> object:
        return _apply(layer, torch.as_tensor(v, dtype=torch.float64).view(1, *shape)).flatten().numpy()

    def adjoint(v: object) -> object:
        with torch.enable_grad():
            z = torch.zeros((1, *shape), dtype=torch.float64, requires_grad=True)
            image = _apply(layer, z)
            (back,) = torch.autograd.grad(image, z, torch.as_tensor(v, dtype=torch.float64).view(image.shape))
        return back.flatten().numpy()

    assert layer.weight is not None
    layer = layer._replace(weight=layer.weight.detach().to("cpu", torch.float64, copy=True))
    operator = LinearOperator((out.numel(), size), matvec=forward, rmatvec=adjoint, dtype="float64")
    # A fixed start, so that the result does not depend on a global generator; drawn, because one with the symmetries
    # of the image could be orthogonal to what is looked for.
    start = np.random.default_rng(0).standard_normal(min(size, out.numel()))
    (top,) = svds(operator, k=1, tol=1e-10, v0=start, return_singular_vectors=False)
    return a.new_tensor(top)
