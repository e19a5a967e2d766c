//! docs/configuration.md is what the program's own command line says. After a change of options:
//! `TUNNEL_BLESS=1 cargo test --test configuration` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write;
use std::path::Path;

use clap::{Arg, ArgAction, Command};

const HEAD: &str = "\
# Configuration

Every option of every command, as `--help` has them. Made from the program itself: a test compares.

- **Options have variables**: `TUNNEL_` and the long name in capitals, `--data-dir` is `TUNNEL_DATA_DIR`; all but `--verbose`,
  what is done once (`--install`, `--uninstall`), and the `--rate` of a key. What is given as an option wins over the variable, and
  the variable over the default. An option that takes no value is turned on by `1`, `true`, `yes` or `on`. A variable counts for every
  command that has an option of this name.
- **Secrets** are never options, which other users of the machine can read. The token of a bridge, a probe or a bench comes from the
  variable `TUNNEL_TOKEN`, from a file that `--token-file` names, or from a login ([keys.md](keys.md), [oidc.md](oidc.md#on-a-desktop)); other secrets come from files
  that options name.
- **Proxies** on the way to a relay are also taken from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
- **Times** are written `400ms`, `10s`, `15m`, `12h` or `90d`; **sizes** `64KiB` or `10MB`, or as a number of octets.
- **Exit codes**: 0 done, 1 failed, 2 wrong usage or settings, 3 refused by the relay.

Where there is no default, the option is off, or there is no limit, unless its sentence says otherwise.
";

#[test]
fn the_page_of_all_options_is_what_the_program_has() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = page();
    if std::env::var_os("TUNNEL_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(written.lines()).find(|(now, then)| now != then);
    assert!(
        page == written,
        "docs/configuration.md is not what the options are now; write it anew with:\n  \
         TUNNEL_BLESS=1 cargo test --test configuration\nIt differs at: {differs:?}"
    );
}

fn page() -> String {
    let root = tunnel::cmd::command();
    let mut page = HEAD.to_owned();
    writeln!(page, "\n## Every command").unwrap();
    write_options(&mut page, &root);
    for command in shown(&root) {
        write_command(&mut page, command, "tunnel", "");
    }
    page
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

/// A command and those below it; `from_above` tells which options it has from the commands above.
fn write_command(page: &mut String, command: &Command, above: &str, from_above: &str) {
    let name = format!("{above} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(page, "\n## {name}\n\n{about}.{from_above}").unwrap();
    write_options(page, command);
    let global = command
        .get_arguments()
        .filter(|arg| arg.is_global_set() && is_shown(arg));
    let global: Vec<_> = global
        .filter_map(|arg| arg.get_long())
        .map(|long| format!("`--{long}`"))
        .collect();
    let for_below = if global.is_empty() {
        from_above.to_owned()
    } else {
        format!("{from_above}\nIt also takes {}, as `{name}` does.", global.join(", "))
    };
    for below in shown(command) {
        write_command(page, below, &name, &for_below);
    }
}

fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && !matches!(arg.get_action(), ArgAction::Help | ArgAction::Version)
}

/// A table for each heading, in the order of the help.
fn write_options(page: &mut String, command: &Command) {
    let args: Vec<_> = command.get_arguments().filter(|arg| is_shown(arg)).collect();
    let mut headings: Vec<Option<&str>> = vec![None];
    for arg in &args {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    for heading in headings {
        let mut of_heading = args.iter().filter(|arg| arg.get_help_heading() == heading).peekable();
        if of_heading.peek().is_none() {
            continue;
        }
        if let Some(heading) = heading {
            writeln!(page, "\n### {heading}").unwrap();
        }
        writeln!(page, "\n| option | variable | default | |\n|---|---|---|---|").unwrap();
        for arg in of_heading {
            writeln!(page, "{}", row(arg)).unwrap();
        }
    }
}

fn row(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let (sentence, told) = match help.split_once(" [default: ") {
        Some((sentence, told)) => (sentence, told.trim_end_matches(']').to_owned()),
        None => (help.as_str(), String::new()),
    };
    let default: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let default = if takes_value(arg) && !default.is_empty() {
        format!("`{}`", default.join(","))
    } else if arg.is_required_set() {
        "must be given".to_owned()
    } else {
        told
    };
    let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
    let cells = [
        format!("`{}`", option(arg)),
        variable.unwrap_or_default(),
        default,
        values(arg, sentence),
    ];
    let cells = cells.map(|cell| cell.replace('|', "\\|"));
    let cells = cells.map(|cell| if cell.is_empty() { cell } else { format!("{cell} ") });
    format!("| {}|", cells.join("| "))
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// As it is typed: `-q, --quiet`, `--listen ADDR`, `FILE`.
fn option(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let long = arg.get_long().map(|long| format!("--{long}")).unwrap_or_default();
    let names = arg.get_value_names().filter(|_| takes_value(arg)).unwrap_or_default();
    let values: String = names.iter().map(|name| format!(" {name}")).collect();
    let optional = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
    if optional && takes_value(arg) {
        format!("{short}{long} [{}]", values.trim())
    } else {
        format!("{short}{long}{values}").trim_start().to_owned()
    }
}

/// The sentence, and what may be given where it does not tell.
fn values(arg: &Arg, sentence: &str) -> String {
    let mut told = sentence.to_owned();
    let possible = arg.get_possible_values();
    let is_told = |name: &str| sentence.split([' ', ',']).any(|word| word == name);
    if takes_value(arg) && !possible.iter().all(|value| is_told(value.get_name())) {
        let values = possible.iter().filter(|value| !value.is_hide_set()).map(|value| {
            let help = value.get_help().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("`{}`{help}", value.get_name())
        });
        write!(told, ": {}", values.collect::<Vec<_>>().join(", ")).unwrap();
    }
    if arg.get_value_delimiter().is_some() && !sentence.contains("commas") {
        told.push_str("; several are separated by commas");
    }
    told
}
