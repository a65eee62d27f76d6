"""Eigenvalues and trace of the Hessian of the training loss, from products with vectors that share one graph."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from implicitreg import checks
from implicitreg.measures.flatness import Loss
from implicitreg.measures.running import Stateless, alone, blaming, held, ordinary, run, some
from implicitreg.nets import layers as ly
from implicitreg.nets.perceptron import as_module

# Bytes that the graphs of all samples may hold between products, and the graph of one batch.
_KEPT, _HELD = 2**29, 2**27
# Bytes of a batch that stays in the cache, and the fewest samples with which a batch is still efficient.
_CACHED, _EFFICIENT = 2**22, 256
# Bytes of the vectors that span a Krylov space.
_BASIS = 2**29
# What standard errors of traces are multiplied by, so that two of them hold in 97 of 100 cases, not 95.
_MARGIN = 1.1
# Down to this tolerance the eigenvectors may be looked for in float32.
_ROUNDED = 1e-6
# Down to this share of the trace its standard error may be had by products in float32.
_COARSE = 1e-3
# For the trace: random vectors before the Lanczos steps, and after them at least; steps whose gain is averaged, and
# the step after which single layers are tried; up to how many parameters the trace is computed exactly.
_PROBES, _LEAST, _WINDOW, _TRIAL, _FEW = 6, 3, 4, 16, 26


Product = Callable[[Tensor], Tensor]
"""Multiplies a symmetric matrix and a vector ``(p,)``."""


class _Hessian:
    """Products of vectors with the Hessian of the mean loss in all parameters; ``products`` counts them."""

    def __init__(self, model: ly.Network, loss: Loss, x: Tensor, y: Tensor, batch: int | None) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.network = Stateless(as_module(model))
            named = _parameters(self.network)
            first = next(iter(named.values()))
            self.names, self.dtype, self.device = list(named), first.dtype, first.device
            _data(x, y, self.device)
            if batch is not None:
                checks.integer(batch, "batch", 1)
            if not callable(loss):
                raise TypeError(f"loss: must be callable, got {type(loss).__name__}")
            self.loss, self.products = loss, 0
            self.weights = [ordinary(w).requires_grad_() for w in named.values()]
            self.buffers = {name: ordinary(b) for name, b in self.network.buffers.items()}
            self.x, self.y = ordinary(x), ordinary(y)
        self.sizes = [w.numel() for w in self.weights]
        self.size, n = sum(self.sizes), len(x)
        self.blocks = _layers(self.names, self.sizes)
        tried = some(self.x)
        self._means(tried)
        each = max(1.0, held(lambda: self._gradient(tried), self.weights) / len(tried))
        self.kept = each * n <= _KEPT
        if batch is None:
            batch = max(1, min(max(_EFFICIENT, int(_CACHED / each)), int(_HELD / each)))
            batch = math.ceil(n / math.ceil(n / batch))
        self.parts: list[slice | Tensor] = [slice(i, i + batch) for i in range(0, n, batch)]
        self._adds_up()
        self._symmetric(tried)
        self.graphs = [self._gradient(part) for part in self.parts] if self.kept else []

    def cast(self, dtype: torch.dtype) -> "_Hessian | None":
        """Return the same in another precision; None where network, loss or device do not take it."""
        if dtype == self.dtype:
            return self
        other = copy.copy(self)
        other.dtype, other.products = dtype, 0
        # In double precision little is computed but a few products for what was found in single precision.
        other.kept = self.kept and dtype == torch.float32

        def cast(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() else t

        try:
            with torch.inference_mode(False), torch.no_grad():
                other.weights = [cast(w).requires_grad_() for w in self.weights]
                other.buffers = {name: cast(b) for name, b in self.buffers.items()}
                other.x, other.y = cast(self.x), cast(self.y)
            # Where no graphs are kept, that of some samples shows whether it can be done.
            other.graphs = [other._gradient(part) for part in (self.parts if other.kept else [some(self.x)])]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever the user's own code raises
            return None
        return other

    def _outputs(self, x: Tensor) -> Tensor:
        """Return the checked outputs of some samples."""
        named = {**self.buffers, **dict(zip(self.names, self.weights, strict=True))}
        # The faster kernels of attention have no second derivative.
        with ly.evaluation(self.network.model), sdpa_kernel(SDPBackend.MATH):
            return run(lambda part: self.network(named, part), x)

    def _loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of some samples, checked."""
        if y.dtype == torch.int64 and z.ndim == 2 and y.ndim == 1 and z.shape[1] > 1:
            checks.scored(y, z, "y")
        elif y.is_floating_point() and y.shape != z.shape and (y.numel() == z.numel() or y.ndim == z.ndim):
            raise ValueError(f"y: must have the shape of the outputs, {tuple(z.shape)}, got {tuple(y.shape)}")
        complaint = f"loss: does not take outputs {tuple(z.shape)}, {z.dtype}, and y {tuple(y.shape)}, {y.dtype}"
        with blaming(complaint, ValueError, IndexError, TypeError):
            values = self.loss(z, y)
        if not isinstance(values, Tensor) or values.shape not in ((), (len(z),)):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"loss: must return the loss of each sample, shape ({len(z)},), or their mean, got {got}")
        return checks.finite(values.mean(), "loss")

    def _means(self, tried: Tensor) -> None:
        """Refuse a loss that is not the mean over the samples: a sum, or a mean divided by weights of the classes."""
        with torch.inference_mode(False), torch.no_grad():
            z = self._outputs(self.x[tried])
            for y in (self.y[tried], self.y[tried].roll(1, 0)):  # the second fits badly: no loss of 0 is alike to all
                a = slice(0, (len(z) + 2) // 3)
                b = slice(a.stop, None) if len(z) > 1 else a
                parts = [torch.cat([z[a], z[b]]), torch.cat([y[a], y[b]])]
                self._mean(parts[0], parts[1], [slice(len(z[a])), slice(len(z[a]), None)], 1e-3)

    def _adds_up(self) -> None:
        """Refuse outputs or a loss that would depend on which samples are taken at once."""
        with torch.inference_mode(False), torch.no_grad():
            z = torch.cat([self._outputs(self.x[part]) for part in self.parts])
            alone(self._outputs, self.x, z)
            self._mean(z, self.y, self.parts, 1e-5 if z.dtype == torch.float32 else 1e-9)

    def _mean(self, z: Tensor, y: Tensor, parts: Sequence[slice | Tensor], tol: float) -> None:
        """Refuse a loss that is not, up to a tolerance, the mean of those of some parts."""
        whole = self._loss(z, y)
        shares = torch.stack([self._loss(z[part], y[part]) * (len(z[part]) / len(z)) for part in parts])
        if not abs(whole - shares.sum()) <= tol * shares.abs().sum():
            raise ValueError(
                f"loss: must be the mean over the samples or the loss of each: of {len(z)} samples it is {whole:.6g}, "
                f"and the mean of its parts {shares.sum():.6g}; reduction='sum' and weights of classes in a mean are "
                "not supported, reduction='none' is"
            )

    def _symmetric(self, tried: Tensor) -> None:
        """Refuse operations whose second derivatives are wrong, as are those of torch's fused weight norm."""
        few = copy.copy(self)
        few.parts, few.graphs, few.kept = [tried], [self._gradient(tried)], True
        like = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        generator = torch.Generator().manual_seed(0)
        u, v = _signs(like, generator), _signs(like, generator)
        hu, hv = few(u), few(v)
        off, size = abs(float(u @ hv - v @ hu)), float(torch.linalg.vector_norm(hu) + torch.linalg.vector_norm(hv))
        if off > (1e-3 if self.dtype == torch.float32 else 1e-6) * size:
            raise ValueError(
                f"model: second derivatives are not symmetric, but off by {off / size:.2g}: those of some operation in "
                "it are wrong; torch's weight_norm is one, and can be removed by remove_parametrizations"
            )

    def _gradient(self, part: slice | Tensor) -> list[Tensor]:
        """Return the gradient of some samples' share of the mean loss, with its graph."""
        with torch.inference_mode(False), torch.enable_grad():
            x = self.x[part]
            value = self._loss(self._outputs(x), self.y[part]) * (len(x) / len(self.x))
            if not value.requires_grad:
                raise ValueError("loss: must be a differentiable function of the parameters")
            with blaming("loss: must be a differentiable function of the parameters"):
                found = torch.autograd.grad(
                    value, self.weights, create_graph=True, allow_unused=True, materialize_grads=True
                )
            return list(found)

    def __call__(self, v: Tensor) -> Tensor:
        """Return the product with a vector ``(p,)``, in float64."""
        self.products += 1
        cut = [
            part.view_as(w)
            for part, w in zip(torch.split(v.to(self.weights[0]), self.sizes), self.weights, strict=True)
        ]
        total: list[Tensor] = []
        with torch.inference_mode(False):
            for i, part in enumerate(self.parts):
                gradient = self.graphs[i] if self.kept else self._gradient(part)
                # What does not depend on the parameters has no derivative, and autograd would refuse it.
                pairs = [(g, c) for g, c in zip(gradient, cut, strict=True) if g.requires_grad]
                if not pairs:
                    continue
                with blaming("loss: must be twice differentiable in the parameters"):
                    found = torch.autograd.grad(
                        [g for g, _ in pairs],
                        self.weights,
                        [c for _, c in pairs],
                        retain_graph=self.kept,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else [*found]
        if not total:
            return v.new_zeros(self.size)
        product = torch.cat([t.flatten() for t in total]).to(v.dtype)
        return checks.finite(product, "loss: second derivatives")


def _parameters(network: Stateless) -> dict[str, Tensor]:
    """Return all parameters of a network by name, checked."""
    named: dict[str, Tensor] = {**network.parameters}
    if not any(w.numel() for w in named.values()):
        raise ValueError("model: must have parameters")
    for name, w in named.items():
        checks.floating(w, f"model: {name!r}")
    for what in ("dtype", "device"):
        found = {str(getattr(w, what)) for w in named.values()}
        if len(found) > 1:
            raise ValueError(f"model: parameters must have one {what}, got {', '.join(sorted(found))}")
    if next(iter(named.values())).is_meta:
        raise ValueError("model: parameters must have values, got device meta")
    ly.finite(network.model)
    return named


def _layers(names: Sequence[str], sizes: Sequence[int]) -> list[int]:
    """Return the numbers of parameters of the layers, in order: those of one module are one layer."""
    found: dict[str, int] = {}
    for name, size in zip(names, sizes, strict=True):
        owner = name.rpartition(".")[0] or name
        found[owner] = found.get(owner, 0) + size
    return list(found.values())


def _data(x: Tensor, y: Tensor, device: torch.device) -> None:
    """Refuse inputs and targets that no model could take."""
    checks.floating(x, "x")
    if not x.ndim or 0 in x.shape:
        raise ValueError(f"x: must hold at least one sample, got shape {tuple(x.shape)}")
    if not isinstance(y, Tensor):
        raise TypeError(f"y: must be a torch.Tensor, got {type(y).__name__}")
    if y.dtype not in (torch.int64, torch.float32, torch.float64):
        got = str(y.dtype).removeprefix("torch.")
        raise TypeError(f"y: must have dtype int64, float32 or float64, got {got}")
    if not y.ndim or len(y) != len(x):
        raise ValueError(f"y: must have one entry for each of the {len(x)} samples, got shape {tuple(y.shape)}")
    for value, name in ((x, "x"), (y, "y")):
        checks.located(value, device, name)
    checks.finite(x, "x")
    if y.is_floating_point():
        checks.finite(y, "y")


@dataclass(frozen=True, eq=False)
class HessianEigenvalues:
    r"""What `hessian_eigenvalues` returns.

    Attributes
    ----------
    values
        Eigenvalues, descending, shape ``(k,)``, or ``(2 k,)`` for both ends; NaN where none was found.
    residuals
        :math:`\|H v - \lambda v\|_2` of each, computed from the unit vector that is returned, before all are rounded
        to the dtype of the network. Some eigenvalue of the Hessian is at most that far away, and one that is a
        distance g from all others much closer: within residual²/g.
    vectors
        Unit eigenvectors, shape ``(k, p)``, the parameters in the order of ``model.parameters()``.
    converged
        Whether all were found, and their residuals are as small as asked for.
    products
        Number of products of the Hessian with a vector, in either precision.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    converged: bool
    products: int


def _dimension(k: int, largest: bool) -> int:
    """Return the dimension of the Krylov spaces in which k eigenvalues of one end are looked for."""
    # Few, since ARPACK looks at its residuals only when it restarts; at the lower end, where eigenvalues lie closer
    # to each other, more than that spare restarts.
    return 2 * k + (7 if largest else 18)


def _lanczos(product: Product, start: Tensor, k: int, largest: bool, tol: float, most: int) -> tuple[Tensor, float]:
    """Return the unit eigenvectors that were found of k at one end of the spectrum, ``(k, p)``, and the shift.

    With those that their residuals take, there are at most ``most`` products.
    """
    import numpy as np
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    # ARPACK asks for residuals relative to the eigenvalue, which one that is 0 never meets; and it multiplies the
    # start by the operator, which loses the null space. So zero is shifted, by about the root mean square eigenvalue.
    first = product(start)
    shift = 2 * float(first.norm() / start.norm()) or 1.0
    shift = shift if largest else -shift
    origin = start.cpu().numpy()

    def shifted(v: Any) -> Any:
        if np.array_equal(v, origin):  # ARPACK's first product
            return first.add(start, alpha=shift).cpu().numpy()
        w = torch.from_numpy(np.ascontiguousarray(v).reshape(-1)).to(start.device)
        return product(w).add_(w, alpha=shift).cpu().numpy()

    dimension = _dimension(k, largest)
    restarts = (most - k - 1 - dimension) // (dimension - k)  # at least 1, and ARPACK starts once before
    try:
        _, found = eigsh(
            LinearOperator((len(start), len(start)), matvec=shifted, dtype=np.float64),
            k=k,
            which="LA" if largest else "SA",
            v0=origin,
            ncv=dimension,
            maxiter=restarts,
            tol=tol,
        )
    except ArpackNoConvergence as error:
        found = error.eigenvectors
    return torch.from_numpy(np.ascontiguousarray(found.T)).to(start.device), abs(shift)


def _dense(product: Product, like: Tensor) -> Tensor:
    """Return the symmetric matrix of the products with vectors such as ``like``."""
    h = torch.stack([product(e) for e in torch.eye(len(like)).to(like)])
    return (h + h.mT) / 2


def hessian_eigenvalues(
    model: ly.Network,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    k: int = 1,
    *,
    which: str = "largest",
    tol: float | None = None,
    batch: int | None = None,
    max_products: int = 1000,
    generator: torch.Generator | None = None,
) -> HessianEigenvalues:
    r"""Return extreme eigenvalues of the Hessian :math:`H = \nabla_w^2 \frac1n \sum_i \ell(f_w(x_i), y_i)`.

    The derivatives are those in all parameters, frozen ones included, of the network in evaluation mode. At the kink
    of a ReLU the second derivative is taken to be 0, as is its derivative.

    Parameters
    ----------
    model
        Any module whose parameters have one dtype, float32 or float64, and whose outputs for a sample depend on that
        sample alone, in evaluation mode; or weight matrices ``(h_i, h_{i-1})``.
    loss
        Takes outputs ``(n, ...)`` and ``y``. Returns the loss of each sample, ``(n,)``, or their mean: a function
        such as `torch.nn.functional.cross_entropy`, or a module such as `torch.nn.MSELoss`.
    x
        Inputs, shape ``(n, ...)``.
    y
        Classes, int64, or what else the loss compares outputs with, float32 or float64; shape ``(n, ...)``. Numbers
        that a loss could broadcast against the outputs by mistake, of another shape but as many, or with as many
        dimensions, are refused.
    k
        Number of eigenvalues, from 1 to the number p of parameters; for both ends to half of it.
    which
        ``"largest"``, ``"smallest"`` (the most negative), or ``"both"``: k of each.
    tol
        Largest residual, relative to the eigenvalue's absolute value plus twice a root mean square of all
        eigenvalues; > 0 and < 1. By default 2e-5 in float64 and 1e-4 in float32. The error of an isolated eigenvalue
        is about the square of that.
    batch
        Number of samples whose graph is made at once; by default some hundreds, fewer if they need more than
        128 MiB. The graphs are kept for all products if they fit in 512 MiB, and else made anew for each. The result
        does not depend on it, up to rounding.
    max_products
        Most products with a vector; at least what k eigenvalues take at best.
    generator
        Draws the vector that the iterations start from; by default it is always the same one.

    Returns
    -------
    HessianEigenvalues

    Raises
    ------
    TypeError
        An argument is of the wrong type or dtype.
    ValueError
        An argument is out of range or not finite, shapes or devices do not fit, ``loss`` is no mean over the samples
        or cannot be differentiated twice, or ``model`` has no parameters.

    Warns
    -----
    RuntimeWarning
        Not all eigenvalues were found within ``max_products``.

    Notes
    -----
    What torch does not differentiate twice without saying so, such as a function marked ``once_differentiable``,
    counts as constant the second time.

    Lanczos iterations with restarts (ARPACK). For up to 4 k + 14 parameters, at the lower end 4 k + 36, the whole
    matrix is computed instead. Whatever the dtype of the network, with a tolerance of at least 1e-6 the eigenvectors
    are looked for by products in float32; values and residuals come from products in float64, and where the residuals
    are not as small as asked for, all is done in float64. A loss or a network that takes one dtype alone has all in
    that. Cost: usually 11 to 50 products for k = 1, at the lower end 50 to 150. Each takes two to three times as long
    as a gradient, if the graphs are kept; and 2 k + 7 vectors of p numbers, at the lower end 2 k + 18, are held in
    float64. Sources: Pearlmutter 1994, Fast Exact Multiplication by the Hessian; Lehoucq, Sorensen and Yang 1998,
    ARPACK Users' Guide.

    Examples
    --------
    >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # H of half the squares: the mean of x xᵀ
    >>> half = lambda f, y: (f - y).square().sum(-1) / 2
    >>> y = torch.zeros(2, 1, dtype=torch.float64)
    >>> hessian_eigenvalues([torch.ones(1, 2, dtype=torch.float64)], half, x, y, which="both").values
    tensor([4.5000, 0.5000], dtype=torch.float64)
    """
    k, most = checks.integer(k, "k", 1), checks.integer(max_products, "max_products", 1)
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f"which: must be 'largest', 'smallest' or 'both', got {which!r}")
    if tol is not None and not 0 < checks.number(tol) < 1:
        raise ValueError(f"tol: must be a number > 0 and < 1, got {tol!r}")
    generator = torch.Generator().manual_seed(0) if generator is None else checks.random(generator, "generator")
    product = _Hessian(model, loss, x, y, batch)
    p, ends = product.size, [True, False] if which == "both" else [which == "largest"]
    if k * len(ends) > p:
        raise ValueError(f"k: must be at most {p // len(ends)} for {p} parameters and which={which!r}, got {k}")
    least = {largest: 2 * _dimension(k, largest) + 1 for largest in ends}  # products, with one restart
    few = p < max(least.values())
    needed = p if few else sum(least.values())
    if most < needed:
        raise ValueError(f"max_products: must be at least {needed} for k = {k} and which={which!r}, got {most}")
    if tol is None:
        tol = 2e-5 if product.dtype == torch.float64 else 1e-4
    # An eigenvector that is off by ε gives an eigenvalue that is off by ε²: single precision finds the one, double
    # precision the other, and whether it was found.
    fine = product.cast(torch.float64) or product
    rough = product.cast(torch.float32) if tol >= _ROUNDED and not few else None
    precisions = list(dict.fromkeys(each for each in (rough, fine) if each))
    start = torch.randn(p, generator=generator, dtype=torch.float64).to(product.device)
    values, residuals, vectors, converged = [], [], [], True
    h = _dense(fine, start) if few else None
    for i, largest in enumerate(ends):
        v, value, residual, found = start.new_empty(0, p), start.new_empty(0), start.new_empty(0), False
        for each in precisions:
            left = (most - sum(one.products for one in precisions)) // (len(ends) - i)
            if h is not None:
                v = torch.linalg.eigh(h).eigenvectors.mT
                v, scale = v[-k:] if largest else v[:k], 2 * float(h.norm()) / math.sqrt(p)
            elif left < least[largest]:
                break
            else:
                try:
                    v, scale = _lanczos(each, start, k, largest, tol, left)
                except ValueError:  # out of the range of float32
                    if each is fine:
                        raise
                    continue
            hv = torch.stack([fine(u) if h is None else h @ u for u in v]) if len(v) else v
            value = (v * hv).sum(-1)
            residual = torch.linalg.vector_norm(hv - value[:, None] * v, dim=-1)
            found = len(v) == k and bool((residual <= tol * (value.abs() + scale)).all())
            if found:
                break
        converged &= found
        missing = k - len(v)
        order = value.argsort(descending=True)
        values.append(nn.functional.pad(value[order], (0, missing), value=math.nan))
        residuals.append(nn.functional.pad(residual[order], (0, missing), value=math.nan))
        vectors.append(nn.functional.pad(v[order], (0, 0, 0, missing), value=math.nan))
    products = sum(one.products for one in precisions)
    if not converged:
        number = torch.cat(values).isfinite().sum()
        warnings.warn(
            f"{number} of {k * len(ends)} eigenvalues were found by {products} products, with residuals up to "
            f"{torch.cat(residuals).nan_to_num().max().item():.3g}; increase max_products or tol",
            RuntimeWarning,
            stacklevel=2,
        )
    dtype = product.dtype
    return HessianEigenvalues(
        torch.cat(values).to(dtype),
        torch.cat(residuals).to(dtype),
        torch.cat(vectors).to(dtype),
        converged,
        products,
    )


@dataclass(frozen=True, eq=False)
class HessianTrace:
    """What `hessian_trace` returns.

    Attributes
    ----------
    value
        Estimate of the trace, shape ``()``.
    standard_error
        Its standard error, estimated from above; 0 where the trace was computed exactly.
    converged
        Whether the standard error is as small as asked for.
    products
        Number of products of the Hessian with a vector.
    """

    value: Tensor
    standard_error: Tensor
    converged: bool
    products: int

    def __float__(self) -> float:
        return float(self.value)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs: Tensor = 2 * torch.randint(2, (len(like),), generator=generator) - 1
    return signs.to(like)


class _Rest:
    """What remains of a symmetric matrix H outside of a Krylov space V: B = (1 - VᵀV) H (1 - VᵀV)."""

    def __init__(self, product: Product, start: Tensor, room: int) -> None:
        self.product, self.steps = product, 0
        self.basis = start.new_empty(room, len(start))
        self.after = start / torch.linalg.vector_norm(start)
        self.trace = self.below = 0.0
        self.gains: list[float] = []

    def grow(self) -> None:
        """Take a Lanczos step: the space has one dimension more, in which H is known."""
        self.basis[self.steps] = self.after
        self.steps += 1
        v = self.basis[: self.steps]
        w = self.product(self.after)
        a = float(w @ self.after)
        # First what is exact but for rounding, then what rounding left, with a pass over the whole space.
        w = w - a * self.after
        if self.steps > 1:
            w -= self.below * v[-2]
        w -= (v @ w) @ v
        self.below = float(torch.linalg.vector_norm(w))
        self.after = w / (self.below or 1.0)
        self.trace += a
        self.gains.append(a**2 + 2 * self.below**2)  # what |B|² has lost

    @property
    def invariant(self) -> bool:
        """Whether there is nothing left to grow into."""
        return bool(self.gains) and self.below**2 <= 1e-12 * max(self.gains)

    def outside(self, h: Tensor) -> Tensor:
        """Return what of a vector lies outside of the space."""
        v = self.basis[: self.steps]
        return h - (v @ h) @ v

    def times(self, g: Tensor, h: Tensor) -> Tensor:
        """Return Bg from what of Hg lies outside of the space."""
        # H Vᵀ = Vᵀ T + b v', so that the part of g in the space needs no product of its own.
        return h - self.below * (self.basis[self.steps - 1] @ g) * self.after if self.steps else h


def _trace(
    product: Product, like: Tensor, blocks: Sequence[int], generator: torch.Generator, target: float | None, most: int
) -> tuple[float, float, bool]:
    """Return the estimated trace of the matrix of some products, its standard error, and whether that is the target.

    The trace in a Krylov space is exact. For the rest B, random signs g give gᵀBg of mean tr B and of variance
    2 (|B|² - Σ B_ii²), and |Bg|² has the mean |B|². Where most of B lies between the layers, its blocks on the
    diagonal, which have the same trace, take fewer products, though each takes its own.
    """
    used, layers = 0, len(blocks)

    def times(v: Tensor) -> Tensor:
        nonlocal used
        used += 1
        return product(v)

    def probe(g: Tensor, h: Tensor) -> tuple[float, float]:
        """Return two numbers of a random vector, from what of its product lies outside of the space."""
        u = rest.times(g, h)
        return float(g @ u), float(u @ u)

    def blocked() -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the same for the blocks, by a product each: those of B, and those of H without a space."""
        sums = torch.zeros(2, 2, dtype=torch.float64)
        signs = torch.split(_signs(like, generator), list(blocks))
        for i, mine in enumerate(signs):
            g = torch.cat([each if i == j else torch.zeros_like(each) for j, each in enumerate(signs)])
            h = times(g)
            for found, all_blocks in zip(sums, (rest.times(g, rest.outside(h)), h), strict=True):
                u = torch.split(all_blocks, list(blocks))[i]
                found += torch.stack([mine @ u, u @ u]).cpu()
        within, without = ((float(a), float(b)) for a, b in sums)
        return within, without

    def aimed(value: float) -> float:
        return abs(value) / 20 if target is None else target

    def estimate() -> tuple[float, float, float, float]:
        quadratic, squares = torch.tensor(found, dtype=torch.float64).T
        # Known better than the variance of few numbers would be; and twice its own error is added.
        square = float(squares.mean() + 2 * squares.std() / math.sqrt(len(found)))
        value = rest.trace + float(quadratic.mean())
        return value, square, _MARGIN * math.sqrt(2 * square / len(found)), aimed(value)

    room = min(len(like), most, max(_TRIAL, _BASIS // (8 * len(like))))
    start = torch.randn(len(like), generator=generator, dtype=torch.float64).to(like)
    rest = _Rest(times, start, room)
    pilot = [(g, times(g)) for g in (_signs(like, generator) for _ in range(_PROBES))]
    tried = layers == 1
    found: list[tuple[float, float]] = []
    while True:
        found = [probe(*each) for each in pilot]
        value, square, error, aim = estimate()
        if error <= aim or used >= most:
            return value, error, error <= aim
        # A step is worth it while it spares more than the one product that it costs.
        gain = 2 * sum(rest.gains[-_WINDOW:]) / _WINDOW
        end = rest.steps == room or rest.invariant or (rest.steps >= 2 * _WINDOW and gain < aim**2)
        if not tried and (end or rest.steps == _TRIAL) and 2 * square > 4 * layers * aim**2 and used + layers <= most:
            tried, kinds = True, blocked()
            # Projections carry what lies between the blocks into them, which may cost more than it gains.
            space = kinds[0][1] <= kinds[1][1]
            quadratic, squares = kinds[not space]
            known = aimed(quadratic + space * rest.trace)  # far better than from the probes of all
            if layers * squares < square / 2 and 2 * layers * squares < (len(like) - rest.steps) * known**2:
                found = [(quadratic, squares)]
                if not space:
                    rest = _Rest(times, start, 0)
                break
        if end:
            break
        rest.grow()
        v = rest.basis[rest.steps - 1]
        for _, h in pilot:
            h -= (v @ h) * v
    by_block = len(found) == 1
    cost = layers if by_block else 1
    while used + cost <= most:
        if by_block:
            found.append(blocked()[0])
        else:
            g = _signs(like, generator)
            found.append(probe(g, rest.outside(times(g))))
        if len(found) >= _LEAST:
            value, square, error, aim = estimate()
            if error <= aim:
                break
    return value, error, error <= aim


def hessian_trace(
    model: ly.Network,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    target_se: float | None = None,
    max_products: int = 1000,
    batch: int | None = None,
) -> HessianTrace:
    r"""Return an estimate of the trace of the Hessian of the mean loss, and its standard error.

    The Hessian is that of `hessian_eigenvalues`.

    Parameters
    ----------
    model, loss, x, y, batch
        As for `hessian_eigenvalues`.
    generator
        Source of randomness, on the CPU.
    target_se
        Standard error at which to stop, > 0; by default 5 % of the absolute value of the trace.
    max_products
        Most products with a vector, >= 32.

    Returns
    -------
    HessianTrace

    Raises
    ------
    TypeError, ValueError
        As for `hessian_eigenvalues`; ``generator`` is no `torch.Generator`, or ``target_se`` is not > 0.

    Warns
    -----
    RuntimeWarning
        The standard error is not reached within ``max_products``.

    Notes
    -----
    As in Hutch++, the trace in a space that holds the largest eigenvectors is computed exactly, here a Krylov space,
    in which Lanczos iterations do without further products; random signs estimate that of the rest B, with the
    variance :math:`2 (\|B\|_F^2 - \sum_i B_{ii}^2)`. The space grows while that spares products. The standard
    error is estimated from the norms of the products, leaving out the subtrahend, and a tenth is added: it is a
    little too large. Where it takes fewer products, the signs of one layer at a time estimate the trace of its block.

    In float64 the products are taken in float32, unless the standard error asked for is below a thousandth, or one
    product in both shows that single precision is off by as much.

    Cost: for trained networks usually 20 to 200 products, and as many vectors of p numbers in float64, within
    512 MiB or, if more, 28 vectors; for networks at their start, whose Hessian is large between the layers, some
    hundreds. Up to 26 parameters, the trace is computed exactly. Sources: Hutchinson 1989, A Stochastic Estimator of
    the Trace of the Influence Matrix; Meyer et al. 2021, Hutch++: Optimal Stochastic Trace Estimation.

    Examples
    --------
    >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # H of half the squares: the mean of x xᵀ
    >>> half = lambda f, y: (f - y).square().sum(-1) / 2
    >>> y = torch.zeros(2, 1, dtype=torch.float64)
    >>> hessian_trace([torch.ones(1, 2, dtype=torch.float64)], half, x, y, torch.Generator().manual_seed(0)).value
    tensor(5., dtype=torch.float64)
    """
    checks.random(generator, "generator")
    target = None if target_se is None else checks.positive(target_se, "target_se")
    most = checks.integer(max_products, "max_products", _FEW + _PROBES)
    product = _Hessian(model, loss, x, y, batch)
    like = torch.zeros(product.size, dtype=torch.float64, device=product.device)
    if product.size <= _FEW:
        value, error, converged = float(_dense(product, like).trace()), 0.0, True
        products = product.products
    else:
        # What chance leaves open is far more than what single precision does, unless very little is left open.
        state = generator.get_state()
        precisions = list(dict.fromkeys(each for each in (product.cast(torch.float32), product) if each))
        for each in precisions:
            generator.set_state(state)
            used = sum(one.products for one in precisions)
            try:
                if each is not product:
                    g = _signs(like, torch.Generator().manual_seed(0))
                    a, b = each(g), product(g)
                    used += 2
                    fine = target is None or target >= _COARSE * abs(float(g @ b))
                    if not fine or torch.linalg.vector_norm(a - b) > _COARSE * torch.linalg.vector_norm(b):
                        continue
                value, error, converged = _trace(each, like, product.blocks, generator, target, most - used)
                break
            except ValueError:  # out of the range of float32
                if each is product:
                    raise
        products = sum(one.products for one in precisions)
    if not converged:
        warnings.warn(
            f"the trace {value:.4g} has a standard error of {error:.2g} after {products} products: increase "
            "max_products or target_se",
            RuntimeWarning,
            stacklevel=2,
        )
    number = torch.tensor([value, error], dtype=torch.float64).to(product.device, product.dtype)
    return HessianTrace(number[0], number[1], converged, products)
