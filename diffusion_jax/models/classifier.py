"""A trained classifier of noisy images, as it guides the samples of a model."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from diffusion_jax.core.schedules import Schedule
from diffusion_jax.data.classes import Classes
from diffusion_jax.errors import UserError
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier p(y | x_t), with the scale of its guidance."""

    network: nn.Module
    params: Params
    num_classes: int
    shape: tuple[int, ...]  # H W C
    scale: float
    classes: Classes | None = None
    numbers: tuple[int, ...] | None = None  # its number of each class of the guided model; None: the same numbers

    def check(self, num_classes: int, shape: tuple[int, ...]) -> None:
        """Raises UserError unless it has this many classes (0: any) and takes images of this shape."""
        if self.shape != shape or num_classes not in (0, self.num_classes):
            raise UserError(
                f"the classifier is of {self.num_classes} classes of images {self.shape}, the model of {num_classes} "
                f"classes of {shape}"
            )

    def log_prob(self, params: Params, label: Array, schedule: Schedule) -> Callable[[Array, Array], Array]:
        """The function (x [B, H, W, C], t [B]) -> log p(label | x_t) [B]. The null class, num_classes, gives 0.

        label [B] has the class numbers of the guided model.
        """
        if self.numbers is not None:
            label = jnp.asarray((*self.numbers, self.num_classes))[label]

        def log_prob(x: Array, t: Array) -> Array:
            logits = self.network.apply({"params": params}, x, schedule.conditioning(t))
            chosen = jax.nn.one_hot(label, self.num_classes)
            return jnp.sum(chosen * jax.nn.log_softmax(logits), axis=-1)  # type: ignore[arg-type]

        return log_prob
