"""Takes what looks like a secret out of a command line and of what a job wrote.

Everyone who may look at an event sees these. What is known by its name
(`--password=x`, `TOKEN=x`, `Authorization: x`), by its place (`mysql -px`, a
URL's `user:x@`) or by its shape (keys of AWS, GitHub and others) is replaced;
better a harmless word too many than a password in a timeline. What has neither
name, place nor shape cannot be known: `--no-command` and `--no-output` are for
that. Pure; imported only for an event of a job, since `re` is slow to come.
"""

from __future__ import annotations

import re

MASK = "***"
# More is never shown; a limit for what is looked at.
TEXT_CHARACTERS_MAX = 20_000

# A name that ends with one of these holds a secret, whatever stands before it.
_KEYS = "access|account|api|encryption|license|master|private|secret|shared|signing|storage"
_STRONG = rf"passw(?:or)?[dt]|passphrase|secret(?:[_-]?id)?|token|(?:{_KEYS})[_-]?key"
# These only as a word of their own.
_WEAK = r"pwd|pw|key|auth|credentials?|bearer|pat|otp|pin|sig(?:nature)?|session[_-]?(?:id|key)"
_NAME = rf"(?:[\w.-]*(?:{_STRONG}|pass)s?|(?:[\w.-]*[_.-])?(?:{_WEAK}))"
_SCHEME = "[a-z][a-z0-9+.-]{0,20}"  # with an end: from each word the rest would be looked at
_STRONG_NAME = rf"[\w.-]*(?:{_STRONG})s?"
_VALUE = r"\"[^\"\n]*\"?|'[^'\n]*'?|[^\s\"'&;,)}\]]+"

_TEXTS = tuple(
    (re.compile(pattern, flags), replacement)
    for pattern, flags, replacement in (
        (
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
            re.DOTALL,
            MASK,
        ),
        # A header, to the end of its line or of the quotes around it.
        (
            # Not within a word: each of its letters would begin a search of the rest of it.
            r"(?<![\w-])((?:proxy-)?authorization|(?:set-)?cookie|[\w-]*(?:api-?key|token))(\s*:\s*)"
            r"[^\r\n\"']+",
            re.IGNORECASE,
            rf"\1\2{MASK}",
        ),
        (r"\b(bearer|basic)(\s+)[\w.~+/=-]{6,}", re.IGNORECASE, rf"\1\2{MASK}"),
        # A URL's credentials: user and password, or a token alone.
        (rf"(\b{_SCHEME}://[^\s/:@\"']{{0,256}}):[^\s/\"']+@", re.IGNORECASE, rf"\1:{MASK}@"),
        (rf"(\b{_SCHEME}://)[^\s/:@\"']{{20,}}@", re.IGNORECASE, rf"\1{MASK}@"),
        (
            rf"(?<![\w.-])(-{{0,2}}{_NAME}[\"']?\]?\s*=\s*)(?:{_VALUE})",
            re.IGNORECASE,
            rf"\1{MASK}",
        ),
        (
            rf"(?<![\w.-])({_STRONG_NAME}[\"']?\s*:\s*|{_NAME}[\"']\s*:\s*)(?:{_VALUE})",
            re.IGNORECASE,
            rf"\1{MASK}",
        ),
        (rf"(<{_NAME}>)[^<\r\n]+", re.IGNORECASE, rf"\1{MASK}"),
        (r"(--from-literal[= ][\w.-]+=)[^\s\"']+", 0, rf"\1{MASK}"),  # of kubectl's secrets
        # What a script gives a program that reads its password.
        (
            r"\b((?:echo|printf)\s+)[^|\n]{1,200}"
            r"(\|[^|\n]{0,200}(?:--password-stdin|--with-token|\bsudo\b.{0,20}-S\b|\bchpasswd|--stdin))",
            0,
            rf"\1{MASK} \2",
        ),
        (r"(?<!\S)(/p(?:w|ass(?:word)?)?:)\S+", re.IGNORECASE, rf"\1{MASK}"),  # as on Windows
        # An address that lets whoever knows it post, or act as a bot.
        (
            r"((?:hooks\.slack\.com/(?:services|workflows)|/api/webhooks|\.office\.com/webhook\w*)/)"
            r"[^\s\"']+",
            re.IGNORECASE,
            rf"\1{MASK}",
        ),
        (r"(api\.telegram\.org/bot)[^\s/\"']+", re.IGNORECASE, rf"\1{MASK}"),
        (r"\b(pass:)\S+", 0, rf"\1{MASK}"),  # as openssl takes it
        (
            r"\b(?:A[KS]IA[0-9A-Z]{16}|gh[opsru]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
            r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|[sr]k_(?:live|test)_\w{10,}|AIza[\w-]{35}"
            r"|sk-[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|(?:npm|hf)_\w{30,}|do[opr]_v1_\w{40,}"
            r"|shp(?:at|ca|pa|ss)_\w{20,}|pypi-[\w-]{40,}|glsa_\w{20,}|hv[sbr]\.[\w-]{20,}"
            r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)",
            0,
            MASK,
        ),
    )
)
# With the dashes that word processors make of two, too: it is copied from there.
_OPTION = re.compile(rf"[-–—]{{1,2}}{_NAME}", re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"([-–—]{{0,2}}{_NAME}=)(.+)", re.IGNORECASE | re.DOTALL)
_BARE = re.compile(rf"\w*(?:{_STRONG}):?", re.IGNORECASE)
_BLANKS = re.compile(r"(\s+)")

# Programs whose short options hold a secret: glued to the option's letter, and as its next word.
_GLUED = {
    "-p": (
        *("mysql", "mariadb", "sshpass", "mongo", "docker", "podman"),
        *("7z", "7za", "7zz", "rar", "unrar"),
    ),
    "-a": ("redis-cli",),
    "-w": ("ldap",),
    "-P": ("zip", "unzip", "sqlcmd", "bcp", "ipmitool", "mosquitto_"),
    "-u": ("curl", "lftp"),
    "-U": ("curl", "smbclient"),
    "-b": ("curl",),
    "-c": ("snmp",),
    "-E": ("curl",),
    "-hp": ("rar", "unrar"),
}
_NEXT = {
    "-p": (
        *("sshpass", "mongo", "docker", "podman", "helm", "az"),
        *("cqlsh", "twine", "beeline", "rabbitmqadmin", "ncftp"),
        *("useradd", "usermod", "rdesktop", "racadm", "influx"),
    ),
    "-c": ("snmp",),
    "-t": ("influx",),
    "-a": ("redis-cli", "http"),
    "-w": ("ldap",),
    "-P": ("zip", "unzip", "sqlcmd", "bcp", "ipmitool", "mosquitto_"),
    "-u": ("curl", "lftp"),
    "-U": ("curl", "smbclient"),
    "-b": ("curl",),
    "-E": ("curl",),
    "-k": ("openssl",),
    "-K": ("openssl",),
    "-A": ("snmp",),
    "-X": ("snmp",),
    "--user": ("curl",),
    "--proxy-user": ("curl",),
    "--cookie": ("curl",),
    "--cert": ("curl",),
    "--oauth2-bearer": ("curl",),
    "-ap": ("swaks",),
    "--from-literal": ("kubectl",),
}
# Options of curl without a value, which may stand before another one in the same word.
_CLUSTER = re.compile(r"-[\d#BGIJLMNORSVZafgijklnpqsv]+([EUbu].*)", re.DOTALL)
# Those that are given USER/PASSWORD.
_LOGIN = ("sqlplus", "expdp", "impdp", "sqlldr", "rman")
# The word, counted without options, that is a secret; behind which first word, if not any.
_PLACES = {"vault": (2, "login"), "wpa_passphrase": (2, ""), "htpasswd": (3, ""), "isql": (3, "")}
_USER_AND_PASSWORD = re.compile(r"([^\s/@\"']+/)[^\s/@\"']+")


def masked_command(argv: list[str]) -> list[str]:
    """The command and its arguments, each word without what looks like a secret."""
    words = _Words()
    shown = [words.masked(word[:TEXT_CHARACTERS_MAX]) for word in argv[:1]]
    for word in argv[1:1000]:
        shown.append(words.masked(word[:TEXT_CHARACTERS_MAX]))
        words.expect_value(word)
    return shown


def masked_text(text: str) -> str:
    """The same for any text, such as a script in one word, or what a job wrote."""
    text = text[-TEXT_CHARACTERS_MAX:]
    for pattern, replacement in _TEXTS:
        text = pattern.sub(replacement, text)
    words = _Words()
    shown = []
    for place, part in enumerate(_BLANKS.split(text)):
        if place % 2:  # every second part is the blanks between two words
            words.look_at_blanks(part)
            shown.append(part)
        else:
            shown.append(words.masked_in_text(part) if part else part)
    return "".join(shown)


class _Words:
    """One command line, read word by word."""

    def __init__(self) -> None:
        self._program = ""
        self._next_is_secret = False
        self._next_is_script = False
        self._quote = ""  # the quote that a secret with blanks in it stands in
        self._places: list[str] = []  # of the program's words, without options

    def masked(self, word: str) -> str:
        is_script, self._next_is_script = self._next_is_script, word in _TAKE_SCRIPT
        if self._is_secret(word):
            return MASK
        assignment = None if is_script else _ASSIGNMENT.fullmatch(word)
        if assignment is not None:
            return f"{assignment[1]}{MASK}"
        glued = self._glued(word)
        if glued is not None:
            return glued
        self._look_ahead(word)
        return masked_text(word)

    def expect_value(self, name: str) -> None:
        """Behind a bare `password`, as mysqladmin and others take it; of a command line
        alone: a text says such words of itself."""
        if _BARE.fullmatch(name):
            self._next_is_secret = True

    def masked_in_text(self, word: str) -> str:
        """The same where the text around it was looked at already."""
        if self._quote:
            _, end, rest = word.partition(self._quote)
            self._quote = "" if end else self._quote
            return MASK + end + rest
        bare = word.strip("\"'`();[],")  # also as a list of Python's, which its errors show
        if self._is_secret(bare):
            self._begin_quote(word)
            return word.replace(bare, MASK)
        glued = self._glued(bare)
        if glued is not None:
            self._begin_quote(bare.removeprefix(glued.removesuffix(MASK)))
            return word.replace(bare, glued)
        self._look_ahead(bare)
        return word

    def look_at_blanks(self, blanks: str) -> None:
        """Quotes that are not closed on their line are none."""
        if "\n" in blanks:
            self._quote = ""

    def _begin_quote(self, value: str) -> None:
        if value[:1] in ("'", '"') and value.count(value[0]) == 1:
            self._quote = value[0]

    def _is_secret(self, word: str) -> bool:
        is_secret, self._next_is_secret = self._next_is_secret, False
        is_secret = is_secret or self._is_in_place(word)
        # `--token --verbose`: it had its value from elsewhere.
        return is_secret and word != "" and not word.startswith("-")

    def _is_in_place(self, word: str) -> bool:
        count, first = _PLACES.get(self._program, (0, ""))
        if not count or word.startswith("-"):
            return False
        self._places.append(word)
        return len(self._places) == count and first in ("", self._places[0])

    def _glued(self, word: str) -> str | None:
        if self._program.startswith(_LOGIN) and (login := _USER_AND_PASSWORD.match(word)):
            return f"{login[1]}{MASK}{word[login.end() :]}"
        alone = self._alone(word)
        for length in (3, 2):
            programs = _GLUED.get(alone[:length], ())
            if len(alone) > length and self._program.startswith(programs) and programs:
                return f"{word[: len(word) - len(alone) + length]}{MASK}"
        return None

    def _alone(self, word: str) -> str:
        """The option of a word without those that stand in it before: `-sSfu` is `-u`."""
        cluster = _CLUSTER.fullmatch(word) if self._program.startswith("curl") else None
        return f"-{cluster[1]}" if cluster is not None else word

    def _look_ahead(self, word: str) -> None:
        programs = _NEXT.get(self._alone(word), ())
        self._next_is_secret = _OPTION.fullmatch(word) is not None or (
            programs != () and self._program.startswith(programs)
        )
        if not word.startswith("-"):
            name = word.rpartition("/")[2]
            if name.startswith(_PROGRAMS):
                self._program = name
                self._places.clear()


# What a shell's next word is a script behind.
_TAKE_SCRIPT = ("-c", "-ec", "-euc", "-euxc", "-lc", "-xc", "-exc")
_PROGRAMS = (
    *{name for table in (_GLUED, _NEXT) for names in table.values() for name in names},
    *_LOGIN,
    *_PLACES,
)
