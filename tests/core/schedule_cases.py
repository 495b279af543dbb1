"""Every schedule of the table, every modifier, and a learned one: what the conformance suites run over."""

import jax

from diffusion_jax.core.schedules import MODIFIERS, SCHEDULES, Learned, input_scale, shift, time_shift, zero_snr
from diffusion_jax.core.schedules.learned import init

SCHEDULE_CASES = {name: make() for name, make in SCHEDULES.items()}
SCHEDULE_CASES |= {f"linear | {name}": make()(SCHEDULES["linear"]()) for name, make in MODIFIERS.items()}
SCHEDULE_CASES |= {
    "cosine | input_scale(0.5, renormalize=False)": input_scale(0.5, renormalize=False)(SCHEDULES["cosine"]()),
    "continuous_cosine | shift(4)": shift(4.0)(SCHEDULES["continuous_cosine"]()),
    "rectified_flow | time_shift(3)": time_shift(3.0)(SCHEDULES["rectified_flow"]()),
    "vp | shift | zero_snr": zero_snr()(shift(0.5)(SCHEDULES["vp"]())),
    "linear of 10 steps": SCHEDULES["linear"](steps=10, beta_start=1e-3, beta_end=0.9),
    "learned": Learned(init(jax.random.key(0), hidden=32)),
}
