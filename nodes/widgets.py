"""Checks for values of widgets.

ComfyUI checks a value that is typed into a widget against the widget's options and range. It does
not check a value that comes from a link.
"""

import math
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io


def check(node: type[io.ComfyNode], **values: Any) -> None:
    """Check that each value, given by its widget's name, is valid for the widget.

    Raises:
        ValueError: names the node, the widget, the value and what is valid.
    """
    schema = node.define_schema()
    widgets = {widget.id: widget for widget in schema.inputs}
    for name, value in values.items():
        if wanted := _wanted(widgets[name], value):
            raise ValueError(
                f"{schema.display_name}: {name} is {value!r:.100}, but it must be {wanted}."
            )


def single(node: type[io.ComfyNode], name: str, values: list[Any]) -> Any:
    """The one value of an input that is used for all images, in a node that takes lists.

    Raises:
        ValueError: names the node and the input if there is not exactly one value.
    """
    if len(values) != 1:
        raise ValueError(
            f"{node.define_schema().display_name}: {name} is a list of {len(values)} values. "
            f"Connect a single value, which is used for all images."
        )
    return values[0]


def _wanted(widget: io.Input, value: Any) -> str | None:
    """What is valid for the widget; None if the value is."""
    if isinstance(widget, io.Combo.Input):
        fits = isinstance(value, str) and value in widget.options
        return None if fits else f"one of {', '.join(map(repr, widget.options))}"
    if isinstance(widget, io.Boolean.Input):
        fits = isinstance(value, Integral) and value in (0, 1)
        return None if fits else "True or False"
    if isinstance(widget, io.String.Input):
        return None if isinstance(value, str) else "a string"
    whole = isinstance(widget, io.Int.Input)
    low = -math.inf if widget.min is None else widget.min
    high = math.inf if widget.max is None else widget.max
    if isinstance(value, Integral if whole else Real) and low <= value <= high:
        return None
    bounds = "" if math.isinf(low) else f" from {low} to {high}"
    return f"a {'whole ' * whole}number{bounds}"
