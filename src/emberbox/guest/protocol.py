"""The protocol between the host and the agent in a machine, and its framing. Both sides import this module.

A frame is `u32 size, u32 header_size, header, payload` (big endian; `size` counts everything after itself). The header
is a JSON object, the payload raw bytes. A request carries `{"id": n, "op": name, ...}` with n > 0, unique on its
channel; the agent answers with any number of events and then exactly one final event, all with the request's id:

    {"id": n, "ev": "done", ...}                         final: success of the *request* (user code may have failed)
    {"id": n, "ev": "error", "kind": k, "message": m}    final: the request could not be carried out; kind is one of
                                                         bad_request, not_found, busy, unsupported, file, internal
                                                         (kind "file" adds "errno": "ENOENT" and the like)

A request may say `crc`, the CRC-32 of its payload: another payload is a bad_request.
Many requests are under way at once. With id 0 the agent sends `{"id": 0, "ev": "hello", "protocol": 1}` once at boot.
A peer that breaks the framing or a bound below is not to be trusted any more: the host kills the machine.

Operations (absent optional fields mean their default; "secs" are floats; paths are guest paths, relative ones start in
the work directory):

configure   {uid, gid, home, workdir, hostname, env: {..}, languages: [..], warm: [..], warmup: "python source" | null,
             nproc, nofile, memory: bytes | null, python_path: [..]} -> done {}
            Sent once before any other request but ping and sync. Starts the Python zygote and the warm languages.
ping        {} -> done {}
sync        {nonce} -> done {nonce}
run_code    {language, context: id | null, cwd: path | null, env: {..}, args: [..], timeout: secs | null,
             stdin_size: n (the last n bytes of the payload are stdin),
             stdout_limit, stderr_limit, results_limit: bytes, track: bool,
             rehearsal: bool}
            payload: code (UTF-8) + stdin
            -> started {context}
            -> stdout / stderr     payload: bytes as they arrive, never cut inside a UTF-8 sequence where avoidable
            -> result {main: bool} payload: JSON object {MIME type: value}; binary formats are base64 strings, JSON
                                   formats are JSON values
            -> done {exit_code, reason, context, context_survived, execution_count, error: {name, value, traceback} |
                     null, stdout_truncated, stderr_truncated, results_truncated, duration_ms, late?: str,
                     changes: {created: [path], changed: [path], deleted: [path], more: n} | null}
            With `track`, `changes` names the files that are other than before, as far as they fit (`more` counts the
            rest); null when there are too many files to look at.
            With `rehearsal` (Python alone), a spare interpreter runs the code and forgets it: no context comes of it.
            context null is the default context of the language, made at first use. `busy` if that context is running
            something already. reason: completed, timeout, memory, processes, disk, killed, crashed, interrupted,
            output-truncated.
context_create  {language, cwd: path | null, env: {..}} -> done {context}
context_list    {} -> done {contexts: [{context, language, cwd, busy, pid}]}
context_restart {context} -> done {}
context_remove  {context} -> done {}
exec        {argv: [..], cwd, env, stdin: bool (false: /dev/null), timeout: secs | null, stdout_limit, stderr_limit}
            -> started {pid}, stdout / stderr as above
            -> done {exit_code, reason, stdout_truncated, stderr_truncated, duration_ms}
            exit_code is 128 + signal for a process that died of a signal.
signal      {target: id of a run_code or exec under way, signal: number} -> done {}
            {target: 0, context: id | null, signal: number} -> done {count}: every run_code, or the one of a context.
            SIGINT interrupts (for run_code the context survives if its language can), SIGKILL kills the process group
            and ends the context.
stdin       {target: id of an exec with stdin, eof: bool} payload: bytes -> done {} once they are in the pipe
processes   {} -> done {processes: [{target, pid, argv, cwd, started_ms_ago}]}: every exec under way
read        {path, offset, length <= CHUNK_SIZE, ident: str | null} -> done {size, ident, eof} payload: bytes
            ident names the file that was opened; when given, another file under that name is an error (ESTALE).
write       {path, upload: token, offset, final: bool, mode: int | null} payload: bytes -> done {size, mark}
            Chunks go to a temporary file beside the target, renamed onto it by the final one: a reader never sees half
            a file. Missing parent directories are made. What no chunk covers is zeros.
write_abort {path, upload} -> done {}
list        {path, depth >= 1, limit} -> done {truncated} payload: JSON list of entries as of stat
stat        {path} -> done {entry: {path, name, type: file|dir|symlink|other, size, mode, mtime, uid, gid, target}}
tree        {folders: bool} -> done {exact: 2, free: [[root, device, bytes]]}
            payload: JSON list of [path, file|symlink|other|dir, size, mode, mark, target | null]
            All that is no directory where the user may write; the mark differs when the file does. With `folders`,
            directories as well: their mark is `closed` where their content cannot be seen, `own` where the agent keeps
            something in them, else empty. `free`: of the folders below which the user may write, what their file
            systems still take.
mkdir       {path} -> done {created: bool}
remove      {path} -> done {} (recursive)
rename      {path, to} -> done {}
quiesce     {look: bool, count: bool} -> done {idle: bool, files: int | null}
            Before a checkpoint. What runs goes on, but after the answer the agent sends nothing and takes no output
            until `wake`: the channel is empty, so that a copy of the machine begins at the start of a frame. `busy`
            while a run_code is under way. With `count`, `files` says how many files and folders there are. With `look`,
            `idle` says that no process of the user's does anything: there are interpreters that wait for code, if any.
idle        {} -> done {idle: bool}: nothing is under way, and no process of the user's does anything (as of quiesce)
wake        {fork: bool, env: {..}} -> done {}
            After a checkpoint, and the first request to a machine that was restored; `env` is added to the environment
            of whatever starts from now on. With fork the machine is a copy: requests with a lower id belong to the
            channel of the original, so nothing more is sent for them (their processes go on), and every interpreter
            gets new randomness before its next execution.
touch       {} -> done {}
            Spare interpreters run what warms them once more: in a copy, the first touch of every page costs.
metrics     {} -> done {processes, memory_used, disk_used, disk_total, contexts}   (bytes)
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # the agent in the machine saves the memory of the typing module
    from typing import Any, Dict, Tuple

    Header = Dict[str, Any]
else:
    Header = dict

PROTOCOL_VERSION = 1
PREFIX = struct.Struct("!II")
PAD = 0xFF
"""No frame begins with this byte, and no header has it (it is not UTF-8). A host that takes over from one that died in
the middle of a frame sends as many as the longest frame has: they end that frame, whatever was missing of it."""
MAX_HEADER = 1 << 20
MAX_PAYLOAD = 8 << 20
CHUNK_SIZE = 1 << 18
"""Bytes of file content or output that one frame carries at most."""

FINAL_EVENTS = frozenset({"done", "error"})


_PAD = bytes([PAD])


class ProtocolError(Exception):
    """The peer sent something that is not a frame of this protocol."""


def encode(header: Header, payload: bytes = b"", *, errors: str = "surrogatepass") -> bytes:
    """One frame as bytes. `errors`: what becomes of halves of surrogate pairs, which names of files may have in Python.

    Raises:
        ProtocolError: it would break the bounds that the other side enforces.
        UnicodeEncodeError: there are such halves, and `errors` is `strict`.
    """
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", errors)
    if len(head) > MAX_HEADER or len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"frame too large: header {len(head)} bytes, payload {len(payload)} bytes")
    return PREFIX.pack(4 + len(head) + len(payload), len(head)) + head + payload


class FrameDecoder:
    """Bytes in, frames out. Holds at most one frame's worth of bytes (MAX_HEADER + MAX_PAYLOAD) and what one feed adds.

    `padded`: there may be PAD between frames, and frames that it has ended.

    >>> decoder = FrameDecoder()
    >>> decoder.feed(encode({"id": 1, "op": "ping"}, b"x"))
    >>> decoder.next()
    ({'id': 1, 'op': 'ping'}, b'x')
    >>> decoder.next() is None
    True
    """

    def __init__(self, *, padded: bool = False) -> None:
        self._buffer = bytearray()
        self._padded = padded

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Tuple[Header, bytes] | None:
        """The next whole frame, or None until more bytes are fed. Raises ProtocolError on nonsense."""
        buffer = self._buffer
        if self._padded and buffer[:1] == _PAD:
            self._buffer = buffer = buffer.lstrip(_PAD)
        if len(buffer) < PREFIX.size:
            return None
        size, head_size = PREFIX.unpack_from(buffer)
        if head_size > MAX_HEADER or size < 4 + head_size or size - 4 - head_size > MAX_PAYLOAD:
            if self._padded and buffer[PREFIX.size - 1] == PAD:  # cut in the middle of these numbers
                del buffer[: PREFIX.size]
                return self.next()
            raise ProtocolError(f"impossible frame: size {size}, header {head_size}")
        end = 4 + size
        if len(buffer) < end:
            return None
        head_end = PREFIX.size + head_size
        if self._padded and buffer[head_end - 1] == PAD:  # cut in the middle of the header
            del buffer[:end]
            return self.next()
        try:
            header = json.loads(bytes(buffer[PREFIX.size : head_end]))
        except (ValueError, RecursionError) as exc:
            raise ProtocolError("frame header is not JSON") from exc
        if not isinstance(header, dict) or type(header.get("id")) is not int or header["id"] < 0:
            raise ProtocolError("frame header has no id")
        payload = bytes(buffer[head_end:end])
        del buffer[:end]
        return header, payload
