"""summary.json and the outcome's sentence, against numbers worked out here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from posttrain.errors import CheckpointError
from posttrain.report.outcome import measure, write_summary
from posttrain.report.record import read_run
from posttrain.report.wording import bracket, compact, count, percent, plain, points


def put(run: Path, stage: str, values: list[float], *, samples: int = 1, first: int = 0) -> None:
    """One evaluated stage; value i belongs to problem first + i // samples."""
    rows = [
        {
            "problem_id": f"p{first + i // samples}",
            "sample": i % samples,
            "kind": "a" if i % 2 else "b",
            "prompt": "q",
            "output": "o",
            "num_tokens": 10 + i,
            "stop_reason": "stop" if i % 4 else "length",
            "value": value,
            "verdict": "correct" if value == 1 else "unparseable" if i % 3 == 0 else "wrong",
            "reason": "",
        }
        for i, value in enumerate(values)
    ]
    folder = run / "stages" / stage / "eval"
    folder.mkdir(parents=True)
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_summary_against_scipy(tmp_path):
    base, sft, grpo = [0, 0, 1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 1, 0, 1], [1, 1, 1, 0, 1, 1, 0, 1]
    for name, values in (("00-base", base), ("01-sft", sft), ("02-grpo", grpo)):
        put(tmp_path, name, values)
    done = tmp_path / "stages" / "01-sft" / "done.json"
    done.write_text('{"key": "k", "seconds": 12.5, "peak_rss_gib": 2.5, "warnings": []}')
    (tmp_path / "stages" / "02-grpo" / "done.json").write_text(
        '{"key": "k", "seconds": 30, "peak_rss_gib": 1.5, "warnings": []}'
    )
    summary = write_summary(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["seconds"] == 42.5 and summary["peak_rss_gib"] == 2.5
    assert [stage["name"] for stage in summary["stages"]] == ["00-base", "01-sft", "02-grpo"]
    assert [stage["mean_score"] for stage in summary["stages"]] == [0.25, 0.5, 0.75]
    assert [stage["stderr"] for stage in summary["stages"]] == pytest.approx(
        [stats.sem(values) for values in (base, sft, grpo)]
    )
    interval = stats.ttest_rel(grpo, base).confidence_interval(0.95)
    assert summary["gain"]["value"] == pytest.approx(0.5)
    assert summary["gain"]["ci95"] == pytest.approx([interval.low, interval.high])


def test_gains_are_against_the_stage_before(tmp_path):
    put(tmp_path, "00-base", [0, 0, 0, 1] * 10)
    put(tmp_path, "01-sft", [1, 1, 0, 1] * 10)
    put(tmp_path, "02-dpo", [0, 1, 0, 1] * 10)
    outcome = measure(read_run(tmp_path))
    assert [score.label for score in outcome.scores] == ["Base model", "SFT", "DPO"]
    assert [score.previous for score in outcome.scores] == ["", "Base model", "SFT"]
    gains = [score.gain.difference for score in outcome.scores if score.gain]
    assert gains == pytest.approx([0.5, -0.25])
    assert outcome.gain.difference == pytest.approx(0.25)
    assert len(outcome.warnings) == 1
    assert outcome.warnings[0].startswith("DPO is significantly worse than SFT: −25.0 points")


def test_rates_by_hand(tmp_path):
    """Values 0 0 1 0: stops at i = 1, 2, 3; tokens 10 to 13; unparseable at i = 0 and 3."""
    put(tmp_path, "00-base", [0, 0, 1, 0])
    score = measure(read_run(tmp_path)).scores[0]
    assert (score.stop_rate, score.mean_tokens, score.unparseable_rate) == (0.75, 11.5, 0.5)


def test_several_samples_are_clustered_and_paired_by_problem(tmp_path):
    base = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0]])
    sft = np.array([[1, 0, 1], [1, 1, 1], [1, 1, 0], [0, 0, 1]])
    put(tmp_path, "00-base", base.ravel().tolist(), samples=3)
    put(tmp_path, "01-sft", sft.ravel().tolist(), samples=3)
    outcome = measure(read_run(tmp_path))
    assert outcome.scores[0].estimate.stderr == pytest.approx(stats.sem(base.mean(axis=1)))
    assert outcome.gain.stderr == pytest.approx(stats.sem((sft - base).mean(axis=1)))
    assert outcome.gain.num_problems == 4


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ([1, 1, 1, 1] * 10, "Held-out score 50.0 % → 100.0 %: gain +50.0 points"),
        ([0, 0, 0, 0] * 10, "Held-out score 50.0 % → 0.0 %: significantly worse, −50.0 points"),
        ([1, 0, 0, 1] * 10, "Held-out score 50.0 % → 50.0 %: no clear change, 0.0 points"),
    ],
)
def test_sentence_says_what_happened(tmp_path, after, words):
    put(tmp_path, "00-base", [0, 0, 1, 1] * 10)
    put(tmp_path, "01-sft", after)
    assert measure(read_run(tmp_path)).sentence.replace("\u00a0", " ").startswith(words)


def test_a_half_evaluated_stage_is_compared_on_what_both_answered(tmp_path):
    put(tmp_path, "00-base", [0, 0, 1, 1, 0, 0])
    put(tmp_path, "01-sft", [1, 1, 1], first=1)
    outcome = measure(read_run(tmp_path))
    assert outcome.gain.num_problems == 3
    assert (outcome.gain.before, outcome.gain.after) == pytest.approx((2 / 3, 1))
    assert outcome.notes == ("Base model and SFT are compared on the 3 problems both answered (of 6 and 3)",)


def test_stages_without_an_evaluation_are_null(tmp_path):
    put(tmp_path, "00-base", [0, 1, 1])
    (tmp_path / "stages" / "01-sft").mkdir()
    summary = write_summary(tmp_path)
    assert summary["stages"][1] == {"name": "01-sft", "mean_score": None, "stderr": None}
    assert summary["gain"] is None


def test_no_score_at_all(tmp_path):
    (tmp_path / "stages").mkdir()
    assert write_summary(tmp_path)["stages"] == []
    assert measure(read_run(tmp_path)).sentence == "No held-out score yet."


def test_two_stages_of_one_kind_keep_their_own_names(tmp_path):
    put(tmp_path, "00-base", [0, 1])
    put(tmp_path, "01-sft", [0, 1])
    put(tmp_path, "02-sft", [0, 1])
    assert [score.label for score in measure(read_run(tmp_path)).scores] == ["Base model", "01-sft", "02-sft"]


@pytest.mark.parametrize("name", ["", "nothing-here"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="is not a run folder"):
        write_summary(tmp_path / name)


def test_numbers_in_words():
    assert percent(0.5234) == "52.3\u00a0%" and percent(float("nan")) == "–"
    assert [points(x) for x in (0.353, -0.02, 0.0, -0.0004)] == ["+35.3", "−2.0", "0.0", "0.0"]
    assert bracket(-0.012, 0.3) == "[−1.2, 30.0]" and bracket(float("nan"), 1.0) == "no interval"
    assert [count(n, "row") for n in (1, 1907, "many")] == ["1 row", "1,907 rows", "many rows"]
    numbers = (0, 0.25, -3, 1234, 15_000, 2_500_000, 5e-7, 0.00412)
    assert [compact(x) for x in numbers] == ["0", "0.25", "−3", "1,234", "15k", "2.5M", "5e−7", "0.00412"]


def test_hostile_characters_are_made_visible():
    assert plain("a\x00b\x1bc\td\ne") == "a␀b␛c\td\ne"
    assert plain("x\u202ey\u2066z") == "x\ufffdy\ufffdz"
    assert plain("a\ud800") == "a?"
    assert plain("abcdef", limit=4) == "abcd … (2 more characters)"
