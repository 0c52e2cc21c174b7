"""The built-in rules. Whoever changes what they find raises `VERSION`, which stands in every record."""

from __future__ import annotations

from bootstrap.redact import keys, numbers
from bootstrap.redact.patterns import Pattern

VERSION = 1

# Where two rules find the same characters, the earlier one names them.
BUILT_IN: tuple[Pattern, ...] = (
    Pattern(kind="KEY", regex=keys.PRIVATE_KEY, hints=("private key",), normal=str),
    Pattern(kind="KEY", regex=keys.ISSUED, hints=keys.ISSUED_HINTS, normal=str),
    Pattern(kind="KEY", regex=keys.BEARER, hints=("bearer",), normal=str),
    Pattern(kind="KEY", regex=keys.NAMED_KEY, locate=keys.named_key, hints=keys.KEY_WORDS, normal=str),
    Pattern(kind="PASSWORD", regex=keys.CREDENTIALS, hints=("://",), normal=str),
    Pattern(kind="PASSWORD", regex=keys.PASSWORD, locate=keys.password, hints=keys.PASSWORD_WORDS, normal=str),
    Pattern(kind="EMAIL", regex=keys.EMAIL, locate=keys.email, hints=("@",)),
    Pattern(kind="IBAN", regex=numbers.IBAN, locate=numbers.iban, normal=numbers.compact, digits=8),
    Pattern(kind="CARD", regex=numbers.CARD, locate=numbers.card, normal=numbers.compact, digits=13),
    Pattern(
        kind="SSN",
        regex=numbers.SSN,
        locate=numbers.ssn,
        hints=("ssn", "social security"),
        normal=numbers.compact,
        digits=9,
    ),
    Pattern(kind="IP", regex=numbers.IPV4, locate=numbers.ipv4, hints=(".",), normal=numbers.ip_key, digits=4),
    Pattern(kind="IP", regex=numbers.IPV6, locate=numbers.ipv6, hints=(":",), normal=numbers.ip_key),
    Pattern(
        kind="PHONE",
        regex=numbers.INTERNATIONAL,
        locate=numbers.phone,
        hints=("+",),
        normal=numbers.phone_key,
        digits=8,
    ),
    Pattern(
        kind="PHONE",
        regex=numbers.FROM_ABROAD,
        locate=numbers.phone,
        hints=("00",),
        normal=numbers.phone_key,
        digits=11,
    ),
    Pattern(
        kind="PHONE", regex=numbers.IN_BRACKETS, locate=numbers.phone, hints=("(",), normal=numbers.phone_key, digits=7
    ),
    Pattern(kind="PHONE", regex=numbers.NATIONAL, locate=numbers.phone, normal=numbers.phone_key, digits=7),
)
