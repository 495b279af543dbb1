"""The model of a config: a network together with what gives its output a meaning."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from diffusion_jax.build.latent import Autoencoder
from diffusion_jax.build.objective import objective
from diffusion_jax.build.text import DTYPES, Text, text
from diffusion_jax.core import denoisers
from diffusion_jax.core.conditions import SPATIAL, Spatial
from diffusion_jax.core.denoisers import Condition, ConditionalDenoiser
from diffusion_jax.core.predictions import PREDICTIONS, Parameterization
from diffusion_jax.core.schedules import MODIFIERS, SCHEDULES, Learned, Schedule, learned
from diffusion_jax.errors import UserError
from diffusion_jax.nets.families import family
from diffusion_jax.nets.network import Network, TensorRule
from diffusion_jax.nets.text import OUTER_LAYERS as TEXT_OUTER
from diffusion_jax.nets.text import TENSOR_RULES as TEXT_RULES
from diffusion_jax.spec import from_spec
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class Model:
    """A network together with what gives its output a meaning: schedule, prediction, image shape and conditions.

    It is told label [B], tokens [B, N] and the entries of its spatial conditions [B, H, W, C'], as `cond`. Weights that
    are not its own, of an autoencoder or of a published text encoder, are `frozen`, and handed over beside params.
    These are the network's or, where more is trained along, {"unet", "text", "schedule", "objective"} as far as there
    are such, "unet" being the network whatever its family.
    """

    network: Network
    schedule: Schedule  # one that is learned as it is at first; `bind` gives it parameters
    parameterization: Parameterization
    shape: tuple[int, int, int]  # H W C of one image
    num_classes: int  # 0: unconditional
    text: Text | None = None
    spatial: tuple[Spatial, ...] = ()
    autoencoder: Autoencoder | None = None  # x is an image's latent
    own: Callable[[Array], Params] | None = None  # key -> parameters of the objective's own, which are trained along

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one x: an image, or its latent."""
        return self.autoencoder.latent_shape(self.shape) if self.autoencoder else self.shape

    @property
    def pooled_text(self) -> bool:
        """Whether the network is told one vector for the whole text, beside its tokens."""
        return self.network.pools_text

    @property
    def tensor_rules(self) -> tuple[TensorRule, ...]:
        """How the trained parameters are split over the mesh axis `tensor`."""
        return self.network.tensor_rules + (TEXT_RULES if self.text is not None and self.text.trained else ())

    @property
    def outer_layers(self) -> tuple[str, ...]:
        """Names in the paths of first and last layers, which Muon leaves to Adam."""
        return self.network.outer_layers + (TEXT_OUTER if self.text is not None and self.text.trained else ())

    @property
    def stacked_layers(self) -> tuple[str, ...]:
        """Names in the paths of parameters whose first axis counts layers."""
        return self.network.stacked_layers

    @property
    def frozen(self) -> dict[str, Params]:
        """The weights that training leaves as they are, on the host."""
        weights = {} if self.autoencoder is None else {"autoencoder": self.autoencoder.params}
        return weights if self.text is None or self.text.trained else weights | {"text": self.text.params}

    @property
    def _parts(self) -> tuple[str, ...]:
        """What is trained beside the network."""
        text = ("text",) if self.text is not None and self.text.trained else ()
        schedule = ("schedule",) if isinstance(self.schedule, Learned) else ()
        return text + schedule + (("objective",) if self.own is not None else ())

    def bind(self, params: Params) -> "Model":
        """The model with the schedule that these parameters have learned; itself where none is learned."""
        if not isinstance(self.schedule, Learned):
            return self
        return dataclasses.replace(self, schedule=Learned(params["schedule"]))

    def init(self, key: Array) -> Params:
        """Random parameters."""
        x = jnp.zeros((1, *self.x_shape))
        cond: dict[str, Array] = {"label": jnp.zeros(1, jnp.int32)} if self.num_classes else {}
        if self.text:
            cond["text"] = jnp.zeros((1, self.text.length, self.text.width))
            if self.pooled_text:
                cond["text_pooled"] = jnp.zeros((1, self.text.width))
        channels = x.shape[-1]
        for condition in self.spatial:
            cond |= {name: jnp.zeros((1, *x.shape[1:-1], c)) for name, c in condition.channels(channels).items()}
            cond |= {name: jnp.zeros(1) for name in condition.levels}
        params = self.network.init(key, x, jnp.zeros(1), cond)["params"]
        if not self._parts:
            return params
        params = {"unet": params}
        if self.text is not None and self.text.trained:
            tokens = jnp.zeros((1, self.text.length), jnp.int32)
            params["text"] = self.text.network.init(jax.random.fold_in(key, 1), tokens)["params"]
        if isinstance(self.schedule, Learned):
            params["schedule"] = jax.tree.map(jnp.asarray, self.schedule.params)
        if self.own is not None:
            params["objective"] = self.own(jax.random.fold_in(key, 2))
        return params

    @property
    def abstract(self) -> Params:
        """The shapes of the parameters; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def apply(self, params: Params, x: Array, t: Array, cond: Condition, dropout: Array | None = None) -> Array:
        """The network's output for x [B, *x_shape] and conditioning t [B]; with a dropout key, as in training.

        cond is as x is (`encode_images`), and has its text encoded or, of an encoder that is trained along, "tokens".
        """
        if "tokens" in cond:
            cond = self.encode_text(params["text"], cond, dropout)
        if self._parts:
            params = params["unet"]
        rngs = None if dropout is None else {"dropout": dropout}
        return self.network.apply({"params": params}, x, t, cond, train=dropout is not None, rngs=rngs)  # type: ignore[return-value]

    def denoiser(self, params: Params) -> ConditionalDenoiser:
        """What a sampler sees of these parameters."""
        apply = lambda x, t, cond: self.apply(params, x, t, cond)  # noqa: E731
        return denoisers.from_network(apply, self.bind(params).schedule, self.parameterization)

    def encode_images(self, frozen: Mapping[str, Params], cond: Condition) -> Condition:
        """The entries of spatial conditions as x is: images as latents, masks and maps at their size."""
        if self.autoencoder is None:
            return cond
        changed = dict(cond)
        for condition in self.spatial:
            for name in set(condition.channels(1)) & set(cond):
                if name in condition.images:
                    changed[name] = self.autoencoder.encode(frozen["autoencoder"], cond[name])[0]
                else:
                    changed[name] = self.autoencoder.shrink(cond[name])
        return changed

    def null(self, cond: Condition) -> Condition:
        """What guidance leads away from: no class and no caption; where cond has neither, no spatial condition."""
        changed = dict(cond)
        if "label" in cond:
            changed["label"] = jnp.full_like(cond["label"], self.num_classes)
        if "tokens" in cond:
            assert self.text is not None
            changed["tokens"] = jnp.broadcast_to(self.text.null, cond["tokens"].shape)
        if not {"label", "tokens"} & set(cond):
            changed = jax.tree.map(jnp.zeros_like, changed)
        return changed

    def decode(self, frozen: Mapping[str, Params], x: Array, tile: int = 0) -> Array:
        """x as images."""
        return x if self.autoencoder is None else self.autoencoder.decode(frozen["autoencoder"], x, tile)

    def encode_text(self, params: Params, cond: Condition, dropout: Array | None = None) -> Condition:
        """cond with its tokens encoded, by the text encoder's own parameters."""
        assert self.text is not None
        rngs = None if dropout is None else {"dropout": jax.random.fold_in(dropout, 1)}
        train = dropout is not None
        encoded: Any = self.text.network.apply({"params": params}, cond["tokens"], train=train, rngs=rngs)
        rest = {name: value for name, value in cond.items() if name != "tokens"}
        pooled = {"text_pooled": encoded.pooled} if self.pooled_text else {}
        return rest | {"text": encoded.hidden, "text_mask": encoded.mask} | pooled


def schedule(text: str) -> Schedule:
    """The schedule of a text such as "cosine" or "linear | zero_snr | shift(scale=0.5)": modifiers apply in turn.

    "learned(hidden=1024, logsnr_max=13.3, logsnr_min=-5.0)" is as it is before it has learned, and takes none.
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
    shape = (config.data.height, config.data.width, config.data.channels)
    x_channels = autoencoder.latent_shape(shape)[-1] if autoencoder else config.data.channels
    encoder = text(config.text, text_folder)
    spatial = tuple(from_spec(spec, SPATIAL, "spatial condition") for spec in config.spatial)
    network = make(
        out_channels=x_channels * (2 if parameterization.learned_variance else 1),
        num_classes=num_classes or None,
        text_features=encoder.width if encoder else None,
        concat=tuple(entry for condition in spatial for entry in condition.channels(1)),
        levels=tuple(level for condition in spatial for level in condition.levels),
        level_scale=config.level_scale,
        dtype=DTYPES[dtype],
        **options,
    )
    if network.pools_text and encoder is None:
        raise UserError("model.pooled_text needs a text encoder; give `text`")
    built = Model(
        network, schedule(config.schedule), parameterization, shape, num_classes, encoder, spatial, autoencoder
    )
    if len({condition.name for condition in spatial}) < len(spatial):
        raise UserError(f"each spatial condition is given once; got {', '.join(config.spatial)}")
    goal = objective(config, built.schedule, parameterization)
    if isinstance(built.schedule, Learned) and not goal.learns_schedule:
        raise UserError(f"a learned schedule needs objective='vdm', by which it learns; got {config.objective!r}")
    if jax.tree.leaves(jax.eval_shape(goal.init, jax.random.key(0)).params):
        built = dataclasses.replace(built, own=lambda key: goal.init(key).params)
    if float(built.schedule.alpha(jnp.float32(1.0))) == 0 and config.prediction.partition("(")[0] in ("eps", "score"):
        raise UserError(
            f"prediction {config.prediction!r} says nothing of the image where schedule {config.schedule!r} "
            "ends without signal; choose v, x0, edm or flow"
        )
    jax.eval_shape(built.init, jax.random.key(0))  # the network checks its sizes when traced
    return built
