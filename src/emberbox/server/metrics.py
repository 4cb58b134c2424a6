"""Figures for Prometheus. The names are a contract: docs/operations.md, the dashboard and the alert rules use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from emberbox.languages import RULES, resolve
from emberbox.models import CommandHistoryEntry, TerminationReason

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
_REDACTOR = "output-sanitizer"
_LLM = frozenset({"prompt", "response"})
"""What the history calls checks of prompts and answers; they are no executions."""

GaugeSource = Callable[[], Iterable[GaugeMetricFamily]]


class Metrics:
    """All figures of one server. As a recorder of the engine it hears of each execution.

    Args:
        rules: of the policy, those of this installation included.
    """

    def __init__(self, rules: Iterable[str] = RULES) -> None:
        self._rules = frozenset(rules)
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._executions = Counter(
            "emberbox_executions_total", "Executions that ended.", ["language", "outcome"], registry=self.registry
        )
        self._durations = Histogram(
            "emberbox_execution_seconds", "How long executions took.", ["language"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._decisions = Counter(
            "emberbox_hook_decisions_total", "Decisions of hooks, policy and people.",
            ["hook", "stage", "decision"], registry=self.registry,
        )  # fmt: skip
        self._policy_hits = Counter(
            "emberbox_policy_hits_total", "Executions that a rule refused.", ["rule"], registry=self.registry
        )
        self._redactions = Counter(
            "emberbox_redactions_total", "Outputs in which something secret was replaced.", registry=self.registry
        )
        self._requests = Counter(
            "emberbox_http_requests_total", "Requests.", ["method", "route", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "emberbox_http_request_seconds", "How long requests took.", ["method", "route"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._snapshots = Counter(
            "emberbox_snapshots_total", "Snapshots and rollbacks.", ["operation", "outcome"], registry=self.registry
        )
        self.sockets = Gauge("emberbox_websockets", "Open WebSockets.", registry=self.registry)

    def watch(self, source: GaugeSource) -> None:
        """Ask this source each time when the figures are read."""
        self.registry.register(_Source(source))

    def text(self) -> bytes:
        """The figures in Prometheus's text format."""
        return generate_latest(self.registry)

    async def record(self, entry: CommandHistoryEntry) -> None:
        """An execution has a new state."""
        if entry.state == "started" or entry.language in _LLM:
            return
        # what a caller calls a language is anything: a label needs few values
        language = resolve(entry.language) or "other"
        self._executions.labels(language, outcome_of(entry)).inc()
        for rule in (entry.blocked_by or "").split(", "):
            if rule in self._rules:
                self._policy_hits.labels(rule).inc()
        if entry.state == "finished" and entry.duration_ms is not None:
            self._durations.labels(language).observe(entry.duration_ms / 1000)
        for decision in entry.decisions:
            said = decision.decision
            if said == "ask_user":
                said_by_person = {True: "approved", False: "refused", None: "unanswered"}
                self._decisions.labels(decision.hook, decision.stage, said_by_person[decision.approved]).inc()
                continue
            self._decisions.labels(decision.hook, decision.stage, said).inc()
            if decision.hook == _REDACTOR and said == "modify":
                self._redactions.inc()

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is the pattern, not the path: ids would be without end."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(method, route).observe(seconds)

    def snapshot(self, operation: str, *, succeeded: bool) -> None:
        """A `snapshot` or a `rollback` was tried."""
        self._snapshots.labels(operation, "success" if succeeded else "failure").inc()


class _Source(Collector):
    def __init__(self, source: GaugeSource) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        """Asked by the registry."""
        return self._source()


def outcome_of(entry: CommandHistoryEntry) -> str:
    """How an execution ended, in a word: `success`, `failure`, `refused`, `unknown`, or why it was cut short."""
    if entry.state != "finished":
        return entry.state
    if entry.success:
        return "success"
    reason = entry.termination_reason
    if reason in {None, TerminationReason.COMPLETED, TerminationReason.OUTPUT_TRUNCATED}:
        return "failure"
    assert reason is not None  # noqa: S101 (None was above)
    return reason.value


def gauge(name: str, text: str, values: Iterable[tuple[dict[str, str], float]]) -> GaugeMetricFamily:
    """A figure that is read when it is asked for."""
    values = list(values)
    names = list(values[0][0]) if values else []
    family = GaugeMetricFamily(name, text, labels=names)
    for labels, value in values:
        family.add_metric([labels[one] for one in names], value)
    return family
