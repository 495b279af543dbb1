"""A network, a batch and a shape that suit a data set and a machine, with the reason for each."""

import dataclasses
import os

import jax


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine that trains."""

    platform: str  # cpu, gpu or tpu
    devices: int
    kind: str  # of a device
    cores: int

    @property
    def small(self) -> bool:
        """Whether it has CPU cores alone, so that a first run of minutes takes a small network."""
        return self.platform == "cpu"

    @property
    def words(self) -> str:
        """The machine in a sentence."""
        return f"{self.cores} CPU cores" if self.small else f"{self.devices} x {self.kind}"


def machine() -> Machine:
    """The machine that this process runs on."""
    devices = jax.devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(devices[0].platform, len(devices), devices[0].device_kind, cores)


@dataclasses.dataclass(frozen=True)
class UNet:
    """Options of a U-Net, as `nets.unet.UNet`; it attends at its last level."""

    patch: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int

    @property
    def levels(self) -> int:
        """The number of sizes that it works at."""
        return len(self.multipliers)

    @property
    def halvings(self) -> int:
        """The downsampling factor of the last level, from the size in patches."""
        return 2 ** (self.levels - 1)

    @property
    def factor(self) -> int:
        """The number that divides every side of an example."""
        return self.patch * self.halvings


@dataclasses.dataclass(frozen=True)
class Process:
    """The noise that is trained on, and how samples are drawn. The defaults suit images."""

    training: tuple[str, ...] = (
        'config.schedule = "cosine"',
        'config.prediction = "x0"',
        'config.weighting = "min_snr(gamma=5.0)"',
    )
    """Lines of a config."""
    sampler: str = "ddim"
    steps: int = 50
    sampling: tuple[str, ...] = ()
    """Lines of a config that follow those of `config.sample`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The choices of a config: shape, network and training, with the reasons."""

    source: str  # data.source
    shape: tuple[int, ...]  # of an example, channels last
    axes: str  # what the numbers of shape are
    net: UNet
    options: str = ""  # further options of the network, as arguments
    learning_rate: float = 1e-3
    process: Process = Process()
    modality: str = ""  # data.modality; "": as the source says
    modality_comment: str = ""
    flips: bool = False  # whether data.flip is of use
    corrupt_limit: int = 0
    corrupt: str = "unreadable"  # what counts for it
    batch_size: int
    steps: int
    reasons: tuple[str, ...]


def in_patches(net: UNet, on: Machine) -> str:
    """A sentence on the network."""
    levels = f"{net.levels} level{'s' if net.levels > 1 else ''}"
    net_words = f"a U-Net of {net.channels} channels on patches of {net.patch}, {levels}"
    return f"{net_words}: small enough for {on.words} at this size"


def batch_within(batch: int, count: int, on: Machine) -> int:
    """The batch, halved while it is larger than the number of examples; stays a multiple of the devices."""
    while batch > max(count, on.devices) and batch % 2 == 0:
        batch //= 2
    return batch


def first_result(noun: str, count: int, batch: int, steps: int) -> tuple[str, ...]:
    """Sentences on the batch, the steps, and on data that are few."""
    sentences: tuple[str, ...] = (
        f"batches of {batch} of {count:,} {noun}",
        f"{steps:,} steps: a first result, not the best; raise train.steps and go on by the same command",
    )
    if count < 1000:
        sentences += (f"{count:,} {noun} are few: the model will come to repeat them",)
    return sentences
