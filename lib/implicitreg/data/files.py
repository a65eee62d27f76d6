"""Data files: where they are looked for, where they come from, and the check that they are what they should be.

A file is read once, into memory; its SHA-256 is checked on those very bytes, every time, and they are what is parsed.
"""

import hashlib
import io
import os
import secrets
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

# Seconds to connect, and seconds without a single byte, before an address is given up: one of the servers is slow.
TIMEOUT = (10, 60)

# Nothing is asked for, or passed on to by a server, over a line that anybody may read and write on the way.
SCHEMES = ("https://",)

# Text in the format of sha256sum, so that `sha256sum -c` checks a folder of copies too.
_SUMS = Path(__file__).with_name("SHA256SUMS")


class DataError(RuntimeError):
    """A data file is missing and cannot be fetched, or is not the file that it should be.

    The message names the file, the SHA-256 that it should have, and the folder to put it in.
    """


@dataclass(frozen=True)
class DataFile:
    """A published file.

    Parameters
    ----------
    dataset
        Name of its folder.
    name
        Its name there.
    sha256
        The SHA-256 that it must have, 64 hexadecimal digits.
    size
        Its length in bytes; ``None``: unknown.
    urls
        The addresses that it can be downloaded from, the preferred one first.
    hint
        A sentence for those who have another file of this name.
    """

    dataset: str
    name: str
    sha256: str
    size: int | None = None
    urls: tuple[str, ...] = ()
    hint: str = ""

    def error(self, what: str, folder: Path, hint: str = "") -> DataError:
        """Return the error that says what is wrong with the file, and what to do about it."""
        size = "" if self.size is None else f" ({self.size:,} bytes)"
        text = f"{self.name}: {what}. Put the file with SHA-256 {self.sha256}{size} into {folder}. {hint}"
        return DataError(text.rstrip())

    def malformed(self, what: str) -> DataError:
        """Return the error that says that the file is the wanted one, but not what it is taken for."""
        return DataError(f"{self.name}: has the SHA-256 {self.sha256} that it should have, but {what}")

    def check(self, raw: bytes, path: Path) -> bytes:
        """Return ``raw``, what was read from ``path``, if it is the file; raise `DataError` if it is not."""
        found = self._mismatch(raw)
        if found:
            raise self.error(f"the file in {path.parent} {found}; it is left as it is", path.parent, self.hint)
        return raw

    def _mismatch(self, raw: bytes) -> str:
        """Return how ``raw`` differs from the file; nothing where it does not."""
        if (found := hashlib.sha256(raw).hexdigest()) == self.sha256:
            return ""
        short = self.size is not None and len(raw) < self.size
        return f"is another one{', or cut off' if short else ''}: {len(raw):,} bytes with SHA-256 {found}"


def known(name: str, size: int, urls: tuple[str, ...], hint: str) -> DataFile:
    """Return the file ``<dataset>/<file>`` of which ``SHA256SUMS`` holds the SHA-256."""
    sums = {line[66:]: line[:64] for line in _SUMS.read_text("utf-8").splitlines()}
    dataset, _, file = name.partition("/")
    return DataFile(dataset, file, sums[name], size, urls, hint)


def read(file: DataFile) -> bytes:
    """Return the content of a published file, checked.

    It is looked for in ``$IMPLICITREG_DATA/<dataset>``, then in the user's cache. Where it is in neither, it is
    downloaded into the cache, with a progress bar on stderr. A file that is found but is another one is an error: it
    is neither passed over nor replaced.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    bytes

    Raises
    ------
    DataError
        What is found is another file or cannot be read; or nothing is found, and no address gives the file.

    Warns
    -----
    RuntimeWarning
        The file was downloaded, but cannot be written into the cache.
    """
    with warnings.catch_warnings():
        # In a notebook without widgets, pooch's own progress bar asks for them; ours needs none.
        warnings.filterwarnings("ignore", "IProgress not found")
        import pooch

    given = os.environ.get("IMPLICITREG_DATA")
    cache = Path(pooch.os_cache("implicitreg")) / file.dataset
    folders = [Path(os.path.abspath(Path(given).expanduser())) / file.dataset, cache] if given else [cache]
    for folder in folders:
        raw = _content(file, folder / file.name)
        if raw is not None:
            return file.check(raw, folder / file.name)
    raw = _downloaded(file, folders[0])
    _keep(file, raw, cache / file.name)
    return raw


def _content(file: DataFile, path: Path) -> bytes | None:
    """Return what ``path`` holds; ``None`` where there is no file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise file.error(f"cannot be read in {path.parent}: {error.strerror}", path.parent) from None


def content(file: DataFile, path: Path) -> bytes:
    """Return the content of ``path``, checked to be ``file``; raise `DataError` where it is not or does not exist."""
    raw = _content(file, path)
    if raw is None:
        raise file.error(f"there is no such file in {path.parent}", path.parent)
    return file.check(raw, path)


def _downloaded(file: DataFile, folder: Path) -> bytes:
    """Return the file as the first of its addresses gives it that gives the right one."""
    failures = []
    for url in file.urls:
        # Into memory: whatever interrupts a download, no part of the file is left anywhere.
        buffer = io.BytesIO()
        try:
            _fetch(url, buffer, file)
        except (OSError, ValueError) as error:
            failures.append(f"{url}: {_reason(error, buffer.tell())}")
            continue
        raw = buffer.getvalue()
        found = file._mismatch(raw)
        if not found:
            return raw
        failures.append(f"{url}: what it gives {found}")
    where = f"is neither in {folder} nor in the cache" if os.environ.get("IMPLICITREG_DATA") else "is not at hand"
    raise file.error(f"{where}, and cannot be downloaded ({'; '.join(failures) or 'no address is known'})", folder)


def _fetch(url: str, buffer: io.BytesIO, file: DataFile) -> None:
    """Write what an address gives into a buffer, with a progress bar."""
    from pooch import HTTPDownloader
    from tqdm import tqdm

    def guard(response: Any, **_: Any) -> None:
        if response.is_redirect:
            _secure(urljoin(response.url, response.headers["location"]))

    _secure(url)
    # Without a total, which pooch replaces by what the server says, a bar has no truth value and pooch asks for it.
    with tqdm(desc=file.name, total=file.size or 1, unit="B", unit_scale=True, ncols=79, leave=False) as bar:
        download = HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=TIMEOUT, hooks={"response": guard})
        download(url, buffer, None)


def _secure(url: str) -> None:
    """Refuse an address that is not encrypted and authenticated."""
    if not url.startswith(SCHEMES):
        raise ValueError(f"leads to {url}, and only https is followed")


def _reason(error: Exception, received: int) -> str:
    """Return in a few words why a download failed."""
    import requests
    from urllib3.exceptions import ProtocolError

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    # Of a line that is cut before the first byte, the inner error tells.
    if received or any(isinstance(cause, ProtocolError | ConnectionResetError) for cause in (error, *error.args)):
        return f"the line was cut after {received:,} bytes"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return f"{type(error).__name__}: {error}"


def _keep(file: DataFile, raw: bytes, path: Path) -> None:
    """Write a file as a whole or not at all; warn where it cannot be written."""
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as stream:
                stream.write(raw)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        warnings.warn(
            f"{file.name}: was downloaded but cannot be kept in {path.parent}: {error.strerror}",
            RuntimeWarning,
            stacklevel=3,
        )
