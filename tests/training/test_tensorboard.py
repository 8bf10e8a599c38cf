"""TensorBoard: what people see of a run, whatever kills and clocks did to it."""

import io

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from onelayer.data.augment import Augment
from onelayer.training.curves import Curves
from onelayer.training.folder import LAST, PREVIOUS
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints
from onelayer.training.schedule import TriangularLR
from onelayer.training.trainer import run_logger
from onelayer.training.weight_images import is_picture, picture
from tests.support.events import points_of
from tests.support.small import CLASSES, PIXELS, SmallData, fit, warned

QUANTITIES = ("accuracy", "cost", "loss")
CURVES = {f"{q}/{split}" for q in QUANTITIES for split in ("train", "val")}
TEST = {f"test/{q}" for q in QUANTITIES}
REPORT = {"test/balanced_accuracy", "test/calibration_error"}  # of the best λ


class Pictures(SmallData):
    """The small data as pictures of 2 by 2 pixels."""

    shape = (3, 2, 2)


def network(**arguments):
    return OneLayer(**{"hidden": 4, "inputs": PIXELS, "classes": CLASSES, **arguments})


def train(run, model=None, data=None, resume=None, steps=40, logger=None, test=True):
    """Train and test in a run's folder as the command line and the report do."""
    data = data or Pictures()
    callbacks = [TriangularLR(0.01, 0.3, step_size=10), Results(), Curves(), Checkpoints(every=7)]
    step = torch.load(resume, weights_only=True)["global_step"] if resume else -1
    logger = logger or run_logger(run, run.parent, step)
    model = fit(
        run, model or network(), data, callbacks, steps,
        logger=logger, log_every_n_steps=3, ckpt_path=resume,
    )  # fmt: skip
    if test:
        model.trainer.test(model, data, verbose=False)
    return model


def hparams_of(folder):
    """Columns, metrics, and values of a run's row in HParams."""
    content = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    session = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    values = {
        name: value.string_value if value.HasField("string_value") else value.number_value
        for name, value in session.session_start_info.hparams.items()
    }
    return [metric.name.tag for metric in experiment.metric_infos], values


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    run = tmp_path_factory.mktemp("sweep") / "run"
    return run, train(run, network(l2=[0.0, 0.1], seeds=[0, 1]))


def test_a_sweep_has_a_run_for_each_l2_with_the_means_over_its_seeds(sweep):
    run, model = sweep
    points = points_of(run)
    best = f"l2={model.members[model.choose().members[0]].l2:g}"
    assert set(points) == {"lr", *(f"{best}: {tag}" for tag in REPORT)} | {
        f"l2={l2}: {tag}" for l2 in ("0", "0.1") for tag in CURVES | TEST | {"weights"}
    }
    rows = next(c for c in model.trainer.callbacks if isinstance(c, Curves)).rows
    for l2 in (0.0, 0.1):
        for tag in CURVES | TEST:
            name, split = tag.split("/") if tag in CURVES else tag.split("/")[::-1]
            of = [row for row in rows if (row.l2, row.split) == (l2, split)]
            means = {s: np.mean([getattr(r, name) for r in of if r.step == s]) for s in
                     dict.fromkeys(r.step for r in of)}  # fmt: skip
            assert points[f"l2={l2:g}: {tag}"] == [
                (step, pytest.approx(mean, rel=1e-6)) for step, mean in means.items()
            ]


def test_one_l2_is_the_run_itself(tmp_path):
    train(tmp_path / "run", network(seeds=[0, 1]))
    assert set(points_of(tmp_path / "run")) == {"lr", "weights"} | CURVES | TEST | REPORT
    assert not list((tmp_path / "run").glob("l2=*"))


def test_hparams_has_the_columns_by_which_runs_are_compared_and_a_row_per_l2(sweep):
    run, model = sweep
    seconds = next(c for c in model.trainer.callbacks if isinstance(c, Results)).summary["seconds"]
    for l2 in (0.0, 0.1):
        metrics, values = hparams_of(run / f"l2={l2:g}")
        assert metrics == [
            "accuracy/val", "test/accuracy", "cost/val", "test/cost", "loss/val", "test/loss",
        ]  # fmt: skip
        assert values == {
            "data": "small", "hidden": 4, "l2": l2, "seeds": "0, 1", "base_lr": 0.01,
            "max_lr": 0.3, "step_size": 10, "cycles": 2, "batch_size": 8, "updates": 40,
            "seconds": seconds,
        }  # fmt: skip
    assert "hparams" not in EventAccumulator(str(run)).Reload().summary_metadata  # the sweep itself


def test_hparams_names_the_regularisers_that_are_used(tmp_path):
    data = SmallData()
    data.augment = Augment(flip=True)  # no batch of these is changed
    train(tmp_path / "run", network(dropout=0.5), data=data)
    values = hparams_of(tmp_path / "run")[1]
    assert (values["dropout"], values["flip"]) == (0.5, True)
    assert not {"label_smoothing", "shift"} & values.keys()


def test_built_in_images_are_named_so(tmp_path):
    data = Pictures()
    data.name = "synthetic"
    train(tmp_path / "run", data=data)
    assert hparams_of(tmp_path / "run")[1]["data"] == "built-in synthetic images, NOT CIFAR-10"
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "built-in synthetic images, NOT CIFAR-10" in text


def test_training_and_validation_lie_over_each_other_in_one_chart(sweep):
    run, _ = sweep
    events = EventAccumulator(str(run)).Reload()
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    for name in QUANTITIES:
        assert f"{name}/train".encode() in layout
        assert f"{name}/val".encode() in layout


# ---- pictures


def test_the_weights_are_pictured_when_a_cycle_and_the_training_end(tmp_path):
    train(tmp_path / "run", steps=47)
    assert [step for step, _ in points_of(tmp_path / "run")["weights"]] == [20, 40, 47]


def test_a_training_that_is_stopped_early_is_pictured_at_its_end(tmp_path):
    stop = EarlyStopping("train/cost", patience=0, min_delta=1e9, check_on_train_epoch_end=True)
    fit(tmp_path, network(), Pictures(), [TriangularLR(0.01, 0.3, step_size=100), stop], 400,
        logger=run_logger(tmp_path / "run", tmp_path))  # fmt: skip
    assert [step for step, _ in points_of(tmp_path / "run")["weights"]] == [16]


@pytest.mark.parametrize("shape", [(), (12,), (3, 4), (3, 3, 3)])
def test_other_data_than_images_have_no_pictures(tmp_path, shape):
    data = SmallData()
    data.shape = shape
    train(tmp_path / "run", data=data, steps=20)
    assert "weights" not in points_of(tmp_path / "run")


def test_of_more_than_eight_l2_the_best_alone_is_pictured(tmp_path):
    l2s = [0.0, *(10.0**i for i in range(-9, -1))]
    model = train(tmp_path / "run", network(l2=l2s), steps=20)
    (pictured,) = [tag for tag in points_of(tmp_path / "run") if tag.endswith("weights")]
    best = model.members[model.choose().members[0]].l2
    assert pictured == f"l2={best:g}: weights"


def test_a_picture_shows_each_unit_scaled_to_its_own_range():
    W = torch.zeros(2, 12)
    W[0, 0], W[1, 11] = 5.0, -1e-3  # red above left; blue below right, darkest
    first, second = picture(W, (3, 2, 2))[3:67, 3:67], picture(W, (3, 2, 2))[3:67, 70:134]
    assert first[0, 0].tolist() == [255, 0, 0]
    assert first[40, 40].tolist() == [0, 0, 0]
    assert second[63, 63].tolist() == [255, 255, 0]
    assert second[0, 0].tolist() == [255, 255, 255]


def test_a_picture_names_classes_and_shows_a_hundred_units_at_most():
    assert picture(torch.zeros(101, 3072), (3, 32, 32)).shape == (353, 353, 3)
    plain, named = (picture(torch.zeros(10, 3072), (3, 32, 32), n) for n in ((), ["car"] * 10))
    assert named.shape[0] == plain.shape[0] + 2 * 14
    assert (named[67 : 67 + 14] < 128).any()


def test_the_picture_is_of_the_first_network_that_did_not_diverge(tmp_path):
    model = network(seeds=[0, 1])
    with torch.no_grad():
        model.weights[0][0] = float("nan")
    with warned("diverged: member 0"):
        train(tmp_path / "run", model, steps=20, test=False)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    png = events.Images("weights")[-1].encoded_image_string
    expected = picture(model.weights[0][1], (3, 2, 2))
    assert (np.asarray(Image.open(io.BytesIO(png))) == expected).all()


# ---- resumed runs


@pytest.fixture(scope="module", params=[{}, {"l2": [0.0, 0.1]}], ids=["one", "sweep"])
def undisturbed(request, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(run, network(**request.param))
    return request.param, points_of(run)


def cut_off(run, arguments):
    """Train 40 updates, and return the checkpoint of update 35."""
    train(run, network(**arguments), test=False)
    return run / "checkpoints" / PREVIOUS


def test_a_resumed_run_has_the_points_of_one_that_was_not_stopped(tmp_path, undisturbed):
    arguments, expected = undisturbed
    train(tmp_path / "run", network(**arguments), resume=cut_off(tmp_path / "run", arguments))
    assert points_of(tmp_path / "run") == expected


def test_a_start_without_a_checkpoint_begins_anew(tmp_path, undisturbed):
    arguments, expected = undisturbed
    train(tmp_path / "run", network(**arguments), steps=6, test=False)
    train(tmp_path / "run", network(**arguments))
    assert points_of(tmp_path / "run") == expected


def test_a_checkpoint_of_another_run_cuts_nothing_of_this_folder(tmp_path):
    run = tmp_path / "run"
    train(run, steps=20)
    before = points_of(run)
    logger = TensorBoardLogger(tmp_path, name="", version="other")
    train(tmp_path / "other", resume=run / "checkpoints" / LAST, logger=logger)
    assert points_of(run) == before


def test_what_others_logged_stays_up_to_the_checkpoint(tmp_path):
    run = tmp_path / "run"
    checkpoint = cut_off(run, {})
    logger = run_logger(run, tmp_path, 30)
    for step in (34, 35, 36):
        logger.experiment.add_scalar("mine", step, step)
    logger.experiment.close()
    train(run, resume=checkpoint)
    assert points_of(run)["mine"] == [(34, 34.0), (35, 35.0)]


@pytest.mark.parametrize(
    ("shape", "tile"), [((1, 28, 28), (28, 28)), ((5, 9, 7), (9, 35)), ((3, 40, 20), (40, 20))]
)
def test_weights_of_images_of_any_side_and_channels_are_pictures(shape, tile):
    d = shape[0] * shape[1] * shape[2]
    W = torch.zeros(20, d)
    W.view(20, *shape)[:, :, 0, 0] = 1  # the upper left corner of every channel
    assert is_picture(shape, d)
    sheet = picture(W, shape)
    high, wide = tile
    one = sheet[3 : 3 + high, 3 : 3 + wide]
    assert one.shape == (high, wide, 3)
    lit = [0] if shape[0] in (1, 3) else [shape[2] * c for c in range(shape[0])]
    assert one[0].nonzero()[0].tolist() == [x for x in lit for _ in range(3)]
    assert not one[1:].any()
