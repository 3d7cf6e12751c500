"""What a run will see, before it runs: the machine, and real rows as the loss reads them.

Only the tokenizer is loaded, never the model's weights.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from rich.console import Console
from rich.text import Text

from posttrain.cli_tables import table
from posttrain.config.parts import Source, parse_source
from posttrain.config.recipe import Recipe
from posttrain.errors import DataError
from posttrain.records import Conversation, Dropped, Preference, Problem, Row

if TYPE_CHECKING:
    from posttrain.data.render import Renderer

Item = TypeVar("Item", Conversation, Preference, Problem)

MOST_ROWS = 2_000
"""Rows of each source that are looked at."""

MOST_TOKENS = 400
"""Longer rows are shown without their middle."""

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instruction sets that decide how fast a CPU trains; the last two compute in bfloat16."""


def show_environment(console: Console) -> None:
    """Versions, device, number formats, cores, memory and free disk."""
    import torch

    from posttrain.data.cache import cache_folder
    from posttrain.model.native.allocator import fit_blocks
    from posttrain.model.native.build import library, status
    from posttrain.model.resolve import cache_dir
    from posttrain.train.manifest import describe_machine, describe_versions

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = describe_machine(device="cuda" if gpu else "cpu", dtype="")
    flags = cpu_flags()
    grid = table(console, "environment", "")
    versions = describe_versions()
    shown = ("python", "posttrain", "torch", "transformers", "tokenizers", "datasets")
    grid.add_row("versions", ", ".join(f"{name} {versions[name]}" for name in shown if name in versions))
    grid.add_row("device", f"cuda: {gpu}" if gpu else "cpu (no CUDA device)")
    grid.add_row(
        "processor", f"{machine['cpu']}, {machine['cores']} cores, {torch.get_num_threads()} torch threads"
    )
    grid.add_row("cpu flags", ", ".join(f"{flag} {'yes' if flag in flags else 'no'}" for flag in CPU_FLAGS))
    fast = gpu is not None and torch.cuda.is_bf16_supported()
    native = fast or bool({"avx512_bf16", "amx_bf16"} & flags)
    grid.add_row("bfloat16", "in hardware" if native else "emulated: float32 is faster here")
    grid.add_row("kernels", f"{'ours' if library() is not None else 'PyTorch only'}: {status()}")
    grid.add_row("allocator", fit_blocks())
    grid.add_row("memory", f"{machine['ram_gib']} GiB")
    grid.add_row("model cache", _disk(cache_dir()))
    grid.add_row("token cache", _disk(cache_folder()))
    grid.add_row("this folder", _disk(Path.cwd()))
    console.print(grid)


def show_recipe(recipe: Recipe, *, num_rows: int, console: Console) -> None:
    """Every stage's sources as tokens, audited, with `num_rows` rows of each shown."""
    renderer, folder = _renderer(recipe.model, recipe.model_revision, recipe.chat_template, console)
    show_tokenizer(renderer, folder, console)
    for index, stage in enumerate(recipe.stages):
        for key, sources in stage.sources:
            for source in sources:
                console.print(Text(f"\n{recipe.stage_folder(index)} {key}: {source.label}", style="bold"))
                if key.endswith("problems"):
                    _show_problems(_problems(source), renderer, num_rows, console)
                elif stage.sft is not None:
                    rows = _conversations(source)
                    _show_conversations(rows, renderer, stage.sft.max_tokens, num_rows, console)
                elif (settings := stage.dpo or stage.reward_model) is not None:
                    pairs = _preferences(source)
                    _show_preferences(pairs, renderer, settings.max_tokens, num_rows, console)
    if recipe.evaluation is not None:
        console.print(Text(f"\nevaluation.problems: {recipe.evaluation.problems.label}", style="bold"))
        _show_problems(_problems(recipe.evaluation.problems), renderer, num_rows, console)


def show_model(
    model: str, data: str | None, *, chat_template: str | None, num_rows: int, console: Console
) -> None:
    """A model's tokenizer and, with `data`, its conversations as tokens."""
    renderer, folder = _renderer(model, None, chat_template, console)
    show_tokenizer(renderer, folder, console)
    if data is not None:
        _show_conversations(_conversations(parse_source(data)), renderer, 2**31, num_rows, console)


def show_tokenizer(renderer: Renderer, folder: Path, console: Console) -> None:
    """Special tokens, what ends a turn, and what is surprising about either."""
    tokenizer = renderer.tokenizer
    grid = table(console, "\ntokenizer", "")
    for name in ("bos", "eos", "pad"):
        token, number = getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")
        grid.add_row(name, "none" if token is None else f"{token!r} ({number})")
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in renderer.stop_ids)
    grid.add_row("ends a turn", stops)
    grid.add_row("vocabulary", f"{len(tokenizer):,} tokens")
    console.print(grid)
    for finding in tokenizer_findings(renderer, generation_eos(folder)):
        _warn(finding, console)


def tokenizer_findings(renderer: Renderer, generation_ids: Sequence[int]) -> list[str]:
    """What to know about a tokenizer; `generation_ids` are those its generation_config.json stops at."""
    tokenizer, findings = renderer.tokenizer, []
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        findings.append(
            "pad and eos are one token: masks here go by position, so it is learned; "
            "a trainer that masks by id would hide it and the model would never stop"
        )
    closing = renderer.stop_ids[0]
    if generation_ids and closing not in generation_ids:
        findings.append(
            f"generation_config.json stops at {sorted(generation_ids)}, but a turn ends with "
            f"{tokenizer.convert_ids_to_tokens(closing)!r} ({closing}): other servers would run past it"
        )
    return findings


def row_findings(rows: Sequence[Row], renderer: Renderer) -> list[str]:
    """What the tokens of training rows show: BOS tokens at positions 0 and 1, and turns left open."""
    findings = []
    bos = renderer.tokenizer.bos_token_id
    doubled = sum(1 for row in rows if bos is not None and row.ids[:2].count(bos) == 2)
    if doubled:
        findings.append(
            f"{doubled} of {len(rows)} rows begin with two BOS tokens: take one out of the template"
        )
    left_open = sum(1 for row in rows if not closes(row, renderer.stop_ids))
    if left_open:
        findings.append(
            f"in {left_open} of {len(rows)} rows the last target does not end the turn: "
            "the model would not learn to stop"
        )
    return findings


def closes(row: Row, stop_ids: Sequence[int]) -> bool:
    """True when the row's last target is a token that ends a turn."""
    targets = [token for token, is_target in zip(row.ids, row.mask, strict=True) if is_target]
    return bool(targets) and targets[-1] in stop_ids


def masked_text(row: Row, decode: Callable[[Sequence[int]], str], *, colour: bool) -> Text:
    """A row's text with its targets highlighted, or in [brackets] where there is no colour."""
    pairs: list[tuple[int, bool] | None] = list(zip(row.ids, row.mask, strict=True))
    left_out = len(pairs) - MOST_TOKENS
    if left_out > 0:
        pairs[MOST_TOKENS // 2 : -MOST_TOKENS // 2] = [None]
    text = Text()
    for is_target, run in itertools.groupby(pairs, key=lambda pair: pair if pair is None else pair[1]):
        if is_target is None:
            text.append(f" ... {left_out} tokens left out ... ", style="italic")
            continue
        words = decode([pair[0] for pair in run if pair is not None]).replace("\n", "⏎\n")
        if colour:
            text.append(words, style="black on green" if is_target else "dim")
        else:
            text.append(f"[{words}]" if is_target else words)
    return text


def cpu_flags(information: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The processor's flags as Linux lists them; empty elsewhere."""
    if not information.is_file():
        return set()
    for line in information.read_text(errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(flags.split())
    return set()


def generation_eos(folder: Path) -> list[int]:
    """The ids at which a model's generation_config.json stops; empty if it does not say."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _show_conversations(
    conversations: Sequence[Conversation],
    renderer: Renderer,
    max_tokens: int,
    num_rows: int,
    console: Console,
) -> None:
    from posttrain.data.rows import sft_rows

    escaped = renderer.num_escaped
    rows, dropped = sft_rows(conversations, renderer, max_tokens=max_tokens)
    _show_rows(rows, dropped, renderer, num_rows, console, escaped=renderer.num_escaped - escaped)


def _show_preferences(
    preferences: Sequence[Preference], renderer: Renderer, max_tokens: int, num_rows: int, console: Console
) -> None:
    from posttrain.data.pairs import pair_rows

    escaped = renderer.num_escaped
    pairs, dropped = pair_rows(preferences, renderer, max_tokens=max_tokens)
    rows = [side for pair in pairs for side in pair]
    _show_rows(rows, dropped, renderer, 2 * num_rows, console, escaped=renderer.num_escaped - escaped)


def _show_rows(
    rows: Sequence[Row],
    dropped: Dropped,
    renderer: Renderer,
    num_rows: int,
    console: Console,
    *,
    escaped: int,
) -> None:
    for row in rows[:num_rows]:
        console.print(Text(f"\n{row.id}: {len(row.ids)} tokens, {sum(row.mask)} targets", style="bold"))
        console.print(masked_text(row, _decoder(renderer), colour=console.is_terminal), soft_wrap=True)
    tokens, targets = sum(len(row.ids) for row in rows), sum(sum(row.mask) for row in rows)
    bos = renderer.tokenizer.bos_token_id
    opened = sum(1 for row in rows if bos is not None and row.ids[:2].count(bos) == 1)
    ended = sum(1 for row in rows if closes(row, renderer.stop_ids))
    console.print(
        f"\nlooked at {len(rows):,} rows: {tokens:,} tokens, {targets:,} targets ({targets / tokens:.0%}); "
        f"{opened:,} open with one BOS; {ended:,} end in a closing token that is a target",
        soft_wrap=True,
        highlight=False,
    )
    for finding in row_findings(rows, renderer):
        _warn(finding, console)
    if escaped:
        _warn(
            f"{escaped} special-token strings stood in messages; they are encoded as ordinary text", console
        )
    if dropped.counts:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.counts.items())
        _warn(f"dropped: {counts}; for example {dropped.examples[0]}", console)


def _show_problems(problems: Sequence[Problem], renderer: Renderer, num_rows: int, console: Console) -> None:
    lengths = [len(renderer.prompt(problem.messages)) for problem in problems]
    for problem in problems[:num_rows]:
        console.print(Text(f"\n{problem.id} (checked by {problem.verifier})", style="bold"))
        text = renderer.text(problem.messages, generation_prompt=True)
        console.print(
            Text(text.replace("\n", "⏎\n"), style="dim" if console.is_terminal else ""), soft_wrap=True
        )
    console.print(
        f"\nlooked at {len(problems):,} problems: prompts of {min(lengths)} to {max(lengths)} tokens",
        soft_wrap=True,
        highlight=False,
    )


def _conversations(source: Source) -> list[Conversation]:
    from posttrain.data.conversation import parse_conversation

    return _first_rows(source, parse_conversation)


def _preferences(source: Source) -> list[Preference]:
    from posttrain.data.conversation import parse_preference

    return _first_rows(source, parse_preference)


def _problems(source: Source) -> list[Problem]:
    from posttrain.data.conversation import parse_problem
    from posttrain.data.writing import count_available, kind_pools, writing_problems

    if source.builtin is None:
        return _first_rows(source, parse_problem)
    split: Literal["train", "heldout"] = "train" if source.split == "train" else "heldout"
    most = min(count_available(kind_pools(split)), MOST_ROWS)
    num = min(most, source.amount) if isinstance(source.amount, int) else most
    return writing_problems(split, num=num, seed=0)


def _first_rows(source: Source, parse: Callable[..., Item]) -> list[Item]:
    """The source's first rows as conversations, preferences or problems; DataError names a row that is "
    "none."""
    from posttrain.data.sources import read_rows

    if source.builtin is not None:
        raise DataError(f"{source.label} holds problems, not conversations; use it as problems")
    rows = read_rows(source.path or str(source.hub), split=source.split, revision=source.revision)
    taken = itertools.islice(rows, MOST_ROWS)
    return [parse(row.values, place=row.place, default_id=row.default_id, source=rows.name) for row in taken]


def _renderer(
    model: str, revision: str | None, chat_template: str | None, console: Console
) -> tuple[Renderer, Path]:
    from transformers import AutoTokenizer

    from posttrain.data.render import Renderer
    from posttrain.model.resolve import resolve

    folder = resolve(model, revision, console=console)
    return Renderer(AutoTokenizer.from_pretrained(folder), chat_template), folder


def _decoder(renderer: Renderer) -> Callable[[Sequence[int]], str]:
    def decode(ids: Sequence[int]) -> str:
        return str(renderer.tokenizer.decode(list(ids), skip_special_tokens=False))

    return decode


def _disk(folder: Path) -> str:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{folder} ({shutil.disk_usage(there).free / 2**30:.0f} GiB free)"


def _warn(sentence: str, console: Console) -> None:
    console.print(Text.assemble(("note: ", "bold yellow"), sentence), soft_wrap=True)
