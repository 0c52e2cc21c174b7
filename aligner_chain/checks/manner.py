"""Checks of the text as a whole: language and length, refusals, leftovers of a template, loops, and how it ends."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import groupby, pairwise

from aligner_chain.checks.comparison import Comparison, Damage, words

_SCRIPTS = (
    (0x0000, ""), (0x0041, "Latin"), (0x0250, ""), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"),
    (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0780, ""), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, "Indic"),
    (0x0E00, "Thai"), (0x0E80, ""), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, ""), (0x1E00, "Latin"),
    (0x1F00, "Greek"), (0x2000, ""), (0x3040, "Kana"), (0x3100, ""), (0x3400, "Han"), (0xA000, ""), (0xAC00, "Hangul"),
    (0xD7B0, ""), (0xF900, "Han"), (0xFB00, ""), (0xFB50, "Arabic"), (0xFE00, ""), (0xFE70, "Arabic"), (0xFF00, ""),
    (0x20000, "Han"), (0x32000, ""),
)  # fmt: skip
"""The first character of each run of characters, and the script of its letters. Japanese is Kana and Han together."""
_FIRSTS = [first for first, _ in _SCRIPTS]

_JOINING: Mapping[str, str] = {
    "Cyrillic": "и а в на с о но или для",
    "Han": "和 或 及 与 的 以及",
    "Arabic": "و أو في",
    "Greek": "για και να",
    "Thai": "และ ของ",
    "Hangul": "및",
}
"""Words that join others. Alone amid another script they are a model's slip, where any other word may be a name or an example."""
_LETTERS_IN_A_ROW = re.compile(r"[^\W\d_]+")
_APART = re.compile(r"[\s\d,，،、]*")
"""What stands between a word and those that it joins."""
_STRAY_MARK = re.compile(r"[A-Za-z0-9)*\"'’”][，。、；：！？．،؛।]")
"""Marks of Chinese, Arabic and Hindi right behind what is Latin."""

_FREQUENT: Mapping[str, str] = {
    "English": "the and is of to that it for with you are this have not from",
    "German": "der die das und ist nicht ein eine mit auf für sie zu den von",
    "French": "le la les et est des une dans que pour vous pas sur avec du",
    "Spanish": "el los las y es una que para con por del se su como más",
    "Italian": "il gli e è di che una per con non sono della nel anche più",
    "Portuguese": "o os as e é um uma que para com não por do da em",
    "Dutch": "de het een en is van niet dat voor met zijn op je wordt ook",
}
"""The words that tell a language, since hardly a sentence has none of them and few other languages have them."""
_REFUSALS = re.compile(
    r"\b(?:I(?:['’]m| am) (?:really |very |so )?sorry,? (?:but|I)|I (?:can(?:['’]t|not| not)|won['’]t|will not|am unable to|am not able to|must decline)"
    r"|I(?:['’]m| am) (?:unable|not able)|I(?:['’]d| would) (?:rather|prefer) not|As an AI(?: language model| assistant)?,? I (?:can|do|am))",
    re.IGNORECASE,
)
_LEFTOVERS = re.compile(
    r"##\s?(?:Question|Answer|Correction|Revision|Your_Revision)\s?:|\b(?:USER|ASSISTANT|SYSTEM)\s?:"
    r"|BEGINNING OF CONVERSATION|<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|^[ \t*#]{0,8}(?:Corrected|Revised|Improved) (?:answer|response|version)\b.{0,3}:"
    r"|\bHere(?:['’]s| is) (?:the|a|an|my|your) (?:corrected|revised|improved|edited) (?:version of (?:the|your) )?(?:answer|response)\b"
    r"|</?think(?:ing)?>"
    r"|Edit the following Question-Answer pair",
    re.IGNORECASE | re.MULTILINE,
)
_SHOUTED = re.compile(r"USER|ASSISTANT|SYSTEM", re.IGNORECASE)
_RUN = re.compile(r"(\w)\1{29,}")
_ENDED = re.compile(r"[^\w\s,;(\[{<]\s*\Z")

SHORTEST, LONGEST, MARGIN = 0.2, 5.0, 500
"""Bounds of a correction's length as multiples of the answer's, and the characters that are few in any case."""

_LETTERS = 20
"""Letters, and below words, that a text must have for its script or language to be told."""
_RUN_WORDS = 8
"""Words in a row that, found again and again, make a loop."""


def script(pair: Comparison) -> Iterator[Damage]:
    """Most letters are not of a script that neither the answer nor the question is written in, and no word slips into one."""
    before, after, asked = (_scripts(text) for text in (pair.answer.text, pair.correction.text, pair.exchange.question))
    least = min(before.total(), after.total())
    name = next(iter(after.most_common(1)), ("", 0))[0]
    if least >= _LETTERS and before[name] < before.total() / 10 and asked[name] < asked.total() / 2:
        yield Damage(message="the correction is in another script")
    elif _slips(pair.correction.plain, after.keys() - _known(before + _scripts(pair.sources))):
        yield Damage(message="words of another script slipped in")
    if _STRAY_MARK.search(pair.correction.plain) and not _STRAY_MARK.search(f"{pair.answer.text}\n{pair.sources}"):
        yield Damage(message="punctuation of another script slipped in", mild=True)


def language(pair: Comparison) -> Iterator[Damage]:
    """The language, as its most frequent words tell it, is the answer's or the question's."""
    before, after = _language(pair.answer.prose), _language(pair.correction.prose)
    if before and after and before != after and after != _language(pair.exchange.question, least=5):
        yield Damage(message="the correction is in another language")


def length(
    pair: Comparison, *, shortest: float = SHORTEST, longest: float = LONGEST, margin: int = MARGIN
) -> Iterator[Damage]:
    """The correction is not far shorter or far longer than the answer."""
    before, after = len(pair.answer.text), len(pair.correction.text)
    if before >= margin and after < shortest * before:
        yield Damage(message="the correction is far shorter than the answer")
    elif after - margin > longest * before:
        yield Damage(message="the correction is far longer than the answer")


def refusal(pair: Comparison) -> Iterator[Damage]:
    """An answer does not become a refusal, nor a refusal an answer."""
    before, after = _refuses(pair.answer.text), _refuses(pair.correction.text)
    if before != after:
        yield Damage(message="a refusal became an answer" if before else "an answer became a refusal")


def leftovers(pair: Comparison) -> Iterator[Damage]:
    """Nothing of a template or a chat format stands in the correction that was not in the answer."""
    had = _leftovers(pair.answer.text) + _leftovers(pair.sources)
    if _leftovers(pair.correction.text).keys() - had.keys():
        yield Damage(message="a template left its marks")


def repetition(pair: Comparison) -> Iterator[Damage]:
    """The correction does not run in a loop that the answer did not run in."""
    before, after = pair.answer.text, pair.correction.text
    looping = _repeated(after) > max(0.5, _repeated(before) + 0.3)
    if looping or (_RUN.search(after) and not _RUN.search(before)):
        yield Damage(message="the correction repeats itself")


def ending(pair: Comparison) -> Iterator[Damage]:
    """A correction of an answer that came to its end does not break off."""
    if _ENDED.search(pair.answer.text[-20:]) and not _ENDED.search(pair.correction.text[-20:]):
        yield Damage(message="the correction breaks off")


def _scripts(text: str) -> Counter[str]:
    found = Counter[str]()
    for character, count in Counter(text).items():
        if character.isalpha() and (name := _script_of(character)):
            found[name] += count
    return found


def _script_of(letter: str) -> str:
    name = _SCRIPTS[bisect_right(_FIRSTS, ord(letter)) - 1][1]
    return "Han" if name == "Kana" else name


def _known(scripts: Mapping[str, int]) -> Collection[str]:
    """Those scripts, and the one that belongs to any text of theirs: Korean may take up Chinese characters."""
    return {*scripts, "Han"} if "Hangul" in scripts else set(scripts)


def _slips(text: str, scripts: Collection[str]) -> bool:
    """Whether a word of one of the scripts joins two of others, or has letters of Latin: "salt и pepper", "оf"."""
    runs = list(_runs(text)) if scripts else []
    for (before, _, ends), (name, start, end), (after, starts, _) in zip(runs, runs[1:], runs[2:], strict=False):
        alone = name in scripts and name not in (before, after) and text[start:end] in _JOINING.get(name, "").split()
        if alone and _APART.fullmatch(text, ends, start) and _APART.fullmatch(text, end, starts):
            return True
    pairs = ({one[0], other[0]} for one, other in pairwise(runs) if one[2] == other[1])
    return "Cyrillic" in scripts and {"Cyrillic", "Latin"} in pairs


def _runs(text: str) -> Iterator[tuple[str, int, int]]:
    """The script of letters in a row, and where they begin and end."""
    for word in _LETTERS_IN_A_ROW.finditer(text):
        start = word.start()
        for name, letters in groupby(word[0], _script_of):
            yield name, start, (start := start + len(list(letters)))


def _language(text: str, *, least: int = _LETTERS) -> str:
    """The language that a tenth of the words, and twice as many as of any other, speak for; or ""."""
    counted = Counter(words(text.casefold()))
    votes = Counter({name: sum(counted[word] for word in known.split()) for name, known in _FREQUENT.items()})
    (first, most), (_, second) = votes.most_common(2)
    return first if counted.total() >= least and most >= max(2 * second, counted.total() / 10) else ""


def _refuses(text: str) -> bool:
    """Whether a refusal stands in the beginning, which is where refusals are."""
    return _REFUSALS.search(text[:200]) is not None


def _leftovers(text: str) -> Counter[str]:
    """The marks in a text. A role counts where it is shouted: "User:" is a word as others are."""
    found = (match[0] for match in _LEFTOVERS.finditer(text))
    return Counter(mark.lower() for mark in found if mark.isupper() or not _SHOUTED.match(mark))


def _repeated(text: str) -> float:
    """The share of runs of eight words that stood in the text before."""
    found = words(text)
    runs = [tuple(found[start : start + _RUN_WORDS]) for start in range(len(found) - _RUN_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) >= 3 * _RUN_WORDS else 0.0
