"""Writes statistics of a config's real images, with which fd compares samples, and a JSON file that describes them.

diffusion-jax evaluate reference --config=configs/digits.py --features=runs/digits_classifier --out=digits.npz
diffusion-jax evaluate --workdir=runs/digits --metrics=fd --features=runs/digits_classifier --reference=digits.npz
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

NEEDS = ("config=FILE", "features=NAME", "out=FILE.npz")
"""Flags without which the command is an error."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.KEY=VALUE changes a key.", flag_values=values, sys_argv=list(arguments)
    )
    flags.DEFINE_string("features", "", "inception, clip, or the workdir of a classifier.", flag_values=values)
    flags.DEFINE_string("weights", None, "Inception's .safetensors file, or CLIP's folder.", flag_values=values)
    flags.DEFINE_string("split", None, "Split of the data; the config's if left out.", flag_values=values)
    flags.DEFINE_integer("num", 0, "Images; 0 is all of the split.", flag_values=values)
    flags.DEFINE_integer("batch", 64, "Images at once; changes no result but by rounding.", flag_values=values)
    flags.DEFINE_string("out", None, "New .npz file, of ADM's layout.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Writes the statistics."""
    from diffusion_jax.runs.evaluate.feature_extractor import MetricRequest
    from diffusion_jax.runs.evaluate.reference_statistics import reference

    metric_request = MetricRequest(values.features, Path(values.weights) if values.weights else None)
    out, num, batch = Path(values.out), values.num, values.batch
    reference(values.config, out, metric_request=metric_request, split=values.split, num=num, batch=batch)
