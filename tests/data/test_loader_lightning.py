"""The loader with a module that does not know it: a killed run is resumed to the same bits."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.small import SAFELY, Plain, SmallData, trainer


class Momentum(Plain):
    """Its result depends on the order of all batches."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


class SaveAndKill(Callback):
    """Save after every other update into one file, until the kill."""

    def __init__(self, path, update):
        self.path, self.update = path, update

    def on_train_batch_end(self, trainer, module, outputs, batch, i):
        if trainer.global_step % 2 == 0:
            trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.update:
            raise InterruptedError


def fit(folder, *callbacks, resume=None):
    """Train three epochs of eight updates."""
    torch.manual_seed(0)
    model, loader = Momentum(), SmallData().train_dataloader()
    run = trainer(folder, callbacks=callbacks, max_epochs=3)
    run.fit(model, loader, ckpt_path=resume, **SAFELY)
    return model


def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(tmp_path):
    undisturbed = fit(tmp_path)
    for update in (2, 9, 13, 16, 17):
        path = tmp_path / f"{update}.ckpt"
        with pytest.raises(InterruptedError):
            fit(tmp_path, SaveAndKill(path, update))
        resumed = fit(tmp_path, resume=path)
        assert len(resumed.rates) == 24 - update // 2 * 2
        for a, b in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
            assert torch.equal(a, b)
