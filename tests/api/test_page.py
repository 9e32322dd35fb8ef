"""The page at `/`: everything of its own, nothing inline, nothing from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from tests.gatewayed import House

pytestmark = pytest.mark.asyncio(loop_scope="module")


class _Tags(HTMLParser):
    """Collects tags with their attributes, and the text inside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.script += data


async def _page(house: House) -> _Tags:
    response = await house.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    tags = _Tags()
    tags.feed(response.text)
    return tags


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css"])
async def test_every_part_has_the_policy(house: House, path: str) -> None:
    policy = (await house.http.get(path)).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"


async def test_no_script_is_inline(house: House) -> None:
    page = await _page(house)
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [attributes["src"] for attributes in scripts] == ["/page.js"]
    assert page.script.strip() == ""
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert not (attributes.get("href") or "").startswith("javascript:")


async def test_what_the_page_names_is_there(house: House) -> None:
    page = await _page(house)
    named = {
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href") and value and not value.startswith(("data:", "#"))
    }
    assert {"/page.js", "/page.css", "/v1/tasks", "/metrics"} <= named
    for path in named:
        assert path.startswith("/")
        assert not path.startswith("//")
        assert (await house.http.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("path", "content_type"), [("/page.js", "text/javascript"), ("/page.css", "text/css")]
)
async def test_parts_have_their_types(house: House, path: str, content_type: str) -> None:
    response = await house.http.get(path)
    assert response.headers["content-type"].partition(";")[0] == content_type
    assert "://" not in response.text
    assert len(response.text) > 200
