"""Images with labels: digits, MNIST, CIFAR-10; and how they become a training and a test set."""

import gzip
import io
import math
import os
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from implicitreg import checks
from implicitreg.data import files
from implicitreg.data.files import DataFile

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, each with the number of its class.

    Parameters
    ----------
    images
        Shape ``(n, channels, height, width)``, values in [0, 1], float32 or float64.
    labels
        Shape ``(n,)``, int64, from 0 to ``classes - 1``.
    classes
        Number of classes, >= 2.

    Raises
    ------
    TypeError, ValueError
        An argument has another dtype or shape, there is no image, or a value or label is outside its range.

    Examples
    --------
    >>> images = LabelledImages(torch.zeros(3, 1, 2, 2), torch.tensor([0, 2, 1]), classes=3)
    >>> images.images.shape
    torch.Size([3, 1, 2, 2])
    """

    images: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        checks.floating(self.images, "images")
        if self.images.ndim != 4 or 0 in self.images.shape:
            raise ValueError(
                "images: must have shape (n, channels, height, width) and no dimension 0, "
                f"got {tuple(self.images.shape)}"
            )
        least, most = self.images.detach().aminmax()
        # So written, NaN is refused too.
        if not (least >= 0 and most <= 1):
            raise ValueError(f"images: must have values in [0, 1], got {least.item():g} to {most.item():g}")
        checks.class_labels(self.labels, self.classes, "labels")
        if len(self.labels) != len(self.images):
            raise ValueError(f"labels: must be as many as images, {len(self.images)}, got {len(self.labels)}")


def digits(*, dtype: torch.dtype = torch.float64) -> LabelledImages:
    """Return scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, 10 classes.

    They come with scikit-learn, so that nothing is read from anywhere else. They are not MNIST: they are a part of
    another data set, the UCI *optical recognition of handwritten digits*. Pixels are 0 to 16, divided by 16. Three of
    the 64 are 0 in every image.

    Parameters
    ----------
    dtype
        ``torch.float64`` or ``torch.float32``; either holds the values exactly.

    Returns
    -------
    LabelledImages
        ``images`` of shape ``(1797, 1, 8, 8)``.

    Raises
    ------
    TypeError
        Another dtype.

    Notes
    -----
    Cost: 15 ms, and in the first call about one second to import scikit-learn.

    References
    ----------
    Alpaydin & Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49.

    Examples
    --------
    >>> data = digits()
    >>> data.images.shape, data.labels[:5].tolist(), int(data.labels.bincount().min())
    (torch.Size([1797, 1, 8, 8]), [0, 1, 2, 3, 4], 174)
    """
    checks.precision(dtype, "dtype")
    # Importing scikit-learn takes longer than anything else here.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16).to(dtype).view(-1, 1, 8, 8)
    return LabelledImages(images, torch.from_numpy(labels.astype(np.int64)), 10)


_MNIST_SIZES = {
    "train-images-idx3-ubyte.gz": 9_912_422,
    "train-labels-idx1-ubyte.gz": 28_881,
    "t10k-images-idx3-ubyte.gz": 1_648_877,
    "t10k-labels-idx1-ubyte.gz": 4_542,
}
_MNIST_MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)


def _mnist_file(name: str) -> DataFile:
    hint = "This is not the file of MNIST that it should be: Fashion-MNIST and KMNIST use the same names."
    return files.known(f"mnist/{name}", _MNIST_SIZES[name], tuple(mirror + name for mirror in _MNIST_MIRRORS), hint)


def mnist(train: bool = True, *, dtype: torch.dtype = torch.float32) -> LabelledImages:
    """Return MNIST: 28×28 pixels, 10 classes, 60,000 training or 10,000 test images.

    The two files are read from ``$IMPLICITREG_DATA/mnist``, else from the user's cache, else downloaded into it. Their
    SHA-256 is checked whenever they are read. Pixels are 0 to 255, divided by 255.

    Parameters
    ----------
    train
        The training images; else the test images.
    dtype
        ``torch.float32`` or ``torch.float64``.

    Returns
    -------
    LabelledImages
        ``images`` of shape ``(60000, 1, 28, 28)`` or ``(10000, 1, 28, 28)``.

    Raises
    ------
    TypeError
        Another dtype.
    DataError
        A file is another one, is cut off or cannot be read, or is not there and cannot be downloaded.

    Notes
    -----
    Cost: about a second and 190 MB for the training images in float32; a download of 12 MB in all, once.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner (1998), doi:10.1109/5.726791. CC BY-SA 3.0.

    Examples
    --------
    >>> mnist().labels.bincount().tolist()  # doctest: +SKIP
    [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    """
    checks.precision(dtype, "dtype")
    kind = "train" if train else "t10k"
    return _mnist(_mnist_file(f"{kind}-images-idx3-ubyte.gz"), _mnist_file(f"{kind}-labels-idx1-ubyte.gz"), dtype)


def _mnist(images: DataFile, labels: DataFile, dtype: torch.dtype) -> LabelledImages:
    pixels = _idx(images, files.read(images), 3)
    classes = _idx(labels, files.read(labels), 1)
    if pixels.shape[1:] != (28, 28):
        raise images.malformed(f"holds images of {'×'.join(map(str, pixels.shape[1:]))} pixels, not 28×28")
    if len(pixels) != len(classes):
        raise labels.malformed(f"holds {len(classes)} labels for the {len(pixels)} images of {images.name}")
    return _labelled(labels, pixels[:, None], classes, dtype)


def _idx(file: DataFile, raw: bytes, order: int) -> Bytes:
    """Return the array of unsigned bytes in a compressed idx file, of shape ``(n, ...)`` with ``order`` dimensions."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            content = stream.read(_LARGEST + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise file.malformed(f"is not a whole gzip file: {error}") from None
    if len(content) > _LARGEST:
        raise file.malformed(f"unpacks to more than {_LARGEST:,} bytes")
    header = 4 * (1 + order)
    # Two zeros, the type of the entries (8: unsigned byte), the number of dimensions; then the dimensions.
    if len(content) < header or content[:4] != bytes([0, 0, 8, order]):
        raise file.malformed(f"does not start like an idx file of {order} dimensions: {content[:4].hex(' ')}")
    dims = [int(d) for d in np.frombuffer(content, ">u4", order, 4)]
    if len(content) != header + math.prod(dims) or 0 in dims:
        raise file.malformed(
            f"holds {len(content) - header:,} entries where its header says {' × '.join(map(str, dims))}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(dims)


def _labelled(file: DataFile, pixels: Bytes, labels: Bytes, dtype: torch.dtype) -> LabelledImages:
    """Return images with their labels, of ten classes; ``file`` is the one that holds the labels."""
    if (labels > 9).any():
        raise file.malformed(f"holds the label {labels.max()}, and labels are 0 to 9")
    images = torch.from_numpy(pixels.copy()).to(dtype).div_(255)
    return LabelledImages(images, torch.from_numpy(labels.astype(np.int64)), 10)


_LARGEST = 64 * 1024**2  # bytes that a compressed file may unpack to; the largest of MNIST has 47 million
_CIFAR10 = "cifar-10-binary.tar.gz"
_CIFAR10_URL = f"https://www.cs.toronto.edu/~kriz/{_CIFAR10}"
_FOLDER = "cifar-10-batches-bin/"
_RECORD = 1 + 3 * 32 * 32


def cifar10(train: bool = True, *, dtype: torch.dtype = torch.float32) -> LabelledImages:
    """Return CIFAR-10: colour images of 32×32 pixels, 10 classes, 50,000 training or 10,000 test images.

    The *binary* version ``cifar-10-binary.tar.gz`` is read from ``$IMPLICITREG_DATA/cifar10``, else from the user's
    cache, else downloaded into it. Its SHA-256 is checked whenever it is read. It is read in memory: nothing is
    unpacked onto the disk, and nothing unpickled. Pixels are 0 to 255, divided by 255.

    Parameters
    ----------
    train
        The training images, in the order of the five batches; else the test images.
    dtype
        ``torch.float32`` or ``torch.float64``.

    Returns
    -------
    LabelledImages
        ``images`` of shape ``(50000, 3, 32, 32)`` or ``(10000, 3, 32, 32)``, channels red, green, blue.

    Raises
    ------
    TypeError
        Another dtype.
    DataError
        The file is another one, is cut off or cannot be read, or is not there and cannot be downloaded.

    Notes
    -----
    Cost: a few seconds, and 1.2 GB while it lasts, for the training images in float32; a download of 170 MB, once.
    The server is slow: a copy of the file, put where it is looked for, spares the wait.

    References
    ----------
    Krizhevsky (2009), *Learning multiple layers of features from tiny images*.

    Examples
    --------
    >>> cifar10(train=False).labels.bincount().unique().tolist()  # doctest: +SKIP
    [1000]
    """
    checks.precision(dtype, "dtype")
    hint = "The binary version is wanted; cifar-10-python.tar.gz is another file."
    file = files.known(f"cifar10/{_CIFAR10}", 170_052_171, (_CIFAR10_URL,), hint)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    return _cifar10(file, names, 10_000, dtype)


def _cifar10(file: DataFile, names: Sequence[str], each: int, dtype: torch.dtype) -> LabelledImages:
    """Return the images of some batches of the archive, ``each`` images in each."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(files.read(file)), mode="r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix(_FOLDER)
                if name in names and member.isreg() and (stream := archive.extractfile(member)) is not None:
                    found[name] = stream.read(each * _RECORD + 1)
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise file.malformed(f"is not a whole archive: {error}") from None
    for name in names:
        if len(found.get(name, b"")) != each * _RECORD:
            more = "more than " if name in found and len(found[name]) > each * _RECORD else ""
            size = len(found.get(name, b"")) - bool(more)
            held = f"holds {more}{size:,} bytes in" if name in found else "does not hold"
            raise file.malformed(f"{held} {name}, which should have {each * _RECORD:,} bytes")
    return _records(file, b"".join(found[name] for name in names), dtype)


def _records(file: DataFile, raw: bytes, dtype: torch.dtype) -> LabelledImages:
    """Return the images of records: label, then 1,024 red, 1,024 green, 1,024 blue values, row by row."""
    if not raw or len(raw) % _RECORD:
        raise file.malformed(f"holds {len(raw):,} bytes, which are not records of {_RECORD:,} bytes")
    table = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
    return _labelled(file, table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0], dtype)


def cifar10_records(path: str | os.PathLike[str], *, sha256: str, dtype: torch.dtype = torch.float32) -> LabelledImages:
    """Return the images of a file of records in the binary layout of CIFAR-10: a subset of one's own.

    A record has 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue values, row by row.

    Parameters
    ----------
    path
        The file.
    sha256
        The SHA-256 that it must have, 64 hexadecimal digits.
    dtype
        ``torch.float32`` or ``torch.float64``.

    Returns
    -------
    LabelledImages
        ``images`` of shape ``(n, 3, 32, 32)``, ten classes.

    Raises
    ------
    TypeError
        Another dtype.
    ValueError
        ``sha256`` is not one.
    DataError
        There is no such file, it is another one, or it does not hold records.

    Examples
    --------
    >>> import hashlib, tempfile
    >>> record = bytes([7]) + bytes(1024) + bytes([255]) * 1024 + bytes(1024)
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(record)
    ...     file.flush()
    ...     data = cifar10_records(file.name, sha256=hashlib.sha256(record).hexdigest())
    >>> data.labels.tolist(), data.images.mean((2, 3)).tolist()
    ([7], [[0.0, 1.0, 0.0]])
    """
    checks.precision(dtype, "dtype")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256: must be 64 hexadecimal digits, got {sha256!r}")
    where = Path(os.path.abspath(Path(path).expanduser()))
    file = DataFile("cifar10", where.name, sha256.lower())
    return _records(file, files.content(file, where), dtype)


def downsample(images: LabelledImages, size: int) -> LabelledImages:
    r"""Return images averaged down to fewer pixels, with the same labels.

    Pixel :math:`i` of ``size`` along an edge of length :math:`h` is the mean over the pixels from
    :math:`\lfloor i h / \text{size} \rfloor` up to, but without, :math:`\lceil (i + 1) h / \text{size} \rceil`
    (adaptive average pooling).

    Parameters
    ----------
    images
        The images.
    size
        New height and width, from 1 to the smaller of the old ones.

    Returns
    -------
    LabelledImages
        ``images`` of shape ``(n, channels, size, size)``, dtype as before.

    Raises
    ------
    TypeError, ValueError
        ``images`` is something else, or ``size`` is out of range.

    Examples
    --------
    >>> ramp = LabelledImages(torch.tensor([[[[0.0, 0.25], [0.5, 0.25]]]]), torch.tensor([1]), 2)
    >>> downsample(ramp, 1).images.item()
    0.25
    """
    _is_images(images, "images")
    checks.integer(size, "size", 1)
    edge = min(images.images.shape[2:])
    if size > edge:
        raise ValueError(f"size: must be at most {edge}, the edge of the images, got {size}")
    # A mean can leave [0, 1] by a rounding error.
    pooled = torch.nn.functional.adaptive_avg_pool2d(images.images, size).clamp(0, 1)
    return LabelledImages(pooled, images.labels, images.classes)


def _is_images(value: LabelledImages, name: str) -> None:
    if not isinstance(value, LabelledImages):
        raise TypeError(f"{name}: must be LabelledImages, got {type(value).__name__}")


@dataclass(frozen=True, eq=False)
class Split:
    """A training set and a test set, ready for a network: flattened and standardised.

    Attributes
    ----------
    x, x_test
        Shape ``(n, d)`` and ``(m, d)``: float32 or float64.
    y, y_test
        Their labels, shape ``(n,)`` and ``(m,)``: int64, from 0 to ``classes - 1``.
    classes
        Number of classes.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int


def split(images: LabelledImages, n: int, generator: torch.Generator, *, test: LabelledImages | None = None) -> Split:
    r"""Return ``n`` images drawn at random as the training set, and all the others, or given ones, as the test set.

    With :math:`\mu` the mean of the training set (one number a feature) and
    :math:`\sigma^2 = \frac{1}{nd} \sum_{i,j} (x_{ij} - \mu_j)^2` (one number in all), an image :math:`x` of either set
    becomes :math:`(x - \mu) / \sigma`. Features that are constant in the training set do no harm so.

    Parameters
    ----------
    images
        The images to draw from.
    n
        Size of the training set, >= 1: the first ``n`` of a random order of all images. For the same draw, a smaller
        training set lies within a larger one. At most one less than there are images; with ``test``, all of them.
    generator
        Source of randomness, on the CPU.
    test
        The test set, such as the official one of MNIST; ``None``: the images that are not in the training set, so that
        the test set changes with ``n``.

    Returns
    -------
    Split
        In the dtype of ``images``; ``d`` is channels × height × width.

    Raises
    ------
    TypeError, ValueError
        ``n`` is out of range, ``test`` has images of another shape or dtype or other classes, or all images of the
        training set are the same.

    Examples
    --------
    >>> data = split(digits(), 1000, torch.Generator().manual_seed(0))
    >>> data.x.shape, data.x_test.shape
    (torch.Size([1000, 64]), torch.Size([797, 64]))
    >>> round(data.x.square().mean().item(), 12), bool(data.x.mean(0).abs().max() < 1e-12)
    (1.0, True)
    """
    _is_images(images, "images")
    checks.integer(n, "n", 1)
    checks.random(generator, "generator")
    most = len(images.labels) - (test is None)
    if n > most:
        rest = ", which leaves one to test on" if test is None else ""
        raise ValueError(f"n: must be at most {most}{rest}, got {n}")
    if test is not None:
        _is_images(test, "test")
        mine, other = ((tuple(part.images.shape[1:]), part.images.dtype, part.classes) for part in (images, test))
        if mine != other:
            raise ValueError(f"test: must agree with images in shape, dtype and classes, {mine}, got {other}")
    order = torch.randperm(len(images.labels), generator=generator).to(images.labels.device)
    x = images.images.flatten(1)[order[:n]]
    if (x == x[0]).all():
        raise ValueError(f"n: a training set of {n} in which all images are the same cannot be standardised")
    mean = x.mean(0)
    x = x - mean
    std = x.square().mean().sqrt()
    others = images.images[order[n:]] if test is None else test.images
    y_test = images.labels[order[n:]] if test is None else test.labels
    return Split(x / std, images.labels[order[:n]], (others.flatten(1) - mean) / std, y_test, images.classes)
