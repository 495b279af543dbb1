"""A U-Net as a picture: a row for each size of its maps, encoder at the left, decoder at the right, skips between."""

import dataclasses
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from diffusion_jax.report.figures import encode


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a network."""

    path: tuple[str, ...]  # the names of its module, from the network on
    kind: str  # the name of its class
    shape: tuple[int, ...]  # *S C of what it gives
    parameters: int


_KINDS = {
    "Conv": ("convolution", "#8172b3"),
    "ResBlock": ("residual block", "#4c72b0"),
    "SelfAttention": ("self-attention", "#dd8452"),
    "SpatialTransformer": ("transformer, attends to the text", "#c44e52"),
    "Downsample": ("downsampling", "#8c8c8c"),
    "Upsample": ("upsampling", "#55a868"),
}
_OTHER = ("other", "#937860")
_WIDTH, _HEIGHT, _GAP = 0.86, 0.62, 0.14


def unet_png(layers: Sequence[Layer], title: str) -> bytes:
    """A PNG of the layers of `nets.unet.UNet`, each with the channels that it gives; titled, with the parameters."""
    encoder = [_level(layers, f"down_{i}") for i in range(_levels(layers))]
    decoder = [_level(layers, f"up_{i}") for i in range(_levels(layers))]
    mid = _level(layers, "mid")
    first, last = (next(layer for layer in layers if layer.path == (name,)) for name in ("conv_in", "conv_out"))
    encoder[0].insert(0, first)
    decoder[0].append(last)
    rows = len(encoder)
    indent = 0.75  # boxes that each row begins further in
    widest = max(len(e) + len(d) + 2 * indent * i for i, (e, d) in enumerate(zip(encoder, decoder, strict=True)))
    widest = max(widest + 2.2, len(mid) + 2 * indent * rows)
    figure = Figure(figsize=(max(8, 0.72 * widest), 1.02 * rows + 2.3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for i in range(rows):
        begin, end = indent * i, widest - indent * i
        _boxes(axes, encoder[i], begin, -i)
        _boxes(axes, decoder[i], end - len(decoder[i]), -i)
        inside, outside = begin + len(encoder[i]) + 0.05, end - len(decoder[i]) - 0.15
        arrow = {"arrowstyle": "->", "ls": "--", "color": "0.45", "lw": 1.1}
        axes.annotate("", (outside, -i), (inside, -i), arrowprops=arrow)
        skips = sum(layer.kind in ("ResBlock",) for layer in decoder[i])
        size = " x ".join(map(str, encoder[i][0].shape[:-1]))
        axes.text((inside + outside) / 2, -i + 0.08, f"{size}\n{skips} skips", ha="center", va="bottom", fontsize=9)
    _boxes(axes, mid, (widest - len(mid)) / 2, -rows)
    kinds = {layer.kind: _KINDS.get(layer.kind, _OTHER) for part in (*encoder, *decoder, mid) for layer in part}
    handles = [Patch(color=color, label=name) for name, color in dict.fromkeys(kinds.values())]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    total = sum(layer.parameters for layer in layers if len(layer.path) == 1)
    axes.set_title(f"{title}: {total:,} parameters\nEach layer with the channels that it gives")
    axes.set(xlim=(-0.3, widest + 0.3), ylim=(-rows - 0.6, 0.85))
    axes.axis("off")
    return encode(figure)


def _levels(layers: Sequence[Layer]) -> int:
    return 1 + max(int(found[1]) for layer in layers if (found := re.fullmatch(r"down_(\d+)", layer.path[0])))


def _level(layers: Sequence[Layer], name: str) -> list[Layer]:
    """The layers inside the module of that name."""
    return [layer for layer in layers if len(layer.path) == 2 and layer.path[0] == name]


def _boxes(axes: Axes, layers: Sequence[Layer], left: float, y: float) -> None:
    for i, layer in enumerate(layers):
        _, color = _KINDS.get(layer.kind, _OTHER)
        corner = (left + i + _GAP / 2, y - _HEIGHT / 2)
        box = FancyBboxPatch(corner, _WIDTH, _HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", color=color, lw=0)
        axes.add_patch(box)
        axes.text(left + i + 0.5, y, str(layer.shape[-1]), ha="center", va="center", fontsize=9, color="white")
