"""The library's rooms: what each may build on, no circle, no arrow back up, no module too long."""

from __future__ import annotations

from pathlib import Path

from tests.support.imports import circle, imports, modules, too_long

MAY_IMPORT = {
    "arguments": set(),
    "errors": set(),
    "real_numbers": set(),
    "layers": {"arguments", "errors"},
    "dynamics": {"arguments", "errors"},
    "ode": {"arguments", "errors", "real_numbers", "layers"},
    "curvature": {"arguments", "errors", "real_numbers", "layers", "ode"},
    "optim": {"arguments", "errors", "real_numbers", "layers", "ode", "curvature"},
}
"""What each room may import beside itself; those at the top (check, exact) may import all."""
SNOPT = modules("snopt")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle(imports(SNOPT)) == []


def test_no_room_imports_one_above_it() -> None:
    upwards = {
        f"{name} imports {other}"
        for name, others in imports(SNOPT).items()
        for other in others
        if room(name) in MAY_IMPORT and room(other) not in MAY_IMPORT[room(name)] | {room(name)}
    }
    assert not upwards


def test_every_folder_is_a_room_with_a_floor() -> None:
    folders = {room(name) for name in SNOPT if name.count(".") > 1}
    assert folders <= MAY_IMPORT.keys()


def test_the_library_knows_nothing_of_the_suite() -> None:
    everything = modules("snopt", "tasks", "scripts")
    graph = imports(everything)
    assert {other for name in SNOPT for other in graph[name]} <= SNOPT.keys()


def test_no_module_is_too_long() -> None:
    assert not too_long(SNOPT)


def test_circles_and_late_imports_are_found(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from p import b\n")
    (package / "b.py").write_text("def late():\n    import p.a\n")
    known = modules("p", root=tmp_path)
    assert imports(known) == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.a"}}
    assert set(circle(imports(known))) == {"p.a", "p.b"}
    assert too_long(known, most=1) == {"p.b": 2}
