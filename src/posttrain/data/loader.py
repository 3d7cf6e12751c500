"""The order in which a stage reads its rows: seeded, endless if asked, resumable anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from posttrain.errors import CheckpointError


@dataclass(slots=True)
class Loader:
    """Yields lists of row indices: each epoch is a fresh permutation of `range(num_rows)`.

    Its whole state is (seed, epoch, offset); a loader given another's state goes on exactly as that one
    would have. The permutation of an epoch depends on the seed and the epoch alone, not on batch size.
    """

    num_rows: int
    batch_size: int
    """Rows per batch; the last of an epoch may be smaller unless `drop_last`."""
    seed: int
    epochs: int | None = None
    """Passes over the rows; None never ends."""
    drop_last: bool = False
    """Skip an epoch's last batch when it is not full."""
    epoch: int = 0
    offset: int = 0
    """Rows of this epoch already given out."""
    _order: list[int] = field(default_factory=list, repr=False)
    _order_epoch: int = field(default=-1, repr=False)

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.batch_size < 1:
            raise ValueError(f"num_rows {self.num_rows} and batch_size {self.batch_size} must be at least 1")
        if self.drop_last and self.batch_size > self.num_rows:
            raise ValueError(f"batch_size {self.batch_size} is more than the {self.num_rows} rows there are")

    @property
    def batches_per_epoch(self) -> int:
        """Batches one epoch gives."""
        full, rest = divmod(self.num_rows, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        if self.epochs is not None and self.epoch >= self.epochs:
            raise StopIteration
        batch = self._permutation()[self.offset : self.offset + self.batch_size]
        self.offset += len(batch)
        left = self.num_rows - self.offset
        if left == 0 or (self.drop_last and left < self.batch_size):
            self.epoch, self.offset = self.epoch + 1, 0
        return batch

    def _permutation(self) -> list[int]:
        if self._order_epoch != self.epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
            self._order = generator.permutation(self.num_rows).tolist()
            self._order_epoch = self.epoch
        return self._order

    def state_dict(self) -> dict[str, int]:
        """Where the next batch starts."""
        return {"seed": self.seed, "epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from `state`; a CheckpointError if it is not a state of a loader over these rows."""
        seed, epoch, offset = (state[name] for name in ("seed", "epoch", "offset"))
        if seed != self.seed:
            raise CheckpointError(f"the checkpoint read its rows with seed {seed}, this run has {self.seed}")
        if epoch < 0 or not 0 <= offset < self.num_rows:
            raise CheckpointError(
                f"the checkpoint stopped at epoch {epoch}, row {offset}, but there are {self.num_rows} rows: "
                "the data has changed since, so start a new run"
            )
        self.epoch, self.offset = epoch, offset
