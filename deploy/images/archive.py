#!/usr/bin/env python3
"""The image of Martlet without a base image: a docker-archive and an SBOM, from the binary and exactly the libraries it needs.

    archive.py --binary target/release/martlet --output target/images/martlet.tar [--tag martlet:latest]
    archive.py --binary target/release/martlet --root DIRECTORY      the same files into a folder, for a Containerfile

The binary carries its capabilities as permitted (`=p`), never as effective: with `e` the kernel refuses to start it wherever one
of them is withheld. The same input gives the same archive, octet for octet. Nothing here speaks to an engine or a registry.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import re
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

USER = 65532
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# linux/capability.h: NET_BIND_SERVICE, NET_ADMIN, NET_RAW, SYS_NICE (BFD's thread asks for real-time priority where it may).
CAPABILITIES = (10, 12, 13, 23)
PASSWD = f"root:x:0:0:root:/:/sbin/nologin\nmartlet:x:{USER}:{USER}:Martlet:/:/sbin/nologin\n"
GROUP = f"root:x:0:\nmartlet:x:{USER}:\n"
# Folders, and who owns them: sockets, objects, a lb socket where no volume is mounted.
FOLDERS = {"etc": 0, "etc/martlet": 0, "run": 0, "run/martlet": USER, "var": 0, "var/lib": 0, "var/lib/meridio": USER, "tmp": 0,
           "proc": 0, "sys": 0, "dev": 0}


def capability(effective: bool) -> bytes:
    """The attribute `security.capability`, version 2: magic and flags, then permitted and inheritable, low and high words."""
    permitted = sum(1 << number for number in CAPABILITIES)
    return struct.pack("<5I", 0x0200_0000 | int(effective), permitted, 0, 0, 0)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def libraries(binary: Path) -> dict[str, Path]:
    """Where the binary looks for its libraries, and what lies there; empty if it is static."""
    told = subprocess.run(["ldd", binary], capture_output=True, text=True)
    found = {}
    for line in told.stdout.splitlines():
        if "not found" in line:
            sys.exit(f"archive: {binary}: {line.strip()}")
        if match := re.search(r"(/\S+) \(0x", line):
            found[match[1].lstrip("/")] = Path(match[1]).resolve()
    return found


def files(binary: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What lies where: first what seldom changes, then the binary."""
    base = {"etc/passwd": PASSWD.encode(), "etc/group": GROUP.encode(), "etc/nsswitch.conf": b"hosts: files dns\n"}
    for place, library in libraries(binary).items():
        base[place] = library.read_bytes()
    licence = Path(__file__).resolve().parents[2] / "LICENSE"
    base["usr/share/doc/martlet/LICENSE"] = licence.read_bytes()
    return base, {"usr/bin/martlet": binary.read_bytes()}


def folders_of(paths: list[str]) -> dict[str, int]:
    """The folders that files need, parents first."""
    needed = {str(parent): 0 for path in paths for parent in Path(path).parents if str(parent) != "."}
    return dict(sorted(needed.items()))


def is_program(path: str) -> bool:
    return path.startswith(("usr/bin/", "lib")) or "/lib" in path


def layer(content: dict[str, bytes], folders: dict[str, int], when: int, effective: bool) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, owner in sorted({**folders_of(list(content)), **folders}.items()):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mtime, entry.uid, entry.gid = tarfile.DIRTYPE, when, owner, owner
            entry.mode = 0o1777 if path == "tmp" else 0o755
            tar.addfile(entry)
        for path, octets in sorted(content.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mtime = len(octets), when
            entry.mode = 0o755 if is_program(path) else 0o644
            if path == "usr/bin/martlet":
                # Octets, not text: surrogateescape is how tarfile takes them.
                value = capability(effective).decode("utf-8", "surrogateescape")
                entry.pax_headers = {"SCHILY.xattr.security.capability": value}
            tar.addfile(entry, io.BytesIO(octets))
    return target.getvalue()


def digest(octets: bytes) -> str:
    return hashlib.sha256(octets).hexdigest()


def archive(options: argparse.Namespace, when: int) -> int:
    base, product = files(options.binary)
    layers = [layer(base, FOLDERS, when, effective=False), layer(product, {}, when, options.effective)]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
    config = json.dumps({
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": created,
        "config": {
            "User": f"{USER}:{USER}",
            "Entrypoint": ["/usr/bin/martlet"],
            "Env": ["PATH=/usr/bin"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "martlet",
                "org.opencontainers.image.description": "BGP, BFD and a stateless load balancer for the VIPs of Kubernetes",
                "org.opencontainers.image.licenses": "Apache-2.0",
                "org.opencontainers.image.version": options.version,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(one)}" for one in layers]},
        "history": [{"created": created, "created_by": text} for text in ("libraries and folders", "martlet")],
    }, sort_keys=True).encode()
    names = [f"{digest(one)}/layer.tar" for one in layers]
    manifest = json.dumps([{"Config": f"{digest(config)}.json", "RepoTags": [options.tag], "Layers": names}]).encode()
    members = [(f"{digest(config)}.json", config), *zip(names, layers), ("manifest.json", manifest)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.output, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, octets in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(octets), when, 0o644
            tar.addfile(entry, io.BytesIO(octets))
    return sum(len(one) for one in layers)


def lay_out(options: argparse.Namespace) -> None:
    root = options.root
    for content in files(options.binary):
        for path, octets in content.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(octets)
            target.chmod(0o755 if is_program(path) else 0o644)
    for path, owner in FOLDERS.items():
        (root / path).mkdir(parents=True, exist_ok=True)
        os.chown(root / path, owner, owner)
    (root / "tmp").chmod(0o1777)
    os.setxattr(root / "usr/bin/martlet", "security.capability", capability(effective=False))


def component(kind: str, name: str, version: str, purl: str, licence: str = "", sha256: str = "") -> dict:
    found: dict = {"type": kind, "name": name, "version": version, "purl": purl, "bom-ref": purl}
    if licence:
        found["licenses"] = [{"expression": licence.replace("/", " OR ")}]
    if sha256:
        found["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return found


def crates(repository: Path) -> list[dict]:
    """The crates that are in the binary: normal dependencies on this platform, with the features it was built with."""
    lock = (repository / "Cargo.lock").read_text()
    sums = {(name, version): sha256 for name, version, sha256 in
            re.findall(r'name = "(.+)"\nversion = "(.+)"\nsource = .+\nchecksum = "(.+)"', lock)}
    told = run("cargo", "tree", "--locked", "--manifest-path", str(repository / "Cargo.toml"), "-p", "martlet-cli", "-e", "normal,no-proc-macro",
               "--prefix", "none", "--format", "{p}|{l}")
    found = {}
    for line in told.splitlines():
        package, licence = line.removesuffix(" (*)").split("|")
        name, version = package.split()[:2]
        version = version.removeprefix("v")
        licence = licence.removesuffix(" (*)")
        found[name, version] = component("library", name, version, f"pkg:cargo/{name}@{version}", licence,
                                         sums.get((name, version), ""))
    return [found[key] for key in sorted(found)]


def packages(binary: Path) -> list[dict]:
    """The packages that the libraries come from, where dpkg knows them."""
    found = {}
    for place, library in libraries(binary).items():
        asked = subprocess.run(["dpkg-query", "-S", f"*/{library.name}"], capture_output=True, text=True)
        owner = asked.stdout.split(":")[0] if asked.returncode == 0 else ""
        version = run("dpkg-query", "-W", "-f", "${Version}", owner).strip() if owner else "unknown"
        name = owner or library.name
        purl = f"pkg:deb/debian/{name}@{version}" if owner else f"pkg:generic/{name}"
        entry = found.setdefault(name, component("library", name, version, purl))
        entry.setdefault("properties", []).append({"name": "file", "value": f"/{place} sha256:{digest(library.read_bytes())}"})
    return list(found.values())


def bill(options: argparse.Namespace, when: int) -> int:
    repository = Path(__file__).resolve().parents[2]
    components = crates(repository) + packages(options.binary)
    product = component("application", "martlet", options.version, f"pkg:generic/martlet@{options.version}", "Apache-2.0",
                        digest(options.binary.read_bytes()))
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
                "metadata": {"timestamp": created, "component": product}, "components": components}
    options.output.with_suffix(".cdx.json").write_text(json.dumps(document, indent=1) + "\n")
    return len(components)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--tag", default="martlet:latest")
    parser.add_argument("--version", default="0.1.0")
    parser.add_argument("--effective", action="store_true", help="with `=ep`, to show why not")
    parser.add_argument("--no-sbom", action="store_true")
    options = parser.parse_args()
    when = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    if options.root:
        lay_out(options)
    elif options.output:
        size = archive(options, when)
        told = f"{options.output}: {options.tag}, {size / 1e6:.1f} MB in two layers"
        if not options.no_sbom:
            told += f"; {bill(options, when)} components in {options.output.with_suffix('.cdx.json')}"
        print(told)
    else:
        parser.error("--output or --root")


main()
