"""`diffusion-jax checkpoint verify`: whether the checkpoints of a workdir are intact."""

from pathlib import Path

from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train import manifest
from diffusion_jax.train.manifest import Verdict


def verify(root: Path, *, step: int | None = None) -> dict[int, Verdict]:
    """Verifies every file of all steps, or of one step, and prints the verdicts, the oldest step first.

    Raises UserError where there is no such step and, after the list, where a step is damaged.
    """
    folder = Workdir(root).checkpoints
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
    if not steps:
        raise UserError(f"no checkpoint in {folder}; train first, or check --workdir")
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {folder}; there are {', '.join(map(str, steps))}")
    verdicts = {}
    for number in steps if step is None else [step]:
        status, reason = verdicts[number] = manifest.verify(folder / str(number))
        print(f"{number:>10}  {status}" + (f": {reason}" if status == manifest.DAMAGED else ""), flush=True)
    damaged = [number for number, verdict in verdicts.items() if verdict.status == manifest.DAMAGED]
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(verdicts)} checkpoints in {folder} damaged: {', '.join(map(str, damaged))}; "
            "train and sample pass over them"
        )
    return verdicts
