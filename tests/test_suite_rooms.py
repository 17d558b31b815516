"""The suite's rooms: each floor imports lower ones alone; scripts stand on top."""

from __future__ import annotations

import subprocess
import sys

from tests.support.imports import circle, imports, modules, too_long

FLOORS = (
    ("snopt",),
    ("tasks.common",),
    ("tasks.data",),
    ("tasks.models",),
    ("tasks",),  # the kinds of task
    ("tasks.engine.config",),
    ("tasks.engine.optimizers", "tasks.engine.records"),
    ("tasks.engine.training",),
    ("tasks.engine.experiment",),
    ("tasks.engine.cli", "tasks.engine.report"),
    ("scripts",),
)
"""Rooms from the ground up; those of one floor do not know each other."""

KNOWN = modules("snopt", "tasks", "scripts")
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    """The innermost room that a module stands in; what runs the tasks has no other."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in FLOOR:
            return name
    raise AssertionError(module)


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle(imports(KNOWN)) == []


def test_no_room_imports_one_above_or_beside_it() -> None:
    upwards = {
        f"{name} imports {other}"
        for name, others in imports(KNOWN).items()
        for other in others
        if room(name) != room(other) and FLOOR[room(other)] >= FLOOR[room(name)]
    }
    assert not upwards


def test_all_of_the_engine_has_a_floor() -> None:
    engine = {name for name in KNOWN if name.startswith("tasks.engine.")}
    assert {room(name) for name in engine} <= {r for r in FLOOR if r.startswith("tasks.engine.")}


def test_no_module_is_too_long() -> None:
    assert not too_long(modules("tasks", "scripts"))


def test_a_new_process_imports_what_it_needs() -> None:
    """The library's public modules come with it, and training brings nothing of the report."""
    code = (
        "import sys, snopt; snopt.exact.second_order, snopt.exact.low_rank, snopt.dynamics.ANODE; "
        "import tasks.engine.experiment; "
        "print({'matplotlib', 'tasks.engine.report'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
