"""What the writing tasks ask for beside their topic, in several wordings, and how it is checked.

Every request states or implies a least number of words, and that is checked too: so no empty and no one-word
reply passes. A floor that is only implied ("two sentences") is one that any honest reply clears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.data.writing_topics import Topic

Instruction = tuple[str, dict[str, Any]]
"""An IFEval instruction id and its arguments."""

Choice = Mapping[str, Any]

_OPENINGS = {
    "Write two sentences about {topic}.": 6,
    "Describe {topic} in two sentences.": 6,
    "Say something about {topic} in two short sentences.": 6,
    "Tell me about {topic} in at least eight words.": 8,
    "Write a short note about {topic}, at least eight words long.": 8,
    "Write ten or more words about {topic}.": 10,
}
"""The common openings, each with its floor in words."""

_PARAGRAPHS = (
    "Write {number} short paragraphs about {topic}.",
    "Tell me about {topic} in {number} short paragraphs.",
    "Describe {topic} in {number} brief paragraphs.",
)


def words_at_least(number: int) -> Instruction:
    """The floor under the length of a reply."""
    return "length_constraints:number_words", {"num_words": number, "relation": "at least"}


@dataclass(frozen=True, slots=True)
class Rule:
    """One constraint: `wordings` are format strings over a choice and the topic's words.

    Most rules follow any of the common openings. One with `openings` of its own sets its floor in `checks`.
    """

    wordings: tuple[str, ...]
    checks: Callable[[Topic, Choice], list[Instruction]]
    choices: tuple[Choice, ...] = ({},)
    openings: tuple[str, ...] = ()


def _always(instruction_id: str) -> Callable[[Topic, Choice], list[Instruction]]:
    return lambda topic, choice: [(instruction_id, {})]


def _ending(topic: Topic, choice: Choice) -> list[Instruction]:
    return [("startend:end_checker", {"end_phrase": choice["phrase"]})]


def _keywords(topic: Topic, choice: Choice) -> list[Instruction]:
    return [("keywords:existence", {"keywords": list(topic.keywords)})]


def _forbidden(topic: Topic, choice: Choice) -> list[Instruction]:
    return [("keywords:forbidden_words", {"forbidden_words": list(topic.tempting)})]


def _bullets(topic: Topic, choice: Choice) -> list[Instruction]:
    number = choice["count"]
    return [
        ("detectable_format:number_bullet_lists", {"num_bullets": number}),
        words_at_least(2 * number),
    ]


def _short(topic: Topic, choice: Choice) -> list[Instruction]:
    limit = {"num_words": choice["limit"], "relation": "less than"}
    return [("length_constraints:number_words", limit), words_at_least(4)]


def _json(topic: Topic, choice: Choice) -> list[Instruction]:
    # The colon makes them keys: a list of two strings does not pass. Four words: each key has a value.
    keys = [f'"{choice["first"]}":', f'"{choice["second"]}":']
    return [
        ("detectable_format:json_format", {}),
        ("keywords:existence", {"keywords": keys}),
        words_at_least(4),
    ]


def _paragraphs(topic: Topic, choice: Choice) -> list[Instruction]:
    number = choice["count"]
    return [
        ("length_constraints:number_paragraphs", {"num_paragraphs": number}),
        words_at_least(3 * number),
    ]


def _first_word(topic: Topic, choice: Choice) -> list[Instruction]:
    wanted = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": choice["word"].lower()}
    return [("length_constraints:nth_paragraph_first_word", wanted), words_at_least(6)]


_NUMBERS = ({"number": "two", "count": 2}, {"number": "three", "count": 3})

RULES: dict[str, Rule] = {
    "lowercase": Rule(
        (
            "Use only lower case letters.",
            "Write everything in lowercase.",
            "Do not use any capital letters.",
            "All letters must be lower case.",
        ),
        _always("change_case:english_lowercase"),
    ),
    "uppercase": Rule(
        (
            "USE ONLY CAPITAL LETTERS.",
            "Write everything in upper case.",
            "All letters must be capitals.",
            "Answer in ALL CAPS.",
        ),
        _always("change_case:english_capital"),
    ),
    "no_commas": Rule(
        (
            "Do not use any commas.",
            "Write it without commas.",
            "No commas are allowed.",
            "Avoid commas completely.",
        ),
        _always("punctuation:no_comma"),
    ),
    "quotation": Rule(
        (
            "Put your whole answer in double quotation marks.",
            'Wrap the entire reply in double quotes ("...").',
            'Start and end your answer with a double quotation mark (").',
            'Your reply must open with " and close with ".',
        ),
        _always("startend:quotation"),
    ),
    "ending": Rule(
        (
            'End with the words "{phrase}"',
            'The last words must be "{phrase}"',
            'Finish with exactly this phrase: "{phrase}"',
            'Close with "{phrase}" and write nothing after it.',
        ),
        _ending,
        tuple(
            {"phrase": phrase}
            for phrase in ("That is all.", "The end.", "Have a nice day.", "See you soon.", "Now you know.")
        ),
    ),
    "keywords": Rule(
        (
            'Use the words "{word}" and "{other}".',
            'Include the words "{word}" and "{other}".',
            'The words "{word}" and "{other}" must appear.',
            'Make sure to mention "{word}" and "{other}".',
        ),
        _keywords,
    ),
    "title": Rule(
        (
            "Add a title in double angle brackets, like <<My Title>>.",
            "Give it a title in this form: <<A Good Day>>.",
            "Begin with a title between << and >>.",
            "Start with a title written <<like this>>.",
        ),
        _always("detectable_format:title"),
    ),
    "forbidden": Rule(
        (
            'Do not use the words "{lure}" or "{bait}".',
            'Avoid the words "{lure}" and "{bait}".',
            'Never write the words "{lure}" or "{bait}".',
            'Leave out the words "{lure}" and "{bait}".',
        ),
        _forbidden,
    ),
    "bullets": Rule(
        (
            "Use exactly {number} bullet points.",
            "Give exactly {number} bullet points, each starting with *.",
            "Make it {number} lines that each start with -.",
            "Answer with {number} bullet points and nothing else.",
        ),
        _bullets,
        _NUMBERS,
        (
            "List facts about {topic}.",
            "Write facts about {topic} as a list.",
            "What are some facts about {topic}?",
            "Tell me facts about {topic}.",
        ),
    ),
    "short": Rule(
        (
            "Use fewer than {limit} words.",
            "Keep it under {limit} words.",
            "Your answer must be shorter than {limit} words.",
            "Say it in less than {limit} words.",
        ),
        _short,
        tuple({"limit": number} for number in (12, 15, 20)),
        (
            "Write one sentence about {topic}.",
            "Describe {topic} in one sentence.",
            "Tell me about {topic} in a sentence.",
            "Write a short sentence about {topic}.",
        ),
    ),
    "json": Rule(
        (
            'Use the keys "{first}" and "{second}".',
            'It needs the keys "{first}" and "{second}".',
            'The keys are "{first}" and "{second}", and nothing else is in the reply.',
        ),
        _json,
        tuple(
            {"first": first, "second": second}
            for first, second in (("name", "use"), ("topic", "fact"), ("title", "text"), ("what", "why"))
        ),
        (
            "Describe {topic} as JSON.",
            "Write a JSON object about {topic}.",
            "Give me a short JSON object about {topic}.",
            "Tell me about {topic} in JSON format.",
        ),
    ),
    "paragraphs": Rule(
        (
            "Put *** between the paragraphs.",
            "Separate them with ***.",
            "Divide them with a line of ***.",
            "Between them, write ***.",
        ),
        _paragraphs,
        _NUMBERS,
        _PARAGRAPHS,
    ),
    "first_word": Rule(
        (
            'Put one blank line between them and start the second with "{word}".',
            'Leave a blank line between them. The second starts with "{word}".',
            'The second follows a blank line and begins with the word "{word}".',
        ),
        _first_word,
        tuple({"number": "two", "word": word} for word in ("Today", "Also", "Many", "People")),
        _PARAGRAPHS,
    ),
}

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("no_commas", "ending"),
        ("lowercase", "forbidden"),
        ("title", "keywords"),
        ("bullets", "no_commas"),
    ),
    "heldout": (
        ("lowercase", "no_commas"),
        ("keywords", "ending"),
        ("title", "forbidden"),
        ("bullets", "keywords"),
    ),
}
"""Rules asked for together. No pair is in both splits; only a pair's first rule may have its own openings."""


@dataclass(frozen=True, slots=True)
class RequestPool:
    """Every request there is about `topics` under `rules`: `len(pool)` of them, all different."""

    topics: tuple[Topic, ...]
    rules: tuple[Rule, ...]
    verifier = "ifeval"

    def _columns(self) -> list[tuple[Any, ...]]:
        """What is free to choose: topic, opening, then wording and choice of each rule."""
        columns: list[tuple[Any, ...]] = [self.topics, self.rules[0].openings or tuple(_OPENINGS)]
        for rule in self.rules:
            columns += [rule.wordings, rule.choices]
        return columns

    def __len__(self) -> int:
        size = 1
        for column in self._columns():
            size *= len(column)
        return size

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """The prompt and the ground truth of request `index`, read as digits, one for each column."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        picked: list[Any] = []
        for column in self._columns():
            index, digit = divmod(index, len(column))
            picked.append(column[digit])
        topic, opening, *asked = picked
        words = {"topic": topic.name, "word": topic.keywords[0], "other": topic.keywords[1]}
        words |= {"lure": topic.tempting[0], "bait": topic.tempting[1]}
        for choice in asked[1::2]:
            words |= choice
        sentences = [opening, *asked[0::2]]
        instructions = [words_at_least(_OPENINGS[opening])] if opening in _OPENINGS else []
        for rule, choice in zip(self.rules, asked[1::2], strict=True):
            instructions += rule.checks(topic, choice)
        prompt = " ".join(sentence.format(**words) for sentence in sentences)
        return prompt, {
            "instruction_id_list": [name for name, _ in instructions],
            "kwargs": [kwargs for _, kwargs in instructions],
        }
