#!/usr/bin/env python3
"""A stand-in for the load balancer: tells a Martlet router what can be forwarded. See docs/readiness.md.

Usage: example.py SOCKET GATEWAY VIP...    While the file SOCKET.drain exists, it says that it drains.
"""
import json, os, socket, struct, sys, threading, time

path, gateway, *vips = sys.argv[1:]


def hear(router):
    """Prints each word of a router; no word for three seconds, or a bad one, ends the connection."""
    try:
        for line in router.makefile():
            said = json.loads(line)
            assert said["version"] == 1, said
            print(json.dumps(said["connectivity"]), flush=True)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        print("router:", error, file=sys.stderr)
    router.close()


def serve(router):
    """Sends the whole value every second; a real data plane sends it at each change as well."""
    threading.Thread(target=hear, args=(router,), daemon=True).start()
    try:
        while True:
            known = {vip: {"ready": True, "reason": ""} for vip in vips}  # ask your data plane here
            draining = os.path.exists(path + ".drain")
            value = {"version": 1, "gateway": gateway, "draining": draining, "vips": known}
            router.sendall(json.dumps(value).encode() + b"\n")
            time.sleep(1)
    except OSError:
        pass  # It has gone; it, or the next one, connects again.


listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chmod(path, 0o660)
listener.listen()
while True:
    router = listener.accept()[0]
    uid = struct.unpack("3i", router.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    if uid in (0, os.getuid()):
        router.settimeout(3)
        threading.Thread(target=serve, args=(router,), daemon=True).start()
    else:
        router.close()
