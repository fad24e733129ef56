"""What the HTML pages of reports share: templates, typography and style."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def page_environment(*packages: str) -> Environment:
    """The templates of some packages, the first ones first; what is not marked as safe is escaped."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(each) for each in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"typeset": typeset, "breakable": _breakable}
    return environment


def page_style() -> Markup:
    """The style sheet, light and dark."""
    sheet = files("vlmfix.evaluation.report").joinpath("templates", "report.css")
    return Markup(sheet.read_text(encoding="utf-8"))


def typeset(text: str) -> str:
    """Signs that terminals may lack: minus, times, and a dash for nothing."""
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\()x(?=\d)", "\N{MULTIPLICATION SIGN}", text)
    return "\N{EN DASH}" if text == "-" else text.replace("[-]", "[\N{EN DASH}]")


def _breakable(label: str) -> Markup:
    """A label that may wrap inside its parameters."""
    return Markup(re.sub(r"(?<=[(,=_])", "<wbr>", str(escape(label))))
