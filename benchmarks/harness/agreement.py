"""Two harnesses' verdicts side by side: how many are the same, and one sentence for each that is not.

An item is what a worker stored of a document: `prompt_ids`, `ids` and `output`, and under each rule's name what
it `read` in the output and whether that is `correct`. `exact_match` is the published rule, the filters lm-eval's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness.parting import Parting, Rounding

RULE = "exact_match"
FILTERS = ("strict-match", "flexible-extract")
_TAKES = {
    "strict-match": "the number after the first `the answer is`",
    "flexible-extract": "the last run of digits, `$`, `.` and `,` with its sign",
}
_INVALID = "[invalid]"

Items = Mapping[str, Mapping[str, Any]]
Words = Mapping[int, str]
"""The texts of the token ids at which outputs part."""


def same_prompts(ours: Items, theirs: Items) -> dict[str, int]:
    """How many documents both sides read as the same token ids, and how many tokens that were."""
    same = [name for name, item in ours.items() if item["prompt_ids"] == theirs[name]["prompt_ids"]]
    return {
        "documents": len(ours),
        "identical": len(same),
        "tokens": sum(len(ours[name]["prompt_ids"]) for name in same),
    }


def same_rules(ours: Items, theirs: Items) -> dict[str, Any]:
    """The published rule against each filter on the same texts."""
    found: dict[str, Any] = {
        "outputs": len(ours),
        "correct": _correct(ours, (RULE,)) | _correct(theirs, FILTERS),
    }
    for name in FILTERS:
        differ = [id for id in ours if ours[id][RULE]["correct"] != theirs[id][name]["correct"]]
        found[name] = {
            "same_verdict": len(ours) - len(differ),
            "differences": {id: why_rules(name, ours[id][RULE], theirs[id][name]) for id in differ},
        }
    return found


def same_verdicts(
    ours: Items, theirs: Items, partings: Mapping[str, Parting], words: Words
) -> dict[str, Any]:
    """The published rule on our outputs against each filter on theirs."""
    correct, why = _correct(ours, (RULE,)) | _correct(theirs, FILTERS), _why_outputs(partings, words)
    found: dict[str, Any] = {"documents": len(ours), "correct": correct}
    for name in FILTERS:
        lines = {}
        for id, item in ours.items():
            mine, other = item[RULE], theirs[id][name]
            if mine["correct"] != other["correct"]:
                reason = why.get(id) or why_rules(name, mine, other)
                lines[id] = f"{_verdict('posttrain', mine)}; {_verdict(name, other)}: {reason}"
        found[name] = {"same_verdict": len(ours) - len(lines), "differences": lines}
    return found


def same_outputs(ours: Items, theirs: Items, partings: Mapping[str, Parting], words: Words) -> dict[str, Any]:
    """Which outputs are the same text, and where and why the others part."""
    rounding, why = Rounding.of(partings.values()), _why_outputs(partings, words)
    differ = [id for id in ours if ours[id]["output"] != theirs[id]["output"]]
    return {
        "documents": len(ours),
        "identical": len(ours) - len(differ),
        "near_ties": sum(rounding.explains(parting) for parting in partings.values()) if rounding else 0,
        "rounding": rounding and asdict(rounding),
        "differences": {id: why.get(id) or _unparted(ours[id], theirs[id]) for id in differ},
    }


def why_rules(filter: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Why the published rule and a filter of lm-eval judge one text differently."""
    last = f"the published rule takes the last number, {ours['read']!r}"
    if theirs["read"] == _INVALID:
        return f"{filter} takes {_TAKES[filter]} and there is none; {last}"
    return f"{filter} takes {_TAKES[filter]}, {theirs['read']!r}; {last}"


def why_outputs(parting: Parting, rounding: Rounding, words: Words) -> str:
    """Where two outputs part and whether rounding explains it."""
    verdict = "a near tie" if rounding.explains(parting) else "NOT a near tie"
    ours, theirs = words[parting.ours], words[parting.theirs]
    return (
        f"the outputs part after {parting.position} equal tokens, at {ours!r} (posttrain) against {theirs!r} "
        f"(lm-eval); in float32 the logit of {ours!r} is {abs(parting.gap):.3f} "
        f"{'above' if parting.gap > 0 else 'below'} that of {theirs!r}; bfloat16 counts logits of this size in "
        f"steps of {parting.step:g} and moves the difference of the top two by up to "
        f"{rounding.largest_move:.2f} in these outputs: {verdict}"
    )


def _why_outputs(partings: Mapping[str, Parting], words: Words) -> dict[str, str]:
    rounding = Rounding.of(partings.values())
    return {id: why_outputs(parting, rounding, words) for id, parting in partings.items()} if rounding else {}


def _unparted(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return f"the same tokens, but {len(ours['ids'])} of them here and {len(theirs['ids'])} at lm-eval"


def _verdict(name: str, found: Mapping[str, Any]) -> str:
    return f"{name} reads {found['read']!r}, {'correct' if found['correct'] else 'wrong'}"


def _correct(items: Items, rules: Sequence[str]) -> dict[str, int]:
    return {rule: sum(item[rule]["correct"] for item in items.values()) for rule in rules}
