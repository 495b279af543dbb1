"""What conditions share whose request is an image: a check, and sentences for a user."""

from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import Condition


def needed(path: Path | None, flag: str) -> Path:
    """path; raises UserError where it is None."""
    if path is None:
        raise UserError(f"this model draws what an image says; give {flag}=FILE")
    return path


def refused(flag: str, told: Sequence[Condition]) -> str:
    """The sentence for an image that is given to a model with the conditions `told`."""
    flags = [next(iter(condition.takes.values())) for condition in told if condition.takes and condition.of_image]
    return f"{flag} is of a model trained with it; this one takes {', '.join(flags) or 'no image'}"


def sides(shape: Sequence[int]) -> str:
    """A size as text, such as "4 x 6"."""
    return " x ".join(map(str, shape))
