"""What can be learned of any LightningDataModule: its batches, d, k and its classes' names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from onelayer.core.errors import InputError, first_line
from onelayer.data.augment import Augment
from onelayer.data.loader import Batch
from onelayer.data.naming import shown
from onelayer.data.split import Split

ONE_LOADER = "Return one, of a torch.utils.data.ConcatDataset of all."


def pair(batch: Any) -> Batch:
    """Return a batch as X (n, d) and y (n,): images (n, c, height, width) are laid flat.

    Raises:
        InputError: it is no pair; naming what it is.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        raise InputError(
            f"a batch must be a pair (X, y) of features (n, d) and labels (n,), not a "
            f"{type(batch).__name__}{keys}."
        )
    X, y = batch
    if isinstance(X, tuple | list | dict):
        raise InputError(
            f"a batch must be a pair (X, y) of features (n, d) and labels (n,), but its first is a "
            f"{type(X).__name__}: several loaders give such batches. {ONE_LOADER}"
        )
    return (X.flatten(1) if isinstance(X, Tensor) and X.ndim > 2 else X), y


def batches(data: Any, split: Split, rows: int | None = None) -> Iterator[Batch]:
    """Give the batches ``(X, y)`` of a split, by the data module's own loaders.

    Args:
        data: any LightningDataModule, set up.
        split: of a split without a loader nothing is given.
        rows: no batch is begun after so many rows.

    Raises:
        InputError: a batch is no pair.
    """
    loaders, given = _loaders(data, split), 0
    drawn = [(generator, generator.get_state()) for generator in generators(loaders)]
    try:
        for batch in chain.from_iterable(loaders):
            X, y = pair(batch)
            yield X, y
            given += len(y)
            if rows is not None and given >= rows:
                return
    finally:  # a generator that training draws from, too
        for generator, state in drawn:
            generator.set_state(state)


def generators(loaders: Sequence[Any]) -> Iterator[torch.Generator]:
    """Give each random generator of loaders and their samplers once."""
    seen = set()
    for loader in loaders:
        inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        for owner in (loader, getattr(loader, "sampler", None), inner):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator) and id(generator) not in seen:
                seen.add(id(generator))
                yield generator


def augment_of(data: Any) -> Augment:
    """What a data module changes in its training images, as far as it says so: else nothing."""
    augment: Augment = getattr(data, "augment", Augment())
    return augment


def has_split(data: Any, split: Split) -> bool:
    """Whether a data module has a split, as far as can be told before it is set up."""
    size = getattr(data, "size", None)
    return size(split) > 0 if callable(size) else has_loader(data, split)


def count_rows(data: Any, split: Split) -> int:
    """Return how many rows a split has."""
    size = getattr(data, "size", None)
    return int(size(split)) if callable(size) else sum(len(y) for _, y in batches(data, split))


def count_batches(data: Any) -> int:
    """Return the number of training batches in an epoch."""
    size = getattr(data, "batch_size", None)
    if isinstance(size, int) and size > 0:
        return -(-count_rows(data, "train") // size)
    return sum(1 for _ in batches(data, "train"))


def has_loader(data: Any, split: Split) -> bool:
    """Whether a data module has a loader of its own for a split."""
    return is_overridden(f"{split}_dataloader", data, LightningDataModule)


def count_loaders(data: Any, split: Split) -> int:
    """Return how many loaders a data module, set up, has for a split."""
    made = getattr(data, f"{split}_dataloader")() if has_loader(data, split) else None
    return len(_flat(made))


def warn_of_several(split: str) -> None:
    """Warn that of several loaders the first one gives the figures of the split."""
    warnings.warn(
        f"there are several {split} loaders: {split}/accuracy and the other figures of the {split} "
        f"split are of the first; those of the next are {split}/accuracy/dataloader_idx_1, …",
        stacklevel=2,
    )


def _loaders(data: Any, split: Split) -> list[Any]:
    """The loader of a split, the first of several; none without one."""
    if not has_loader(data, split):
        return []
    made = _flat(getattr(data, f"{split}_dataloader")())
    if len(made) > 1 and split == "train":
        raise InputError(
            f"train_dataloader of {type(data).__name__} returns {len(made)} loaders, but a network "
            f"trains on one. {ONE_LOADER}"
        )
    if len(made) > 1:
        warn_of_several(split)
    return made[:1]


def _flat(made: Any) -> list[Any]:
    """The loaders in whatever Lightning takes: one, or lists and dicts of them."""
    return [] if made is None else list(CombinedLoader(made).flattened)


def class_names(data: Any, classes: int) -> list[str]:
    """Return a data module's names of its classes, or their numbers where it has none."""
    names = getattr(data, "classes", None)
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == classes:
        return [str(name) for name in names]
    return numbers(classes)


def numbers(classes: int) -> list[str]:
    """Return what classes without names are called."""
    return [str(k) for k in range(classes)]


def column_names(data: Any, inputs: int) -> list[str] | None:
    """Return a data module's names of its features, None where it has none."""
    names = getattr(data, "columns", None)
    if isinstance(names, list | tuple) and len(names) == inputs:
        return [str(name) for name in names]
    return None


def name_of(data: Any) -> str:
    """Return what a data module calls its data; its class's name where it calls them nothing."""
    name = getattr(data, "name", None)
    return shown(name) if isinstance(name, str) and name else type(data).__name__


def sizes(data: Any) -> tuple[int, int]:
    """Return d and k of a data module's batches, which it makes ready if it has to.

    k is the number of ``classes`` or ``num_classes``, or one more than the largest label of its
    training batches; d and k are those of ``shape`` and ``classes`` where it has both.

    Raises:
        InputError: they cannot be had.
    """
    if isinstance(data, LightningDataModule) and not hasattr(data, "shape"):
        _make_ready(data)
    k = _classes_of(data)
    shape = getattr(data, "shape", None)
    if shape is not None and k is not None:
        return int(torch.Size(shape).numel()), k
    given = _first(data)
    return given[0].shape[1], _largest_label(data) + 1 if k is None else k


def _make_ready(data: LightningDataModule) -> None:
    try:
        data.prepare_data()
        data.setup("fit")
    except InputError:
        raise
    except Exception as error:  # whatever somebody else's code does without a trainer
        raise InputError(f"{_unknown(data)} its setup failed: {first_line(error)}.") from error


def _first(data: Any) -> Batch:
    try:
        found = next(islice(batches(data, "train"), 1), None)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{_unknown(data)} its loader failed: {first_line(error)}.") from error
    if found is None:
        raise InputError(f"{type(data).__name__} has no training batches: train_dataloader.")
    X = found[0]
    if not isinstance(X, Tensor) or X.ndim != 2:
        kind = f"of shape {tuple(X.shape)}" if isinstance(X, Tensor) else f"a {type(X).__name__}"
        raise InputError(
            f"{type(data).__name__}: X of a batch must be a tensor (n, d), not {kind}."
        )
    return found


def _classes_of(data: Any) -> int | None:
    names, number = getattr(data, "classes", None), getattr(data, "num_classes", None)
    if isinstance(names, Sequence) and not isinstance(names, str):
        return len(names)
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _largest_label(data: Any) -> int:
    return max(int(y.max()) for _, y in batches(data, "train"))


def _unknown(data: Any) -> str:
    return (
        f"d and k are not known from {type(data).__name__}: type --model.inputs and "
        "--model.classes, or mend it:\n"
    )
