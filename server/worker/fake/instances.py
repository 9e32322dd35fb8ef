"""A small deterministic instance for a JSON Schema: what the fake worker says when it must."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Draw: TypeAlias = Callable[[int], int]
"""n -> a number from 0 to n - 1; the only source of variety."""

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")
_FORMATS = {
    "date": "2024-05-17",
    "time": "09:30:00Z",
    "date-time": "2024-05-17T09:30:00Z",
    "email": "amber@example.com",
    "uri": "https://example.com/amber",
    "uuid": "6f1f0f52-55a5-4f0e-9b3f-3f6a4a1f2b11",
}
_CLASSES = {r"\d": "0123456789", r"\w": "abcdefgh", r"\s": " ", ".": "abcdefgh"}
_ATOM = re.compile(r"\\.|\[\^?\]?[^\]]*\]|.")
_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}|[?*+]")


def instance(schema: Mapping[str, Any] | bool, draw: Draw) -> Any:
    """Return a value that is valid under `schema`.

    Knows what specialists' schemas use: types, enum, const, bounds, simple patterns, formats,
    local references, anyOf and oneOf. What it does not know, it leaves out of account.
    """
    return _Instances(schema if isinstance(schema, Mapping) else {}, draw).of(schema)


class _Instances:
    def __init__(self, root: Mapping[str, Any], draw: Draw) -> None:
        self._root = root
        self._draw = draw

    def of(self, schema: Mapping[str, Any] | bool) -> Any:
        if isinstance(schema, bool):
            return None
        if "$ref" in schema:
            return self.of(self._resolve(str(schema["$ref"])))
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][self._draw(len(schema["enum"]))]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = {name: value for name, value in schema.items() if name != key}
                return self.of({**rest, **schema[key][self._draw(len(schema[key]))]})
        merged: dict[str, Any] = {}
        for part in (schema, *schema.get("allOf", ())):
            merged |= {name: value for name, value in part.items() if name != "allOf"}
        return self._of_type(merged)

    def _of_type(self, schema: Mapping[str, Any]) -> Any:
        kind = schema.get("type", _implied_type(schema))
        if isinstance(kind, list):
            kind = kind[self._draw(len(kind))]
        match kind:
            case "object":
                required = schema.get("required", ())
                named = schema.get("properties", {})
                return {name: self.of(named.get(name, {})) for name in (*named, *required)}
            case "array":
                return self._array(schema)
            case "integer" | "number":
                return self._number(schema, whole=kind == "integer")
            case "boolean":
                return bool(self._draw(2))
            case "null":
                return None
            case _:
                return self._string(schema)

    def _array(self, schema: Mapping[str, Any]) -> list[Any]:
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", max(least, 2))
        prefix = [self.of(item) for item in schema.get("prefixItems", ())]
        count = least + self._draw(max(min(most, least + 2) - least, 0) + 1)
        items: list[Any] = prefix[:most]
        for _ in range(20 * count):  # with uniqueItems, a draw may bring nothing new
            if len(items) >= count:
                break
            item = self.of(schema.get("items", {"type": "string"}))
            if not schema.get("uniqueItems") or item not in items:
                items.append(item)
        return items

    def _number(self, schema: Mapping[str, Any], *, whole: bool) -> int | float:
        step = schema.get("multipleOf", 1)
        low, high = schema.get("minimum"), schema.get("maximum")
        if "exclusiveMinimum" in schema:
            low = schema["exclusiveMinimum"] + (step if whole else step / 1000)
        if "exclusiveMaximum" in schema:
            high = schema["exclusiveMaximum"] - (step if whole else step / 1000)
        if low is None:
            low = 0 if high is None else min(0, high)
        start = -(-low // step) * step
        if high is not None and start > high:
            return float(low)  # a narrow range of fractions
        room = 9 if high is None else min(9, int((high - start) // step))
        value = start + step * self._draw(room + 1)
        return int(value) if whole else float(value)

    def _string(self, schema: Mapping[str, Any]) -> str:
        if "pattern" in schema:
            return self._matching(str(schema["pattern"]))
        if schema.get("format") in _FORMATS:
            return _FORMATS[str(schema["format"])]
        word = _WORDS[self._draw(len(_WORDS))]
        least, most = int(schema.get("minLength", 0)), int(schema.get("maxLength", 64))
        return (word * (1 + least // len(word)))[: max(least, min(len(word), most))]

    def _matching(self, pattern: str) -> str:
        """Return a text for a pattern of atoms and counts; groups are beyond the fake."""
        pattern = pattern.removeprefix("^").removesuffix("$")
        text, at = "", 0
        while at < len(pattern):
            atom = _ATOM.match(pattern, at)
            assert atom is not None
            at = atom.end()
            count = _COUNT.match(pattern, at)
            times = 1
            if count is not None:
                at = count.end()
                times = int(count[1]) if count[1] else {"?": 0, "*": 0}.get(count[0], 1)
            text += "".join(self._char(atom[0]) for _ in range(times))
        return text

    def _char(self, atom: str) -> str:
        if atom.startswith("["):
            choices = "".join(
                "".join(chr(code) for code in range(ord(span[0]), ord(span[2]) + 1))
                if len(span) == 3 and span[1] == "-"
                else _CLASSES.get(span, span.removeprefix("\\"))
                for span in re.findall(r"\\.|.-[^\]]|.", atom[1:-1])
            )
        else:
            choices = _CLASSES.get(atom, atom.removeprefix("\\"))
        return choices[self._draw(len(choices))]

    def _resolve(self, reference: str) -> Mapping[str, Any]:
        found: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            if part:
                found = found[part.replace("~1", "/").replace("~0", "~")]
        resolved: Mapping[str, Any] = found
        return resolved


def _implied_type(schema: Mapping[str, Any]) -> str:
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema else "string"
