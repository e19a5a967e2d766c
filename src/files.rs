//! Files that only their owner may read; where a platform has no file modes, its folders of the user protect them.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Makes a folder, and those above it, for the owner alone; one that exists is left as it is. What root makes in a folder that is
/// somebody's own is theirs.
///
/// # Errors
/// The system's.
pub fn make_private_folder(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_private_folder(above)?;
    }
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => {
            made?;
            // Where it cannot be given away, root's it stays.
            let _ = give_folder_to_owner_of_folder(path);
            Ok(())
        }
    }
}

/// Writes a file that did not exist.
///
/// # Errors
/// `AlreadyExists`, or the system's.
pub fn create_private(path: &Path, content: &[u8]) -> io::Result<()> {
    create(path, content).map(drop)
}

fn create(path: &Path, content: &[u8]) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half of it is none.
        let _ = fs::remove_file(path);
    }
    written.map(|()| file)
}

/// The same for a folder that is somebody's own: what root makes there belongs to whom the folder belongs.
///
/// # Errors
/// As for [`create_private`].
pub fn create_for_owner(path: &Path, content: &[u8]) -> io::Result<()> {
    // The file that was made, whatever its name leads to by now.
    let made = create(path, content)?;
    // Where it cannot be given away, root's it stays.
    let _ = folder_of(path)
        .metadata()
        .and_then(|folder| give_to_owner(&folder, &made));
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

#[cfg(unix)]
fn give_folder_to_owner_of_folder(path: &Path) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, openat};
    let folder = fs::File::open(folder_of(path))?;
    let name = path.file_name().unwrap_or_default();
    // What is there by this name by now may be a way to elsewhere: that is not followed.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = fs::File::from(openat(&folder, name, flags, Mode::empty())?);
    give_to_owner(&folder.metadata()?, &made)
}

#[cfg(unix)]
fn give_to_owner(folder: &fs::Metadata, made: &fs::File) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    if made.metadata()?.uid() == 0 && folder.uid() != 0 {
        fchown(made, Some(folder.uid()), Some(folder.gid()))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn give_folder_to_owner_of_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn give_to_owner(_: &fs::Metadata, _: &fs::File) -> io::Result<()> {
    Ok(())
}

/// Replaces a file in one step: whoever reads it sees the old content or the new.
///
/// # Errors
/// The system's.
pub fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    make_beside(path, content, |fresh| fs::rename(fresh, path))?;
    // Where a folder cannot be synced, it is as safe as the system makes it.
    let _ = sync_folder_of(path);
    Ok(())
}

#[cfg(unix)]
fn sync_folder_of(path: &Path) -> io::Result<()> {
    fs::File::open(folder_of(path))?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder_of(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Takes a lock that one process has at a time, and that ends with the file that is returned; none while another one has it. Where a
/// platform has no such locks, everybody gets it.
///
/// # Errors
/// The system's.
pub fn try_lock(path: &Path) -> io::Result<Option<fs::File>> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    #[cfg(windows)]
    std::os::windows::fs::OpenOptionsExt::share_mode(&mut options, 0);
    match options.open(path) {
        Ok(file) => lock_opened(file),
        // ERROR_SHARING_VIOLATION: somebody else has it open.
        Err(error) if cfg!(windows) && error.raw_os_error() == Some(32) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(unix)]
fn lock_opened(file: fs::File) -> io::Result<Option<fs::File>> {
    use rustix::fs::{FlockOperation, flock};
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(unix))]
fn lock_opened(file: fs::File) -> io::Result<Option<fs::File>> {
    Ok(Some(file))
}

/// Reads a file, or makes it first of `content`; another process that makes it at the same time wins or loses, both read the
/// same.
///
/// # Errors
/// The system's.
pub fn read_or_create(path: &Path, content: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    if let Some(folder) = path.parent() {
        make_private_folder(folder)?;
    }
    // Made whole under another name first: nobody must read half of it.
    make_beside(path, &content()?, |fresh| match fs::hard_link(fresh, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    })?;
    fs::read(path)
}

/// Writes the content under a name beside `path`, hands that to `place`, and leaves nothing behind.
fn make_beside(path: &Path, content: &[u8], place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    // What a process with the same number left when it crashed, as in a container, stands in nobody's way.
    let _ = fs::remove_file(&fresh);
    let placed = create_for_owner(&fresh, content).and_then(|()| place(&fresh));
    // Renamed, it is gone already.
    let _ = fs::remove_file(&fresh);
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_had_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = try_lock(&path).unwrap();
        assert!(lock.is_some() && try_lock(&path).unwrap().is_none());
        drop(lock);
        assert!(try_lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_file_is_made_once_and_read_ever_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/secret");
        assert_eq!(read_or_create(&path, || Ok(b"one".to_vec())).unwrap(), b"one");
        assert_eq!(read_or_create(&path, || Ok(b"two".to_vec())).unwrap(), b"one");
        let leftover = path.with_file_name(format!("secret.{}.new", std::process::id()));
        fs::write(&leftover, "half").unwrap();
        replace_private(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_root_makes_in_a_folder_of_somebody_is_theirs() {
        use std::os::unix::fs::{MetadataExt, chown};
        let folder = tempfile::tempdir().unwrap();
        // Only root can give something away.
        if chown(folder.path(), Some(65_532), Some(65_532)).is_err() {
            return;
        }
        let (above, below) = (folder.path().join("acme"), folder.path().join("acme/certificates"));
        make_private_folder(&below).unwrap();
        let file = below.join("key");
        create_for_owner(&file, b"").unwrap();
        for made in [above, below, file] {
            let made = fs::metadata(made).unwrap();
            assert_eq!((made.uid(), made.gid()), (65_532, 65_532));
        }
    }
}
