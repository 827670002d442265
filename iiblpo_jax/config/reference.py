"""Every knob as a page of Markdown: `python -m iiblpo_jax.config.reference > docs/configuration.md`."""

from __future__ import annotations

from collections.abc import Mapping

from iiblpo_jax.config.defaults import KNOBS, SECTIONS
from iiblpo_jax.config.knobs import Knob
from iiblpo_jax.config.methods import LOSSES, METHODS

HEAD = """# Configuration

Every knob of a run, `--config.SECTION.KEY=VALUE` on the command line and `c.SECTION.KEY = VALUE` in a config file. This
page is made of the tables in `iiblpo_jax/config/defaults.py` and `iiblpo_jax/config/methods.py` by
`python -m iiblpo_jax.config.reference`; edit those.

A wrong value is refused before anything is loaded, all of them at once. Some are wrong only together; the checks are in
`iiblpo_jax/config/validation.py`."""
METHOD = """## objective.options by method: further arguments

The other methods have none."""
LOSS = """## offline.options by loss: arguments

The other losses have none."""


def page() -> str:
    """The whole page: a table a section, and one of the arguments of methods."""
    parts = [HEAD]
    for section, what in SECTIONS.items():
        knobs = {key: knob for key, knob in KNOBS.items() if key.split(".")[0] == section}
        parts += [f"## {section}: {what}", table(knobs)]
    return "\n\n".join([*parts, METHOD, table(_options(METHODS)), LOSS, table(_options(LOSSES))]) + "\n"


def _options(of: Mapping[str, Mapping[str, Knob]]) -> dict[str, Knob]:
    return {f"{name}: {option}": knob for name, own in of.items() for option, knob in own.items()}


def table(knobs: Mapping[str, Knob]) -> str:
    """A Markdown table of knobs by name: default, unit, range, what it does."""
    rows = [("key", "default", "unit", "range", "what it does"), ("---",) * 5]
    rows += [(f"`{key}`", _default(knob), knob.unit, knob.range, knob.doc) for key, knob in knobs.items()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _default(knob: Knob) -> str:
    return f"`{knob.default!r}`" if knob.default != "" else "empty"


if __name__ == "__main__":
    print(page(), end="")
