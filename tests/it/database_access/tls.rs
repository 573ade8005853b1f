//! TLS to Postgres with a certificate that TLS here does not know.

use std::{fs, path::Path, process::Command, str::FromStr};

use sqlx::postgres::PgConnectOptions;
use webhook_dispatcher::store::connector::Connector;

use super::run;
use crate::support::{
    TestServer,
    process::Folder,
    tools::{is_here, run as run_command},
};

/// Makes a key and a certificate of this version, which openssl chooses by the extensions.
fn certificate(folder: &Path, version: u8) -> (Vec<u8>, Vec<u8>) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (key, request, certificate) = (path("key"), path("request"), path("certificate"));
    let openssl =
        |arguments: &[&str]| run_command(Command::new("openssl").args(arguments)).unwrap();
    openssl(&[
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=database",
        "-keyout",
        &key,
        "-out",
        &request,
    ]);
    let extensions = path("extensions");
    fs::write(&extensions, "basicConstraints = CA:FALSE\n").unwrap();
    let mut sign = vec!["x509", "-req", "-in", &request, "-signkey", &key, "-out", &certificate];
    if version == 3 {
        sign.extend(["-extfile", &extensions]);
    }
    openssl(&sign);
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in", &certificate])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&format!("Version: {version} ")), "{shown}");
    (fs::read(key).unwrap(), fs::read(certificate).unwrap())
}

/// Broken by: a wait without end for a server whose certificate is of version 1; an error without the
/// remedy; a TLS that is not used where it works.
#[tokio::test]
async fn preferred_tls_falls_back_and_required_tls_names_the_remedy() {
    if !is_here("openssl", "version") {
        return;
    }
    // An address of this process alone: the port is the same for all servers.
    let [low, high, ..] = std::process::id().to_le_bytes();
    let address = format!("127.77.{high}.{low}");
    let server = TestServer::start("tls", &[("listen_addresses", &address)]).await;
    let folder = Folder::new("tls");
    fs::create_dir_all(&folder.0).unwrap();
    let mut admin = server.admin().await;
    let mut serve = async |version: u8, access: &str| {
        let (key, certificate) = certificate(&folder.0, version);
        server.write("server.key", &key);
        server.write("server.crt", &certificate);
        let access = format!("local all all trust\n{access} all all 127.0.0.0/8 trust\n");
        server.write("pg_hba.conf", access.as_bytes());
        run(&mut admin, "alter system set ssl = on").await;
        run(&mut admin, "select pg_reload_conf()").await;
    };
    let user = server.postgres.connect_options().get_username().to_owned();
    let connect = async |parameters: &str| {
        let url = format!("postgres://{user}@{address}/postgres{parameters}");
        let options = PgConnectOptions::from_str(&url).unwrap();
        let mut connection = Connector::from(options).connect().await?;
        let is_tls = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        sqlx::query_scalar::<_, bool>(is_tls).fetch_one(&mut connection).await
    };
    // The server takes a moment to reload.
    let becomes = async |parameters: &str, expected: bool| {
        crate::support::eventually("the reload", async || {
            (connect(parameters).await.ok() == Some(expected)).then_some(())
        })
        .await;
    };

    serve(1, "host").await;
    crate::support::eventually("the certificate of version 1", async || {
        let error = connect("?sslmode=require").await.err()?.to_string();
        (error.contains("X.509 version 1") && error.contains("sslmode=disable")).then_some(())
    })
    .await;
    assert!(!connect("").await.unwrap(), "`prefer` is the default");
    assert!(!connect("?sslmode=disable").await.unwrap());

    serve(3, "host").await;
    becomes("", true).await;
    assert!(connect("?sslmode=require").await.unwrap());
    serve(3, "hostnossl").await;
    becomes("", false).await;
    serve(3, "hostssl").await;
    becomes("", true).await;
}
