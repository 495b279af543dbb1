"""A plan as a table to read."""

from collections.abc import Iterator, Mapping
from typing import Any

_BOUNDS = {"compute": "compute", "hbm": "HBM bandwidth", "interconnect": "interconnect"}


def text(plan: Mapping[str, Any], *, split: bool = False) -> str:
    """The lines of a plan, as `runs.plan` makes it: what is known first, then what is estimated.

    With split, tables of each program by kind of work and by level of the network follow.
    """
    rows = [*_machine(plan), *_program("TRAIN STEP", plan["train"], plan["machine"])]
    if "sample" in plan:
        rows += _program("SAMPLER", plan["sample"], plan["machine"])
    if "cost" in plan:
        rows += [("", ""), *_cost(plan["cost"])]
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:{width}}{value}".rstrip() for name, value in rows]
    checks = [f"{c['verdict']:8} {c['check']}: {c['says']}" for c in plan["preflight"]]
    tables: list[str] = []
    for title, name in (("TRAIN STEP", "train"), ("SAMPLER", "sample")):
        if split and "parts_a_chip" in plan.get(name, {}):
            tables += [*split_table(title, "kind", plan[name]), *split_table(title, "level", plan[name])]
    return "\n".join([*lines, *tables, "", "CHECKS", *checks])


def tried(number: int, layout: Mapping[str, Any], at_once: float) -> str:
    """One line of a search: a layout with its estimate, as the plan's JSON has them, of at_once images a chip."""
    remat, peak = layout["remat"], layout["peak"]
    again = "" if remat is None else f"remat {'yes' if remat is True else remat or 'no':9} "
    shape = f"fsdp {layout['fsdp']:<4} tensor {layout['tensor']:<2} {again}{layout['accumulate']} x {at_once:g} a chip"
    memory = "" if peak is None else f", {_bytes(peak)} at the peak"
    speed = f"{layout['images_per_second']:,.0f} images/s" if layout["fits"] else "does not fit"
    return f"{number:3}  {shape}: {speed}{memory}"


def _machine(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    machine, held = plan["machine"], plan["state_bytes_a_chip"]
    shape = " x ".join(f"{size} {axis}" for axis, size in machine["mesh"].items())
    yield "machine", f"{machine['name']}: {machine['devices']} x {machine['device_kind']}, mesh {shape}"
    yield "parameters", f"{plan['parameters']:,}"
    yield "state a chip", ", ".join(f"{part} {_bytes(size)}" for part, size in held.items())
    yield "checkpoint", _bytes(plan["checkpoint_bytes"])


def _program(title: str, made: Mapping[str, Any], machine: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    chip, devices = machine["chip"], machine["devices"]
    yield "", ""
    yield title, f"batch {made['batch_size']}, {made['batch_size'] / devices:g} a chip"
    more = "" if made["flops"] == made["model_flops"] else f", {_si(made['model_flops'])} without recomputation"
    loops = f"; {made['open_loops']} loops of unknown length are in it once" if made["open_loops"] else ""
    yield "FLOPs, analytic", f"{_si(made['flops'])} ({_si(made['flops'] / devices)} a chip){more}{loops}"
    if "compiled_flops_a_chip" not in made:
        yield "HBM a chip", f"DOES NOT FIT: {made['compiler']}"
        return
    factor = (
        f"; each loop's body once, all of it about {made['loop_factor']:.4g} times that"
        if made["loop_factor"] > 1.001
        else ""
    )
    yield "FLOPs, compiled", f"{_si(made['compiled_flops_a_chip'])} a chip{factor}"
    yield "HBM a chip", _memory(made, chip)
    kernels = made["kernel_bytes_a_chip"]
    told = f"; {_bytes(kernels)} of it of kernels, by their operands and results" if kernels else ""
    yield "bytes accessed", f"{_bytes(made['bytes_accessed_a_chip'])} a chip, the compiler's estimate{told}"
    for kind, moved in made["collectives_a_chip"].items():
        yield f"{kind} x {moved['count']:g}", f"{_bytes(moved['bytes'])}, {_bytes(moved['sent'])} sent by a chip"
    if not made["collectives_a_chip"]:
        yield "collectives", "none"
    if "roofline" not in made:
        yield "time", f"no estimate: the peaks of {machine['device_kind']} are not known; give a --chip"
        return
    ideal = made["roofline"]
    parts = ", ".join(f"{name} {_seconds(ideal[key])}" for key, name in _BOUNDS.items())
    yield "time, estimate", f"at least {_seconds(ideal['seconds'])}, bound by {_BOUNDS[ideal['bound']]} ({parts})"
    if "mfu" in made:
        yield "images/s, estimate", f"at most {made['images_per_second']:,.1f}, at an MFU of {made['mfu']:.1%}"


def split_table(title: str, by: str, made: Mapping[str, Any]) -> Iterator[str]:
    """A table with a line for each kind or level, and one for what the compiler counts and no instruction shows."""
    memory = made["memory_a_chip"]
    totals = {
        "flops": made["compiled_flops_a_chip"] * made["repeats"],
        "accessed": made["bytes_accessed_a_chip"],
        "temporaries": 0 if memory is None else memory["temporaries"],
    }
    rows: dict[str, dict[str, float]] = {}
    for part in made["parts_a_chip"]:
        row = rows.setdefault(part[by], dict.fromkeys(totals, 0))
        for column in totals:
            row[column] += part[column]
    attributed = {column: sum(row[column] for row in rows.values()) for column in totals}
    rows["unattributed"] = {column: total - attributed[column] for column, total in totals.items()}
    rows["the compiler's sum" + (" and kernels" if made["kernel_bytes_a_chip"] else "")] = totals
    width = max(map(len, rows)) + 2
    yield from (
        "",
        f"{title} BY {by.upper()}, A CHIP",
        f"{'':{width}}{'FLOPs':>12}{'bytes':>12}{'share':>8}{'temporaries':>14}",
    )
    for name, row in rows.items():
        share = row["accessed"] / totals["accessed"] if totals["accessed"] else 0.0
        yield (
            f"{name:{width}}{_si(row['flops']):>12}{_bytes(row['accessed']):>12}{share:>8.1%}"
            f"{_bytes(row['temporaries']):>14}"
        )


def _memory(made: Mapping[str, Any], chip: Mapping[str, Any] | None) -> str:
    memory = made["memory_a_chip"]
    if memory is None:
        return "the compiler does not say"
    parts = ", ".join(f"{part} {_bytes(memory[part])}" for part in ("arguments", "outputs", "temporaries", "aliased"))
    if chip is None:
        return f"{_bytes(memory['peak'])} at the peak ({parts})"
    verdict = "fits" if made["fits"] else "DOES NOT FIT"
    return f"{_bytes(memory['peak'])} of {_bytes(chip['hbm'])} at the peak: {verdict} ({parts})"


def _cost(cost: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    what = f"for {cost['images']:,} images at {cost['price']:g} a chip-hour"
    if cost["total"] is None:
        yield "cost", f"no estimate {what}, for there is none of the time"
        return
    yield "cost, estimate", f"at least {cost['total']:,.2f} {what}: {cost['hours']:,.2f} hours"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):  # noqa: B007
        if abs(size) < 1024:
            break
        size /= 1024
    else:
        unit = "TiB"
    return f"{size:.4g} {unit}"


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):  # noqa: B007
        if abs(number) < 1000:
            break
        number /= 1000
    return f"{number:.4g} {unit}".rstrip()


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.3g} s"
        if seconds >= 1
        else f"{seconds * 1e3:.3g} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.3g} us"
    )
