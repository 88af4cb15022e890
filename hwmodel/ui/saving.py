"""What was found, as files: a recipe, a card, a report."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from hwmodel.backends.cards import Card, card_from_document
from hwmodel.errors import HwmodelError
from hwmodel.extraction.whatif.recipe_files import save_recipe
from hwmodel.reporting.report import report_html
from hwmodel.reporting.variants import Variant
from hwmodel.ui import machines
from hwmodel.ui.state import State
from hwmodel.ui.workbench import Answer, Workbench

_SOURCE = "set by hand in hwmodel explore-ui"


def recipe_text(bench: Workbench, state: State) -> str:
    """The state's pruning as a recipe file; its remarks tell the command that prices it as the page did."""
    recipe = bench.models.get(state.model).recipe(state, remarks=f"priced by: {command(bench, state)}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "explored.toml"
        save_recipe(recipe, path)
        return path.read_text(encoding="utf-8")


def command(bench: Workbench, state: State) -> str:
    """The command line that prices the state, once its recipe is saved as RECIPE.toml."""
    changed = machines.overrides_of(bench.card(state.device), state)
    settings = "".join(f" --set {name}={value}" for name, value in changed.items())
    where = f"--device {state.device} --mode {state.full_mode} --batch {state.batch}"
    return f"hwmodel estimate {state.model} {where}{settings} --recipe RECIPE.toml"


def explored_card(bench: Workbench, state: State) -> Card:
    """The card with the state's array size and bandwidth in it, their sources told; nothing measured is claimed for it.

    Raises
    ------
    HwmodelError
        A state that changes nothing of the card.
    """
    card = bench.card(state.device)
    changed = machines.overrides_of(card, state)
    if not changed:
        raise HwmodelError(f"array size and bandwidth are those of {card.name} itself: move one of them to save a card")
    document = card.model_dump(exclude_none=True)
    document |= {"name": f"{card.name}-explored", "aliases": [], "scores": [], "default_mode": state.full_mode}
    document["title"] = f"{card.title}, changed by hand"
    for mode in document["fidelity"].values():
        mode |= {"latency": "assumed", "energy": "assumed", "reason": f"{', '.join(changed)} {_SOURCE}"}
    own = card.values(state.power or None)
    for field, value in changed.items():
        home = document["power_modes"][state.power] if state.power else document["parameters"]
        home[field] = {"value": value, "fidelity": "assumed", "source": f"{_SOURCE}; was {own.get(field, 'left to the backend')}"}
    return card_from_document(document, document["name"])


def card_text(bench: Workbench, state: State) -> str:
    """:func:`explored_card` as a card file."""
    import tomlkit

    return str(tomlkit.dumps(explored_card(bench, state).model_dump(exclude_none=True)))


def report_text(answer: Answer) -> str:
    """The dense model beside the state, on its machine, as the page that `hwmodel report` writes."""
    variants = [
        Variant(label="dense", trace=answer.dense.trace, estimates=(answer.dense,)),
        Variant(label="explored", trace=answer.now.trace, estimates=(answer.now,)),
    ]
    return report_html(variants)


def file_of(bench: Workbench, state: State, what: str) -> tuple[str, str]:
    """Name and content of the file that a state is saved as: a "recipe", a "card" or a "report".

    Raises
    ------
    HwmodelError
        A state that cannot be saved so.
    """
    if what == "report":
        return _file_name(state, ".html"), report_text(bench.answer(state))
    return _file_name(state, f".{what}.toml"), (recipe_text if what == "recipe" else card_text)(bench, state)


def _file_name(state: State, ending: str) -> str:
    """A file name that tells the model and the machine."""
    plain = re.sub(r"[^\w-]", "-", f"{Path(state.model).stem}_{Path(state.device).stem}", flags=re.ASCII)
    return f"{plain}{ending}"
