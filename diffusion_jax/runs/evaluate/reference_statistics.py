"""`diffusion-jax evaluate reference`: the statistics of real images that fd and sfd compare samples with, in a file."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.config import check
from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments
from diffusion_jax.evals.gathering import Wanted
from diffusion_jax.modalities import Image
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.evaluate.feature_extractor import PIXELS, VALUES, MetricRequest, described
from diffusion_jax.runs.evaluate.measured_samples import featurise
from diffusion_jax.runs.evaluate.real_images import RealImages, plain
from diffusion_jax.runs.workdir.output_folder import check_file
from diffusion_jax.train import sharding
from diffusion_jax.train.provenance import versions


def reference(
    config: ConfigDict, out: Path, *, metric_request: MetricRequest, split: str | None, num: int, batch: int
) -> None:
    """Writes the statistics of num images of config's data (0: all) to the .npz out, with a .json beside it.

    Raises UserError where out is there already, num is 1 or negative, or features are not chosen.
    """
    if out.suffix != ".npz" or out.exists() or described(out).exists():
        raise UserError(f"--out={out} is to be a new .npz file, with no {described(out).name} beside it; give another")
    if num < 0 or num == 1 or batch < 1:
        raise UserError(f"--num is 0 or at least 2, --batch at least 1; got {num} and {batch}")
    check_file(out)
    metric_request.check_features("a reference")
    config = experiment.resolved(check(config))
    mesh = sharding.mesh()
    share = mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-batch // share) * share
    real = RealImages(plain(config, split, size), num)
    shape = experiment.shape(config)
    features = metric_request.extractor(["fd"], mesh, real.kind, shape, size).features
    assert features is not None
    layers = Wanted(moments=("pooled", "spatial") if features.spatial else ("pooled",))
    _ = real.source  # raises where there are fewer than num
    found = featurise(features, mesh, real, layers)
    statistics = {name: moments.statistics(m) for name, m in found.moments.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    moments.save_statistics(out, statistics["pooled"], statistics.get("spatial"))
    record = {
        "statistics_sha256": moments.sha256(out),
        "features": dict(features.record),
        "pixels": PIXELS if isinstance(real.kind, Image) else VALUES,
        "shape": list(shape),
        "data": config.data.source,
        "real": real.record(),
        "versions": versions(),
    }
    replace_file(described(out), json.dumps(record, indent=2).encode())
    print(f"statistics of {found.count:,} images, features: {features.name}: {out}")
