"""Masking of secrets in everything that is printed, logged or written.

Masked are: user names and passwords in URLs, with or without a scheme; values of a URL's query; values of names such as
`api_key`, `password` or `Authorization`, also in headers; keys of well-known forms (`sk-...`); values of environment
variables with such names, or that a configuration refers to (`${oc.env:NAME}`). Model names, paths and token names
(`pad_token`) are kept.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

MASK = "***"
SHORTEST_VALUE = 6  # characters; shorter values of variables could be parts of words and numbers
_SHORTEST_TYPED = 4
LARGEST_NUMBER = 10**5  # larger numbers of secret names are masked as passwords

# Last words of names that hold a secret.
_SECRET = {
    "password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials", "authorization",
    "signature", "sig", "cookie", "cookies", "apikey", "bearer", "auth", "jwt", "pat",
}  # fmt: skip
# Words before `key` that make it a secret, and before `token` that do not.
_OF_SECRET_KEYS = {
    "api", "access", "secret", "private", "account", "subscription", "service", "auth", "wandb", "openai", "anthropic",
    "azure", "hf", "hub", "client", "master", "shared", "license", "signing", "encryption", "ssh", "aws", "gcp", "llm",
}  # fmt: skip
_OF_PLAIN_TOKENS = {
    "pad", "mask", "unk", "eos", "bos", "cls", "sep", "start", "end", "image", "audio", "special", "added", "first",
    "last", "new", "per", "max", "min", "any", "each", "one", "a", "the", "this", "by",
}  # fmt: skip
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_REFERENCE = re.compile(r"\$\{oc\.env:\s*([\w.]+)")
_HARMLESS = re.compile(
    r"""\s*["']?(?:(?:bearer|basic|token|digest)\s+)?(?:\$\{[^{}]*\}|\$?\{?[A-Z_]+_KEY\}?|null|none|true|false|\?\?\?"""
    r"""|\*\*\*|<[^<>]*>|\.\.\.|[-+]?\d{1,5}(?:\.\d*)?)?["']?\s*\Z""",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")

# Repetitions are bounded to bound the time.
# `me:password@` after a scheme; the password may contain invalid characters such as "@" and "/".
_USER = re.compile(r"(?<=://)(?:[^\s'\"<>@/?#:]{0,256}:(?!\d+(?:[/?#]|$))[^\s'\"<>]{0,256}|[^\s'\"<>@/?#:]{1,256})@")
# The same without a scheme, before a host.
_BARE_USER = re.compile(r"(?<![\w/@.$:~+-])[\w.+~-]{1,64}:(?![/\\\s])[^\s@'\"<>]{1,256}@(?=[\w\[])")
_QUERY = re.compile(r"(?<=://)([^\s'\"<>?:]{1,256}(?::[^\s'\"<>?:]{0,256})?\?)([^\s'\"<>]+)")
_FIELD = re.compile(r"(^|[&;])([^&;=#]*)=([^&;#]*)")
_BARE_FIELD = re.compile(
    r"([?&](?:[\w.-]{0,64}[_.-])?(?:key|token|pass|password|secret|sig|signature|auth|code|credential|session)=)"
    r"([^\s&'\"]+)",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?<![\w.-])([\w.-]{1,200})(['\"]?\s?[=:]\s{0,8})")
_VALUE = re.compile(
    r"""(?:(?:bearer|basic|token|digest)\s{1,8})?(?:"[^"\n]{0,1024}"|'[^'\n]{0,1024}'|[^\s,;&}\])'"]+)""", re.IGNORECASE
)
_SCHEME = re.compile(r"\b(bearer|basic)\s{1,8}(?=[\w.~+/-]{0,256}[\d=])[\w.~+/=-]{8,}", re.IGNORECASE)
_FORMS = re.compile(
    r"(?<![\w-])(?:"
    r"sk-(?:proj|live|test|ant|or|svcacct|admin)-[\w-]{4,}|sk-(?=[\w-]*[\dA-Z])[\w-]{8,}|[sprk]k_(?:live|test)_\w{8,}"
    r"|hf_[A-Za-z0-9]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
    r"|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|wandb_v\d_\w{20,}|local-[0-9a-f]{40}|gsk_\w{20,}|pypi-[\w-]{40,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r")"
)

_remembered: dict[str, str] = {}  # values and their replacements


def is_secret_name(name: str, *, key: bool = False) -> bool:
    """Whether the value of a name is a secret.

    Args:
        name: of an option, a header, a variable or a field; only the part after the last dot counts.
        key: whether `key` alone counts, as in the option `generation.key`, but not in a text.
    """
    words: list[str] = [word.lower() for word in _WORD.findall(name.rpartition(".")[2])]
    if not words:
        return False
    *before, last = words
    if last in _SECRET or {"secret", "password", "passwd"} & set(words):
        return last != "variable"
    if last == "token":
        return not _OF_PLAIN_TOKENS & set(before)
    if last == "pass":
        return bool(before) and name.isupper()
    return last == "key" and (key if not before else bool(_OF_SECRET_KEYS & set(before)))


def remember(value: str, instead: str = MASK) -> None:
    """Replace a value by `instead` in all texts from now on."""
    if value:
        _remembered[value] = instead


def remember_overrides(arguments: Iterable[str]) -> None:
    """Mask the values of secret names in overrides, and of the environment variables that they refer to."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        value = value.strip().strip("'\"")
        if is_secret_name(name, key="." in name) and len(value) >= _SHORTEST_TYPED and not _HARMLESS.match(value):
            remember(value)
        remember_references(argument)


def remember_references(text: str) -> None:
    """Replace values of the environment variables in `${oc.env:NAME}` by the reference from now on.

    Words, numbers and paths are kept if the name is not that of a secret.
    """
    for name in _REFERENCE.findall(text):
        value = os.environ.get(name, "").strip()
        legible = re.fullmatch(r"[A-Za-z]+|[-+.\deE_]+|[.~]{0,2}/.*", value)
        if len(value) >= SHORTEST_VALUE and (is_secret_name(name) or not legible):
            remember(value, f"${{oc.env:{name}}}")


def redact(text: str) -> str:
    """A text without its secrets."""
    return _redact(text, _known())


def _redact(text: str, known: list[str]) -> str:
    for value in known:
        if value in text:
            text = text.replace(value, _remembered.get(value, MASK))
    text = _USER.sub(f"{MASK}@", text)
    text = _QUERY.sub(lambda found: found[1] + _FIELD.sub(_field, found[2]), text)
    text = _BARE_FIELD.sub(rf"\1{MASK}", text)
    text = _without_assigned(text)
    text = _BARE_USER.sub(f"{MASK}@", text)
    text = _SCHEME.sub(rf"\1 {MASK}", text)
    return _FORMS.sub(MASK, text)


def redact_override(override: str) -> str:
    """An override `key=value` without its secrets."""
    return _redact_override(override, _known())


def _redact_override(override: str, known: list[str]) -> str:
    name, equals, value = override.partition("=")
    if not equals:
        return _redact(override, known)
    return f"{_redact(name, known)}={_redacted(value, name, False, known)}"


def redacted(value: Any, name: str = "") -> Any:
    """Nested lists and dictionaries without their secrets; numbers, booleans and null are kept.

    Args:
        value: of a configuration or a summary.
        name: its key.
    """
    return _redacted(value, name, False, _known())


def _redacted(value: Any, name: str, secret: bool, known: list[str]) -> Any:
    last = name.rpartition(".")[2]
    secret = secret or is_secret_name(name, key="." in name) or last.lower().endswith(("headers", "cookies"))
    if isinstance(value, Mapping):
        return {
            _redact(key, known) if isinstance(key, str) else key: _redacted(inner, f"{name}.{key}", secret, known)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        overrides = [isinstance(inner, str) and "=" in inner and not secret for inner in value]
        return [
            _redact_override(inner, known) if override else _redacted(inner, name, secret, known)
            for inner, override in zip(value, overrides, strict=True)
        ]
    if secret and isinstance(value, int | float) and abs(value) >= LARGEST_NUMBER:
        return MASK
    if not isinstance(value, str):
        return value if value is None or isinstance(value, bool | int | float) else _redact(str(value), known)
    if last == "key_variable" and not (_VARIABLE.fullmatch(value) or value in os.environ):
        return MASK  # the key itself instead of the name of its variable
    if secret and not _HARMLESS.match(value):
        return MASK
    return _redact(value, known)


def mask_tracebacks() -> None:
    """Mask secrets in tracebacks of this process."""
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _known() -> list[str]:
    """Values that are masked in all texts, the longest first."""
    variables = [
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and is_secret_name(name) and not _HARMLESS.match(value) and not _is_path(value)
    ]
    return sorted([*_remembered, *variables], key=len, reverse=True)


def _is_path(value: str) -> bool:
    """Whether a variable holds a path, such as PWD or GOOGLE_APPLICATION_CREDENTIALS."""
    return value.startswith("/") and Path(value).exists()


def _field(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}={MASK}" if found[3] else found[0]


def _without_assigned(text: str) -> str:
    """A text without the values after names of secrets."""
    parts, done = [], 0
    for found in _NAMED.finditer(text):
        if found.start() < done or not is_secret_name(found[1], key="." in found[1] and "=" in found[2]):
            continue
        value = _VALUE.match(text, found.end())
        if value is None or _HARMLESS.match(value[0]):
            continue
        quote = value[0][-1] if value[0][-1] in "'\"" else ""
        parts.append(f"{text[done : found.end()]}{quote}{MASK}{quote}")
        done = value.end()
    return "".join(parts) + text[done:]
