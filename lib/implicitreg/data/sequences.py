"""Sequences with a target that depends on entries far apart."""

import torch
from torch import Tensor

from implicitreg import checks


def addition_problem(
    n: int, steps: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    r"""Return sequences of numbers, two of them marked, and the sum of the two.

    At each step stand a number, uniform on [0, 1], and a marker, 0 or 1. One step of the first half (its length is
    ``steps // 2``) and one of the second are marked, each step of a half equally likely. Who always answers 1 has the
    mean squared error :math:`2 \cdot \tfrac{1}{12} = \tfrac16`: less needs memory over many steps.

    Parameters
    ----------
    n
        Number of sequences, >= 1.
    steps
        Length of a sequence, >= 2.
    generator
        Source of randomness, on the CPU.
    dtype
        ``torch.float64`` or ``torch.float32``; the draws are the same.

    Returns
    -------
    x : Tensor
        Shape ``(n, steps, 2)``: number, marker.
    y : Tensor
        Shape ``(n, 1)``, from 0 to 2.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range.

    References
    ----------
    Hochreiter & Schmidhuber (1997), doi:10.1162/neco.1997.9.8.1735, in the form of Le, Jaitly & Hinton (2015),
    arXiv:1504.00941.

    Examples
    --------
    >>> x, y = addition_problem(1000, 30, torch.Generator().manual_seed(0))
    >>> x.shape, y.shape, x[..., 1].sum(1).unique().tolist()
    (torch.Size([1000, 30, 2]), torch.Size([1000, 1]), [2.0])
    >>> bool((y - x.prod(-1).sum(1, keepdim=True)).abs().max() < 1e-15), round((y - 1).square().mean().item(), 2)
    (True, 0.17)
    """
    checks.integer(n, "n", 1)
    checks.integer(steps, "steps", 2)
    checks.random(generator, "generator")
    checks.precision(dtype, "dtype")
    numbers = torch.rand(n, steps, dtype=torch.float64, generator=generator).to(dtype)
    half = steps // 2
    first = torch.randint(half, (n, 1), generator=generator)
    second = torch.randint(half, steps, (n, 1), generator=generator)
    marked = torch.cat([first, second], dim=1)
    markers = torch.zeros_like(numbers).scatter_(1, marked, 1)
    return torch.stack([numbers, markers], dim=-1), numbers.gather(1, marked).sum(1, keepdim=True)
