"""What a run says of the data that it read."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import sklearn

from implicitreg.data import digits, files, images
from implicitreg.reproduce.environment import data_hashes

DIGITS = "scikit-learn/digits.csv.gz"


def test_below_the_scale_of_the_papers_the_data_are_embedded() -> None:
    assert data_hashes("book").keys() == data_hashes("smoke").keys() == {DIGITS}


def test_at_the_scale_of_the_papers_every_file_that_the_library_accepts_is_told() -> None:
    hashes = data_hashes("paper")
    assert hashes == data_hashes()
    assert all(hashes[f"mnist/{name}"] == images._mnist_file(name).sha256 for name in images._MNIST_SIZES)
    assert files.known("cifar10/cifar-10-binary.tar.gz", 1, (), "").sha256 == hashes["cifar10/cifar-10-binary.tar.gz"]
    assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in hashes.values())


def test_another_file_of_digits_is_another_hash(tmp_path, monkeypatch) -> None:
    before = data_hashes("book")
    folder = tmp_path / "sklearn" / "datasets" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "sklearn" / "__init__.py").touch()
    spec = type("Spec", (), {"origin": str(tmp_path / "sklearn" / "__init__.py")})
    monkeypatch.setattr("implicitreg.reproduce.environment.find_spec", lambda name: spec)
    assert data_hashes("book") == {}
    (folder / "digits.csv.gz").write_bytes(b"other digits")
    assert data_hashes("book")[DIGITS] != before[DIGITS]


def test_the_digits_are_those_of_the_file_that_is_hashed() -> None:
    path = Path(sklearn.__file__).parent / "datasets" / "data" / "digits.csv.gz"
    assert data_hashes("book")[DIGITS] == hashlib.sha256(path.read_bytes()).hexdigest()
    table = np.loadtxt(path, delimiter=",")
    data = digits()
    np.testing.assert_array_equal(data.images.flatten(1) * 16, table[:, :-1])
    np.testing.assert_array_equal(data.labels, table[:, -1])


def test_nothing_heavy_is_imported_for_it() -> None:
    code = "import sys; from implicitreg.reproduce.environment import data_hashes; data_hashes()"
    code += "; sys.exit(bool({'torch', 'sklearn'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
