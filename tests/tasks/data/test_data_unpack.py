"""Archives that try to write where they should not."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tasks.data.errors import DataError
from tasks.data.unpack import gunzip, member_names, unpack


def tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = 4 if member.isreg() else 0
            archive.addfile(member, io.BytesIO(b"data"))
    return path


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(path: Path, name: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, b"data")
    return path


@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_wanted_member_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"archive.{suffix}"
    archive = zipped(path, "in/a") if suffix == "zip" else tar(path, tarfile.TarInfo("in/a"))
    assert member_names(archive) == ["in/a"]
    unpack(archive, {"in/a": tmp_path / "out" / "a"})
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert (tmp_path / "out" / "a").read_bytes() == b"data"


@pytest.mark.parametrize("name", ["/abs", "../up", "in/../../up", "C:\\abs", "..\\up"])
@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_member_outside_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"archive.{suffix}"
    archive = zipped(path, name) if suffix == "zip" else tar(path, tarfile.TarInfo(name))
    with pytest.raises(DataError, match="outside the archive; refused"):
        unpack(archive, {name: tmp_path / "a"})
    assert [p.name for p in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize(
    "member",
    [
        link("a", "/etc/passwd", tarfile.SYMTYPE),
        link("a", "b", tarfile.LNKTYPE),
        link("a", "", tarfile.CHRTYPE),
        link("a", "", tarfile.FIFOTYPE),
    ],
)
def test_link_or_device_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    with pytest.raises(DataError, match="link or device; refused"):
        unpack(
            tar(tmp_path / "a.tar.gz", tarfile.TarInfo("good"), member), {"good": tmp_path / "g"}
        )
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damage_anywhere_is_a_data_error_or_none(tmp_path: Path, method: int) -> None:
    archive, target = tmp_path / "a.zip", tmp_path / "out"
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("a", bytes(range(256)) * 8)
    content = archive.read_bytes()
    refused = 0
    for place in range(len(content)):
        for value in (0, 255):
            archive.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                unpack(archive, {"a": target})
            except DataError:
                refused += 1
    assert refused > len(content)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.zip", "out"}


def test_encrypted_member(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", "a")
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # the local header's flag
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the directory's
    archive.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        unpack(archive, {"a": tmp_path / "out"})


def test_unpacked_files_have_the_rights_of_new_ones(tmp_path: Path) -> None:
    unpack(zipped(tmp_path / "a.zip", "a"), {"a": tmp_path / "out"})
    (tmp_path / "new").touch()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        unpack(zipped(tmp_path / "a.zip", "a"), {"a": tmp_path / "file" / "a"})


def test_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", "a", stat.S_IFLNK | 0o777)
    with pytest.raises(DataError, match="link or device; refused"):
        member_names(archive)


def test_missing_member(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no member b"):
        unpack(tar(tmp_path / "a.tar.gz", tarfile.TarInfo("a")), {"b": tmp_path / "b"})


def test_member_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.data.unpack.MOST_BYTES", 3)
    with pytest.raises(DataError, match="claims 4 bytes; refused"):
        unpack(tar(tmp_path / "a.tar.gz", tarfile.TarInfo("a")), {"a": tmp_path / "a"})


@pytest.mark.parametrize("suffix", ["tar.gz", "zip", "gz"])
def test_truncated_archive_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"archive.{suffix}"
    if suffix == "zip":
        zipped(path, "a")
    else:
        tar(path, tarfile.TarInfo("a"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    take = gunzip if suffix == "gz" else lambda archive, target: unpack(archive, {"a": target})
    with pytest.raises(DataError, match="broken archive"):
        take(path, tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
