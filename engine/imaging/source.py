"""The decoded image, and its 8-bit rendering as the viewer shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from engine.geometry import PatientSide, SpacingKind
from engine.imaging.arrays import Bytes, Pixels
from engine.imaging.lut import LookupTable
from engine.imaging.sniff import ImageFormat
from engine.imaging.window import (
    CT_PRESETS,
    IDENTITY_8_BIT,
    Preset,
    Window,
    WindowSource,
    apply_window,
    window_between,
)

SPACING_KINDS: tuple[str, ...] = get_args(SpacingKind)
PATIENT_SIDES: tuple[str, ...] = get_args(PatientSide)
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)

_TABLE_SPAN = 1 << 18
_ROWS_PER_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceImage:
    """One frame of an image file, in full resolution, without any identity.

    Attributes:
        pixels: greyscale: int32 or float32 `(H, W)` modality values (after the modality LUT
            or rescale; NaN where there is none, never infinite), or uint8 `(H, W)` for 8-bit
            PNG and JPEG; colour: uint8 `(H, W, 3)` RGB. Read-only.
        is_color: whether `pixels` has three channels.
        inverted: low values are bright, as in MONOCHROME1 or with an inverse Presentation
            LUT Shape; `render` inverts, `pixels` are as stored.
        bits_stored: bits of a stored sample.
        modality: DICOM modality code, or '' where it is missing or no plain code.
        spacing_mm: `(row, column)`: millimetres between rows and between columns.
        spacing_kind: 'patient' (Pixel Spacing), 'detector' (Imager Pixel Spacing, larger than
            the patient by the magnification), 'nominal' (a scanned film), '' when unknown.
        left_edge: the patient's side at the left edge of the stored image: 'right' as
            radiographs hang, 'left' where it is the other way round, '' where the file does not
            say, or where the rows do not run from side to side.
        units: 'HU', or '' when the values have no known unit.
        frame: index of this frame, from 0.
        frame_count: frames that can be asked for.
        windows: every window that the file holds for this frame, in its order.
        default_window: the window of `render(source)`; None for colour. With a `voi_lut` it
            is the range that the table covers.
        window_source: where `default_window` comes from: 'file', 'percentile' or 'identity'.
        voi_lut: the VOI LUT of the file; `render(source)` uses it before any window.
        percentile_window: 1st to 99th percentile without padding; None for colour.
        full_window: smallest to largest value without padding; None for colour.
        sha256: of the file's bytes, hexadecimal.
        format: 'DICOM', 'PNG' or 'JPEG'.
        transfer_syntax: name of the DICOM transfer syntax, '' for PNG and JPEG.
        hidden_tag_count: DICOM elements that were left in the file, unread.
        burned_in_risk: the file says that text is burned in, or is of a kind that often has
            it. False proves nothing: no tag can.
        warnings: sentences about what had to be assumed or left off.
    """

    pixels: Pixels
    is_color: bool
    inverted: bool
    bits_stored: int
    modality: str
    spacing_mm: tuple[float, float] | None
    spacing_kind: SpacingKind
    left_edge: PatientSide
    units: str
    frame: int
    frame_count: int
    windows: tuple[Window, ...]
    default_window: Window | None
    window_source: WindowSource
    voi_lut: LookupTable | None
    percentile_window: Window | None
    full_window: Window | None
    sha256: str
    format: ImageFormat
    transfer_syntax: str
    hidden_tag_count: int
    burned_in_risk: bool
    warnings: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[0])

    def render(self, window: Window | None = None) -> Bytes:
        """See `render`."""
        return render(self, window)


def render(source: SourceImage, window: Window | None = None) -> Bytes:
    """The 8-bit image as the viewer shows it.

    Without a window: the VOI LUT of the file, else its first window (DICOM PS3.3 C.11.2
    lets an application choose among alternatives), else the percentile window. Colour is
    shown as it is, whatever the window. MONOCHROME1 comes out inverted, bright as on film.

    Args:
        source: the image.
        window: another window, in the units of `source.pixels`.

    Returns:
        uint8 `(H, W)`, or `(H, W, 3)` RGB for colour. 0 is black; NaN is black.
    """
    if source.is_color:
        return np.array(source.pixels, dtype=np.uint8)
    chosen = window or source.default_window or IDENTITY_8_BIT
    use_table = window is None and source.voi_lut is not None
    if source.pixels.dtype.kind in "iu":
        return _render_integers(source, chosen, use_table=use_table)
    return _render_floats(source, chosen, use_table=use_table)


def _to_bytes(source: SourceImage, values: Pixels, window: Window, *, use_table: bool) -> Bytes:
    if use_table and source.voi_lut is not None:
        shown = source.voi_lut.apply_unit(values)
    else:
        shown = apply_window(values, window)
    if source.inverted:
        shown = 1.0 - shown
    return np.rint(shown * 255.0).astype(np.uint8)


def _render_integers(source: SourceImage, window: Window, *, use_table: bool) -> Bytes:
    """Window every value of the range once and look the pixels up: ten times faster."""
    low, high = int(source.pixels.min()), int(source.pixels.max())
    if high - low >= _TABLE_SPAN:
        return _render_floats(source, window, use_table=use_table)
    table = _to_bytes(source, np.arange(low, high + 1), window, use_table=use_table)
    return np.take(table, source.pixels.astype(np.int32, copy=False) - low)


def _render_floats(source: SourceImage, window: Window, *, use_table: bool) -> Bytes:
    """In blocks of rows, so that the float64 copies stay small."""
    image = np.empty(source.pixels.shape, dtype=np.uint8)
    for top in range(0, source.size[1], _ROWS_PER_BLOCK):
        block = source.pixels[top : top + _ROWS_PER_BLOCK]
        image[top : top + _ROWS_PER_BLOCK] = _to_bytes(source, block, window, use_table=use_table)
        if source.inverted and block.dtype.kind == "f":
            image[top : top + _ROWS_PER_BLOCK][np.isnan(block)] = 0
    return image


def list_presets(source: SourceImage) -> tuple[Preset, ...]:
    """The windows to offer for an image: those of the file, of its modality, and two computed.

    CT windows are offered only when the values are HU. Colour has none.
    """
    if source.is_color:
        return ()
    presets = [Preset(f"File window {n}", w) for n, w in enumerate(source.windows, start=1)]
    if source.units == "HU":
        presets.extend(CT_PRESETS)
    if source.full_window is not None:
        presets.append(Preset("Full range", source.full_window))
    if source.percentile_window is not None:
        presets.append(Preset("Percentile 1 to 99", source.percentile_window))
    return tuple(presets)


def table_window(table: LookupTable) -> Window:
    """The window over the values that a VOI LUT tells apart."""
    return window_between(float(table.first), float(table.first + max(table.entries.size - 1, 1)))
