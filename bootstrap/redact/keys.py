"""E-mail addresses and what opens doors: keys and tokens by the forms that their issuers give them, and passwords."""

from __future__ import annotations

import math
import re
from collections import Counter

EMAIL = re.compile(r"\w(?<!\w.)[\w.+%'-]{0,127}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?!\w)")
_IN_CREDENTIALS = re.compile(r"://[^\s/@?#]*:[^\s/@?#]*$")


def email(match: re.Match[str]) -> tuple[int, int] | None:
    """An e-mail address; a password before a host (`//name:password@host`) is none, nor is the user of a repository."""
    before = match.string[max(0, match.start() - 160) : match.start()]
    if match[0].startswith("git@") or ("://" in before and _IN_CREDENTIALS.search(before)):
        return None
    return match.span()


_ISSUED = (
    r"A(?:KIA|SIA)[A-Z0-9]{16}",  # Amazon
    r"gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w-]{20,64}",  # GitHub, GitLab
    r"sk-(?=[A-Za-z_-]{0,40}\d)[A-Za-z0-9_-]{20,255}",  # OpenAI, Anthropic
    r"[spr]k_(?:live|test)_[A-Za-z0-9]{16,128}",  # Stripe
    r"xox[abeoprs]-[A-Za-z0-9-]{10,255}",  # Slack
    r"AIza[\w-]{35}|ya29\.[\w-]{20,512}",  # Google
    r"hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}",  # Hugging Face, npm
    r"eyJ[\w-]{10,8000}\.eyJ[\w-]{10,8000}(?:\.[\w-]{10,8000})?",  # JSON Web Tokens (RFC 7519)
)
ISSUED = re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(_ISSUED) + r")(?![A-Za-z0-9])")
ISSUED_HINTS = (
    "akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "k_live_", "k_test_", "xox",
    "aiza", "ya29.", "hf_", "npm_", "eyj",
)  # fmt: skip

# A block that was cut off has no end; its lines are told from what follows by their length.
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"
    r"(?:(?:[^-]|-(?!-)){0,16000}+-----END [A-Z ]{0,40}PRIVATE KEY-----|(?:\s{1,4}[A-Za-z0-9+/=]{16,76}){0,200})"
)
BEARER = re.compile(r"[Bb]earer[ \t]{1,4}(?P<value>[\w.~+/-]{16,2000}={0,2})")
CREDENTIALS = re.compile(r"://(?P<value>[^\s/:@]{1,64}:[^\s/@]{1,128})@")

_QUOTED = r"(?P<quote>[\"'])(?P<quoted>[^\"'\n]{3,128})(?P=quote)"
_SAID = r"[\"']?[ \t]{0,2}(?P<sign>[:=]|\b(?:is|was|ist|lautet|est|es)\b(?=[ \t]))[ \t]{0,2}:?[ \t]{0,2}"
KEY_WORDS = ("key", "secret", "token")
NAMED_KEY = re.compile(rf"[KkSsTt](?i:ey|ecret|oken){_SAID}(?:{_QUOTED}|(?P<bare>[\w.+/=~-]{{16,512}}))")
PASSWORD_WORDS = ("passw", "pwd", "passphrase", "kennwort", "mot de passe", "contraseña")
PASSWORD = re.compile(
    r"[PpKkMmCc](?i:asswor[dt]|asswd|wd|assphrase|ennwort|ot de passe|ontraseña)"
    rf"{_SAID}(?:{_QUOTED}|(?P<bare>[^\s\"']{{4,128}}))"
)
_NO_PASSWORD = re.compile(
    r"[<{$*(\[.%•]|(?:none|null|true|false|str|string|required|undefined|optional)\b|os\.|process\.|[\w.]+[(\[]",
    re.IGNORECASE,
)


def named_key(match: re.Match[str]) -> tuple[int, int] | None:
    """A value behind a word such as `token:`, if it looks drawn at random: letters and digits, few of them repeated."""
    group = "bare" if match["bare"] else "quoted"
    value = match[group]
    mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and not any(map(str.isspace, value))
    return match.span(group) if len(value) >= 16 and mixed and _bits(value) >= 3 else None


def _bits(value: str) -> float:
    """Shannon's entropy of the characters, in bits each."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


def password(match: re.Match[str]) -> tuple[int, int] | None:
    """A value behind a word such as `password=`; words of a sentence and references of code are none."""
    if match["quoted"]:
        return None if _NO_PASSWORD.match(match["quoted"]) else match.span("quoted")
    value = match["bare"].rstrip(".,;:?)}]")
    assigned = match["sign"] == "=" and match.string[match.start("bare") - 1] == "="
    if len(value) < 4 or _NO_PASSWORD.match(value) or not (assigned or _is_odd(value)):
        return None
    start = match.start("bare")
    return start, start + len(value)


def _is_odd(value: str) -> bool:
    """Whether a word would be unusual in a sentence: letters together with digits."""
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value))
