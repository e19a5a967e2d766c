//! The desktop's browser, asked to show a page.

use std::io;
use std::process::{Command, Stdio};

#[cfg(windows)]
const OPENER: &[&str] = &["rundll32.exe", "url.dll,FileProtocolHandler"];
#[cfg(target_vendor = "apple")]
const OPENER: &[&str] = &["open"];
#[cfg(not(any(windows, target_vendor = "apple")))]
const OPENER: &[&str] = &["xdg-open"];

/// One of these is set where there is a display; other platforms always have one.
#[cfg(not(any(windows, target_vendor = "apple")))]
const DISPLAYS: &[&str] = &["DISPLAY", "WAYLAND_DISPLAY"];
#[cfg(any(windows, target_vendor = "apple"))]
const DISPLAYS: &[&str] = &[];

/// Whether there is a display that a browser could be on, by the variables that are set.
pub fn has_display(is_set: impl Fn(&str) -> bool) -> bool {
    DISPLAYS.is_empty() || DISPLAYS.iter().any(|variable| is_set(variable))
}

/// Has the browser show a page of the web; what becomes of it is not waited for.
///
/// # Errors
/// The system's.
pub fn open(url: &str) -> io::Result<()> {
    let mut command = Command::new(OPENER[0]);
    command.args(&OPENER[1..]).arg(url);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    std::thread::spawn(move || child.wait());
    Ok(())
}
