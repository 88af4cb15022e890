"""The trace: an ordered table of operators with edges, and nothing about hardware or results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hwmodel.ir.accessors import TRACE_PLOTS
from hwmodel.ir.dtypes import check_dtype
from hwmodel.ir.findings import WeightFinding
from hwmodel.ir.operators import Operator

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Every operator of one forward pass, in execution order.

    Parameters
    ----------
    model : name of the model
    operators : rows in execution order, names unique
    edges : (producer row, consumer row); a producer comes before its consumers
    batch : images of one forward pass
    input_shape : shape of the example input, batch included; empty where the trace was made by hand
    dtype : number format of the whole trace where no operator says otherwise; None leaves it to call or card
    versions : versions of the libraries that made the trace
    removed_macs : MACs of operators that the dense model has and pruning took out whole
    findings : what was seen in the weights, layer by layer; empty where none were read. It changes no cost: not compared
    notes : what had to be assumed to read the model, one line each; not compared
    design : by backend name, the fields of its design point that the recipe asks for ({"vita": {"pe": "32x32"}})

    Raises
    ------
    ValueError
        Names that repeat, or an edge that does not lead forward.
    """

    model: str
    operators: tuple[Operator, ...]
    edges: tuple[tuple[int, int], ...] = ()
    batch: int = 1
    input_shape: tuple[int, ...] = ()
    dtype: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    design: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    removed_macs: int = 0
    findings: tuple[WeightFinding, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    plot = TRACE_PLOTS

    def _repr_html_(self) -> str:
        return str(self.plot.html())

    def __post_init__(self) -> None:
        names = [operator.name for operator in self.operators]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"operator names must be unique; these repeat: {', '.join(twice[:5])}")
        for producer, consumer in self.edges:
            if not 0 <= producer < consumer < len(names):
                raise ValueError(f"edge ({producer}, {consumer}) must lead forward within {len(names)} operators")
        if self.dtype is not None:
            check_dtype(self.dtype)

    @classmethod
    def from_operators(
        cls, operators: Iterable[Operator], *, model: str = "by hand", batch: int = 1, dtype: str | None = None
    ) -> Trace:
        """A trace made by hand: no edges, so nothing fuses. Operators without a name are named ``kind_row``."""
        named = tuple(
            operator if operator.name else operator.replace(name=f"{operator.kind}_{row}") for row, operator in enumerate(operators)
        )
        return cls(model=model, operators=named, batch=batch, dtype=dtype)

    def __len__(self) -> int:
        return len(self.operators)

    def __getitem__(self, name: str) -> Operator:
        for operator in self.operators:
            if operator.name == name:
                return operator
        raise KeyError(name)

    @property
    def macs(self) -> int:
        """MACs of all products and convolutions, as the dense, unpruned model executes them."""
        return self.removed_macs + sum(operator.macs for operator in self.operators)

    @property
    def kept_macs(self) -> float:
        """MACs that are left after pruning: kept weights only, at the present shapes."""
        return sum(operator.kept_macs for operator in self.operators)

    def replace(self, **changes: object) -> Trace:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def graph(self) -> networkx.DiGraph[str]:
        """The trace as a networkx DAG: one node per operator name, with the operator as attribute ``operator``."""
        import networkx

        graph: networkx.DiGraph[str] = networkx.DiGraph(model=self.model)
        graph.add_nodes_from((operator.name, {"operator": operator}) for operator in self.operators)
        graph.add_edges_from((self.operators[a].name, self.operators[b].name) for a, b in self.edges)
        return graph
