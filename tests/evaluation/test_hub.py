"""Benchmark data from the hub: its documented columns become the data folder's rows, whole, recorded, kept.

The hub's files are built from the data folder's rows in the columns that the data sets' cards document, and lie in
a cache that huggingface_hub itself reads.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from posttrain.errors import DataError
from posttrain.evaluation import hub
from posttrain.evaluation.datafile import data_sha256, data_source, read_data
from posttrain.evaluation.hub import open_data
from posttrain.evaluation.hub_rows import Place, drop, ifeval, mmlu, popqa, truthfulqa
from posttrain.evaluation.hub_table import ABSENT, EXEMPLARS, HUB
from posttrain.evaluation.preflight import check_tasks
from posttrain.evaluation.registry import TASKS, open_task
from posttrain.evaluation.task import Needs

sys.path.insert(0, str(Path(__file__).parent))
import hub_cache
from toy_benchmark import Toy

PLACE = Place("a/test.parquet", 3)
DATE = {"day": "", "month": "", "year": ""}
POPQA_COLUMNS = [
    "id",
    "subj",
    "prop",
    "obj",
    "subj_id",
    "prop_id",
    "obj_id",
    "s_aliases",
    "o_aliases",
    "s_uri",
]
POPQA_COLUMNS += ["o_uri", "s_wiki_title", "o_wiki_title", "s_pop", "o_pop", "question", "possible_answers"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and an empty cache of ours."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "own"))
    return tmp_path / "hub"


def needing(*files: str) -> Toy:
    return replace(Toy(), needs=Needs(files=files))


def silent(line: str) -> None:
    """Nobody listens."""


def spans(text: str, *, apart: bool) -> dict:
    """An answer that flattens to `text`; two that flatten alike were different lists of spans."""
    return {"number": "", "spans": text.split(" and ") if apart else [text], "date": DATE}


def as_drop(row):
    passage, _, question = row["context"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    texts = row["ref_text"].split("|")
    first, *others = [spans(text, apart=text in texts[:place]) for place, text in enumerate(texts)]
    validated = {name: [one[name] for one in others] for name in ("number", "spans", "date")}
    ids = {"section_id": "s", "query_id": "q"}
    question = question.removesuffix("\nAnswer:")
    return {**ids, "passage": passage, "question": question, "answer": first, "validated_answers": validated}


def as_targets(targets):
    return {"choices": list(targets), "labels": list(targets.values())}


def as_ifeval(row):
    every = dict.fromkeys(["num_words", "relation", "keywords", "num_highlights"])
    return {**row, "kwargs": [{**every, **kwargs} for kwargs in row["kwargs"]]}


def as_mmlu(row):
    order = ("question", "subject", "choices")
    return {**{name: row[name] for name in order}, "answer": "ABCD".index(row["answer"])}


AS_ON_THE_HUB = {
    "mmlu/test.jsonl.gz": as_mmlu,
    "mmlu/val.jsonl.gz": as_mmlu,
    "truthfulqa/v0/mc_task.json": lambda row: {
        "question": row["question"],
        "mc1_targets": as_targets(row["mc1_targets"]),
        "mc2_targets": as_targets(row["mc2_targets"]),
    },
    "bbh/bbh.jsonl.gz": lambda row: {"input": row["input"], "target": row["target"]},
    "drop/drop_v0_dev.jsonl.gz": as_drop,
    "ifeval/input_data.jsonl": as_ifeval,
    "alpaca_eval/reference_gpt4_1106_preview.jsonl": lambda row: {
        **{name: row[name] for name in ("instruction", "output", "dataset")},
        "generator": "gpt4_1106_preview",
    },
}
PART_OF = {"bbh/bbh.jsonl.gz": "task", "math/test.jsonl.gz": "type"}
OURS_ONLY = {"math/test.jsonl.gz": {"idx"}, "popqa/popqa_subset.jsonl": {"part"}}


def tab_separated(rows) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, POPQA_COLUMNS, delimiter="\t", lineterminator="\n", restval="x")
    writer.writeheader()
    for row in rows:
        own = {name: row[name] for name in ("id", "subj", "prop", "obj", "s_pop", "o_pop", "question")}
        writer.writerow({**own, "possible_answers": json.dumps(row["possible_answers"])})
    return file.getvalue().encode()


def publish(cache: Path, data: Path, relative: str) -> list[dict]:
    """Put the hub's form of a data file into the cache; the rows that it must become."""
    source, rows = HUB[relative], read_data(data, relative)
    if relative.startswith("popqa"):
        rows = [row for row in rows if row["part"] == "hipporag"]
    parts = list(dict.fromkeys(row[PART_OF[relative]] for row in rows)) if relative in PART_OF else [None]
    convert = AS_ON_THE_HUB.get(relative, lambda row: row)
    for part, file in zip(parts, source.files, strict=True):
        own = [row for row in rows if part is None or row[PART_OF[relative]] == part]
        if source.convert is None:
            content: object = (data / relative).read_bytes()
        else:
            content = tab_separated(own) if file.endswith(".tsv") else [convert(row) for row in own]
        hub_cache.put(cache, source.id, source.revision, file, content)
    left_out = OURS_ONLY.get(relative, set())
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


@pytest.mark.parametrize("relative", HUB)
def test_the_hubs_rows_are_those_of_the_data_folder(relative, cache, posttrain_data, monkeypatch):
    """Same rows, same order; the source and the hashes are known afterwards, and nothing is fetched again."""
    rows = publish(cache, posttrain_data, relative)
    if relative.startswith("popqa"):
        monkeypatch.setattr(hub, "HUB", {relative: replace(HUB[relative], num_rows=1000)})
    said: list[str] = []
    folder = open_data("hub", [needing(relative)], said.append)
    assert read_data(folder, relative) == rows
    source = HUB[relative]
    snapshot = cache / f"datasets--{source.id.replace('/', '--')}" / "snapshots" / source.revision
    assert data_source(folder, relative) == {
        "id": source.id,
        "revision": source.revision,
        "files": {file: hashlib.sha256((snapshot / file).read_bytes()).hexdigest() for file in source.files},
    }
    assert len(said) == 1 and said[0].startswith(f"{relative}: {source.id} at {source.revision}, ")
    before = data_sha256(folder, relative)
    for file in source.files:
        (snapshot / file).unlink()
    again = open_data(None, [needing(relative)], silent)
    assert (again, data_sha256(again, relative)) == (folder, before)


def test_tasks_cannot_tell_the_hub_from_a_data_folder(cache, posttrain_data):
    """Documents and first prompts are equal; exemplars come from the folder that is named beside the hub."""
    tasks = [open_task(name) for name in ("gsm8k", "mmlu_5shot", "truthfulqa", "bbh", "drop", "ifeval")]
    tasks += [open_task("humaneval"), open_task("humanevalplus")]
    for relative in {file for task in tasks for file in task.needs.files} & HUB.keys():
        publish(cache, posttrain_data, relative)
    folder = open_data(f"hub:{posttrain_data}", tasks, silent)
    ready = check_tasks(tasks, folder, limit=None, judge=None)
    assert {file for one in ready for file in one.data_sources} == {
        file for task in tasks for file in task.needs.files if file in HUB
    }
    for one in ready:
        documents = one.task.documents(posttrain_data)
        assert list(one.documents) == documents
        assert one.task.prompt(documents[0], folder) == one.task.prompt(documents[0], posttrain_data)
        assert set(one.data_sha256) == set(one.task.needs.files)


def test_every_file_of_every_task_is_in_the_table_or_said_to_be_absent():
    needed = {file for name in TASKS for file in open_task(name).needs.files}
    assert needed == {*HUB, *ABSENT}
    assert not {*HUB} & {*ABSENT} and {*EXEMPLARS} <= {*ABSENT}


def test_commits_are_whole_and_subtasks_are_read_once():
    for source in HUB.values():
        assert len(source.revision) == 40 and set(source.revision) <= set("0123456789abcdef")
        assert len(set(source.files)) == len(source.files)
    assert len(HUB["bbh/bbh.jsonl.gz"].files) == 27
    assert len(HUB["math/test.jsonl.gz"].files) == 7


def test_rows_by_hand():
    """The shapes that the data folder's own rows do not bring about."""
    row = {
        "passage": "P",
        "question": "Q?",
        "answer": {"number": "", "spans": ["Tony Romo", "Shaun Hill"], "date": DATE},
        "validated_answers": {
            "number": ["7", "", "", ""],
            "spans": [[], ["Tony Romo", "Shaun Hill"], [], ["x"]],
            "date": [DATE, DATE, {"day": "12", "month": "May", "year": "1915"}, DATE],
        },
    }
    assert drop(row, PLACE) == {
        "context": "Passage: P\nQuestion: Q?\nAnswer:",
        "completion": " Tony Romo and Shaun Hill",
        "ref_text": "Tony Romo and Shaun Hill|7|12 May 1915|x",
    }
    answer = {"question": "?", "subject": "s", "choices": ["1", "2", "3", "4"], "answer": 3}
    assert mmlu(answer, PLACE)["answer"] == "D"
    for wrong in (4, -1, "D", True, None):
        with pytest.raises(ValueError, match="the place of no choice"):
            mmlu({**answer, "answer": wrong}, PLACE)
    twice = {"choices": ["a", "a"], "labels": [1, 0]}
    with pytest.raises(ValueError, match="comes twice"):
        truthfulqa({"question": "?", "mc1_targets": twice, "mc2_targets": twice}, PLACE)
    arguments = [{"num_words": 3, "relation": None, "keywords": []}, {}]
    kept = ifeval({"key": 1, "prompt": "", "instruction_id_list": [], "kwargs": arguments}, PLACE)
    assert kept["kwargs"] == [{"num_words": 3, "keywords": []}, {}]
    texts = dict.fromkeys(POPQA_COLUMNS, "1") | {"possible_answers": '["a \\"b\\"", "ü"]'}
    assert popqa(texts, PLACE)["possible_answers"] == ['a "b"', "ü"]
    assert popqa(texts, PLACE)["id"] == 1


def small(monkeypatch, cache, content, **changes):
    """One data set of two rows, under the name that gsm8k has in the data folder."""
    name, file = "gsm8k/test.jsonl", "data/test.parquet"
    own = {"id": "o/n", "revision": "c" * 40, "files": (file,), "num_rows": 2}
    monkeypatch.setattr(hub, "HUB", {name: replace(HUB[name], **own | changes)})
    if content is not None:
        hub_cache.put(cache, "o/n", "c" * 40, file, content)
    return needing(name)


TWO = [{"question": "1?", "answer": "#### 1"}, {"question": "2?", "answer": "#### 2"}]
REFUSALS = {
    "other columns": (
        [{"q": "1?", "a": "1"}] * 2,
        "the columns question, answer are expected, and there are q, a",
    ),
    "fewer rows": (TWO[:1], "has 1 rows, and the benchmark has 2"),
    "more rows": (TWO + TWO, "has 4 rows, and the benchmark has 2"),
    "no parquet": (b"PAR1 not really", "data/test.parquet is not a whole Parquet file"),
    "not fetched": (None, "is not in the hub's cache, and the hub could not give it"),
}


@pytest.mark.parametrize(("content", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_not_the_published_data_is_refused(content, says, cache, monkeypatch):
    task = small(monkeypatch, cache, content)
    with pytest.raises(DataError) as refusal:
        open_data("hub", [task], silent)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(cache.parent.glob("own/**/*.jsonl"))


def test_a_row_that_cannot_be_turned_is_named(cache, monkeypatch):
    rows = [{"question": "?", "subject": "s", "choices": ["a"] * 4, "answer": n} for n in (0, 4)]
    task = small(monkeypatch, cache, rows, columns=("answer",), convert=mmlu)
    with pytest.raises(DataError, match=r"o/n/data/test.parquet row 2 is not as documented .*`answer` is 4"):
        open_data("hub", [task], silent)


def test_the_newest_commit_is_resolved_and_recorded(cache, monkeypatch):
    """When the data set moves on, the next run reads the new commit, and both stay told apart."""
    task = small(monkeypatch, cache, None, revision=None)
    (name,) = task.needs.files
    hub_cache.put(cache, "o/n", "a" * 40, "data/test.parquet", TWO, newest=True)
    first = open_data("hub", [task], silent)
    assert data_source(first, name)["revision"] == "a" * 40
    hub_cache.put(cache, "o/n", "b" * 40, "data/test.parquet", TWO[::-1], newest=True)
    second = open_data("hub", [task], silent)
    assert data_source(second, name)["revision"] == "b" * 40
    assert read_data(first, name) == TWO and read_data(second, name) == TWO[::-1]


def test_a_damaged_or_outdated_cache_is_made_again(cache, monkeypatch):
    task = small(monkeypatch, cache, TWO)
    (name,) = task.needs.files
    folder = open_data("hub", [task], silent)
    (folder / name).write_text((folder / name).read_text().replace("#### 1", "#### 7"))
    assert data_source(folder, name) is None  # edited rows are nobody's
    assert read_data(open_data("hub", [task], silent), name) == TWO
    assert data_source(folder, name) is not None
    monkeypatch.setattr(hub, "CODE_VERSION", hub.CODE_VERSION + 1)
    hub_cache.put(cache, "o/n", "c" * 40, "data/test.parquet", TWO[::-1])
    assert read_data(open_data("hub", [task], silent), name) == TWO[::-1]


def test_nothing_is_mixed_in_silence(cache, tmp_path, monkeypatch):
    """A folder is a folder, though the hub has what it lacks; beside the hub it gives only what the hub has not."""
    task = small(monkeypatch, cache, TWO)
    folder = tmp_path / "data"
    folder.mkdir()
    assert open_data(str(folder), [task], silent) == folder
    with pytest.raises(DataError, match="is not in the data folder"):
        check_tasks([task], open_data(str(folder), [task], silent), limit=None, judge=None)
    (folder / "gsm8k").mkdir()
    (folder / "gsm8k/test.jsonl").write_text('{"question": "mine", "answer": "#### 0"}\n')
    assert read_data(open_data(f"hub:{folder}", [task], silent), "gsm8k/test.jsonl") == TWO
    monkeypatch.chdir(tmp_path)
    assert open_data("./hub", [task], silent) == Path("hub")


def test_what_is_on_no_hub_is_said_before_anything_is_fetched(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    tasks = [open_task(name) for name in ("mmlu", "gsm8k", "math", "xstest")]
    with pytest.raises(DataError) as refusal:
        open_data("hub", tasks, silent)
    says = str(refusal.value)
    assert says.startswith("gsm8k needs fewshot/gsm8k_cot8.json, and the published harness keeps")
    assert "--data hub:FOLDER" in says and says.endswith("(and 2 more tasks lack data)")
    with pytest.raises(DataError, match="the hub's allenai/wildguardmix is gated"):
        open_data("hub", [open_task("wildguardtest")], silent)
    with pytest.raises(DataError, match=r"fewshot/gsm8k_cot8\.json is not in the data folder"):
        (tmp_path / "empty").mkdir()
        open_data(f"hub:{tmp_path / 'empty'}", tasks, silent)


def test_scores_need_no_exemplars(cache, posttrain_data):
    publish(cache, posttrain_data, "gsm8k/test.jsonl")
    task = open_task("gsm8k")
    folder = open_data("hub", [task], silent, prompts=False)
    assert len(task.documents(folder)) == 1319
