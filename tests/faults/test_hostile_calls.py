"""Every command with hostile arguments and files, drawn by a seed: a sentence, never a traceback.

Each call is a good one of which one to three arguments, or the file that it reads, are spoilt.
"""

from __future__ import annotations

import random
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from einfuse.mapper.machine.architecture import DATA

from .conftest import Command

SECONDS = 30  # of CPU time, after which a call hangs
SHAPE = "B=1,H=1,M=64,P=64,E=8,F=8"
GOOD = (
    "passes FILE.txt --rank M --shape M=4K,E=64,F=64,P=2",
    "passes attention/3-pass --rank M --shape M=4K --json --plot out.png",
    "passes attention/window --set window=8,sinks=2 --shape M=64",
    "show attention/window --set window=8 --json",
    "show FILE.txt",
    "derive FILE.txt --rank M --seconds 0.5 --json",
    "gradient attention/3-pass --with-respect-to Q,K --save AV,GM --rank M --shape M=8",
    "gradient attention/1-pass --with-respect-to Q --shape M1=4,M=8 --json",
    "evaluate --design fusemax --shape SHAPE --set array_1d.lanes=512 --include leakage --json",
    "evaluate --design fusemax --architecture FILE.yaml --shape SHAPE",
    "evaluate --design DESIGN.yaml --shape SHAPE --accounting published",
    "simulate --design fusemax --shape SHAPE --set buffer.bytes=1e7 --trace out.json",
    "map --cascade attention/3-pass --architecture flat --shape SHAPE --seconds 0.3",
    "map --cascade FILE.txt --architecture flat --shape SHAPE --seconds 0.3 --out out.yaml",
    "map --cascade attention/3-pass --architecture nvdla --shape SHAPE --seconds 0.3 "
    "--constraints CONSTRAINTS.yaml",
    "explain DESIGN.yaml --seconds 0.3",
    "run attention/3-pass --shape E=2,F=2,P=2,M=4 --dtype float32 --check --output out.npz",
    "run FILE.txt --inputs ARRAYS.npz --backend numpy --device cpu --json",
    "run attention/window --shape E=2,F=2,P=4,M=4 --set window=2,sinks=1",
    "costs --technology 45nm --component sram --at bytes=1e6,width_bits=64 --against 7nm",
    "costs --technology TABLE.csv --component sram --type hp",
    "convert FILE.txt --to accelforge --shape M=4 --out out.yaml",
    "zoo --family dense --json",
    "architectures --json",
    "schema design",
    "kernels attention/1-pass",
    "study nothing --out out --model BERT --length 1K",
    "validate --data TABLE.csv --out out --device published --no-leave-one-out",
    "validate --data MEASURED.csv --out out --constants TABLE.csv",
    "tune nothing forward --tiles block_p=64 --arch sm_90 --warps 4:8",
    "compile-check --arch nothing --kernel nothing --jobs 1",
    "measure --out out.csv --device nothing --suite core",
    "calibrate --out out.yaml --device nothing",
)
HOSTILE = (
    "", " ", "0", "-1", "nan", "inf", "-inf", "1e400", "9" * 400, "1e30", "0.1", "-0.0", "1/0",
    "None", "true", "M=0", "M=-4", "M=1T,P=1T", "M=4,M=5", "M", "=", "M=", "=4", ",,,", "M=4;P=4",
    "é", "漢字=4", "٣", "\u202e", "a\x00b", "\udcff", "no/../x", ".", "/proc/x", "/dev/null",
    "no/such/file", "FILE.txt", "DESIGN.yaml", "ARRAYS.npz", "TABLE.csv", "%s%n", "$(x)",
    "[red]x[/nothing]", "{}", "'", '"', "--", "-", "-x", "--json", "x" * 5000, "Q,Q", "M,N",
    "a.b.c=1", "array_1d.lanes=0", "array_1d.lanes=-1", "array_1d.lanes=1e-300", "clock_hz=0",
    "buffer.bytes=1e300", "window=0", "window=-5", "window=2.5", "window=1e18",
    "E=2,F=2,P=2,M=4,Z=9", "bytes=0", "bytes=-1", "bytes=1e300,width_bits=1e-9",
)  # fmt: skip
TEXT = """rank M, E, P
input Q[E,P], K[E,M]
output Y
S[m,p] = Q[e,p] * K[e,m]
G[p] = S[m,p] :: max(m)
Y[p] = exp(S[m,p] - G[p])
"""
CHIP = "extends: flat\nname: mine\nclock_hz: 1e9\nmemories: {buffer: {bytes: 16e6}}\n"
TABLE = "component,type,energy_pj,area_um2,source\nsram,hp,1.5,20,here\nmac,bf16,1,2,there\n"
SCRAPS = (
    "0", "-1", "nan", ".inf", "1e400", "[", "]", "{", "}", ":", ": :", "- ", "\t", "\x00", "é",
    "漢", "\n\n", "&a ", "*a ", "!!python/name:os.system ", "M", "M+1", "exp(", ")", "::", " for ",
    " max ", "null", "~", "''", ",", "9" * 30, "true", "1:30", "#", "=", "[]", "{}", "% ", "\\",
    "\ufeff", "a" * 300, "/0", "**9**9**9", "M[m]",
)  # fmt: skip


def _spoilt(draw: random.Random, text: str) -> str:
    """Return a text with scraps put in, characters or lines taken out, doubled or exchanged."""
    for _ in range(draw.randint(1, 3)):
        lines = text.split("\n")
        place, line = draw.randrange(len(text) + 1), draw.randrange(len(lines))
        match draw.randrange(6):
            case 0:
                text = text[:place] + draw.choice(SCRAPS) + text[place:]
            case 1:
                text = text[:place] + text[place + draw.randint(1, 9) :]
            case 2:
                text = "\n".join([*lines[: line + 1], *lines[line:]])
            case 3:
                text = "\n".join(lines[:line] + lines[line + 1 :])
            case 4:
                words = list(re.finditer(r"[\w.]+", text))
                if words:
                    word = draw.choice(words)
                    text = text[: word.start()] + draw.choice(SCRAPS) + text[word.end() :]
            case _:
                text = text[: draw.randrange(len(text) + 1)]
    return text


def _write_files(draw: random.Random, folder: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "measurements.md"
    texts = {
        "FILE.txt": TEXT,
        "FILE.yaml": CHIP,
        "DESIGN.yaml": (DATA / "designs" / "flat.yaml").read_text(encoding="utf-8"),
        "CONSTRAINTS.yaml": "tiles: {M: [4, 64]}\nkeep: {Q: buffer}\n",
        "TABLE.csv": TABLE,
        "MEASURED.csv": page.read_text(encoding="utf-8").split("```csv\n")[1].split("```")[0],
    }
    for name, text in texts.items():
        found = _spoilt(draw, text) if draw.random() < 0.7 else text
        (folder / name).write_text(found, encoding=draw.choice(["utf-8"] * 9 + ["utf-16"]))
    arrays = draw.choice(
        [
            {"Q": np.ones((2, 3)), "K": np.ones((2, 4))},
            {"Q": np.ones(3), "K": np.full((2, 4), np.nan)},
            {"Q": np.ones((0, 3)), "K": np.ones((0, 4))},
            {"Q": np.array(["a"]), "K": np.array([True])},
            {"é": np.ones((2, 3), complex)},
        ]
    )
    np.savez(folder / "ARRAYS.npz", **arrays)
    content = (folder / "ARRAYS.npz").read_bytes()
    if draw.random() < 0.4:
        place = draw.randrange(len(content))
        content = content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
        (folder / "ARRAYS.npz").write_bytes(content[: draw.choice([place, None])])


def _call(draw: random.Random) -> list[str]:
    words = shlex.split(draw.choice(GOOD).replace("SHAPE", SHAPE))
    for _ in range(draw.randint(0, 2) if any(w.isupper() for w in words) else draw.randint(1, 3)):
        place = draw.randrange(1, len(words) + 1)
        if draw.random() < 0.1:
            words[place:place] = [draw.choice(HOSTILE)]
        elif place < len(words) and not words[place].startswith("--seconds"):
            value = draw.choice(HOSTILE)
            words[place] = value if draw.random() < 0.7 else _spoilt(draw, words[place])
    return words


@contextmanager
def _no_longer_than(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize(
    "seed",
    [seed if seed < 60 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(1000)],
)
def test_a_hostile_call_ends_in_a_result_or_a_sentence(
    seed: int, einfuse: Command, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    _write_files(draw, tmp_path)
    words = _call(draw)
    with _no_longer_than(SECONDS):
        done = einfuse(words)
    assert done.returncode in (0, 1, 2), words
    assert done.returncode == 0 or done.stderr or done.stdout, words
    assert not re.search(r"\bnan\b", done.stdout, re.IGNORECASE) or "nan" in str(words).lower(), (
        words
    )
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".partial-*"))
    if done.returncode == 2:
        assert not [p for p in tmp_path.glob("out.*") if p.is_file() and p.stat().st_size == 0]
