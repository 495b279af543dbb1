"""The config.json of a `DiTTransformer2DModel` as options of our DiT, and the class names of a `DiTPipeline`."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_options import UNetOptions
from diffusion_jax.interop.option_reading import NO_DEFAULT, completed, height_and_width

PIPELINE, MODELS = "DiTPipeline", ("DiTTransformer2DModel", "Transformer2DModel")
"""The pipeline, and its model's class: that of today and that of the published folders."""

GUIDANCE = 4.0
"""guidance_scale of the pipeline's call."""

SINUSOIDS = "ddpm"
"""The frequencies of the time that diffusers computes."""

_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-5, 1e-6),
    # of a Transformer2DModel, which can be other networks too
    "cross_attention_dim": (None,),
    "num_vector_embeds": (None,),
    "use_linear_projection": (False,),
    "only_cross_attention": (False,),
    "double_self_attention": (False,),
    "attention_type": ("default",),
    "caption_channels": (None,),
    "interpolation_scale": (None,),
    "use_additional_conditions": (None, False),
}
"""{option: its values that are computed here}."""

_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,  # without effect
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": NO_DEFAULT,
}


def dit(config: Mapping[str, Any], where: str) -> UNetOptions:
    """The options of a DiT; where names the file in messages.

    Raises UserError for an option, or a value, that no network here has.
    """
    said = completed(config, _DEFAULTS, _FIXED, where)
    options = {
        "patch": said["patch_size"],
        "width": said["num_attention_heads"] * said["attention_head_dim"],
        "depth": said["num_layers"],
        "heads": said["num_attention_heads"],
        "dropout": float(said["dropout"]),
        "sinusoids": SINUSOIDS,
        "num_classes": said["num_embeds_ada_norm"],
    }
    channels, size = said["in_channels"], height_and_width(said["sample_size"], where)
    return UNetOptions(options, channels, said["out_channels"] or channels, size, None, 0, {}, family="dit")


def notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The differences between the DiT here and in diffusers, a sentence each."""
    found = [
        "the time has the frequencies that diffusers computes; the published DiTs were trained with those of "
        "model.sinusoids='adm'"
    ]
    if config.get("norm_eps", 1e-5) != 1e-6:
        found.append("the second norm of a layer has an epsilon of 1e-6 here, and 1e-5 there")
    return tuple(found)


def class_names(index: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers, from model_index.json; () where it does not name all.

    Names that several classes have end with the class's number. Raises UserError where id2label is no table of names.
    """
    table = index.get("id2label") or {}
    if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table.values()):
        raise UserError("id2label in model_index.json is no table of numbers and names; fetch it anew")
    names = [table.get(str(i), "") for i in range(count)]
    if not all(names):
        return ()
    return tuple(name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names))
