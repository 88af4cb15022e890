"""Whole files or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hwmodel.errors import HwmodelError
from hwmodel.files import check_writable, write_file


def test_text_is_utf8_and_bytes_are_bytes(tmp_path: Path) -> None:
    write_file(tmp_path / "text", "µs")
    write_file(str(tmp_path / "bytes"), b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == "µs".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_file(target, "long " * 1000)
    write_file(target, "short")
    assert target.read_text() == "short"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_file(target, "old")

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HwmodelError, match=r"file: cannot be written \(No space left on device\)"):
        write_file(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("write", [check_writable, lambda path: write_file(path, "x")], ids=["check", "write"])
def test_paths_that_cannot_be_written_are_told(tmp_path: Path, write) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    wrong = {
        tmp_path / "folder": "is a folder, expected the path of a file",
        tmp_path / "none" / "file": "folder '.*none' does not exist; create it first",
        tmp_path / "file" / "file": "folder '.*file' is a file, not a folder",
        tmp_path / ("x" * 300): "File name too long",
    }
    for path, message in wrong.items():
        with pytest.raises(HwmodelError, match=message):
            write(path)
    assert not (tmp_path / "none").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_the_longest_name_there_is_can_be_written(tmp_path: Path) -> None:
    """The file beside it, which is renamed, must not have a longer name."""
    for name in ("x" * 255, "ü" * 127):
        write_file(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission_are_told(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    with pytest.raises(HwmodelError, match="no permission to write here"):
        write_file(closed / "file", "x")


def test_permission_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the tests run as root: the system's answer is replaced."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HwmodelError, match="no permission to write here; choose another path"):
        check_writable(tmp_path / "file")


def test_a_relative_path_is_written_into_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_file("file", "x")
    assert (tmp_path / "file").read_text() == "x"
