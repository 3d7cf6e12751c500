"""The published rendered forms, byte for byte."""

from __future__ import annotations

import pytest

from posttrain.data.render import Renderer
from posttrain.data.templates import TEMPLATES, find_template
from posttrain.errors import RecipeError
from posttrain.records import Message

TWO_TURNS = (
    Message("user", "Hi"),
    Message("assistant", "Yo"),
    Message("user", "Bye"),
    Message("assistant", "Cya"),
)
OLMO_SYSTEM = (
    "<|im_start|>system\nYou are OLMo, a helpful function-calling AI assistant built by Ai2. Your date "
    "cutoff is November 2024, and your model weights are available at https://huggingface.co/allenai. You do "
    "not currently have access to any functions. <functions></functions><|im_end|>\n"
)
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def text(make_tokenizer):
    tokenizer = make_tokenizer(eos=END)
    tokenizer.bos_token = END  # as OLMo 2: BOS is EOS

    def render(template, messages, *, generation_prompt=False):
        return Renderer(tokenizer, template).text(messages, generation_prompt=generation_prompt)

    return render


def test_tulu_two_turns(text):
    """The reference's example: the newline after EOS is left out after the last message."""
    wanted = f"<|user|>\nHi\n<|assistant|>\nYo{END}\n<|user|>\nBye\n<|assistant|>\nCya{END}"
    assert text("tulu", TWO_TURNS) == wanted


def test_tulu_prompt_with_system(text):
    messages = [Message("system", "Be brief."), *TWO_TURNS[:3]]
    wanted = f"<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nYo{END}\n<|user|>\nBye\n<|assistant|>\n"
    assert text("tulu", messages, generation_prompt=True) == wanted


def test_olmo2_is_tulu_behind_one_bos(text):
    """As the model card of OLMo-2-1124-13B-Instruct shows it."""
    assert text("tulu_bos", TWO_TURNS[:2]) == f"{END}<|user|>\nHi\n<|assistant|>\nYo{END}"
    assert text("tulu_bos", TWO_TURNS[:1], generation_prompt=True) == f"{END}<|user|>\nHi\n<|assistant|>\n"


def test_olmo_two_turns(text):
    """Earlier assistant turns end in <|im_end|> and a newline, the last in EOS alone."""
    wanted = (
        OLMO_SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        f"<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nCya{END}"
    )
    assert text("olmo", TWO_TURNS) == wanted


def test_olmo_prompt(text):
    wanted = OLMO_SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text("olmo", TWO_TURNS[:1], generation_prompt=True) == wanted


def test_olmo_with_system(text):
    """A given system turn replaces the default one and gets the sentence about functions."""
    wanted = (
        "<|im_start|>system\nBe brief. You do not currently have access to any functions. "
        f"<functions></functions><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo{END}"
    )
    assert text("olmo", [Message("system", "Be brief."), *TWO_TURNS[:2]]) == wanted


def test_white_space_is_kept(text):
    """Jinja's block trimming eats newlines next to tags; contents and tags keep theirs."""
    messages = [Message("user", "\n x \n"), Message("assistant", "\n\n y ")]
    assert text("tulu", messages) == f"<|user|>\n\n x \n\n<|assistant|>\n\n\n y {END}"


def test_find_template(tmp_path):
    assert find_template("tulu") == TEMPLATES["tulu"]
    assert find_template("{{ messages }}") == "{{ messages }}"
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}é{% endfor %}", encoding="utf-8")
    assert find_template(str(tmp_path / "mine.jinja")) == "{% for m in messages %}é{% endfor %}"


def test_no_such_template(tmp_path):
    with pytest.raises(RecipeError, match="no chat template 'tullu'; did you mean 'tulu'"):
        find_template("tullu")
    with pytest.raises(RecipeError, match="no chat template 'qqq'; there are: tulu"):
        find_template("qqq")
    with pytest.raises(RecipeError, match="cannot be read"):
        find_template(str(tmp_path / "none.jinja"))
