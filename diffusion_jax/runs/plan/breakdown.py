"""FLOPs, bytes and temporaries of a compiled program, by kind of work and by level of the network."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from diffusion_jax.experiment.plan import ATTENTION, INPUT_GRADIENT, KERNEL_GRADIENT, UPDATES
from diffusion_jax.runs.plan import instructions
from diffusion_jax.runs.plan.instructions import Instruction, Module

KINDS = (
    "attention",
    "norms",
    "convolutions",
    "convolutions, input's gradient",
    "convolutions, kernel's gradient",
    "matrix products",
    "elementwise",
    "copies and transposes",
    "collectives",
    "optimizer and average",
)

OUTSIDE = "outside the network"


@dataclasses.dataclass(frozen=True)
class Part:
    """The instructions of one kind at one level, on one device; the body of every loop counts once."""

    kind: str
    level: str  # a module of the network's first level, such as "down_0", or `OUTSIDE`
    flops: int  # of matrix products and convolutions
    accessed: int  # bytes read and written
    temporaries: int  # bytes that its results hold when most is held at once
    kernels: int = 0  # of the bytes accessed, those of Pallas kernels that the compiler's own sum leaves out


def parts(text: str) -> tuple[Part, ...]:
    """The parts of a program (`jax.stages.Compiled.as_text()`) that are not all zero, in the order of `KINDS`."""
    module = instructions.parse(text)
    totals: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    of: dict[str, tuple[str, str]] = {}
    for computation, each in module.run():
        where = of[each.name] = (kind(module, each), level(each.op_name))
        totals[where][0] += instructions.flops(module, computation, each)
        accessed = instructions.accessed(module, computation, each)
        totals[where][1] += accessed
        totals[where][3] += accessed if instructions.uncounted(each) else 0
    for name, held in _at_the_peak(module.computations.get(module.entry, [])).items():
        totals[of[name]][2] += held
    rows = sorted(totals.items(), key=lambda row: (KINDS.index(row[0][0]), row[0][1]))
    return tuple(Part(*where, *found) for where, found in rows if any(found))


_COLLECTIVE = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)")
_PRODUCTS = {"dot", "convolution"}
_PRODUCT_NAMES = ("dot_general", "conv_general_dilated")
_MOVES = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "copy", "copy-start", "copy-done", "transpose",
    "reshape", "slice", "slice-start", "slice-done", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad",
    "reverse", "broadcast", "gather", "iota", "bitcast-convert",
}  # fmt: skip


def kind(module: Module, each: Instruction) -> str:
    """The kind of an instruction, one of `KINDS`, by its opcodes and the scopes in its path."""
    path = scopes(each.op_name)
    opcodes = {part.opcode for part in module.inside(each)}
    if any(_COLLECTIVE.match(opcode) for opcode in opcodes):
        return "collectives"
    if any(scope in path for scope in UPDATES):
        return "optimizer and average"
    if opcodes <= _MOVES:
        return "copies and transposes"
    if ATTENTION in path:
        return "attention"
    custom = each.opcode in ("custom-call", "fusion") and path[-1:] and path[-1] in _PRODUCT_NAMES
    if opcodes & _PRODUCTS or custom:
        if KERNEL_GRADIENT in path:
            return "convolutions, kernel's gradient"
        if INPUT_GRADIENT in path:
            return "convolutions, input's gradient"
        return "convolutions" if path[-1:] == ["conv_general_dilated"] else "matrix products"
    return "norms" if any(_NORM.match(scope) for scope in path) else "elementwise"


_NORM = re.compile(r"(norm|.*_norm|GroupNorm|LayerNorm|RMSNorm)")
_WRAPPED = re.compile(r"^\w*\((.*)\)$")


def scopes(op_name: str) -> list[str]:
    """The scopes of a path, without the names of transformations: "a/transpose(jvp(b))/c" has a, b and c."""
    found, depth, part = [], 0, ""
    for letter in op_name + "/":
        depth += (letter == "(") - (letter == ")")
        if letter == "/" and depth == 0:
            while wrapped := _WRAPPED.match(part):
                part = wrapped[1]
            found += part.split("/")
            part = ""
        else:
            part += letter
    return found


def level(op_name: str) -> str:
    """The first-level module of the network in a path: the scope after the name of a class; else `OUTSIDE`."""
    path = scopes(op_name)
    for i, scope in enumerate(path[:-2]):
        if re.fullmatch(r"[A-Z]\w*", scope):
            return path[i + 1]
    return OUTSIDE


_ALIASES = {"bitcast", "get-tuple-element", "tuple", "opt-barrier", "while", "copy-done", "slice-done"}


def _at_the_peak(entry: Sequence[Instruction]) -> Mapping[str, int]:
    """{instruction: bytes of its result} of the temporaries that are alive when they take the most memory.

    Arguments and results of the computation are no temporaries. Those inside a loop are not counted.
    """
    holders: dict[str, set[str]] = {}  # of each name, the instructions whose results it stands for
    last: dict[str, int] = {}
    held: dict[str, int] = {}
    returned: set[str] = set()
    for i, each in enumerate(entry):
        behind: Iterable[str] = (name for operand in each.operands for name in holders.get(operand, ()))
        behind = set(behind)
        for name in behind:
            last[name] = i
        if each.opcode in _ALIASES:
            holders[each.name] = behind
        elif each.opcode in ("parameter", "constant"):
            holders[each.name] = set()
        else:
            holders[each.name] = {each.name}
            result = instructions.elements(each.shape)[0] if each.opcode == "copy-start" else each.shape
            held[each.name], last[each.name] = instructions.held(result), i
        if each.root:
            returned = holders[each.name]
    ends = collections.defaultdict(list)
    for name, i in last.items():
        ends[i].append(name)
    now: dict[str, int] = {}
    total = most = at = 0
    for i, each in enumerate(entry):
        if each.name in held and each.name not in returned:
            total += held[each.name]
        if total > most:
            most, at = total, i
        total -= sum(held[name] for name in ends[i] if name not in returned)
    begun = {each.name: i for i, each in enumerate(entry)}
    now = {name: size for name, size in held.items() if name not in returned and begun[name] <= at <= last[name]}
    return now
