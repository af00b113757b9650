"""The oldest and the newest definitions of the Gateway API that the components are for."""

import pytest

from tests.control_plane import operators
from tests.control_plane.conftest import applied
from tests.k8s.manifests import K8S, NEEDS

pytestmark = pytest.mark.control_plane

TRACKS = K8S / "components/canary/tracks.env"
TLS = (*NEEDS["mtls-gateway"], "mtls-gateway")


@pytest.fixture
def definitions(kubectl):
    """Definitions in place of those that `make cluster-up` brought."""
    try:
        yield lambda operator: operators.install(kubectl, operator)
    finally:
        operators.install(kubectl, operators.GATEWAY_API)


@pytest.mark.parametrize(
    ("operator", "components"),
    [
        (operators.GATEWAY_API_CANARY, ("canary",)),
        (operators.GATEWAY_API, TLS),
        (operators.GATEWAY_API_NEWEST, ("canary",)),
        (operators.GATEWAY_API_NEWEST, TLS),
    ],
    ids=lambda case: getattr(case, "version", None) or "-".join(case),
)
def test_the_gateway_api_takes_its_resources(kubectl, rendered, definitions, operator, components):
    definitions(operator)
    with applied(kubectl, rendered(components=components)) as (within,):
        (route,) = within.items("grpcroutes.gateway.networking.k8s.io")
        weights = [each["weight"] for each in route["spec"]["rules"][0]["backendRefs"]]
        lines = dict(line.split("=") for line in TRACKS.read_text().splitlines())
        assert weights == [int(lines["STABLE_WEIGHT"]), int(lines["CANARY_WEIGHT"])]
