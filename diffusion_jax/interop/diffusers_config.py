"""Our networks as the config.json of a diffusers model: `diffusers_options` back.

A network is given as {field: value} of the dataclass that it is. A value that theirs cannot have is refused by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.interop import diffusers_added
from diffusion_jax.interop.diffusers_scheduler_config import no_twin

VERSION = "0.42.0"
"""Of diffusers, whose names of options these are."""

_WITHOUT_EFFECT = ("remat", "attention_kernel", "unroll", "dtype", "level_scale")
"""Fields that change nothing of what a network computes in float32, or nothing without `levels`."""

_TOLD = ("out_channels", "num_classes", "text_features")

_UNET = (
    *("channels", "multipliers", "blocks", "attention", "heads", "head_channels", "groups", "dropout", "epsilon"),
    *("sinusoids", "padding", "scale_shift", "resample", "depth", "depths", "number_waves"),
)

_UPSCALER = ("text_alone", "level_rows")
"""Options of a U-Net that is told text."""

_DIT = ("patch", "width", "depth", "heads", "dropout", "sinusoids", "mlp_ratio", "waves")


def unet_config(
    net: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    size: Sequence[int],
    in_channels: int,
    pooled: int = 0,
    told: Sequence[str] = (),
) -> dict[str, Any]:
    """A U-Net as a `UNet2DModel`, or with text a `UNet2DConditionModel`; defaults are its options', size H and W of x.

    pooled is the width of the text's vector that it embeds beside numbers; told are the entries that its pipeline gives
    it beside x. Raises UserError where there is no such model.
    """
    added = bool(net["numbers"])
    if added and not net["pooled_text"]:
        raise no_twin("a U-Net that is told sizes without the vector of a text", "give model.pooled_text=True")
    conditional = net["text_features"] is not None
    known = (*_UNET, *_TOLD, *(("pooled_text", "numbers") if added else ()), *(_UPSCALER if conditional else ()))
    _check_rest(net, defaults, known, "the U-Net", told)
    if net["levels"] and not net["level_rows"]:
        raise no_twin("a level that has no table, model.level_rows=0,")
    channels = [net["channels"] * multiplier for multiplier in net["multipliers"]]
    attends = [2**level in net["attention"] for level in range(len(channels))]
    config = {
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": in_channels,
        "out_channels": net["out_channels"],
        "block_out_channels": channels,
        "layers_per_block": net["blocks"],
        "norm_num_groups": net["groups"],
        "norm_eps": net["epsilon"],
        "dropout": net["dropout"],
        "act_fn": "silu",
        "downsample_padding": {"end": 0, "both": 1}[net["padding"]],
        "flip_sin_to_cos": net["sinusoids"] == "adm",
        "freq_shift": 0 if net["sinusoids"] == "adm" else 1,
    }
    if net["blocks"] < 1:
        raise no_twin("a U-Net with model.blocks=0")
    if conditional:
        config |= diffusers_added.config(net["number_waves"], pooled) if added else {}
        return _class("UNet2DConditionModel") | config | _conditional(net, channels, attends)
    return _class("UNet2DModel") | config | _unconditional(net, channels, attends)


def _unconditional(net: Mapping[str, Any], channels: list[int], attends: list[bool]) -> dict[str, Any]:
    plain, by = ("Resnet{}sample", "resnet") if net["resample"] == "block" else ("{}", "conv")
    kinds = [("Attn{}" if attended else plain) + "Block2D" for attended in attends]
    head = net["head_channels"] or None
    if not head and net["heads"] > 1:
        attending = {n for n, attended in zip(channels, attends, strict=True) if attended} | {channels[-1]}
        if len(attending) > 1 or min(attending) % net["heads"]:
            raise no_twin(f"model.heads={net['heads']} at levels of {sorted(attending)} channels")
        head = min(attending) // net["heads"]
    return {
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "downsample_type": by,
        "upsample_type": by,
        "attention_head_dim": head,
        "resnet_time_scale_shift": "scale_shift" if net["scale_shift"] else "default",
        "attn_norm_num_groups": net["groups"],
        "num_class_embeds": None if net["num_classes"] is None else net["num_classes"] + 1,
    }


def _conditional(net: Mapping[str, Any], channels: list[int], attends: list[bool]) -> dict[str, Any]:
    if net["num_classes"] is not None:
        raise no_twin("a model that is told both captions and classes")
    for key, neutral in (("resample", "conv"), ("scale_shift", False)):
        if net[key] != neutral:
            raise no_twin(f"model.{key}={net[key]!r} in a U-Net that is told captions")
    heads: int | list[int] = net["heads"]
    if size := net["head_channels"]:
        heads = [max(n // size, 1) for n in channels]
        if odd := [n for n, a in zip(channels, [*attends[:-1], True], strict=True) if a and n % size]:
            raise no_twin(f"model.head_channels={size} at a level of {odd[0]} channels")
    kinds = [("CrossAttn{}" if attended else "{}") + "Block2D" for attended in attends]
    return {
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "attention_head_dim": heads,  # which is their number, the name notwithstanding
        "cross_attention_dim": net["text_features"],
        "transformer_layers_per_block": list(net["depths"]) or net["depth"],
        "use_linear_projection": False,
    } | _upscaler(net, len(channels))


def _upscaler(net: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """The options by which an upscaler differs; {} for another U-Net."""
    found: dict[str, Any] = {"num_class_embeds": net["level_rows"]} if net["levels"] else {}
    if net["text_alone"]:
        found["only_cross_attention"] = [2**level in net["text_alone"] for level in range(levels)]
    return found


def autoencoder_config(net: Mapping[str, Any], *, size: Sequence[int], scaling_factor: float) -> dict[str, Any]:
    """An autoencoder as an `AutoencoderKL`; size is H and W of an image, scaling_factor what its latents are times."""
    channels = [net["channels"] * multiplier for multiplier in net["multipliers"]]
    kinds = ["Attn{}" if 2**level in net["attention"] else "{}" for level in range(len(channels))]
    return _class("AutoencoderKL") | {
        "in_channels": net["out_channels"],
        "out_channels": net["out_channels"],
        "latent_channels": net["latent_channels"],
        "block_out_channels": channels,
        "layers_per_block": net["blocks"],
        "down_block_types": [kind.format("DownEncoderBlock2D") for kind in kinds],
        "up_block_types": [kind.format("UpDecoderBlock2D") for kind in reversed(kinds)],
        "mid_block_add_attention": net["mid_attention"],
        "norm_num_groups": net["groups"],
        "act_fn": "silu",
        "use_quant_conv": net["quant_convs"],
        "use_post_quant_conv": net["quant_convs"],
        "sample_size": max(size),
        "scaling_factor": float(f"{scaling_factor:.12g}"),  # kept as its inverse, of which this undoes the rounding
    }


def dit_config(
    net: Mapping[str, Any], defaults: Mapping[str, Any], *, size: Sequence[int], in_channels: int
) -> dict[str, Any]:
    """A DiT as a `DiTTransformer2DModel`; defaults are its options', size H and W of x."""
    _check_rest(net, defaults, (*_DIT, *_TOLD), "the DiT")
    if net["num_classes"] is None or net["text_features"] is not None:
        raise no_twin("a DiT that is told anything but a class")
    if net["sinusoids"] != "ddpm":
        raise no_twin(f"model.sinusoids={net['sinusoids']!r} of a DiT, whose frequencies there are those of 'ddpm',")
    for key, only in (("mlp_ratio", 4), ("waves", 256)):
        if net[key] != only:
            raise no_twin(f"a DiT with model.{key}={net[key]}, which is {only} there,")
    if size[0] != size[1]:
        raise no_twin(f"a DiT of {' x '.join(map(str, size))}, which is no square,")
    return _class("DiTTransformer2DModel") | {
        "num_attention_heads": net["heads"],
        "attention_head_dim": net["width"] // net["heads"],
        "in_channels": in_channels,
        "out_channels": net["out_channels"],
        "num_layers": net["depth"],
        "dropout": net["dropout"],
        "sample_size": size[0],
        "patch_size": net["patch"],
        "num_embeds_ada_norm": net["num_classes"],
        "norm_eps": 1e-6,
    }


def _class(name: str) -> dict[str, Any]:
    return {"_class_name": name, "_diffusers_version": VERSION}


def _check_rest(
    net: Mapping[str, Any], defaults: Mapping[str, Any], known: Sequence[str], what: str, told: Sequence[str] = ()
) -> None:
    """Raises UserError for an option beside the known ones that is not at its default, and an entry not told."""
    for key in ("concat", "levels", "numbers"):
        if more := [name for name in net[key] if name not in told and key not in known]:
            raise no_twin(f"{what}, which is told {', '.join(more)},")
    for key, value in net.items():
        if key in (*known, *_WITHOUT_EFFECT, "concat", "levels", "numbers"):
            continue
        if value != defaults.get(key, value):
            raise no_twin(f"{what} with model.{key}={value!r}")
