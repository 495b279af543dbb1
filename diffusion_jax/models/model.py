"""A network together with what gives its output a meaning."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core import denoisers
from diffusion_jax.core.conditions import Spatial
from diffusion_jax.core.denoisers import Condition, ConditionalDenoiser
from diffusion_jax.core.predictions import Parameterization
from diffusion_jax.core.schedules import Learned, Schedule
from diffusion_jax.data.classes import Classes
from diffusion_jax.models.latent import Autoencoder
from diffusion_jax.models.text import Text
from diffusion_jax.nets.network import Network, TensorRule
from diffusion_jax.nets.text import OUTER_LAYERS as TEXT_OUTER
from diffusion_jax.nets.text import TENSOR_RULES as TEXT_RULES
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class Model:
    """A network together with what gives its output a meaning: schedule, prediction, image shape and conditions.

    It is told label [B], tokens [B, N] and the entries of its spatial conditions [B, H, W, C'], as `cond`. Weights that
    are not its own, of an autoencoder or of a published text encoder, are `pretrained`, and handed over beside params.
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
    classes: Classes | None = dataclasses.field(default=None, compare=False)  # what a label means; None: unknown

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
    def pretrained(self) -> dict[str, Params]:
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

    @functools.cached_property
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

    def encode_images(self, pretrained: Mapping[str, Params], cond: Condition) -> Condition:
        """The entries of spatial conditions as x is: images as latents, masks and maps at their size."""
        if self.autoencoder is None:
            return cond
        changed = dict(cond)
        for condition in self.spatial:
            for name in set(condition.channels(1)) & set(cond):
                if name in condition.images:
                    changed[name] = self.autoencoder.encode(pretrained["autoencoder"], cond[name])[0]
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

    def decode(self, pretrained: Mapping[str, Params], x: Array, tile: int = 0) -> Array:
        """x as images."""
        return x if self.autoencoder is None else self.autoencoder.decode(pretrained["autoencoder"], x, tile)

    def encode_text(self, params: Params, cond: Condition, dropout: Array | None = None) -> Condition:
        """cond with its tokens encoded, by the text encoder's own parameters."""
        assert self.text is not None
        rngs = None if dropout is None else {"dropout": jax.random.fold_in(dropout, 1)}
        train = dropout is not None
        encoded: Any = self.text.network.apply({"params": params}, cond["tokens"], train=train, rngs=rngs)
        rest = {name: value for name, value in cond.items() if name != "tokens"}
        pooled = {"text_pooled": encoded.pooled} if self.pooled_text else {}
        return rest | {"text": encoded.hidden, "text_mask": encoded.mask} | pooled
