"""What became of the gate inside the server: did it run for a merge, and does it run at all."""

from lake.engines.lakefs import objects
from lake.engines.lakefs.gate import ACTION, GATE_KEY, HOOK, NO_RELEASE, gate_yaml
from lake.engines.lakefs.threeway import hidden_branch
from lake.engines.lakefs.wire import Wire
from lake.errors import GateRefused
from lake.repository import CommitId


class RunningGate:
    """The gate inside one repository's server; see `lake.repository.ServerGate`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def ran_for(self, merge: CommitId) -> bool:
        """Tell whether the server's log of actions has a completed run of the gate for this merge."""
        actions, name = self._wire.sdk.actions_api, self._wire.name
        doing = f"look for the gate's run for {merge[:12]}"
        runs = self._wire.call(actions.list_repository_runs, name, commit=merge, doing=doing, safe=True)
        for run in runs.results:
            if run.event_type != "pre-merge" or run.status != "completed":
                continue
            hooks = self._wire.call(actions.list_run_hooks, name, run.run_id, doing=doing, safe=True)
            if any((hook.action, hook.hook_id, hook.status) == (ACTION, HOOK, "completed") for hook in hooks.results):
                return True
        return False

    def refuses(self) -> bool:
        """Tell whether the server runs the gate and obeys it, by a merge between two hidden branches.

        The source carries the gate, told to watch the other branch; the merge is no release and must be refused. Both
        branches are gone afterwards, and main is not touched.
        """
        wire = self._wire
        main = wire.json("/branches/main", fields=("commit_id",), doing="look up 'main'")["commit_id"]
        with hidden_branch(wire, main) as dest, hidden_branch(wire, main) as source:
            watching = gate_yaml().replace(b"      - main\n", f"      - {dest}\n".encode())
            doing = "rehearse the gate"
            objects.put(wire, source, GATE_KEY, watching, "application/yaml", {})
            wire.call(wire.sdk.commits_api.commit, wire.name, source, {"message": "a gate to rehearse"}, doing=doing)
            try:
                wire.call(wire.sdk.refs_api.merge_into_branch, wire.name, source, dest, doing=doing)
            except GateRefused as error:
                return NO_RELEASE in error.message
        return False
