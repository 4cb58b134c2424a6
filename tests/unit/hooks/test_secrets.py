"""What is taken for a secret, and what is not."""

from __future__ import annotations

import base64
import json
import random
import re
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberbox.hooks._named_values import KEY_PREFIXES, MORE_PREFIXES, is_placeholder
from emberbox.hooks._redaction import Rules, redact
from emberbox.hooks._secrets import DETECTORS, KINDS, fold

RULES = Rules()


def _made_of(alphabet: str, length: int) -> str:
    """As random as a token is, and the same each time; built here, so that no scanner takes this file for a leak."""
    return "".join(random.Random(length + len(alphabet)).choices(alphabet, k=length))


def _token(length: int) -> str:
    return _made_of(string.ascii_letters + string.digits, length - 2) + "7q"


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


PEM = "MII" + _made_of(string.ascii_letters + string.digits + "+/", 61)
HEADER, FOOTER = "-----BEGIN RSA PRIVATE " + "KEY-----", "-----END RSA PRIVATE " + "KEY-----"
HEXADECIMAL = string.digits + "abcdef"

TOKENS: dict[str, list[str]] = {
    "aws-key": ["AKIA" + "IOSFODNN7EXAMPLE", "ASIA" + "Y34FZKBOKMUTVV7A"],
    "github-token": ["ghp_" + _token(36), "ghs_" + _token(36), "github_pat_" + _token(22) + "_" + _token(59)],
    "gitlab-token": ["glpat-" + _token(20), "glrt-" + _token(20), "glpat-" + _token(27) + ".01.120abcdef"],
    "slack-token": [
        "xoxb-123456789012-123456789012-" + _token(24),
        "xapp-1-A0123456789-1234567890123-" + _made_of(HEXADECIMAL, 64),
        "https://hooks.slack.com/services/T12345678/B12345678/" + _token(24),
    ],
    "stripe-key": ["sk_live_" + _token(24), "rk_live_" + _token(99)],
    "anthropic-key": ["sk-ant-api03-" + _token(93) + "AA", "sk-ant-oat01-" + _token(40) + "-" + _token(40)],
    "openai-key": ["sk-" + _token(48), "sk-proj-" + _token(60) + "-" + _token(60), "sk-svcacct-" + _token(60)],
    "google-key": ["AIza" + _token(35)],
    "huggingface-token": ["hf_" + _token(34)],
    "npm-token": ["npm_" + _token(36)],
    "pypi-token": ["pypi-AgEIcHlwaS5vcmc" + _token(120)],
    "sendgrid-key": ["SG." + _token(22) + "." + _token(43)],
    "square-secret": ["sq0csp-" + _token(43)],
    "mailchimp-key": [_made_of(HEXADECIMAL, 32) + "-us12"],
    "twilio-key": ["AC" + _made_of(HEXADECIMAL, 32), "SK" + _made_of(HEXADECIMAL, 32)],
    "telegram-token": ["110201543:" + _token(35)],
    "discord-token": ["MTk4NjIyNDgzNDcxOTI1MjQ4." + _token(6) + "." + _token(27)],
    "artifactory": ["AKC" + _token(40), "AP6" + _token(33)],
    "jwt": [f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part({'sub': '12', 'name': 'x'})}.{_token(43)}"],
    "email": ["bob@example.com", "ann.lee+news@mail.example.co.uk", "j_doe%x@a-b.org", "josé@müller.de"],
    "private-key": [f"{HEADER}\\n{PEM}\\n{PEM}\\n{FOOTER}"],
}
"""Secrets that tell by themselves what they are."""

NAMED: list[tuple[str, str, str, str]] = [
    ("password", 'password = "', "hunter2", '"'),
    ("password", "password='", "correct horse battery staple", "'"),
    ("password", '{"password": "', 'ab\\"cd', '"}'),
    ("password", "PASSWORD: ", "hunter2", ""),
    ("password", "password=", "hunter2", ""),
    ("password", "DB_PASSWORD=", "p,a;s(s)&w{o}rd", ""),
    ("password", "export PGPASSWORD=", "swordfish", ""),
    ("password", "host=x password=", "swordfish", " dbname=y"),
    ("password", "Server=x;Password=", "Hunter2!", ";Timeout=5"),
    ("password", "https://x.org/?user=me&password=", "hunter2", "&next=/"),
    ("password", "config['password'] = '", "hunter2", "'"),
    ("password", "password: str = '", "hunter2", "'"),
    ("password", "passphrase: ", "Tr0ub4dor&3"[:9], ""),
    ("password", 'if "', "hunter2", '" == my_password:'),
    ("password", "if password != '", "hunter2", "':"),
    ("password", "mysql --password ", "hunter2", " -u root"),
    ("password", "<password>", "hunter2", "</password>"),
    ("password", '"log": "password: \\"', "hunter2", '\\" was wrong"'),
    ("password", "contraseña: '", "hunter2", "'"),
    ("password", "$db_pass = '", "hunter2", "';"),
    ("password", "password := `", "hunter2", "`"),
    ("secret", "SECRET_KEY = '", "django-insecure-x", "'"),
    ("secret", "client_secret=", _token(24), ""),
    ("secret", "api_key: ", _token(32), ""),
    ("secret", 'apiKey: "', "abc", '",'),
    ("secret", "access_token=", _token(40), "&x=1"),
    ("secret", '{"refresh_token":"', _token(40), '"}'),
    ("aws-key", "aws_secret_access_key = ", "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY", ""),
    ("aws-key", "AWS_SESSION_TOKEN=", "IQoJb3JpZ2luX2VjE" + _token(200) + "==", ""),
    ("aws-key", '"SecretAccessKey": "', "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY", '"'),
    ("azure-key", "AccountName=x;AccountKey=", _token(86) + "==", ";EndpointSuffix=core.windows.net"),
    ("cloudant", "cloudant_password = ", _made_of(HEXADECIMAL, 64), ""),
    ("ibm-cloud-key", "ibm_cloud_iam_key: ", _token(44), ""),
    ("ibm-cos-key", "cos_secret_access_key: ", _made_of(HEXADECIMAL, 48), ""),
    ("softlayer", "softlayer_token: ", _made_of(HEXADECIMAL, 64), ""),
    ("softlayer", "http://api.softlayer.com/soap/v3/", _made_of(HEXADECIMAL, 64), ""),
    ("npm-token", "//registry.npmjs.org/:_authToken=", "12345678-abcd-abcd-abcd-123456789012", ""),
    ("basic-auth", "postgres://bob:", "hunter2", "@db:5432/x"),
    ("basic-auth", "redis://:", "p@ss!word", "@cache"),
    ("basic-auth", "Authorization: Basic ", "Ym9iOmh1bnRlcjI=", ""),
    ("bearer-token", "Authorization: Bearer ", "abcdef123456", ""),
    ("bearer-token", "curl -H 'authorization: bearer ", _token(30), "' https://x.org"),
    ("bearer-token", "{'Authorization': 'Bearer ", _token(30), "'}"),
]
"""(kind, before, secret, behind): secrets that something beside them gives away."""

SURROUNDINGS = [
    ("", ""),
    ("key is ", " today"),
    ("\t", "\t"),
    ('"', '"'),
    ("'", "',"),
    ("(", ")"),
    ("x=", ";"),
    ("[", "]"),
    ("<td>", "</td>"),
    ("\x1b[32m", "\x1b[0m"),
    ("日本 ", " 語"),
    ('{"a": "', '"}'),
    ('{"a": "line\\n', '\\nline"}'),
    ("2024-05-01 INFO ", "."),
]

FINE = [
    *(
        "password: str",
        "def login(user: str, password: str, token: SecretStr = None) -> None:",
        "  password: str | None",
    ),
    *("password: Optional[str] = None", "fn login(password: &str, secret: String) {", "password: string;"),
    *('getpass.getpass("Password: ")', 'input("Password: "), input("User: ")', "Enter password:", "Enter password: "),
    *(
        "secret = None",
        "secret=None, token=None",
        "token: null",
        '{"password": null, "secret": true}',
        "token_count: 5",
    ),
    *("max_tokens=4096", '{"token": "the", "logprob": -0.1}', "password = os.environ['X']", "token = tokens[i]"),
    *('password = os.environ["X"]', 'password = os.getenv("PASSWORD", "")', "secret = get_secret()", 'password = ""'),
    *("self.password = password", "connect(user=user, password=password)", "password=self.password,", "pwd = args.pwd"),
    *("password == expected", "if password != other:", 'print("password:", password)', 'KeyError: "password"'),
    *("password=***", "password: ********", "PASSWORD=${PASSWORD}", "PASSWORD=$DB_PASSWORD", 'password="<password>"'),
    *('api_key="{api_key}"', "password: required", "Invalid password: try again", "Password: must be 8 characters"),
    *("PWD=/root/work", "OLDPWD=/", "the secret: hard work and luck", "passwordless: true", "password_length=12"),
    *("a@b", "x @ y", "@app.route('/x')", "@pytest.fixture", "user@localhost", "A@B.T", "w@x.reshape(3)"),
    *("logo@2x.png", "git@github.com:owner/name.git", "lodash@4.17.21", "https://bob@example.com/x"),
    *("5f2c1d7a9e8b4c3d2e1f0a9b8c7d6e5f4a3b2c1d", "550e8400-e29b-41d4-a716-446655440000", "sha256:" + "ab12" * 16),
    *("task-" + "a1" * 20, "bearer of good news", "Bearer $TOKEN", "https://user:${PASS}@host", "http://host:8080/a@b"),
    *("SKIPPED ACCESS APACHE AKIA ASIA", "ghp_ sk- xoxb- eyJ hf_ AIza", "eyJhbGciOi.notjson.x", "monkey: 5 keys"),
    *("tests/test_password.py::test_it[password] PASSED", "1234567890:5", "3.14159.265358.979", "-us1 glacier"),
]
"""What only looks like a secret."""


@pytest.mark.parametrize(("kind", "secret"), [(kind, one) for kind, those in TOKENS.items() for one in those])
def test_a_token_is_found_wherever_it_stands(kind: str, secret: str) -> None:
    for before, behind in SURROUNDINGS:
        if kind == "artifactory" and before.strip('"=\t') not in ("", "key is ", "日本 ", "2024-05-01 INFO "):
            continue  # the library wants a space, a quote or a sign before these, and a space or a quote behind
        if kind == "artifactory" and behind.strip('"\t') not in ("", " today", " 語"):
            continue
        text = f"{before}{secret}{behind}\n"
        assert redact(RULES, text) == f"{before}[REDACTED:{kind}]{behind}\n"


@pytest.mark.parametrize(("kind", "before", "secret", "behind"), NAMED)
def test_a_secret_is_found_by_what_is_beside_it(kind: str, before: str, secret: str, behind: str) -> None:
    assert redact(RULES, f"{before}{secret}{behind}\n") == f"{before}[REDACTED:{kind}]{behind}\n"


@pytest.mark.parametrize("text", FINE)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert redact(RULES, text) == text
    assert redact(RULES, f"x\n    {text}\ny\n") == f"x\n    {text}\ny\n"


def test_all_secrets_of_a_line_are_found() -> None:
    line = "password='a1' password='b2' api_key='c3' me@x.org you@x.org AKC" + _token(40) + " AKC" + _token(40) + "\n"
    clean = redact(RULES, line)
    assert clean.count("[REDACTED:") == 7
    assert not any(one in clean for one in ("a1", "b2", "c3", "@", "AKC"))


def test_only_the_place_of_a_short_password_changes() -> None:
    assert redact(RULES, "password='a' in a banana") == "password='[REDACTED:password]' in a banana"


def test_every_kind_has_an_example_here_and_every_detector_a_source() -> None:
    assert set(KINDS) == {*TOKENS, *(kind for kind, *_ in NAMED)}
    assert all(one.source and one.what and one.anchors for one in DETECTORS)


@pytest.mark.parametrize("word", [*KEY_PREFIXES, *MORE_PREFIXES])
def test_keys_of_many_names_are_secrets(word: str) -> None:
    for written in (f"{word}_key", f"{word}key", f"{word}-key"):
        assert redact(RULES, f"my_{written} = 'x1y2z3'") == f"my_{written} = '[REDACTED:secret]'"


@pytest.mark.parametrize("word", ["password", "passwd", "pwd", "db_pass", "database_pass", "key_pass", "contraseña"])
def test_passwords_of_many_names_are_passwords(word: str) -> None:
    assert redact(RULES, f"my_{word} = 'x1y2z3'") == f"my_{word} = '[REDACTED:password]'"


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "password",
                "secret",
                "api_key",
                "my_pwd",
                "db_pass",
                "client_key",
                " = ",
                "=",
                ": ",
                ":",
                " == ",
                " != ",
                " => ",
                "'",
                '"',
                "`",
                "']",
                ";",
                ",",
                " ",
                "(",
                ")",
                "x1",
                "hunter2",
                "None",
                "os.environ",
                "the value",
                "{",
                "}",
            ]
        ),
        st.sampled_from([one for those in TOKENS.values() for one in those]),
        st.text("ab1 ='\":.@-_\\", max_size=6),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("quote", ["'", '"', "`"])
@given(
    name=st.sampled_from(["password", "my_secret", "API_KEY", "dbPass", "userpwd", "authKey", "client_key_2"]),
    sign=st.sampled_from([" = ", "=", ": ", ":", " == ", "!=", " => ", "] = "]),
    value=st.text(string.ascii_letters + string.digits + " !$%&/()?+*#-_.,;:@", min_size=1, max_size=20),
    rest=st.sampled_from(["", ";", ", x", ")", " # note", "}"]),
)
@settings(max_examples=100, deadline=None)
def test_a_quoted_value_of_a_name_is_gone_whatever_the_sign(
    quote: str, name: str, sign: str, value: str, rest: str
) -> None:
    line = f"{name}{sign}{quote}{value}{quote}{rest}"
    clean = redact(RULES, line)
    assert f"{quote}{value}{quote}" not in clean or is_placeholder(value), clean


@given(LINES)
@settings(max_examples=150, deadline=None)
def test_a_detector_finds_nothing_without_one_of_its_anchors(line: str) -> None:
    """The anchors are a filter before the detectors; what they let pass unseen is lost."""
    texts = [line, *(f"{before}{secret}{behind}" for _, before, secret, behind in NAMED)]
    for text in texts:
        for detector in DETECTORS:
            view = fold(text) if detector.folded else text
            if not any(re.search(anchor, view) for anchor in detector.anchors):
                assert list(detector.find(text)) == []


def test_kinds_restrict_what_is_looked_for() -> None:
    text = "AKIA" + "IOSFODNN7EXAMPLE bob@example.com password=hunter2"
    for kind in ("aws-key", "email", "password"):
        clean = redact(Rules([kind]), text)
        assert clean.count("[REDACTED:") == 1
        assert f"[REDACTED:{kind}]" in clean


def test_allowed_texts_and_domains_stay() -> None:
    rules = Rules(None, ["@example.com", "hunter2"])
    text = "bob@example.com BOB@EXAMPLE.COM eve@evil-example.com password=hunter2 password=hunter22"
    clean = redact(rules, text)
    expected = "bob@example.com BOB@EXAMPLE.COM [REDACTED:email] password=hunter2 password=[REDACTED:password]"
    assert clean == expected


def test_the_table_says_what_every_kind_is() -> None:
    assert set(KINDS) == {slug for one in DETECTORS for slug in one.slugs}
    assert all(KINDS.values())
    assert {"aws-key", "github-token", "slack-token", "jwt", "private-key", "password", "email", "basic-auth"} <= set(
        KINDS
    )
