//! A throwaway Postgres: own directory, unix socket only, gone when dropped (and when this process dies).

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

pub struct Server {
    directory: PathBuf,
    settings: Vec<String>,
    child: Option<Child>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// `TIDEMARK_PG_BIN` names the directory of another version's programs.
fn as_postgres(program: &str) -> Command {
    let program = match std::env::var("TIDEMARK_PG_BIN") {
        Ok(directory) => format!("{directory}/{program}"),
        Err(_) => program.to_owned(),
    };
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig", "QUIT"]).arg(program);
    command.current_dir("/tmp").stdin(Stdio::null());
    command
}

impl Server {
    /// Starts with logical replication and a walsender timeout of two seconds.
    pub fn start(settings: &[&str]) -> Server {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("tidemark-pg-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        assert!(Command::new("chown").arg("postgres").arg(&directory).status().unwrap().success());
        let init = as_postgres("initdb")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(directory.join("data"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(init.success());
        let mut all: Vec<String> = [
            "wal_level=logical",
            "fsync=off",
            "listen_addresses=",
            "wal_sender_timeout=2s",
            "autovacuum=off",
            "shared_buffers=32MB",
        ]
        .map(str::to_owned)
        .to_vec();
        all.push(format!("unix_socket_directories={}", directory.display()));
        all.extend(settings.iter().map(|s| (*s).to_owned()));
        let mut server = Server { directory, settings: all, child: None };
        server.launch();
        server
    }

    pub fn launch(&mut self) {
        let mut command = as_postgres("postgres");
        command.arg("-D").arg(self.directory.join("data"));
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let log = std::fs::File::create(self.directory.join("log")).unwrap();
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let ready = self.directory.join(format!(".s.PGSQL.{}", self.port()));
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(&ready).is_err() {
            assert!(Instant::now() < deadline, "postgres did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `INT` is a fast shutdown, `QUIT` an immediate one (a crash, as far as the data goes).
    pub fn stop(&mut self, signal: &str) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }

    /// `host all all` becomes scram instead of trust.
    pub async fn require_passwords_over_tcp(&self) {
        let file = self.directory.join("data/pg_hba.conf");
        let rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(&file, rules).unwrap();
        self.client().await.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    pub fn url(&self) -> String {
        self.url_as("postgres", "postgres")
    }

    pub fn url_as(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@/{database}?host={}&port={}", self.directory.display(), self.port())
    }

    fn port(&self) -> &str {
        self.settings.iter().find_map(|setting| setting.strip_prefix("port=")).unwrap_or("5432")
    }

    pub async fn client(&self) -> Client {
        self.client_of("postgres").await
    }

    pub async fn client_of(&self, database: &str) -> Client {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match tokio_postgres::connect(&self.url_as("postgres", database), NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("QUIT");
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
