"""Arguments of operators' verbs, as the controller gets them."""

from __future__ import annotations

import json
from typing import Any

from controller.operator_verbs import VERBS, parse_arguments

GOOD: dict[type, Any] = {str: "x", int: 1, float: 1.5, bool: True, list: ["x"]}


def good(verb: str) -> dict[str, Any]:
    """Return arguments of a verb that are right."""
    found = {name: GOOD[argument.kind] for name, argument in VERBS[verb].items()}
    if "designator" in found:
        found["designator"] = "0123456789abcdef"
    return found


def parse(verb: str, arguments: Any) -> dict[str, Any]:
    """Bring arguments through JSON and the check."""
    return parse_arguments(verb, json.dumps(arguments).encode())
