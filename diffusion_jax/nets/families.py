"""The network families that `config.model.name` chooses from."""

from diffusion_jax.errors import UserError
from diffusion_jax.nets.dit import DiT
from diffusion_jax.nets.network import Network
from diffusion_jax.nets.unet import UNet
from diffusion_jax.spec import chosen

NETWORKS: dict[str, type[Network]] = {"unet": UNet, "dit": DiT}


def family(name: str) -> type[Network]:
    """The family of a name such as "unet" or "mypkg.nets.MLP"; raises UserError where there is none."""
    found = chosen(name, NETWORKS, "network (model.name)")
    if not (isinstance(found, type) and issubclass(found, Network)):
        raise UserError(f"network (model.name) {name} is no subclass of diffusion_jax.nets.network.Network")
    return found
