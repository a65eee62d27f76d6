"""The files that no code reads, but people and services do: each must say what is so."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from implicitreg.claims import load_chapters

ROOT = Path(__file__).resolve().parents[2]


def pins(lines):
    """Return name to version of every ``name==version``."""
    found = (re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line.strip()) for line in lines)
    return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[2] for m in found if m}


def toc_files(entry):
    """Return every document that the table of contents names."""
    if isinstance(entry, dict):
        own = [entry[key] for key in ("root", "file") if key in entry]
        return own + [name for value in entry.values() for name in toc_files(value)]
    return [name for item in entry for name in toc_files(item)] if isinstance(entry, list) else []


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text("utf-8")


def test_the_conda_environment_agrees_with_the_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip[0] == "-c constraints.txt"
    assert pip[-1] == "-e .[book,cluster,dev]"
    pinned = pins(pip)
    constraints = pins((ROOT / "constraints.txt").read_text("utf-8").splitlines())
    assert {"torch", "numpy", "scipy", "jupyter-book"} <= set(pinned)
    assert pinned.items() <= constraints.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    assert project["requires-python"] == ">=" + python.removeprefix("python=")


def test_every_requirement_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower() for requirement in wanted}
    assert names <= set(pins((ROOT / "constraints.txt").read_text("utf-8").splitlines()))


def test_the_constraints_hold_pins_only():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines if line)


def test_the_table_of_contents_names_every_page_and_no_other():
    named = set(toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))))
    book = ROOT / "book"
    pages = [p for suffix in ("md", "ipynb") for p in book.rglob(f"*.{suffix}") if ".ipynb_checkpoints" not in p.parts]
    assert named == {p.relative_to(ROOT).with_suffix("").as_posix() for p in pages}


def test_notebooks_are_never_executed_by_the_build():
    text = (ROOT / "_config.yml").read_text("utf-8")
    # Unquoted, YAML reads `off` as false.
    assert yaml.safe_load(text)["execute"]["execute_notebooks"] == "off"


def test_every_cited_paper_is_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text("utf-8"), re.MULTILINE))
    cited = set()
    for path in [*(ROOT / "book").rglob("*.md"), *(ROOT / "book").rglob("*.ipynb")]:
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", path.read_text("utf-8")):
            cited |= {key.strip() for key in keys.split(",")}
    papers = {file.paper for file in load_chapters(ROOT / "book").values() if file.claims}
    assert "razin2020" in cited
    assert cited | papers <= known


def test_the_citation_file_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "BSD-3-Clause"
    assert citation["title"] == yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["title"]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "lib/implicitreg/__init__.py").read_text("utf-8"))[1]
    assert citation["version"] == version
    assert all(author["name"] for author in citation["authors"])


def test_the_readme_opens_with_the_two_commands(readme):
    blocks = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    assert blocks == ["make book\nmake test\n"]
    first_screen = readme.splitlines()[:25]
    assert "make book" in first_screen
    assert any(line.startswith("![") for line in first_screen)


def test_the_commands_of_readme_and_pages_exist(readme):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    texts = [readme, *(p.read_text("utf-8") for p in [ROOT / "CONTRIBUTING.md", *(ROOT / "book").rglob("*.md")])]
    named = {target for text in texts for target in re.findall(r"`make ([a-z]+)", text)}
    assert {"book", "test", "bench", "record"} <= named <= targets


def test_links_of_the_readme_lead_somewhere(readme):
    targets = re.findall(r"\]\(([^)#]+)\)", readme)
    assert "LICENSE" in targets
    assert [t for t in targets if not t.startswith("https://") and not (ROOT / t).is_file()] == []


def test_links_of_the_contributors_page_lead_to_the_how_to_pages():
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "book/how_to").glob("*.ipynb")} <= set(targets)
    assert [t for t in targets if not (ROOT / t).is_file()] == []


def test_the_readme_example_is_right(readme):
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    space = {}
    setup, _, calls = code.partition("\neffective_rank")
    exec(setup, space)
    for line in f"effective_rank{calls}".strip().splitlines():
        expression, _, told = line.partition("#")
        assert float(eval(expression, space)) == pytest.approx(float(told.split(":")[0]), abs=5e-5)


def test_the_workflow_runs_what_the_readme_says():
    workflow = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text("utf-8"))
    steps = workflow["jobs"]["build"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make test", "make book", "make test-site"]
    (pages,) = [step for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    assert pages["with"]["path"] == "_build/html"


def test_hooks_fetch_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    assert {hook["language"] for hook in config["repos"][0]["hooks"]} == {"system"}


def test_chapters_declare_the_times_of_their_notebooks():
    files = load_chapters(ROOT / "book")
    assert set(files) == {path.parent.name for path in (ROOT / "book").glob("*/*.ipynb")}
    for folder, file in files.items():
        assert set(file.notebooks) == {path.stem for path in (ROOT / "book" / folder).glob("*.ipynb")}
        assert all({"smoke", "book"} <= set(notebook.seconds) for notebook in file.notebooks.values())


def test_the_wheel_carries_the_claims_of_every_chapter():
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]
    claimed = {folder for folder, file in load_chapters(ROOT / "book").items() if file.claims}
    carried = {source: place for source, place in targets["wheel"]["force-include"].items() if "claims" in source}
    assert carried == {f"book/{f}/claims.yml": f"implicitreg/claims/book/{f}/claims.yml" for f in claimed}


def test_binder_gets_torch_from_its_own_environment_and_everything_else_from_the_pins():
    """By itself pip would fetch torch's build for graphics cards, which does not fit."""
    environment = yaml.safe_load((ROOT / ".binder/environment.yml").read_text("utf-8"))
    assert any(str(entry).startswith("pytorch-cpu") for entry in environment["dependencies"])
    script = (ROOT / ".binder/postBuild").read_text("utf-8")
    (pattern,) = re.findall(r"grep -v '([^']+)' constraints\.txt", script)
    kept = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not re.search(pattern, line)]
    assert len(kept) > 100
    assert "torch" not in pins(kept)
    for name in ("postBuild", "start"):
        assert (ROOT / ".binder" / name).stat().st_mode & 0o111, f".binder/{name} must be executable"


def test_every_mutant_is_one_change_of_the_library():
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import mutants
    finally:
        sys.path.pop(0)
    assert len(mutants.MUTANTS) >= 10
    for name, mutant in mutants.MUTANTS.items():
        text = (ROOT / "lib" / "implicitreg" / mutant.file).read_text("utf-8")
        assert text.count(mutant.right) == 1, name
        assert mutant.wrong != mutant.right
        assert (ROOT / "tests" / "unit" / mutant.tests).is_file(), name


def test_the_audit_says_what_it_does_not_know():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    assert "not to be reached" in audit.vulnerabilities(None)[0]
    unknown = {"name": "a", "skip_reason": "not found"}
    assert audit.vulnerabilities({"dependencies": [unknown]})[-1] == "Nothing is known of any of them."
    fine = {"name": "b", "version": "1", "vulns": []}
    assert "None of those looked up" in audit.vulnerabilities({"dependencies": [unknown, fine]})[-1]
    bad = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
    assert audit.vulnerabilities({"dependencies": [bad]})[-1] == "- c 2: PYSEC-1, mended in 3"
    found = [{"Name": "a", "License": "MIT"}, {"Name": "b", "License": "GPLv3"}, {"Name": "c", "License": "LGPL"}]
    assert audit.licences(found)[-1] == "To be looked at: b (GPLv3)."
