"""Time series: the embedded and official ones as they are, broken ones refused."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tasks.data import uea
from tasks.data.errors import DataError
from tasks.data.ts_file import read_ts
from tasks.data.uea import FACTS, Facts, read_uea
from tests.support.bad_server import BadServer
from tests.support.ts_files import write_ts

GOOD = ["1,2,3:4,5,6:a", "7,8:9,10:b"]
SMALL = Facts(((2, 2),), channels=2, classes=2, longest=3)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FACTS, "Small", SMALL)


def archive(root: Path, name: str = "Small", inside: str = "") -> Path:
    folder = root / "unpacked"
    path = root / "uea" / f"{name}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for part in ("TRAIN", "TEST"):
            source = write_ts(folder / f"Small_{part}.ts", GOOD)
            file.write(source, f"{inside}Small_{part}.ts")
    return path


def test_unequal_lengths_missing_values_and_classes(tmp_path: Path) -> None:
    path = write_ts(tmp_path / "a.ts", ["1,2,3:4,?,6:b", "7,8:9:a", "1,2,?:3,?,?:a"])
    read = read_ts(path)
    assert read.class_names == ("a", "b")
    np.testing.assert_array_equal(read.labels, [1, 0, 0])
    np.testing.assert_array_equal(read.lengths, [3, 2, 2])  # up to the last observation
    nan = np.nan
    np.testing.assert_array_equal(
        read.values,
        [
            [[1, 4], [2, nan], [3, 6]],
            [[7, 9], [8, nan], [nan, nan]],
            [[1, 3], [2, nan], [nan, nan]],
        ],
    )


@pytest.mark.parametrize(
    ("cases", "header", "said"),
    [
        (GOOD, {"equal": "true"}, "header says equal lengths, found 2 to 3"),
        (GOOD, {"length": "3"}, "header says length 3, found 2 to 3"),
        (GOOD, {"channels": 3}, "channels"),
        (["1,?:2,3:a"], {"missing": "false"}, "nothing is missing, but case 0, point 1, channel 0"),
        (["1,inf:2,3:a"], {}, "infinite value, case 0, point 1, channel 0"),
        (["1,2:3,4:a", "?,?:?,?:b"], {}, "case 1 has no observation"),
        (["1,2:3,4:c"], {}, "class 'c' is not one"),
        (["1,2:3"], {}, "header says 2 channels, found 1"),
        (["1,2:3,4:a", "1,2:3,"], {}, "truncated"),
        (["1,x:3,4:a"], {}, "could not convert|no numbers"),
        ([], {}, "no cases|truncated"),
        (GOOD, {"classes": "A a b"}, "differ in case at most"),
    ],
)
def test_bad_file_says_what_and_where(
    tmp_path: Path, cases: list[str], header: dict[str, str], said: str
) -> None:
    path = write_ts(tmp_path / "bad.ts", cases, **header)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said) as caught:
        read_ts(path)
    assert str(path) in str(caught.value)


def test_header_without_classes(tmp_path: Path) -> None:
    path = write_ts(tmp_path / "bad.ts", GOOD)
    text = path.read_text().replace("@classLabel true a b", "@classLabel false")
    path.write_text(text)
    assert "@classLabel false" in text
    with pytest.raises(DataError, match="declares no classes"):
        read_ts(path)


def test_truncated_header(tmp_path: Path) -> None:
    path = write_ts(tmp_path / "bad.ts", GOOD)
    path.write_text(path.read_text()[:40])
    with pytest.raises(DataError, match="no @data line"):
        read_ts(path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("inside", ["", "Small/", "Multivariate_ts/Small/"])
def test_zip_and_files_read_alike(tmp_path: Path, inside: str) -> None:
    archive(tmp_path / "zip", inside=inside)
    archive(tmp_path / "whole", uea.WHOLE_ARCHIVE.removesuffix(".zip"), inside=inside)
    for part in ("TRAIN", "TEST"):
        write_ts(tmp_path / "files" / "uea" / "Small" / f"Small_{part}.ts", GOOD)
    read = [read_uea("Small", tmp_path / how) for how in ("zip", "whole", "files")]
    for series in read:
        np.testing.assert_array_equal(series.values, read[0].values)
        np.testing.assert_array_equal(series.lengths, [3, 2, 3, 2])
        np.testing.assert_array_equal(series.labels, [0, 1, 0, 1])


@pytest.mark.usefixtures("small")
def test_prepared_arrays_are_kept_and_follow_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path)
    first = read_uea("Small", tmp_path)
    kept = list((tmp_path / "uea" / ".prepared").glob("*.npz"))
    assert len(kept) == 1

    with monkeypatch.context() as patch:
        patch.setattr(uea, "_parse", lambda *args: pytest.fail("read again"))
        np.testing.assert_array_equal(read_uea("Small", tmp_path).values, first.values)

    kept[0].write_bytes(kept[0].read_bytes()[:100])  # broken: made again
    np.testing.assert_array_equal(read_uea("Small", tmp_path).values, first.values)

    with zipfile.ZipFile(path, "a") as file:
        file.writestr("more", "changes the checksum")
    read_uea("Small", tmp_path)
    assert len(list((tmp_path / "uea" / ".prepared").glob("*.npz"))) == 2


@pytest.mark.usefixtures("small")
def test_folder_left_alone_when_read_only(tmp_path: Path) -> None:
    path = archive(tmp_path)
    path.parent.chmod(0o555)
    try:
        read_uea("Small", tmp_path)
    finally:
        path.parent.chmod(0o755)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert list((Path(os.environ["XDG_CACHE_HOME"]) / "snopt" / "prepared").glob("Small-*.npz"))


@pytest.mark.usefixtures("small")
def test_downloaded_where_missing(
    tmp_path: Path, bad_server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_server.content = archive(tmp_path / "source").read_bytes()
    monkeypatch.setattr(uea, "_SITES", (bad_server.url("missing/"), bad_server.url("good/")))
    assert len(read_uea("Small", tmp_path).labels) == 4
    assert (tmp_path / "uea" / "Small.zip").is_file()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", ["page", "short"])
def test_mirror_is_asked_where_the_first_site_sends_no_archive(
    tmp_path: Path, bad_server: BadServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bad_server.content = archive(tmp_path / "source").read_bytes()
    monkeypatch.setattr(uea, "_SITES", (bad_server.url(f"{how}/"), bad_server.url("good/")))
    assert len(read_uea("Small", tmp_path).labels) == 4


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (Facts(((3, 2),), 2, 2, 3), r"expected \(3, 2\) training and test cases, found \(2, 2\)"),
        (Facts(((2, 2),), 3, 2, 3), "expected 3 channels, found 2"),
        (Facts(((2, 2),), 2, 3, 3), "expected 3 classes, found 2"),
        (Facts(((2, 2),), 2, 2, 2), "longest series has 3 points, more than the 2"),
    ],
)
def test_content_is_held_against_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: Facts, said: str
) -> None:
    monkeypatch.setitem(FACTS, "Small", facts)
    archive(tmp_path)
    with pytest.raises(DataError, match=said):
        read_uea("Small", tmp_path)


def test_class_without_a_case(tmp_path: Path) -> None:
    for part in ("TRAIN", "TEST"):
        path = tmp_path / "uea" / "Empty" / f"Empty_{part}.ts"
        write_ts(path, ["1,2:3,4:a", "1,2:3,4:b"], classes="a b c")
    with pytest.raises(DataError, match=r"no sample of class \[2\]"):
        read_uea("Empty", tmp_path)


def test_archive_without_the_files(tmp_path: Path) -> None:
    archive(tmp_path, "Other")
    with pytest.raises(DataError, match=r"has no Other_TRAIN\.ts"):
        read_uea("Other", tmp_path)


@pytest.mark.parametrize("name", ["JapaneseVowels", "BasicMotions"])
def test_embedded_data(tmp_path: Path, name: str) -> None:
    series, facts = read_uea(name, tmp_path), FACTS[name]
    assert series.values.shape == (sum(facts.cases[0]), facts.longest, facts.channels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "shortest", "missing"),
    [
        ("ArticularyWordRecognition", 144, 0),
        ("CharacterTrajectories", 60, None),
        pytest.param("SpokenArabicDigits", 4, 0, marks=pytest.mark.slow),
    ],
)
def test_official_data(real_data: Path, name: str, shortest: int, missing: int | None) -> None:
    series, facts = read_uea(name, real_data), FACTS[name]
    assert series.values.shape[2] == facts.channels
    assert (series.lengths.min(), series.lengths.max()) == (shortest, facts.longest)
    within = np.arange(facts.longest) < series.lengths[:, None]
    cases_with_gaps = (np.isnan(series.values).any(axis=2) & within).any(axis=1).sum()
    assert cases_with_gaps == (39 if missing is None else missing)
