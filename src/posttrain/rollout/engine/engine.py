"""The engine: requests join the running batch as room allows and leave it one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.errors import RecipeError
from posttrain.model.decoder import Angles, Shape
from posttrain.records import Completion, StopReason
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.draw import draw, uniforms
from posttrain.rollout.engine.forward import Step, decode, prefill
from posttrain.rollout.engine.weights import EngineWeights
from posttrain.rollout.sampler import Request, Sampling

_PREFILL_TOKENS = 4096
"""Prompt tokens run in one forward pass at most (a longer prompt runs alone)."""


@dataclass(slots=True, eq=False)
class _Prompt:
    """A request whose prompt is cached, or waits to be."""

    handle: int
    request: Request
    sampling: Sampling
    completions: list[Completion | None]
    next_sample: int = 0
    slot: int = -1
    logits: Tensor | None = None


@dataclass(slots=True, eq=False)
class _Sample:
    """One running sample. Its place in the engine's list is its slot in the cache."""

    prompt: _Prompt
    index: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return self.prompt.request.seeds[self.index]


@dataclass(frozen=True, slots=True)
class Token:
    """One drawn token of a running request, for streaming; `completion` is set on the sample's last."""

    handle: int
    sample: int
    id: int
    completion: Completion | None


class Engine:
    """A `Sampler` in this process, for the Llama and OLMo 2 families, on a CPU or a GPU.

    `stop_ids` end a completion; `decode` turns ids to text without special tokens. `cache_gib` bounds the
    keys and values held at once (GiB), `max_rows` the samples that run together.
    """

    def __init__(
        self,
        config: Any,
        *,
        stop_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        max_rows: int = 256,
        cache_gib: float = 2.0,
    ) -> None:
        self.shape = Shape.of(config)
        self.max_positions = int(config.max_position_embeddings)
        self.dtype, self.device = dtype, torch.device(device)
        self.max_rows = max_rows
        self._stop_ids = frozenset(stop_ids)
        self._decode_text = decode
        self._angles = Angles(config, self.device)
        self._budget_tokens = int(cache_gib * 2**30 / Cache.bytes_per_token(self.shape, dtype))
        self._prompt_cache = Cache(self.shape, dtype=dtype, device=self.device)
        self._sample_cache = Cache(self.shape, dtype=dtype, device=self.device)
        self._weights: EngineWeights | None = None
        self.version = 0
        self._waiting: deque[_Prompt] = deque()
        self._prompts: list[_Prompt] = []
        self._samples: list[_Sample] = []
        self._next_handle = 0

    # -- the Sampler protocol ---------------------------------------------------------------------

    def load(self, weights: Mapping[str, Tensor], *, version: int) -> None:
        """Copy `weights` in. Refused while requests run: their cached keys belong to the old weights."""
        if self._samples or self._waiting:
            raise RuntimeError("weights cannot change while requests are running")
        self._weights = EngineWeights.of(
            weights, self.shape, dtype=self.dtype, device=self.device, rows=min(64, self.max_rows)
        )
        self.version = version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """For each request, in order, one completion per seed, in order."""
        handles = [self.submit(request, sampling) for request in requests]
        done: dict[int, list[Completion]] = {}
        while self.busy:
            done.update(self.step()[1])
        return [done[handle] for handle in handles]

    # -- requests ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._prompts)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values allocated now."""
        return self._prompt_cache.nbytes + self._sample_cache.nbytes

    def submit(self, request: Request, sampling: Sampling) -> int:
        """Queue `request`; its handle names it in `step`'s results and in `cancel`."""
        if not request.prompt_ids or not request.seeds or sampling.max_new_tokens < 1:
            raise ValueError("a request needs a prompt, at least one seed and max_new_tokens >= 1")
        total = len(request.prompt_ids) + sampling.max_new_tokens
        if total > min(self.max_positions, self._budget_tokens):
            raise RecipeError(
                f"a prompt of {len(request.prompt_ids)} tokens and {sampling.max_new_tokens} new ones need "
                f"{total} positions; the model has {self.max_positions} and the cache {self._budget_tokens}"
            )
        prompt = _Prompt(self._next_handle, request, sampling, [None] * len(request.seeds))
        self._next_handle += 1
        self._waiting.append(prompt)
        return prompt.handle

    def cancel(self, handle: int) -> list[Completion] | None:
        """End a request now; what it has becomes its completions, marked "cancelled". None if unknown."""
        for prompt in [*self._waiting, *self._prompts]:
            if prompt.handle == handle:
                prompt.next_sample = len(prompt.request.seeds)
                for sample in [s for s in self._samples if s.prompt is prompt]:
                    self._finish(sample, "cancelled")
                if prompt in self._waiting:
                    self._waiting.remove(prompt)
                if prompt.slot >= 0:
                    self._release(prompt)
                return [c or Completion((), (), "cancelled", "", self.version) for c in prompt.completions]
        return None

    def step(self) -> tuple[list[Token], dict[int, list[Completion]]]:
        """Admit what fits, draw one token for every running sample; the tokens and the finished requests."""
        if self._weights is None:
            raise RuntimeError("load weights before generating")
        tokens = self._admit()
        if self._samples:
            tokens += self._draw(self._decode_step(), self._samples)
        done = {}
        for prompt in [p for p in self._prompts if all(c is not None for c in p.completions)]:
            done[prompt.handle] = [c for c in prompt.completions if c is not None]
            self._release(prompt)
        if not self.busy:
            self._prompt_cache.clear()
            self._sample_cache.clear()
        return tokens, done

    def stream(self, request: Request, sampling: Sampling) -> Iterator[Token]:
        """Tokens of one request as they are drawn."""
        handle = self.submit(request, sampling)
        try:
            while self.busy:
                yield from (token for token in self.step()[0] if token.handle == handle)
        finally:
            self.cancel(handle)

    # -- inside -----------------------------------------------------------------------------------

    def _admit(self) -> list[Token]:
        """Move waiting samples into the batch while rows and cache allow; draw their first tokens."""
        started: list[_Sample] = []
        fresh: list[_Prompt] = []
        while self._waiting:
            prompt = self._waiting[0]
            wanted = len(prompt.request.seeds) - prompt.next_sample
            size = len(prompt.request.prompt_ids)
            is_new = prompt.slot < 0
            room = self.max_rows - len(self._samples) - len(started)
            room = min(room, self._room(prompt, started, fresh))
            crowded = is_new and fresh and size + sum(len(p.request.prompt_ids) for p in fresh) > _PREFILL_TOKENS
            if room < 1 or crowded:
                break
            if is_new:
                prompt.slot = len(self._prompts) + len(fresh)
                fresh.append(prompt)
            for _ in range(min(wanted, room)):
                started.append(_Sample(prompt, prompt.next_sample))
                prompt.next_sample += 1
            if room < wanted:
                break
            self._waiting.popleft()
        if fresh:
            self._prefill(fresh)
        if not started:
            return []
        first = len(self._samples)
        self._samples += started
        return self._draw(torch.stack([s.prompt.logits for s in started]), self._samples[first:])  # type: ignore[misc]

    def _room(self, prompt: _Prompt, started: list[_Sample], fresh: list[_Prompt]) -> int:
        """How many more samples of `prompt` the cache holds, were every sample to reach its limit."""
        held = [s.prompt.sampling.max_new_tokens for s in (*self._samples, *started)]
        prompts = [len(p.request.prompt_ids) for p in (*self._prompts, *fresh)]
        if prompt.slot < 0:
            prompts.append(len(prompt.request.prompt_ids))
        # both caches are rectangles, so each slot counts as long as the longest
        longest = max([*held, prompt.sampling.max_new_tokens])
        left = self._budget_tokens - len(prompts) * max(prompts)
        return left // longest - len(held)

    def _prefill(self, fresh: list[_Prompt]) -> None:
        assert self._weights is not None
        first = len(self._prompts)
        self._prompts += fresh
        self._prompt_cache.reserve(len(self._prompts), max(len(p.request.prompt_ids) for p in fresh))
        ids = [p.request.prompt_ids for p in fresh]
        logits = prefill(self._weights, self.shape, self._angles, ids, self._prompt_cache, first)
        for prompt, row in zip(fresh, logits, strict=True):
            prompt.logits = row

    def _decode_step(self) -> Tensor:
        assert self._weights is not None
        samples = self._samples
        lengths = [len(s.ids) for s in samples]
        self._sample_cache.reserve(len(samples), max(lengths))
        counts = [0] * len(self._prompts)
        places = []
        for sample in samples:
            places.append((sample.prompt.slot, counts[sample.prompt.slot]))
            counts[sample.prompt.slot] += 1
        most = max(counts)
        flat = [slot * most + order for slot, order in places]
        in_order = flat == list(range(len(self._prompts) * most))

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, device=self.device)

        step = Step(
            ids=tensor([s.ids[-1] for s in samples]),
            positions=tensor([len(s.prompt.request.prompt_ids) + len(s.ids) - 1 for s in samples]),
            sample_lengths=tensor(lengths),
            prompt_lengths=tensor([len(p.request.prompt_ids) for p in self._prompts]),
            places=None if in_order else tensor(flat),
            samples_per_prompt=most,
        )
        return decode(self._weights, self.shape, self._angles, step, self._prompt_cache, self._sample_cache)

    def _draw(self, logits: Tensor, samples: Sequence[_Sample]) -> list[Token]:
        """Draw one token for each of `samples` (logits row by row), record it, and end those that end."""
        samples = list(samples)
        ids, logprobs = np.empty(len(samples), np.int64), np.empty(len(samples), np.float32)
        for sampling in dict.fromkeys(s.prompt.sampling for s in samples):
            rows = [i for i, s in enumerate(samples) if s.prompt.sampling == sampling]
            chosen = logits if len(rows) == len(samples) else logits[rows]
            seeds = np.array([samples[i].seed for i in rows], np.uint64)
            indices = np.array([len(samples[i].ids) for i in rows], np.uint64)
            uniform = torch.from_numpy(uniforms(seeds, indices).astype(np.float32)).to(self.device)
            drawn, nats = draw(chosen, sampling, uniform)
            ids[rows], logprobs[rows] = drawn.cpu().numpy(), nats.float().cpu().numpy()
        tokens = []
        for sample, token, logprob in zip(samples, ids.tolist(), logprobs.tolist(), strict=True):
            sample.ids.append(token)
            sample.logprobs.append(logprob)
            reason = self._stop_reason(sample)
            if reason is not None:
                self._finish(sample, reason)
            done = sample.prompt.completions[sample.index]
            tokens.append(Token(sample.prompt.handle, sample.index, token, done))
        return tokens

    def _stop_reason(self, sample: _Sample) -> StopReason | None:
        sampling = sample.prompt.sampling
        if sample.ids[-1] in self._stop_ids:
            return "stop"
        if sampling.stop:
            # a stop text's last character is in the newest token; the tail is long enough to hold it all
            tail = self._decode_text(sample.ids[-max(len(text) for text in sampling.stop) - 8 :])
            if any(text in tail for text in sampling.stop):
                return "stop"
        return "length" if len(sample.ids) >= sampling.max_new_tokens else None

    def _finish(self, sample: _Sample, reason: StopReason) -> None:
        """Record the completion and give its slot to the last sample."""
        text = self._decode_text(sample.ids)
        cuts = [text.find(stop) for stop in sample.prompt.sampling.stop if stop in text]
        sample.prompt.completions[sample.index] = Completion(
            ids=tuple(sample.ids),
            logprobs=tuple(sample.logprobs),
            stop_reason=reason,
            text=text[: min(cuts)] if cuts else text,
            weights_version=self.version,
        )
        slot = self._samples.index(sample)
        last = self._samples.pop()
        if last is not sample:
            self._samples[slot] = last
            # what a sample drew last is not cached yet, and one just admitted has nothing cached
            if len(last.ids) > 1:
                self._sample_cache.move(len(self._samples), slot, len(last.ids) - 1)

    def _release(self, prompt: _Prompt) -> None:
        """Give the prompt's slot to the last prompt."""
        last = self._prompts.pop()
        if last is not prompt:
            self._prompts[prompt.slot] = last
            self._prompt_cache.move(last.slot, prompt.slot, len(last.request.prompt_ids))
            last.slot = prompt.slot
        prompt.slot = -1
