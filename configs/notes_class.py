"""Class-conditional waveforms: notes of a quarter of a second at 4 kHz, 8 pitches in 4 timbres, with a 1-D U-Net.

diffusion-jax train --config=configs/notes_class.py --workdir=runs/notes
diffusion-jax sample --workdir=runs/notes --out=notes --num=32 --label="A4 saw" --label="C4 plucked"
python benchmarks/notes_quality.py --workdir=runs/notes --num=200

The network sees patches of eight samples. Noise levels are EDM's, in units of the deviation of the data, 0.18, and
reach further up than for images: a tone of 1,024 samples shows through noise of ten times its amplitude.

Made for 30 minutes on two idle CPU cores; not trained to the end yet. Seen of the same network and rate, with a decay
over 1,500 steps, stopped after 748 on a machine that was busy otherwise: 0.13 CPU seconds a step, loss from 1.01 to
0.36, and of 192 samples at guidance 2 the pitch of 98% right, but with so much noise still that 6% had a clear timbre.
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
