"""IFEval instructions about the language and the case of a reply.

Source of every rule: `instruction_following_eval/instructions.py` of google-research (arXiv:2311.07911).
Languages are told by langdetect with its seed at 0, so that a reply always gets the same verdict.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from posttrain.rewards.constraint import Result, Undetectable, counted, related
from posttrain.rewards.instructions_length import split_sentences

_LOCK = threading.Lock()


def detect_language(reply: str) -> str:
    """The language's code (ISO 639-1; `zh-cn`, `zh-tw`); Undetectable if there are no letters to go by."""
    from langdetect import LangDetectException

    with _LOCK:
        detector = _detectors().create()
        detector.append(reply)
        try:
            return str(detector.detect())
        except LangDetectException as cause:
            raise Undetectable("the language cannot be detected") from cause


@functools.cache
def _detectors() -> Any:
    # A factory of our own: langdetect's shared one can be re-seeded by anyone, and is filled without a lock.
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.seed = 0
    return factory


def response_language(reply: str, language: str) -> Result:
    """The detected language is `language`; plain `zh` accepts both Chinese scripts."""
    with _LOCK:
        known = {code for name in _detectors().langlist for code in (name, name.split("-")[0])}
    if language not in known:
        raise ValueError(f"language must be a code such as 'en' or 'de', not {language!r}")
    found = detect_language(reply)
    return language in (found, found.split("-")[0]), f'the language looks like "{found}", wanted "{language}"'


def english_lowercase(reply: str) -> Result:
    """Every cased letter is lower case (and there is one), and the language is English."""
    if not reply.islower():
        return False, _wrong_case("lower", [char for char in reply if char.isupper()])
    return response_language(reply, "en")


def english_capital(reply: str) -> Result:
    """Every cased letter is a capital (and there is one), and the language is English.

    The language is read from the reply in lower case: langdetect skips words in capitals, and so takes one
    English text in four for another language once it is in capitals, as the published rule reads it.
    """
    return _english_capital(reply, reply.lower())


def english_capital_published(reply: str) -> Result:
    """`english_capital` by the published rule, which reads the language from the capitals."""
    return _english_capital(reply, reply)


def _english_capital(reply: str, read_language_from: str) -> Result:
    if not reply.isupper():
        return False, _wrong_case("upper", [char for char in reply if char.islower()])
    return response_language(read_language_from, "en")


def capital_word_frequency(reply: str, wanted: int, relation: str) -> Result:
    """Words in capitals (Penn Treebank tokens: `A` and `I` count) against `wanted`."""
    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    tokens = (token for sentence in split_sentences(reply) for token in tokenizer.tokenize(sentence))
    return related(sum(1 for token in tokens if token.isupper()), relation, wanted, "all-capital word")


def _wrong_case(wanted: str, found: list[str]) -> str:
    if not found:
        return f"found no letters in {wanted} case"
    return f'found {counted(len(found), "letter")} not in {wanted} case, the first is "{found[0]}"'
