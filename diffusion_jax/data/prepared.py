"""Whether a data set is already on disk, for commands that must neither download nor generate it."""

import os
from typing import Any

import tensorflow_datasets as tfds

from diffusion_jax.data.tfds_source import DrawnShapes, ShapesConfig, drawn_shapes


def is_prepared(spec: str, data_dir: str | None = None) -> bool:
    """Whether the data of a source such as tfds:cifar10 can be read at once.

    True for an unknown source too: opening it raises the error that says what is wrong.
    """
    kind, _, argument = spec.partition(":")
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")  # TFDS looks at it only when it is imported
    chosen: dict[str, Any] = {"name": argument}
    try:
        if kind == "shapes":
            numbers = (int(part) for part in argument.split(",") if part)
            options = (drawn_shapes.__kwdefaults__ or {}) | dict(zip(("size", "count"), numbers, strict=False))
            size, count = options["size"], options["count"]
            chosen = {"name": DrawnShapes.name, "config": ShapesConfig(name=f"{size}_{count}", size=size, count=count)}
        elif kind != "tfds":
            return True
        formats: tuple[dict[str, str], ...] = ({}, {"file_format": "array_record"})
        return any(tfds.builder(**chosen, data_dir=data_dir, **file_format).is_prepared() for file_format in formats)
    except Exception:  # TFDS says what is wrong with a name in many types
        return True
