"""Sentences that the page shows, in one place so that they stay the same everywhere."""

from __future__ import annotations

from typing import Final

BADGE: Final = "Research and teaching only. Not for diagnosis."
GATE: Final = (
    "This tool shows how one vision-language model reaches an answer. It is not a medical "
    "device, has not been cleared by any regulator, and is often wrong, also when it looks "
    "confident. Do not use it to diagnose, treat or triage. Use only images you may use and "
    "that contain no patient identity."
)
GATE_ACCEPT: Final = "I understand"
HEAT_NOTE: Final = "Shows where attention was high. That is not proof of why the model answered."
SIMILARITY_NOTE: Final = (
    "Shows which parts of the image the inner step is most alike. That is not proof of why the "
    "model answered."
)
BORDER_NOTE: Final = "At the border: how much of the whole map lies in the outermost patches."
VECTOR_NOTE: Final = (
    "Each step is a vector, a list of numbers. A likeness of 1 is the same direction, of 0 nothing "
    "in common; the length has no unit."
)
ENTROPY_NOTE: Final = (
    "Entropy is the model's own spread over possible next steps, not the chance that it is right."
)
# As `app.view.is_unsure` counts.
UNSURE_NOTE: Final = (
    "Only words of the reasoning can be unsure steps: a tag such as <think>, a call for a crop, "
    "the answer and what the program writes are none, also where their bar rises above the limit."
)
BELIEF_NOTE: Final = (
    "How probable each answer would be if the model had to give one at that very moment, without "
    "writing another word of reasoning; behind inner steps it is no gauge of what these hold."
)
BELIEF_NOW: Final = "What it would say at this moment, without a word of reasoning."
NO_GAUGE: Final = "This is no gauge of what the steps hold."
ANSWER_NOTE: Final = "Model's answer - may be wrong. Check the image yourself."
EMPTY: Final = "Drop a PNG, JPEG or DICOM image, or start with a sample. De-identified images only."
CHECKING: Final = "Checking file... nothing leaves this computer."
CHECKING_ON_SPACE: Final = (
    "Checking file... it is uploaded to this Space and deleted when you close the tab, or after "
    "30 min without use."
)
RECORDED: Final = "This is a recorded run: open an image to ask again."
NO_IMAGE: Final = "Open an image or a sample first."
READY: Final = "Ask one question. Example: Is there a pleural effusion?"
NO_ENGINE: Final = "No GPU/engine: live runs are off. Recorded sessions play normally."
REPLACED: Final = "The usual model cannot be used here: {name} reads the images in its place."
OUT_OF_DISTRIBUTION: Final = (
    "This image is unlike what the model was trained on. Expect a meaningless answer: watch how "
    "it reasons, not what it says."
)
UNLIKE: Final = "Unlike its training images: expect a meaningless answer."
BURNED_IN: Final = (
    "This kind of image often has text burned into the picture. I have looked at all of it: what I "
    "did not cover (What if…) shows no name, date or number of a patient."
)
BURNED_IN_SAMPLE: Final = (
    "Text is burned into this public sample: the name of a hospital and numbers of the scanner. "
    "Images of your own must not show a name, date or number of a patient."
)
LOOK_FIRST: Final = "First look for burned-in text and tick the box that says so."
LOOK_FIRST_API: Final = (
    "First look for burned-in text, then send the setting looked as true: the picture shows no "
    "name, date or number of a patient."
)
CROWDED: Final = "Everybody's run goes on and there is no room for one more: try again in a minute."
NO_TAB: Final = "This request belongs to no tab: open the page in a browser."
TAB_ENDED: Final = "This tab was closed or not used for half an hour: reload the page."
OTHER_IMAGE: Final = "Another image was opened meanwhile: press Explain again."
IMAGE_GONE: Final = "The image was deleted after half an hour without use: open it again."
GROUP_GONE: Final = "The attempts were deleted after half an hour without use: open them again."
FAULT: Final = "The run broke off because of a fault in the program; your image is still loaded."

METHOD_TEXTS: Final = {
    "auto": ("Model decides", "The model itself chooses whether to look closer."),
    "direct": ("Just answer", "Words only: one look at the whole image, then the answer."),
    "latent": (
        "Think in pictures",
        "Before answering, the model takes a few inner steps without words.",
    ),
    "zoom": (
        "Look closer",
        "The model may cut out a part of the original image and look at it in full detail.",
    ),
}

# What the models that come with the program are, by the stage of their training.
MODEL_TEXTS: Final = {
    "base": "The best all-round of these models: it can answer at once, look closer, or choose.",
    "cold-start": "Knows only the form of a closer look, and not where to look: MedVR began here.",
    "medvr": "Trained to look closer without ever being shown where to look.",
    "medlvr-sft": "Trained to take inner steps without words (latent steps) before it answers.",
    "medlvr": "Takes inner steps without words (latent steps); trained further by reward, which "
    "did not make it better.",
}
MODEL_NOTE: Final = "Trained for"
MODEL_UNKNOWN: Final = "What it was trained for is not known."
NOT_TRAINED: Final = "was not trained for this: its answer will mean little."
NO_ZOOM: Final = (
    "was not trained to look closer: in a comparison of ways to look again, where it looks is "
    "guesswork."
)

LATENT_TEXTS: Final = {
    "none": "Leave them as they are",
    "zero": "Feed in nothing (zeros)",
    "noise": "Feed in random noise",
    "shuffle": "Feed in those of another image",
    "blind": "Keep them from seeing the image",
    "skip": "Leave them out",
}

NO_DONOR: Final = (
    "There are no inner steps of another image yet: ask this model about one first, with inner "
    "steps, then come back to this image."
)
OTHER_STEPS: Final = "Steps of another kind of question mostly change nothing."
NO_DONOR_API: Final = (
    "A call keeps nothing of the one before, so that there are no inner steps of another image: "
    "use `python -m engine trace --latents shuffle --latent-donor FILE`."
)
NO_LATENTS: Final = "The last run took no inner steps."
STAYS_COVERED: Final = (
    "What is covered stays covered in every run, and in what is saved, until you take it off."
)
NO_RUN: Final = "There is no run on this image yet: press Explain first, then change something."

ABOUT: Final = f"""
### What this is
Lightbox shows, step by step, how a vision-language model reads a medical image: how unsure it is
at every step, where it looks again and why, and what each step does to its answer.

### What it is not
{GATE}

### How to read the page
- **Entropy strip.** One bar per step, which is a word or a part of one. A tall bar means that
  the model hesitated between several next ones. {ENTROPY_NOTE}
- **Heat map.** {HEAT_NOTE} Border patches often collect attention for no visual reason: the
  inspector prints how much lies at the border.
- **Crops.** The model may cut out a part of the *original* pixels and look again. Each crop card
  compares what the model would have answered before and after.
- **Inner steps.** Steps without words. Published studies found that they often hardly matter:
  use *What if* to leave them out and compare.
- **Ways to look again.** *Compare ways to look again* runs the question without a closer look, with
  those that the model asks for, and with one after every unsure step as long as closer looks are
  left; then once more without each of them. It shows what every closer look cost, and what it
  changed.
- **Belief.** {BELIEF_NOTE}

### Models
Where more than one model is on offer, *Settings* names them and what each was trained for. A model
can be asked to work in a way that it never learned: the page says so before the run and after it.

### Your data
Images are decoded on the machine that runs this program. Nothing is sent anywhere else, and there
is no telemetry. The name of a file never leaves the browser. Uploaded files are deleted when the
tab is closed, after 30 minutes without use, or when the program ends. The browser stores display
preferences only.
A saved trace holds the 8-bit picture, the question and the model's steps, and no tag of the
original: check for burned-in text before you share it. What you cover before a run is painted
over in the picture that is saved, too. A run that was fed the inner steps of another image holds
those, too.

### Attempts at one question
A file `*.radgroup.zip` holds many attempts of a model at the same question. Part of them branched
off another one just before it wrote where to look, because it was unsure there. The page draws
them as a tree with every place they looked at; an attempt that you choose opens as a run.

### Keys
| where | keys |
|---|---|
| Viewer | `1`-`4` window presets, `i` invert, `h` `v` flip, `r` `l` rotate |
| | `+` `-` `=` zoom and fit, `space` reset, arrows move the picture |
| | `o` heat map on or off, `c` contour, `[` `]` limit of the heat map |
| | `Page Up` `Page Down` former and next frame |
| Drawing a box | arrows move it, with `shift` they change its size, `Enter` done, `Esc` cancel |
| Timeline | `space` play or pause, `left` `right` step (with `shift`: ten steps) |
| | `up` `down` previous or next event, `n` next unsure step, `1`-`9` crop, `Home` `End` |
| Attempts | `up` `down` former and next, `Home` `End`, `Enter` open |
| Everywhere | `Esc` stop, `Ctrl+Enter` explain, `/` question, `?` keys |

Single letters, digits and signs can be switched off in the list of keys.
"""
