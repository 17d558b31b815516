"""Downloads from a server that misbehaves in every way that networks do."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import ssl
import threading
from pathlib import Path

import pytest

from tasks.data import download
from tasks.data.errors import DataError
from tests.support.bad_server import BadServer, unreachable


def checksum(server: BadServer) -> str:
    return "sha256:" + hashlib.sha256(server.content).hexdigest()


def fetch(server: BadServer, target: Path, *how: str, **options: object) -> Path:
    settings = {"timeout": 0.3, "attempts": 3, "pause": 0.001, **options}
    return download.fetch(
        [server.url(h) for h in how],
        target,
        checksum(server),
        **settings,  # type: ignore[arg-type]
    )


def left_over(folder: Path) -> list[str]:
    """Files that are neither hidden nor a part to be continued."""
    return [p.name for p in folder.iterdir() if p.suffix not in (".part", ".lock")]


@pytest.mark.parametrize("how", ["good", "redirect", "once", "norange"])
def test_file_arrives(bad_server: BadServer, tmp_path: Path, how: str) -> None:
    target = tmp_path / "new" / "file.bin"
    assert fetch(bad_server, target, how).read_bytes() == bad_server.content
    assert left_over(target.parent) == ["file.bin"]
    assert not target.with_name("file.bin.part").exists()


def test_broken_download_continues_where_it_stopped(bad_server: BadServer, tmp_path: Path) -> None:
    fetch(bad_server, tmp_path / "file.bin", "once")
    half = len(bad_server.content) // 2
    assert [asked for _, asked in bad_server.requests] == [None, f"bytes={half}-"]


def test_next_run_continues_what_the_last_left(bad_server: BadServer, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    with pytest.raises(DataError, match="broke off"):
        fetch(bad_server, target, "truncate", attempts=1)
    assert left_over(tmp_path) == []
    fetch(bad_server, target, "good")
    assert target.read_bytes() == bad_server.content
    assert bad_server.requests[-1][1] == f"bytes={len(bad_server.content) // 2}-"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncate", "broke off after"),
        ("stall", "timed out|broke off"),
        ("missing", "HTTP 404"),
        ("broken", "HTTP 500"),
        ("corrupt", "found sha256:"),
    ],
)
def test_failure_names_file_checksum_and_command(
    bad_server: BadServer, tmp_path: Path, how: str, said: str
) -> None:
    target = tmp_path / "file.bin"
    with pytest.raises(DataError, match=said) as caught:
        fetch(bad_server, target, how)
    message = str(caught.value)
    assert str(target) in message
    assert checksum(bad_server) in message
    assert f"curl -L --create-dirs -o '{target}' '{bad_server.url(how)}'" in message
    assert left_over(tmp_path) == []


def test_corrupt_bytes_are_not_continued(bad_server: BadServer, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    with pytest.raises(DataError):
        fetch(bad_server, target, "corrupt")
    assert not target.with_name("file.bin.part").exists()
    assert len(bad_server.requests) == 1  # the same address would serve the same again


def test_wrong_part_is_thrown_away_and_fetched_again(bad_server: BadServer, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.with_name("file.bin.part").write_bytes(b"something else")
    fetch(bad_server, target, "good")
    assert target.read_bytes() == bad_server.content


def test_part_longer_than_the_file_is_fetched_again(bad_server: BadServer, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.with_name("file.bin.part").write_bytes(bad_server.content + b"more")
    fetch(bad_server, target, "good")
    assert target.read_bytes() == bad_server.content


def test_continuation_at_another_place_is_refused(bad_server: BadServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another place"):
        fetch(bad_server, tmp_path / "file.bin", "elsewhere")


@pytest.mark.parametrize("first", ["truncate", "missing", "corrupt", "stall"])
def test_mirror_takes_over(bad_server: BadServer, tmp_path: Path, first: str) -> None:
    target = fetch(bad_server, tmp_path / "file.bin", first, "good", attempts=1)
    assert target.read_bytes() == bad_server.content


@pytest.mark.parametrize(
    "error", [ssl.SSLError("bad record"), OSError(errno.EHOSTUNREACH, "No route to host")]
)
def test_connection_that_breaks_is_no_disk_that_is_full(
    bad_server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    errors = [error]
    read1 = http.client.HTTPResponse.read1

    def once(response: http.client.HTTPResponse, size: int = -1) -> bytes:
        if errors:
            raise errors.pop()
        return read1(response, size)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", once)
    target = fetch(bad_server, tmp_path / "file.bin", "good")
    assert target.read_bytes() == bad_server.content
    assert len(bad_server.requests) == 2


def test_redirect_to_nowhere(bad_server: BadServer, tmp_path: Path) -> None:
    target = fetch(bad_server, tmp_path / "file.bin", "lost", "good")
    assert target.read_bytes() == bad_server.content
    assert len(bad_server.requests) == 2  # the first is not asked again


@pytest.mark.parametrize("how", ["page", "short"])
def test_content_is_looked_into_where_no_checksum_is_known(
    bad_server: BadServer, tmp_path: Path, how: str
) -> None:
    def check(path: Path) -> None:
        if path.read_bytes() != bad_server.content:
            raise DataError("not it")

    target = tmp_path / "file.bin"
    with pytest.raises(DataError, match=r"what came is not the file \(not it\)"):
        download.fetch([bad_server.url(how)], target, None, check)
    assert left_over(tmp_path) == []
    assert not target.with_name("file.bin.part").exists()
    download.fetch([bad_server.url(how), bad_server.url("good")], target, None, check)
    assert target.read_bytes() == bad_server.content


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"could not be downloaded.*refused") as caught:
        download.fetch([unreachable()], tmp_path / "file.bin", "md5:0", attempts=1)
    assert "expected md5:0" in str(caught.value)


def test_only_web_addresses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an http"):
        download.fetch(["file:///etc/hostname"], tmp_path / "file.bin", None)


def test_file_that_is_there_is_checked_not_fetched(bad_server: BadServer, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(b"half of it")
    with pytest.raises(DataError, match="damaged or not the official file") as caught:
        download.obtain([bad_server.url("good")], target, checksum(bad_server))
    found = hashlib.sha256(b"half of it").hexdigest()
    assert f"expected {checksum(bad_server)}, found sha256:{found}" in str(caught.value)
    assert bad_server.requests == []
    assert target.read_bytes() == b"half of it"  # the user's own file is left alone


def test_parallel_runs_download_once(bad_server: BadServer, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=fetch, args=(bad_server, tmp_path / "file.bin", "good"))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bad_server.requests) == 1


def test_folder_that_cannot_be_made(bad_server: BadServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written.*data.root"):
        fetch(bad_server, tmp_path / "file" / "file.bin", "good")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(bad_server: BadServer, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    os.symlink("/dev/full", target.with_name("file.bin.part"))
    with pytest.raises(DataError, match="No space left"):
        fetch(bad_server, target, "good")
    assert left_over(tmp_path) == []
