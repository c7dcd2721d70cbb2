"""Machine code is read from the text of the disassembler."""

from __future__ import annotations

import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.kernels.compiled.sass import (
    Loop,
    Resources,
    parse_program,
    parse_resources,
    spill_bytes,
)

LISTING = """
	.headerflags	@"EF_CUDA_SM90"
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   MOV R2, R3 ;
.L_x_0:
        /*0020*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0 ;
        /*0030*/                   FMNMX R4, R5.reuse, R6, !PT ;
        /*0040*/                   MUFU.EX2 R7, R8 ;
        /*0050*/              @!P0 BRA `(.L_x_0) ;
        /*0060*/                   FMUL R4, R4, R4 ;
        /*0070*/              @UP1 BRA.U `(.L_x_1) ;
.L_x_2:
        /*0080*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0 ;
        /*0090*/                   ISETP.GE.AND P0, PT, R2, R3, PT ;
        /*00a0*/                   SEL R2, R3, R4, P0 ;
        /*00b0*/                   MUFU.EX2 R7, R8 ;
        /*00c0*/               @P0 CALL.REL.NOINC `(.L_x_3) ;
        /*00d0*/                   BRA `(.L_x_2) ;
.L_x_3:
        /*00e0*/                   EXIT ;
.L_x_4:
        /*00f0*/                   BRA `(.L_x_4);
"""


def test_loops_are_found_by_their_backward_branches() -> None:
    program = parse_program(LISTING)
    assert program.loops == (Loop(1, 7), Loop(2, 5), Loop(8, 13))


def test_the_trap_behind_the_end_is_no_loop() -> None:
    assert all(loop.start < loop.end for loop in parse_program(LISTING).loops)


def test_innermost_loops_hold_no_other() -> None:
    assert parse_program(LISTING).innermost_loops == (Loop(2, 5), Loop(8, 13))


def test_operations_are_counted_without_modifiers_that_change_nothing() -> None:
    program = parse_program(LISTING)
    assert program.count(Loop(2, 5)) == {"HGMMA": 1, "FMNMX": 1, "EX2": 1, "BRA": 1}
    assert program.count()["HGMMA"] == 2


def test_predicates_are_kept_apart_from_the_opcode() -> None:
    branch = parse_program(LISTING).instructions[5]
    assert (branch.opcode, branch.predicate, branch.target) == ("BRA", "!P0", 2)


def test_resources_are_read_with_stack_as_spills() -> None:
    text = "Function f:\n REG:255 STACK:8 SHARED:1024 LOCAL:4 CONSTANT[0]:624 TEXTURE:0"
    found = parse_resources(text)
    assert found == Resources(255, 8, 1024, 4)
    assert spill_bytes(found) == 12


@pytest.mark.parametrize("parse", [parse_program, parse_resources])
def test_text_of_another_kind_is_refused(parse: object) -> None:
    with pytest.raises(EinfuseError, match="expected"):
        parse("nothing of the kind")  # type: ignore[operator]
