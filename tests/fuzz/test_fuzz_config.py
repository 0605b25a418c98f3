"""Any bytes are a configuration or a ConfigError, and the fast reader never differs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import strategies as st

from outboxd.config.keys import KEYS, SECTIONS
from outboxd.config.load import load, load_client
from outboxd.config.sections import Config
from outboxd.errors import ConfigError
from outboxd.producer import settings
from outboxd.producer.plain_toml import read as read_plain

pytestmark = pytest.mark.timeout(1500)

ODD_VALUES = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "1",
        "60",
        "1.5",
        "nan",
        "inf",
        "-0.0",
        "true",
        "false",
        "1e400",
        '""',
        '"30s"',
        '"0s"',
        '"-1s"',
        '"1KiB"',
        '"0660"',
        '"x"',
        "'x'",
        '"\\u0000"',
        '"\\ud800"',
        '"late"',
        '"fifo"',
        '"debug"',
        '"json"',
        '"https://a/b"',
        '"http://a/b"',
        '"127.0.0.1:80"',
        "[]",
        '["a"]',
        '["a", "b",]',
        "[1]",
        "[[1]]",
        '[""]',
        "{}",
        '{ a = "b" }',
        "{ a = { b = 1 } }",
        "2026-11-21",
        "2026-11-21T00:00:00Z",
        "99:99:99",
        '"""a\nb"""',
        '"unclosed',
        "[",
        "{",
        "\x00",
        "0x1F",
        "1_000",
        "é",
        '"é"',
        '"\x7f"',
    ]
)
HUGE_VALUES = st.builds(
    lambda part, count: part * count,
    st.sampled_from(["9", "[", "{ a = ", "[]", "a."]),
    st.sampled_from([20, 150, 3000, 5000]),
)
ANY_VALUES = st.one_of(ODD_VALUES, ODD_VALUES, ODD_VALUES, HUGE_VALUES)
NAMES = st.sampled_from([key.name for key in KEYS] + ["endpont", "x", "a.b", '"a b"', "", "=", "é"])
HEADERS = st.sampled_from(
    [f"[{section}]" for section in SECTIONS]
    + [
        "[komodr]",
        "[[delivery]]",
        "[a.b]",
        "[defaults.details]",
        "[",
        "[]",
        "[ log ] # x",
        '["log"]',
    ]
)
SPACES = st.sampled_from(["", " ", "\t", "  "])
LINES = st.one_of(
    st.builds(
        lambda name, before, value, after: f"{name}{before}={before}{value}{after}",
        NAMES,
        SPACES,
        ANY_VALUES,
        st.sampled_from(["", "", " # why", "\r", " x", "#"]),
    ),
    HEADERS,
    st.sampled_from(["", "# comment", "\ufeff", "\x00", "=", "a", '"', "'''"]),
    st.text(max_size=20),
)


def written(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, dict):
        return "{}"
    return f'"{default}"' if isinstance(default, str) else str(default)


def tables(keys) -> str:
    """A configuration that says what is the default anyway."""
    lines = []
    for section in dict.fromkeys(key.section for key in keys):
        lines.append(f"[{section}]")
        for key in keys:
            if key.section == section:
                value = '"/tmp/x"' if key.kind.default is None else written(key.kind.default)
                lines.append(f"{key.name} = {value}")
    return "\n".join(lines)


GOOD = st.lists(st.sampled_from(KEYS), unique_by=id).map(tables)
# Values of all kinds, each under its own section, so that many get past the names.
NEARLY_GOOD = st.lists(st.tuples(st.sampled_from(KEYS), ANY_VALUES), max_size=4).map(
    lambda pairs: "\n".join(
        "\n".join([f"[{section}]", *(f"{k.name} = {v}" for k, v in pairs if k.section == section)])
        for section in dict.fromkeys(key.section for key, _ in pairs)
    )
)
TEXTS = st.one_of(NEARLY_GOOD, st.lists(LINES, max_size=8).map("\n".join), GOOD)
ANY_BYTES = st.one_of(
    TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.builds(lambda text, byte: text.encode() + bytes([byte]), GOOD, st.integers(0, 255)),
    st.binary(max_size=40),
)


NASTY = [
    *(b"\n", b"=", b"[", b"]", b"{", b"}", b'"', b"'", b"#", b",", b".", b"\r", b"\0", b"\xff"),
    *(b'"""', b"'''", b"\\", b'"\\u0000"', b"\xef\xbb\xbf", b"9" * 5000, b"nan", b"true"),
    *(b"\n[komodor]\n", b"\n[[log]]\n", b"[" * 2000, b"a.a.a.a.a.", b"2026-11-21", b"\xc3\xa9"),
]


def test_any_bytes_are_a_configuration_or_an_error(fuzz, tmp_path):
    path = str(tmp_path / "config.toml")

    def check(data: bytes) -> None:
        Path(path).write_bytes(data)
        for read in (load_client, load):
            try:
                assert isinstance(read(path), Config)
            except ConfigError as error:
                check_refusal(error, path)

    fuzz(ANY_BYTES, check, NASTY)


def test_no_bytes_keep_a_producer_from_its_settings(fuzz, tmp_path):
    path = str(tmp_path / "config.toml")

    def check(data: bytes) -> None:
        Path(path).write_bytes(data)
        found = settings.load(path, {"HOME": "/home/u"})
        assert found.spool.startswith("/")
        assert found.socket.startswith("/")
        assert found.event_bytes_max > 0
        if found.warning is not None:
            assert found.warning.isprintable()
            assert len(found.warning) < 1500

    fuzz(ANY_BYTES, check, NASTY)


def check_refusal(error: ConfigError, path: str) -> None:
    assert path in error.message
    assert str(error).isprintable()
    str(error).encode()
    assert len(str(error)) < 1500


def test_every_configuration_that_says_the_defaults_loads_to_them(fuzz, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("")
    built_in = load(str(path))

    def check(text: str) -> None:
        path.write_text(text)
        config = load(str(path))
        for key in KEYS:
            value = getattr(getattr(config, key.section), key.attribute)
            if key.kind.default is not None:
                assert value == getattr(getattr(built_in, key.section), key.attribute)

    fuzz(GOOD, check)


def test_the_fast_reader_reads_as_tomllib_does_or_not_at_all(fuzz):
    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        plain, is_whole = read_plain(text)
        if is_whole:
            assert plain == tomllib.loads(text)

    fuzz(TEXTS.map(str.encode), check, NASTY)
