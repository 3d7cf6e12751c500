"""Chat templates by name, as Jinja that renders the published forms byte for byte."""

from __future__ import annotations

import difflib
from pathlib import Path

from posttrain.errors import RecipeError

# Plain-text role tags, no BOS, no default system prompt; only assistant turns end in EOS, and the
# newline after EOS is left out when the turn is the last one.
_TULU = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    "{% endfor %}"
)

_OLMO_FUNCTIONS = " You do not currently have access to any functions. <functions></functions>"
_OLMO_SYSTEM = (
    "You are OLMo, a helpful function-calling AI assistant built by Ai2. Your date cutoff is November 2024, "
    "and your model weights are available at https://huggingface.co/allenai."
)

# ChatML with a default system turn; the last assistant turn ends in EOS, earlier ones in <|im_end|>.
_OLMO = (
    "{% if messages | selectattr('role', 'equalto', 'system') | list | length == 0 %}"
    "{{ '<|im_start|>system\n" + _OLMO_SYSTEM + _OLMO_FUNCTIONS + "<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ '<|im_start|>system\n' + message['content'] + '" + _OLMO_FUNCTIONS + "<|im_end|>\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<|im_start|>user\n' + message['content'] + '<|im_end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' + message['content'] }}"
    "{% if loop.last %}{{ eos_token }}{% else %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{% endfor %}"
)

TEMPLATES: dict[str, str] = {
    "tulu": _TULU,
    "tulu_bos": "{{ bos_token }}" + _TULU,
    "olmo": _OLMO,
}
"""`tulu` is Tülu 3's, `tulu_bos` OLMo 2's (the same after one BOS), `olmo` the later ChatML form.

Sources: allenai/open-instruct `open_instruct/dataset_transformation.py` (tulu at 3f37c29, olmo at e6c3044).
"""


def find_template(template: str) -> str:
    """The Jinja text meant by a name in `TEMPLATES`, a path ending in `.jinja`, or Jinja text itself.

    Raises RecipeError, with the nearest name, if it is none of these.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{{" in template or "{%" in template:
        return template
    if template.endswith(".jinja"):
        try:
            return Path(template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"chat template {template} cannot be read: {error}") from error
    near = difflib.get_close_matches(template, TEMPLATES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(TEMPLATES)}"
    raise RecipeError(f"there is no chat template {template!r}; {hint} (or give a path ending in .jinja)")
