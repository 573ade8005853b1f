//! `DATA_DIR`: where it is by default, its lock, and the folders in it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::account::Account;
use super::error::EmbeddedPostgresError;

/// How long a held lock is tried again: a program that we just started may hold a copy of a lock
/// that its owner gave up, from its fork to its exec.
const LOCK_WAIT_MAX: Duration = Duration::from_millis(500);
const LOCK_RETRY_AFTER: Duration = Duration::from_millis(25);

/// The folder of the cluster.
const CLUSTER: &str = "postgres";

/// The name of a socket's file on the port that we use; its folder is ours alone.
const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// Systems allow 104 or 108 bytes for the path of a socket, the final zero included.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// Where the socket goes if its path would be too long. Not `TMPDIR`, which is long itself on macOS
/// and often closed to other accounts.
const SOCKET_FALLBACK_PARENT: &str = "/tmp";

/// Where the data goes if nobody said so; `None` if there is nothing to derive it from.
///
/// `home` and `xdg_data_home` are the values of `HOME` and `XDG_DATA_HOME`; relative and empty ones
/// do not count.
pub fn default_data_dir(
    home: Option<&Path>,
    xdg_data_home: Option<&Path>,
    is_root: bool,
) -> Option<PathBuf> {
    if is_root {
        return Some(PathBuf::from("/var/lib/webhook-dispatcher"));
    }
    let below_home =
        if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" };
    let home = home.filter(|dir| dir.is_absolute()).map(|dir| dir.join(below_home));
    let xdg = xdg_data_home.filter(|dir| dir.is_absolute()).map(Path::to_owned);
    xdg.or(home).map(|dir| dir.join("webhook-dispatcher"))
}

/// The folder, made and locked. Dropping it gives the lock back.
#[derive(Debug)]
pub(super) struct DataDir {
    /// Absolute and free of links, so that one folder has one name.
    pub(super) path: PathBuf,
    /// Who runs Postgres in it.
    pub(super) account: Account,
    /// Holds the lock by being open.
    _lock: File,
}

impl DataDir {
    pub(super) async fn open(asked: &Path) -> Result<Self, EmbeddedPostgresError> {
        let asked = std::path::absolute(asked)
            .map_err(EmbeddedPostgresError::file("find the full path of", asked))?;
        check_expressible(&asked)?;
        let account = Account::choose(&asked.join(CLUSTER))?;
        make(&asked, &account).await?;
        let path =
            fs::canonicalize(&asked).map_err(EmbeddedPostgresError::file("resolve", &asked))?;
        check_expressible(&path)?;
        let lock = lock(&path).await?;
        Ok(Self { path, account, _lock: lock })
    }

    pub(super) fn cluster(&self) -> PathBuf {
        self.path.join(CLUSTER)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// Makes the folder of the socket, which only the account may enter.
    pub(super) fn make_socket_dir(&self) -> Result<PathBuf, EmbeddedPostgresError> {
        let dir = socket_dir(&self.path, geteuid().as_raw());
        make_private(&dir, &self.account)?;
        Ok(dir)
    }

    /// Removes a socket folder that lies elsewhere. Not an error if it stays: the next start finds
    /// and uses it.
    pub(super) fn remove_socket_dir(&self, dir: &Path) {
        if !dir.starts_with(&self.path)
            && let Err(cause) = fs::remove_dir(dir)
        {
            tracing::debug!(dir = %dir.display(), %cause, "the socket's folder stays");
        }
    }
}

/// The folders of the cluster and of the socket in a `DATA_DIR` that is in use.
pub(super) fn places_of(asked: &Path) -> Result<(PathBuf, PathBuf), EmbeddedPostgresError> {
    let path = fs::canonicalize(asked).map_err(EmbeddedPostgresError::file("resolve", asked))?;
    Ok((path.join(CLUSTER), socket_dir(&path, geteuid().as_raw())))
}

/// Postgres writes paths into files with lines, and sqlx takes them as text.
fn check_expressible(path: &Path) -> Result<(), EmbeddedPostgresError> {
    let reason = match path.to_str() {
        None => "its path is not UTF-8",
        Some(path) if path.contains(['\n', '\r']) => "its path contains a line break",
        Some(_) => return Ok(()),
    };
    Err(EmbeddedPostgresError::UnusableDataDir { data_dir: path.to_owned(), reason })
}

/// Makes the folder and what is missing above it, such that the account may enter it.
async fn make(path: &Path, account: &Account) -> Result<(), EmbeddedPostgresError> {
    let missing: Vec<_> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    if missing.is_empty() && account.is_kept_out_of(path) && is_ours(path) {
        let_search(path)?;
    }
    // Before anything is made: it must not be left behind where it cannot be used.
    let nearest = path.ancestors().nth(missing.len()).unwrap_or(path);
    let resolved =
        fs::canonicalize(nearest).map_err(EmbeddedPostgresError::file("resolve", nearest))?;
    account.check_may_enter(&resolved, path).await?;
    for dir in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(dir) {
            // A path with `..` names a folder twice.
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                return Err(EmbeddedPostgresError::file("make the folder", dir)(cause));
            }
            _ => {}
        }
        if account.is_switched {
            let_search(dir)?;
        }
    }
    Ok(())
}

/// Whether we may change who enters the folder: it is empty (`mktemp -d` makes it closed), or we
/// have used it before.
fn is_ours(dir: &Path) -> bool {
    dir.join("lock").is_file()
        || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Lets other accounts pass through the folder, not list it.
fn let_search(dir: &Path) -> Result<(), EmbeddedPostgresError> {
    let change = || -> io::Result<()> {
        let mode = fs::metadata(dir)?.mode() & 0o7777;
        if mode & 0o011 != 0o011 {
            fs::set_permissions(dir, Permissions::from_mode(mode | 0o011))?;
        }
        Ok(())
    };
    change().map_err(EmbeddedPostgresError::file("change the mode of", dir))
}

/// Takes `DATA_DIR/lock` and writes our pid into it.
async fn lock(data_dir: &Path) -> Result<File, EmbeddedPostgresError> {
    let path = data_dir.join("lock");
    let failed = |cause| EmbeddedPostgresError::Lock { path: path.clone(), cause };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        // The other one's pid must still be there if it holds the lock.
        .truncate(false)
        .mode(0o644)
        .open(&path)
        .map_err(failed)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WAIT_MAX => {
                sleep(LOCK_RETRY_AFTER).await;
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid);
                let pid = match pid.trim() {
                    pid if read.is_ok() && !pid.is_empty() => pid.to_owned(),
                    _ => "unknown".to_owned(),
                };
                return Err(EmbeddedPostgresError::AlreadyInUse {
                    data_dir: data_dir.to_owned(),
                    pid,
                });
            }
        }
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(failed)?;
    Ok(file)
}

/// `DATA_DIR/run`, or a folder in /tmp whose name no other data folder and no other user has.
fn socket_dir(data_dir: &Path, uid: u32) -> PathBuf {
    let dir = data_dir.join("run");
    if dir.join(SOCKET_NAME).as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return dir;
    }
    let digest = Sha256::digest(format!("{uid} {}", data_dir.display()));
    let name = digest[..8].iter().fold(String::new(), |name, byte| format!("{name}{byte:02x}"));
    Path::new(SOCKET_FALLBACK_PARENT).join(format!("webhook-dispatcher-{name}"))
}

/// Makes a folder that only the account may enter, or checks that it is one: in /tmp anybody may
/// have been there first.
pub(super) fn make_private(path: &Path, account: &Account) -> Result<(), EmbeddedPostgresError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            return Err(EmbeddedPostgresError::file("make the folder", path)(cause));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(path).map_err(EmbeddedPostgresError::file("look at", path))?;
    let foreign = |found: String| EmbeddedPostgresError::ForeignFolder {
        path: path.to_owned(),
        account: account.name.clone(),
        found,
    };
    if !meta.is_dir() {
        return Err(foreign("it is no folder".to_owned()));
    }
    if meta.uid() != account.uid {
        // Ours and not yet given away.
        if meta.uid() != geteuid().as_raw() {
            return Err(foreign(format!("it belongs to uid {}", meta.uid())));
        }
        account.give(path)?;
    }
    if meta.mode() & 0o7777 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(EmbeddedPostgresError::file("change the mode of", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_default_folder_is_the_systems_for_root_and_the_users_for_a_user() {
        let home = Some(Path::new("/home/ada"));
        let xdg = Some(Path::new("/data/ada"));
        let relative = Some(Path::new("data"));
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(default_data_dir(home, xdg, true), path("/var/lib/webhook-dispatcher"));
        assert_eq!(default_data_dir(None, None, true), path("/var/lib/webhook-dispatcher"));
        assert_eq!(default_data_dir(home, xdg, false), path("/data/ada/webhook-dispatcher"));
        let of_home = if cfg!(target_os = "macos") {
            path("/home/ada/Library/Application Support/webhook-dispatcher")
        } else {
            path("/home/ada/.local/share/webhook-dispatcher")
        };
        assert_eq!(default_data_dir(home, None, false), of_home);
        assert_eq!(default_data_dir(home, relative, false), of_home);
        assert_eq!(default_data_dir(Some(Path::new("")), None, false), None);
        assert_eq!(default_data_dir(None, None, false), None);
    }

    #[test]
    fn a_short_path_keeps_its_socket_and_a_long_one_gets_another() {
        assert_eq!(socket_dir(Path::new("/d"), 0), Path::new("/d/run"));

        // "/run/.s.PGSQL.5432" has 18 bytes.
        let fits = format!("/{}", "a".repeat(81));
        assert_eq!(socket_dir(Path::new(&fits), 0), Path::new(&fits).join("run"));

        let long = format!("{fits}a");
        let dir = socket_dir(Path::new(&long), 0);
        assert!(dir.starts_with(SOCKET_FALLBACK_PARENT), "{dir:?}");
        assert!(dir.join(SOCKET_NAME).as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
        assert_eq!(dir, socket_dir(Path::new(&long), 0));
        assert_ne!(dir, socket_dir(Path::new(&long), 1));
        assert_ne!(dir, socket_dir(Path::new(&format!("{long}a")), 0));
    }

    #[test]
    fn paths_that_postgres_cannot_write_down_are_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        assert!(check_expressible(Path::new("/a b/\"c\"/'d'/é")).is_ok());
        assert!(check_expressible(Path::new("/a\nb")).is_err());
        assert!(check_expressible(Path::new(OsStr::from_bytes(b"/\xff"))).is_err());
    }

    #[test]
    fn a_private_folder_is_closed_again_and_never_a_link() {
        let root = std::env::temp_dir().join(format!("embpg-private-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let account = Account::choose(Path::new("/nonexistent")).unwrap();

        let dir = root.join("run");
        make_private(&dir, &account).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        make_private(&dir, &account).unwrap();
        let meta = fs::metadata(&dir).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o700, account.uid));

        let link = root.join("link");
        symlink(&dir, &link).unwrap();
        let error = make_private(&link, &account).unwrap_err().to_string();
        assert!(error.contains("it is no folder"), "{error}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_private_folder_of_someone_else_is_refused() {
        let root = std::env::temp_dir().join(format!("embpg-foreign-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        // Somebody who is neither the owner of the folder nor this process.
        let theirs = if geteuid().is_root() {
            std::os::unix::fs::chown(&root, Some(4242), None).unwrap();
            root.clone()
        } else {
            PathBuf::from("/")
        };
        let account = Account::choose(Path::new("/nonexistent")).unwrap();
        let error = make_private(&theirs, &account).unwrap_err().to_string();
        assert!(error.contains("it belongs to uid"), "{error}");
        fs::remove_dir_all(root).unwrap();
    }
}
