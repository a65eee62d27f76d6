"""Norms of the weights of a network: what might bound its capacity."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.nets import layers as ly
from implicitreg.nets.paths import log_path_sum, path_sum

# Of the largest eigenvalue: how far the Lanczos iterations may leave its equation unsolved, and how many there are.
_RESIDUAL = 1e-8
_ITERATIONS = 2000


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
    before it, in evaluation mode. A skip connection that passes on its input has edges of weight 1.

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
    folded into the layer before; one that follows no such layer counts as a diagonal matrix. Of a residual block the
    layers of both paths count; a shortcut without weights does not.

    Parameters
    ----------
    model
        A module built of supported layers, or weight matrices ``(..., h_i, h_{i-1})``.
    p, q
        Exponents, > 0; ``inf`` allowed.

    Returns
    -------
    Tensor
        Shape ``()``, or ``(...)`` for weight matrices; dtype and device of the weights; differentiable.

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

    Arguments, result and errors are those of `group_norm`.

    Notes
    -----
    Cost: one pass over the weights. Source: Neyshabur et al. 2015, Norm-Based Capacity Control in Neural Networks.

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
    the layer before; one that follows no such layer counts by itself. A residual block counts with the sum of the
    products of its two paths; a shortcut that passes on its input adds 1.

    Parameters
    ----------
    model
        A module built of supported layers, or weight matrices ``(..., h_i, h_{i-1})``.
    input_shape
        Shape of one input, without the batch dimension: needed for convolutions.

    Returns
    -------
    Tensor
        Shape ``()``, or ``(...)`` for weight matrices; dtype and device of the weights; not differentiable.

    Raises
    ------
    TypeError
        A layer is not supported; the message names it.
    ValueError
        A weight is not finite, layers do not fit each other, or ``input_shape`` is missing or does not fit.

    Warns
    -----
    RuntimeWarning
        The norm of a convolution has not converged.

    Notes
    -----
    Cost: one singular value decomposition a linear layer; for a convolution a dense one below 256 inputs or outputs,
    else some 100 Lanczos iterations in float64, of two convolutions each, until the residual of :math:`\sigma^2` is
    1e-8 of it: that bounds the relative error of σ by 5e-9, and it is commonly that of rounding.
    Source: Neyshabur et al. 2017, Exploring Generalization in Deep Learning.

    Examples
    --------
    >>> spectral_product([torch.diag(torch.tensor([3.0, 4.0])), torch.tensor([[0.0, 2.0]])])
    tensor(8.)
    """
    ly.finite(model)
    return operator_product(ly.layers(model), input_shape)


def operator_product(found: Sequence[ly.Layer], input_shape: Sequence[int] | None) -> Tensor:
    """Return `spectral_product` of layers whose weights are known to be finite."""

    def norm(layer: ly.Layer, a: Tensor | None) -> Tensor:
        return operator_norm(layer, a) if layer.kind == ly.CONV else singular_values(layer)[..., 0]

    return slope_bound(found, input_shape, norm)


def slope_bound(
    found: Sequence[ly.Layer],
    input_shape: Sequence[int] | None,
    norm: Callable[[ly.Layer, Tensor | None], Tensor],
) -> Tensor:
    """Return the bound on the slope that norms of the layers give; ``norm`` is told what the input looks like."""
    # Convolutions of large images need gradients, whatever the mode of the caller.
    with torch.inference_mode(False), torch.no_grad():
        a = None
        shaped = any(layer.kind in (ly.CONV, ly.JOIN) for layer in found)
        first = next(layer.weight for layer in found if layer.weight is not None)
        blamed = "model" if input_shape is None else "input_shape"
        if shaped or input_shape is not None:
            shape = ly.input_dimensions(found, input_shape)
            a = first.new_ones((1, *shape)) if shaped else None

        def through(layer: ly.Layer, state: tuple[Tensor | None, Tensor]) -> tuple[Tensor | None, Tensor]:
            a, bound = state
            after = None if a is None else _after(layer, a, blamed)
            return after, bound if layer.weight is None else bound * norm(layer, a)

        def joined(
            layer: ly.Layer, one: tuple[Tensor | None, Tensor], other: tuple[Tensor | None, Tensor]
        ) -> tuple[Tensor | None, Tensor]:
            (a, bound), (b, beside) = one, other
            if a is not None and b is not None and a.shape != b.shape:
                raise ly.misfit(layer, a.shape[1:], blamed)
            # What came before the branch is a factor of both.
            return a, bound + beside

        return ly.followed(found, (a, first.new_ones(())), through, joined)[1]


def singular_values(layer: ly.Layer) -> Tensor:
    """Return the singular values of a layer's weights as a matrix, largest first."""
    assert layer.weight is not None
    if layer.kind == ly.BATCH_NORM:
        return layer.weight.abs().sort(descending=True).values
    sigma: Tensor = torch.linalg.svdvals(_matrix(layer))
    return sigma


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


def operator_norm(layer: ly.Layer, a: Tensor | None) -> Tensor:
    """Return the largest singular value of a layer's linear map on inputs like ``a``."""
    assert a is not None
    assert layer.weight is not None
    shape, size, out = a.shape[1:], a.numel(), _apply(layer, a)
    if min(size, out.numel()) <= 256 and size * out.numel() <= 2**22:
        images = _apply(layer, torch.eye(size, dtype=a.dtype, device=a.device).view(size, *shape))
        sigma: Tensor = torch.linalg.svdvals(images.flatten(1))
        return sigma[0]
    weight = layer.weight.detach().to("cpu", torch.float64)
    scale = weight.abs().amax().item()
    if not scale:
        return a.new_zeros(())
    # Divided by its scale, whose square might leave the range.
    layer = layer._replace(weight=weight / scale)
    with torch.enable_grad():
        z = torch.zeros((1, *shape), dtype=torch.float64, requires_grad=True)
        image = _apply(layer, z)

    def forward(v: Tensor) -> Tensor:
        return _apply(layer, v.view(z.shape)).flatten()

    def adjoint(v: Tensor) -> Tensor:
        (back,) = torch.autograd.grad(image, z, v.view(image.shape), retain_graph=True)
        return back.flatten()

    if size <= image.numel():
        top = _largest_eigenvalue(lambda v: adjoint(forward(v)), size, layer.name)
    else:
        top = _largest_eigenvalue(lambda v: forward(adjoint(v)), image.numel(), layer.name)
    return a.new_tensor(scale * math.sqrt(top))


def _largest_eigenvalue(product: Callable[[Tensor], Tensor], size: int, name: str) -> float:
    """Return the largest eigenvalue of a positive semidefinite map, by Lanczos iterations."""
    from scipy.linalg import eigh_tridiagonal

    # A fixed start, so that the result does not depend on a global generator; drawn, because one with the symmetries
    # of the image could be orthogonal to what is looked for.
    v = torch.from_numpy(np.random.default_rng(0).standard_normal(size))
    v, before, off = v / v.norm(), torch.zeros_like(v), 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    for k in range(1, _ITERATIONS + 1):
        # Not orthogonalised against all that came before: copies of the largest eigenvalue, which rounding errors then
        # bring about once it is found, do no harm here.
        w = product(v).sub_(before, alpha=off)
        diagonal.append(torch.dot(w, v).item())
        w.sub_(v, alpha=diagonal[-1])
        off = torch.linalg.vector_norm(w).item()
        if k % 8 == 0 or off <= _RESIDUAL * abs(diagonal[0]) or k == _ITERATIONS:
            (top,), vector = eigh_tridiagonal(diagonal, beside, select="i", select_range=(k - 1, k - 1))
            if off * abs(vector[-1, 0]) <= _RESIDUAL * top:
                return float(top)
        beside.append(off)
        before, v = v, w / off
    warnings.warn(
        f"the operator norm of layer {name!r} has not converged in {_ITERATIONS} Lanczos iterations",
        RuntimeWarning,
        stacklevel=2,
    )
    return float(top)
