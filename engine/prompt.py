"""The words around a run: system text, question, tool call, tool response, answer.

Everything is ChatML as in Qwen2.5-VL's own template (tested against it); one image stands as
`<|vision_start|><|image_pad|><|vision_end|>`, whose pad is expanded to the number of visual
tokens after tokenising. The tool protocol is Hermes's, as DeepEyes uses it (methods 3.3).
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Final

from engine.coordinates import CoordinateKind
from engine.manifest import Manifest, PromptStyle
from engine.request import Method, Request

IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"
IMAGE_PAD: Final = "<|image_pad|>"
VISION_START: Final = "<|vision_start|>"
IMAGE: Final = f"{VISION_START}{IMAGE_PAD}<|vision_end|>"

THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"
ANSWER_OPEN: Final = "<answer>"
ANSWER_CLOSE: Final = "</answer>"
TOOL_CALL_OPEN: Final = "<tool_call>"
TOOL_CALL_CLOSE: Final = "</tool_call>"
# What the model writes between tags of its own, by the tag that opens it.
TAG_PAIRS: Final = {
    THINK_OPEN: THINK_CLOSE,
    TOOL_CALL_OPEN: TOOL_CALL_CLOSE,
    ANSWER_OPEN: ANSWER_CLOSE,
}
TOOL_RESPONSE_OPEN: Final = "<tool_response>"
TOOL_RESPONSE_CLOSE: Final = "</tool_response>"
LATENT_START: Final = "<|lat_start|>"
LATENT_SLOT: Final = "<|lat|>"
LATENT_END: Final = "<|lat_end|>"
LATENT_TOKENS: Final = (LATENT_START, LATENT_SLOT, LATENT_END)

ZOOM_TOOL_NAME: Final = "image_zoom_in_tool"
# The part of a tool call up to the first coordinate; the engine writes it when an entropy
# peak opens a call, and rollouts fork right after it.
ZOOM_CALL_HEAD: Final = (
    f'{TOOL_CALL_OPEN}\n{{"name": "{ZOOM_TOOL_NAME}", "arguments": {{"bbox_2d": ['
)
ZOOM_CALL_TAIL: Final = f"]}}}}\n{TOOL_CALL_CLOSE}"

_COUNTED: Final[Mapping[CoordinateKind, str]] = {
    "pixels": "in pixels of the image",
    "thousandths": "in thousandths of the image, 0 to 1000 on both sides",
}


_FULL_SYSTEM: Final = "You are a helpful assistant."
_FULL_INSTRUCTION: Final = {
    "direct": "Think step by step inside <think></think>",
    "latent": "Think inside <think></think>",
    "zoom": (
        "Think first inside <think></think>, call image_zoom_in_tool if a closer look helps, "
        "then go on"
    ),
    "auto": (
        "Think first inside <think></think>, call image_zoom_in_tool only if a closer look is "
        "needed, then go on"
    ),
}


def option_letter(index: int) -> str:
    """`A` for option 0, `B` for option 1, and so on."""
    return string.ascii_uppercase[index]


def _tools_schema(coordinates: CoordinateKind) -> str:
    """The zoom tool as Hermes's JSON says it."""
    region = f"The region as [x1, y1, x2, y2] {_COUNTED[coordinates]}."
    return json.dumps(
        {
            "type": "function",
            "function": {
                "name": ZOOM_TOOL_NAME,
                "description": "Zoom in on a region of the image and look at it again.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "bbox_2d": {
                            "type": "array",
                            "items": {"type": "number"},
                            "minItems": 4,
                            "maxItems": 4,
                            "description": region,
                        },
                        "label": {"type": "string", "description": "What the region shows."},
                    },
                    "required": ["bbox_2d"],
                },
            },
        }
    )


def _full_zoom_system(coordinates: CoordinateKind) -> str:
    return (
        f"{_FULL_SYSTEM}\n\n# Tools\n\nYou may call one or more functions to assist with the user "
        "query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{_tools_schema(coordinates)}\n</tools>\n\nFor each function call, return a json "
        "object with function name and arguments within <tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def system_text(style: PromptStyle, method: Method, coordinates: CoordinateKind = "pixels") -> str:
    """The system message; in the compact style it names the method in one word."""
    if style == "compact":
        return f"Method: {method}."
    return _full_zoom_system(coordinates) if method in ("zoom", "auto") else _FULL_SYSTEM


def question_text(
    style: PromptStyle, method: Method, question: str, options: tuple[str, ...]
) -> str:
    """The question with its lettered options and, in the full style, how to answer."""
    lines = [question.strip()]
    lines += [f"{option_letter(i)}. {option.strip()}" for i, option in enumerate(options)]
    if style == "full":
        what = "the letter of your choice" if options else "a short answer"
        lines.append(f"{_FULL_INSTRUCTION[method]}, and put {what} in <answer></answer>.")
    return "\n".join(lines)


def turn(role: str, content: str) -> str:
    """One whole ChatML turn."""
    return f"{IM_START}{role}\n{content}{IM_END}\n"


def prompt_text(
    *,
    style: PromptStyle,
    question_first: bool,
    method: Method,
    question: str,
    options: tuple[str, ...],
    coordinates: CoordinateKind = "pixels",
) -> str:
    """The whole prompt up to where the model starts to write; holds one image."""
    asked = question_text(style, method, neutralised(question), tuple(map(neutralised, options)))
    content = f"{asked}\n{IMAGE}" if question_first else f"{IMAGE}{asked}"
    system = turn("system", system_text(style, method, coordinates))
    return system + turn("user", content) + assistant_head()


def request_prompt(manifest: Manifest, request: Request) -> str:
    """`prompt_text` of a request to a checkpoint.

    Under the evidence bottleneck the question stands before the image whatever the checkpoint: what
    stands behind the image is hidden from the answer with it.
    """
    return prompt_text(
        style=manifest.prompt_style,
        question_first=manifest.question_first or request.bottleneck,
        method=request.method,
        question=request.question,
        options=request.options,
        coordinates=manifest.coordinates,
    )


def assistant_head() -> str:
    """What opens the model's turn."""
    return f"{IM_START}assistant\n"


def tool_response_text() -> str:
    """From the end of a tool call to where the model writes again; holds one image."""
    return (
        f"{IM_END}\n{IM_START}user\n{TOOL_RESPONSE_OPEN}\n{IMAGE}\n{TOOL_RESPONSE_CLOSE}"
        f"{IM_END}\n{assistant_head()}"
    )


def tool_message_text(message: str) -> str:
    """As `tool_response_text`, with words instead of an image (an error, a skipped crop)."""
    return (
        f"{IM_END}\n{IM_START}user\n{TOOL_RESPONSE_OPEN}\n{message}\n{TOOL_RESPONSE_CLOSE}"
        f"{IM_END}\n{assistant_head()}"
    )


def zoom_call_text(numbers: tuple[int, int, int, int]) -> str:
    """A whole tool call; the numbers of a box as `engine.coordinates` makes them."""
    return ZOOM_CALL_HEAD + ", ".join(str(value) for value in numbers) + ZOOM_CALL_TAIL


def answer_text(answer: str) -> str:
    """The answer as the model writes it."""
    return f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


def neutralised(text: str) -> str:
    """User text with the marks of control tokens broken, so that it cannot forge a turn.

    >>> neutralised("<|im_end|>")
    '< |im_end| >'
    """
    text = text.replace("<|", "< |").replace("|>", "| >")
    for tag in ("think", "answer", "tool_call", "tool_response", "tools"):
        text = text.replace(f"<{tag}>", f"< {tag}>").replace(f"</{tag}>", f"< /{tag}>")
    return text
