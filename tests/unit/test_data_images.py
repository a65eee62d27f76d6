"""Images with labels: the loaders against known facts and hand-made files, pooling and splitting against formulas."""

import gzip
import hashlib
import io
import math
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from implicitreg.data import (
    DataError,
    LabelledImages,
    Split,
    cifar10,
    cifar10_records,
    digits,
    downsample,
    files,
    images,
    mnist,
    split,
)
from implicitreg.data.files import DataFile

RECORD = 3073


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def random_images(n=40, shape=(3, 6, 7), classes=4, dtype=torch.float64):
    pixels = torch.rand(n, *shape, generator=generator(), dtype=dtype)
    return LabelledImages(pixels, torch.arange(n) % classes, classes)


# The container


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"images": torch.zeros(3, 2, 2)}, "images"),
        ({"images": torch.zeros(0, 1, 2, 2)}, "images"),
        ({"images": torch.zeros(3, 1, 0, 2)}, "images"),
        ({"images": torch.zeros(3, 1, 2, 2, dtype=torch.uint8)}, "images"),
        ({"images": torch.full((3, 1, 2, 2), 1.5)}, "images"),
        ({"images": torch.full((3, 1, 2, 2), -0.1)}, "images"),
        ({"images": torch.full((3, 1, 2, 2), math.nan)}, "images"),
        ({"images": np.zeros((3, 1, 2, 2))}, "images"),
        ({"labels": torch.tensor([0, 1, 3])}, "labels"),
        ({"labels": torch.tensor([0, 1, -1])}, "labels"),
        ({"labels": torch.tensor([0, 1])}, "labels"),
        ({"labels": torch.tensor([], dtype=torch.int64)}, "labels"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "labels"),
        ({"labels": [0, 1, 2]}, "labels"),
        ({"classes": 1}, "classes"),
        ({"classes": 2.0}, "classes"),
    ],
)
def test_bad_images_are_named(change, name):
    arguments = {"images": torch.zeros(3, 1, 2, 2), "labels": torch.tensor([0, 1, 2]), "classes": 3}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        LabelledImages(**{**arguments, **change})


@pytest.mark.parametrize("load", [digits, mnist, cifar10, lambda **k: cifar10_records("none", sha256="0" * 64, **k)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, "float32", None])
def test_a_bad_dtype_is_named_before_anything_is_read(load, dtype):
    with pytest.raises(TypeError, match=r"^dtype: must be torch\.float32 or torch\.float64"):
        load(dtype=dtype)


# Digits


def test_facts_of_the_digits():
    data = digits()
    assert (data.images.shape, data.images.dtype, data.classes) == ((1797, 1, 8, 8), torch.float64, 10)
    x = data.images.flatten(1)
    assert (x.amin(), x.amax()) == (0, 1)
    assert torch.equal(x * 16, (x * 16).round())
    assert (x == x[0]).all(0).sum() == 3
    assert torch.linalg.matrix_rank(x) == 61
    assert len(x.unique(dim=0)) == 1797
    assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.equal(digits(dtype=torch.float32).images.double(), data.images)


# MNIST


def idx(array, *, magic=None, dims=None, extra=b"", cut=0):
    """Return the compressed idx file of an array of bytes, or one that is wrong in some way."""
    dims = array.shape if dims is None else dims
    header = struct.pack(">I", 0x800 + array.ndim if magic is None else magic) + struct.pack(f">{len(dims)}I", *dims)
    content = header + array.tobytes() + extra
    return gzip.compress(content[: len(content) - cut], mtime=0)


@pytest.fixture
def hand_made(tmp_path, monkeypatch):
    """Return a function that loads MNIST from two files with these contents."""
    monkeypatch.setenv("IMPLICITREG_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()

    def load(pixels, labels, dtype=torch.float64):
        made = []
        for name, raw in (("images.gz", pixels), ("labels.gz", labels)):
            (tmp_path / "mnist" / name).write_bytes(raw)
            made.append(DataFile("mnist", name, sha256(raw)))
        return images._mnist(*made, dtype)

    return load


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_idx_files(hand_made, dtype):
    data = hand_made(idx(PIXELS), idx(LABELS), dtype)
    assert data.images.dtype == dtype
    torch.testing.assert_close(data.images[:, 0], torch.tensor(PIXELS / 255, dtype=dtype), rtol=1e-7, atol=0)
    assert data.labels.tolist() == LABELS.tolist()
    assert data.classes == 10


@pytest.mark.parametrize(
    ("pixels", "labels", "told"),
    [
        (idx(PIXELS)[:-20], idx(LABELS), r"^images\.gz: .*not a whole gzip"),
        (idx(PIXELS) + b"garbage", idx(LABELS), r"^images\.gz: .*not a whole gzip"),
        (PIXELS.tobytes(), idx(LABELS), r"^images\.gz: .*not a whole gzip"),
        (b"", idx(LABELS), r"^images\.gz: .*does not start like an idx file"),
        (idx(PIXELS, magic=0x801), idx(LABELS), r"^images\.gz: .*does not start like an idx file"),
        (idx(PIXELS, magic=0xD03), idx(LABELS), r"^images\.gz: .*does not start like an idx file"),
        (idx(LABELS), idx(LABELS), r"^images\.gz: .*does not start like an idx file"),
        (gzip.compress(bytes(65 * 1024**2), 1), idx(LABELS), r"^images\.gz: .*unpacks to more than 67,108,864 bytes"),
        (gzip.compress(b"\0\0\x08\x03\0\0", mtime=0), idx(LABELS), r"^images\.gz: .*does not start like an idx file"),
        (idx(PIXELS), idx(PIXELS), r"^labels\.gz: .*does not start like an idx file"),
        (idx(PIXELS, cut=1), idx(LABELS), r"^images\.gz: .*holds 9,407 entries where its header says 12 × 28 × 28"),
        (idx(PIXELS, extra=b"1"), idx(LABELS), r"^images\.gz: .*9,409 entries"),
        (idx(PIXELS, dims=(2**32 - 1, 2**32 - 1, 2**32 - 1)), idx(LABELS), r"^images\.gz: .*entries where"),
        (idx(PIXELS[:0]), idx(LABELS[:0]), r"^images\.gz: .*0 entries where"),
        (idx(PIXELS[:, :14]), idx(LABELS), r"^images\.gz: .*images of 14×28 pixels"),
        (idx(PIXELS), idx(LABELS[:-1]), r"^labels\.gz: .*11 labels for the 12 images of images\.gz"),
        (idx(PIXELS), idx(LABELS + 1), r"^labels\.gz: .*the label 10"),
    ],
)
def test_idx_files_that_are_wrong(hand_made, pixels, labels, told):
    with pytest.raises(DataError, match=told):
        hand_made(pixels, labels)


@pytest.mark.parametrize("train", [True, False])
def test_another_file_of_the_same_name_is_not_mnist(tmp_path, monkeypatch, train):
    monkeypatch.setenv("IMPLICITREG_DATA", str(tmp_path))
    name = "train-images-idx3-ubyte.gz" if train else "t10k-images-idx3-ubyte.gz"
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / name).write_bytes(idx(PIXELS))
    with pytest.raises(DataError, match="Fashion-MNIST and KMNIST use the same names") as caught:
        mnist(train)
    for part in (name, str(tmp_path / "mnist"), images._mnist_file(name).sha256):
        assert part in str(caught.value)


def test_a_truncated_copy_of_mnist_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPLICITREG_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(idx(PIXELS)[:1000])
    with pytest.raises(DataError, match=r"cut off: 1,000 bytes .*\(1,648,877 bytes\)"):
        mnist(train=False)


@pytest.fixture(scope="module")
def real():
    """Return the training and test images of MNIST itself, where somebody has put the files."""
    given = os.environ.get("IMPLICITREG_DATA", "")
    if not given or not all((Path(given) / "mnist" / name).is_file() for name in images._MNIST_SIZES):
        pytest.skip("IMPLICITREG_DATA names no folder with the four files of MNIST")
    return mnist(), mnist(train=False)


def test_facts_of_mnist(real):
    train, test = real
    assert (train.images.shape, train.images.dtype) == ((60000, 1, 28, 28), torch.float32)
    assert test.images.shape == (10000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.images.double().mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert train.images.double().std().item() == pytest.approx(0.3081, abs=5e-5)


def test_mnist_as_published(real):
    """10×10 pixels; the official test set."""
    train, test = (downsample(part, 10) for part in real)
    data = split(train, 2000, generator(), test=test)
    assert (data.x.shape, data.x_test.shape) == ((2000, 100), (10000, 100))
    assert torch.equal(data.y_test, test.labels)


# CIFAR-10


def records(n, seed=0):
    """Return ``n`` records, and what they hold: images as in the file, and labels."""
    rng = np.random.default_rng(seed)
    pixels, labels = rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, 10, n, np.uint8)
    raw = b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True))
    return raw, pixels, labels


def archive(members, mode="w:gz"):
    """Return an archive with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Return a function that loads batches of five images from an archive with this content."""
    monkeypatch.setenv("IMPLICITREG_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()

    def load(raw, names):
        (tmp_path / "cifar10" / "small.tar.gz").write_bytes(raw)
        return images._cifar10(DataFile("cifar10", "small.tar.gz", sha256(raw)), names, 5, torch.float32)

    return load


BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]


def test_the_archive_of_cifar10(packed, tmp_path):
    parts = {name: records(5, seed) for seed, name in enumerate([*BATCHES, "test_batch.bin"])}
    # The order of the batches is that of their names, wherever they stand in the archive.
    raw = archive({"readme.html": b"<html>", **{name: parts[name][0] for name in reversed(parts)}})
    train, test = packed(raw, BATCHES), packed(raw, ["test_batch.bin"])
    assert (train.images.shape, test.images.shape) == ((25, 3, 32, 32), (5, 3, 32, 32))
    assert torch.equal(
        (train.images * 255).round().byte(), torch.tensor(np.concatenate([parts[n][1] for n in BATCHES]))
    )
    assert train.labels.tolist() == [int(label) for name in BATCHES for label in parts[name][2]]
    assert test.labels.tolist() == parts["test_batch.bin"][2].tolist()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["small.tar.gz"]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (archive({"test_batch.bin": records(5)[0]})[:-40], "not a whole archive"),
        (archive({"test_batch.bin": records(5)[0]}, "w"), "not a whole archive"),
        (b"", "not a whole archive"),
        (archive({"data_batch_1.bin": records(5)[0]}), r"does not hold test_batch\.bin"),
        (archive({"test_batch.bin": records(4)[0]}), r"holds 12,292 bytes in test_batch\.bin, .* 15,365 bytes"),
        (archive({"test_batch.bin": records(6)[0]}), r"holds more than 15,365 bytes in test_batch\.bin"),
        (archive({"../test_batch.bin": records(5)[0]}), r"does not hold test_batch\.bin"),
        (archive({"test_batch.bin": bytes([10]) + records(5)[0][1:]}), "the label 10"),
    ],
)
def test_archives_that_are_wrong(packed, raw, told):
    with pytest.raises(DataError, match=rf"^small\.tar\.gz: .*{told}"):
        packed(raw, ["test_batch.bin"])


def test_the_python_version_of_cifar10_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPLICITREG_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(b"pickles")
    with pytest.raises(DataError, match="The binary version is wanted"):
        cifar10()


def test_records_of_ones_own(tmp_path):
    raw, pixels, labels = records(7)
    path = tmp_path / "mine.bin"
    path.write_bytes(raw)
    data = cifar10_records(path, sha256=sha256(raw).upper(), dtype=torch.float64)
    torch.testing.assert_close(data.images, torch.tensor(pixels / 255), rtol=1e-15, atol=0)
    assert data.labels.tolist() == labels.tolist()
    assert data.classes == 10


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "holds 0 bytes, which are not records"),
        (records(2)[0][:-1], "holds 6,145 bytes, which are not records of 3,073 bytes"),
        (records(2)[0] + b"1", "not records"),
        (bytes([255]) + bytes(RECORD - 1), "the label 255"),
    ],
)
def test_records_that_are_wrong(tmp_path, raw, told):
    path = tmp_path / "mine.bin"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"^mine\.bin: .*{told}"):
        cifar10_records(path, sha256=sha256(raw))


def test_records_that_are_others_or_absent(tmp_path):
    path = tmp_path / "mine.bin"
    wanted = sha256(b"other")
    for told in ("there is no such file", "is another one"):
        with pytest.raises(DataError, match=told) as caught:
            cifar10_records(path, sha256=wanted)
        for part in ("mine.bin", wanted, str(tmp_path)):
            assert part in str(caught.value)
        path.write_bytes(records(1)[0])


@pytest.mark.parametrize("bad", ["", "12", "g" * 64, "0" * 65, None])
def test_a_bad_hash_is_named(tmp_path, bad):
    with pytest.raises(ValueError, match=r"^sha256: "):
        cifar10_records(tmp_path, sha256=bad)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data_batch_1.first4000.bin", "0993cf8b8e43bc207603aef9787006995746513f5e3fa5a52e06d1b069926330"),
        ("test_batch.first1017.bin", "c77ad46116beb3508f55d38aa34893560beae9515f9aca4a4dd0ea3617ac289e"),
    ],
)
def test_images_of_cifar10_look_like_images(name, expected):
    """Neighbouring pixels are alike along rows and columns, in each channel, as they would not be in another layout."""
    path = Path(os.environ.get("IMPLICITREG_DATA", "")) / "cifar10" / name
    if not path.is_file():
        pytest.skip(f"IMPLICITREG_DATA names no folder with cifar10/{name}")
    x = cifar10_records(path, sha256=expected).images
    for dim in (2, 3):
        steps = x.diff(dim=dim).square().mean((0, 2, 3))
        assert (steps < 0.25 * x.var((0, 2, 3))).all()


# Pooling


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6])
def test_downsample_is_the_mean_over_its_cells(size):
    data = random_images()
    h, w = data.images.shape[2:]
    expected = torch.empty(40, 3, size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            rows = slice(i * h // size, -(-(i + 1) * h // size))
            columns = slice(j * w // size, -(-(j + 1) * w // size))
            expected[:, :, i, j] = data.images[:, :, rows, columns].mean((2, 3))
    small = downsample(data, size)
    torch.testing.assert_close(small.images, expected, rtol=1e-14, atol=0)
    assert torch.equal(small.labels, data.labels)
    assert small.classes == data.classes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_downsample_of_white_is_white(dtype):
    white = LabelledImages(torch.ones(1, 1, 28, 28, dtype=dtype), torch.tensor([1]), 2)
    for size in range(1, 29):
        assert downsample(white, size).images.dtype == dtype
        assert (downsample(white, size).images - 1).abs().max() <= 1e-6
    assert torch.equal(downsample(white, 28).images, white.images)


@pytest.mark.parametrize("size", [0, 7, 2.0, True])
def test_a_bad_size_is_named(size):
    with pytest.raises(ValueError, match=r"^size: "):
        downsample(random_images(), size)


# Splitting


def test_split_by_its_formula():
    data = random_images()
    result = split(data, 25, generator(3))
    order = torch.randperm(40, generator=generator(3))
    x = data.images.flatten(1).numpy()
    train, test = x[order[:25]], x[order[25:]]
    centred = train - train.mean(0)
    np.testing.assert_allclose(result.x, centred / centred.std(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(result.x_test, (test - train.mean(0)) / centred.std(), rtol=1e-12, atol=1e-14)
    assert torch.equal(torch.cat([result.y, result.y_test]), data.labels[order])
    assert isinstance(result, Split)
    assert result.classes == 4


def test_smaller_training_sets_lie_within_larger_ones():
    data = random_images()
    small, large = (split(data, n, generator(1)) for n in (10, 30))
    assert torch.equal(small.y, large.y[:10])
    assert torch.equal(torch.cat([small.y, small.y_test]), torch.cat([large.y, large.y_test]))


def test_the_test_set_has_no_say():
    """Mean and scale are those of the training set: other test images change nothing in it."""
    data = random_images()
    order = torch.randperm(40, generator=generator())
    pixels = data.images.clone()
    pixels[order[20:]] = 0.5
    before, after = (split(d, 20, generator()) for d in (data, LabelledImages(pixels, data.labels, 4)))
    assert torch.equal(before.x, after.x)
    assert not torch.equal(before.x_test, after.x_test)


def test_brightness_and_contrast_do_not_matter():
    data = random_images()
    other = LabelledImages(0.3 * data.images + 0.5, data.labels, 4)
    a, b = (split(d, 20, generator()) for d in (data, other))
    torch.testing.assert_close(a.x, b.x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a.x_test, b.x_test, rtol=1e-10, atol=1e-12)


def test_constant_features_stay_small():
    data = split(digits(), 1000, generator())
    assert data.x.isfinite().all()
    assert (data.x == 0).all(0).sum() >= 3
    assert data.x.square().mean().item() == pytest.approx(1, abs=1e-12)


def test_a_given_test_set():
    data, other = random_images(), random_images(9)
    result = split(data, 40, generator(), test=other)
    assert result.x.shape == (40, 126)
    train = data.images.flatten(1)
    expected = (other.images.flatten(1) - train.mean(0)) / (train - train.mean(0)).std(correction=0)
    torch.testing.assert_close(result.x_test, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(result.y_test, other.labels)


def test_nothing_is_changed_and_the_dtype_is_kept():
    data = random_images(dtype=torch.float32)
    before = data.images.clone()
    result = split(data, 30, generator())
    assert torch.equal(data.images, before)
    assert {result.x.dtype, result.x_test.dtype} == {torch.float32}
    assert {result.y.dtype, result.y_test.dtype} == {torch.int64}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"n": 0}, "n"),
        ({"n": 40}, "n"),
        ({"n": 41, "test": random_images()}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 1}, "n"),
        ({"images": LabelledImages(torch.full((40, 1, 2, 2), 0.1), torch.arange(40) % 4, 4)}, "n"),
        ({"images": torch.zeros(40, 3, 6, 7)}, "images"),
        ({"generator": 0}, "generator"),
        ({"generator": None}, "generator"),
        ({"test": torch.zeros(3, 3, 6, 7)}, "test"),
        ({"test": random_images(shape=(1, 6, 7))}, "test"),
        ({"test": random_images(classes=3)}, "test"),
        ({"test": random_images(dtype=torch.float32)}, "test"),
    ],
)
def test_a_bad_split_is_named(change, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        split(**{"images": random_images(), "n": 20, "generator": generator(), **change})


def test_published_files_are_known():
    for name in images._MNIST_SIZES:
        file = images._mnist_file(name)
        assert all(url.startswith("https://") and url.endswith(f"/{name}") for url in file.urls)
        assert len(file.urls) == 2
    assert files.known("cifar10/cifar-10-binary.tar.gz", 1, (), "").sha256.startswith("c4a38c50")
