"""The image that a model is asked about: what the viewer shows, with the facts that may travel."""

from __future__ import annotations

from engine.imaging import SourceImage, Window, render
from engine.request import DisplayImage


def display_image(
    source: SourceImage, window: Window | None = None, chosen_by: str = "request"
) -> DisplayImage:
    """The 8-bit image under a window; without one, the file's own rendering.

    Args:
        source: the opened image.
        window: that somebody chose; colour is shown as it is, whatever the window.
        chosen_by: `preset` or `request`, where that window came from.
    """
    is_chosen = window is not None and not source.is_color
    shown = None if source.is_color else window or source.default_window
    return DisplayImage(
        pixels=render(source, window),
        sha256=source.sha256,
        modality=source.modality,
        window_center=None if shown is None else shown.center,
        window_width=None if shown is None else shown.width,
        window_source=chosen_by if is_chosen else source.window_source,
        spacing_mm=source.spacing_mm,
        spacing_kind=source.spacing_kind,
        left_edge=source.left_edge,
    )
