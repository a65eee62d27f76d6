"""Wrong formulas that the unit tests must notice: `python tests/mutants.py` puts in each, alone, and runs its tests.

Each is one change to one line of the library, in a copy of it. A mutant survives where all tests still pass; that
fails this script. `tests/unit/test_repository.py` holds the list against the library, so that it cannot go stale.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A change of a file below ``lib/implicitreg``, and the unit tests that must notice it."""

    file: str
    right: str
    wrong: str
    tests: str


MUTANTS = {
    "path norm: weights not squared": Mutant(
        "nets/paths.py", "        return torch.square\n", "        return torch.abs\n", "test_paths.py"
    ),
    "path norm: shortcuts left out": Mutant(
        "nets/paths.py", "        return _sum(layer, a, b, blamed)\n", "        return a\n", "test_paths.py"
    ),
    "group norm: exponents exchanged": Mutant(
        "measures/norms.py",
        "torch.linalg.vector_norm(_matrix(layer), p, dim=-1)",
        "torch.linalg.vector_norm(_matrix(layer), q, dim=-1)",
        "test_norms.py",
    ),
    "spectral product: a shortcut multiplies": Mutant(
        "measures/norms.py", "return a, bound + beside", "return a, bound * beside", "test_norms.py"
    ),
    "capacities: margin not squared": Mutant(
        "measures/capacity.py", "(norm / gamma).square()", "norm.square() / gamma", "test_capacity.py"
    ),
    "margin: of the wrong class": Mutant(
        "measures/capacity.py", "z.scatter(-1, index, -math.inf).amax(-1)", "z.amax(-1)", "test_capacity.py"
    ),
    "sharpness: not relative to the loss": Mutant(
        "measures/flatness.py", "(best - start) / (1 + start)", "best - start", "test_flatness.py"
    ),
    "expected sharpness: deviations": Mutant(
        "measures/flatness.py", "10 * w.abs() + 1", "w.abs() + 1", "test_flatness.py"
    ),
    "PAC-Bayes: without the half": Mutant(
        "measures/flatness.py", "total / (2 * alpha.to(total) ** 2)", "total / alpha.to(total) ** 2", "test_flatness.py"
    ),
    "effective rank: base of the entropy": Mutant(
        "measures/spectral.py", "return entropy.exp()", "return entropy.exp2()", "test_measures.py"
    ),
    "stable rank: not squared": Mutant(
        "measures/layerwise.py",
        "(sigma / sigma[..., :1]).square().sum(-1)",
        "(sigma / sigma[..., :1]).sum(-1)",
        "test_layerwise.py",
    ),
    "Hessian: a sum, not a mean": Mutant(
        "measures/hessian.py", " * (len(x) / len(self.x))", " * len(x)", "test_hessian.py"
    ),
    "Hessian trace: variance without the 2": Mutant(
        "measures/hessian.py", "math.sqrt(2 * square / len(found))", "math.sqrt(square / len(found))", "test_hessian.py"
    ),
    "breakpoints: crossing off its place": Mutant(
        "measures/segments.py",
        "share = before / (before - after)",
        "share = before / (before + after)",
        "test_segments.py",
    ),
    "deflection: from the first slope": Mutant(
        "measures/segments.py",
        "(slopes - mean[own]).square()",
        "slopes.square()",
        "test_segments.py",
    ),
    "sampled gaps: not divided by what was walked": Mutant(
        "measures/segment_samples.py",
        "for part in parts) / covered,\n        bent",
        "for part in parts),\n        bent",
        "test_segment_samples.py",
    ),
    "geometric complexity: a norm, not its square": Mutant(
        "measures/complexity.py",
        "gradient.flatten(1).double().square().sum(1)",
        "gradient.flatten(1).double().norm(dim=1)",
        "test_complexity.py",
    ),
    "report: standard error over samples": Mutant(
        "measures/panel.py", "values.std() / math.sqrt(len(values))", "values.std()", "test_panel.py"
    ),
}


def survives(mutant: Mutant, folder: Path) -> bool:
    """Return whether the tests pass with the mutant in place of the library."""
    path = folder / "implicitreg" / mutant.file
    before = path.read_text("utf-8")
    path.write_text(before.replace(mutant.right, mutant.wrong), "utf-8")
    try:
        tests = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            f"tests/unit/{mutant.tests}",
        ]
        done = subprocess.run(tests, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True)
    finally:
        path.write_text(before, "utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout.decode())
    return done.returncode == 0


def main(wanted: list[str]) -> int:
    """Try the mutants whose names hold one of these words, all by default; return how many survive."""
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "lib", folder, dirs_exist_ok=True)
        for name, mutant in MUTANTS.items():
            if not wanted or any(word in name for word in wanted):
                alive = survives(mutant, Path(folder))
                count += alive
                print(f"{'SURVIVES' if alive else 'caught  '}  {name}", flush=True)
    return count


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
