"""TensorBoard's screens as a browser shows them."""

import re

import pytest
from PIL import Image

from onelayer.__main__ import main
from tests.support import browser

FIT = [
    "fit", "--data.source=synthetic", "--data.limit=60", "--data.val_size=200",
    "--data.batch_size=10", "--schedule.step_size=10", "--schedule.cycles=2",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
SHOWN = ["data", "hidden", "l2", "max_lr", "updates"]
TO_TICK = ["base_lr", "batch_size", "cycles", "seconds", "seeds", "step_size"]
SWEEP = ["fit/version_0/l2=0", "fit/version_0/l2=0.1", "fit/version_1"]
SCREENS = {
    "timeseries": [
        "accuracy\n2 cards", "accuracy\n/train", "accuracy\n/val",
        "cost\n2 cards", "cost\n/train", "cost\n/val", *SWEEP,
    ],
    "hparams": ["\n".join([*SHOWN, "accuracy/val", "test/accuracy"]), *SWEEP],
    "images": ["tag:\nweights", "step\n40", *SWEEP],
}  # fmt: skip


@pytest.fixture
def server(tmp_path):
    """TensorBoard over a sweep and a network with hidden units; its address."""
    from tensorboard import program

    for network in (["--model.hidden=0", "--model.l2=[0,0.1]"], ["--model.hidden=12"]):
        assert main([*FIT, *network, f"--trainer.default_root_dir={tmp_path}"]) == 0
    board = program.TensorBoard()
    board.configure(logdir=str(tmp_path / "lightning_logs"), host="127.0.0.1", port=0)
    return board.launch()


@pytest.mark.browser
@pytest.mark.skipif(browser.find() is None, reason=f"no browser: none of {browser.NAMES} on PATH")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_screens_show_what_people_compare_runs_by(server, tmp_path):
    texts = browser.look(server, SCREENS, tmp_path)
    for screen, words in SCREENS.items():
        assert [word for word in words if word not in texts[screen]] == []
        with Image.open(tmp_path / f"{screen}.png") as picture:
            assert len(picture.convert("RGB").getcolors(10**6)) > 100  # it is not blank

    groups = re.findall(r"^(\w+)\n\d cards$", texts["timeseries"], re.MULTILINE)
    assert groups == ["accuracy", "cost", "loss", "test", "weights"]  # lr has one card
    left = texts["hparams"].partition("Metrics\n")[0]
    boxes = re.findall(r"^([a-z]\w+)$", left.partition("Hyperparameters\n")[2], re.MULTILINE)
    assert boxes == SHOWN + TO_TICK
    assert texts["images"].count("tag:\nweights") == 3
