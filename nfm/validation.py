"""pydantic's errors as sentences that a user can act on."""

from typing import Any

from pydantic import ValidationError


def sentences(error: ValidationError, mapping: dict[str, Any]) -> list[str]:
    """Returns one sentence a wrong key; what the members of a union wanted is joined by "or"."""
    found: dict[str, str] = {}
    for item in error.errors():
        where, value = _locate(item["loc"], mapping)
        key = ".".join(where)
        sentence = _sentence(item, key, value)
        if key in found and "expected " in found[key] and "expected " in sentence:
            found[key] += " or " + sentence.split("expected ", 1)[1]
        else:
            found.setdefault(key, sentence)
    return list(found.values())


def _sentence(error: Any, key: str, value: Any) -> str:
    """Turns one pydantic error into a sentence that names the key, the value and the way out."""
    message = error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "missing" if isinstance(value, list):
            return f"{key} is {value!r}, expected {len(value) + 1} values"
        case "missing":
            return f"{key} is missing; every key is stated, see `python -m nfm recipe digits`"
        case "union_tag_invalid":
            return f"{key}.kind is {error['ctx']['tag']!r}, expected one of {error['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"{key}.kind is missing; it chooses the variant"
        case "value_error":
            return f"{key}: {message}" if key else message
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{key} is {value!r}, expected a section"
        case "too_long" | "too_short":
            count = error["ctx"].get("max_length", error["ctx"].get("min_length"))
            return f"{key} is {value!r}, expected {count} value{'s' * (count > 1)}"
        case _:
            wanted = message.replace("Input should be", "expected").replace("a valid tuple", "a list")
            return f"{key} is {value!r}, {wanted}"


def _locate(loc: tuple[Any, ...], mapping: Any) -> tuple[list[str], Any]:
    """Drops variant names from a pydantic location; returns the keys and the value there."""
    keys, node, tagged = [], mapping, None
    for part in loc:
        # The first part inside a variant is its kind, which may be a key of it as well.
        if isinstance(node, dict) and part == node.get("kind") and node is not tagged:
            tagged = node
            continue
        if isinstance(node, dict):
            inside = part in node
        else:
            inside = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if inside:
            node = node[part]
        elif part != loc[-1] or not isinstance(node, dict):
            continue  # the name of a variant or of a plain type in a union
        keys.append(str(part))
    return keys, node
