"""JupyterHub's configuration; `run.py` starts the hub with it and says in LAB_HUB_SETTINGS where the settings are."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import hub_parts  # noqa: E402
import hub_proxy  # noqa: E402
import hub_settings  # noqa: E402

c = get_config()  # noqa: F821
settings = hub_settings.read(os.environ["LAB_HUB_SETTINGS"])
state = Path(settings.state)
loopback = f"http://{hub_settings.LOOPBACK}"

# Who listens where: only the proxy's public side may leave the machine, and only with TLS.
c.JupyterHub.bind_url = settings.url
c.JupyterHub.hub_bind_url = f"{loopback}:{settings.hub_port}"
c.ConfigurableHTTPProxy.api_url = f"{loopback}:{settings.api_port}"
c.JupyterHub.ssl_cert, c.JupyterHub.ssl_key = settings.certificate, settings.key
c.Spawner.ip = hub_settings.LOOPBACK

# The hub's own files. Nothing is worth keeping over a restart: servers end with the hub.
c.JupyterHub.db_url = "sqlite:///:memory:"
c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(state / "proxy.pid")
c.ConfigurableHTTPProxy.command = hub_proxy.command()
c.ConfigurableHTTPProxy.log_level = "warn"
c.JupyterHub.cleanup_servers = True

# Who may come in.
if settings.password_hash:
    c.Authenticator.username_pattern = f"^{hub_settings.NAME_PATTERN}$"  # the system's own users may be first.last
    c.JupyterHub.authenticator_class = hub_parts.WorkshopAuthenticator
    c.WorkshopAuthenticator.password_hash = settings.password_hash
    c.Authenticator.allow_all = True  # all who know the password
    c.JupyterHub.spawner_class = hub_parts.SharedAccountSpawner
    c.SharedAccountSpawner.learners_folder = settings.learners_folder
    c.SharedAccountSpawner.home_dir_template = f"{settings.learners_folder}/{{username}}"
else:
    c.JupyterHub.authenticator_class = "pam"
    c.Authenticator.allowed_users = set(settings.system_users)
    c.JupyterHub.spawner_class = hub_parts.BoundedSpawner

# How many, and how much for each.
c.JupyterHub.active_server_limit = settings.learners
c.JupyterHub.concurrent_spawn_limit = 0  # no other limit: a whole room logs in at once
c.BoundedSpawner.bound = settings.bound
c.Spawner.start_timeout = c.Spawner.http_timeout = 120
c.Spawner.poll_interval = 5
c.Spawner.consecutive_failure_limit = 0  # one learner whose server fails must not end everybody's hub
c.Spawner.default_url = "/lab/tree/00_start_here.ipynb"
system = ["PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES"]
c.Spawner.env_keep = [*system, "LAB_LANGUAGE", "TRITONSERVER_HOME", "TRITON_SOURCE"]  # each learner has her own server
c.Spawner.environment = {"LAB_PROGRESS": settings.progress} if settings.progress else {}
idle = 60 * settings.idle_minutes
c.Spawner.args = [
    f"--MappingKernelManager.cull_idle_timeout={idle}",
    "--MappingKernelManager.cull_connected=True",  # a laptop that is left open would keep its place
    f"--ServerApp.shutdown_no_activity_timeout={idle}",
]

# What they read.
c.JupyterHub.template_paths = [str(HERE / "templates")]
c.JupyterHub.template_vars = {"learners": settings.learners, "last_notice": hub_parts.last_notice}
if settings.password_hash:
    c.JupyterHub.template_vars["announcement_login"] = (
        "Choose any name (a-z, 0-9 and -, a letter first) and keep to it. The password is the workshop's."
    )
