"""Which registers programs in the machine are told not to use."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberbox.guest import registers

FLAGS = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_2 {}\n\n"


@pytest.mark.parametrize(
    ("text", "unkept"),
    [
        (FLAGS.format("avx avx2 fma"), False),
        (FLAGS.format("aes"), True),
        (FLAGS.format("avx512f"), True),
        ("processor : 0\nFeatures : fp asimd\n", False),
        ("", False),
    ],
)
def test_a_kernel_that_does_not_list_them_does_not_keep_them(tmp_path: Path, text: str, *, unkept: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert registers.are_unkept(str(path)) is unkept
    assert ("GLIBC_TUNABLES" in registers.environment(str(path))) is unkept
    assert ("--no-enable-avx" in registers.node_options(str(path))) is unkept


def test_where_it_cannot_be_told_nothing_is_switched_off(tmp_path: Path) -> None:
    assert registers.environment(str(tmp_path / "none")) == {}
    assert registers.node_options(str(tmp_path / "none")) == []
