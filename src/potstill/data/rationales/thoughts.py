"""Removing the thoughts of a reasoning model from its answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 2**15  # characters of an answer without thoughts; a longer one is not a rationale

_NAMES = "think|thinking|thoughts?|reasoning|reflection|scratchpad|inner_monologue|antthinking|(?:seed|mm|ns):think"
# Beginning and end of a thought, in the notations of models. The last one is Harmony's: a message of any channel but
# the final one; its end is that of any message, so it ends a thought only after a beginning.
_MARKS = re.compile(
    rf"<\s?(?P<a>/?)\s?(?P<tag>{_NAMES})(?:\s[^<>]*)?>"
    r"|\[(?P<b>/?)(?P<bracket>think|thinking)\]"
    r"|◁(?P<c>/?)(?P<triangle>think)▷"
    r"|<\|(?P<edge>begin|start|end)_(?P<token>of_thought|of_thinking|thinking|think)\|>"
    r"|<\|channel\|>\s?(?P<message>analysis|commentary)[^<]*<\|message\|>"
    r"|<\|(?P<message_end>end|call)\|>",
    re.IGNORECASE,
)
_MESSAGE = "message"
# Marks around the answer itself, after thoughts.
_WRAPPINGS = re.compile(
    r"</?\s?answer\s?>|<\|(?:begin|start|end)_(?:of_solution|response)\|>|<\|start\|>\s?assistant"
    r"|<\|channel\|>\s?final[^<]*<\|message\|>|<\|(?:return|end)\|>",
    re.IGNORECASE,
)


def final_answer(text: str, *, stop: Sequence[str] = (), template: str = "") -> str | None:
    """An answer without thoughts; an answer that has none is returned unchanged.

    An end without a beginning ends a thought too, since the prompts of many models open it.

    Args:
        text: Raw answer.
        stop: Strings that end the answer outside of thoughts.
        template: Template of answers; its marks do not count as thoughts.

    Returns:
        The answer up to the first of the strings `stop`; None if it ends within a thought, or is longer than `LONGEST`.
    """
    own = {_form(mark)[0] for mark in _MARKS.finditer(template)}
    kept, at, open_form, depth, ended = "", 0, "", 0, False
    for mark in _MARKS.finditer(text):
        form, begins = _form(mark)
        alone = form == _MESSAGE and not begins and not depth
        if form in own or alone or (depth and form != open_form):
            continue
        if not depth:
            kept += text[at : mark.start()]
            if ended and (cut(kept, stop) != kept or len(kept) > LONGEST):
                break  # the model continues with questions of its own
        if begins:
            open_form, depth = form, depth + 1
            continue
        depth = max(depth - 1, 0)
        if not depth:
            # Without a beginning, everything before the end is the thought.
            kept = kept if open_form == form else ""
            at, open_form, ended = mark.end(), "", True
    else:
        if not depth:
            kept += text[at:]
    if ended or depth:
        kept = _WRAPPINGS.sub(lambda found: found[0] if found[0] in template else "", kept).strip()
    answer = cut(kept, stop)
    unfinished = depth > 0 and answer == kept
    return None if unfinished or len(answer) > LONGEST else answer


def ended(text: str, stop: Sequence[str]) -> bool:
    """Whether an answer has reached one of the strings `stop`, outside of its thoughts."""
    if not any(mark in text for mark in stop):
        return False
    answer = final_answer(text, stop=stop)
    return answer is not None and answer != final_answer(text)


def opened_thought(prompt: str) -> str:
    """The beginning of a thought at the end of a prompt, or ""."""
    prompt = prompt.rstrip()
    last = next(reversed(list(_MARKS.finditer(prompt))), None)
    return last[0] if last and last.end() == len(prompt) and _form(last)[1] else ""


def is_mark(text: str) -> bool:
    """Whether a text is the beginning or the end of a thought."""
    return _MARKS.fullmatch(text.strip()) is not None


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings `stop`."""
    ends = [at for at in (text.find(mark) for mark in stop) if at >= 0]
    return text[: min(ends)] if ends else text


def _form(mark: re.Match[str]) -> tuple[str, bool]:
    """Notation of a mark, and whether it begins a thought."""
    found = {name: value.lower() for name, value in mark.groupdict().items() if value is not None}
    if "message" in found or "message_end" in found:
        return _MESSAGE, "message" in found
    name = next(found[kind] for kind in ("tag", "bracket", "triangle", "token") if kind in found)
    return f"{mark[0][:1]}{name}", not ("/" in found.values() or found.get("edge") == "end")
