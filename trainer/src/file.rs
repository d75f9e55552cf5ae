//! Writing files so that nothing is ever half written: to a temporary name in the same folder, synced, then renamed.

use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// How the names of temporary files start. A kill can leave them behind.
pub const TEMPORARY: &str = ".adcorda-";

/// Replaces `path` by `bytes` in one step: whoever reads it sees the old content or the new, never a part.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) where the folder is missing, not writable or full; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |cause| unwritable(path, cause);
    let mut temporary = temporary_beside(path)?;
    temporary
        .write_all(bytes)
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(fail)?;
    temporary.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

/// Whether `path` could be written now; for work that takes long before it has something to write.
///
/// # Errors
/// As [`write_atomic`].
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(unwritable(path, std::io::ErrorKind::IsADirectory.into()));
    }
    temporary_beside(path).map(drop)
}

/// A file in `path`'s folder, deleted unless it is renamed, with the permissions of any new file: a temporary file's own are
/// private, and a model is made to be handed on.
fn temporary_beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask
    builder.tempfile_in(folder).map_err(|cause| unwritable(path, cause))
}

fn unwritable(path: &Path, cause: std::io::Error) -> Error {
    Error::io("write", path, cause).remedy("check that the folder exists, is writable and has space left")
}

/// Reads a whole file.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) naming the file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|cause| Error::io("read", path, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.adq");
        for bytes in [&b"old"[..], b"new"] {
            check_writable(&path).unwrap();
            write_atomic(&path, bytes).unwrap();
            assert_eq!(read(&path).unwrap(), bytes);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        for path in [folder.path().join("missing/model.adq"), folder.path().to_owned()] {
            for result in [check_writable(&path), write_atomic(&path, b"")] {
                assert_eq!(result.unwrap_err().kind(), crate::ErrorKind::Io);
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_any_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["ours", "plain"].map(|name| folder.path().join(name));
        write_atomic(&paths[0], b"").unwrap();
        std::fs::write(&paths[1], b"").unwrap();
        let [ours, plain] = paths.map(|path| std::fs::metadata(path).unwrap().permissions());
        assert_eq!(ours, plain);
    }
}
