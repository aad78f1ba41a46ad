"""Words of a lower-case text as by NLTK's `word_tokenize`, without NLTK and its data, for the CMRC 2018 metric.

The texts come without `answer_metrics.PUNCTUATION` (colon, hyphen, asterisk, quotes), so rules for these are left out.

1. Sentences are split as by Punkt (Kiss and Strunk 2006), at full stops only, with its English abbreviations but not
   its collocations. In lower case one of its rules on capitals remains: after a number or an initial, a lower-case word
   continues the sentence.
2. Sentences are split into words by the rules of the Penn Treebank, as extended by `NLTKWordTokenizer` of NLTK 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_LIST = """
a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co
col colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga
gen h h.c h.f h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c
m.j maj messrs mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa
ph.d prof r r.a r.h r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn
tues u.k u.n u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w wash wed wis yr
"""
_ABBREVIATIONS = frozenset(_LIST.split())
_OUTSIDE = r""")";}\]*:@'({\[?!"""  # ends a word without a space
_STOP = re.compile(rf"\.(?=[{_OUTSIDE}]|\s+(?P<next>\S))")
_LAST_WORD = re.compile(rf"[^\s{_OUTSIDE}]*$")
_CLOSING = re.compile(r"""["')\]}]+(?:\s+|$)""")  # part of the sentence before
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")
_INITIAL = re.compile(r"[^\W\d]")

# Pattern and replacement, in order; the sentence is finally split at spaces.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Opening quotes.
        (r"[«‘„]", r" \g<0> "),  # noqa: RUF001
        (r'^"', r" `` "),
        (r"""([ (\[{<])(?:"|'')""", r"\1 `` "),
        (r"'(?!re|ve|ll|[mtsdn])(?=\w\b)", r"' "),
        # Punctuation, except commas and full stops in numbers.
        (r"""([^.])\.([\])}>"'» ]*)\s*$""", r"\1 . \2 "),
        (r",(\D)", r" , \1"),
        (r",$", r" , "),
        (r"\.{2,}", r" \g<0> "),
        (r"[;@#$%&\u2012-\u2015]", r" \g<0> "),
        (r"""([^.])\.([\])}>"']*)\s*$""", r"\1 .\2 "),
        (r"[?!]", r" \g<0> "),
        (r"([^'])' ", r"\1 ' "),
        (r"[][(){}<>]", r" \g<0> "),
        (r"^|$", r" "),
        # Closing quotes and contractions.
        (r"»", r" » "),
        (r"""''|\"""", r" '' "),
        (r"\s+", r" "),
        (r"([^' ])('[smd]|') ", r"\1 \2 "),
        (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
        # Words that are split.
        (r"\b(can)(not)\b", r" \1 \2 "),
        (r"\b(d)('ye)\b", r" \1 \2 "),
        (r"\b(gim|lem)(me)\b", r" \1 \2 "),
        (r"\b(gon)(na)\b", r" \1 \2 "),
        (r"\b(got)(ta)\b", r" \1 \2 "),
        (r"\b(more)('n)\b", r" \1 \2 "),
        (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
        (r" ('t)(is|was)\b", r" \1 \2 "),
    )
)


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a lower-case text; double quotes become `` and ''."""
    return [word for sentence in _sentences(text) for word in _cut(sentence)]


def _cut(sentence: str) -> list[str]:
    for pattern, replacement in _RULES:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for stop in _STOP.finditer(text):
        word = _LAST_WORD.search(text, begin, stop.start())
        if not _ends(word.group() if word else "", stop["next"] or ""):
            continue
        end = stop.start("next") if stop["next"] else stop.end()
        if closing := _CLOSING.match(text, end):
            end = closing.end()
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _ends(word: str, following: str) -> bool:
    """Whether the full stop after a word ends a sentence; `following` is the letter after a space, if any."""
    word = word.lstrip("-,`&#")
    if word.endswith(".") or word in _ABBREVIATIONS or word.split("-")[-1] in _ABBREVIATIONS:
        return False
    return not (following.islower() and (_NUMBER.fullmatch(word) or _INITIAL.fullmatch(word)))
