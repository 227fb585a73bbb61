//! Encrypted sessions against a real server: every mode as it should be, and never less than was asked for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::engine::change::Lsn;
use ::engine::source::ResumePoint;
use connectors::{ConnectorConfig, NotStarted};
use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio_postgres::Client;

use super::engine::{FakeEngine, config};
use super::payments::{PAYMENTS, assert_same_payments, now, wait_for};
use super::server::Server;

/// Files in PEM format, some of them for a server that runs as another user.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    /// `ca`, `server` (for localhost), `anna` (a client's) and `stranger` (another authority).
    fn make() -> Certificates {
        let made = Certificates { directory: tempfile::tempdir().unwrap() };
        let authority = |name: &str| {
            let mut parameters = CertificateParams::new(Vec::new()).unwrap();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.distinguished_name.push(DnType::CommonName, name);
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
        };
        let (ours, stranger) = (authority("ours"), authority("stranger"));
        std::fs::write(made.file("ca.pem"), ours.pem()).unwrap();
        std::fs::write(made.file("stranger.pem"), stranger.pem()).unwrap();
        for (name, host) in [("server", Some("localhost")), ("anna", None)] {
            let mut parameters = CertificateParams::new(Vec::from_iter(host.map(str::to_owned))).unwrap();
            parameters.distinguished_name.push(DnType::CommonName, host.unwrap_or(name));
            let key = KeyPair::generate().unwrap();
            let certificate: Certificate = parameters.signed_by(&key, &ours).unwrap();
            std::fs::write(made.file(&format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(made.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        // A certificate that signed itself, as many servers have: an authority of its own, for localhost.
        let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(made.file("own.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(made.file("own.key"), key.serialize_pem()).unwrap();
        for name in ["server.key", "own.key"] {
            made.give_away(name);
        }
        made
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// To the server's user; others may not read it, or the server refuses it.
    fn give_away(&self, name: &str) {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        std::fs::set_permissions(self.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(self.file(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        if Path::new("/proc/self").metadata().unwrap().uid() == 0 {
            assert!(Command::new("chown").arg("postgres").arg(self.file(name)).status().unwrap().success());
        }
    }
}

/// A server that encrypts where it is asked to, with passwords for some and certificates for others.
struct Encrypted {
    server: Server,
    certificates: Certificates,
    port: u16,
    client: Client,
}

impl Encrypted {
    async fn start() -> Encrypted {
        let certificates = Certificates::make();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server::start(&["listen_addresses=127.0.0.1", &format!("port={port}")]);
        let client = server.client().await;
        let encrypted = Encrypted { server, certificates, port, client };
        encrypted.set("ssl_ca_file", "ca.pem").await;
        encrypted.set("ssl_cert_file", "server.pem").await;
        encrypted.set("ssl_key_file", "server.key").await;
        encrypted.client.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
        let client = &encrypted.client;
        client.batch_execute(PAYMENTS).await.unwrap();
        client
            .batch_execute(
                "INSERT INTO payments VALUES (1, 'm', 1, 's'); SET password_encryption = 'scram-sha-256';
                 CREATE ROLE scram SUPERUSER LOGIN PASSWORD 'right'; CREATE ROLE anna SUPERUSER LOGIN;
                 CREATE ROLE clear SUPERUSER LOGIN PASSWORD 'right'; SET password_encryption = 'md5';
                 CREATE ROLE old SUPERUSER LOGIN PASSWORD 'right'",
            )
            .await
            .unwrap();
        // Reads the settings too.
        encrypted
            .server
            .allow(
                "local all all trust\nhostssl all anna 127.0.0.1/32 cert\nhost all scram 127.0.0.1/32 scram-sha-256\n\
                 hostssl all clear 127.0.0.1/32 password\nhostssl all old 127.0.0.1/32 md5\n",
            )
            .await;
        encrypted
    }

    /// Names one of the certificates' files to the server; it reads them when it is told to reload.
    async fn set(&self, setting: &str, name: &str) {
        let file = self.certificates.file(name);
        self.client.batch_execute(&format!("ALTER SYSTEM SET {setting} = '{}'", file.display())).await.unwrap();
    }

    fn url(&self, user: &str, host: &str, query: &str) -> String {
        let ca = |name: &str| self.certificates.file(name).display().to_string();
        let query = query
            .replace("CA", &format!("sslrootcert={}", ca("ca.pem")))
            .replace("STRANGER", &format!("sslrootcert={}", ca("stranger.pem")))
            .replace("ANNA", &format!("sslcert={}&sslkey={}", ca("anna.pem"), ca("anna.key")));
        format!("postgres://{user}@{host}:{}/postgres?{query}", self.port)
    }

    /// The code of what the settings lead to; `ok` where nothing is wrong.
    async fn code(&self, user: &str, host: &str, query: &str) -> String {
        let settings = config(&self.url(user, host, query), &["payments"], "tidemark_tls");
        match connectors::preflight(&ConnectorConfig::Postgres(settings)).await {
            Ok(()) => "ok".to_owned(),
            Err(NotStarted { error, .. }) => {
                assert!(!error.remedy.is_empty() && !error.to_string().contains("right"), "{error}");
                error.code.to_owned()
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mode_of_tls_is_what_it_says() {
    let encrypted = Encrypted::start().await;
    for (host, query, expected) in [
        ("localhost", "sslmode=disable", "ok"),
        ("localhost", "sslmode=prefer", "ok"),
        ("localhost", "", "ok"),
        // Encrypted with whomever, unless an authority is named.
        ("localhost", "sslmode=require", "ok"),
        ("localhost", "sslmode=require&CA", "ok"),
        ("127.0.0.1", "sslmode=require&CA", "ok"),
        ("localhost", "sslmode=require&STRANGER", "tls_failed"),
        ("localhost", "sslmode=prefer&STRANGER", "tls_failed"),
        ("localhost", "sslmode=verify-ca&CA", "ok"),
        ("127.0.0.1", "sslmode=verify-ca&CA", "ok"),
        ("localhost", "sslmode=verify-ca&STRANGER", "tls_failed"),
        ("localhost", "sslmode=verify-full&CA", "ok"),
        ("127.0.0.1", "sslmode=verify-full&CA", "tls_failed"),
        ("localhost", "sslmode=verify-full&STRANGER", "tls_failed"),
        ("localhost", "sslrootcert=system", "tls_failed"),
        ("localhost", "sslmode=verify-full&sslrootcert=/nonexistent", "tls_failed"),
        // A password exchange is bound to the certificate, and to nothing where there is none.
        ("localhost", "sslmode=verify-full&CA&channel_binding=require", "ok"),
        ("localhost", "sslmode=disable&channel_binding=require", "authentication_failed"),
    ] {
        assert_eq!(encrypted.code("scram:right", host, query).await, expected, "{host} {query}");
    }
    for (user, query, expected) in [
        ("scram:wrong", "sslmode=require", "authentication_failed"),
        ("scram", "sslmode=require", "authentication_failed"),
        ("clear:right", "sslmode=require", "ok"),
        ("clear:wrong", "sslmode=require", "authentication_failed"),
        ("clear:right", "sslmode=disable", "authentication_failed"),
        ("clear:right", "sslmode=require&channel_binding=require", "authentication_failed"),
        ("old:right", "sslmode=require", "authentication_failed"),
        // A certificate in place of a password.
        ("anna", "sslmode=verify-full&CA&ANNA", "ok"),
        ("anna", "sslmode=verify-full&CA", "authentication_failed"),
        ("scram:right", "sslmode=require&sslcert=/nonexistent&sslkey=/nonexistent", "tls_failed"),
    ] {
        assert_eq!(encrypted.code(user, "localhost", query).await, expected, "{user} {query}");
    }

    // What a certificate that signed itself is good for: it is its own authority.
    let own = encrypted.certificates.file("own.pem").display().to_string();
    encrypted.set("ssl_cert_file", "own.pem").await;
    encrypted.set("ssl_key_file", "own.key").await;
    encrypted.client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let trusting = format!("sslmode=verify-full&sslrootcert={own}");
    wait_for("the server's own certificate", async || {
        encrypted.code("scram:right", "localhost", &trusting).await == "ok"
    })
    .await;
    assert_eq!(encrypted.code("scram:right", "127.0.0.1", &trusting).await, "tls_failed");
    assert_eq!(encrypted.code("scram:right", "localhost", "sslmode=verify-full&CA").await, "tls_failed");

    // A server without TLS: only those who did not insist get in.
    encrypted.client.batch_execute("ALTER SYSTEM SET ssl = off").await.unwrap();
    encrypted.client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    wait_for("the server without TLS", async || {
        encrypted.code("scram:right", "localhost", "sslmode=require").await == "tls_failed"
    })
    .await;
    assert_eq!(encrypted.code("scram:right", "localhost", "sslmode=prefer").await, "ok");
    for query in ["sslmode=verify-ca&CA", "sslmode=verify-full&CA", "sslmode=require&CA"] {
        assert_eq!(encrypted.code("scram:right", "localhost", query).await, "tls_failed", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_come_over_tls_with_a_certificate_in_place_of_a_password() {
    let encrypted = Encrypted::start().await;
    let client = &encrypted.client;
    let url = encrypted.url("anna", "localhost", "sslmode=verify-full&CA&ANNA");
    let mut engine = FakeEngine::start(config(&url, &["payments"], "tidemark_tls"), ResumePoint::Fresh);
    engine.until(Lsn(1)).await;
    let sessions = async || {
        let row = client
            .query_one(
                "SELECT count(*), count(*) FILTER (WHERE ssl AND client_dn = '/CN=anna') FROM pg_stat_ssl
                 JOIN pg_stat_activity USING (pid) WHERE usename = 'anna'",
                &[],
            )
            .await
            .unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    wait_for("the stream and the monitor", async || sessions().await.0 >= 2).await;
    let (all, encrypted_ones) = sessions().await;
    assert_eq!(all, encrypted_ones);
    for batch in 0..20 {
        client
            .batch_execute(&format!(
                "INSERT INTO payments SELECT i, repeat('m', 300), 1, 's' FROM generate_series({}, {}) i;
                 UPDATE payments SET amount = 2 WHERE id % 7 = {}; DELETE FROM payments WHERE id % 11 = {}",
                1000 + batch * 500,
                1499 + batch * 500,
                batch % 7,
                batch % 11,
            ))
            .await
            .unwrap();
    }
    // Longer than upstream's patience: what it must hear goes out, encrypted too.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    engine.until(now(client).await).await;
    assert_same_payments(client, &engine).await;
    assert_eq!(engine.status.borrow().reconnects, 0);
    engine.stop().await;
    drop(encrypted.server);
}
