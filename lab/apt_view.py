# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any architecture, unpacked into a folder, without installing anything.

usage: apt_view.py --packages FILE --group GROUP --architecture NAME [--suite SUITE] --view FOLDER --into TREE

FILE names packages, one per line; "[name]" begins a group, # a comment. A line "!name" keeps a package out of
TREE although others depend on it.

Makes a private view of apt in FOLDER (its own lists, cache and empty dpkg status), over the entries for the
Debian archive that the machine's apt has, lets apt find all that the packages depend on, downloads it, and
unpacks it into TREE. apt checks the signatures as always. The machine's own lists, caches and dpkg status are
neither read nor written, and root is not needed.

With --suite the packages come from another release of Debian, found beside the machine's own in the same places:
"trixie" is that release with its updates, "trixie-backports" has besides what was built for it later, and takes that
where both have a package.

A TREE that was made from the same list of packages stays as it is; remove it to fetch anew.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

SOURCES = Path("/etc/apt")
UPDATE_TIMEOUT = 300
FETCH_TIMEOUT = 900
UNPACK_TIMEOUT = 300
STAMP = ".apt_view"
BACKPORTS = "-backports"


class ViewError(Exception):
    """The packages cannot be had; the text says what, where and why."""


def packages_of(text, group):
    """The names in a group: those to have, and those to leave out."""
    wanted, excluded, current = [], [], None
    for line in text.splitlines():
        word = line.split("#", 1)[0].strip()
        if word.startswith("["):
            current = word.strip("[]")
        elif word and current == group:
            (excluded if word.startswith("!") else wanted).append(word.lstrip("!"))
    if not wanted:
        raise ViewError(f"the list of packages has nothing in its group [{group}]")
    return wanted, excluded


# The machine's entries for the Debian archive

@dataclass(frozen=True)
class Source:
    """One line of a sources.list, without its restriction to an architecture."""

    options: tuple
    uri: str
    suite: str
    components: tuple

    def line(self, architecture):
        options = " ".join((f"arch={architecture}", *self.options))
        return f"deb [{options}] {self.uri} {self.suite} {' '.join(self.components)}"

    def is_debian(self, codename):
        """Whether this is the archive itself: third parties have their own suites or components."""
        suites = (codename, f"{codename}-updates", f"{codename}-security", f"{codename}/updates")
        return self.suite.rstrip("/") in suites and "main" in self.components


def parse_list(text):
    """The sources in the one-line format."""
    for line in text.splitlines():
        words = line.split("#", 1)[0].replace("[", " [ ").replace("]", " ] ").split()
        if len(words) < 4 or words[0] != "deb":
            continue
        options = ()
        if words[1] == "[":
            end = words.index("]") if "]" in words else len(words) - 1
            options = tuple(word for word in words[2:end] if not word.lower().startswith("arch"))
            words = [words[0], *words[end + 1:]]
        if len(words) >= 4:
            yield Source(options, words[1], words[2], tuple(words[3:]))


def parse_deb822(text):
    """The sources in the format of *.sources files."""
    for stanza in _stanzas(text):
        if stanza.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        if "deb" not in stanza.get("types", "").split():
            continue
        options = tuple(f"{field}={','.join(stanza[field].split())}" for field in ("signed-by", "trusted")
                        if stanza.get(field) and "BEGIN PGP" not in stanza[field])
        for uri in stanza.get("uris", "").split():
            for suite in stanza.get("suites", "").split():
                yield Source(options, uri, suite, tuple(stanza.get("components", "").split()))


def _stanzas(text):
    stanza, field = {}, None
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, field = {}, None
        elif line[0].isspace() and field:
            stanza[field] += "\n" + line.strip()
        else:
            field, _, value = line.partition(":")
            field = field.strip().lower()
            stanza[field] = value.strip()


def debian_sources(folder, codename):
    """The Debian entries of a folder like /etc/apt, each once."""
    found = []
    lists = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.is_file():
            found += parse_list(path.read_text())
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        found += parse_deb822(path.read_text())
    found = [source for source in dict.fromkeys(found) if source.is_debian(codename)]
    if not found:
        raise ViewError(f"{folder}: no entry for the suite {codename} of the Debian archive")
    return found


def codename_of(os_release):
    for line in os_release.splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise ViewError("/etc/os-release: has no VERSION_CODENAME; this needs Debian")


def sources_of_suite(own, codename, suite):
    """The same places with another release in them; own are the entries of the machine's release."""
    release = suite.removesuffix(BACKPORTS)
    found = [replace(source, suite=release + source.suite.removeprefix(codename)) for source in own]
    if suite != release:
        main = [source for source in found if source.suite.rstrip("/") == release]
        if not main:
            raise ViewError(f"apt sources: no entry for the suite {codename} itself, beside which {suite} would be")
        found += [replace(source, suite=suite) for source in main]
    return list(dict.fromkeys(found))


# The view

class View:
    def __init__(self, folder, architecture, sources, suite=None):
        self.folder = folder
        self.architecture = architecture
        self.suite = suite
        for part in ("lists/partial", "cache/archives/partial", "log", "state", "empty"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for file in ("status", "empty_file"):
            (folder / file).touch()
        lines = [source.line(architecture) for source in sources]
        (folder / "sources.list").write_text("".join(f"{line}\n" for line in lines))
        (folder / "apt.conf").write_text(self._configuration())

    def _configuration(self):
        """Read after the machine's own configuration, whose hooks it takes out: they touch its caches."""
        folder = self.folder
        values = {
            "APT::Architecture": self.architecture,
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
            "Dir::Cache": folder / "cache",
            "Dir::Cache::Archives": folder / "cache/archives",
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": folder / "empty",
            "Dir::Etc::Preferences": folder / "empty_file",
            "Dir::Etc::PreferencesParts": folder / "empty",
            "Dir::Log": folder / "log",
            "Dir::State": folder / "state",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::status": folder / "status",
        }
        if self.suite:
            values["APT::Default-Release"] = self.suite
        cleared = ("APT::Architectures", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success",
                   "APT::Update::Pre-Invoke", "DPkg::Pre-Invoke", "DPkg::Post-Invoke", "DPkg::Pre-Install-Pkgs")
        lines = [f"#clear {name};" for name in cleared]
        lines += [f'{name} "{value}";' for name, value in values.items()]
        lines.append(f'APT::Architectures {{ "{self.architecture}"; }};')
        return "".join(f"{line}\n" for line in lines)

    def _apt_get(self, arguments, timeout):
        return _run(["apt-get", "-q", "-c", self.folder / "apt.conf", *arguments],
                    f"packages for {self.architecture}", timeout)

    def fetch(self, packages):
        """Downloads the packages and all that they depend on; the paths of the files."""
        self._apt_get(["update"], UPDATE_TIMEOUT)
        self._apt_get(["install", "--yes", "--download-only", *packages], FETCH_TIMEOUT)
        return sorted((self.folder / "cache/archives").glob("*.deb"))


def _run(command, what, timeout):
    environment = dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive")
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=timeout)
    except FileNotFoundError:
        raise ViewError(f"{what}: there is no program '{command[0]}' on this machine") from None
    except subprocess.TimeoutExpired:
        raise ViewError(f"{what}: {' '.join(command)}: not done in {timeout} s") from None
    if done.returncode != 0:
        raise ViewError(f"{what}: {' '.join(command)}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


# The tree

def unpack(files, tree):
    """Unpacks the packages over each other, with /lib and its like as links into /usr."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(f"usr/{name}")
    for file in files:
        archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE)
        try:
            subprocess.run(["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", tree],
                           stdin=archive.stdout, check=True, timeout=UNPACK_TIMEOUT)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise ViewError(f"unpack {file.name}: {error}") from None
        finally:
            archive.stdout.close()
            archive.wait()


def make_links_relative(tree):
    """Absolute links would leave the tree for the machine's own files."""
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(folder) / name
            if path.is_symlink() and os.readlink(path).startswith("/"):
                target = tree / os.readlink(path).lstrip("/")
                path.unlink()
                path.symlink_to(os.path.relpath(target, path.parent))


def make_tree(view_folder, architecture, tree, packages, excluded, suite=None):
    """False when the tree was there already."""
    words = [architecture, *packages, "", *excluded, *(["", suite] if suite else [])]
    wanted = hashlib.sha256("\n".join(words).encode()).hexdigest()
    stamp = tree / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return False
    codename = codename_of(Path("/etc/os-release").read_text())
    # What a former list of packages has left would be unpacked, too.
    shutil.rmtree(view_folder / "cache", ignore_errors=True)
    sources = debian_sources(SOURCES, codename)
    view = View(view_folder, architecture, sources_of_suite(sources, codename, suite) if suite else sources, suite)
    files = [file for file in view.fetch(packages) if file.name.split("_")[0] not in excluded]
    making = tree.with_name(tree.name + ".making")
    for old in (making, tree):
        shutil.rmtree(old, ignore_errors=True)
    making.mkdir(parents=True)
    unpack(files, making)
    make_links_relative(making)
    (making / STAMP).write_text(wanted)
    making.rename(tree)
    shutil.rmtree(view_folder / "cache")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--architecture", required=True)
    parser.add_argument("--suite")
    parser.add_argument("--view", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    try:
        wanted, excluded = packages_of(options.packages.read_text(), options.group)
        make_tree(options.view.resolve(), options.architecture, options.into.resolve(), wanted, excluded,
                  options.suite)
    except (ViewError, OSError) as error:
        print(f"apt_view: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
