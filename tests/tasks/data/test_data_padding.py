"""Re-issues that pad unequal series to equal lengths are read as what they hold, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.data.integrity import fingerprint
from tasks.data.uea import ANOTHER_COPY, FACTS, Facts, read_uea
from tests.support.ts_files import write_ts

LENGTHS = (5, 3, 4, 6)
ORIGINAL = [
    np.random.default_rng(i).normal(size=(length, 2)).round(3) for i, length in enumerate(LENGTHS)
]
LONGEST = 8


def padded(series: np.ndarray, how: str) -> np.ndarray:
    room = LONGEST - len(series)
    before = room // 2 if how in ("zeros around", "missing around") else 0
    fill = {"missing": np.nan, "missing around": np.nan}.get(how, 0.0)
    result = np.full((LONGEST, 2), fill)
    if how == "last value":
        result[:] = series[-1]
    result[before : before + len(series)] = series
    return result


def write(root: Path, cases: list[np.ndarray], *, equal: bool) -> None:
    for index, part in enumerate(("TRAIN", "TEST")):
        lines = []
        for number in (2 * index, 2 * index + 1):
            channels = [
                ",".join("?" if np.isnan(x) else repr(float(x)) for x in channel)
                for channel in cases[number].T
            ]
            lines.append(":".join([*channels, "ab"[number % 2]]))
        path = root / "uea" / "Small" / f"Small_{part}.ts"
        header = {"equal": "true", "length": str(LONGEST)} if equal else {}
        write_ts(path, lines, **header)


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    facts = Facts(((2, 2),), channels=2, classes=2, longest=LONGEST, shortest=3)
    monkeypatch.setitem(FACTS, "Small", facts)
    write(tmp_path / "original", ORIGINAL, equal=False)
    series = read_uea("Small", tmp_path / "original")
    known = (fingerprint(series.values, series.lengths, series.labels),)
    monkeypatch.setitem(FACTS, "Small", Facts(((2, 2),), 2, 2, LONGEST, 3, known))
    return read_uea("Small", tmp_path / "original")


def test_the_original_is_read_as_before(original) -> None:
    assert original.lengths.tolist() == list(LENGTHS)
    assert original.provenance == "complete; official 2 and 2 cases joined and split anew"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("zeros", "padded with zeros to equal lengths"),
        ("zeros around", "padded with zeros to equal lengths"),
        ("last value", "padded with repeats of the last value to equal lengths"),
        ("missing", ""),  # a length is up to the last observation anyway
        ("missing around", "padded with missing steps"),
    ],
)
def test_padding_is_taken_off(original, tmp_path: Path, how: str, said: str) -> None:
    write(tmp_path / "again", [padded(series, how) for series in ORIGINAL], equal=True)
    again = read_uea("Small", tmp_path / "again")
    assert again.lengths.tolist() == list(LENGTHS)
    np.testing.assert_array_equal(again.values, original.values)
    assert said in again.provenance
    assert (again.provenance == original.provenance) is (said == "")
    assert ANOTHER_COPY not in again.provenance  # the same numbers in the same order


def test_another_split_is_named(original, tmp_path: Path) -> None:
    write(tmp_path / "again", [padded(s, "zeros around") for s in ORIGINAL[::-1]], equal=True)
    again = read_uea("Small", tmp_path / "again")
    assert again.lengths.tolist() == list(LENGTHS)[::-1]
    assert again.provenance.endswith(f"which were taken off; {ANOTHER_COPY}")


def test_padding_of_a_kind_that_is_not_known_is_named(original, tmp_path: Path) -> None:
    noise = np.random.default_rng(9)
    cases = [padded(s, "zeros") for s in ORIGINAL]
    cases = [np.where(case == 0, 1e-3 * noise.normal(size=case.shape), case) for case in cases]
    write(tmp_path / "again", cases, equal=True)
    assert read_uea("Small", tmp_path / "again").provenance.endswith(ANOTHER_COPY)


def test_equal_lengths_by_nature_keep_their_zeros(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(FACTS, "Small", Facts(((2, 2),), 2, 2, LONGEST, LONGEST))
    write(tmp_path, [padded(series, "zeros") for series in ORIGINAL], equal=True)
    series = read_uea("Small", tmp_path)
    assert series.lengths.tolist() == [LONGEST] * 4
    assert "padded" not in series.provenance


def test_official_character_trajectories_padded_again(real_data: Path, tmp_path: Path) -> None:
    from tasks.data.padding import unpadded

    series = read_uea("CharacterTrajectories", real_data)
    assert ANOTHER_COPY not in series.provenance
    before = (182 - series.lengths) // 2
    places = np.arange(182)[None] - before[:, None]
    inside = (places >= 0) & (places < series.lengths[:, None])
    stored = np.take_along_axis(series.values, np.clip(places, 0, 181)[..., None], axis=1)
    stored[~inside] = 0.0
    values, lengths, note = unpadded(stored, np.full(len(stored), 182), (1422, 1436))
    np.testing.assert_array_equal(lengths, series.lengths)
    np.testing.assert_array_equal(values, series.values)
    assert "padded with zeros" in note
