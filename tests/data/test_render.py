"""Ids and masks: compared with forms written by hand, with the plain tokenizer, and with counted bytes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from posttrain.data import render
from posttrain.data.render import Renderer
from posttrain.errors import DataError, ModelError
from posttrain.records import Message

USER, REPLY = Message("user", "What is 17 plus 25?"), Message("assistant", "The answer is 42.")
CHAT = (USER, REPLY, Message("user", "And then?"), Message("assistant", "Of course."))
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def plain_ids(renderer, text):
    return tuple(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])


def decode(renderer, ids):
    return renderer.tokenizer.decode(list(ids), skip_special_tokens=False)


def targets(renderer, row):
    return decode(renderer, [i for i, wanted in zip(row.ids, row.mask, strict=True) if wanted])


def mask_by_bytes(renderer, ids, pieces):
    """Which tokens overlap a target, from the bytes each token stands for; no offsets are asked."""
    wanted = [target for text, target in pieces for _ in text.encode()]
    mask, position = [], 0
    for token in renderer.tokenizer.convert_ids_to_tokens(list(ids)):
        # In byte-level BPE every character of an ordinary token is one byte.
        end = position + len(token)
        mask.append(any(wanted[position:end]))
        position = end
    assert position == len(wanted)
    return (False, *mask[1:])


def test_masks_of_random_conversations(styled, some_conversation):
    """Closes T6: 200 random conversations under ten templates, two of them not prefix-stable.

    The ids are the plain tokenizer's; the mask is what counting bytes over the form by hand gives.
    """
    style, renderer = styled
    generator = random.Random(6)
    for _ in range(200):
        messages = some_conversation(generator)
        pieces = style.pieces(messages)
        text = "".join(piece for piece, _ in pieces)
        assert renderer.text(messages) == text
        row = renderer.conversation(messages)
        assert row.ids == plain_ids(renderer, text)
        assert row.mask == mask_by_bytes(renderer, row.ids, pieces)
    assert renderer.num_escaped == 0


def test_targets_begin_where_prompts_end(styled, some_conversation):
    """The text before a turn's targets is the text of the prompt for that turn, for every template."""
    style, renderer = styled
    generator = random.Random(8)
    for _ in range(50):
        messages = some_conversation(generator)
        last = max(i for i, m in enumerate(messages) if m.role == "assistant")
        pieces = style.pieces(messages[: last + 1])
        start = max(i for i, (_, target) in enumerate(pieces) if target and not (i and pieces[i - 1][1]))
        before = "".join(text for text, _ in pieces[:start])
        assert renderer.text(messages[:last], generation_prompt=True) == before


def test_last_turn_only(styled, some_conversation):
    """With train_on="last" the mask is that of the last assistant turn, wherever the conversation ends."""
    style, renderer = styled
    generator = random.Random(7)
    for _ in range(50):
        messages = some_conversation(generator)
        pieces = style.pieces(messages)
        row = renderer.conversation(messages, train_on="last")
        starts = [i for i, (_, target) in enumerate(pieces) if target and not (i and pieces[i - 1][1])]
        last = [(text, target and i >= starts[-1]) for i, (text, target) in enumerate(pieces)]
        assert row.mask == mask_by_bytes(renderer, row.ids, last)


def test_targets_are_what_the_assistant_says(styled):
    """Closes T1 (bos, eos and pad share ids here, and every closing token is a target) and T2."""
    style, renderer = styled
    row = renderer.conversation(CHAT)
    said = "".join(text for text, target in style.pieces(CHAT) if target)
    assert targets(renderer, row) == said
    assert "The answer is 42." in said and "Of course." in said
    if "Assistant:" not in renderer.text(CHAT):  # only that template closes nothing
        assert sum(said.count(closing) for closing in style.closings) == 2


def test_pad_is_eos_and_bos_opens_turns(chatml):
    """Closes T1: the fixture is as hard as SmolLM2's tokenizer; no id decides about a mask."""
    tokenizer = chatml.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    row = chatml.conversation(CHAT)
    closing = [m for i, m in zip(row.ids, row.mask, strict=True) if i == tokenizer.eos_token_id]
    # System, user, assistant, user, assistant: only what the assistant closes is a target.
    assert closing == [False, False, True, False, True]


def test_newline_after_the_closing_token_is_no_target(chatml):
    row = chatml.conversation((USER, REPLY))
    assert decode(chatml, row.ids[-1:]) == "\n"
    assert row.mask[-2:] == (True, False)


def test_stop_ids(styled):
    """The tokens that end a turn, as the template closes it last and earlier, and the EOS."""
    style, renderer = styled
    assert renderer.stop_ids == tuple(renderer.tokenizer.convert_tokens_to_ids(list(style.closings)))


@pytest.mark.parametrize(("template", "count"), [("tulu", 0), ("tulu_bos", 1), ("olmo", 1), (None, 1)])
def test_bos_is_never_doubled(make_tokenizer, template, count):
    """Closes T3: a tokenizer that adds a BOS itself; paths of SFT, DPO and prompts (rollout, evaluation)."""
    from tokenizers import processors

    tokenizer = make_tokenizer()
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    assert tokenizer("x")["input_ids"][0] == bos  # it does add one when asked
    renderer = Renderer(tokenizer, template)
    sft, dpo = renderer.conversation(CHAT), renderer.conversation(CHAT, train_on="last")
    for ids in (sft.ids, dpo.ids, renderer.prompt(CHAT[:1]), renderer.prompt(CHAT[:3])):
        assert ids[:2].count(bos) == count


def test_default_system_prompt_is_in_every_path(chatml):
    """Closes T5: SmolLM2's template adds a system turn; prompts and training rows begin with the same ids."""
    prompt = chatml.prompt([USER])
    assert decode(chatml, prompt).startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
    explicit = [Message("system", SYSTEM), USER]
    assert chatml.prompt(explicit) == prompt
    assert chatml.conversation([USER, REPLY]).ids[: len(prompt)] == prompt
    chat = chatml.prompt(CHAT[:3])  # the second question of a chat
    assert chatml.conversation(CHAT).ids[: len(chat)] == chat
    assert chat[: len(prompt)] == prompt


def test_prompt_is_a_prefix_of_the_row(chatml, tulu, some_text):
    """Closes T7: 1,000 strings with leading spaces, CJK, emoji.

    Where tokens merge over the boundary, the row is the joint tokenisation and the merged token a target.
    """
    generator = random.Random(7)
    counts = {True: 0, False: 0}
    for i in range(1000):
        renderer = (chatml, tulu)[i % 2]
        user, reply = Message("user", some_text(generator)), Message("assistant", some_text(generator))
        prompt, row = renderer.prompt([user]), renderer.conversation([user, reply])
        prefix = row.ids[: len(prompt)] == prompt
        counts[prefix] += 1
        if prefix:
            assert not any(row.mask[: len(prompt)]) and row.mask[len(prompt)]
        else:
            assert reply.content[0].isspace()  # only white space runs into the header's newline
            assert row.ids == plain_ids(renderer, renderer.text([user, reply]))
            first = row.mask.index(True)
            assert row.ids[:first] == prompt[:first]
            header_and_more = decode(renderer, row.ids[first:])
            assert header_and_more.startswith("\n" + reply.content)
    assert counts[True] > 700 and counts[False] > 50


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_indentation_is_a_target(make_tokenizer, trim_offsets):
    """A tokenizer may leave spaces out of the offsets it reports; every space of a reply is a target here."""
    renderer = Renderer(make_tokenizer(trim_offsets=trim_offsets))
    reply = Message("assistant", "def f(x):\n        return x   \n    ")
    row = renderer.conversation([USER, reply])
    assert targets(renderer, row) == reply.content + "<|im_end|>"


def test_normalising_tokenizer(make_tokenizer):
    """A tokenizer that composes characters does not give the text back as it was; that is no fault."""
    renderer = Renderer(make_tokenizer(nfc=True))
    row = renderer.conversation([USER, Message("assistant", "cafe\u0301 de\u0301ja\u0300")])
    assert targets(renderer, row) == "caf\u00e9 d\u00e9j\u00e0<|im_end|>"


def test_sentencepiece_like_tokenizer(sentencepiece_tokenizer):
    renderer = Renderer(sentencepiece_tokenizer, "tulu")
    row = renderer.conversation([Message("user", "The dog"), Message("assistant", "is not amused.")])
    assert targets(renderer, row).endswith("is not amused.<|im_end|>")
    assert "dog" not in targets(renderer, row)


def test_conversation_that_opens_with_the_assistant(styled):
    """There is no prompt before it, yet its targets are those of any other turn."""
    style, renderer = styled
    for messages in ([REPLY], [REPLY, USER, REPLY]):
        row = renderer.conversation(messages)
        assert row.mask == mask_by_bytes(renderer, row.ids, style.pieces(messages))


def test_message_that_looks_like_a_marker(chatml):
    """The words that stand for contents while bounds are found may stand in contents, trimmed ones too."""
    reply = Message("assistant", "  Zslot0Z and Zslot1Z \0 Zslot2Z\n")
    assert targets(chatml, chatml.conversation([USER, reply])).endswith("Zslot2Z\n<|im_end|>")
    trims = "{% for m in messages %}{{ m.content | trim + '<|im_end|>' }}{% endfor %}"
    row = Renderer(chatml.tokenizer, trims).conversation([Message("user", " Zslot1Z "), reply])
    assert targets(chatml, row) == reply.content.strip() + "<|im_end|>"


def test_unused_turns_of_odd_templates_are_refused(chatml_tokenizer):
    """A template that shuffles or repeats contents has no certain mask: the row is refused, not guessed."""
    twice = "{% for m in messages %}{{ m.content + m.content + eos_token }}{% endfor %}"
    with pytest.raises(ModelError, match="writes a message twice"):
        Renderer(chatml_tokenizer, twice)
    # Contents that change with their neighbours: upper case if the next message is long, or if two are.
    mixes = (
        "{% for m in messages %}{{ '<|im_start|>' + (m.content | upper if loop.nextitem and "
        "loop.nextitem.content | length > 40 else m.content) + '<|im_end|>' }}{% endfor %}"
    )
    renderer = Renderer(chatml_tokenizer, mixes)
    with pytest.raises(DataError, match="row 'odd'"):
        renderer.conversation([USER, Message("assistant", "x" * 50)], id="odd")
    together = (
        "{% set lengths = messages | map(attribute='content') | map('length') %}"
        "{% set shout = lengths | select('gt', 40) | list | length > 1 %}"
        "{% for m in messages %}{{ '<|im_start|>' + (m.content | upper if shout else m.content) }}"
        "{{ '<|im_end|>' }}{% endfor %}"
    )
    renderer = Renderer(chatml_tokenizer, together)
    assert any(renderer.conversation([USER, Message("assistant", "x" * 50)]).mask)
    with pytest.raises(DataError, match="row 'odd': the chat template mixes these messages"):
        renderer.conversation([Message("user", "y" * 50), Message("assistant", "x" * 50)], id="odd")


def test_wrong_offsets_are_refused(chatml, monkeypatch):
    """Closes T6 for tokenizers whose offsets are off: targets that do not decode to the reply are refused."""
    encode_all = chatml._encoder.encode_all

    def shifted(texts):
        for found in encode_all(texts):
            yield replace(found, places=[(max(start - 2, 0), max(end - 2, 0)) for start, end in found.places])

    monkeypatch.setattr(chatml._encoder, "encode_all", shifted)
    with pytest.raises(DataError, match="row 'r': the targets decode to"):
        chatml.conversation([USER, REPLY], id="r")


def test_many_at_once_are_as_each_alone(chatml, monkeypatch):
    """Plain ones, one with a special token's text in it and refused ones, over the bounds of what runs together."""
    monkeypatch.setattr(render, "_TOGETHER", 4)
    escaped = Message("user", "What does <|im_end|> mean?")
    talks = [
        [USER, REPLY],
        [escaped, REPLY],
        [USER],
        [],
        CHAT,
        [escaped],
        [USER, REPLY],
        CHAT,
        [escaped, REPLY],
    ]
    found = list(chatml.conversations((str(i), talk) for i, talk in enumerate(talks)))
    assert len(found) == len(talks)
    for i, (talk, each) in enumerate(zip(talks, found, strict=True)):
        if isinstance(each, DataError):
            with pytest.raises(DataError) as alone:
                chatml.conversation(talk, id=str(i))
            assert str(each) == str(alone.value)
        else:
            assert each == chatml.conversation(talk, id=str(i))
    assert [i for i, each in enumerate(found) if isinstance(each, DataError)] == [2, 3, 5]


def test_refusals_name_the_row(chatml):
    """Closes T2: no assistant turn is an error that names the row, not an all-zero mask."""
    with pytest.raises(DataError, match="row 'r1': there is no assistant turn"):
        chatml.conversation([USER], id="r1")
    with pytest.raises(DataError, match="row 'r2': there are no messages"):
        chatml.conversation([], id="r2")
    with pytest.raises(DataError, match="ends in an assistant turn"):
        chatml.prompt([USER, REPLY])


def test_templates_that_raise(chatml_tokenizer):
    """`raise_exception` in a template refuses a row; a template that refuses a plain chat is a bad model."""
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    body = "{% for m in messages %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}"
    renderer = Renderer(chatml_tokenizer, picky + body)
    with pytest.raises(DataError, match=r"row 'r3': the chat template refuses .*no system turns"):
        renderer.conversation([Message("system", "x"), USER, REPLY], id="r3")
    with pytest.raises(ModelError, match="cannot render a plain conversation"):
        Renderer(chatml_tokenizer, "{% for m in messages %}{{ raise_exception('never') }}{% endfor %}")


def test_no_template(make_tokenizer):
    with pytest.raises(ModelError, match="no chat template; name one"):
        Renderer(make_tokenizer(template=None))


def test_nothing_ends_a_turn(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="nothing ends a turn"):
        Renderer(tokenizer, "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}")


def test_first_token_is_no_target(chatml_tokenizer):
    """Nothing predicts a row's first token, so it is no target even where the assistant speaks at once."""
    renderer = Renderer(chatml_tokenizer, "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    row = renderer.conversation([REPLY])
    assert not row.mask[0] and all(row.mask[1:])


def test_decode_skips_special_tokens(chatml):
    row = chatml.conversation([Message("system", "S"), USER, REPLY])
    assert chatml.decode(row.ids) == f"system\nS\nuser\n{USER.content}\nassistant\n{REPLY.content}\n"


def test_truncation_left_in_the_tokenizer_does_not_matter(make_tokenizer):
    """A tokenizer remembers its last caller's truncation; rows are whole and the fingerprint stays."""
    tokenizer = make_tokenizer()
    renderer = Renderer(tokenizer)
    whole = renderer.conversation(CHAT)
    tokenizer("x " * 50, truncation=True, max_length=5, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation is not None
    again = Renderer(tokenizer)
    assert again.conversation(CHAT) == whole
    tokenizer("x " * 50, truncation=True, max_length=5)
    assert Renderer(tokenizer).fingerprint == renderer.fingerprint


def test_fingerprint_covers_template_and_tokenizer(make_tokenizer):
    """Part of T13: another template, vocabulary, normaliser or EOS is another fingerprint."""
    prints = [
        Renderer(make_tokenizer()).fingerprint,
        Renderer(make_tokenizer(), "tulu").fingerprint,
        Renderer(make_tokenizer(), "tulu_bos").fingerprint,
        Renderer(make_tokenizer(vocab_size=350)).fingerprint,
        Renderer(make_tokenizer(nfc=True)).fingerprint,
        Renderer(make_tokenizer(eos="<|endoftext|>")).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert Renderer(make_tokenizer()).fingerprint == prints[0]


def test_header_without_generation_prompt_is_a_target(chatml_tokenizer):
    """Where a template offers no generation prompt, a sampler must write the header, so it is learned."""
    template = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    renderer = Renderer(chatml_tokenizer, template)
    row, prompt = renderer.conversation([USER, REPLY]), renderer.prompt([USER])
    assert targets(renderer, row) == "assistant:The answer is 42.<|im_end|>"
    assert row.ids[: len(prompt)] == prompt
    assert not any(row.mask[: len(prompt)]) and all(row.mask[len(prompt) :])
