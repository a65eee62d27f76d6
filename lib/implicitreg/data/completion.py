"""Matrix completion: fit some entries of a matrix, say nothing of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from implicitreg import checks


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
        ``target`` or ``observed`` has another dtype or shape, or nothing is observed.

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
        if not isinstance(self.observed, Tensor) or self.observed.dtype != torch.bool:
            raise TypeError("observed: must be a boolean tensor")
        if self.observed.shape != self.target.shape or self.target.ndim != 2:
            raise ValueError(
                f"observed: must have the target's shape (d, d'), got {tuple(self.observed.shape)} "
                f"and {tuple(self.target.shape)}"
            )
        if not self.observed.any():
            raise ValueError("observed: at least one entry must be observed")
        object.__setattr__(self, "target", self.target.masked_fill(~self.observed, 0.0))
        checks.matrices(self.target, "target")

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


def two_by_two(z: float = 1.0, z_prime: float = 1.0, epsilon: float = 0.0) -> MatrixCompletion:
    r"""Return the 2×2 completion problem :math:`\begin{pmatrix} ? & z \\ z' & \epsilon \end{pmatrix}`.

    With the defaults every solution has determinant :math:`-1` and rank 2, yet solutions come as close to
    rank 1 as one likes, the further their unobserved entry goes to infinity.

    Parameters
    ----------
    z, z_prime, epsilon
        The observed entries (1, 2), (2, 1) and (2, 2).

    Returns
    -------
    MatrixCompletion
        In float64.

    References
    ----------
    Razin & Cohen (2020), arXiv:2005.06398; with perturbed observations for other values than the defaults.

    Examples
    --------
    >>> two_by_two(-2.0, 0.5, 0.1).target.tolist()
    [[0.0, -2.0], [0.5, 0.1]]
    """
    target = torch.tensor([[0.0, z], [z_prime, epsilon]], dtype=torch.float64)
    return MatrixCompletion(target, torch.tensor([[False, True], [True, True]]))
