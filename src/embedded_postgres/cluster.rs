//! The cluster's files: whether there is one, of which version, and how it is made.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::account::Account;
use super::binaries::Binaries;
use super::data_dir::{DataDir, make_private};
use super::error::EmbeddedPostgresError;
use super::log::last_lines;

/// The superuser of the cluster, and the owner of the service's database.
pub(super) const USER: &str = "webhook_dispatcher";

/// What an initdb works in begins with this; it becomes `postgres` when it is whole.
const UNFINISHED_PREFIX: &str = "postgres.new-";

/// The major version of the cluster; `None` if there is none.
pub(super) fn version(cluster: &Path) -> Result<Option<u32>, EmbeddedPostgresError> {
    let file = cluster.join("PG_VERSION");
    match fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse() {
            Ok(version) => Ok(Some(version)),
            Err(_) => Err(EmbeddedPostgresError::NotACluster { path: cluster.to_owned() }),
        },
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            if cluster.exists() {
                return Err(EmbeddedPostgresError::NotACluster { path: cluster.to_owned() });
            }
            Ok(None)
        }
        Err(cause) => Err(EmbeddedPostgresError::file("read", &file)(cause)),
    }
}

/// Gives a cluster that root owns (a copy that root made) to the account that is to run it.
pub(super) fn give(cluster: &Path, account: &Account) -> Result<(), EmbeddedPostgresError> {
    let meta = fs::metadata(cluster).map_err(EmbeddedPostgresError::file("look at", cluster))?;
    if account.is_switched && meta.uid() != account.uid {
        give_tree(cluster, account)?;
    }
    Ok(())
}

/// The folder itself comes last: until then an interrupted change is seen and done again.
fn give_tree(dir: &Path, account: &Account) -> Result<(), EmbeddedPostgresError> {
    let list = || fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>();
    for entry in list().map_err(EmbeddedPostgresError::file("list", dir))? {
        let path = entry.path();
        let kind = entry.file_type().map_err(EmbeddedPostgresError::file("look at", &path))?;
        if kind.is_dir() {
            give_tree(&path, account)?;
        } else {
            account.give(&path)?;
        }
    }
    account.give(dir)
}

/// Makes the cluster: under another name, so that a half-made one is never taken for it.
pub(super) async fn make(
    data_dir: &DataDir,
    binaries: &Binaries,
) -> Result<(), EmbeddedPostgresError> {
    // A name of its own: an initdb that outlived its service may still be writing to the last one.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let unfinished = data_dir.path.join(format!("{UNFINISHED_PREFIX}{}-{now}", std::process::id()));
    make_private(&unfinished, &data_dir.account)?;
    let made = run_initdb(&unfinished, data_dir, binaries).await;
    if made.is_err() {
        remove_unfinished(&data_dir.path);
    }
    made?;

    let cluster = data_dir.cluster();
    fs::rename(&unfinished, &cluster).map_err(EmbeddedPostgresError::file("make", &cluster))?;
    // The files are on the disk (initdb saw to it); so must be their folder's name.
    File::open(&data_dir.path)
        .and_then(|dir| dir.sync_all())
        .map_err(EmbeddedPostgresError::file("sync", &data_dir.path))
}

async fn run_initdb(
    dir: &Path,
    data_dir: &DataDir,
    binaries: &Binaries,
) -> Result<(), EmbeddedPostgresError> {
    let account = &data_dir.account;
    let initdb = binaries.program("initdb");
    let answer = account
        .command(&initdb)
        .current_dir(dir)
        .arg("-D")
        .arg(dir)
        .arg(format!("--username={USER}"))
        // The one locale that is everywhere; it compares by bytes and does not change with the
        // system's libraries, so indexes stay valid over upgrades of them.
        .args(["--encoding=UTF8", "--locale=C"])
        // Who can open the socket is in already: only the account and root may enter its folder, and
        // no network address is listened on. The rules for those refuse, should one ever be.
        .args(["--auth-local=trust", "--auth-host=reject"])
        .args(["--data-checksums", "--no-instructions"])
        .output()
        .await
        .map_err(|cause| account.cannot_run(&initdb, cause))?;
    if answer.status.success() {
        return Ok(());
    }
    let output = [answer.stdout, answer.stderr].concat();
    Err(EmbeddedPostgresError::Initdb {
        path: dir.to_owned(),
        status: answer.status,
        output: last_lines(&String::from_utf8_lossy(&output)),
    })
}

/// Removes what interrupted initdbs left. Nothing depends on it, so a failure is only logged.
pub(super) fn remove_unfinished(data_dir: &Path) {
    let Ok(entries) = fs::read_dir(data_dir) else { return };
    for entry in entries.flatten() {
        let is_unfinished =
            entry.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED_PREFIX));
        if is_unfinished && let Err(cause) = fs::remove_dir_all(entry.path()) {
            let dir = entry.path();
            tracing::warn!(dir = %dir.display(), %cause, "cannot remove an unfinished database");
        }
    }
}
