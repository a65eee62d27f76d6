"""Recurrent networks: weights that are shared between time steps."""

import torch
from torch import Tensor, nn

from implicitreg import checks


class ReLURecurrent(nn.Module):
    r"""A recurrent ReLU network without biases that answers at the last step.

    :math:`h_t = \phi(W_\text{in} x_t + W_\text{rec} h_{t-1})`, :math:`h_0 = 0`, output :math:`W_\text{out} h_T`.

    Parameters
    ----------
    w_in, w_rec, w_out
        Start: matrices of shapes ``(h, inputs)``, ``(h, h)`` and ``(outputs, h)``; they are copied.
    steps
        Length T of the sequences.

    Raises
    ------
    TypeError
        A weight is no tensor of dtype float32 or float64.
    ValueError
        Matrices that do not fit each other or are not finite, or ``steps`` < 1.

    Notes
    -----
    Its paths have up to T recurrent edges, and the same weight may lie on a path more than once.
    Source: Neyshabur et al. 2016, Path-Normalized Optimization of Recurrent Neural Networks (recalled).

    Examples
    --------
    >>> one = torch.ones(1, 1)
    >>> ReLURecurrent(one, one / 2, one, steps=3)(torch.ones(1, 3, 1))
    tensor([[1.7500]], grad_fn=<MmBackward0>)
    """

    def __init__(self, w_in: Tensor, w_rec: Tensor, w_out: Tensor, steps: int) -> None:
        super().__init__()
        for name, w in (("w_in", w_in), ("w_rec", w_rec), ("w_out", w_out)):
            if checks.matrices(w, name).ndim != 2:
                raise ValueError(f"{name}: must be a matrix, got shape {tuple(w.shape)}")
        h = w_in.shape[0]
        if w_rec.shape != (h, h) or w_out.shape[1] != h:
            raise ValueError(
                f"w_rec: must have shape ({h}, {h}) and w_out ({h} columns) to follow w_in, "
                f"got {tuple(w_rec.shape)} and {tuple(w_out.shape)}"
            )
        self.w_in, self.w_rec, self.w_out = (nn.Parameter(w.detach().clone()) for w in (w_in, w_rec, w_out))
        self.steps = checks.integer(steps, "steps", 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``(n, outputs)`` for sequences ``(n, steps, inputs)``."""
        if x.ndim != 3 or x.shape[1] != self.steps:
            raise ValueError(f"x: must have shape (n, {self.steps}, {self.w_in.shape[1]}), got {tuple(x.shape)}")
        into = x @ self.w_in.mT
        h = into[:, 0].clamp_min(0)
        for t in range(1, self.steps):
            h = torch.addmm(into[:, t], h, self.w_rec.mT).clamp_min(0)
        return h @ self.w_out.mT
