"""Dagster's launcher, which also notices that the code server that ran a run was killed with it.

Here: the class that ``dagster.yaml`` names. Not here: how often the daemon looks and what it then does
(``run_monitoring`` and ``run_retries`` in ``dagster.yaml``), runs of the command line (``jobs.end_dead_runs``).

The stock launcher runs each run in a process of the code server, which reports when that process dies. When the code
server itself dies, nobody is left to report, and the run would count as running for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from dagster import DefaultRunLauncher
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

if TYPE_CHECKING:
    from dagster import DagsterRun
    from dagster._serdes import ConfigurableClassData


class RunLauncher(DefaultRunLauncher):
    """As DefaultRunLauncher, and tells the daemon of runs that their code server no longer knows."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:  # noqa: ANN401
        """What Dagster calls with the ``config`` of dagster.yaml."""
        return cls(inst_data=inst_data, **config_value)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """So that the daemon asks."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the code server at the run's address still runs it.

        One that does not answer is waited for: it may be starting again. A run without an address is one of the command
        line, which looks after its own.
        """
        client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            said = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=10)
        except DagsterUserCodeUnreachableError as problem:
            return CheckRunHealthResult(WorkerStatus.RUNNING, msg=f"its code server does not answer: {problem}")
        if deserialize_value(said, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, msg="its code server was started anew and does not know it")
