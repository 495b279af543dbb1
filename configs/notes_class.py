"""Class-conditional waveforms: notes of a quarter of a second at 4 kHz, 8 pitches in 4 timbres, with a 1-D U-Net.

diffusion-jax train --config=configs/notes_class.py --workdir=runs/notes
diffusion-jax sample --workdir=runs/notes --out=notes --num=32 --label="A4 saw" --label="C4 plucked"
python benchmarks/notes_quality.py --workdir=runs/notes --num=200

The network sees patches of eight samples. Noise levels are EDM's, in units of the deviation of the data, 0.18, and
reach further up than for images: a tone of 1,024 samples shows through noise of ten times its amplitude.

Seen: 11 minutes 16 seconds on two CPU cores, 16.4 CPU minutes; of 200 samples at guidance 2 and 25 steps, the pitch of
all and the timbre of 199 right, the pitches 0.8 cents off (median).
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
    config.model.update(patch=8, channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,), groups=8, heads=4)
    config.model.update(scale_shift=True, num_classes=32)
    config.optimizer.update(learning_rate=2e-3, warmup=200, decay="cosine")
    config.ema.decay = 0.999
    config.train.update(steps=12_000, batch_size=32)
    config.log_every = 100
    config.checkpoint.every = 2000
    config.sample.update(every=2000, num=32, sampler="dpmpp_2m", steps=25, guidance=2.0)
    config.sample.grid = "karras(rho=7.0, sigma_min=0.002, sigma_max=8.0)"
    return config
