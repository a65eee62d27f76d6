"""Norms and ranks of a network, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from implicitreg.measures.norms import operator_norm, singular_values, slope_bound
from implicitreg.measures.spectral import entropy_rank
from implicitreg.nets import layers as ly


@dataclass(frozen=True, eq=False)
class LayerNorms:
    r"""Norms and ranks of one layer with weights.

    Attributes
    ----------
    name
        Of the module in the network, or ``weights[i]``.
    kind
        The class of the module, or ``"matrix"``.
    shape
        Shape of its weights.
    spectral
        Norm :math:`\|W\|_2` of the linear map between inputs and outputs: of a convolution with its padding and
        stride.
    frobenius
        :math:`\|W\|_F` of the weights.
    stable_rank
        :math:`\|W\|_F^2 / \sigma_1^2` of the weights as a matrix, from 1 to its rank; NaN for zero weights.
    effective_rank
        Exponential of the entropy of the normalised singular values of the weights as a matrix (`effective_rank`); NaN
        for zero weights.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    spectral: Tensor
    frobenius: Tensor
    stable_rank: Tensor
    effective_rank: Tensor


def layer_norms(model: ly.Network, *, input_shape: Sequence[int] | None = None) -> list[LayerNorms]:
    r"""Return norms and ranks of every layer with weights, in the order of the forward pass.

    .. math:: \|W\|_2 = \sigma_1, \quad \|W\|_F = \Big(\sum_r \sigma_r^2\Big)^{1/2}, \quad
        \operatorname{srank}(W) = \frac{\|W\|_F^2}{\sigma_1^2}, \quad
        \operatorname{erank}(W) = \exp\Big(-\sum_r \rho_r \ln \rho_r\Big), \quad
        \rho_r = \frac{\sigma_r}{\sum_s \sigma_s}.

    The weights of a linear layer are a matrix. Those of a convolution become one, of shape ``(filters, channels of a
    group × positions of the kernel)``, for its ranks and its Frobenius norm; its spectral norm is that of the linear
    map that it is, on inputs of the given size. A batch norm is folded into the layer before it; one that follows no
    such layer is a diagonal matrix. A layer that is used twice is listed twice.

    Parameters
    ----------
    model
        A module built of supported layers, or weight matrices ``(..., h_i, h_{i-1})``.
    input_shape
        Shape of one input, without the batch dimension: needed for convolutions.

    Returns
    -------
    list of LayerNorms
        Of tensors of shape ``()``, or ``(...)`` for weight matrices; dtype and device of the weights; not
        differentiable.

    Raises
    ------
    TypeError, ValueError
        As for `spectral_product`.

    Warns
    -----
    RuntimeWarning
        The norm of a convolution has not converged.

    Notes
    -----
    Cost: that of `spectral_product`, and one singular value decomposition a convolution. The product of the spectral
    norms is `spectral_product`, unless there are residual blocks. Sources: Rudelson & Vershynin 2007, Sampling from
    Large Matrices, for the stable rank; Roy & Vetterli 2007, The Effective Rank.

    Examples
    --------
    >>> import torch
    >>> (norms,) = layer_norms([torch.diag(torch.tensor([2.0, 2.0, 1.0]))])
    >>> norms.name, norms.shape, norms.spectral.item(), norms.frobenius.item(), norms.stable_rank.item()
    ('weights[0]', (3, 3), 2.0, 3.0, 2.25)
    >>> round(norms.effective_rank.item(), 4)
    2.8717
    """
    ly.finite(model)
    listed = []

    def norm(layer: ly.Layer, a: Tensor | None) -> Tensor:
        assert layer.weight is not None
        sigma = singular_values(layer)
        spectral = operator_norm(layer, a) if layer.kind == ly.CONV else sigma[..., 0]
        # Divided by the largest first, so that no square overflows or vanishes.
        stable = (sigma / sigma[..., :1]).square().sum(-1)
        listed.append(
            LayerNorms(
                name=layer.name,
                kind="matrix" if layer.module is None else type(layer.module).__name__,
                shape=tuple(layer.weight.shape),
                spectral=spectral,
                frobenius=(sigma[..., 0] * stable.sqrt()).nan_to_num(nan=0.0),
                stable_rank=stable,
                effective_rank=entropy_rank(sigma),
            )
        )
        return spectral

    slope_bound(ly.layers(model), input_shape, norm)
    return listed
