"""The chart of a finished run: how unsure every step was, and what the model believed."""

from __future__ import annotations

from typing import Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.view import UNSURE_NATS, is_unsure, unsure_above
from engine.trace import (
    Answered,
    Belief,
    Event,
    LatentStep,
    Reground,
    TokenStep,
    Trace,
)

# Okabe and Ito's colours, which stay apart for colour-blind readers.
OPTION_COLORS: Final = (
    "#56B4E9", "#E69F00", "#2BC49A", "#F0E442", "#CC79A7",
    "#D55E00", "#9AA4AE", "#5B9BD5", "#E6E9EC", "#8C7AE6",
)  # fmt: skip
_BELOW, _ABOVE, _CROP = "#66727E", "#E69F00", "#56B4E9"
_TEXT, _MUTED, _PANEL, _LINE = "#E6E9EC", "#9AA4AE", "#14191F", "#2A323B"
_MOMENTS: Final = {
    "prefill": "first impression",
    "latent": "after inner steps",
    "before_crop": "before the crop",
    "after_crop": "after the crop",
    "end": "at the end",
}


def run_chart(trace: Trace) -> go.Figure:
    """Entropy per token above belief per option, over the steps as the timeline counts them.

    All text is the model's or the user's: Plotly reads a few HTML tags in labels, so angle
    brackets are replaced.
    """
    rows = 2 if trace.beliefs else 1
    figure = make_subplots(
        rows=rows,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.17,
        row_heights=[0.55, 0.45][:rows] if rows == 2 else [1.0],
        subplot_titles=("Entropy of each step, in nats", "Belief in each answer")[:rows],
    )
    steps = _steps(trace)
    _add_entropy(figure, trace, steps)
    if trace.beliefs:
        beliefs = [(step, event) for step, event in steps if isinstance(event, Belief)]
        _add_belief(figure, beliefs)
    figure.update_layout(
        paper_bgcolor=_PANEL,
        plot_bgcolor=_PANEL,
        font={"color": _TEXT, "size": 13},
        margin={"l": 56, "r": 24, "t": 44, "b": 44},
        height=210 + 210 * (rows - 1),
        showlegend=rows == 2,
        legend={"orientation": "h", "y": -0.16, "x": 0},
        hovermode="x unified",
        bargap=0.15,
    )
    figure.update_xaxes(gridcolor=_LINE, zeroline=False)
    figure.update_yaxes(gridcolor=_LINE, zeroline=False, rangemode="tozero")
    figure.update_xaxes(title_text="Step", row=rows, col=1)
    if rows == 2:
        figure.update_yaxes(range=[0, 1.02], tickformat=".0%", row=2, col=1)
    return figure


def plain(text: str, limit: int = 60) -> str:
    """The text without anything that Plotly would read as markup, shortened."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe if len(text) <= limit else plain(text[: limit - 1], limit) + "…"


def _steps(trace: Trace) -> list[tuple[float, Event]]:
    """Every event with its step on the timeline; what is no step itself lies between two."""
    placed: list[tuple[float, Event]] = []
    done = 0
    for event in trace:
        if isinstance(event, TokenStep | LatentStep | Reground | Answered):
            done += 1
            placed.append((done, event))
        else:
            placed.append((done + 0.5, event))
    return placed


def _add_entropy(figure: go.Figure, trace: Trace, steps: list[tuple[float, Event]]) -> None:
    tokens = trace.tokens
    started = trace.started
    limit = unsure_above(started) if started else UNSURE_NATS
    figure.add_trace(
        go.Bar(
            x=[step for step, event in steps if isinstance(event, TokenStep)],
            y=[token.entropy_nats for token in tokens],
            marker_color=[_ABOVE if is_unsure(token, limit) else _BELOW for token in tokens],
            hovertext=[plain(token.text) for token in tokens],
            hovertemplate="%{hovertext}: %{y:.2f} nats<extra></extra>",
            showlegend=False,
        ),
        row=1,
        col=1,
    )
    if started is not None:
        figure.add_hline(y=limit, line={"dash": "dash", "color": _MUTED, "width": 1}, row=1, col=1)
    for step, event in steps:
        if isinstance(event, Reground):
            _add_pin(figure, step, event)


def _add_pin(figure: go.Figure, step: float, crop: Reground) -> None:
    figure.add_vline(
        x=step,
        line={"color": _CROP, "width": 1, "dash": "dot"},
        annotation={"text": f"crop {crop.number}", "font": {"color": _CROP, "size": 12}},
        row=1,
        col=1,
    )


def _add_belief(figure: go.Figure, beliefs: list[tuple[float, Belief]]) -> None:
    names = beliefs[-1][1].options
    for rank, name in enumerate(names):
        points = [(step, one) for step, one in beliefs if rank < len(one.probabilities)]
        figure.add_trace(
            go.Scatter(
                x=[step for step, _ in points],
                y=[belief.probabilities[rank] for _, belief in points],
                mode="lines+markers",
                name=plain(name, 40),
                line={"color": OPTION_COLORS[rank % len(OPTION_COLORS)], "width": 2},
                hovertext=[_MOMENTS[belief.moment] for _, belief in points],
                hovertemplate="%{y:.0%} %{hovertext}",
            ),
            row=2,
            col=1,
        )
