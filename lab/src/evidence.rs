//! Looking for bytes where they must not be: in the memory of a process, in files, in what was captured.
//!
//! A search that reads nothing finds nothing, so each one also says how much it has read.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::pattern::find;

const CHUNK: usize = 1024 * 1024;

/// Where a search found its bytes, and what it has looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// One line for each place: a file, or a range of memory with its name.
    pub places: Vec<String>,
    /// How many bytes were looked at.
    pub looked_at: u64,
}

impl Search {
    /// Fails when the bytes were found anywhere, or nothing was looked at.
    ///
    /// # Errors
    ///
    /// Names every place.
    pub fn found_nothing(&self) -> Result<()> {
        ensure!(self.looked_at > 0, "the search has read nothing");
        ensure!(
            self.places.is_empty(),
            "found in {}",
            self.places.join(", ")
        );
        Ok(())
    }
}

/// Searches all readable memory of a running process, as a memory image of it would hold.
///
/// # Errors
///
/// Fails when the process is gone or may not be read.
pub fn search_memory(pid: u32, needle: &[u8]) -> Result<Search> {
    ensure!(!needle.is_empty(), "an empty search");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("the maps of process {pid}"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))
        .with_context(|| format!("the memory of process {pid}"))?;
    let mut search = Search::default();
    for line in maps.lines() {
        let Some((from, to)) = readable_range(line) else {
            continue;
        };
        let mut at = from;
        let reader = |buffer: &mut [u8]| {
            let room = usize::try_from(to - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let size = memory.read_at(&mut buffer[..room], at)?;
            at += size as u64;
            Ok(size)
        };
        match look_through(reader, needle) {
            Ok((found, size)) => {
                search.looked_at += size;
                if found {
                    search.places.push(format!("memory {line}"));
                }
            }
            // A page that a device or the kernel keeps to itself, or that was unmapped meanwhile.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {}
            Err(error) => return Err(error).with_context(|| format!("reading {line}")),
        }
    }
    Ok(search)
}

/// Searches a file, or every file below a directory.
///
/// # Errors
///
/// Fails when something there cannot be read.
pub fn search_files(path: &Path, needle: &[u8]) -> Result<Search> {
    ensure!(!needle.is_empty(), "an empty search");
    let mut search = Search::default();
    for path in files(path)? {
        let mut file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let (found, size) = look_through(|buffer| file.read(buffer), needle)
            .with_context(|| format!("reading {}", path.display()))?;
        search.looked_at += size;
        if found {
            search.places.push(path.display().to_string());
        }
    }
    Ok(search)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(path) = open.pop() {
        let kind = fs::symlink_metadata(&path)
            .with_context(|| format!("looking at {}", path.display()))?;
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// The addresses of a line of `/proc/PID/maps` that can be read and is memory.
fn readable_range(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    if !rights.starts_with('r')
        || line.ends_with("[vvar]")
        || line.ends_with("[vvar_vclock]")
        || line.ends_with("[vsyscall]")
    {
        return None;
    }
    Some((
        u64::from_str_radix(from, 16).ok()?,
        u64::from_str_radix(to, 16).ok()?,
    ))
}

/// Reads to the end in chunks that overlap, so that nothing hides on a border.
fn look_through(
    mut read: impl FnMut(&mut [u8]) -> std::io::Result<usize>,
    needle: &[u8],
) -> std::io::Result<(bool, u64)> {
    let keep = needle.len() - 1;
    let mut buffer = vec![0; CHUNK + keep];
    let (mut held, mut total, mut found) = (0, 0, false);
    loop {
        let size = match read(&mut buffer[held..]) {
            Ok(0) => return Ok((found, total)),
            Ok(size) => size,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        total += size as u64;
        let filled = held + size;
        found |= find(&buffer[..filled], needle).is_some();
        held = keep.min(filled);
        buffer.copy_within(filled - held..filled, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_needle_across_every_border() {
        let needle = b"needle";
        for at in [0, 1, CHUNK - 3, CHUNK - 1, CHUNK, CHUNK + 2, 2 * CHUNK + 4] {
            for step in [999, CHUNK * 4] {
                let mut bytes = vec![b'n'; 3 * CHUNK];
                bytes[at..at + needle.len()].copy_from_slice(needle);
                let mut rest = bytes.as_slice();
                let read = |buffer: &mut [u8]| {
                    let length = buffer.len().min(step);
                    rest.read(&mut buffer[..length])
                };
                let result = look_through(read, needle).expect("memory can be read");
                assert_eq!(result, (true, bytes.len() as u64), "at {at} by {step}");
            }
        }
        let (found, _) = look_through(|_| Ok(0), needle).expect("nothing to read");
        assert!(!found);
    }

    #[test]
    fn a_search_that_read_nothing_is_no_proof() {
        assert!(Search::default().found_nothing().is_err());
    }
}
