"""Templates to pages. In HTML values are escaped; figures alone go in as they are."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from slimcli.disk import write_atomically


def write_page(path: Path, template: str, **values: object) -> Path:
    """Fill a template of this package and put the page where `path` says, whole or not at all."""
    environment = Environment(
        loader=PackageLoader("slimcli.report", "."),
        autoescape=".html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_atomically(path, environment.get_template(template).render(values).encode())
    return path
