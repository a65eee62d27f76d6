"""How the training loss changes when the weights are perturbed: sharpness, expected sharpness and PAC-Bayes."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from implicitreg import checks
from implicitreg.dynamics.losses import cross_entropy
from implicitreg.measures.capacity import scores
from implicitreg.measures.running import Stateless, blaming, ordinary
from implicitreg.nets import layers as ly
from implicitreg.nets.perceptron import outputs

# Bytes of the perturbations that are held.
_KEPT = 2**28

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes scores ``(..., n, k)`` and classes ``(..., n)``, and returns the loss of each sample, ``(..., n)``."""


def each_loss(loss: Loss, z: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each sample, ``(..., n)``; refuse one that is summed or averaged over samples.

    Raises
    ------
    TypeError
        It is no function.
    ValueError
        It returns something else.
    """
    if not callable(loss):
        raise TypeError(f"loss: must be a function of scores and classes, got {type(loss).__name__}")
    with blaming(f"loss: does not take scores {tuple(z.shape)}, {z.dtype}, and classes {tuple(y.shape)}", TypeError):
        values = loss(z, y)
    if not isinstance(values, Tensor) or values.shape != z.shape[:-1]:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"loss: must return the loss of each sample, shape {tuple(z.shape[:-1])}, got {got}; of torch's own losses "
            "take reduction='none'"
        )
    return checks.finite(values, "loss")


@contextmanager
def _mean_loss(
    model: ly.Network, x: Tensor, y: Tensor, loss: Loss
) -> Iterator[tuple[list[Tensor], Callable[[Sequence[Tensor]], Tensor]]]:
    """Yield a network's weights and the mean loss as a function of them, ``()`` or ``(...)``."""
    each_loss(loss, scores(model, x, y), y)
    with torch.inference_mode(False), torch.no_grad():
        x, y = ordinary(x), ordinary(y)
        if not isinstance(model, nn.Module):
            yield [w.detach() for w in ly.matrices(model)], lambda ws: loss(outputs(ws, x), y).mean(-1)
            return
        network = Stateless(model)
        weights = {name: w.detach() for name, w in network.parameters.items()}
        if not weights:
            raise ValueError("model: must have parameters")
        buffers = {name: ordinary(b) for name, b in network.buffers.items()}
        with ly.evaluation(model):
            yield (
                list(weights.values()),
                lambda ws: loss(network({**buffers, **dict(zip(weights, ws, strict=True))}, x), y).mean(-1),
            )


def _over(values: Tensor, model: ly.Network) -> Tensor:
    """Give one number a network the shape that multiplies a weight of it."""
    return values if isinstance(model, nn.Module) else values.reshape(*values.shape, 1, 1)


def sharpness(
    model: ly.Network,
    x: Tensor,
    y: Tensor,
    alpha: float = 5e-4,
    *,
    steps: int = 200,
    loss: Loss = cross_entropy,
) -> Tensor:
    r"""Return the maximum sharpness: how much a small perturbation of the weights can increase the training loss.

    .. math:: \zeta_\alpha(w) = \frac{\max_{|\nu_i| \le \alpha(|w_i| + 1)} \hat L(f_{w+\nu}) - \hat L(f_w)}
              {1 + \hat L(f_w)}.

    The maximum is approached from below by projected ascent along the sign of the full gradient, ``steps`` steps
    of a tenth of the box; the best point seen counts. It is not invariant under rescalings of the nodes.

    Parameters
    ----------
    model
        Any module with outputs ``(n, k)``, or weight matrices ``(..., h_i, h_{i-1})``.
    x, y
        Training inputs and classes, as for `margins`.
    alpha
        Size of the box, > 0.
    steps
        Number of steps, >= 1.
    loss
        Loss of each sample.

    Returns
    -------
    Tensor
        Shape ``()`` or ``(...)``; at least 0.

    Raises
    ------
    TypeError, ValueError
        As for `margins`; ``model`` has no parameters, ``alpha`` is not > 0, ``steps`` < 1, or ``loss`` is not
        differentiable.

    Notes
    -----
    Cost: ``steps`` forward and backward passes over the data. Sources: Keskar et al. 2017, On Large-Batch Training
    for Deep Learning; Neyshabur et al. 2017, Exploring Generalization in Deep Learning (secondary), who climb by
    stochastic gradients instead.

    Examples
    --------
    >>> w = [torch.tensor([[1.0], [-1.0]], dtype=torch.float64)]
    >>> x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    >>> round(sharpness(w, x, y, alpha=0.1).item(), 4)  # the box's corner: scores 0.8 and -0.8
    0.0506
    """
    alpha = checks.positive(alpha, "alpha")
    checks.integer(steps, "steps", 1)
    with _mean_loss(model, x, y, loss) as (weights, mean):
        radius = [alpha * (w.abs() + 1) for w in weights]
        start = mean(weights)
        best = start.clone()
        nu = [torch.zeros_like(w) for w in weights]
        for _ in range(steps):
            with torch.enable_grad():
                moved = [(w + v).requires_grad_() for w, v in zip(weights, nu, strict=True)]
                value = mean(moved)
                if not value.requires_grad:
                    raise ValueError("loss: must be differentiable, because the maximum is approached by its gradient")
                grads = torch.autograd.grad(value.sum(), moved, allow_unused=True, materialize_grads=True)
            best = torch.maximum(best, value.detach())
            for v, g, r in zip(nu, grads, radius, strict=True):
                torch.clamp(v.add_(0.1 * r * g.sign()), -r, r, out=v)
        best = torch.maximum(best, mean([w + v for w, v in zip(weights, nu, strict=True)]))
        return (best - start) / (1 + start)


@dataclass(frozen=True)
class ExpectedSharpness:
    """What `expected_sharpness` returns.

    Attributes
    ----------
    value
        Mean increase of the training loss, shape ``()`` or ``(...)``.
    standard_error
        Its standard error over the draws.
    """

    value: Tensor
    standard_error: Tensor

    def __float__(self) -> float:
        return float(self.value)


def _deviations(weights: Sequence[Tensor]) -> list[Tensor]:
    return [10 * w.abs() + 1 for w in weights]


def _noise(weights: Sequence[Tensor], generator: torch.Generator, draws: int) -> Iterator[list[Tensor]]:
    """Yield standard normal numbers for all weights, some times; they depend on the generator's state alone."""
    for _ in range(draws):
        yield [torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w) for w in weights]


def _increases(
    model: ly.Network,
    weights: Sequence[Tensor],
    mean: Callable[[Sequence[Tensor]], Tensor],
    alpha: Tensor,
    noise: Iterable[Sequence[Tensor]],
) -> Tensor:
    """Return the increase of the loss in each draw of the noise, ``(draws, ...)``."""
    start = mean(weights)
    deviations = [s * _over(alpha, model) for s in _deviations(weights)]
    found = []
    for drawn in noise:
        moved = [torch.addcmul(w, e, s) for w, e, s in zip(weights, drawn, deviations, strict=True)]
        found.append(mean(moved) - start)
    return torch.stack(found)


def expected_sharpness(
    model: ly.Network,
    x: Tensor,
    y: Tensor,
    alpha: float,
    generator: torch.Generator,
    *,
    draws: int = 50,
    loss: Loss = cross_entropy,
) -> ExpectedSharpness:
    r"""Return the expected sharpness :math:`\mathbb E_\nu[\hat L(f_{w+\nu})] - \hat L(f_w)`.

    The perturbations are independent, :math:`\nu_i \sim \mathcal N(0, \sigma_i^2)` with
    :math:`\sigma_i = \alpha (10 |w_i| + 1)`.

    Parameters
    ----------
    model, x, y, loss
        As for `sharpness`.
    alpha
        Size of the perturbations, > 0.
    generator
        Source of randomness, on the CPU.
    draws
        Number of perturbations, >= 2, each measured on all samples.

    Returns
    -------
    ExpectedSharpness

    Raises
    ------
    TypeError, ValueError
        As for `sharpness`; ``generator`` is no `torch.Generator`, or ``draws`` < 2.

    Notes
    -----
    Cost: ``draws`` forward passes over the data. Source: Neyshabur et al. 2017, Exploring Generalization in Deep
    Learning (secondary; the deviations were read in a figure's caption).

    Examples
    --------
    >>> w = [torch.tensor([[1.0], [-1.0]], dtype=torch.float64)]
    >>> x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    >>> result = expected_sharpness(w, x, y, 0.01, torch.Generator().manual_seed(0), draws=2000)
    >>> abs(result.value - 0.00127).item() < 4 * result.standard_error.item()  # half the curvature times 2 (0.11)²
    True
    """
    alpha = checks.positive(alpha, "alpha")
    checks.random(generator, "generator")
    checks.integer(draws, "draws", 2)
    with _mean_loss(model, x, y, loss) as (weights, mean):
        batch = () if isinstance(model, nn.Module) else mean(weights).shape
        sizes = torch.full(batch, alpha, dtype=weights[0].dtype, device=weights[0].device)
        found = _increases(model, weights, mean, sizes, _noise(weights, generator, draws))
    return ExpectedSharpness(found.mean(0), found.std(0) / math.sqrt(draws))


def pac_bayes_kl(model: ly.Network, alpha: float | Tensor) -> Tensor:
    r"""Return the PAC-Bayes measure :math:`\tfrac12 \sum_i w_i^2/\sigma_i^2`, :math:`\sigma_i = \alpha(10|w_i| + 1)`.

    It is the Kullback-Leibler divergence between :math:`\mathcal N(w, \mathrm{diag}\,\sigma^2)` and
    :math:`\mathcal N(0, \mathrm{diag}\,\sigma^2)`. Since :math:`\sigma` depends on the trained weights, the second
    is no prior, and the number a measure, not a bound. For large weights it saturates at 1/(200 α²) a parameter.

    Parameters
    ----------
    model
        Any module, or weight matrices ``(..., h_i, h_{i-1})``.
    alpha
        Size of the perturbations, > 0, or one for each network.

    Returns
    -------
    Tensor
        Shape ``()`` or ``(...)``.

    Raises
    ------
    TypeError
        ``model`` is neither.
    ValueError
        ``alpha`` is not > 0, or a weight is not finite.

    Notes
    -----
    Cost: one pass over the weights. Source: Neyshabur et al. 2017, Exploring Generalization in Deep Learning
    (figure captions); whether the published numbers carry the factor ½ is not known.

    Examples
    --------
    >>> pac_bayes_kl([torch.tensor([[0.1, 0.0]], dtype=torch.float64)], alpha=0.05).item()
    0.5
    """
    if not isinstance(alpha, Tensor):
        alpha = torch.tensor(checks.positive(alpha, "alpha"), dtype=torch.float64)
    elif not (torch.isfinite(alpha) & (alpha > 0)).all():
        raise ValueError("alpha: must be finite and > 0 for every network")
    elif isinstance(model, nn.Module) and alpha.ndim:
        raise ValueError(f"alpha: must be one number for one network, got shape {tuple(alpha.shape)}")
    ly.finite(model)
    with torch.no_grad():
        dims = None if isinstance(model, nn.Module) else (-2, -1)
        weights: list[Tensor] = [*model.parameters()] if isinstance(model, nn.Module) else ly.matrices(model)
        ratios = [(w / s).square() for w, s in zip(weights, _deviations(weights), strict=True)]
        total = sum((r.sum() if dims is None else r.sum(dims) for r in ratios), start=torch.zeros(()))
        return total / (2 * alpha.to(total) ** 2)


def pac_bayes_kl_at(
    model: ly.Network,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    sharpness: float = 0.05,
    draws: int = 50,
    loss: Loss = cross_entropy,
    least: float = 1e-4,
    most: float = 1.0,
) -> Tensor:
    r"""Return `pac_bayes_kl` at the α where the expected sharpness is ``sharpness``: the smaller, the flatter.

    Every α is tried with the same draws of the noise, so that the increase of the loss is a smooth function of α,
    whose root is bisected to a relative accuracy of 1e-3.

    Parameters
    ----------
    model, x, y, generator, draws, loss
        As for `expected_sharpness`.
    sharpness
        The expected sharpness at which networks are compared, > 0.
    least, most
        Where α is looked for, ``0 < least < most``.

    Returns
    -------
    Tensor
        Shape ``()`` or ``(...)``; NaN where α lies outside ``least ... most``.

    Raises
    ------
    TypeError, ValueError
        As for `expected_sharpness`; ``sharpness``, ``least`` or ``most`` is out of range.

    Warns
    -----
    RuntimeWarning
        α of some network lies outside ``least ... most``.

    Notes
    -----
    Cost: about 16 times that of `expected_sharpness`. Its statistical error is that of ``draws`` perturbations.
    Source: Neyshabur et al. 2017, Exploring Generalization in Deep Learning (secondary), who compare networks
    at the expected sharpness 0.05.

    Examples
    --------
    >>> w = [torch.tensor([[1.0], [-1.0]], dtype=torch.float64)]
    >>> x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    >>> kl = pac_bayes_kl_at(w, x, y, torch.Generator().manual_seed(0), sharpness=0.05, draws=500)
    >>> alpha = (pac_bayes_kl(w, 1.0) / kl).sqrt().item()  # the measure is inversely proportional to α²
    >>> round(expected_sharpness(w, x, y, alpha, torch.Generator().manual_seed(0), draws=500).value.item(), 3)
    0.05
    """
    checks.random(generator, "generator")
    checks.integer(draws, "draws", 2)
    target = checks.positive(sharpness, "sharpness")
    least, most = checks.positive(least, "least"), checks.positive(most, "most")
    if least >= most:
        raise ValueError(f"most: must be > least = {least}, got {most}")
    state = generator.get_state()
    with _mean_loss(model, x, y, loss) as (weights, mean):
        batch = () if isinstance(model, nn.Module) else mean(weights).shape

        # Drawing takes as long as a pass over some samples of a large network: what fits is drawn once.
        kept = [*_noise(weights, generator, draws)] if draws * sum(w.nbytes for w in weights) <= _KEPT else None

        def above(log_alpha: Tensor) -> Tensor:
            if kept is None:
                generator.set_state(state)
            noise = _noise(weights, generator, draws) if kept is None else kept
            return _increases(model, weights, mean, log_alpha.exp(), noise).mean(0) >= target

        low = torch.full(batch, math.log(least), dtype=weights[0].dtype, device=weights[0].device)
        high = torch.full_like(low, math.log(most))
        outside = above(low) | ~above(high)
        for _ in range(math.ceil(math.log2((math.log(most) - math.log(least)) / 1e-3))):
            middle = (low + high) / 2
            over = above(middle)
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    if outside.any():
        warnings.warn(
            f"an expected sharpness of {target} is not reached for α in {least} ... {most} "
            f"by {int(outside.sum())} of {outside.numel()} networks",
            RuntimeWarning,
            stacklevel=2,
        )
    kl = pac_bayes_kl(model, ((low + high) / 2).exp())
    return torch.where(outside, torch.full_like(kl, torch.nan), kl)
