"""Names and tags that clients give to templates, and what their User-Agent says."""

import pytest

from alcove.control.errors import InvalidRequestError
from alcove.control.templates.builds import base_of
from alcove.control.templates.clients import has_plain_user
from alcove.control.templates.names import Name, read_name, read_tags, wanted_tags


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mine", Name("mine", None)),
        (" Mine:V1.0 ", Name("mine", "v1.0")),
        ("team/mine_2-x:a", Name("mine_2-x", "a")),
    ],
)
def test_names(text: str, name: Name) -> None:
    assert read_name(text, "team") == name


@pytest.mark.parametrize(
    "text", ["", ":x", "x:", "a b", "a/b", "/x", "team/", "x:a:b", "ü", "x" * 129, "a.b"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_name(text, "team")


def test_tags_of_a_build() -> None:
    assert wanted_tags(Name("x", None), []) == ["default"]
    assert wanted_tags(Name("x", "V1".lower()), ["B", "v1"]) == ["v1", "b"]
    assert read_tags(["a", "A", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("agent", "plain"),
    [
        ("e2b-python-sdk/2.2.9", True),
        ("e2b-js-sdk/1.0.0 x/1", True),
        ("e2b-python-sdk/2.3.0", False),
        ("e2b-python-sdk/2.63.0", False),
        ("curl/8", False),
        ("", False),
    ],
)
def test_old_clients(agent: str, plain: bool) -> None:
    assert has_plain_user(agent) is plain


@pytest.mark.parametrize(
    ("image", "template", "base"),
    [
        ("e2bdev/base", "", "base"),
        ("docker.io/e2bdev/base:latest", "", "base"),
        ("ppio-sandbox/base", "", "base"),
        ("ubuntu:22.04", "", ""),
        ("", "mine", "mine"),
    ],
)
def test_names_of_the_base_image(image: str, template: str, base: str) -> None:
    assert base_of(image, template) == base
