"""GSM8K, eight-shot, beside lm-evaluation-harness: wall-clock of the same evaluation, and every verdict compared."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.agreement import same_outputs, same_prompts, same_rules, same_verdicts
from harness.device import precision
from harness.parting import Logits, Parting, common_prefix, part
from harness.race import PEERS, Contestant, answer, audition, race, ratio, write
from harness.workload import data_folder, model_folder

from posttrain.evaluation.datafile import find_data, read_data
from posttrain.evaluation.registry import open_task
from posttrain.evaluation.selection import sample_evenly
from posttrain.evaluation.tasks.gsm8k import EXEMPLARS, PREFIX, TEST
from posttrain.model.load import load_tokenizer

DEFINITION = "gsm8k/gsm8k-cot.yaml"
"""The harness's own task, below its `tasks` folder."""
CHANGED = {
    "dataset_path, dataset_name, dataset_kwargs": "the same rows from a local file",
    "doc_to_text, gen_prefix": "the published preset's `Question:` in the user's turn and `Answer:` in the assistant's",
    "fewshot_config": "the same eight exemplars in the preset's wording, `So the answer is N.`",
    "filter_list": "`The answer is` in strict-match's pattern may begin with a small letter, as that wording does",
    "generation_kwargs": "stops and token budget of the preset's run; greedy as before",
}
"""What of it differs here, and why; all else, filters and metric included, is as installed."""
LEFT_OUT = {
    "batch size auto": "it starts at 64 rows of the whole context, logits included, and was killed for memory at "
    "14 GiB on a machine of 23"
}
"""What was not tried for the harness, and why."""
PACE = {"GOMP_SPINCOUNT": "10000"}
"""What `posttrain` sets for itself: idle threads do not spin for long."""
KEEP = {"MALLOC_MMAP_THRESHOLD_": "2147483647", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
"""What ours does for itself: large freed blocks stay with the process."""


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides do: documents by their places, and how they are answered."""

    model: str
    dtype: str
    threads: int
    new_tokens: int
    samples: tuple[int, ...]

    def ours(self, folder: Path) -> Contestant:
        """`posttrain eval`."""
        settings = asdict(self) | {"data": str(data_folder()), "out": str(folder / "posttrain.json")}
        return Contestant("posttrain", "evaluate_posttrain.py", settings, "as shipped", environment=PACE)

    def theirs(self, folder: Path, batch: str, attention: str) -> Contestant:
        """lm-evaluation-harness in the settings that were tried for it."""
        name, place = f"lm-eval {batch} {attention}", folder / f"{batch}-{attention}"
        place.mkdir(exist_ok=True)
        tried = {"batch_size": batch, "attention": attention}
        settings = asdict(self) | tried | self.task(place) | {"out": str(place / "items.json")}
        note = f"hf backend, batch size {batch}, {attention} attention, pages kept as ours"
        return Contestant(name, "evaluate_lm_eval.py", settings, note, PEERS, KEEP)

    def task(self, folder: Path) -> dict[str, Any]:
        """The harness's task on local data, reading what the published preset reads."""
        data = data_folder()
        decoding = open_task("gsm8k").decoding
        assert decoding is not None
        shots = [
            {"question": row["question"].rstrip(), "target": row["answer"].strip()}
            for row in read_data(data, EXEMPLARS)[:8]
        ]
        changes = {
            "task": "gsm8k_cot_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(find_data(data, TEST))}},
            "doc_to_text": "Question: {{question.rstrip()}}",
            "gen_prefix": PREFIX,
            "fewshot_config": {"sampler": "first_n", "samples": shots},
            "generation_kwargs": {
                "do_sample": False,
                "until": list(decoding.stop),
                "max_gen_toks": self.new_tokens,
            },
        }
        return {
            "folder": str(folder),
            "definition": DEFINITION,
            "changes": changes,
            "reworded": {"The answer is": "[Tt]he answer is"},
            "context_tokens": decoding.context_tokens,
        }


def compare(work: Work, folder: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Prompts, outputs and verdicts of both, and both rules on the same texts."""
    partings = part_outputs(work, ours, theirs)
    tokenizer = load_tokenizer(Path(work.model))
    words = {id: tokenizer.decode([id]) for one in partings.values() for id in (one.ours, one.theirs)}
    texts = {
        "posttrain's outputs": {id: item["output"] for id, item in ours.items()},
        "lm-eval's outputs": {id: item["output"] for id, item in theirs.items()},
        "right answers": right_answers(work),
    }
    judged = their_rules(work, folder, texts)
    return {
        "prompts": same_prompts(ours, theirs),
        "outputs": same_outputs(ours, theirs, partings, words),
        "verdicts": same_verdicts(ours, theirs, partings, words),
        "rules": {name: same_rules(our_rules(found), judged[name]) for name, found in texts.items()},
    }


def part_outputs(work: Work, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Parting]:
    """Where the outputs of each document part, for those that do."""
    prompts = {id: item["prompt_ids"] for id, item in ours.items()}
    logits = Logits(Path(work.model), common_prefix(list(prompts.values())))
    found = {id: part(logits, prompts[id], ours[id]["ids"], theirs[id]["ids"]) for id in prompts}
    return {id: parting for id, parting in found.items() if parting is not None}


def right_answers(work: Work) -> dict[str, str]:
    """An output in the exemplars' wording that is right, by document."""
    documents = open_task("gsm8k").documents(data_folder())
    return {
        documents[place].id: f" So the answer is {documents[place].fields['gold']}." for place in work.samples
    }


def our_rules(texts: dict[str, str]) -> dict[str, Any]:
    """The published rule on `texts`, as `posttrain score` applies it."""
    task = open_task("gsm8k")
    rows = [(d, (texts[d.id],)) for d in task.documents(data_folder()) if d.id in texts]
    scores = task.score(rows)
    return {
        document.id: {"exact_match": {"read": score.extracted, "correct": score.metrics["exact_match"] == 1}}
        for (document, _), score in zip(rows, scores, strict=True)
    }


def their_rules(work: Work, folder: Path, texts: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The harness's filters and metric on `texts`, in its own process."""
    outputs = {name: list(found.values()) for name, found in texts.items()}
    out = folder / "rules.json"
    settings = work.task(folder) | {"samples": work.samples, "outputs": outputs, "out": str(out)}
    scorer = Contestant("lm-eval rules", "score_lm_eval.py", settings, "", PEERS)
    process = scorer.start()
    answer(process, scorer.name)
    process.communicate("run\n")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def measure(work: Work, folder: Path, settings: list[tuple[str, str]], runs: int) -> dict[str, Any]:
    """The harness's (batch size, attention) `settings` once each, the fastest against ours, and all verdicts."""
    ours, candidates = work.ours(folder), [work.theirs(folder, *setting) for setting in settings]
    best, tried = audition(candidates) if len(candidates) > 1 else (candidates[0], {})
    # both warmed up on two documents before they were ready
    found = race([ours, *([best] if best else [])], runs=runs, warm_ups=0)
    agreement = None
    if best and "median" in found[best.name]:
        answers = [json.loads(Path(one.settings["out"]).read_text("utf-8")) for one in (ours, best)]
        agreement = compare(work, folder, *answers)
    kept = ("dtype", "threads", "new_tokens", "batch_size", "attention", "context_tokens")
    for contestant in found.values():
        contestant["settings"] = {k: v for k, v in contestant["settings"].items() if k in kept}
    times = ratio(found, ours.name, best.name, "seconds", less_is_better=True) if best else None
    return {
        "documents": len(work.samples),
        "task": {"definition": DEFINITION, "changed": CHANGED},
        **found,
        "tried for lm-eval": tried,
        "left out for lm-eval": LEFT_OUT,
        "ratios": {"posttrain/lm-eval": times},
        "agreement": agreement,
    }


def main() -> None:
    """Measure, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=64, help="documents")
    parser.add_argument("--new-tokens", type=int, default=256, help="at most, for each document")
    parser.add_argument("--dtype", default=precision("cpu"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-sizes", default="16", help="lm-eval's; each of several is tried once first")
    parser.add_argument("--attentions", default="eager", help="lm-eval's, likewise: eager,sdpa")
    parser.add_argument("--out", default="lm_eval")
    args = parser.parse_args()
    documents = open_task("gsm8k").documents(data_folder())
    chosen = {document.id for document in sample_evenly(documents, args.limit)}
    samples = tuple(place for place, document in enumerate(documents) if document.id in chosen)
    work = Work(model_folder(), args.dtype, args.threads, args.new_tokens, samples)
    with tempfile.TemporaryDirectory() as folder:
        settings = list(itertools.product(args.batch_sizes.split(","), args.attentions.split(",")))
        row = measure(work, Path(folder), settings, args.runs)
    print(f"  {row['ratios']}")
    write(args.out, {"gsm8k": row})


if __name__ == "__main__":
    main()
