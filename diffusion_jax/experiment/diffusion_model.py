"""The model of a config."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.schedules import MODIFIERS, SCHEDULES, Learned, Schedule, learned
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import data
from diffusion_jax.experiment.objectives import objective
from diffusion_jax.models.conditions import Caption, Label, check_levels, check_names, spatial
from diffusion_jax.models.latent import Autoencoder
from diffusion_jax.models.model import Model
from diffusion_jax.models.text import DTYPES, text_encoder
from diffusion_jax.nets.families import family
from diffusion_jax.spec import from_spec


def schedule(text: str) -> Schedule:
    """The schedule of a text such as "cosine" or "linear | zero_snr | shift(scale=0.5)": modifiers apply in turn.

    "learned(hidden=1024, logsnr_max=13.3, logsnr_min=-5.0)" has its initial parameters, and takes no modifiers.
    """
    name, *modifiers = text.split("|")
    built = from_spec(name, SCHEDULES | {"learned": _learned}, "schedule")
    if modifiers and isinstance(built, Learned):
        raise UserError(f"a learned schedule takes no modifiers; got {text!r}")
    for modifier in modifiers:
        built = from_spec(modifier, MODIFIERS, "schedule modifier")(built)
    return built


def _learned(hidden: int = 1024, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> Schedule:
    return Learned(learned.init(jax.random.key(0), hidden, logsnr_max, logsnr_min))


def model(config: ConfigDict, autoencoder: Autoencoder | None = None, text_folder: str = "") -> Model:
    """The network, schedule and prediction of config; raises UserError where sizes do not fit together.

    autoencoder is the one of the workdir that config.latent names; text_folder a copy of a published text encoder, to
    be read instead of the config's.
    """
    if bool(config.latent) != (autoencoder is not None):
        raise ValueError("a config with `latent` needs the autoencoder of that workdir, and no other config does")
    options = config.model.to_dict()
    make = family(options.pop("name"))
    dtype, num_classes = options.pop("dtype"), options.pop("num_classes")
    if dtype not in DTYPES:
        raise UserError(f"unknown model.dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    parameterization = from_spec(config.prediction, PREDICTIONS, "prediction")
    shape = data.shape(config)
    x_channels = (autoencoder.latent_shape(shape) if autoencoder else shape)[-1]
    encoder = text_encoder(config.text, text_folder)
    conditions = spatial(config.spatial) + ((Label(num_classes),) if num_classes else ())
    conditions += (Caption(encoder),) if encoder else ()
    check_names(conditions, shape)
    if rows := options.get("level_rows", 0):
        check_levels(conditions, rows)
    network = make(
        out_channels=x_channels * (2 if parameterization.learned_variance else 1),
        num_classes=max((each.num_classes for each in conditions), default=0) or None,
        text_features=next((each.text_features for each in conditions if each.text_features), None),
        concat=tuple(entry for condition in conditions for entry in condition.channels(1)),
        levels=tuple(level for condition in conditions for level in condition.levels),
        numbers=tuple(entry for condition in conditions for entry in condition.numbers),
        level_scale=config.level_scale,
        dtype=DTYPES[dtype],
        **options,
    )
    if network.pools_text:
        if encoder is None:
            raise UserError("model.pooled_text needs a text encoder; give `text`")
        conditions = (*conditions[:-1], Caption(encoder, pooled=True))
    built = Model(
        network=network,
        schedule=schedule(config.schedule),
        parameterization=parameterization,
        shape=shape,
        conditions=conditions,
        autoencoder=autoencoder,
    )
    goal = objective(config, built.schedule, parameterization)
    if isinstance(built.schedule, Learned) and not goal.learns_schedule:
        raise UserError(f"a learned schedule needs objective='vdm', by which it learns; got {config.objective!r}")
    if goal.learns_from_teacher and not config.teacher:
        raise UserError(f"objective={config.objective!r} learns from a trained model; give teacher=ITS_WORKDIR")
    if config.teacher and not goal.learns_from_teacher:
        raise UserError(f"objective={config.objective!r} learns from no teacher; leave teacher={config.teacher!r} out")
    if jax.tree.leaves(jax.eval_shape(goal.init, jax.random.key(0)).params):
        built = dataclasses.replace(built, init_objective=lambda key: goal.init(key).params)
    if float(built.schedule.alpha(jnp.float32(1.0))) == 0 and config.prediction.partition("(")[0] in ("eps", "score"):
        raise UserError(
            f"prediction {config.prediction!r} says nothing of the image where schedule {config.schedule!r} "
            "ends without signal; choose v, x0, edm or flow"
        )
    jax.eval_shape(built.init, jax.random.key(0))  # the network checks its sizes when traced
    return built
