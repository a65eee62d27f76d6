"""Blocks whose input is added to their output."""

from torch import Tensor, nn


class Residual(nn.Module):
    """A block with a skip connection: ``x + branch(x)``.

    Parameters
    ----------
    branch
        Keeps the shape of its input; for `implicitreg.measures.segment_profile` it is built of supported layers.

    Raises
    ------
    TypeError
        ``branch`` is no module.

    Examples
    --------
    >>> import torch
    >>> Residual(nn.ReLU())(torch.tensor([-1.0, 2.0]))
    tensor([-1.,  4.])
    """

    def __init__(self, branch: nn.Module) -> None:
        if not isinstance(branch, nn.Module):
            raise TypeError(f"branch: must be a torch.nn.Module, got {type(branch).__name__}")
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + branch(x)``."""
        after: Tensor = self.branch(x)
        if after.shape != x.shape:
            raise ValueError(f"branch: must keep the shape {tuple(x.shape)} of its input, got {tuple(after.shape)}")
        return x + after
