"""The config.json of a diffusers model as the options of our network; an option without a twin is refused by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.errors import UserError

_NO_DEFAULT: tuple[Any, ...] = ()

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
    "only_cross_attention": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "num_class_embeds": (None,),
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

_WITHOUT_EFFECT = {"num_train_timesteps", "upcast_attention", "addition_embed_type_num_heads", "force_upcast"}
"""Options that change nothing of what a network computes in float32."""

_LAYOUT = ("use_linear_projection", "upcast_attention", "force_upcast")
"""Options that change nothing of what a network computes here, but how theirs stores it, or its float16."""


@dataclasses.dataclass(frozen=True)
class UNetOptions:
    """What a U-Net's config.json says."""

    options: dict[str, Any]  # keys of config.model
    in_channels: int
    out_channels: int
    size: tuple[int, int]  # H W of x
    text_features: int | None  # of what it attends to; None: it is told no text
    layout: dict[str, Any]  # their options that change nothing here and are theirs again in an export


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
    defaults: dict[str, Any] = {
        "sample_size": _NO_DEFAULT,
        "in_channels": 4 if conditional else 3,
        "out_channels": 4 if conditional else 3,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": _NO_DEFAULT,
        "up_block_types": _NO_DEFAULT,
        "block_out_channels": _NO_DEFAULT,
        "layers_per_block": 2,
        "downsample_padding": 1,
        "dropout": 0.0,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
    }
    if conditional:
        defaults |= {"cross_attention_dim": 1280, "transformer_layers_per_block": 1, "use_linear_projection": False}
    else:
        defaults |= {"downsample_type": "conv", "upsample_type": "conv", "attn_norm_num_groups": None}
        defaults |= {"resnet_time_scale_shift": "default", "num_class_embeds": None}
    fixed = _BOTH | (_CONDITIONAL if conditional else _UNCONDITIONAL)
    said = _said(config, defaults, fixed, where)
    channels, multipliers = _channels(said["block_out_channels"], where)
    attended = _attended(said, conditional, where)
    options: dict[str, Any] = {
        "channels": channels,
        "multipliers": multipliers,
        "blocks": _one(said, "layers_per_block", where),
        "attention": tuple(2**i for i, attends in enumerate(attended) if attends),
        "groups": said["norm_num_groups"],
        "dropout": float(said["dropout"]),
        "epsilon": float(said["norm_eps"]),
        "sinusoids": _choice(
            (bool(said["flip_sin_to_cos"]), said["freq_shift"]),
            {(True, 0): "adm", (False, 1): "ddpm"},
            "(flip_sin_to_cos, freq_shift)",
            where,
        ),
        "padding": _choice(said["downsample_padding"], {0: "end", 1: "both"}, "downsample_padding", where),
    }
    if conditional:
        options |= _heads(said["attention_head_dim"], said["block_out_channels"], where)
        options["depth"] = _one(said, "transformer_layers_per_block", where)
    else:
        head = said["attention_head_dim"]
        options |= {"heads": 1, "head_channels": head or 0}
        options["resample"] = _resample(said, where)
        options["scale_shift"] = _choice(
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
    text = _one(said, "cross_attention_dim", where) if conditional else None
    size = _size(said["sample_size"], where)
    return UNetOptions(options, said["in_channels"], said["out_channels"], size, text, _layout(config))


def autoencoder(config: Mapping[str, Any], where: str) -> AutoencoderOptions:
    """The options of an `AutoencoderKL`; raises UserError for an option, or a value, that ours does not have."""
    defaults: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": _NO_DEFAULT,
        "up_block_types": _NO_DEFAULT,
        "block_out_channels": _NO_DEFAULT,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 32,
        "scaling_factor": 0.18215,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    }
    said = _said(config, defaults, _AUTOENCODER, where)
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
    size = _size(said["sample_size"], where)
    return AutoencoderOptions(options, said["in_channels"], size, float(said["scaling_factor"]), _layout(config))


def _layout(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in _LAYOUT if config.get(key) is not None}


def _said(
    config: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], where: str
) -> dict[str, Any]:
    """config completed with defaults, once what is not computed here has been refused."""
    for key, value in config.items():
        if key in fixed and value not in fixed[key]:
            raise UserError(
                f"{where}: {key}={value!r} has no twin here; {' or '.join(map(repr, fixed[key]))} is what is computed"
            )
        if key not in defaults and key not in fixed and key not in _WITHOUT_EFFECT and not key.startswith("_"):
            raise UserError(f"{where}: the option {key}={value!r} is unknown here")
    said = dict(defaults) | {key: value for key, value in config.items() if key in defaults}
    if lacking := [key for key, value in said.items() if defaults[key] == _NO_DEFAULT and value in (None, _NO_DEFAULT)]:
        raise UserError(f"{where} does not say {lacking[0]}; add it")
    return said


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
    return _choice(kind, kinds, f"{side.lower()}_block_types", where)


def _level(kind: str, end: str, side: str, where: str) -> bool:
    return _choice(kind, {f"{side}{end}": False, f"Attn{side}{end}": True}, f"{side.lower()}_block_types", where)


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
            found.add(_choice(by_type, names, key, where))
    if len(found) > 1:
        raise UserError(f"{where}: levels change resolution in two ways, conv and resnet; one for all has a twin here")
    return min(found, default="conv")


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


def _one(said: Mapping[str, Any], key: str, where: str) -> int:
    """The one value of an option that may be given a level."""
    value = said[key]
    each = set(value) if isinstance(value, list | tuple) else {value}
    if len(each) != 1 or not isinstance(one := min(each), int):
        raise UserError(f"{where}: {key}={value!r} has no twin here; it is one whole number for all levels")
    return one


def _size(size: int | Sequence[int], where: str) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise UserError(f"{where}: sample_size={size!r} is no side, nor height and width")
    return sides[0], sides[1]


def _choice(value: Any, ours: Mapping[Any, Any], key: str, where: str) -> Any:
    if value not in ours:
        raise UserError(f"{where}: {key}={value!r} has no twin here; it is {' or '.join(map(repr, ours))}")
    return ours[value]
