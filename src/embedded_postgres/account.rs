//! The account that runs the Postgres programs: our own, or for root another one.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{getegid, geteuid};
use tokio::process::Command;

use super::error::EmbeddedPostgresError;

/// In this order. Packages of Postgres make the first (macOS: the second); the third is everywhere.
const NAMES: [&str; 3] = ["postgres", "_postgres", "nobody"];

/// Whom the Postgres programs run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    gid: u32,
    /// Whether this is another account than our own, which only root can arrange.
    pub(super) is_switched: bool,
}

impl Account {
    /// Our own account. For root the one that owns `cluster`, since Postgres refuses a folder that is
    /// not its own; without a cluster the first of [`NAMES`] that there is.
    pub(super) fn choose(cluster: &Path) -> Result<Self, EmbeddedPostgresError> {
        let uid = geteuid();
        if !uid.is_root() {
            let uid = uid.as_raw();
            let gid = getegid().as_raw();
            return Ok(Self { name: format!("uid {uid}"), uid, gid, is_switched: false });
        }
        if let Ok(found) = fs::symlink_metadata(cluster)
            && found.uid() != 0
        {
            let (uid, gid) = (found.uid(), found.gid());
            return Ok(Self { name: format!("uid {uid}"), uid, gid, is_switched: true });
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        NAMES
            .iter()
            .find_map(|name| from_passwd(&passwd, name))
            .ok_or(EmbeddedPostgresError::NoAccount)
    }

    /// A command that runs as this account. Dropping its child ends it; `postgres` itself is made to
    /// outlive us by the caller.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            // The service's secrets are in the environment, and `PGPORT` and its like would change
            // what the programs do.
            .env_clear()
            // The log is searched for English phrases.
            .env("LC_ALL", "C")
            // Ours may be one that the account may not enter.
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if self.is_switched {
            // The standard library then drops the supplementary groups, too.
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Gives `path` to this account, itself and not what it may link to. Nothing to do for our own.
    pub(super) fn give(&self, path: &Path) -> Result<(), EmbeddedPostgresError> {
        if !self.is_switched {
            return Ok(());
        }
        lchown(path, Some(self.uid), Some(self.gid))
            .map_err(EmbeddedPostgresError::file("change the owner of", path))
    }

    /// Fails, naming the folder in the way, if this account may not enter `dir`.
    ///
    /// It tries it, rather than believe the mode bits, since access lists and security modules have
    /// a say; the mode bits only tell where to point.
    pub(super) async fn check_may_enter(
        &self,
        dir: &Path,
        data_dir: &Path,
    ) -> Result<(), EmbeddedPostgresError> {
        if !self.is_switched {
            return Ok(());
        }
        let shell = "/bin/sh";
        let entered = self.command(shell).args(["-c", ":"]).current_dir(dir).status().await;
        let Err(cause) = entered else { return Ok(()) };
        let blocked = dir.ancestors().filter(|dir| self.is_kept_out_of(dir)).last();
        match blocked {
            Some(blocked) if cause.kind() == io::ErrorKind::PermissionDenied => {
                Err(EmbeddedPostgresError::NotEnterable {
                    data_dir: data_dir.to_owned(),
                    blocked: describe_folder(blocked),
                    account: self.name.clone(),
                })
            }
            _ => Err(self.cannot_run(Path::new(shell), cause)),
        }
    }

    /// For `map_err`-like use: `program` could not be run.
    pub(super) fn cannot_run(&self, program: &Path, cause: io::Error) -> EmbeddedPostgresError {
        EmbeddedPostgresError::Run {
            program: program.to_owned(),
            account: self.name.clone(),
            cause,
        }
    }

    /// What the mode bits say, and for another account than our own.
    pub(super) fn is_kept_out_of(&self, dir: &Path) -> bool {
        self.is_switched
            && fs::metadata(dir)
                .is_ok_and(|found| !self.may_search(found.uid(), found.gid(), found.mode()))
    }

    fn may_search(&self, owner: u32, group: u32, mode: u32) -> bool {
        let bit = if owner == self.uid {
            0o100
        } else if group == self.gid {
            0o010
        } else {
            0o001
        };
        mode & bit != 0
    }
}

/// `/root (mode 700)`.
fn describe_folder(dir: &Path) -> String {
    let mode = fs::metadata(dir).map_or(0, |found| found.permissions().mode() & 0o7777);
    format!("{} (mode {mode:o})", dir.display())
}

/// Finds an account that is not root in the text of `/etc/passwd`.
fn from_passwd(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2).map(parse_id);
    let (uid, gid) = (ids.next()??, ids.next()??);
    (uid != 0).then(|| Account { name: name.to_owned(), uid, gid, is_switched: true })
}

/// macOS writes nobody's id as -2.
fn parse_id(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().or_else(|| text.parse::<i32>().ok().map(i32::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                          postgresql:x:5:5::/:/bin/sh\n\
                          postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/sh\n\
                          nobody:*:-2:-2:Unprivileged User:/var/empty:/usr/bin/false\n\
                          toor:x:0:0::/root:/bin/sh\n\
                          broken:x\n";

    fn account(name: &str, uid: u32, gid: u32) -> Account {
        Account { name: name.to_owned(), uid, gid, is_switched: true }
    }

    #[test]
    fn accounts_are_found_by_their_whole_name() {
        assert_eq!(from_passwd(PASSWD, "postgres"), Some(account("postgres", 101, 104)));
        assert_eq!(from_passwd(PASSWD, "post"), None);
        assert_eq!(from_passwd(PASSWD, "broken"), None);
    }

    #[test]
    fn negative_ids_of_macos_are_understood() {
        let id = u32::MAX - 1;
        assert_eq!(from_passwd(PASSWD, "nobody"), Some(account("nobody", id, id)));
    }

    #[test]
    fn an_account_with_the_rights_of_root_is_none() {
        assert_eq!(from_passwd(PASSWD, "toor"), None);
    }

    #[test]
    fn only_the_bit_of_ones_own_class_lets_one_in() {
        let postgres = account("postgres", 101, 104);
        assert!(!postgres.may_search(0, 0, 0o700));
        assert!(postgres.may_search(0, 0, 0o711));
        assert!(postgres.may_search(101, 0, 0o700));
        assert!(!postgres.may_search(101, 0, 0o011));
        assert!(postgres.may_search(0, 104, 0o710));
        assert!(!postgres.may_search(0, 104, 0o701));
    }
}
