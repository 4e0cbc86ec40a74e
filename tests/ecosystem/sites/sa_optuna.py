"""Optuna."""

from typing import Any
from uuid import uuid4

import optuna

from tests.ecosystem.script import url

optuna.logging.set_verbosity(optuna.logging.WARNING)
storage = optuna.storages.RDBStorage(url().render_as_string(hide_password=False))


def work() -> dict[str, Any]:
    """Optimise a study in two parts, and look at it."""
    name = uuid4().hex

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        trial.report(x, 0)
        trial.set_user_attr("kind", trial.suggest_categorical("kind", ["tea", "cake"]))
        return x**2

    optuna.create_study(storage=storage, study_name=name, sampler=optuna.samplers.RandomSampler(seed=1)).optimize(objective, 3)
    study = optuna.load_study(storage=storage, study_name=name, sampler=optuna.samplers.RandomSampler(seed=2))
    study.optimize(objective, 3)
    found = optuna.load_study(storage=storage, study_name=name)
    values = [[trial.state.name, round(trial.values[0], 9), trial.params["kind"]] for trial in found.trials]
    known = name in optuna.get_all_study_names(storage)
    optuna.delete_study(storage=storage, study_name=name)
    return {"values": values, "best": round(min(value for _, value, _ in values), 9), "known": known}
