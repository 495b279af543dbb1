"""What a network keeps of its forward pass for the gradient, and what it computes again: the option `remat`.

A choice changes memory, bytes and time of a training step, and nothing of its result.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from diffusion_jax.errors import UserError

CHOICES = ("none", "attention", "dots", "offload", "blocks")
"""What `remat` may be, from the most memory to the least.

- "none": everything that the gradient reads is kept.
- "attention": what attends is computed again: in a U-Net self-attention and spatial transformers, in a DiT every
  attention.
- "dots": the results of matrix products, convolutions and attention are kept, and what is cheap between them (norms,
  activations, gates, sums) is computed again.
- "offload": as "dots", and what is kept lies in the host's memory in between.
- "blocks": the inputs of residual blocks, of attention and of transformers are kept, and all inside is computed again.
"""

PRODUCT, STATISTIC = "product", "statistic"
"""The names of what "dots" keeps: large arrays, and small ones that a pass over a large one gave."""


def product(x: Array) -> Array:
    """x, which "dots" and "offload" keep: the result of a matrix product, or of what is added to one."""
    return checkpoint_name(x, PRODUCT)


def statistic(x: Array) -> Array:
    """x, which "dots" and "offload" keep on the device: a small array."""
    return checkpoint_name(x, STATISTIC)


def check_choice(choice: str) -> None:
    """Raises UserError unless choice is one of `CHOICES`."""
    if choice not in CHOICES:
        raise UserError(f"model.remat is one of {', '.join(CHOICES)}; got {choice!r}")


def of_block(layer: type[nn.Module], choice: str, **options: Any) -> type[nn.Module]:
    """The class of a residual block, or of a layer of a transformer, that keeps what the choice says.

    Options are those of `flax.linen.remat`.
    """
    if choice == "blocks":
        return nn.remat(layer, **options)
    return nn.remat(layer, policy=_POLICIES[choice], **options) if choice in _POLICIES else layer


def of_attention(layer: type[nn.Module], choice: str, **options: Any) -> type[nn.Module]:
    """As `of_block`, of the class of an attention."""
    return nn.remat(layer, **options) if choice == "attention" else of_block(layer, choice, **options)


_POLICIES: dict[str, Callable[..., Any]] = {
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, STATISTIC),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[STATISTIC],
        names_which_can_be_offloaded=[PRODUCT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
