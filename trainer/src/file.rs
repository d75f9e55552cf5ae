//! Writing files so that nothing is ever half written: to a temporary name in the same folder, synced, then renamed.

use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Replaces `path` by `bytes` in one step: whoever reads it sees the old content or the new, never a part.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) where the folder is missing, not writable or full; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let fail = |cause| Error::io("write", path, cause).remedy("check that the folder exists, is writable and has space left");
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    temporary
        .write_all(bytes)
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(fail)?;
    temporary.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

/// Reads a whole file.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) naming the file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|cause| Error::io("read", path, cause))
}
