"""``holdfastd``: reads the configuration, runs one daemon, and turns how it ended into an exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import structlog
import uvloop

from cluster.errors import HoldfastError, Invalid
from node import logs, memory
from node.config import Config, from_process
from node.daemon import CONFIGURATION_ERRORS, EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, Daemon


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        config = from_process(sys.argv[1:] if arguments is None else arguments)
    except Invalid as error:
        print(f"holdfastd: {error.message}", file=sys.stderr)  # noqa: T201 - before there is a log
        sys.exit(EXIT_CONFIGURATION)
    memory.set_up()
    logs.set_up(config.log_level, config.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_run(config))
    sys.exit(code)


async def _run(config: Config) -> int:
    log = structlog.get_logger("holdfastd")
    try:
        await Daemon(config).run()
    except CONFIGURATION_ERRORS as error:
        log.error("cannot_start", node=config.name, error=error.message)
        return EXIT_CONFIGURATION
    except OSError as error:
        log.error("cannot_start", node=config.name, error=str(error))
        return EXIT_CONFIGURATION
    except HoldfastError as error:
        log.exception("stopped_by_failure", node=config.name, error=error.message)
        return EXIT_FAILED
    log.info("node_stopped", node=config.name)
    return EXIT_OK
