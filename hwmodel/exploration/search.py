"""Searches a space too large to enumerate: Optuna asks for trials in batches, we price them in array form and tell.

The sampler works on a study in memory; every finished trial is added to the storage at once, whole, with its row of the
dataset. So a run that is killed loses only what was being priced, and several machines that share a storage see each other's
trials from batch to batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np

from hwmodel.exploration.axes import Axis, Value
from hwmodel.exploration.dataset import Dataset, schema
from hwmodel.exploration.engines import Engine
from hwmodel.exploration.pricing import price
from hwmodel.exploration.problem import Problem
from hwmodel.exploration.quantities import Columns, goal_of, violations
from hwmodel.exploration.results import Results
from hwmodel.exploration.study import StudyError

if TYPE_CHECKING:
    import optuna
    import pyarrow as pa

ROW, ORDER, RUN = "row", "order", "run"
"""Attributes of a stored trial: its row of the dataset as JSON; (trials stored when its run began, number in the run); a token of
the run."""


@dataclass(frozen=True)
class Call:
    """Trials of one batch that share a trace and its choices; ``arrays`` hold their values of the other axes."""

    case: int
    setting: tuple[tuple[str, Value], ...]
    trials: tuple[int, ...]
    arrays: Mapping[str, tuple[float, ...]]


def price_call(problem: Problem, call: Call) -> Columns:
    """The columns of a call, one row per trial."""
    arrays = {name: np.array(values, dtype=np.float64) for name, values in call.arrays.items()}
    return price(problem, problem.cases[call.case], dict(call.setting), arrays, len(call.trials))


def search(problem: Problem, dataset: Dataset | None, engine: Engine, tell: Callable[[int, int], None]) -> Results:
    """Ask, price and tell until the storage has as many finished trials as the study wants.

    Raises
    ------
    StudyError
        No Optuna, or a storage that cannot be opened.
    """
    run = _Run(problem, dataset)
    wanted = problem.study.search.trials
    tell(min(len(run.finished()), wanted), wanted)
    while (missing := wanted - len(run.finished())) > 0:
        run.catch_up()
        asked = run.ask(min(problem.study.search.batch, missing))
        for call, columns in engine.run(price_call, problem, asked):
            run.keep(call, columns)
            tell(min(len(run.finished()), wanted), wanted)
        run.write(last_only=True)
    return Results(problem.study, run.write(last_only=False))


@dataclass
class _Run:
    """One run of a search: the sampler's study in memory beside the one in the storage."""

    problem: Problem
    dataset: Dataset | None
    token: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        self._pending: dict[int, optuna.trial.Trial] = {}
        self._known: set[int] = set()
        self.began = len(self.finished())

    @cached_property
    def stored(self) -> optuna.Study:
        """The study in the storage."""
        library = _optuna()
        from sqlalchemy.exc import SQLAlchemyError

        own = f"sqlite:///{self.dataset.folder / 'search.db'}" if self.dataset else None
        url = self.problem.study.search.storage or own
        name = f"{self.problem.study.name}-{self.problem.fingerprint[:16]}"
        try:
            found: optuna.Study = library.create_study(
                storage=url, study_name=name, directions=self._directions, load_if_exists=True
            )
        except (SQLAlchemyError, ImportError, ValueError) as error:
            told = str(error).strip().splitlines()[0]
            raise StudyError(f"search.storage: {url}: cannot be opened ({told}); expected a URL that SQLAlchemy takes") from error
        return found

    @cached_property
    def sampled(self) -> optuna.Study:
        """The study the sampler sees; its seed goes on where an earlier run ended."""
        samplers, plan = _optuna().samplers, self.problem.study.search
        seed = plan.seed + self.began
        nsga2 = plan.sampler == "nsga2"
        sampler = samplers.NSGAIISampler(seed=seed, population_size=plan.batch) if nsga2 else samplers.TPESampler(seed=seed)
        made: optuna.Study = _optuna().create_study(directions=self._directions, sampler=sampler)
        return made

    @property
    def _directions(self) -> list[Literal["minimize", "maximize"]]:
        return ["minimize" if goal_of(objective) == "min" else "maximize" for objective in self.problem.study.objectives]

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """All trials in the storage, whoever made them."""
        return self.stored.get_trials(deepcopy=False)

    def catch_up(self) -> None:
        """Show the sampler what earlier runs and other machines found."""
        for trial in self.finished():
            if trial.number not in self._known and trial.user_attrs[RUN] != self.token:
                self.sampled.add_trial(trial)
            self._known.add(trial.number)

    def ask(self, count: int) -> list[Call]:
        """New trials, gathered into calls."""
        groups: dict[tuple[int, tuple[tuple[str, Value], ...]], list[tuple[int, dict[str, Value]]]] = {}
        for _ in range(count):
            trial = self.sampled.ask()
            self._pending[trial.number] = trial
            index, values = _suggested(self.problem, trial)
            case = self.problem.cases[index]
            setting = tuple((axis.title, values[axis.title]) for axis in case.slow)
            groups.setdefault((index, setting), []).append((trial.number, values))
        return [self._call(index, setting, group) for (index, setting), group in groups.items()]

    def _call(self, index: int, setting: tuple[tuple[str, Value], ...], group: list[tuple[int, dict[str, Value]]]) -> Call:
        arrays = {axis.title: tuple(float(values[axis.title]) for _, values in group) for axis in self.problem.cases[index].fast}
        return Call(index, setting, tuple(number for number, _ in group), arrays)

    def keep(self, call: Call, columns: Columns) -> None:
        """Tell the sampler, and store each trial with its row."""
        study = self.problem.study
        beyond = violations(study.constraints, columns)
        for place, number in enumerate(call.trials):
            trial = self._pending.pop(number)
            for constraint, amount in zip(study.constraints, beyond[place].tolist(), strict=True):
                trial.set_constraint(str(constraint), amount)
            row = {name: _plain(values[place]) for name, values in columns.items()}
            for name, value in ((ROW, json.dumps(row)), (ORDER, [self.began, number]), (RUN, self.token)):
                trial.set_user_attr(name, value)
            values = [row[objective.quantity] for objective in study.objectives]
            failed = None in values
            state = _optuna().trial.TrialState.FAIL if failed else None
            self.stored.add_trial(self.sampled.tell(trial, None if failed else values, state=state))

    def write(self, *, last_only: bool) -> pa.Table:
        """The dataset: trials in the order they were asked for, in parts of one batch each."""
        import pyarrow as pa

        trials = sorted(self.finished(), key=lambda trial: (*trial.user_attrs[ORDER], trial.number))
        rows = [{"point": number, **json.loads(trial.user_attrs[ROW])} for number, trial in enumerate(trials)]
        layout = schema(self.problem.study, self.problem.fingerprint)
        whole = pa.Table.from_pylist(rows, schema=layout)
        if self.dataset is not None:
            size = self.problem.study.search.batch
            starts = range(0, len(rows), size)
            for start in starts[-1:] if last_only else starts:
                self.dataset.write(start // size, whole.slice(start, size))
        return whole


def _suggested(problem: Problem, trial: optuna.trial.Trial) -> tuple[int, dict[str, Value]]:
    """A case and a value for each of its axes. A model's recipes and a case's axes are asked for where they apply."""
    left = list(enumerate(problem.cases))
    names = {
        "model": [problem.study.models[case.model].title for case in problem.cases],
        "recipe": [case.recipe for case in problem.cases],
        "machine": [f"{machine.title}, {machine.mode}" for case in problem.cases for machine in [problem.machines[case.machine]]],
    }
    for what, labels in names.items():
        options = list(dict.fromkeys(labels[index] for index, _ in left))
        name = what if what != "recipe" else f"recipe of {names['model'][left[0][0]]}"
        chosen = trial.suggest_categorical(name, options) if len(options) > 1 else options[0]
        left = [(index, case) for index, case in left if labels[index] == chosen]
    index, case = left[0]
    return index, {axis.title: _value(trial, axis) for axis in case.axes}


def _value(trial: optuna.trial.Trial, axis: Axis) -> Value:
    if axis.enumerable:
        return trial.suggest_categorical(axis.title, axis.points())  # type: ignore[return-value]
    assert axis.low is not None and axis.high is not None
    log = axis.spacing == "log"
    if axis.whole:
        return trial.suggest_int(axis.title, math.ceil(axis.low), math.floor(axis.high), log=log)
    return trial.suggest_float(axis.title, axis.low, axis.high, log=log)


def _plain(value: Any) -> Any:
    """A cell as JSON knows it; what is not finite is missing."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _optuna() -> Any:
    try:
        version("optuna")
    except PackageNotFoundError as error:
        raise StudyError("method = 'search' needs the extra 'search': pip install 'hwmodel[search]'") from error
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
