"""`diffusion-jax evaluate`: numbers about a checkpoint, each with all that it takes to believe it."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import build
from diffusion_jax.build.likelihood import DRAWS, bits_per_dim_program, own_conditions
from diffusion_jax.errors import UserError
from diffusion_jax.evals import sample_metrics
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.conditions import Asked
from diffusion_jax.runs.measured_samples import Judged, measure_samples
from diffusion_jax.runs.real_images import RealImages, plain
from diffusion_jax.runs.trained import Trained, restore, seeds_from
from diffusion_jax.runs.workdir import Workdir
from diffusion_jax.train.checkpoint import versions

FORMAT = "diffusion_jax evaluation 1"

BITS_PER_DIM = "bits_per_dim"

METRICS = (BITS_PER_DIM, *sample_metrics.METRICS)

_METHODS = {"bound": "variational bound", "ode": "probability-flow ODE"}


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How bits per dimension are found."""

    method: str = "bound"
    steps: int = 0  # 0: all that the method knows


def evaluate(
    root: Path,
    *,
    metrics: Sequence[str],
    num: int,
    seed: int,
    batch: int,
    asked: Asked,
    step: int | None,
    average: bool,
    split: str | None,
    likelihood: Likelihood,
    judged: Judged,
    out: Path | None,
    **overrides: object,
) -> Path:
    """Measures a checkpoint of the workdir root by each metric on num images, prints the results, and writes them.

    Returns the JSON file: out or, where None, one of its own in the workdir's evaluations/. Sample i has seed `seed` +
    i; the real images are num of the config's data, of split where given. Raises UserError before anything is drawn
    for what the model, the data or num cannot give.
    """
    names = check_metrics(metrics)
    if batch < 1:
        raise UserError(f"--batch is at least 1; got {batch}")
    if out is not None and (out.exists() or out.suffix != ".json"):
        raise UserError(f"--out={out} is to be a new .json file; give another")
    of_samples = [name for name in names if name != BITS_PER_DIM]
    seeds = seeds_from(seed, num)
    judged.check(of_samples, num)
    trained = restore(root, step=step, average=average, overrides=overrides)
    size = -(-min(batch, num) // trained.share) * trained.share
    config = plain(Workdir(root).read_config(), split, size)
    real = RealImages(config, num, trained.model, trained.tokenizer)
    found: dict[str, dict[str, Any]] = {}
    subject: dict[str, Any] = {
        "workdir": str(root),
        "checkpoint_step": trained.step,
        "weights": trained.weights,
        "seed": seed,
    }
    # What can be wrong is said before the work begins.
    ruler = judged.ruler(trained.mesh, trained.model.shape, size) if of_samples else None
    if BITS_PER_DIM in names:
        found[BITS_PER_DIM] = _bits_per_dim(trained, real, seed, likelihood)
    if ruler is not None:
        found |= measure_samples(of_samples, trained, real, seeds, asked, ruler)
        subject["seeds"] = [int(seeds[0]), int(seeds[-1])]
        subject["sampling"] = dataclasses.asdict(trained.how)
    result = {
        "format": FORMAT,
        "subject": subject,
        "data": {"source": real.config.data.source, "split": real.config.data.split},
        "metrics": found,
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    text = json.dumps(result, indent=2, allow_nan=False)
    if out is None:
        digest = hashlib.sha256(text.encode()).hexdigest()  # the same evaluation again gives the same file
        out = root / "evaluations" / f"{trained.step:08d}-{digest[:8]}.json"
    replace_file(out, text.encode())
    for entry in found.values():
        print(line(entry), *(f"  note: {note}" for note in entry.get("notes", ())), sep="\n")
    print(f"step {trained.step}, {trained.weights}: {out}")
    return out


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


def line(entry: dict[str, Any]) -> str:
    """A metric's result as a person reads it."""
    value, std, error = (entry.get(name) for name in ("value", "std", "standard_error"))
    text = f"{entry['label']}: {value:.6g}"
    text += f" ± {std:.2g} (standard deviation)" if std is not None else ""
    text += f" ± {error:.2g} (standard error)" if error is not None else ""
    parts = [f"{name} {part:.4g}" for name, part in entry.get("parts", {}).items()]
    return text + (f" = {' + '.join(parts)}" if parts else "") + f", n = {entry['how']['n']}"


def _bits_per_dim(trained: Trained, real: RealImages, seed: int, likelihood: Likelihood) -> dict[str, Any]:
    program = bits_per_dim_program(trained.model, trained.how, trained.mesh, likelihood.method, likelihood.steps)
    batches = []
    for take, examples in real.batches("bits/dim"):
        cond = own_conditions(trained.model, examples)
        index = examples["index"].astype(np.int32)
        parts = program(trained.params, trained.frozen, examples["image"], np.int32(seed), index, cond)
        batches.append({name: np.asarray(a, np.float64)[:take] for name, a in parts.items()})
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


def _all_steps(model: build.Model, method: str) -> int | str:
    return "adaptive" if method == "ode" else model.schedule.steps or DRAWS
