"""Where an endpoint is asked: what an address may be, what of it is told to nobody, and which key goes there."""

import ipaddress
import os
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

import utils

OPENAI = ("openai.com", "OPENAI_API_KEY")  # the only host to which a key goes that no flag names, and that key


@dataclass(frozen=True)
class Address:
    """An endpoint's address, in parts."""

    url: str = field(repr=False)  # without parameters; a name and a password before an @ are sent as HTTP's basic login
    parameters: dict = field(repr=False)  # {name: text} behind the ?, sent with every request
    public: str  # without login and parameters: what is printed, written and hashed
    host: str
    port: int
    scheme: str

    @property
    def secrets(self):
        """What the address holds besides the public part, quoted and unquoted, the longest first; no text of under
        four characters, which would be found in any message.
        """
        parts = urllib.parse.urlsplit(self.url)
        texts = [parts.username, parts.password, *self.parameters.values()]
        texts = [urllib.parse.unquote(text) for text in filter(None, texts)]
        texts += [urllib.parse.quote(text, safe="") for text in texts]
        return sorted({text for text in texts if text and len(text) >= 4}, key=len, reverse=True)


def read(url, plain_http=False, flag="--judge_url", allows="--judge_plain_http"):
    """The Address that a flag gives. UserError for one that is malformed, and for http:// to another machine unless
    plain_http allows it: prompts, answers and the key would be readable on the way.
    """
    name = f"{flag} {utils.without_credentials(url)}"
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        if not host or " " in url or not url.isprintable() or "\\" in url:
            raise ValueError("no host")
        host.encode("idna")  # UnicodeError, a ValueError, for parts of more than 63 letters
    except ValueError as error:
        raise utils.UserError(f"{name}: not a valid address ({error})") from None
    if parts.scheme != "https" and not _is_here(host) and not plain_http:
        raise utils.UserError(f"{name}: http is not encrypted; use https, or allow it with {allows}")
    parameters = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
    twice = [each for each, values in parameters.items() if len(values) > 1]
    if twice:
        raise utils.UserError(f"{name}: the parameter {twice[0]} stands in it twice; give it once")
    return Address(
        parts._replace(query="", fragment="").geturl(),
        {each: text for each, (text,) in parameters.items()},
        utils.without_credentials(url),
        host,
        port,
        parts.scheme,
    )


def _is_here(host):
    """True for names and numbers of this machine."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return number.is_loopback or number.is_unspecified  # servers print 0.0.0.0 as their address


def check_reachable(address, seconds=5.0, flag="--judge_url"):
    """UserError, within seconds, where nothing listens at an Address."""
    if urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(address.host):
        return  # only the proxy can reach it
    try:
        socket.create_connection((address.host, address.port), seconds).close()
    except OSError as error:
        raise utils.UserError(f"{flag} {address.public}: nothing answers there ({error})") from None


def key_for(host, variable=None, flag="--judge_key_env"):
    """The key that a host gets, None for none. variable: of the environment, as the flag names it.

    Without a variable only OpenAI's own hosts get a key: OPENAI_API_KEY is meant for nobody else.
    """
    own, usual = OPENAI
    if variable is None:
        if host != own and not host.endswith(f".{own}"):
            return None
        variable = usual
    key = os.environ.get(variable, "").strip()
    if not key:
        # the value is not repeated: it may be the key itself
        raise utils.UserError(
            f"{flag if variable != usual else usual}: there is no such variable in the environment, or it is empty; "
            "it holds the key"
        )
    if not (key.isascii() and key.isprintable()):
        raise utils.UserError(f"{flag}: the key holds signs that no HTTP header can send")
    return key
