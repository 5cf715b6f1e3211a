"""Sliders under a figure: a picture that moves in JupyterLab, and stays a still picture where no kernel runs."""

import inspect
from base64 import b64encode
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psl.errors import PSLError, expected, missing_package

#: What a frontend shows in place of the picture if it has a kernel and ipywidgets.
_WIDGET = "application/vnd.jupyter.widget-view+json"


def explore(draw: Callable[..., Figure | Axes], **choices: Sequence[Any]) -> None:
    """Show what `draw` draws, under one slider per argument; in a notebook only.

    Args:
        draw: takes every slider's value by name and returns a figure or axes. Its defaults are where sliders start.
            It should take less than 0.3 s.
        choices: values of each slider, by the argument's name, in their order. A value is shown as ``str`` shows it;
            a float with four digits.

    Raises:
        PSLError: an argument without a default, or a default that is not among the slider's values.
        ModuleNotFoundError: ipywidgets is not installed.
    """
    try:
        import ipywidgets
        from IPython.display import display
    except ModuleNotFoundError as cause:
        raise missing_package("psl.plotting.explore", cause) from cause
    parameters = inspect.signature(draw).parameters
    sliders = {}
    for name, values in choices.items():
        start = parameters[name].default if name in parameters else inspect.Parameter.empty
        if start not in list(values):
            fix = f"give draw a parameter {name}= with one of these values as its default"
            raise expected(f"slider {name}", f"a default among {list(values)}", f"{start!r}", fix, PSLError)
        options = [(f"{value:.4g}" if isinstance(value, float) else str(value), value) for value in values]
        label = name.replace("_", " ")
        style = {"description_width": "initial"}
        sliders[name] = ipywidgets.SelectionSlider(options=options, value=start, description=label, style=style)

    still = _png(draw(**{name: slider.value for name, slider in sliders.items()}))
    picture = ipywidgets.Image(value=still, format="png")
    said = ipywidgets.Output()

    def redraw(_: object) -> None:
        said.clear_output()
        with said:  # an error stands under the picture
            picture.value = _png(draw(**{name: slider.value for name, slider in sliders.items()}))

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    box = ipywidgets.VBox([*sliders.values(), picture, said])
    shown = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    encoded = b64encode(still).decode()
    display({"text/plain": "sliders", "image/png": encoded, _WIDGET: shown}, raw=True)


def _png(drawn: Figure | Axes) -> bytes:
    """Return a drawing as a PNG file, and close it, so that it is shown once."""
    figure = drawn.figure if isinstance(drawn, Axes) else drawn
    assert isinstance(figure, Figure)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})  # pyright: ignore[reportArgumentType]
    plt.close(figure)
    return file.getvalue()
