"""Class-conditional digits of 8 x 8 with a small DiT (arXiv:2212.09748), the transformer beside digits.py's U-Net.

diffusion-jax train --config=configs/dit_digits.py --workdir=runs/dit_digits
diffusion-jax sample --workdir=runs/dit_digits --out=samples --num=64 --label=3

16 patches of 2 x 2 pixels, four layers of width 96. 3 min 1 s on two idle CPU cores; of 500 samples at guidance 2, 100%
are seen as the digit asked for (docs/benchmarks.md).
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base("dit")
    config.data.update(source="digits", shape=(8, 8, 1), cache=True)
    config.schedule = "cosine"
    config.model.update(patch=2, width=96, depth=4, heads=4, waves=64, dropout=0.1, num_classes=10)
    config.optimizer.update(learning_rate=1e-3, warmup=200, decay="cosine")
    config.ema.decay = 0.999
    config.train.update(steps=5000, batch_size=64)
    config.log_every = 50
    config.checkpoint.every = 1000
    config.sample.update(every=1000, num=80, sampler="ddim", steps=50, guidance=2.0)
    return config
