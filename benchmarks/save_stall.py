"""For how long does a save hold up training? A config is trained with a save every so many seconds, all but sampling.

    python benchmarks/save_stall.py [--config=configs/digits.py] [--seconds=60] [--saves=3]

A first short run finds how many steps that is. Prints the seconds that each save held up the loop (in the metrics,
save_stall_seconds: copying to the host, and waiting for the save before) and their part of the time between two saves.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.train import train


def config_of(path: str, *, steps: int, log_every: int, save_every: int):
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.train.steps, config.log_every, config.checkpoint.every, config.sample.every = steps, log_every, save_every, 0
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--seconds", type=float, default=60.0, help="between two saves")
    parser.add_argument("--saves", type=int, default=3, help="how many are measured")
    parser.add_argument("--calibrate", type=int, default=100, help="steps of the first run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log_every = max(options.calibrate // 10, 1)
        first = config_of(options.config, steps=options.calibrate, log_every=log_every, save_every=0)
        train(first, Path(folder, "first"))
        rates = [r["images_per_second"] for r in read_metrics(Path(folder, "first", "metrics.jsonl"))[1:]]
        each = max(round(options.seconds * statistics.median(rates) / first.train.batch_size), 4)
        # The stall of the last save is in no record: one more interval than saves, and a record soon after each.
        config = config_of(options.config, steps=each * (options.saves + 1), log_every=each // 4, save_every=each)
        began = time.perf_counter()
        train(config, Path(folder, "second"))
        wall = time.perf_counter() - began
        stalls = [
            r["save_stall_seconds"]
            for r in read_metrics(Path(folder, "second", "metrics.jsonl"))
            if "save_stall_seconds" in r
        ]
    apart = wall / (options.saves + 1)
    print(
        json.dumps(
            {
                "steps_between_saves": each,
                "seconds_between_saves": round(apart, 2),
                "stall_seconds": [round(stall, 4) for stall in stalls],
                "share": round(statistics.mean(stalls) / apart, 5),
                "longest_share": round(max(stalls) / apart, 5),
            }
        )
    )


if __name__ == "__main__":
    main()
