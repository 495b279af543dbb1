"""The flags of every command that samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from diffusion_jax.errors import UserError

if TYPE_CHECKING:  # they import jax, for which --help does not wait
    from diffusion_jax.runs.sample.conditioning import SampleRequest
    from diffusion_jax.runs.workdir.restored import GuideRequest

OVERRIDES = (
    "sampler",
    "grid",
    "steps",
    "guidance",
    "guidance_rescale",
    "guidance_interval",
    "threshold",
    "decode_tile",
)
"""Flags that replace a key of the config's sampling."""

REQUEST = ("label", "prompt", "prompts", "negative_prompt", "low_res", "augment", "map", "condition")
"""Flags that say what the samples show."""

FLAGS = (*OVERRIDES, *REQUEST, "num", "seed", "ema", "step")


def define(values: flags.FlagValues, *, num: int) -> None:
    """Defines `FLAGS`, with num samples by default. Overrides that are left out are those of the workdir's config."""
    flags.DEFINE_integer("num", num, "Number of samples.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the first sample; sample i has seed + i.", flag_values=values)
    flags.DEFINE_multi_string(
        "label",
        [],
        "Class, or none for the null class; several are taken in turn. Random if left out.",
        flag_values=values,
    )
    flags.DEFINE_multi_string("prompt", [], "Caption; several are taken in turn.", flag_values=values)
    flags.DEFINE_string("prompts", None, "File of captions, one a line, to be taken in turn.", flag_values=values)
    flags.DEFINE_string("negative_prompt", None, "Caption that guidance leads away from.", flag_values=values)
    flags.DEFINE_string("low_res", None, "Image to enlarge, or folder of samples.", flag_values=values)
    flags.DEFINE_float("augment", 0.0, "Level of noise added to what is enlarged, in [0, 1).", flag_values=values)
    flags.DEFINE_string("map", None, "Semantic map: a gray or palette PNG with a class a pixel.", flag_values=values)
    flags.DEFINE_multi_string(
        "condition",
        [],
        "NAME=VALUE of any other condition of the model; several values are taken in turn.",
        flag_values=values,
    )
    flags.DEFINE_string("sampler", None, "Sampler, such as ddpm or 'ddim(eta=0.5)'.", flag_values=values)
    flags.DEFINE_string("grid", None, "Time grid, such as trailing.", flag_values=values)
    flags.DEFINE_integer("steps", None, "Steps of the sampler.", flag_values=values)
    flags.DEFINE_float("guidance", None, "Classifier-free guidance scale; 1 is none.", flag_values=values)
    flags.DEFINE_float("guidance_rescale", None, "Guidance rescale, phi in [0, 1].", flag_values=values)
    flags.DEFINE_list(
        "guidance_interval", None, "low,high: guide only where sigma / alpha is between.", flag_values=values
    )
    flags.DEFINE_string("threshold", None, "Threshold of x0: none, static or dynamic.", flag_values=values)
    flags.DEFINE_integer("decode_tile", None, "Latents on a side decoded at once; 0 is all.", flag_values=values)
    define_checkpoint(values)


def define_checkpoint(values: flags.FlagValues) -> None:
    """Defines which parameters of a workdir are taken."""
    flags.DEFINE_string(
        "ema",
        "true",
        "Average of the parameters: true is the one in training, false (or --noema) none, a number the length "
        "sigma_rel of one that a run with ema.profiles gives.",
        flag_values=values,
    )
    flags.DEFINE_bool("noema", False, "--ema=false.", flag_values=values)
    flags.DEFINE_integer("step", None, "Checkpoint; the newest if left out.", flag_values=values)


def define_guides(values: flags.FlagValues) -> None:
    """Defines the flags of other networks that guide the model."""
    flags.DEFINE_string("classifier", None, "Workdir of a classifier that guides to --label.", flag_values=values)
    flags.DEFINE_float("classifier_scale", 1.0, "How strongly it guides.", flag_values=values)
    flags.DEFINE_string("weak", None, "Workdir of a weaker model that --guidance leads away from.", flag_values=values)
    flags.DEFINE_integer("weak_step", None, "Its checkpoint; the newest if left out.", flag_values=values)


def arguments(values: flags.FlagValues) -> dict[str, Any]:
    """The flags as keyword arguments of the functions in `runs`; None for a flag that is left out."""
    chosen = {name: values[name].value for name in OVERRIDES}
    interval = values.guidance_interval
    if interval is not None:
        try:
            chosen["guidance_interval"] = tuple(float(text) for text in interval)
        except ValueError as error:
            raise UserError(f"--guidance_interval is two numbers, as in 0.2,1.5; got {','.join(interval)}") from error
    rest = {
        "num": values.num,
        "seed": values.seed,
        "sample_request": _request(values),
        "step": values.step,
        "average": average(values),
    }
    return chosen | rest


def guided_by(values: flags.FlagValues) -> "GuideRequest":
    """The networks that the flags of `define_guides` name. Raises UserError for a flag without its workdir."""
    for name, of in (("classifier_scale", "classifier"), ("weak_step", "weak")):
        if values[name].present and not values[of].value:
            raise UserError(f"--{name} needs its --{of}=WORKDIR too")
    from diffusion_jax.runs.workdir.restored import GuideRequest

    classifier, weak = (Path(folder) if folder else None for folder in (values.classifier, values.weak))
    return GuideRequest(classifier, values.classifier_scale, weak, values.weak_step)


def average(values: flags.FlagValues) -> bool | float:
    """The value of --ema: whether the parameters are averaged, or the length of the average."""
    if values.noema:
        return False
    if values.ema.lower() in ("true", "false"):
        return values.ema.lower() == "true"
    try:
        return float(values.ema)
    except ValueError:
        raise UserError(f"--ema is true, false or a length such as 0.1; got {values.ema}") from None


def _request(values: flags.FlagValues) -> "SampleRequest":
    """What the samples show, by the flags of `REQUEST`."""
    from diffusion_jax.runs.sample.conditioning import SampleRequest, read_prompts

    prompts = list(values.prompt) + (read_prompts(Path(values.prompts)) if values.prompts else [])
    low_res, semantic = (Path(path) if path else None for path in (values.low_res, values.map))
    given: dict[str, list[str]] = {}
    for text in values.condition:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f"--condition is NAME=VALUE, as in --condition brightness=0.3; got {text!r}")
        given.setdefault(name, []).append(value)
    return SampleRequest(
        labels=values.label,
        prompts=prompts,
        negative_prompt=values.negative_prompt,
        low_res=low_res,
        augment=values.augment,
        map=semantic,
        values=given,
    )
