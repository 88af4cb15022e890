"""Recipe files: what is read, what is refused and in which words, what is written."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hwmodel.errors import HwmodelError, RecipeError, UnknownNameError
from hwmodel.extraction.whatif.recipe_files import find_recipe, load_recipe, recipe_names, save_recipe
from hwmodel.extraction.whatif.recipes import EncoderRule, LayerRule, Recipe
from hwmodel.extraction.whatif.token_rules import planned
from hwmodel.extraction.whatif.token_steps import Given
from hwmodel.extraction.whatif.tokens import Tokens
from hwmodel.ir.masks import BlockMask, expected_mask

HEAD = 'schema_version = 1\nmodel = "deit_tiny_patch16_224"\nsource = "a test"\n'
LAYER = HEAD + '[[layers]]\nmatch = ["head"]\n'
BLOCK = LAYER + "block = [16, 16]\n"
ENCODER = HEAD + '[[encoder]]\nblocks = "0-3"\n'
MASK = BlockMask((40, 24), (16, 16), np.array([[True, False], [False, False], [True, True]]))


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str) -> Recipe:
        (tmp_path / "mine.toml").write_text(text)
        return load_recipe(tmp_path / "mine.toml")

    return read


def stored(tmp_path: Path, *rules: LayerRule) -> Path:
    path = tmp_path / "mine.toml"
    save_recipe(Recipe(model="m", source="s", layers=rules or (LayerRule(match=("a",), mask=MASK),)), path)
    return path


def test_every_field_is_read(read) -> None:
    recipe = read(
        HEAD
        + 'remarks = "r"\nimage_size = 768\n[vita]\npe = "32x16"\n[published]\nsource = "Table 1"\ntop1_pct = 80\n'
        + '[[layers]]\nmatch = ["a", "b.*"]\nblock = [64, 32]\ndensity = 0.25\nexpect = "row-clustered"\ndtype = "int8"\n'
        + '[[encoder]]\nblocks = "0, 2, 4-6"\nheads = [0, 3]\nmlp = 100\nkeep = 0.5\n'
    )
    assert recipe == Recipe(
        model="deit_tiny_patch16_224",
        source="a test",
        remarks="r",
        image_size=768,
        vita={"pe": "32x16"},
        published={"source": "Table 1", "top1_pct": 80},
        layers=(LayerRule(match=("a", "b.*"), block=(64, 32), density=0.25, expect="row-clustered", dtype="int8"),),
        encoder=(EncoderRule(blocks="0,2,4-6", heads=(0, 3), mlp=100, keep=0.5),),
    )
    assert recipe.encoder[0].indices == (0, 2, 4, 5, 6)
    assert recipe.design == {"vita": {"pe": "32x16"}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "schema_version: missing, expected 1; model: missing; source: missing"),
        ("schema_version = 2" + HEAD[18:], "schema_version: expected 1, found 2"),
        (HEAD + 'modle = "x"\n', "modle: unknown key; did you mean 'model'"),
        (HEAD + 'layers = "head"\n', "layers: expected a list, found 'head'"),
        (HEAD + "image_size = 0\n", "image_size: expected greater than or equal to 1, found 0"),
        (HEAD + '[vita]\npe = "32"\n', "vita.pe: "),
        (HEAD + "[published]\ntop1_pct = 80\n", "published: needs source"),
        (HEAD + '[published]\nsource = "s"\ntop1_pct = [1]\n', "published: expected a table of numbers and texts"),
        (BLOCK + "density = 1.5\n", "layers.0.density: expected less than or equal to 1, found 1.5"),
        (BLOCK + "density = -0.1\n", "layers.0.density: expected greater than or equal to 0, found -0.1"),
        (BLOCK + "density = nan\n", "layers.0.density: "),
        (BLOCK + 'density = "half"\n', "layers.0.density: expected a valid number, found 'half'"),
        (BLOCK + "dencity = 0.5\n", "layers.0.dencity: unknown key; did you mean 'density'"),
        (BLOCK, "layers.0: says nothing: expected block with density or mask, sparsity, dtype or weight_dtype"),
        (LAYER, "layers.0: says nothing"),
        (LAYER + "density = 0.5\n", "layers.0: block = [out, in] and density (or mask) belong together"),
        (BLOCK + 'dtype = "int8"\n', "layers.0: block = [out, in] and density (or mask) belong together"),
        (LAYER + "block = [16]\ndensity = 0.5\n", "layers.0.block"),
        (LAYER + "block = [0, 16]\ndensity = 0.5\n", "layers.0.block.0: expected greater than or equal to 1, found 0"),
        (LAYER + "block = 16\ndensity = 0.5\n", "layers.0.block: expected a list, found 16"),
        (
            BLOCK + 'density = 0.5\nexpect = "clustered"\n',
            "layers.0.expect: expected 'uniform', 'row-clustered' or 'tile-clustered'",
        ),
        (LAYER + 'dtype = "int8"\nexpect = "uniform"\n', "layers.0: expect says how blocks lie where only a density is known"),
        (LAYER + 'dtype = "int7"\n', "layers.0.dtype: unknown dtype 'int7': did you mean 'int"),
        (HEAD + "[[layers]]\nmatch = []\n", "layers.0.match: "),
        (HEAD + '[[layers]]\nmatch = "head"\n', "layers.0.match: expected a list, found 'head'"),
        (BLOCK + 'density = 0.5\nsha256 = "0"\n', "layers.0.sha256: belongs to a mask, and the entry has none"),
        (BLOCK + 'mask = "gone.npz#a"\nsha256 = "0"\n', "gone.npz cannot be read (No such file or directory)"),
        (BLOCK + 'mask = "gone.npz"\n', "layers.0.mask: expected \"FILE.npz#NAME\", found 'gone.npz'"),
        (LAYER + 'mask = "gone.npz#a"\n', "layers.0.mask: needs block = [out, in] beside it"),
        (ENCODER, "encoder.0: says nothing: expected heads, qk, v, mlp, remove, identity, tokens, keep or merge"),
        (ENCODER + "tokens = 3\nkeep = 0.5\n", "encoder.0: tokens and keep exclude each other"),
        (ENCODER + "tokens = 0\n", "encoder.0.tokens: expected a count of at least 1, or {values = [...]"),
        (ENCODER + "keep = 0\n", "encoder.0.keep: expected greater than 0, found 0"),
        (ENCODER + "keep = 1.1\n", "encoder.0.keep: expected less than or equal to 1, found 1.1"),
        (ENCODER + "heads = 0\n", "encoder.0.heads: expected a count of at least 1, or a list of distinct head indices, found 0"),
        (ENCODER + "heads = [1, 1]\n", "encoder.0.heads: expected a count of at least 1, or a list of distinct head indices"),
        (ENCODER + "heads = true\n", "encoder.0.heads: expected a count of at least 1"),
        (ENCODER + "mlp = -1\n", "encoder.0.mlp: expected greater than or equal to 1, found -1"),
        (ENCODER + "{values = [1]}", "not valid TOML"),
        (ENCODER + "tokens = {values = [9], probability = [0.9]}\n", "encoder.0.tokens: probabilities must sum to 1, found 0.9"),
        (ENCODER + "head = 3\n", "encoder.0.head: unknown key; did you mean 'heads'"),
        (HEAD + '[[encoder]]\nblocks = "4-"\nheads = 1\n', "encoder.0.blocks: expected block indices such as"),
        (HEAD + '[[encoder]]\nblocks = "4-2"\nheads = 1\n', "encoder.0.blocks: expected block indices such as"),
        (HEAD + "[[encoder]]\nblocks = 4\nheads = 1\n", "encoder.0.blocks: expected a valid string, found 4"),
        (HEAD + 'model = "twice"\n', "not valid TOML: Cannot overwrite a value"),
    ],
)
def test_refusals_name_file_path_and_reason(read, text: str, expected: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        read(text)
    message = str(refusal.value)
    assert expected in message
    assert "mine.toml: " in message
    assert "\n" not in message


def test_all_problems_come_at_once(read) -> None:
    with pytest.raises(RecipeError) as refusal:
        read(BLOCK + 'density = 2.0\n[[encoder]]\nblocks = "x"\nheads = 0\n[vita]\npee = "1x1"\n')
    for path in ("layers.0.density", "encoder.0.blocks", "encoder.0.heads", "vita.pe: missing", "vita.pee: unknown key"):
        assert path in str(refusal.value)


def test_stored_masks_load_back_and_are_stored_once(tmp_path: Path) -> None:
    other = BlockMask.full((40, 24), (16, 16))
    rules = [LayerRule(match=(name,), mask=mask) for name, mask in (("a", MASK), ("b", MASK), ("a", other))]
    path = stored(tmp_path, *rules)
    assert [rule.mask for rule in load_recipe(path).layers] == [MASK, MASK, other]
    with np.load(tmp_path / "mine.npz") as archive:
        assert sorted(archive.files) == ["a", "a.layout", "a@2", "a@2.layout"]
        assert archive["a"].nbytes == 1  # 6 blocks in 8 bits
        assert archive["a.layout"].tolist() == [40, 24, 16, 16]


def test_same_recipe_same_bytes(tmp_path: Path) -> None:
    first = [(stored(tmp_path)).read_bytes(), (tmp_path / "mine.npz").read_bytes()]
    save_recipe(load_recipe(tmp_path / "mine.toml"), tmp_path / "mine.toml")
    assert [(tmp_path / "mine.toml").read_bytes(), (tmp_path / "mine.npz").read_bytes()] == first


def test_expected_masks_are_written_as_densities(tmp_path: Path) -> None:
    mask = expected_mask((64, 64), (16, 16), 0.3)  # round(0.3 * 16) = 5 blocks
    rule = load_recipe(stored(tmp_path, LayerRule(match=("a",), mask=mask))).layers[0]
    assert rule.mask is None
    assert rule.density == 5 / 16


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("npz#a", "npz#b", "mine.npz has no mask 'b'; expected one of a"),
        ("block = [16, 16]", "block = [16, 8]", "stored for blocks of 16x16 (out x in), block says 16x8"),
        ('sha256 = "', 'sha256 = "0', "the recipe expects 0"),
        ("sha256", "md5", "the recipe expects none: add sha256 beside mask"),
    ],
)
def test_references_that_do_not_fit_their_file(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = stored(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RecipeError) as refusal:
        load_recipe(path)
    assert "mine.toml: " in str(refusal.value)
    assert "layers.0.mask: " in str(refusal.value)
    assert expected in str(refusal.value)


def test_mask_file_that_changed(tmp_path: Path) -> None:
    path = stored(tmp_path)
    (tmp_path / "mine.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:-1])
    with pytest.raises(RecipeError, match=r"layers\.0\.mask: mine\.npz has sha256 [0-9a-f]{64}, the recipe expects [0-9a-f]{64}"):
        load_recipe(path)


def replaced(path: Path, data: bytes) -> None:
    """Put other content behind a recipe's mask, with the checksum that belongs to it."""
    side = path.with_suffix(".npz")
    before = hashlib.sha256(side.read_bytes()).hexdigest()
    side.write_bytes(data)
    path.write_text(path.read_text().replace(before, hashlib.sha256(data).hexdigest()))


def archive(tmp_path: Path, **arrays: np.ndarray) -> bytes:
    np.savez(tmp_path / "other.npz", **arrays)
    return (tmp_path / "other.npz").read_bytes()


def test_mask_file_of_another_kind(tmp_path: Path) -> None:
    layout = np.array([40, 24, 16, 16])
    bits = np.packbits(MASK.kept)
    cases = [
        (b"not an archive", "is not an npz file of plain arrays"),
        (b"", "is not an npz file of plain arrays"),
        (archive(tmp_path, a=bits), "expected packed bits (uint8) and NAME.layout"),
        (archive(tmp_path, a=MASK.kept, **{"a.layout": layout}), "expected packed bits (uint8)"),
        (archive(tmp_path, a=np.array([None]), **{"a.layout": layout}), "is not an npz file of plain arrays"),
        (archive(tmp_path, a=np.zeros(2, np.uint8), **{"a.layout": layout}), "wrong grid shape: 2 bytes do not hold 3x2 blocks"),
        (archive(tmp_path, a=bits, **{"a.layout": np.array([8, 8, 16, 16])}), "a block of 16x16 does not fit a weight of 8x8"),
    ]
    for data, expected in cases:
        path = stored(tmp_path)
        replaced(path, data)
        with pytest.raises(RecipeError) as refusal:
            load_recipe(path)
        assert expected in str(refusal.value)


def test_saving_where_nothing_can_be_saved(tmp_path: Path) -> None:
    recipe = Recipe(model="m", source="s")
    with pytest.raises(RecipeError, match=r"ends in \.toml"):
        save_recipe(recipe, tmp_path / "mine.json")
    with pytest.raises(HwmodelError, match="does not exist"):
        save_recipe(recipe, tmp_path / "gone" / "mine.toml")
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert find_recipe("deit_base_lsp_b32x32").name == "deit_base_lsp_b32x32.toml"
    assert "deit_base_lsp_b32x32" in recipe_names()
    assert find_recipe(stored(tmp_path)) == tmp_path / "mine.toml"
    with pytest.raises(UnknownNameError, match="unknown recipe 'deit_base_lsp_32x32': did you mean 'deit_base_lsp_b32x32'"):
        find_recipe("deit_base_lsp_32x32")
    for gone in (tmp_path / "gone.toml", tmp_path / "gone", "gone.toml"):
        with pytest.raises(RecipeError, match="no such file"):
            load_recipe(gone)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(tmp_path / "mine.toml")


def test_rules_in_python_are_checked_too() -> None:
    with pytest.raises(ValueError, match="expected a BlockMask"):
        LayerRule(match=("a",), block=(16, 16), mask="masks.npz#a")
    with pytest.raises(ValueError, match=r"block is \(8, 8\), the mask's is \(16, 16\)"):
        LayerRule(match=("a",), block=(8, 8), mask=MASK)
    with pytest.raises(ValueError, match="density and mask exclude each other"):
        LayerRule(match=("a",), density=0.5, mask=MASK)


@pytest.mark.parametrize(
    ("patches", "keep", "left"),
    [(196, 0.7, 138), (196, 0.5, 98), (196, 1.0, 196), (196, 1e-6, 1), (100, 0.07, 7), (100, 0.29, 29)],
)
def test_kept_fractions_are_rounded_up(patches: int, keep: float, left: int) -> None:
    """ceil(0.7 * 196 = 137.2) = 138; 0.07 * 100 is 7, whatever binary fractions make of it."""
    tokens = Tokens(images=1, patches=patches, prefix=1, width=8)
    assert planned([0], [EncoderRule(blocks="0", keep=keep)], tokens, "recipe") == {0: Given(left)}


def test_recipes_need_no_torch() -> None:
    code = "import sys, hwmodel as hw; hw.load_recipe('deit_base_lsp_b32x32'), hw.prune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
