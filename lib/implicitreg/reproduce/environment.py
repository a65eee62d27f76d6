"""What a notebook runs in, and what a run says of it."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from implicitreg.reproduce.project import Project

# One thread a notebook: the runner puts one notebook on each core, and sums do not depend on how many there are.
THREADS = 1


def data_hashes(scale: str = "paper") -> dict[str, str]:
    """Return name and SHA-256 of every data file that notebooks may read at a scale.

    The digits are those of scikit-learn as installed. Of other files, read at scale ``paper`` only, the library
    accepts no bytes but those with the SHA-256 in its list, so the list tells what was read.
    """
    hashes = {}
    # Found without importing scikit-learn, or the library's own package of data with its torch.
    spec = find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        digits = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if digits.is_file():
            hashes["scikit-learn/digits.csv.gz"] = hashlib.sha256(digits.read_bytes()).hexdigest()
    if scale == "paper":
        listed = (Path(__file__).parents[1] / "data" / "SHA256SUMS").read_text("utf-8")
        hashes |= {name: sha256 for sha256, name in (line.split() for line in listed.splitlines())}
    return hashes


def kernel_variables(project: Project) -> dict[str, str]:
    """Return the environment variables of a notebook's kernel."""
    library = os.fspath(project.root / "lib")
    return {
        # The library of this project, whichever may be installed.
        "PYTHONPATH": os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        # A user's own IPython profile, with its startup files, stays out.
        "IPYTHONDIR": os.fspath(project.build / "ipython"),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS)),
    }


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _page_cache(stat: Path) -> float:
    """Return the MB of a container's memory that hold files, and are given up when somebody needs them."""
    told = dict(line.split() for line in stat.read_text("ascii").splitlines())
    return int(told.get("inactive_file", told.get("total_inactive_file", 0))) / 1e6


def memory() -> tuple[float, float] | None:
    """Return the memory of this machine, or of the container it is, and what of it is free now, in MB.

    ``None`` where the system does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        told = {name: int(rest.split()[0]) * 1024 / 1e6 for name, _, rest in (line.partition(":") for line in lines)}
        whole, free = told["MemTotal"], told["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            bound, taken = (int(Path("/sys/fs/cgroup", name).read_text("ascii")) / 1e6 for name in (limit, used))
            taken -= _page_cache(Path("/sys/fs/cgroup", used).with_name("memory.stat"))
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
        if bound < whole:
            whole, free = bound, min(free, bound - taken)
    return whole, max(free, 0.0)


def cpu() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), platform.processor() or platform.machine())


def _commit(root: Path) -> str | None:
    """Return the commit, marked ``-dirty`` when tracked files differ from it; ``None`` outside version control."""
    command = ["git", "-C", os.fspath(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe(project: Project, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment of a run with these parameters, as ``claims.json`` tells it."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = None
    lock = project.constraints
    return {
        "python": platform.python_version(),
        "torch": torch,
        "cpu": cpu(),
        "threads": THREADS,
        "commit": _commit(project.root),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "data": data_hashes(parameters.get("scale", "paper")),
        **parameters,
    }
