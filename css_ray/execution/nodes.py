"""Looks at each node of a Ray cluster: what runs there, what it reaches, and how fast the nodes talk with each other."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from css_ray.messages import last_line
from css_ray.secrets import shown
from css_ray.storage import below, is_url
from css_ray.study.code import code_version

_log = logging.getLogger(__name__)

PACKAGES = ("ray", "torch", "torchvision", "timm", "pyarrow")
"""Whose versions must be the same on all nodes: they decide what is trained, or which messages the nodes exchange."""

MAX_SKEW_SECONDS = 5.0
"""By how much the clocks of two nodes may differ: the times in a journal, from which hours are counted, are of all nodes."""

NODE_SECONDS = 120.0
"""How long a node may take to answer: its first process imports torch."""

QUICK_SECONDS = 30.0
"""How long a study waits for a node to report which code it has; nothing is imported there but css-ray."""

MEGABYTES = 64
"""What the all-reduce of two nodes adds up, a tenth of a large network's gradients."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it answered. clock: how far it is ahead of this process's, in seconds, and how exactly that is known.

    code: version and hash of its css-ray (`code_version`), or what went wrong if it could not be imported.
    """

    id: str
    host: str
    address: str
    cpus: float
    gpus: tuple[str, ...]
    python: str
    code: str
    versions: Mapping[str, str]
    clock: tuple[float, float]


@dataclass(slots=True)
class Report:
    """What `check_cluster` found. problems: each with its fix. bandwidth: of pairs of nodes' addresses, in GB/s."""

    nodes: list[Node] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    bandwidth: dict[tuple[str, str], float] = field(default_factory=dict)


def check_cluster(*, storage: str | None = None, tracking_uri: str | None = None) -> Report:
    """Check the cluster that this process has joined: see `css-ray cluster check`.

    storage: a folder that every node should see, or a URL; each node writes a file there and reads those of all others.
    tracking_uri: of an MLflow server that every node should reach.
    """
    report = Report()
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    alive.sort(key=lambda node: str(node["NodeManagerAddress"]))
    for node in alive:
        try:
            report.nodes.append(_node(node))
        except Exception as error:
            report.problems.append(
                f"node {_named(node)} does not answer ({_short(error)}); look at its Ray logs, or end and start Ray there"
            )
    _compare(report)
    ids = {node.id: node.address for node in report.nodes}
    if storage is not None:
        _check_storage(report, ids, storage)
    if tracking_uri is not None and tracking_uri.startswith(("http://", "https://")):
        _check_mlflow(report, ids, tracking_uri)
    for first, second in zip(report.nodes, report.nodes[1:], strict=False):
        _check_pair(report, first, second)
    return report


def check_code() -> None:
    """Raise RuntimeError with each node of the joined cluster that runs another css-ray than this process.

    A node that does not answer, perhaps since it is being lost, is skipped: each worker checks again when it starts.
    """
    here, problems = code_version(), []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        try:
            there = _code_there(node["NodeID"], timeout=QUICK_SECONDS)
        except Exception as error:
            _log.warning("node %s did not report which css-ray it has (%s)", _named(node), _short(error))
            continue
        if there != here:
            problems.append(f"node {_named(node)} has {there}")
    if problems:
        raise RuntimeError(
            f"this is css-ray {here}, but {'; '.join(problems)}. All nodes must run the same: install it there "
            "(pip install -c constraints.txt .), or send it along with css-ray study submit"
        )


def _code_there(node: str, timeout: float) -> str:
    """The `code_version` of a node, or what it has instead."""

    def ask() -> str:
        try:
            from css_ray.study.code import code_version as version
        except Exception as error:
            return f"no css-ray like this one ({type(error).__name__}: {error})"
        return version()

    answer: str = ray.get(_on(node, ask).remote(), timeout=timeout)
    return answer


def _node(node: Mapping[str, Any]) -> Node:
    packages = PACKAGES

    def look() -> dict[str, Any]:
        import importlib.metadata
        import platform
        import socket

        versions = {}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "missing"
        try:
            import torch

            gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        except Exception:
            gpus = []
        return {"host": socket.gethostname(), "python": platform.python_version(), "versions": versions, "gpus": gpus}

    def clock() -> float:
        import time

        return time.time()

    found = ray.get(_on(node["NodeID"], look).remote(), timeout=NODE_SECONDS)
    offsets = []
    for _ in range(3):
        before = time.time()
        there = ray.get(_on(node["NodeID"], clock).remote(), timeout=NODE_SECONDS)
        after = time.time()
        offsets.append(((after - before) / 2, there - (before + after) / 2))
    exactly, ahead = min(offsets)  # of the quickest answer
    resources = node["Resources"]
    # Ray gives a task without GPUs none to see: their number is Ray's, their names are those that torch sees.
    names = tuple(found["gpus"]) or ("GPU",) * int(resources.get("GPU", 0))
    return Node(
        id=node["NodeID"],
        host=found["host"],
        address=node["NodeManagerAddress"],
        cpus=resources.get("CPU", 0.0),
        gpus=names,
        python=found["python"],
        code=_code_there(node["NodeID"], NODE_SECONDS),
        versions=found["versions"],
        clock=(ahead, exactly),
    )


def _compare(report: Report) -> None:
    """What differs between the nodes, and should not."""
    here = code_version()
    other = [f"{node.address} has {node.code}" for node in report.nodes if node.code != here]
    if other:
        report.problems.append(
            f"css-ray: this is {here}, but {'; '.join(other)}; install the same there (pip install -c constraints.txt .), "
            "or use css-ray study submit, which sends it along"
        )
    else:
        report.passed.append(f"css-ray {here} on all nodes")
    shown_versions = []
    of = {name: {node.address: node.versions[name] for node in report.nodes} for name in PACKAGES}
    of["python"] = {node.address: node.python for node in report.nodes}
    for name, versions in of.items():
        if len(set(versions.values())) > 1 or "missing" in versions.values():
            usual = Counter(versions.values()).most_common(1)[0][0]
            odd = ", ".join(f"{version} on {address}" for address, version in versions.items() if version != usual)
            report.problems.append(f"{name}: {usual} on most nodes, {odd or 'on all'}; install from one constraints.txt")
        elif versions:
            shown_versions.append(f"{name} {next(iter(versions.values()))}")
    if shown_versions:
        report.passed.append(", ".join(shown_versions) + " on all nodes")
    skewed = {node.address: ahead for node in report.nodes if abs(ahead := node.clock[0]) > MAX_SKEW_SECONDS + node.clock[1]}
    if skewed:
        report.problems += [
            f"clock: {address} is {abs(ahead):.1f} s off this machine's, at most {MAX_SKEW_SECONDS:g} s are good; "
            "run chrony or systemd-timesyncd on all nodes"
            for address, ahead in skewed.items()
        ]
    elif report.nodes:
        widest = max(abs(node.clock[0]) + node.clock[1] for node in report.nodes)
        report.passed.append(f"clocks within {widest:.2f} s of this machine's")


def _check_storage(report: Report, ids: Mapping[str, str], storage: str) -> None:
    """Each node writes a file, then each reads those of all: a folder that is local to each node would pass the first alone."""
    absolute = storage if is_url(storage) else str(Path(storage).absolute())
    place = below(absolute, f"css-ray-check-{uuid.uuid4().hex[:8]}")

    def write(name: str) -> None:
        from css_ray.storage import locate

        filesystem, root = locate(place)
        filesystem.create_dir(root, recursive=True)
        with filesystem.open_output_stream(f"{root}/{name}") as file:
            file.write(name.encode())

    def read(names: list[str]) -> list[str]:
        from css_ray.storage import locate

        filesystem, root = locate(place)
        missing = []
        for name in names:
            try:
                with filesystem.open_input_stream(f"{root}/{name}") as file:
                    if file.read() != name.encode():
                        missing.append(name)
            except OSError:
                missing.append(name)
        return missing

    def remove() -> None:
        from css_ray.storage import locate

        filesystem, root = locate(place)
        filesystem.delete_dir(root)

    wrote = _everywhere(ids, write, lambda node: (node,))
    for node, error in _errors(wrote):
        report.problems.append(f"storage: {ids[node]} cannot write to {shown(storage)} ({error}); mount it there, or let it in")
    writers = [node for node, answer in wrote.items() if not isinstance(answer, Exception)]
    unseen = _everywhere({node: ids[node] for node in writers}, read, lambda node: (writers,))
    for node, missing in unseen.items():
        if isinstance(missing, Exception):
            report.problems.append(f"storage: {ids[node]} cannot read {shown(storage)} ({_short(missing)}); let it read there")
        elif missing:
            others = ", ".join(ids[each] for each in missing)
            report.problems.append(
                f"storage: {ids[node]} does not see what {others} wrote to {shown(storage)}; mount one shared disk on all nodes"
            )
    if writers and all(missing == [] for missing in unseen.values()) and len(writers) == len(ids):
        report.passed.append(f"storage {shown(storage)}: each node writes, and reads what the others wrote")
    for node in writers:  # if each has its own folder, each removes its own
        with contextlib.suppress(Exception):
            ray.get(_on(node, remove).remote(), timeout=NODE_SECONDS)


def _check_mlflow(report: Report, ids: Mapping[str, str], tracking_uri: str) -> None:
    bare = shown(tracking_uri).rstrip("/")  # no password goes to the nodes: a driver alone writes to MLflow

    def ask() -> int:
        import urllib.error
        import urllib.request

        # Not /health: MLflow answers that under any host name, and to anybody.
        request = urllib.request.Request(f"{bare}/")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    answers = _everywhere(ids, ask, lambda node: ())
    for node, answer in answers.items():
        if isinstance(answer, Exception):
            report.problems.append(
                f"mlflow: {ids[node]} does not reach {bare} ({_short(answer)}); is the server up, bound to an "
                "address that this node reaches, and the port open between the nodes?"
            )
        elif answer == 403:
            report.problems.append(
                f"mlflow: the server at {bare} refuses {ids[node]} (403); start it with --allowed-hosts and the name in "
                "that address"
            )
        elif answer not in (200, 401):
            report.problems.append(f"mlflow: the server at {bare} answers {ids[node]} with {answer}, not 200 or 401")
    if not answers or any(answer not in (200, 401) for answer in answers.values()):
        return
    if 401 not in answers.values():
        report.passed.append(f"mlflow at {bare} answers each node, and asks for no password")
        return
    from css_ray.tracking import check

    try:
        check(tracking_uri)  # from here, where drivers run
    except ConnectionError as error:
        report.problems.append(f"mlflow: {error}")
    else:
        report.passed.append(f"mlflow at {bare} answers each node, and takes the password")


def _check_pair(report: Report, first: Node, second: Node) -> None:
    """An all-reduce over two nodes, by NCCL if both have GPUs."""
    backend = "nccl" if first.gpus and second.gpus else "gloo"
    needs: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1 if backend == "nccl" else 0}
    size, own = MEGABYTES * 2**20 // 4, first.address

    def free_address() -> str:
        import socket

        with socket.socket() as opened:
            opened.bind(("", 0))
            return f"{own}:{opened.getsockname()[1]}"

    def reduce(rank: int, address: str) -> float:
        import datetime
        import statistics
        import time

        import torch
        import torch.distributed as dist

        limit = datetime.timedelta(seconds=60)
        dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=2, timeout=limit)
        try:
            device = "cuda" if backend == "nccl" else "cpu"
            times = []
            for _ in range(5):
                values = torch.ones(size, device=device)
                dist.barrier()
                started = time.perf_counter()
                dist.all_reduce(values)
                total = float(values[-1])  # waits for a GPU
                times.append(time.perf_counter() - started)
                if total != 2:
                    raise RuntimeError(f"all-reduce returned {total:g}, expected 2")
            return statistics.median(times[1:])
        finally:
            dist.destroy_process_group()

    try:
        address = ray.get(_on(first.id, free_address).remote(), timeout=NODE_SECONDS)
        tasks = [_on(node.id, reduce, **needs).remote(rank, address) for rank, node in enumerate((first, second))]
        seconds = statistics.mean(ray.get(tasks, timeout=NODE_SECONDS))
    except Exception as error:
        report.problems.append(
            f"{backend}: {first.address} and {second.address} cannot add up tensors together ({_short(error)}); open all ports "
            f"between the nodes, and name their network card if there are several ({backend.upper()}_SOCKET_IFNAME)"
        )
        return
    # Of two ranks each sends and receives the whole once.
    report.bandwidth[first.address, second.address] = size * 4 / seconds / 1e9


def _everywhere(ids: Mapping[str, str], function: Callable[..., Any], of: Callable[[str], Sequence[Any]]) -> dict[str, Any]:
    """What `function(*of(node))` returns on each node, or the exception."""
    answers = {node: _on(node, function).remote(*of(node)) for node in ids}
    found: dict[str, Any] = {}
    for node, answer in answers.items():
        try:
            found[node] = ray.get(answer, timeout=NODE_SECONDS)
        except Exception as error:
            found[node] = error
    return found


def _errors(answers: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(node, _short(answer)) for node, answer in answers.items() if isinstance(answer, Exception)]


def _on(node: str, function: Callable[..., Any], *, num_cpus: float = 0, num_gpus: float = 0) -> Any:
    """`function` as a task for that node alone, once.

    Functions defined inside others are sent as they are here, not looked up in what the node has installed: nodes that differ
    are what is looked for.
    """
    options = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "max_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
    return ray.remote(function).options(**options)


def _named(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})"


def _short(error: Exception) -> str:
    """The last line of an error, without the advice of Ray's."""
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"no answer in {NODE_SECONDS:g} s"
    return last_line(error, 300)
