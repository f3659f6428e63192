"""What a checkpoint says of itself, and what it may not say."""

from __future__ import annotations

import json

import pytest

from engine.manifest import Manifest, ManifestError, PixelBudget


def test_a_manifest_is_read_as_it_was_written() -> None:
    manifest = Manifest(
        name="Small",
        stage="base",
        embedded=True,
        trained_methods=("direct", "zoom"),
        prompt_style="compact",
        view=PixelBudget(least=784, most=7840),
        crop_padding=0.2,
        entropy_threshold=0.5,
        notices=("It knows phantoms only.",),
    )

    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json("{}") == Manifest()
    assert Manifest.from_json('{"crop_padding": 1}').crop_padding == 1.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("name", None),
        ("stage", ["base"]),
        ("embedded", "no"),
        ("embedded", 1),
        ("trained_methods", "zoom"),
        ("trained_methods", [1]),
        ("notices", {"one": "two"}),
        ("prompt_style", "loud"),
        ("question_first", "yes"),
        ("view", 3),
        ("view", [784, 7840]),
        ("view", {"least": 784}),
        ("view", {"least": "784", "most": 7840}),
        ("crop", {"least": 784.5, "most": 7840}),
        ("crop_padding", "0.2"),
        ("crop_padding", True),
        ("entropy_threshold", "high"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_in_one_sentence(key: str, value: object) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(json.dumps({key: value}))

    said = str(caught.value)
    assert said.startswith(f"lightbox.json has a value of the wrong kind at '{key}")
    assert said.endswith(".")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "lightbox.json is not valid JSON."),
        ("{}, {}", "lightbox.json must hold one JSON object."),
        ("[]", "lightbox.json must hold one JSON object."),
        ('{"nme": "a"}', "lightbox.json has the unknown key 'nme'."),
        ('{"view": {"least": 784, "most": 784, "x": 1}}', "has the unknown key 'view.x'."),
        ('{"view": {"least": 1, "most": 0}}', "A pixel budget needs 784 <= least <= most"),
        ('{"crop_padding": 7}', "crop_padding must lie in 0 to 1, not 7.0."),
        ('{"crop_padding": NaN}', "crop_padding must lie in 0 to 1, not nan."),
    ],
)
def test_what_is_no_manifest_is_refused(text: str, said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(text)

    assert said in str(caught.value)
