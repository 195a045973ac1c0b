"""The ways into a server, and which of them an upload takes: small ones over REST, large ones straight into its store.

CPU milliseconds of client and server together for one object, its server with its store in memory and on a disk (16
threads, 15 rounds of all ways in turn, two cores on which much else ran, so that times scattered by half), and the
share of time that linking takes of REST:

=======  ==============  ==============  ============  ===========  ===========
size     REST (`lane`)   linked, copied  linked/REST   S3, obstore  S3, boto3
=======  ==============  ==============  ============  ===========  ===========
4 KiB    0.34, 1.10      0.37, 1.23      0.94, 1.09    0.36, 0.91   -, 1.97
64 KiB   0.54, 1.05      0.60, 1.19      1.01, 1.07    -            -
256 KiB  1.18, 1.57      1.02, 1.21      0.73, 0.48    -            -
1 MiB    3.8, 3.9        3.3, 3.0        0.95, 0.66    4.8, 6.0     6.1, 5.7
4 MiB    13.4, 12.9      9.5, 7.9        0.82, 0.72    -            -
64 MiB   205, 186        119, 100        0.62, 0.77    -, 366       -, 250
=======  ==============  ==============  ============  ===========  ===========

REST costs the server the md5, a sha256 that nobody asks for, and the way through a socket; linking costs a second
request. The gateway spares nothing of this (spoken by a `Lane`: 0.34 in memory at 4 KiB); obstore, which speaks it
without the interpreter, took 0.31 to our 0.45 on an idle machine, and learns less of what became of the object. Without
a copy linking costs the same for an object of any size, but the object would change with the caller's file.
"""

from pathlib import Path

from lake.engines.lakefs import local_store, objects
from lake.engines.lakefs.local_store import LocalStore
from lake.engines.lakefs.wire import Wire
from lake.repository import Metadata, ObjectStat

#: From this size on, bytes.
LARGE = 256 << 10


class Uploads:
    """Stages objects of one repository; safe between threads."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._store: LocalStore | None = None
        self._looked = False

    def put(self, branch: str, key: str, data: bytes | Path, content_type: str, metadata: Metadata) -> ObjectStat:
        """Stage bytes, or the content of a file; names and branch are checked by the caller.

        The first large object goes over REST; whether it is found in a folder of this machine tells whether the others
        can go there themselves.
        """
        objects.check_content_type(key, content_type)
        content, size = objects.content_of(data)
        store = self._store
        if store is not None and size >= LARGE:
            placed = store.put(self._wire, branch, key, content, size, content_type, metadata)
            if placed is not None:
                return placed
            # Another server, or one on another folder, answers at this address now.
            self._store, self._looked = None, False
        stat = objects.put(self._wire, branch, key, content, content_type, metadata)
        if size >= LARGE and not self._looked:
            self._store, self._looked = local_store.find(self._wire, stat, content), True
        return stat
