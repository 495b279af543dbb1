"""The instructions of a compiled program, read from its HLO text: what each reads and writes in memory, and its FLOPs.

A fusion is one instruction, whose arrays in between are never written; a Pallas kernel is one, too. Bytes follow XLA's
own rules: arrays are padded to a TPU's tiles, of an operand that is sliced only the slice counts, and a copy into a
TPU's vector memory counts where it starts and where it is done.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

from diffusion_jax.runs.plan.flops import taps

FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "while", "conditional", "call", "iota", "rng-get-and-update-state", "add-dependency", "domain",
}  # fmt: skip
"""Opcodes that move no bytes by themselves; a loop's and a branch's instructions are counted where they are."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]  # names of instructions; of a parameter, its number
    text: str  # attributes and metadata
    root: bool

    @property
    def op_name(self) -> str:
        """The path of modules and scopes with the primitive at its end: "jit(step)/jvp(UNet)/mid/norm/add"."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1].split(";")[0] if found else ""

    def called(self, attribute: str) -> str:
        """The computation that an attribute such as "calls" names, or ""."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations of a program."""

    computations: dict[str, list[Instruction]]
    entry: str

    @functools.cached_property
    def shapes(self) -> dict[str, dict[str, str]]:
        """{computation: {instruction: shape}}."""
        return {name: {each.name: each.shape for each in lines} for name, lines in self.computations.items()}

    def run(self) -> Iterator[tuple[str, Instruction]]:
        """(computation, instruction) of all instructions that a device runs: each loop's body once, every branch."""
        waiting, seen = [self.entry], set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.computations:
                continue
            seen.add(name)
            for each in self.computations[name]:
                yield name, each
                if each.opcode in ("while", "conditional", "call", "async-start"):
                    waiting += [part for part in _CALLED.findall(each.text) if part in self.computations]
                    for several in re.findall(r"branch_computations=\{([^}]*)\}", each.text):
                        waiting += re.findall(r"[\w.\-]+", several)

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """The instructions of a fusion, or itself."""
        if instruction.opcode != "fusion":
            return [instruction]
        return self.computations.get(instruction.called("calls"), [])


_CALLED = re.compile(r"\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


def parse(text: str) -> Module:
    """The module of `jax.stages.Compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry, name, pending = "", "", ""
    for line in [*text.splitlines(), "}"]:
        begins = _LINE.match(line) if name else None
        ends = line == "}" and name
        if pending and (begins or ends):
            computations[name].append(_instruction(pending))
            pending = ""
        if begins:
            pending = line
        elif ends:
            name = ""
        elif pending:  # attributes of a Pallas kernel go over several lines
            pending += " " + line
        elif header := _HEADER.match(line):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    found = _LINE.match(line)
    assert found is not None
    rest = found[3]
    end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = rest.partition("(")[0]
    end = _balanced(rest, len(opcode))
    inside = rest[len(opcode) + 1 : end - 1]
    operands = (inside,) if opcode == "parameter" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(found[2], opcode, shape, operands, rest[end:], bool(found[1]))


def _balanced(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at start."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(text)


_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,<= ]*)\](?:\{([^}]*)\})?")


def arrays(shape: str) -> list[tuple[int, tuple[int, ...], str]]:
    """(bits of an element, sizes, layout) of each array of a shape, which may be a tuple."""
    found = []
    for kind, sizes, layout in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else 16 if kind == "bf16" else int(kind[1:])
        found.append((bits, tuple(int(n.strip("<= ")) for n in sizes.split(",") if n.strip("<= ")), layout))
    return found


def size(shape: str) -> int:
    """Bytes of a shape's arrays, padded to their tiles."""
    return sum(_padded(*array) for array in arrays(shape))


def held(shape: str) -> int:
    """`size` without the arrays in a TPU's vector memory."""
    return sum(_padded(*array) for array in arrays(shape) if "S(1)" not in array[2])


def _padded(bits: int, sizes: tuple[int, ...], layout: str) -> int:
    order, _, tiles = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    padded = list(sizes)
    if tile and order:
        for axis, n in zip(order.split(","), reversed(tile[1].split(",")), strict=False):
            padded[int(axis)] = -(-padded[int(axis)] // int(n)) * int(n)
    return -(-math.prod(padded) * bits // 8)


def elements(shape: str) -> list[str]:
    """The shapes of the elements of a tuple's shape; an element that is a tuple stays whole."""
    parts, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def accessed(module: Module, computation: str, each: Instruction) -> int:
    """Bytes that an instruction reads and writes in memory."""
    shapes = module.shapes[computation]
    out, operands = size(each.shape), [size(shapes.get(name, "")) for name in each.operands]
    if each.opcode in FREE or 'custom_call_target="ConcatBitcast"' in each.text:
        return 0
    if each.opcode in ("copy-done", "slice-done"):
        return out
    if each.opcode == "copy-start":
        return sum(operands) + out
    if each.opcode == "slice-start":  # ((operand), result, context)
        return 2 * size(elements(each.shape)[1])
    if each.opcode.endswith("-start"):
        return sum(operands) + size(result_of_start(each))
    if each.opcode.endswith("-done"):
        return 0
    if each.opcode in ("slice", "dynamic-slice", "gather"):
        return 2 * out
    if each.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if each.opcode == "fusion":
        return _of_fusion(module.inside(each), operands, out)
    return sum(operands) + out


def uncounted(each: Instruction) -> bool:
    """Whether the compiler's sum lacks the bytes of this instruction: a Pallas kernel without a cost estimate."""
    return 'custom_call_target="tpu_custom_call"' in each.text and '"cost_estimate"' not in each.text


def result_of_start(each: Instruction) -> str:
    """The shape of what an asynchronous collective gives, whose own shape is (operands, results, ...)."""
    return each.shape if each.opcode == "all-reduce-start" else elements(each.shape)[1]


_PARTS = ("slice", "dynamic-slice", "gather")


def _of_fusion(inside: Sequence[Instruction], operands: Sequence[int], out: int) -> int:
    """An operand that only slices read counts as what they take, an update in place as the update."""
    shapes = {each.name: each.shape for each in inside}
    parameters = {each.name: int(each.operands[0]) for each in inside if each.opcode == "parameter"}
    total = 0
    for name, number in parameters.items():
        users = [each for each in inside if name in each.operands]
        if users and all(each.opcode in _PARTS and each.operands[0] == name for each in users):
            total += sum(size(each.shape) for each in users)
        elif users and all(each.opcode == "dynamic-update-slice" and each.operands[0] == name for each in users):
            continue
        else:
            total += operands[number]
    root = next((each for each in inside if each.root), None)
    if root is not None and root.opcode == "dynamic-update-slice":
        return total + size(shapes[root.operands[1]])
    return total + out


def flops(module: Module, computation: str, each: Instruction) -> int:
    """FLOPs of the matrix products and convolutions of an instruction, those in a fusion too."""
    inside = module.inside(each)
    shapes = module.shapes[computation] if each.opcode != "fusion" else {part.name: part.shape for part in inside}
    return sum(_products(part, shapes) for part in inside)


def _products(each: Instruction, shapes: dict[str, str]) -> int:
    if each.opcode not in ("dot", "convolution"):
        return 0
    out = arrays(each.shape)[0][1]
    lhs, rhs = (arrays(shapes[name])[0][1] for name in each.operands[:2])
    if each.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.text)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * math.prod(out) * math.prod(lhs[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.text)
    if labels is None:
        return 0
    left, right, result = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", each.text) or ["", ""])[1]))
    met = 1
    for i, axis in enumerate(letter for letter in left if letter.isdigit()):

        def of(name: str, default: str, i: int = i) -> str:
            return window[name].split("x")[i] if name in window else default

        met *= taps(
            lhs[left.index(axis)],
            rhs[right.index(axis)],
            out[result.index(axis)],
            stride=int(of("stride", "1")),
            low=int(of("pad", "0_0").split("_")[0]),
            lhs_dilation=int(of("lhs_dilate", "1")),
            rhs_dilation=int(of("rhs_dilate", "1")),
        )
    return 2 * out[result.index("b")] * out[result.index("f")] * rhs[right.index("i")] * met
