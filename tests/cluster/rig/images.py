"""Images in the nodes' containerd: there is no registry, so every image comes as a file."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.rig import tools
from tests.cluster.rig.network import inside_node
from tests.cluster.rig.settings import PAUSE_IMAGE, TOOLS_IMAGE, Node, Rig, RigError
from tests.cluster.rig.shell import run

CTR = ("ctr", "--namespace=k8s.io")
LAYOUT_LOADER = Path(__file__).parents[3] / "images" / "load.sh"
CONTAINERFILE = """\
FROM scratch
COPY rootfs /
ENV PATH=/bin
ENTRYPOINT ["/bin/busybox", "sleep", "infinity"]
"""
IMPORTED = re.compile(r"^unpacking (\S+) \((sha256:[0-9a-f]{64})\)", re.MULTILINE)


def load(rig: Rig, archive: Path, nodes: list[Node]) -> list[str]:
    """Import an archive or a folder of `make images` into the nodes; a `name@sha256:…` for each image in it.

    Of a folder only the layers that a node lacks are sent: after a change of code a second, not minutes.

    The kubelet asks containerd whether it has an image under exactly the reference of the pod; a second name
    in its store, with the digest, is what makes it answer yes without a registry.
    """
    references: dict[str, None] = {}
    for node in nodes:
        if archive.is_dir():
            references[run([LAYOUT_LOADER, archive, *inside_node(rig, node), *CTR]).strip()] = None
            continue
        ctr = [*inside_node(rig, node), *CTR, "images"]
        with archive.open("rb") as content:
            done = subprocess.run(
                [*ctr, "import", "-"], stdin=content, capture_output=True, text=True, check=False
            )
        images = IMPORTED.findall(done.stdout)
        if done.returncode or not images:
            raise RigError(f"{archive}: no image imported: {(done.stderr or done.stdout).strip()[-500:]}")
        for name, digest in images:
            reference = f"{_repository(name)}@{digest}"
            run([*ctr, "tag", "--force", name, reference])
            references[reference] = None
    return list(references)


def digest(rig: Rig, name: str) -> str:
    """`NAME@sha256:…` of an image loaded under that name and tag; RigError when no node has it."""
    full = _full_name(name)
    for node in rig.nodes:
        listing = run([*inside_node(rig, node), *CTR, "images", "list", f"name=={full}"])
        if found := re.search(rf"^{re.escape(full)}\s+\S+\s+(sha256:[0-9a-f]+)", listing, re.MULTILINE):
            return f"{_repository(full)}@{found[1]}"
    raise RigError(f"image: no node has it, got {name!r}; load its archive first")


def load_own(rig: Rig, node: Node, binaries: Path) -> None:
    """Give a node the pause image, without which no pod starts, and the image with busybox and kubectl."""
    kubectl = binaries / "kubectl"
    for name, programs in ((PAUSE_IMAGE, []), (TOOLS_IMAGE, [kubectl])):
        load(rig, build(name, programs), [node])


def build(name: str, programs: list[Path]) -> Path:
    """A docker archive of busybox and the given programs, from the cache when it was made before."""
    busybox = Path(shutil.which("busybox") or "busybox")
    made_of = hashlib.sha256(CONTAINERFILE.encode() + busybox.read_bytes())
    for program in programs:
        made_of.update(program.name.encode() + program.read_bytes())
    archive = tools.cache() / "images" / f"{name.replace('/', '_')}-{made_of.hexdigest()[:12]}.tar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="image-", dir=archive.parent) as scratch:
        folder = Path(scratch)
        _lay_out(folder / "rootfs", busybox, programs)
        (folder / "Containerfile").write_text(CONTAINERFILE)
        buildah: list[str | Path] = [
            "buildah",
            "--storage-driver=vfs",
            "--root",
            folder / "root",
            "--runroot",
            folder / "runroot",
        ]
        run([*buildah, "build", "--isolation=chroot", "--tag", name, folder])
        partial = folder / "image.tar"
        run([*buildah, "push", "--quiet", name, f"docker-archive:{partial}:{name}"])
        partial.rename(archive)
    return archive


def _lay_out(rootfs: Path, busybox: Path, programs: list[Path]) -> None:
    """Busybox under all its names, the programs, and the folders every program expects."""
    for folder in ("bin", "etc", "tmp"):
        (rootfs / folder).mkdir(parents=True)
    (rootfs / "tmp").chmod(0o1777)
    shutil.copy(busybox, rootfs / "bin" / "busybox")
    for applet in run([busybox, "--list"]).split():
        if applet != "busybox":
            (rootfs / "bin" / applet).symlink_to("busybox")
    for program in programs:
        shutil.copy(program, rootfs / "bin" / program.name)
    (rootfs / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\norch:x:10001:10001::/tmp:/bin/sh\n")


def _full_name(name: str) -> str:
    """As containerd writes it: `docker.io/library/` before a name without a registry."""
    first = name.split("/")[0]
    if "/" not in name:
        return f"docker.io/library/{name}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"


def _repository(name: str) -> str:
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name
