//! `DATA_DIR/encryption-key`: the key of the local default, made at the first start.
//!
//! It belongs to the account that runs the service, and is closed to all others: where that is root,
//! also to the account that Postgres runs as. It is on the disk, under its name, before anything is
//! sealed with it, and what is there is never overwritten. Whoever calls holds the lock on
//! `DATA_DIR`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rand::{TryRng, rngs::SysRng};
use zeroize::Zeroizing;

use crate::domain::sealing::{KEY_BYTES, SealingKey};

/// Its name.
pub const KEY_FILE: &str = "encryption-key";
/// What it is written as before it has its name. One that a start left which died was never used.
const UNFINISHED: &str = "encryption-key.new";
/// A key has 44 bytes in base64; somebody may have added a line break.
const FILE_BYTES_MAX: u64 = 256;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Other accounts can read or change it.
    #[error(
        "{path} is open to other accounts (mode {mode:03o}), and it is the key to all secrets: \
         `chmod 600 {path}`. If somebody may have read it, also set ENCRYPTION_KEY to a new one"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is there, and is no key.
    #[error(
        "{path} is damaged: it must hold 32 bytes as base64. Restore it from a backup; without it \
         the secrets that it has sealed cannot be read"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It could not be made or read.
    #[error("cannot {action} {path}: {cause}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The system has no random numbers to make a key of.
    #[error("cannot make a key: the system gives no random numbers: {0}")]
    NoRandomness(rand::rngs::SysError),
}

/// For `map_err`: names what was tried and on which path.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    move |cause| KeyFileError::File { action, path: path.to_owned(), cause }
}

/// The key that is kept in `data_dir`; `None` if there is none.
pub(super) fn read(data_dir: &Path) -> Result<Option<SealingKey>, KeyFileError> {
    let unfinished = data_dir.join(UNFINISHED);
    match fs::remove_file(&unfinished) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &unfinished)(cause));
        }
        _ => {}
    }
    let path = data_dir.join(KEY_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(failed("open", &path)(cause)),
    };
    let meta = file.metadata().map_err(failed("look at", &path))?;
    if meta.mode() & 0o077 != 0 {
        return Err(KeyFileError::Open { path, mode: meta.mode() & 0o777 });
    }
    let mut text = Zeroizing::new(String::new());
    match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
        Err(cause) if cause.kind() != io::ErrorKind::InvalidData => {
            return Err(failed("read", &path)(cause));
        }
        // What is not text is no key either.
        _ => {}
    }
    let key = text.trim().parse().map_err(|_| KeyFileError::Damaged { path })?;
    // The start that made it may have died before its name was on the disk.
    File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", data_dir))?;
    Ok(Some(key))
}

/// Makes a key, and keeps it in `data_dir`. An error if one is there.
pub(super) fn make(data_dir: &Path) -> Result<SealingKey, KeyFileError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    SysRng.try_fill_bytes(bytes.as_mut_slice()).map_err(KeyFileError::NoRandomness)?;
    let mut text = SealingKey::from_bytes(bytes).to_base64();
    text.push('\n');
    let unfinished = data_dir.join(UNFINISHED);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(failed("write", &unfinished))?;
    let path = data_dir.join(KEY_FILE);
    // Not a renaming, which would overwrite what came there meanwhile.
    fs::hard_link(&unfinished, &path).map_err(failed("make", &path))?;
    // As every later start will read it: a file system that cannot close it to others shows now.
    let key = read(data_dir)?.ok_or_else(|| KeyFileError::Damaged { path: path.clone() })?;
    tracing::info!(path = %path.display(), "made a key that seals secrets; back it up");
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;

    /// A folder of one test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("whd-key-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn key_file(&self) -> PathBuf {
            self.0.join(KEY_FILE)
        }

        fn write(&self, name: &str, content: &[u8]) {
            fs::write(self.0.join(name), content).unwrap();
            fs::set_permissions(self.0.join(name), Permissions::from_mode(0o600)).unwrap();
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn it_is_made_once_and_closed_to_others() {
        let folder = Folder::new("once");
        assert!(read(&folder.0).unwrap().is_none());
        assert_eq!(folder.names(), Vec::<String>::new(), "reading makes nothing");
        let key = make(&folder.0).unwrap();
        assert_eq!(fs::metadata(folder.key_file()).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(folder.names(), [KEY_FILE]);
        let content = fs::read(folder.key_file()).unwrap();
        assert_eq!(read(&folder.0).unwrap(), Some(key.clone()));
        assert_eq!(fs::read(folder.key_file()).unwrap(), content);
        let other = Folder::new("other");
        assert_ne!(make(&other.0).unwrap(), key, "each folder has its own");
    }

    #[test]
    fn a_start_that_died_in_the_middle_does_no_harm() {
        let folder = Folder::new("died");
        // While it was written: nothing was sealed with it.
        folder.write(UNFINISHED, b"AAAA");
        assert!(read(&folder.0).unwrap().is_none());
        let key = make(&folder.0).unwrap();
        assert_eq!(folder.names(), [KEY_FILE]);
        // Once it had its name, and still the other one too.
        fs::hard_link(folder.key_file(), folder.0.join(UNFINISHED)).unwrap();
        assert_eq!(read(&folder.0).unwrap().unwrap(), key);
        assert_eq!(folder.names(), [KEY_FILE]);
    }

    #[test]
    fn what_is_there_is_never_overwritten() {
        let folder = Folder::new("kept");
        folder.write(KEY_FILE, b"other");
        let error = make(&folder.0).unwrap_err().to_string();
        assert!(error.contains("encryption-key"), "{error}");
        assert_eq!(fs::read(folder.key_file()).unwrap(), b"other");
    }

    #[test]
    fn a_damaged_one_is_refused_and_left_alone() {
        let folder = Folder::new("damaged");
        let key = make(&folder.0).unwrap();
        let text = key.to_base64();
        let half = &text.as_bytes()[..22];
        let long = [text.as_bytes(), text.as_bytes()].concat();
        let endless = [text.as_bytes(), &[b'x'; 1_000]].concat();
        for content in [b"", half, &long, &endless, &[0xff; 44], b"hunter2"] {
            folder.write(KEY_FILE, content);
            let error = read(&folder.0).unwrap_err();
            assert!(matches!(error, KeyFileError::Damaged { .. }), "{error}");
            let message = error.to_string();
            assert!(message.contains(folder.key_file().to_str().unwrap()), "{message}");
            assert!(!message.contains("hunter2"), "it was shown: {message}");
            assert_eq!(fs::read(folder.key_file()).unwrap(), content);
        }
        // As an editor leaves it.
        folder.write(KEY_FILE, format!("{}\n\n", *text).as_bytes());
        assert_eq!(read(&folder.0).unwrap().unwrap(), key);
    }

    #[test]
    fn one_that_is_open_to_others_is_refused() {
        let folder = Folder::new("open");
        let key = make(&folder.0).unwrap();
        let set_mode = |mode| {
            fs::set_permissions(folder.key_file(), Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644, 0o610] {
            set_mode(mode);
            let message = read(&folder.0).unwrap_err().to_string();
            assert!(message.contains(&format!("mode {mode:o}")), "{message}");
            assert!(message.contains("chmod 600"), "{message}");
        }
        set_mode(0o400);
        assert_eq!(read(&folder.0).unwrap().unwrap(), key);
    }
}
