//! Files that only their owner may read: keys, trust, views.
//!
//! Directories are 0700 and files 0600 from their first moment, and a file is replaced as a whole or not at all. What
//! others could have read or written is refused with the command that repairs it, never repaired silently: whoever
//! loosened it should know. Deliberately absent: encryption at rest; the file system's owner is trusted.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::sys;

/// Why a private file or directory was not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Others may read, write or list it.
    #[error(
        "{} has mode {mode:04o}, so others can reach it; hint: chmod {expected:o} {}",
        path.display(), shell_quoted(path)
    )]
    TooOpen {
        /// What was looked at.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it must have.
        expected: u32,
    },
    /// It belongs to another user.
    #[error(
        "{} belongs to user {owner}, but this process runs as user {us}; hint: run as user {owner}, or chown {us} {}",
        path.display(), shell_quoted(path)
    )]
    ForeignOwner {
        /// What was looked at.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
        /// Our user id.
        us: u32,
    },
    /// A link, a device or a directory where a plain file belongs, or the other way round.
    #[error("{} is not a {expected}; hint: move it away", path.display())]
    WrongKind {
        /// What was looked at.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// More than any file of ours holds.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// What was looked at.
        path: PathBuf,
        /// The largest that is read, in bytes.
        limit: u64,
    },
    /// The operating system said no.
    #[error("{} cannot be {verb}", path.display())]
    Io {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FileError {
    /// Whether the file simply is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn shell_quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

const READ_LIMIT: u64 = 256 * 1024 * 1024; // a view of 100 000 entries is far below

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io {
        verb,
        path: path.to_owned(),
        source,
    }
}

/// Makes the directory, and its missing parents, with mode 0700, or checks the one that is there.
///
/// # Errors
/// When it cannot be made, belongs to somebody else, or is open to others.
pub fn ensure_private_dir(path: &Path) -> Result<(), FileError> {
    let made =
        sys::without_private_umask(|| DirBuilder::new().recursive(true).mode(0o700).create(path));
    // A non-directory in the place is told by the check below in clearer words.
    if let Err(source) = made
        && source.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(io_error("created", path)(source));
    }
    check_private_dir(path)
}

/// Checks that the directory is ours and closed to everybody else.
///
/// # Errors
/// When it is missing, a link, somebody else's, or open to others.
pub fn check_private_dir(path: &Path) -> Result<(), FileError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("examined", path))?;
    if !metadata.is_dir() {
        return Err(FileError::WrongKind {
            path: path.to_owned(),
            expected: "directory",
        });
    }
    check_access(path, &metadata, 0o700)
}

fn check_access(path: &Path, metadata: &Metadata, expected: u32) -> Result<(), FileError> {
    let (owner, us) = (metadata.uid(), sys::own_uid());
    if owner != us {
        let path = path.to_owned();
        return Err(FileError::ForeignOwner { path, owner, us });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::TooOpen {
            path: path.to_owned(),
            mode,
            expected,
        });
    }
    Ok(())
}

/// Reads a file that only we may read. Links are not followed.
///
/// # Errors
/// When the file is missing, a link, somebody else's, or open to others; see [`FileError::is_not_found`].
pub fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .map_err(io_error("read", path))?;
    // Judged on the open file, so that nobody can swap it between the look and the read.
    let metadata = file.metadata().map_err(io_error("examined", path))?;
    if !metadata.is_file() {
        return Err(FileError::WrongKind {
            path: path.to_owned(),
            expected: "regular file",
        });
    }
    check_access(path, &metadata, 0o600)?;
    let mut bytes = Vec::new();
    let mut limited = file.take(READ_LIMIT + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > READ_LIMIT {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit: READ_LIMIT,
        });
    }
    Ok(bytes)
}

/// Replaces a file by `bytes`, mode 0600: after a crash the old or the new content is there, never a part.
///
/// # Errors
/// When the directory is not private or any step fails; the old content is then untouched.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(FileError::WrongKind {
            path: path.to_owned(),
            expected: "file in a directory",
        });
    };
    check_private_dir(dir)?;
    let mut draft_name = std::ffi::OsString::from(".");
    draft_name.push(name);
    draft_name.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    let draft = dir.join(draft_name);
    let written = write_draft(&draft, bytes)
        .and_then(|()| fs::rename(&draft, path).map_err(io_error("replaced", path)));
    if let Err(error) = written {
        fs::remove_file(&draft).ok(); // the first error is the one to tell
        return Err(error);
    }
    sync_dir(dir)
}

fn write_draft(draft: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)
        .map_err(io_error("created", draft))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io_error("written", draft))
}

/// Makes renames and removals in the directory last through a crash.
///
/// # Errors
/// When the directory cannot be opened or synchronised.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("synchronised", dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn private_dir() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("state");
        ensure_private_dir(&path).expect("a new private directory");
        (dir, path)
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").mode() & 0o7777
    }

    #[test]
    fn makes_directories_0700_and_files_0600_whatever_was_there_before() {
        let (_guard, dir) = private_dir();
        let file = dir.join("key.pem");
        write_private(&file, b"one").expect("first write");
        write_private(&file, b"two").expect("second write");
        assert_eq!((mode_of(&dir), mode_of(&file)), (0o700, 0o600));
        assert_eq!(read_private(&file).expect("readable"), b"two");
        let names: Vec<_> = fs::read_dir(&dir).expect("listable").collect();
        assert_eq!(names.len(), 1, "no draft is left behind: {names:?}");
    }

    // S72: a key that others could read is refused, and the message holds the command that repairs it.
    #[test]
    fn refuses_a_file_that_others_may_reach_and_names_the_chmod() {
        let (_guard, dir) = private_dir();
        let file = dir.join("key.pem");
        write_private(&file, b"secret").expect("written");
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666, 0o777] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("ours");
            let error = read_private(&file).expect_err("open to others");
            assert!(matches!(error, FileError::TooOpen { mode: seen, .. } if seen == mode));
            let hint = format!("chmod 600 '{}'", file.display());
            assert!(error.to_string().contains(&hint), "{error}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).expect("ours");
        assert_eq!(read_private(&file).expect("stricter is fine"), b"secret");
    }

    #[test]
    fn refuses_a_directory_that_others_may_list_or_enter() {
        let (_guard, dir) = private_dir();
        for mode in [0o750, 0o701, 0o755, 0o1777] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("ours");
            assert!(matches!(
                ensure_private_dir(&dir),
                Err(FileError::TooOpen { .. })
            ));
            assert!(matches!(
                write_private(&dir.join("x"), b""),
                Err(FileError::TooOpen { .. })
            ));
        }
    }

    #[test]
    fn refuses_links_and_directories_in_the_place_of_a_file() {
        let (_guard, dir) = private_dir();
        let real = dir.join("real");
        write_private(&real, b"x").expect("written");
        let link = dir.join("link");
        symlink(&real, &link).expect("a link");
        assert!(matches!(read_private(&link), Err(FileError::Io { .. })));
        assert!(matches!(
            read_private(&dir),
            Err(FileError::WrongKind { .. })
        ));
        let dir_link = dir.join("dir-link");
        symlink(&dir, &dir_link).expect("a link");
        assert!(matches!(
            check_private_dir(&dir_link),
            Err(FileError::WrongKind { .. })
        ));
        assert!(matches!(
            ensure_private_dir(&real),
            Err(FileError::WrongKind { .. })
        ));
    }

    #[test]
    fn a_missing_file_is_told_apart_from_a_refused_one() {
        let (_guard, dir) = private_dir();
        assert!(
            read_private(&dir.join("none"))
                .expect_err("missing")
                .is_not_found()
        );
    }
}
