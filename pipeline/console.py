"""What a person sees while a command works: progress, warnings and tables. Never on stdout where JSON goes."""

import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features.cache import CacheInfo, CompactSummary, VerifyReport
    from features.plan import ExtractSummary, Progress
    from features.survey import Survey
    from pipeline.doctor import Diagnosis
    from pipeline.explain import ExplainSummary
    from pipeline.export import ExportSummary
    from pipeline.metrics import Share
    from pipeline.predict import ListedHead, PredictionSummary
    from pipeline.runs import Assessment, CrossValidation, FixedPoint, HeadResult, ReferenceResult, Run

SHOWN_HEADS = 20  # in a table
SHOWN_UNREADABLE = 20
SHOWN_EXPLAINED = 20
LINE_SECONDS = 10.0  # between lines where stderr is a file or a pipe


class _Lines(logging.Handler):
    """One line on stderr for each message; on what is stderr then, not when logging was set up."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        say(f"{'warning: ' if record.levelno >= logging.WARNING else ''}{harmless(record.getMessage())}")


def show_warnings() -> None:
    """Send the library's warnings to stderr, and what it says of a cluster."""
    handler = _Lines()
    for package in ("features", "pipeline"):
        logging.getLogger(package).handlers = [handler]
    logging.getLogger("features.cluster").setLevel(logging.INFO)


@contextmanager
def extraction_progress() -> "Iterator[Callable[[Progress], None]]":
    """Show images done, images per second and time left: a bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("images"), TextColumn("{task.fields[rate]}"))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("extract", total=None, rate="")

        def show(progress: "Progress") -> None:
            rate = f"{progress.images_per_second:.0f} images/s{_workers_text(progress)}"
            bar.update(task, completed=progress.done, total=progress.total, rate=rate)

        yield show


def _lines() -> "Callable[[Progress], None]":
    last = time.monotonic()

    def show(progress: "Progress") -> None:
        nonlocal last
        if time.monotonic() - last < LINE_SECONDS and progress.done < progress.total:
            return
        last = time.monotonic()
        left_s = (progress.total - progress.done) / max(progress.images_per_second, 1e-9)
        print(
            f"{progress.done}/{progress.total} images, {progress.images_per_second:.0f} images/s"
            f"{_workers_text(progress)}, {left_s:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return show


def _workers_text(progress: "Progress") -> str:
    if progress.workers is None:
        return ""
    return f", {progress.workers} worker{'' if progress.workers == 1 else 's'}"


def say(text: str) -> None:
    """Say on stderr what is being done."""
    print(text, file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """Write control characters out: a file's name may hold some that clear the screen."""
    return re.sub(r"[\0-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def training_progress(n_epochs: int) -> "Callable[[str, int], None]":
    """Say which heads are trained, and every few seconds how far they are."""
    last_said: dict[str, float] = {}

    def show(shape: str, epoch: int) -> None:
        now = time.monotonic()
        if shape not in last_said:
            say(f"training {shape}")
        elif now - last_said[shape] > LINE_SECONDS:
            say(f"training {shape}: epoch {epoch} of at most {n_epochs}")
        else:
            return
        last_said[shape] = now

    return show


def untrained_lines(weights: str) -> list[str]:
    """Say so where weights were never trained."""
    is_untrained = weights.startswith("random:")
    return [f"{weights} is an untrained backbone: its figures are a floor, not a result."] if is_untrained else []


def extract_text(summary: "ExtractSummary") -> str:
    """Describe an extraction in two or three lines."""
    done = f"{summary.embedded} embedded, {summary.reused} reused, {summary.failed} unreadable"
    lines = [
        f"{summary.dataset}: {summary.images} images, {done}; {summary.seconds:.1f} s",
        f"cache {summary.cache}: weights {summary.weights}, {summary.precision} on {summary.device}"
        + (f", {summary.workers} of Ray's workers" if summary.engine == "ray" else ""),
    ]
    lines += [f"  {n:,} unreadable: {kind}" for kind, n in summary.failed_by_kind.items()]
    lines += [f"  {n:,} {note}" for note, n in summary.notes.items()]
    lines += untrained_lines(summary.weights)
    return "\n".join(lines)


def survey_text(found: "Survey") -> str:
    """Describe what a data set is made of."""
    patients = "" if found.patients is None else f", {found.patients:,} patients"
    flaws = f"{found.duplicates:,} duplicates, {found.unreadable:,} unreadable"
    lines = [f"{found.dataset}: {found.images:,} images{patients}; {flaws}"]
    for kind in found.kinds:
        sizes = f"{kind.smallest[0]} x {kind.smallest[1]}"
        if kind.largest != kind.smallest:
            sizes += f" to {kind.largest[0]} x {kind.largest[1]}"
        bits = f"{kind.bits} bit{'s' if kind.bits > 1 else ''}"
        lines.append(f"  {kind.images:,} {kind.format}, {kind.mode}, {bits}, {sizes}: {kind.becomes}")
    columns = {"label": found.labels, "split": found.splits, **found.attributes}
    lines += [f"{name}: {_counts_text(counts)}" for name, counts in columns.items() if counts]
    lines += [f"  {n:,} {note}" for note, n in found.notes.items()]
    lines += [f"  {n:,} unreadable: {kind}" for kind, n in found.unreadable_by_kind.items()]
    lines += [f"    {path}: {reason}" for path, reason in found.errors[:SHOWN_UNREADABLE]]
    if len(found.errors) > SHOWN_UNREADABLE:
        lines.append(f"    and {len(found.errors) - SHOWN_UNREADABLE:,} more; --json lists them all")
    if found.refused:
        lines.append(f"extract would refuse it: {found.refused}")
    if found.contact_sheet is not None:
        lines.append(f"contact sheet {found.contact_sheet}")
    return "\n".join(lines)


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {value or '(none)'}" for value, n in counts.items())


def train_text(run: "Run") -> str:
    """Describe a run: the table of heads, and which one validation selected."""
    split = "test" if run.heads[0].test is not None else "val"
    rows: list[tuple[str, ...]] = [
        ("", "head", "parameters", "epochs", "val AUC", f"{split} AUC (95% interval)", f"{split} accuracy")
    ]
    shown = sorted(run.heads, key=lambda head: (head.name != run.selected, -head.val["roc_auc"]))[:SHOWN_HEADS]
    rows += [_head_row(head, head.name == run.selected) for head in run.heads if head in shown]
    rows += [_reference_row(reference) for reference in run.references]
    lines = _table(rows)
    if len(run.heads) > len(shown):
        lines.append(f"and {len(run.heads) - len(shown):,} more heads, which validation finds worse, in metrics.json")
    lines += _cross_validation_lines(run.cross_validation)
    lines += _learning_curve_lines(run, split)
    lines += _label_lines(run, split)
    lines += _interval_lines(run, split)
    lines += _assessment_lines(run.assessment)
    lines += [f"{head.name}: {alarm}" for head in shown for alarm in head.alarms]
    n_train = run.config.dataset.n_split["train"]
    if run.references and run.references[0].n_train < n_train:
        lines.append(f"the references are fitted on {run.references[0].n_train:,} of the {n_train:,} training images")
    counts = ", ".join(f"{n:,} {name}" for name, n in run.config.dataset.n_split.items())
    lines.append(
        f"* selected by validation ROC AUC{_over_seeds(run.config.seeds)}; {counts} images, "
        f"split {_split_words(run.config.dataset.split_by)}"
    )
    if run.config.per_patient is not None:
        lines.append(f"scores are of patients, by the {run.config.per_patient} of their images' probabilities")
    if split == "val":
        lines.append("There is no test split: these are validation figures, and they flatter the selected head.")
    lines.append(f"run {run.directory}")
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _label_lines(run: "Run", split: str) -> list[str]:
    """Describe the selected head's area by label, where an image may have several."""
    if not run.config.dataset.is_multilabel:
        return []
    head = run.head(run.selected)
    scores = head.val if head.test is None else head.test
    lines = [f"{head.name}, {split} ROC AUC by label (95% interval):"]
    for label, area in scores["roc_auc_per_class"].items():
        low, high = scores["roc_auc_ci95_per_class"][label]
        lines.append(
            f"  {label}: {area:.3f} ({low:.3f} to {high:.3f}), known of {scores['n_known_per_class'][label]:,} images"
        )
    return lines


def _interval_lines(run: "Run", split: str) -> list[str]:
    """Give the selected head's other interval where DeLong's covers too seldom."""
    head = run.head(run.selected)
    scores = head.val if head.test is None else head.test
    if "roc_auc_ci95_newcombe" not in scores:
        return []
    low, high = scores["roc_auc_ci95_newcombe"]
    why = "of few cases, or near one, DeLong's interval is too narrow"
    return [f"{head.name}, {split} AUC: {why}; Newcombe's is {low:.3f} to {high:.3f}"]


def _assessment_lines(found: "Assessment | None") -> list[str]:
    """Describe what thresholds that validation fixed do, and the calibration, where there is one positive class."""
    if found is None or len(found.classes) > 1:
        return []
    lines = [f"{found.head} on {found.split}, thresholds fixed on val (95% intervals):"]
    lines += [f"  {text}" for point in found.classes[0].points for text in _point_lines(point)]
    if found.calibration is not None:
        before, after = found.calibration.before, found.calibration.after
        lines.append(
            f"calibration error {before.error:.3f}, by a temperature of {found.calibration.temperature.temperature:.2f} "
            f"{after.error:.3f} (perfectly calibrated probabilities: {after.error_by_chance:.3f} by chance)"
        )
    return lines


def _point_lines(fixed: "FixedPoint") -> list[str]:
    point, result = fixed.point, fixed.result
    if result is None:
        return [f"{point.name}: {point.reason}"]
    shares = {name: getattr(result, name) for name in ("sensitivity", "specificity", "ppv", "npv")}
    words = {"ppv": "PPV", "npv": "NPV"}
    texts = [
        f"{words.get(name, name)} {_share_text(share, getattr(fixed.by_patient, name, None))}"
        for name, share in shares.items()
    ]
    lines = [f"{point.name}, from {result.threshold:.3f} on: {', '.join(texts)}"]
    there = result.at_prevalence
    if there is not None:
        values = [
            f"{word} {'undefined' if value is None else f'{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})'}"
            for word, value in (("PPV", there.ppv), ("NPV", there.npv))
        ]
        lines.append(f"  at a prevalence of {there.prevalence:g}: {', '.join(values)}")
    return lines


def _share_text(share: "Share", by_patient: tuple[float, float] | None) -> str:
    if share.value is None:
        return "undefined"
    low, high = by_patient or (share.low, share.high)
    return f"{share.value:.3f} ({low:.3f} to {high:.3f})"


def _split_words(split_by: str) -> str:
    words = {"given": "as the data set says", "given, val from train": "as the data set says, val taken from train"}
    return words.get(split_by, f"by {split_by}")


def _cross_validation_lines(folds: "CrossValidation | None") -> list[str]:
    """Describe the pooled predictions of all folds: those of the nested selection, and those of each head."""
    if folds is None:
        return []
    lines = [f"{folds.n_folds}-fold cross-validation of {folds.n_images:,} images, pooled ROC AUC (95% interval):"]
    for result in folds.results:
        low, high = result.pooled["roc_auc_ci95"]
        by_fold = ", ".join(f"{auc:.3f}" for auc in result.fold_roc_aucs)
        lines.append(f"  {result.name}: {result.pooled['roc_auc']:.3f} ({low:.3f} to {high:.3f}); by fold {by_fold}")
    return lines


def _learning_curve_lines(run: "Run", split: str) -> list[str]:
    if not run.learning_curve:
        return []
    lines = [f"learning curve of {run.selected}, {split} ROC AUC (mean, least and greatest of the draws):"]
    for point in run.learning_curve:
        aucs = point.roc_aucs
        lines.append(
            f"  {point.share:.0%} of the training patients, {point.n_images:,} images: {sum(aucs) / len(aucs):.3f} "
            f"({min(aucs):.3f} to {max(aucs):.3f})"
        )
    return lines


def _over_seeds(n_seeds: int) -> str:
    return f", the mean over {n_seeds} seeds" if n_seeds > 1 else ""


def _reference_row(reference: "ReferenceResult") -> tuple[str, ...]:
    return ("", reference.name, "", "", *_score_cells(reference))


def _head_row(head: "HeadResult", selected: bool) -> tuple[str, ...]:
    epochs = f"{head.best_epoch} of {head.epochs}"
    return ("*" if selected else "", head.name, f"{head.n_parameters:,}", epochs, *_score_cells(head))


def _score_cells(result: "HeadResult | ReferenceResult") -> tuple[str, str, str]:
    scores = result.test if result.test is not None else result.val
    low, high = scores["roc_auc_ci95"]
    return (
        f"{result.val['roc_auc']:.3f}",
        f"{scores['roc_auc']:.3f} ({low:.3f} to {high:.3f})",
        f"{scores['accuracy']:.3f} (majority class {scores['majority_accuracy']:.3f})",
    )


def predict_text(summary: "PredictionSummary") -> str:
    """Describe a prediction in a few lines."""
    called = ", ".join(f"{n:,} {name}" for name, n in summary.called.items())
    sizes = ", ".join(f"{n:,} of {size}" for size, n in summary.set_sizes.items())
    lines = [
        f"{summary.predicted:,} images predicted by {summary.head}, {summary.failed:,} unreadable; {summary.seconds:.1f} s",
        f"called at the operating point: {called}",
        f"classes in the sets of {summary.coverage:g} coverage: {sizes}",
    ]
    if summary.out_of_distribution is not None:
        alarms = f"{summary.false_alarms:g} false alarms among images like those that it learnt from"
        lines.append(f"out of distribution: {summary.out_of_distribution:,} (threshold for {alarms})")
    lines += [f"  {path}: {reason}" for path, reason in summary.errors[:SHOWN_UNREADABLE]]
    if len(summary.errors) > SHOWN_UNREADABLE:
        lines.append(f"  and {len(summary.errors) - SHOWN_UNREADABLE:,} more; {summary.output} lists them all")
    if summary.patients_output is not None:
        lines.append(f"{summary.patients:,} patients ({summary.per_patient}): {summary.patients_output}")
    lines += untrained_lines(summary.weights)
    return "\n".join([*lines, f"images: {summary.output}"])


def heads_text(heads: "Sequence[ListedHead]") -> str:
    """Make a table of a run's heads."""
    rows = [("", "head", "seeds", "parameters", "val AUC", "test AUC", "size", "file")]
    for head in heads:
        test = "-" if head.test_roc_auc is None else f"{head.test_roc_auc:.3f}"
        numbers = (
            str(head.seeds),
            f"{head.parameters:,}",
            f"{head.val_roc_auc:.3f}",
            test,
            f"{head.bytes / 1e6:.2f} MB",
        )
        rows.append(("*" if head.selected else "", head.name, *numbers, head.file))
    lines = _table(rows)
    lines += [f"{head.name} cannot be used: {head.problem}" for head in heads if head.problem]
    return "\n".join([*lines, "* selected by validation"])


def cache_info_text(info: "CacheInfo") -> str:
    """Describe what is in a cache."""
    lines = [
        f"{info.cache}: {info.images:,} embeddings, {info.bytes:,} bytes, {info.unused:,} not used by any data set",
        f"fingerprint {info.fingerprint}",
        f"weights {info.weights} (SHA-256 {info.weights_sha256[:16]}…), {info.backbone}, {info.precision}, {info.compute}",
    ]
    if info.shards:
        lines.append(f"in {info.shards} shards, which belong to it: {info.cache}.shards")
    if info.parts:
        lines.append(
            f"{info.parts} parts with {info.images_in_parts:,} embeddings of an extraction that is not finished"
        )
    if info.damaged_parts:
        lines.append(f"{info.damaged_parts} damaged parts, which are left out; `hoarfrost cache compact` removes them")
    for dataset in info.datasets:
        labels = ", ".join(f"{count:,} {label}" for label, count in dataset.labels.items())
        lines.append(
            f"data set {dataset.name}: {dataset.images:,} images ({labels}), {dataset.unreadable:,} unreadable, "
            f"{dataset.duplicates:,} duplicates; from {dataset.source}, {dataset.created}"
        )
    return "\n".join(lines)


def cache_verify_text(report: "VerifyReport") -> str:
    """Name each problem, or say that there is none."""
    what = f"{report.images:,} embeddings, {report.datasets} data sets, {report.parts} parts"
    if report.sound:
        return f"{report.cache}: sound ({what})"
    return "\n".join([*report.problems, f"{report.cache}: NOT sound, problems: {len(report.problems)} ({what})"])


def cache_compact_text(summary: "CompactSummary") -> str:
    """Describe what compacting did."""
    lost = f", {len(summary.dropped_datasets)} damaged data sets dropped" if summary.dropped_datasets else ""
    return (
        f"{summary.cache}: {summary.images:,} embeddings; {summary.folded_parts} parts folded, "
        f"{summary.dropped_unused:,} unused and {summary.dropped_damaged:,} damaged embeddings dropped{lost}; "
        f"{summary.bytes_before:,} bytes before, {summary.bytes_after:,} after"
    )


def diagnosis_text(found: "Diagnosis") -> str:
    """List what a machine has; of what it has not, what that costs and what brings it."""
    lines = [f"hoarfrost {found.version} on Python {found.python}, {found.platform}", ""]
    width = max(len(finding.name) for finding in found.findings)
    for finding in found.findings:
        lines.append(f"{finding.state:<8} {finding.name:<{width}}  {finding.found}")
        rest = [text for text in (finding.costs, finding.mend and f"to get it: {finding.mend}") if text]
        lines += [f"{'':<8} {'':<{width}}  {text}" for text in rest]
    n_broken = sum(finding.state == "broken" for finding in found.findings)
    n_missing = sum(finding.state == "missing" for finding in found.findings)
    lines += ["", f"{n_broken} broken, {n_missing} missing but not needed, of {len(found.findings)}"]
    return "\n".join(lines)


def explain_text(summary: "ExplainSummary") -> str:
    """Name the pictures, and what is most like each image."""
    lines = [
        f"{summary.explained} of {summary.images} images explained by {summary.head}: {summary.output}",
    ]
    for one in summary.explanations[:SHOWN_EXPLAINED]:
        labels = Counter(example.label or "(no label)" for example in one.nearest)
        nearest = ", ".join(f"{n} {label}" for label, n in labels.most_common())
        found = f"{one.subject} {one.calibrated[one.subject]:.3f}, called {one.called}"
        lines.append(f"  {one.path}: {found}" + (f"; nearest: {nearest}" if nearest else ""))
    if len(summary.explanations) > SHOWN_EXPLAINED:
        lines.append(f"  and {len(summary.explanations) - SHOWN_EXPLAINED:,} more, in explanations.json there")
    lines += [f"  {path}: {reason}; left out" for path, reason in summary.errors[:SHOWN_UNREADABLE]]
    if summary.contact_sheet is not None:
        lines.append(f"contact sheet {summary.contact_sheet}")
    return "\n".join([*lines, *untrained_lines(summary.weights), "Research use only. Not a medical device."])


def export_text(summary: "ExportSummary") -> str:
    """Say what was written, and how far it is from what it was made of."""
    kind = "torch.export's program" if summary.opset is None else f"ONNX, opset {summary.opset}"
    lines = [
        f"{summary.head} with its backbone, {kind}: {summary.output}, {summary.bytes / 1e6:.1f} MB; {summary.seconds:.1f} s",
        f"probabilities differ by at most {summary.largest_difference:.1e} from torch's",
    ]
    if summary.difference_from_run is not None:
        own = f"the run's own, on {summary.n_compared} of its images"
        lines.append(f"probabilities differ by at most {summary.difference_from_run:.1e} from {own}")
    lines += [*summary.notes, f"model card {summary.model_card}", *untrained_lines(summary.weights)]
    return "\n".join([*lines, "Research use only. Not a medical device."])
