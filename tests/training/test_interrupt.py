"""SIGINT and SIGTERM in mid-training."""

import math
import signal
import threading

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.curves import Curves
from onelayer.training.folder import LAST
from onelayer.training.interrupt import Stopped
from onelayer.training.module import OneLayer
from onelayer.training.observer import Observer
from onelayer.training.saving import Checkpoints
from onelayer.training.schedule import TriangularLR
from tests.support.small import CLASSES, PIXELS, SmallData, fit, trainer


class Signal(Observer):
    """Sends this process a signal when the block that ends at ``step`` has been trained."""

    def __init__(self, signum, step):
        self.signum, self.step = signum, step

    def next_due(self, step):
        return self.step if step < self.step else math.inf

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            signal.raise_signal(self.signum)


def train(folder, *more, **kwargs):
    callbacks = [TriangularLR(0.01, 0.3, step_size=20), Curves(), Checkpoints(every=1000), *more]
    logger = TensorBoardLogger(folder, name="", version="run", default_hp_metric=False)
    model = OneLayer(4, l2=0.01, inputs=PIXELS, classes=CLASSES)
    return fit(folder, model, callbacks=callbacks, max_steps=40, logger=logger, **kwargs)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [5, 24], ids=["in an epoch", "at an epoch's end"])
def test_a_signal_saves_and_stops_and_the_rest_gives_the_same_bits(tmp_path, signum, step):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as stop:
        train(tmp_path, Signal(signum, step))
    last = tmp_path / "run" / "checkpoints" / LAST
    assert (stop.value.signum, stop.value.checkpoint) == (signum, str(last))
    assert read_checkpoint(last)["global_step"] == stop.value.step
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers

    model = OneLayer(4, l2=0.01, inputs=PIXELS, classes=CLASSES)
    callbacks = [TriangularLR(0.01, 0.3, step_size=20), Curves(), Checkpoints(every=1000)]
    trainer(tmp_path, 40, callbacks).fit(model, SmallData(), ckpt_path=last)
    undisturbed = train(tmp_path / "undisturbed")
    for ours, expected in zip(model.weights, undisturbed.weights, strict=True):
        assert torch.equal(ours, expected)


def test_a_second_signal_acts_at_once(tmp_path):
    class Twice(Signal):
        def on_train_batch_start(self, trainer, *_):
            # Not os.kill: another thread may take it, a little later. Of several that come at once
            # some may count as one; the second that is noticed ends this.
            for _ in range(4):
                signal.raise_signal(signal.SIGINT)

    # A KeyboardInterrupt in an earlier test leaves it ignored, which Lightning does.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(SystemExit) as ending:  # Lightning's way to end after KeyboardInterrupt
        train(tmp_path, Twice(signal.SIGINT, 5))
    assert isinstance(ending.value.__context__, KeyboardInterrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning left it ignored
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_training_in_another_thread_leaves_signals_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    seen = []

    class Handlers(Callback):
        def on_train_batch_end(self, *_):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=train, args=(tmp_path, Handlers()))
    thread.start()
    thread.join()
    assert set(seen) == {before}
