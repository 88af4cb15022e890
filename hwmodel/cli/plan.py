"""What `estimate` and `report` were asked to price on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hwmodel.cli.inputs import setting
from hwmodel.errors import HwmodelError, suggestion

if TYPE_CHECKING:
    from hwmodel.backends.cards import Card
    from hwmodel.backends.estimates import Estimate
    from hwmodel.ir.trace import Trace


class Plan:
    """What `estimate` and `report` were asked to price on, checked before any long work."""

    def __init__(
        self, device: str, mode: str | None, settings: Sequence[str] | None, dtype: str | None, workers: int | None, **choices: str
    ) -> None:
        from hwmodel.backends.cards import load_card
        from hwmodel.backends.estimates import check_choices

        names = [name.strip() for name in device.split(",") if name.strip()]
        if not names:
            raise HwmodelError("--device: expected at least one device; `hwmodel devices` lists them")
        self.cards = [load_card(name) for name in names]
        self._asked = dict(zip(names, self.cards, strict=True))
        self._modes = self._by_device("--mode", (mode or "").split(","), "=")
        self._overrides = self._by_device("--set", settings or [], ":")
        self._dtype, self._workers, self._choices = dtype, workers, choices
        check_choices(**choices)
        for card in self.cards:
            card.split_mode(self._mode(card))
            card.resolve(self._mode(card), self._fields(card))
            _check_single(card, self._fields(card))
            if dtype is not None:
                card.check_dtype(dtype)

    def _by_device(self, option: str, texts: Sequence[str], mark: str) -> list[tuple[Card | None, str]]:
        """Split "DEVICE<mark>TEXT" where a device is named; None stands for every device."""
        found: list[tuple[Card | None, str]] = []
        for text in filter(None, (text.strip() for text in texts)):
            name, marked, rest = text.partition(mark)
            if marked and name not in self._asked and "=" not in name:
                raise HwmodelError(f"{option} {text}: {name!r} is not among the devices; {suggestion(name, self._asked)}")
            found.append((self._asked[name], rest) if marked and name in self._asked else (None, text))
        return found

    def _mode(self, card: Card) -> str | None:
        chosen = [mode for owner, mode in self._modes if owner is None or owner is card]
        return chosen[-1] if chosen else None

    def _fields(self, card: Card) -> dict[str, Any]:
        return dict(setting(text) for owner, text in self._overrides if owner is None or owner is card)

    def estimates(self, traced: Trace) -> list[Estimate]:
        """One estimate per device, in the order asked for."""
        return [self.estimate(traced, place) for place in range(len(self.cards))]

    def estimate(self, traced: Trace, place: int) -> Estimate:
        """The estimate on the device at ``place`` in the order asked for."""
        from hwmodel.backends.estimates import estimate as price

        card = self.cards[place]
        with _simulation_progress(self._workers):
            return price(
                traced, device=card, mode=self._mode(card), dtype=self._dtype, overrides=self._fields(card), **self._choices  # type: ignore[arg-type]
            )  # fmt: skip


@contextmanager
def _simulation_progress(workers: int | None) -> Iterator[None]:
    """A progress bar on standard error while SCALE-Sim runs; none where everything comes from closed forms or the cache."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from hwmodel.backends import scale_sim

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("SCALE-Sim", start=False, visible=False, total=None)

    def show(done: int, total: int) -> None:
        if not bar.tasks[task].visible:
            bar.start()
            bar.start_task(task)
        bar.update(task, completed=done, total=total, visible=True)

    try:
        with scale_sim.settings(workers=workers, progress=show):
            yield
    finally:
        if bar.live.is_started:
            bar.stop()


def _check_single(card: Card, fields: dict[str, Any]) -> None:
    """Refuse a list where the card has one number: that is a sweep, which has no single table to print."""
    for field, value in fields.items():
        if isinstance(value, list) and not isinstance(card.values().get(field), list):
            raise HwmodelError(f"--set {field}={value}: expected one value; run the command once for each")
