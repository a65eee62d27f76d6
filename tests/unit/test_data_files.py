"""Data files: found, fetched, checked; refused with one clear error, and never half-written."""

import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from implicitreg.data import DataError, files, images
from implicitreg.data.files import DataFile

GOOD = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(GOOD).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves the good file, and everything that can go wrong with it."""

    def do_GET(self):
        kind = self.path.strip("/")
        self.server.asked.append(kind)
        if kind in ("hung", "reset"):
            if kind == "reset":  # closed at once, so that the other side is told of an error
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection, self.wfile = True, io.BytesIO()
            return
        if kind == "absent":
            self.send_error(404)
            return
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = {"wrong": GOOD[::-1], "page": b"<html>Please log in</html>", "empty": b""}.get(kind, GOOD)
        self.send_response(200)
        if kind != "unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind in ("cut", "unsized", "stall"):
            body = body[:100_000]
        self.wfile.write(body)
        self.wfile.flush()
        if kind == "stall":
            self.server.stalled.set()
            self.server.released.wait(30)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    """Return a server on this machine: one thread, and one more for each request."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.stalled, running.released = [], threading.Event(), threading.Event()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Return the folder of `IMPLICITREG_DATA` and the cache, both of them absent at first."""
    monkeypatch.setenv("IMPLICITREG_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(files, "SCHEMES", ("https://", "http://127.0.0.1:"))  # nobody listens between us and ourselves
    return tmp_path / "mine" / "toy", tmp_path / "cache" / "implicitreg" / "toy"


def toy(server, *kinds, **changes):
    server.asked.clear()
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{kind}" for kind in kinds)
    return DataFile(
        **{"dataset": "toy", "name": "toy.bin", "sha256": SHA256, "size": len(GOOD), "urls": urls, **changes}
    )


def put(folder, content=GOOD):
    folder.mkdir(parents=True)
    (folder / "toy.bin").write_bytes(content)


def left(folder):
    """Return every file below a folder."""
    return [path for path in folder.rglob("*") if not path.is_dir()]


def test_ones_own_folder_comes_first(server, places):
    for folder in places:
        put(folder)
    assert files.read(toy(server, "good")) == GOOD
    (places[0] / "toy.bin").unlink()
    assert files.read(toy(server, "good")) == GOOD
    assert server.asked == []


def test_a_download_is_kept_in_the_cache(server, places, capfd):
    assert files.read(toy(server, "good")) == GOOD
    assert left(places[0].parent.parent) == [places[1] / "toy.bin"]
    assert "toy.bin" in capfd.readouterr().err
    assert files.read(toy(server, "good")) == GOOD
    assert server.asked == []
    assert capfd.readouterr() == ("", "")


def test_without_a_folder_of_ones_own_the_cache_is_enough(server, places, monkeypatch):
    monkeypatch.delenv("IMPLICITREG_DATA")
    assert files.read(toy(server, "good")) == GOOD
    monkeypatch.setenv("IMPLICITREG_DATA", "")
    assert files.read(toy(server)) == GOOD


@pytest.mark.parametrize("bad", ["absent", "cut", "unsized", "wrong", "page", "empty"])
def test_the_next_address_is_tried(server, places, bad):
    assert files.read(toy(server, bad, "good")) == GOOD
    assert server.asked == [bad, "good"]
    assert left(places[1].parent) == [places[1] / "toy.bin"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("absent", "404 Not Found"),
        ("hung", "the line was cut after 0 bytes"),
        ("reset", "the line was cut after 0 bytes"),
        ("cut", r"cut after \d"),
        ("unsized", "cut off: 100,000 bytes with SHA-256"),
        ("wrong", "another one: 262,144 bytes with SHA-256"),
        ("page", "26 bytes with SHA-256"),
        ("empty", "0 bytes with SHA-256"),
    ],
)
def test_a_failed_download_is_one_clear_error_and_leaves_nothing(server, places, tmp_path, kind, told):
    with pytest.raises(DataError, match=told) as caught:
        files.read(toy(server, kind))
    message = str(caught.value)
    for part in ("toy.bin", SHA256, str(places[0]), "262,144 bytes", f"/{kind}: "):
        assert part in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert left(tmp_path) == []


def test_only_https_is_asked_and_followed(server, places, monkeypatch):
    monkeypatch.setattr(files, "SCHEMES", ("https://",))
    with pytest.raises(DataError, match="only https is followed"):
        files.read(toy(server, "good"))
    assert server.asked == []
    # A server that passes on to another address without encryption.
    monkeypatch.setattr(files, "SCHEMES", (f"http://127.0.0.1:{server.server_port}/moved",))
    with pytest.raises(DataError, match=r"leads to http://127\.0\.0\.1:\d+/good, and only https is followed"):
        files.read(toy(server, "moved"))
    assert server.asked == ["moved"]
    assert left(places[1]) == []


def test_every_address_that_is_known_is_https():
    addresses = [images._CIFAR10_URL, *images._mnist_file("train-images-idx3-ubyte.gz").urls]
    assert all(url.startswith("https://") for url in addresses)


def test_no_network(places, tmp_path, monkeypatch):
    # A port that nobody listens on: reserved, and given back.
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    file = DataFile("toy", "toy.bin", SHA256, urls=tuple(f"http://127.0.0.1:{port}/{x}" for x in "ab"))
    with pytest.raises(DataError, match=r"a: no connection; \S+b: no connection") as caught:
        files.read(file)
    assert f"into {places[0]}." in str(caught.value)
    monkeypatch.delenv("IMPLICITREG_DATA")
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        files.read(file)
    assert f"into {places[1]}." in str(caught.value)
    assert left(tmp_path) == []


def test_a_silent_server_is_given_up(server, places, tmp_path, monkeypatch):
    server.stalled.clear()
    monkeypatch.setattr(files, "TIMEOUT", (1, 0.2))
    with pytest.raises(DataError, match="cut after"):
        files.read(toy(server, "stall"))
    assert left(tmp_path) == []


def test_no_address():
    with pytest.raises(DataError, match="no address is known"):
        files._downloaded(DataFile("toy", "toy.bin", SHA256), Path("there"))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("content", "told"), [(GOOD[:-1], "cut off: 262,143 bytes"), (GOOD + b"1", "another one: 2")])
def test_a_wrong_file_is_an_error_and_is_left_alone(server, places, place, content, told):
    put(places[place], content)
    with pytest.raises(DataError, match=told) as caught:
        files.read(toy(server, "good", hint="Another toy has the same name."))
    for part in ("toy.bin", SHA256, str(places[place]), "Another toy has the same name.", "left as it is"):
        assert part in str(caught.value)
    assert (places[place] / "toy.bin").read_bytes() == content
    assert server.asked == []


def test_what_cannot_be_read_is_an_error(server, places):
    (places[0] / "toy.bin").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read") as caught:
        files.read(toy(server, "good"))
    assert SHA256 in str(caught.value)


def test_a_cache_that_cannot_be_written_is_no_error(server, places, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match=r"^toy\.bin: was downloaded but cannot be kept in .*toy: ") as caught:
        assert files.read(toy(server, "good")) == GOOD
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(places[1]) in str(caught[0].message)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_kept_file_has_ordinary_permissions(server, places, mask):
    before = os.umask(mask)
    try:
        files.read(toy(server, "good"))
    finally:
        os.umask(before)
    assert (places[1] / "toy.bin").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(server, places, tmp_path, monkeypatch, error):
    def broken(*_):
        assert [path.suffix for path in left(tmp_path)] == [".part"]
        raise error

    monkeypatch.setattr(os, "replace", broken)
    told = pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else pytest.warns(match="No space left")
    with told:
        files.read(toy(server, "good"))
    assert left(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_interrupted_download_leaves_nothing(server, places, tmp_path, name):
    """A process that is stopped in the middle of the download, as by Ctrl-C."""
    file = toy(server, "stall")
    server.stalled.clear()
    code = f"""
import pooch
from implicitreg.data import files
files.SCHEMES = ("http://127.0.0.1:",)
from implicitreg.data.files import *
pooch.os_cache = lambda name: {str(tmp_path / "cache")!r}
read({file!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert server.stalled.wait(60), process.communicate(timeout=5)[1].decode()
        process.send_signal(getattr(signal, name))
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -getattr(signal, name)
    assert name != "SIGINT" or b"KeyboardInterrupt" in told
    assert left(tmp_path) == []


def test_the_check_is_of_the_bytes_that_are_used(server, places, monkeypatch):
    """Whoever reads a file once to check it and again to use it may use another one."""
    put(places[0])
    read = Path.read_bytes
    times = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: times.append(path) or read(path))
    assert files.read(toy(server)) == GOOD
    assert times == [places[0] / "toy.bin"]


def test_the_list_of_hashes_is_in_the_format_of_sha256sum():
    lines = (Path(files.__file__).parent / "SHA256SUMS").read_text("utf-8").splitlines()
    assert len(lines) == 5
    for line in lines:
        sha256, _, name = line.partition("  ")
        assert len(bytes.fromhex(sha256)) == 32
        file = files.known(name, 1, (), "")
        assert (file.sha256, f"{file.dataset}/{file.name}") == (sha256, name)
