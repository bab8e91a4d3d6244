"""What pROC 1.18.0 (R) says of five synthetic cases, each with two scores."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.samples import Sample

REFERENCE = Path(__file__).parent / "reference"
EXPECTED: dict[str, dict[str, Any]] = json.loads((REFERENCE / "roc_expected.json").read_text())
CASES_AND_SCORES = [(case, which) for case in EXPECTED for which in ("a", "b")]


def reference_case(name: str, which: str) -> Sample:
    with (REFERENCE / "roc_cases.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == name]
    return np.array([int(row["y"]) for row in rows]), np.array([float(row[f"score_{which}"]) for row in rows])
