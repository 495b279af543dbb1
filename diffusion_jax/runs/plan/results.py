"""The keys of a plan's JSON. Sizes are in bytes; times are in seconds, and lower bounds by the roofline model."""

from typing import NotRequired, TypedDict

from diffusion_jax.runs.plan.preflight import Check


class Analysis(TypedDict):
    """One program. Where the compiler refuses it, there is no key after `compiler`; else there is no `compiler`."""

    flops: float  # on all chips together
    model_flops: float  # of those, what the model needs: nothing computed again to save memory
    open_loops: int  # whose length is unknown
    fits: NotRequired[bool | None]  # None: the compiler does not say, or the chip is unknown
    compiler: NotRequired[str]  # why the compiler refused the program
    compile_seconds: NotRequired[float]
    compiled_flops_a_chip: NotRequired[float]  # as the compiler counts, the body of every loop once
    bytes_accessed_a_chip: NotRequired[float]
    kernel_bytes_a_chip: NotRequired[float]
    repeats: NotRequired[float]
    loop_factor: NotRequired[float]
    memory_a_chip: NotRequired[dict[str, int] | None]  # the fields of `compiled.Memory`
    collectives_a_chip: NotRequired[dict[str, dict[str, float]]]  # {kind: count, bytes, sent}
    parts_a_chip: NotRequired[list[dict[str, object]]]  # the fields of `breakdown.Part`
    roofline: NotRequired[dict[str, object]]  # the fields of `machines.Roofline`, seconds and bound
    images_per_second: NotRequired[float]
    mfu: NotRequired[float]


class BatchAnalysis(Analysis):
    """A program that works on a batch: a training step, or a run of the sampler."""

    batch_size: int


class Machine(TypedDict):
    """The devices that are planned for."""

    name: str
    devices: int
    device_kind: str
    mesh: dict[str, int]  # {axis: size}
    chip: dict[str, object] | None  # the fields of `machines.Chip`; None: not known


class Sizes(TypedDict):
    """The machine, and the sizes that are known before compilation."""

    machine: Machine
    parameters: int
    state_bytes_a_chip: dict[str, int]  # {part of the training state: bytes}
    checkpoint_bytes: int


class Cost(TypedDict):
    """The cost of training; hours and total are None where the time is unknown."""

    price: float  # of a chip-hour
    images: int
    hours: float | None
    total: float | None


class Plan(Sizes):
    """A whole plan."""

    preflight: list[Check]
    train: BatchAnalysis
    sample: NotRequired[BatchAnalysis]
    cost: NotRequired[Cost]
    search: NotRequired[list[dict[str, object]]]  # of each layout the fields of `search.Layout` and `search.Estimate`
