"""The keys of a config, their types and defaults; a config as JSON.

`base()` is the whole schema: a config file starts from it and changes values. `experiment` turns it into objects.
"""

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import ranges
from diffusion_jax.errors import UserError, did_you_mean


def base(network: str = "unet") -> ConfigDict:
    """Every key with its default, locked: an unknown key or other type raises. `from_spec` reads those marked spec.

    The keys of `model` are the options of the network family, with its defaults: `base("dit")` is for another one.
    """
    from diffusion_jax.nets.families import family  # imports jax, which no word on the command line needs
    from diffusion_jax.nets.network import options

    config = ConfigDict(
        {
            "task": "diffusion",  # diffusion | autoencoder | classifier: what is trained
            "seed": 0,  # of the parameters, the order of the data and every random draw of a step
            "init_from": "",  # workdir whose averaged parameters a new run starts with
            "data": {
                "source": "digits",  # digits | shapes:SIZE,COUNT | tfds:NAME | folder:PATH (a folder or a zip)
                "split": "train",  # train, or another that the source has
                "caption": "text",  # column of metadata.jsonl or .csv, or text of a TFDS data set, that is the caption
                "missing_captions": "tell",  # tell | refuse: images that are listed nowhere, or with an empty caption
                "data_dir": "",  # where TFDS keeps its data sets; "" is its own default
                "height": 8,  # pixels that images are scaled and cropped to
                "width": 8,  # pixels that images are scaled and cropped to
                "channels": 1,  # 1, 3 or 4 (alpha)
                "flip": False,  # mirror half of the images, at random
                "precomputed": "",  # folder of latents or text features that `diffusion-jax precompute` made; "": none
                "corrupt_limit": 0,  # unreadable examples that are skipped and named before the run ends
                "log_examples": False,  # write which examples each step was given, to examples/
                "cache": False,  # hold the decoded images in memory
                "threads": 4,  # threads of each process that read and decode
                "workers": 0,  # processes that read and decode; 0 uses threads alone
            },
            "schedule": "linear",  # spec, core/schedules; modifiers follow, as in "linear | zero_snr"; or learned(...)
            "prediction": "eps",  # spec, core/predictions.py
            "times": "uniform",  # spec, core/times.py
            "objective": "simple",  # simple (L_hybrid where variance is learned) | vlb | vdm, VDM's bound
            "weighting": "constant",  # spec, core/weightings.py
            "distance": "l2",  # spec, core/losses.py
            "vlb_weight": 0.001,  # of L_vlb in L_hybrid, where the prediction has learned_variance=True
            "model": {
                "name": network,  # a family of nets/families.py, or package.module.Class; the keys below are its own
                "num_classes": 0,  # 0: unconditional
                "dtype": "float32",  # of the computation; parameters are float32 always
                **options(family(network)),
            },
            "text": "",  # spec, models/text.py: transformer(...), trained along, or huggingface(folder=...), pretrained
            "spatial": (),  # specs, models/conditions: low_resolution(...), inpaint(...), map(...), mypkg.Mine(...)
            "level_scale": 1000.0,  # times a level of noise augmentation in [0, 1), as sinusoids are made for 0 .. 1000
            "condition_dropout": 0.1,  # probability of no class and no caption in training, for guidance
            "latent": "",  # workdir of an autoencoder, in whose latent space the model works; "": in pixels
            "autoencoder": {  # of task autoencoder
                "channels": 128,  # at full size, times each of multipliers at the levels
                "latent_channels": 4,  # channels of a latent
                "multipliers": (1, 2, 4, 4),  # f = 2^(levels - 1)
                "blocks": 2,  # residual blocks of a level of the encoder; the decoder has one more
                "attention": (),  # downsampling factors
                "mid_attention": True,  # attention in the middle, at the latent's size
                "groups": 32,  # of the group norms; divides every number of channels
                "quant_convs": True,  # a 1 x 1 convolution on each side of the latent, as in Stable Diffusion's
                "dtype": "float32",  # of the computation; parameters are float32 always
                "distance": "l1",  # l1 | l2
                "kl_weight": 1e-6,  # of the divergence of a latent's distribution from N(0, 1)
                "perceptual": "",  # file of LPIPS weights; "": no perceptual loss
                "perceptual_sha256": "",  # of that file, refused if it is another; "": not checked
                "perceptual_weight": 1.0,  # of the perceptual loss beside the distance
                "adversarial_weight": 0.5,  # times the adaptive weight
                "adversarial_start": -1,  # step from which the discriminator counts; -1: never
                "discriminator_channels": 64,  # of its first layer, doubled by each that follows up to 8 times
                "discriminator_layers": 3,  # strided layers of the patch discriminator
            },
            "optimizer": {
                "name": "adam",  # adam | adamw | muon
                "learning_rate": 2e-4,  # at its peak, after the warm-up
                "warmup": 0,  # steps
                "decay": "constant",  # constant | cosine (to 0 at the last step)
                "b1": 0.9,  # decay of the mean of gradients
                "b2": 0.999,  # decay of the mean of their squares
                "eps": 1e-8,  # added to the root of that mean
                "weight_decay": 0.0,  # adamw and muon
                "clip": 1.0,  # global norm of the gradient; 0 does not clip
            },
            "ema": {
                "decay": 0.9999,  # of the average of the parameters that is sampled, a step
                "warmup": True,  # whether the decay starts small, so that the average forgets its start
                "profiles": (),  # sigma_rel of averages kept for `sample --ema=LENGTH`, such as (0.05, 0.10); (): none
                "every": 0,  # steps between snapshots of them
            },
            "train": {
                "steps": 1000,  # at which training ends
                "batch_size": 128,  # global, whatever the mesh
                "accumulate": 1,  # micro-batches a step
                "steps_per_dispatch": 1,  # steps in one call to the device
                "nonfinite_limit": 10,  # steps in a row without a finite loss before a roll-back to a checkpoint
                "nonfinite_rollbacks": 2,  # roll-backs, of either kind, before the run gives up
                "spike_factor": 0.0,  # a loss this many times its running median is a spike; 0: none is
                "spike_window": 100,  # steps of the median
                "spike_limit": 10,  # spikes in a row before a roll-back
                "hang_seconds": 0,  # a phase that takes longer ends the run (sampling, compiling: ten times); 0: none
            },
            "mesh": {  # sizes of its axes
                "data": -1,  # devices that the batch is split over; -1: all that the others leave
                "fsdp": 1,  # devices that parameters and optimizer state are split over too
                "tensor": 1,  # devices that the network's layers are split over
                "zero": False,  # split optimizer state and averages over data too (arXiv:1910.02054)
            },
            "log_every": 50,  # steps, as all that follow
            "checkpoint": {
                "every": 1000,  # steps between checkpoints; 0: the last step alone
                "keep": 2,  # how many of the newest checkpoints are kept
                "keep_every": 0,  # 0: only the newest `keep`
                "best": 0,  # keep so many of the best too, by an evaluation in training
                "best_metric": "fd",  # a score of `evaluate`
                "direction": "min",  # min | max: which is better
                "mirror": "",  # address that fsspec knows, gs://bucket/run: a copy of the workdir, to go on from
            },
            "sample": {
                "every": 1000,  # a grid of samples in training; 0: none
                "num": 64,  # samples in that grid
                "sampler": "ddpm",  # spec, core/samplers
                "grid": "trailing",  # spec, core/grids.py
                "steps": 1000,  # steps of the sampler
                "guidance": 1.0,  # classifier-free; 1 is none
                "guidance_rescale": 0.0,  # phi of arXiv:2305.08891
                "guidance_interval": (),  # (low, high) of sigma / alpha; () is everywhere
                "threshold": "static",  # of x0 at every step: none | static | dynamic, a spec, core/denoisers.py
                "decode_tile": 0,  # latents on a side of what is decoded at once; 0: all
                "prompts": (),  # of the grid in training; (): captions of the data
            },
            "evaluate": {  # in training, as `diffusion-jax evaluate` does, of samples as `sample` says
                "every": 0,  # 0: never
                "num": 1000,  # samples that are drawn
                "metrics": ("fd",),  # names, as of `evaluate --metrics`
                "features": "",  # inception, clip, or the workdir of a classifier
                "weights": "",  # of inception and clip
                "clip": "",  # folder of the model of clip_score
                "reference": "",  # .npz of statistics; "": real images
                "real": -1,  # real images to compare with; 0: all, -1: num
                "kid_size": 1000,  # images in a subset of kid
                "kid_subsets": 100,  # subsets of kid
                "seed": 0,  # of the first sample
                "batch": 64,  # images at once
                "split": "",  # of the real images; "": that of training
            },
        }
    )
    return config.lock()


EARLIER: dict[str, Any] = {"level_scale": 1.0}
"""{dotted key: what versions without it did}, where that is not its default: of the configs that they wrote."""


RENAMED: dict[str, dict[Any, Any]] = {"model.remat": {False: "none", True: "blocks"}}
"""{dotted key: {a value as earlier versions wrote it: its name now}}, where the key's type is no longer theirs."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote, with the types of `base()`: JSON's lists become tuples again.

    Keys that the version which wrote it did not have, of which `newer` tells, take what leaves everything as it was:
    their defaults, but for those in `EARLIER`; values that have another name now are in `RENAMED`. Ranges are not
    looked at: an earlier version took numbers that `check` refuses, and what it trained with them can still be sampled.
    """
    values = json.loads(text)
    defaults = base(_network(values)).to_dict()
    for key, value in EARLIER.items():
        _set(defaults, key, value)
    return _typed(_renamed(defaults, _completed(defaults, values)))


def newer(text: str) -> list[str]:
    """The keys of `base()` that the config in text lacks, dotted."""
    values = json.loads(text)
    return list(_missing(base(_network(values)).to_dict(), values))


def as_trained(config: ConfigDict, text: str) -> ConfigDict:
    """config for going on with the parameters of the run whose config is text.

    The keys in `EARLIER` that text lacks are as that run had them.
    """
    values = config.to_dict()
    for key, value in earlier(text).items():
        _set(values, key, value)
    return check(values)


def earlier(text: str) -> dict[str, Any]:
    """{dotted key: value} of what the version that wrote the config in text did otherwise than today's defaults."""
    lacking = set(newer(text))
    return {key: value for key, value in EARLIER.items() if key in lacking}


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    reduce(dict.__getitem__, sections, values)[name] = value


def _completed(defaults: dict[str, Any], values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    sections = {k: _completed(v, values[k]) for k, v in defaults.items() if isinstance(v, dict) and k in values}
    return defaults | values | sections


def _renamed(defaults: dict[str, Any], values: Any) -> Any:
    """values, in place, with the names of today where `RENAMED` has one and another type than the default's stands."""
    read = flat(values) if isinstance(values, dict) else {}
    known = flat(defaults)
    for key, names in RENAMED.items():
        if key in read and key in known and type(read[key]) is not type(known[key]) and read[key] in names:
            _set(values, key, names[read[key]])
    return values


def _missing(defaults: dict[str, Any], values: Any, prefix: str = "") -> Iterator[str]:
    for key, default in defaults.items():
        if key not in values:
            yield f"{prefix}{key}"
        elif isinstance(default, dict) and isinstance(values[key], dict):
            yield from _missing(default, values[key], f"{prefix}{key}.")


def check(values: Any) -> ConfigDict:
    """values (a ConfigDict or nested dict) as a locked config: keys and types of `base()`, numbers in their `ranges`.

    Raises UserError that names the first key that is unknown, missing, of another type or out of its range.
    """
    from diffusion_jax.nets.families import family

    config = _typed(values)
    own = {f"model.{name}": allowed for name, allowed in family(config.model.name).ranges.items()}
    ranges.check_config(flat(config.to_dict()), own)
    return config


def _typed(values: Any) -> ConfigDict:
    """`check` without the ranges."""
    values = values.to_dict() if isinstance(values, ConfigDict) else values
    config = base(_network(values))
    _fill(config, values, "config")
    return config


def _network(values: Any) -> str:
    """The network family of nested values; the default where they do not say it."""
    model = values.get("model") if isinstance(values, Mapping) else None
    name = model.get("name") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) else "unet"


def _fill(config: ConfigDict, values: dict[str, Any], path: str) -> None:
    unknown, missing = set(values) - set(config), set(config) - set(values)
    if unknown:
        of = f" of the network {config.name}" if path == "config.model" else ""
        near = did_you_mean(min(unknown), config)
        raise UserError(f"unknown key {path}.{min(unknown)}{of}; {path} has {', '.join(config)}{near}")
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
