"""Samplers of the reverse process. `SAMPLERS` lists them by name.

The order of convergence of deterministic samplers, and network evaluations a step (`evaluations` counts them):

    ddim, euler                                       1    1
    heun, dpmpp_2s                                    2    2, but 1 on the step to the data
    plms                                              2    1, but 2 on the first
    dpmpp_2m                                          2    1
    dpmpp_3m, unipc (of order p: p + 1)               3    1
    ode                                               5    as many as its tolerance needs
    ddpm, euler_ancestral                             -    1
    dpmpp_2m_sde, dpmpp_3m_sde                        -    1
    dpmpp_sde                                         -    2, but 1 on the step to the data
    predictor_corrector                               -    1 + correctors

`ddim_inversion` goes from data to noise. It is for `integrate`, and has no name.
"""

from collections.abc import Callable

from diffusion_jax.core.samplers.adaptive import ode
from diffusion_jax.core.samplers.ancestral import ddim, ddim_inversion, ddpm, euler_ancestral
from diffusion_jax.core.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from diffusion_jax.core.samplers.dpmpp_singlestep import dpmpp_2s, dpmpp_sde
from diffusion_jax.core.samplers.edm import euler, heun
from diffusion_jax.core.samplers.loop import (
    AdaptiveSampler,
    Plan,
    Sampler,
    evaluations,
    integrate,
    sample,
    start_noise,
)
from diffusion_jax.core.samplers.pndm import plms
from diffusion_jax.core.samplers.score_sde import predictor_corrector
from diffusion_jax.core.samplers.unified_predictor_corrector import unipc

SAMPLERS: dict[str, Callable[..., Sampler | AdaptiveSampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "plms": plms,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
    "predictor_corrector": predictor_corrector,
    "ode": ode,
}

__all__ = [
    "SAMPLERS",
    "AdaptiveSampler",
    "Plan",
    "Sampler",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "evaluations",
    "heun",
    "integrate",
    "ode",
    "plms",
    "predictor_corrector",
    "sample",
    "start_noise",
    "unipc",
]
