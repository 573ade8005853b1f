//! Passwords that change while the service runs.

use std::{fs, os::unix::fs::PermissionsExt};

use super::{post, readiness, run};
use crate::support::{
    Receiver, TestServer, eventually,
    process::{ENCRYPTION_KEY, Folder, Process, free_port},
};

/// Broken by: an address or a password that is read at the start only; a login that fails without a
/// word in `/readyz`.
#[tokio::test]
async fn password_that_changed_in_a_file_is_used_at_the_next_connect() {
    let server = TestServer::start("passwords", &[]).await;
    server.write("pg_hba.conf", b"local all rotating scram-sha-256\nlocal all all trust\n");
    let mut admin = server.admin().await;
    run(&mut admin, "create role rotating login password 'one'; select pg_reload_conf()").await;
    let receiver = Receiver::always(200).await;
    let target = receiver.url("/");
    let folder = Folder::new("passwords");
    fs::create_dir_all(&folder.0).unwrap();
    for variable in ["DATABASE_URL_FILE", "PGPASSFILE"] {
        let name = format!("of_{}", variable.to_lowercase());
        let database = server.database(&name).await;
        run(&mut admin, &format!("alter database {name} owner to rotating")).await;
        let host = database.options.get_socket().unwrap().to_str().unwrap().replace('/', "%2F");
        let file = folder.0.join(variable);
        let write = |password: &str| {
            let text = match variable {
                "PGPASSFILE" => format!("*:*:*:rotating:{password}\n"),
                _ => format!("postgres://rotating:{password}@{host}/{name}\n"),
            };
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        };
        run(&mut admin, "alter role rotating password 'one'").await;
        write("one");
        let url = format!("postgres://rotating@{host}/{name}");
        let mut environment = vec![
            (variable, file.to_str().unwrap()),
            ("ENCRYPTION_KEY", ENCRYPTION_KEY),
            ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
        ];
        if variable == "PGPASSFILE" {
            environment.push(("DATABASE_URL", &url));
        }
        let service = Process::start(free_port().await, &environment).await;
        let (status, answer) = post(&service, &target).await;
        assert_eq!(status, 202, "{answer}");

        let change = format!(
            "alter role rotating password 'two';
             select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
        );
        run(&mut admin, &change).await;
        eventually("the reason", async || {
            let (status, text) = readiness(&service).await;
            (status == 503 && text.contains("password")).then_some(())
        })
        .await;
        write("two");
        eventually("the new password", async || {
            (post(&service, &target).await.0 == 202).then_some(())
        })
        .await;
        eventually("ready", async || (readiness(&service).await.0 == 200).then_some(())).await;
        let log = service.output();
        assert!(!log.contains("rotating:one") && !log.contains("rotating:two"), "{log}");
    }
}
