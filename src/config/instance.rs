//! A running instance, as those are told that call it.

use clap::Args;

use super::settings::Hidden;

/// Which instance to call, and with which key.
#[derive(Debug, Clone, Args)]
pub struct Instance {
    /// Where the instance is.
    #[arg(long, env = "WEBHOOK_DISPATCHER_URL", default_value = "http://127.0.0.1:8000")]
    pub url: url::Url,
    /// Key to call it with; better told by the environment, as other users can see flags.
    #[arg(long, env = "WEBHOOK_DISPATCHER_API_KEY", hide_env_values = true)]
    pub api_key: Option<Hidden>,
}

impl Instance {
    /// The key itself.
    pub fn reveal_key(&self) -> Option<&str> {
        self.api_key.as_ref().map(|Hidden(key)| key.as_str())
    }
}
