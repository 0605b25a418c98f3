"""Builds the `outboxd` of a host: the producers' side as one file that Python runs as it is.

    python -m outboxd.producer.build TARGET [--environment DIR]

TARGET is usually /usr/local/bin/outboxd. `emit` and `exec` run in it, on the
system's own python3 (3.10 or newer) and the standard library alone, whatever
becomes of the rest. Every other command goes on in the full program, in the
virtual environment DIR (default: the one that runs this; name a link such as
/opt/outboxd/current where upgrades change what it points to).

It is written beside TARGET, synced and renamed over it, with mode 0755 whatever
the umask: at each moment there is an old one or a new one, whole. It holds each
module's source, and its code as compiled by the Python that runs this; any
other version compiles the source anew at each start, which is slower and the
same otherwise. So run it with the system's Python, or with a virtual
environment made of it. Never imported by `emit` and `exec`.
"""

from __future__ import annotations

import argparse
import ast
import marshal
import os
import sys
import tempfile
from base64 import b64encode
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import outboxd
from outboxd.disk import sync_directory

# -I: no variable of the environment, no user's or working directory's modules. -S: no `site`,
# whose .pth files and sitecustomize can be anything.
HEAD = """\
#!/usr/bin/python3 -IS
# outboxd {version}: `emit` and `exec`. Every other command is the program's in {environment}.
# Written by `python -m outboxd.producer.build`, to be replaced by a rename.
"""
SOURCE = Path(outboxd.__file__).parent
FIRST = "outboxd.producer.main"
# Packages that import what Python programs alone need, and what is in their place here.
INSTEAD = {"outboxd": f"__version__ = {outboxd.__version__!r}\n", "outboxd.producer": ""}


def build(target: Path, environment: str) -> None:
    """Write the program to `target`, in one step."""
    descriptor, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(program(environment))
            file.flush()
            os.fchmod(file.fileno(), 0o755)
            os.fsync(file.fileno())
        os.rename(beside, target)
    except BaseException:
        os.unlink(beside)
        raise
    sync_directory(str(target.parent))


def program(environment: str) -> str:
    """The program's text."""
    lines = [HEAD.format(version=outboxd.__version__, environment=environment)]
    lines += [(SOURCE / "producer/bundle.py").read_text(), "\nMODULES = {\n"]
    for name, source in sources().items():
        code = compile(source, f"{name.replace('.', '/')}.py", "exec", dont_inherit=True)
        compiled = b64encode(marshal.dumps(code)).decode("ascii")
        lines.append(f"    {name!r}: ({compiled!r}, {source!r}),\n")
    lines += ["}\n", f"start({MAGIC_NUMBER!r}, MODULES, {environment!r})\n"]
    return "".join(lines)


def sources() -> dict[str, str]:
    """What goes in: the name and source of each module that the command line may import."""
    found: dict[str, str] = {}
    wanted = [FIRST]
    while wanted:
        name = wanted.pop()
        path = _path(name)
        if name in found or path is None:
            continue
        found[name] = INSTEAD[name] if name in INSTEAD else path.read_text()
        wanted += [name.rpartition(".")[0], *_imported(found[name])]
    return dict(sorted(found.items()))


def _path(name: str) -> Path | None:
    """A module's file; None for what is no module of ours, but a name in one."""
    place = SOURCE.joinpath(*name.split(".")[1:]) if name.startswith("outboxd") else None
    if place is None:
        return None
    return next(
        (path for path in (place / "__init__.py", place.with_suffix(".py")) if path.exists()), None
    )


def _imported(source: str) -> list[str]:
    """Every name that it may import, also late; a name in a module is tried as one too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Import):
            found += [each.name for each in node.names]
    return found


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
