"""Whether a data set lies on this machine, for what only looks at data and must neither fetch nor make it."""

import os
from typing import Any

import tensorflow_datasets as tfds

from diffusion_jax.data.tfds_source import DrawnShapes, ShapesConfig, drawn_shapes


def is_prepared(spec: str, data_dir: str | None = None) -> bool:
    """Whether the data of a source such as tfds:cifar10 can be read at once.

    True for a source that there is none of, of which opening it says what is wrong.
    """
    kind, _, argument = spec.partition(":")
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")  # TFDS looks at it only when it is imported
    chosen: dict[str, Any] = {"name": argument}
    try:
        if kind == "shapes":
            given = (int(part) for part in argument.split(",") if part)
            options = (drawn_shapes.__kwdefaults__ or {}) | dict(zip(("size", "count"), given, strict=False))
            size, count = options["size"], options["count"]
            chosen = {"name": DrawnShapes.name, "config": ShapesConfig(name=f"{size}_{count}", size=size, count=count)}
        elif kind != "tfds":
            return True
        formats: tuple[dict[str, str], ...] = ({}, {"file_format": "array_record"})
        return any(tfds.builder(**chosen, data_dir=data_dir, **kept).is_prepared() for kept in formats)
    except Exception:  # TFDS says what is wrong with a name in many types
        return True
