"""Which of a stage's steps is its result, and which others it was chosen among."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.report.record import StageRecord
from posttrain.report.wording import SPACE, percent


@dataclass(frozen=True, slots=True)
class Candidate:
    """One measured step; scores are fractions, NaN or None where there are none."""

    step: int
    episode: int | None
    score: float
    stderr: float | None
    is_kept: bool

    @property
    def spelt(self) -> str:
        """`41.2 ± 3.1 %`."""
        error = "" if self.stderr is None else f" ± {100 * self.stderr:.1f}"
        return f"{100 * self.score:.1f}{error}{SPACE}%"


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished stage's step. `keep` is what the recipe asked for: best, last or a number."""

    label: str
    keep: str | int
    step: int
    num_steps: int
    episode: int | None
    score: float | None
    candidates: tuple[Candidate, ...]

    @property
    def where(self) -> str:
        """`step 80 of 120 (episode 61,440)`."""
        episode = "" if self.episode is None else f" (episode {self.episode:,})"
        return f"step {self.step:,} of {self.num_steps:,}{episode}"

    @property
    def sentence(self) -> str:
        """The result and the reason."""
        if self.keep == "best":
            why = f"the best of {len(self.candidates)} measured steps with {percent(self.score or 0.0)}"
        elif self.keep == "last":
            why = "the last, as the recipe says"
        else:
            why = "the one that the recipe names"
        return f"The result of {self.label} is {self.where}: {why}."


def kept_of(stage: StageRecord) -> Kept | None:
    """What the stage kept; None while it trains, and for a stage that was not measured."""
    record = stage.kept
    if record is None or not isinstance(record.get("step"), int):
        return None
    each = stage.episodes_per_step
    return Kept(
        label=stage.label,
        keep=record.get("keep", "last"),
        step=record["step"],
        num_steps=int(record.get("num_steps") or record["step"]),
        episode=None if each is None else record["step"] * each,
        score=record.get("score"),
        candidates=tuple(
            Candidate(
                one["step"],
                None if each is None else one["step"] * each,
                one["score"],
                one.get("stderr"),
                one["step"] == record["step"],
            )
            for one in record.get("candidates") or ()
            if one.get("score") is not None
        ),
    )
