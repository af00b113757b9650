"""What a manifest names is there: in the base as it lies, and in all that can be rendered."""

import re
import tomllib
from pathlib import Path

from serving import batching, flags
from tests.conftest import ROOT
from tests.k8s.manifests import containers, of_kind, pod_template, probes, selects

CLUSTER_WIDE = {"Namespace"}
IMAGES = {"tensorflow/serving", "googlenet-embedded", "googlenet-pipeline"}


def named(documents, kind):
    return {document["metadata"]["name"]: document for document in of_kind(documents, kind)}


def templates(documents):
    return [found for document in documents if (found := pod_template(document))]


def workloads(documents, selector):
    return [t for t in templates(documents) if selects(selector, t["metadata"]["labels"])]


def test_images_are_of_tensorflows_version(documents):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pinned,) = (d for d in project["dependencies"] if d.startswith("tensorflow=="))
    wanted = pinned.removeprefix("tensorflow==").removesuffix(".*")
    for template in templates(documents):
        for container in containers(template):
            name, _, tag = container["image"].partition(":")
            assert name in IMAGES
            assert tag.removesuffix("-gpu") == f"{wanted}.0"


def test_workloads_select_their_own_pods_and_no_others(documents):
    for workload in of_kind(documents, "Deployment"):
        selector = workload["spec"]["selector"]
        assert workloads(documents, selector) == [workload["spec"]["template"]]
        for constraint in workload["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert workloads(documents, constraint["labelSelector"]) == [
                workload["spec"]["template"]
            ]


def test_services_lead_to_one_workloads_ports(documents):
    for service in of_kind(documents, "Service"):
        (template,) = workloads(documents, service["spec"]["selector"])
        ports = {p["name"] for c in containers(template) for p in c.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_budgets_and_autoscalers_are_of_one_workload(documents):
    for budget in of_kind(documents, "PodDisruptionBudget"):
        assert len(workloads(documents, budget["spec"]["selector"])) == 1
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        deployment = named(documents, target["kind"])[target["name"]]
        assert "replicas" not in deployment["spec"]
        assert scaler["spec"]["minReplicas"] <= scaler["spec"]["maxReplicas"]
    scaled = {
        d["spec"]["scaleTargetRef"]["name"] for d in of_kind(documents, "HorizontalPodAutoscaler")
    }
    assert scaled == set(named(documents, "Deployment"))


def test_network_policies_are_of_pods_and_ports_that_exist(documents):
    policies = of_kind(documents, "NetworkPolicy")
    for policy in policies:
        pods = workloads(documents, policy["spec"]["podSelector"])
        assert pods, policy["metadata"]["name"]
        ports = {p["name"] for t in pods for c in containers(t) for p in c.get("ports", [])}
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule["ports"]} <= ports
    if of_kind(documents, "Namespace"):
        (denied,) = (p for p in policies if not p["spec"]["podSelector"])
        assert set(denied["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        assert not {"ingress", "egress"} & set(denied["spec"])


def test_volumes_are_there_and_used(documents):
    config, claims = named(documents, "ConfigMap"), named(documents, "PersistentVolumeClaim")
    secrets = {c["spec"]["secretName"] for c in of_kind(documents, "Certificate")}
    for template in templates(documents):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = [mount for c in containers(template) for mount in c["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == set(volumes)
        for volume in volumes.values():
            for source in volume.get("projected", {}).get("sources", [volume]):
                if "configMap" in source:
                    keys = {item["key"] for item in source["configMap"].get("items", [])}
                    assert keys <= set(config[source["configMap"]["name"]]["data"])
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets


def test_service_accounts_are_there_and_have_no_token(documents):
    accounts = named(documents, "ServiceAccount")
    for template in templates(documents):
        assert (
            accounts[template["spec"]["serviceAccountName"]]["automountServiceAccountToken"]
            is False
        )
        assert template["spec"]["automountServiceAccountToken"] is False


def test_everything_is_in_one_namespace(documents):
    (namespace,) = of_kind(documents, "Namespace") or [None]
    if namespace and any("namespace" in d["metadata"] for d in documents):
        name = namespace["metadata"]["name"]
        for document in documents:
            if document["kind"] not in CLUSTER_WIDE:
                assert document["metadata"]["namespace"] == name, document["metadata"]["name"]


def all_probes(template):
    return [found for container in containers(template) for found in probes(container)]


def test_probes_are_of_a_port_that_is_there(documents):
    for template in templates(documents):
        for container in containers(template):
            for _, probe in probes(container):
                assert probe["port"] in {port["name"] for port in container["ports"]}


def test_pods_are_restricted(documents):
    for template in templates(documents):
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for kind in ("cpu", "memory"):
                limit = container["resources"]["limits"][kind]
                assert container["resources"]["requests"][kind] == limit


def files(template, config):
    """The paths of all that the pod has from ConfigMaps."""
    for mount in template["spec"]["containers"][0]["volumeMounts"]:
        (volume,) = (v for v in template["spec"]["volumes"] if v["name"] == mount["name"])
        for source in volume.get("projected", {}).get("sources", [volume]):
            if "configMap" in source:
                items = source["configMap"].get("items")
                data = config[source["configMap"]["name"]]["data"]
                for name in [item["path"] for item in items] if items else data:
                    yield f"{mount['mountPath']}/{name}"


def test_the_servers_flags_are_known_and_their_files_there(documents, capsys):
    config = named(documents, "ConfigMap")
    for workload in of_kind(documents, "Deployment"):
        template = workload["spec"]["template"]
        container = template["spec"]["containers"][0]
        variables = {variable["name"] for variable in container["env"]}
        assert "CPU_LIMIT" in variables
        limit = container["resources"]["limits"]["cpu"]
        given = [argument.replace("$(CPU_LIMIT)", limit) for argument in container["args"]]
        assert len({argument.partition("=")[0] for argument in given}) == len(given)
        parsed = flags.parse(given)
        assert capsys.readouterr().err == ""  # flags without meaning are warned of
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"grpc": parsed.port, "rest": parsed.rest_api_port}
        there = set(files(template, config))
        paths = [str(value) for value in vars(parsed).values() if isinstance(value, Path)]
        elsewhere = ("/models/", "/etc/googlenet-ssl/")  # the repository, and what mtls writes
        assert {path for path in paths if not path.startswith(elsewhere)} <= there
        unused = there - {*paths, "/etc/googlenet/models.config"}
        assert all(re.fullmatch(r"/etc/googlenet/batching-\d+\.config", path) for path in unused)


def test_batches_have_as_many_threads_as_the_container_has_cpus(documents):
    """In the file of its limit, with the flags that were found with it."""
    for workload in of_kind(documents, "Deployment"):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        limit = container["resources"]["limits"]["cpu"]
        folder = ROOT / "serving/config/cpus" / limit
        assert batching.read(folder / "batching.config").threads == int(limit)
        (text,) = (
            document["data"][f"batching-{limit}.config"]
            for document in of_kind(documents, "ConfigMap")
            if f"batching-{limit}.config" in document["data"]
        )
        assert text == (folder / "batching.config").read_text()
        found = flags.parse(["--model_base_path=/m", *(folder / "flags").read_text().split()])
        given = flags.parse([a.replace("$(CPU_LIMIT)", limit) for a in container["args"]])
        intra_op = given.tensorflow_intra_op_parallelism
        assert intra_op == found.tensorflow_intra_op_parallelism


def test_who_still_calls_is_gone_before_the_server_ends(documents):
    for workload in of_kind(documents, "Deployment"):
        pod = workload["spec"]["template"]["spec"]
        parsed = flags.parse([a.replace("$(CPU_LIMIT)", "2") for a in pod["containers"][0]["args"]])
        age = dict(parsed.grpc_channel_arguments)["grpc.max_connection_age_ms"] / 1000
        waits = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        client_asks_dns_every, cluster_dns_caches = 5, 30
        assert waits >= 1.1 * age + client_asks_dns_every + cluster_dns_caches
        assert pod["terminationGracePeriodSeconds"] > waits + parsed.grace_period_seconds


def test_int8_has_its_kernels(documents):
    for workload in of_kind(documents, "Deployment"):
        for container in workload["spec"]["template"]["spec"]["containers"]:
            assert {"name": "TF_ENABLE_ONEDNN_OPTS", "value": "1"} in container["env"]


def test_gateway_routes_lead_to_services(documents):
    services = named(documents, "Service")
    for route in of_kind(documents, "GRPCRoute"):
        for parent in route["spec"]["parentRefs"]:
            assert parent["name"] in named(documents, "Gateway")
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                ports = services[backend["name"]]["spec"]["ports"]
                assert backend["port"] in {port["port"] for port in ports}


def test_gateways_have_their_certificates(documents):
    secrets = {c["spec"]["secretName"] for c in of_kind(documents, "Certificate")}
    services = named(documents, "Service")
    for gateway in of_kind(documents, "Gateway"):
        for listener in gateway["spec"]["listeners"]:
            for reference in listener.get("tls", {}).get("certificateRefs", []):
                assert reference["name"] in secrets
        if "tls" in gateway["spec"]:
            tls = gateway["spec"]["tls"]
            for reference in tls["frontend"]["default"]["validation"]["caCertificateRefs"]:
                assert reference["name"] in secrets
            assert tls["backend"]["clientCertificateRef"]["name"] in secrets
    for policy in of_kind(documents, "BackendTLSPolicy"):
        assert all(target["name"] in services for target in policy["spec"]["targetRefs"])
        validation = policy["spec"]["validation"]
        assert all(ca["name"] in secrets for ca in validation["caCertificateRefs"])
        (certificate,) = (
            c["spec"] for c in of_kind(documents, "Certificate")
            if c["metadata"]["name"] == "googlenet-server"
        )  # fmt: skip
        assert validation["hostname"] in certificate["dnsNames"]


def test_service_monitors_find_services_and_their_port(documents):
    for monitor in of_kind(documents, "ServiceMonitor"):
        found = [
            service for service in of_kind(documents, "Service")
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
        ]  # fmt: skip
        ports = [port["name"] for service in found for port in service["spec"]["ports"]]
        pods = len(of_kind(documents, "Deployment"))
        for endpoint in monitor["spec"]["endpoints"]:
            assert ports.count(endpoint["port"]) == pods  # more would count each pod twice
            asked = {port["port"] for t in templates(documents) for _, port in all_probes(t)}
            assert asked == {endpoint["port"]}  # metrics are on the REST port, as probes are


def test_certificates_are_for_the_names_clients_use(documents):
    certificates = {c["spec"]["secretName"]: c["spec"] for c in of_kind(documents, "Certificate")}
    for certificate in certificates.values():
        issuer = certificate["issuerRef"]
        assert issuer["name"] in named(documents, issuer["kind"])
    for template in templates(documents):
        for volume in template["spec"]["volumes"]:
            if "secret" in volume:
                certificate = certificates[volume["secret"]["secretName"]]
                (namespace,) = named(documents, "Namespace")
                service = certificate["commonName"]
                assert named(documents, "Service")[service]["spec"]["clusterIP"] == "None"
                assert {service, f"{service}.{namespace}.svc"} <= set(certificate["dnsNames"])
