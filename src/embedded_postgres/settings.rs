//! The settings that the private Postgres is started with, each with its reason.
//!
//! They go on the command line, where they win over `postgresql.conf` and `ALTER SYSTEM`.

use std::path::Path;

/// Name and value, in the order in which they are passed. What a test adds comes later and wins.
const SETTINGS: &[(&str, &str)] = &[
    // A 202 is answered after the commit, so a commit must be on the disk.
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    // Nothing but the socket: `trust` is safe only while no network address is open.
    ("listen_addresses", ""),
    // The folder keeps others out already; the socket itself does too.
    ("unix_socket_permissions", "0700"),
    // The hot tables, their indexes and today's partitions stay in memory.
    ("shared_buffers", "256MB"),
    // Under load a checkpoint every few seconds would write each hot page in full, again and again.
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "15min"),
    // Payloads and full pages compress well, and the log's bandwidth bounds the commits.
    ("wal_compression", "on"),
    // A batch of 512 events fits, so that a commit flushes once.
    ("wal_buffers", "16MB"),
    // The queue table turns over in seconds; a minute's dead rows would slow each claim.
    ("autovacuum_naptime", "10s"),
    // SSDs: an index look-up costs about what a sequential page costs.
    ("random_page_cost", "1.1"),
    // The statements are short; compiling one costs more than running it.
    ("jit", "off"),
    // The service's pool, its listener and somebody's psql.
    ("max_connections", "100"),
    // A client that hangs inside a transaction must not hold back vacuum for ever.
    ("idle_in_transaction_session_timeout", "60s"),
    // Partitions begin at UTC midnight, whatever the machine's zone.
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    // Loaded once by the postmaster: sessions that begin after a package upgrade has replaced the
    // library would fail until the restart (58P01, or an undefined symbol).
    ("shared_preload_libraries", "plpgsql"),
    // The log goes to the file that we hand over as stderr, in the language that we look for in it.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("lc_messages", "C"),
];

/// The arguments of `postgres`.
pub(super) fn arguments(
    cluster: &Path,
    socket_dir: &Path,
    extra: &[(String, String)],
) -> Vec<String> {
    let mut arguments = vec![
        "-D".to_owned(),
        cluster.display().to_string(),
        "-k".to_owned(),
        quoted_in_list(&socket_dir.display().to_string()),
    ];
    let ours = SETTINGS.iter().map(|&(name, value)| (name, value));
    let theirs = extra.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in ours.chain(theirs) {
        arguments.push("-c".to_owned());
        arguments.push(format!("{name}={value}"));
    }
    arguments
}

/// Postgres reads the socket folders as a list with commas, where a blank or a comma in a name
/// needs quotes.
fn quoted_in_list(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_settings_come_last() {
        let extra = [("fsync".to_owned(), "off".to_owned())];
        let arguments = arguments(Path::new("/d/postgres"), Path::new("/d/run"), &extra);
        assert_eq!(arguments[..4], ["-D", "/d/postgres", "-k", "\"/d/run\""]);
        assert_eq!(arguments[arguments.len() - 2..], ["-c", "fsync=off"]);
        assert!(arguments.contains(&"fsync=on".to_owned()));
    }

    #[test]
    fn a_socket_folder_is_quoted() {
        assert_eq!(quoted_in_list(r#"/a b, "c""#), r#""/a b, ""c""""#);
    }
}
