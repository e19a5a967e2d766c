//! `tunnel relay backup` and `restore`: all that a relay needs to be the same relay elsewhere, in one file. A line of JSON for each
//! thing: a head, files in base64, entries of the database, and an end that tells how many they were.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::database::DatabaseArgs;
use super::secret::SecretArgs;
use super::{Failure, tell};
use crate::files;
use crate::relay::store::Store;
use crate::relay::store::archive::Entry;

/// What this release writes and reads.
const FORMAT: u32 = 1;
/// Entries that wait to be written.
const WAITING: usize = 256;
/// Entries that are put into the database at once.
const BATCH: usize = 1000;
/// A file of the data folder that is larger is none of ours, octets.
const LARGEST: u64 = 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Backup { format: u32, version: String, made: String },
    File { name: String, content: String },
    Entry { table: String, row: Map<String, Value> },
    End { files: usize, entries: usize },
}

/// `tunnel relay backup`.
pub(super) fn backup(path: &Path, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    let (files, entries) = database.with_store(data, async |store| {
        files::create_private(path, b"").with_context(|| format!("cannot make {}", path.display()))?;
        let written = write(path, data, &store).await;
        if written.is_err() {
            // Half a backup is none.
            let _ = std::fs::remove_file(path);
        }
        written
    })?;
    tell(&format!(
        "{files} files and {entries} entries of the database are in {}.\n\
         Whoever has it can sign tokens: keep it as you keep the secret itself.",
        path.display()
    ));
    Ok(())
}

async fn write(path: &Path, data: &SecretArgs, store: &Store) -> Result<(usize, usize), Failure> {
    let kept = data.kept_files()?;
    if kept.is_empty() {
        let folder = data.folder()?;
        return Err(Failure::usage(format!(
            "there is nothing of a relay in {}; is it this --data-dir?",
            folder.display()
        )));
    }
    let file = File::options()
        .write(true)
        .open(path)
        .with_context(|| unwritable(path))?;
    let mut lines = Writer {
        out: BufWriter::new(file),
        path,
    };
    lines.put(&Line::Backup {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
    })?;
    for (name, from) in &kept {
        let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        if content.len() as u64 > LARGEST {
            return Err(anyhow::anyhow!("{} is too large to be a file of a relay", from.display()).into());
        }
        lines.put(&Line::File {
            name: name.clone(),
            content: BASE64.encode(content),
        })?;
    }
    let (sink, mut entries) = mpsc::channel(WAITING);
    let writing = async {
        let mut count = 0;
        while let Some(Entry { table, row }) = entries.recv().await {
            lines.put(&Line::Entry { table, row })?;
            count += 1;
        }
        // Or the store would wait for room.
        drop(entries);
        Ok::<_, Failure>(count)
    };
    let (dumped, written) = tokio::join!(store.dump(sink), writing);
    let entries = written?;
    dumped?;
    let files = kept.len();
    lines.put(&Line::End { files, entries })?;
    lines.finish()?;
    Ok((files, entries))
}

struct Writer<'a> {
    out: BufWriter<File>,
    path: &'a Path,
}

impl Writer<'_> {
    fn put(&mut self, line: &Line) -> Result<(), Failure> {
        let written = serde_json::to_writer(&mut self.out, line).map_err(std::io::Error::from);
        written
            .and_then(|()| self.out.write_all(b"\n"))
            .with_context(|| unwritable(self.path))?;
        Ok(())
    }

    fn finish(mut self) -> Result<(), Failure> {
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        Ok(done.with_context(|| unwritable(self.path))?)
    }
}

fn unwritable(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// `tunnel relay restore`.
pub(super) fn restore(path: &Path, data: &SecretArgs, database: &DatabaseArgs) -> Result<(), Failure> {
    // All of it is looked at before anything is changed.
    let mut places = Vec::new();
    let mut entries = 0;
    read(path, |line| {
        match line {
            Line::File { name, content } => {
                let content = BASE64.decode(content).map_err(|_| wrong(path, "is damaged"))?;
                let place = data.place_of(&name)?;
                if place.exists() {
                    return Err(overwriting(&place.display()));
                }
                places.push((place, content));
            }
            Line::Entry { .. } => entries += 1,
            Line::Backup { .. } | Line::End { .. } => {}
        }
        Ok(())
    })?;
    database.with_store(data, async |store| {
        if !store.is_empty().await? {
            return Err(overwriting(&"the database"));
        }
        let mut made = Vec::new();
        let restored = match write_files(&places, &mut made) {
            Ok(()) => load(path, &store).await,
            failed => failed,
        };
        if restored.is_err() {
            undo(&made, &store).await;
        }
        restored
    })?;
    tell(&format!(
        "Brought back {} files and {entries} entries of the database. Start the relay with the same options.",
        places.len()
    ));
    Ok(())
}

/// Puts the entries of a backup into the database, some at a time.
async fn load(path: &Path, store: &Store) -> Result<(), Failure> {
    let (sender, mut batches) = mpsc::channel(1);
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let mut batch = Vec::new();
        read(&path, |line| {
            if let Line::Entry { table, row } = line {
                batch.push(Entry { table, row });
            }
            if batch.len() >= BATCH && sender.blocking_send(std::mem::take(&mut batch)).is_err() {
                return Err(anyhow::anyhow!("the database took no more").into());
            }
            Ok(())
        })?;
        // Whoever takes no more knows why.
        let _ = sender.blocking_send(batch);
        Ok::<_, Failure>(())
    });
    while let Some(batch) = batches.recv().await {
        store.load(&batch).await?;
    }
    reading.await.context("the backup could not be read")?
}

/// Adds to those that were made, whatever comes of the rest.
fn write_files<'a>(places: &'a [(PathBuf, Vec<u8>)], made: &mut Vec<&'a Path>) -> Result<(), Failure> {
    for (place, content) in places {
        if let Some(folder) = place.parent() {
            files::make_private_folder(folder).with_context(|| unwritable(folder))?;
        }
        files::create_for_owner(place, content).with_context(|| unwritable(place))?;
        made.push(place);
    }
    Ok(())
}

/// All is as it was before, when nothing of it was there; what cannot be taken away is told beside the reason for all this.
async fn undo(made: &[&Path], store: &Store) {
    for file in made {
        if let Err(error) = std::fs::remove_file(file) {
            let file = file.display();
            tracing::warn!(%file, %error, "a file that was brought back could not be removed: remove it before another try");
        }
    }
    if let Err(error) = store.clear().await {
        tracing::warn!(%error, "the database could not be emptied again: take another, or empty it, before another try");
    }
}

fn overwriting(what: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!(
        "{what} holds something already, and nothing is overwritten; restore into an empty --data-dir and database"
    ))
}

fn wrong(path: &Path, what: &str) -> Failure {
    Failure::usage(format!("{} {what}", path.display()))
}

/// Goes through all lines between the first and the last, which say that it is a backup and is whole.
fn read(path: &Path, mut each: impl FnMut(Line) -> Result<(), Failure>) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let mut lines = BufReader::new(file).lines().map(|line| {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&line).map_err(|_| wrong(path, "is no backup of a relay, or is damaged"))
    });
    match lines.next().transpose()? {
        Some(Line::Backup { format: FORMAT, .. }) => {}
        Some(Line::Backup { version, .. }) => {
            let version = version.escape_debug();
            let words = format!("was made by a newer release ({version}): restore it with that one");
            return Err(wrong(path, &words));
        }
        _ => return Err(wrong(path, "is no backup of a relay")),
    }
    let (mut files_read, mut entries_read) = (0, 0);
    for line in lines {
        let line = line?;
        match &line {
            Line::File { .. } => files_read += 1,
            Line::Entry { .. } => entries_read += 1,
            Line::End { files, entries } if (*files, *entries) == (files_read, entries_read) => return Ok(()),
            Line::End { .. } | Line::Backup { .. } => return Err(wrong(path, "is damaged")),
        }
        each(line)?;
    }
    Err(wrong(path, "is not whole: its end is missing"))
}
