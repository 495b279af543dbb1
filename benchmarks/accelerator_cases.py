"""What `accelerator.py` measures: networks, sizes and batches."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffusion_jax.nets.unet import UNet


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: a network, on so many inputs of [side, side, channels] at once."""

    name: str
    net: UNet
    side: int
    channels: int
    batch: int
    tokens: int = 0  # of a text; 0: the network is told none
    steps: int = 0  # of sampling with guidance; 0: a training step

    def inputs(self) -> dict[str, np.ndarray]:
        """Random inputs by name: x, target, t, and label or text where the network is told it."""
        rng = np.random.default_rng(0)
        shape = (self.batch, self.side, self.side)
        found = {
            "x": rng.standard_normal((*shape, self.channels), np.float32),
            "target": rng.standard_normal((*shape, self.net.out_channels), np.float32),
            "t": rng.integers(0, 1000, self.batch).astype(np.float32),
        }
        if self.net.num_classes is not None:
            found["label"] = rng.integers(0, self.net.num_classes, self.batch).astype(np.int32)
        if self.tokens:
            found["text"] = rng.standard_normal((self.batch, self.tokens, self.net.text_features), np.float32)
        return found


_STABLE = UNet(
    4, text_features=768, channels=320, multipliers=(1, 2, 4, 4), attention=(1, 2, 4), heads=8, epsilon=1e-5,
    sinusoids="adm", padding="both", dtype=jnp.bfloat16,
)  # fmt: skip
_ADM = UNet(
    6, num_classes=1000, channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(2, 4, 8), head_channels=64,
    scale_shift=True, resample="block", epsilon=1e-5, sinusoids="adm", padding="both", dropout=0.1, dtype=jnp.bfloat16,
)  # fmt: skip
CASES = (
    Case("DDPM CIFAR-10, train", UNet(3, dropout=0.1, dtype=jnp.bfloat16), 32, 3, 128),
    Case("ADM ImageNet-64, train", _ADM, 64, 3, 64),
    Case("SD 2, train", _STABLE.clone(text_features=1024, head_channels=64), 64, 4, 16, tokens=77),
    Case("SD 1.5, sample", _STABLE, 64, 4, 1, tokens=77, steps=25),
    Case("SD 1.5, sample", _STABLE, 64, 4, 8, tokens=77, steps=25),
)

_SMALL = {
    "channels": 8, "multipliers": (1,), "blocks": 0, "attention": (), "groups": 4, "head_channels": 4, "dropout": 0.0,
    "dtype": jnp.float32,
}  # fmt: skip
TOY = (
    Case("DDPM CIFAR-10, train", CASES[0].net.clone(**_SMALL), 4, 3, 2),
    Case("ADM ImageNet-64, train", _ADM.clone(**_SMALL, num_classes=3), 4, 3, 2),
    Case("SD 2, train", _STABLE.clone(**_SMALL, text_features=8), 4, 4, 2, tokens=3),
    Case("SD 1.5, sample", _STABLE.clone(**_SMALL, text_features=8), 4, 4, 1, tokens=3, steps=2),
)
"""The same kinds at sizes that a CPU does in no time."""
