"""The published IFEval data: every ground truth parses, can be met, and can be missed."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.rewards.ifeval import ifeval, read_ground_truth
from posttrain.rewards.instructions import INSTRUCTIONS

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("POSTTRAIN_DATA", ROOT / "../shared/data")) / "ifeval" / "input_data.jsonl"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}; set POSTTRAIN_DATA to run")

SENTENCES = {
    "ar": "الطقس جميل اليوم وسنذهب إلى الحديقة مع الأصدقاء.",
    "bg": "България е красива страна и хората тук са много гостоприемни.",
    "bn": "বাংলাদেশ একটি সুন্দর দেশ এবং এখানে অনেক নদী আছে।",
    "de": "Das Wetter ist heute sehr schön und wir gehen spazieren.",
    "fa": "ایران کشوری بزرگ است و مردم آن به زبان فارسی صحبت می‌کنند.",
    "fi": "Tänään on kaunis sää ja me menemme kävelylle puistoon.",
    "gu": "ગુજરાત ભારતનું એક રાજ્ય છે અને અહીં ઘણા લોકો રહે છે.",
    "hi": "भारत एक बड़ा देश है और यहाँ बहुत सारे लोग रहते हैं।",
    "it": "Oggi il tempo è molto bello e andiamo a passeggiare nel parco.",
    "kn": "ಕನ್ನಡ ಒಂದು ಸುಂದರವಾದ ಭಾಷೆ ಮತ್ತು ಇದನ್ನು ಕರ್ನಾಟಕದಲ್ಲಿ ಮಾತನಾಡುತ್ತಾರೆ.",
    "ko": "한국은 아름다운 나라이고 음식이 맛있습니다.",
    "mr": "मराठी ही महाराष्ट्राची राजभाषा आहे आणि ती खूप लोक बोलतात.",
    "ne": "नेपाल एक सुन्दर देश हो र यहाँ धेरै हिमालहरू छन्।",
    "pa": "ਪੰਜਾਬ ਭਾਰਤ ਦਾ ਇੱਕ ਰਾਜ ਹੈ ਅਤੇ ਇੱਥੇ ਬਹੁਤ ਲੋਕ ਰਹਿੰਦੇ ਹਨ।",
    "pt": "Hoje o tempo está muito bom e nós vamos passear no parque.",
    "ru": "Сегодня хорошая погода, и мы идём гулять в парк.",
    "sw": "Watoto wanapenda kucheza mpira shuleni kila siku baada ya masomo.",
    "ta": "தமிழ் ஒரு அழகான மொழி மற்றும் பலர் இதைப் பேசுகிறார்கள்.",
    "te": "తెలుగు ఒక అందమైన భాష మరియు దీనిని చాలా మంది మాట్లాడతారు.",
    "th": "ประเทศไทยเป็นประเทศที่สวยงามและมีอาหารอร่อยมากมาย",
    "ur": "پاکستان ایک خوبصورت ملک ہے اور یہاں کے لوگ بہت مہمان نواز ہیں۔",
    "vi": "Việt Nam là một đất nước xinh đẹp với nhiều món ăn ngon.",
}
ENGLISH = "the weather is very nice today and we go for a walk."


def _count(
    unit: str, key: str, relation: str, *, lead: str = "~ "
) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """Replies with as many units as wanted and one fewer; for "less than", the two swapped."""

    def replies(kwargs: dict[str, Any]) -> tuple[str, str]:
        number = kwargs[key]
        unit_text = unit.format(**kwargs)
        enough, fewer = lead + unit_text * number, lead + unit_text * (number - 1)
        return (fewer, enough) if kwargs.get(relation) == "less than" else (enough, fewer)

    return replies


def _nth(kwargs: dict[str, Any]) -> tuple[str, str]:
    parts = ["other words"] * kwargs["num_paragraphs"]
    bad = "\n\n".join(parts)
    parts[kwargs["nth_paragraph"] - 1] = f'"{kwargs["first_word"].title()}, and so on'
    return "\n\n".join(parts), bad


# For each type: kwargs -> (a reply that follows the instruction, a reply that does not).
REPLIES: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "punctuation:no_comma": lambda k: ("a b", "a, b"),
    "length_constraints:number_words": _count("word ", "num_words", "relation"),
    "length_constraints:number_sentences": _count("The cat sat. ", "num_sentences", "relation", lead=""),
    "keywords:forbidden_words": lambda k: ("zzz", f"the {k['forbidden_words'][-1].upper()}!"),
    "detectable_format:number_highlighted_sections": _count("*some words* ", "num_highlights", ""),
    "keywords:frequency": _count("{keyword} ", "frequency", "relation"),
    "combination:repeat_prompt": lambda k: (f"{k['prompt_to_repeat']} Yes.", f"Yes. {k['prompt_to_repeat']}"),
    "startend:quotation": lambda k: ('"a"', '"a'),
    "change_case:english_lowercase": lambda k: (ENGLISH, ENGLISH.title()),
    "change_case:english_capital": lambda k: (ENGLISH.upper(), ENGLISH.title()),
    "keywords:existence": lambda k: (" ".join(k["keywords"]).upper(), " ".join(k["keywords"][:-1]) + "~"),
    "detectable_format:title": lambda k: ("<<A title>>", "A title"),
    "keywords:letter_frequency": _count("{letter} ", "let_frequency", "let_relation"),
    "detectable_format:number_bullet_lists": _count("\n* item", "num_bullets", ""),
    "language:response_language": lambda k: (SENTENCES[k["language"]], ENGLISH),
    "detectable_content:number_placeholders": _count("[name] ", "num_placeholders", ""),
    "length_constraints:number_paragraphs": lambda k: (
        "\n***\n".join("a" * k["num_paragraphs"]),
        "\n***\n".join("a" * (k["num_paragraphs"] + 1)),
    ),
    "startend:end_checker": lambda k: (f"Bye. {k['end_phrase']}", f"{k['end_phrase']} Bye"),
    "detectable_content:postscript": lambda k: (f"Bye\n{k['postscript_marker']} hi", "Bye"),
    "change_case:capital_word_frequency": _count("WORD ", "capital_frequency", "capital_relation"),
    "combination:two_responses": lambda k: ("a ****** b", "a *** b"),
    "detectable_format:json_format": lambda k: ('```json\n{"a": 1}\n```', "a: 1"),
    "detectable_format:multiple_sections": _count("{section_spliter} 1 ", "num_sections", ""),
    "length_constraints:nth_paragraph_first_word": _nth,
    "detectable_format:constrained_response": lambda k: ("My answer is maybe.", "Maybe."),
}


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]


def test_counts() -> None:
    """541 prompts (305, 179 and 57 with one, two and three instructions), 834 instructions, 25 types."""
    wanted = [read_ground_truth(row) for row in rows()]
    assert collections.Counter(map(len, wanted)) == {1: 305, 2: 179, 3: 57}
    types = collections.Counter(name for row in wanted for name, _, _ in row)
    assert sum(types.values()) == 834
    assert set(types) == set(INSTRUCTIONS) == set(REPLIES)
    assert types["punctuation:no_comma"] == 66
    assert types["detectable_format:constrained_response"] == 10


def test_every_kwargs_is_read() -> None:
    for row in rows():
        for name, constraint, kwargs in read_ground_truth(json.dumps(row)):
            assert len(constraint.read(name, kwargs)) == len(kwargs)


def test_a_made_reply_follows_and_another_does_not() -> None:
    for row in rows():
        for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            ground_truth = {"instruction_id_list": [name], "kwargs": [kwargs]}
            good, bad = REPLIES[name](kwargs)
            assert ifeval(good, ground_truth).value == 1.0, (row["key"], ifeval(good, ground_truth))
            assert ifeval(bad, ground_truth).value == 0.0, (row["key"], bad)
