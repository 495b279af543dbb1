r"""Class-conditional ADM on ImageNet at 64 x 64, 296 M parameters: table 11 of Dhariwal and Nichol (arXiv:2105.05233).

    diffusion-jax plan --config=configs/adm_imagenet64.py --topology=v5e:4x4 --config.train.accumulate=8 \
        --config.mesh.fsdp=16
    diffusion-jax train --config=configs/adm_imagenet64.py --workdir=runs/adm64 --config.data.source=folder:imagenet.zip

Paper: FID 2.07 after 540,000 steps of batch 2,048, with 250 ancestral steps and no guidance; cosine schedule, learned
variance in the hybrid loss, three residual blocks a level, heads of 64 channels at 32, 16 and 8 pixels, 16-bit
arithmetic. Labels are dropped for a tenth of the examples, which the paper's network is not trained for: guidance can
be had. Never run; docs/plans.md has a plan for v5e:4x4, with train.accumulate=8 and mesh.fsdp=16.
295,905,222 parameters.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.data.update(source="tfds:imagenet2012", shape=(64, 64, 3), flip=True)
    config.schedule = "cosine"
    config.prediction = "eps(learned_variance=True)"
    config.model.update(
        num_classes=1000,
        channels=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(2, 4, 8),
        head_channels=64,
        scale_shift=True,
        resample="block",
        epsilon=1e-5,
        sinusoids="adm",
        padding="both",
        dropout=0.1,
        dtype="bfloat16",
    )
    config.optimizer.update(name="adamw", learning_rate=3e-4, weight_decay=0.0, clip=0.0)
    config.ema.update(decay=0.9999, warmup=False)
    config.train.update(steps=540_000, batch_size=2048)
    config.log_every = 100
    config.checkpoint.update(every=5000, keep=3, keep_every=50_000)
    config.sample.update(every=20_000, num=64, sampler="ddpm", steps=250)
    return config
