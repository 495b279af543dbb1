"""The keys of a config, their types and defaults; a config as JSON.

`base()` is the whole schema: a config file starts from it and changes values. `build` is the only reader.
"""

import json
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import UserError


def base() -> ConfigDict:
    """Every key with its default, locked: an unknown key or other type raises. `from_spec` reads those marked spec."""
    config = ConfigDict(
        {
            "seed": 0,
            "data": {
                "source": "digits",  # digits | tfds:NAME | folder:PATH (a folder or a zip of one)
                "split": "train",
                "data_dir": "",  # where TFDS keeps its data sets; "" is its own default
                "height": 8,
                "width": 8,
                "channels": 1,  # 1, 3 or 4 (alpha)
                "flip": False,  # mirror half of the images, at random
                "cache": False,  # hold the decoded images in memory
                "threads": 4,
                "workers": 0,  # processes that read and decode; 0 uses threads alone
            },
            "schedule": "linear",  # spec, core/schedules; modifiers follow, as in "linear | zero_snr"
            "prediction": "eps",  # spec, core/predictions.py
            "times": "uniform",  # spec, core/times.py
            "objective": "simple",  # simple | vlb: L_simple (L_hybrid where variance is learned), or L_vlb
            "weighting": "constant",  # spec, core/weightings.py
            "distance": "l2",  # spec, core/losses.py
            "vlb_weight": 0.001,  # of L_vlb in L_hybrid, where the prediction has learned_variance=True
            "model": {
                "name": "unet",
                "channels": 128,
                "multipliers": (1, 2, 2, 2),
                "blocks": 2,
                "attention": (2,),  # downsampling factors at which there is attention
                "heads": 1,
                "groups": 32,
                "dropout": 0.0,
                "num_classes": 0,  # 0: unconditional
                "dtype": "float32",  # of the computation; parameters are float32 always
                "remat": False,
            },
            "label_dropout": 0.1,  # probability of the null class in training, for classifier-free guidance
            "optimizer": {
                "name": "adam",  # adam | adamw
                "learning_rate": 2e-4,
                "warmup": 0,  # steps
                "decay": "constant",  # constant | cosine (to 0 at the last step)
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,  # adamw only
                "clip": 1.0,  # global norm of the gradient; 0 does not clip
            },
            "ema": {"decay": 0.9999, "warmup": True},
            "train": {
                "steps": 1000,
                "batch_size": 128,  # global, whatever the mesh
                "accumulate": 1,  # micro-batches a step
                "steps_per_dispatch": 1,  # steps in one call to the device
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # sizes; -1 takes the rest
            "log_every": 50,  # steps, as all that follow
            "checkpoint": {"every": 1000, "keep": 2, "keep_every": 0},  # keep_every 0: only the newest `keep`
            "sample": {
                "every": 1000,  # a grid of samples in training; 0: none
                "num": 64,
                "sampler": "ddpm",  # spec, core/samplers
                "grid": "trailing",  # spec, core/grids.py
                "steps": 1000,
                "guidance": 1.0,  # classifier-free; 1 is none
                "guidance_rescale": 0.0,  # phi of arXiv:2305.08891
                "guidance_interval": (),  # (low, high) of sigma / alpha; () is everywhere
                "threshold": "static",  # of x0 at every step: none | static | dynamic, a spec, core/denoisers.py
            },
        }
    )
    return config.lock()


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote, with the types of `base()`: JSON's lists become tuples again."""
    return check(json.loads(text))


def check(values: Any) -> ConfigDict:
    """values (a ConfigDict or nested dict) as a locked config that has exactly the keys and types of `base()`.

    Raises UserError that names the first key that is unknown, missing or of another type.
    """
    values = values.to_dict() if isinstance(values, ConfigDict) else values
    config = base()
    _fill(config, values, "config")
    return config


def _fill(config: ConfigDict, values: dict[str, Any], path: str) -> None:
    unknown, missing = set(values) - set(config), set(config) - set(values)
    if unknown:
        raise UserError(f"unknown key {path}.{min(unknown)}; {path} has {', '.join(config)}")
    if missing:
        raise UserError(f"missing key {path}.{min(missing)}; start a config from diffusion_jax.config.base()")
    for key, value in values.items():
        default = config[key]
        if isinstance(default, ConfigDict):
            if not isinstance(value, dict):
                raise UserError(f"{path}.{key} is a section with {', '.join(default)}; got {value!r}")
            _fill(default, value, f"{path}.{key}")
            continue
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise UserError(f"{path}.{key} is of type {type(default).__name__}, as in {default!r}; got {value!r}")
        config[key] = value
