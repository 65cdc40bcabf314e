"""Sources of an image's release, derived from the machine's own."""

from pathlib import Path

import pytest

from alcove.node.apt_sources import AptSourcesError, Machine, lines_for, read_machine

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BOOKWORM = Machine("debian", "bookworm")


def apt(directory: Path, **files: str) -> Path:
    (directory / "sources.list.d").mkdir()
    for name, text in files.items():
        stem, kind = name.rsplit("_", 1)
        (directory / "sources.list.d" / f"{stem}.{kind}").write_text(text)
    return directory


def test_one_line_sources_change_only_the_release(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(
        "# comment\n"
        "deb http://mirror.example/d bookworm main contrib # why\n"
        "deb [arch=amd64] http://mirror.example/d bookworm-updates main\n"
        "deb-src http://mirror.example/d bookworm main\n"
        "deb http://mirror.example/d bookworm-backports main\n"
    )
    assert lines_for(BOOKWORM, "trixie", apt(tmp_path)) == [
        f"deb [signed-by={KEYRING}] http://mirror.example/d trixie main contrib",
        f"deb [signed-by={KEYRING}] http://mirror.example/d trixie-updates main",
    ]


def test_deb822_sources_with_several_suites(tmp_path: Path) -> None:
    text = (
        "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/d\n"
        "Suites: bookworm\n bookworm-updates\nComponents: main\n"
        f"Signed-By: {KEYRING}\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example/d\nSuites: bookworm\nComponents: main\n"
    )
    assert lines_for(BOOKWORM, "bookworm", apt(tmp_path, debian_sources=text)) == [
        f"deb [signed-by={KEYRING}] http://mirror.example/d bookworm main",
        f"deb [signed-by={KEYRING}] http://mirror.example/d bookworm-updates main",
    ]


def test_archives_of_others_are_left_out(tmp_path: Path) -> None:
    main = "deb http://mirror.example/d bookworm main\n"
    docker = "deb [arch=amd64 signed-by=/etc/apt/keyrings/x.asc] http://x.example bookworm stable\n"
    inline = (
        "Types: deb\nURIs: http://ppa.example\nSuites: bookworm\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBG\n"
    )
    sources = apt(tmp_path, main_list=main, docker_list=docker, ppa_sources=inline)
    assert lines_for(BOOKWORM, "bookworm", sources) == [
        f"deb [signed-by={KEYRING}] http://mirror.example/d bookworm main"
    ]


def test_a_mirror_list_of_the_machine_is_resolved(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors"
    mirrors.write_text("# first that works\nhttp://cloud.example/d priority:1\nhttp://b.example\n")
    text = f"Types: deb\nURIs: mirror+file://{mirrors}\nSuites: bookworm\nComponents: main\n"
    assert lines_for(BOOKWORM, "bookworm", apt(tmp_path, debian_sources=text)) == [
        f"deb [signed-by={KEYRING}] http://cloud.example/d bookworm main"
    ]


def test_no_usable_source_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AptSourcesError, match="bookworm"):
        lines_for(BOOKWORM, "bookworm", apt(tmp_path))
    with pytest.raises(AptSourcesError, match="fedora"):
        lines_for(Machine("fedora", ""), "bookworm", tmp_path)


def test_the_machine_is_read_from_os_release(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('PRETTY_NAME="Ubuntu 24.04 = LTS"\nID=ubuntu\nVERSION_CODENAME="noble"\n')
    assert read_machine(path) == Machine("ubuntu", "noble")
