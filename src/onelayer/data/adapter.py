"""Any LightningDataModule behind one interface: its batches, sizes and names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from onelayer.core.checks import check_weight
from onelayer.core.errors import InputError, first_line
from onelayer.data.augment import Augment
from onelayer.data.naming import shown
from onelayer.data.split import Split, Splits

ONE_LOADER = "Return one, of a torch.utils.data.ConcatDataset of all."


# ---- batches


class Weighted(NamedTuple):
    """Features (n, d), labels (n,) and the samples' weights (n,), None for 1 each."""

    X: Any
    y: Tensor
    weight: Tensor | None = None


def weighted(data: Any, split: Split) -> Weighted | None:
    """Return a split in memory with the weights of its samples; None if there is no such split."""
    tensors = data.tensors(split) if isinstance(data, Splits) else None
    if tensors is None:
        return None
    weights = getattr(data, "sample_weights", None)  # a data module of ours has it
    X, y = tensors
    return Weighted(X, y, weights(split) if weights else None)


def samples_of(batch: Any) -> Weighted:
    """Return a batch as X (n, d), y (n,) and weights: images (n, c, height, width) are laid flat.

    Raises:
        InputError: it is neither (X, y) nor (X, y, weight).
    """
    legal = "a batch must be a pair (X, y) of features (n, d) and labels (n,)"
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        raise InputError(f"{legal}, not a {type(batch).__name__}{keys}.")
    X, y, *others = batch
    weight = others[0] if others else None
    if others and not (isinstance(weight, Tensor) and weight.is_floating_point()):
        raise InputError(
            f"{legal}; a third item must be the weights of the samples, floating (n,), not "
            f"{_kind(weight)}. Return pairs."
        )
    if isinstance(X, tuple | list | dict):
        raise InputError(
            f"{legal}, but its first is a {type(X).__name__}: several loaders give such batches. "
            f"{ONE_LOADER}"
        )
    if weight is not None and weight.device.type == "cpu":
        check_weight(weight, len(y))
    return Weighted(X.flatten(1) if isinstance(X, Tensor) and X.ndim > 2 else X, y, weight)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def batches(data: Any, split: Split, rows: int | None = None) -> Iterator[Weighted]:
    """Yield the batches of a split, by the data module's own loader.

    Args:
        data: any LightningDataModule, set up.
        split: a split without a loader gives no batch.
        rows: number of rows after which no batch is begun.

    Raises:
        InputError: a batch is no pair.
    """
    loaders, given = _loaders(data, split), 0
    drawn = [(generator, generator.get_state()) for generator in generators(loaders)]
    try:
        for batch in chain.from_iterable(loaders):
            samples = samples_of(batch)
            yield samples
            given += len(samples.y)
            if rows is not None and given >= rows:
                return
    finally:  # training draws from the same generators
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


def has_loader(data: Any, split: Split) -> bool:
    """Return whether a data module has a loader of its own for a split."""
    return is_overridden(f"{split}_dataloader", data, LightningDataModule)


def count_loaders(data: Any, split: Split) -> int:
    """Return the number of loaders that a data module, set up, has for a split."""
    return len(_all_loaders(data, split))


def _all_loaders(data: Any, split: Split) -> list[Any]:
    """Return the loaders in whatever Lightning takes: one, or lists and dicts of them."""
    made = getattr(data, f"{split}_dataloader")() if has_loader(data, split) else None
    return [] if made is None else list(CombinedLoader(made).flattened)


def _loaders(data: Any, split: Split) -> list[Any]:
    """Return the loader of a split, the first of several; none without one."""
    made = _all_loaders(data, split)
    if len(made) > 1 and split == "train":
        raise InputError(
            f"train_dataloader of {type(data).__name__} returns {len(made)} loaders, but a network "
            f"trains on one. {ONE_LOADER}"
        )
    if len(made) > 1:
        warn_of_several(split)
    return made[:1]


def warn_of_several(split: str) -> None:
    """Warn that the results of a split are those of the first of several loaders."""
    warnings.warn(
        f"there are several {split} loaders: {split}/accuracy and the other figures of the {split} "
        f"split are of the first; those of the next are {split}/accuracy/dataloader_idx_1, …",
        stacklevel=2,
    )


# ---- sizes


def has_split(data: Any, split: Split) -> bool:
    """Return whether a data module has a split, as far as is known before it is set up."""
    return data.size(split) > 0 if hasattr(data, "size") else has_loader(data, split)


def count_rows(data: Any, split: Split) -> int:
    """Return the number of rows of a split."""
    if hasattr(data, "size"):
        return int(data.size(split))
    return sum(len(batch.y) for batch in batches(data, split))


def count_batches(data: Any) -> int:
    """Return the number of training batches in an epoch."""
    size = getattr(data, "batch_size", None)
    if isinstance(size, int) and size > 0:
        return -(-count_rows(data, "train") // size)
    return sum(1 for _ in batches(data, "train"))


def sizes(data: Any) -> tuple[int, int]:
    """Return d and k of a data module's batches.

    They are those of its ``shape`` and ``classes`` if it has both. Else it is set up; d is that of
    its first batch, and k its ``num_classes`` or one more than its largest training label.

    Raises:
        InputError: they are not known.
    """
    try:
        if not hasattr(data, "shape"):
            data.prepare_data()
            data.setup("fit")
        names, k = getattr(data, "classes", None), getattr(data, "num_classes", None)
        k = len(names) if isinstance(names, Sequence) and not isinstance(names, str) else k
        if hasattr(data, "shape") and k is not None:
            return int(torch.Size(data.shape).numel()), k
        d = next(batch.X.shape[1] for batch in batches(data, "train"))
        if k is None:
            k = 1 + max(int(batch.y.max()) for batch in batches(data, "train"))
        return d, k
    except InputError:
        raise
    except Exception as error:  # anybody's code, without a trainer
        raise InputError(
            f"d and k are not known from {type(data).__name__}: give --model.inputs and "
            f"--model.classes, or mend it:\n{type(error).__name__}: {first_line(error)}."
        ) from error


def shape_of(data: Any) -> tuple[int, ...]:
    """Return the shape of a data module's samples; () if it is not known."""
    return tuple(getattr(data, "shape", ()))


# ---- checks


def verify(data: Any) -> None:
    """Refuse now what a run would refuse later, if a data module can be checked.

    Raises:
        InputError: a batch is larger than the training split, or a split cannot be measured.
    """
    for name in ("check_batch_size", "verify_test"):
        if check := getattr(data, name, None):
            check()


# ---- names


def augment_of(data: Any) -> Augment:
    """Return the changes that a data module declares of its training images: else none."""
    augment: Augment = getattr(data, "augment", Augment())
    return augment


def class_names(data: Any, classes: int) -> list[str]:
    """Return a data module's names of its classes, or their numbers if it has none."""
    return _names(data, "classes", classes) or numbers(classes)


def column_names(data: Any, inputs: int) -> list[str] | None:
    """Return a data module's names of its features, None if it has none."""
    return _names(data, "columns", inputs)


def _names(data: Any, what: str, count: int) -> list[str] | None:
    names = getattr(data, what, None)
    legal = isinstance(names, Sequence) and not isinstance(names, str) and len(names) == count
    return [str(name) for name in names] if legal else None  # type: ignore[union-attr]


def numbers(classes: int) -> list[str]:
    """Return the names of classes without names."""
    return [str(k) for k in range(classes)]


def name_of(data: Any) -> str:
    """Return the name of a data module's data, or of its class if they have none."""
    name = getattr(data, "name", None)
    return shown(name) if isinstance(name, str) and name else type(data).__name__
