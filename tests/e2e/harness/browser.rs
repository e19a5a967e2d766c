//! Programs in JavaScript that tests run: a provider of sign-in, and people with a browser (`tests/browser`). `tests/run` installs what
//! they need.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokio::process::Command;

/// Runs one of the scripts with this argument.
pub(crate) fn script(name: &str, argument: &serde_json::Value) -> Command {
    let mut command = Command::new("node");
    command
        .args([name, &argument.to_string()])
        .current_dir(installed())
        .env("CHROMIUM", chromium())
        .kill_on_drop(true);
    command
}

/// Where Chromium is.
fn chromium() -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let all = std::env::split_paths(&paths).flat_map(|folder| names.map(|name| folder.join(name)));
    let found = all.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("Chromium is needed: install the package chromium, or run tests/run once, which installs it")
    })
}

/// The folder with the scripts and the packages that they need.
fn installed() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("browser");
        for package in ["oidc-provider", "playwright-core", "openai", "jsqr"] {
            assert!(
                folder.join("node_modules").join(package).is_dir(),
                "the npm package {package} is not in {}: run tests/run once, which installs it (it needs node and npm)",
                folder.display()
            );
        }
        // Packages are looked for beside the script.
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
        for entry in std::fs::read_dir(scripts).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "js") {
                std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
            }
        }
        folder
    })
}
