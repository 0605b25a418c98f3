"""Builds the `outboxd` of a host: the producers' side as one file that Python runs as it is.

    python -m outboxd.producer.build TARGET [--environment DIR]

TARGET, usually /usr/local/bin/outboxd, becomes a zipapp: `emit` and `exec` run
in it, on the system's own python3 (3.10 or newer) and the standard library
alone, whatever becomes of the rest. Every other command goes on in the full
program, in the virtual environment DIR (default: the one that runs this; name a
link such as /opt/outboxd/current where upgrades change what it points to).

It is written beside TARGET, synced and renamed over it, with mode 0755 whatever
the umask: at each moment there is an old one or a new one. With each module's
source lies its code as compiled by the Python that runs this; any other version
passes over that and compiles the source anew at each start, which is slower and
the same otherwise. So run it with the system's Python, or a virtual environment
made of it. Never imported by `emit` and `exec`.
"""

from __future__ import annotations

import argparse
import io
import os
import py_compile
import sys
import tempfile
import zipfile
from pathlib import Path

import outboxd

# -I: no variable of the environment, no user's or working directory's modules. -S: no `site`,
# whose .pth files and sitecustomize can be anything.
FIRST_LINE = b"#!/usr/bin/python3 -IS\n"
START = """\
import sys

from outboxd.producer.main import main

sys.exit(main({environment!r}))
"""
SOURCE = Path(outboxd.__file__).parent
MODULES = ("__init__", "errors", "locations", "times", "units")
ROOMS = ("event", "producer")
# Of the full program alone.
LEFT_OUT = ("event/scope.py", "producer/build.py", "producer/handler.py")
# The first moment that a zip archive can name: the same source makes the same file.
LONG_AGO = (1980, 1, 1, 0, 0, 0)


def build(target: Path, environment: str) -> None:
    """Write the zipapp to `target`, in one step."""
    descriptor, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(FIRST_LINE + archive(environment))
            file.flush()
            os.fchmod(file.fileno(), 0o755)
            os.fsync(file.fileno())
        os.rename(beside, target)
    except BaseException:
        os.unlink(beside)
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def archive(environment: str) -> bytes:
    """The zip archive's bytes."""
    content = io.BytesIO()
    # Not compressed: to unpack it would cost each start more than to read it.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        _add(file, "__main__.py", START.format(environment=environment).encode())
        for path in sources():
            name = f"outboxd/{path.relative_to(SOURCE)}"
            # Looked for before the source, so it stands before it.
            _add(file, f"{name}c", compiled(path, name))
            _add(file, name, path.read_bytes())
    return content.getvalue()


def sources() -> list[Path]:
    """What goes in."""
    found = [SOURCE / f"{name}.py" for name in MODULES]
    found += [path for room in ROOMS for path in sorted((SOURCE / room).glob("*.py"))]
    return [path for path in found if str(path.relative_to(SOURCE)) not in LEFT_OUT]


def compiled(path: Path, name: str) -> bytes:
    """The module's code for this Python, which needs no look at its source."""
    with tempfile.TemporaryDirectory() as directory:
        code = py_compile.compile(
            str(path),
            cfile=f"{directory}/code",
            dfile=name,
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        assert code is not None
        return Path(code).read_bytes()


def _add(file: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, LONG_AGO)
    entry.external_attr = 0o644 << 16
    file.writestr(entry, data)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m outboxd.producer.build")
    parser.add_argument("target", type=Path, help="the file to write or replace")
    parser.add_argument(
        "--environment",
        default=sys.prefix,
        metavar="DIR",
        help="the virtual environment of the full program (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        build(arguments.target.absolute(), arguments.environment)
    except OSError as error:
        sys.exit(f"{arguments.target} cannot be written: {error.strerror}: {error.filename}")


if __name__ == "__main__":
    main()
