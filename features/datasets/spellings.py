"""Labels that are one label, but written in several ways: they would be separate classes."""

import csv
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.options import TableOptions
from hoarfrost.features.datasets.table import Dataset, to_nfc
from hoarfrost.features.errors import DatasetError

MISSING = frozenset({"nan", "null", "#n/a", "<na>"})
"""Texts that programs write for a missing value, normalised."""

_SHOWN_GROUPS = 5
_INVISIBLE = frozenset({"Cf", "Cc"})  # zero-width spaces, byte order marks, control characters
_WAYS_OUT = (
    "To count such labels as one, pass --merge-labels: the most frequent spelling stays. To name each yourself, pass "
    "--label-map FILE, a CSV with the columns label,name."
)


def normal_form(label: str) -> str:
    """Return a label without what people do not see as a difference: case, Unicode forms, spaces, a number's format."""
    text = unicodedata.normalize("NFKC", label)
    text = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
    text = unicodedata.normalize("NFKC", " ".join(text.split()).casefold())
    if text in {"nan", "inf", "infinity"} or "_" in text:
        return text
    try:
        return f"{float(text.replace(',', '.') if text.count(',') == 1 else text):.15g}"
    except ValueError:
        return text


def spellings(labels: Mapping[str, int]) -> list[dict[str, int]]:
    """Return the groups of labels, with their counts, that are one label in several spellings, the most frequent first."""
    groups: defaultdict[str, dict[str, int]] = defaultdict(dict)
    forms = {label: normal_form(label) for label in labels}
    for label, n in sorted(labels.items(), key=lambda item: (-item[1], item[0] != forms[item[0]], item[0])):
        groups[forms[label]][label] = n
    return [group for group in groups.values() if len(group) > 1]


def check_spellings(labels: Texts, source: str) -> None:
    """Raise DatasetError if labels are one in several spellings, or a missing value in words; `source` has them."""
    counts = {label: n for label, n in labels.counts().items() if label}
    missing = {label: n for label, n in counts.items() if normal_form(label) in MISSING}
    groups = spellings({label: n for label, n in counts.items() if label not in missing})
    problems = []
    if groups:
        listed = "; ".join(map(_listed, groups[:_SHOWN_GROUPS]))
        more = f"; and {len(groups) - _SHOWN_GROUPS} more" if len(groups) > _SHOWN_GROUPS else ""
        problems.append(
            "labels that differ only in case, spaces, invisible characters or a number's format would be separate "
            f"classes: {listed}{more}. {_WAYS_OUT}"
        )
    if missing:
        problems.append(
            f"the label of some images is a missing value in words: {_listed(missing)}. Fill in these labels, or remove "
            "the images. If it is the name of a class, pass --label-map FILE, a CSV with the columns label,name."
        )
    if problems:
        raise DatasetError(f"{source}: {' Also, '.join(problems)}")


def _listed(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{label!r} ({n:,} image{'s' * (n != 1)})" for label, n in labels.items())


def with_labels_named(dataset: Dataset, options: TableOptions) -> Dataset:
    """Return the dataset with its labels mapped and merged as the options say."""
    labels = labels_named(dataset.labels, options, dataset.source)
    return dataset if labels is dataset.labels else replace(dataset, labels=labels)


def labels_named(labels: Texts, options: TableOptions, source: str = "") -> Texts:
    """Return labels mapped and merged as the options say.

    Raise DatasetError if the map is damaged; or if it has none of the labels of a `source`: without one they may already be
    the names.
    """
    if options.label_map is not None:
        names = _read_map(options.label_map)
        by_form = {normal_form(label): name for label, name in names.items()}
        if source and not any(label in names or normal_form(label) in by_form for label in labels.values()):
            raise DatasetError(f"--label-map {options.label_map}: no label of {source} is in it.")
        labels = labels.mapped(lambda label: names.get(label, by_form.get(normal_form(label), label)))
    if options.merge_labels:
        merged = _first_of_each(spellings(labels.counts()))
        labels = labels.mapped(lambda label: merged.get(label, label))
    return labels


def _first_of_each(groups: Iterable[Mapping[str, int]]) -> dict[str, str]:
    return {label: next(iter(group)) for group in groups for label in group}


def _read_map(path: Path) -> dict[str, str]:
    """Read a CSV with the columns label and name."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"--label-map {path}: cannot be read: {error}.") from error
    if not rows or not {"label", "name"} <= rows[0].keys():
        raise DatasetError(f"--label-map {path}: not a CSV with the columns label,name.")
    names = {to_nfc(row["label"] or ""): to_nfc((row["name"] or "").strip()) for row in rows}
    twice = [label for label, n in Counter(row["label"] for row in rows).items() if n > 1]
    if twice or not all(names.values()):
        problem = f"{twice[0]!r} is in it twice" if twice else "a name is empty"
        raise DatasetError(f"--label-map {path}: {problem}.")
    return names
