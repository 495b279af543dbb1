"""DDPM on CIFAR-10, unconditional: appendix B of Ho et al. 2020 (arXiv:2006.11239).

    diffusion-jax train --config=configs/ddpm_cifar10.py --workdir=runs/cifar10
    diffusion-jax train --config=configs/ddpm_cifar10.py --workdir=runs/cifar10 --config.data.source=folder:cifar10.zip

Paper: FID 3.17 after 800,000 steps of batch 128 (102 M images; 21 steps/s on a TPU v3-8), T = 1000 ancestral steps.
The network has the paper's 35,746,307 parameters.
Run and seen: 50 steps of batch 16 from a zip of the images on a CPU (loss 0.99 to 0.12), resumed to 55, sampled. Never
trained to the end. TFDS prepares its `cifar10` once where TensorFlow is installed, with --file_format=array_record.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.data.update(source="tfds:cifar10", shape=(32, 32, 3), flip=True)
    config.schedule = "linear"
    config.model.update(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(2,), dropout=0.1)
    config.optimizer.update(learning_rate=2e-4, warmup=5000, clip=1.0)
    config.ema.decay = 0.9999
    config.train.update(steps=800_000, batch_size=128)
    config.log_every = 100
    config.checkpoint.update(every=5000, keep=3, keep_every=100_000)
    config.sample.update(every=10_000, num=64, sampler="ddpm(variance='large')", steps=1000)
    return config
