//! Finds the installed Postgres programs.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::account::Account;
use super::error::EmbeddedPostgresError;

/// The oldest major version that the service's SQL is tested with.
const VERSION_MIN: u32 = 14;

/// `--version` answers at once; a program on a dead network drive must not hang the start.
const ANSWER_AFTER_MAX: Duration = Duration::from_secs(10);

/// What a folder must hold, all of it: programs of different builds do not work together.
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_ctl"];

/// Where packages put the programs, as (folder, what a name in it begins with, what follows).
/// An empty beginning means any name.
const USUAL_FOLDERS: &[(&str, &str, &str)] = &[
    ("/usr/lib/postgresql", "", "bin"),         // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),                  // Fedora, RHEL: the PGDG packages
    ("/usr", "bin", ""),                        // Fedora, RHEL: their own; Arch
    ("/usr/libexec", "postgresql", ""),         // Alpine
    ("/opt/homebrew/opt", "postgresql", "bin"), // macOS, ARM
    ("/usr/local/opt", "postgresql", "bin"),    // macOS, Intel
    ("/usr/local", "pgsql", "bin"),             // built from source
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"), // Postgres.app
];

/// A folder with programs of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    /// The major version.
    pub(super) version: u32,
}

impl Binaries {
    /// The newest build that will do; with a cluster, the one of the cluster's version.
    ///
    /// `search_path` is the value of `PATH`; `cluster` is the folder of a cluster that exists and
    /// its version.
    pub(super) async fn find(
        search_path: Option<&OsStr>,
        cluster: Option<(&Path, u32)>,
        account: &Account,
    ) -> Result<Self, EmbeddedPostgresError> {
        let mut found = Vec::new();
        let mut rejected = String::new();
        for dir in complete_folders(candidates(search_path, account).await) {
            match version_of(&dir, account).await {
                Ok(version) => found.push(Self { dir, version }),
                Err(reason) => {
                    let _ = write!(rejected, "\nNot used: {}: {reason}", dir.display());
                }
            }
        }
        choose(found, cluster, rejected)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The pure part of the choice.
fn choose(
    found: Vec<Binaries>,
    cluster: Option<(&Path, u32)>,
    mut rejected: String,
) -> Result<Binaries, EmbeddedPostgresError> {
    let (mut usable, too_old): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| VERSION_MIN <= found.version);
    for Binaries { dir, version } in too_old {
        let _ = write!(rejected, "\nNot used: {}: version {version} is too old", dir.display());
    }
    // Stable: of equal versions the first found wins, which is the one in `PATH`.
    usable.sort_by_key(|found| std::cmp::Reverse(found.version));
    if usable.is_empty() {
        return Err(EmbeddedPostgresError::BinariesNotFound { version_min: VERSION_MIN, rejected });
    }
    let Some((cluster, cluster_version)) = cluster else { return Ok(usable.swap_remove(0)) };
    if let Some(index) = usable.iter().position(|found| found.version == cluster_version) {
        return Ok(usable.swap_remove(index));
    }
    let names: Vec<_> =
        usable.iter().map(|found| format!("{} ({})", found.version, found.dir.display())).collect();
    Err(EmbeddedPostgresError::VersionMismatch {
        cluster: cluster.to_owned(),
        cluster_version,
        found: names.join(", "),
    })
}

/// Folders that may hold the programs, the likeliest first.
async fn candidates(search_path: Option<&OsStr>, account: &Account) -> Vec<PathBuf> {
    // A relative entry would mean another folder for each place one starts from.
    let mut folders: Vec<_> = search_path
        .map(|path| std::env::split_paths(path).filter(|dir| dir.is_absolute()).collect())
        .unwrap_or_default();
    if let Some(pg_config) =
        folders.iter().map(|dir| dir.join("pg_config")).find(|program| program.is_file())
        && let Ok(answer) = first_line(&pg_config, "--bindir", account).await
    {
        folders.push(PathBuf::from(answer));
    }
    folders.extend(usual_folders(USUAL_FOLDERS));
    folders
}

/// What is there of [`USUAL_FOLDERS`].
fn usual_folders(table: &[(&str, &str, &str)]) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for &(parent, beginning, rest) in table {
        let Ok(entries) = fs::read_dir(parent) else { continue };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let dirs = names
            .filter(|name| name.starts_with(beginning))
            .map(|name| Path::new(parent).join(name).join(rest));
        folders.extend(dirs);
    }
    folders
}

/// Follows symbolic links (a program in `PATH` may point into the folder of its build), and keeps
/// each folder that has all programs once.
fn complete_folders(folders: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut complete = Vec::new();
    for folder in folders {
        let targets = PROGRAMS.iter().filter_map(|name| fs::canonicalize(folder.join(name)).ok());
        let mut dirs: Vec<_> =
            targets.filter_map(|program| program.parent().map(Path::to_owned)).collect();
        dirs.extend(fs::canonicalize(&folder));
        for dir in dirs {
            if !complete.contains(&dir) && PROGRAMS.iter().all(|name| dir.join(name).is_file()) {
                complete.push(dir);
            }
        }
    }
    complete
}

async fn version_of(dir: &Path, account: &Account) -> Result<u32, String> {
    let line = first_line(&dir.join("postgres"), "--version", account).await?;
    parse_version(&line).ok_or_else(|| format!("`postgres --version` said `{line}`"))
}

/// What a program prints, run as the account that will run it: one that root may run and `postgres`
/// may not is of no use.
async fn first_line(program: &Path, argument: &str, account: &Account) -> Result<String, String> {
    let answer = account.command(program).arg(argument).output();
    let answer = timeout(ANSWER_AFTER_MAX, answer)
        .await
        .map_err(|_| "it does not answer".to_owned())?
        .map_err(|cause| format!("{} cannot run it: {cause}", account.name))?;
    let stdout = String::from_utf8_lossy(&answer.stdout);
    match stdout.lines().next() {
        Some(line) if answer.status.success() => Ok(line.trim().to_owned()),
        _ => Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned()),
    }
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_version(line: &str) -> Option<u32> {
    let number =
        line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(versions: &[u32]) -> Vec<Binaries> {
        let folder = |version: &u32| PathBuf::from(format!("/pg/{version}"));
        versions.iter().map(|v| Binaries { dir: folder(v), version: *v }).collect()
    }

    #[track_caller]
    fn check(versions: &[u32], cluster: Option<u32>, expected: Result<u32, &[&str]>) {
        let cluster = cluster.map(|version| (Path::new("/d/postgres"), version));
        match (choose(found(versions), cluster, String::new()), expected) {
            (Ok(chosen), Ok(version)) => assert_eq!(chosen.version, version),
            (Err(error), Err(parts)) => {
                let message = error.to_string();
                for part in parts {
                    assert!(message.contains(part), "no {part:?} in {message:?}");
                }
            }
            (chosen, expected) => panic!("{chosen:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_newest_is_chosen() {
        check(&[14, 17, 15], None, Ok(17));
    }

    #[test]
    fn a_cluster_keeps_its_version() {
        check(&[14, 17, 15], Some(15), Ok(15));
    }

    #[test]
    fn a_cluster_of_another_version_is_refused_with_both_versions() {
        check(&[17, 16], Some(15), Err(&["by PostgreSQL 15", "17 (/pg/17), 16 (/pg/16)"]));
    }

    #[test]
    fn nothing_found_names_the_packages_and_the_way_out() {
        let parts = [
            "apt-get install postgresql",
            "dnf install postgresql-server",
            "apk add postgresql",
            "brew install postgresql@17",
            "DATABASE_URL",
        ];
        check(&[], None, Err(&parts));
        // Also where a cluster exists: its version is of no interest then.
        check(&[], Some(15), Err(&parts));
    }

    #[test]
    fn an_old_version_is_refused_by_name() {
        check(&[13], None, Err(&["PostgreSQL 14 or newer", "/pg/13: version 13 is too old"]));
    }

    #[test]
    fn versions_are_read_from_what_builds_print() {
        let cases = [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some(15)),
            ("postgres (PostgreSQL) 17.5 (Homebrew)", Some(17)),
            ("postgres (PostgreSQL) 18beta1", Some(18)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("postgres", None),
        ];
        for (line, version) in cases {
            assert_eq!(parse_version(line), version, "{line}");
        }
    }

    #[test]
    fn links_lead_to_the_folder_of_the_build() {
        let root = std::env::temp_dir().join(format!("embpg-links-{}", std::process::id()));
        let (build, shims) = (root.join("lib/15/bin"), root.join("bin"));
        fs::create_dir_all(&build).unwrap();
        fs::create_dir_all(&shims).unwrap();
        for name in PROGRAMS {
            fs::write(build.join(name), "").unwrap();
        }
        symlink(build.join("initdb"), shims.join("initdb")).unwrap();
        let build = fs::canonicalize(build).unwrap();

        // By the link, by the folder itself, and only once.
        assert_eq!(complete_folders(vec![shims.clone(), build.clone()]), [build.as_path()]);
        let table = [(root.join("lib"), "1", "bin"), (root.clone(), "no such", "")];
        let table: Vec<_> =
            table.iter().map(|(dir, name, rest)| (dir.to_str().unwrap(), *name, *rest)).collect();
        assert_eq!(complete_folders(usual_folders(&table)), [build.as_path()]);
        // An incomplete folder is none.
        fs::remove_file(build.join("pg_ctl")).unwrap();
        assert!(complete_folders(vec![shims, build]).is_empty());
        fs::remove_dir_all(root).unwrap();
    }
}
