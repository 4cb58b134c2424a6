"""What the Bash restrictions catch, and what they leave alone."""

from __future__ import annotations

import pytest

from emberbox.languages import get_language

SPEC = get_language("bash")

CAUGHT = [
    ("rm -rf /", ["bash.rm-rf", "bash.wipe"]),
    ("\\rm -rf /", ["bash.rm-rf", "bash.wipe"]),
    ("command rm -r -f x", ["bash.rm-rf"]),
    ("/bin/rm -fr x", ["bash.rm-rf"]),
    ("sudo rm -rf x", ["bash.rm-rf"]),
    ("sudo -u root rm -Rf x", ["bash.rm-rf"]),
    ("$(printf rm) -rf x", ["bash.rm-rf"]),
    ("`echo rm` -rf x", ["bash.rm-rf"]),
    ("rm --recursive --force x", ["bash.rm-rf"]),
    ("bash -c 'rm -rf /'", ["bash.rm-rf", "bash.wipe"]),
    ("'r'\"m\" -rf x", ["bash.rm-rf"]),
    ("X=rm\n$X -rf /", ["bash.rm-rf", "bash.wipe"]),
    ('eval "rm -rf x"', ["bash.rm-rf"]),
    ("bash <<EOF\nrm -rf /\nEOF", ["bash.rm-rf", "bash.wipe"]),
    ("find . -exec rm -rf {} \\;", ["bash.rm-rf"]),
    ("find . | xargs rm -rf", ["bash.rm-rf"]),
    ("echo 'rm -rf /' | sh", ["bash.rm-rf", "bash.wipe"]),
    ("trap 'rm -rf \"$T\"' EXIT", ["bash.rm-rf"]),
    ("dd if=/dev/zero of=/dev/sda bs=1M", ["bash.dd-device"]),
    ("dd if=/dev/sda of=x.img", ["bash.dd-device"]),
    ("cat x > /dev/sda", ["bash.dd-device"]),
    ("mkfs.ext4 /dev/sda1", ["bash.mkfs"]),
    ("sudo mkfs -t ext4 x", ["bash.mkfs"]),
    (":(){ :|:& };:", ["bash.fork-bomb"]),
    ("bomb() { bomb | bomb & }; bomb", ["bash.fork-bomb"]),
    ("chmod 777 x", ["bash.chmod-777"]),
    ("chmod -R 0777 x", ["bash.chmod-777"]),
    ("chmod a+rwx x", ["bash.chmod-777"]),
    ("chmod ugo=rwx x", ["bash.chmod-777"]),
    ("F=-rf\nrm $F x", ["bash.rm-rf"]),
    ("rm x -rf", ["bash.rm-rf"]),
    ("if true; then rm -rf x; fi", ["bash.rm-rf"]),
    ("f() { rm -rf x; }", ["bash.rm-rf"]),
    ("x=$(rm -rf y)", ["bash.rm-rf"]),
    ("sh -ec 'rm -rf /'", ["bash.rm-rf", "bash.wipe"]),
    ('"rm" -rf x', ["bash.rm-rf"]),
    ("A=1 rm -rf x", ["bash.rm-rf"]),
    ("time rm -rf x", ["bash.rm-rf"]),
    ("nohup rm -rf x &", ["bash.rm-rf"]),
    ("bash -c \"bash -c 'rm -rf /'\"", ["bash.rm-rf", "bash.wipe"]),
    ("env A=b rm -rf x", ["bash.rm-rf"]),
    ("timeout 5 rm -rf x", ["bash.rm-rf"]),
    ("rm -r x -f", ["bash.rm-rf"]),
    ("bash <<< 'rm -rf /'", ["bash.rm-rf", "bash.wipe"]),
    ("rm -rf x || true; ls", ["bash.rm-rf"]),
    ("! rm -rf x", ["bash.rm-rf"]),
    ("(rm -rf x)", ["bash.rm-rf"]),
    ('rm -"rf" x', ["bash.rm-rf"]),
    ("$'\\x72m' -rf x", ["bash.rm-rf"]),
]

LEFT_ALONE = [
    "echo 'rm -rf /'",
    "# rm -rf /",
    "rm -r x",
    "rm -f x",
    "rm x",
    "echo rm -rf x",
    "dd if=/dev/zero of=x.img bs=1M count=1",
    "dd if=a of=b",
    "chmod 755 x",
    "chmod +x x",
    "chmod 1777x y",
    'walk() { ls | while read f; do walk "$f"; done; }',
    "cat <<EOF > f\nrm -rf /\nEOF",
    "grep -rf patterns x",
    "ls > /dev/null 2>&1",
    "git rm -r --cached f",
    "docker run --rm -f x",
    "fact() { fact $(( $1 - 1 )); }",
    "farm -rf",
    "rm -i -r x -- -f",
    "chmod u+rwx x",
    "chmod g+w x",
    "man mkfs",
    "echo hi > /dev/stderr",
    "printf 'rm -rf'",
]

VALID = [
    "if [[ $x =~ ^a ]]; then echo y; fi\n",
    "case $x in a|b) echo 1;; (if) echo 2;; *) echo 3;; esac\n",
    "cat <<'END'\n)(\nif\nEND\n",
    "for ((i=0; i<3; i++)); do echo $i; done\n",
    "for i do echo $i; done\n",
    "ls | \\\n  while read -r l; do echo $l; done\n",
    'x=$(( 1 + 2 ))\necho ${x:-y} "${a[@]}" $# # it\'s a comment\n',
    'while read -r l; do echo "$l"; done < <(ls)\n',
    'echo "a $(echo "b `echo c`") d"\n',
    "f() { echo done; }; f\n",
    "x=$((1<<2))\nif ((x<<1)); then echo; fi\n",
    "{ while read -r a; do echo $a; done }\n",
    "echo if then fi\n",
    "",
]

BROKEN = [
    ("if true; then echo\n", 1, 1, "'if' was never closed"),
    ("echo ok\necho 'abc", 2, 6, "unterminated"),
    ('echo "abc\n', 1, 6, "unterminated"),
    ("for i in 1 2; echo $i; done\n", 1, 24, "unexpected 'done'"),
    ("echo a\nfi\n", 2, 1, "unexpected 'fi'"),
    ("echo (a\n", 1, 6, "never closed"),
    ("x=$(ls\n", 1, 3, "never closed"),
    ("f() { echo a\n", 1, 5, "never closed"),
]


@pytest.mark.parametrize(("code", "rules"), CAUGHT)
def test_catches(code: str, rules: list[str]) -> None:
    assert sorted({finding.rule for finding in SPEC.check(code)}) == rules


@pytest.mark.parametrize("code", LEFT_ALONE)
def test_leaves_alone(code: str) -> None:
    assert SPEC.check(code) == []


@pytest.mark.parametrize("code", VALID)
def test_accepts_valid_code(code: str) -> None:
    assert SPEC.syntax_findings(code) == []


@pytest.mark.parametrize(("code", "line", "column", "message"), BROKEN)
def test_says_where_the_syntax_is_wrong(code: str, line: int, column: int, message: str) -> None:
    found = SPEC.syntax_findings(code)
    assert (found[0].rule, found[0].line, found[0].column) == ("syntax", line, column)
    assert message in found[0].message
