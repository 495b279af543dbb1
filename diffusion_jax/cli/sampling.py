"""The flags of every command that samples."""

from typing import Any

from absl import flags

from diffusion_jax.errors import UserError

OVERRIDES = ("sampler", "grid", "steps", "guidance", "guidance_rescale", "guidance_interval", "threshold")
"""Flags that replace a key of the config's sampling."""

FLAGS = (*OVERRIDES, "num", "seed", "label", "ema", "step")


def define(values: flags.FlagValues, *, num: int) -> None:
    """Defines `FLAGS`, num samples by default; the overrides that are left out are as the workdir's config says."""
    flags.DEFINE_integer("num", num, "Number of samples.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the first sample; sample i has seed + i.", flag_values=values)
    flags.DEFINE_multi_string(
        "label",
        [],
        "Class, or none for the null class; several are taken in turn. Random if left out.",
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
    flags.DEFINE_bool("ema", True, "Sample from the averaged parameters.", flag_values=values)
    flags.DEFINE_integer("step", None, "Checkpoint to sample from; the newest if left out.", flag_values=values)


def arguments(values: flags.FlagValues) -> dict[str, Any]:
    """What the flags say, as the keyword arguments that `runs` takes; None where left out."""
    chosen = {name: values[name].value for name in OVERRIDES}
    interval = values.guidance_interval
    if interval is not None:
        try:
            chosen["guidance_interval"] = tuple(float(text) for text in interval)
        except ValueError as error:
            raise UserError(f"--guidance_interval is two numbers, as in 0.2,1.5; got {','.join(interval)}") from error
    rest = {"num": values.num, "seed": values.seed, "labels": values.label, "step": values.step, "average": values.ema}
    return chosen | rest
