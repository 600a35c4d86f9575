"""Explorers for pages without a kernel: all pictures are drawn beforehand, a script shows one.

``make slides`` and ``make book`` set ``NABLAB_SWEEPS``, and every explorer then offers this page
beside its live view. Nothing is loaded: the pictures are inside, so that it works from a file.
"""

import base64
import html
import itertools
import json
from collections.abc import Sequence

import ipywidgets
import numpy as np

# One slider has this many positions, several share: a page holds about as many pictures.
POSITIONS, PICTURES = 41, 150

ROW = "display:flex; align-items:center; gap:0.6em; max-width:760px"
SCRIPT = """(function () {
  const root = document.currentScript.parentElement;
  const sweep = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const picture = root.querySelector("img"), message = root.querySelector("p");
  const controls = Array.from(root.querySelectorAll("[data-control]"));
  function show() {
    let place = 0;
    controls.forEach(function (control, k) {
      const i = control.type === "checkbox" ? Number(control.checked) : Number(control.value);
      place = place * sweep.values[k].length + i;
      control.nextElementSibling.textContent = sweep.values[k][i];
    });
    picture.src = "data:image/png;base64," + sweep.pictures[place];
    message.textContent = sweep.messages[place];
  }
  controls.forEach(function (control) {
    control.addEventListener("input", show);
    // Arrow keys on a slider must not turn the page of a slide show.
    control.addEventListener("keydown", function (event) { event.stopPropagation(); });
  });
  show();
})();"""


def page(explorer) -> str:
    """The explorer as HTML: its controls, and a picture for each of their positions."""
    start = explorer.values
    positions = {
        name: values_of(widget, len(explorer.controls))
        for name, widget in explorer.controls.items()
    }
    pictures, messages = [], []
    for setting in itertools.product(*positions.values()):
        explorer.set(**dict(zip(positions, setting, strict=True)))
        pictures.append(base64.b64encode(explorer.stored_image).decode())
        messages.append(explorer.message)
    explorer.set(**start)
    data = {
        "values": [[written(v) for v in values] for values in positions.values()],
        "pictures": pictures,
        "messages": messages,
    }
    rows = "\n".join(
        row(widget, positions[name], start[name]) for name, widget in explorer.controls.items()
    )
    text = json.dumps(data).replace("</", "<\\/")
    caption = html.escape(repr(explorer), quote=True)
    parts = [
        '<div class="nablab-sweep">',
        rows,
        f'<img alt="{caption}" style="max-width:100%">',
        "<p></p>",
        f'<script type="application/json">{text}</script>',
        f"<script>{SCRIPT}</script>",
        "</div>",
    ]
    return "\n".join(parts)


def values_of(widget: ipywidgets.Widget, controls: int) -> Sequence:
    """Where a control can stand on such a page; its start value is one of the positions."""
    if isinstance(widget, ipywidgets.Checkbox):
        return [False, True]
    if isinstance(widget, ipywidgets.ToggleButtons):
        return list(widget.options)
    number = min(POSITIONS, int(PICTURES ** (1 / controls)))
    if isinstance(widget, ipywidgets.IntSlider):
        steps = np.arange(widget.min, widget.max + 1, widget.step)
        chosen = steps[np.unique(np.linspace(0, len(steps) - 1, number).round().astype(int))]
        return sorted({*map(int, chosen), widget.value})
    values = np.linspace(widget.min, widget.max, number)
    if isinstance(widget, ipywidgets.FloatLogSlider):
        values = widget.base**values
    values[np.argmin(np.abs(values - widget.value))] = widget.value
    return values.tolist()


def row(widget: ipywidgets.Widget, values: Sequence, start) -> str:
    """One control as a line of HTML."""
    label, at = html.escape(widget.description), list(values).index(start)
    if isinstance(widget, ipywidgets.Checkbox):
        control = f'<input type="checkbox" data-control{" checked" * start}>'
    elif isinstance(widget, ipywidgets.ToggleButtons):
        options = "".join(
            f'<option value="{i}"{" selected" * (i == at)}>{html.escape(value)}</option>'
            for i, value in enumerate(values)
        )
        control = f"<select data-control>{options}</select>"
    else:
        control = (
            f'<input type="range" data-control min="0" max="{len(values) - 1}" value="{at}" '
            'style="flex:1">'
        )
    text = f"<span>{label}</span> {control} <output style='min-width:4em'></output>"
    return f'<label style="{ROW}">{text}</label>'


def written(value) -> str:
    """A value as the live slider would show it; buttons and boxes say it themselves."""
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
