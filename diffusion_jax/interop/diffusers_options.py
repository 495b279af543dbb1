"""The config.json of a diffusers model as the options of our network; an option without a twin is refused by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_added
from diffusion_jax.interop.option_reading import NO_DEFAULT, choice, completed, height_and_width, one_number

_BOTH: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
}
"""{option of both U-Nets: its values that are computed here, the first being its default}."""

_UNCONDITIONAL: dict[str, tuple[Any, ...]] = {
    "mid_block_type": ("UNetMidBlock2D",),
    "add_attention": (True,),
}

_CONDITIONAL: dict[str, tuple[Any, ...]] = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "projection_class_embeddings_input_dim": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}

_AUTOENCODER: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
}

_LAYOUT = ("use_linear_projection", "upcast_attention", "force_upcast", "only_cross_attention")
"""Options that change nothing of what a network computes here, but how theirs stores it, or its float16."""


@dataclasses.dataclass(frozen=True)
class UNetOptions:
    """What the config.json of a U-Net says, or of another network that takes its place."""

    options: dict[str, Any]  # keys of config.model
    in_channels: int
    out_channels: int
    size: tuple[int, int]  # H W of x
    text_features: int | None  # of what it attends to; None: it is told no text
    pooled: int  # width of the text's vector that it embeds with sizes and crop (XL); 0: it is told neither
    layout: dict[str, Any]  # their options that change nothing here and are theirs again in an export
    family: str = "unet"


@dataclasses.dataclass(frozen=True)
class AutoencoderOptions:
    """What an autoencoder's config.json says."""

    options: dict[str, Any]  # keys of config.autoencoder
    channels: int  # of an image
    size: tuple[int, int]  # H W of an image that it was trained with
    scaling_factor: float  # times a latent: gives it unit variance
    layout: dict[str, Any]  # as `UNetOptions.layout`


def unet(config: Mapping[str, Any], where: str) -> UNetOptions:
    """The options of a `UNet2DModel` or `UNet2DConditionModel`; where names the file in messages.

    Raises UserError for an option, or a value, that no network here has.
    """
    conditional = config.get("_class_name") == "UNet2DConditionModel"
    fixed = _BOTH | (_CONDITIONAL if conditional else _UNCONDITIONAL)
    added, pooled = diffusers_added.options(config, where) if conditional else ({}, 0)
    if added:
        config = {key: value for key, value in config.items() if key not in diffusers_added.KEYS}
    said = completed(config, _unet_defaults(conditional), fixed, where)
    channels, multipliers = _channels(said["block_out_channels"], where)
    attended = _attended(said, conditional, where)
    options: dict[str, Any] = {
        "channels": channels,
        "multipliers": multipliers,
        "blocks": one_number(said, "layers_per_block", where),
        "attention": tuple(2**i for i, attends in enumerate(attended) if attends),
        "groups": said["norm_num_groups"],
        "dropout": float(said["dropout"]),
        "epsilon": float(said["norm_eps"]),
        "sinusoids": choice(
            (bool(said["flip_sin_to_cos"]), said["freq_shift"]),
            {(True, 0): "adm", (False, 1): "ddpm"},
            "(flip_sin_to_cos, freq_shift)",
            where,
        ),
        "padding": choice(said["downsample_padding"], {0: "end", 1: "both"}, "downsample_padding", where),
    }
    if conditional:
        options |= _heads(said["attention_head_dim"], said["block_out_channels"], where)
        options |= _depth(said, len(multipliers), where) | added
        if alone := _text_alone(said["only_cross_attention"], attended, where):
            options["text_alone"] = alone
        if said["num_class_embeds"]:
            options["level_rows"] = said["num_class_embeds"]
    else:
        options |= _unconditional(said, where)
    text = one_number(said, "cross_attention_dim", where) if conditional else None
    size = height_and_width(said["sample_size"], where)
    return UNetOptions(options, said["in_channels"], said["out_channels"], size, text, pooled, _layout(config))


def _unet_defaults(conditional: bool) -> dict[str, Any]:
    """{option: default} of a U-Net of diffusers."""
    defaults: dict[str, Any] = {
        "sample_size": NO_DEFAULT,
        "in_channels": 4 if conditional else 3,
        "out_channels": 4 if conditional else 3,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": NO_DEFAULT,
        "up_block_types": NO_DEFAULT,
        "block_out_channels": NO_DEFAULT,
        "layers_per_block": 2,
        "downsample_padding": 1,
        "dropout": 0.0,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
    }
    if conditional:
        defaults |= {"cross_attention_dim": 1280, "transformer_layers_per_block": 1, "use_linear_projection": False}
        defaults |= {"only_cross_attention": False, "num_class_embeds": None}
    else:
        defaults |= {"downsample_type": "conv", "upsample_type": "conv", "attn_norm_num_groups": None}
        defaults |= {"resnet_time_scale_shift": "default", "num_class_embeds": None}
    return defaults


def _unconditional(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options that a `UNet2DModel` has and a `UNet2DConditionModel` has not, or has in other words."""
    options = {"heads": 1, "head_channels": said["attention_head_dim"] or 0, "resample": _resample(said, where)}
    options["scale_shift"] = choice(
        said["resnet_time_scale_shift"], {"default": False, "scale_shift": True}, "resnet_time_scale_shift", where
    )
    groups = said["attn_norm_num_groups"]
    if groups != said["norm_num_groups"] and (groups is not None or options["scale_shift"]):
        raise UserError(
            f"{where}: attn_norm_num_groups={groups!r} has no twin here; it is as norm_num_groups, "
            f"{said['norm_num_groups']}"
        )
    if said["num_class_embeds"]:
        options["num_classes"] = said["num_class_embeds"] - 1  # the last is the null class
    return options


def autoencoder(config: Mapping[str, Any], where: str) -> AutoencoderOptions:
    """The options of an `AutoencoderKL`; raises UserError for an option, or a value, that ours does not have."""
    defaults: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": NO_DEFAULT,
        "up_block_types": NO_DEFAULT,
        "block_out_channels": NO_DEFAULT,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 32,
        "scaling_factor": 0.18215,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    }
    said = completed(config, defaults, _AUTOENCODER, where)
    channels, multipliers = _channels(said["block_out_channels"], where)
    for first, second in (("in_channels", "out_channels"), ("use_quant_conv", "use_post_quant_conv")):
        if said[first] != said[second]:
            raise UserError(
                f"{where}: {first}={said[first]!r} and {second}={said[second]!r} have no twin here; they are equal"
            )
    down = [_level(kind, "EncoderBlock2D", "Down", where) for kind in said["down_block_types"]]
    up = [_level(kind, "DecoderBlock2D", "Up", where) for kind in reversed(said["up_block_types"])]
    _check_mirrored(down, up, len(multipliers), where)
    options = {
        "channels": channels,
        "latent_channels": said["latent_channels"],
        "multipliers": multipliers,
        "blocks": said["layers_per_block"],
        "attention": tuple(2**i for i, attends in enumerate(down) if attends),
        "mid_attention": said["mid_block_add_attention"],
        "groups": said["norm_num_groups"],
        "quant_convs": said["use_quant_conv"],
    }
    size = height_and_width(said["sample_size"], where)
    return AutoencoderOptions(options, said["in_channels"], size, float(said["scaling_factor"]), _layout(config))


def _layout(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in _LAYOUT if config.get(key) is not None}


def _text_alone(said: bool | Sequence[bool], attended: list[bool], where: str) -> tuple[int, ...]:
    """The factors of the levels that attend whose only_cross_attention is True; the bottleneck's is False."""
    each = [False] * len(attended) if said is False else said
    if isinstance(each, bool) or len(each) != len(attended):
        raise UserError(f"{where}: only_cross_attention={said!r} has no twin here; it is False, or a value a level")
    return tuple(2**i for i, (alone, attends) in enumerate(zip(each, attended, strict=True)) if alone and attends)


def _channels(channels: Sequence[int], where: str) -> tuple[int, tuple[int, ...]]:
    """(channels of the first level, multipliers)."""
    first = channels[0]
    if any(n % first for n in channels):
        raise UserError(
            f"{where}: block_out_channels={list(channels)} has no twin here; each is a multiple of the first"
        )
    return first, tuple(n // first for n in channels)


def _attended(said: Mapping[str, Any], conditional: bool, where: str) -> list[bool]:
    """Whether attention follows each level's blocks."""
    attention = "CrossAttn" if conditional else "Attn"
    plain = ("",) if conditional else ("", "Resnet")
    down = [_unet_level(kind, attention, plain, "Down", where) for kind in said["down_block_types"]]
    up = [_unet_level(kind, attention, plain, "Up", where) for kind in reversed(said["up_block_types"])]
    _check_mirrored(down, up, len(said["block_out_channels"]), where)
    return down


def _unet_level(kind: str, attention: str, plain: Sequence[str], side: str, where: str) -> bool:
    kinds = {f"{attention}{side}Block2D": True}
    kinds |= {f"{prefix}{side}{'sample' if prefix else ''}Block2D": False for prefix in plain}
    return choice(kind, kinds, f"{side.lower()}_block_types", where)


def _level(kind: str, end: str, side: str, where: str) -> bool:
    return choice(kind, {f"{side}{end}": False, f"Attn{side}{end}": True}, f"{side.lower()}_block_types", where)


def _check_mirrored(down: list[bool], up: list[bool], levels: int, where: str) -> None:
    if down != up or len(down) != levels:
        raise UserError(f"{where}: up_block_types are not down_block_types backwards, a kind for each of the {levels}")


def _resample(said: Mapping[str, Any], where: str) -> str:
    """How a `UNet2DModel` changes resolution: at every level in one way."""
    names = {"conv": "conv", "resnet": "block"}
    found = set()
    for side in ("down", "up"):
        key = f"{side}sample_type"
        for kind in said[f"{side}_block_types"][:-1]:  # the last of each side keeps its resolution
            by_type = "resnet" if kind.startswith("Resnet") else said[key] if kind.startswith("Attn") else "conv"
            found.add(choice(by_type, names, key, where))
    if len(found) > 1:
        raise UserError(f"{where}: levels change resolution in two ways, conv and resnet; one for all has a twin here")
    return min(found, default="conv")


def _depth(said: Mapping[str, Any], levels: int, where: str) -> dict[str, Any]:
    """Transformer layers: one number for all levels, or one for each."""
    value = said["transformer_layers_per_block"]
    if not isinstance(value, list | tuple) or len(set(map(str, value))) == 1:
        return {"depth": one_number(said, "transformer_layers_per_block", where)}
    if len(value) != levels or not all(isinstance(one, int) for one in value):
        raise UserError(
            f"{where}: transformer_layers_per_block={value!r} has no twin here; it is a whole number, or one for each "
            f"of {levels} levels"
        )
    return {"depths": tuple(value)}


def _heads(heads: int | Sequence[int], channels: Sequence[int], where: str) -> dict[str, int]:
    """attention_head_dim of a `UNet2DConditionModel`, which is a number of heads, its name notwithstanding."""
    each = [heads] * len(channels) if isinstance(heads, int) else list(heads)
    if len(set(each)) == 1:
        return {"heads": each[0], "head_channels": 0}
    sizes = {n / h for n, h in zip(channels, each, strict=False)}
    if len(sizes) == 1 and len(each) == len(channels) and (size := min(sizes)).is_integer():
        return {"heads": 1, "head_channels": int(size)}
    raise UserError(
        f"{where}: attention_head_dim={heads!r} has no twin here; the heads are equal in number, or in channels"
    )
