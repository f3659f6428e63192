"""Image files: DICOM, PNG and JPEG to one frame of pixels and the 8-bit image on screen.

    source = open_image(Path("chest.dcm"))
    shown = render(source)                                # uint8, as the viewer shows it
    lung = render(source, Window(-600.0, 1500.0))

Nothing here needs torch. Untrusted files are parsed in a child process by default.
"""

from __future__ import annotations

from engine.imaging.errors import ImagingError
from engine.imaging.limits import Limits
from engine.imaging.opening import open_image
from engine.imaging.source import SourceImage, list_presets, render
from engine.imaging.window import Preset, Window

__all__ = [
    "ImagingError",
    "Limits",
    "Preset",
    "SourceImage",
    "Window",
    "list_presets",
    "open_image",
    "render",
]
