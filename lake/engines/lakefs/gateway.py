"""Why the S3 gateway failed: it answers lack of room, like all its troubles, with 500 and no reason.

The REST interface of the same server tells, so it is asked there: by an upload of as many bytes as could not be
written, onto a hidden branch that is gone afterwards.
"""

from urllib.parse import urlsplit

from lake.engines.lakefs import local_store
from lake.engines.lakefs.address import Address
from lake.engines.lakefs.wire import Wire
from lake.errors import LakeError, NoRoom, ServerUnreachable
from lake.location import Location, S3Access
from lake.room import wanted

# Bytes: what is written at least, with its metadata, and how much is sent at most to find out.
_LEAST, _MOST = 128 << 10, 256 << 20


def trouble_behind(location: Location, access: S3Access, needed: int) -> LakeError | None:
    """Give `NoRoom` or `ServerUnreachable` if that is why nothing can be written at a location, else None.

    Parameters
    ----------
    needed : int
        Bytes that were to be written; 0 if nobody knows.
    """
    name = location.root.partition("/")[0]
    url = urlsplit(access.endpoint)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    wire = Wire(Address(host, port, name, url.scheme, access.access_key_id, access.secret_access_key, "a location"))
    try:
        with local_store.trial(wire, bytes(min(max(needed, _LEAST), _MOST))):
            return None
    except NoRoom as error:
        message = f"{location.uri}: the server has no room ({wanted(needed)})"
        told = NoRoom(message, fix=error.fix, needed=needed, code=error.code)
        told.__cause__ = error
        return told
    except ServerUnreachable as error:
        return error
    except LakeError:
        return None
    finally:
        wire.close()
