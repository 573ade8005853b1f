//! `DATABASE_URL` and what stands beside it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::{
    check::{ConfigError, bad, set},
    settings::{Role, Settings},
};
use crate::store::address::{AddressSource, DatabaseAccess};

/// Where the database is.
#[derive(Debug, Clone)]
pub enum Database {
    /// Elsewhere.
    External(Box<DatabaseAccess>),
    /// Started by us, with its data in this folder.
    Private {
        /// `DATA_DIR`.
        data_dir: PathBuf,
        /// `PATH`, to find the binaries.
        path: Option<OsString>,
    },
}

impl Settings {
    /// Whether the database is one that the operator names.
    pub(super) fn has_database_url(&self) -> bool {
        let url = self.database_url.as_ref().map(|url| url.0.as_str());
        set(url).is_some() || named(self.database_url_file.as_deref()).is_some()
    }

    /// Where the database is. Looks at nothing else, for commands that need nothing else.
    pub fn database(&self) -> Result<Database, ConfigError> {
        let main = source(
            ("DATABASE_URL", self.database_url.as_ref().map(|url| url.0.as_str())),
            ("DATABASE_URL_FILE", self.database_url_file.as_deref()),
        )?;
        let direct = source(
            ("DATABASE_DIRECT_URL", self.database_direct_url.as_ref().map(|url| url.0.as_str())),
            ("DATABASE_DIRECT_URL_FILE", self.database_direct_url_file.as_deref()),
        )?;
        match (main, direct) {
            (Some((name, main)), Some((direct_name, direct))) => {
                let address = main.read().map_err(|error| bad(name, error))?;
                address.through_pooler().map_err(|error| bad(name, error))?;
                direct.read().map_err(|error| bad(direct_name, error))?;
                Ok(Database::External(Box::new(DatabaseAccess { main, direct: Some(direct) })))
            }
            (Some((name, main)), None) => {
                let address = main.read().map_err(|error| bad(name, error))?;
                if address.says_pooler {
                    return Err(ConfigError::PoolerAlone);
                }
                Ok(Database::External(Box::new(DatabaseAccess { main, direct: None })))
            }
            (None, Some((name, _))) => Err(bad(name, "needs DATABASE_URL, the pooler's address")),
            (None, None) => self.private_database(),
        }
    }

    fn private_database(&self) -> Result<Database, ConfigError> {
        match self.role {
            Role::All => {}
            Role::Api => return Err(ConfigError::Alone("api")),
            Role::Worker => return Err(ConfigError::Alone("worker")),
        }
        let around = &self.surroundings;
        let data_dir = match &self.data_dir {
            Some(data_dir) if !data_dir.as_os_str().is_empty() => data_dir.clone(),
            _ => crate::embedded_postgres::default_data_dir(
                around.home.as_deref(),
                around.xdg_data_home.as_deref(),
                rustix::process::geteuid().is_root(),
            )
            .ok_or(ConfigError::NoDataDir)?,
        };
        Ok(Database::Private { data_dir, path: around.path.clone() })
    }

    /// Parameters of the addresses that have no effect, as warnings.
    pub(super) fn database_warnings(database: &Database) -> Vec<String> {
        let Database::External(access) = database else { return Vec::new() };
        let sources =
            [("DATABASE_URL", Some(&access.main)), ("DATABASE_DIRECT_URL", access.direct.as_ref())];
        let mut warnings = Vec::new();
        for (variable, source) in sources {
            let address = source.and_then(|source| source.read().ok());
            for name in address.map(|address| address.ignored).unwrap_or_default() {
                warnings.push(format!(
                    "{variable}: the parameter `{name}` is not supported and has no effect"
                ));
            }
        }
        warnings
    }
}

/// Platforms and compose files like to set a variable to nothing.
fn named(file: Option<&Path>) -> Option<&Path> {
    file.filter(|file| !file.as_os_str().is_empty())
}

/// The source of an address, from a variable that holds it or one that names a file. `None`: neither
/// is set.
fn source(
    (variable, url): (&'static str, Option<&str>),
    (file_variable, file): (&'static str, Option<&Path>),
) -> Result<Option<(&'static str, AddressSource)>, ConfigError> {
    match (set(url), named(file)) {
        (Some(_), Some(_)) => {
            Err(bad(file_variable, format!("must not be combined with {variable}")))
        }
        (Some(url), None) => Ok(Some((variable, AddressSource::Url(url.into())))),
        (None, Some(file)) => Ok(Some((file_variable, AddressSource::File(file.into())))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::tests::{check, refused};

    const URL: &str = "--database-url=postgres://u:s3cret@h/d";
    const KEY: &str =
        "--encryption-key=0000000000000000000000000000000000000000000000000000000000000000";

    #[test]
    fn database_url_is_given_once() {
        refused(
            &[URL, KEY, "--database-url-file=/nowhere"],
            &["DATABASE_URL_FILE", "DATABASE_URL"],
        );
        refused(&[KEY, "--database-url-file=/nowhere"], &["DATABASE_URL_FILE", "/nowhere"]);
        refused(&["--database-url=mysql://u:s3cret@h/d", KEY], &["DATABASE_URL", "postgres://"]);
        check(&[URL, KEY]).unwrap();
    }

    #[test]
    fn pooler_needs_a_direct_url_and_no_options() {
        let direct = "--database-direct-url=postgres://u@h:5433/d";
        refused(&[direct], &["DATABASE_DIRECT_URL", "needs DATABASE_URL"]);
        refused(&[&format!("{URL}?pgbouncer=true"), KEY], &["DATABASE_DIRECT_URL"]);
        refused(
            &[&format!("{URL}?options=-cx.y%3D1"), KEY, direct],
            &["DATABASE_URL", "`options`"],
        );
        check(&[&format!("{URL}?pgbouncer=true"), KEY, direct]).unwrap();
    }

    #[test]
    fn parameters_without_effect_are_warned_of() {
        let config = check(&[&format!("{URL}?schema=hidden&sslmode=prefer"), KEY]).unwrap();
        let warnings: Vec<_> =
            config.warnings.iter().filter(|text| text.contains("DATABASE_URL")).collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("`schema`") && !warnings[0].contains("hidden"));
    }
}
