"""Descent in the geometry of data-dependent paths: between Path-SGD and the diagonal natural gradient."""

from typing import Any

from torch import Tensor, nn

from implicitreg.dynamics.data_paths import Rule, data_share, fisher_scales, path_factors
from implicitreg.dynamics.path_sgd import LastInput, PathOptimizer, Scale, linear_scales
from implicitreg.nets import layers as ly


class DDPSGD(PathOptimizer):
    r"""DDP-SGD: `PathSGD` with scales κ that depend on the data by a share α.

    With the recursion,

    .. math::

        \kappa_{u \to v} = \big(\alpha\,\mathbb E[h_u^2] + (1-\alpha)\,\gamma_u^2\big)\, s_v, \qquad
        \gamma_v^2 = \alpha\,\mathbb E[z_v^2] + (1-\alpha) \sum_u \gamma_u^2 w_{u \to v}^2, \qquad
        s_u = (1-\alpha) \sum_v w_{u \to v}^2 s_v,

    :math:`\gamma = 1` at the inputs and :math:`s = 1` at the outputs; with the mix,
    :math:`\kappa = \alpha\,\kappa^{\text{Fisher}} + (1-\alpha)\,\kappa^{\text{path}}`, where

    .. math:: \kappa^{\text{Fisher}}_e = \mathbb E \sum_o \Big(\frac{\partial f_o}{\partial w_e}\Big)^2

    is the diagonal of the Fisher information of :math:`y \sim \mathcal N(f_w(x), I)`. Expectations are means over
    the data of the model's last forward pass in training mode with gradients enabled. At α = 0 both are `PathSGD`,
    and neither sees a rescaling of hidden units at any α.

    Parameters
    ----------
    model
        Linear layers with a ReLU between them, with or without biases; a Flatten may come first.
    lr
        Step size η > 0.
    alpha
        Share of the data: in [0, 1) for the recursion, in [0, 1] for the mix.
    momentum
        μ in [0, 1).
    rule
        ``"recursion"``, believed to be the published rule, or ``"mix"``. By default the recursion, and at α = 1, where
        it degenerates (every κ below the last layer is 0), the mix.
    every, damping, clip
        As for `PathSGD`.

    Raises
    ------
    TypeError
        ``model`` is no module, or holds another layer.
    ValueError
        A weight is not finite, or another argument is out of range; at `step`, no forward pass was seen.

    Notes
    -----
    Where κ = 0 a weight stays: at α = 1, that of a unit which is dead for all data, whose gradient is 0 as well.
    The data are kept by reference until the next forward pass.

    Cost: the recursion, one forward pass more than `PathSGD`; the mix, as many backward passes as there are outputs.

    References
    ----------
    Neyshabur, Tomioka, Salakhutdinov & Srebro (2016), Data-Dependent Path Normalization in Neural Networks,
    arXiv:1511.06747 (recalled; the exact mix was not at hand).

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> optimiser = DDPSGD(model, lr=1.0, alpha=1.0)
    >>> model(torch.tensor([[2.0, 0.0]])).sum().backward()
    >>> before = model[0].weight.detach().clone()
    >>> optimiser.step(), model[0].weight.data - before  # gradient (2, 0) over the second moments (4, 0)
    (None, tensor([[-0.5000,  0.0000]]))
    """

    _kept = (*PathOptimizer._kept, "_alpha", "_rule", "_seen")

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        alpha: float,
        *,
        momentum: float = 0.0,
        rule: Rule | None = None,
        every: int = 1,
        damping: float = 0.0,
        clip: float | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
        self._alpha, self._rule = data_share(alpha, rule)
        _alternating(model)
        super().__init__(model, lr, momentum, every, damping, clip)
        # A unit that is dead for the data of the scales may be alive for those of the gradient.
        self._zeros = self._alpha == 1
        self._seen = LastInput(model, training=True) if self._alpha else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if state.get("_seen") is not None:
            self._seen = LastInput(self._model, training=True)

    def _scales(self) -> dict[Tensor, Scale]:
        weights, biases = _alternating(self._model)
        if self._seen is None:
            return linear_scales(weights, biases, path_factors(weights, biases=biases))
        x = self._seen.x
        if x is None:
            raise ValueError("model: must have made a forward pass in training mode, with gradients, before a step")
        hidden = [x.reshape(-1, weights[0].shape[1])]
        for w, b in zip(weights[:-1], biases, strict=False):
            hidden.append(nn.functional.linear(hidden[-1], w, b).clamp_min_(0))
        if self._rule == "recursion":
            return linear_scales(weights, biases, path_factors(weights, hidden, self._alpha, biases=biases))
        fisher, offsets = fisher_scales(weights, hidden, biases=True)
        found = [*zip(weights, fisher, strict=True), *((b, k) for b, k in zip(biases, offsets, strict=True))]
        mixed: dict[Tensor, Scale] = {w: [k] for w, k in found if w is not None}
        if self._alpha < 1:
            paths = linear_scales(weights, biases, path_factors(weights, biases=biases))
            for w, scale in mixed.items():
                path = paths[w][0] if len(paths[w]) == 1 else paths[w][0][:, None] * paths[w][1]
                scale[0].mul_(self._alpha).add_(path, alpha=1 - self._alpha)
        return mixed


def _alternating(model: nn.Module) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return weights and biases of linear layers with a ReLU between any two.

    Raises
    ------
    TypeError
        The model is built otherwise.
    """
    found = [(name, m) for name, m, _ in ly.modules(model) if not isinstance(m, nn.Identity)]
    if found and isinstance(found[0][1], nn.Flatten):
        found = found[1:]
    for name, module in found:
        if not isinstance(module, nn.Linear | nn.ReLU):
            raise TypeError(
                f"model: unsupported layer {type(module).__name__} (at {name!r}); supported are Linear and ReLU, "
                "after a Flatten or not"
            )
        if any(key not in module._parameters for key in ("weight", "bias") if isinstance(module, nn.Linear)):
            raise TypeError("model: a parametrised layer has other weights than its parameters")
    linear = [m for _, m in found if isinstance(m, nn.Linear)]
    if [m for _, m in found][::2] != linear or len(found) % 2 == 0:
        raise TypeError("model: must be Linear layers with one ReLU between any two, none at the end")
    weights: list[Tensor] = [m.weight for m in linear]
    if len(set(weights)) < len(weights):
        raise TypeError(ly.SHARED)
    return weights, [m.bias for m in linear]
