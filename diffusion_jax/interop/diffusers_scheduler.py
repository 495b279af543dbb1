"""A diffusers scheduler's config as schedule, prediction, sampler, time grid and threshold, in the specs of a config.

Where a scheduler, or a setting of one, has no twin here, the nearest is taken and a note says so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import UserError

_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}

_LINSPACE = _BETAS | {"timestep_spacing": "linspace"}

_LEADING = _BETAS | {"timestep_spacing": "leading"}

_K_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}

DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _LEADING | {"clip_sample": True, "variance_type": "fixed_small"},
    "DDIMScheduler": _LEADING | {"clip_sample": True, "set_alpha_to_one": True},
    "PNDMScheduler": _LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": _LINSPACE,
    "EulerAncestralDiscreteScheduler": _LINSPACE,
    "HeunDiscreteScheduler": _LINSPACE | _K_BETAS,
    "DPMSolverMultistepScheduler": _LINSPACE
    | {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"},
    "UniPCMultistepScheduler": _LINSPACE | {"solver_order": 2, "solver_type": "bh2"},
    "LMSDiscreteScheduler": _LINSPACE,
    "KDPM2DiscreteScheduler": _LINSPACE | _K_BETAS,
    "KDPM2AncestralDiscreteScheduler": _LINSPACE | _K_BETAS,
    "DEISMultistepScheduler": _LINSPACE,
    "DPMSolverSinglestepScheduler": _LINSPACE,
    "DPMSolverSDEScheduler": _LINSPACE | _K_BETAS,
}
"""{scheduler that is read: what an option means that its config does not say}, as in diffusers 0.42."""

NEAREST = {
    "LMSDiscreteScheduler": "dpmpp_2m",
    "KDPM2DiscreteScheduler": "dpmpp_2s",
    "KDPM2AncestralDiscreteScheduler": "euler_ancestral",
    "DEISMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverSDEScheduler": "dpmpp_sde",
}
"""{scheduler without a twin: our sampler that is taken}."""

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}

_MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
"""Schedulers that leave out the first step of their spacing, but for "trailing"."""

_FRACTIONAL = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)
"""Schedulers whose linspace is not rounded to whole steps."""


UNBOUNDED = 1e9
"""sample_max_value where dynamic thresholding has no upper bound."""

_BY_STRIDE = ("DDIMScheduler", "PNDMScheduler")
"""Schedulers that step by T // N whatever the next time is."""


@dataclasses.dataclass(frozen=True)
class SchedulerTwin:
    """What a scheduler's config says, as values of our config."""

    schedule: str
    prediction: str
    learned_variance: bool
    sampler: str
    grid: str
    threshold: str
    notes: tuple[str, ...]  # a sentence for each setting whose nearest was taken


def scheduler(config: Mapping[str, Any], where: str, *, latent: bool) -> SchedulerTwin:
    """The twin of a scheduler_config.json; where names the file in messages, latent is of a pipeline with latents.

    Such a pipeline sets steps_offset to 1 and clip_sample to False whatever the file says, and so does this. Raises
    UserError for a scheduler, a beta schedule or a prediction that is not known here.
    """
    name = config.get("_class_name")
    if name not in DEFAULTS:
        raise UserError(f"{where}: the scheduler {name} has no twin here; those read are {', '.join(DEFAULTS)}")
    said = DEFAULTS[name] | dict(config)
    if latent:
        said |= {"steps_offset": 1, "clip_sample": False}
    prediction = said.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"{where}: prediction_type={prediction!r} has no twin here; it is {' or '.join(map(repr, PREDICTIONS))}"
        )
    notes: list[str] = []
    learned = str(said.get("variance_type")).startswith("learned")
    return SchedulerTwin(
        _schedule(said, where),
        PREDICTIONS[prediction],
        learned,
        _sampler(name, said, notes),
        _grid(name, said, notes),
        _threshold(name, said, notes),
        tuple(notes),
    )


def _schedule(said: Mapping[str, Any], where: str) -> str:
    """The schedule's spec."""
    steps, kind = said["num_train_timesteps"], said["beta_schedule"]
    if said.get("trained_betas") is not None:
        raise UserError(f"{where}: trained_betas, a list of its own, has no twin here; give a beta_schedule")
    if said.get("use_flow_sigmas"):
        raise UserError(f"{where}: use_flow_sigmas has no twin here; it is a flow's schedule on a diffusion's sampler")
    betas = f"(steps={steps}, beta_start={float(said['beta_start'])!r}, beta_end={float(said['beta_end'])!r})"
    schedules = {
        "linear": f"linear{betas}",
        "scaled_linear": f"scaled_linear{betas}",
        "squaredcos_cap_v2": f"cosine(steps={steps})",
    }
    if kind not in schedules:
        raise UserError(f"{where}: beta_schedule={kind!r} has no twin here; it is {' or '.join(map(repr, schedules))}")
    return schedules[kind] + (" | zero_snr" if said.get("rescale_betas_zero_snr") else "")


def _sampler(name: str, said: Mapping[str, Any], notes: list[str]) -> str:
    """The sampler's spec."""
    match name:
        case "DDPMScheduler":
            variance = str(said["variance_type"])
            ours = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}
            ours |= {"learned": "learned", "learned_range": "learned"}
            if variance not in ours or variance == "learned":
                notes.append(f"variance_type {variance} has no twin: ddpm's variance {ours.get(variance, 'large')}")
            return f"ddpm(variance={ours.get(variance, 'large')!r})"
        case "DDIMScheduler":
            return "ddim"
        case "PNDMScheduler":
            if not said["skip_prk_steps"]:
                notes.append(
                    "PNDM's Runge-Kutta start (skip_prk_steps False) has no twin: plms, which starts otherwise"
                )
            if said.get("prediction_type", "epsilon") != "epsilon":
                notes.append("PNDM extrapolates what the network predicts, and plms extrapolates eps as its paper does")
            return "plms"
        case "EulerDiscreteScheduler":
            return "euler"
        case "EulerAncestralDiscreteScheduler":
            return "euler_ancestral"
        case "HeunDiscreteScheduler":
            return "heun"
        case "DPMSolverMultistepScheduler":
            return _dpmpp(said, notes)
        case "UniPCMultistepScheduler":
            return _unipc(said, notes)
    notes.append(f"{name} has no twin: {NEAREST[name]}")
    return NEAREST[name]


def _dpmpp(said: Mapping[str, Any], notes: list[str]) -> str:
    order, algorithm, solver = said["solver_order"], said["algorithm_type"], said["solver_type"]
    noisy = algorithm.startswith("sde-")
    if not algorithm.endswith("dpmsolver++"):
        notes.append(f"algorithm_type {algorithm} has no twin: that of dpmsolver++")
    if said.get("euler_at_final") or not said.get("lower_order_final", True):
        notes.append("the last step is of lower order as lower_order_final says, which the config does not")
    if str(said.get("lambda_min_clipped", "-inf")) not in ("-inf", "-Infinity"):
        notes.append("lambda_min_clipped has no twin: the whole schedule is sampled")
    if order == 1:
        return f"ddim(eta={float(noisy)})"
    if order == 3:
        if solver != "heun":
            notes.append(f"solver_type {solver} of order 3 has no twin: heun")
        return "dpmpp_3m_sde(reference=True)" if noisy else "dpmpp_3m(reference=True)"
    return f"dpmpp_2m{'_sde' if noisy else ''}(solver={solver!r})"


def _unipc(said: Mapping[str, Any], notes: list[str]) -> str:
    if not said.get("predict_x0", True):
        notes.append("predict_x0 False has no twin: True")
    if said.get("disable_corrector") or said.get("solver_p"):
        notes.append("disable_corrector and solver_p have no twin: the corrector runs at every step")
    taper = bool(said.get("lower_order_final", True))
    return f"unipc(order={said['solver_order']}, variant={said['solver_type']!r}, taper={taper})"


def _grid(name: str, said: Mapping[str, Any], notes: list[str]) -> str:
    """The time grid's spec."""
    if sigmas := [key for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if said.get(key)]:
        grid = "karras" if sigmas[0] == "use_karras_sigmas" else "logsnr"
        notes.append(f"{sigmas[0]} rounds its times and may start elsewhere: the grid {grid} does not round")
        return grid
    spacing, offset = said["timestep_spacing"], said.get("steps_offset", 0)
    skip_first = name in _MULTISTEP and spacing != "trailing"
    short = not said.get("set_alpha_to_one", True) or said.get("final_sigmas_type") == "sigma_min"
    if short and not skip_first and (spacing == "linspace" or (spacing == "leading" and not offset)):
        notes.append("the last step would not move, as it starts where it is to end: it ends at the data")
        short = False
    options = {}
    if spacing == "leading" and offset:
        options["offset"] = offset
    if skip_first:
        options["skip_first"] = True
    if spacing == "linspace" and name in _FRACTIONAL:
        options["whole"] = False
    if short:
        options["last"] = "t_min"
    if spacing not in ("leading", "linspace", "trailing"):
        notes.append(f"timestep_spacing {spacing} has no twin: trailing")
        spacing = "trailing"
    if spacing != "leading" and name in (*_FRACTIONAL, *NEAREST):
        notes.append(
            f"{name} with spacing {spacing} starts from noise times sigma, 0.2% less than here for Stable Diffusion"
        )
    if spacing == "linspace" and name in _BY_STRIDE:
        notes.append(f"{name} with spacing linspace steps by T // N there, and from each time to the next here")
    said_options = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{spacing}({said_options})" if options else spacing


def _threshold(name: str, said: Mapping[str, Any], notes: list[str]) -> str:
    """The threshold's spec, of x0 at every step."""
    if name == "DDIMScheduler" and (said.get("thresholding") or said.get("clip_sample")):
        notes.append("clip_sample and thresholding leave eps as it was, where a threshold moves eps along")
    if said.get("thresholding"):
        if said.get("sample_max_value", 1.0) == 1:
            return "static"  # theirs divides by at most sample_max_value
        if said["sample_max_value"] < UNBOUNDED:
            notes.append(
                f"sample_max_value={said['sample_max_value']} has no twin: dynamic thresholding has no upper bound"
            )
        return f"dynamic(percentile={float(said.get('dynamic_thresholding_ratio', 0.995))!r})"
    if not said.get("clip_sample", False):
        return "none"
    bound = float(said.get("clip_sample_range", 1.0))
    return "static" if bound == 1 else f"static(low={-bound!r}, high={bound!r})"
