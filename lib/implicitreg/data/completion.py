"""Completion: fit some entries of a matrix or tensor, say nothing of the others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from implicitreg import checks


def _masked(target: Tensor, observed: Tensor, order: int) -> Tensor:
    """Return the target with 0 at each unobserved entry, of the shape to which the two broadcast."""
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        raise TypeError("observed: must be a boolean tensor")
    if not observed.flatten(-order).any(-1).all():
        raise ValueError("observed: at least one entry must be observed")
    target = target.detach().masked_fill(~observed.to(target.device), 0.0)
    if not target.isfinite().all():
        raise ValueError("target: must be finite where observed, got NaN or infinity")
    return target


@dataclass(frozen=True, eq=False)
class MatrixCompletion:
    r"""A matrix of which some entries are observed.

    The loss is :math:`\ell(W) = \tfrac12 \sum_{(i,j) \in \Omega} (W_{ij} - b_{ij})^2` over the set
    :math:`\Omega` of observed entries.

    Parameters
    ----------
    target
        :math:`b`, shape ``(d, d')``, float32 or float64; what stands at an unobserved entry is ignored and kept
        as 0.
    observed
        :math:`\Omega`, boolean, shape ``(d, d')``, at least one entry true.

    Raises
    ------
    TypeError, ValueError
        ``target`` or ``observed`` has another dtype or shape, nothing is observed, or what is observed is NaN or
        infinite.

    Examples
    --------
    >>> problem = two_by_two()
    >>> problem.loss(torch.zeros(2, 2, dtype=torch.float64)).item()
    1.0
    >>> problem.gradient(torch.zeros(2, 2, dtype=torch.float64)).tolist()
    [[0.0, -1.0], [-1.0, 0.0]]
    """

    target: Tensor
    observed: Tensor

    def __post_init__(self) -> None:
        checks.floating(self.target, "target")
        if self.target.ndim != 2:
            raise ValueError(f"target: must have shape (d, d'), got {tuple(self.target.shape)}")
        if isinstance(self.observed, Tensor) and self.observed.shape != self.target.shape:
            raise ValueError(
                f"observed: must have the target's shape {tuple(self.target.shape)}, got {tuple(self.observed.shape)}"
            )
        object.__setattr__(self, "target", _masked(self.target, self.observed, 2))

    def gradient(self, w: Tensor) -> Tensor:
        r"""Return :math:`\nabla\ell(W)`: the residual :math:`W - b` where observed, 0 elsewhere.

        Parameters
        ----------
        w
            Shape ``(..., d, d')``, float32 or float64.

        Returns
        -------
        Tensor
            Shape ``(..., d, d')``.

        Raises
        ------
        TypeError, ValueError
            ``w`` has another dtype or shape.
        """
        checks.floating(w, "w")
        if w.shape[-2:] != self.target.shape:
            raise ValueError(
                f"w: must have shape (..., {', '.join(map(str, self.target.shape))}), got {tuple(w.shape)}"
            )
        return (w - self.target.to(w)).masked_fill(~self.observed.to(w.device), 0.0)

    def loss(self, w: Tensor) -> Tensor:
        r"""Return :math:`\ell(W) = \tfrac12 \|\nabla\ell(W)\|_F^2`, shape ``(...)``; ``w`` as for `gradient`."""
        return 0.5 * self.gradient(w).square().sum((-2, -1))

    def solutions(self, x: Tensor) -> Tensor:
        """Return the matrices that fit every observation and have ``x`` at each unobserved entry.

        Parameters
        ----------
        x
            Shape ``(...)``, float32 or float64.

        Returns
        -------
        Tensor
            Shape ``(..., d, d')``.

        Raises
        ------
        TypeError
            ``x`` has another dtype.
        """
        checks.floating(x, "x")
        observed = self.observed.to(x.device)
        return torch.where(observed, self.target.to(x), x[..., None, None])


@dataclass(frozen=True, eq=False)
class TensorCompletion:
    r"""Tensors of which some entries are observed: one problem, or a batch of them.

    The loss is the mean squared error over the set :math:`\Omega` of observed entries,
    :math:`\ell(\mathcal W) = \frac{1}{|\Omega|} \sum_{i \in \Omega} (\mathcal W_i - \mathcal W^\star_i)^2`, without
    the ½ of `MatrixCompletion`: this is the convention of the experiments with tensor factorization.

    Parameters
    ----------
    target
        :math:`\mathcal W^\star`, shape ``(..., d_1, ..., d_N)``, float32 or float64; what stands at an unobserved
        entry is ignored and kept as 0. So kept, it is also what gradient descent on the entries themselves, from 0,
        converges to: the linear baseline.
    observed
        :math:`\Omega`, boolean, of a shape that broadcasts with the target's, at least one entry true in each.
    order
        Number ``N >= 2`` of modes; ``None``: all dimensions of ``target`` are modes.

    Raises
    ------
    TypeError, ValueError
        An argument has another dtype or shape, nothing is observed, or what is observed is NaN or infinite.

    References
    ----------
    Razin & Cohen (2020), arXiv:2005.06398, the authors' code.

    Examples
    --------
    >>> target = torch.ones(2, 2, 2, dtype=torch.float64)
    >>> problem = TensorCompletion(target, observed_entries((2, 2, 2), [(0, 0, 0), (1, 1, 1)]))
    >>> problem.loss(torch.zeros(2, 2, 2, dtype=torch.float64)).item()
    1.0
    >>> problem.gradient(torch.zeros(2, 2, 2, dtype=torch.float64))[1, 1].tolist()
    [0.0, -1.0]
    """

    target: Tensor
    observed: Tensor
    order: int | None = None

    def __post_init__(self) -> None:
        order = checks.modes(self.target, self.order, "target")
        if isinstance(self.observed, Tensor):
            mine, other = self.target.shape, self.observed.shape
            pairs = zip(mine[-order - 1 :: -1], other[-order - 1 :: -1], strict=False)
            if mine[-order:] != other[-order:] or any(m != o and 1 not in (m, o) for m, o in pairs):
                raise ValueError(
                    f"observed: must broadcast with the target's shape {tuple(mine)}, its last {order} dimensions "
                    f"being the same, got {tuple(other)}"
                )
        target = _masked(self.target, self.observed, order)
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "observed", self.observed.to(target.device).expand_as(target))
        object.__setattr__(self, "target", target)

    @property
    def dims(self) -> tuple[int, ...]:
        """Return the dimensions of the modes, ``(d_1, ..., d_N)``."""
        assert self.order is not None
        return tuple(self.target.shape[-self.order :])

    @property
    def batch(self) -> tuple[int, ...]:
        """Return the batch dimensions that lead, ``()`` for one problem."""
        return tuple(self.target.shape[: -len(self.dims)])

    @property
    def weight(self) -> Tensor:
        r"""Return :math:`1 / |\Omega|` where observed, 0 elsewhere, shape ``(..., d_1, ..., d_N)``."""
        modes = tuple(range(-len(self.dims), 0))
        return self.observed / self.observed.sum(modes, keepdim=True, dtype=self.target.dtype)

    def gradient(self, w: Tensor) -> Tensor:
        r"""Return :math:`\nabla\ell(\mathcal W)`: :math:`2 / |\Omega|` times the residual where observed, 0 elsewhere.

        Parameters
        ----------
        w
            Shape ``(..., d_1, ..., d_N)``, float32 or float64.

        Returns
        -------
        Tensor
            Shape ``(..., d_1, ..., d_N)``.

        Raises
        ------
        TypeError, ValueError
            ``w`` has another dtype or shape.
        """
        checks.floating(w, "w")
        if w.shape[-len(self.dims) :] != self.dims:
            raise ValueError(f"w: must have shape (..., {', '.join(map(str, self.dims))}), got {tuple(w.shape)}")
        try:
            residual = (w - self.target.to(w)).masked_fill(~self.observed.to(w.device), 0.0)
        except RuntimeError:
            raise ValueError(f"w: must broadcast with the batch {self.batch}, got shape {tuple(w.shape)}") from None
        return 2 * self.weight.to(w) * residual

    def loss(self, w: Tensor) -> Tensor:
        """Return the mean squared error over the observed entries, shape ``(...)``; ``w`` as for `gradient`."""
        # The gradient is 2 / |Ω| times the residual where observed, so its square is 4 / |Ω| times the loss.
        count = self.observed.sum(tuple(range(-len(self.dims), 0)), dtype=w.dtype).to(w.device)
        return self.gradient(w).square().flatten(-len(self.dims)).sum(-1) * count / 4


def observed_entries(dims: Sequence[int], entries: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Return the mask of the entries that are listed.

    Parameters
    ----------
    dims
        Dimensions of the matrix or tensor, at least two.
    entries
        Positions, shape ``(m, N)``, integers counted from 0, ``m >= 1``, none listed twice.

    Returns
    -------
    Tensor
        Boolean, shape ``dims``, true at the ``m`` entries.

    Raises
    ------
    ValueError
        A position outside, listed twice, or of another number of modes.

    Examples
    --------
    >>> observed_entries((2, 2), [(0, 1), (1, 0), (1, 1)]).tolist()
    [[False, True], [True, True]]
    """
    dims = checks.dimensions(dims, "dims")
    try:
        index = torch.as_tensor(entries).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"entries: must be a table of integers, got {entries!r}") from None
    whole = not index.dtype.is_floating_point and not index.dtype.is_complex and index.dtype != torch.bool
    if index.ndim != 2 or not len(index) or index.shape[1] != len(dims) or not whole:
        raise ValueError(
            f"entries: must hold at least one position of {len(dims)} integers, shape (m, {len(dims)}), "
            f"got dtype {str(index.dtype).removeprefix('torch.')} and shape {tuple(index.shape)}"
        )
    index = index.long()
    outside = ((index < 0) | (index >= torch.tensor(dims))).any(-1)
    if outside.any():
        raise ValueError(
            f"entries: must lie inside dimensions {dims}, from 0 to d - 1 in each mode, "
            f"got {tuple(index[outside][0].tolist())}"
        )
    strides = torch.tensor([math.prod(dims[k + 1 :]) for k in range(len(dims))])
    times = (index * strides).sum(-1).bincount(minlength=math.prod(dims)).view(dims)
    if (times > 1).any():
        raise ValueError(
            f"entries: each may be listed once only, got {tuple((times > 1).nonzero()[0].tolist())} {times.max()} times"
        )
    return times > 0


def nested_observations(dims: Sequence[int], counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return masks of growing sets: each observes the first entries of one random order of all of them.

    Parameters
    ----------
    dims
        Dimensions of the matrix or tensor, at least two.
    counts
        Sizes of the sets, each from 1 to the number of entries, none twice; in any order.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    Tensor
        Boolean, shape ``(len(counts), *dims)``; of two sets the smaller lies within the larger.

    Raises
    ------
    ValueError
        An argument is out of range.

    Examples
    --------
    >>> masks = nested_observations((8, 8, 8), [50, 200], torch.Generator().manual_seed(0))
    >>> masks.flatten(1).sum(-1).tolist(), bool((masks[0] <= masks[1]).all())
    ([50, 200], True)
    """
    dims = checks.dimensions(dims, "dims")
    checks.random(generator, "generator")
    total = math.prod(dims)
    if not isinstance(counts, Sequence) or isinstance(counts, str) or not len(counts):
        raise ValueError(f"counts: must be a sequence of at least one integer, got {counts!r}")
    sizes = [checks.integer(count, "counts", 1) for count in counts]
    if max(sizes) > total:
        raise ValueError(f"counts: must be at most {total}, the number of entries, got {max(sizes)}")
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"counts: each may be listed once only, got {list(counts)!r}")
    place = torch.randperm(total, generator=generator)
    return (place < torch.tensor(sizes)[:, None]).view(-1, *dims)


def two_by_two(
    z: float = 1.0, z_prime: float = 1.0, epsilon: float = 0.0, *, unobserved: tuple[int, int] = (0, 0)
) -> MatrixCompletion:
    r"""Return the 2×2 completion problem :math:`\begin{pmatrix} ? & z \\ z' & \epsilon \end{pmatrix}`.

    With the defaults every solution has determinant :math:`-1` and rank 2, yet solutions come as close to
    rank 1 as one likes, the further their unobserved entry goes to infinity.

    Parameters
    ----------
    z, z_prime, epsilon
        The observed entries (1, 2), (2, 1) and (2, 2).
    unobserved
        Position of the unobserved entry, counted from 0: rows and columns are swapped until it stands there. One
        swap changes the sign of every determinant.

    Returns
    -------
    MatrixCompletion
        In float64.

    Raises
    ------
    ValueError
        An observed entry is not finite, or ``unobserved`` is no position in a 2×2 matrix.

    References
    ----------
    Razin & Cohen (2020), arXiv:2005.06398; with perturbed observations for other values than the defaults.

    Examples
    --------
    >>> two_by_two(-2.0, 0.5, 0.1).target.tolist()
    [[0.0, -2.0], [0.5, 0.1]]
    >>> two_by_two(-2.0, 0.5, 0.1, unobserved=(0, 1)).target.tolist()
    [[-2.0, 0.0], [0.1, 0.5]]
    """
    if unobserved not in ((0, 0), (0, 1), (1, 0), (1, 1)):
        raise ValueError(f"unobserved: must be a position in a 2×2 matrix, indices 0 or 1, got {unobserved!r}")
    values = (z, z_prime, epsilon)
    if not all(isinstance(x, Real) and math.isfinite(x) for x in values):
        raise ValueError(f"z, z_prime, epsilon: must be finite numbers, got {z!r}, {z_prime!r}, {epsilon!r}")
    target = torch.tensor([[0.0, z], [z_prime, epsilon]], dtype=torch.float64)
    observed = torch.tensor([[False, True], [True, True]])
    swapped = [mode for mode in (0, 1) if unobserved[mode]]
    return MatrixCompletion(target.flip(swapped), observed.flip(swapped))


def larger_two_by_two(rows: int, columns: int) -> MatrixCompletion:
    r"""Return the problem of `two_by_two` in larger dimensions.

    All entries but (1, 1) are observed: 1 at (1, 2), at (2, 1) and at (r, r) for :math:`r \ge 3`, 0 elsewhere. If the
    matrix is square, every solution has determinant :math:`-1`.

    Parameters
    ----------
    rows, columns
        Dimensions, each >= 2.

    Returns
    -------
    MatrixCompletion
        In float64.

    Raises
    ------
    ValueError
        A dimension is out of range.

    References
    ----------
    Razin & Cohen (2020), arXiv:2005.06398, the authors' poster and data generator.

    Examples
    --------
    >>> larger_two_by_two(3, 4).target.tolist()
    [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """
    checks.integer(rows, "rows", 2)
    checks.integer(columns, "columns", 2)
    target = torch.eye(rows, columns, dtype=torch.float64)
    target[:2, :2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    observed = torch.ones(rows, columns, dtype=torch.bool)
    observed[0, 0] = False
    return MatrixCompletion(target, observed)
