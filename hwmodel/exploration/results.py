"""What a study found: every point, the front, its knees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hwmodel.exploration.dataset import parts_of, read_parts, stored_study
from hwmodel.exploration.pareto import knee_points, pareto_front
from hwmodel.exploration.quantities import emptying, losses, satisfied
from hwmodel.exploration.study import Study, StudyError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Results:
    """Points of a study as an Arrow table, one row per point; columns as the module ``dataset`` lays them out."""

    study: Study
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def frame(self, columns: list[str] | None = None) -> pd.DataFrame:
        """The points (some columns of them) as a pandas frame; texts as categories."""
        found: pd.DataFrame = (self.table if columns is None else self.table.select(columns)).to_pandas(use_threads=False)
        return found

    def _column(self, name: str) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = self.table.column(name).to_numpy()
        return found

    @cached_property
    def _losses(self) -> npt.NDArray[np.float64]:
        names = [objective.quantity for objective in self.study.objectives]
        return losses(self.study.objectives, {name: self._column(name) for name in names})

    @cached_property
    def _front(self) -> npt.NDArray[np.int64]:
        """Rows of the front, by the first objective, the best first."""
        feasible = np.flatnonzero(self._column("feasible"))
        rows = feasible[pareto_front(self._losses[feasible])]
        order: npt.NDArray[np.int64] = rows[np.lexsort(self._losses[rows].T[::-1])]
        return order

    def front(self) -> pd.DataFrame:
        """The feasible points that no other feasible point beats, with ``knee`` where the front bends most.

        Ordered by the first objective, the best first. ``knee`` is 1 for the sharpest, then 2 and 3; missing elsewhere.
        """
        import pandas as pd

        found: pd.DataFrame = self.table.take(self._front).to_pandas(use_threads=False)
        rank = pd.array([pd.NA] * len(found), dtype="Int64")
        for place, row in enumerate(knee_points(self._losses[self._front]), start=1):
            rank[int(row)] = place
        return found.assign(knee=rank)

    def knees(self) -> pd.DataFrame:
        """The knee points of the front, the sharpest first."""
        front = self.front()
        return front[front.knee.notna()].sort_values("knee")

    def check_feasible(self) -> None:
        """Raise :class:`StudyError` where the constraints leave no point, saying which."""
        if not len(self) or self._column("feasible").any():
            return
        met = np.stack([satisfied(one, self._column(one.quantity)) for one in self.study.constraints], axis=-1)
        raise StudyError(f"the constraints leave none of {len(self)} points: {emptying(self.study.constraints, met)}")


def load_results(folder: str | Path) -> Results:
    """The results that ``hwmodel explore -o FOLDER`` wrote, as far as they go.

    Raises
    ------
    StudyError
        No results folder.
    """
    return Results(stored_study(folder), read_parts(parts_of(folder)))
