"""What languages are called in other people's data -> the ISO 639-1 codes that lingua gives."""

from __future__ import annotations

import polars as pl

_CODES = """
AB abkhazian; AF afrikaans afr; AM amharic; AR arabic ara; AS assamese; AZ azerbaijani aze; BA
bashkir; BE belarusian bel; BG bulgarian bul; BN bengali ben; BO tibetan; BR breton; BS bosnian
bos; CA catalan cat; CO corsican; CS czech ces; CV chuvash; CY welsh cym; DA danish dan; DE
german deu; DZ dzongkha; EL greek ell; EN english eng; EO esperanto epo; ES castilian spanish
spa; ET estonian est; EU basque eus; FA farsi persian fas; FI finnish fin; FO faroese; FR french
fra; FY frisian; GA irish gle; GL galician; GN guarani; GU gujarati guj; HA hausa; HE hebrew
heb; HI hindi hin; HR croatian hrv; HT haitian; HU hungarian hun; HY armenian hye; ID indonesian
ind; IG igbo; IS icelandic isl; IT italian ita; JA japanese jpn; JV javanese; KA georgian kat;
KK kazakh kaz; KL kalaallisut; KM khmer; KN kannada; KO korean kor; KU kurdish; KY kirghiz
kyrgyz; LA latin lat; LB luxembourgish; LG ganda lug; LN lingala; LO lao; LT lithuanian lit; LV
latvian lav; MG malagasy; MI maori mri; MK macedonian mkd; ML malayalam; MN mongolian mon; MR
marathi mar; MS malay msa; MT maltese; MY burmese; NB bokmal nob; NE nepali; NL dutch flemish
nld; NN nynorsk nno; NO norwegian; OC occitan; OR odia oriya; PA punjabi pan; PL polish pol; PS
pashto; PT portuguese por; QU quechua; RO romanian ron; RU russian rus; RW kinyarwanda; SA
sanskrit; SD sindhi; SI sinhala sinhalese; SK slovak slk; SL slovene slovenian slv; SM samoan;
SN shona sna; SO somali som; SQ albanian sqi; SR serbian srp; ST sotho sot; SU sundanese; SV
swedish swe; SW swahili swa; TA tamil tam; TE telugu tel; TG tajik; TH thai tha; TI tigrinya; TK
turkmen; TL filipino tagalog tgl; TN tswana tsn; TO tongan; TR turkish tur; TS tsonga tso; TT
tatar; UG uighur uyghur; UK ukrainian ukr; UR urdu urd; UZ uzbek; VI vietnamese vie; WO wolof;
XH xhosa xho; YI yiddish; YO yoruba yor; ZH chinese mandarin zho; ZU zulu zul
"""
"""Code, then English names and the code of three letters."""

_ENTRIES = [entry.split() for entry in _CODES.split(";")]
CODES = {name.lower(): code for code, *names in _ENTRIES for name in (code, *names)}
"""What a language may be called, in small letters -> its code."""


def code_of(language: pl.Expr) -> pl.Expr:
    """The code of a language that a text names in English, or by a code (`en`, `eng`, `en-US`,
    `EN`); null where it names none."""
    given = language.str.strip_chars().str.to_lowercase()
    whole = given.replace_strict(CODES, default=None, return_dtype=pl.String)
    first = given.str.extract(r"^([a-z]{2,3})[-_]")
    return pl.coalesce(whole, first.replace_strict(CODES, default=None, return_dtype=pl.String))
