"""Norms of a convolution as the linear map that it is, against its matrix written out and against short cuts."""

import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import nn
from torch.nn import functional as F  # noqa: N812

from implicitreg.measures import layer_norms

IN, OUT = 8, 16


def convolution():
    weight = torch.randn(OUT, IN, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 8
    conv = nn.Conv2d(IN, OUT, 3, padding=1, bias=False, dtype=torch.float64)
    conv.weight.data.copy_(weight)
    return conv, weight


def unrolled(weight, side):
    """Write the matrix out, and decompose it."""
    size = IN * side**2
    images = F.conv2d(torch.eye(size, dtype=torch.float64).view(size, IN, side, side), weight, padding=1)
    return torch.linalg.svdvals(images.flatten(1))[0]


def by_svds(weight, side):
    """Let SciPy find the largest singular value from products (ARPACK)."""

    def forward(v):
        return F.conv2d(torch.from_numpy(v).view(1, IN, side, side), weight, padding=1).flatten().numpy()

    def back(v):
        return F.conv_transpose2d(torch.from_numpy(v).view(1, OUT, side, side), weight, padding=1).flatten().numpy()

    shape = OUT * side**2, IN * side**2
    operator = LinearOperator(shape, matvec=forward, rmatvec=back, dtype="float64")
    return svds(operator, k=1, return_singular_vectors=False, rng=0)[0]


def power_iteration(weight, side, steps=100):
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(1, IN, side, side, generator=generator, dtype=torch.float64)
    for _ in range(steps):
        v = F.conv_transpose2d(F.conv2d(v / v.norm(), weight, padding=1), weight, padding=1)
    return v.norm().sqrt()


def circular(weight, side):
    """Take the Fourier transform of the kernel: exact where images wrap around, which padding with zeros does not."""
    transform = torch.fft.fft2(weight, (side, side)).permute(2, 3, 0, 1)
    return torch.linalg.svdvals(transform)[..., 0].max()


def test_norm_of_a_convolution(compare, grow):
    conv, weight = convolution()

    def methods(side):
        exact = {
            "this library": lambda: layer_norms(conv, input_shape=(IN, side, side))[0].spectral,
            "scipy svds": lambda: by_svds(weight, side),
        }
        return exact if side > 12 else {**exact, "matrix written out": lambda: unrolled(weight, side)}

    side = 12
    expected = unrolled(weight, side)
    compare(
        f"norm of a convolution, {side}×{side}, float64",
        {
            **methods(side),
            "100 power iterations": lambda: power_iteration(weight, side),
            "Fourier transform": lambda: circular(weight, side),
        },
        error=lambda found: abs(float(found) / float(expected) - 1),
    )
    grow("norm of a convolution, in the image's side", (6, 8, 12, 24, 48), methods)
