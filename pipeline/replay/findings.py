"""What is found while a run is computed again: predictions that differ, and what could not be computed."""

from dataclasses import dataclass, field

import numpy as np

from hoarfrost.evaluation.checks import Floats
from hoarfrost.replay.comparing import Difference
from hoarfrost.runs import Run

CLOSE = 1e-6
"""By which a probability may differ: heads are trained in float32, on any number of threads."""
RETRAIN = "--retrain trains them again."


@dataclass
class Findings:
    """What is found while a run is computed again."""

    n_probabilities: int = 0
    largest: float = 0.0
    differing: list[Difference] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """What `skipped` is about in `metrics.json`, as `comparing.is_in` takes it: not compared, and not counted."""
    parts: dict[str, str] = field(default_factory=dict)
    """The parts of `metrics.json` that are not computed again, with the reason."""
    is_sealed: bool = False
    """Nobody has looked at the locked test split yet: its predictions are counted, not listed."""

    def skip(self, sentence: str, *places: str) -> None:
        """Note what is not computed again, and why; what is recorded in these places of `metrics.json` is not compared."""
        self.skipped.append(sentence)
        self.places += places

    def skip_parts(self, run: Run) -> None:
        """Note the parts that are not computed again, as far as the run has them."""
        for name, reason in self.parts.items():
            if getattr(run, name):
                self.skip(f"{name}: {reason}", name)

    def compare_predictions(self, run: Run, name: str, again: Floats, recorded: Floats) -> bool:
        """Compare the probabilities (n, C) of a head, and return whether some differ."""
        apart = np.abs(again - recorded).max(axis=1)
        self.n_probabilities += len(apart)
        self.largest = max(self.largest, float(apart.max()))
        wrong = np.flatnonzero(~(apart <= CLOSE))
        is_hidden = (np.array(run.predictions.splits) == "test") & self.is_sealed
        n_hidden = int(is_hidden[wrong].sum())
        if n_hidden:
            place = f"predictions.csv, {name}, locked test split"
            self.differing.append(Difference(place, f"{is_hidden.sum():,} predictions", f"{n_hidden:,} differ", None))
        for i in wrong[~is_hidden[wrong]]:
            place = f"predictions.csv, {name}, {run.predictions.paths[i]}"
            c = int(np.abs(again[i] - recorded[i]).argmax())
            self.differing.append(Difference(place, f"{recorded[i, c]:g}", f"{again[i, c]:g}", float(apart[i])))
        return len(wrong) > 0
