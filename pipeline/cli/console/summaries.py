"""The results of the other commands as text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hoarfrost.cli.console.lines import count, table, untrained_lines
from hoarfrost.features.origins import is_elsewhere

if TYPE_CHECKING:
    from hoarfrost.cli.doctor import Diagnosis
    from hoarfrost.evaluation.sample_size import Plan
    from hoarfrost.features.cache import CacheInfo, CompactSummary, VerifyReport
    from hoarfrost.features.extraction.plan import ExtractSummary
    from hoarfrost.features.extraction.survey import Survey
    from hoarfrost.inference.explain import ExplainSummary
    from hoarfrost.inference.export import ExportSummary
    from hoarfrost.inference.predict import ListedHead, PredictionSummary

SHOWN_UNREADABLE = 20
SHOWN_EXPLAINED = 20


def extract_text(summary: "ExtractSummary") -> str:
    """Describe an extraction in two or three lines."""
    done = f"{summary.embedded} embedded, {summary.reused} reused, {summary.failed} unreadable"
    ray = f", {summary.workers} Ray workers" if summary.engine == "ray" else ""
    lines = [
        f"{summary.dataset}: {summary.images} images, {done}; {summary.seconds:.1f} s",
        f"cache {summary.cache}: weights {summary.weights}, {summary.precision.partition(':')[0]} on {summary.device}{ray}",
    ]
    if summary.drift is not None:
        lines.append(f"8-bit integers: {summary.drift}")
    if len(summary.views) > 1 or summary.layers:
        layers = f"; layers {', '.join(map(str, summary.layers))}" if summary.layers else ""
        lines.append(f"views {', '.join(summary.views)}{layers}")
    lines += [f"  {n:,} unreadable: {kind}" for kind, n in summary.failed_by_kind.items()]
    lines += [f"  {n:,} {note}" for note, n in summary.notes.items()]
    lines += untrained_lines(summary.weights)
    return "\n".join(lines)


def survey_text(found: "Survey") -> str:
    """Describe the images of a dataset."""
    patients = "" if found.patients is None else f", {found.patients:,} patients"
    problems = f"{found.duplicates:,} duplicates, {found.unreadable:,} unreadable"
    lines = [f"{found.dataset}: {found.images:,} images{patients}; {problems}"]
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
        lines.append(f"    and {len(found.errors) - SHOWN_UNREADABLE:,} more; --json lists all")
    lines += [f"caution: {hint}" for hint in found.hints]
    if found.refused:
        lines.append(f"extract will refuse this dataset: {found.refused}")
    if found.contact_sheet is not None:
        lines.append(f"contact sheet {found.contact_sheet}")
    return "\n".join(lines)


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {value or '(none)'}" for value, n in counts.items())


def predict_text(summary: "PredictionSummary") -> str:
    """Describe a prediction in a few lines."""
    predicted = ", ".join(f"{n:,} {name}" for name, n in summary.called.items())
    sizes = [f"{count(n, 'image')} with {size} class{'es' * (size != '1')}" for size, n in summary.set_sizes.items()]
    lines = [
        f"{summary.predicted:,} images predicted by {summary.head}, {summary.failed:,} unreadable; {summary.seconds:.1f} s",
        f"predicted at the operating point{f' ({point})' if (point := summary.operating_point) else ''}: {predicted}",
        f"conformal sets ({summary.coverage:.0%} coverage): {', '.join(sizes)}",
    ]
    if summary.out_of_distribution is not None:
        alarms = f"at a false alarm rate of {summary.false_alarms:.0%}"
        lines.append(f"unlike the training images: {summary.out_of_distribution:,} ({alarms})")
    lines += [f"  {path}: {reason}" for path, reason in summary.errors[:SHOWN_UNREADABLE]]
    if len(summary.errors) > SHOWN_UNREADABLE:
        lines.append(f"  and {len(summary.errors) - SHOWN_UNREADABLE:,} more; {summary.output} lists all")
    if summary.patients_output is not None:
        lines.append(f"{summary.patients:,} patients ({summary.per_patient}): {summary.patients_output}")
    lines += untrained_lines(summary.weights)
    return "\n".join([*lines, f"images: {summary.output}"])


def heads_text(heads: "Sequence[ListedHead]") -> str:
    """Return a table of a run's heads."""
    rows = [("", "head", "members", "parameters", "val AUC", "test AUC", "size", "file")]
    for head in heads:
        test = "-" if head.test_roc_auc is None else f"{head.test_roc_auc:z.3f}"
        numbers = (
            str(head.members),
            f"{head.parameters:,}",
            f"{head.val_roc_auc:z.3f}",
            test,
            f"{head.bytes / 1e6:.2f} MB",
        )
        rows.append(("*" if head.selected else "", head.name, *numbers, head.file))
    lines = table(rows)
    lines += [f"{head.name} cannot be used: {head.problem}" for head in heads if head.problem]
    return "\n".join([*lines, "* selected; its val AUC is optimistic, because the same images selected it"])


def plan_text(plan: "Plan") -> str:
    """Return a table of what each quantity needs, the largest need, and what is assumed of the patients."""
    has_several = plan.images_per_patient != 1
    rows = [("", "quantity", "assumed", "width", *(["images"] if has_several else []), "patients", "cases")]
    for one in plan.needed:
        counts = [one.images, one.patients, one.cases] if has_several else [one.patients, one.cases]
        mark = "*" if one is plan.largest else ""
        rows.append((mark, one.quantity, f"{one.assumed:z.3f}", _width(one.width), *(f"{n:,}" for n in counts)))
    most = plan.largest
    lines = [*table(rows), f"* {most.quantity} needs most: {most.patients:,} patients, {most.cases:,} of them positive"]
    lines.append(f"Assumed: prevalence {plan.prevalence:.3g}. Widths are those of 95% intervals (Riley et al. 2021).")
    if has_several:
        own = plan.images_per_patient / plan.design_effect
        lines.append(
            f"{plan.images_per_patient:.3g} images per patient count as {own:.2f} independent images (design effect "
            f"{plan.design_effect:.2f})."
        )
    return "\n".join(lines)


def _width(width: float) -> str:
    """Write a width as it was given, with two digits at least."""
    return max(f"{width:.2f}", f"{width:g}", key=len)


def cache_info_text(info: "CacheInfo") -> str:
    """Describe what is in a cache."""
    lines = [
        f"{info.cache}: {info.images:,} embeddings, {info.bytes:,} bytes, {info.unused:,} used by no dataset",
        f"fingerprint {info.fingerprint}",
        f"weights {info.weights} (SHA-256 {info.weights_sha256[:16]}…), {info.backbone}, {info.precision}, {info.compute}",
    ]
    if is_elsewhere(info.backbone):
        lines[-1] = f"{info.weights}: {info.backbone}, imported from {info.weights_origin}"
    if info.drift is not None:
        lines.append(f"8-bit integers: {info.drift}")
    if info.layers:
        lines.append(f"layers {', '.join(map(str, info.layers))}")
    if len(info.views) > 1 or info.layers or info.own_view not in info.views:
        lines.append(f"views {', '.join(f'{view} ({n:,} embeddings)' for view, n in info.views.items())}")
    if info.shards:
        lines.append(f"{info.shards} shards in {info.cache}.shards; the cache needs them")
    if info.parts:
        lines.append(f"{info.parts} parts with {info.images_in_parts:,} embeddings of an unfinished extraction")
    if info.damaged_parts:
        lines.append(
            f"{info.damaged_parts} damaged parts were skipped. Remove them with: hoarfrost cache compact {info.cache}"
        )
    for dataset in info.datasets:
        labels = ", ".join(f"{count:,} {label}" for label, count in dataset.labels.items())
        lines.append(
            f"dataset {dataset.name}: {dataset.images:,} images ({labels}), {dataset.unreadable:,} unreadable, "
            f"{dataset.duplicates:,} duplicates; from {dataset.source}, {dataset.created}"
        )
        lines += [f"  {count(n, 'image')} without view {view}" for view, n in dataset.lacking.items()]
    if any(dataset.lacking for dataset in info.datasets):
        lines.append("To add what a dataset lacks, extract it again, without --views or with all of its views.")
    return "\n".join(lines)


def cache_verify_text(report: "VerifyReport") -> str:
    """List each problem, or state that the cache is sound."""
    what = ", ".join(map(count, (report.images, report.datasets, report.parts), ("embedding", "dataset", "part")))
    if report.sound:
        return f"{report.cache}: sound ({what})"
    return "\n".join([*report.problems, f"{report.cache}: NOT sound, {len(report.problems)} problems ({what})"])


def cache_compact_text(summary: "CompactSummary") -> str:
    """Describe what compacting changed."""
    lost = f", {len(summary.dropped_datasets)} damaged datasets removed" if summary.dropped_datasets else ""
    return (
        f"{summary.cache}: {summary.images:,} embeddings; {summary.folded_parts} parts merged, "
        f"{summary.dropped_unused:,} unused and {summary.dropped_damaged:,} damaged embeddings removed{lost}; "
        f"{summary.bytes_before:,} bytes before, {summary.bytes_after:,} after"
    )


def diagnosis_text(found: "Diagnosis") -> str:
    """List what a machine has and, for each missing thing, what that costs and how to get it."""
    lines = [f"hoarfrost {found.version} on Python {found.python}, {found.platform}", ""]
    width = max(len(finding.name) for finding in found.findings)
    for finding in found.findings:
        lines.append(f"{finding.state:<8} {finding.name:<{width}}  {finding.found}")
        rest = [text for text in (finding.costs, finding.fix and f"to fix it: {finding.fix}") if text]
        lines += [f"{'':<8} {'':<{width}}  {text}" for text in rest]
    n_broken = sum(finding.state == "broken" for finding in found.findings)
    n_missing = sum(finding.state == "missing" for finding in found.findings)
    lines += ["", f"{len(found.findings)} checks: {n_broken} broken, {n_missing} missing but optional"]
    return "\n".join(lines)


def explain_text(summary: "ExplainSummary") -> str:
    """List the explained images, with the labels of the most similar training images."""
    lines = [f"{summary.explained} of {summary.images} images explained by {summary.head}: {summary.output}"]
    for one in summary.explanations[:SHOWN_EXPLAINED]:
        labels = Counter(example.label or "(no label)" for example in one.nearest)
        nearest = ", ".join(f"{n} {label}" for label, n in labels.most_common())
        found = f"{one.subject} {one.calibrated[one.subject]:z.3f}, predicted {one.called}"
        true = f", true label {one.label}" if one.label else ""
        lines.append(f"  {one.path}: {found}{true}" + (f"; nearest: {nearest}" if nearest else ""))
    if len(summary.explanations) > SHOWN_EXPLAINED:
        lines.append(f"  and {len(summary.explanations) - SHOWN_EXPLAINED:,} more, in explanations.json")
    lines += [f"  {path}: {reason}; skipped" for path, reason in summary.errors[:SHOWN_UNREADABLE]]
    if summary.contact_sheet is not None:
        lines.append(f"contact sheet {summary.contact_sheet}")
    return "\n".join([*lines, *untrained_lines(summary.weights), "Research use only. Not a medical device."])


def export_text(summary: "ExportSummary") -> str:
    """Describe the exported model, and how much its probabilities differ from those of the run."""
    kind = "a torch.export program" if summary.opset is None else f"ONNX, opset {summary.opset}"
    lines = [
        f"{summary.head} with its encoder, {kind}: {summary.output}, {summary.bytes / 1e6:.1f} MB; {summary.seconds:.1f} s",
        f"probabilities differ by at most {summary.largest_difference:.1e} from torch's",
    ]
    if summary.difference_from_run is not None:
        own = f"those of the run, on {summary.n_compared} of its images"
        lines.append(f"probabilities differ by at most {summary.difference_from_run:.1e} from {own}")
    lines += [*summary.notes, f"model card {summary.model_card}", *untrained_lines(summary.weights)]
    return "\n".join([*lines, "Research use only. Not a medical device."])
