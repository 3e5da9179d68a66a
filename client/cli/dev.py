"""`holdfast dev`: a cluster on this machine for trying things out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from client.cli.exit_codes import EPILOG
from client.cli.options import Json
from client.cli.output import print_json, print_lines, print_table
from client.cli.session import fail
from client.dev import control
from client.dev.cluster_file import ClusterFile, read_cluster_file
from client.dev.daemon import find_daemon
from client.dev.directory import empty, locked, prepare_directory
from client.dev.plan import DEFAULT_NODES, DEFAULT_PORT_BASE, plan_nodes
from client.errors import HoldfastError, Invalid, NotFound, Unavailable

Result = TypeVar("Result")

DATA_VARIABLE = "HOLDFAST_DEV_DATA"
DEFAULT_DATA = Path("holdfast-data")

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    epilog=EPILOG,
)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help=f"The cluster's directory (default ${DATA_VARIABLE}, or ./{DEFAULT_DATA}).",
        show_default=False,
    ),
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's name, such as n3.", show_default=False)]


@dataclass(frozen=True, slots=True)
class _Shared:
    """What `holdfast dev --data DIR COMMAND` says for COMMAND."""

    data: Path | None


def _directory(context: typer.Context, data: Path | None) -> Path:
    shared = context.obj.data if isinstance(context.obj, _Shared) else None
    return Path(os.path.abspath(data or shared or os.environ.get(DATA_VARIABLE) or DEFAULT_DATA))


def _guarded(work: Callable[[], Result], *, as_json: bool) -> Result:
    try:
        return work()
    except HoldfastError as error:
        fail(error, as_json=as_json)


@app.callback(invoke_without_command=True, epilog=EPILOG)
def run_cluster(
    context: typer.Context,
    nodes: Annotated[
        int | None,
        typer.Option(
            "--nodes",
            min=1,
            metavar="N",
            help=f"How many nodes (default {DEFAULT_NODES}, or those that DIR has).",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    port_base: Annotated[
        int | None,
        typer.Option(
            "--port-base",
            metavar="PORT",
            help=f"The first API port (default {DEFAULT_PORT_BASE}); node i from 0 has PORT+10i, its peers use PORT+10i+2.",
            show_default=False,
        ),
    ] = None,
    replication: Annotated[
        int | None,
        typer.Option("--replication", min=1, metavar="N", help="Copies of everything (default 3).", show_default=False),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="How much the nodes log.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a cluster on this machine, each node its own process, until Ctrl-C or SIGTERM.

    Everything lives in DIR: data, logs, the cluster's secret and cluster.json, which names each node's addresses and process.
    Started again on the same DIR, the cluster comes back with its data; with more --nodes, new ones join it. A node that
    dies stays dead until `holdfast dev start NODE`.

    \b
    Examples:
      holdfast dev --nodes 5 --data ./holdfast-data
      holdfast dev kill n3 --data ./holdfast-data
      holdfast dev start n3 --data ./holdfast-data
    """
    if context.invoked_subcommand is not None:
        context.obj = _Shared(data)
        return
    extra = [] if replication is None else ["--replication", str(replication)]
    extra += [] if log_level is None else ["--log-level", log_level]
    directory = _directory(context, data)
    _guarded(lambda: _run(directory, nodes, port_base, extra, as_json=as_json), as_json=as_json)


def _run(directory: Path, count: int | None, port_base: int | None, extra: list[str], *, as_json: bool) -> None:
    from client.dev.supervisor import Supervisor

    daemon = find_daemon()
    prepare_directory(directory)
    with locked(directory):
        previous = read_cluster_file(directory)
        known = 0 if previous is None else len(previous.nodes)
        count = count or known or DEFAULT_NODES
        if count < known:
            raise Invalid(
                f"{directory} has {known} nodes, and leaving some out would leave their data out; start it with "
                f"--nodes {known} (or without --nodes), or choose another --data for a new cluster of {count}"
            )
        base = port_base or (DEFAULT_PORT_BASE if previous is None else previous.port_base)
        plans = plan_nodes(count, base)
        stream = sys.stderr if as_json else sys.stdout

        def announce(text: str) -> None:
            try:
                stream.write(f"{text}\n")
                stream.flush()
            except BrokenPipeError:
                pass  # whoever read our words has gone; the cluster does not depend on them

        async def work() -> None:
            supervisor = Supervisor(
                directory,
                plans,
                previous=previous,
                port_base=base,
                daemon=daemon,
                announce=announce,
                extra_arguments=extra,
            )
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    loop.add_signal_handler(number, supervisor.stop)

            def on_ready() -> None:
                if as_json:
                    sys.stdout.write(json.dumps(supervisor.cluster.to_json()) + "\n")
                    sys.stdout.flush()
                else:
                    announce(_welcome(directory, supervisor.cluster))

            await supervisor.run(on_ready)

        announce(f"starting {count} node{'s' if count > 1 else ''} in {directory}")
        asyncio.run(work())
        announce("all nodes have stopped")


def _welcome(directory: Path, cluster: ClusterFile) -> str:
    """Where to go next, with commands that work when pasted into another shell in the present directory."""
    command, where = _invocation(), _short(directory)
    first, last = cluster.nodes[0], cluster.nodes[-1]
    endpoints = ",".join(f"http://{node.api}" for node in cluster.nodes)
    addresses = "".join(f"  {node.name}  http://{node.api}\n" for node in cluster.nodes)
    lines = [f"  curl -T FILE http://{first.api}/v1/volumes/v/data        # store"]
    if first != last:
        lines += [
            f"  {command} dev kill {first.name} --data {where}",
            f"  curl http://{last.api}/v1/volumes/v/data -o COPY         # the same bytes, from another node",
            f"  {command} dev start {first.name} --data {where}",
        ]
    lines += ["", f"  export HOLDFAST_ENDPOINTS={endpoints}", f"  {command} status"]
    return (
        f"\nthe cluster is ready; every node answers for all of it:\n{addresses}\n"
        "try, in another shell:\n" + "\n".join(lines) + "\n\nCtrl-C stops all nodes; their data stays.\n"
    )


def _invocation() -> str:
    program = Path(sys.argv[0]).absolute()
    return _short(program) if program.name == "holdfast" and program.exists() else "holdfast"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@app.command(epilog=EPILOG)
def start(context: typer.Context, node: Node, data: Data = None, as_json: Json = False) -> None:
    """Start a node that is down, and wait until it is ready.

    \b
    Example:
      holdfast dev start n3 --data ./holdfast-data
    """
    answer = _ask(context, data, "start", node, as_json=as_json)
    _print(answer, f"{node} is ready, as process {answer.get('pid')}", as_json=as_json)


@app.command(epilog=EPILOG)
def kill(context: typer.Context, node: Node, data: Data = None, as_json: Json = False) -> None:
    """Kill a node at once (SIGKILL), as a power cut would.

    \b
    Example:
      holdfast dev kill n3 --data ./holdfast-data
    """
    answer = _ask(context, data, "kill", node, as_json=as_json)
    _print(answer, f"{node} {'was killed' if answer.get('was_running') else 'was not running'}", as_json=as_json)


@app.command(epilog=EPILOG)
def wipe(context: typer.Context, node: Node, data: Data = None, as_json: Json = False) -> None:
    """Stop a node and empty its data directory, as a replaced disk would. It stays down until it is started.

    \b
    Example:
      holdfast dev wipe n3 --data ./holdfast-data
    """
    directory = _directory(context, data)

    def work() -> dict[str, Any]:
        try:
            return control.ask(directory, "wipe", node)
        except Unavailable:
            cluster = _read(directory)
            entry = next((entry for entry in cluster.nodes if entry.name == node), None)
            if entry is None:
                raise NotFound(f"there is no node {node!r} in {directory}") from None
            with locked(directory):  # nobody runs the cluster, so nobody uses the node's files
                empty(directory / entry.name)
            return {"node": node, "was_running": False, "pid": None, "emptied": str(directory / entry.name)}

    answer = _guarded(work, as_json=as_json)
    _print(answer, f"{node} is stopped and empty: {answer.get('emptied')}", as_json=as_json)


@app.command(epilog=EPILOG)
def stop(
    context: typer.Context,
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="A node; without one, the whole cluster.", show_default=False)
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Stop a node, or the whole cluster, in good order (SIGTERM).

    \b
    Examples:
      holdfast dev stop n3 --data ./holdfast-data
      holdfast dev stop --data ./holdfast-data
    """
    answer = _ask(context, data, "stop", node, as_json=as_json)
    happened = "was stopped" if answer.get("was_running") else "was not running"
    _print(answer, "the cluster is being stopped" if node is None else f"{node} {happened}", as_json=as_json)


@app.command(epilog=EPILOG)
def show(context: typer.Context, data: Data = None, as_json: Json = False) -> None:
    """Show the nodes of a local cluster: process, addresses, data and log.

    \b
    Example:
      holdfast dev show --data ./holdfast-data
    """
    directory = _directory(context, data)

    def work() -> dict[str, Any]:
        try:
            return control.ask(directory, "show", None)
        except Unavailable:
            return _read(directory).with_pids({}, None).to_json()  # what a killed runner left in the file is stale

    document = _guarded(work, as_json=as_json)
    if as_json:
        print_json(document)
    else:
        columns = ("name", "pid", "api", "peer", "data", "log")
        rows = [
            ["-" if node[column] is None else str(node[column]) for column in columns] for node in document["nodes"]
        ]
        print_table(["NODE", "PID", "API", "PEER", "DATA", "LOG"], rows)


def _read(directory: Path) -> ClusterFile:
    cluster = read_cluster_file(directory)
    if cluster is None:
        raise NotFound(f"there is no cluster in {directory}; make one with `holdfast dev --data {directory}`")
    return cluster


def _ask(context: typer.Context, data: Path | None, do: str, node: str | None, *, as_json: bool) -> dict[str, Any]:
    directory = _directory(context, data)
    return _guarded(lambda: control.ask(directory, do, node), as_json=as_json)


def _print(answer: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        print_lines(text)
