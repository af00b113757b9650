"""Writes tracks.env: which versions stable and canary serve, and what share of the calls each gets.

    python k8s/components/canary/tracks.py start VERSION [PERCENT] | promote | rollback

Prints what it wrote; `kubectl apply -k` of an overlay with the component makes it so.
"""

import sys
from pathlib import Path

FILE = Path(__file__).with_name("tracks.env")
Tracks = dict[str, int]


def start(tracks: Tracks, version: int, percent: int = 5) -> Tracks:
    """Serve a version to some of the callers."""
    if version < 1 or not 0 < percent < 100:
        raise ValueError("give a version, and a share of more than 0 and less than 100 percent")
    return tracks | {
        "CANARY_VERSION": version,
        "STABLE_WEIGHT": 100 - percent,
        "CANARY_WEIGHT": percent,
    }


def promote(tracks: Tracks) -> Tracks:
    """Make the canary's version stable; new stable pods take over as they become ready."""
    return rollback(tracks) | {"STABLE_VERSION": tracks["CANARY_VERSION"]}


def rollback(tracks: Tracks) -> Tracks:
    """Send every call to stable."""
    return tracks | {"STABLE_WEIGHT": 100, "CANARY_WEIGHT": 0}


CHANGES = {"start": start, "promote": promote, "rollback": rollback}


def read(file: Path = FILE) -> Tracks:
    """What is in the file."""
    pairs = (line.split("=") for line in file.read_text().splitlines())
    return {name: int(value) for name, value in pairs}


def main(arguments: list[str], file: Path = FILE) -> int:
    """Change the file; returns the exit code."""
    try:
        change, *numbers = arguments
        changed = CHANGES[change](read(file), *map(int, numbers))
    except (KeyError, TypeError, ValueError) as error:
        usage = "start VERSION [PERCENT] | promote | rollback"
        print(f"tracks: error: {error}: use it as: tracks.py {usage}", file=sys.stderr)
        return 2
    text = "".join(f"{name}={value}\n" for name, value in changed.items())
    file.write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
