"""Telephone numbers, accounts, cards and addresses of machines: what is told from other numbers by arithmetic or context.

Each `locate` function takes a candidate and returns where the value stands in it, or None. What counts is precision: an
order number, a date or a price that becomes a placeholder is lost for training. So a number without a form of its own
is a telephone number only where the nearest telling word before it says so.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from bootstrap.redact.context import is_other, is_ssn, said_of_phone

# --- telephone numbers --------------------------------------------------------------------------------------------

_SEPARATOR = r"[ \u00a0\u202f./\u2010-\u2013-]"
# Possessive, so that a number that goes on is never cut. A lone digit behind a separator belongs to something else.
_GROUPS = rf"(?:{_SEPARATOR}{{0,2}}\(\d{{1,5}}\){_SEPARATOR}{{0,2}}\d{{1,12}}|{_SEPARATOR}{{1,2}}\d{{2,12}}){{0,6}}+"
_END = r"(?!\w|[,.:]\d)"
_AREA = rf"(?:{_SEPARATOR}\d(?={_SEPARATOR}\d\d))?"  # the one digit of an area that may follow a country, as in +33 6
# Each begins with the first character alone: a search for one of few characters is what `re` does fast.
INTERNATIONAL = re.compile(rf"\+(?<![\w+].)[1-9]\d{{0,14}}\)?{_AREA}{_GROUPS}{_END}")
FROM_ABROAD = re.compile(rf"00(?<![\w+.,/#@:-]..)(?<!\d...)[1-9]\d{{0,14}}{_AREA}{_GROUPS}{_END}")
IN_BRACKETS = re.compile(rf"\((?<![\w(].)\d{{1,5}}\){_SEPARATOR}{{0,2}}\d{{1,12}}{_GROUPS}{_END}")
NATIONAL = re.compile(rf"\d(?<![\w+.,/#@:-].)(?=(?:{_SEPARATOR}{{0,2}}\d){{6}})\d{{0,14}}{_GROUPS}{_END}")

# Dates, years from and to, and round numbers. What goes on after the third group with the same mark is no date.
_NO_PHONE = re.compile(
    r"(?:(?:19|20)\d\d[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./](?:19|20)?\d\d)\b(?![-./]\d)"
    r"|(?:19|20)\d\d(?:\D{1,2}(?:19|20)\d\d|[01]\d[0-3]\d\Z)|\d{1,3}(?:[ .]000)+\Z"
)
_UNIT = re.compile(r"\s?(?:[%€$£°]|(?:EUR|USD|GBP|CHF|pesos|euros?|units|users|km|kg|ms)\b)", re.IGNORECASE)
_TRUNK = re.compile(r"\(?0[1-9]\d{0,3}\)?[^\d()]")
_NORTH_AMERICAN = re.compile(r"(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])\d{3}[-. ]\d{4}|[2-9]\d\d [2-9]\d\d \d{4}")
_MIXED_DOTS = re.compile(r"\.\d+[^.\d]|[^.\d]\d+\.")


def phone(match: re.Match[str]) -> tuple[int, int] | None:
    """A telephone number by its form, or by the word before it."""
    text, (start, end) = match.string, match.span()
    if _UNIT.match(text, end) or not _is_phone(match[0], text, start):
        return None
    return start, end


def _is_phone(value: str, text: str, start: int) -> bool:
    digits = sum(character.isdigit() for character in value)
    if value.startswith("+"):
        return 8 <= digits <= 15
    if not 7 <= digits <= 17 or _NO_PHONE.match(value):
        return False
    said = said_of_phone(text, start)
    return said == "named" or (said is None and _has_form(value, digits))


def _has_form(value: str, digits: int) -> bool:
    if value.startswith("00"):
        return value[2] != "0" and digits >= 11
    if _MIXED_DOTS.search(value):
        return False
    return bool((_TRUNK.match(value) and 9 <= digits <= 12) or _NORTH_AMERICAN.fullmatch(value))


def phone_key(value: str) -> str:
    """The digits, with + before an international number, without the 0 that is not dialled from abroad."""
    if value.startswith(("+", "00")):
        value = value.replace("(0)", "")
        return "+" + re.sub(r"\D", "", value).removeprefix("00")
    return re.sub(r"\D", "", value)


# --- accounts and cards -------------------------------------------------------------------------------------------

# It is looked for by its check digits, since far more letters than digits stand in a text.
IBAN = re.compile(r"\d(?<=[A-Za-z][A-Za-z].)(?<!\w...)\d(?:[ \u00a0]?[A-Za-z0-9]){11,30}+")
# The length of an IBAN in each country, from the registry that SWIFT keeps for ISO 13616.
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in (
        line.split(":")
        for line in (
            "15:NO", "16:BE", "18:DK FI FK FO GL NL SD", "19:MK SI", "20:AT BA EE KZ LT LU MN XK", "21:CH HR LI LV",
            "22:BG BH CR DE GB GE IE ME RS VA", "23:AE GI IL IQ OM SO TL", "24:AD CZ ES MD PK RO SA SE SK TN VG",
            "25:LY PT ST", "26:IS TR", "27:BI DJ FR GR IT MC MR SM", "28:AL AZ BY CY DO GT HN HU LB NI PL",
            "29:BR EG PS QA UA", "30:JO KW MU YE", "31:MT SC", "32:LC", "33:RU",
        )
    )
    for country in countries.split()
}  # fmt: skip

CARD = re.compile(r"[2-6](?<![\w.,+/-].)(?:[ -]?\d){12,18}")
# Issuers by their first digits and lengths: Visa, Mastercard (two ranges), American Express, Discover, Diners, JCB,
# UnionPay, Maestro.
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12,15}|3(?:0[0-5]\d{11}|[689]\d{12})|35(?:2[89]|[3-8]\d)\d{12,15}|62\d{14,17}"
    r"|(?:5018|5020|5038|6304|6759|676[1-3])\d{8,15}"
)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def iban(match: re.Match[str]) -> tuple[int, int] | None:
    """As much of a match as the country's IBANs are long, if its check digits fit (ISO 7064, MOD 97-10)."""
    text, start = match.string, match.start() - 2
    length = _IBAN_LENGTHS.get(text[start : start + 2].upper(), 0)
    places = [at for at in range(start, match.end()) if text[at].isalnum()][:length]
    if not places or len(places) < length or text[places[-1] + 1 : places[-1] + 2].isalnum():
        return None
    digits = "".join(str(int(text[at], 36)) for at in places[4:] + places[:4])
    return (start, places[-1] + 1) if int(digits) % 97 == 1 else None


def card(match: re.Match[str]) -> tuple[int, int] | None:
    """A payment card at the start of a match; its expiry date or code may follow as further groups."""
    text, start = match.string, match.start()
    for end in range(match.end(), start + 12, -1):
        if text[end : end + 1].isdigit() or not text[end - 1].isdigit():
            continue
        value = text[start:end]
        if is_card(re.sub(r"[ -]", "", value)):
            return None if value.isdigit() and is_other(text, start) else (start, end)
    return None


def is_card(digits: str) -> bool:
    """Whether digits have an issuer and fulfil Luhn's formula (ISO/IEC 7812-1, annex B)."""
    if not digits.isascii() or not _ISSUERS.fullmatch(digits):
        return False
    return (sum(map(int, digits[-1::-2])) + sum(_DOUBLED[int(digit)] for digit in digits[-2::-2])) % 10 == 0


def compact(value: str) -> str:
    """Letters and digits alone, as capitals."""
    return re.sub(r"[\W_]", "", value).upper()


# --- addresses of machines and persons ----------------------------------------------------------------------------

IPV4 = re.compile(r"\d(?<![\w.].)\d{0,2}(?:\.\d{1,3}){3}(?!\w|\.\d)")
IPV6 = re.compile(r"[0-9A-Fa-f:](?<![\w:.].)[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,38}(?:\.\d{1,3}){0,3}(?![\w:])")
_NO_ADDRESS = re.compile(
    r"(?:\b(?:v|ver|version|release|build|firmware|driver|section|chapter|clause|point|article|abschnitt|kapitel|absatz)"
    r"[.:]?\s?|[<>!=~]=\s?|[A-Za-z]/|§\s?)$",
    re.IGNORECASE,
)
_PUBLIC_RESOLVERS = frozenset(("1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9"))


def ipv4(match: re.Match[str]) -> tuple[int, int] | None:
    """An address of a machine; none are versions, masks, everybody's name servers and this machine's own addresses."""
    try:
        address = IPv4Address(match[0])
    except AddressValueError:
        return None
    general = address.is_loopback or address.is_unspecified or address.is_multicast or match[0].startswith("255.")
    before = match.string[max(0, match.start() - 24) : match.start()]
    return None if general or match[0] in _PUBLIC_RESOLVERS or _NO_ADDRESS.search(before) else match.span()


def ipv6(match: re.Match[str]) -> tuple[int, int] | None:
    """An address of a machine. One without a digit is more often a name of C++, such as `abc::def`."""
    try:
        address = IPv6Address(match[0])
    except AddressValueError:
        return None
    general = address.is_loopback or address.is_unspecified or address.is_multicast
    return None if general or not any(map(str.isdigit, match[0])) else match.span()


def ip_key(value: str) -> str:
    """An address in its shortest form."""
    try:
        return IPv6Address(value).compressed if ":" in value else value
    except AddressValueError:
        return value


SSN = re.compile(r"\d(?<![\w-].)(?!00|66)\d\d-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")


def ssn(match: re.Match[str]) -> tuple[int, int] | None:
    """A social security number of the United States, where a word before it says so."""
    return match.span() if is_ssn(match.string, match.start()) else None
