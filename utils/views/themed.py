"""Figures of matplotlib as inline SVG in the colours of the page, light or dark."""

from __future__ import annotations

import base64
import io
import re
import threading
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from utils.views.curves import figure_png
from utils.views.figures import FALLBACK
from utils.views.html import Html, element, joined, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Characters of SVG; a figure of more elements than fit is smaller as an image.
MOST_SVG = 200_000

# Colours of figures -> the page's text colour, or a name in the design. White is the ground of legends and the edge of bars.
_INK = frozenset({"#000000", "#262626", "#333333", "#b0b0b0"})
_DESIGNED = {
    "#1f4e9c": "train", "#c05a00": "val", "#555555": "soft", "#888888": "soft", "#808080": "soft", "#cccccc": "line",
}  # fmt: skip
_FALLBACK = {**FALLBACK, "line": "#b8b8b8"}
_GROUND = "#ffffff"

_LINK = "{http://www.w3.org/1999/xlink}href"
_PX_PER_PT = 4 / 3

# Whether text in an SVG stays text is a setting of the whole process.
_DRAWING = threading.Lock()


def themed_figure(figure: Figure, label: str) -> Html:
    """The figure as inline SVG: text and axes in the colour of the page's text, curves in the design's colours.

    A figure of very many elements is a PNG image on white instead.

    Args:
        label: what screen readers get.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    with _DRAWING, mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    if buffer.tell() > MOST_SVG:
        source = f"data:image/png;base64,{base64.b64encode(figure_png(figure)).decode()}"
        return element("img", src=source, alt=label)
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - written by matplotlib a moment ago
    width_px = float(root.attrib["width"].removesuffix("pt")) * _PX_PER_PT
    children = (_drawn(child) for child in root)
    return element(
        "svg", *children, viewBox=root.attrib["viewBox"], role="img", aria_label=label, fill="currentColor",
        stroke_linejoin="round", style=f"max-width:{width_px:.0f}px",
    )  # fmt: skip


def _drawn(node: ElementTree.Element) -> Html:
    """An element with its children, without what would affect the rest of the page: style sheets, metadata, fixed ids."""
    tag = node.tag.rpartition("}")[2]
    if tag in ("metadata", "style"):
        return text("")
    attributes: dict[str, object] = {
        name: value for name, value in node.attrib.items() if name not in ("style", "id", "class", _LINK)
    }
    if "id" in node.attrib and tag in ("clipPath", "path"):  # what others refer to, named by a random number
        attributes["id"] = node.attrib["id"]
    if _LINK in node.attrib:
        attributes["href"] = node.attrib[_LINK]
    attributes |= _styled(node.attrib.get("style", ""))
    content = [text(node.text)] if node.text and node.text.strip() else []
    return element(tag, joined(content), *(_drawn(child) for child in node), **attributes)


def _styled(style: str) -> dict[str, object]:
    """CSS declarations as attributes, which also hold where a code host drops styles; the design's style sheet wins."""
    attributes: dict[str, object] = {}
    classes = []
    for declaration in filter(None, map(str.strip, style.split(";"))):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            attributes |= _font(value)
        elif name == "font-family":  # the page's
            continue
        elif name in ("fill", "stroke"):
            colour = value.lower()
            if colour in _DESIGNED:
                classes.append(f"tb-{'f' if name == 'fill' else 'c'}-{_DESIGNED[colour]}")
                value = _FALLBACK[_DESIGNED[colour]]
            attributes[name] = "currentColor" if colour in _INK else "none" if colour == _GROUND else value
        else:
            attributes[name] = value
    return {**attributes, **({"class_": " ".join(classes)} if classes else {})}


def _font(value: str) -> dict[str, object]:
    """Size and weight."""
    size = re.search(r"([\d.]+)px", value)
    weight = re.match(r"(bold|\d{3})\b", value)
    return {
        **({"font-size": size[1]} if size else {}),
        **({"font-weight": weight[1]} if weight else {}),
    }
