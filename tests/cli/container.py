"""Run commands as in a bare container: an arbitrary user without a home folder, a read-only root, and no network.

User namespaces do this without a container engine.
"""

import subprocess
import sys
from pathlib import Path

USER = "12345"  # has no entry in passwd
# Runs as root of new namespaces: makes all mounts read-only, switches the loopback device on, and becomes the user.
PREPARE = """
import fcntl, os, socket, struct, subprocess, sys
user, writable, *command = sys.argv[1:]
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "--bind", writable, writable], check=True)
places = [line.split()[4] for line in open("/proc/self/mountinfo")]
for place in places:
    if place != writable and not place.startswith(("/proc", "/dev", "/sys", writable + "/")):
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
with socket.socket() as device:
    fcntl.ioctl(device, 0x8914, struct.pack("16sH14s", b"lo", 1, b""))
os.chdir(writable)
os.execvp("unshare", ["unshare", "--user", f"--map-user={user}", f"--map-group={user}", *command])
"""


def bare(writable: Path, command: list[str], **variables: str) -> list[str]:
    """Return a command line that runs `command` in a container in which only the folder `writable` can be written."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    names = [f"{name}={value}" for name, value in ({"PATH": path, "OMP_NUM_THREADS": "1"} | variables).items()]
    start = ["unshare", "--user", "--map-root-user", "--mount", "--net", sys.executable, "-c", PREPARE]
    return [*start, USER, str(writable), "env", "-i", *names, *command]


def why_not(writable: Path) -> str:
    """Return the reason why this machine cannot run such containers, or an empty string if it can."""
    if not sys.platform.startswith("linux"):
        return "namespaces need Linux"
    try:
        done = subprocess.run(bare(writable, ["true"]), capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return "unshare is not installed"
    return "" if done.returncode == 0 else f"no user namespaces here: {done.stderr.strip().splitlines()[-1:]}"
