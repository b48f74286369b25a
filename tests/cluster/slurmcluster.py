"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, in their own folder."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from upfield.distributed.launch import free_port

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "cluster" / "slurm"
DAEMONS = ("munged", "slurmctld", "slurmd")
GPUS = 2  # per node; files stand in for the devices, so that Slurm grants what the scripts request
UNFINISHED = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED")
STOP_S = 30

# Control groups are off, because containers have none. The ports distinguish the two daemons on one machine.
CONFIGURATION = """\
ClusterName=upfield
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
JobRequeue=1
OverTimeLimit=0
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:{gpus}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:{gpus}
PartitionName=main Nodes=node1,node2 Default=YES State=UP
"""


class SlurmCluster:
    """Submits batch scripts and waits for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def ask(self, *command: str, **variables: str) -> str:
        environment = self.environment | variables
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: str, options: list[str], *arguments: object, **variables: str) -> str:
        """Submit a batch script of the repository from its root, and return the number of the job."""
        log = f"--output={self.folder}/%x-%j.log"
        command = ["sbatch", "--parsable", *options, log, str(SCRIPTS / script), *map(str, arguments)]
        return self.ask(*command, **variables).strip()

    def states(self, job: str) -> list[dict[str, str]]:
        """Return the fields of `scontrol show job`, with one dictionary per array task."""
        lines = self.ask("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def finished(self, job: str, timeout_s: float = 400) -> list[dict[str, str]]:
        """Wait until a job and all its restarts have ended, and return its final states."""
        deadline = time.monotonic() + timeout_s
        hastened: set[str] = set()
        while True:
            states = self.states(job)
            if all(state["JobState"] not in UNFINISHED for state in states):
                return states
            assert time.monotonic() < deadline, f"{states}\n{self.log()}"
            waiting = {state["Restarts"] for state in states if state["Reason"] == "BeginTime"}
            if not waiting <= hastened:
                # A requeued job waits for two minutes, but its nodes release it after a few seconds.
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+5")
                hastened |= waiting
            time.sleep(0.5)

    def log(self) -> str:
        """Return the logs of all jobs and daemons."""
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in self.folder.glob("*.log"))

    def log_of(self, job: str) -> str:
        """Return the log of one job."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"*-{job}*.log")))

    def processes(self, *, of_jobs: bool) -> list[int]:
        """Find the processes of this cluster by their environment: of its jobs, or also its daemons."""
        mark, job = f"SLURM_CONF={self.folder}/".encode(), b"SLURM_JOB_ID="
        pids: list[int] = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                environment = entry.read_bytes()
                if mark in environment and (job in environment or not of_jobs):
                    pids.append(int(entry.parent.name))
        return [pid for pid in pids if pid != os.getpid()]

    def processes_left(self) -> list[str]:
        """Return the commands of processes that jobs left behind, some time after their end."""
        deadline = time.monotonic() + STOP_S
        while (left := self.processes(of_jobs=True)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return [Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ") for process in left]


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Start Slurm in a folder with a short name, and stop all of it at the end."""
    if missing := [name for name in DAEMONS if _program(name) is None]:
        raise AssertionError(
            f"missing programs: {', '.join(missing)}. Install them with: apt-get install slurm-wlm munge"
        )
    cluster = SlurmCluster(folder)
    _configure(folder)
    with ExitStack() as leaving:
        leaving.callback(_kill_all, cluster)
        _start(leaving, cluster, "munged", "--foreground", "--force", *_munge_files(folder))
        _wait_for((folder / "munge" / "socket").exists, cluster)
        _start(leaving, cluster, "slurmctld", "-D")
        for node in ("node1", "node2"):
            _start(leaving, cluster, "slurmd", "-D", "-N", node)
        _wait_for(lambda: cluster.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2, cluster)
        leaving.callback(_cancel_jobs, cluster)
        yield cluster


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _configure(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o755)
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    names = {"host": socket.gethostname(), "user": getpass.getuser(), "folder": folder, "gpus": GPUS}
    ports = [free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(ports=ports, **names))
    (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")


def _munge_files(folder: Path) -> list[str]:
    own = folder / "munge"
    files = {"key-file": folder / "munge.key", "socket": own / "socket", "pid-file": own / "pid"}
    files |= {"log-file": own / "log", "seed-file": own / "seed"}
    return [f"--{name}={path}" for name, path in files.items()]


def _start(leaving: ExitStack, cluster: SlurmCluster, name: str, *arguments: str) -> None:
    program = _program(name)
    assert program is not None
    with (cluster.folder / f"{name}.out").open("ab") as out:
        process = subprocess.Popen([program, *arguments], env=cluster.environment, stdout=out, stderr=out)

    def stop() -> None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    leaving.callback(stop)


def _wait_for(ready, cluster: SlurmCluster) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(AssertionError):
            if ready():
                return
        assert time.monotonic() < deadline, cluster.log()
        time.sleep(0.2)


def _cancel_jobs(cluster: SlurmCluster) -> None:
    cluster.ask("scancel", "--user", getpass.getuser())
    deadline = time.monotonic() + STOP_S
    while cluster.ask("squeue", "-h").strip() and time.monotonic() < deadline:
        time.sleep(0.5)


def _kill_all(cluster: SlurmCluster) -> None:
    """Kill what is left, because slurmd's step daemons and Ray leave the process group."""
    for process in cluster.processes(of_jobs=False):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
