"""Which hub data set holds each file that a benchmark reads, at which commit, and which files no hub has.

The ids are those that the published evaluation loads; the commits are the ones that public evaluation code pins.
Left out: gated copies, copies without what the benchmark needs, and files that are on no hub (`ABSENT`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from posttrain.evaluation import hub_rows
from posttrain.evaluation.hub_rows import Convert
from posttrain.evaluation.tasks.bbh_answer import ANSWERS


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set's files, which together hold one file of the data folder."""

    id: str
    revision: str | None
    """A commit; None is the newest, resolved and recorded when it is read."""
    files: tuple[str, ...]
    """Paths in the data set's repository, in the order of the rows."""
    num_rows: int
    """Of all files together; another number is another benchmark."""
    columns: tuple[str, ...]
    """Those that are read."""
    convert: Convert | None
    """From a row of the hub's to one of the data folder's; None where the file itself is the same."""


_PROGRAMS = ("task_id", "prompt", "canonical_solution", "entry_point", "test")
_MMLU = ("question", "subject", "choices", "answer")
_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def _one_file(folder: str, split: str) -> str:
    return f"{folder}/{split}-00000-of-00001.parquet"


HUB: Mapping[str, HubSource] = MappingProxyType(
    {
        "gsm8k/test.jsonl": HubSource(
            "openai/gsm8k",
            "740312add88f781978c0658806c59bc2815b9866",
            (_one_file("main", "test"),),
            1_319,
            ("question", "answer"),
            hub_rows.columns("question", "answer"),
        ),
        "mmlu/test.jsonl.gz": HubSource(
            "cais/mmlu",
            "c30699e8356da336a370243923dbaf21066bb9fe",
            (_one_file("all", "test"),),
            14_042,
            _MMLU,
            hub_rows.mmlu,
        ),
        "mmlu/val.jsonl.gz": HubSource(
            "cais/mmlu",
            "c30699e8356da336a370243923dbaf21066bb9fe",
            (_one_file("all", "validation"),),
            1_531,
            _MMLU,
            hub_rows.mmlu,
        ),
        "popqa/popqa_subset.jsonl": HubSource(
            "akariasai/PopQA",
            "098765c79ea10a2cb19c828324e33281b8336ec0",
            ("test.tsv",),
            14_267,
            ("id", "question", "possible_answers", "subj", "prop", "obj", "s_pop", "o_pop"),
            hub_rows.popqa,
        ),
        "truthfulqa/v0/mc_task.json": HubSource(
            "truthfulqa/truthful_qa",
            "741b8276f2d1982aa3d5b832d3ee81ed3b896490",
            (_one_file("multiple_choice", "validation"),),
            817,
            ("question", "mc1_targets", "mc2_targets"),
            hub_rows.truthfulqa,
        ),
        "bbh/bbh.jsonl.gz": HubSource(
            "lukaemon/bbh",
            "982bb89fd79532a8ac676a61fc42eb1aeec63f99",
            tuple(_one_file(subtask, "test") for subtask in sorted(ANSWERS)),
            6_511,
            ("input", "target"),
            hub_rows.bbh,
        ),
        "drop/drop_v0_dev.jsonl.gz": HubSource(
            "EleutherAI/drop",
            "619386fc7ffe6dace3cc6d3483c69b164ebf6bf3",
            ("drop_validation.parquet",),
            9_536,
            ("passage", "question", "answer", "validated_answers"),
            hub_rows.drop,
        ),
        "math/test.jsonl.gz": HubSource(
            "EleutherAI/hendrycks_math",
            "21a5633873b6a120296cce3e2df9d5550074f4a3",
            tuple(_one_file(subject, "test") for subject in _MATH_SUBJECTS),
            5_000,
            ("problem", "level", "type", "solution"),
            hub_rows.columns("problem", "level", "type", "solution"),
        ),
        "humaneval/HumanEval.jsonl.gz": HubSource(
            "openai/openai_humaneval",
            "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
            (_one_file("openai_humaneval", "test"),),
            164,
            _PROGRAMS,
            hub_rows.columns(*_PROGRAMS),
        ),
        "humaneval_plus/HumanEvalPlus-OriginFmt.jsonl.gz": HubSource(
            "evalplus/humanevalplus",
            "d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
            ("test.jsonl",),
            164,
            _PROGRAMS,
            hub_rows.columns(*_PROGRAMS),
        ),
        "ifeval/input_data.jsonl": HubSource(
            "google/IFEval",
            "966cd89545d6b6acfd7638bc708b98261ca58e84",
            ("ifeval_input_data.jsonl",),
            541,
            ("key", "prompt", "instruction_id_list", "kwargs"),
            hub_rows.ifeval,
        ),
        "alpaca_eval/reference_gpt4_1106_preview.jsonl": HubSource(
            "tatsu-lab/alpaca_eval",
            "2edc6fad8be6b14ea7230aabfd08188da6b8b814",
            ("alpaca_eval_gpt4_baseline.json",),
            805,
            ("instruction", "output", "dataset"),
            hub_rows.alpaca_eval,
        ),
        "alpaca_eval/df_gamed.csv": HubSource(
            "tatsu-lab/alpaca_eval",
            "2edc6fad8be6b14ea7230aabfd08188da6b8b814",
            ("df_gamed.csv",),
            1_610,
            ("preference", "index", "std_delta_len", "instruction_difficulty"),
            None,
        ),
    }
)
"""By path below the data folder, as tasks name it."""

_IN_CODE = "the published harness keeps these exemplars in its code, so they are on no hub"
EXEMPLARS: Mapping[str, str] = MappingProxyType(
    {
        "fewshot/gsm8k_cot8.json": _IN_CODE,
        "fewshot/math_minerva4.json": _IN_CODE,
        "fewshot/popqa16.json": _IN_CODE,
        "fewshot/drop10.json": _IN_CODE,
        "fewshot/truthfulqa6.json": _IN_CODE,
        "bbh/cot_prompts.json": "these exemplars are in the repository of the paper and on no hub",
    }
)
"""What prompts need besides and scores do not, and why it cannot come from the hub."""
ABSENT: Mapping[str, str] = MappingProxyType(
    {
        **EXEMPLARS,
        "harmbench/harmbench_behaviors_text_all.csv": "the hub's copies are gated or lack the behaviours' ids",
        "xstest/xstest_prompts.csv": "the hub's copies are gated or lack the prompts' ids",
        "do_anything_now/do_anything_now_300.jsonl": "the 300 prompts of the published evaluation are on no hub",
        "trustllm/jailbreaktrigger_400.jsonl": "the 400 prompts of the published evaluation are on no hub",
        "wildguardtest/wildguardtest.jsonl": "the hub's allenai/wildguardmix is gated",
        "wildjailbreak/harmful.jsonl": "the hub's allenai/wildjailbreak is gated",
        "wildjailbreak/benign.jsonl": "the hub's allenai/wildjailbreak is gated",
    }
)
"""Everything that tasks read besides, and why it cannot come from the hub."""
