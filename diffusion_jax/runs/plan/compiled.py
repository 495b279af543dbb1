"""Memory, cost and collectives of a compiled program on one of its devices."""

import collections
import contextlib
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator

import jax
from jax.stages import Compiled, Lowered

from diffusion_jax.runs.plan import instructions
from diffusion_jax.runs.plan.breakdown import Part, parts

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int  # outputs that take the place of donated arguments
    code: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective. payload: the bytes of the whole array that is reduced, gathered, exchanged or permuted."""

    kind: str
    payload: int
    group: int  # devices that take part together

    @property
    def sent(self) -> float:
        """Bytes that one device sends, by the ring algorithms."""
        share = (self.group - 1) / self.group
        return self.payload * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiler's numbers for one device; `refused` is the compiler's reason where it refused the program."""

    seconds: float = 0.0  # to compile
    flops: float = 0.0  # by the compiler's estimate, the body of every loop once; so are the bytes
    accessed: float = 0.0
    memory: Memory | None = None
    collectives: tuple[tuple[Collective, int], ...] = ()  # and how often a run does each
    parts: tuple[Part, ...] = ()  # what each kind of work takes of all that
    refused: str = ""


def compile_program(lowered: Lowered, devices: int) -> Program:
    """Compiles a program and reads its numbers. One that is too large for the devices' memory comes back `refused`."""
    begun = time.monotonic()
    try:
        with _names_in_the_cache():
            program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Program(refused=" ".join(str(error).split())[:400])
    seconds = round(time.monotonic() - begun, 1)
    text = program.as_text()
    assert text is not None
    found = collectives(text, devices)
    return Program(seconds, *cost(program), memory(program), tuple(found.items()), parts(text))


@contextlib.contextmanager
def _names_in_the_cache() -> Iterator[None]:
    """While entered, the names of scopes are part of the key of JAX's compilation cache.

    Without them a program with other names could come from the cache, and its parts could not be told apart.
    """
    option = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, option)
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)


def to_json(program: Program) -> str:
    """The program's numbers as one line of JSON."""
    return json.dumps(dataclasses.asdict(program))


def from_json(text: str) -> Program:
    """The program that `to_json` wrote; raises TypeError, KeyError or ValueError for other text."""
    made = json.loads(text)
    kept = None if made["memory"] is None else Memory(**made["memory"])
    pairs = tuple((Collective(**each), int(many)) for each, many in made["collectives"])
    split = tuple(Part(**each) for each in made["parts"])
    return Program(**(made | {"memory": kept, "collectives": pairs, "parts": split}))


def memory(program: Compiled) -> Memory | None:
    """The memory of a program on one device; None where the compiler does not say."""
    stats = program.memory_analysis()
    if stats is None:
        return None
    arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
    temporaries, aliased = stats.temp_size_in_bytes, stats.alias_size_in_bytes
    code = stats.generated_code_size_in_bytes
    together = arguments + outputs - aliased + temporaries + code
    peak = max(together, getattr(stats, "peak_memory_in_bytes", 0))  # some backends leave temporaries out of theirs
    return Memory(arguments, outputs, temporaries, aliased, code, peak)


def cost(program: Compiled) -> tuple[float, float]:
    """(FLOPs, bytes accessed) of one device by the compiler's estimate, which counts the body of every loop once."""
    analysis = program.cost_analysis() or {}
    return float(analysis.get("flops", 0)), float(analysis.get("bytes accessed", 0))


def collectives(text: str, devices: int) -> dict[Collective, int]:
    """{collective: how often one run does it} in the HLO text of a program for this number of devices.

    A loop whose length the text does not tell counts once, and every branch of a conditional counts.
    """
    computations, entry = _computations(text)
    known: dict[str, collections.Counter[Collective]] = {}

    def inside(name: str) -> collections.Counter[Collective]:
        if name not in known:
            found: collections.Counter[Collective] = collections.Counter()
            for line in computations.get(name, ()):
                if collective := _collective(line, devices):
                    found[collective] += 1
                for called, times in _calls(line, computations):
                    for each, many in inside(called).items():
                        found[each] += times * many
            known[name] = found
        return known[name]

    return dict(inside(entry))


_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|called_computations|branch_computations|\w+_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,<= ]*)\]")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _calls(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    if loop := _LOOP.search(line):
        condition, body = loop.groups()
        trips = _TRIPS.search(line)
        yield body, int(trips[1]) if trips else _length(computations.get(condition, []))
    elif "=%" in line or "={" in line:
        for called in _CALLED.finditer(line):
            for name in re.findall(r"[\w.\-]+", called[1]):
                if name in computations:
                    yield name, 1


def _length(condition: list[str]) -> int:
    """The number of iterations of a loop whose condition compares a counter from 0 with a constant; otherwise 1."""
    bounds = [int(found[1]) for line in condition if (found := _CONSTANT.search(line))]
    return bounds[0] if len(bounds) == 1 and any("direction=LT" in line for line in condition) else 1


def _collective(line: str, devices: int) -> Collective | None:
    found = _OPERATION.match(line)
    if found is None:
        return None
    result, kind, start = found.groups()
    if start and kind != "all-reduce":  # (operands, results, ...): the payload is among the results
        result = instructions.elements(result)[1]
    payload, group = _bytes(result), _group(line, devices)
    return Collective(kind, payload * group if kind == "reduce-scatter" else payload, group)


def _bytes(shape: str) -> int:
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else 16 if kind == "bf16" else int(kind[1:])
        elements = math.prod(int(size.strip("<= ")) for size in sizes.split(",") if size.strip("<= "))
        total += -(-elements * bits // 8)
    return total


def _group(line: str, devices: int) -> int:
    """The number of devices in a group, read from {{0,1},{2,3}}, [2,4]<=[8] or mesh['a'=4,'b'=2] ... {'a'}."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])  # 'a':(1)2 is a part of an axis
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(tiled[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    return devices
