"""The contenders: each trains for a number of updates and says how long one took.

All see the same images, batch size and learning rate. A contender is a function of (task, updates)
that returns the seconds of those updates in steady state: set-up, imports and the first updates are
outside the clock, logging, curves, checkpoints and whatever else a run does while it trains inside.

Where the task's images lie on a GPU, everybody trains there, except scikit-learn.
"""

from __future__ import annotations

import io
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""What `onelayer fit` would choose, too."""
LR = 0.01
L2 = 0.001
WARM_UP = 50


@dataclass(frozen=True)
class Task:
    """What is trained: standardised images X (n, 3072), labels, where they lie, and how."""

    X: Tensor
    y: Tensor
    pictures: Tensor  # uint8 (n, 3072), for the customary pipeline
    hidden: int
    batch_size: int = 100
    members: int = 1

    def batches(self, updates: int):
        """Index batches in shuffled order, as many as are needed."""
        generator = torch.Generator().manual_seed(0)
        given = 0
        while given < updates:
            order = torch.randperm(len(self.X), generator=generator).to(self.X.device)
            for rows in order.split(self.batch_size):
                if given == updates:
                    return
                given += 1
                yield rows


def now(task: Task) -> float:
    """Seconds, when the GPU has done what it was given."""
    if task.X.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def clock(task: Task, updates: int, update: Callable[[Tensor, Tensor], None]) -> float:
    """Seconds of a bare loop, after a warm-up."""
    for rows in task.batches(WARM_UP):
        update(task.X[rows], task.y[rows])
    start = now(task)
    for rows in task.batches(updates):
        update(task.X[rows], task.y[rows])
    return now(task) - start


def bare_analytic(task: Task, updates: int) -> float:
    """(a) A loop written by hand: analytic gradient, updated in place."""
    k, d, h, n = 10, task.X.shape[1], task.hidden, task.batch_size
    there = {"device": task.X.device}
    W1 = torch.randn(h or k, d, **there) * d**-0.5
    b1 = torch.zeros(h or k, **there)
    W2, b2 = torch.randn(k, h or 1, **there) * max(h, 1) ** -0.5, torch.zeros(k, **there)
    rows = torch.arange(n, **there)
    shrink = 1 - 2 * LR * L2

    @torch.no_grad()
    def linear(X: Tensor, y: Tensor) -> None:
        G = torch.addmm(b1, X, W1.T).softmax(1)
        G[rows, y] -= 1
        G /= n
        W1.addmm_(G.T, X, beta=shrink, alpha=-LR)
        b1.sub_(G.sum(0), alpha=LR)

    @torch.no_grad()
    def with_hidden(X: Tensor, y: Tensor) -> None:
        H = torch.addmm(b1, X, W1.T).relu_()
        G = torch.addmm(b2, H, W2.T).softmax(1)
        G[rows, y] -= 1
        G /= n
        D = (G @ W2).mul_(H > 0)
        W2.addmm_(G.T, H, beta=shrink, alpha=-LR)
        b2.sub_(G.sum(0), alpha=LR)
        W1.addmm_(D.T, X, beta=shrink, alpha=-LR)
        b1.sub_(D.sum(0), alpha=LR)

    return clock(task, updates, with_hidden if h else linear)


def network(hidden: int) -> nn.Module:
    """The network as people write it."""
    if not hidden:
        return nn.Linear(3072, 10)
    return nn.Sequential(nn.Linear(3072, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def bare_autograd(task: Task, updates: int) -> float:
    """(b) A bare loop with nn.Linear, cross_entropy and SGD."""
    model = network(task.hidden).to(task.X.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=2 * L2)

    def update(X: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()

    return clock(task, updates, update)


def heads(task: Task, updates: int) -> float:
    """(f) The population as a ModuleDict of networks on shared batches."""
    models = nn.ModuleDict({str(i): network(task.hidden) for i in range(task.members)})
    models.to(task.X.device)
    optimizer = torch.optim.SGD(models.parameters(), lr=LR, weight_decay=2 * L2)

    def update(X: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        sum(F.cross_entropy(model(X), y) for model in models.values()).backward()
        optimizer.step()

    return clock(task, updates, update)


def customary_lightning(task: Task, updates: int) -> float:
    """(c) Lightning as people write it: transforms, DataLoader with 2 workers, CyclicLR a step."""
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import TensorBoardLogger
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Pictures(Dataset):
        """What torchvision.datasets.CIFAR10 gives: a PIL image, then the transforms."""

        data = task.pictures.view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous().numpy()
        labels = task.y.tolist()
        transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))]
        )

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return self.transform(Image.fromarray(self.data[i])).flatten(), self.labels[i]

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(task.hidden)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=LR, weight_decay=2 * L2)
            cycle = torch.optim.lr_scheduler.CyclicLR(
                optimizer, 1e-5, LR, step_size_up=500, cycle_momentum=False
            )
            return [optimizer], [{"scheduler": cycle, "interval": "step"}]

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == WARM_UP:
                self.start = now(task)

        def on_train_end(self, *_: Any) -> None:
            self.seconds = now(task) - self.start

    timer = Clock()
    loader = DataLoader(Pictures(), batch_size=task.batch_size, shuffle=True, num_workers=2)
    silent = redirect_stdout(io.StringIO())  # the bar is drawn all the same
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), silent:
        warnings.simplefilter("ignore")
        Trainer(
            devices=1,
            max_steps=WARM_UP + updates,
            logger=TensorBoardLogger(folder),
            callbacks=[timer],
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(Model(), loader)
    return timer.seconds


def onelayer(
    task: Task,
    updates: int,
    curves: bool = True,
    bar: bool = True,
    shift: int | None = None,
    **arguments: bool,
) -> float:
    """(d) ``onelayer fit`` as shipped: TensorBoard, bar, TriangularLR, curves, checkpoints on.

    One cycle; with n_s = 1000 updates, four epochs of 50,000 images (the course's rule for n_s),
    and ten measurements of all images. The clock is Results' own, the seconds of summary.json:
    from the start of training, first measurement included, to the last checkpoint.
    """
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.loggers import TensorBoardLogger

    from onelayer.data.augment import READY_AFTER, FlipAndShift
    from onelayer.data.loader import ResidentLoader
    from onelayer.study.run import make_trainer
    from onelayer.training.curves import Curves
    from onelayer.training.module import OneLayer
    from onelayer.training.results import Results
    from onelayer.training.saving import Checkpoints
    from onelayer.training.schedule import TriangularLR

    changes = None if shift is None else FlipAndShift((3, 32, 32), len(task.X), 0, True, shift)
    for epoch in range(READY_AFTER + 1 if changes else 0):  # then all images have been made ready
        changes(task.X, torch.arange(1), epoch)

    def loader() -> ResidentLoader:
        return ResidentLoader(task.X, task.y, task.batch_size, augment=changes)

    class Measured(LightningDataModule):
        name, classes = "cifar10", tuple("0123456789")

        def train_dataloader(self) -> ResidentLoader:
            return loader()

        def tensors(self, split: str) -> tuple[Tensor, Tensor] | None:
            return (task.X, task.y) if split == "train" else None

    results = Results()
    schedule = TriangularLR(1e-5, LR, step_size=updates // 2)
    seeds = list(range(task.members))
    model = OneLayer(task.hidden, l2=L2, seeds=seeds, **arguments)
    silent, quiet = redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, silent, quiet:
        logger = TensorBoardLogger(Path(folder), default_hp_metric=False)
        callbacks = [schedule, results, Curves(), Checkpoints()]
        trainer = make_trainer(updates, callbacks, logger, enable_progress_bar=bar)
        if curves:
            trainer.fit(model, datamodule=Measured())
        else:  # nothing to measure by
            trainer.fit(model, loader())
    assert results.summary is not None
    return float(results.summary["seconds"])


def without_curves(task: Task, updates: int) -> float:
    """(d) with everything on but the measurements, which no other contender makes."""
    return onelayer(task, updates, curves=False)


def flipped_and_shifted(task: Task, updates: int) -> float:
    """(d) as shipped, with flips and shifts of up to 2 pixels, as they are after four epochs."""
    return onelayer(task, updates, shift=2)


def one_at_a_time(task: Task, updates: int) -> float:
    """(d) without curves, blocks and the bar: Lightning's automatic optimisation of the module.

    Lightning redraws its bar at every batch then, which takes as long as an update.
    """
    return onelayer(task, updates, curves=False, bar=False, fused=False)


def without_graphs(task: Task, updates: int) -> float:
    """(d) without curves, and on a GPU kernel by kernel."""
    return onelayer(task, updates, curves=False, cuda_graphs=False)


def sklearn(task: Task, updates: int) -> float:
    """(e) scikit-learn at equal batch size, on the CPU: SGDClassifier (log loss), MLPClassifier."""
    import numpy as np
    from sklearn.linear_model import SGDClassifier
    from sklearn.neural_network import MLPClassifier

    X, y, classes = task.X.cpu().numpy(), task.y.cpu().numpy(), np.arange(10)
    model: Any
    if task.hidden:
        model = MLPClassifier((task.hidden,), solver="sgd", alpha=L2, batch_size=task.batch_size,
                              learning_rate_init=LR, momentum=0.0)  # fmt: skip
    else:
        model = SGDClassifier(loss="log_loss", alpha=L2, learning_rate="constant", eta0=LR)
    for rows in task.batches(3):
        model.partial_fit(X[rows.cpu()], y[rows.cpu()], classes=classes)
    start = time.perf_counter()
    for rows in task.batches(updates):
        model.partial_fit(X[rows.cpu()], y[rows.cpu()])
    return time.perf_counter() - start
