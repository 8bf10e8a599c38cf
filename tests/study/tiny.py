"""A search of seconds, and how two of its trial databases are compared."""

import optuna

TINY = [
    "--model.hidden=2", "--data.source=synthetic", "--data.limit=40", "--data.val_size=100",
    "--data.batch_size=10", "--schedule.step_size=3", "--schedule.cycles=1",
    "--search.stages=2", "--search.number=4", "--search.top=2", "--search.seeds=[0,1]",
    "--search.members=4", "--final.seeds=[0,1]", "--final.val_size=50", "--final.batch_size=10",
    "--final.step_size=4", "--final.cycles=1",
]  # fmt: skip
AXES = ["--search.flip=[false,true]", "--search.hidden=[2,3]"]
FIGURES = [f"{s}_{q}" for s in ("train", "val") for q in ("cost", "loss", "accuracy")]


def read_trials(storage):
    """All trials of the only study of a database, as Optuna reads them."""
    database = optuna.storages.RDBStorage(storage)
    try:
        return optuna.load_study(study_name=None, storage=database).trials
    finally:
        database.engine.dispose()


def read_database(storage):
    """What a trial database holds of each finished trial, by stage, index and seed."""
    finished = [t for t in read_trials(storage) if t.state == optuna.trial.TrialState.COMPLETE]
    keys = [(t.user_attrs["stage"], t.user_attrs["index"], t.user_attrs["seed"]) for t in finished]
    assert len(set(keys)) == len(keys)
    return {
        key: (t.params["l2"], t.value, *(t.user_attrs[name] for name in FIGURES))
        for key, t in zip(keys, finished, strict=True)
    }
