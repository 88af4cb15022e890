"""How figures look, and how they become SVG that follows the page from light to dark.

Every colour is a token with a light and a dark value. Figures are drawn in the light values, which are all distinct;
:func:`to_svg` then replaces each by a CSS variable, so the page decides. Colours of devices: Okabe and Ito. Colours of
roles: after Paul Tol's "muted". Both are made for colour-blind readers; the dark values are lighter versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from html import escape
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

_BASE = {
    "ink": ("#1d232a", "#e8ebef"),
    "muted": ("#5a6570", "#a3aeb9"),
    "grid": ("#dfe4e9", "#333c46"),
    "paper": ("#fcfcfb", "#14181d"),
    "mask": ("#4a86bd", "#4a86bd"),
    "kept": ("#2f6fb0", "#6fb1ec"),
    "untouched": ("#96a2ae", "#7a8794"),
    "coarse": ("#e3a22f", "#efb95a"),
    "rest": ("#c4513a", "#ee8069"),
}
_DEVICES = (
    ("#0072b2", "#55aee6"),
    ("#d55e00", "#ff9147"),
    ("#009e73", "#3ccda2"),
    ("#b5548b", "#ea9dc9"),
    ("#6b4f00", "#f8e58c"),
    ("#3f9bd1", "#a5dbf7"),
    ("#6f4f9c", "#8b6fe0"),
    ("#58616b", "#7d8894"),
)
_ROLES = {
    "qkv": ("#3f3a93", "#9189ee"),
    "attention": ("#c4586a", "#ee8fa0"),
    "proj": ("#7fc4e8", "#58b4e6"),
    "fc1": ("#16743a", "#46b06f"),
    "fc2": ("#4fb3a2", "#83dccd"),
    "ends": ("#dcc868", "#d8c45c"),
    "products": ("#8c8c2c", "#8a8a34"),
    "vector": ("#a4479a", "#d685cb"),
    "waiting": ("#ced4da", "#4d5863"),
}


def device_token(index: int) -> str:
    """Colour token of the machine at this place of the report."""
    return f"device-{index % len(_DEVICES)}"


def role_token(role: str) -> str:
    """Colour token of a group of operators."""
    return f"role-{role}"


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" as WCAG defines it, 0 to 1."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _readable(colour: str, number: int) -> str:
    """Near white where that has a contrast of 4.5 on ``colour``, else near black; ``number`` keeps tokens apart."""
    return f"#ffff{255 - number:02x}" if 1.04 / (luminance(colour) + 0.05) >= 4.5 else f"#0000{number + 1:02x}"


def _tokens() -> dict[str, tuple[str, str]]:
    fills = {
        **{device_token(index): pair for index, pair in enumerate(_DEVICES)},
        **{role_token(role): pair for role, pair in _ROLES.items()},
        **{name: _BASE[name] for name in ("kept", "untouched", "coarse", "rest")},
    }
    on = {f"on-{name}": (_readable(light, i), _readable(dark, i)) for i, (name, (light, dark)) in enumerate(fills.items())}
    return _BASE | fills | on


TOKENS = _tokens()
"""Colour by token, (light, dark). The light values are distinct."""

_BY_LIGHT = {light: name for name, (light, _) in TOKENS.items()}


def colour(token: str) -> str:
    """The colour to draw a token in."""
    return TOKENS[token][0]


def css_variables(*, dark: bool) -> str:
    """The tokens as CSS custom properties."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in TOKENS.items())


_RC: Any = {
    "axes.edgecolor": colour("muted"),
    "axes.facecolor": "none",
    "axes.grid.axis": "x",
    "axes.labelcolor": colour("muted"),
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.prop_cycle": "cycler('color', ['#1d232a'])",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": colour("ink"),
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "grid.color": colour("grid"),
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.8,
    "image.composite_image": False,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "text.color": colour("ink"),
    "text.parse_math": False,
    "xtick.color": colour("muted"),
    "xtick.labelsize": 8.5,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": colour("muted"),
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


def themed(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under our settings, leaving the caller's alone."""

    @wraps(draw)
    def under_our_settings(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return under_our_settings


def new_figure(height: float, width: float = 10.0) -> Figure:
    """An empty figure, sizes in inches, without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def bare(axes: Axes) -> None:
    """Leave no frame around the axes."""
    for spine in axes.spines.values():
        spine.set_visible(False)


@themed
def to_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an ``<svg>`` element to stand in a page: coloured by CSS variables, ids begin with ``name``.

    The same data gives the same text. ``title`` is what a screen reader says.
    """
    import matplotlib

    buffer = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name, title)


def figure_file(figure: Figure, suffix: str = ".svg") -> bytes:
    """The figure as the content of a file of its own (.svg, .png or .pdf); the same data gives the same bytes.

    Raises
    ------
    HwmodelError
        Another ending.
    """
    return _saved(figure, suffix, {})


_PAPER: Any = {
    "pdf.fonttype": 42, "savefig.facecolor": "white", "savefig.dpi": 300, "svg.fonttype": "path",
}  # fmt: skip
"""Fonts embedded as TrueType, as publishers ask for (as outlines in SVG), on white; pixels fine enough to print."""

_PAPER_WIDTH = 7.2
"""Inches: the text width of a two-column page."""


@themed
def paper_file(figure: Figure, suffix: str) -> bytes:
    """:func:`figure_file` for a paper: the width of a page, type between 7 and 9.5 points, embedded, on white."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(min(width, _PAPER_WIDTH), height)
    return _saved(figure, suffix, _PAPER)


def _saved(figure: Figure, suffix: str, settings: Any) -> bytes:
    import matplotlib

    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": None}
    if suffix not in undated:
        raise HwmodelError(f"figure: expected a file name that ends in {', '.join(undated)}, got {suffix!r}")
    buffer = BytesIO()
    with matplotlib.rc_context(settings | {"svg.hashsalt": "figure"}):
        figure.savefig(buffer, format=suffix[1:], metadata=undated[suffix])
    return buffer.getvalue()


FILE_FORMATS = ("pdf", "png", "svg")


def _inline(document: str, name: str, title: str) -> str:
    """Strip what only a stand-alone file needs, set the tokens, round coordinates, and number the ids."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', body)
    view = box.group(1) if box else "0 0 720 360"
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda found: _NUMBER.sub(_rounded, found[0]), _numbered(body, name))
    body = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", _tokenised, body)
    body = re.sub(r"font-family: [^;\"]*(; )?|stroke-linejoin: miter(; )?", "", body)
    body = re.sub(r"\n\s*", "\n", body).replace("<g>\n</g>\n", "")
    return f'<svg role="img" aria-label="{escape(title)}" viewBox="{view}">\n{body.strip()}'


_NUMBER = re.compile(r"-?\d+\.\d{4,}")
"""Coordinates with more digits than a screen shows. The layout solver's last bits differ from run to run."""


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.3f}".rstrip("0").rstrip(".")


def _numbered(body: str, name: str) -> str:
    """Ids as ``name-1``, ``name-2``, ... by first mention; ids that nothing refers to are dropped."""
    used = re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', body)
    names = {ident: f"{name}-{number}" for number, ident in enumerate(dict.fromkeys(used), start=1)}
    body = re.sub(r' id="([^"]*)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", body)
    return re.sub(r'(url\(#|xlink:href="#)([^)"]+)', lambda found: found[1] + names[found[2]], body).replace("xlink:href", "href")


def _tokenised(found: re.Match[str]) -> str:
    token = _BY_LIGHT.get(found[2])
    return f"{found[1]}: var(--{token})" if token else found[0]
