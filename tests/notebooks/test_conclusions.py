"""Conclusions survive other seeds: every notebook through papermill at scale ``smoke``."""

import json
from pathlib import Path

import pytest

from implicitreg.claims import load_all
from implicitreg.reproduce.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[1, 2])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["reproduce", "--scale", "smoke", "--seed", str(request.param), "--output", str(folder)]) == 0
    return json.loads((folder / f"smoke-seed{request.param}" / "claims.json").read_text("utf-8"))


def test_no_conclusion_changes(run):
    claims = load_all(ROOT / "book")
    assert {entry["id"] for entry in run["claims"]} == set(claims)
    for entry in run["claims"]:
        claim = claims[entry["id"]]
        expected = claim.expected if "smoke" in claim.scales else "not run"
        assert entry["verdict"] == expected, f"{entry['id']}: {entry['measured']}, control {entry['control']}"


def test_every_control_is_rejected(run):
    assert all(entry["control"]["rejected"] for entry in run["claims"] if entry["measured"])


def test_the_environment_is_told(run):
    assert run["environment"]["scale"] == "smoke"
    assert run["environment"]["seed"] in (1, 2)
    assert {"python", "torch", "cpu", "threads", "commit"} <= set(run["environment"])
