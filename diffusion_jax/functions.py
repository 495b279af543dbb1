"""The commands as functions of Python, which `import diffusion_jax` gives: train, load, evaluate, report.

Each takes arguments where the command takes flags, and a UserError names arguments where the command's names flags.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.errors import naming_arguments
from diffusion_jax.runs.evaluate import run as evaluation
from diffusion_jax.runs.evaluate.feature_extractor import MetricRequest
from diffusion_jax.runs.evaluate.results import Result
from diffusion_jax.runs.report.run import report as _report
from diffusion_jax.runs.sample.conditioning import SampleRequest
from diffusion_jax.runs.sample.loaded import Loaded, checked_sampling, load
from diffusion_jax.runs.train import train as _train

__all__ = ["Loaded", "evaluate", "load", "report", "train"]


def train(config: ConfigDict | Mapping[str, object], workdir: str | Path) -> Path:
    """Trains a config, made by `diffusion_jax.config.base()`, in a workdir; goes on from its newest checkpoint if it
    has one. Returns the workdir, which `load` takes.

    SIGINT and SIGTERM save and return early. Raises UserError for an error in the config or the data.
    """
    with naming_arguments():
        _train(config, Path(workdir))
    return Path(workdir)


def report(workdir: str | Path, out: str | Path | None = None) -> Path:
    """Writes one HTML page about the run in a workdir, which needs no other file; returns out, or WORKDIR/report.html.

    The run may be under way, stopped or done. Raises UserError where the workdir or a file in it is damaged.
    """
    with naming_arguments():
        return _report(Path(workdir), Path(workdir, "report.html") if out is None else Path(out))


def evaluate(
    workdir: str | Path,
    metrics: str | Sequence[str],
    *,
    num: int = 1000,
    seed: int = 0,
    batch: int = 64,
    step: int | None = None,
    ema: bool | float = True,
    features: str | Path = "",
    weights: str | Path | None = None,
    clip: str | Path | None = None,
    reference: str | Path | None = None,
    data: str | None = None,
    split: str | None = None,
    real: int | None = None,
    labels: Sequence[str | int] = (),
    prompts: Sequence[str] = (),
    method: str = "bound",
    likelihood_steps: int = 0,
    out: str | Path | None = None,
    **sampling: object,
) -> Result:
    """Measures a checkpoint by metrics, such as ("fd", "kid"); returns the result, which is written as JSON too.

    result["metrics"][name]["value"] is the number; `Result` documents the rest. The arguments are the
    flags of `diffusion-jax evaluate`, docs/evaluation.md. Further keywords replace keys of config.sample (sampler,
    steps, guidance and the like). The JSON is out, or a file of its own in the workdir's evaluations/.

    Raises UserError where the model or the data do not suit a metric, and KeyboardInterrupt where a signal stopped it:
    the features gathered are saved, and the same call goes on from there.
    """
    files = [None if file is None else Path(file) for file in (weights, reference, clip)]
    with naming_arguments():
        chosen = checked_sampling(sampling, {"num": num, "seed": seed, "batch": batch, "real": real})
        request = evaluation.Request(
            Path(workdir),
            metrics=(metrics,) if isinstance(metrics, str) else tuple(metrics),
            num=num,
            seed=seed,
            batch=batch,
            sample_request=SampleRequest(labels=[str(label) for label in labels], prompts=list(prompts)),
            step=step,
            average=ema,
            data=data,
            split=split,
            likelihood=evaluation.Likelihood(method, likelihood_steps),
            metric_request=MetricRequest(str(features), files[0], files[1], clip=files[2]),
            overrides=chosen,
            real=real,
        )
        try:
            file = evaluation.evaluate(request, out=None if out is None else Path(out))
        except SystemExit:
            raise KeyboardInterrupt("stopped; the same call goes on") from None
    return json.loads(file.read_text())
