"""The run folder that `train` writes, and its records.

```
DIR/config.json      the settings, and where the data came from
DIR/metrics.json     the scores of all heads, and the selected one
DIR/predictions.csv  path, patient, split, label, one probability column per head
DIR/attributes.csv   further columns of an evaluation that keeps no cache
DIR/out_of_fold.csv  the same from cross-validation, with the fold that held the image out
DIR/repeats.csv      the probabilities by the heads of each repeated split, empty where they learned from the image
DIR/left_out.csv     the probabilities by the heads that never saw the image's site, and by those of a mixed split
DIR/history.csv      head, seed, epoch, losses, validation ROC AUC and learning rate
DIR/heads/*.safetensors   weights; the head's description is in the file's metadata
DIR/looks.csv        looks at a locked test split, with --lock-test
DIR/locked.zip       its scores, until the first look puts them into metrics.json and predictions.csv
DIR/SHA256SUMS       the digest of each file, for `sha256sum --check`; a changed file is refused
DIR/tensorboard/     training curves for TensorBoard, with --tensorboard
```
"""

from hoarfrost.runs.acquisition import Acquisition
from hoarfrost.runs.covariates import AddedValue, CovariateFacts, Covariates, images_alone, in_words
from hoarfrost.runs.decoding import from_json, to_json
from hoarfrost.runs.digests import check_digest
from hoarfrost.runs.embeddings import CacheFacts, EmbeddingFacts
from hoarfrost.runs.external import CohortDifference, Drop, External, OverlapCheck
from hoarfrost.runs.folder import (
    OWN_FILES,
    REPORT,
    check_run_directory,
    metrics_document,
    read_heads,
    read_looked_at,
    read_run,
    read_splits,
    write_run,
)
from hoarfrost.runs.left_out import LeftOut, LeftOutSite
from hoarfrost.runs.lock import AnalysisPlan, Look
from hoarfrost.runs.optimistic import heads_marked, optimistic, references_marked
from hoarfrost.runs.outlook import outlook_of, outlook_text, precision_text, scored_area
from hoarfrost.runs.records import (
    NO_TEST_SPLIT,
    SPLITS,
    ComparedViews,
    DatasetFacts,
    Epoch,
    HeadResult,
    OutOfFold,
    Predictions,
    ReferenceResult,
    Run,
    RunConfig,
    RunHeads,
    SeedResult,
    SplitSize,
    TrainOptions,
    UnreadableImage,
    ViewsResult,
    class_numbers,
)
from hoarfrost.runs.resampled import CrossValidated, CrossValidation, LearningPoint, RepeatedSplits
from hoarfrost.runs.sealed import hidden, record_look
from hoarfrost.runs.tensorboard import require_tensorboard
from hoarfrost.runs.trust import (
    Assessment,
    ClassAssessment,
    Confusion,
    FixedPoint,
    Recalibration,
    Suspects,
    leakage_warnings,
    shared_text,
    together_text,
)

__all__ = [
    "NO_TEST_SPLIT",
    "OWN_FILES",
    "REPORT",
    "SPLITS",
    "Acquisition",
    "AddedValue",
    "AnalysisPlan",
    "Assessment",
    "CacheFacts",
    "ClassAssessment",
    "CohortDifference",
    "ComparedViews",
    "Confusion",
    "CovariateFacts",
    "Covariates",
    "CrossValidated",
    "CrossValidation",
    "DatasetFacts",
    "Drop",
    "EmbeddingFacts",
    "Epoch",
    "External",
    "FixedPoint",
    "HeadResult",
    "LearningPoint",
    "LeftOut",
    "LeftOutSite",
    "Look",
    "OutOfFold",
    "OverlapCheck",
    "Predictions",
    "Recalibration",
    "ReferenceResult",
    "RepeatedSplits",
    "Run",
    "RunConfig",
    "RunHeads",
    "SeedResult",
    "SplitSize",
    "Suspects",
    "TrainOptions",
    "UnreadableImage",
    "ViewsResult",
    "check_digest",
    "check_run_directory",
    "class_numbers",
    "from_json",
    "heads_marked",
    "hidden",
    "images_alone",
    "in_words",
    "leakage_warnings",
    "metrics_document",
    "optimistic",
    "outlook_of",
    "outlook_text",
    "precision_text",
    "read_heads",
    "read_looked_at",
    "read_run",
    "read_splits",
    "record_look",
    "references_marked",
    "require_tensorboard",
    "scored_area",
    "shared_text",
    "to_json",
    "together_text",
    "write_run",
]
