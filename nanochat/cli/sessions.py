"""Sessions for the chat: with a trained model of this machine, or with a server. Only the first loads torch."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from nanochat.cli.options import Invocation
from nanochat.errors import MissingError, UsageError
from nanochat.launch.launch import threads_that_sleep
from nanochat.paths import RUN_NAME, TRAIN_STAGES, Workspace

KEY_VARIABLE = "NANOCHAT_API_KEY"
BASE_NOTICE = "A base model continues text and has not learned to chat."


class LocalModels:
    """The trained models of a workspace, for `/model`."""

    def __init__(self, workspace: Workspace, device: str) -> None:
        self.workspace, self.device = workspace, device

    def list_names(self) -> list[str]:
        """The newest checkpoint of each stage of each run, the newest run last."""
        found = []
        for run in self.workspace.list_runs():
            stages = [(stage, run.stage(stage).steps()) for stage in TRAIN_STAGES]
            found += [f"{run.name}/{stage}@{steps[-1]}" for stage, steps in stages if steps]
        return found

    def known_names(self) -> list[str]:
        return self.list_names()

    def open(self, name: str, session: Any) -> Any:
        from nanochat.stages.assemble import build_session

        found = self.workspace.resolve_model(self._check(name))
        said = [BASE_NOTICE] if found.stage == "base" else []
        other = build_session(found, self.device, params=session.params, system=session.system, say=said.append)
        other.notice = " ".join(said)
        return other

    def _check(self, name: str) -> str:
        """Raises MissingError with a guess where there is no such run."""
        run, runs = name.partition("/")[0], [run.name for run in self.workspace.list_runs()]
        if run not in runs and RUN_NAME.fullmatch(run):
            near = difflib.get_close_matches(run, runs, n=1, cutoff=0.5)
            raise MissingError(
                f"there is no run {run!r}",
                f"did you mean {near[0]}? /model lists them" if near else "/model lists them",
            )
        return name


def open_local(model: Any, device: str, sampling: Mapping[str, Any], system: str, say: Callable[[str], None]) -> Any:
    """Load the model, with the chat's own sampling where none is given. This is where torch is imported."""
    from dataclasses import replace

    with threads_that_sleep():
        from nanochat.runtime import use_all_cores
    from nanochat.chat.session import CHAT_SAMPLING
    from nanochat.stages.assemble import build_session

    use_all_cores()
    return build_session(model, device, params=replace(CHAT_SAMPLING, **sampling), system=system, say=say)


def open_remote(
    invocation: Invocation, url: str, key: str, model: str | None, sampling: Mapping[str, Any], system: str
) -> tuple[Any, Any]:
    """Ask a server for its models; a session with one of them, and all of them for `/model`."""
    from nanochat.tui.client import Server
    from nanochat.tui.remote import RemoteModels, RemoteParams, RemoteSession, find_model

    if invocation.offline:
        raise UsageError("--url needs a socket, and --offline opens none", "leave one of them out")
    server = Server(url, key.strip())
    if server.leaks_key:
        invocation.console.say(f"the API key goes to {server.host} unencrypted: {server.url} is no https")
    found = server.list_models()
    session = RemoteSession(server, find_model(found, model), params=RemoteParams(**sampling), system=system)
    more = f"; /model lists all {len(found)}" if len(found) > 1 and model is None else ""
    invocation.console.say(f"model {session.name} at {server.url}{more}")
    return session, RemoteModels(server, found)
