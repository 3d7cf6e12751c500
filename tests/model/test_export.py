"""What `save_model` writes loads by path alone and gives the same logits."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from posttrain.errors import ModelError
from posttrain.model.export import save_model
from posttrain.model.tiny import tiny_llama, tiny_olmo2

IDS = torch.tensor([[1, 200, 37, 318, 2, 64, 64, 5]])


def read(path):
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def save(path, model, tokenizer, **changes):
    arguments = {
        "config": model.config,
        "weights": model.state_dict(),
        "tokenizer": tokenizer,
        "renderer_stop_ids": [tokenizer.eos_token_id],
        "chat_template": None,
        "dtype": torch.float32,
        "base_model": "tiny",
    }
    return save_model(path, **(arguments | changes))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture(params=["llama tied", "llama untied", "olmo2 untied", "olmo2 tied"])
def trained(request, tmp_path):
    """A model whose every weight has moved away from its initial value, as after training."""
    family, _, tied = request.param.partition(" ")
    write = tiny_llama if family == "llama" else tiny_olmo2
    model, tokenizer = read(write(tmp_path / "base", tied=tied == "tied"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model, tokenizer


def test_reloaded_logits_are_equal(trained, tmp_path):
    """Closes T56 for tied and untied heads: names, norms and the head survive the round trip."""
    model, tokenizer = trained
    reloaded, _ = read(save(tmp_path / "out", model, tokenizer))
    torch.testing.assert_close(logits(reloaded), logits(model), rtol=0, atol=1e-5)


def test_resized_vocabulary_reloads(trained, tmp_path):
    """Closes T56 for a resized vocabulary, though `config` still tells the old size."""
    model, tokenizer = trained
    stale = type(model.config)(**(model.config.to_dict()))
    model.resize_token_embeddings(336, mean_resizing=False)
    assert stale.vocab_size == 320
    reloaded, _ = read(save(tmp_path / "out", model, tokenizer, config=stale))
    assert reloaded.config.vocab_size == 336
    assert logits(reloaded).shape[-1] == 336
    torch.testing.assert_close(logits(reloaded), logits(model), rtol=0, atol=1e-5)
    assert stale.vocab_size == 320, "the caller's config was changed"


def test_tied_head_may_be_given_or_left_out_and_is_stored_once(tiny_llama_dir, tmp_path):
    """Closes T56 for the missing `lm_head`: a tied model is stored alike with and without it."""
    from safetensors import safe_open

    model, tokenizer = read(tiny_llama_dir)
    given = model.state_dict()
    without = {name: value for name, value in given.items() if name != "lm_head.weight"}
    head_only = {name: value for name, value in given.items() if name != "model.embed_tokens.weight"}
    assert "lm_head.weight" in given
    for case, weights in {"given": given, "without": without, "head": head_only}.items():
        folder = save(tmp_path / case, model, tokenizer, weights=weights)
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (the file is no mapping)
        assert torch.equal(logits(read(folder)[0]), logits(model))


def test_weights_that_do_not_fit_are_refused(tiny_llama_dir, tmp_path):
    model, tokenizer = read(tiny_llama_dir)
    weights = model.state_dict()
    norm = "model.layers.1.input_layernorm.weight"
    cases = {
        f"lack {norm}": {name: value for name, value in weights.items() if name != norm},
        r"is \(31,\) and its config says \(32,\)": weights | {norm: torch.ones(31)},
        "knows no weight model.extra": weights | {"model.extra": torch.ones(1)},
        "ties .* but their weights differ": weights | {"lm_head.weight": weights["lm_head.weight"] + 1},
    }
    for sentence, wrong in cases.items():
        with pytest.raises(ModelError, match=sentence):
            save(tmp_path / "out", model, tokenizer, weights=wrong)
    assert not (tmp_path / "out").exists()


def test_tokenizer_larger_than_the_embedding_is_refused(tiny_llama_dir, tmp_path):
    model, tokenizer = read(tiny_llama_dir)
    tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(ModelError, match="321 ids and the embedding 320 rows"):
        save(tmp_path / "out", model, tokenizer)


def test_generation_stops_at_every_id_that_training_used(tiny_llama_dir, tmp_path):
    """Closes T4: the last trained token of a turn ends generation after a reload."""
    model, tokenizer = read(tiny_llama_dir)
    end, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    folder = save(tmp_path / "out", model, tokenizer, renderer_stop_ids=[other])
    assert set(GenerationConfig.from_pretrained(folder).eos_token_id) == {other, end}
    reloaded, _ = read(folder)
    assert set(reloaded.config.eos_token_id) == {other, end}

    # A model whose head only knows `other`: generation must stop after one token.
    untied, _ = read(tiny_llama(tmp_path / "untied", tied=False))
    weights = {name: torch.ones_like(value) for name, value in untied.state_dict().items()}
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    weights["lm_head.weight"][other] = 1.0
    certain, _ = read(
        save(tmp_path / "certain", untied, tokenizer, weights=weights, renderer_stop_ids=[other])
    )
    out = certain.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=5, do_sample=False)
    assert out[0, IDS.shape[1] :].tolist() == [other]


def test_pad_id_is_set_even_without_a_pad_token(tiny_llama_dir, tmp_path):
    model, tokenizer = read(tiny_llama_dir)
    tokenizer.pad_token = None
    reloaded, _ = read(save(tmp_path / "out", model, tokenizer))
    assert reloaded.config.pad_token_id == reloaded.generation_config.pad_token_id == tokenizer.eos_token_id


def test_dtype_and_base_are_recorded_and_kept(tiny_llama_dir, tmp_path):
    """Closes T57: loaded by path only, the dtype is the one saved, and the base model is named."""
    model, tokenizer = read(tiny_llama_dir)
    folder = save(
        tmp_path / "out",
        model,
        tokenizer,
        dtype=torch.bfloat16,
        base_model="owner/base",
        base_revision="abc123",
        metadata={"stage": "sft"},
    )
    reloaded, _ = read(folder)
    assert {parameter.dtype for parameter in reloaded.parameters()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    record = json.loads((folder / "posttrain.json").read_text())
    assert (record["base_model"], record["base_revision"]) == ("owner/base", "abc123")
    assert (record["dtype"], record["metadata"]) == ("bfloat16", {"stage": "sft"})
    assert model.config.dtype == torch.float32, "the caller's config was changed"


def test_the_template_of_training_is_the_one_saved(tiny_llama_dir, tmp_path):
    model, tokenizer = read(tiny_llama_dir)
    own = tokenizer.chat_template
    template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    folder = save(tmp_path / "out", model, tokenizer, chat_template=template)
    _, reloaded = read(folder)
    assert reloaded.apply_chat_template([{"role": "user", "content": "é"}], tokenize=False) == "[é]"
    assert tokenizer.chat_template == own, "the caller's tokenizer was changed"
    assert read(save(tmp_path / "kept", model, tokenizer))[1].chat_template == own


def test_config_saved_is_fit_to_serve(tiny_llama_dir, tmp_path):
    model, tokenizer = read(tiny_llama_dir)
    model.config.use_cache = False  # as trainers do
    model.config.quantization_config = {"quant_method": "gguf"}
    written = json.loads((save(tmp_path / "out", model, tokenizer) / "config.json").read_text())
    assert written["use_cache"] is True
    assert "quantization_config" not in written
    assert written["architectures"] == ["LlamaForCausalLM"]


def test_saving_again_replaces_a_model_but_never_other_files(tiny_llama_dir, tmp_path):
    model, tokenizer = read(tiny_llama_dir)
    folder = save(tmp_path / "out", model, tokenizer)
    (folder / "stale.txt").write_text("from an earlier save")
    save(folder, model, tokenizer)
    assert not (folder / "stale.txt").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("precious")
    with pytest.raises(ModelError, match="was not written by posttrain"):
        save(other, model, tokenizer)
    assert (other / "chapter1.tex").read_text() == "precious"


def test_weights_are_as_readable_as_the_other_files(tiny_llama_dir):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tiny_llama_dir.iterdir()}
    assert len(modes) == 1
