"""The U-Net against diffusers' UNet2DModel with the same weights: outputs and gradients."""

import pytest
from unet_twin import compare

from diffusion_jax.nets.unet import UNet

pytestmark = pytest.mark.parity


SMALL = UNet(3, channels=32, multipliers=(1, 2), blocks=1, attention=(2,), groups=8)


@pytest.mark.parametrize(
    ("net", "size", "in_channels"),
    [
        (SMALL, (8, 8), 3),
        (SMALL, (8, 12), 3),
        (SMALL.clone(num_classes=3, attention=(1,)), (8, 8), 3),
        (SMALL.clone(out_channels=1, multipliers=(1, 1, 2), blocks=2, attention=()), (12, 8), 2),
        (SMALL.clone(scale_shift=True, head_channels=16), (8, 8), 3),
        (
            SMALL.clone(
                out_channels=6,
                multipliers=(1, 2, 2),
                scale_shift=True,
                resample="block",
                head_channels=16,
                epsilon=1e-5,
                sinusoids="adm",
                num_classes=3,
            ),
            (8, 12),
            3,
        ),
    ],
    ids=["square", "non_square", "class_conditional", "three_levels", "scale_shift", "adm"],
)
def test_small_nets_agree_in_output_and_gradients(net, size, in_channels):
    output, gradients = compare(net, size, in_channels)
    assert output < 1e-4
    assert max(gradients.values()) < 1e-4, max(gradients.items(), key=lambda kv: kv[1])


def test_the_cifar10_net_agrees_in_output_and_gradients():
    output, gradients = compare(UNet(3, dropout=0.1), (32, 32), batch=1)
    assert output < 1e-4
    assert max(gradients.values()) < 1e-4, max(gradients.items(), key=lambda kv: kv[1])
