"""The engine: requests join the running batch as room allows and leave it one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.errors import RecipeError
from posttrain.model.attention import round_up
from posttrain.model.decoder import Angles, Shape
from posttrain.records import Completion, StopReason
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.draft import MOST, Drafts
from posttrain.rollout.engine.draw import draw
from posttrain.rollout.engine.forward import Held, prefill
from posttrain.rollout.engine.running import Prompt, Sample, Token, noise_of
from posttrain.rollout.engine.starts import Start, Starts
from posttrain.rollout.engine.step import PlainSteps, SteadySteps, Steps, can_record
from posttrain.rollout.engine.weights import EngineWeights
from posttrain.rollout.sampler import Request, Sampling

_PREFILL_TOKENS = 4096
"""Prompt tokens run in one forward pass at most (a longer prompt runs alone)."""


class Engine:
    """A `Sampler` in this process, for the Llama and OLMo 2 families, on a CPU or a GPU.

    `stop_ids` end a completion; `decode` turns ids to text without special tokens. `cache_gib` bounds the
    keys and values held at once (GiB), `max_rows` the samples that run together. `steady` decodes over buffers
    that stay; None: on a GPU, which replays such steps as graphs (`step.py`). `drafts` lets a sample that runs alone
    be guessed ahead, where the compiled kernels are (`draft.py`): faster, at a byte per parameter.
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
        steady: bool | None = None,
        drafts: bool = False,
    ) -> None:
        self.shape = Shape.of(config)
        self.max_positions = int(config.max_position_embeddings)
        self.dtype, self.device = dtype, torch.device(device)
        self.max_rows = max_rows
        self._stop_ids = frozenset(stop_ids)
        self._decode_text = decode
        self._angles = Angles(config, self.device)
        self._budget_tokens = int(cache_gib * 2**30 / Cache.bytes_per_token(self.shape, dtype))
        is_steady = can_record(self.device) if steady is None else steady
        # what a graph replays reads one place for all of a sample's keys
        self._cache = Cache(self.shape, dtype=dtype, device=self.device, plain=is_steady)
        self._starts = Starts(self._cache)
        kind = SteadySteps if is_steady else PlainSteps
        self._steps: Steps = kind(self.shape, self._angles, self._cache, self.device)
        self._may_draft = drafts and not is_steady and Drafts.fits(config, self._cache)
        self._drafts: Drafts | None = None
        self._weights: EngineWeights | None = None
        self._before: Held | None = None
        self.version = 0
        self._waiting: deque[Prompt] = deque()
        self._prompts: dict[int, Prompt] = {}
        self._samples: list[Sample] = []
        self._streams: dict[int, deque[Token]] = {}
        self._unclaimed: dict[int, list[Completion]] = {}
        self._next_handle = 0

    # -- the Sampler protocol ---------------------------------------------------------------------

    def load(self, weights: Mapping[str, Tensor], *, version: int) -> None:
        """Copy `weights` in. Refused while requests run: their cached keys belong to the old weights."""
        self.unload()  # before the new ones: two copies need twice the memory
        self._weights = EngineWeights.of(
            weights, self.shape, dtype=self.dtype, device=self.device, rows=min(64, self.max_rows)
        )
        self._steps.load(self._weights)
        if self._may_draft:
            self._drafts = Drafts(self._weights, self.shape, self._angles, self._cache)
        self.version = version

    def unload(self) -> None:
        """Give the weights' memory back; `load` must come before the next request. Refused while requests run."""
        if self._samples or self._waiting:
            raise RuntimeError("weights cannot change while requests are running")
        self._weights = self._drafts = self._before = None
        self._steps.load(None)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """For each request, in order, one completion per seed, in order."""
        for request in requests:  # before any is queued: a refusal must leave the engine as it was
            self._refuse_impossible(request, sampling)
        self._before = None  # the answer is that of a fresh engine to the bit, as a resumed run needs
        handles = [self.submit(request, sampling) for request in requests]
        done: dict[int, list[Completion]] = {}
        while self.busy:
            done.update(self.step()[1])
        return [done[handle] for handle in handles]

    # -- requests ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running, or finished while another was streamed."""
        return bool(self._prompts or self._unclaimed)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values allocated now."""
        token = Cache.bytes_per_token(self.shape, self.dtype)
        return self._cache.nbytes + token * _tokens_of(sample.prompt.start for sample in self._samples)

    def submit(self, request: Request, sampling: Sampling) -> int:
        """Queue `request`; its handle names it in `step`'s results and in `cancel`."""
        self._refuse_impossible(request, sampling)
        prompt = Prompt(self._next_handle, request, sampling, [None] * len(request.seeds))
        self._next_handle += 1
        self._waiting.append(prompt)
        self._prompts[prompt.handle] = prompt
        return prompt.handle

    def _refuse_impossible(self, request: Request, sampling: Sampling) -> None:
        if not request.prompt_ids or not request.seeds or sampling.max_new_tokens < 1:
            raise ValueError("a request needs a prompt, at least one seed and max_new_tokens >= 1")
        total = len(request.prompt_ids) + sampling.max_new_tokens
        if total > self.max_positions or round_up(total) > self._budget_tokens:
            raise RecipeError(
                f"a prompt of {len(request.prompt_ids)} tokens and {sampling.max_new_tokens} new ones need "
                f"{total} positions; the model has {self.max_positions} and the cache {self._budget_tokens}"
            )

    def cancel(self, handle: int) -> list[Completion] | None:
        """End a request now; what it has becomes its completions, marked "cancelled". None if unknown."""
        prompt = self._prompts.pop(handle, None)
        if prompt is None:
            return None
        if prompt in self._waiting:
            self._waiting.remove(prompt)
        for sample in [sample for sample in self._samples if sample.prompt is prompt]:
            self._finish(sample, "cancelled")
        self._clear_when_idle()
        return [c or Completion((), (), "cancelled", "", self.version) for c in prompt.completions]

    def step(self) -> tuple[list[Token], dict[int, list[Completion]]]:
        """Admit what fits, draw one token for every running sample; the tokens and the finished requests.

        Requests that are streamed are not among the finished.
        """
        tokens, done = self._advance()
        done, self._unclaimed = self._unclaimed | done, {}
        return tokens, done

    def stream(self, request: Request, sampling: Sampling) -> Iterator[Token]:
        """Tokens of one request as they are drawn; others go on meanwhile, and several may be streamed."""
        handle = self.submit(request, sampling)
        own = self._streams[handle] = deque[Token]()
        try:
            while own or handle in self._prompts:
                if own:
                    yield own.popleft()
                else:
                    self._unclaimed |= self._advance()[1]
        finally:
            del self._streams[handle]
            self.cancel(handle)

    # -- inside -----------------------------------------------------------------------------------

    def _advance(self) -> tuple[list[Token], dict[int, list[Completion]]]:
        if self._weights is None:
            raise RuntimeError("load weights before generating")
        tokens = self._admit()
        if self._samples:
            tokens += self._decode_step()
        for token in tokens:
            if token.handle in self._streams:
                self._streams[token.handle].append(token)
        finished = [p for p in self._prompts.values() if None not in p.completions]
        for prompt in finished:
            del self._prompts[prompt.handle]
        self._clear_when_idle()
        return tokens, {
            p.handle: [c for c in p.completions if c is not None]
            for p in finished
            if p.handle not in self._streams
        }

    def _clear_when_idle(self) -> None:
        if not self._prompts:
            self._steps.rest()

    def _admit(self) -> list[Token]:
        """Move waiting samples into the batch while rows and cache allow; draw their first tokens."""
        started: list[Sample] = []
        fresh: list[Prompt] = []
        held, known = 0, 0
        while self._waiting:
            prompt = self._waiting[0]
            is_new = prompt.logits is None and prompt not in fresh
            if prompt.start is None:
                following = self._waiting[1].request.prompt_ids if len(self._waiting) > 1 else None
                prompt.start = self._starts.of(prompt.request, following)
            room = self._room(prompt, started)
            if room < 1:
                break
            if is_new:
                held += len(prompt.request.prompt_ids)
                known = min(known, self._known(prompt)) if fresh else self._known(prompt)
                run = held - known * (len(fresh) + 1)
                # too many tokens for one pass, to run or to hold
                if fresh and (run > _PREFILL_TOKENS or held > 4 * _PREFILL_TOKENS):
                    break
                fresh.append(prompt)
            wanted = len(prompt.request.seeds) - prompt.next_sample
            for _ in range(min(wanted, room)):
                started.append(Sample(prompt, prompt.next_sample))
                prompt.next_sample += 1
            if room < wanted:
                break
            self._waiting.popleft()
        if fresh:
            assert self._weights is not None
            ids = [prompt.request.prompt_ids for prompt in fresh]
            logits, found = prefill(self._weights, self.shape, self._angles, ids, before=self._before)
            for prompt, row, held in zip(fresh, logits, found, strict=True):
                prompt.logits, prompt.held = row, held
                assert prompt.start is not None
                prompt.start.fill(self._cache, held.keys, held.values)
            # few-shot exemplars, a system message, the earlier turns of a chat: likely the next one's start too
            self._before = found[-1]
        return self._start(started) if started else []

    def _known(self, prompt: Prompt) -> int:
        """Tokens of the prompt that need not be run."""
        return 0 if self._before is None else self._before.shared_with(prompt.request.prompt_ids)

    def _room(self, prompt: Prompt, started: list[Sample]) -> int:
        """How many more samples of `prompt` may start, were every sample to reach its limit."""
        prompts = [prompt, *(sample.prompt for sample in (*self._samples, *started))]
        return self._most_rows(prompts) - len(self._samples) - len(started)

    def _most_rows(self, prompts: Sequence[Prompt]) -> int:
        """How many samples of `prompts` may run: their starts, and a rectangle of what follows."""
        left = self._budget_tokens - _tokens_of(prompt.start for prompt in prompts)
        return min(self.max_rows, left // round_up(max(prompt.longest for prompt in prompts)))

    def _start(self, started: list[Sample]) -> list[Token]:
        """Give each new sample a slot that begins with its prompt, and draw its first token."""
        first = len(self._samples)
        self._samples += started
        self._reserve(max(s.filled for s in self._samples) + 1)
        logits = []
        for slot, sample in enumerate(started, start=first):
            prompt = sample.prompt
            assert prompt.held is not None and prompt.logits is not None
            rest = (x[:, :, prompt.depth :] for x in (prompt.held.keys, prompt.held.values))
            self._cache.put(slot, *rest)
            logits.append(prompt.logits)
        for prompt in {sample.prompt.handle: sample.prompt for sample in started}.values():
            if prompt.next_sample == len(prompt.request.seeds):
                prompt.held = None
        return self._record(started, *self._draw(torch.stack(logits), started))

    def _reserve(self, length: int) -> None:
        longest = max(sample.prompt.longest for sample in self._samples)

        def most_rows() -> int:
            coming = sum(len(p.request.seeds) - p.next_sample for p in self._waiting)
            return min(self._most_rows([s.prompt for s in self._samples]), len(self._samples) + coming)

        self._steps.reserve(len(self._samples), length, longest=longest, most_rows=most_rows)

    def _decode_step(self) -> list[Token]:
        """The next token of every sample; of one that runs alone also those that a draft guessed right."""
        samples = list(self._samples)
        self._reserve(max(sample.filled for sample in samples))
        guesses = self._guess(samples[0]) if len(samples) == 1 else []
        if not guesses or self._drafts is None:
            ids, lengths = [s.ids[-1] for s in samples], [s.length for s in samples]
            logits = self._steps(ids, lengths, [s.trunk for s in samples])
            return self._record(samples, *self._draw(logits, samples))
        (sample,) = samples
        lengths = [sample.length + i for i in range(len(guesses) + 1)]
        logits = self._steps([sample.ids[-1], *guesses], lengths, [sample.trunk] * len(lengths), alone=True)
        ids, nats = self._draw(logits, samples * len(lengths), ahead=range(len(lengths)))
        right = next((i for i, guess in enumerate(guesses) if guess != ids[i]), len(guesses))
        self._drafts.learn(len(guesses), right)
        return [
            token
            for i in range(right + 1)
            if self._samples  # a right guess may still lie behind the sample's end
            for token in self._record(samples, ids[i : i + 1], nats[i : i + 1])
        ]

    def _guess(self, sample: Sample) -> list[int]:
        """Tokens that may follow the only sample's newest, fewer than it has left."""
        sampling = sample.prompt.sampling
        most = min(MOST, sampling.max_new_tokens - len(sample.ids) - 1)
        if self._drafts is None or most < 1:
            return []
        self._reserve(sample.filled + most)
        noise = noise_of([sample] * most, range(most))
        newest = sample.ids[-1], sample.length, sample.trunk
        return self._drafts.guess(*newest, noise, sampling.temperature)

    def _draw(
        self, logits: Tensor, samples: Sequence[Sample], ahead: Sequence[int] | None = None
    ) -> tuple[list[int], list[float]]:
        """A token and its log-probability (nats) for each row of logits, whose sample it is; `ahead` counts the
        tokens between its newest and the row's.
        """
        offsets = ahead or [0] * len(samples)
        ids, nats = np.empty(len(samples), np.int64), np.empty(len(samples), np.float32)
        by_rule: dict[tuple[float, float, int], list[int]] = {}
        for i, sample in enumerate(samples):  # limits and stop texts do not change how a token is drawn
            given = sample.prompt.sampling
            by_rule.setdefault((given.temperature, given.top_p, given.top_k), []).append(i)
        noise = torch.from_numpy(noise_of(samples, offsets)).to(self.device)
        for rows in by_rule.values():
            is_all = len(rows) == len(samples)
            chosen = (logits, noise) if is_all else (logits[rows], noise[rows])
            drawn, found = draw(chosen[0], samples[rows[0]].prompt.sampling, chosen[1])
            ids[rows], nats[rows] = drawn.cpu().numpy(), found.float().cpu().numpy()
        return ids.tolist(), nats.tolist()

    def _record(self, samples: Sequence[Sample], ids: Sequence[int], nats: Sequence[float]) -> list[Token]:
        """Give each of `samples` its token, and end those that end."""
        for sample, token, logprob in zip(samples, ids, nats, strict=True):
            sample.ids.append(token)
            sample.logprobs.append(logprob)
        tokens = []
        # only now: ending one moves another, which must be as long as the cache has it
        for sample in samples:
            reason = self._stop_reason(sample)
            if reason is not None:
                self._finish(sample, reason)
            done = sample.prompt.completions[sample.index]
            tokens.append(Token(sample.prompt.handle, sample.index, sample.ids[-1], done))
        return tokens

    def _stop_reason(self, sample: Sample) -> StopReason | None:
        sampling = sample.prompt.sampling
        if sample.ids[-1] in self._stop_ids:
            return "stop"
        if sampling.stop:
            # a stop text's last character is in the newest token; the tail is long enough to hold it all
            tail = self._decode_text(sample.ids[-max(len(text.encode()) for text in sampling.stop) - 8 :])
            if any(text in tail for text in sampling.stop):
                return "stop"
        return "length" if len(sample.ids) >= sampling.max_new_tokens else None

    def _finish(self, sample: Sample, reason: StopReason) -> None:
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
            # the newest token is not cached yet
            self._cache.move(len(self._samples), slot, last.filled - 1)


def _tokens_of(starts: Iterable[Start | None]) -> int:
    """Tokens of the different ones among `starts`."""
    return sum(start.depth for start in {id(start): start for start in starts if start is not None}.values())
