//! The log file that Postgres writes: opened for it, rotated before it, quoted in errors.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::account::Account;
use super::error::EmbeddedPostgresError;

/// A start with a longer log moves it to `postgres.log.1` first. One old file is kept.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// What an error quotes of the log at most.
const TAIL_BYTES_MAX: u64 = 4 * 1024;
const TAIL_LINES_MAX: usize = 20;

/// Opens the log for a Postgres that is about to start; also says where its lines will begin.
pub(super) fn open(path: &Path, account: &Account) -> Result<(File, u64), EmbeddedPostgresError> {
    let length = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    if LOG_BYTES_MAX < length(path) {
        let old = path.with_extension("log.1");
        fs::rename(path, &old).map_err(EmbeddedPostgresError::file("rotate", path))?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(EmbeddedPostgresError::file("open", path))?;
    // A folder that root used once still works for its owner.
    account.give(path)?;
    Ok((file, length(path)))
}

/// The last lines after `begin`; says so if there are none.
pub(super) fn tail(path: &Path, begin: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(end.saturating_sub(TAIL_BYTES_MAX))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(last_lines(&String::from_utf8_lossy(&bytes)))
    };
    match read() {
        Ok(text) if text.is_empty() => "(nothing was written)".to_owned(),
        Ok(text) => text,
        Err(cause) => format!("(cannot be read: {cause})"),
    }
}

/// The last lines of a program's output.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES_MAX)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_long_log_is_rotated_and_the_tail_is_of_this_start() {
        let root = std::env::temp_dir().join(format!("embpg-log-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let path = root.join("postgres.log");
        let account = Account::choose(Path::new("/nonexistent")).unwrap();

        let (mut file, begin) = open(&path, &account).unwrap();
        assert_eq!(begin, 0);
        assert_eq!(fs::metadata(&path).unwrap().uid(), account.uid);
        assert_eq!(tail(&path, begin), "(nothing was written)");
        writeln!(file, "of the first start").unwrap();

        let (mut file, begin) = open(&path, &account).unwrap();
        writeln!(file, "of the second").unwrap();
        assert_eq!(tail(&path, begin), "of the second");

        file.set_len(LOG_BYTES_MAX + 1).unwrap();
        let (_, begin) = open(&path, &account).unwrap();
        assert_eq!(begin, 0);
        assert_eq!(fs::metadata(root.join("postgres.log.1")).unwrap().len(), LOG_BYTES_MAX + 1);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_tail_is_bounded() {
        let lines: Vec<_> = (0..100).map(|n| format!("line {n}\n")).collect();
        let tail = last_lines(&lines.concat());
        assert_eq!(tail.lines().count(), TAIL_LINES_MAX);
        assert!(tail.ends_with("line 99"));
    }
}
