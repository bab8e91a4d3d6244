"""The result of `compare` as text: the runs in a table, their differences, and a sentence on each."""

from typing import TYPE_CHECKING

from hoarfrost.cli.console.lines import table

if TYPE_CHECKING:
    from hoarfrost.report.outputs import Compared


def comparison_text(compared: "Compared") -> str:
    """Describe runs side by side: the selected heads with their costs, then each against the first."""
    from hoarfrost.report.words import count, estimate_text

    found = compared.found
    rows: list[tuple[str, ...]] = [
        ("", "run", "encoder", "head", "ROC AUC (95% CI)", "bytes per image", "seconds per image")
    ]
    for one in found.columns:
        figures = estimate_text(one.area).replace("\xa0", " "), count(one.cost.bytes_per_image), one.cost.seconds
        rows.append((one.name, str(one.run.directory), one.encoder, one.head.name, *figures))
    lines = [*table(rows), f"Paired tests on {found.unit}; p corrected by Holm's method, intervals not corrected:"]
    lines += [f"  {one.verdict}" for one in found.tests]
    return "\n".join(lines if compared.report is None else [*lines, f"comparison {compared.report}"])
