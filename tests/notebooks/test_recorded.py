"""The committed notebooks as files: what nbval would pass over in silence."""

import ast
import base64
import io
import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from implicitreg.claims import MIME, Evidence, Record, judge, judge_notebooks, load_all, load_chapters
from implicitreg.reproduce.project import Project
from implicitreg.reproduce.recording import complaints

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.relative_to(ROOT / "book").with_suffix("").as_posix(): path for path in ROOT.glob("book/*/*.ipynb")}
CONTENTS = {name: json.loads(path.read_text("utf-8")) for name, path in NOTEBOOKS.items()}
CLAIMING = {folder for folder, file in load_chapters(ROOT / "book").items() if file.claims}
CHAPTERS = [name for name in NOTEBOOKS if name.split("/")[0] in CLAIMING]
HOW_TO = [name for name in NOTEBOOKS if name not in CHAPTERS]


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def figures(notebook):
    """Yield (name, PNG bytes, metadata) of every recorded figure."""
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            meta = output.get("metadata", {}).get("image/png", {})
            if "name" in meta:
                yield meta["name"], base64.b64decode(output["data"]["image/png"]), meta


def markdown(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def test_every_notebook_is_one_that_the_commands_know():
    assert CHAPTERS
    assert HOW_TO
    assert set(NOTEBOOKS) == set(Project.find(ROOT).notebooks)


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestRecorded:
    def test_every_cell_was_run_in_order(self, name):
        counts = [cell["execution_count"] for cell in code_cells(CONTENTS[name])]
        assert counts == list(range(1, len(counts) + 1))

    def test_every_cell_that_shows_something_has_its_output(self, name):
        """A checked cell whose outputs were stripped would pass nbval: it compares what is there."""
        for cell in code_cells(CONTENTS[name]):
            last = ast.parse("".join(cell["source"])).body[-1]
            ends_in_value = isinstance(last, ast.Expr) and not ast.unparse(last).startswith("figures.style")
            if ends_in_value:
                assert cell["outputs"], ast.unparse(last)[:80]

    def test_nothing_went_wrong(self, name):
        for cell in code_cells(CONTENTS[name]):
            for output in cell["outputs"]:
                assert output["output_type"] != "error"
                assert output.get("name") != "stderr"

    def test_the_first_code_cell_holds_the_parameters_of_the_book(self, name):
        first = code_cells(CONTENTS[name])[0]
        assert first["metadata"]["tags"] == ["parameters"]
        namespace = {}
        exec("".join(first["source"]), namespace)
        assert (namespace["scale"], namespace["seed"], namespace["device"]) == ("book", 0, "auto")

    def test_cells_have_their_own_ids(self, name):
        ids = [cell["id"] for cell in CONTENTS[name]["cells"]]
        assert len(set(ids)) == len(ids)

    def test_sources_have_no_control_characters(self, name):
        r"""A ``\a`` or ``\f`` of TeX that Python took for an escape leaves a character that no page shows."""
        for cell in CONTENTS[name]["cells"]:
            odd = {c for c in "".join(cell["source"]) if unicodedata.category(c) == "Cc"} - {"\n"}
            assert not odd, f"{cell['id']}: {odd}"

    def test_nothing_tells_where_it_ran(self, name):
        project = Project.find(ROOT)
        assert list(complaints(CONTENTS[name], project)) == []

    def test_figures_say_what_was_found(self, name):
        for figure, _, meta in figures(CONTENTS[name]):
            assert any(c.isdigit() for c in meta["alt"]), f"{figure}: alt text without a measured number"

    def test_figures_read_on_a_phone(self, name):
        """A column of panels is at most as wide as a phone shows it, 328 pixels: there no text is below 9 pixels."""
        for figure, png, meta in figures(CONTENTS[name]):
            with Image.open(io.BytesIO(png)) as picture:
                edges = [0, *meta["cuts"], picture.width]
            widest = max(b - a for a, b in pairwise(edges)) * meta["width"] / edges[-1]
            # A point is 100/72 of a pixel at the width that the page gives the figure.
            smallest = meta["text"] * 100 / 72 * min(1.0, 328 / widest)
            assert smallest >= 9, f"{figure}: {smallest:.1f} pixels in a column of {widest:.0f}"

    def test_figures_carry_their_data(self, name):
        for figure, _, meta in figures(CONTENTS[name]):
            data = json.loads(meta["data"])
            assert data, figure
            for series in data:
                numbers = [v for key in ("x", "y") for v in series[key] if v is not None]
                assert numbers, f"{figure}: {series['series']}"
                assert len(series["x"]) == len(series["y"])

    def test_captions_name_the_bands(self, name):
        for figure, _, meta in figures(CONTENTS[name]):
            if {"band", "error bar"} & {series["kind"] for series in json.loads(meta["data"])}:
                assert re.search(r"\b(bands?|error bars?|bars?|shaded|range)\b", meta["caption"]), figure

    def test_definitions_and_theorems_have_labels(self, name):
        text = "\n".join(markdown(CONTENTS[name]))
        boxes = re.findall(r"^`{3,}\{prf:(?!proof|ref)\w+\}[^\n]*\n((?::[^\n]*\n)*)", text, re.MULTILINE)
        for options in boxes:
            assert ":label:" in options
            assert ":nonumber:" not in options


@pytest.mark.parametrize("name", CHAPTERS)
class TestChapters:
    def test_exercises_have_hidden_solutions_that_were_run(self, name):
        """At least two; each solution has code that checks something and shows something."""
        wanted, found = [], {}
        inside = None
        for cell in CONTENTS[name]["cells"]:
            source = "".join(cell["source"])
            wanted += re.findall(r"^```\{exercise\}.*\n:label: (\S+)$", source, re.MULTILINE)
            start = re.search(r"^```\{solution-start\} (\S+)\n:class: dropdown$", source, re.MULTILINE)
            if start:
                inside = start[1]
                found[inside] = []
            elif "```{solution-end}" in source:
                inside = None
            elif inside and cell["cell_type"] == "code":
                found[inside].append(cell)
        assert len(wanted) >= 2
        assert list(found) == wanted
        for label, cells in found.items():
            nodes = [node for cell in cells for node in ast.walk(ast.parse("".join(cell["source"])))]
            assert any(isinstance(node, ast.Assert) for node in nodes), f"{label}: nothing is checked"
            assert any(cell["outputs"] for cell in cells), f"{label}: nothing is shown"

    def test_it_opens_and_closes_like_the_others(self, name):
        cells = markdown(CONTENTS[name])
        assert cells[0].startswith("# ")
        opening = "\n".join(cells[:2])
        assert 0 < opening.find("**Question.**") < opening.find("**Verdict.**")
        heads = re.findall(r"^## (.+)$", "\n".join(cells), re.MULTILINE)
        assert heads[-2:] == ["Try it yourself", "Exercises"]


@pytest.mark.parametrize("name", HOW_TO)
class TestHowTo:
    def test_it_says_what_it_is_for(self, name):
        cells = markdown(CONTENTS[name])
        assert cells[0].startswith("# ")
        assert 0 < cells[0].find("**You have** ") < cells[0].find("**You get** ")
        heads = re.findall(r"^## (.+)$", "\n".join(cells), re.MULTILINE)
        assert heads[-1] == "Next"

    def test_it_records_nothing(self, name):
        """Evidence for claims that no chapter states fails the build; those of a chapter belong on its own pages."""
        outputs = [output for cell in code_cells(CONTENTS[name]) for output in cell["outputs"]]
        assert not any(MIME in output.get("metadata", {}) for output in outputs)

    def test_what_is_printed_is_there(self, name):
        """A cell that calls ``print``, other than in a function it defines, has an output."""
        for cell in code_cells(CONTENTS[name]):
            body = ast.parse("".join(cell["source"])).body
            run = [statement for statement in body if not isinstance(statement, (ast.FunctionDef, ast.ClassDef))]
            calls = [node.func for statement in run for node in ast.walk(statement) if isinstance(node, ast.Call)]
            if any(isinstance(called, ast.Name) and called.id == "print" for called in calls):
                assert cell["outputs"], cell["id"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_pages_take_from_metadata_is_what_nbval_compares(name):
    """Evidence, alternative texts and captions lie in metadata, which nbval passes over: held against what is shown."""
    claims = load_all(ROOT / "book")
    for cell in code_cells(CONTENTS[name]):
        captions = {}
        for output in cell["outputs"]:
            data, meta = output.get("data", {}), output.get("metadata", {})
            if MIME in meta:
                evidence = Evidence.from_json(meta[MIME])
                shown = Record(judge(claims[evidence.id], evidence, "book"), evidence)._repr_mimebundle_()[0]
                assert {mime: "".join(text) for mime, text in data.items()} == shown, evidence.id
            if "caption" in meta.get("image/png", {}):
                captions[meta["image/png"]["name"]] = meta["image/png"]["caption"]
                assert "".join(data["text/plain"]) == meta["image/png"]["alt"]
            if "caption_of" in meta.get("text/markdown", {}):
                assert "".join(data["text/markdown"]) == captions.pop(meta["text/markdown"]["caption_of"])
        assert not captions


def test_every_claim_has_the_verdict_it_is_expected_to_have():
    judged = judge_notebooks(load_all(ROOT / "book"), CONTENTS, "book")
    assert judged
    wrong = {j.claim.id: j.verdict for j, _, _ in judged if not j.expected}
    assert not wrong
    assert all(notebook for _, notebook, _ in judged)


def test_evidence_of_the_book_is_that_of_its_notebooks():
    saved = json.loads((ROOT / "evidence/book/claims.json").read_text("utf-8"))
    assert saved["environment"]["scale"] == "book"
    assert not {"seconds", "commit"} & {*saved["environment"], *saved["claims"][0]}
    judged = judge_notebooks(load_all(ROOT / "book"), CONTENTS, "book")
    assert saved["claims"] == [json.loads(json.dumps(j.record(notebook=n))) for j, n, _ in judged]


def test_pictures_outside_the_notebooks_are_those_of_the_notebooks():
    """``book/_static/fig-*.png`` are shown where no notebook is: ``make record`` keeps them equal."""
    recorded = {name: png for notebook in CONTENTS.values() for name, png, _ in figures(notebook)}
    copies = sorted((ROOT / "book/_static").glob("fig-*.png"))
    assert copies
    for copy in copies:
        assert copy.read_bytes() == recorded[copy.stem], f"{copy.name} is not the recorded figure: make record"


def test_larger_runs_that_were_kept_come_to_the_verdicts_they_state():
    """Their claims are shown by today's rules, from the samples: the file must not say anything else."""
    claims = load_all(ROOT / "book")
    for path in ROOT.glob("evidence/*/*/claims.json"):
        kept = json.loads(path.read_text("utf-8"))
        samples = {entry["id"]: Evidence.from_json(entry) for entry in kept["evidence"]}
        assert samples.keys() == {stated["id"] for stated in kept["claims"]}
        for stated in kept["claims"]:
            evidence = samples[stated["id"]]
            judged = judge(claims[stated["id"]], evidence, evidence.scale).record(notebook=stated["notebook"])
            stated = {key: value for key, value in stated.items() if key != "environment"}  # where it was measured
            assert judged == stated, stated["id"]
