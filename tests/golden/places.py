"""Where the golden cases are: small copies in this folder, and the whole ones beside the repository."""

from pathlib import Path

COPIES = Path(__file__).parent
BESIDE = [folder / "shared" / "golden" for folder in Path(__file__).parents]
SHARED = next((folder for folder in BESIDE if folder.is_dir()), BESIDE[0])
FOLDERS = {"sedd": "checkpoint-safetensors", "sdtt twice": "checkpoint-teacher"}


def checkpoint_of(root: Path, name: str) -> Path:
    """The folder of a case's checkpoint."""
    return root / name.partition(" ")[0] / FOLDERS.get(name, "checkpoint")
