"""The training of an autoencoder: reconstruction, KL and perceptual losses, and a discriminator in the same step."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.stages import Wrapped
from ml_collections import ConfigDict

from diffusion_jax.core import adversarial, autoencoding, similarity
from diffusion_jax.core.objectives import Drawn, Examples, Objective, Trained, Tree
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import data
from diffusion_jax.experiment.training import Trainee
from diffusion_jax.interop import lpips_weights
from diffusion_jax.models.text import DTYPES
from diffusion_jax.nets import perceptual
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.discriminator import PatchDiscriminator
from diffusion_jax.train.state import Params

DISTANCES = {"l1": jnp.abs, "l2": jnp.square}


def network(config: ConfigDict) -> AutoencoderKL:
    """The network of a config of task autoencoder. Raises UserError for an unknown autoencoder.dtype."""
    options = config.autoencoder
    if options.dtype not in DTYPES:
        raise UserError(f"unknown autoencoder.dtype {options.dtype!r}; choose from {', '.join(DTYPES)}")
    names = ("channels", "latent_channels", "multipliers", "blocks", "attention", "mid_attention", "groups")
    return AutoencoderKL(
        out_channels=data.shape(config)[-1],
        dtype=DTYPES[options.dtype],
        quant_convs=options.quant_convs,
        **{name: options[name] for name in names},
    )


def discriminator(config: ConfigDict) -> PatchDiscriminator | None:
    """The discriminator of config; None where autoencoder.adversarial_start is negative, which trains without one."""
    options = config.autoencoder
    if options.adversarial_start < 0:
        return None
    return PatchDiscriminator(options.discriminator_channels, options.discriminator_layers)


class NoisedLatents(NamedTuple):
    """The random choices of one step of an autoencoder's training."""

    x: Array  # [B, H, W, C], the images
    noise: Array  # [B, h, w, z], standard normal, of the posterior's samples
    gan_weight: Array  # [B]: 0 before the step at which the discriminator begins, 1 from then on


def trainee(config: ConfigDict) -> Trainee:
    """The training of an autoencoder and, where config has one, of its discriminator, in one step.

    One backward pass gives the gradients of both networks at the same parameters. The weights that are not trained are
    those of `pretrained`. Raises UserError for an unknown autoencoder.distance and for a negative weight of a loss.
    """
    options = config.autoencoder
    net, critic = network(config), discriminator(config)
    if options.distance not in DISTANCES:
        raise UserError(f"unknown autoencoder.distance {options.distance!r}; choose from {', '.join(DISTANCES)}")
    if not options.kl_weight >= 0 or not options.adversarial_weight >= 0 or not options.perceptual_weight >= 0:
        raise UserError("autoencoder.kl_weight, perceptual_weight and adversarial_weight are not negative")

    def init(key: Array) -> Params:
        x = jnp.zeros((1, *data.shape(config)))
        params = {"autoencoder": net.init(key, x)["params"]}
        if critic is not None:
            params["discriminator"] = critic.init(jax.random.fold_in(key, 1), x)["params"]
        return params

    return Trainee(
        two_players(options, net, critic),
        init,
        lambda key, batch, pretrained: Examples(batch["x"], {}),
        lambda params, pretrained, key: Trained(params, pretrained),
        net.tensor_rules,
        net.outer_layers,
        players=("autoencoder", "discriminator"),
    )


def two_players(options: ConfigDict, net: AutoencoderKL, critic: PatchDiscriminator | None) -> Objective:
    """The objective of an autoencoder and its discriminator: eq. 25 of arXiv:2112.10752 over the number of pixels.

    L = distance + perceptual_weight perceptual + kl_weight KL / pixels + adversarial_weight lambda L_G + L_D, with
    lambda of `core.adversarial.adaptive_weight`. L_G trains the autoencoder alone, L_D the discriminator alone. The
    last two terms begin at step adversarial_start. options are config.autoencoder; critic None leaves both out.
    """

    def draw(key: Array, examples: Examples, history: Tree, step: Array) -> Drawn:
        x = examples.x0
        latent = jax.eval_shape(lambda x: net.init_with_output(key, x)[0][1], x)
        gan_weight = jnp.full(len(x), step >= options.adversarial_start, jnp.float32)
        return Drawn(NoisedLatents(x, jax.random.normal(key, latent.shape), gan_weight), jnp.ones(len(x)))

    def loss(trained: Trained, values: NoisedLatents) -> Array:
        params, (x, noise, gan_weight) = trained.params, values
        y, mean, logvar = net.apply({"params": params["autoencoder"]}, x, noise)  # type: ignore[misc]

        def reconstruction(y: Array) -> Array:
            found = _mean(DISTANCES[options.distance](x - y))
            if "perceptual" in trained.pretrained:
                lpips = perceptual.LPIPS().apply({"params": trained.pretrained["perceptual"]}, x, y)
                found += options.perceptual_weight * lpips
            return found

        total = reconstruction(y) + options.kl_weight * autoencoding.kl_to_standard_normal(mean, logvar) / x[0].size
        if critic is None:
            return total

        def logits(params: Params, x: Array) -> Array:
            return cast(Array, critic.apply({"params": params}, x))

        constant = jax.lax.stop_gradient(params)
        generator = adversarial.hinge_generator(logits(constant["discriminator"], y))
        weight = _weight(
            net,
            constant["autoencoder"],
            jax.lax.stop_gradient(autoencoding.sample_posterior(mean, logvar, noise)),
            lambda y: jnp.mean(reconstruction(y)),
            lambda y: jnp.mean(adversarial.hinge_generator(logits(constant["discriminator"], y))),
        )
        discrimination = adversarial.hinge_discriminator(
            logits(params["discriminator"], x), logits(params["discriminator"], jax.lax.stop_gradient(y))
        )
        return total + gan_weight * (options.adversarial_weight * weight * generator + discrimination)

    return Objective(draw, loss)


ImageLoss = Callable[[Array], Array]
"""Images [B, H, W, C] -> their mean loss, a scalar."""


def _weight(net: AutoencoderKL, params: Params, z: Array, reconstruction: ImageLoss, generator: ImageLoss) -> Array:
    """lambda of `core.adversarial.adaptive_weight`: from the gradients of both losses by the decoder's last kernel.

    params are the autoencoder's and z [B, h, w, z] the latents at which the gradients are taken.
    """

    def decode(kernel: Array) -> Array:
        decoder = params["decoder"]
        last = {**decoder["conv_out"], "kernel": kernel}
        changed = {**params, "decoder": {**decoder, "conv_out": last}}
        return cast(Array, net.apply({"params": changed}, z, method="decode"))

    y, pull = jax.vjp(decode, params["decoder"]["conv_out"]["kernel"])
    return adversarial.adaptive_weight(*(pull(jax.grad(f)(y))[0] for f in (reconstruction, generator)))


def pretrained(config: ConfigDict) -> dict[str, Params]:
    """{"perceptual": weights of LPIPS} from the file that autoencoder.perceptual names; {} where it names none."""
    options = config.autoencoder
    if not options.perceptual:
        return {}
    return {"perceptual": lpips_weights.load(options.perceptual, options.perceptual_sha256, perceptual.shapes())}


class Reconstruction(NamedTuple):
    """Images that an autoencoder reconstructed, and scalars that measure them."""

    images: Array  # [B, H, W, C], decoded from the means of the posteriors
    latent_mean: Array  # of all latents of the batch
    latent_std: Array  # of the same, the posterior's variance included
    psnr: Array  # dB, the mean over images
    ssim: Array  # the mean over images; NaN where the images are smaller than SSIM's window


def reconstruct_program(config: ConfigDict) -> Wrapped:
    """The compiled program (params, images [B, H, W, C]) -> `Reconstruction` of config's autoencoder."""
    net = network(config)

    def program(params: Params, x: Array) -> Reconstruction:
        y, mean, logvar = net.apply({"params": params["autoencoder"]}, x)  # type: ignore[misc]
        std = jnp.sqrt(jnp.var(mean) + jnp.mean(jnp.exp(logvar)))
        ssim = jnp.mean(similarity.ssim(x, y)) if min(x.shape[1:3]) >= similarity.WINDOW else jnp.nan
        return Reconstruction(y, jnp.mean(mean), std, jnp.mean(similarity.psnr(x, y)), jnp.asarray(ssim))

    return jax.jit(program)


def _mean(a: Array) -> Array:
    """[B, ...] -> [B]."""
    return a.reshape(len(a), -1).mean(axis=1)
