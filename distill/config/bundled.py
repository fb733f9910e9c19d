"""The configs that come with the project, by name: in a checkout its folder configs/, in a wheel beside this room."""

from __future__ import annotations

from pathlib import Path

from teachers.errors import UserError, nearest

PREFIX = "bundled:"
HOUSE = Path(__file__).parents[1]
PLACES = (HOUSE / "configs", HOUSE.parent / "configs")


def config_file(name: str | Path) -> Path:
    """A path as it is, and the file of ``bundled:NAME``, such as ``bundled:quickstart`` or ``bundled:compare/sdtt``.

    Raises:
        UserError: no config of that name comes with the project.
    """
    if not str(name).startswith(PREFIX):
        return Path(name)
    folder = next(place for place in PLACES if place.is_dir())
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    wanted = str(name).removeprefix(PREFIX)
    if wanted not in names:
        raise UserError(
            f"no config {str(name)!r} comes with fewstep{nearest(wanted, list(names))}; there are "
            f"{', '.join(PREFIX + known for known in names if '/' not in known)}, and more in {folder}"
        )
    return names[wanted]
