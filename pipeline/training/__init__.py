"""AdamW and cross-entropy over cached tensors, hundreds of heads in one pass. Takes tensors, knows no files."""

from hoarfrost.heads.config import TrainingConfig
from hoarfrost.training.looks import Looks
from hoarfrost.training.records import Fold, Labelled, TrainedEpoch, TrainedHead, committee_of
from hoarfrost.training.rows import HeldRows, Rows, StreamedRows
from hoarfrost.training.training import train_heads

__all__ = [
    "Fold", "HeldRows", "Labelled", "Looks", "Rows", "StreamedRows", "TrainedEpoch", "TrainedHead", "TrainingConfig",
    "committee_of", "train_heads",
]  # fmt: skip
