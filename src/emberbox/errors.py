"""The error tree. Every error of Emberbox names what happened, to which input, and what to do about it.

    VmExecutionError
    ├── ConfigError             a setting, role file or template is wrong
    ├── ValidationFailed        the code or the request was refused before it ran
    │   ├── UnsupportedLanguage
    │   └── PolicyBlocked       a restriction or a hook refused valid code
    ├── VmNotAvailable          no back end, or the machine is gone
    │   └── NoCapacity          no place or no memory for one more sandbox
    ├── ApiError                a server refused, or what answers is none
    │   ├── Unauthorized        no token, or a wrong, expired or revoked one
    │   ├── Forbidden           the token's scopes or agents do not cover it
    │   ├── TooManyRequests
    │   ├── RequestTooLarge
    │   └── Conflict            a name or an idempotency key that is taken
    ├── VmConnectionError       the channel to a machine or a server broke
    ├── ExecutionTimeout        a deadline of Emberbox itself passed
    ├── ExecutionFailed         the machine could not carry out a request
    │   ├── ExecutionCancelled  somebody stopped it
    │   └── GuestFileError      a file operation in the machine failed
    ├── SessionNotFound         an unknown sandbox or context
    ├── SnapshotFailed          a snapshot could not be taken
    ├── SnapshotNotFound        an unknown snapshot
    ├── ForkFailed              some copies of a sandbox did not start
    ├── RollbackFailed          a sandbox could not be taken back
    ├── HistoryError            the history could not be opened, written or read
    ├── ImageError              a template could not be built or read
    └── Internal                a defect of Emberbox

`code` is stable and made for programs; `remediation` is one sentence for people. `retryable` is true only where the
request certainly never ran, so that trying again is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class VmExecutionError(Exception):
    """Base of all errors that Emberbox raises on purpose.

    Args:
        message: what happened, naming the input.
        remediation: what the caller can do; the class has a default.
        retryable: the request never ran, so repeating it is safe.
        details: facts for programs (numbers, names), JSON-compatible.
    """

    code: ClassVar[str] = "execution_error"
    default_remediation: ClassVar[str] = "Look at the message; run `emberbox doctor` if the host may be the cause."
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        remediation: str | None = None,
        retryable: bool | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remediation = remediation if remediation is not None else self.default_remediation
        self.retryable = self.default_retryable if retryable is None else retryable
        self.details = details or {}

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """The wire form: `{"code", "message", "remediation", "retryable", "details"}`."""
        return {
            "code": self.code,
            "message": self.message,
            "remediation": self.remediation,
            "retryable": self.retryable,
            "details": self.details,
        }


class ConfigError(VmExecutionError):
    """A setting, a role file or a template file is wrong; the message names the key."""

    code = "config_error"
    default_remediation = "Correct the named key; `emberbox doctor` shows the settings in force."
    default_retryable = True


class ValidationFailed(VmExecutionError):
    """The code or the request was refused before anything ran. `details["findings"]` has the first 100 reasons."""

    code = "validation_failed"
    default_remediation = "Correct the code at the named place, or switch the named rule off in the configuration."
    default_retryable = True


class UnsupportedLanguage(ValidationFailed):
    """The language is unknown, or not allowed by the configuration."""

    code = "unsupported_language"
    default_remediation = (
        "Use one of: python, javascript, typescript, bash, rust (or their aliases), and allow it in the settings."
    )


class PolicyBlocked(ValidationFailed):
    """A restriction of the language or a hook refused code that is valid as such."""

    code = "blocked_by_policy"
    default_remediation = "Change the code, or change the policy that the message names."


class VmNotAvailable(VmExecutionError):
    """No usable back end, or the machine that was asked for is gone."""

    code = "vm_not_available"
    default_remediation = "Run `emberbox doctor`: it says what is missing and how to install it."
    default_retryable = True


class NoCapacity(VmNotAvailable):
    """There was no place, or no memory of the host, for one more sandbox within `capacity_timeout_seconds`."""

    code = "no_capacity"
    default_remediation = (
        "Kill sandboxes that are not needed and try again, or raise max_sandboxes or capacity_timeout_seconds, or "
        "lower min_free_memory_mb in the settings."
    )


class VmConnectionError(VmExecutionError):
    """The channel to the machine (or to the server) broke; whether the request ran is unknown."""

    code = "connection_error"
    default_remediation = "Create a new sandbox; the old machine was killed."


class ExecutionTimeout(VmExecutionError):
    """A deadline of Emberbox passed (start of a machine, answer of the guest). A time-out of user code is no error:
    it is the `termination_reason` of the execution."""

    code = "timeout"
    default_remediation = "Try again with a longer time-out; a loaded host may need one."


class ExecutionFailed(VmExecutionError):
    """The machine could not carry out the request."""

    code = "execution_failed"


class ExecutionCancelled(ExecutionFailed):
    """Somebody stopped the execution, or the server did because it stops; it may have done something by then."""

    code = "cancelled"
    default_remediation = "Look at the history for how far it came; ask again if it is still wanted."


class GuestFileError(ExecutionFailed):
    """A file operation inside the machine failed; `details["errno"]` has the name of the error, such as `ENOENT`."""

    code = "file_error"
    default_remediation = "Check the path; it is a path inside the sandbox, relative ones start in the work directory."


class SnapshotFailed(VmExecutionError):
    """A snapshot could not be taken; the sandbox goes on as before."""

    code = "snapshot_failed"
    default_remediation = "Is there space for snapshots? Is code running in the sandbox? Try again when it is idle."
    default_retryable = True


class SnapshotNotFound(VmExecutionError):
    """There is no such snapshot."""

    code = "snapshot_not_found"
    default_remediation = (
        "list_snapshots() shows what there is; snapshots end with their sandbox, but for kept ones (keep=True)."
    )
    default_retryable = True


class RollbackFailed(VmExecutionError):
    """A sandbox could not be taken back; it goes on as it was before the attempt."""

    code = "rollback_failed"
    default_retryable = True


class ForkFailed(VmExecutionError):
    """Some copies of a sandbox could not be started. `children` has those that were, `errors` why the others were
    not; use or kill the former."""

    code = "fork_failed"

    default_remediation = "Look at `errors` for the reasons; use or kill the `children` that did start."

    def __init__(self, message: str, children: Sequence[Any] = (), errors: Sequence[VmExecutionError] = ()) -> None:
        reasons = [error.to_dict() for error in errors]
        super().__init__(message, details={"started": len(children), "errors": reasons} if reasons else None)
        self.children = list(children)
        self.errors = list(errors)


class SessionNotFound(VmExecutionError):
    """There is no such sandbox, context or command."""

    code = "session_not_found"
    default_remediation = "List what exists first; a context ends with its sandbox."
    default_retryable = True


class HistoryError(VmExecutionError):
    """The history could not be opened, written or read. Nothing runs that cannot be recorded: what was to run did not,
    unless the message says that it did."""

    code = "history_error"
    default_remediation = (
        "Set `state_dir` (EMBERBOX_STATE_DIR) to a folder with space that you may write to, or switch recording off: "
        "vm_execution.history.enabled = false."
    )


class ImageError(VmExecutionError):
    """A template could not be built, found or read."""

    code = "image_error"
    default_remediation = "Run `emberbox image build NAME` again; the message has the end of the build's own output."
    default_retryable = True


class ApiError(VmExecutionError):
    """A server refused a request for a reason that no other error has; `details["status"]` is the HTTP status."""

    code = "api_error"
    default_remediation = "Is this the address of an Emberbox server? `curl URL/health` answers on one."


class Unauthorized(ApiError):
    """The server wants a token, or does not know (any more) the one that it got."""

    code = "unauthorized"
    default_remediation = (
        "Give a token that `emberbox token create` printed: `token=`, --token, or the variable EMBERBOX_TOKEN."
    )
    default_retryable = True


class Forbidden(ApiError):
    """The token may not do this."""

    code = "forbidden"
    default_remediation = "Use a token with the scope that the message names; `emberbox token list` shows them."
    default_retryable = True


class TooManyRequests(ApiError):
    """The caller asks more at once, or more often, than it may."""

    code = "too_many_requests"
    default_remediation = "Wait as long as `Retry-After` says, then try again; the limits are in the server's settings."
    default_retryable = True


class RequestTooLarge(ApiError):
    """The request is longer than the server's `max_body_bytes`."""

    code = "too_large"
    default_remediation = "Send less at once, or write large data as a file of the sandbox; or raise max_body_bytes."
    default_retryable = True


class Conflict(ApiError):
    """What was asked for does not fit what there is: a name that is taken, a key that was used for something else."""

    code = "conflict"
    default_remediation = "Look at what there is, and choose another name or key."
    default_retryable = True


class Internal(VmExecutionError):
    """A defect of Emberbox. Please report it with the message."""

    code = "internal"
    default_remediation = "Please report this with the message and the output of `emberbox doctor --json`."


def error_classes() -> dict[str, type[VmExecutionError]]:
    """Every error by its code, as answers of the server name them."""
    found: dict[str, type[VmExecutionError]] = {}
    todo: list[type[VmExecutionError]] = [VmExecutionError]
    while todo:
        one = todo.pop()
        found.setdefault(one.code, one)
        todo += one.__subclasses__()
    return found
