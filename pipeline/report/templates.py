"""The templates of the report's pages."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def template_environment() -> Environment:
    """Open the templates.

    Labels, paths and errors come from other people's files: every value is escaped, whatever the file's name.
    """
    return Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
