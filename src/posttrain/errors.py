"""Mistakes a user can mend. The command line prints their sentence and exits with their code."""

from __future__ import annotations


class UserError(Exception):
    """One sentence that says what is wrong and what to do; never shown with a traceback."""

    exit_code = 2


class RecipeError(UserError):
    """The recipe or the command line asks for something that does not exist or cannot be."""

    exit_code = 2


class DataError(UserError):
    """A data file or row cannot be used."""

    exit_code = 3


class ModelError(UserError):
    """A model or tokenizer is missing, incomplete or of an unsupported kind."""

    exit_code = 4


class CheckpointError(UserError):
    """A run folder or checkpoint is damaged, belongs to another recipe, or cannot be written."""

    exit_code = 5


class TrainingError(UserError):
    """Training went where it must not: numbers that are not finite, a sampler that is not the policy."""

    exit_code = 6
