"""The conformance suite of conditions."""

import pickle
from collections.abc import Mapping
from contextlib import closing

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.example import Source
from diffusion_jax.data.pipeline import Order, Reading, train_batches
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.modalities import Image
from diffusion_jax.models.conditions import NEGATIVE, Condition, RequestSetting, SampleRequest

_B = 6


def check_condition(
    condition: Condition,
    source: Source,
    request: SampleRequest,
    shape: tuple[int, int, int] = (8, 8, 3),
    tokenizer: Tokenizer | None = None,
) -> None:
    """Raises AssertionError unless the condition keeps the protocol of `Condition`.

    source has the fields that the condition reads, with images of shape H W C, and request asks for a sample with the
    condition. The suite checks that the reader can be pickled and makes the entries that `batch` declares, for any
    number of processes; that every array leads with the batch; that augmentation, dropout and a request have the
    structure of `entries`; that the network gets what the condition declares; and that pictures are uint8.
    """
    batch = _check_reader(condition, source, shape, tokenizer)
    entries = condition.entries(batch)
    assert set(entries) <= set(condition.names), f"`entries` gives {sorted(entries)}, `names` has {condition.names}"
    _check_leads(entries, _B)
    _check_training(condition, entries)
    _check_given(condition, entries, shape)
    setting = RequestSetting(np.arange(4, dtype=np.int32), shape, 2.0, tokenizer, painted=condition.edits)
    given: Mapping[str, chex.Array] = condition.request(request, setting)
    if condition.edits:
        unknown = jnp.zeros((4, *shape[:2], 1), bool)
        given = {**given, **condition.of_edit(jnp.asarray(batch["x"][:4]), unknown)}
    away = {name.removeprefix(NEGATIVE): a for name, a in given.items() if name.startswith(NEGATIVE)}
    towards = {name: a for name, a in given.items() if not name.startswith(NEGATIVE)}
    _check_structure(_rows(entries, 4), towards, "a request gives what training gives")
    _check_structure({name: towards[name] for name in away}, away, "guidance leads away from entries of equal shape")
    for picture in condition.pictures({name: np.asarray(a) for name, a in towards.items()}, shape[2]):
        assert picture.dtype == np.uint8, f"a picture is uint8; got {picture.dtype}"
        assert picture.shape == (4, *shape), f"a picture is [B, H, W, C], {(4, *shape)}; got {picture.shape}"


def _check_reader(
    condition: Condition, source: Source, shape: tuple[int, int, int], tokenizer: Tokenizer | None
) -> dict[str, np.ndarray]:
    """A batch of `_B` examples of the source with the entries of the condition."""
    reader = condition.reader(tokenizer)
    readers = [] if reader is None else [pickle.loads(pickle.dumps(reader))]
    each = []
    for index, count in ((0, 1), (0, 2), (1, 2)):
        batches = train_batches(
            source,
            Image(),
            shape,
            Order(seed=1, batch_size=_B, flip=True, process_index=index, process_count=count),
            readers=readers,
            reading=Reading(threads=0),
        )
        with closing(batches):
            each.append(next(batches))
    whole, *halves = each
    for name, a in whole.items():
        both = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(a, both, err_msg=f"{name} does not depend on the processes")
    made = {name: a for name, a in whole.items() if name not in ("x", "index")}
    declared = condition.batch(shape)
    assert set(made) == set(declared), f"the reader makes {sorted(made)}, `batch` declares {sorted(declared)}"
    for name, entry in declared.items():
        a = made[name]
        assert a.shape == (_B, *entry.shape), f"{name} is [B, *{entry.shape}] as `batch` says; got {a.shape}"
        assert a.dtype == entry.dtype, f"{name} is {np.dtype(entry.dtype)} as `batch` says; got {a.dtype}"
        inside = entry.low <= a.min() and a.max() <= entry.high
        assert inside, f"{name} is within {entry.low:g} to {entry.high:g}"
    return whole


def _check_training(condition: Condition, entries: Mapping[str, chex.Array]) -> None:
    """Checks augmentation and the null of dropout."""
    entries = {name: jnp.asarray(a) for name, a in entries.items()}
    augmented = condition.augment(jax.random.key(0), dict(entries))
    _check_structure(entries, augmented, "augmentation keeps the structure")
    chex.assert_trees_all_equal(augmented, condition.augment(jax.random.key(0), dict(entries)))
    null = condition.null(dict(augmented))
    assert set(null) == set(entries), f"`null` gives {sorted(null)} for {sorted(entries)}"
    for name, a in null.items():
        assert jnp.broadcast_shapes(a.shape, entries[name].shape) == entries[name].shape, f"{name} of `null` fits"
        assert a.dtype == entries[name].dtype, f"{name} of `null` is {entries[name].dtype}; got {a.dtype}"
    dropout = condition.dropout
    assert dropout is None or 0 <= dropout < 1, f"dropout is in [0, 1) or None; got {dropout}"


def _check_given(condition: Condition, entries: Mapping[str, chex.Array], shape: tuple[int, int, int]) -> None:
    """Checks that the network gets arrays of the shapes that the condition declares."""
    weights = condition.init(jax.random.key(0)) if condition.trained else condition.pretrained
    given = {name: jnp.asarray(a) for name, a in entries.items()}
    if condition.encodes:
        given = condition.encode(weights, given)
        assert not set(condition.encodes) & set(given), f"`encode` replaces {condition.encodes}"
    declared = condition.network_entries(shape)
    missing = set(declared) - set(given)
    assert not missing, f"the network is to be given {sorted(missing)} too"
    for name, a in declared.items():
        assert given[name].shape == (_B, *a.shape[1:]), f"{name} is [B, *{a.shape[1:]}]; got {given[name].shape}"
    for name, channels in condition.channels(shape[2]).items():
        assert given[name].shape == (_B, *shape[:2], channels), f"{name} has {channels} channels at the image's size"
    for name in condition.levels:
        assert given[name].shape == (_B,), f"{name} is one number an example"
    assert set(condition.images) <= set(condition.channels(1)), "images are among the entries that have channels"


def _rows(tree: Mapping[str, chex.Array], n: int) -> dict[str, chex.Array]:
    return {name: a[:n] for name, a in tree.items()}


def _check_leads(tree: Mapping[str, chex.Array], n: int) -> None:
    for name, a in tree.items():
        assert a.shape[:1] == (n,), f"every entry leads with the batch, {n}; {name} has shape {a.shape}"


def _check_structure(wanted: Mapping[str, chex.Array], got: Mapping[str, chex.Array], claim: str) -> None:
    shapes = lambda tree: {name: (a.shape, np.dtype(a.dtype)) for name, a in sorted(tree.items())}  # noqa: E731
    assert shapes(got) == shapes(wanted), f"{claim}: {shapes(wanted)}; got {shapes(got)}"
