"""What this machine is and has: its cores, its memory, its signals, and whether a run fits."""

from importlib import metadata


def version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:  # not find_spec, which takes the folder wandb/ that a run leaves for the package
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
