//! The keys that seal secrets: from `ENCRYPTION_KEY`, or from a file beside the private database;
//! and the proof that they are this database's.
//!
//! One sealed value stands in the database from the first start on. A process that cannot open it
//! does not start: it could read no secret, and what it sealed the others could not read. So a
//! mistaken key shows at once, and not at the delivery that needs the secret.

mod key_file;

use std::path::{Path, PathBuf};

pub use key_file::{KEY_FILE, KeyFileError};

use crate::{
    domain::sealing::{KeyId, OpenError, SealingKeys},
    store::{Store, StoreError},
};

/// What is sealed in the table `sealing_check`. That it opens is the proof.
const CHECK: &[u8] = b"webhook-dispatcher";
const CHECK_CONTEXT: &[u8] = b"sealing_check";

/// Why these keys are not used.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// None of them has sealed what is in this database.
    #[error(
        "ENCRYPTION_KEY: this database was sealed with another key (its id is {sealed_with}; the key \
         that would seal here is {current}). Set the key that it was sealed with, alone, or after a \
         new one and a comma; if it was made by the service, it is in DATA_DIR/{KEY_FILE}"
    )]
    AnotherKey {
        /// The key that the database was sealed with.
        sealed_with: KeyId,
        /// The first of ours.
        current: KeyId,
    },
    /// It was there when the database was sealed.
    #[error(
        "{path} is missing, and this database was sealed with it, or with a key of ENCRYPTION_KEY: \
         restore it from a backup, or set that"
    )]
    NoKeyFile {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file that holds the key is not usable.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The value that is to be opened was changed, or sealed by a later version.
    #[error("ENCRYPTION_KEY cannot be checked: the value in the table sealing_check is {0}")]
    Unreadable(OpenError),
    /// The database did not do its part.
    #[error("ENCRYPTION_KEY could not be checked: {0}")]
    Store(StoreError),
}

/// The keys of this installation: those of the setting, and the one beside the private database,
/// which only opens where there are others. It is made if there is no other, and never for a database
/// that another one has sealed.
///
/// `data_dir` is that of the private database, whose lock must be held.
pub async fn keys(
    store: &Store,
    setting: Option<SealingKeys>,
    data_dir: &Path,
) -> Result<SealingKeys, SealingError> {
    match (setting, key_file::read(data_dir)?) {
        (Some(keys), Some(older)) => Ok(keys.with_older(older)),
        (Some(keys), None) => Ok(keys),
        (None, Some(key)) => Ok(key.into()),
        (None, None) if store.is_sealed().await.map_err(SealingError::Store)? => {
            Err(SealingError::NoKeyFile { path: data_dir.join(KEY_FILE) })
        }
        (None, None) => Ok(key_file::make(data_dir)?.into()),
    }
}

/// Proves that these keys are this database's: opens the value that its first start has sealed, and
/// seals it again if an older key has. Safe from several processes at once.
pub async fn check(store: &Store, keys: &SealingKeys) -> Result<(), SealingError> {
    let fresh = keys.seal(CHECK, CHECK_CONTEXT, rand::random());
    let found = store.sealing_check_or(&fresh).await.map_err(SealingError::Store)?;
    keys.open(&found, CHECK_CONTEXT).map_err(|error| match error {
        OpenError::UnknownKey(sealed_with) => {
            SealingError::AnotherKey { sealed_with, current: keys.current_id() }
        }
        OpenError::UnknownVersion | OpenError::DamagedOrMoved => SealingError::Unreadable(error),
    })?;
    let is_resealed = !keys.is_current(&found);
    if is_resealed {
        store.reseal_check(&found, &fresh).await.map_err(SealingError::Store)?;
    }
    tracing::info!(key = %keys.current_id(), is_resealed, "secrets are sealed");
    Ok(())
}
