"""The templates of the report's pages."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from hoarfrost.report import words

FILTERS = (
    "count",
    "decimal",
    "duration",
    "estimate",
    "estimate_text",
    "interval",
    "metric_text",
    "of_patients",
    "p_text",
    "percent",
    "several",
)


@cache  # several reports in one process compile the templates once
def template_environment() -> Environment:
    """Return the environment of the templates, which write numbers as `words` does.

    Labels, paths and errors come from other people's files: every value is escaped in every template.
    """
    environment = Environment(
        loader=PackageLoader("hoarfrost.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in FILTERS}
    return environment
