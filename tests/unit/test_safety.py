"""What the code never does: execute what it loads, start a shell, unpack onto the disk, trust a server unchecked."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("lib", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def complaints(source: str) -> list[str]:
    """Return every call that would execute or trust what it is given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in ("pickle.load", "pickle.loads", "joblib.load", "dill.load", "shelve.open", "marshal.loads"):
            found.append(f"{name} executes what it loads")
        if name == "torch.load" and said.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and said.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and "Unique" not in said.get("Loader", ""):
            found.append(f"{name} without a safe loader")
        if said.get("shell", "False") != "False" or name in ("os.system", "os.popen", "subprocess.getoutput"):
            found.append(f"{name} starts a shell")
        if name.endswith((".extractall", ".unpack_archive")):
            found.append(f"{name} unpacks onto the disk")
        if said.get("verify") == "False":
            found.append(f"{name} does not check certificates")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_executed_or_trusted(path: Path) -> None:
    assert complaints(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "call",
    [
        "pickle.loads(raw)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(command, shell=True)",
        "os.system('ls')",
        "archive.extractall(folder)",
        "requests.get(url, verify=False)",
    ],
)
def test_the_check_finds_what_it_looks_for(call: str) -> None:
    assert len(complaints(call)) == 1


def test_what_is_cloud_pickled_comes_from_the_run_itself() -> None:
    """Cells of work are the only pickles: from the run to its own workers, never from a file."""
    users = [path for path in FILES if "cloudpickle" in path.read_text("utf-8") and "lib" in path.parts]
    assert [path.name for path in users] == ["sweeps.py"]
    text = users[0].read_text("utf-8")
    assert text.count("cloudpickle.loads") == 1
    assert "cloudpickle.loads(payload)" in text
    assert "payload = sys.stdin.buffer.read()" in text
