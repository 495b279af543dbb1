"""DiT-XL/2 (arXiv:2212.09748) on ImageNet at 256 x 256, in latents of 32 x 32 x 4.

diffusion-jax plan --config=configs/dit_imagenet256.py --autoencoder=configs/ldm_sd15_autoencoder.py --topology=v6e:4x4
diffusion-jax precompute --config=configs/dit_imagenet256.py --out=runs/imagenet256_latents
diffusion-jax train --config=configs/dit_imagenet256.py --workdir=runs/dit_imagenet256 \
    --config.data.precomputed=runs/imagenet256_latents

The paper's hyperparameters: ADM's schedule and learned variance, AdamW at a constant rate without decay, batch 256, no
dropout; 400,000 steps in its comparisons and 7 M for FID 2.27. The network has 674,834,720 trained parameters: with its
fixed table of 256 positions, 294,912 numbers, the published 675,129,632.
Built and traced, never run; nobody has trained the autoencoder that `latent` names.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base("dit")
    config.data.update(source="tfds:imagenet2012", shape=(256, 256, 3), flip=True)
    config.latent = "runs/ldm_sd15_autoencoder"
    config.schedule = "linear"
    config.prediction = "eps(learned_variance=True)"
    config.model.update(
        patch=2, width=1152, depth=28, heads=16, mlp_ratio=4.0, num_classes=1000, dtype="bfloat16", remat="blocks"
    )
    config.condition_dropout = 0.1
    config.optimizer.update(name="adamw", learning_rate=1e-4, weight_decay=0.0, clip=0.0)
    config.ema.update(decay=0.9999, warmup=False)
    config.train.update(steps=7_000_000, batch_size=256)
    config.log_every = 100
    config.checkpoint.update(every=5000, keep=3, keep_every=50_000)
    config.sample.update(every=50_000, num=16, sampler="ddpm", steps=250, guidance=4.0, threshold="none")
    return config
