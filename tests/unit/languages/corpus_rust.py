"""What the Rust restrictions catch, and what they leave alone."""

from __future__ import annotations

CAUGHT = [
    ("unsafe fn a(){}", ["rust.unsafe"]),
    ("fn main(){ unsafe { } }", ["rust.unsafe"]),
    ("unsafe impl Send for X {}", ["rust.unsafe"]),
    ("use std::process::Command;", ["rust.process"]),
    ('use std::fs;\nfn main(){ fs::remove_dir_all("x"); }', ["rust.fs-remove"]),
    ('fn main(){ std::fs::remove_file("x"); }', ["rust.fs-remove"]),
    ("use std::{fs::{self, remove_file as rf}, process};", ["rust.fs-remove"]),
    ('use std::process;\nfn main(){process::Command::new("x");}', ["rust.process"]),
    ('use std as s;\nfn m(){ s::fs::remove_dir("x");}', ["rust.fs-remove"]),
    ('use std::fs::*;\nfn m(){remove_file("x");}', ["rust.fs-remove"]),
    ('fn m(){ println!("{:?}", std::fs::remove_file("x")); }', ["rust.fs-remove"]),
    ("fn m(){ foo!(unsafe { x }); }", ["rust.unsafe"]),
    ("use std::fs as f;\nfn m(){ let g = f::remove_file; }", ["rust.fs-remove"]),
    ('::std::process::Command::new("x")', ["rust.process"]),
    ("use std::process::*;", ["rust.process"]),
    ('fn m(){ dbg!(std::process::Command::new("ls").output()); }', ["rust.process"]),
]

LEFT_ALONE = [
    '// unsafe\nfn main(){ let s="unsafe { }"; }',
    "#![forbid(unsafe_code)]\nfn main(){}",
    "use std::process::ExitCode;",
    "fn main(){ std::process::exit(1); }",
    'use std::fs; fn m(){ fs::read_to_string("x"); }',
    "use std::process;\nfn main(){ process::exit(0); }",
    "fn m(v: &mut Vec<i32>){ v.remove(0); }",
    "struct Command; fn m(){ let c = Command; }",
    "let unsafe_count=1;",
    "type F = unsafe fn(i32);",
]

VALID = [
    'fn main() { let x = 1; println!("{x}"); }\n',
    "async fn f<T: ?Sized>(x: &'static T) -> impl Fn() {}\n",
    "",
]

BROKEN = [
    ("fn main() { let x = ; }", 1, 19, "unexpected"),
    ("fn main() {", 1, 11, "never closed"),
]
