"""The start of the `outboxd` of a host, which has its modules in itself.

`build.py` writes this file's text into the program, with the modules as data
behind it, and then the call of `start`. One file that Python reads once: a
zipapp reads itself again for each module, by its path, and a job that starts
while an upgrade replaces it would find the wrong bytes there.
"""

from __future__ import annotations

import sys

# The interpreter's own, which are there before any module is imported.
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER
from binascii import a2b_base64
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType


class Bundle:
    """Finds and loads the program's own modules, of which no other place is asked.

    `modules` holds of each its compiled code in base 64 and its source. The code
    is for the Python that has `magic` as its MAGIC_NUMBER; any other compiles the
    source.
    """

    def __init__(self, magic: bytes, modules: dict[str, tuple[str, str]]) -> None:
        self._is_compiled = magic == MAGIC_NUMBER
        self._modules = modules

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name not in self._modules:
            return None
        is_package = any(other.startswith(f"{name}.") for other in self._modules)
        return ModuleSpec(name, self, origin=sys.argv[0], is_package=is_package)  # type: ignore[arg-type]

    def create_module(self, spec: object) -> None:
        """The usual one."""

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code(module.__name__), module.__dict__)

    def _code(self, name: str) -> CodeType:
        compiled, source = self._modules[name]
        if self._is_compiled:
            code: CodeType = loads(a2b_base64(compiled))
            return code
        return compile(source, f"{name.replace('.', '/')}.py", "exec")


def start(magic: bytes, modules: dict[str, tuple[str, str]], environment: str) -> None:
    """Run the command line."""
    sys.meta_path.insert(0, Bundle(magic, modules))  # type: ignore[arg-type]
    from outboxd.producer.main import main

    sys.exit(main(environment))
