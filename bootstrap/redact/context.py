"""What the words before a number say that it is, in English, German, French and Spanish."""

from __future__ import annotations

import re

_WORDS = re.compile(r"[^\W\d_]+")
_REACH = 48

_OTHER = (
    "order", "invoice", "ticket", "track", "parcel", "shipment", "reference", "serial", "article", "model", "version",
    "customer", "account", "contract", "policy", "coupon", "voucher", "bestell", "auftrag", "rechnung", "kunde", "sendung",
    "vorgang", "artikel", "serie", "vertrag", "konto", "aktenzeichen", "steuer", "commande", "facture", "dossier", "suivi",
    "colis", "client", "contrat", "référence", "pedido", "factura", "seguimiento", "contrato", "referencia", "envío",
)  # fmt: skip
_OTHER_WORDS = frozenset(
    (
        "case",
        "ref",
        "sku",
        "item",
        "items",
        "part",
        "id",
        "isbn",
        "ean",
        "imei",
        "upc",
        "tax",
        "vat",
        "batch",
        "lot",
        "gift",
    )
)
_PHONE = (
    "phone", "telephone", "telefon", "tél", "teléfono", "call", "dial", "mobil", "móvil", "whatsapp", "reach", "voicemail",
    "hotline", "handy", "ruf", "anruf", "durchwahl", "erreich", "portable", "appel", "joindre", "joignable", "llam", "llám",
)  # fmt: skip
_PHONE_WORDS = frozenset(
    (
        "tel",
        "cell",
        "fax",
        "sms",
        "ring",
        "text me",
        "my number",
        "our number",
        "meine nummer",
        "mon numéro",
        "mi número",
    )
)
_CARD = ("card", "credit", "visa", "mastercard", "amex", "kredit", "karte", "carte", "tarjeta")
_SSN_WORDS = frozenset(("ssn", "social security"))


def is_other(text: str, at: int) -> bool:
    """Whether the nearest telling word before a number that could be a card says that it is something else."""
    return _nearest(text, at, _CARD, frozenset()) == "other"


def said_of_phone(text: str, at: int) -> str | None:
    """What the nearest telling word before a number says that it is: "named" a telephone number, or "other"."""
    return _nearest(text, at, _PHONE, _PHONE_WORDS)


def is_ssn(text: str, at: int) -> bool:
    """Whether a word before a number says that it is a social security number."""
    return _nearest(text, at, (), _SSN_WORDS) == "named"


def _nearest(text: str, at: int, stems: tuple[str, ...], whole: frozenset[str]) -> str | None:
    words = _WORDS.findall(text[max(0, at - _REACH) : at].lower())
    for index in range(len(words) - 1, -1, -1):
        word = words[index]
        if word.startswith(stems) or word in whole or " ".join(words[max(0, index - 1) : index + 1]) in whole:
            return "named"
        if word.startswith(_OTHER) or word in _OTHER_WORDS:
            return "other"
    return None
