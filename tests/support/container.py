"""A whole Debian, booted in a container: systemd, its units, several users, no network.

debootstrap makes the tree once and keeps it packed in the cache directory; each
container gets a copy of its own. Wheels for the installer are made outside, since
inside there is no network.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from support.waiting import PATIENCE_S

PROJECT = Path(__file__).parents[2]
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,python3-pip,acl,cron"
SYSTEM_PYTHON = "/usr/bin/python3"  # that of the tree too: it is of the host's release
BOOT_S = 300.0
ENTER = ("nsenter", "-m", "-u", "-i", "-n", "-p", "-C")  # all of its namespaces
ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/mnt/wheels",
}


def missing() -> str | None:
    """Why no container can be had here; None where one can."""
    if os.geteuid() != 0:
        return "needs root, to boot a container"
    for tool in ("debootstrap", "systemd-nspawn", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (debootstrap, systemd-container, util-linux)"
    if platform.freedesktop_os_release().get("ID") != "debian":
        return "the host is no Debian, whose release the container has"
    return None


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = Path(base) / "outboxd-tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def packed_tree() -> Path:
    """The tree as debootstrap makes it, made once."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    packed = cache() / f"{release}.tar"
    if not packed.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as work:
            tree = Path(work) / "tree"
            _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, tree)
            _run("tar", "-C", tree, "-cf", f"{packed}.new", ".")
        os.rename(f"{packed}.new", packed)
    return packed


def wheels(directory: Path) -> Path:
    """All that the installer asks of a registry, made with the Python of the tree."""
    environment = directory / "environment"
    _run(SYSTEM_PYTHON, "-m", "venv", environment)
    house = directory / "wheels"
    pip = environment / "bin/pip"
    _run(pip, "wheel", "--quiet", "-w", house, PROJECT, "hatchling", "pip")
    shutil.rmtree(environment)
    for own in house.glob("outboxd-*.whl"):
        own.unlink()  # that is the installer's to make
    return house


class Container:
    """One booted system; `sh` runs lines in it as root."""

    def __init__(self, directory: Path, house: Path) -> None:
        self.tree = directory / "tree"
        self.tree.mkdir()
        _run("tar", "-C", self.tree, "-xf", packed_tree())
        copy = self.tree / "root/outboxd"
        ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache")
        shutil.copytree(PROJECT, copy, ignore=ignored)
        self._house = house
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = ""

    def boot(self) -> None:
        with open(self.tree.parent / "console", "ab") as console:
            self._process = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "-D", str(self.tree), "--boot"),
                    *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
                    *(f"--machine=outboxd-{os.getpid()}", f"--bind-ro={self._house}:/mnt/wheels"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        ends_at_s = time.monotonic() + BOOT_S
        while time.monotonic() < ends_at_s:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            self._leader = children.read_text().split(" ")[0].strip()
            if self._leader:
                state = self.sh("systemctl is-system-running --wait", check=False).strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.2)
        raise AssertionError((self.tree.parent / "console").read_text()[-3000:])

    def sh(self, script: str, *, check: bool = True, timeout_s: float = 600) -> str:
        """Run shell lines; what they print on both streams."""
        done = subprocess.run(
            [*ENTER, "-t", self._leader, "bash", "-c", script],
            env=ENVIRON,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )  # fmt: skip
        told = done.stdout.decode(errors="replace")
        assert not check or done.returncode == 0, f"{script}: {done.returncode}\n{told}"
        return told

    def code(self, script: str) -> int:
        """The exit status of shell lines."""
        return int(self.sh(f"{script} >/dev/null 2>&1; echo $?", check=False).split()[-1])

    def power_off(self) -> None:
        """As a person does; the tree stays."""
        if self._process is not None:
            self.sh("systemctl poweroff", check=False)
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(PATIENCE_S)
            self._process = None

    def reboot(self) -> None:
        self.power_off()
        self.boot()


def _run(*command: object) -> None:
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
