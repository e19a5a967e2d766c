//! The rules of the house that a machine can check (docs/architecture.md).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn all() -> Vec<PathBuf> {
    ["src", "tests", "benches"].into_iter().flat_map(sources).collect()
}

#[test]
fn imports_go_one_way() {
    for (room, never) in [
        (
            "src/transport",
            ["crate::relay", "crate::bridge", "crate::cmd"].as_slice(),
        ),
        ("src/relay", &["crate::bridge", "crate::cmd"]),
        ("src/bridge", &["crate::relay", "crate::cmd"]),
        ("src/demo", &["crate::relay", "crate::bridge", "crate::cmd"]),
    ] {
        let entry = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{room}.rs"));
        let files = sources(room).into_iter().chain(entry.exists().then_some(entry));
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for import in never {
                assert!(!text.contains(import), "{} uses {import}", file.display());
            }
        }
    }
}

#[test]
fn every_file_says_its_job_and_is_short() {
    for file in all() {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{} does not say its job", file.display());
        let lines = text.lines().count();
        assert!(lines < 500, "{} has {lines} lines", file.display());
    }
}

#[test]
fn no_file_is_a_drawer_for_everything() {
    for file in all() {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let drawers = ["util", "utils", "helpers", "common", "misc", "manager"];
        assert!(!drawers.contains(&name.as_str()), "{}", file.display());
    }
}
