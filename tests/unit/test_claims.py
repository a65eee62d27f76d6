"""Claims: the schema and its complaints, the rules, the statistics, the order of verdicts, the ledger."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from implicitreg.claims import (
    MIME,
    VERDICTS,
    ClaimError,
    Evidence,
    Ledger,
    judge,
    judge_notebooks,
    load,
    load_all,
    recorded,
    summarise,
)
from implicitreg.claims.ledger import measured_words
from implicitreg.claims.rules import number
from implicitreg.claims.statistics import Statistic

CLAIM = {
    "number": "C01",
    "statement": "The norm grows.",
    "locator": "Theorem 1",
    "source": "author",
    "kind": "bound",
    "measure": "the norm",
    "scales": ["smoke", "book"],
    "seeds": {"smoke": 2, "book": 8},
    "accept": {"rule": "at_least", "value": 0.0, "of": "mean", "reason": "a theorem"},
    "control": {"what": "the other sign"},
    "expected": "reproduced",
}


def write(folder, claims=None, paper="razin2020", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    body = {"grows": {**CLAIM, **changes}} if claims is None else claims
    for claim in body.values():
        for key in [k for k, v in claim.items() if v is ...]:
            del claim[key]
    (folder / "claims.yml").write_text(yaml.safe_dump({"paper": paper, "claims": body}))
    return folder / "claims.yml"


def claim_with(tmp_path, **changes):
    return load(write(tmp_path / "rank", **changes)).claims["grows"]


def evidence(samples, control=(-1.0,), scale="book", id="rank.grows"):
    return Evidence(id, scale, list(samples), list(control))


# The schema


def test_a_good_file(tmp_path):
    file = load(write(tmp_path / "rank"))
    claim = file.claims["grows"]
    assert (file.folder, claim.id, claim.paper) == ("rank", "rank.grows", "razin2020")
    assert claim.seeds == {"smoke": 2, "book": 8}
    assert claim.accept["smoke"] == claim.accept["book"]
    assert claim.published["book"].value is None


def test_every_field_per_scale(tmp_path):
    rules = {
        "smoke": {"rule": "at_least", "value": -1, "of": "mean", "reason": "few seeds"},
        "book": {"rule": "at_least", "value": 0, "of": "mean", "reason": "a theorem"},
    }
    published = {"smoke": {"value": 1}, "book": {"value": 2, "unit": "s", "from": "Figure"}}
    claim = claim_with(tmp_path, accept=rules, published=published, seeds=3)
    assert claim.accept["smoke"].value == -1
    assert claim.published["book"].origin == "Figure"
    assert claim.seeds == {"smoke": 3, "book": 3}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"number": ...}, "number"),
        ({"statement": ""}, "statement"),
        ({"source": "rumour"}, "source"),
        ({"kind": "guess"}, "kind"),
        ({"scales": ["huge"]}, "scales"),
        ({"scales": []}, "scales"),
        ({"scales": ["book", "book"]}, "scales"),
        ({"scales": ["smoke", "book", "paper"]}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": "many"}, "seeds"),
        ({"seeds": True}, "seeds"),
        ({"seeds": {"smoke": 2, "book": 8, "huge": 9}}, "huge"),
        ({"seeds": ...}, "seeds"),
        ({"accept": ...}, "accept"),
        ({"accept": {"rule": "about", "value": 1, "of": "mean", "reason": "r"}}, "accept"),
        ({"accept": {"rule": "at_least", "value": math.nan, "of": "mean", "reason": "r"}}, "accept"),
        ({"accept": {"rule": "at_least", "value": 1, "of": "mode", "reason": "r"}}, "accept"),
        ({"accept": {"rule": "at_least", "value": 1, "of": "mean"}}, "reason"),
        ({"accept": {"rule": "within", "value": 1, "of": "mean", "reason": "r"}}, "absolute"),
        (
            {"accept": {"rule": "within", "value": 1, "absolute": 1, "relative": 0.1, "of": "mean", "reason": "r"}},
            "absolute",
        ),
        ({"accept": {"rule": "within", "value": 0, "relative": 0.1, "of": "mean", "reason": "r"}}, "relative"),
        ({"accept": {"rule": "at_least", "value": 1, "of": "value", "reason": "r"}}, "seeds"),
        ({"accept": {"rule": "at_least", "value": 1, "of": "median", "reason": "r"}}, "seeds"),
        ({"direction": {"rule": "at_least", "value": 0, "of": "max", "reason": "r"}}, "direction"),
        ({"control": ...}, "control"),
        ({"control": {"what": ""}}, "control"),
        ({"expected": "fine"}, "expected"),
        ({"expected": "not run"}, "expected"),
        ({"verdict": "reproduced"}, "verdict"),
    ],
)
def test_a_malformed_file_names_file_claim_and_field(tmp_path, changes, field):
    path = write(tmp_path / "rank", **changes)
    with pytest.raises(ClaimError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "'grows'" in message
    assert field in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "claims: {}",
        "paper: x\nclaims: []",
        "paper: [",
        "paper: x\nclaims: {a: 1}",
        "paper: x\npaper: y\nclaims: {}",
        "claims: {a: 1}",
        "paper: x",
        "paper: x\nnotebooks: {}",
        "claims: {a: 1}\nnotebooks: {}",
    ],
)
def test_a_file_that_is_no_claims_file(tmp_path, text):
    path = tmp_path / "claims.yml"
    path.write_text(text)
    with pytest.raises(ClaimError, match=r"claims\.yml") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_file_may_say_how_long_its_notebooks_take(tmp_path):
    path = write(tmp_path / "rank")
    assert load(path).notebooks == {}
    text = path.read_text()
    path.write_text(text + "notebooks:\n  flow: {seconds: {smoke: 2, book: 14.5}}\n")
    assert load(path).notebooks["flow"].seconds == {"smoke": 2, "book": 14.5}
    for wrong, message in (
        ("flow: {seconds: {huge: 2}}", "notebooks.flow.seconds.huge"),
        ("flow: {seconds: {book: 0}}", "notebooks.flow.seconds.book"),
        ("flow: {minutes: 3}", "notebooks.flow"),
        ("[flow]", "notebooks"),
    ):
        path.write_text(text + f"notebooks:\n  {wrong}\n")
        with pytest.raises(ClaimError, match=rf"claims\.yml: {message}") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_folder_that_claims_nothing_says_only_how_long_its_notebooks_take(tmp_path):
    write(tmp_path / "rank")
    (tmp_path / "how_to").mkdir()
    path = tmp_path / "how_to/claims.yml"
    path.write_text("notebooks:\n  measure: {seconds: {book: 3}}\n")
    file = load(path)
    assert (file.paper, file.claims, file.notebooks["measure"].seconds) == (None, {}, {"book": 3})
    assert list(load_all(tmp_path)) == ["rank.grows"]
    with pytest.raises(ClaimError, match="no claim 'grows'"):
        Ledger(file).record("grows", samples=[1.0] * 8, control=-1.0)


def test_a_key_given_twice_is_refused(tmp_path):
    path = write(tmp_path / "rank")
    path.write_text(path.read_text().replace("kind: bound", "kind: bound\n    kind: rate"))
    with pytest.raises(ClaimError, match="'kind' is given twice"):
        load(path)


def test_numbers_are_unique_per_paper(tmp_path):
    twice = {"grows": dict(CLAIM), "shrinks": dict(CLAIM)}
    with pytest.raises(ClaimError, match="C01 of razin2020 is taken by 'grows'"):
        load(write(tmp_path / "rank", twice))
    write(tmp_path / "book" / "a")
    write(tmp_path / "book" / "b")
    with pytest.raises(ClaimError, match=r"C01 of razin2020 is taken by a\.grows"):
        load_all(tmp_path / "book")
    write(tmp_path / "book" / "b", paper="kubo2019")
    assert list(load_all(tmp_path / "book")) == ["a.grows", "b.grows"]


# The statistics


def test_intervals_cover_what_they_should():
    """The 95 % intervals of mean, median and slope hold the truth in about 95 % of 2,000 experiments."""
    rng = np.random.default_rng(0)
    hits = {"mean": 0, "median": 0, "slope": 0}
    x = np.arange(8.0)
    for _ in range(2000):
        normal, skewed = rng.normal(1.0, 2.0, 8), rng.exponential(1.0, 20)
        line = np.stack([x, 3 * x + rng.normal(size=8)], axis=1)
        for of, samples, truth in (("mean", normal, 1.0), ("median", skewed, math.log(2)), ("slope", line, 3.0)):
            s = summarise(samples.tolist(), of)
            hits[of] += s.low <= truth <= s.high
    assert abs(hits["mean"] / 2000 - 0.95) < 0.015
    assert abs(hits["slope"] / 2000 - 0.95) < 0.015
    assert 0.945 < hits["median"] / 2000 < 0.985  # order statistics are discrete: at least 95 %, at 20 samples 95.9 %


def test_statistics_against_scipy():
    samples = np.random.default_rng(1).normal(size=11)
    mean = summarise(samples.tolist(), "mean")
    assert (mean.low, mean.high) == pytest.approx(
        stats.t.interval(0.95, 10, samples.mean(), stats.sem(samples)), rel=1e-12
    )
    median = summarise(samples.tolist(), "median")
    assert (median.low, median.high) == tuple(np.sort(samples)[[1, 9]])  # ranks 2 and 10 of 11: 98.8 %
    extreme = summarise(samples.tolist(), "max")
    assert (extreme.value, extreme.low, extreme.high) == (samples.max(), samples.min(), samples.max())
    assert summarise([2.5], "value").low == 2.5


@pytest.mark.parametrize(
    ("samples", "of"), [([1.0], "mean"), ([1.0] * 5, "median"), ([1.0, 2.0], "value"), ([], "min")]
)
def test_too_few_samples_for_a_statistic(samples, of):
    with pytest.raises(ValueError, match="samples: "):
        summarise(samples, of)


# The verdicts


def rule(**fields):
    return {"of": "mean", "reason": "r", **fields}


AT_LEAST_1 = rule(rule="at_least", value=1)
AT_LEAST_0 = rule(rule="at_least", value=0)
TIGHT, LOOSE = [0.01, -0.01] * 4, [1.0, -1.0] * 4


@pytest.mark.parametrize(
    ("centre", "spread", "control", "direction", "verdict"),
    [
        (2, TIGHT, -1, None, "reproduced"),
        (2, TIGHT, 1, None, "unguarded"),  # the control meets the rule too, at its very edge
        (0, TIGHT, 3, None, "unguarded"),  # ... whatever was measured
        (1, TIGHT, -1, None, "not reproduced"),  # the interval straddles the threshold
        (2, LOOSE, -1, AT_LEAST_0, "reproduced"),
        (1.5, LOOSE, -1, None, "not reproduced"),
        (0.5, TIGHT, -1, None, "differs"),  # the whole interval is on the wrong side
        (0.5, TIGHT, -1, AT_LEAST_0, "reproduced in direction"),
        (0, TIGHT, -1, AT_LEAST_0, "not reproduced"),  # straddles the direction too
        (-0.5, TIGHT, -1, AT_LEAST_0, "differs"),
    ],
)
def test_the_order_of_verdicts(tmp_path, centre, spread, control, direction, verdict):
    claim = claim_with(tmp_path, accept=AT_LEAST_1, direction=direction)
    judgement = judge(claim, evidence([centre + s for s in spread], [control]), "book")
    assert judgement.verdict == verdict
    assert judgement.verdict in VERDICTS
    assert judgement.expected == (verdict == "reproduced")


def test_nothing_recorded_is_not_run(tmp_path):
    claim = claim_with(tmp_path)
    assert judge(claim, None, "book").verdict == "not run"
    assert not judge(claim, None, "book").expected
    assert judge(claim, None, "paper").expected  # the claim is not recorded at that scale


@pytest.mark.parametrize(
    ("accept", "good", "bad", "edge_is_good"),
    [
        (rule(rule="at_least", value=2, of="min"), [2.5, 3], [1, 3], True),
        (rule(rule="at_most", value=2, of="max"), [1, 1.5], [1, 2.5], True),
        (rule(rule="within", value=2, absolute=0.5, of="max"), [1.8, 2.2], [1.8, 2.6], True),
        (rule(rule="within", value=-2, relative=0.25, of="min"), [-1.8, -2.2], [-2.6, -2], True),
        (rule(rule="excludes", value=2, side="above", of="min"), [2.5, 3], [1, 3], False),
        (rule(rule="excludes", value=2, side="below", of="max"), [1, 1.5], [1, 3], False),
    ],
)
def test_each_rule_accepts_and_rejects(tmp_path, accept, good, bad, edge_is_good):
    claim = claim_with(tmp_path, accept=accept, seeds=2)
    control = [100.0] if accept["rule"] != "at_least" and accept.get("side") != "above" else [-100.0]
    assert judge(claim, evidence(good, control), "book").verdict == "reproduced"
    assert judge(claim, evidence(bad, control), "book").verdict == "not reproduced"
    edge = {"within": 2.5 if accept["value"] > 0 else -2.5}.get(accept["rule"], 2.0)
    assert (judge(claim, evidence([edge, edge], control), "book").verdict == "reproduced") == edge_is_good


def test_ordered_judges_every_step(tmp_path):
    claim = claim_with(tmp_path, accept={"rule": "ordered", "direction": "decreasing", "reason": "r"}, seeds=2)
    falling, stalling = [3.0, 2.0, 1.0], [3.0, 2.0, 2.0]
    assert judge(claim, evidence([falling, falling], [stalling]), "book").verdict == "reproduced"
    assert judge(claim, evidence([falling, stalling], [stalling]), "book").verdict == "not reproduced"
    assert judge(claim, evidence([falling, falling], [falling]), "book").verdict == "unguarded"


def test_slope_is_judged_by_the_error_of_its_fit(tmp_path):
    claim = claim_with(tmp_path, accept=rule(rule="within", value=3, absolute=0.2, of="slope"), seeds=5)
    line = [[x, 3 * x + e] for x, e in zip(range(6), (0.1, -0.1, 0.05, 0, -0.1, 0.1), strict=True)]
    flat = [[x, 1.0] for x in range(6)]
    judgement = judge(claim, evidence(line, flat), "book")
    assert judgement.verdict == "reproduced"
    assert judgement.control == 0
    assert judgement.margin_se > 3


def test_fragile_below_three_standard_errors(tmp_path):
    claim = claim_with(tmp_path, accept=AT_LEAST_0)
    samples = np.array([1.0, -1.0] * 4)
    error = samples.std(ddof=1) / math.sqrt(8)
    for margin, fragile in ((2.9, True), (3.1, False)):
        judgement = judge(claim, evidence((samples + margin * error).tolist()), "book")
        assert judgement.verdict == "reproduced"
        assert judgement.margin_se == pytest.approx(margin)
        assert judgement.fragile == fragile


@settings(deadline=None, max_examples=200)
@given(
    low=st.floats(-10, 10),
    width=st.floats(0, 10),
    value=st.floats(-10, 10),
    tolerance=st.floats(0.01, 5),
    data=st.data(),
)
def test_meets_and_misses_exclude_each_other(low, width, value, tolerance, data):
    from implicitreg.claims import AtLeast, AtMost, Excludes, Within

    common = {"of": "mean", "reason": "r", "value": value}
    chosen = data.draw(
        st.sampled_from(
            [
                AtLeast(rule="at_least", **common),
                AtMost(rule="at_most", **common),
                Within(rule="within", absolute=tolerance, **common),
                Excludes(rule="excludes", side="above", **common),
                Excludes(rule="excludes", side="below", **common),
            ]
        )
    )
    high = low + width
    meets, misses = chosen.meets(low, high), chosen.misses(low, high)
    assert not (meets and misses)
    if width == 0:
        assert meets != misses
    for inside in (low, (low + high) / 2, high):
        assert not (meets and chosen.misses(inside, inside))
        assert not (misses and chosen.meets(inside, inside))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": [1.0] * 7}, "7 given, 8 seeds needed"),
        ({"scale": "smoke"}, "is of scale 'smoke'"),
        ({"id": "rank.other"}, "got the evidence of rank.other"),
        ({"samples": [[1.0, 2.0]] * 8}, "do not suit"),
    ],
)
def test_evidence_that_does_not_fit(tmp_path, changes, message):
    claim = (
        claim_with(tmp_path, accept=rule(rule="at_least", value=0, of="value"), seeds=1) if 0 else claim_with(tmp_path)
    )
    with pytest.raises(ClaimError, match=message):
        judge(claim, evidence(**{"samples": [1.0] * 8, **changes}), "book")


# The ledger and the notebook


def test_recording_and_reading_back(tmp_path, monkeypatch):
    write(tmp_path / "book" / "rank")
    monkeypatch.chdir(tmp_path / "book" / "rank")
    samples = torch.linspace(1, 2, 8, dtype=torch.float64) / 3
    shown = Ledger.open("rank").record("grows", samples=samples, control=np.array([-1.0]))
    data, metadata = shown._repr_mimebundle_()
    assert metadata[MIME]["samples"] == samples.tolist()  # full precision
    assert "verdict" not in json.dumps(metadata) + data["text/html"] + data["text/plain"]
    assert 'id="claim-rank-grows"' in data["text/html"]
    assert "mean 0.5" in data["text/plain"]
    assert str(shown) == data["text/plain"]
    Ledger.open("rank").record("rank.grows", samples=samples, control=[-1.0])  # the full id will do
    notebook = {"cells": [{"outputs": []}, {"outputs": [{"data": data, "metadata": json.loads(json.dumps(metadata))}]}]}
    ((cell, found),) = recorded(notebook)
    assert cell == 1
    claims = load_all(tmp_path / "book")
    ((judgement, name, where),) = judge_notebooks(claims, {"rank/flow": notebook}, "book")
    assert (judgement.verdict, name, where) == ("reproduced", "rank/flow", 1)
    assert found.samples == samples.tolist()
    entry = judgement.record(notebook=name, seconds=1.5)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry["measured"]["n"] == 8
    assert entry["control"]["rejected"] is True
    assert entry["published"] == {"value": None, "unit": None, "from": None}


@pytest.mark.parametrize("place", [".", "book", "book/rank", "book/rank/deeper", "elsewhere"])
def test_the_ledger_is_found_upward(tmp_path, monkeypatch, place):
    write(tmp_path / "book" / "rank")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / place)
    assert Ledger.open("rank").file.path == tmp_path / "book" / "rank" / "claims.yml"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda ledger: ledger.record("shrinks", samples=[1.0] * 8, control=[-1.0]),
            "no claim 'shrinks'.*known: grows",
        ),
        (lambda ledger: ledger.record("grows", samples=[1.0] * 7, control=[-1.0]), "7 given, 8 seeds needed"),
        (lambda ledger: ledger.record("grows", samples=[math.nan] * 8, control=[-1.0]), "samples must be finite"),
        (lambda ledger: ledger.record("grows", samples=[1.0] * 8, control=[math.inf]), "control must be finite"),
        (lambda ledger: ledger.record("grows", samples=[1.0] * 8, control=[]), "control must have at least one"),
        (lambda ledger: ledger.record("grows", samples="12345678", control=[-1.0]), "samples: must be numbers"),
        (lambda ledger: ledger.record("grows", samples=[True] * 8, control=[-1.0]), "samples: must be numbers"),
        (
            lambda ledger: [ledger.record("grows", samples=[1.0, 2.0] * 4, control=[-1.0]) for _ in range(2)],
            "recorded already",
        ),
    ],
)
def test_what_the_ledger_refuses(tmp_path, act, message):
    ledger = Ledger(load(write(tmp_path / "rank")))
    with pytest.raises(ClaimError, match=message) as caught:
        act(ledger)
    assert "rank" in str(caught.value)


def test_scales(tmp_path, monkeypatch):
    file = load(write(tmp_path / "rank"))
    with pytest.raises(ClaimError, match="scale: 'huge' is not one of smoke, book, paper"):
        Ledger(file, "huge")
    with pytest.raises(ClaimError, match="not recorded at scale 'paper', only at smoke, book"):
        Ledger(file, "paper").record("grows", samples=[1.0] * 8, control=[-1.0])
    Ledger(file, "smoke").record("grows", samples=[1.0, 2.0], control=[-1.0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClaimError, match=r"no claims\.yml of 'nosuch'"):
        Ledger.open("nosuch")


def test_two_notebooks_cannot_record_one_claim(tmp_path):
    claims = load_all(write(tmp_path / "book" / "rank").parents[1])

    def notebook(*ids):
        data = [Evidence(i, "book", [1.0, 2.0] * 4, [-1.0]).to_json() for i in ids]
        return {"cells": [{"outputs": [{"metadata": {MIME: d}} for d in data]}]}

    with pytest.raises(ClaimError, match=r"b: cell 0: rank\.grows is recorded already in a"):
        judge_notebooks(claims, {"a": notebook("rank.grows"), "b": notebook("rank.grows")}, "book")
    with pytest.raises(ClaimError, match=r"a: cell 0: unknown claim 'rank\.other'"):
        judge_notebooks(claims, {"a": notebook("rank.other")}, "book")


@pytest.mark.parametrize("broken", [{}, {"id": "rank.grows"}, 3, None])
def test_malformed_evidence_is_refused(broken):
    notebook = {"cells": [{"outputs": [{"metadata": {MIME: broken}}]}]}
    if broken is None:
        assert recorded(notebook) == []
        return
    with pytest.raises(ValueError, match="evidence must have exactly"):
        recorded(notebook)


def test_round_off_is_not_printed(tmp_path):
    identity = rule(rule="at_most", value=1e-12, of="value")
    file = load(write(tmp_path / "rank", kind="identity", accept=identity, seeds=1))
    for value, text in ((3.1e-16, "at most 1e-12"), (0.25, "0.25")):
        plain = Ledger(file).record("grows", samples=[value], control=[1.0])._repr_mimebundle_()[0]["text/plain"]
        assert text in plain
        assert "3.1e-16" not in plain


def test_the_room_imports_neither_torch_nor_notebook_machinery():
    code = "import sys, implicitreg.claims; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    roots = {name.partition(".")[0] for name in modules}
    assert not roots & {"torch", "IPython", "nbformat", "papermill", "sphinx", "matplotlib", "ipykernel"}


@pytest.mark.parametrize(("name", "reversed_name"), [("at_least", "at_most"), ("at_most", "at_least")])
@pytest.mark.parametrize("control_too", [True, False])
def test_a_rule_turned_round_changes_the_verdict(tmp_path, name, reversed_name, control_too):
    """Whatever the control: what was reproduced is so no longer."""
    sign = 1 if name == "at_least" else -1
    samples = [sign * (2 + s) for s in TIGHT]
    control = [-sign * 1.0] if control_too else [sign * 0.5]
    good, bad = (
        judge(claim_with(tmp_path, accept=rule(rule=r, value=v)), evidence(samples, control), "book").verdict
        for r, v in ((name, sign), (reversed_name, sign))
    )
    assert good == "reproduced"
    assert bad == "unguarded"  # the control lies where the samples were meant not to
    far = [sign * 3.0]
    assert (
        judge(claim_with(tmp_path, accept=rule(rule=reversed_name, value=sign)), evidence(samples, far), "book").verdict
        == "differs"
    )


def test_every_sample_of_the_control_counts(tmp_path):
    at_most = claim_with(tmp_path, accept=rule(rule="at_most", value=1, of="max"))
    assert judge(at_most, evidence([0.5] * 8, [2.0] * 8), "book").verdict == "reproduced"
    assert judge(at_most, evidence([0.5] * 8, [0.5] * 7 + [2.0]), "book").verdict == "unguarded"
    within = claim_with(tmp_path, accept=rule(rule="within", value=1, absolute=0.1, of="min"))
    assert judge(within, evidence([1.0] * 8, [70.0] * 8), "book").verdict == "reproduced"
    assert judge(within, evidence([1.0] * 8, [1.0, 70.0]), "book").verdict == "unguarded"
    mean = claim_with(tmp_path, accept=AT_LEAST_1)
    assert judge(mean, evidence([2 + s for s in TIGHT], [0.5]), "book").verdict == "reproduced"
    assert judge(mean, evidence([2 + s for s in TIGHT], [-1.0, 2.0] * 4), "book").verdict == "unguarded"


def test_a_direction_must_reject_the_control_where_it_decides(tmp_path):
    claim = claim_with(tmp_path, accept=AT_LEAST_1, direction=AT_LEAST_0)
    middle = [0.5 + s for s in TIGHT]
    assert judge(claim, evidence(middle, [-0.5]), "book").verdict == "reproduced in direction"
    assert judge(claim, evidence(middle, [0.5]), "book").verdict == "unguarded"
    assert judge(claim, evidence([2 + s for s in TIGHT], [0.5]), "book").verdict == "reproduced"


def test_what_is_printed_does_not_hang_on_round_off():
    """A tie is broken the same on every machine, and values that are round-off are not printed."""
    assert number(0.84375) == number(0.84375 * (1 - 1e-15)) == number(0.84375 * (1 + 1e-15)) == "0.8438"
    assert number(2.09726402473, 12) == "2.09726402473"
    assert number(2.5e-9, 1) == number(2.5e-9 * (1 + 1e-14), 1)
    claim = load(Path(__file__).parents[2] / "book/rank/claims.yml").claims["five-by-five-ones"]
    for most in (1.765e-14, 1.776e-14, 9e-13):
        words = measured_words(claim, Statistic(most, 5e-16, most, 16, "max"), "book")
        assert words == "at most 0.015 (n = 16)"
    assert "max 1.5e-9" in measured_words(claim, Statistic(1.5e-9, 5e-16, 1.5e-9, 16, "max"), "book")
