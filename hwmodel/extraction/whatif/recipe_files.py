"""Recipe files: TOML, with stored masks in an npz file beside it. What is saved loads back equal.

The npz file holds two arrays per mask: ``NAME``, the grid bit-packed row by row (most significant bit first), and
``NAME.layout``, the four integers (n, k, out, in). A mask that several layers share is stored once.
"""

from __future__ import annotations

import hashlib
import tomllib
import zipfile
from collections.abc import Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwmodel.content import content_folder
from hwmodel.errors import RecipeError, UnknownNameError, suggestion
from hwmodel.extraction.whatif.recipes import EncoderRule, LayerRule, Recipe
from hwmodel.files import check_writable, write_file
from hwmodel.ir.masks import BlockMask, Shape, grid_shape

_LAYOUT = ".layout"
Arrays = Mapping[str, npt.NDArray[Any]]


class _MaskFiles:
    """Reads the masks that one recipe file refers to, each npz file once. Problems are ValueErrors, for pydantic to collect."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, tuple[str, bytes]] = {}
        self._parsed: dict[str, Arrays] = {}

    def read(self, reference: str, sha256: object, block: Shape | None) -> BlockMask:
        """The mask behind ``FILE.npz#NAME``."""
        name, _, key = reference.partition("#")
        if not name or not key:
            raise ValueError(f'expected "FILE.npz#NAME", found {reference!r}')
        if block is None:
            raise ValueError("needs block = [out, in] beside it")
        data = self._bytes(name, sha256)
        arrays = self._parsed[name] = self._parsed.get(name) or _arrays(name, data)
        if key not in arrays:
            raise ValueError(f"{name} has no mask {key!r}; {suggestion(key, _names(arrays))}")
        return _unpacked(f"{name}#{key}", arrays[key], arrays.get(key + _LAYOUT), block)

    def _bytes(self, name: str, sha256: object) -> bytes:
        """The file's content, once its checksum agrees."""
        if name not in self._open:
            try:
                data = (self._folder / name).read_bytes()
            except OSError as error:
                raise ValueError(f"{self._folder / name} cannot be read ({error.strerror})") from error
            self._open[name] = (hashlib.sha256(data).hexdigest(), data)
        found, data = self._open[name]
        if found != sha256:
            raise ValueError(f"{name} has sha256 {found}, the recipe expects {sha256 or 'none: add sha256 beside mask'}")
        return data


def _arrays(name: str, data: bytes) -> Arrays:
    try:
        with np.load(BytesIO(data), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} is not an npz file of plain arrays, or a truncated one") from error


def _names(arrays: Arrays) -> list[str]:
    return [key for key in arrays if not key.endswith(_LAYOUT)]


def _unpacked(where: str, bits: npt.NDArray[Any], layout: npt.NDArray[Any] | None, block: Shape) -> BlockMask:
    """The mask that was packed into ``bits``, checked against ``layout`` and the block the recipe states."""
    if layout is None or layout.shape != (4,) or bits.dtype != np.uint8 or bits.ndim != 1:
        raise ValueError(f"{where}: expected packed bits (uint8) and NAME{_LAYOUT} with n, k, out, in")
    n, k, out, inner = (int(size) for size in layout)
    if (out, inner) != block:
        raise ValueError(f"{where}: stored for blocks of {out}x{inner} (out x in), block says {block[0]}x{block[1]}")
    grid = grid_shape((n, k), block)
    if bits.size != -(-prod(grid) // 8):
        raise ValueError(f"{where}: wrong grid shape: {bits.size} bytes do not hold {grid[0]}x{grid[1]} blocks of a {n}x{k} weight")
    kept = np.unpackbits(bits, count=prod(grid)).astype(np.bool_).reshape(grid)
    return BlockMask((n, k), block, kept)


def recipe_names() -> list[str]:
    """Names of the recipes that come with hwmodel, sorted."""
    return sorted(path.stem for path in content_folder("models").glob("*.toml"))


def find_recipe(recipe: str | Path) -> Path:
    """The file of a shipped recipe's name, or of a path to a user's own.

    Raises
    ------
    RecipeError
        A path that is no file.
    UnknownNameError
        A name that is not shipped; the nearest are suggested.
    """
    path = Path(recipe)
    if _is_file(path):
        return path
    if path.suffix == ".toml" or path.name != str(recipe):
        raise RecipeError(f"{path}: no such file; expected a recipe file, or one of the shipped names without ending")
    shipped = content_folder("models") / f"{recipe}.toml"
    if not _is_file(shipped):
        raise UnknownNameError("recipe", str(recipe), recipe_names())
    return shipped


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or a folder we may not look into
        return False


def load_recipe(recipe: str | Path) -> Recipe:
    """Read and check a recipe: a file's path, or a shipped name such as "deit_base_lsp_b32x32".

    Raises
    ------
    RecipeError
        A file that is missing, not TOML or not a recipe: one line with the file and every problem, each with its path.
    UnknownNameError
        A name that is not shipped; the nearest are suggested.
    """
    path = find_recipe(recipe)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    return Recipe.from_document(document, path, _MaskFiles(path.parent))


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as TOML, and its stored masks as ``NAME.npz`` beside it; the same recipe gives the same bytes.

    An expected mask is written as the density it has.

    Raises
    ------
    RecipeError
        A path that does not end in ``.toml``.
    HwmodelError
        A path that cannot be written.
    """
    import tomlkit

    target = Path(path)
    if target.suffix != ".toml":
        raise RecipeError(f"{path}: expected a file name that ends in .toml")
    check_writable(target)
    keys = _keys(recipe)
    sha256 = ""
    side = target.with_suffix(".npz")
    if keys:
        data = _packed({keys[rule.mask.digest]: rule.mask for rule in recipe.layers if isinstance(rule.mask, BlockMask)})
        sha256 = hashlib.sha256(data).hexdigest()
        write_file(side, data)
    references = {digest: {"mask": f"{side.name}#{key}", "sha256": sha256} for digest, key in keys.items()}
    write_file(target, tomlkit.dumps(_document(recipe, references)))


def _keys(recipe: Recipe) -> dict[str, str]:
    """Name in the npz file of every distinct stored mask, by digest: the first glob it was given for."""
    keys: dict[str, str] = {}
    for rule in recipe.layers:
        if isinstance(rule.mask, BlockMask) and rule.mask.digest not in keys:
            wanted, taken = rule.match[0], sum(key.partition("@")[0] == rule.match[0] for key in keys.values())
            keys[rule.mask.digest] = f"{wanted}@{taken + 1}" if taken else wanted
    return keys


def _packed(masks: Mapping[str, BlockMask]) -> bytes:
    """An npz file; the same masks give the same bytes (ZipInfo has no date of its own; no compression)."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, mask in masks.items():
            for name, array in ((key, np.packbits(mask.kept)), (key + _LAYOUT, np.array(mask.shape + mask.block, dtype=np.int64))):
                member = BytesIO()
                np.lib.format.write_array(member, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return buffer.getvalue()


def _document(recipe: Recipe, references: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The recipe as TOML knows it: no None, lists for tuples, masks by reference."""
    document = recipe.model_dump(exclude_none=True, exclude={"layers", "encoder"})
    if recipe.layers:
        document["layers"] = [_layer_document(rule, references) for rule in recipe.layers]
    if recipe.encoder:
        document["encoder"] = [_encoder_document(rule) for rule in recipe.encoder]
    return document


def _layer_document(rule: LayerRule, references: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    document = _listed(rule.model_dump(exclude_none=True, exclude={"mask"}))
    if isinstance(rule.mask, BlockMask):
        document |= references[rule.mask.digest]
    elif rule.mask is not None:
        document["density"] = rule.mask.kept_fraction
    return document


def _encoder_document(rule: EncoderRule) -> dict[str, Any]:
    return _listed(rule.model_dump(exclude_none=True))


def _listed(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
