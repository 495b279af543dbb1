"""How the options in a config.json of another library are read; one without a counterpart here is an error."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from diffusion_jax.errors import UserError

K = TypeVar("K")
V = TypeVar("V")

NO_DEFAULT: tuple[Any, ...] = ()
"""The default of an option that a file must give."""

_WITHOUT_EFFECT = {"num_train_timesteps", "upcast_attention", "addition_embed_type_num_heads", "force_upcast"}
"""Options that change nothing of what a network computes in float32."""


def completed(
    config: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], where: str
) -> dict[str, Any]:
    """config completed with defaults; fixed has the values that are computed here of options without a choice.

    Raises UserError for another value of a fixed option, an unknown option, and an option that is missing.
    """
    for key, value in config.items():
        if key in fixed and value not in fixed[key]:
            raise UserError(
                f"{where}: {key}={value!r} has no twin here; {' or '.join(map(repr, fixed[key]))} is what is computed"
            )
        if key not in defaults and key not in fixed and key not in _WITHOUT_EFFECT and not key.startswith("_"):
            raise UserError(f"{where}: the option {key}={value!r} is unknown here")
    said = dict(defaults) | {key: value for key, value in config.items() if key in defaults}
    if lacking := [key for key, value in said.items() if defaults[key] == NO_DEFAULT and value in (None, NO_DEFAULT)]:
        raise UserError(f"{where} does not say {lacking[0]}; add it")
    return said


def choice(value: K, ours: Mapping[K, V], key: str, where: str) -> V:
    """ours[value]; raises UserError where a value of the option `key` is none of ours."""
    if value not in ours:
        raise UserError(f"{where}: {key}={value!r} has no twin here; it is {' or '.join(map(repr, ours))}")
    return ours[value]


def one_number(said: Mapping[str, Any], key: str, where: str) -> int:
    """The value of an option that may be a list with a number for each level; raises UserError where these differ."""
    value = said[key]
    each = set(value) if isinstance(value, list | tuple) else {value}
    if len(each) != 1 or not isinstance(one := min(each), int):
        raise UserError(f"{where}: {key}={value!r} has no twin here; it is one whole number for all levels")
    return one


def height_and_width(size: int | Sequence[int], where: str) -> tuple[int, int]:
    """(H, W) of a sample_size, which is one number for a square; raises UserError for more than two."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise UserError(f"{where}: sample_size={size!r} is no side, nor height and width")
    return sides[0], sides[1]
