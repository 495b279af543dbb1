"""Are the digits right, and are they new? 500 samples of a trained digits workdir against the 1,797 real digits.

    python benchmarks/digits_quality.py --workdir=runs/digits [--num=500 --guidance=2.0]
    python benchmarks/digits_quality.py --workdir=runs/digits_plain --classifier=runs/digits_classifier --scale=4

Right: a support vector classifier trained on the real digits agrees with the requested label. Its own accuracy, on
digits held out from its training, is printed beside. New: the distance from each sample to its nearest real digit,
beside the distance from each real digit to its nearest other real digit; a copy would have distance 0.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

from diffusion_jax.runs.sample.conditioning import SampleRequest
from diffusion_jax.runs.sample.run import Request, sample
from diffusion_jax.runs.workdir.restored import GuideRequest


def quality(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Agreement and nearest-neighbour distances of uint8 images [N, 8, 8, 1], in the digits' own scale of 0 to 16."""
    digits = load_digits()
    classifier = SVC(gamma=0.001).fit(digits.data, digits.target)
    held_out = cross_val_score(SVC(gamma=0.001), digits.data, digits.target, cv=5).mean()
    x = images.reshape(len(images), -1) * (16 / 255)
    nearest = pairwise_distances(x, digits.data).min(axis=1)
    among = pairwise_distances(digits.data)
    np.fill_diagonal(among, np.inf)
    real = among.min(axis=1)
    return {
        "agreement": float((classifier.predict(x) == labels).mean()),
        "classifier_held_out_accuracy": float(held_out),
        "nearest_real_median": float(np.median(nearest)),
        "nearest_real_min": float(nearest.min()),
        "real_to_real_median": float(np.median(real)),
        "real_to_real_min": float(real.min()),
        "exact_copies": int((nearest < 0.5).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--classifier", type=Path, default=None)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    guided_by = GuideRequest(arguments.classifier, arguments.scale)
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            arguments.workdir,
            arguments.num,
            SampleRequest([str(label) for label in range(10)]),
            seed=10_000,
            batch=250,
            guided_by=guided_by,
            overrides={"guidance": arguments.guidance},
        )
        sample(request, Path(folder, "out"))
        with np.load(Path(folder, "out", "samples.npz")) as arrays:
            print(json.dumps(quality(arrays["images"], arrays["labels"]), indent=2))


if __name__ == "__main__":
    main()
