"""Says what training a config takes on a machine, before anyone pays for it: memory, time, cost.

diffusion-jax plan --config=configs/ddpm_cifar10.py --topology=v5e:4x4 --price=1.2 --images=102400000
diffusion-jax plan --config=configs/digits.py --devices=8 --chip=v5e --sample --out=plan.json
diffusion-jax plan --config=configs/ddpm_cifar10.py --topology=v5e:2x2 --search
diffusion-jax plan --config=configs/digits.py --bytes

The step is compiled for the machine, which may take minutes, from shapes alone; nothing is trained. A topology needs
the TPU compiler, which `pip install 'diffusion-jax[tpu]'` brings, and no TPU. What was compiled once is kept. Times are
those of the roofline: no run is faster.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

NEEDS = ("config=FILE",)
"""Flags without which the command is an error."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.KEY=VALUE changes a key.", flag_values=values, sys_argv=list(arguments)
    )
    config_flags.DEFINE_config_file(
        "autoencoder",
        None,
        "Config file of the autoencoder, to plan a latent config by its shapes before there is a run of it.",
        flag_values=values,
        sys_argv=list(arguments),
    )
    flags.DEFINE_string("topology", None, "TPU slice, such as v5e:4x4, v6e:16x16 or v5p:2x2x2.", flag_values=values)
    flags.DEFINE_integer("devices", None, "Plan for so many virtual CPU devices.", flag_values=values)
    flags.DEFINE_string(
        "chip", None, "Chip to reckon with: v4, v5e, v5p, v6e, h100; the devices' own if left out.", flag_values=values
    )
    flags.DEFINE_float("price", None, "Price of a chip-hour.", flag_values=values)
    flags.DEFINE_integer("images", None, "Images to train on, for the cost.", flag_values=values)
    flags.DEFINE_bool("sample", False, "Plan drawing samples too, as config.sample says.", flag_values=values)
    flags.DEFINE_bool(
        "search",
        False,
        "Try meshes, rematerialization and micro-batches, and plan the fastest that fits.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "bytes",
        False,
        "Split FLOPs, bytes and temporaries by kind of work and by level of the network.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "cache",
        None,
        "Folder of compiled results; ~/.cache/diffusion_jax/plans if left out, '' keeps none.",
        flag_values=values,
    )
    flags.DEFINE_string("out", None, "JSON file to write.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Plans."""
    from diffusion_jax.runs.plan import compile_cache
    from diffusion_jax.runs.plan.run import Request, plan

    cache = compile_cache.folder() if values.cache is None else Path(values.cache) if values.cache else None
    plan(
        Request(
            values.config,
            autoencoder=values.autoencoder,
            topology=values.topology,
            devices=values.devices,
            chip=values.chip,
            price=values.price,
            images=values.images,
            sample=values.sample,
            search=values.search,
            split=values.bytes,
            cache=cache,
            out=Path(values.out) if values.out else None,
        )
    )
