"""What the scripts of this folder share: where things go, and how they are installed."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
SCRIPT = Path(sys.argv[0]).name


def run(*command: str | Path, **options) -> None:
    """Runs a command; ends the script if it fails."""
    try:
        subprocess.run(command, check=True, **options)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{SCRIPT}: {' '.join(map(str, command[:4]))} …: {error}")


def apt_install(*packages: str) -> None:
    """Installs packages as root or by sudo."""
    apt = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt += ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    # Outdated package lists may still work.
    subprocess.run([*apt, "update", "-q"], stdout=subprocess.DEVNULL, check=False)
    run(*apt, "install", "-q", "-y", "--no-install-recommends", *packages, stdout=subprocess.DEVNULL)


def virtual_environment(folder: Path, *arguments: str) -> None:
    """Makes a clean virtual environment and installs into it by pip's arguments."""
    shutil.rmtree(folder, ignore_errors=True)
    # Debian's Python comes without ensurepip.
    if importlib.util.find_spec("ensurepip") is None:
        apt_install("python3-venv")
    try:
        run(sys.executable, "-m", "venv", folder)
        run(folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)
    except SystemExit:
        # Otherwise the next run would take a partial environment for a complete one.
        shutil.rmtree(folder, ignore_errors=True)
        raise
