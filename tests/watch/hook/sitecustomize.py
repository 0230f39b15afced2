"""Imported by every Python that starts with this folder on its path: notes whom it reaches.

The same lines as ``shim.c`` writes, into the file that WATCH_AUDITED names.
"""

import os
import sys

_FAMILIES = {1: "unix", 2: "inet", 10: "inet6", 30: "inet6"}  # 30 on macOS
_file = os.environ["WATCH_AUDITED"]


def _line(event, arguments):
    call = event.removeprefix("socket.")
    if call in ("connect", "sendto", "sendmsg"):
        to = arguments[1]
        if to is None:  # sent over a connection, which was noted when it was made
            return None
        family = _FAMILIES.get(int(arguments[0].family), "other")
        if family == "inet":
            to = f"{to[0]}:{to[1]}"
        elif family == "inet6":
            to = f"[{to[0]}]:{to[1]}"
        return f"{call} {family} {to}"
    if call in ("getaddrinfo", "gethostbyname", "gethostbyaddr") and arguments[0]:
        name = arguments[0]
        return f"{call} name {name.decode() if isinstance(name, bytes) else name}"
    return None


def _note(event, arguments):
    if not event.startswith("socket."):
        return
    line = _line(event, arguments)
    if line is not None:
        file = os.open(_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, f"{line}\n".encode())
        os.close(file)


sys.addaudithook(_note)
