"""A network, its checkpoint and its data from a command line's words."""

import importlib.util
import pickle
import sys
import traceback
import warnings
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from implicitreg import data
from implicitreg.nets.layers import evaluation
from implicitreg.reproduce.project import UsageError, listed, shown

DATA = ("digits", "mnist")

# Under these names, programs usually keep the parameters beside what else they save.
_STATES = ("state_dict", "model_state_dict", "model")


def network(words: str, seed: int = 0) -> nn.Module:
    """Return the network that a file's factory makes.

    Parameters
    ----------
    words
        ``FILE:FACTORY``: a Python file, and in it the name of a function or class that takes no arguments and returns
        a module, or of a module. The file is executed.
    seed
        Of torch's generator, before that: without a checkpoint the start is measured, and is the same every time.

    Raises
    ------
    UsageError
        There is no such file or name, the file or factory fails, or what it returns is no module.
    """
    name, colon, factory = words.rpartition(":")
    path = Path(name)
    if not colon or not name or not factory.isidentifier():
        raise UsageError(f"{words!r} is not of the form FILE:FACTORY, such as net.py:build")
    if not path.is_file():
        raise UsageError(f"{shown(path)}: no such file")
    spec = importlib.util.spec_from_file_location(f"measured_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{shown(path)} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # As when Python is given the file: what lies beside it can be imported, and its classes find their module. What
    # it prints does not belong to the table.
    sys.path.insert(0, str(path.resolve().parent))
    arguments, sys.argv = sys.argv, [str(path)]
    sys.modules[spec.name] = module
    torch.manual_seed(seed)
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
        if not hasattr(module, factory):
            public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise UsageError(f"{shown(path)} has no {factory!r}; it has: {listed(public)}")
        found: Any = getattr(module, factory)
        with redirect_stdout(sys.stderr):
            built = found if isinstance(found, nn.Module) or not callable(found) else found()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == path.resolve()
        ]
        where = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"{shown(path)}{where}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
        sys.argv = arguments
    if not isinstance(built, nn.Module):
        raise UsageError(f"{words}: must be or return a torch.nn.Module, got {type(built).__name__}")
    return built


def restore(model: nn.Module, path: Path) -> None:
    """Load parameters into a network, from a file that may hold tensors and plain containers only.

    Raises
    ------
    UsageError
        The file cannot be read without executing what is in it, or does not fit the network.
    """
    if not path.is_file():
        raise UsageError(f"{shown(path)}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file is told below, in one line
            saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UsageError(
            f"{shown(path)} is not loaded: it holds more than tensors, and loading that could execute anything; "
            "save model.state_dict() instead of the model"
        ) from None
    except Exception as error:  # of a file that is none, reading may raise anything
        raise UsageError(
            f"{shown(path)} is no checkpoint that can be read: {type(error).__name__}: {_line(error)}"
        ) from None
    if isinstance(saved, dict):
        saved = next((saved[key] for key in _STATES if isinstance(saved.get(key), dict)), saved)
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UsageError(f"{shown(path)}: must hold a state_dict, or one under {listed(_STATES)}")
    if saved and all(name.startswith("module.") for name in saved):  # of a DataParallel
        saved = {name.removeprefix("module."): value for name, value in saved.items()}
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        raise UsageError(f"{shown(path)} does not fit the network: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def samples(words: str, model: nn.Module, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and classes in the shape and dtype that a network takes.

    Parameters
    ----------
    words
        ``digits``, ``mnist`` (training images), or a file ``.npz`` with arrays ``x`` and ``y``.
    model
        Takes images ``(n, channels, height, width)`` or, flattened, ``(n, d)``; a file's inputs are taken as they are.
    most
        Where there are more samples, this many are drawn.
    seed
        Of that draw.

    Raises
    ------
    UsageError
        There are no such data, or the network does not take them.
    """
    if words in DATA:
        try:
            images = data.digits(dtype=torch.float32) if words == "digits" else data.mnist(dtype=torch.float32)
        except data.DataError as error:
            raise UsageError(_line(error)) from None
        x, y = images.images, images.labels
    elif words.endswith(".npz"):
        x, y = _arrays(Path(words))
    else:
        raise UsageError(f"unknown data {words!r}; data: {listed(DATA)}, or a file .npz with arrays x and y")
    if len(x) > most:
        drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most]
        x, y = x[drawn], y[drawn]
    own = next((w for w in model.parameters() if w.is_floating_point()), torch.empty(0))
    x, y = x.to(own), y.to(own.device)
    shapes = [x] if words not in DATA else [x, x.flatten(1)]
    complaints = []
    for inputs in shapes:
        complaint = _complaint(model, inputs[:1])
        if not complaint:
            return inputs, y
        complaints.append(f"of shape {tuple(inputs.shape)}: {complaint}")
    raise UsageError(f"the network does not take inputs {'; '.join(complaints)}")


def _complaint(model: nn.Module, x: Tensor) -> str:
    """Return why a network does not make scores of an input, or nothing."""
    try:
        with torch.no_grad(), evaluation(model):
            z = model(x)
    except Exception as error:  # whatever the user's own code raises
        return f"{type(error).__name__}: {_line(error)}"
    if isinstance(z, Tensor) and z.ndim == 2:
        return ""
    return f"outputs must have shape (n, k), got {tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__}"


def _arrays(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise UsageError(f"{shown(path)}: no such file")
    try:
        # Opened here, because numpy leaves a torn file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("x", "y") if name in arrays}
            names = list(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise UsageError(f"{shown(path)} is no .npz of plain arrays that can be read") from None
    if len(found) < 2:
        raise UsageError(f"{shown(path)}: must hold arrays x and y, it holds: {listed(names)}")
    x, y = found["x"], found["y"]
    if x.dtype not in (np.float32, np.float64):
        raise UsageError(f"{shown(path)}: x must be float32 or float64, scaled as in training, got {x.dtype}")
    if not len(x):
        raise UsageError(f"{shown(path)}: must hold at least one sample")
    if y.dtype.kind not in "iu" or y.ndim != 1 or len(y) != len(x):
        raise UsageError(
            f"{shown(path)}: y must hold one integer, the class, for each of the {len(x)} inputs, "
            f"got {y.dtype} of shape {y.shape}"
        )
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
