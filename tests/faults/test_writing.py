"""One writer: what it does to links, devices, pipes, permissions; what it says of bad places."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.files import require_folder, require_writable, sign_folder, write_text, write_whole

from .conftest import Shell

RUN = "einfuse run attention/3-pass --shape E=2,F=2,P=2,M=4 --output"
PLOT = "einfuse passes attention/3-pass --plot"
TRACE = "einfuse simulate --design unfused --shape B=1,H=1,M=32,P=32,E=4,F=4 --trace"
WATERFALL = TRACE.replace("--trace", "--plot")
MAP = (
    "einfuse map --cascade peer/matmuls --architecture nvdla --shape B=1,M=4,N0=4,N1=4,N2=4 "
    "--seconds 1 --out"
)

WRITERS = (
    RUN,
    *(pytest.param(command, marks=pytest.mark.slow) for command in (PLOT, TRACE, WATERFALL, MAP)),
)


def _device(path: Path, minor: int) -> Path:
    """A copy of /dev/null (minor 3) or /dev/full (7), for a writer to harm."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        with path.open("wb"):
            pass
    except OSError as error:
        pytest.skip(f"devices cannot be made here: {error}")
    return path


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real.txt", tmp_path / "link.txt"
    link.symlink_to(real)
    for text in ("new", "over the old"):
        write_text(link, text)
        assert link.is_symlink()
        assert not real.is_symlink()
        assert real.read_text() == text
    assert [p.name for p in real.parent.iterdir()] == ["real.txt"]


def test_a_link_into_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for attempt in (require_writable, lambda path: write_text(path, "x")):
        with pytest.raises(EinfuseError, match="cannot be written"):
            attempt(tmp_path / "a")


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    require_writable(pipe)
    write_text(pipe, "said")
    reader.join()
    assert heard == ["said"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    null = _device(tmp_path / "null", 3)
    write_text(null, "gone")
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_full_device_is_a_sentence_and_stays(tmp_path: Path) -> None:
    full = _device(tmp_path / "full", 7)
    with pytest.raises(EinfuseError, match="full: cannot be written: No space left on device"):
        write_text(full, "x" * 100_000)
    assert stat.S_ISCHR(full.stat().st_mode)


@pytest.mark.parametrize("command", WRITERS)
def test_no_command_replaces_a_device_a_pipe_or_a_link(
    command: str, shell: Shell, tmp_path: Path
) -> None:
    full = _device(tmp_path / "full", 7)
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    os.mkfifo(tmp_path / "pipe")
    done = shell(f"{command} full")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "full: cannot be written: No space left on device" in done.stderr
    assert stat.S_ISCHR(full.stat().st_mode)
    done = shell(f"timeout 60 cat pipe > heard & {command} pipe && wait && {command} link.png")
    assert done.returncode == 0, done.stderr
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "link.png").is_symlink()
    heard, written = (tmp_path / "heard").read_bytes(), (tmp_path / "real.png").read_bytes()
    assert heard[:4] == written[:4]
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize("command", WRITERS)
def test_a_bad_place_is_one_sentence_before_the_work(command: str, shell: Shell) -> None:
    for place, words in {
        f"{'x' * 300}.png": "File name too long",
        "no/such.png": "there is no folder no",
        ".": "it is a folder",
        "/proc/x.png": "cannot be written",
    }.items():
        done = shell(f"{command} {place}")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert words in done.stderr


def test_a_disk_that_fills_up_leaves_what_was_there(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("old")
    done = shell(f"ulimit -f 1; {PLOT} a.png")
    assert done.returncode == 2
    assert done.stderr == "error: a.png: cannot be written: File too large; choose another place\n"
    assert (tmp_path / "a.png").read_text() == "old"
    assert not list(tmp_path.glob(".partial-*"))


def test_the_umask_and_the_permissions_that_are_there_hold(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "x")
        (tmp_path / "old").write_text("x")
        (tmp_path / "old").chmod(0o604)
        write_text(tmp_path / "old", "y")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604


def test_what_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def fill(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(EinfuseError, match="No space left"):
        write_whole(tmp_path / "a", fill)
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_out_may_be_standard_output(shell: Shell, tmp_path: Path) -> None:
    for sink in (" > both", " | cat > both"):
        done = shell(f"{TRACE} /dev/stdout{sink}")
        assert done.returncode == 0, done.stderr
        text = (tmp_path / "both").read_text()
        assert text.startswith("{")
        assert "cycles" in text.splitlines()[-1] + text
        assert "unfused" in text[text.index("}") :]


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    require_folder(tmp_path, "study a")
    sign_folder(tmp_path, "study a")
    require_folder(tmp_path, "study a")
    with pytest.raises(EinfuseError, match="holds what 'study a' wrote"):
        require_folder(tmp_path, "study b")


@pytest.mark.slow
def test_two_studies_of_the_command_line_do_not_share_a_folder(shell: Shell) -> None:
    assert shell("einfuse study footprint --out here --length 1K").returncode == 0
    assert shell("einfuse study footprint --out here --length 1K").returncode == 0
    done = shell("einfuse study costs --model BERT --length 1K --out here")
    assert done.returncode == 2
    assert "here: holds what 'study footprint' wrote" in done.stderr
