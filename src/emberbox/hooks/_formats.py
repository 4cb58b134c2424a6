"""Keys and tokens that have a format, as data: one row each, with the source of the format.

The expressions are ours; where an issuer documents no format, prefix and length are those of tokens as they are issued.
Each is linear: what could be slower sees a bounded slice (`near`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from emberbox.hooks._finds import Found
from emberbox.hooks._named_values import VALUE_ANCHORS

_DIGIT = re.compile(r"\d")
_EDGE = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=[\d;]m))"
"""Where a word begins: also behind a `\\n` of a string literal (JSON, repr), and behind a colour of a terminal."""

# An anchor that several rows share is looked for once. Each costs a pass over all output.
_UPPER_A = r"A(?:(?:KIA|SIA|BIA|CCA|3T[A-Z0-9])[0-9A-Z]{16}|C[a-z0-9]{32}|KC[a-zA-Z0-9]{10}|P[0-9A-F][a-zA-Z0-9]{8})"
_UPPER_S = r"S(?:K[a-z0-9]{32}|G\.[\w-]{22}\.)"
_SK = r"sk-[A-Za-z0-9_-]{16}"
_GL = r"gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-"
COLON = r":(?:[0-9A-Za-z_-]{35}|(?://|\\/\\/)[^\s/\"'<>]{0,1024}@)"
_XO = r"x(?:ox[a-z]|app-)"
_AWS_NEAR = r"aws[^\n\r]{0,64}[\"'][0-9a-z/+]{40}[\"']"
_SOFTLAYER = r"://api\.softlayer\.com/soap/v3[.1]{0,2}/[a-z0-9]{64}"
_NEAR = r"(?:key|password|pass|pwd|pw|token)[\"'\]]{0,2}(?: {0,8}(?:=>?|::?=?) {0,8}| {1,9})[\"']?[a-z0-9_-]{24}"


def _value_of(names: str, value: str) -> str:
    """An assignment whose value is the secret: `names` are the words before key, password, …"""
    word = rf"\[?[\"']?(?:{names})(?:key|password|pass|pwd|pw|token)[\"']?\]?"
    return rf"(?:^|(?<=\W)){word} *(?:=>?|::?=?| ) *[\"']?({value})"


@dataclass(frozen=True)
class Format:
    """One format. The secret is the group 1 of the expression, or all of it.

    Attributes:
        slug: the kind of secret.
        what: it is, for people.
        source: who says so.
        pattern: the expression.
        anchors: literals, as expressions, one of which is in every text that has it. Empty: the pattern is its own.
        folded: upper and lower case are the same, for the pattern and the anchors.
        near: the pattern sees only the surroundings of what this finds.
        digit: the secret has at least one.
    """

    slug: str
    what: str
    source: str
    pattern: str
    anchors: tuple[str, ...] = ()
    folded: bool = False
    near: str = ""
    digit: bool = False

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, re.IGNORECASE if self.folded else 0)

    @cached_property
    def _around(self) -> re.Pattern[str]:
        return re.compile(self.near, re.IGNORECASE)

    def find(self, text: str) -> Iterator[Found]:
        """Every secret of this format in a text."""
        if not self.near:
            yield from self._find_in(text, 0)
            return
        for match in self._around.finditer(text):
            begin = max(0, match.start() - 48)
            yield from self._find_in(text[begin : match.end() + 96], begin)

    def _find_in(self, text: str, offset: int) -> Iterator[Found]:
        group = 1 if self._compiled.groups else 0
        for match in self._compiled.finditer(text):
            if not self.digit or _DIGIT.search(text, *match.span(group)):
                start, end = match.span(group)
                yield Found(start + offset, end + offset, self.slug, match.start() + offset, match.end() + offset)


FORMATS: tuple[Format, ...] = (
    Format("aws-key", "AWS access key IDs", "AWS IAM User Guide, unique identifiers",
           r"A(?:3T[A-Z0-9]|BIA|CCA|KIA|SIA)[0-9A-Z]{16}", (_UPPER_A,)),
    Format("aws-key", "AWS secret keys in quotes", "AWS IAM User Guide, access keys: 40 characters of base64",
           r"aws[^\n\r]{0,20}?(?:key|pwd?|password|pass|token)[^\n\r]{0,20}?[\"']([0-9a-z/+]{40})[\"']",
           (_AWS_NEAR,), folded=True, near=_AWS_NEAR),
    Format("github-token", "GitHub tokens", "GitHub Docs, about authentication: token formats",
           r"gh[pousr]_\w{36,}", ("gh[pousr]_",)),
    Format("github-token", "GitHub fine-grained tokens", "GitHub Docs, about authentication: token formats",
           r"github_pat_\w{20,255}", ("github_pat_",), digit=True),
    Format("gitlab-token", "GitLab tokens of any length", "GitLab Docs, token overview: prefixes",
           rf"(?:{_GL}|GR1348941)[\w-]{{20,1024}}(?:\.\w{{1,64}})*", (_GL, "GR1348941")),
    Format("slack-token", "Slack tokens", "Slack API, token types",
           r"xox[abporse]-(?:\d{1,32}-){1,8}[a-z0-9][\w-]*", (_XO, r"hooks\.slack"), folded=True),
    Format("slack-token", "Slack webhooks", "Slack API, incoming webhooks",
           r"https://hooks\.slack\.com/services/T\w+/B\w+/[\w-]+", (r"hooks\.slack",), folded=True),
    Format("slack-token", "Slack app and configuration tokens", "Slack API, token types",
           r"(?:xapp|xox[a-z](?:\.xox[a-z])?)-\d[\w-]{16,255}", (_XO,), folded=True, digit=True),
    Format("stripe-key", "Stripe live keys", "Stripe Docs, API keys", r"[rs]k_live_[0-9a-zA-Z]{24,}", ("k_live_",)),
    Format("anthropic-key", "Anthropic keys", "as issued", r"sk-ant-[\w-]{16,512}", (_SK,), digit=True),
    Format("openai-key", "OpenAI keys", "as issued", _EDGE + r"(sk-(?!ant-)[A-Za-z0-9_-]{20,512})", (_SK,), digit=True),
    Format("google-key", "Google API keys", "as issued: AIza and 35 characters", r"AIza[\w-]{35}", (r"AIza[\w-]{35}",)),
    Format("huggingface-token", "Hugging Face tokens", "Hugging Face Hub, user access tokens",
           _EDGE + r"(hf_[A-Za-z0-9]{30,})", ("hf_[A-Za-z0-9]{30}",), digit=True),
    Format("npm-token", "npm tokens", "GitHub Blog, npm's token format", _EDGE + r"(npm_[A-Za-z0-9]{30,})",
           ("npm_[A-Za-z0-9]{30}",), digit=True),
    Format("npm-token", "npm tokens in .npmrc", "npm Docs, npmrc: _authToken",
           r"/:_authToken[ \t]{0,8}=[ \t]{0,8}[\"']?([^\s\"'\\,;$\x00]{8,512})", ("/:_authToken",)),
    Format("pypi-token", "PyPI tokens", "Warehouse, API tokens: macaroons of pypi.org and test.pypi.org",
           r"pypi-Ag(?:EIcHlwaS5vcmc|ENdGVzdC5weXBpLm9yZw)[\w-]{70,}", ("pypi-Ag",)),
    Format("sendgrid-key", "SendGrid keys", "Twilio SendGrid Docs, API keys: 69 characters",
           r"SG\.[\w-]{22}\.[\w-]{43}", (_UPPER_S,)),
    Format("square-secret", "Square OAuth secrets", "Square Developer, OAuth credentials",
           r"sq0csp-[\w-]{40,}", ("sq0csp-",)),
    Format("mailchimp-key", "Mailchimp keys", "Mailchimp Developer, fundamentals: the data center in the key",
           r"[0-9a-z]{32}-us[0-9]{1,2}", ("-us[0-9]",), near="[0-9a-z]{32}-us[0-9]"),
    Format("twilio-key", "Twilio keys", "Twilio Docs, string identifiers (SID)", r"(?:AC|SK)[a-z0-9]{32}",
           (_UPPER_A, _UPPER_S)),
    Format("telegram-token", "Telegram bot tokens", "Telegram Bot API, authorizing", r"\d{8,10}:[\w-]{35,}", (COLON,)),
    Format("discord-token", "Discord bot tokens", "Discord Developer Docs, authentication",
           r"[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,}", (r"\.[\w-]{6}\.[\w-]{27}",)),
    Format("artifactory", "Artifactory tokens and passwords", "JFrog Artifactory, API keys and encrypted passwords",
           r"(?:^|(?<=[\s=:\"]))A(?=\w*\d)(?:KC[a-zA-Z0-9]{10,}|P[0-9A-F][a-zA-Z0-9]{8,})(?=[\s\"]|$)", (_UPPER_A,)),
    Format("azure-key", "Azure storage keys", "Microsoft Learn, storage connection strings",
           r"AccountKey=([a-zA-Z0-9+/=]{88})", ("AccountKey=",)),
    Format("cloudant", "Cloudant credentials", "IBM Cloud Docs, Cloudant",
           _value_of(r"(?:cloudant|clou?)[_-]?(?:api)?[_-]?", r"[0-9a-f]{64}|[a-z]{24}"),
           VALUE_ANCHORS, folded=True, near=_NEAR),
    Format("ibm-cloud-key", "IBM Cloud IAM keys", "IBM Cloud Docs, API keys: 44 characters",
           _value_of(r"(?:(?:ibm[_-]?)?(?:cloud[_-]?)?(?:iam[_-]?)?)(?:api)?[_-]?", r"[\w-]{44}(?![\w-])"),
           VALUE_ANCHORS, folded=True, near=_NEAR),
    Format("ibm-cos-key", "IBM object storage keys", "IBM Cloud Docs, Object Storage: HMAC credentials",
           _value_of(r"(?:ibm)?[_-]?(?:cos)?[_-]?(?:hmac)?[_-]?secret[_-]?(?:access)?[_-]?",
                     r"[a-f0-9]{48}(?![a-f0-9])"), VALUE_ANCHORS, folded=True, near=_NEAR),
    Format("softlayer", "SoftLayer credentials", "SoftLayer API, getting started: 64 characters",
           _value_of(r"(?:softlayer|sl)[_-]?(?:api)?[_-]?", "[a-z0-9]{64}"), VALUE_ANCHORS, folded=True, near=_NEAR),
    Format("softlayer", "SoftLayer addresses", "SoftLayer API, SOAP endpoints with a key",
           r"https?://api\.softlayer\.com/soap/v3(?:\.1)?/([a-z0-9]{64})", (r"api\.softlayer",), folded=True,
           near=_SOFTLAYER),
    Format("private-key", "headers of private keys", "RFC 7468, OpenSSH, PuTTY, RFC 9580",
           r"BEGIN (?:(?:DSA|EC|OPENSSH|RSA|SSH2 ENCRYPTED) )?PRIVATE KEY|BEGIN PGP PRIVATE KEY BLOCK"
           r"|PuTTY-User-Key-File-2", ("BEGIN ", "PuTTY-User-Key")),
    Format("basic-auth", "passwords in URLs", "RFC 3986, section 3.2.1",
           r"://[^:/?#\[\]@!$&'()*+,;=\s]{1,1024}:([^:/?#\[\]@!$&'()*+,;=\s]{1,1024})@", (COLON,)),
)  # fmt: skip
"""The formats, in the order in which they name what two of them find."""
