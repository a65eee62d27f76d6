"""The long sweeps of notebooks, as independent cells of work that are stored and never computed twice.

A cell of work is one call of a function with one set of arguments: one setting, for one batch of seeds. What it returns
is stored under a hash of everything that it depends on: the function and what that uses of the notebook, the arguments,
the library, the data and the installed versions.
"""

import dis
import hashlib
import importlib
import inspect
import io
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from implicitreg.reproduce.fingerprint import other_library
from implicitreg.reproduce.storage import write
from implicitreg.reproduce.work import Crew, handover, memory_of

CELLS, SURROUNDINGS, SPREAD = "IMPLICITREG_CELLS", "IMPLICITREG_SURROUNDINGS", "IMPLICITREG_SPREAD"
SUFFIX, TASK, USED = ".cell", ".task", "used.txt"
LARGEST = 32 * 1024**2  # bytes that a function may carry along: it is sent once for each cell


class Suspended(BaseException):  # no error: the notebook goes on when its cells are there
    """The notebook cannot go on before cells of work are computed elsewhere."""


def sweep(
    function: Callable[..., Any], settings: Sequence[Mapping[str, Any]], *, executor: Executor | None = None
) -> list[Any]:
    """Call a function with each of several sets of arguments; what was computed before is not computed again.

    In a notebook that `implicitreg reproduce` executes, every finished cell is stored at once, so that a killed run
    loses none of them; at scale ``paper``, the cells are computed by the run's workers, on this machine or, with
    ``--dask``, on many. Elsewhere they are computed here, one after the other, or by ``executor``, and stored in the
    folder that ``$IMPLICITREG_CELLS`` names, if any.

    Parameters
    ----------
    function
        A function of a module, or of the notebook. It may use constants, tensors, data classes, modules and functions
        of the notebook, all of which enter the hash. It must not rely on anything that changes, such as generators.
        It returns tensors, numbers, text, ``None``, or lists, tuples and dictionaries of them.
    settings
        The keyword arguments of each call, of the same kinds.
    executor
        Who computes what is not stored; by default, this process does.

    Returns
    -------
    list
        What the function returned for each setting, tensors on the CPU.

    Raises
    ------
    TypeError
        The function uses, takes or returns what cannot be hashed or stored; the message names it.
    ValueError
        The function carries more than 32 MB of data along.
    RuntimeError
        A cell failed in the executor.

    Examples
    --------
    >>> def power(base, exponent):
    ...     return base**exponent
    >>> sweep(power, [{"base": 2, "exponent": 5}, {"base": 3, "exponent": 2}])
    [32, 9]
    """
    if isinstance(settings, Mapping) or not all(isinstance(each, Mapping) for each in settings):
        raise TypeError("settings must be a sequence of mappings, the keyword arguments of each call")
    name = os.environ.get(CELLS)
    place = Path(name) if name else None
    keys = [cell_key(function, each) for each in settings]
    found: dict[str, Any] = {}
    missing: dict[str, Mapping[str, Any]] = {}
    for key, each in zip(keys, settings, strict=True):
        if place is not None and (stored := read_cell(place, key)) is not None:
            found[key] = decode(stored)
        elif key not in found:
            missing[key] = each
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        with open(place / USED, "a", encoding="ascii") as file:
            file.writelines(f"{key}\n" for key in keys)
    if missing and place is not None and os.environ.get(SPREAD):
        for key, each in missing.items():
            write(place / f"{key}{TASK}", _payload(function, each))
        raise Suspended(f"{len(missing)} cells of work are to be computed first")
    for key, result in _compute(function, missing, executor):
        if place is None:
            found[key] = result
        else:
            encoded = encode(result)
            write_cell(place, key, encoded)
            found[key] = decode(encoded)  # what the next run will read, not what only looks like it
    return [found[key] for key in keys]


def _compute(
    function: Callable[..., Any], missing: Mapping[str, Mapping[str, Any]], executor: Executor | None
) -> Iterator[tuple[str, Any]]:
    if executor is None:
        for key, each in missing.items():
            yield key, plain(function(**each))
        return
    crew = Crew[str](executor)
    for key, each in missing.items():
        crew.submit(key, compute, Cell(_payload(function, each)))
    failure = None  # told once everything that succeeds is stored
    while crew:
        for done, future in crew.done():
            computed: Computed = future.result()
            if computed.result is None:
                failure = failure or computed.error
            else:
                yield done, decode(computed.result)
    if failure is not None:
        raise RuntimeError(f"a cell of work failed: {failure}")


# ---------------------------------------------------------------------------------------------------------------------
# What a cell depends on


def cell_key(function: Callable[..., Any], settings: Mapping[str, Any]) -> str:
    """Return the hash of everything that a call depends on.

    Raises
    ------
    TypeError
        Something is of a kind that cannot be hashed reliably; the message names it.
    """
    digest = hashlib.sha256(os.environ.get(SURROUNDINGS, "").encode())
    _Describer(digest.update).value([function, dict(settings)], "settings")
    return digest.hexdigest()


class _Describer:
    """Tells values, and functions with what they use, unambiguously as bytes."""

    def __init__(self, update: Callable[[bytes], None]) -> None:
        self._update, self._seen = update, dict[int, int]()

    def _say(self, *parts: object) -> None:
        for part in parts:
            raw = part if isinstance(part, bytes) else str(part).encode()
            self._update(len(raw).to_bytes(8, "little") + raw)

    def value(self, value: Any, where: str) -> None:
        import numpy as np
        import torch

        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)) or value is Ellipsis:
            self._say(kind, value if isinstance(value, bytes) else repr(value))
        elif isinstance(value, (torch.dtype, torch.device, slice, range, np.generic, np.dtype)):
            self._say(kind, repr(value))
        elif isinstance(value, torch.Tensor):
            whole = value.detach().cpu().contiguous()
            self._say(kind, whole.dtype, tuple(whole.shape), whole.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._say(kind, value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            self._say(kind, len(value))
            for key, inner in value.items():
                self.value(key, where)
                self.value(inner, f"{where}[{key!r}]")
        elif isinstance(value, (list, tuple)):
            self._say(kind, len(value))
            for number, inner in enumerate(value):
                self.value(inner, f"{where}[{number}]")
        elif isinstance(value, (set, frozenset)):
            self._say(kind, len(value), *sorted(map(repr, value)))
        elif isinstance(value, types.ModuleType) and _installed_module(value):
            self._say("module", value.__name__)
        elif isinstance(value, partial):
            self._say(kind)
            self.value([value.func, list(value.args), dict(value.keywords)], where)
        elif isinstance(value, types.FunctionType) and not _installed(value):
            self._function(value)
        elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)) and _installed(value):
            self._say("name", value.__module__, value.__qualname__)
        elif is_dataclass(value) and _installed(type(value)):
            self._say(kind)
            for field in fields(value):
                self.value(getattr(value, field.name), f"{where}.{field.name}")
        elif _installed(type(value)) and hasattr(value, "__wrapped__"):  # such as functools.cache
            self._say(kind)
            self.value(value.__wrapped__, where)
        else:
            raise TypeError(
                f"{where} is a {type(value).__qualname__}, which a cell of work cannot use: allowed are numbers, text, "
                "tensors, arrays, containers and data classes of them, installed modules, and undecorated functions"
            )

    def _function(self, function: types.FunctionType) -> None:
        if id(function) in self._seen:
            self._say("again", self._seen[id(function)])
            return
        self._seen[id(function)] = len(self._seen)
        self._say("function", function.__name__)
        self._code(function.__code__)
        self.value([function.__defaults__, function.__kwdefaults__], f"a default of {function.__name__}()")
        closure = inspect.getclosurevars(function)
        for name, inner in sorted(closure.nonlocals.items()):
            self._say(name)
            self.value(inner, f"{name!r}, which {function.__name__}() uses,")
        for name in sorted(_globals(function.__code__)):
            if name in function.__globals__:
                self._say(name)
                self.value(function.__globals__[name], f"{name!r}, which {function.__name__}() uses,")

    def _code(self, code: types.CodeType) -> None:
        self._say(code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_flags)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self._say(
                    type(constant).__name__,
                    sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant,
                )


def _installed(named: Any) -> bool:
    """Tell whether a function or class is of the library or an installed package, which are hashed as a whole."""
    module = sys.modules.get(named.__module__ or "__main__")
    return module is not None and _installed_module(module)


def _installed_module(module: types.ModuleType) -> bool:
    if module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == "implicitreg":
        return True
    places = {sys.prefix, sys.base_prefix, *(os.path.realpath(place) for place in (sys.prefix, sys.base_prefix))}
    return any(Path(file).is_relative_to(place) for place in places)


def _globals(code: types.CodeType) -> set[str]:
    """Return the names of the module that code reads."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals(constant)
    return names


# ---------------------------------------------------------------------------------------------------------------------
# What a cell returns, and where it is stored


def plain(value: Any, where: str = "what the function returns") -> Any:
    """Return data as it comes back from where it is stored: tensors on the CPU, and nothing but data.

    Raises
    ------
    TypeError
        Something is no plain data; the message names where it is.
    """
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole and type(value) is torch.Tensor else value.clone().as_subclass(torch.Tensor)
    if value is None or type(value) in (bool, int, float, complex, str):
        return value
    if type(value) in (list, tuple):
        return type(value)(plain(inner, f"{where}[{n}]") for n, inner in enumerate(value))
    if type(value) is dict:
        return {plain(key, where): plain(inner, f"{where}[{key!r}]") for key, inner in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__qualname__}, which cannot be stored: allowed are tensors, numbers, text, None, "
        "and lists, tuples and dictionaries of them"
    )


def encode(value: Any) -> bytes:
    """Return plain data as bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(plain(value), buffer)
    return buffer.getvalue()


def decode(raw: bytes) -> Any:
    """Return the data in bytes; nothing in them is executed."""
    import torch

    return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def write_cell(place: Path, key: str, encoded: bytes) -> None:
    """Store what a cell returned, with its hash."""
    write(place / f"{key}{SUFFIX}", hashlib.sha256(encoded).digest() + encoded)


def read_cell(place: Path, key: str) -> bytes | None:
    """Return what a cell returned; ``None`` where it is not stored, or not as it was written."""
    try:
        raw = (place / f"{key}{SUFFIX}").read_bytes()
    except OSError:
        return None
    encoded = raw[32:]
    return encoded if hashlib.sha256(encoded).digest() == raw[:32] else None


def set_aside_damaged(place: Path) -> list[str]:
    """Delete stored cells that are not as they were written; return their names."""
    damaged = [path for path in sorted(place.glob(f"*{SUFFIX}")) if read_cell(place, path.stem) is None]
    for path in damaged:
        path.unlink(missing_ok=True)
    return [path.name for path in damaged]


def forget_unused(place: Path) -> None:
    """Delete the stored cells that the last whole execution of a notebook did not ask for."""
    try:
        used = set((place / USED).read_text("ascii").split())
    except OSError:
        return
    for path in place.glob(f"*{SUFFIX}"):
        if path.stem not in used:
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# A cell in a process of its own


@dataclass(frozen=True)
class Cell:
    """A cell of work, as plain data that can be sent anywhere.

    Attributes
    ----------
    payload
        The function and its arguments.
    variables
        Environment variables of its process.
    timeout
        Seconds that it may take; ``None``: any.
    library
        The hash of the library that must be installed where it is computed; ``None``: any.
    """

    payload: bytes
    variables: Mapping[str, str] | None = None
    timeout: float | None = None
    library: str | None = None


@dataclass(frozen=True)
class Computed:
    """What became of a cell of work: its encoded result or an error in one line, its seconds and its memory in MB."""

    result: bytes | None
    error: str | None = None
    seconds: float = 0.0
    memory: int | None = None


def _payload(function: Callable[..., Any], settings: Mapping[str, Any]) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Sends modules by name, those too that are objects of classes of their own, such as ``torch.ops``."""

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, types.ModuleType) and type(obj) is not types.ModuleType:
                return importlib.import_module, (obj.__name__,)
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    Pickler(buffer).dump((function, dict(settings)))
    raw = buffer.getvalue()
    if len(raw) > LARGEST:
        name, size = getattr(function, "__name__", "the function"), f"{len(raw) / 1e6:.0f}"
        raise ValueError(
            f"{name}() carries {size} MB of data along, more than {LARGEST / 1e6:.0f}: let it load them itself"
        )
    return raw


def compute(cell: Cell) -> Computed:
    """Compute a cell in a process of its own, which ends with the one that called. A failure is an outcome."""
    if cell.library is not None and (complaint := other_library(cell.library, cell.variables or {})):
        return Computed(None, complaint)
    began = time.perf_counter()
    with handover() as (place, variables), tempfile.TemporaryFile() as said:
        command = [sys.executable, "-P", os.fspath(Path(__file__).with_name("child.py")), "cell"]
        environment = {**os.environ, **(cell.variables or {}), **variables}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, cwd=place, env=environment) as child:
            try:
                answer, _ = child.communicate(cell.payload, timeout=cell.timeout)
            except subprocess.TimeoutExpired:
                return Computed(None, f"it took longer than {cell.timeout:g} s (--cell-timeout)", cell.timeout or 0.0)
            finally:
                child.kill()
        seconds = time.perf_counter() - began
        if answer[:1] == b"R":
            return Computed(answer[1:], None, seconds, memory_of(place))
        if answer[:1] == b"E":
            return Computed(None, answer[1:].decode("utf-8", "replace"), seconds)
        said.seek(0)
        last = said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        return Computed(None, f"its process died (out of memory?){': ' if last else ''}{''.join(last)}", seconds)


def run_child() -> None:
    """Compute the cell that comes in through the standard input: what `compute` starts."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints is no answer
    payload = sys.stdin.buffer.read()
    try:
        import cloudpickle
        import torch

        torch.set_num_threads(1)
        function, settings = cloudpickle.loads(payload)
        result = b"R" + encode(function(**settings))
    except (Exception, SystemExit) as error:
        first = next(iter(str(error).strip().splitlines()), "")
        result = b"E" + (f"{type(error).__name__}: {first}" if first else type(error).__name__).encode()
    with suppress(BrokenPipeError), answer:
        answer.write(result)
