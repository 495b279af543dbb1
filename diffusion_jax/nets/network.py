"""The protocol of network families: what a task gives a network, and what a family declares of itself.

A family is one file with one subclass of `Network`. Nothing outside that file knows its layers: how its parameters are
split over devices, which of them Muon leaves to Adam and which keys `config.model` has are read from the class.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.ranges import Range

TensorRule = tuple[str, int]
"""(pattern of a parameter's path, the axis of it that is split over the mesh axis `tensor`)."""


class Network(nn.Module):
    """A network that is given x_t, a time and conditions, and whose output a prediction is made of.

    The fields here are given by the task. The fields that a family adds are its options: the keys of `config.model`,
    with their only defaults. Dimension key: B batch, *S spatial axes, C channels, N tokens, D features.
    """

    out_channels: int
    num_classes: int | None = None
    """None is unconditional; otherwise labels are in [0, num_classes], and num_classes itself is the null class."""
    text_features: int | None = None
    """Width D of cond["text"] [B, N, D]; cond["text_mask"] [B, N], which may be left out, is True where a token counts.
    None: no text."""
    concat: tuple[str, ...] = ()
    """Entries of cond, each [B, *S, C'], whose channels follow those of x, in this order."""
    levels: tuple[str, ...] = ()
    """Entries of cond, each [B], embedded as t is: levels of noise augmentation (arXiv:2106.15282)."""
    level_scale: float = 1.0
    """Times each of the levels before it is embedded: 1000 brings levels in [0, 1] to where sinusoids tell t apart."""
    numbers: tuple[str, ...] = ()
    """Entries of cond, each [B, K], whose numbers are embedded as sinusoids each, together and with the text's vector
    where the net takes that: the size and crop of a picture (SDXL, arXiv:2307.01952, section 2.2)."""
    dtype: DTypeLike = jnp.float32
    """Of the computation: parameters and output are float32 always."""

    tensor_rules: ClassVar[tuple[TensorRule, ...]] = ()
    """How parameters are split over `tensor`; the first pattern that matches counts, others are not split."""
    outer_layers: ClassVar[tuple[str, ...]] = ("embedding",)
    """Names in the paths of first and last layers, which Muon leaves to Adam."""
    stacked_layers: ClassVar[tuple[str, ...]] = ()
    """Names in the paths of layers that are scanned: the first axis of their parameters counts layers, as `nn.scan`
    stacks them, and to Muon each layer has matrices of its own. Axes of tensor rules, from the end, do not change."""

    float32_layers: ClassVar[tuple[str, ...] | None] = None
    """Names in the paths of layers that compute in float32 whatever the `dtype`. Every other parameter called "kernel"
    is read in `dtype` alone. None: not known."""
    splits_tokens: ClassVar[bool] = False
    """Whether its layers say how tokens are split over the mesh axis `context`, as `context.split_tokens` and
    `multi_head` do."""
    rematerializations: ClassVar[tuple[str, ...]] = ()
    """What the option `remat` may be, from the most memory to the least, where the family has it and it is a text."""

    ranges: ClassVar[Mapping[str, Range]] = {}
    """The range of each option that is a number, or a tuple of numbers."""

    @property
    def pools_text(self) -> bool:
        """Whether it takes cond["text_pooled"] [B, D], one vector for the whole text, beside the tokens."""
        return False

    @property
    def size_unit(self) -> int:
        """The number of which the sides of x are multiples, for a network that takes x of any such size.

        0: it takes the size that it was trained with alone, as a network does that is told positions.
        """
        return 0

    def as_read(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters in the types that they are read in, where the family says it (`float32_layers`).

        The output is the same to the bit. Parameters that are sent from device to device are half as large so.
        """
        kept = self.float32_layers

        def cast(path: tuple[Any, ...], a: Array) -> Array:
            names = [key.key for key in path]
            return a.astype(self.dtype) if names[-1] == "kernel" and not set(names) & set(kept or ()) else a

        return dict(params) if kept is None else jax.tree_util.tree_map_with_path(cast, dict(params))

    def __call__(self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Array:
        """x [B, *S, C], t [B] the schedule's conditioning value, cond as the fields say -> [B, *S, out_channels].

        Randomness "dropout" where train. Raises UserError where the sizes or cond do not fit the network.
        """
        raise NotImplementedError

    def check_cond(self, x: Array, cond: Mapping[str, Array]) -> None:
        """Raises UserError unless cond has exactly the entries that the fields ask for, in the shapes that fit x."""
        # Of each entry: its shape, None where a size is free.
        entries: dict[str, tuple[int | None, ...]] = {}
        options = [f"num_classes={self.num_classes}"]
        if self.num_classes is not None:
            entries["label"] = x.shape[:1]
        if self.text_features is not None:
            options.append(f"text_features={self.text_features}")
            entries["text"] = (x.shape[0], None, self.text_features)
        if self.pools_text:
            options.append("pooled_text=True")
            entries["text_pooled"] = (x.shape[0], None)
        for name in self.concat:
            entries[name] = (*x.shape[:-1], None)
        for name in self.levels:
            entries[name] = x.shape[:1]
        for name in self.numbers:
            entries[name] = (x.shape[0], None)
        told = {"concat": self.concat, "levels": self.levels, "numbers": self.numbers}
        options += [f"{kind}={names}" for kind, names in told.items() if names]
        optional = {"text_mask"} if "text" in entries else set()
        missing, superfluous = sorted(set(entries) - set(cond)), sorted(set(cond) - set(entries) - optional)
        if missing or superfluous:
            raise UserError(
                f"a net with {', '.join(options)} takes {f'cond {sorted(entries)}' if entries else 'no cond'}; "
                f"got {sorted(cond) or 'none'}"
                + (f"; missing {missing}" if missing else "")
                + (f"; superfluous {superfluous}" if superfluous else "")
            )
        if "text_mask" in cond:
            entries["text_mask"] = cond["text"].shape[:2]
            if cond["text_mask"].dtype != bool:
                raise UserError(f"cond['text_mask'] is bool, True where a token counts; got {cond['text_mask'].dtype}")
        for name, shape in entries.items():
            got = cond[name].shape
            if len(got) != len(shape) or any(n not in (None, m) for n, m in zip(shape, got, strict=True)):
                wanted = ", ".join("any" if n is None else str(n) for n in shape)
                raise UserError(f"cond[{name!r}] must have shape ({wanted}); got {got}")


def check_shapes(x: Array, t: Array) -> None:
    """Raises UserError unless x is [B, *S, C] with one to three spatial axes, and t [B]."""
    if not 3 <= x.ndim <= 5:
        raise UserError(f"x is [B, *spatial, C] with one to three spatial axes; got shape {x.shape}")
    if t.shape != x.shape[:1]:
        raise UserError(f"t holds one value for each of {x.shape[0]} examples, shape {x.shape[:1]}; got {t.shape}")


_OF_FLAX = {"parent", "name"}


def options(family: type[nn.Module], given: type[nn.Module] = Network) -> dict[str, Any]:
    """{option: default} of a family: its fields beside those of the class given, which the task sets.

    Raises TypeError for an option without a default.
    """
    shared = {field.name for field in dataclasses.fields(given)} | _OF_FLAX
    found = {field.name: field.default for field in dataclasses.fields(family) if field.name not in shared}
    if lacking := [name for name, default in found.items() if default is dataclasses.MISSING]:
        raise TypeError(f"{family.__name__}.{lacking[0]} is an option of a network family and needs a default")
    return found
