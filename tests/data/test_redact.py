"""What is replaced by a placeholder, and what stays."""

import ast
import random
import string
from collections import Counter

import pytest

from llama_code.data.redact import EMAIL, IP_ADDRESS, KEY, redact

# Put together here, so that scanners of repositories find no keys in this file.
RANDOM = random.Random(0)
LETTERS_AND_DIGITS = "".join(RANDOM.choices(string.ascii_letters + string.digits, k=100))
UPPER = "".join(RANDOM.choices(string.ascii_uppercase + string.digits, k=16))
BODY = "\n".join(LETTERS_AND_DIGITS[:64] for _ in range(4))


def private_key(body: str) -> str:
    return f"-----BEGIN RSA PRIVATE KEY-----{body}-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("# Ada Lovelace <ada@analytical.org>\n", "# Ada Lovelace <<EMAIL>>\n"),
        ("MAIL = 'ada.b+c@mail.analytical.co.uk'\n", "MAIL = '<EMAIL>'\n"),
        ("URL = 'mailto:ada@analytical.org'\n", "URL = 'mailto:<EMAIL>'\n"),
        ('"""Written by ada@analytical.org."""\n', '"""Written by <EMAIL>."""\n'),
        ("x = f'{name} ada@analytical.org'\n", "x = f'{name} <EMAIL>'\n"),
        ("HOST = '93.184.216.34'\n", "HOST = '<IP_ADDRESS>'\n"),
        ("URL = 'http://93.184.216.34:8080/x'\n", "URL = 'http://<IP_ADDRESS>:8080/x'\n"),
        ("HOST = '2606:2800:220:1:248:1893:25c8:1946'\n", "HOST = '<IP_ADDRESS>'\n"),
        (
            "if value == '93.184.216.34': avoid('93.184.216.34')\n",
            "if value == '<IP_ADDRESS>': avoid('<IP_ADDRESS>')\n",
        ),
        ("# server 4.2.2.1\n", "# server <IP_ADDRESS>\n"),
        (f"KEY = 'AKIA{UPPER}'\n", "KEY = '<KEY>'\n"),
        (f"# ghp_{LETTERS_AND_DIGITS[:36]}\n", "# <KEY>\n"),
        (f"x = b'sk-{LETTERS_AND_DIGITS[:48]}'\n", "x = b'<KEY>'\n"),
        (f"api_key = '{LETTERS_AND_DIGITS[:32]}'\n", "api_key = '<KEY>'\n"),
        (f"x = {{'client_secret': \"{LETTERS_AND_DIGITS[:24]}\"}}\n", "x = {'client_secret': \"<KEY>\"}\n"),
        (f"os.environ['TOKEN'] = '{LETTERS_AND_DIGITS[:40]}'\n", "os.environ['TOKEN'] = '<KEY>'\n"),
        (f"f(password='{LETTERS_AND_DIGITS[:20]}')\n", "f(password='<KEY>')\n"),
        (
            f'K = """{private_key(chr(10) + BODY + chr(10))}"""\n',
            f'K = """{private_key(chr(10) + KEY + chr(10))}"""\n',
        ),
        ("変数 = 'é'; x = 'ada@analytical.org'\n", "変数 = 'é'; x = '<EMAIL>'\n"),
        ("x = '\x0c\u2028'\n# ada@analytical.org\n", "x = '\x0c\u2028'\n# <EMAIL>\n"),
        ("x = (\n# ada@analytical.org\n", "x = (\n# <EMAIL>\n"),  # broken, and redacted all the same
    ],
)
def test_replaced(text: str, redacted: str) -> None:
    found = [name for name in (EMAIL, IP_ADDRESS, KEY) if name in redacted]
    assert redact(text) == (redacted, Counter({name: redacted.count(name) for name in found}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "y = a@b.grad\ny = x@self.weight.T\n",
        "@app.route('/')\ndef f(): pass\n",
        "MAIL = 'user@example.com', 'jane@mail.example.org', 'x@test', 'root@localhost'\n",
        "MAIL = 'noreply@github.com', '1234+ada@users.noreply.github.com'\n",
        "URL = 'git@github.com:owner/name.git', 'ssh://git@github.com/owner'\n",
        "URL = 'https://user:password@analytical.org/'\n",
        "ICON = 'logo@2x.png'\nCIPHER = 'aes256-gcm@openssh.com'\n",
        "KEY_USAGE = ObjectIdentifier('2.5.29.15')\nHOST = '1.2.3.4'\n",
        "token = '01234567-89ab-4cde-8f01-23456789abcd'\npublicKeyToken = '1fc8b3b9a1e18e3b'\n",
        "HOSTS = '127.0.0.1', '10.1.2.3', '192.168.0.1', '172.16.5.4', '0.0.0.0', '255.255.255.0', '169.254.1.1'\n",
        "HOSTS = '192.0.2.1', '198.51.100.7', '203.0.113.9', '224.0.0.1', '8.8.8.8'\n",
        "HOSTS = '::1', '2001:db8::1', 'fe80::1'\n",
        "VERSION = '1.2.3.4'\n__version__ = '12.20.33.44'\n",
        "# since version 12.20.33.44 of it\nx = 'torch==12.20.33.44'\n",
        "AGENT = 'Mozilla/5.0 Chrome/41.10.2228.10 Safari'\n",
        "OID = '1.3.6.1.4.1.311'\nx = '300.1.2.3', '01.22.33.44'\n",
        "y = x[1:2], x[::2], '12:30:45', '2024:01:02'\n",
        "sha256 = '" + "0123456789abcdef" * 4 + "'\n",
        "token_hash = '" + LETTERS_AND_DIGITS[:40] + "'\n",
        "commit = '" + LETTERS_AND_DIGITS[:40] + "'\n",
        "api_key = 'your-api-key-goes-here-0123'\npassword = 'correct-horse-battery'\n",
        "secret_key = os.environ['SECRET_KEY_OF_2024_010']\n",
        "KEY = 'AKIAIOSFODNN7EXAMPLE'\n",
        "if token == '" + LETTERS_AND_DIGITS[:20] + "': pass\n",
    ],
)
def test_kept(text: str) -> None:
    assert redact(text) == (text, Counter())


def test_a_private_key_in_several_strings_stays_valid_code() -> None:
    lines = [f'    "{line}\\n"\n' for line in private_key("\n" + BODY + "\n").split("\n")]
    redacted, counts = redact("K = (\n" + "".join(lines) + ")\n")
    assert LETTERS_AND_DIGITS[:20] not in redacted and counts == {KEY: 4}
    ast.parse(redacted)


def test_everything_is_counted_and_a_second_pass_finds_nothing() -> None:
    text = "# a@b.org, c@d.org\nx = ['93.184.216.34', 'e@f.org']\n"
    redacted, counts = redact(text)
    assert counts == {EMAIL: 3, IP_ADDRESS: 1}
    assert redact(redacted) == (redacted, Counter())
