"""Class-conditional waveforms: notes of a quarter of a second at 4 kHz, 8 pitches in 4 timbres, with a 1-D U-Net.

diffusion-jax train --config=configs/notes_class.py --workdir=runs/notes
diffusion-jax sample --workdir=runs/notes --out=notes --num=32 --label="A4 saw" --label="C4 plucked"
python benchmarks/notes_quality.py --workdir=runs/notes --num=200

The network sees patches of four samples. Noise levels are EDM's, in units of the deviation of the data, 0.18, and reach
further up than for images: pitch and phase of a tone of 1,024 samples show through noise of 20 times its power.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.data.update(source="notes:4000,0.256,20000", shape=(1024, 1), cache=True)
    config.schedule = "edm"
    config.prediction = "edm(sigma_data=0.18)"
    config.times = "log_normal(mean=-1.5, std=1.6)"
    config.weighting = "edm(sigma_data=0.18)"
    config.model.update(patch=4, channels=64, multipliers=(1, 1, 2, 2), blocks=1, attention=(8,), groups=8, heads=4)
    config.model.update(scale_shift=True, num_classes=32)
    config.optimizer.update(learning_rate=1e-3, warmup=200, decay="cosine")
    config.ema.decay = 0.999
    config.train.update(steps=6000, batch_size=64)
    config.log_every = 50
    config.checkpoint.every = 1000
    config.sample.update(every=1000, num=32, sampler="dpmpp_2m", steps=25, guidance=1.5)
    config.sample.grid = "karras(rho=7.0, sigma_min=0.002, sigma_max=8.0)"
    return config
