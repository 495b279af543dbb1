"""Losses of a generator and a discriminator, and the weight that balances them against a reconstruction loss.

Logits are [B, ...], for instance [B, h, w, 1] of a discriminator of patches. Every loss is one number an example, [B],
which the caller averages.
"""

import jax
import jax.numpy as jnp
from jax import Array


def hinge_discriminator(real: Array, fake: Array) -> Array:
    """The hinge loss of a discriminator, halved: arXiv:1705.02894. [B].

    The mean of (max(0, 1 - D(x)) + max(0, 1 + D(x'))) / 2 over the logits: real [B, ...] is D(x) of data and fake
    [B, ...] is D(x') of generated examples.
    """
    return _mean(0.5 * (jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)))


def hinge_generator(fake: Array) -> Array:
    """The generator's loss beside `hinge_discriminator`, the mean of -D(x') over the logits fake [B, ...] -> [B]."""
    return _mean(-fake)


def non_saturating_discriminator(real: Array, fake: Array) -> Array:
    """The cross-entropy of a discriminator, halved: eq. 1 of arXiv:1406.2661. [B].

    The mean of (-log p(x) - log(1 - p(x'))) / 2 over the logits real [B, ...] and fake [B, ...], with p their sigmoid.
    """
    return _mean(0.5 * (jax.nn.softplus(-real) + jax.nn.softplus(fake)))


def non_saturating_generator(fake: Array) -> Array:
    """The mean of -log p(x') over the logits fake [B, ...] -> [B], p their sigmoid: section 3 of arXiv:1406.2661."""
    return _mean(jax.nn.softplus(-fake))


def adaptive_weight(reconstruction_gradient: Array, gan_gradient: Array) -> Array:
    """The weight of the generator's loss, a scalar: |grad L_rec| / (|grad L_GAN| + 1e-4), at most 1e4.

    Both arguments are gradients with respect to one array, the kernel of the decoder's last convolution. The weight is
    constant to gradients. Eq. 7 of VQGAN (arXiv:2012.09841); the two numbers are those of its code.
    """
    ratio = jnp.linalg.norm(reconstruction_gradient.ravel()) / (jnp.linalg.norm(gan_gradient.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))


def _mean(v: Array) -> Array:
    """[B, ...] -> [B]."""
    return jnp.mean(v.reshape(len(v), -1), axis=1)
