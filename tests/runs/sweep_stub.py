"""Stands for `train` in tests of sweeps: a training of a fraction of a second, with checkpoints, resume and SIGTERM.

Its loss falls from 1 towards log10(learning_rate / 1e-3)^2 and depends on that and on the step alone. A learning rate
of 0.5 crashes, one of 0.25 gives NaN. `runs` in its workdir gets a line at each start and end.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path


def main():
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[2:])
    root, steps = Path(flags["workdir"]), int(flags["config.train.steps"])
    every, rate = int(flags["config.checkpoint.every"]), float(flags["config.optimizer.learning_rate"])
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with (root / "runs").open("a") as file:
        file.write(json.dumps({"at": time.time(), "cores": cores, "pid": os.getpid()}) + "\n")
    if rate == 0.5:
        sys.exit("diffusion-jax: it crashed, as it was told")
    stopped = []
    # A second one ends it at once, as `train`.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143) if stopped else stopped.append(True))
    folder, metrics = root / "checkpoints", root / "metrics.jsonl"
    folder.mkdir(exist_ok=True)
    step = max((int(path.name) for path in folder.iterdir()), default=0)
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    metrics.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))
    while step < steps and not stopped:
        time.sleep(float(os.environ.get("STUB_SECONDS", "0.01")))
        step += 1
        limit = math.log10(rate / 1e-3) ** 2
        loss = limit + (1 - limit) * math.exp(-step / 5) if rate != 0.25 else math.nan
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "loss": None if math.isnan(loss) else loss}) + "\n")
        if stopped:
            time.sleep(0.2)  # to save
        if step % every == 0 or step == steps or stopped:
            (folder / str(step)).mkdir(exist_ok=True)
            (folder / str(step) / "manifest.json").write_text("{}")
    with (root / "runs").open("a") as file:
        file.write(json.dumps({"at": time.time(), "step": step}) + "\n")


if __name__ == "__main__":
    main()
