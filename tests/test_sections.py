"""Options that a subcommand cannot use: named where a config has them, refused where typed."""

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch.optim import SGD

from onelayer.__main__ import main
from onelayer.cli.parser import Parser
from onelayer.cli.sections import every_option, usable
from onelayer.configs import shipped_configs
from onelayer.core.errors import InputError
from onelayer.data.arrays import ArraysDataModule
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.training.module import OneLayer
from onelayer.training.schedule import TriangularLR
from onelayer.training.trainer import device_of
from tests.study.tiny import TINY
from tests.support.own import arrays
from tests.support.small import CLASSES, PIXELS, SmallData, fit, trainer, warned

DATA = ["--data.source=synthetic", "--data.limit=40", "--data.batch_size=10"]
SHORT = ["--schedule.step_size=3", "--schedule.cycles=1", "--trainer.enable_progress_bar=false"]
COMMANDS = {
    "fit": [*DATA, *SHORT, "--model.hidden=2", "--trainer.max_steps=6"],
    "range": [*DATA, "--range.steps=10", "--range.points=2", "--model.hidden=2"],
    "search": [*(word for word in TINY if "val_size" not in word), "--search.stages=1"],
    "solve": [DATA[0], "--data.limit=100", "--solve.l2=[1.0]"],
}


@pytest.mark.parametrize(
    ("command", "config", "named"),
    [
        ("range", "three_cycles", "schedule.*, curves.*"),
        ("range", "bonus", "schedule.*, test.*"),
        ("search", "three_cycles", "model.l2"),
        ("search", "bonus", "model.l2, model.seeds"),
        ("solve", "linear", ""),
        ("solve", "three_cycles", "model.hidden, model.l2, schedule.*, curves.*"),
        ("solve", "search", "search.*"),
        ("fit", "search", "search.*, final.*"),
        ("fit", "solve", "solve.*"),
    ],
)
def test_any_config_works_for_every_command(command, config, named, capfd):
    assert main([command, "-c", config, *COMMANDS[command]]) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if "does not use" in line]
    assert len(told) == bool(named)
    if named:
        assert told[0].startswith(f"onelayer: warning: {command} does not use ")
        assert named in told[0].replace("model.*", "model.hidden, model.l2")


@pytest.mark.parametrize("command", ["fit", "range", "search", "solve", "report"])
def test_no_shipped_config_is_refused_for_its_options(command, capfd):
    for config in shipped_configs():
        assert main([command, "-c", config, "--output=x", "--trainer.nothing=1"]) == 2
        error = capfd.readouterr().err
        assert "--trainer.nothing" in error or "--output" in error
        assert "not accepted" not in error
        assert "does not accept" not in error


def test_the_config_of_a_run_names_only_what_was_set(capfd):
    assert main(["fit", *COMMANDS["fit"]]) == 0
    config = "lightning_logs/fit/version_0/config.yaml"
    capfd.readouterr()
    assert main(["solve", "-c", config, *COMMANDS["solve"]]) == 0
    [told] = [line for line in capfd.readouterr().err.splitlines() if "does not use" in line]
    assert "model.hidden" in told
    assert "trainer.max_steps" in told
    assert "trainer.accelerator" not in told


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        (["solve", "--schedule.step_size=3"], "--schedule.step_size"),
        (["range", "--schedule.max_lr=3"], "--schedule.max_lr"),
        (["search", "--model.l2=3"], "--model.l2"),
        (["fit", "--search.number=3"], "--search.number"),
        (["report", "--model.hidden=3"], "--model.hidden"),
    ],
)
def test_an_option_of_another_command_is_refused_where_it_is_typed(typed, option, capfd):
    assert main(typed) == 2
    error = capfd.readouterr().err
    assert f"onelayer {typed[0]} does not use {option}. Leave it out." in error


@pytest.fixture
def parser_of(monkeypatch):
    """Return the parser of a command, which parses nothing."""
    made = []

    def keep(parser, *_, **__):
        made.append(parser)
        raise InputError("enough")

    monkeypatch.setattr(Parser, "parse_args", keep)

    def make(command):
        assert main([command]) == 2
        (parser,) = made
        subcommand = [a for a in parser._actions if a.dest == "subcommand"]
        return subcommand[0].choices[command] if subcommand else parser

    return make


@pytest.mark.parametrize(
    ("command", "used", "unused"),
    [
        ("fit", {"schedule.max_lr", "checkpoints.every", "output"}, {"member", "search.rule"}),
        ("validate", {"output", "trainer.devices"}, {"schedule.max_lr", "checkpoints.every"}),
        ("test", {"test.mirror", "output"}, {"schedule.max_lr", "curves.per_cycle"}),
        ("predict", {"test.mirror", "member"}, {"schedule.max_lr", "snapshots.last"}),
        ("range", {"trainer.devices", "model.l2"}, {"schedule.max_lr", "trainer.max_steps"}),
        ("search", {"trainer.devices", "schedule.max_lr"}, {"model.l2", "range.steps"}),
        ("solve", {"trainer.accelerator", "trainer.devices"}, {"trainer.precision", "model.l2"}),
        ("report", {"trainer.devices", "schedule.step_size"}, {"schedule.max_lr", "model.l2"}),
    ],
)
def test_each_option_of_each_command_is_used_or_named_or_refused(
    parser_of, command, used, unused, capfd
):
    """Options that a command has are used; others are named in a config, and refused if typed."""
    parser, content = parser_of(command), {}
    known = {action.dest for action in parser._actions}
    for option in every_option():
        section, _, name = option.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = "other"
    capfd.readouterr()
    kept = usable(parser, content)
    told = capfd.readouterr().err
    assert told.startswith(f"onelayer: warning: {command} does not use ")
    named = re.sub(r".* use | of the config\n", "", told).split(", ")
    assert used <= known
    assert not unused & known
    for option in every_option():
        section, _, name = option.rpartition(".")
        kept_here = name in (kept.get(section, {}) if section else kept)
        assert kept_here == (option in known), option
        assert kept_here != (option in named or f"{section}.*" in named), option
        if option not in known:
            with pytest.raises(InputError, match=f"does not use --{option}. Leave it out."):
                parser.error(f"unrecognized arguments: --{option}=3")


@pytest.mark.parametrize("command", ["range", "search", "solve", "report"])
def test_a_command_works_on_the_device_that_the_trainer_s_options_choose(command, capfd):
    words = COMMANDS.get(command, ["--data.source=synthetic", "--data.limit=200"])
    assert main([command, *words, "--trainer.accelerator=cpu", "--trainer.devices=2"]) == 2
    assert "trainer.devices chooses 2 devices" in capfd.readouterr().err
    if not torch.cuda.is_available():
        assert main([command, *words, "--trainer.accelerator=gpu"]) == 2
        assert "trainer: No supported gpu" in capfd.readouterr().err
    assert main([command, *words, "--trainer.accelerator=cpu", "--trainer.devices=[0]"]) == 2
    assert "trainer: `devices` selected with `CPUAccelerator`" in capfd.readouterr().err
    assert not [*Path().iterdir()]


def test_output_is_where_results_go(monkeypatch, tmp_path, capfd):
    """For every command that has results, also below the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["fit", *COMMANDS["fit"], "--output=~/fit"]) == 0
    for command, left in (("validate", "validate.json"), ("test", "test.json")):
        assert main([command, "--ckpt_path=fit", f"--output=~/{command}"]) == 0
        assert Path(command, left).is_file()
    np.savez("x.npz", X=np.zeros((2, 3072), np.uint8))
    predict = ["predict", "--ckpt_path=fit", "--data.predict=x.npz", "--output=~/p.csv"]
    assert main(predict) == main(["range", *COMMANDS["range"], "--output=~/range"]) == 0
    assert Path("p.csv").is_file()
    assert Path("range/range.csv").is_file()
    assert not Path("lightning_logs").exists()
    assert not Path("~").exists()


def test_solve_works_on_the_device_that_was_chosen(monkeypatch):
    """Under torchrun each process has its own GPU."""
    trainer = SimpleNamespace(num_devices=1, strategy=SimpleNamespace(root_device=None))
    monkeypatch.setattr("onelayer.training.trainer.Trainer", lambda **flags: trainer)
    for device, rank, found in (("cuda:3", "", 3), ("cuda:0", "1", 1), ("cpu", "1", None)):
        trainer.strategy.root_device = torch.device(device)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert device_of({}).index == found


@pytest.mark.parametrize("key", ["modle: {hidden: 3}", "search: {sedes: [1]}", "model: {hiden: 1}"])
def test_an_option_that_no_command_has_is_refused_in_a_config(key, capfd):
    Path("bad.yaml").write_text(key)
    for command in ("fit", "solve"):
        assert main([command, "-c", "bad.yaml", *COMMANDS[command]]) == 2
        error = capfd.readouterr().err
        assert any(word in error for word in ("modle", "sedes", "hiden"))


def test_an_early_config_of_solve_has_its_options_without_a_section(capfd):
    Path("solve.yaml").write_text("l2_min: 0.5\nl2_max: 0.5\nnumber: 1\ngap: 0.01\n")
    assert main(["solve", "-c", "solve.yaml", *COMMANDS["solve"][:2], "--output=out"]) == 0
    assert json.loads(Path("out/summary.json").read_text())["l2"] == 0.5
    assert main(["solve", "--l2_min=0.5"]) == 2
    assert "Did you mean" in capfd.readouterr().err


def test_options_of_cifar_10_are_named_where_the_data_are_others(capfd):
    X, y = arrays(60)
    np.savez("t.npz", X=X, y=y)
    words = ["--data=ArraysDataModule", "--data.train=t.npz", "--data.val_size=20"]
    assert main(["fit", "-c", "three_cycles", *words, *SHORT, "--data.batch_size=10"]) == 0
    assert capfd.readouterr().err.count("fit does not use data.* of the config") == 1


# ---- options that another one overrules


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.lr=5"], ["--model.lr has no effect", "--schedule.max_lr"]),
        (["--data.val_batches=[2]", "--data.val_size=500"], ["--data.val_size has no effect"]),
    ],
)
def test_an_option_that_another_overrules_is_refused_where_it_is_typed(words, told, capfd):
    assert main(["fit", *COMMANDS["fit"], *words]) == 2
    error = capfd.readouterr().err
    assert all(part in error for part in told)
    assert not Path("lightning_logs").exists()


def test_an_option_of_a_config_that_another_overrules_is_warned_of():
    config = {"model": {"lr": 5.0}, "data": {"val_size": 300, "val_batches": [2]}}
    Path("c.yaml").write_text(yaml.safe_dump({**config, "seed_everything": 3}))
    words = COMMANDS["fit"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", "-c", "c.yaml", *words, "--data.train_batches=[1]"]) == 0
    found = " ".join(str(warning.message) for warning in caught)
    assert "model.lr = 5 has no effect" in found
    assert "data.val_size = 300 has no effect: data.val_batches" in found
    assert "seed_everything changes neither the weights nor the batches" in found


def test_python_is_warned_of_a_val_size_without_effect():
    with warned("data.val_size = 0.5 has no effect: data.val is what validates"):
        ArraysDataModule(arrays(60), val=arrays(20), val_size=0.5)
    with warned("data.val_size = 50 has no effect: data.val_batches is what validates"):
        CIFAR10DataModule(source="synthetic", train_batches=[1], val_batches=[2], val_size=50)


def test_a_search_says_that_its_final_val_size_has_no_effect(capfd):
    words = [*COMMANDS["search"], "--data.train_batches=[1]", "--data.val_batches=[2]"]
    assert main(["search", *words, "--final.val_size=50"]) == 2
    assert "final.val_size is 50, but data.val_batches" in capfd.readouterr().err


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.1, 0.01)])
def test_a_schedule_never_makes_one_rate_of_two(tmp_path, rates):
    class Two(OneLayer):
        def configure_optimizers(self):
            groups = zip(self.parameters(), rates, strict=True)
            return SGD([{"params": [p], "lr": rate} for p, rate in groups], lr=1.0)

    model = Two(inputs=PIXELS, classes=CLASSES)
    before = model.W.detach().clone()
    if len(set(rates)) == 1:
        fit(tmp_path, model, callbacks=[TriangularLR(step_size=5)], max_steps=10)
        return
    with pytest.raises(InputError, match=r"sets one learning rate, but .* have 2: 0\.01, 0\.1"):
        fit(tmp_path, model, callbacks=[TriangularLR(step_size=5)], max_steps=10)
    assert torch.equal(model.W, before)


def test_python_is_warned_of_a_rate_without_effect(tmp_path):
    model = OneLayer(inputs=PIXELS, classes=CLASSES, lr=5.0)
    with warned("model.lr = 5 has no effect: TriangularLR sets the rate"):
        run = trainer(tmp_path, 10, [TriangularLR(step_size=5)])
        run.fit(model, datamodule=SmallData())
