"""The quickstart's own tasks: determinism, splits without overlap, balance, and checks that mean something."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import re
from typing import Any, Literal

import pytest

from posttrain.data.writing import count_available, kind_pools, writing_problems
from posttrain.data.writing_constraints import PAIRS, RULES
from posttrain.data.writing_sums import operand_pairs
from posttrain.data.writing_topics import TOPICS
from posttrain.errors import DataError
from posttrain.records import Problem
from posttrain.rewards.ifeval import ifeval

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
KINDS = len(RULES) + 2 + 4


def fingerprint(problems: list[Problem]) -> str:
    rows = [[p.id, p.messages[0].content, p.ground_truth, p.verifier, p.source] for p in problems]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("split", "golden"), [("train", "0c22b750c4bf0cd0"), ("heldout", "3de2d1024d8cb882")])
def test_the_same_arguments_give_the_same_problems_everywhere(split: Split, golden: str) -> None:
    """A changed golden value means that published quickstart numbers are no longer about these tasks."""
    problems = writing_problems(split, num=300, seed=1)
    assert problems == writing_problems(split, num=300, seed=1)
    assert fingerprint(problems) == golden


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    assert writing_problems("train", num=100, seed=2) == writing_problems("train", num=300, seed=2)[:100]


def test_seeds_differ() -> None:
    one, two = (writing_problems("train", num=100, seed=seed) for seed in (1, 2))
    assert sum(a.messages == b.messages for a, b in zip(one, two, strict=True)) < 5


def test_ids_and_shape() -> None:
    problems = writing_problems("heldout", num=40, seed=1)
    assert problems[12].id == "writing/heldout/000012"
    assert len({problem.id for problem in problems}) == 40
    assert all([message.role for message in problem.messages] == ["user"] for problem in problems)
    json.dumps([problem.ground_truth for problem in problems])


@pytest.mark.parametrize("split", SPLITS)
def test_kinds_take_turns(split: Split) -> None:
    problems = writing_problems(split, num=2 * KINDS + 5, seed=1)
    counts = collections.Counter(problem.source for problem in problems)
    assert len(counts) == KINDS == 19
    assert sorted(counts.values()) == [2] * (KINDS - 5) + [3] * 5
    assert [p.source for p in problems[:KINDS]] == [p.source for p in problems[KINDS : 2 * KINDS]]


@pytest.mark.parametrize("split", SPLITS)
def test_no_problem_comes_twice_even_when_all_are_taken(split: Split) -> None:
    available = count_available(kind_pools(split))
    problems = writing_problems(split, num=available, seed=3)
    assert len({problem.messages[0].content for problem in problems}) == available
    with pytest.raises(DataError, match=f"0 to {available} {split} problems, not {available + 1}"):
        writing_problems(split, num=available + 1, seed=3)


def test_the_smallest_kind_sets_how_many_there_are() -> None:
    """Held out: 6 of the 36 pairs of one-digit operands, 3 forms, 5 wordings: 90, in place 13 of 19."""
    assert len(operand_pairs("heldout", 1)) == 6
    assert count_available(kind_pools("heldout")) == 90 * 19 + 13


@pytest.mark.parametrize(("split", "num"), [("test", 5), ("train", -1)])
def test_unusable_arguments(split: Any, num: int) -> None:
    with pytest.raises(DataError):
        writing_problems(split, num=num, seed=1)


@pytest.mark.parametrize("split", SPLITS)
def test_every_request_of_a_pool_is_different(split: Split) -> None:
    for kind in ("writing/lowercase", "writing/json", "writing/first_word", "sums/one_digit"):
        pool = kind_pools(split)[kind]
        prompts = {pool[index][0] for index in range(len(pool))}
        assert len(prompts) == len(pool), kind
        with pytest.raises(IndexError):
            pool[len(pool)]


# The splits


def test_splits_share_no_topic_no_pair_and_no_sum() -> None:
    train, heldout = (TOPICS[split] for split in SPLITS)
    assert not {topic.name for topic in train} & {topic.name for topic in heldout}
    assert len({topic.name for topic in train}) == len(train) >= 50
    assert len({topic.name for topic in heldout}) == len(heldout) >= 20
    pairs = [{frozenset(pair) for pair in PAIRS[split]} for split in SPLITS]
    assert not pairs[0] & pairs[1]
    for digits, how_many in ((1, 36), (2, 90 * 89 // 2)):
        operands = [set(operand_pairs(split, digits)) for split in SPLITS]
        assert not operands[0] & operands[1]
        assert len(operands[0] | operands[1]) == how_many


def test_no_held_out_topic_is_named_in_training() -> None:
    train = " ".join(p.messages[0].content for p in writing_problems("train", num=3000, seed=1))
    for topic in TOPICS["heldout"]:
        assert f"about {topic.name}" not in train
        assert f"Describe {topic.name}" not in train


def test_single_kinds_are_in_both_splits() -> None:
    singles = [{kind for kind in kind_pools(split) if "+" not in kind} for split in SPLITS]
    assert singles[0] == singles[1]
    assert len(singles[0]) == len(RULES) + 2


# The checks

TOPIC = "It is a nice thing that many people like and use each day."


def texts(kind: str, problem: Problem) -> tuple[str, list[str]]:
    """A reply that a person would write for the problem, and replies that miss what the kind asks for."""
    wanted = dict(
        zip(problem.ground_truth["instruction_id_list"], problem.ground_truth["kwargs"], strict=True)
    )

    def of(name: str) -> Any:
        return next(kwargs for instruction, kwargs in wanted.items() if instruction.endswith(name))

    if kind == "lowercase":
        return TOPIC.lower(), [TOPIC, "nice day"]
    if kind == "uppercase":
        return TOPIC.upper(), [TOPIC, "NICE DAY"]
    if kind == "no_commas":
        return TOPIC, [TOPIC.replace(" and", ", and"), "Nice"]
    if kind == "quotation":
        return f'"{TOPIC}"', [TOPIC, f'"{TOPIC}', '""', f"“{TOPIC}”"]
    if kind == "ending":
        phrase = of("end_checker")["end_phrase"]
        return f"{TOPIC} {phrase}", [TOPIC, phrase, f"{phrase} {TOPIC}"]
    if kind == "keywords":
        one, other = of("existence")["keywords"]
        return f"{TOPIC} The {one} and the {other}.", [TOPIC, f"{TOPIC} {one}", f"{one} {other}"]
    if kind == "title":
        return f"<<A Nice Thing>>\n{TOPIC}", [TOPIC, f"<<>>\n{TOPIC}", f"**A Nice Thing**\n{TOPIC}", "<<Hi>>"]
    if kind == "forbidden":
        one, other = of("forbidden_words")["forbidden_words"]
        return TOPIC, [f"{TOPIC} {one}", f"{TOPIC} {other.upper()}!", "No"]
    if kind == "bullets":
        number = of("number_bullet_lists")["num_bullets"]
        lines = ["* People like it."] * (number + 1)
        return "\n".join(lines[1:]), [
            "\n".join(lines),
            "\n".join(lines[2:]) + " Many of them.",
            "*\n" * number,
        ]
    if kind == "short":
        return "Many people like it a lot.", [TOPIC + " " + TOPIC, "Nice."]
    if kind == "json":
        one, other = (re.sub(r'[":]', "", key) for key in of("existence")["keywords"])
        made = json.dumps({one: "a nice thing", other: "people like it"})
        missing = json.dumps({one: "a nice thing that people like"})
        return made, [
            missing,
            json.dumps([one, other, "a", "b"]),
            made[:-1],
            f"Here it is: {made}",
            f'"{one} {other} a b"',
        ]
    if kind == "paragraphs":
        number = of("number_paragraphs")["num_paragraphs"]
        return "\n***\n".join([TOPIC] * number), ["\n\n".join([TOPIC] * number), "\n***\n".join("a" * number)]
    assert kind == "first_word"
    word = of("nth_paragraph_first_word")["first_word"].title()
    good = f"{TOPIC}\n\n{word}, {TOPIC}"
    return good, [f"{TOPIC}\n\n{TOPIC}", f"{TOPIC}\n{word} {TOPIC}", f"{word} {TOPIC}", f"a\n\n{word}"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", list(RULES))
def test_a_good_reply_passes_and_bad_ones_do_not(kind: str, split: Split) -> None:
    for problem in writing_problems(split, num=10 * KINDS, seed=4):
        if problem.source == f"writing/{kind}":
            good, bad = texts(kind, problem)
            assert ifeval(good, problem.ground_truth).value == 1.0, (
                problem,
                ifeval(good, problem.ground_truth),
            )
            for reply in bad:
                assert ifeval(reply, problem.ground_truth).value == 0.0, (problem, reply)


PAIR_REPLIES = {
    "no_commas+ending": lambda k: (f"{TOPIC} {k['end_phrase']}", [TOPIC, f"{TOPIC}, {k['end_phrase']}"]),
    "lowercase+forbidden": lambda k: (
        TOPIC.lower(),
        [TOPIC, f"{TOPIC} {k['forbidden_words'][0]}".lower()],
    ),
    "title+keywords": lambda k: (
        f"<<Nice>> {TOPIC} {' '.join(k['keywords'])}",
        [f"<<Nice>> {TOPIC}", f"{TOPIC} {' '.join(k['keywords'])}"],
    ),
    "bullets+no_commas": lambda k: (
        "- I like it.\n" * k["num_bullets"],
        ["- I like it, too.\n" * k["num_bullets"], "I like it. " * k["num_bullets"]],
    ),
    "lowercase+no_commas": lambda k: (TOPIC.lower(), [TOPIC, TOPIC.lower().replace(" ", ", ", 1)]),
    "keywords+ending": lambda k: (
        f"{TOPIC} {' '.join(k['keywords'])} {k['end_phrase']}",
        [f"{TOPIC} {k['end_phrase']}", f"{TOPIC} {' '.join(k['keywords'])}"],
    ),
    "title+forbidden": lambda k: (
        f"<<Nice>> {TOPIC}",
        [TOPIC, f"<<Nice>> {TOPIC} {k['forbidden_words'][1]}"],
    ),
    "bullets+keywords": lambda k: (
        "- I like it.\n" * k["num_bullets"] + " ".join(k["keywords"]),
        ["- I like it.\n" * k["num_bullets"], "I like it. " * 5 + " ".join(k["keywords"])],
    ),
}


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_need_both(split: Split) -> None:
    seen = set()
    for problem in writing_problems(split, num=8 * KINDS, seed=4):
        kind = problem.source.removeprefix("writing/")
        if "+" in kind:
            kwargs = dict(itertools.chain.from_iterable(k.items() for k in problem.ground_truth["kwargs"]))
            good, bad = PAIR_REPLIES[kind](kwargs)
            assert ifeval(good, problem.ground_truth).value == 1.0, (
                problem,
                ifeval(good, problem.ground_truth),
            )
            for reply in bad:
                assert ifeval(reply, problem.ground_truth).value == 0.0, (problem, reply)
            seen.add(kind)
    assert seen == {"+".join(pair) for pair in PAIRS[split]}


DEGENERATE = [
    "",
    " ",
    "\n",
    ".",
    "a",
    "A",
    "-",
    "*",
    '"',
    '""',
    "{}",
    "[]",
    '"a"',
    "0",
    "ok.",
    "OK",
    "<<a>>",
    "***",
]


@pytest.mark.parametrize("split", SPLITS)
def test_no_writing_task_takes_a_degenerate_reply(split: Split) -> None:
    for problem in writing_problems(split, num=3 * KINDS, seed=5):
        if problem.verifier == "ifeval":
            passed = [reply for reply in DEGENERATE if ifeval(reply, problem.ground_truth).value]
            assert not passed, (problem, passed)


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_checked_is_asked_for(split: Split) -> None:
    """Every number, word, phrase and key in a ground truth stands in its prompt; floors may be implied."""
    for problem in writing_problems(split, num=40 * KINDS, seed=6):
        if problem.verifier != "ifeval":
            continue
        prompt = problem.messages[0].content
        for name, kwargs in zip(
            problem.ground_truth["instruction_id_list"], problem.ground_truth["kwargs"], strict=True
        ):
            floor = name == "length_constraints:number_words" and kwargs["relation"] == "at least"
            stated = re.search(r"\bword(s\b|\b)|\bfive\b", prompt)
            if floor and "writing/json" not in problem.source:
                assert stated or "starts with -" in prompt or "words" in prompt, prompt
                continue
            for value in kwargs.values():
                for item in value if isinstance(value, list) else [value]:
                    if item in (2, "less than", "at least"):
                        continue
                    assert str(item).rstrip(":").lower() in prompt.lower(), (item, prompt)


@pytest.mark.parametrize("split", SPLITS)
def test_requests_are_short(split: Split) -> None:
    """The longest is 44 tokens for SmolLM2's tokenizer; 34 words stand in for that here."""
    words = [len(p.messages[0].content.split()) for p in writing_problems(split, num=1500, seed=7)]
    assert max(words) <= 34


@pytest.mark.parametrize("split", SPLITS)
def test_sums_are_right(split: Split) -> None:
    """Answers recomputed from the two numbers in the question."""
    seen = set()
    for problem in writing_problems(split, num=60 * KINDS, seed=8):
        if problem.verifier != "gsm8k":
            continue
        prompt = problem.messages[0].content
        first, second = map(int, re.findall(r"\d+", prompt))
        if "ubtract" in prompt:
            answer = second - first
        elif "-" in prompt or "minus" in prompt:
            answer = first - second
        else:
            assert re.search(r"\+|plus|Add", prompt)
            answer = first + second
        assert problem.ground_truth == str(answer)
        assert answer > 0
        digits = 1 if problem.source == "sums/one_digit" else 2
        assert len(str(first)) == len(str(second)) == digits
        assert (min(first, second), max(first, second)) in operand_pairs(split, digits)
        seen.add(re.sub(r"\d+", "n", prompt))
    assert len(seen) == 10
