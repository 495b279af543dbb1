"""The model of a config: a network together with what gives its output a meaning."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from diffusion_jax.core import denoisers
from diffusion_jax.core.denoisers import Condition, ConditionalDenoiser
from diffusion_jax.core.predictions import PREDICTIONS, Parameterization
from diffusion_jax.core.schedules import MODIFIERS, SCHEDULES, Schedule
from diffusion_jax.errors import UserError
from diffusion_jax.nets.unet import UNet
from diffusion_jax.spec import from_spec
from diffusion_jax.train.state import Params

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet}


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network together with what gives its output a meaning: schedule, prediction, image shape and classes."""

    network: nn.Module
    schedule: Schedule
    parameterization: Parameterization
    shape: tuple[int, int, int]  # H W C of one image
    num_classes: int  # 0: unconditional

    def init(self, key: Array) -> Params:
        """Random parameters."""
        x = jnp.zeros((1, *self.shape))
        return self.network.init(key, x, jnp.zeros(1), self.null(1))["params"]

    def apply(self, params: Params, x: Array, t: Array, cond: Condition, dropout: Array | None = None) -> Array:
        """The network's output for x [B, H, W, C] and conditioning t [B]; with a dropout key, as in training."""
        rngs = None if dropout is None else {"dropout": dropout}
        return self.network.apply({"params": params}, x, t, cond, train=dropout is not None, rngs=rngs)  # type: ignore[return-value]

    def denoiser(self, params: Params) -> ConditionalDenoiser:
        """What a sampler sees of these parameters."""
        apply = lambda x, t, cond: self.apply(params, x, t, cond)  # noqa: E731
        return denoisers.from_network(apply, self.schedule, self.parameterization)

    def null(self, batch: int) -> Condition:
        """The condition that says nothing: the null class, or none at all."""
        return {"label": jnp.full(batch, self.num_classes, jnp.int32)} if self.num_classes else {}


def schedule(text: str) -> Schedule:
    """The schedule of a text such as "cosine" or "linear | zero_snr | shift(scale=0.5)": modifiers apply in turn."""
    name, *modifiers = text.split("|")
    built = from_spec(name, SCHEDULES, "schedule")
    for modifier in modifiers:
        built = from_spec(modifier, MODIFIERS, "schedule modifier")(built)
    return built


def model(config: ConfigDict) -> Model:
    """The network, schedule and prediction of config; raises UserError where sizes do not fit together."""
    options = config.model.to_dict()
    name, dtype, num_classes = options.pop("name"), options.pop("dtype"), options.pop("num_classes")
    if name not in NETWORKS:
        raise UserError(f"unknown model.name {name!r}; choose from {', '.join(NETWORKS)}")
    if dtype not in DTYPES:
        raise UserError(f"unknown model.dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    parameterization = from_spec(config.prediction, PREDICTIONS, "prediction")
    network = NETWORKS[name](
        out_channels=config.data.channels * (2 if parameterization.learned_variance else 1),
        num_classes=num_classes or None,
        dtype=DTYPES[dtype],
        **options,
    )
    built = Model(
        network,
        schedule(config.schedule),
        parameterization,
        (config.data.height, config.data.width, config.data.channels),
        num_classes,
    )
    if float(built.schedule.alpha(jnp.float32(1.0))) == 0 and config.prediction.partition("(")[0] in ("eps", "score"):
        raise UserError(
            f"prediction {config.prediction!r} says nothing of the image where schedule {config.schedule!r} "
            "ends without signal; choose v, x0, edm or flow"
        )
    jax.eval_shape(built.init, jax.random.key(0))  # the network checks its sizes when traced
    return built
