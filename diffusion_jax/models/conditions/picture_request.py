"""Sentences that conditions share whose request is an image."""

from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import Condition


def needed(path: Path | None, flag: str) -> Path:
    """path; raises UserError where the user gives none."""
    if path is None:
        raise UserError(f"this model draws what an image says; give {flag}=FILE")
    return path


def refused(flag: str, told: Sequence[Condition]) -> str:
    """What a user is told who gives an image to a model that is told others, or none."""
    flags = [next(iter(condition.takes.values())) for condition in told if condition.takes and condition.of_image]
    return f"{flag} is of a model trained with it; this one takes {', '.join(flags) or 'no image'}"


def sides(shape: Sequence[int]) -> str:
    """Such as "4 x 6"."""
    return " x ".join(map(str, shape))
