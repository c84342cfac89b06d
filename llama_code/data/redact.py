"""Emails, IP addresses and keys replaced by placeholders, as in StarCoder (Li et al. 2023, section 4).

StarCoder's final pass used a trained tagger; this one uses regular expressions, as SantaCoder's did (Allal et al.
2023). Only what stands in a string or a comment is replaced, so that code stays valid: `a@b.grad` is a product.
What cannot identify anybody stays: addresses of documentation and of private networks, version numbers, hashes.
Passwords without a name beside them, and names of people, are not found.
"""

import io
import math
import re
import token
import tokenize
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv6Network, ip_address
from itertools import accumulate
from typing import NamedTuple

EMAIL = "<EMAIL>"
IP_ADDRESS = "<IP_ADDRESS>"
KEY = "<KEY>"

EMAIL_HINT = re.compile(r"@(?<=[\w+-]@)[A-Za-z0-9]")  # begins with a literal, so that most files cost next to nothing
# After a colon or slash it is a password in a URL: https://user:password@host.
EMAIL_PATTERN = re.compile(
    r"(?:(?<=mailto:)|(?<![\w.%+:/-]))[A-Za-z0-9][\w.%+-]*@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,})"
    r"(?![\w@]|-\w|\.\w)"
)
PLACEHOLDER_DOMAIN = re.compile(
    r"(?:.*\.)?(?:example|test|invalid|localhost|local|localdomain|internal)"  # RFC 2606, RFC 6762
    r"|(?:.*\.)?(?:example|sample|domain|mydomain|yourdomain|email|test|foo|bar|company|host|server|site)\.\w+"
    r"|users\.noreply\.github\.com"
    r"|openssh\.com|libssh\.org"  # names of ciphers: aes256-gcm@openssh.com
    r"|.*\.(?:png|jpe?g|gif|svg|css|html?|js|json|py|pyc|txt|xml|ya?ml)",  # logo@2x.png
    re.IGNORECASE,
)
PLACEHOLDER_USER = re.compile(
    r"(?:no-?reply|do-?not-?reply|git|hg|svn|user(?:name)?|name|you|your[-_.]?\w+|me|foo|bar|example|test|someone)@",
    re.IGNORECASE,
)

IPV4_PATTERN = re.compile(r"(?<![\w.+-])[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![\w+-]|\.\w)")
IPV6_PATTERN = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}:[0-9a-fA-F:]{3,34}(?![\w:.])")
IPV6_UNICAST = IPv6Network("2000::/3")
# Everybody's name servers, as BigCode leaves them, and the address that stands for any.
KNOWN_ADDRESSES = frozenset(
    "1.2.3.4 8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220".split()
)
CONTEXT_CHARACTERS = 40
VERSION_CONTEXT = re.compile(
    r"(?:version|release|section|identifier|\b(?:rev|ver|v|oid)\b)[^\n]{0,16}$|(?:[=<>~!]=|\w/)$", re.IGNORECASE
)
NETWORK_CONTEXT = re.compile(r"\bip|ipv4|addr|host|server|dns|//", re.IGNORECASE)
SHORT_IPV4_CHARACTERS = 7  # 1.2.3.4 is a version unless its line speaks of networks (BigCode's rule)


class KeyKind(NamedTuple):
    """Keys that name their issuer: text that each has, which is searched first, and the pattern of the whole."""

    hint: str
    pattern: re.Pattern[str]


def _kinds(patterns: dict[str, str]) -> tuple[KeyKind, ...]:
    return tuple(KeyKind(hint, re.compile(rf"(?<![\w-]){pattern}(?![\w-])")) for hint, pattern in patterns.items())


# After the plugins of detect-secrets 1.5 and what issuers document.
KEY_KINDS = _kinds(
    {
        "AKIA": r"AKIA[0-9A-Z]{16}",
        "ASIA": r"ASIA[0-9A-Z]{16}",
        "AIza": r"AIza[\w-]{35}",
        "ghp_": r"ghp_[A-Za-z0-9]{36,}",
        "gho_": r"gho_[A-Za-z0-9]{36,}",
        "ghs_": r"ghs_[A-Za-z0-9]{36,}",
        "github_pat_": r"github_pat_\w{60,}",
        "glpat-": r"glpat-[\w-]{20,50}",
        "hf_": r"hf_[A-Za-z0-9]{34,}",
        "npm_": r"npm_[A-Za-z0-9]{36}",
        "pypi-AgE": r"pypi-AgE[\w-]{70,}",
        "sk-": r"sk-(?:ant-|proj-)?[\w-]*[A-Za-z0-9]{20}[\w-]*",
        "k_live_": r"[rs]k_live_[0-9a-zA-Z]{24,}",
        "SG.": r"SG\.[\w-]{22}\.[\w-]{43}",
        "xox": r"xox[abposr]-(?:\d+-)+[A-Za-z0-9]+",
        "hooks.slack.com": r"https://hooks\.slack\.com/services/T\w+/B\w+/\w+",
        "eyJ": r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    }
)

PRIVATE_KEY_HINT = "PRIVATE KEY"
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----([^-]{32,}?)-----END ")
# The body within one string literal: an escaped line end belongs to it, a quote or a comment sign does not.
PRIVATE_KEY_BODY = re.compile(r"[A-Za-z0-9+/](?<!\\.)(?:[A-Za-z0-9+/=\s]|\\[nr]){15,}[A-Za-z0-9+/=]")

QUOTED = re.compile(r"""(["'])([A-Za-z0-9+/_.~-]{16,}={0,2})\1""")
SECRET_NAME = re.compile(
    r"""(?:api|access|auth|private|secret|signing|encryption|consumer|account|storage)_?key|secret|token|passw(?:or)?d""",
    re.IGNORECASE,
)
# `NAME = `, `"name": `, `name=`, `os.environ["NAME"] = ` before the string.
ASSIGNED = re.compile(r"""([\w-]{3,40})["']?\]?\s*(?::\s*\w+\s*)?(?<![=!<>])[:=]\s*[bru]?$""", re.IGNORECASE)
HASH_NAME = re.compile(r"sha|md5|hash|digest|checksum|public|tokenizer|token_?type|tokens?_?id|uuid", re.IGNORECASE)
PLACEHOLDER_KEY = re.compile(
    r"example|dummy|fake|test|sample|your|change|placeholder|insert|xxx|\.\.\.", re.IGNORECASE
)
UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)  # a name, mostly
MIN_ENTROPY = 3.0  # bits a character; detect-secrets has 3 for hexadecimal, 4.5 for base64 without a name beside it


class Finding(NamedTuple):
    """Where something to be replaced stands, and by which placeholder."""

    start: int
    end: int
    placeholder: str


def redact(text: str) -> tuple[str, Counter[str]]:
    """Replace emails, public IP addresses and keys in strings and comments by placeholders.

    Args:
        text: Python source.

    Returns:
        The text with `<EMAIL>`, `<IP_ADDRESS>` and `<KEY>` in their place, and how often each was put there.
    """
    findings = sorted({*_emails(text), *_addresses(text), *_keys(text)})
    counts: Counter[str] = Counter()
    if not findings:
        return text, counts
    literals = _literals(text)
    parts = []
    end = 0
    for finding in findings:
        if finding.start >= end and _is_inside(finding, literals):
            parts += [text[end : finding.start], finding.placeholder]
            end = finding.end
            counts[finding.placeholder] += 1
    return "".join([*parts, text[end:]]), counts


def _emails(text: str) -> Iterator[Finding]:
    if not EMAIL_HINT.search(text):
        return
    for match in EMAIL_PATTERN.finditer(text):
        if not PLACEHOLDER_DOMAIN.fullmatch(match[1]) and not PLACEHOLDER_USER.match(match[0]):
            yield Finding(*match.span(), EMAIL)


def _addresses(text: str) -> Iterator[Finding]:
    for match in IPV4_PATTERN.finditer(text):
        if _is_public(match[0]) and not _is_version(text, match):
            yield Finding(*match.span(), IP_ADDRESS)
    for match in IPV6_PATTERN.finditer(text):
        if _is_public(match[0]):
            yield Finding(*match.span(), IP_ADDRESS)


def _is_public(address: str) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or address in KNOWN_ADDRESSES:
        return False
    return ip.version == 4 or ip in IPV6_UNICAST


def _is_version(text: str, match: re.Match[str]) -> bool:
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()][-CONTEXT_CHARACTERS:]
    is_short = len(match[0]) == SHORT_IPV4_CHARACTERS
    return VERSION_CONTEXT.search(line) is not None or (is_short and not NETWORK_CONTEXT.search(line))


def _keys(text: str) -> Iterator[Finding]:
    for kind in KEY_KINDS:
        if kind.hint in text:
            for match in kind.pattern.finditer(text):
                if not PLACEHOLDER_KEY.search(match[0]):
                    yield Finding(*match.span(), KEY)
    if PRIVATE_KEY_HINT in text:
        for block in PRIVATE_KEY.finditer(text):
            for match in PRIVATE_KEY_BODY.finditer(text, *block.span(1)):
                yield Finding(*match.span(), KEY)
    for match in QUOTED.finditer(text):
        if _is_secret(match[2], text[max(0, match.start() - CONTEXT_CHARACTERS) : match.start()]):
            yield Finding(*match.span(2), KEY)


def _is_secret(value: str, before: str) -> bool:
    """Whether a string that is given to a name of a secret looks random: digits and letters, and of some entropy."""
    assigned = ASSIGNED.search(before)
    return (
        assigned is not None
        and SECRET_NAME.search(assigned[1]) is not None
        and not HASH_NAME.search(assigned[1])
        and not PLACEHOLDER_KEY.search(value)
        and not UUID.fullmatch(value)
        and sum(map(str.isdigit, value)) >= 3
        and any(map(str.isalpha, value))
        and _entropy(value) >= MIN_ENTROPY
    )


def _entropy(value: str) -> float:
    """Shannon's entropy of the characters, in bits a character."""
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares)


def _literals(text: str) -> list[tuple[int, int]]:
    """Where strings and comments are, in order: `(start, end)`; all that follows an error of the tokenizer is one."""
    line_starts = list(accumulate(map(len, io.StringIO(text)), initial=0))
    spans: list[tuple[int, int]] = []
    end = 0
    f_string_starts: list[int] = []
    try:
        for kind, _, (row, column), (end_row, end_column), _ in tokenize.generate_tokens(io.StringIO(text).readline):
            end = line_starts[end_row - 1] + end_column
            start = line_starts[row - 1] + column
            if kind in (token.STRING, token.COMMENT):
                spans.append((start, end))
            elif kind == getattr(token, "FSTRING_START", None):  # Python 3.12: an f-string is several tokens
                f_string_starts.append(start)
            elif kind == getattr(token, "FSTRING_END", None):
                spans.append((f_string_starts.pop(), end))
    except (tokenize.TokenError, SyntaxError):
        spans.append((end, len(text)))
    return sorted(spans)


def _is_inside(finding: Finding, literals: list[tuple[int, int]]) -> bool:
    place = bisect_right(literals, (finding.start, math.inf)) - 1
    return place >= 0 and finding.end <= literals[place][1]
