"""Changed images: what comes out, and that it depends on (seed, epoch, row) alone."""

import pytest
import torch
from torch.nn.functional import pad

from onelayer.core.errors import InputError
from onelayer.data.augment import READY_AFTER, Augment, FlipAndShift, Transformed, mirror
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.features import RawFeatures, Statistics, no_statistics
from onelayer.data.loader import ResidentLoader

SHAPE, D, N = (3, 6, 7), 126, 1500


def images(n=N, dtype=torch.float32):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def by_hand(image, way, shift, border):
    """One image, flipped and shifted with slices alone."""
    flip, place = divmod(way, (2 * shift + 1) ** 2)
    down, right = (i - shift for i in divmod(place, 2 * shift + 1))
    image = image.view(SHAPE).flip(-1) if flip else image.view(SHAPE)
    wide = pad(image[None], (shift,) * 4, "reflect" if border == "reflect" else "constant")[0]
    y, x = shift - down, shift - right
    return wide[:, y : y + SHAPE[1], x : x + SHAPE[2]].flatten()


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_images_are_flipped_and_shifted(shift, border, monkeypatch):
    change, X = FlipAndShift(SHAPE, N, 0, True, shift, border), images()
    rows, ways = torch.randperm(N), change.ways(2)
    expected = torch.stack([by_hand(X[r], int(ways[r]), shift, border) for r in rows])
    assert torch.equal(change(X, rows, 2), expected)
    raw = RawFeatures(X, no_statistics(D), torch.float32)
    assert torch.equal(change(raw, rows, 2), expected)
    for whole in (0.0, 0.5):  # of the free memory: images are never made ready, or they are
        monkeypatch.setattr("onelayer.data.augment.WHOLE", whole)
        for epoch in range(READY_AFTER + 1):
            change(X, rows, epoch)
        assert (change._whole is not None) == (whole > 0)
        found = change(X, rows, 2)
        assert torch.equal(found, expected)
        assert torch.equal(found.signbit(), expected.signbit())  # no zero is -0
    assert ways.unique().numel() == 2 * (2 * shift + 1) ** 2  # every way is drawn


def test_a_flip_is_the_mirror_image():
    change, X = FlipAndShift(SHAPE, N, 0, flip=True), images()
    flipped = change.ways(0).bool().unsqueeze(1)
    assert torch.equal(change(X, torch.arange(N), 0), torch.where(flipped, mirror(X, SHAPE), X))
    assert 0.4 < flipped.double().mean() < 0.6


def test_draws_depend_on_seed_epoch_and_row_alone():
    X, rows = images(), torch.arange(N)
    whole = FlipAndShift(SHAPE, N, 5, True, 1)(X, rows, 3)
    change = FlipAndShift(SHAPE, N, 5, True, 1)
    change(X, rows[:7], 9)  # another epoch before
    parts = [change(X, r, 3) for r in rows.split(33)]
    assert torch.equal(torch.cat(parts), whole)
    for seed, epoch in ((5, 4), (6, 3)):
        assert not torch.equal(FlipAndShift(SHAPE, N, seed, True, 1)(X, rows, epoch), whole)


def test_double_precision_stays_double():
    changed = FlipAndShift(SHAPE, N, 0, True, 2)(images(dtype=torch.float64), torch.arange(N), 0)
    assert changed.dtype == torch.float64


def batches(loader, epoch=0):
    loader.set_epoch(epoch)
    return list(loader)


def test_a_loader_changes_the_rows_it_gives_whatever_their_batch_or_process():
    X, y = images(), torch.arange(N)

    def loader(size, **options):
        return ResidentLoader(X, y, size, augment=FlipAndShift(SHAPE, N, 0, True, 2), **options)

    def by_row(given):
        return {int(r): x for X, y in given for x, r in zip(X, y, strict=True)}

    whole = by_row(batches(loader(40)))
    assert not all(torch.equal(x, X[r]) for r, x in whole.items())
    shares = [loader(64, rank=rank, world_size=2) for rank in (0, 1)]
    for others in (by_row(batches(loader(7))), by_row([*batches(shares[0]), *batches(shares[1])])):
        assert all(torch.equal(others[r], x) for r, x in whole.items())
    later = loader(40)
    later.load_state_dict({"epoch": 0, "position": 4})
    assert all(torch.equal(whole[r], x) for r, x in by_row(later).items())


class Noise(torch.nn.Module):
    """A transform that draws, and wants pixels from 0 to 1."""

    def forward(self, image):
        assert image.min() >= -1e-6
        assert image.max() <= 1 + 1e-6
        return (image + torch.rand(())).clamp(max=1)


def test_a_transform_gets_pixels_and_draws_by_row():
    statistics = Statistics(torch.full((D,), 0.5).double(), torch.full((D,), 0.25).double())
    X, rows = (torch.rand(N, D) - 0.5) / 0.25, torch.arange(N)
    change = Transformed(Noise(), SHAPE, N, 0, statistics)
    before = torch.random.get_rng_state()
    whole = change(X, rows, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(torch.cat([change(X, r, 1) for r in rows.split(30)]), whole)
    assert not torch.equal(change(X, rows, 2), whole)


def test_a_transform_must_work_and_keep_the_shape():
    with pytest.raises(InputError, match=r"Flatten made \(126,\) of an image \(3, 6, 7\)"):
        Transformed(torch.nn.Flatten(0), SHAPE, N, 0, no_statistics(D))
    with pytest.raises(InputError, match=r"Linear failed on an image \(3, 6, 7\): RuntimeError"):
        Transformed(torch.nn.Linear(3, 4), SHAPE, N, 0, no_statistics(D))


def test_only_training_batches_are_changed():
    arguments = {"source": "synthetic", "limit": 50, "val_size": 50, "batch_size": 50}
    plain = CIFAR10DataModule(**arguments)
    data = CIFAR10DataModule(**arguments, flip=True, shift=2)
    for split in ("train", "val", "test"):
        assert torch.equal(data.tensors(split)[0], plain.tensors(split)[0])
    for ours, theirs in ((d.val_dataloader(), d.test_dataloader()) for d in (data, plain)):
        assert not ours.augment
        assert not theirs.augment
    (X, y), (X_, y_) = next(iter(data.train_dataloader())), next(iter(plain.train_dataloader()))
    assert torch.equal(y, y_)
    assert not torch.equal(X, X_)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"flip": 1}, "flip must be one of True, False"),
        ({"shift": -1}, "shift must be a whole number >= 0"),
        ({"shift": 6}, "shift must be a whole number from 0 to 5"),
        ({"border": "wrap"}, "border must be one of reflect, zero"),
        ({"transform": 3}, "transform must be something to call"),
    ],
)
def test_what_is_refused(asked, told):
    with pytest.raises(InputError, match=told):
        Augment(**asked).check(SHAPE)


def test_samples_that_are_no_images_are_refused():
    with pytest.raises(InputError, match=r"data.flip needs images .* shape \(768,\)"):
        Augment(flip=True).check((768,))
    Augment().check((768,))
