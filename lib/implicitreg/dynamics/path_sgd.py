"""Descent in the geometry of the path norm, which sees no rescaling of hidden units."""

import copy
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from implicitreg import checks
from implicitreg.dynamics.data_paths import affine, path_factors
from implicitreg.nets import layers as ly
from implicitreg.nets.paths import path_scales, shared_path_scales
from implicitreg.nets.recurrent import ReLURecurrent

Scale = list[Tensor]
"""κ of one parameter: itself, or the two factors of which it is the outer product."""


class LastInput:
    """What a model's last forward pass took in.

    Parameters
    ----------
    model
        The model that is watched, by a hook.
    training
        Whether only passes in training mode with gradients enabled count.
    """

    def __init__(self, model: nn.Module | None = None, training: bool = False) -> None:
        self.x: Tensor | None = None
        self._training = training
        # A copy of the model carries a copy of the hook, but is not the model.
        self._model = None if model is None else weakref.ref(model)
        self._handle = None if model is None else model.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Keep the first argument, by reference."""
        if self._model is None or self._model() is not module or not arguments:
            return
        if not self._training or (module.training and torch.is_grad_enabled()):
            self.x = arguments[0].detach()

    def __reduce__(self) -> tuple[type["LastInput"], tuple[()]]:
        # Copied or pickled with a model, it watches nothing: so that models with an optimiser can be saved.
        return LastInput, ()

    def close(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
        self._model = self.x = None


class PathOptimizer(torch.optim.Optimizer):
    """What `PathSGD` and `DDPSGD` share: the step, once the scales are known.

    Parameters
    ----------
    model
        The network; its parameters are trained.
    lr, momentum, every, damping, clip
        See `PathSGD`.
    """

    # What `Optimizer.__getstate__` leaves out.
    _kept: tuple[str, ...] = ("_model", "_every", "_clip", "_zeros", "_warned")

    def __init__(
        self, model: nn.Module, lr: float, momentum: float, every: int, damping: float, clip: float | None
    ) -> None:
        self._model = model
        self._every = checks.integer(every, "every", 1)
        self._clip = None if clip is None else checks.positive(clip, "clip")
        # Whether a scale may be 0 where the gradient is not: of a weight whose paths max pooling leaves out.
        self._zeros = any(kind == ly.MAXIMUM for _, _, kind in _modules(model))
        self._warned = False
        ly.finite(model)
        defaults = {
            "lr": checks.positive(lr, "lr"),
            "momentum": checks.fraction(momentum, "momentum"),
            "damping": checks.at_least(damping, "damping", 0),
        }
        super().__init__(model.parameters(), defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._kept}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of the state, so that two optimisers never share it.

        Parameters
        ----------
        state_dict
            What `state_dict` of another optimiser for the same model returned.
        """
        super().load_state_dict(copy.deepcopy(state_dict))

    def _scales(self) -> dict[Tensor, Scale]:
        """Return the scales of all parameters of the model as it is now."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step.

        Parameters
        ----------
        closure
            Evaluates the model again, with gradients, and returns the loss.

        Returns
        -------
        float or None
            What ``closure`` returned.

        Raises
        ------
        ValueError
            At the first step, a scale that is not finite: sums over paths overflow the dtype, or weights do.

        Warns
        -----
        RuntimeWarning
            Once: sums over paths underflow the dtype, so that weights with a gradient have κ = 0, and stay, or a κ
            that has lost its digits.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self) -> None:
        moving = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not moving:
            return
        due = {p for p, _ in moving if self.state[p].get("step", 0) % self._every == 0}
        scales = self._scales() if due else {}
        current = [scales[p] if p in due else self.state[p]["scale"] for p, _ in moving]
        least = torch.stack([factor.amin().to(moving[0][0]) for scale in current for factor in scale])
        small = not bool(least.amin() >= torch.finfo(least.dtype).tiny)
        updates = []
        for (p, group), scale in zip(moving, current, strict=True):
            state = self.state[p]
            if "step" not in state:
                state["step"] = 0
                if not all(torch.isfinite(factor).all() for factor in scale):
                    raise ValueError(
                        f"model: the scale of a parameter of shape {tuple(p.shape)} is not finite: its weights are "
                        f"not, or sums over paths overflow {str(p.dtype).removeprefix('torch.')}"
                    )
            state["step"] += 1
            if self._every > 1:
                state["scale"] = scale
            if group["damping"]:
                whole = scale[0] if len(scale) == 1 else scale[0][:, None] * scale[1]
                scale = [whole + group["damping"] * whole.amax()]
            if small:
                scale = self._without_zeros(p.grad, scale)
            if len(scale) == 1:
                updates.append(p.grad / scale[0])
            else:
                updates.append((p.grad / scale[1]).div_(scale[0][:, None]))
        shrink = 1.0
        if self._clip is not None:
            norms = torch.stack([torch.linalg.vector_norm(update).to(updates[0]) for update in updates])
            shrink = min(1.0, self._clip / max(torch.linalg.vector_norm(norms).item(), self._clip))
        for (p, group), update in zip(moving, updates, strict=True):
            if shrink < 1:
                update.mul_(shrink)
            if group["momentum"]:
                state = self.state[p]
                if "velocity" in state:
                    update.add_(state["velocity"], alpha=group["momentum"])
                state["velocity"] = update
            p.add_(update, alpha=-group["lr"])

    def _without_zeros(self, gradient: Tensor, scale: Scale) -> Scale:
        """Replace 0 by infinity, so that 0/0 = 0; warn where the gradient is not 0 and the scale has underflown."""
        safe = []
        for i, factor in enumerate(scale):
            zero = factor == 0
            if not self._warned:
                low = factor < torch.finfo(factor.dtype).tiny
                low = low & ~zero if self._zeros else low
                self._warned = bool((gradient[:, low] if i else gradient[low]).any())
                if self._warned:
                    dtype = str(factor.dtype).removeprefix("torch.")
                    warnings.warn(
                        f"sums over paths underflow {dtype}: weights whose scale is 0 stay, whatever their gradient; "
                        "use float64 or larger weights",
                        RuntimeWarning,
                        stacklevel=5,
                    )
            safe.append(factor.masked_fill(zero, torch.inf))
        return safe


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    return iter(()) if isinstance(model, ReLURecurrent) else ly.modules(model)


class PathSGD(PathOptimizer):
    r"""Path-SGD: steepest descent in the geometry of the path norm.

    .. math:: v \leftarrow \mu v + \frac{1}{\kappa} \frac{\partial L}{\partial w}, \qquad
              w \leftarrow w - \eta v, \qquad
              \kappa_e = \Big(\sum_{\text{paths} \ni e} \prod_{e' \ne e} |w_{e'}|^p\Big)^{2/p},

    with κ of the current weights (`path_scales`). Networks that differ by a rescaling of hidden units, which
    compute the same function, stay so: training follows the same path of functions from either, with momentum
    too. Descent on the weights themselves does not.

    Parameters
    ----------
    model
        Built of Linear, Conv, ReLU, pooling, Flatten, Sequential, or a `ReLURecurrent`; float32 or float64.
    lr
        Step size η > 0.
    p
        Exponent of the path norm, > 0; 2 in all published experiments.
    momentum
        μ in [0, 1).
    input_shape
        Shape of one input, without the batch dimension. Where it is needed and not given (the first layer is a
        convolution), that of the model's next forward pass is taken.
    every
        κ is computed anew after so many steps, >= 1. Invariance holds for any.
    damping
        Added to κ, times the largest κ of the same parameter; >= 0. Breaks the invariance.
    clip
        Largest Euclidean norm, over all parameters, of the gradient divided by κ: what exceeds it is scaled down.
        Breaks the invariance.
    second
        For a `ReLURecurrent`: whether κ has both its terms (`shared_path_scales`), which needs ``p=2``, or only the
        first, as published.

    Raises
    ------
    TypeError
        ``model`` is no module, or holds an unsupported layer, such as a batch norm.
    ValueError
        A weight is not finite, or another argument is out of range.

    Notes
    -----
    A parameter without gradient is left as it is, and counts in κ of the others. Biases are edges from a node that
    is constantly 1. Where κ = 0 no path leads through a weight, its gradient is 0 as well, and it stays: nothing is
    added to κ, which would break the invariance. Max pooling can give a weight a gradient and κ = 0, since in κ a
    window passes its largest sum of paths only; such a weight stays too, from all rescalings alike. Elsewhere a weight
    with a gradient and κ = 0 means that sums over paths underflow, as in deep networks of small weights: `step` warns.
    With max pooling it can tell the two apart only as long as κ is not 0 but has lost digits.

    ``lr``, ``momentum`` and ``damping`` may be changed in ``param_groups``, by a schedule for example.

    Cost: for linear layers three passes over the weights, about a tenth of the forward and backward pass of a batch
    of 100, and two more than SGD's for the step; otherwise one forward and one backward pass on one input.

    References
    ----------
    Neyshabur, Salakhutdinov & Srebro (2015), Path-SGD, arXiv:1506.02617; Neyshabur, Wu, Salakhutdinov & Srebro
    (2016), arXiv:1605.07154 for shared weights. Both recalled; the authors' MATLAB release computes the same κ, and
    has no momentum.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
    ...     _ = model[2].weight.copy_(torch.tensor([[2.0, -1.0]]))
    >>> optimiser = PathSGD(model, lr=1.0)
    >>> model(torch.ones(1, 2)).backward()
    >>> model[2].weight.grad, optimiser.step(), model[2].weight.data  # κ is 5 and 9
    (tensor([[0., 3.]]), None, tensor([[ 2.0000, -1.3333]]))
    """

    _kept = (*PathOptimizer._kept, "_p", "_shape", "_second", "_seen")

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        p: float = 2.0,
        momentum: float = 0.0,
        *,
        input_shape: Sequence[int] | None = None,
        every: int = 1,
        damping: float = 0.0,
        clip: float | None = None,
        second: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
        self._p = checks.positive(p, "p")
        self._second = bool(second)
        if isinstance(model, ReLURecurrent) and self._second and self._p != 2:
            raise ValueError(f"p: must be 2 for shared weights unless second=False, got {p!r}")
        self._shape = input_shape
        self._seen: LastInput | None = None
        super().__init__(model, lr, momentum, every, damping, clip)
        try:
            path_scales(model, self._p, input_shape=input_shape)
        except ValueError:
            if input_shape is not None or not _needs_shape(model):
                raise
            self._seen = LastInput(model)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if state.get("_seen") is not None:
            self._seen = LastInput(self._model)

    def _scales(self) -> dict[Tensor, Scale]:
        model = self._model
        if isinstance(model, ReLURecurrent) and self._second:
            shared = shared_path_scales(model.w_in, model.w_rec, model.w_out, model.steps)
            return {w: [k] for w, k in zip((model.w_in, model.w_rec, model.w_out), shared, strict=True)}
        if self._seen is not None and self._seen.x is not None:
            self._shape = tuple(self._seen.x.shape[1:])
            self._seen.close()
            self._seen = None
        if not isinstance(model, ReLURecurrent):
            plain = affine(ly.layers(model))
            if plain is not None and (self._shape is None or math.prod(self._shape) == plain[0][0].shape[1]):
                return linear_scales(*plain, path_factors(plain[0], biases=plain[1], p=self._p))
        scales = path_scales(model, self._p, input_shape=self._shape)
        return {w: [scales[name]] for name, w in model.named_parameters()}


def linear_scales(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], factors: Sequence[tuple[Tensor, Tensor]]
) -> dict[Tensor, Scale]:
    """Return the scales of weights and biases of linear layers, from their factors."""
    scales: dict[Tensor, Scale] = {w: [*pair] for w, pair in zip(weights, factors, strict=True)}
    for b, (outer, _) in zip(biases, factors, strict=True):
        if b is not None:
            scales[b] = [outer.clone()]
    return scales


def _needs_shape(model: nn.Module) -> bool:
    try:
        ly.input_dimensions(ly.layers(model), None)
    except ValueError:
        return True
    return False
