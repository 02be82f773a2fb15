"""What goes to a cluster: the files are well-formed, agree with each other and with the project, and say who may in."""

import copy
import re
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
import setup_env
import yaml
from packaging.requirements import Requirement

from lab_utils.sources import DOCKER_IMAGE, NATIVE_HOME

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VALUES = yaml.safe_load((FOLDER / "values.yaml").read_text(encoding="utf-8"))
MANIFESTS = list(yaml.safe_load_all((FOLDER / "triton.yaml").read_text(encoding="utf-8")))
KINDS = {manifest["kind"]: manifest for manifest in MANIFESTS}
POD = KINDS["Deployment"]["spec"]["template"]
(TRITON,) = POD["spec"]["containers"]
GUIDE = (FOLDER / "README.md").read_text(encoding="utf-8")
REMOTE_GUIDE = (ROOT / "deploy" / "remote" / "README.md").read_text(encoding="utf-8")
GIB = 2**30
SIZES = {"G": GIB, "Gi": GIB, "Mi": 2**20}  # KubeSpawner's G is 2^30, too
# Every key of values.yaml. `helm template` took them all, with the schema of the chart that values.yaml names. Run it
# again before you add one: README.md there has the command.
KEYS = {
    "proxy.https": {"enabled", "hosts", "letsencrypt"},
    "hub.config": {"JupyterHub", "Authenticator", "NativeAuthenticator"},
    "singleuser": {
        *("image", "startTimeout", "defaultUrl", "cpu", "memory", "storage", "lifecycleHooks"),
        *("networkPolicy", "profileList"),
    },
    "singleuser.image": {"name", "tag"},
    "singleuser.cpu": {"guarantee", "limit"},
    "singleuser.memory": {"guarantee", "limit"},
    "singleuser.storage": {"capacity", "extraVolumes", "extraVolumeMounts"},
    "singleuser.lifecycleHooks": {"postStart"},
    "singleuser.networkPolicy": {"egress"},
}


def at(values: dict, path: str) -> dict:
    for key in path.split("."):
        values = values[key]
    return values


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([A-Z]i?)", text).groups()
    return int(number) * SIZES[unit]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with what follows it, on one line."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def all_of(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def pins(path: Path) -> dict[str, str]:
    """Name and version of each pinned requirement in a lock or a list."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^ ;\\\n]+)", path.read_text(), flags=re.M))


def profile(name: str) -> dict:
    (found,) = [one for one in VALUES["singleuser"]["profileList"] if one["display_name"] == name]
    return found["kubespawner_override"]


# --- the manifests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: one["kind"])
def test_a_manifest_keeps_kubernetes_own_schema(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("kind", ["Deployment", "Service", "NetworkPolicy"])
def test_a_misspelt_field_would_be_refused(kind):
    broken = copy.deepcopy(KINDS[kind])
    broken["spec"]["podSelectr"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_parts_find_each_other():
    labels = POD["metadata"]["labels"].items()
    selectors = [KINDS["Deployment"]["spec"]["selector"]["matchLabels"], KINDS["Service"]["spec"]["selector"]]
    selectors.append(KINDS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])
    (rule,) = VALUES["singleuser"]["networkPolicy"]["egress"]
    selectors.append(rule["to"][0]["podSelector"]["matchLabels"])
    assert all(selector.items() <= labels for selector in selectors)
    (port,) = KINDS["Service"]["spec"]["ports"]
    ports = [TRITON["ports"][0]["containerPort"], port["port"], rule["ports"][0]["port"]]
    ports += [TRITON[f"{kind}Probe"]["grpc"]["port"] for kind in ("startup", "readiness")]
    ports.append(KINDS["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"])
    assert set(ports) == {8001}
    assert f"--grpc-port={ports[0]}" in TRITON["args"]


def test_learners_of_the_shared_server_get_its_address_and_key():
    environment = profile("Shared server")["environment"]
    assert environment["TRITON_GRPC_URL"] == f"{KINDS['Service']['metadata']['name']}:8001"
    (key,) = [one for one in TRITON["env"] if one["name"] == "TRITON_API_KEY"]
    assert environment["TRITON_API_KEY"] == {"valueFrom": key["valueFrom"]}
    secret = key["valueFrom"]["secretKeyRef"]
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in GUIDE


def test_the_models_are_mounted_where_the_server_looks():
    mounts = {mount["mountPath"]: mount for mount in TRITON["volumeMounts"]}
    assert "--model-repository=/models" in TRITON["args"]
    assert mounts["/models"]["subPath"].endswith("model_repository")
    assert mounts["/models"]["readOnly"]
    assert {"name": "PYTHONPATH", "value": "/packages"} in TRITON["env"]
    (fetch,) = POD["spec"]["initContainers"]
    assert "--requirement /lab/checkout/model_repository/requirements.txt" in fetch["args"][0]


def test_one_server_keeps_all_state_and_nobody_is_root():
    assert KINDS["Deployment"]["spec"]["replicas"] == 1
    assert POD["spec"]["securityContext"]["runAsNonRoot"]
    for container in [TRITON, *POD["spec"]["initContainers"]]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["image"] == DOCKER_IMAGE


def test_the_guide_to_a_remote_server_has_the_flags_of_the_manifest():
    known = {re.sub(r"=.*", "", flag): flag.replace("$(TRITON_API_KEY)", "$KEY") for flag in TRITON["args"]}
    command = re.search(r"^tritonserver (.*?)\necho", REMOTE_GUIDE.replace("\\\n", " "), flags=re.M | re.S)[1]
    told = {re.sub(r"=.*", "", flag): flag for flag in command.split()}
    assert told.pop("--grpc-address") == "--grpc-address=127.0.0.1"
    assert told.pop("--model-repository").endswith('model_repository"')
    assert {name: known[name] for name in told} == told


# --- the hub ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KEYS)
def test_all_keys_are_those_that_the_charts_schema_took(path):
    assert set(at(VALUES, path)) == KEYS[path]


def test_no_other_part_of_the_chart_is_set():
    assert set(VALUES) == {"proxy", "hub", "singleuser"}
    assert set(VALUES["proxy"]) | set(VALUES["hub"]) == {"https", "config"}


def test_nobody_comes_in_unasked_and_no_secret_is_in_the_file():
    config = VALUES["hub"]["config"]
    assert config["JupyterHub"]["authenticator_class"] == "native"
    assert config["NativeAuthenticator"]["open_signup"] is False
    assert config["NativeAuthenticator"]["minimum_password_length"] >= 8
    assert VALUES["proxy"]["https"]["enabled"] is True
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in ("values.yaml", "triton.yaml")]
    assert not any(re.search(r"[0-9a-f]{16}", text) for text in texts)
    assert not any(isinstance(value, str) for value in config["NativeAuthenticator"].values())


@pytest.mark.parametrize(
    ("volumes", "mounts", "limit"),
    [
        (
            VALUES["singleuser"]["storage"]["extraVolumes"],
            VALUES["singleuser"]["storage"]["extraVolumeMounts"],
            VALUES["singleuser"]["memory"]["limit"],
        ),
        (POD["spec"]["volumes"], TRITON["volumeMounts"], TRITON["resources"]["limits"]["memory"]),
    ],
    ids=["learner", "triton"],
)
def test_shared_memory_is_larger_than_a_containers_own_and_fits_into_the_limit(volumes, mounts, limit):
    (name,) = [mount["name"] for mount in mounts if mount["mountPath"] == "/dev/shm"]
    (memory,) = [volume["emptyDir"] for volume in volumes if volume["name"] == name]
    assert memory["medium"] == "Memory"
    assert GIB <= size(memory["sizeLimit"]) < size(limit)


def test_the_gpu_profile_asks_for_one_card_and_keeps_the_charts_tolerations():
    override = profile("GPU")
    assert override["extra_resource_limits"] == {"nvidia.com/gpu": "1"}
    keys = {one["key"] for one in override["tolerations"]}
    assert keys == {"hub.jupyter.org/dedicated", "hub.jupyter.org_dedicated", "nvidia.com/gpu"}


def test_the_lessons_are_pulled_to_where_the_hub_opens_them():
    (*_, script) = VALUES["singleuser"]["lifecycleHooks"]["postStart"]["exec"]["command"]
    command, _, otherwise = script.partition(" || ")
    program, repository, branch, folder = shlex.split(command)
    assert (program, otherwise) == ("gitpuller", "true")
    opened = VALUES["singleuser"]["defaultUrl"].removeprefix(f"/lab/tree/{folder}/")
    assert (ROOT / opened).is_file()
    link = parse_qs(urlsplit(re.search(r"https://\S+/git-pull\?\S+", GUIDE)[0]).query)
    assert link == {"repo": [repository], "branch": [branch], "urlpath": [f"lab/tree/{folder}/{opened}"]}


# --- the image ----------------------------------------------------------------------------------------------------


def test_the_image_is_the_stock_one_and_the_lab_uses_its_server():
    assert all_of("FROM") == [DOCKER_IMAGE]
    variables = dict(each.split("=", 1) for rest in all_of("ENV") for each in rest.split())
    assert variables["TRITONSERVER_HOME"] == str(NATIVE_HOME)
    assert variables["PATH"].split(":")[0] == f"{all_of('WORKDIR')[0]}/.venv/bin"


def test_nobody_is_root_in_the_image_and_what_was_installed_as_root_is_the_systems():
    order = [name for name, _ in instructions()]
    assert all_of("USER") == ["root", "1000"]
    as_user = instructions()[len(order) - order[::-1].index("USER") :]
    installs = [rest for name, rest in as_user if name == "RUN"]
    assert [rest.split()[0] for rest in installs] == ["make", "python3"]
    assert "--chown=1000:1000 . ." in all_of("COPY")


def test_what_the_image_runs_is_in_the_checkout():
    setup, install = all_of("RUN")[-2:]
    assert setup == "make setup"
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    words = shlex.split(install)
    assert (ROOT / words[1]).samefile(setup_env.__file__)
    assert words[2:6] == ["uv", "pip", "install", "--python"]
    assert "--require-hashes" in words
    assert (ROOT / words[-1]).is_file()


def test_what_the_image_leaves_out_is_not_needed():
    left_out = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()[1:]
    assert {"**/.venv", "workspace", ".git"} <= set(left_out)
    needed = ["Makefile", "lab_utils", "model_repository", "notebooks", "tools", "requirements.lock", "pyproject.toml"]
    assert not {name.removeprefix("**/") for name in left_out} & set(needed)


def test_image_and_values_name_the_same_image():
    image = VALUES["singleuser"]["image"]
    named = f"{image['name']}:{image['tag']}"
    texts = [GUIDE, (FOLDER / "Dockerfile").read_text(encoding="utf-8")]
    assert [set(re.findall(r"registry\.example\.com/\S+?:[\d.]+\d", text)) for text in texts] == [{named}] * 2


def test_the_images_lock_agrees_with_the_labs():
    asked, locked, lab = (
        pins(path) for path in (FOLDER / "requirements.in", FOLDER / "requirements.lock", ROOT / setup_env.LOCK)
    )
    assert asked.items() <= locked.items()
    shared = locked.keys() & lab.keys()
    assert len(shared) > 20
    assert {name: locked[name] for name in shared} == {name: lab[name] for name in shared}
    assert (FOLDER / "requirements.lock").read_text().count("--hash=sha256:") >= len(locked)


def test_hub_and_learners_are_of_the_same_jupyterhub():
    (chart,) = set(re.findall(r"carries JupyterHub (\d+\.\d+)", (FOLDER / "values.yaml").read_text(encoding="utf-8")))
    assert Requirement(f"jupyterhub=={chart}.*").specifier.contains(pins(FOLDER / "requirements.in")["jupyterhub"])
    versions = re.findall(r"(?:chart jupyterhub|--version) ([\d.]+\d)", GUIDE)
    assert len(versions) == 2
    assert f"chart jupyterhub {versions[0]} " in (FOLDER / "values.yaml").read_text(encoding="utf-8")
    assert set(versions) == {versions[0]}


# --- Binder -------------------------------------------------------------------------------------------------------


def test_binder_finds_environment_yml_and_nothing_before_it():
    """The files that repo2docker would take in its place."""
    before = ["Dockerfile", "binder", ".binder", "Project.toml", "JuliaProject.toml", "REQUIRE", "default.nix"]
    before += ["install.R", "DESCRIPTION", "runtime.txt"]
    assert [name for name in before if (ROOT / name).exists()] == []
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert "python=3.12" in environment["dependencies"]
    (pip,) = [one["pip"] for one in environment["dependencies"] if isinstance(one, dict)]
    assert pip[-1] == "-e ."
    assert (ROOT / "pyproject.toml").is_file()
