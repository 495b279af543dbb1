"""`diffusion-jax plan`: memory, time and cost of a config on a machine, from programs compiled ahead of time."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.data.prepared import is_prepared
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import Model, Trainee, resolved, training
from diffusion_jax.experiment import plan as building
from diffusion_jax.launching import machines
from diffusion_jax.report import plan as report
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.plan import flops, preflight
from diffusion_jax.runs.plan import search as searching
from diffusion_jax.runs.plan.analysis import analyse, platform
from diffusion_jax.runs.plan.results import Analysis, BatchAnalysis, Cost, Plan, Sizes
from diffusion_jax.runs.workdir import pretrained, teacher
from diffusion_jax.runs.workdir.output_folder import check_file
from diffusion_jax.runs.workdir.paths import Workdir


@dataclasses.dataclass(frozen=True)
class Request:
    """What to plan, and for which machine: a TPU topology, a number of virtual CPU devices, or this machine."""

    config: ConfigDict
    autoencoder: ConfigDict | None = None  # of an autoencoder that is not trained yet
    topology: str | None = None
    devices: int | None = None
    chip: str | None = None  # whose peaks count where the devices' own are not known
    price: float | None = None  # of a chip-hour
    images: int | None = None  # that are trained on, for the cost
    sample: bool = False  # plan the drawing of samples too
    search: bool = False  # plan the fastest layout that fits
    split: bool = False  # print FLOPs, bytes and temporaries by kind of work and by level of the network
    out: Path | None = None  # JSON file to write
    cache: Path | None = None  # folder of compiled results; None: none are kept


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices that a step is compiled for."""

    name: str
    devices: Sequence[jax.Device]
    peaks: machines.Chip | None  # None: not known


def plan(request: Request) -> Plan:
    """Prints memory, time and cost of training, writes them to request.out as JSON, and returns them.

    With request.search, the plan is for the fastest layout that fits, and lists all layouts that were tried. Raises
    UserError, before anything is compiled, for a mistake in the request.
    """
    config = _checked(request)
    machine = _machine(request)
    tried: list[dict[str, object]] = []
    if request.search:
        if machine.peaks is None:
            raise UserError(
                f"--search compares by the peaks of a chip, and those of {machine.name} are not known; give a --chip"
            )
        config, tried = _searched(config, request, machine, machine.peaks)
    mesh = building.mesh(config, machine.devices)
    model = _model(config, request.autoencoder)
    sizes = _sizes(config, model, machine, mesh)
    made: Plan = {
        **sizes,
        "preflight": preflight.checks(config, model, mesh, sizes["checkpoint_bytes"]),
        "train": _step(config, request.autoencoder, mesh, machine.peaks, request.cache),
    }
    if request.sample and model is not None:
        traced, n = building.traced_sampler(config, model, mesh)
        sampler = analyse("sampler", traced, mesh, machine.peaks, images=n, kept=request.cache)
        made["sample"] = {"batch_size": n, **sampler}
    if request.price is not None and request.images is not None:
        made["cost"] = cost(made["train"], len(machine.devices), request.price, request.images)
    if request.search:
        made["search"] = tried
    print(report.text(made, split=request.split))
    if request.out is not None:
        replace_file(request.out, (json.dumps(made, indent=2) + "\n").encode())
        print(f"plan: {request.out}")
    return made


def _checked(request: Request) -> ConfigDict:
    """The config of a request, with its shape; raises UserError for what does not fit together."""
    config = _resolved(configs.check(request.config))
    building.check_task(config, sample=request.sample)
    price, images = request.price, request.images
    if (price is None) != (images is None):
        raise UserError("a cost takes both --price=PER_CHIP_HOUR and --images=NUMBER")
    if (price is not None and price < 0) or (images is not None and images < 1):
        raise UserError(f"--price is at least 0 and --images at least 1; got {price} and {images}")
    if request.topology and request.devices is not None:
        raise UserError("choose one machine: --topology or --devices")
    if request.out is not None:
        check_file(request.out)
    return config


def _machine(request: Request) -> Machine:
    peaks = None if request.chip is None else machines.chip(request.chip)
    if request.topology:
        devices, name = machines.topology(request.topology), request.topology
    elif request.devices is not None:
        devices, name = machines.virtual(request.devices), f"{request.devices} virtual CPU devices"
    else:
        devices, name = jax.devices(), "this machine"
    return Machine(name, devices, peaks or machines.chip_of(devices[0]))


def _sizes(config: ConfigDict, model: Model | None, machine: Machine, mesh: Mesh) -> Sizes:
    """The machine, the number of parameters, and the bytes of the state and of a checkpoint."""
    trainee = building.trainee(config, model)
    abstract = training.abstract_state(config, trainee)
    parts = {"parameters": "params", "optimizer": "opt_state", "average": "ema"}
    return {
        "machine": {
            "name": machine.name,
            "devices": len(machine.devices),
            "device_kind": machine.devices[0].device_kind,
            "mesh": dict(mesh.shape),
            "chip": None if machine.peaks is None else dataclasses.asdict(machine.peaks),
        },
        "parameters": sum(math.prod(a.shape) for a in jax.tree.leaves(abstract.params)),
        "state_bytes_a_chip": {part: _held(config, trainee, field, mesh) for part, field in parts.items()},
        "checkpoint_bytes": sum(_size(a.shape, a.dtype) for a in jax.tree.leaves(abstract)),
    }


def _resolved(config: ConfigDict) -> ConfigDict:
    """config with open shape and modality taken from the data where these are on this machine; nothing is fetched.

    Raises UserError where the shape is open and the data cannot tell it.
    """
    if not is_prepared(config.data.source, config.data.data_dir or None):
        return config
    try:
        return resolved(config)
    except UserError:
        if config.data.shape:
            return config  # a plan needs no more; the preflight says what is wrong with the data
        raise


def _model(config: ConfigDict, autoencoder: ConfigDict | None) -> Model | None:
    """The model that config trains; autoencoder is the config of one that is not trained yet."""
    if config.task != "diffusion":
        return None
    if autoencoder is None and config.latent and not Workdir(Path(config.latent)).config.is_file():
        raise UserError(
            f"there is no run of an autoencoder in latent={config.latent}; plan with the shapes of one by "
            "--autoencoder=ITS_CONFIG"
        )
    if autoencoder is None:
        model = pretrained.model(config, None)
    else:
        model = building.model(config, configs.check(autoencoder))
    return teacher.with_teacher(config, None, None, model, None)


def _step(
    config: ConfigDict, autoencoder: ConfigDict | None, mesh: Mesh, peaks: machines.Chip | None, kept: Path | None
) -> BatchAnalysis:
    """The analysis of one training step."""
    model, plain = _model(config, autoencoder), building.without_recomputation(config)
    needed = None
    if plain is not None:  # what is computed twice to save memory is work, but no use
        plain_step = building.traced_step(plain, _model(plain, autoencoder), mesh)
        needed = flops.count(plain_step.jaxpr, platform(mesh)).flops
    steps, batch = config.train.steps_per_dispatch, config.train.batch_size
    traced = building.traced_step(config, model, mesh)
    return {
        "batch_size": batch,
        **analyse("train step", traced, mesh, peaks, times=steps, images=batch, needed=needed, kept=kept),
    }


def _searched(
    config: ConfigDict, request: Request, machine: Machine, peaks: machines.Chip
) -> tuple[ConfigDict, list[dict[str, object]]]:
    """(config in the fastest layout that fits, or unchanged where none does; all layouts that were tried)."""

    def measure(layout: searching.Layout) -> searching.Estimate:
        laid_out = building.laid_out(config, **dataclasses.asdict(layout))
        mesh = building.mesh(laid_out, machine.devices)
        trainee = building.trainee(laid_out, _model(laid_out, request.autoencoder))
        held = sum(_held(laid_out, trainee, field, mesh) for field in ("params", "opt_state", "ema"))
        if held > peaks.hbm:
            return searching.Estimate(False, 0.0, held)
        step = _step(laid_out, request.autoencoder, mesh, peaks, request.cache)
        memory = step.get("memory_a_chip")
        return searching.Estimate(
            bool(step["fits"]), step.get("images_per_second", 0.0), memory["peak"] if memory else None
        )

    count = len(machine.devices)
    found: list[tuple[searching.Layout, searching.Estimate]] = []
    tried: list[dict[str, object]] = []
    options = searching.meshes(count, tuple({1, max(config.mesh.tensor, 1)}))

    def accumulate(fsdp: int, tensor: int) -> list[int]:
        return building.accumulations(config, count // tensor)

    for layout, estimate in searching.search(options, building.rematerializations(config), accumulate, measure):
        found.append((layout, estimate))
        tried.append(dataclasses.asdict(layout) | dataclasses.asdict(estimate))
        at_once = config.train.batch_size * layout.tensor / count / layout.accumulate
        print(report.tried(len(tried), tried[-1], at_once), file=sys.stderr, flush=True)
    chosen = searching.best(found)
    if chosen is None:
        print("plan: nothing fits; more chips, or a smaller batch", file=sys.stderr, flush=True)
        return config, tried
    print(f"plan: the fastest that fits: {chosen.flags}", file=sys.stderr, flush=True)
    return building.laid_out(config, **dataclasses.asdict(chosen)), tried


def cost(train: Analysis, chips: int, price: float, images: int) -> Cost:
    """The cost of training on this number of images at a price per chip-hour, at the roofline's speed."""
    if "images_per_second" not in train:
        return {"price": price, "images": images, "hours": None, "total": None}
    hours = images / train["images_per_second"] / 3600
    return {"price": price, "images": images, "hours": hours, "total": hours * chips * price}


def _held(config: ConfigDict, trainee: Trainee, field: str, mesh: Mesh) -> int:
    """Bytes of a field of the training state on one chip, in the layout of training."""
    leaves = jax.tree.leaves(getattr(training.abstract_state(config, trainee), field))
    layout = jax.tree.leaves(getattr(training.layout(config, trainee, mesh), field))
    return sum(_size(s.shard_shape(a.shape), a.dtype) for a, s in zip(leaves, layout, strict=True))


def _size(shape: Sequence[int], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
