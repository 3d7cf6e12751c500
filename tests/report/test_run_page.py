"""The page: self-contained, safe whatever a model says, and honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from posttrain.errors import CheckpointError, DataError
from posttrain.report.gain_figure import write_gain_figure
from posttrain.report.record import StageRecord, read_run
from posttrain.report.run_page import write_report
from posttrain.report.tables import pick_examples, pick_extremes, time_rows

VOID = {"meta", "line", "circle", "path", "br"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.text += " "
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids |= {value for name, value in attrs if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def load(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def words(page: Page) -> str:
    return " ".join(page.text.replace("\u00a0", " ").split())


def test_page_holds_every_section_and_the_outcome(make_run):
    run = make_run(hostile="")
    path = write_report(run)
    page = load(path)
    assert path == run / "report.html"
    assert {
        "scores",
        "gains",
        "warnings",
        "curves",
        "examples",
        "rollouts",
        "data",
        "time",
        "recipe",
    } <= page.ids
    summary = json.loads((run / "summary.json").read_text())
    first, last = (100 * summary["stages"][i]["mean_score"] for i in (0, -1))
    assert f"Held-out score {first:.1f} % → {last:.1f} %: gain +" in words(page)
    for said in ("12 rows were longer than 512 tokens", "learning_rate: 2.0e-5", "A CPU @ 2.60GHz", "2.13.0"):
        assert said in words(page)
    for title in ("Loss", "Reward", "KL to the reference", "Entropy", "Completion length", "Stop rate"):
        assert title in page.text
    assert "Sampler–trainer gap" in page.text and "40 min 24 s" in words(page)
    assert "longer than 512 tokens 12 rows, 0.7 %" in words(page)
    assert "writing 1,907 rows of 2,000 rows, sha256 77aa77aa77aa, Apache-2.0" in words(page)


def test_links_of_the_contents_lead_somewhere(make_run):
    page = load(write_report(make_run()))
    anchors = [value[1:] for tag, name, value in page.attributes if name == "href" and value.startswith("#")]
    assert len(anchors) == 8 and set(anchors) <= page.ids


@pytest.mark.parametrize(
    "hostile",
    [
        '<script>alert("pwned")</script><img src="http://evil.example/x.png" onerror="alert(1)">',
        "</pre></main></body></html><iframe src='//evil.example'></iframe>",
        "' onmouseover='alert(1)\" onfocus=\"alert(2)",
        "{{ 7 * 7 }}{% raw %}{# gone #}",
        "]]></style><style>*{display:none}</style>",
        "\x00\x1b[31m\u202e\ud800",
    ],
)
def test_hostile_completions_stay_text(make_run, hostile):
    """A completion is data: no element, attribute or template of it comes alive."""
    run = make_run(hostile=hostile, num_problems=40, num_steps=3)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["name"] = manifest["model"]["name"] = manifest["machine"]["cpu"] = hostile
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "recipe.yaml").write_text(f"name: {hostile}", encoding="utf-8", errors="replace")
    done = run / "stages" / "01-sft" / "done.json"
    done.write_text(json.dumps({"key": "k", "seconds": 1, "peak_rss_gib": 1, "warnings": [hostile]}))
    page = load(write_report(run))
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "link", "form", "input", "base"}
    assert page.tags.issuperset({"pre", "svg", "table"})
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "49" not in page.text.split("Still wrong")[-1].split("Best and worst")[0]
    if hostile.isprintable():
        assert page.text.count(hostile) > 10
    assert not re.search("[\x00-\x08\x1b\u202a-\u202e]", page.text)


def test_page_asks_nobody_for_anything(make_run):
    """No request can leave the page: a policy forbids it, and nothing tries."""
    run = make_run()
    html = write_report(run).read_text()
    page = Page(html)
    policies = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"]
    assert any(policy.startswith("default-src 'none'") for policy in policies)
    loading = {"src", "srcset", "data", "poster", "action", "xlink:href", "background"}
    assert not [name for _, name, _ in page.attributes if name in loading]
    assert {tag for tag, name, _ in page.attributes if name == "href"} == {"a"}
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_same_run_gives_the_same_page(make_run):
    run = make_run(num_problems=60, num_steps=5)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_run_that_just_started_has_a_page(make_run):
    run = make_run(hostile="")
    for name in ("00-base", "01-sft", "02-dpo", "03-grpo"):
        shutil.rmtree(run / "stages" / name)
    page = load(write_report(run))
    assert "No held-out score yet." in page.text
    for label in ("Base model", "SFT", "DPO", "GRPO"):
        assert f"{label} has not started" in page.text


def test_a_run_with_only_its_base_score(make_run):
    run = make_run(hostile="")
    for name in ("01-sft", "02-dpo", "03-grpo"):
        shutil.rmtree(run / "stages" / name)
    page = load(write_report(run))
    assert re.search(r"Base model scores \d+\.\d % on the held-out problems\.", words(page))
    assert "→" not in page.text.split("Recipe and machine")[0].replace("SFT → DPO → GRPO", "")


def test_a_killed_run_says_what_is_missing(make_run):
    run = make_run(hostile="")
    grpo = run / "stages" / "03-grpo"
    for path in (
        grpo / "done.json",
        grpo / "eval" / "heldout.jsonl",
        run / "stages" / "02-dpo" / "metrics.jsonl",
    ):
        path.unlink()
    with (grpo / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "rew')
    (grpo / "rollouts" / "step_000121.parquet").write_bytes(b"PAR1 half a fi")
    page = load(write_report(run))
    assert "This run is not complete" in page.text
    for said in (
        "GRPO is not finished",
        "GRPO has no held-out evaluation yet",
        "DPO has no metrics yet",
        "GRPO: step_000121.parquet cannot be read and was left out",
        "step 120, 24 rollouts",
        "not evaluated",
    ):
        assert said in words(page)


def test_an_unfinished_stage_with_its_scores_lacks_no_evaluation(make_run):
    run = make_run(hostile="", num_problems=20, num_steps=2)
    (run / "stages" / "03-grpo" / "done.json").unlink()
    text = words(load(write_report(run)))
    assert "GRPO is not finished" in text and "held-out evaluation yet" not in text


@pytest.mark.parametrize("name", ["manifest.json", "stages/01-sft/done.json", "stages/01-sft/data.json"])
def test_damaged_files_are_named_not_fatal(make_run, name):
    run = make_run(num_problems=20, num_steps=2)
    (run / name).write_text('{"half":')
    assert f"{name.rpartition('/')[2]} is damaged" in load(write_report(run)).text


def test_files_that_say_less_than_the_contract_are_shown_as_far_as_they_go(make_run):
    run = make_run(hostile="", num_problems=20, num_steps=2)
    sft = run / "stages" / "01-sft"
    (sft / "data.json").write_text('{"rows": 7, "sources": [{"name": "mine"}]}')
    (sft / "metrics.jsonl").write_text('{"step": 1}\n')
    (run / "manifest.json").write_text('{"name": "short", "machine": {}, "git": null}')
    table = pa.table({"problem_id": ["only"], "prompt": ["p"], "completion": [None], "reward": [1.0]})
    parquet.write_table(table, sft / "rollouts" / "rejection.parquet")
    page = load(write_report(run))
    for said in ("short", "mine", "Best 1", "(nothing)"):
        assert said in page.text


def test_torn_evaluation_lines_are_counted(make_run):
    run = make_run(hostile="", num_problems=20, num_steps=2)
    with (run / "stages" / "00-base" / "eval" / "heldout.jsonl").open("a") as file:
        file.write('{"problem_id": "writing/00')
    assert "Base model: 1 damaged line of heldout.jsonl left out" in load(write_report(run)).text


def test_a_stage_that_hurts_is_called_out(make_run):
    """The last stage gets the base model's answers: worse than DPO, and said twice."""
    run = make_run(hostile="")
    stages = run / "stages"
    shutil.copy(stages / "00-base" / "eval" / "heldout.jsonl", stages / "03-grpo" / "eval" / "heldout.jsonl")
    page = load(write_report(run))
    assert "GRPO is significantly worse than DPO: −" in page.text
    assert "▼ significantly worse" in page.text
    assert "no clear change, 0.0 points" in words(page)


def test_numbers_that_were_not_finite_are_warned_about(make_run):
    run = make_run(hostile="", num_problems=20, num_steps=2)
    path = run / "stages" / "01-sft" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "loss/nats_per_token": null}\n')
    page = load(write_report(run))
    assert "SFT: loss/nats_per_token was not a finite number at 1 step" in words(page)
    assert "1 value not finite" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a run folder"):
        write_report(tmp_path)


def test_examples_show_both_directions_and_the_same_problem(make_run):
    record = read_run(make_run(hostile=""))
    examples = pick_examples(record.stages[0].samples, record.stages[-1].samples)
    assert [example.title for example in examples][:3] == ["Learned"] * 3
    assert examples[-1].title == "Still wrong"
    assert len({example.problem_id for example in examples}) == len(examples)
    assert len({example.kind for example in examples[:3]}) == 3
    for example in examples:
        assert example.before.problem_id == example.after.problem_id == example.problem_id
        wanted = {"Learned": 1, "Lost": -1, "Still wrong": 0}[example.title]
        assert example.after.value - example.before.value == wanted
    backwards = pick_examples(record.stages[-1].samples, record.stages[0].samples)
    assert [example.title for example in backwards].count("Lost") == 2


def test_best_and_worst_rollouts_by_hand():
    rows = [("a", 1.0, 0.5), ("a", 1.0, 2.0), ("b", 0.0, -1.0), ("c", 0.0, -3.0), ("d", 0.5, 0.0)]
    stage = StageRecord(
        "03-grpo",
        "grpo",
        rollouts=tuple(
            {"step": 4, "problem_id": problem, "reward": reward, "advantage": advantage}
            for problem, reward, advantage in rows
        ),
    )
    found = pick_extremes(stage, 2)
    assert [(row["problem_id"], row["advantage"]) for row in found.best] == [("a", 2.0), ("d", 0.0)]
    assert [row["problem_id"] for row in found.worst] == ["c", "b"]
    assert (found.step, found.num_rollouts) == (4, 5)
    assert pick_extremes(StageRecord("x", "grpo")) is None


def test_no_rollout_is_both_best_and_worst():
    row = {"step": 1, "problem_id": "a", "reward": 1.0, "advantage": 0.0}
    found = pick_extremes(StageRecord("03-grpo", "grpo", rollouts=(row,)))
    assert (len(found.best), len(found.worst)) == (1, 0)


def test_a_finished_run_without_evaluation_is_complete(make_run):
    """A recipe may leave the evaluation out: nothing is missing then."""
    run = make_run(hostile="", num_problems=20, num_steps=2)
    for stage in (run / "stages").iterdir():
        shutil.rmtree(stage / "eval")
    page = load(write_report(run))
    assert "No held-out score yet." in page.text and "Learning curves" in page.text
    assert "not complete" not in page.text


def test_time_of_an_unfinished_stage_is_that_of_its_steps(make_run):
    run = make_run(num_problems=20, num_steps=4)
    done = run / "stages" / "03-grpo" / "done.json"
    done.unlink()
    path = run / "stages" / "03-grpo" / "metrics.jsonl"
    times = [(2.0, 1.0), (4.0, 2.0)]
    path.write_text(
        "".join(
            json.dumps({"step": i, "time/step_seconds": all_, "time/generate_seconds": part}) + "\n"
            for i, (all_, part) in enumerate(times, 1)
        )
    )
    row = time_rows(read_run(run))[-1]
    assert (row.seconds, row.step_seconds, row.num_steps, row.peak_rss_gib) == (6.0, 3.0, 2, None)
    assert row.parts == (("generate", 50.0),)


@pytest.mark.parametrize("dark", [False, True])
def test_gain_figure_is_a_picture_of_the_run(make_run, tmp_path, dark):
    run = make_run(hostile="", num_problems=60, num_steps=2)
    picture = write_gain_figure(run, tmp_path / "gain.png", dark=dark)
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawing = write_gain_figure(run, tmp_path / "gain.svg", dark=dark).read_text()
    for said in ("Base model", "GRPO", "Held-out score", "keyword"):
        assert said in drawing
    assert write_gain_figure(run, tmp_path / "again.svg", dark=dark).read_text() == drawing


def test_gain_figure_without_scores_is_refused(make_run, tmp_path):
    run = make_run(num_problems=20, num_steps=2)
    for stage in (run / "stages").iterdir():
        shutil.rmtree(stage / "eval")
    with pytest.raises(DataError, match="no held-out score"):
        write_gain_figure(run, tmp_path / "gain.png")
