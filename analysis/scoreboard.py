"""Predict every held-out measured row, print the scoreboard and rewrite the ``scores.toml`` beside each card.

python analysis/scoreboard.py
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hwmodel.validation.scoreboard import write_scores


def main() -> None:
    """Score, write, print. Errors are relative: |predicted / measured - 1|."""
    table = Table("card", "mode", "dtypes", "quantity", "against", "rows", "median", "mean", "p90", "max", "bias", "rank")
    for card, score in write_scores():
        sizes = (f"{value:.1%}" for value in (score.median, score.mean, score.p90, score.max))
        names = (card, score.mode, " ".join(score.dtypes), score.quantity, score.against)
        table.add_row(*names, str(score.rows), *sizes, f"{score.bias:+.1%}", "-" if score.rank is None else f"{score.rank:.3f}")
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
