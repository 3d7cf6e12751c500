"""The largest micro-batch that a stage can meet: what memory is planned for, and what a rehearsal runs."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config.dpo import DPO
from posttrain.config.grpo import GRPO
from posttrain.config.ppo import PPO
from posttrain.config.reward_model import RewardModel
from posttrain.config.sft import SFT
from posttrain.config.stages import Settings


@dataclass(frozen=True, slots=True)
class Bundle:
    """`rows` rows that begin with the same `shared` tokens and go on for `own` tokens each."""

    shared: int
    own: int
    rows: int = 1

    @property
    def packed_tokens(self) -> int:
        """Tokens computed: what is shared, once."""
        return self.shared + self.rows * self.own

    @property
    def row_tokens(self) -> int:
        """Tokens of one row."""
        return self.shared + self.own

    @property
    def targets(self) -> int:
        """Tokens that a loss may be taken on: nothing predicts a row's first."""
        return self.rows * (self.own if self.shared else self.own - 1)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The longest rows, as many as come together."""

    bundles: tuple[Bundle, ...]
    per_update: int
    """Micro-batches of this size that one optimizer update adds up, at most."""

    @property
    def packed_tokens(self) -> int:
        """Tokens that pass through the layers."""
        return sum(bundle.packed_tokens for bundle in self.bundles)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, what is shared counted in each."""
        return sum(bundle.rows * bundle.row_tokens for bundle in self.bundles)

    @property
    def targets(self) -> int:
        """Tokens that meet the output projection."""
        return sum(bundle.targets for bundle in self.bundles)


def longest_row(settings: Settings) -> int:
    """Most tokens that one row of the stage has: the longest prompt and the longest completion."""
    if isinstance(settings, GRPO | PPO):
        return settings.max_prompt_tokens + settings.max_new_tokens
    return settings.max_tokens


def largest_micro_batch(settings: Settings, max_tokens: int) -> MicroBatch:
    """The largest micro-batch of a stage whose micro-batches hold at most `max_tokens` tokens to compute.

    Rows of one problem share its prompt; other rows may differ from their first token on, so nothing else is
    counted as shared. A row or pair beyond `max_tokens` makes a micro-batch alone.
    """
    longest = longest_row(settings)
    if isinstance(settings, GRPO | PPO):
        return _of_rollouts(settings, max_tokens, longest)
    if isinstance(settings, SFT) and settings.rows_per_micro_batch is not None:
        rows = min(settings.rows_per_micro_batch, settings.batch_rows)
        return MicroBatch((Bundle(0, longest, rows),), -(-settings.batch_rows // rows))
    unit = longest if isinstance(settings, SFT) else 2 * longest
    units = _rows_per_update(settings) if isinstance(settings, SFT) else _rows_per_update(settings) // 2
    tokens = max(unit, min(max_tokens, units * unit))
    full, rest = divmod(tokens, longest)
    bundles = [Bundle(0, longest, full)] + [Bundle(0, rest)] * (rest > 1)
    return MicroBatch(tuple(bundles), _count(units * unit, tokens))


def _of_rollouts(settings: GRPO | PPO, max_tokens: int, longest: int) -> MicroBatch:
    rows, new = _rows_per_update(settings), settings.max_new_tokens
    if settings.rows_per_micro_batch is not None:
        # shuffled rows in their given order: none need share its prompt with its neighbour
        size = min(settings.rows_per_micro_batch, rows)
        return MicroBatch((Bundle(settings.max_prompt_tokens, new),) * size, -(-rows // size))
    bundles: list[Bundle] = []
    left, room = rows, max_tokens
    while left and (room >= longest or not bundles):
        count = max(1, min(settings.samples_per_prompt, left, (room - settings.max_prompt_tokens) // new))
        bundles.append(Bundle(settings.max_prompt_tokens, new, count))
        left, room = left - count, room - bundles[-1].packed_tokens
    if left and room > 1:
        bundles.append(Bundle(0, min(room, longest)))
    batch = MicroBatch(tuple(bundles), 1)
    # a shuffled mini-batch may hold one row of each problem, and then nothing is shared
    return MicroBatch(batch.bundles, _count(rows * longest, batch.packed_tokens))


def _rows_per_update(settings: Settings) -> int:
    if isinstance(settings, GRPO | PPO):
        return settings.rows_per_update
    if isinstance(settings, DPO | RewardModel):
        return 2 * settings.batch_pairs
    return settings.batch_rows


def _count(total: int, tokens: int) -> int:
    return max(1, -(-total // tokens))
