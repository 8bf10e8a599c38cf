"""Tables in every format, data modules of them, and what is refused of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.data.arrays import ArraysDataModule

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import safetensors.torch


def write(name, X, y=None, **more):
    """Write a table in the format that the name's ending says."""
    X, y = np.asarray(X), None if y is None else np.asarray(y)
    suffix = Path(name).suffix
    named = {"X": X, **({} if y is None else {"y": y}), **more}
    if suffix == ".npz":
        np.savez(name, **named)
    elif suffix == ".npy":
        np.save(name, X)
        np.save(f"y_{name}", y)
        return [name, f"y_{name}"]
    elif suffix in (".pt", ".safetensors"):
        save = torch.save if suffix == ".pt" else safetensors.torch.save_file
        save({key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in named.items()}, name)
    else:
        columns = {f"x{i}": X[:, i] for i in range(X.shape[1])}
        table = pa.table({**columns, "y": y, **more})
        to = pa.csv.write_csv if suffix == ".csv" else pa.parquet.write_table
        to(table, name)
    return name


def data(train, **options):
    return ArraysDataModule(train, **{"batch_size": 10, "val_size": 20, **options})


def refused(act, *told):
    with pytest.raises(InputError) as caught:
        act()
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    for part in told:
        assert part in message
    return message
