"""The range of every number that a user gives: in a config, by dotted key, and in a flag of a command.

One table for both, checked before anything is read or compiled. A key or flag that takes a number has to be here.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from low to high, with the ends unless open, and single numbers with a meaning of their own.

    No range has NaN; a range has infinities only where `infinite`.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    integer: bool = False
    infinite: bool = False
    each: bool = False
    """Whether it is the range of every entry of a tuple."""
    also: Mapping[float, str] = dataclasses.field(default_factory=dict)
    """{a number outside of low to high: its meaning}."""

    def holds(self, value: float) -> bool:
        """Whether a single number lies in the range."""
        if math.isnan(value) or (math.isinf(value) and not self.infinite) or (self.integer and value != int(value)):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return (above and below) or value in self.also

    @property
    def words(self) -> str:
        """The range as the end of a sentence: "at least 1", "in [0, 1)"."""
        low, high = (f"{end:.16g}" for end in (self.low, self.high))
        if math.isinf(self.low):
            words = "a number" if self.infinite else "a finite number"
        elif not math.isinf(self.high):
            words = f"in {'(' if self.open_low else '['}{low}, {high}{')' if self.open_high else ']'}"
            words = f"from {low} to {high}" if self.integer else words
        else:
            words = f"above {low}" if self.open_low else f"at least {low}"
            words = words if self.integer or self.infinite else f"{words} and finite"
        return words + "".join(f", or {value:g} for {meaning}" for value, meaning in self.also.items())

    def check(self, name: str, value: object) -> None:
        """Raises UserError with name, range and value, unless value, or every entry for `each`, is in the range."""
        for one in value if self.each else (value,):  # type: ignore[attr-defined]
            kinds, kind = ((int,), "an integer") if self.integer else ((int, float), "a number")
            subject = f"{name}: every entry is" if self.each else f"{name} is"
            if isinstance(one, bool) or not isinstance(one, kinds):
                raise UserError(f"{subject} {kind}; got {one!r}" + (f" in {value!r}" if self.each else ""))
            if not self.holds(one):
                raise UserError(f"{subject} {self.words}; got {one!r}" + (f" in {value!r}" if self.each else ""))


FROM_0 = Range(0, integer=True)
FROM_1 = Range(1, integer=True)
EACH_FROM_0 = Range(0, integer=True, each=True)
EACH_FROM_1 = Range(1, integer=True, each=True)
FRACTION = Range(0, 1)
BELOW_1 = Range(0, 1, open_high=True)
FINITE = Range()
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, open_low=True)
_SIZE = Range(1, integer=True, also={-1: "all that is left"})
_SEED = Range(0, 2**32 - 1, integer=True)  # jax uses 32 bits, so that a larger seed would equal another
_SAMPLE_SEED = Range(0, 2**31 - 1, integer=True)

CONFIG: dict[str, Range] = {
    "seed": _SEED,
    "data.shape": EACH_FROM_1,
    "data.corrupt_limit": FROM_0,
    "data.shuffle_bytes": FROM_0,
    "data.threads": FROM_0,
    "data.workers": FROM_0,
    "vlb_weight": NOT_NEGATIVE,
    "model.num_classes": FROM_0,
    "level_scale": POSITIVE,
    "condition_dropout": FRACTION,
    "autoencoder.channels": FROM_1,
    "autoencoder.latent_channels": FROM_1,
    "autoencoder.multipliers": EACH_FROM_1,
    "autoencoder.blocks": FROM_1,
    "autoencoder.attention": EACH_FROM_1,
    "autoencoder.groups": FROM_1,
    "autoencoder.kl_weight": NOT_NEGATIVE,
    "autoencoder.perceptual_weight": NOT_NEGATIVE,
    "autoencoder.adversarial_weight": NOT_NEGATIVE,
    "autoencoder.adversarial_start": Range(0, integer=True, also={-1: "never"}),
    "autoencoder.discriminator_channels": FROM_1,
    "autoencoder.discriminator_layers": FROM_1,
    "optimizer.learning_rate": NOT_NEGATIVE,
    "optimizer.warmup": FROM_0,
    "optimizer.b1": BELOW_1,
    "optimizer.b2": BELOW_1,
    "optimizer.eps": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip": NOT_NEGATIVE,
    "ema.decay": BELOW_1,
    "ema.profiles": Range(0, open_low=True, each=True),  # train.ema checks the longest
    "ema.every": FROM_0,
    "train.steps": FROM_1,
    "train.batch_size": FROM_1,
    "train.accumulate": FROM_1,
    "train.steps_per_dispatch": FROM_1,
    "train.nonfinite_limit": FROM_1,
    "train.nonfinite_rollbacks": FROM_0,
    "train.spike_factor": Range(1, open_low=True, also={0: "no such check"}),
    "train.spike_window": FROM_1,
    "train.spike_limit": FROM_1,
    "train.hang_seconds": FROM_0,
    "mesh.data": _SIZE,
    "mesh.fsdp": _SIZE,
    "mesh.tensor": _SIZE,
    "mesh.context": _SIZE,
    "mesh.slices": FROM_1,
    "log_every": FROM_1,
    "checkpoint.every": FROM_0,
    "checkpoint.keep": FROM_1,
    "checkpoint.keep_every": FROM_0,
    "checkpoint.best": FROM_0,
    "sample.every": FROM_0,
    "sample.num": FROM_1,
    "sample.steps": FROM_1,
    "sample.guidance": FINITE,
    "sample.guidance_rescale": FRACTION,
    "sample.guidance_interval": Range(0, infinite=True, each=True),
    "sample.decode_tile": FROM_0,
    "evaluate.every": FROM_0,
    "evaluate.num": FROM_1,
    "evaluate.real": Range(0, integer=True, also={-1: "as many as evaluate.num"}),
    "evaluate.kid_size": Range(2, integer=True),
    "evaluate.kid_subsets": FROM_1,
    "evaluate.seed": _SAMPLE_SEED,
    "evaluate.batch": FROM_1,
}
"""{key: range} of every number and tuple of numbers in a config; network families declare those of `model`."""

TEXTS = ("spatial", "log.to", "sample.prompts", "evaluate.metrics")
"""The keys of a config whose values are tuples of texts."""

FLAGS: dict[str, Range] = {
    "num": CONFIG["sample.num"],
    "seed": _SAMPLE_SEED,
    "step": FROM_0,
    "steps": CONFIG["sample.steps"],
    "guidance": CONFIG["sample.guidance"],
    "guidance_rescale": CONFIG["sample.guidance_rescale"],
    "guidance_interval": CONFIG["sample.guidance_interval"],
    "decode_tile": CONFIG["sample.decode_tile"],
    "ema": POSITIVE,  # where it is a length
    "augment": BELOW_1,
    "batch": FROM_1,
    "shape": CONFIG["data.shape"],
    "strength": Range(0, 1, open_low=True),
    "expand": Range(0, integer=True, each=True),
    "paint": Range(0, each=True),
    "resample": FROM_1,
    "jump": FROM_1,
    "classifier_scale": FINITE,
    "weak_step": FROM_0,
    "likelihood_steps": FROM_0,
    "kid_size": CONFIG["evaluate.kid_size"],
    "kid_subsets": CONFIG["evaluate.kid_subsets"],
    "real": Range(0, integer=True),
    "save_seconds": NOT_NEGATIVE,
    "size": Range(1, 1024, integer=True),
    "evaluate reference --num": Range(2, integer=True, also={0: "all of the split"}),
    "devices": FROM_1,
    "price": NOT_NEGATIVE,
    "images": FROM_1,
    "jobs": FROM_1,
    "worker": FROM_0,
    "num_processes": FROM_1,
    "process_id": FROM_0,
    "heartbeat_seconds": FROM_1,
    "nodes": FROM_1,
    "gpus": FROM_1,
    "cpus": FROM_1,
    "restarts": FROM_0,
}
"""{flag: range} of every number or list of numbers; "COMMAND --flag" where a command has another range."""


def check_config(values: Mapping[str, Any], more: Mapping[str, Range] = MappingProxyType({})) -> None:
    """Raises UserError for the first number of {dotted key: value} that is out of its range, in `CONFIG` or in more."""
    table = {**CONFIG, **more}
    for key, value in values.items():
        if key in table:
            table[key].check(key, value)
        elif key in TEXTS and (other := [one for one in value if not isinstance(one, str)]):
            raise UserError(f"{key}: every entry is a text; got {other[0]!r} in {value!r}")


def check_flag(command: str, name: str, value: object) -> None:
    """Raises UserError where the value of a flag is out of its range.

    Texts, alone and in lists, are converted to numbers here; those that are no numbers are left to the command.
    """
    allowed = FLAGS.get(f"{command} --{name}", FLAGS.get(name))
    if allowed is None or value is None:
        return
    read = [_number(one, allowed.integer) for one in (value if isinstance(value, list | tuple) else [value])]
    if all(one is not None for one in read):
        allowed.check(f"--{name}", tuple(read) if allowed.each else read[0])


def _number(value: object, integer: bool) -> object:
    """The number in a flag's text, None for a text that is no number; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return int(value) if integer else float(value)
    except ValueError:
        return None
