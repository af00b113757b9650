"""A real Kubernetes control plane with simulated nodes: python -m tests.control_plane up | down

`up` builds what is not built yet (half an hour on two cores, once), starts it in some seconds and
prints how to talk to it. `down` stops it. Neither needs root or Docker, nor a network once all is
built.
"""

import sys

from tests.control_plane import control_plane, nodes, operators, programs
from tests.control_plane.errors import ControlPlaneError
from tests.control_plane.kubectl import KubectlError


def up() -> None:
    programs.build()
    if control_plane.is_up():
        print("It runs already")
    else:
        _start()
    version = programs.PROGRAMS["kube-apiserver"].version
    print(f"Kubernetes {version} runs, with simulated nodes; `make cluster-down` stops it:")
    print(f"export KUBECONFIG={control_plane.KUBECONFIG}")


def _start() -> None:
    """All of it, or nothing."""
    try:
        control_plane.up()
        kubectl = control_plane.kubectl()
        nodes.furnish(kubectl)
        operators.install(kubectl, *operators.ALL)
    except BaseException:
        control_plane.down()
        raise


def down() -> None:
    print("Kubernetes is stopped" if control_plane.down() else "Nothing was running")


def main(arguments: list[str]) -> int:
    commands = {"up": up, "down": down}
    if len(arguments) != 1 or arguments[0] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        commands[arguments[0]]()
    except (ControlPlaneError, KubectlError) as error:
        print(f"cluster: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
