"""A network together with schedule, prediction, conditions and autoencoder, which give its output a meaning."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import chex
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
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import Condition
from diffusion_jax.models.latent import Autoencoder
from diffusion_jax.models.text import Text
from diffusion_jax.nets.network import Network, TensorRule
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class Model:
    """A network together with what gives its output a meaning: schedule, prediction, image shape and conditions.

    `cond` holds the entries of its conditions by name, each [B, ...]. `params` are the trained parameters: those of the
    network or, where more is trained, a dict with the network as "unet", whatever its family, and with "schedule",
    "objective" and the names of conditions that have encoders, as far as there are such. `pretrained` are weights that
    are not trained: of an autoencoder, of published text encoders, and in training of a teacher.
    """

    network: Network
    schedule: Schedule  # a learned schedule has its first parameters here; `bind` gives it others
    parameterization: Parameterization
    shape: tuple[int, ...]  # *S C of one example: H W C of an image
    conditions: tuple[Condition, ...] = ()  # in a fixed order, by which each has its random key; config.spatial's first
    autoencoder: Autoencoder | None = None  # x is the latent of an image; None: x is the example
    init_objective: Callable[[Array], Params] | None = None  # key -> the objective's parameters; None: it has none
    classes: Classes | None = dataclasses.field(default=None, compare=False)  # names of the labels; None: unknown
    teacher: "Teacher | None" = None  # of an objective that learns from one; a model that samples has none

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one x, an image or its latent."""
        return self.autoencoder.latent_shape(self.shape) if self.autoencoder else self.shape

    @property
    def num_classes(self) -> int:
        """The number of classes that labels have; 0: the model has no labels."""
        return max((condition.num_classes for condition in self.conditions), default=0)

    @property
    def text(self) -> Text | None:
        """The text encoder of its captions; None where it has no captions."""
        return next((each.text_encoder for each in self.conditions if each.text_encoder), None)

    @property
    def dropped_together(self) -> tuple[Condition, ...]:
        """The conditions that are left out of the same examples, by config.condition_dropout: class and caption."""
        return tuple(condition for condition in self.conditions if condition.dropout is None)

    @property
    def tensor_rules(self) -> tuple[TensorRule, ...]:
        """The rules by which the trained parameters are split over the mesh axis `tensor`."""
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
    def splits_tokens(self) -> bool:
        """Whether the network splits its tokens over the mesh axis `context`."""
        return self.network.splits_tokens

    @property
    def pretrained(self) -> dict[str, Params]:
        """The weights that are not trained, on the host."""
        weights = {} if self.autoencoder is None else {"autoencoder": self.autoencoder.params}
        weights |= {} if self.teacher is None else {"teacher": self.teacher.params}
        return weights | {each.name: each.pretrained for each in self.conditions if each.pretrained is not None}

    @property
    def _encoders(self) -> tuple[Condition, ...]:
        """The conditions with an encoder that is trained with the model."""
        return tuple(condition for condition in self.conditions if condition.trained)

    @property
    def _parts(self) -> tuple[str, ...]:
        """The names in params of what is trained beside the network."""
        schedule = ("schedule",) if isinstance(self.schedule, Learned) else ()
        objective = ("objective",) if self.init_objective is not None else ()
        return tuple(each.name for each in self._encoders) + schedule + objective

    def bind(self, params: Params) -> "Model":
        """The model with the schedule that these parameters have learned; the model itself where none is learned."""
        if not isinstance(self.schedule, Learned):
            return self
        return dataclasses.replace(self, schedule=Learned(params["schedule"]))

    def network_entries(self) -> Cond:
        """The entries of cond for one example, as the network takes them, of zeros."""
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
        if self.init_objective is not None:
            params["objective"] = self.init_objective(jax.random.fold_in(key, 2))
        return params

    @functools.cached_property
    def abstract(self) -> Params:
        """The parameters as `ShapeDtypeStruct`s; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def as_read(self, params: Params) -> Params:
        """The parameters, the network's in the types that it reads them in (`Network.as_read`)."""
        if not self._parts:
            return self.network.as_read(params)
        return {**params, "unet": self.network.as_read(params["unet"])}

    def apply(self, params: Params, x: Array, t: Array, cond: Cond, dropout: Array | None = None) -> Array:
        """The network's output [B, *S, C'] for x [B, *x_shape] and conditioning t [B]; with a dropout key, in training.

        Images in cond are as x is (`encode_images`), and pretrained encoders have encoded their entries. Encoders that
        are trained with the model encode theirs here, if they have not yet.
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
        """The denoiser of these parameters, without guidance."""
        apply = lambda x, t, cond: self.apply(params, x, t, cond)  # noqa: E731
        return denoisers.from_network(apply, self.bind(params).schedule, self.parameterization)

    def entries(self, batch: Mapping[str, chex.Array]) -> dict[str, Array]:
        """cond for a batch, without dropout and augmentation, with images at their own size."""
        return {name: a for condition in self.conditions for name, a in condition.entries(batch).items()}

    def draw_cond(self, key: Array, batch: Cond, pretrained: Mapping[str, Params], dropout: float | Array) -> Cond:
        """cond for a batch in training, with augmentation and dropout, as `apply` takes it.

        The conditions `dropped_together` are left out of a share `dropout` of the examples, any other condition of the
        share that it declares. batch has arrays [B, ...], pretrained the weights on the devices.
        """
        drawn: dict[str, Array] = {}
        for i, condition in enumerate(self.conditions):
            augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, i))
            entries = condition.augment(augment_key, self._as_x(condition, pretrained, condition.entries(batch)))
            n = len(next(iter(entries.values())))
            out = None
            if condition.dropout is None:
                out = jax.random.bernoulli(key, dropout, (n,))  # the same examples for all of them
            elif condition.dropout:
                out = jax.random.bernoulli(dropout_key, condition.dropout, (n,))
            if out is not None:
                entries = left_out(out, entries, condition.null(entries, pretrained.get(condition.name)))
            drawn |= entries
        return self._encode(pretrained, drawn)

    def encode_images(self, pretrained: Mapping[str, Params], cond: Cond) -> Cond:
        """cond with its entries of the image's size as x is: images as latents, masks and maps at the latents' size."""
        changed = dict(cond)
        for condition in self.conditions:
            changed |= self._as_x(condition, pretrained, cond)
        return changed

    def _as_x(self, condition: Condition, pretrained: Mapping[str, Params], cond: Cond) -> dict[str, Array]:
        """The entries of one condition in cond, as `encode_images` changes them."""
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
        """cond without class and caption or, of a model with neither, without all conditions.

        Guidance leads away from it.
        """
        return self.without(self.dropped_together or self.conditions, cond)

    def without(self, conditions: Sequence[Condition], cond: Cond) -> dict[str, Array]:
        """cond with these conditions replaced by their null in every example."""
        changed = dict(cond)
        for condition in conditions:
            if entries := {name: cond[name] for name in condition.names if name in cond}:
                changed |= condition.null(entries)
        return changed

    def encode(self, params: Params, pretrained: Mapping[str, Params], cond: Cond) -> Cond:
        """cond encoded by all encoders of conditions, trained and pretrained."""
        return self._encode({**pretrained, **{each.name: params[each.name] for each in self._encoders}}, cond)

    def _encode(self, weights: Mapping[str, Params], cond: Cond) -> Cond:
        """cond encoded by the encoders whose weights are given, by the names of their conditions."""
        for condition in self.conditions:
            if set(condition.encodes) & set(cond) and condition.name in weights:
                cond = _encoded(condition, weights[condition.name], cond)
        return cond

    def decode(self, pretrained: Mapping[str, Params], x: Array, tile: int = 0) -> Array:
        """The images [B, H, W, C] of x, decoded in tiles of tile x tile latents where tile > 0."""
        return x if self.autoencoder is None else self.autoencoder.decode(pretrained["autoencoder"], x, tile)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model whose predictions an objective learns from, with its parameters on the host."""

    model: Model
    params: Params

    def check_fits(self, model: Model) -> None:
        """Raises UserError unless the teacher's predictions are of the model's x, noise levels and conditions."""
        theirs, ours = self.model, model
        if theirs.x_shape != ours.x_shape:
            raise UserError(f"the teacher draws {theirs.x_shape}, and this model {ours.x_shape}; they must be equal")
        if _levels(theirs) != _levels(ours):
            raise UserError(
                "the teacher has another schedule than this model and does not know its noise levels; give both one"
            )
        entries = [
            {name: (a.shape, str(a.dtype)) for name, a in jax.eval_shape(each.network_entries).items()}
            for each in (theirs, ours)
        ]
        if entries[0] != entries[1] or theirs.num_classes != ours.num_classes:
            raise UserError(
                f"the teacher is told {_told(theirs)}, and this model {_told(ours)}; give both the same conditions"
            )


def _levels(model: Model) -> list[float]:
    """Levels of noise that tell the model's schedule from others."""
    level = model.schedule.level(jnp.linspace(0.0, 1.0, 65))
    return [float(a) for a in jnp.concatenate(level)]


def _told(model: Model) -> str:
    """The names of the model's conditions, for messages."""
    classes = f" of {model.num_classes} classes" if model.num_classes else ""
    return (", ".join(each.name for each in model.conditions) or "nothing") + classes


def _of_encoder(key: Array, i: int) -> Array:
    """The key of the i-th trained encoder. Number 2 is the objective's."""
    return jax.random.fold_in(key, 1 + 2 * i)


def _encoded(condition: Condition, weights: Params, cond: Cond, dropout: Array | None = None) -> Cond:
    """cond with the entries of one condition encoded."""
    entries = {name: cond[name] for name in condition.names if name in cond}
    rest = {name: a for name, a in cond.items() if name not in condition.encodes}
    return rest | condition.encode(weights, entries, dropout)
