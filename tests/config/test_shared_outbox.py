"""The settings of an outbox that gateways share: what goes with them and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from outboxd.config.database_password import read_database_password
from outboxd.config.load import load
from outboxd.config.sections import Config
from outboxd.errors import EX_CONFIG, ConfigError
from outboxd.producer import settings
from outboxd.producer.spool import NotStored, put

URL = "postgresql://outboxd@db1,db2/outboxd?sslmode=verify-full"


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str) -> Config:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load(str(path), {"HOME": str(tmp_path)})

    return read


def test_a_url_stands_in_for_path_and_spool(read):
    config = read(f'[outbox]\nurl = "{URL}"\n')
    assert (config.outbox.place, config.outbox.path, config.intake.spool) == (URL, "", "")
    assert (config.outbox.durability, config.delivery.lease_s) == ("replicated", 15.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[outbox]\nurl = "{URL}"\npath = "/x/outbox.db"', "path does not go with"),
        (f'[outbox]\nurl = "{URL}"\n[intake]\nspool = "/x"', "spool does not go with"),
        ('[outbox]\nurl = "mysql://x/y"', "it is no postgresql:// URL"),
        ('[outbox]\nurl = "postgresql://a:hidden@db/x"', "put the password into password_file"),
        ('[outbox]\nurl = "postgresql://db/x?password=hidden"', "password_file"),
        ('[outbox]\npassword_file = "p"', "there is no [outbox] url"),
        (f'[outbox]\nurl = "{URL}"\ndurability = "none"', '"replicated", "local"'),
        ('[delivery]\nlease = "10ms"', "at least 1 s"),
    ],
)
def test_what_cannot_be_is_refused_and_no_password_is_told(read, text, said):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert said in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert caught.value.exit_code == EX_CONFIG


def test_the_password_is_a_files_or_the_credentials(read, tmp_path):
    config = read(f'[outbox]\nurl = "{URL}"\n')
    assert read_database_password(config, {}) is None
    (tmp_path / "outbox-password").write_text("\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_database_password(config, environ) is None
    (tmp_path / "outbox-password").write_text("of systemd\n")
    assert read_database_password(config, environ) == "of systemd"
    config = read(f'[outbox]\nurl = "{URL}"\npassword_file = "word"\n')
    with pytest.raises(ConfigError, match="cannot be read"):
        read_database_password(config, environ)
    (tmp_path / "word").write_text("of the file\n")
    assert read_database_password(config, environ) == "of the file"


def test_a_producer_is_told_that_there_is_no_spool(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(f'[outbox]\nurl = "{URL}"\n')
    place = settings.load(str(path), {"HOME": str(tmp_path)})
    assert place.spool == ""
    with pytest.raises(NotStored, match="has no spool"):
        put(place.spool, b"{}")
