"""Swift without root and outside /etc: its servers, its rings, an in-process cache and a mended HEAD.

Runs under the system's Python, which has Swift; nothing of this project is imported.

    swift_server.py FOLDER rings ACCOUNT_PORT CONTAINER_PORT OBJECT_PORT
    swift_server.py FOLDER account-server|container-server|object-server|proxy-server|object-updater
"""

# pyright: reportMissingImports=false
import json
import os
import sys
import time

sys.path.pop(0)  # this file's folder, whose names must not hide the system's
sys.modules["nfm_swift"] = sys.modules[__name__]  # by which the proxy's configuration finds the filters

SECONDS = 60
KEPT = 10_000  # entries


class Cache:
    """What Swift keeps in memcached, kept in the proxy, which is a single process.

    An open memcached would let every user of the machine make himself a token.
    """

    def __init__(self):
        self._entries = {}

    def get(self, key, raise_on_error=False):
        until, text = self._entries.get(key, (0.0, "null"))
        return json.loads(text) if until > time.time() else None

    def set(self, key, value, serialize=True, time=0, min_compress_len=0, raise_on_error=False):
        if len(self._entries) >= KEPT:
            self._entries.clear()
        self._entries[key] = (_now() + (time or SECONDS), json.dumps(value))

    def incr(self, key, delta=1, time=0):
        value = max(0, int(self.get(key) or 0) + int(delta))
        self.set(key, value, time=time)
        return value

    def decr(self, key, delta=1, time=0):
        return self.incr(key, -int(delta), time)

    def delete(self, key, server_key=None):
        self._entries.pop(key, None)

    def set_multi(self, mapping, server_key, serialize=True, time=0, min_compress_len=0):
        for key, value in mapping.items():
            self.set(key, value, time=time)

    def get_multi(self, keys, server_key):
        return [self.get(key) for key in keys]


def _now():
    return time.time()


def cache(global_conf, **local_conf):
    """Returns the filter that gives requests the cache; the entry point for PasteDeploy."""
    kept = Cache()

    def make(app):
        def serve(environment, start_response):
            environment["swift.cache"] = kept
            return app(environment, start_response)

        return serve

    return make


def sized_head(global_conf, **local_conf):
    """Returns the filter that gives every answer to HEAD a length; the entry point for PasteDeploy.

    Without one eventlet sends the end of a chunked body, which an answer to HEAD must not have, and which clients such
    as aiohttp take for the next answer.
    """

    def make(app):
        def serve(environment, start_response):
            def start(status, headers, *rest):
                if not any(name.lower() == "content-length" for name, _ in headers):
                    headers = [*headers, ("Content-Length", "0")]
                return start_response(status, headers, *rest)

            return app(environment, start if environment["REQUEST_METHOD"] == "HEAD" else start_response)

        return serve

    return make


def make_rings(folder, ports):
    """Writes rings of a single device; what it stores does not move when a port changes."""
    from swift.common.ring import RingBuilder

    for name, port in zip(("account", "container", "object"), ports, strict=True):
        builder = RingBuilder(8, 1, 1)
        place = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk", "weight": 1.0}
        builder.add_dev({**place, "replication_ip": "127.0.0.1", "replication_port": int(port)})
        builder.rebalance(seed=0)
        temporary = os.path.join(folder, name + ".new")
        builder.get_ring().save(temporary)
        os.replace(temporary, os.path.join(folder, name + ".ring.gz"))


def main():
    folder, what, ports = sys.argv[1], sys.argv[2], sys.argv[3:]
    from swift.common.utils import set_swift_dir

    set_swift_dir(folder)
    if what == "rings":
        make_rings(folder, ports)
    elif what == "object-updater":
        from swift.common.daemon import run_daemon
        from swift.obj.updater import ObjectUpdater

        run_daemon(ObjectUpdater, os.path.join(folder, "object-server.conf"), section=what, verbose=True)
    else:
        from swift.common.wsgi import run_wsgi

        sys.exit(run_wsgi(os.path.join(folder, what + ".conf"), what, verbose=True))


if __name__ == "__main__":
    main()
