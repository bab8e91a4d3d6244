"""Cohorts of another hospital for a run on small pictures: other patients, other images, the same two classes."""

from collections.abc import Sequence
from pathlib import Path

from tests.support.builders import encode, picture, write_csv

FIRST = 5000  # seeds that no training picture has


def write_cohort(
    folder: Path,
    *,
    n: int = 80,
    labels: Sequence[str] | None = None,
    columns: Sequence[str] = ("site", "age"),
    images_per_patient: int = 2,
) -> Path:
    """Write pictures that a head of `tests.support.predicted` mostly classifies, with a table of labels.

    By default the classes are those of the pictures; sites are "north" and "south", ages 30 to 69.
    """
    rows = [["path", "label", "patient", *columns]]
    for i in range(n):
        patient = i // images_per_patient
        is_benign = patient % 2 == 1
        image = picture(seed=FIRST + i).point(
            lambda value, dark=is_benign, i=i: value // (3 if dark == (i % 7 != 0) else 1)
        )
        path = folder / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
        label = ("benign" if is_benign else "malignant") if labels is None else labels[i]
        cells = {"site": ("north", "south")[patient // 2 % 2], "age": str(30 + patient % 40)}
        rows.append([path.name, label, f"q{patient}", *(cells[column] for column in columns)])
    write_csv(folder / "labels.csv", rows)
    return folder
