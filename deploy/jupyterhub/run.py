"""Start a hub for a workshop: ``python deploy/jupyterhub/run.py [OPTIONS]``; Ctrl-C ends it and all that it started.

Without options only you can log in, with your password on this machine, from this machine.
"""

import argparse
import getpass
import os
import pwd
import sys
from pathlib import Path

import hub_proxy
import hub_settings
from hub_settings import GIB, HubError, Settings
from jupyter_server.auth import passwd

HERE = Path(__file__).resolve().parent
LEARNERS = HERE.parents[1] / "workspace/learners"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="run.py", description=__doc__.partition("\n")[0])
    who = root.add_mutually_exclusive_group()
    who.add_argument("--workshop-password", action="store_true", help="one password for the room, asked for here")
    who.add_argument("--workshop-password-file", metavar="FILE", help="the same, from the first line of a file")
    who.add_argument("--system-users", nargs="+", metavar="NAME", help="users of this machine (others need root)")
    root.add_argument("--allow-root", action="store_true", help="let workshop learners run as root, where you are root")
    root.add_argument("--learners", type=int, metavar="N", help="admit N at once (default: what the machine holds)")
    root.add_argument("--memory", type=float, default=hub_settings.BOUND / GIB, metavar="GIB", help="for each learner")
    root.add_argument("--idle-minutes", type=int, default=90, metavar="M", help="end what did nothing for so long")
    root.add_argument("--port", type=int, default=8000, help="where browsers connect")
    root.add_argument("--address", default=hub_settings.LOOPBACK, help="another one than loopback needs TLS")
    root.add_argument("--tls-certificate", default="", metavar="FILE")
    root.add_argument("--tls-key", default="", metavar="FILE")
    root.add_argument("--learners-folder", type=Path, default=LEARNERS, metavar="FOLDER", help="their lessons")
    root.add_argument("--state", type=Path, metavar="FOLDER", help="the hub's own files")
    root.add_argument("--progress", default="", metavar="FOLDER", help="offered to learners who share theirs")
    return root


def workshop_password(arguments: argparse.Namespace) -> str:
    """The password as given in a file or on the terminal; empty where none was asked for.

    Raises
    ------
    HubError
        It is too short.
    """
    if arguments.workshop_password_file:
        lines = Path(arguments.workshop_password_file).read_text(encoding="utf-8").splitlines()
        password = lines[0] if lines else ""
    elif arguments.workshop_password:
        password = getpass.getpass("Workshop password: ")
    else:
        return ""
    if len(password) < hub_settings.PASSWORD_LENGTH:
        raise HubError(
            f"the workshop password has {len(password)} characters; expected {hub_settings.PASSWORD_LENGTH} or more"
        )
    return password


def system_users(arguments: argparse.Namespace, me: str, is_root: bool) -> tuple[str, ...]:
    """Who may log in with a password of her own; only root can start servers for others."""
    wanted = tuple(arguments.system_users or [me])
    if not is_root and wanted != (me,):
        raise HubError(f"--system-users needs root: as {me} the hub can start servers for {me} only")
    for name in wanted:
        try:
            pwd.getpwnam(name)
        except KeyError:
            raise HubError(f"--system-users: no user {name!r} here; add her first (adduser {name})") from None
    return wanted


def existing(option: str, path: str, folder: bool = False) -> str:
    """The whole path of what an option names, for the hub works in a folder of its own; empty where it names nothing.

    Raises
    ------
    HubError
        There is no such file or folder.
    """
    whole = Path(path).absolute()
    if path and not (whole.is_dir() if folder else whole.is_file()):
        raise HubError(f"{option}: no {'folder' if folder else 'file'} {whole}; make it first, or name another one")
    return str(whole) if path else ""


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The settings that the options mean.

    Raises
    ------
    HubError
        They cannot be had so; the text says why.
    """
    password, is_root = workshop_password(arguments), os.geteuid() == 0
    if password and is_root and not arguments.allow_root:
        raise HubError(
            "you are root, and workshop learners run as you: all of them could do everything here. Start the hub as "
            "an ordinary user, or use --system-users, or say --allow-root (in a container of its own, say)"
        )
    users = () if password else system_users(arguments, getpass.getuser(), is_root)
    return _settings(arguments, password, users)


def _settings(arguments: argparse.Namespace, password: str, users: tuple[str, ...]) -> Settings:
    bound, learners = int(arguments.memory * GIB), arguments.learners
    if bound < hub_settings.WITHOUT_BIG_RUN or (learners is not None and learners < 1) or arguments.idle_minutes < 1:
        raise HubError("expected --memory 0.5 or more, --learners 1 or more, --idle-minutes 1 or more")
    api_port, hub_port = hub_settings.free_ports(2)
    made = Settings(
        state=str((arguments.state or hub_settings.default_state(arguments.port)).absolute()),
        learners_folder=str(arguments.learners_folder.absolute()),
        port=arguments.port,
        api_port=api_port,
        hub_port=hub_port,
        learners=learners or hub_settings.admitted_here(bound),
        bound=bound,
        address=arguments.address,
        password_hash=passwd(password) if password else "",
        system_users=users,
        certificate=existing("--tls-certificate", arguments.tls_certificate),
        key=existing("--tls-key", arguments.tls_key),
        progress=existing("--progress", arguments.progress, folder=True),
        idle_minutes=arguments.idle_minutes,
    )
    hub_settings.check_reach(made)
    return made


def introduction(settings: Settings) -> str:
    """What the instructor should know when the hub starts."""
    who = "everybody who knows the workshop password" if settings.password_hash else ", ".join(settings.system_users)
    lines = [
        f"hub: {settings.url}  (Ctrl-C ends it and all servers)",
        f"may log in: {who}",
        f"admitted at once: {settings.learners} learners, each with {settings.bound / GIB:g} GiB of memory",
    ]
    if settings.address == hub_settings.LOOPBACK:
        lines.append("reachable from this machine only; see deploy/jupyterhub/README.md for a room")
    return "\n".join(lines)


def start(settings: Settings) -> None:
    """Turn this process into the hub, so that signals go straight to it."""
    environment = {**os.environ, "LAB_HUB_SETTINGS": str(hub_settings.write(settings))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    os.chdir(settings.state)
    configuration = str(HERE / "jupyterhub_config.py")
    os.execve(sys.executable, [sys.executable, "-m", "jupyterhub", "--config", configuration], environment)


def main(arguments: list[str]) -> int:
    """Start the hub; an error that an instructor can mend is said in a line."""
    parsed = parser().parse_args(arguments)
    try:
        settings = settings_from(parsed)
        hub_proxy.install()
        print(introduction(settings), flush=True)
        start(settings)
    except (HubError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
