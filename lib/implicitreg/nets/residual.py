"""Blocks whose input is added to their output."""

from torch import Tensor, nn


class Residual(nn.Module):
    """A block with a skip connection: ``x + branch(x)``, or ``shortcut(x) + branch(x)``.

    Parameters
    ----------
    branch
        For the measures of `implicitreg.measures` it is built of supported layers.
    shortcut
        What is added to it, such as the 1×1 convolution where a block changes the number of channels; by default
        the input itself, whose shape ``branch`` then keeps.

    Raises
    ------
    TypeError
        ``branch`` or ``shortcut`` is no module.

    Examples
    --------
    >>> import torch
    >>> Residual(nn.ReLU())(torch.tensor([-1.0, 2.0]))
    tensor([-1.,  4.])
    >>> Residual(nn.ReLU(), nn.Flatten(0))(torch.tensor([-1.0, 2.0]))
    tensor([-1.,  4.])
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        for name, part in (("branch", branch), ("shortcut", shortcut)):
            if not isinstance(part, nn.Module) and (part is not None or name == "branch"):
                raise TypeError(f"{name}: must be a torch.nn.Module, got {type(part).__name__}")
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + branch(x)``, or ``shortcut(x) + branch(x)``."""
        after: Tensor = self.branch(x)
        beside: Tensor = x if self.shortcut is None else self.shortcut(x)
        if after.shape != beside.shape:
            fit = (
                f"must keep the shape {tuple(x.shape)} of its input"
                if beside is x
                else f"must have the shape {tuple(beside.shape)} of the shortcut"
            )
            raise ValueError(f"branch: {fit}, got {tuple(after.shape)}")
        return beside + after
