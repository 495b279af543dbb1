"""What a compiled program takes on a machine: work, memory, collectives, and the least time that these need."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh
from jax.stages import Traced

from diffusion_jax.launching import machines
from diffusion_jax.runs.plan import compiled, flops
from diffusion_jax.runs.plan.compile_cache import compiled_once
from diffusion_jax.runs.plan.results import Analysis


def analyse(
    what: str,
    traced: Traced,
    mesh: Mesh,
    peaks: machines.Chip | None,
    *,
    times: int = 1,
    images: int = 0,
    needed: int | None = None,
    kept: Path | None = None,
) -> Analysis:
    """Compiles a program and estimates the work, memory and least time of one of its `times` equal repetitions.

    needed is the number of FLOPs that count for the MFU (None: all). kept is the folder of compiled results. Times are
    lower bounds, by the roofline model.
    """
    work = flops.count(traced.jaxpr, platform(mesh))
    asked = work.flops / times
    made: Analysis = {
        "flops": asked,
        "model_flops": asked if needed is None else needed / times,
        "open_loops": work.open_loops,
    }
    program = compiled_once(what, traced.lower(), mesh, kept)
    if program.refused:
        made["fits"], made["compiler"] = False, program.refused
        return made
    made["compile_seconds"] = program.seconds
    reckoned, memory = program.flops, program.memory
    kernels = sum(part.kernels for part in program.parts)
    accessed = program.accessed + kernels
    repeats = work.flops / work.once / times if work.once else 1 / times  # its loops are in the compiler's count once
    found = dict(program.collectives)
    made |= {
        "compiled_flops_a_chip": reckoned,
        "bytes_accessed_a_chip": accessed * repeats,
        "kernel_bytes_a_chip": kernels * repeats,
        "repeats": repeats,
        "loop_factor": repeats * times,
        "memory_a_chip": None if memory is None else dataclasses.asdict(memory),
        "fits": None if memory is None or peaks is None else memory.peak <= peaks.hbm,
        "collectives_a_chip": _by_kind(found, times),
        "parts_a_chip": [
            dataclasses.asdict(part) | {key: getattr(part, key) * repeats for key in ("flops", "accessed", "kernels")}
            for part in program.parts
        ],
    }
    if peaks is None:
        return made
    sent = sum(each.sent * many for each, many in found.items()) / times
    ideal = machines.roofline(peaks, flops=asked / mesh.size, accessed=accessed * repeats, sent=sent)
    made["roofline"] = {**dataclasses.asdict(ideal), "seconds": ideal.seconds, "bound": ideal.bound}
    if ideal.seconds > 0:
        made["images_per_second"] = images / ideal.seconds
        made["mfu"] = made["model_flops"] / mesh.size / peaks.flops / ideal.seconds
    return made


def _by_kind(found: Mapping[compiled.Collective, int], times: int) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for kind in compiled.KINDS:
        of = {each: many / times for each, many in found.items() if each.kind == kind}
        if of:
            kinds[kind] = {
                "count": sum(of.values()),
                "bytes": sum(each.payload * many for each, many in of.items()),
                "sent": sum(each.sent * many for each, many in of.items()),
            }
    return kinds


def platform(mesh: Mesh) -> str:
    """The name by which `lax.platform_dependent` knows the platform of a mesh."""
    platform = str(mesh.devices.flat[0].platform)
    return "cuda" if platform == "gpu" else platform
