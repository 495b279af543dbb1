"""TPU slices as Google Cloud names and divides them."""

import dataclasses
import math

from diffusion_jax.launching import machines

# cloud.google.com/kubernetes-engine/docs/concepts/tpus; cloud.google.com/tpu/docs/runtimes.
_GKE = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
_RUNTIMES = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
_ONE_HOST = {"v5e": 8, "v5p": 4, "v6e": 8}
"""The most chips of one host. A larger slice has hosts of four chips."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice. "v5e:4x4" has accelerator_type v5litepod-16 and 4 hosts of 4 chips."""

    accelerator_type: str
    runtime: str  # the image of a TPU VM
    gke_accelerator: str  # value of cloud.google.com/gke-tpu-accelerator
    gke_topology: str
    hosts: int
    chips_a_host: int


def tpu(name: str) -> Slice:
    """The slice of a name such as v5e:4x4. Raises UserError for an unknown one."""
    family, _, shape = name.partition(":")
    chips = math.prod(machines.sides(name))
    each = chips if chips <= _ONE_HOST[family] else 4
    return Slice(machines.accelerator_type(name), _RUNTIMES[family], _GKE[family], shape, chips // each, each)
