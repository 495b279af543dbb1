"""Whether a data set lies on this machine, for what only looks at data and must not fetch it."""

import os

import tensorflow_datasets as tfds


def at_hand(spec: str, data_dir: str | None = None) -> bool:
    """Whether the data of a source such as tfds:cifar10 can be opened without a download.

    True for a source that there is none of, of which opening it says what is wrong.
    """
    kind, _, name = spec.partition(":")
    if kind != "tfds":
        return True
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")  # TFDS looks at it only when it is imported
    try:
        formats = ({}, {"file_format": "array_record"})
        return any(tfds.builder(name, data_dir=data_dir, **format).is_prepared() for format in formats)
    except Exception:  # TFDS says what is wrong with a name in many types
        return True
