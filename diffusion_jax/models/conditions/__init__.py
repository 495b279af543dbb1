"""The conditions that a model can be told: `CONDITIONS` of config.spatial, and class and caption, which have keys."""

from collections.abc import Sequence

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.caption import Caption
from diffusion_jax.models.conditions.condition import NEGATIVE, BatchEntry, Condition, Entries
from diffusion_jax.models.conditions.inpaint import Inpaint
from diffusion_jax.models.conditions.label import Label
from diffusion_jax.models.conditions.low_resolution import LowResolution
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest
from diffusion_jax.models.conditions.semantic_map import SemanticMap
from diffusion_jax.models.conditions.size_and_crop import SizeAndCrop
from diffusion_jax.models.conditions.small_image import SmallImage
from diffusion_jax.spec import from_spec

__all__ = [
    "CONDITIONS",
    "NEGATIVE",
    "BatchEntry",
    "Caption",
    "Condition",
    "Entries",
    "Label",
    "RequestSetting",
    "SampleRequest",
    "check_levels",
    "check_names",
    "default_numbers",
    "requested",
    "spatial",
]

CONDITIONS: dict[str, type[Condition]] = {
    "low_resolution": LowResolution,
    "inpaint": Inpaint,
    "map": SemanticMap,
    "size_and_crop": SizeAndCrop,
    "small_image": SmallImage,
}


def spatial(specs: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of config.spatial; raises UserError for an unknown condition, and for one that is given twice."""
    found = []
    for spec in specs:
        built = from_spec(spec, CONDITIONS, "condition (spatial)")
        if not isinstance(built, Condition):
            raise UserError(f"condition (spatial) {spec} gives no diffusion_jax.models.conditions.Condition")
        found.append(built)
    if len({condition.name for condition in found}) < len(found):
        raise UserError(f"each spatial condition is given once; got {', '.join(specs)}")
    return tuple(found)


_TAKEN = {"unet", "schedule", "objective", "autoencoder", "classifier", "weak", "x", "index", "mean", "logvar"}


def check_levels(conditions: Sequence[Condition], rows: int) -> None:
    """Raises UserError unless the levels of all conditions are numbers of the rows of a table."""
    for condition in conditions:
        if condition.levels and (condition.level_count is None or condition.level_count > rows):
            levels = condition.level_count or "any number of levels between 0 and 1"
            raise UserError(
                f"model.level_rows={rows} is a table of levels 0 to {rows - 1}, and {condition.name!r} has {levels}; "
                "give model.level_rows=0 for sinusoids, or another condition"
            )


def check_names(conditions: Sequence[Condition], shape: tuple[int, ...]) -> None:
    """Raises UserError where two conditions have the same name, or entries of the same name, or one is of images alone
    and shape *S C is none of an image.
    """
    seen: dict[str, str] = dict.fromkeys(_TAKEN, "the model itself")
    for condition in conditions:
        if condition.of_images and len(shape) != 3:
            raise UserError(
                f"condition {condition.name!r} is of images (height, width, channels); data.shape is {shape}"
            )
        names = {condition.name, *condition.names, *condition.batch(shape)}
        if taken := sorted(names & set(seen)):
            raise UserError(
                f"condition {condition.name!r} has the name {taken[0]!r}, which is {seen[taken[0]]}'s; rename it"
            )
        seen |= dict.fromkeys(names, condition.name)


def requested(
    conditions: Sequence[Condition], request: SampleRequest, setting: RequestSetting
) -> dict[str, np.ndarray]:
    """The entries [N, ...] of all conditions for a request; raises UserError for a value that none of them takes."""
    told = tuple(conditions)
    kinds: tuple[type[Condition], ...] = (Label, Caption, *CONDITIONS.values())
    taken = {field for condition in told for field in condition.takes}
    for kind in kinds:
        for field in kind.takes:
            if field not in taken and request.says(field):
                raise UserError(kind.refusal(field, told))
    own = [condition.name for condition in told if not condition.takes]
    if unknown := sorted(set(request.values) - set(own)):
        raise UserError(
            f"this model has no condition {unknown[0]!r} for --condition; it has {', '.join(own) or 'none'}"
        )
    cond: dict[str, np.ndarray] = {}
    for condition in reversed(told):
        cond |= condition.request(request, setting)
    return cond


def default_numbers(conditions: Sequence[Condition], setting: RequestSetting) -> dict[str, np.ndarray]:
    """The entries [N, K] of numbers that samples have without a request: those of uncropped pictures of their size."""
    found: dict[str, np.ndarray] = {}
    for condition in conditions:
        if condition.numbers and not condition.needs_request:
            found |= condition.request(SampleRequest(), setting)
    return found
