"""The loader under Lightning with any model: epochs, and resuming after a kill."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from onelayer.data.loader import ResidentLoader
from tests.support.small import SAFELY

N, BATCH, EPOCHS = 20, 3, 3


class Plain(LightningModule):
    """Somebody's model, which knows nothing of onelayer; its result depends on every order."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        torch.nn.init.constant_(self.layer.weight, 0.1)
        torch.nn.init.zeros_(self.layer.bias)
        self.seen: list[list[int]] = []

    def training_step(self, batch):
        X, y = batch
        self.seen.append((X[:, 0] * N).round().int().tolist())
        return torch.nn.functional.cross_entropy(self.layer(X), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


class SaveAndKill(Callback):
    """Save every other update into one file, until the kill."""

    def __init__(self, path, update):
        self.path, self.update = path, update

    def on_train_batch_end(self, trainer, module, outputs, batch, i):
        if trainer.global_step % 2 == 0:
            trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.update:
            raise InterruptedError


def loader():
    rows = torch.arange(N)
    return ResidentLoader(torch.stack([rows / N, (rows % 5) / 5], 1), rows % 3, BATCH, seed=4)


def fit(folder, *callbacks, resume=None):
    model = Plain()
    trainer = Trainer(
        max_epochs=EPOCHS,
        callbacks=list(callbacks),
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader(), ckpt_path=resume, **SAFELY)
    return model


def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(tmp_path):
    undisturbed = fit(tmp_path)
    orders = [[row for batch in undisturbed.seen[i : i + 7] for row in batch] for i in (0, 7, 14)]
    assert [sorted(order) for order in orders] == [[*range(N)]] * 3
    assert orders[0] != orders[1] != orders[2] != orders[0]

    for update in (2, 9, 13, 16):
        path = tmp_path / f"{update}.ckpt"
        with pytest.raises(InterruptedError):
            fit(tmp_path, SaveAndKill(path, update))
        resumed = fit(tmp_path, resume=path)
        saved = update // 2 * 2
        assert resumed.seen == undisturbed.seen[saved:]
        for a, b in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
            assert torch.equal(a, b)
