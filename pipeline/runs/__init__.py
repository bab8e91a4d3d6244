"""The run folder: what one `train` did, written whole and read back.

```
DIR/config.json      what was asked and where it came from
DIR/metrics.json     every head's scores, and which head was selected
DIR/predictions.csv  path, patient, split, label, one probability column per head
DIR/history.csv      head, seed, epoch, losses, validation ROC AUC and learning rate
DIR/heads/*.safetensors   weights; the head's description is in the file's metadata
```
"""

from pipeline.runs.folder import check_run_directory, metrics_document, read_run, write_run
from pipeline.runs.records import (
    SPLITS,
    CrossValidated,
    CrossValidation,
    DatasetFacts,
    EmbeddingFacts,
    Epoch,
    HeadResult,
    LearningPoint,
    Predictions,
    ReferenceResult,
    Run,
    RunConfig,
    SeedResult,
    UnreadableImage,
    class_numbers,
)

__all__ = [
    "SPLITS",
    "CrossValidated",
    "CrossValidation",
    "DatasetFacts",
    "EmbeddingFacts",
    "Epoch",
    "HeadResult",
    "LearningPoint",
    "Predictions",
    "ReferenceResult",
    "Run",
    "RunConfig",
    "SeedResult",
    "UnreadableImage",
    "check_run_directory",
    "class_numbers",
    "metrics_document",
    "read_run",
    "write_run",
]
