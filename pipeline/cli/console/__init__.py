"""What a person sees of a command: progress, warnings and results as text."""

from hoarfrost.cli.console.progress import (
    extraction_progress,
    harmless,
    interruptible,
    show_warnings,
    training_progress,
)
from hoarfrost.cli.console.summaries import (
    cache_compact_text,
    cache_info_text,
    cache_verify_text,
    diagnosis_text,
    explain_text,
    export_text,
    extract_text,
    heads_text,
    predict_text,
    survey_text,
)
from hoarfrost.cli.console.training import train_text

__all__ = [
    "cache_compact_text",
    "cache_info_text",
    "cache_verify_text",
    "diagnosis_text",
    "explain_text",
    "export_text",
    "extract_text",
    "extraction_progress",
    "harmless",
    "heads_text",
    "interruptible",
    "predict_text",
    "show_warnings",
    "survey_text",
    "train_text",
    "training_progress",
]
