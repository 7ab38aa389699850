"""Personal data in a text: e-mail addresses, phone numbers, IP addresses, credit cards and IBANs.
Which kinds it holds, never which values.

A regular expression finds candidates (linear time, all texts at once), and each distinct candidate
is then checked by what makes it real: a phone number by its country's plan (phonenumbers), a card
by issuer and Luhn digit, an IBAN by country and check digits (python-stdnum), an address by being
public. What is reserved for examples (example.com, 555 numbers, 192.168.0.1, the card numbers of
test systems) is nobody's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from synth.config.synthesis import SynthConfig
from synth.context import Context

VERSION = 1
"""Part of the column's key."""

# What may stand before a number that is not part of a larger one.
_START = r"(?:^|[^\w.,+$€£#/=-])"

# The words before a version or a section, where there are some: then the candidate of an IP address
# does not begin with a digit.
_VERSION_WORDS = r"versions?|ver|release|build|firmware|sections?|chapter|figure|table|clause|v"
_CANDIDATES = {
    "email": r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+",
    # The international form, or the written forms of North America.
    "phone": _START
    + r"(?:\+[1-9][0-9 ().-]{6,20}[0-9]"
    + r"|(?:1[ .-])?(?:\([0-9]{3}\) ?|[0-9]{3}[.-])[0-9]{3}[ .-][0-9]{4}[0-9.-]*)",
    # IPv4 with what stands before it, or IPv6.
    "ip": rf"(?i)(?:\b(?:{_VERSION_WORDS})[ .:]*|[\w/-])?"
    + r"\b[0-9]{1,3}(?:\.[0-9]+){3,}"
    + r"|\b[23][0-9a-f]{3}:[0-9a-f:]{5,34}",
    # Groups of four, or of American Express and Diners Club.
    "credit_card": _START
    + r"[2-6][0-9]{3}[ -]?"
    + r"(?:[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]|[0-9]{6}[ -]?[0-9]{4})[0-9]*",
    "iban": r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b",
}

_CHEAP = {
    "ip": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:",
    "iban": r"[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}",
}
"""Cheaper patterns that every text with such a candidate matches; only those texts are searched for
it."""

# Top-level domains of organisations and people; those of countries have two letters. Code such as
# `W@x.reshape` has neither.
_DOMAINS = re.compile(
    r"com|org|net|edu|gov|mil|int|info|biz|name|pro|mobi|coop|aero|jobs|travel|museum|app|dev|cloud"
    r"|online|site|website|tech|store|shop|blog|xyz|top|club|live|life|email|agency|digital|world"
    r"|news|team|group|global|health|care|law|legal|design|studio|media|academy|school|university"
    r"|company|solutions|services|systems|software|network|center|foundation|community|consulting"
    r"|finance|bank|capital|energy|eco|bio|art|music|[a-z]{2}"
)
_OWN = r"(?:your|my)?-?(?:domain|company|website|email|business|organization|organisation)"
_NOBODYS = re.compile(
    r"(?:^|[@.])(?:example|invalid|test|localhost|local)$|[@.]example\.[\w.]+$"
    rf"|@(?:{_OWN}|test)\.(?:com|org|net)$"
)

# Numbers that payment services publish for tests; they pass every check.
_TEST_CARDS = re.compile(
    "4111111111111111|4242424242424242|4012888888881881|4000056655665556|4000000000000002"
    "|4222222222222|5555555555554444|5105105105105100|5200828282828210|2223003122003222"
    "|378282246310005|371449635398431|378734493671000|6011111111111117|6011000990139424"
    "|30569309025904|38520000023237|3056930009020004|36227206271667|3530111333300000"
    "|3566002020360505"
)
# First digits and length.
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]|2[2-7])\d{14}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}"  # Discover
    r"|3(?:0[0-5]|[68]\d)\d{11}"  # Diners Club
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
)


def kinds(texts: pl.Series) -> pl.Series:
    """Which kinds of personal data each text holds: "email", "phone", "ip", "credit_card", "iban",
    in this order, joined by ","; "" for none.

    A null text gives "". Phone numbers count in the international form (+49 30 ...) of every
    country and in the written forms of North America.
    """
    named = [pl.when(pl.lit(_holds(texts, kind))).then(pl.lit(kind)) for kind in _CANDIDATES]
    return pl.select(pii=pl.concat_str(named, separator=",", ignore_nulls=True))["pii"]


def cell(config: SynthConfig, context: Context) -> dict[str, Any]:
    """What determines a cell of `pii` and `response_pii`."""
    return {"VERSION": VERSION}


def compute(
    text: str, column: str, rows: pl.DataFrame, config: SynthConfig, context: Context
) -> Iterator[pl.DataFrame]:
    """The column (`pii` or `response_pii`) of the rows' texts in the column `text`."""
    yield rows.select("id", kinds(rows[text]).alias(column))


def _holds(texts: pl.Series, kind: str) -> pl.Series:
    """Whether a text holds a candidate that passes its check; each distinct candidate is checked
    once."""
    pattern = _CANDIDATES[kind]
    rows = texts.str.contains(_CHEAP.get(kind, pattern)).fill_null(False).arg_true()
    candidates = pl.DataFrame(
        {"row": rows, "candidate": texts.gather(rows).str.extract_all(pattern)}
    ).explode("candidate")
    distinct = candidates["candidate"].drop_nulls().unique().to_list()
    real = [candidate for candidate in distinct if _CHECKS[kind](candidate)]
    holding = candidates.filter(pl.col("candidate").is_in(real))["row"].unique()
    return pl.repeat(False, len(texts), eager=True).scatter(holding, True)


def _email(candidate: str) -> bool:
    local, _, domain = candidate.lower().rpartition("@")
    last = domain.rpartition(".")[2]
    return (
        _DOMAINS.fullmatch(last) is not None
        and local != "git"
        and not local.startswith(".")
        and _NOBODYS.search(f"@{domain}") is None
    )


def _phone(candidate: str) -> bool:
    from phonenumbers import Leniency, PhoneNumberMatcher

    at = re.search(r"[+(\d]", candidate)
    number = candidate[at.start() :] if at else ""
    if not number.startswith("+") and len(re.sub(r"\D", "", number)) > 11:
        return False
    return bool(PhoneNumberMatcher(number, "US", leniency=Leniency.VALID).has_next())


def _ip(candidate: str) -> bool:
    try:
        address = ipaddress.ip_address(candidate.rstrip(":") if ":" in candidate else candidate)
    except ValueError:  # five parts, a part over 255, or a word before it
        return False
    # 1.2.3.4 and its like are versions and sections (and 8.8.8.8 and 1.1.1.1 everybody's name
    # servers)
    small = address.version == 4 and all(int(part) < 10 for part in str(address).split("."))
    return address.is_global and not address.is_multicast and not small


def _credit_card(candidate: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", candidate)
    return (
        _CARD.fullmatch(digits) is not None
        and _TEST_CARDS.fullmatch(digits) is None
        and luhn.is_valid(digits)
    )


def _iban(candidate: str) -> bool:
    from stdnum import iban

    parts = candidate.split(" ")  # a capitalised word may follow
    return any(iban.is_valid("".join(parts[:end])) for end in range(len(parts), 0, -1))


_CHECKS: dict[str, Callable[[str], bool]] = {
    "email": _email,
    "phone": _phone,
    "ip": _ip,
    "credit_card": _credit_card,
    "iban": _iban,
}
