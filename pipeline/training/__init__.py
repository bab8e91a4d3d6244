"""AdamW and cross-entropy over cached tensors, hundreds of heads in one pass. Takes tensors, knows no files."""

from hoarfrost.heads.config import TrainingConfig
from hoarfrost.training.records import Fold, Labelled, TrainedEpoch, TrainedHead
from hoarfrost.training.rows import HeldRows, Rows, StreamedRows
from hoarfrost.training.training import train_heads

__all__ = [
    "Fold", "HeldRows", "Labelled", "Rows", "StreamedRows", "TrainedEpoch", "TrainedHead", "TrainingConfig",
    "train_heads",
]  # fmt: skip
