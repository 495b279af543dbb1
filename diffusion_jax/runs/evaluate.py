"""`diffusion-jax evaluate`: numbers about a checkpoint, each with all that it takes to believe it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax import config as configs
from diffusion_jax.build.likelihood import DRAWS, bits_per_dim_program, own_conditions
from diffusion_jax.errors import UserError
from diffusion_jax.evals import sample_metrics
from diffusion_jax.evals.moments import sha256
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs import measured_samples, subjects, suspects
from diffusion_jax.runs.conditions import Asked
from diffusion_jax.runs.measured_samples import Interrupted, Reference, Subject
from diffusion_jax.runs.output_folder import check_writable
from diffusion_jax.runs.real_images import RealImages, plain
from diffusion_jax.runs.results import line, result_of, write
from diffusion_jax.runs.ruler import Judged, Ruler
from diffusion_jax.runs.trained import UNGUIDED, GuidedBy, Trained, restore, seeds_from, weights_name
from diffusion_jax.runs.unfinished import Unfinished
from diffusion_jax.runs.workdir import Workdir
from diffusion_jax.train import manifest, sharding
from diffusion_jax.train.faults import stop_on_signal
from diffusion_jax.train.interruptible import Abandoned, interruptible

BITS_PER_DIM = "bits_per_dim"

METRICS = (BITS_PER_DIM, *sample_metrics.METRICS)

AGAIN = 75
"""The exit status of an evaluation that a signal stopped, EX_TEMPFAIL: the same command goes on."""

_METHODS = {"bound": "variational bound", "ode": "probability-flow ODE"}


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How bits per dimension are found."""

    method: str = "bound"
    steps: int = 0  # 0: all that the method knows


@dataclasses.dataclass(frozen=True)
class Request:
    """Which numbers, of which checkpoint and how: all that a result depends on, but the machine."""

    root: Path
    metrics: tuple[str, ...]
    num: int
    seed: int
    batch: int
    asked: Asked
    step: int | None
    average: bool | float
    split: str | None
    likelihood: Likelihood
    judged: Judged
    overrides: Mapping[str, object]
    real: int | None = None  # images that samples are compared with; 0: all, None: num
    guided_by: GuidedBy = UNGUIDED


def evaluate(request: Request, *, out: Path | None, save_seconds: float = 60.0) -> Path:
    """Measures a checkpoint of a workdir by each metric, prints the results, and writes them.

    Returns the JSON file: out or, where None, one of its own in the workdir's evaluations/. Sample i has seed `seed` +
    i; the real images are those of the config's data, of split where given. What is gathered is saved beside the result
    about every save_seconds, and an evaluation that was killed goes on from there; a SIGINT or SIGTERM saves too, and
    raises SystemExit(AGAIN). Raises UserError before anything is drawn for what the model, the data or num cannot give.
    """
    if out is not None and (out.exists() or out.suffix != ".json"):
        raise UserError(f"--out={out} is to be a new .json file; give another")
    if not save_seconds >= 0:
        raise UserError(f"--save_seconds is at least 0; got {save_seconds}")
    folder = request.root / "evaluations" if out is None else out.parent
    if request.root.is_dir():  # what is no workdir is said below
        check_writable(folder)
    with stop_on_signal() as stop:
        try:
            result, picture = measure(request, folder, save_seconds, lambda: stop.signal is not None)
        except Interrupted as done:
            print(f"stopped by {stop.signal} after {done}; the same command goes on", flush=True)
            raise SystemExit(AGAIN) from None
    out = write(result, folder, out)
    if picture is not None:
        replace_file(out.with_suffix(".memorisation.png"), picture)
    for entry in result["metrics"].values():
        print(line(entry), *(f"  note: {note}" for note in entry.get("notes", ())), sep="\n")
    subject = result["subject"]
    print(f"step {subject['checkpoint_step']}, {subject['weights']}: {out}")
    return out


def measure(
    request: Request,
    folder: Path,
    save_seconds: float,
    stopped: Callable[[], bool],
    shared: dict[Any, Any] | None = None,
) -> tuple[dict[str, Any], bytes | None]:
    """(the result, a PNG of the samples that memorisation suspects); what is unfinished lies in folder meanwhile.

    Requests that differ in checkpoint, average and sampling alone may share programs, features and what is gathered of
    real images in the dict shared.
    """
    shared = {} if shared is None else shared
    names = check_metrics(request.metrics)
    if request.batch < 1:
        raise UserError(f"--batch is at least 1; got {request.batch}")
    if request.real is not None and request.real < 0:
        raise UserError(f"--real is at least 0, all images; got {request.real}")
    of_samples = [name for name in names if name != BITS_PER_DIM]
    seeds = seeds_from(request.seed, request.num)
    request.judged.check(of_samples, request.num, request.real)
    config = Workdir(request.root).read_config()
    size = -(-min(request.batch, request.num) // sharding_share()) * sharding_share()
    config = plain(config, request.split, size)
    trained, subject, step, weights = _subject(config, request, seeds, size, shared)
    measured_samples.check(of_samples, subject)
    if "ruler" not in shared:
        shared["ruler"] = request.judged.ruler(of_samples, subject.mesh, subject.shape, size)
    ruler: Ruler = shared["ruler"]
    model, tokenizer = (trained.model, trained.tokenizer) if trained else (None, None)
    own = RealImages(config, request.num, model, tokenizer)
    real = own if request.real in (None, request.num) else RealImages(config, request.real or 0, model, tokenizer)
    found: dict[str, dict[str, Any]] = {}
    about: dict[str, Any] = {
        "checkpoint_step": step,
        "checkpoint_sha256": checkpoint_digest(request.root, step),
        "weights": weights,
        "seed": request.seed,
    }
    if of_samples:
        about |= {"seeds": [int(seeds[0]), int(seeds[-1])], "guided_by": subjects.record(request.guided_by)}
        about["sampling"] = dataclasses.asdict(trained.how) if trained else None
    # What can be wrong is said before the work begins.
    if BITS_PER_DIM in names:
        if trained is None:
            raise UserError(f"{BITS_PER_DIM} is of diffusion models; {request.root} has a run of task {config.task}")
        found[BITS_PER_DIM] = _bits_per_dim(trained, own, request.seed, request.likelihood, stopped)
    result = result_of(request.root, config, about, found)
    if not of_samples:
        return result, None
    key = {**result, "metrics": of_samples, "size": size, "told": subject.record, "config": configs.to_json(config)}
    key |= {"real": real.num, "features": ruler.features and dict(ruler.features.record)}
    key |= {"score": ruler.score and dict(ruler.score.record)}
    key |= {"reference": ruler.reference_sha256, "num": request.num, "options": dataclasses.asdict(ruler.options)}
    unfinished = Unfinished(folder, key, seconds=save_seconds)
    if "reference" not in shared:
        shared["reference"] = measured_samples.gather_real(of_samples, subject.mesh, real, ruler, unfinished)
    reference: Reference = shared["reference"]
    gathered = measured_samples.gather_samples(of_samples, subject, seeds, size, ruler, unfinished, stopped)
    scores, suspected = measured_samples.scored(of_samples, subject, gathered, reference, ruler)
    found |= scores
    picture = None
    for each in suspected.values():
        try:
            picture = suspects.png(each, subject, seeds, size, real)
        except Abandoned:
            raise Interrupted(request.num, request.num) from None
    unfinished.remove()
    return result, picture


def check_metrics(metrics: Sequence[str]) -> list[str]:
    """The metrics asked for, each once; raises UserError for one that there is not."""
    for name in metrics:
        if name == "fid":
            raise UserError("fid is fd with InceptionV3's features; give --metrics=fd --features=inception")
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
    if not metrics:
        raise UserError(f"give --metrics, one or more of {', '.join(METRICS)}")
    return list(dict.fromkeys(metrics))


def sharding_share() -> int:
    """What the size of a batch of samples must be a multiple of, on all devices."""
    mesh = sharding.mesh()
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _subject(
    config: ConfigDict, request: Request, seeds: np.ndarray, size: int, shared: dict[Any, Any]
) -> tuple[Trained | None, Subject, int, str]:
    """(the diffusion model, or None, what is measured, its checkpoint's step, its weights); config is `plain`."""
    if config.task == "autoencoder":
        params, step = subjects.restore_autoencoder(config, request.root, request.step, request.average)
        if "decode" not in shared:
            shared["decode"] = build.autoencoder.reconstruct_program(config)
        own = RealImages(config, request.num)
        subject = subjects.of_reconstructions(shared["decode"], params, sharding.mesh(), own)
        return None, subject, step, weights_name(request.average)
    trained = restore(
        request.root,
        step=request.step,
        average=request.average,
        overrides=request.overrides,
        guided_by=request.guided_by,
    )
    if trained.how not in shared:
        shared[trained.how] = build.sample_program(trained.model, trained.how, trained.mesh, trained.guides)
    own = RealImages(config, request.num, trained.model, trained.tokenizer)
    subject = subjects.of_samples(
        trained, shared[trained.how], request.asked, seeds, size, own, "clip_score" in request.metrics
    )
    return trained, subject, trained.step, trained.weights


def checkpoint_digest(root: Path, step: int) -> str | None:
    """The SHA-256 of the checkpoint's manifest, which lists those of its files; None where it has none."""
    file = Workdir(root).checkpoints / str(step) / manifest.NAME
    return sha256(file) if file.is_file() else None


def _bits_per_dim(
    trained: Trained, real: RealImages, seed: int, likelihood: Likelihood, stopped: Callable[[], bool]
) -> dict[str, Any]:
    program = bits_per_dim_program(trained.model, trained.how, trained.mesh, likelihood.method, likelihood.steps)
    batches: list[dict[str, np.ndarray]] = []
    done = 0
    for take, examples in real.batches("bits/dim"):
        cond = own_conditions(trained.model, examples)
        index = examples["index"].astype(np.int32)
        call = functools.partial(program, trained.params, trained.frozen)
        try:
            parts = interruptible(functools.partial(_computed, call, examples["image"], np.int32(seed), index, cond))
        except Abandoned:
            raise Interrupted(done, real.num) from None
        batches.append({name: np.asarray(a, np.float64)[:take] for name, a in parts.items()})
        done += take
        if stopped() and done < real.num:
            raise Interrupted(done, real.num)
    parts = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    total = parts.pop("total")
    if lost := int((~np.isfinite(total)).sum()):
        raise UserError(
            f"bits_per_dim of {lost} of {len(total)} images is not finite; for method ode give --likelihood_steps=200"
        )
    return {
        "label": f"bits/dim ({_METHODS[likelihood.method]})",
        "value": float(total.mean()),
        "standard_error": float(total.std(ddof=1) / np.sqrt(len(total))) if len(total) > 1 else None,
        "parts": {name: float(a.mean()) for name, a in parts.items()},
        "how": {
            "n": real.num,
            "method": likelihood.method,
            "steps": likelihood.steps or _all_steps(trained.model, likelihood.method),
            "conditions": "each image's own",
            "real": real.record(),
        },
    }


def _computed(program: Callable[..., Any], *arguments: Any) -> Any:
    return jax.device_get(program(*arguments))


def _all_steps(model: build.Model, method: str) -> int | str:
    return "adaptive" if method == "ode" else model.schedule.steps or DRAWS
