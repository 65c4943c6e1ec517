"""What one file under deploy/ says of another, or of the programs, is true. Prints each complaint with its file."""

import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
# Suffixes that Prometheus adds to the name of a histogram.
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")

complaints: list[str] = []


def complain(file: Path, what: str) -> None:
    complaints.append(f"{file.relative_to(ROOT)}: {what}")


def load(file: Path) -> list[dict]:
    try:
        return [document for document in yaml.safe_load_all(file.read_text()) if document]
    except yaml.YAMLError as error:
        complain(file, f"is not YAML: {error}")
        return []


def every_file_parses() -> None:
    for file in sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")]):
        if not load(file):
            complain(file, "is empty")
    for file in DEPLOY.rglob("*.json"):
        try:
            json.loads(file.read_text())
        except ValueError as error:
            complain(file, f"is not JSON: {error}")


def objects() -> dict[tuple[str, str], tuple[Path, dict]]:
    own = {"kustomization.yaml", "server.yaml", "route.yaml"}
    found = {}
    for file in sorted(KUBERNETES.glob("*.yaml")):
        for document in load(file) if file.name not in own else []:
            found[document["kind"], document["metadata"]["name"]] = (file, document)
    return found


def kustomization_is_complete(found: dict) -> None:
    file = KUBERNETES / "kustomization.yaml"
    kustomization = load(file)[0]
    manifests = {path.name for path, _ in found.values()}
    if manifests != set(kustomization["resources"]):
        complain(file, f"resources differ from the manifests: {sorted(manifests ^ set(kustomization['resources']))}")
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    for image in kustomization["images"]:
        if image["newTag"] != version:
            complain(file, f"image {image['name']} has tag {image['newTag']}, the workspace has version {version}")
        if not (DEPLOY / "images" / f"Containerfile.{image['name'].removeprefix('outputguard-')}").exists():
            complain(file, f"no Containerfile makes image {image['name']}")
    generated = {one["name"]: one for one in kustomization["configMapGenerator"]}
    configs = {("StatefulSet", "outputguard"): "outputguard-server", ("DaemonSet", "outputguard-route"): "outputguard-route"}
    for workload, config in configs.items():
        path, document = found[workload]
        used = [v["configMap"]["name"] for v in document["spec"]["template"]["spec"]["volumes"] if "configMap" in v]
        if used != [config] or config not in generated:
            complain(path, f"mounts ConfigMap {used}, kustomization.yaml generates {sorted(generated)}")
        elif generated[config]["namespace"] != document["metadata"]["namespace"]:
            complain(path, f"ConfigMap {config} is generated in another namespace")
        images = {container["image"] for container in document["spec"]["template"]["spec"]["containers"]}
        if not images <= {image["name"] for image in kustomization["images"]}:
            complain(path, f"images {sorted(images)} have no tag in kustomization.yaml")


def servers_find_each_other(found: dict) -> None:
    path, stateful_set = found["StatefulSet", "outputguard"]
    headless_path, headless = found["Service", "outputguard-headless"]
    config = load(KUBERNETES / "server.yaml")[0]
    name, spec = stateful_set["metadata"]["name"], stateful_set["spec"]
    port = config["listen"]["raft"].rsplit(":", 1)[1]
    expected = [f"{name}-{n}.{headless['metadata']['name']}:{port}" for n in range(spec["replicas"])]
    if config["cluster"]["peers"] != expected:
        complain(KUBERNETES / "server.yaml", f"cluster.peers should be {expected}")
    if spec["serviceName"] != headless["metadata"]["name"]:
        complain(path, "serviceName is not the headless service")
    if headless["spec"]["clusterIP"] != "None" or not headless["spec"].get("publishNotReadyAddresses"):
        complain(headless_path, "the headless service must publish addresses that are not ready")
    container = spec["template"]["spec"]["containers"][0]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    for key, address in config["listen"].items():
        if ports.get(key) != int(address.rsplit(":", 1)[1]):
            complain(path, f"port {key} differs from listen.{key} in server.yaml")
    advertise = next(one["value"] for one in container["env"] if one["name"] == "OUTPUTGUARD_CLUSTER_ADVERTISE")
    if advertise != f"$(OUTPUTGUARD_NODE_NAME).{headless['metadata']['name']}:{port}":
        complain(path, f"OUTPUTGUARD_CLUSTER_ADVERTISE is {advertise}")
    labels = spec["template"]["metadata"]["labels"]
    for (kind, which), (file, document) in found.items():
        if document["metadata"].get("namespace") != "outputguard":
            continue
        body = document.get("spec", {})
        selector = {
            "Service": body.get("selector"),
            "PodDisruptionBudget": body.get("selector", {}).get("matchLabels"),
            "NetworkPolicy": body.get("podSelector", {}).get("matchLabels"),
        }.get(kind)
        if selector is not None and not selector.items() <= labels.items():
            complain(file, f"{kind} {which} selects {selector}, the pods have {labels}")
        for one in body.get("ports", []) if kind == "Service" else []:
            if one["targetPort"] not in ports:
                complain(file, f"Service {which} leads to port {one['targetPort']}, which the pods do not have")
    budget = found["PodDisruptionBudget", "outputguard"][1]["spec"]["maxUnavailable"]
    if budget != spec["replicas"] - (spec["replicas"] // 2 + 1):
        complain(path, f"{spec['replicas']} replicas do not fit maxUnavailable {budget}")


def secret_has_what_servers_read() -> None:
    script = KUBERNETES / "make-tls-secret"
    replicas = load(KUBERNETES / "server-statefulset.yaml")[1]["spec"]["replicas"]
    if f"replicas={replicas}\n" not in script.read_text():
        complain(script, f"makes certificates for another number of nodes than {replicas}")


def pods_have_no_needless_power(found: dict) -> None:
    wanted = {("StatefulSet", "outputguard"): [], ("DaemonSet", "outputguard-route"): ["NET_ADMIN", "NET_RAW"]}
    for key, powers in wanted.items():
        path, document = found[key]
        for container in document["spec"]["template"]["spec"]["containers"]:
            context = container["securityContext"]
            capabilities = context["capabilities"]
            if capabilities.get("drop") != ["ALL"] or capabilities.get("add", []) != powers:
                complain(path, f"container {container['name']} must drop ALL and add {powers}")
            if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
                complain(path, f"container {container['name']} may gain privileges")
            if context.get("readOnlyRootFilesystem") is not True:
                complain(path, f"container {container['name']} may write to its image")


def metrics_exist() -> None:
    sources = ["node/src", "gateway/src", "route/src"]
    code = "\n".join(file.read_text() for folder in sources for file in (ROOT / folder).rglob("*.rs"))
    name = re.compile(r"\b(?:outputguard|iptables)_[a-z_]+\b")
    dashboard = DEPLOY / "grafana" / "outputguard.json"
    rules = DEPLOY / "prometheus" / "outputguard.rules.yml"
    for file in [dashboard, rules]:
        for metric in sorted(set(name.findall(file.read_text()))):
            if f'"{metric}"' not in code and f'"{HISTOGRAM.sub("", metric)}"' not in code:
                complain(file, f"no program has a metric {metric}")


def dashboard_queries_are_tested() -> None:
    file = DEPLOY / "grafana" / "outputguard.json"
    panels = json.loads(file.read_text())["panels"]
    queries = {target["expr"].replace("$host", "gw-1") for panel in panels for target in panel["targets"]}
    tests = load(DEPLOY / "prometheus" / "outputguard.rules.test.yml")[0]["tests"]
    tested = {one["expr"] for test in tests for one in test.get("promql_expr_test", [])}
    if len(queries) != 4 or queries != tested:
        complain(file, f"the four panels' queries and those tested differ: {sorted(queries ^ tested)}")


def alerts_are_tested() -> None:
    file = DEPLOY / "prometheus" / "outputguard.rules.yml"
    alerts = {rule["alert"] for group in load(file)[0]["groups"] for rule in group["rules"]}
    tests = load(DEPLOY / "prometheus" / "outputguard.rules.test.yml")[0]["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    for alert in sorted(alerts):
        outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert}
        if outcomes != {True, False}:
            complain(file, f"{alert} needs a test in which it fires and one in which it does not")


every_file_parses()
if not complaints:
    manifests = objects()
    kustomization_is_complete(manifests)
    servers_find_each_other(manifests)
    secret_has_what_servers_read()
    pods_have_no_needless_power(manifests)
    metrics_exist()
    dashboard_queries_are_tested()
    alerts_are_tested()
if complaints:
    sys.exit("\n".join(complaints))
