"""What the loops' tests share: learners on the tiny model, scripted samplers, a model that can stop."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import runpy
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from posttrain.config.grpo import GRPO
from posttrain.config.ppo import PPO
from posttrain.data.render import Renderer
from posttrain.model.load import load_model, load_tokenizer
from posttrain.records import Batch, Completion, Group, Message, Problem, Rollout, Row, Score
from posttrain.rewards.verifier import VERIFIERS, Verifier
from posttrain.rollout.engine import Engine
from posttrain.rollout.open import engine_for
from posttrain.rollout.sampler import Request, Sampling
from posttrain.runtime.local import LocalLearner
from posttrain.train.progress import Progress, Track

CPU = torch.device("cpu")
IMPORTED_ONCE = [
    "posttrain.train.run",
    "posttrain.rewards",
    "pyarrow.parquet",
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.generation",
]
"""By the process that the killed ones are forked from; it starts no thread."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tiny matrices are slower on two threads than on one."""
    torch.set_num_threads(1)


class PlainLearner(LocalLearner):
    """Gradient descent in place of AdamW, which hides a wrong constant factor of the loss.

    Notes the gradient of every update before it is clipped, and every batch it was given.
    """

    def __init__(self, folder: Path, **settings) -> None:
        super().__init__(
            load_model(folder, dtype=torch.float32, device=CPU), compute_dtype=torch.float32, **settings
        )
        self._optimizer = torch.optim.SGD(self._parameters, lr=0.0)
        self.gradients: list[torch.Tensor] = []
        self.batches: list[Batch] = []

    def forward_backward(self, batch, loss_fn):
        self.batches.append(batch)
        return super().forward_backward(batch, loss_fn)

    def optim_step(self, *, learning_rate, max_grad_norm):
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in self._parameters]))
        return super().optim_step(learning_rate=learning_rate, max_grad_norm=max_grad_norm)

    def flat(self) -> torch.Tensor:
        """All weights in one vector."""
        return torch.cat([p.detach().flatten().clone() for p in self._parameters])


class Scripted:
    """A sampler that answers `reply(request, seed)`; it notes the versions it was given and the requests."""

    def __init__(self, reply: Callable[[Request, int], Completion]) -> None:
        self.reply = reply
        self.versions: list[int] = []
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        self.requests += requests
        return [[self.reply(request, seed) for seed in request.seeds] for request in requests]

    def load(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        self.versions.append(version)

    def unload(self) -> None:
        """What it would drop it never had."""


@pytest.fixture
def plain_learner(tiny_llama_dir) -> Callable[..., PlainLearner]:
    """Makes gradient-descent learners on the tiny model."""
    return lambda **settings: PlainLearner(tiny_llama_dir, **settings)


@pytest.fixture
def adam_learner(tiny_llama_dir) -> Callable[..., LocalLearner]:
    """Makes learners as the stages use them."""

    def make(**settings) -> LocalLearner:
        module = load_model(tiny_llama_dir, dtype=torch.float32, device=CPU)
        return LocalLearner(module, compute_dtype=torch.float32, **settings)

    return make


@pytest.fixture
def scripted() -> Callable[..., Scripted]:
    """Makes scripted samplers."""
    return Scripted


@pytest.fixture(scope="session")
def renderer(tiny_llama_dir) -> Renderer:
    return Renderer(load_tokenizer(tiny_llama_dir))


@pytest.fixture
def engine(tiny_llama_dir, renderer) -> Engine:
    """The built-in engine with the tiny model's weights."""
    model = load_model(tiny_llama_dir, dtype=torch.float32, device=CPU)
    made = engine_for(model, renderer, dtype=torch.float32, device=CPU, cache_gib=0.05)
    made.load(model.state_dict(), version=0)
    return made


@pytest.fixture
def track() -> Iterator[Track]:
    with Progress(Console(file=io.StringIO())) as progress, progress.track("stage", 1) as opened:
        yield opened


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
    """Rows of very unequal lengths, about half of each a target."""

    def make(count: int, *, seed: int = 0, longest: int = 40) -> list[Row]:
        generator = random.Random(seed)
        rows = []
        for number in range(count):
            length = generator.choice([4, 6, longest // 2, longest])
            ids = tuple(generator.randrange(3, 320) for _ in range(length))
            prompt = generator.randrange(1, length - 1)
            rows.append(Row(f"row{number}", ids, (False,) * prompt + (True,) * (length - prompt)))
        return rows

    return make


@pytest.fixture
def make_groups() -> Callable[..., list[Group]]:
    """Groups of random completions of unequal lengths with given rewards (P, G)."""

    def make(rewards: Sequence[Sequence[float]], *, seed: int = 0, logprob: float = -5.7) -> list[Group]:
        generator = random.Random(seed)
        groups = []
        for number, values in enumerate(rewards):
            problem = Problem(f"p{number}", (Message("user", "Go."),), "", "string")
            prompt = tuple(generator.randrange(3, 320) for _ in range(generator.choice([2, 9])))
            rollouts = []
            for value in values:
                length = generator.choice([1, 3, 12, 30])
                ids = tuple(generator.randrange(3, 320) for _ in range(length))
                completion = Completion(ids, (logprob,) * length, "stop", "text")
                rollouts.append(Rollout(problem, prompt, completion, Score(value, "correct"), value))
            groups.append(Group(problem, tuple(rollouts)))
        return groups

    return make


@pytest.fixture
def grpo() -> Callable[..., GRPO]:
    """GRPO settings: small, one update per step, nothing clipped by norm, with what is given on top."""

    def make(**settings) -> GRPO:
        small = {
            "problems": [{"builtin": "writing"}],
            "steps": 1,
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "mini_batches": 1,
            "max_new_tokens": 6,
            "learning_rate": 0.1,
            "max_grad_norm": None,
            "kl_coefficient": 0.0,
            "reward_scale": 1.0,
            "no_stop_score": None,
        }
        return GRPO.model_validate(small | settings)

    return make


@pytest.fixture
def ppo() -> Callable[..., PPO]:
    """PPO settings: small, one update per step, nothing whitened or clipped by norm, with what is given on top."""

    def make(**settings) -> PPO:
        small = {
            "problems": [{"builtin": "writing"}],
            "steps": 1,
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "inner_epochs": 1,
            "max_new_tokens": 6,
            "learning_rate": 0.1,
            "max_grad_norm": None,
            "kl_coefficient": 0.0,
            "value_start": "policy",
            "whiten_advantages": False,
            "max_logprob_difference_nats": None,
        }
        return PPO.model_validate(small | settings)

    return make


@pytest.fixture
def temporary_verifier() -> Iterator[Callable[..., str]]:
    """Registers a verifier for one test and returns its name."""
    names: list[str] = []

    def register(check: Callable[[str, object], Score]) -> str:
        name = f"only-in-this-test-{len(names)}"
        VERIFIERS[name] = Verifier(name, check, (), ())
        names.append(name)
        return name

    yield register
    for name in names:
        del VERIFIERS[name]


@pytest.fixture
def make_problems() -> Callable[..., list[Problem]]:
    """Problems with prompts of different lengths."""

    def make(count: int, verifier: str = "string", truth: object = None) -> list[Problem]:
        return [
            Problem(
                f"p{i}",
                (Message("user", "Go on. " * (1 + i % 3) + str(i)),),
                float(i) if truth is None else truth,
                verifier,
                "made up",
            )
            for i in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def talker_dir(tiny_llama_dir, tmp_path_factory) -> Path:
    """The tiny model after it learned to answer with one of four letters and to stop. Read only."""
    from posttrain.config.sft import SFT
    from posttrain.data.rows import sft_rows
    from posttrain.model.export import save_model
    from posttrain.records import Conversation
    from posttrain.train.checkpoint import Checkpoints
    from posttrain.train.metrics import MetricsLog
    from posttrain.train.sft import train_sft

    folder = tmp_path_factory.mktemp("talker")
    spoken = Renderer(load_tokenizer(tiny_llama_dir))
    learner = LocalLearner(
        load_model(tiny_llama_dir, dtype=torch.float32, device=CPU), compute_dtype=torch.float32
    )
    talk = [
        Conversation(f"{i}{letter}", (Message("user", f"Say {i}."), Message("assistant", letter)))
        for i in range(8)
        for letter in "abcd"
    ]
    rows, _ = sft_rows(talk, spoken, max_tokens=200)
    cfg = SFT(data=[{"path": "x"}], epochs=16, batch_rows=16, learning_rate=1e-2)
    with MetricsLog(folder / "metrics.jsonl") as log, Progress(Console(file=io.StringIO())) as progress:
        train_sft(
            learner,
            rows,
            cfg,
            seed=1,
            max_tokens=2000,
            log=log,
            checkpoints=Checkpoints(folder / "checkpoints", every=None),
            track=progress.track("stage", 1),
        )
    return save_model(
        folder / "model",
        config=learner.module.config,
        weights=learner.weights(),
        tokenizer=spoken.tokenizer,
        renderer_stop_ids=spoken.stop_ids,
        chat_template=None,
        dtype=torch.float32,
        base_model="tiny",
    )


@pytest.fixture(scope="session")
def recipe_files(talker_dir, tmp_path_factory) -> Path:
    """A folder with data and `tiny.yaml`: all three stages on the talker, seconds long. Read only."""
    import json

    import yaml

    folder = tmp_path_factory.mktemp("recipe")

    def write(name: str, rows: list[dict]) -> dict:
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"path": str(path)}

    def ask(i: int) -> dict:
        return {"role": "user", "content": f"Say {i}."}

    def problems(count: int) -> list[dict]:
        return [
            {"id": f"p{i}", "messages": [ask(i)], "ground_truth": ["a", "b"], "dataset": "string"}
            for i in range(count)
        ]

    talk = [
        {"id": f"c{i}", "messages": [ask(i), {"role": "assistant", "content": "ab"[i % 2]}]} for i in range(8)
    ]
    train, held_out = write("train.jsonl", problems(8)), write("heldout.jsonl", problems(12)[8:])
    own = {"problems": [train], "samples_per_problem": 8, "keep_per_problem": 2, "max_new_tokens": 4}
    steady = {"learning_rate": 1e-3, "save_every_steps": 3}
    sft = {"data": [write("talk.jsonl", talk)], "rejection": own, "batch_rows": 8, "max_tokens": 200}
    dpo = {"rejection": own, "batch_pairs": 6, "epochs": 3, "loss": "dpo", "beta": 0.1, "max_tokens": 200}
    grpo = {
        "problems": [train],
        "steps": 6,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "max_new_tokens": 4,
        "max_logprob_difference_nats": None,
    }
    recipe = {
        "name": "tiny",
        "model": str(talker_dir),
        "output": str(folder / "run"),
        "runtime": {
            "device": "cpu",
            "compute_dtype": "float32",
            "threads": 1,
            "max_tokens_per_micro_batch": 300,
            "sampler_cache_gib": 0.05,
        },
        "evaluation": {"problems": held_out, "samples_per_problem": 4, "max_new_tokens": 4},
        "stages": [{"sft": sft | steady}, {"dpo": dpo | steady}, {"grpo": grpo | steady}],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="session")
def kill():
    """Starts the recipe in a fresh process, which must end by its own SIGKILL at `moment`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)

    def run(recipe: Path, overrides: list[str], moment: str, stage: str) -> None:
        case = {"recipe": recipe, "overrides": overrides, "moment": moment, "stage": stage}
        case["cache"] = os.environ["POSTTRAIN_CACHE"]  # the fork server has an older environment
        process = context.Process(
            target=runpy.run_path,
            args=(str(Path(__file__).with_name("killed_run.py")),),
            kwargs={"init_globals": {"case": case}},
        )
        process.start()
        process.join(timeout=120)
        assert process.exitcode == -signal.SIGKILL, f"{stage} was not killed: {moment}"

    return run


@pytest.fixture(scope="session")
def run_tiny(recipe_files) -> Callable[..., tuple[Path, str]]:
    """Runs `tiny.yaml` (or `recipe`) in this process into `output`; returns the folder and what was said."""
    from posttrain.config.load import load_recipe
    from posttrain.train.run import run

    def go(output: Path, *overrides: str, recipe: Path = recipe_files / "tiny.yaml") -> tuple[Path, str]:
        said = io.StringIO()
        loaded = load_recipe(recipe, [f"output={output}", *overrides])
        return run(loaded, console=Console(file=said, width=300)), said.getvalue()

    return go
