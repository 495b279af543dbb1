"""Latent text-to-image with the U-Net of Stable Diffusion 1.5 at 512 x 512 (arXiv:2112.10752).

diffusion-jax plan --config=configs/ldm_sd15.py --autoencoder=configs/ldm_sd15_autoencoder.py --topology=v6e:16x16
diffusion-jax train --config=configs/ldm_sd15.py --workdir=runs/ldm_sd15 \
    --config.text="huggingface(folder='clip-vit-large-patch14')" --config.data.source=folder:images

The network has the published 859,520,964 parameters, and reads ViT-L's 77 x 768 features; the learning rate and the
global batch of 2,048 are those of the published run (hundreds of thousands of steps on LAION, 32 x 8 A100).
Never trained; docs/plans.md has its plans for v5e:4x4 and v6e:16x16, where it fits. Until there are weights, `text`
gives the encoder's sizes alone, and `latent` is a run of ldm_sd15_autoencoder.py. A step reads latents and features of
captions that were precomputed.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.data.update(source="folder:images", shape=(512, 512, 3), flip=True)
    config.data.precomputed = "runs/ldm_sd15_precomputed"
    config.schedule = "scaled_linear"
    config.model.update(
        channels=320,
        multipliers=(1, 2, 4, 4),
        blocks=2,
        attention=(1, 2, 4),
        heads=8,
        epsilon=1e-5,
        sinusoids="adm",
        padding="both",
        dtype="bfloat16",
    )
    config.text = "clip(dtype='bfloat16')"
    config.latent = "runs/ldm_sd15_autoencoder"
    config.optimizer.update(name="adamw", learning_rate=1e-4, warmup=10_000, weight_decay=0.01)
    config.ema.decay = 0.9999
    config.train.update(steps=250_000, batch_size=2048)
    config.mesh.fsdp = 16
    config.log_every = 100
    config.checkpoint.update(every=2500, keep=3)
    config.sample.update(every=10_000, num=16, sampler="dpmpp_2m", steps=25, guidance=7.5, threshold="none")
    return config
