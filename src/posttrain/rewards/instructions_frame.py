"""IFEval instructions about what opens, closes, wraps or divides a reply.

Source of every rule: `instruction_following_eval/instructions.py` of google-research (arXiv:2311.07911).
"""

from __future__ import annotations

from posttrain.rewards.constraint import Result

_SEEN = 40
"""Characters of the reply that a reason quotes."""


def repeat_prompt(reply: str, prompt: str) -> Result:
    """The reply opens with the prompt, case and outer white space ignored."""
    passed = reply.strip().lower().startswith(prompt.strip().lower())
    return passed, f"the reply opens with {reply.strip()[:_SEEN]!r}, wanted the request word for word"


def end_checker(reply: str, phrase: str) -> Result:
    """The reply closes with the phrase, case and quotation marks at its end ignored."""
    passed = reply.strip().strip('"').lower().endswith(phrase.strip().lower())
    return passed, f"the reply ends with {reply.strip()[-_SEEN:]!r}, wanted {phrase.strip()!r}"


def quotation(reply: str) -> Result:
    """The first and the last character are two ASCII double quotation marks."""
    body = reply.strip()
    if len(body) < 2:
        return False, f"the whole reply is {body!r}, wanted a text between double quotation marks"
    passed = body[0] == body[-1] == '"'
    return passed, f"the reply starts with {body[0]!r} and ends with {body[-1]!r}, wanted '\"' at both ends"


def two_responses(reply: str) -> Result:
    """Exactly two texts divided by `******`, neither empty nor equal; a divider may open or close."""
    parts = [part.strip() for part in reply.split("******")]
    if not all(parts[1:-1]):
        return False, "found an empty response between two ******"
    responses = [part for part in parts if part]
    if len(responses) != 2:
        return False, f"found {len(responses)} responses divided by ******, wanted exactly 2"
    different = responses[0] != responses[1]
    return different, f"found 2 {'different' if different else 'equal'} responses"
