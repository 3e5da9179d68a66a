"""All scenarios by name, those of whole nodes and those of the register protocol alone (`registers/...`), and how to run one."""

from __future__ import annotations

from tests.simulation.result import BrokenError, Result
from tests.simulation.run import WHOLE, Cut
from tests.simulation.run import simulate as simulate_whole
from tests.simulation.scenario import SCENARIOS
from tests.simulation.trace import Line
from tests.support.simulated import scenario as register_scenario
from tests.support.simulated.faults import FAULTS
from tests.support.simulated.plans import PLANS

REGISTERS = "registers/"

REGISTER_PLANS = {REGISTERS + name.replace(" ", "-"): plan for name, plan in PLANS.items()}

NAMES = [*SCENARIOS, *REGISTER_PLANS]

ENDS = ("ok", "no", "unknown", "died")
"""Of the register simulation's counts, those of operations; the others are of trouble."""

ANSWERED_AT_LEAST = 20
"""So many of a register plan's operations go well before all trouble is over, whatever happens."""


def run(name: str, seed: int, cut: Cut = WHOLE) -> Result:
    """Never raises for what goes wrong inside. A register plan can't be cut."""
    return run_registers(name, seed) if name in REGISTER_PLANS else simulate_whole(name, seed, cut=cut)


def run_registers(name: str, seed: int, fault: str = "") -> Result:
    """``fault``: one of `tests.support.simulated.faults`."""
    result = Result(name, seed)
    try:
        found = register_scenario.simulate(seed, REGISTER_PLANS[name], FAULTS[fault] if fault else None)
        bad = found.bad
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        result.broken = BrokenError("nothing fails otherwise than it may", f"{type(error).__name__}: {error}")
        return result
    result.virtual_s = found.virtual_s
    for what, count in found.counts.items():
        if what in ENDS:
            result.operations[f"register {what}"] += count
        else:
            result.troubles[what] += count
    if found.answered_in_trouble < ANSWERED_AT_LEAST:
        result.broken = BrokenError(
            "users are answered", f"{found.answered_in_trouble} times before all trouble was over"
        )
    if bad:
        key = bad[0]
        history = sorted(found.histories[key], key=lambda operation: operation.call)
        result.trace = [Line(operation.call, str(operation)) for operation in history]
        result.broken = BrokenError(
            "registers are linearizable", f"no order explains what was seen of {key.partition!r}/{key.sort!r}"
        )
    return result
