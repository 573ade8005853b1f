//! From the errors of the layers below to those of the API.

use super::ApiError;
use crate::{ingest::Rejected, store::StoreError, telemetry};

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if let StoreError::Full { what, count_max } = error {
            Self::Full { what, count_max }
        } else if error.is_outage() {
            telemetry::statement_failed(&error, "requests cannot be served");
            Self::Unavailable
        } else {
            tracing::error!(%error, "a request failed");
            Self::Internal
        }
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Busy => Self::Busy,
            Rejected::Unavailable => Self::Unavailable,
            Rejected::KeyReused => Self::KeyReused,
            Rejected::NoApplication => Self::ApplicationNotFound(None),
            Rejected::Refused => Self::Internal,
        }
    }
}
