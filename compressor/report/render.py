"""The Jinja2 environment of the pages: everything is escaped but the figures, which are ours."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_PAGES = Environment(
    loader=PackageLoader("compressor.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`."""
    return _PAGES.get_template(template).render(**values)
