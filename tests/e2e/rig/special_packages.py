"""Purpose-made packages with everything that is unusual about a package, for the test of equality.

Each is named for what it tries.  Big means more than 64 KiB: such files are what an installer may treat apart.
Maintainer scripts may run twice, as after a crash, and must leave the same state.
"""
import os
import subprocess
import tarfile

from debs import EPOCH, Package, file, fifo, folder, hard_link, noise, symlink

BIG = 200_000
LONG = "/".join(["a-directory-with-a-rather-long-name"] * 6)
NOT_UTF8 = b"caf\xe9".decode("utf-8", "surrogateescape")
# What stands on the machine before: installed at its first version, changed by its administrator.
OVERRIDDEN, LINKED_FOLDER = "usr/lib/eq/overridden-by-admin", "usr/share/eq-linked"

TEMPLATES = """\
Template: eq-debconf/answer
Type: string
Default: forty-two
Description: What is the answer?
 A test asks.

Template: eq-debconf/again
Type: boolean
Default: true
Description: Once more?
 A test asks again.
"""
TRIGGERED = """\
mkdir -p /var/lib/eq
case "$1" in
configure) echo "configured $(cat /usr/share/eq-triggers/* 2>/dev/null | wc -c)" >/var/lib/eq/trigger-configured ;;
triggered) echo "$2: $(ls /usr/share/eq-triggers)" >/var/lib/eq/triggered ;;
esac"""
SUMS = "mkdir -p /var/lib/eq\nsha256sum {paths} >/var/lib/eq/{name}.sums"


def big(seed, size=BIG):
    return noise(size, seed)


def ordinary(zstd):
    """Packages for an empty machine."""
    compressions = ["none", "gzip", "bzip2", "xz", "xz-blocks", "xz-blocks-without-sizes"]
    compressions += ["zstd"] if zstd else []
    made = [Package(f"eq-data-{kind}", data=kind, fields={"Architecture-Note": kind},
                    entries=[file(f"usr/lib/eq-data/{kind}/big", big(kind, 5_000_000)),
                             file(f"usr/lib/eq-data/{kind}/small", kind),
                             file(f"usr/lib/eq-data/{kind}/empty")]) for kind in compressions]
    made += [Package(f"eq-control-{kind}", control_data=kind, data=kind, entries=[file(f"usr/lib/eq-control/{kind}", big(kind))])
             for kind in (["none", "gzip", "xz"] + (["zstd"] if zstd else []))]
    return made + [
        Package("eq-sizes", entries=[file(f"usr/lib/eq-sizes/{size}", big(size, size)) for size in
                                     (1, 511, 512, 513, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1)]
                + [file("usr/lib/eq-sizes/zeros", bytes(3_000_000)), file("usr/lib/eq-sizes/40-megabytes", big(40, 40_000_000))]),
        Package("eq-empty", data="none"),
        Package("eq-modes", entries=[
            file("usr/lib/eq-modes/private", big(1), mode=0o600), file("usr/lib/eq-modes/readable", big(2), mode=0o444),
            file("usr/lib/eq-modes/none", big(3), mode=0), file("usr/lib/eq-modes/executable", big(4), mode=0o755),
            file("usr/lib/eq-modes/setuid", big(5), mode=0o4755), file("usr/lib/eq-modes/setgid", big(6), mode=0o2755,
                                                                     owner=(0, 5), names=("root", "tty")),
            file("usr/lib/eq-modes/sticky", big(7), mode=0o1644), file("usr/lib/eq-modes/setuid-small", "x", mode=0o4755),
            folder("usr/lib/eq-modes/open", 0o1777), folder("usr/lib/eq-modes/group", 0o2775, owner=(0, 5), names=("root", "tty")),
            folder("usr/lib/eq-modes/closed", 0o700), file("usr/lib/eq-modes/closed/big", big(8), mode=0o640)]),
        Package("eq-owners", entries=[
            file("usr/lib/eq-owners/games", big(1), owner=(5, 60), names=("games", "games")),
            file("usr/lib/eq-owners/name-wins", big(2), owner=(12345, 12345), names=("games", "games")),
            file("usr/lib/eq-owners/number", big(3), owner=(12345, 23456), names=("nobody-has-this", "nor-this")),
            file("usr/lib/eq-owners/no-name", big(4), owner=(7, 7), names=("", "")),
            symlink("usr/lib/eq-owners/link", "games", owner=(5, 60), names=("games", "games"))]),
        Package("eq-times", entries=[file(f"usr/lib/eq-times/{mtime}", big(mtime), mtime=mtime) for mtime in
                                     (1, 1_000_000_000, EPOCH, 2_200_000_000, 4_500_000_000)]
                + [folder("usr/lib/eq-times/folder", mtime=1_111_111_111), symlink("usr/lib/eq-times/link", "1", mtime=1)]),
        Package("eq-links", data="xz-blocks", entries=[
            file("usr/lib/eq-links/big", big(1, 2_000_000)), hard_link("usr/lib/eq-links/big-too", "usr/lib/eq-links/big"),
            hard_link("usr/share/eq-links/far", "usr/lib/eq-links/big"), file("usr/lib/eq-links/small", "s"),
            hard_link("usr/lib/eq-links/small-too", "usr/lib/eq-links/small"),
            symlink("usr/lib/eq-links/to-big", "big"), symlink("usr/lib/eq-links/nowhere", "/nonexistent/" + "t" * 150),
            fifo("usr/lib/eq-links/fifo", mode=0o620)]),
        Package("eq-names", data="xz-blocks", entries=[
            file(f"usr/lib/eq-names/{LONG}/big", big(1)), file(f"usr/lib/eq-names/{LONG}/{'n' * 240}", big(2)),
            hard_link(f"usr/lib/eq-names/{LONG}/linked", f"usr/lib/eq-names/{LONG}/{'n' * 240}"),
            symlink(f"usr/lib/eq-names/{LONG}/link", f"../{LONG}/big"),
            file("usr/lib/eq-names/Größe-日本", big(3)), file(f"usr/lib/eq-names/{NOT_UTF8}", big(4)),
            file("usr/lib/eq-names/with space", big(5)), file("usr/lib/eq-names/back\\slash", big(6)),
            file("usr/lib/eq-names/'quoted' $(x)", big(7)), file("usr/lib/eq-names/-dash", big(8))]),
        Package("eq-ustar", tar=tarfile.USTAR_FORMAT, entries=[
            file(f"usr/lib/eq-ustar/{'p' * 60}/{'q' * 60}/big", big(1)), symlink("usr/lib/eq-ustar/link", "p" * 90)]),
        Package("eq-no-md5sums", md5sums=False, entries=[file("usr/lib/eq-no-md5sums/big", big(1)),
                                                         file("usr/lib/eq-no-md5sums/small", "s")]),
        Package("eq-conffiles", control={"conffiles": "/usr/lib/eq-conffiles/big.conf\n/etc/eq.conf\n/etc/eq/big.conf\n"},
                entries=[file("usr/lib/eq-conffiles/big.conf", big(1)), file("etc/eq.conf", "x = 1\n"),
                         file("etc/eq/big.conf", big(2)), file("etc/eq/big-but-no-conffile", big(3)),
                         file("usr/lib/eq-conffiles/big", big(4))]),
        Package("eq-usrmerge", entries=[file("lib/eq-usrmerge/big", big(1)), file("bin/eq-usrmerge", big(2), mode=0o755),
                                        file("usr/lib/eq-usrmerge-other/big", big(3)), file("sbin/eq-usrmerge", "s", mode=0o755),
                                        hard_link("lib/eq-usrmerge/linked", "lib/eq-usrmerge/big")]),
        Package("eq-linked-folder", entries=[file(f"{LINKED_FOLDER}/big", big(1)), file(f"{LINKED_FOLDER}/sub/big", big(2))]),
        Package("eq-opt", data="xz-blocks", entries=[file("opt/eq/lib/big", big(1, 3_000_000)), file("opt/eq/small", "s"),
                                                     hard_link("opt/eq/lib/linked", "opt/eq/lib/big"),
                                                     file("usr/lib/eq-opt/big", big(2))]),
        Package("eq-alternatives", entries=[file("usr/bin/eq-one", big(1), mode=0o755), file("usr/bin/eq-two", big(2), mode=0o755)],
                scripts={"postinst": "update-alternatives --install /usr/bin/eq-tool eq-tool /usr/bin/eq-one 10\n"
                                     "update-alternatives --install /usr/bin/eq-tool eq-tool /usr/bin/eq-two 20",
                         "prerm": "update-alternatives --remove eq-tool /usr/bin/eq-one\n"
                                  "update-alternatives --remove eq-tool /usr/bin/eq-two"}),
        Package("eq-diverter", fields={"Pre-Depends": "eq-predepended"}, entries=[file("usr/lib/eq-diverted/big", big("mine"))],
                scripts={"preinst": "dpkg-divert --package eq-diverter --add --rename --divert "
                                    "/usr/lib/eq-diverted/big.original /usr/lib/eq-diverted/big"}),
        Package("eq-diverted", fields={"Pre-Depends": "eq-diverter"},
                entries=[file("usr/lib/eq-diverted/big", big("original")), file("usr/lib/eq-diverted/other", big(2))]),
        Package("eq-predepended", entries=[file("usr/lib/eq-predepended/big", big(1))],
                scripts={"postinst": SUMS.format(paths="/usr/lib/eq-predepended/big", name="predepended")}),
        Package("eq-override", entries=[file("usr/lib/eq/overridden-by-script", big(1)), file(OVERRIDDEN, big(2)),
                                        file("usr/lib/eq/not-overridden", big(3))],
                scripts={"preinst": "dpkg-statoverride --list /usr/lib/eq/overridden-by-script >/dev/null || "
                                    "dpkg-statoverride --add root games 2755 /usr/lib/eq/overridden-by-script"}),
        Package("eq-trigger", control={"triggers": "interest /usr/share/eq-triggers\ninterest-noawait eq-named\n"},
                scripts={"postinst": TRIGGERED}),
        Package("eq-triggering", control={"triggers": "activate-noawait eq-named\n"},
                entries=[file("usr/share/eq-triggers/one", big(1)), file("usr/share/eq-triggers/two", "2")]),
        Package("eq-debconf", fields={"Depends": "debconf"}, control={"templates": TEMPLATES},
                entries=[file("usr/lib/eq-debconf/big", big(1))],
                # asked before anything is unpacked where apt-utils is installed: the script leaves a trace of that
                scripts={"config": "mkdir -p /var/lib/eq\n[ -e /usr/lib/eq-debconf/big ] || echo early >/var/lib/eq/asked\n"
                                   ". /usr/share/debconf/confmodule\ndb_input medium eq-debconf/answer || true\n"
                                   "db_input high eq-debconf/again || true\ndb_go || true",
                         "postinst": ". /usr/share/debconf/confmodule\ndb_get eq-debconf/answer\nmkdir -p /var/lib/eq\n"
                                     "echo \"$RET\" >/var/lib/eq/answer\ndb_stop"}),
        Package("eq-reads-itself", data="xz-blocks", entries=[
            file("usr/lib/eq-reads/big", big(1, 3_000_000)), file("usr/lib/eq-reads/run", "#!/bin/sh\necho ran\n", mode=0o755)],
                scripts={"postinst": SUMS.format(paths="/usr/lib/eq-reads/big", name="reads")
                         + "\n/usr/lib/eq-reads/run >/var/lib/eq/ran\nstat -c %h /usr/lib/eq-reads/run >/var/lib/eq/links"}),
        Package("eq-changes-itself", entries=[file("usr/lib/eq-changes/big", big(1)), file("usr/lib/eq-changes/moved", big(2)),
                                              file("usr/lib/eq-changes/given", big(3))],
                scripts={"postinst": "printf changed | dd of=/usr/lib/eq-changes/big bs=1 seek=100 conv=notrunc status=none\n"
                                     "touch -d @1500000000 /usr/lib/eq-changes/big\n"
                                     "chown games:games /usr/lib/eq-changes/given\nchmod 640 /usr/lib/eq-changes/given\n"
                                     "cp -a /usr/lib/eq-changes/moved /var/lib/eq-moved\n"
                                     "ln -f /usr/lib/eq-changes/moved /var/lib/eq-linked"}),
        Package("eq-cycle-a", fields={"Depends": "eq-cycle-b"}, entries=[file("usr/lib/eq-cycle/a", big(1))],
                scripts={"postinst": "true"}),
        Package("eq-cycle-b", fields={"Depends": "eq-cycle-a"}, entries=[file("usr/lib/eq-cycle/b", big(2))],
                scripts={"postinst": "true"}),
        Package("eq-under", entries=[file("usr/lib/eq-replaced/file", big("under")), file("usr/lib/eq-replaced/kept", big(1))]),
        Package("eq-over", fields={"Replaces": "eq-under", "Depends": "eq-under"},
                entries=[file("usr/lib/eq-replaced/file", big("over"))]),
        Package("eq-over-first", fields={"Replaces": "eq-under-later"}, entries=[file("usr/lib/eq-replaced/late", big("over"))]),
        Package("eq-under-later", fields={"Pre-Depends": "eq-over-first"},
                entries=[file("usr/lib/eq-replaced/late", big("under")), file("usr/lib/eq-replaced/kept-later", big(2))]),
        *[Package("libeqsame", architecture=architecture, fields={"Multi-Arch": "same"}, entries=[
            file(f"usr/lib/{triplet}/libeqsame.so.1", big(architecture)), file("usr/share/doc/libeqsame/both", big("both")),
            symlink(f"usr/lib/{triplet}/libeqsame.so", "libeqsame.so.1")],
                  control={"triggers": "activate-noawait ldconfig\n"})
          for architecture, triplet in (("amd64", "x86_64-linux-gnu"), ("i386", "i386-linux-gnu"))],
    ]


def versions():
    """Packages in two versions: the first is on the machine already."""
    news = "eq-upgraded (2.0) unstable; urgency=low\n\n  * A change that administrators are told of.\n\n -- T <root@localhost>  "
    news += "Sat, 01 Jan 2022 00:00:00 +0000\n"
    moved = big("moved")
    return [
        (Package("eq-upgraded", "1.0", entries=[
            file("usr/lib/eq-upgraded/same", big("same")), file("usr/lib/eq-upgraded/changed", big("old")),
            file("usr/lib/eq-upgraded/dropped", big("dropped")), file("usr/lib/eq-upgraded/becomes-link", big("file"))]),
         Package("eq-upgraded", "2.0", data="xz-blocks", entries=[
             file("usr/lib/eq-upgraded/same", big("same")), file("usr/lib/eq-upgraded/changed", big("new")),
             file("usr/lib/eq-upgraded/added", big("added")), symlink("usr/lib/eq-upgraded/becomes-link", "same"),
             file("usr/share/doc/eq-upgraded/NEWS.Debian", news)],
                 scripts={"preinst": "true", "postinst": SUMS.format(paths="/usr/lib/eq-upgraded/changed", name="upgraded")})),
        (Package("eq-moves-from", "1.0", entries=[file("usr/lib/eq-moves/file", moved), file("usr/lib/eq-moves/stays", big(1))]),
         Package("eq-moves-from", "2.0", fields={"Depends": "eq-moves-to"}, entries=[file("usr/lib/eq-moves/stays", big(1))])),
    ]


def newcomers():
    """Replaces without removal: the file moves here from an installed package."""
    return [Package("eq-moves-to", "2.0", fields={"Replaces": "eq-moves-from (<< 2.0)", "Breaks": "eq-moves-from (<< 2.0)"},
                    entries=[file("usr/lib/eq-moves/file", big("moved"))])]


def make(folder_of_new, folder_of_old, zstd=True):
    """Builds all; ([package files to install], [package files that are there before], what to ask apt for)."""
    for place in (folder_of_new, folder_of_old):
        os.makedirs(place, exist_ok=True)
    new = ordinary(zstd) + newcomers() + [later for _, later in versions()]
    explicit = {"libeqsame", "eq-upgraded", "eq-moves-from", "eq-sizes", "eq-names", "eq-moves-to"}
    depends = ", ".join(package.name for package in new if package.name not in explicit)
    new.append(Package("eq-all", fields={"Depends": depends}, entries=[file("usr/share/doc/eq-all/README", "all\n")]))
    asked = ["eq-all", "eq-sizes", "eq-names", "eq-upgraded", "eq-moves-from", "libeqsame:amd64", "libeqsame:i386"]
    return ([package.build(folder_of_new) for package in new], [earlier.build(folder_of_old) for earlier, _ in versions()], asked)


def prepare(root, old):
    """What stands on the machine before: two packages at their first version, and what its administrator changed."""
    def run(*command):
        subprocess.run(["chroot", root, *command], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    run("dpkg", "--add-architecture", "i386")
    for deb in old:
        with open(deb, "rb") as source, open(f"{root}/old.deb", "wb") as out:
            out.write(source.read())
        run("dpkg", "--install", "/old.deb")
        os.unlink(f"{root}/old.deb")
    run("dpkg-statoverride", "--add", "games", "games", "4750", f"/{OVERRIDDEN}")
    os.makedirs(f"{root}/srv/eq-linked")
    os.symlink("/srv/eq-linked", f"{root}/{LINKED_FOLDER}")
