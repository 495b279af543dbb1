"""A network together with what gives its output a meaning."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core import denoisers
from diffusion_jax.core.conditions import left_out
from diffusion_jax.core.denoisers import Condition as Cond
from diffusion_jax.core.denoisers import ConditionalDenoiser
from diffusion_jax.core.predictions import Parameterization
from diffusion_jax.core.schedules import Learned, Schedule
from diffusion_jax.data.classes import Classes
from diffusion_jax.models.conditions.condition import Condition
from diffusion_jax.models.latent import Autoencoder
from diffusion_jax.models.text import Text
from diffusion_jax.nets.network import Network, TensorRule
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class Model:
    """A network together with what gives its output a meaning: schedule, prediction, image shape and conditions.

    It is told the entries of its conditions, as `cond`. Weights that are not its own, of an autoencoder or of a
    published text encoder, are `pretrained`, and handed over beside params. These are the network's or, where more is
    trained along, {"unet", "schedule", "objective"} and the names of conditions with encoders, as far as there are
    such, "unet" being the network whatever its family.
    """

    network: Network
    schedule: Schedule  # one that is learned as it is at first; `bind` gives it parameters
    parameterization: Parameterization
    shape: tuple[int, int, int]  # H W C of one image
    conditions: tuple[Condition, ...] = ()  # each draws with a key of its place: those of config.spatial are the first
    autoencoder: Autoencoder | None = None  # x is an image's latent
    own: Callable[[Array], Params] | None = None  # key -> parameters of the objective's own, which are trained along
    classes: Classes | None = dataclasses.field(default=None, compare=False)  # what a label means; None: unknown

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one x: an image, or its latent."""
        return self.autoencoder.latent_shape(self.shape) if self.autoencoder else self.shape

    @property
    def num_classes(self) -> int:
        """How many classes it is told; 0: none."""
        return max((condition.num_classes for condition in self.conditions), default=0)

    @property
    def text(self) -> Text | None:
        """The text encoder of its captions; None where it is told none."""
        return next((each.text_encoder for each in self.conditions if each.text_encoder), None)

    @property
    def together(self) -> tuple[Condition, ...]:
        """The conditions that are left out together, by config.condition_dropout: class and caption."""
        return tuple(condition for condition in self.conditions if condition.dropout is None)

    @property
    def tensor_rules(self) -> tuple[TensorRule, ...]:
        """How the trained parameters are split over the mesh axis `tensor`."""
        return self.network.tensor_rules + tuple(rule for each in self._encoders for rule in each.tensor_rules)

    @property
    def outer_layers(self) -> tuple[str, ...]:
        """Names in the paths of first and last layers, which Muon leaves to Adam."""
        return self.network.outer_layers + tuple(name for each in self._encoders for name in each.outer_layers)

    @property
    def stacked_layers(self) -> tuple[str, ...]:
        """Names in the paths of parameters whose first axis counts layers."""
        return self.network.stacked_layers

    @property
    def pretrained(self) -> dict[str, Params]:
        """The weights that training leaves as they are, on the host."""
        weights = {} if self.autoencoder is None else {"autoencoder": self.autoencoder.params}
        return weights | {each.name: each.pretrained for each in self.conditions if each.pretrained is not None}

    @property
    def _encoders(self) -> tuple[Condition, ...]:
        """The conditions with an encoder that is trained along."""
        return tuple(condition for condition in self.conditions if condition.trained)

    @property
    def _parts(self) -> tuple[str, ...]:
        """What is trained beside the network."""
        schedule = ("schedule",) if isinstance(self.schedule, Learned) else ()
        own = ("objective",) if self.own is not None else ()
        return tuple(each.name for each in self._encoders) + schedule + own

    def bind(self, params: Params) -> "Model":
        """The model with the schedule that these parameters have learned; itself where none is learned."""
        if not isinstance(self.schedule, Learned):
            return self
        return dataclasses.replace(self, schedule=Learned(params["schedule"]))

    def network_entries(self) -> Cond:
        """Zeros in the shapes that the network is told for one example."""
        return {name: a for each in self.conditions for name, a in each.network_entries(self.x_shape).items()}

    def init(self, key: Array) -> Params:
        """Random parameters."""
        x = jnp.zeros((1, *self.x_shape))
        params = self.network.init(key, x, jnp.zeros(1), self.network_entries())["params"]
        if not self._parts:
            return params
        params = {"unet": params}
        for i, condition in enumerate(self._encoders):
            params[condition.name] = condition.init(_of_encoder(key, i))
        if isinstance(self.schedule, Learned):
            params["schedule"] = jax.tree.map(jnp.asarray, self.schedule.params)
        if self.own is not None:
            params["objective"] = self.own(jax.random.fold_in(key, 2))
        return params

    @functools.cached_property
    def abstract(self) -> Params:
        """The shapes of the parameters; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def as_read(self, params: Params) -> Params:
        """The parameters, the network's in the types that it reads them in (`Network.as_read`)."""
        if not self._parts:
            return self.network.as_read(params)
        return {**params, "unet": self.network.as_read(params["unet"])}

    def apply(self, params: Params, x: Array, t: Array, cond: Cond, dropout: Array | None = None) -> Array:
        """The network's output for x [B, *x_shape] and conditioning t [B]; with a dropout key, as in training.

        cond is as x is (`encode_images`), and encoded by pretrained encoders; what encoders that are trained along have
        not encoded, they encode here.
        """
        for i, condition in enumerate(self._encoders):
            if set(condition.encodes) & set(cond):
                key = None if dropout is None else _of_encoder(dropout, i)
                cond = _encoded(condition, params[condition.name], cond, key)
        if self._parts:
            params = params["unet"]
        rngs = None if dropout is None else {"dropout": dropout}
        return self.network.apply({"params": params}, x, t, cond, train=dropout is not None, rngs=rngs)  # type: ignore[return-value]

    def denoiser(self, params: Params) -> ConditionalDenoiser:
        """What a sampler sees of these parameters."""
        apply = lambda x, t, cond: self.apply(params, x, t, cond)  # noqa: E731
        return denoisers.from_network(apply, self.bind(params).schedule, self.parameterization)

    def entries(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """What it is told of each example of a batch, nothing of it left out or noised, images at their size."""
        return {name: a for condition in self.conditions for name, a in condition.entries(batch).items()}

    def draw_cond(self, key: Array, batch: Cond, pretrained: Mapping[str, Params], dropout: float | Array) -> Cond:
        """What it is told of each example of a batch in training, with augmentation and dropout, as `apply` takes it.

        `together` is left out of a share `dropout` of the examples, any other condition as often as it says itself.
        """
        told: dict[str, Array] = {}
        for i, condition in enumerate(self.conditions):
            augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, i))
            entries = condition.augment(augment_key, self._as_x(condition, pretrained, condition.entries(batch)))
            n = len(next(iter(entries.values())))
            out = None
            if condition.dropout is None:
                out = jax.random.bernoulli(key, dropout, (n,))  # the same for all
            elif condition.dropout:
                out = jax.random.bernoulli(dropout_key, condition.dropout, (n,))
            if out is not None:
                entries = left_out(out, entries, condition.null(entries, pretrained.get(condition.name)))
            told |= entries
        return self._encode(pretrained, told)

    def encode_images(self, pretrained: Mapping[str, Params], cond: Cond) -> Cond:
        """Entries of the images' size as x is: images as latents, masks and maps at the latents' size."""
        changed = dict(cond)
        for condition in self.conditions:
            changed |= self._as_x(condition, pretrained, cond)
        return changed

    def _as_x(self, condition: Condition, pretrained: Mapping[str, Params], cond: Cond) -> dict[str, Array]:
        """The entries of one condition in cond, as `encode_images`."""
        changed = {name: cond[name] for name in condition.names if name in cond}
        if self.autoencoder is None:
            return changed
        for name in set(condition.channels(1)) & set(changed):
            if name in condition.images:
                changed[name] = self.autoencoder.encode(pretrained["autoencoder"], changed[name])[0]
            else:
                changed[name] = self.autoencoder.shrink(changed[name])
        return changed

    def null(self, cond: Cond) -> Cond:
        """What guidance leads away from: no class and no caption; where it is told neither, none of its conditions."""
        return self.without(self.together or self.conditions, cond)

    def without(self, conditions: Sequence[Condition], cond: Cond) -> dict[str, Array]:
        """cond with these conditions left out of every example."""
        changed = dict(cond)
        for condition in conditions:
            if entries := {name: cond[name] for name in condition.names if name in cond}:
                changed |= condition.null(entries)
        return changed

    def encode(self, params: Params, pretrained: Mapping[str, Params], cond: Cond) -> Cond:
        """cond encoded by the encoders of conditions, those that are trained along and those that are not."""
        return self._encode({**pretrained, **{each.name: params[each.name] for each in self._encoders}}, cond)

    def _encode(self, weights: Mapping[str, Params], cond: Cond) -> Cond:
        """cond encoded by those encoders that weights has."""
        for condition in self.conditions:
            if set(condition.encodes) & set(cond) and condition.name in weights:
                cond = _encoded(condition, weights[condition.name], cond)
        return cond

    def decode(self, pretrained: Mapping[str, Params], x: Array, tile: int = 0) -> Array:
        """x as images."""
        return x if self.autoencoder is None else self.autoencoder.decode(pretrained["autoencoder"], x, tile)


def _of_encoder(key: Array, i: int) -> Array:
    """The key of the i-th encoder that is trained along; 2 is the objective's."""
    return jax.random.fold_in(key, 1 + 2 * i)


def _encoded(condition: Condition, weights: Params, cond: Cond, dropout: Array | None = None) -> Cond:
    entries = {name: cond[name] for name in condition.names if name in cond}
    rest = {name: a for name, a in cond.items() if name not in condition.encodes}
    return rest | condition.encode(weights, entries, dropout)
