"""Schedule, prediction, sampler, time grid and threshold as a diffusers scheduler's config: `diffusers_scheduler` back.

What no scheduler of theirs computes is refused by name; where the nearest is close, a note says how it differs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.samplers import SAMPLERS
from diffusion_jax.core.schedules import SCHEDULES, Schedule
from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_scheduler import UNBOUNDED
from diffusion_jax.spec import completed

MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Schedulers that leave out the first step of their spacing, but for "trailing"."""

FRACTIONAL = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")
"""Schedulers whose linspace is not rounded to whole steps."""

BY_STRIDE = ("DDIMScheduler", "PNDMScheduler")
"""Schedulers that step by T // N whatever the next time is."""

_TO_SIGMA_MIN: dict[str, Any] = {"final_sigmas_type": "sigma_min"}

ENDS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"set_alpha_to_one": False},
    "PNDMScheduler": {"set_alpha_to_one": False},
    "EulerDiscreteScheduler": _TO_SIGMA_MIN,
    "DPMSolverMultistepScheduler": _TO_SIGMA_MIN,
    "UniPCMultistepScheduler": _TO_SIGMA_MIN,
}
"""{scheduler that can end at the chain's first level instead of the data: what says so}."""

ZERO_SNR = ("DDPMScheduler", "DDIMScheduler", *FRACTIONAL[:2], *MULTISTEP)
"""Schedulers that know rescale_betas_zero_snr."""

SIGMAS = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", *MULTISTEP)
"""Schedulers that know use_karras_sigmas and use_exponential_sigmas."""

THRESHOLDED = ("DDPMScheduler", "DDIMScheduler", *MULTISTEP)
"""Schedulers that know thresholding."""

CLIPPED = ("DDPMScheduler", "DDIMScheduler", "HeunDiscreteScheduler")
"""Schedulers that know clip_sample."""


@dataclasses.dataclass(frozen=True)
class Caller:
    """The pipeline that calls a scheduler."""

    takes: tuple[str, ...] = ()  # what its own call hands on to the scheduler's step
    sets_offset: bool = False  # it sets steps_offset to 1 and clip_sample to False
    drops_variance: bool = False  # the scheduler is handed no learned variance


STABLE_DIFFUSION = Caller(("eta",), sets_offset=True)
STABLE_DIFFUSION_XL = Caller(("eta",))
DIT = Caller(drops_variance=True)
PIXELS = Caller(("eta", "use_clipped_model_output"))


@dataclasses.dataclass(frozen=True)
class SamplingSpecs:
    """How a model is sampled, in the specs of a config."""

    schedule: str
    prediction: str
    sampler: str
    grid: str
    threshold: str


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """What diffusers is told to sample in the same way."""

    config: dict[str, Any]  # scheduler_config.json
    call: dict[str, Any]  # what a pipeline is given at every call beside, such as eta
    notes: tuple[str, ...]  # a sentence for each thing that is another there

    @property
    def name(self) -> str:
        """The scheduler's class."""
        return str(self.config["_class_name"])


def scheduler_config(specs: SamplingSpecs, schedule: Schedule, caller: Caller, *, steps: int) -> SchedulerConfig:
    """The scheduler that samples as specs say; schedule is the one of specs, steps the sampler's.

    Raises UserError for what has no twin.
    """
    notes: list[str] = []
    name, options, call = _sampler(specs)
    config: dict[str, Any] = {"_class_name": name} | options
    config |= _prediction(specs.prediction, name, options, caller, notes)
    config |= _betas(specs.schedule, schedule, name)
    config |= _spacing(specs.grid, name, caller, notes)
    threshold, used = _threshold(specs.threshold, name)
    uneven = config["timestep_spacing"] == "linspace" or (schedule.steps or 0) % steps
    if name in BY_STRIDE and config["timestep_spacing"] != "leading" and uneven:
        notes.append(f"{name} steps by T // N there, and from each time to the next here")
    call = call | used
    if lost := [key for key in call if key not in caller.takes]:
        raise no_twin(
            f"sampler {specs.sampler} with threshold {specs.threshold}, of which its pipeline hands on no {lost[0]},",
            "give another --sampler",
        )
    return SchedulerConfig(config | threshold, call, tuple(notes))


def no_twin(what: str, instead: str = "") -> UserError:
    """The error for what diffusers cannot do; instead is what to give in its place."""
    advice = f"{instead}, or write" if instead else "write"
    return UserError(f"{what} has no twin in diffusers; {advice} it as it is with --format=safetensors")


def _sampler(specs: SamplingSpecs) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(scheduler, its options, what a call is given)."""
    name, a = completed(specs.sampler, SAMPLERS, "sampler")
    _, default = completed(name, SAMPLERS, "sampler")

    def only(*free: str) -> None:
        if odd := [key for key, value in a.items() if key not in free and value != default[key]]:
            raise no_twin(f"sampler {name} with {odd[0]}={a[odd[0]]!r}", f"give --sampler={name}")

    def multistep(order: int, solver: str, noisy: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
        algorithm = "sde-dpmsolver++" if noisy else "dpmsolver++"
        options = {"solver_order": order, "algorithm_type": algorithm, "solver_type": solver}
        return "DPMSolverMultistepScheduler", options, {}

    match name:
        case "ddpm":
            variance = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[a["variance"]]
            return "DDPMScheduler", {"variance_type": variance}, {}
        case "ddim" if "skip_first=True" in specs.grid.replace(" ", "") and a["eta"] in (0, 1):
            return multistep(1, "midpoint", a["eta"] == 1)
        case "ddim":
            return "DDIMScheduler", {}, {"eta": a["eta"]} if a["eta"] else {}
        case "plms":
            return "PNDMScheduler", {"skip_prk_steps": True}, {}
        case "euler" | "euler_ancestral" | "heun":
            only()
            return {"euler": FRACTIONAL[0], "euler_ancestral": FRACTIONAL[1], "heun": FRACTIONAL[2]}[name], {}, {}
        case "dpmpp_2m" | "dpmpp_2m_sde":
            only("solver")
            return multistep(2, a["solver"], name.endswith("sde"))
        case "dpmpp_3m" | "dpmpp_3m_sde":
            only("reference")
            if not a["reference"]:
                raise no_twin(f"sampler {name} with reference=False", f"give --sampler='{name}(reference=True)'")
            return multistep(3, "heun", name.endswith("sde"))
        case "unipc":
            only("order", "variant", "taper")
            options = {"solver_order": a["order"], "solver_type": a["variant"], "lower_order_final": a["taper"]}
            return "UniPCMultistepScheduler", options, {}
    raise no_twin(f"sampler {name}", "give another, as in --sampler=ddim")


def _prediction(spec: str, name: str, options: Mapping[str, Any], caller: Caller, notes: list[str]) -> dict[str, Any]:
    kind, a = completed(spec, PREDICTIONS, "prediction")
    types = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    if kind not in types or a["sigma_data"]:
        raise no_twin(f"prediction {spec!r}")
    learned = options.get("variance_type") == "learned_range"
    if a["learned_variance"] and caller.drops_variance and learned:
        raise no_twin("a learned variance of a DiT, which its pipeline drops,", "give --sampler=ddim")
    if a["learned_variance"] and not caller.drops_variance and not learned:
        raise no_twin(
            f"a learned variance with sampler {name}",
            "give the one that reads it, --sampler=\"ddpm(variance='learned')\"",
        )
    if name == "PNDMScheduler" and kind != "eps":
        if kind == "x0":
            raise no_twin("prediction x0 with sampler plms", "give --sampler=ddim")
        notes.append("PNDM extrapolates what the network predicts, and plms extrapolates eps as its paper does")
    return {"prediction_type": types[kind]}


def _betas(spec: str, schedule: Schedule, name: str) -> dict[str, Any]:
    """The chain's betas by name or, where diffusers has no such name, one by one."""
    base, *modifiers = (part.strip() for part in spec.split("|"))
    if schedule.steps is None or not schedule.variance_preserving:
        raise no_twin(f"schedule {spec!r}, which is no chain of steps that preserves the variance,")
    zero = modifiers[-1:] == ["zero_snr"] or modifiers[-1:] == ["zero_snr()"]
    if zero and name not in ZERO_SNR:
        raise no_twin(f"schedule {spec!r} with {name}", "give --sampler=ddim")
    kind, a = completed(base, SCHEDULES, "schedule")
    named = {"linear": "linear", "scaled_linear": "scaled_linear"}
    if kind == "cosine" and (a["s"], a["max_beta"]) == (0.008, 0.999):
        named["cosine"] = "squaredcos_cap_v2"
    betas: dict[str, Any] = {"num_train_timesteps": schedule.steps}
    if kind in named and len(modifiers) == zero:
        betas |= {"beta_schedule": named[kind]}
        betas |= {key: a[key] for key in ("beta_start", "beta_end") if key in a}
    elif float(schedule.alpha(jnp.float32(1.0))) == 0:  # 1 is no beta that their schedulers divide by
        raise no_twin(f"schedule {spec!r}, which ends without signal and has no name there,")
    else:
        betas |= {"beta_schedule": "linear", "trained_betas": _chain(schedule)}
    return betas | ({"rescale_betas_zero_snr": True} if zero else {})


def _chain(schedule: Schedule) -> list[float]:
    """The betas of a chain, of its levels at its steps."""
    assert schedule.steps is not None
    logsnr = np.asarray(schedule.logsnr(jnp.arange(1, schedule.steps + 1) / schedule.steps), np.float64)
    log_alpha2 = np.concatenate([[0.0], -np.log1p(np.exp(-logsnr))])
    return [float(beta) for beta in np.clip(-np.expm1(np.diff(log_alpha2)), 1e-8, 0.999999)]


def _spacing(spec: str, name: str, caller: Caller, notes: list[str]) -> dict[str, Any]:
    """timestep_spacing and what belongs to it."""
    kind, a = completed(spec, GRIDS, "time grid")
    steps_offset = {"steps_offset": 1 if caller.sets_offset else a.get("offset", 0)}
    if kind in ("karras", "logsnr"):
        _, default = completed(kind, GRIDS, "time grid")
        if a != default or name not in SIGMAS:
            raise no_twin(f"time grid {spec} with {name}", "give --grid=trailing")
        key = {"karras": "use_karras_sigmas", "logsnr": "use_exponential_sigmas"}[kind]
        notes.append(f"{key} rounds its times and may start elsewhere: the grid {kind} does not round")
        return {"timestep_spacing": "linspace", key: True} | steps_offset
    if kind not in ("leading", "linspace", "trailing"):
        raise no_twin(f"time grid {spec}", "give --grid=trailing")
    skips = name in MULTISTEP and kind != "trailing"
    wanted: dict[str, Any] = {}
    if kind != "trailing" and a["skip_first"] != skips:
        wanted["skip_first"] = skips
    if kind == "linspace" and a["whole"] == (name in FRACTIONAL):
        wanted["whole"] = name not in FRACTIONAL
    if kind == "leading" and caller.sets_offset and a["offset"] != 1:
        wanted["offset"] = 1  # which the pipeline sets
    if wanted:
        said = ", ".join(f"{key}={value!r}" for key, value in wanted.items())
        raise no_twin(f"time grid {spec} with {name}", f'give --grid="{kind}({said})"')
    spacing: dict[str, Any] = {"timestep_spacing": kind} | steps_offset
    if a["last"] == "t_min":
        if name not in ENDS:
            raise no_twin(f"time grid {spec} with {name}", f"give --grid={kind}, which ends at the data")
        spacing |= ENDS[name]
    elif name in BY_STRIDE:
        spacing["set_alpha_to_one"] = True
    if kind != "leading" and name in FRACTIONAL:
        notes.append(f"{name} with spacing {kind} starts from noise times sigma, a little less than here")
    return spacing


def _threshold(spec: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the scheduler's options, what a call is given)."""
    thresholds: Mapping[str, Callable[..., None]] = {  # of `models.sampling.THRESHOLDS`
        "none": lambda: None,
        "static": lambda low=-1.0, high=1.0: None,
        "dynamic": lambda percentile=0.995: None,
    }
    kind, a = completed(spec, thresholds, "threshold")
    plain: dict[str, Any] = {"clip_sample": False} if name in CLIPPED else {}
    plain |= {"thresholding": False} if name in THRESHOLDED else {}
    # DDIM leaves eps as it was unless a call says so.
    call = {"use_clipped_model_output": True} if name == "DDIMScheduler" else {}
    if kind == "none":
        return plain, {}
    if kind == "static" and a["low"] == -a["high"]:
        if name in CLIPPED:
            return plain | {"clip_sample": True, "clip_sample_range": a["high"]}, call
        if name in THRESHOLDED and a["high"] == 1:  # what is divided is divided by at most sample_max_value
            return plain | {"thresholding": True, "sample_max_value": 1.0}, call
    if kind == "dynamic" and name in THRESHOLDED:
        ratio = {"dynamic_thresholding_ratio": a["percentile"], "sample_max_value": UNBOUNDED}
        return plain | {"thresholding": True} | ratio, call
    raise no_twin(f"threshold {spec} with {name}", "give --sampler=ddim")
