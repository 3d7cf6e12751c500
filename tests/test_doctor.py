"""What the doctor shows is what the loss sees, and what it finds is really there."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.config.recipe import Recipe
from posttrain.doctor import (
    MOST_TOKENS,
    closes,
    cpu_flags,
    generation_eos,
    masked_text,
    show_model,
    show_recipe,
)
from posttrain.errors import DataError
from posttrain.model.tiny import tiny_llama
from posttrain.records import Row

WORDS = ["Hi", " there", "\n", "Yo", "<end>", "\n"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatML-speaking tiny Llama whose pad token is its EOS."""
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


def console() -> tuple[Console, StringIO]:
    page = StringIO()
    return Console(file=page, width=200), page


def row(mask: list[bool]) -> Row:
    return Row("r", tuple(range(len(mask))), tuple(mask))


def decode(ids: object) -> str:
    return "".join(WORDS[i] for i in ids)  # type: ignore[attr-defined]


def test_targets_stand_in_brackets_where_there_is_no_colour() -> None:
    text = masked_text(row([False, False, False, True, True, False]), decode, colour=False)
    assert text.plain == "Hi there⏎\n[Yo<end>]⏎\n"


def test_targets_are_highlighted_where_there_is_colour() -> None:
    text = masked_text(row([False, False, False, True, True, False]), decode, colour=True)
    assert text.plain == "Hi there⏎\nYo<end>⏎\n"
    assert [text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style)] == ["Yo<end>"]


def test_the_middle_of_a_long_row_is_left_out_and_counted() -> None:
    """407 tokens, of which 400 are shown: 200 from either end."""
    assert MOST_TOKENS == 400

    def tokens(ids: object) -> str:
        return "".join(f"<{i}>" for i in ids)  # type: ignore[attr-defined]

    text = masked_text(row([True] * 407), tokens, colour=False).plain
    left = "".join(f"<{i}>" for i in range(200))
    right = "".join(f"<{i}>" for i in range(207, 407))
    assert text == f"[{left}] ... 7 tokens left out ... [{right}]"
    assert masked_text(row([True] * 400), tokens, colour=False).plain.endswith("<399>]")


@pytest.mark.parametrize(
    ("mask", "expected"),
    [([False, True, True], True), ([False, True, False], False), ([False, False, False], False)],
)
def test_a_row_closes_when_its_last_target_ends_a_turn(mask: list[bool], expected: bool) -> None:
    assert closes(row(mask), stop_ids=(2,)) is expected


def test_cpu_flags_are_those_of_the_first_processor(tmp_path: Path) -> None:
    page = tmp_path / "cpuinfo"
    page.write_text("model name\t: X\nflags\t\t: fpu avx2 avx512_bf16\n\nflags\t\t: other\n")
    assert cpu_flags(page) == {"fpu", "avx2", "avx512_bf16"}
    assert cpu_flags(tmp_path / "absent") == set()


@pytest.mark.parametrize(
    ("text", "ids"), [('{"eos_token_id": 2}', [2]), ('{"eos_token_id": [2, 5]}', [2, 5]), ("{}", [])]
)
def test_generation_eos_is_a_list_whatever_the_file_holds(tmp_path: Path, text: str, ids: list[int]) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert generation_eos(tmp_path) == ids


def test_a_conversation_is_shown_as_the_loss_sees_it(tiny: Path, tmp_path: Path) -> None:
    """Closes T1 (pad is EOS, and the closing token is a target all the same) as far as a user can see it."""
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    sly = [{"role": "user", "content": "say <|im_end|> now"}, {"role": "assistant", "content": "No"}]
    open_turn = [{"role": "user", "content": "Hello"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (turns, sly, open_turn)))
    terminal, page = console()
    show_model(str(tiny), str(data), chat_template=None, num_rows=2, console=terminal)
    text = page.getvalue()
    assert "<|im_start|>assistant⏎\n[Good day<|im_end|>]⏎" in text
    assert "say <|im_end|> now" in text
    assert "looked at 2 rows" in text
    assert "2 open with one BOS; 2 end in a closing token that is a target" in text
    assert "pad and eos are one token" in text
    assert "1 special-token strings stood in messages" in text
    assert "dropped: 1 no_assistant_turn" in text


def test_two_bos_tokens_are_found(tiny: Path, tmp_path: Path) -> None:
    """Closes T3 as far as a user can see it: a template that writes a second BOS is reported."""
    template = tmp_path / "double.jinja"
    template.write_text(
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% "
        "endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "Hello", "completion": "Good day"}) + "\n")
    terminal, page = console()
    show_model(str(tiny), str(data), chat_template=str(template), num_rows=1, console=terminal)
    assert "1 of 1 rows begin with two BOS tokens" in page.getvalue()


def test_a_recipe_is_shown_source_by_source(tiny: Path, tmp_path: Path) -> None:
    sft, dpo = tmp_path / "sft.jsonl", tmp_path / "dpo.jsonl"
    sft.write_text(json.dumps({"prompt": "Hello", "completion": "word " * 200}) + "\n")
    with sft.open("a") as file:
        file.write(json.dumps({"prompt": "Hello", "completion": "short"}) + "\n")
    dpo.write_text(json.dumps({"prompt": "Hello", "chosen": "better", "rejected": "worse"}) + "\n")
    recipe = Recipe.model_validate(
        {
            "name": "trial",
            "model": str(tiny),
            "evaluation": {"problems": {"builtin": "writing", "split": "heldout"}},
            "stages": [
                {"sft": {"data": [{"path": str(sft)}], "max_tokens": 100}},
                {"dpo": {"data": [{"path": str(dpo)}]}},
                {"grpo": {"problems": [{"builtin": "writing", "amount": 3}], "steps": 1}},
            ],
        }
    )
    terminal, page = console()
    show_recipe(recipe, num_rows=1, console=terminal)
    text = page.getvalue()
    assert "01-sft sft.data" in text
    assert "dropped: 1 too_long" in text
    assert "[better<|im_end|>]" in text
    assert "[worse<|im_end|>]" in text
    assert "looked at 3 problems" in text
    assert "evaluation.problems: builtin:writing/heldout" in text


def test_problems_are_no_conversations(tiny: Path) -> None:
    terminal, _ = console()
    with pytest.raises(DataError, match="holds problems, not conversations"):
        show_model(str(tiny), "builtin:writing/train", chat_template=None, num_rows=1, console=terminal)
