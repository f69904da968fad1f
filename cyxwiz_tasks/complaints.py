"""What pydantic finds wrong with a value, in the words of our own errors."""

from __future__ import annotations

from pydantic_core import ErrorDetails

_ACTIONS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be one of {expected}",
    "missing": "is missing",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "int_parsing": "must be a whole number (an integer)",
    "int_type": "must be a whole number (an integer)",
    "int_from_float": "must be a whole number (an integer)",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "dict_type": "must be an object of names and values",
    "mapping_type": "must be an object of names and values",
}


def reason(details: ErrorDetails) -> str:
    """Why a value cannot be used, and what it was. What one of our own checks said is passed on as it is."""
    cause = details.get("ctx", {}).get("error")
    if cause is not None:
        return str(cause)
    template = _ACTIONS.get(details["type"])
    if template is None:
        text = details["msg"][0].lower() + details["msg"][1:]
    else:
        text = template.format(**details.get("ctx", {}))
    return text if details["type"] == "missing" else f"{text}, not {str(details['input'])[:80]!r}"
