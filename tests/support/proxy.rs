//! A network between Tidemark and Postgres that breaks on demand: a proxy on the loopback that cuts, stalls, half-closes,
//! delays, cuts after so many bytes (also inside a message), or lets nobody in.
//!
//! Where it leads can be changed while it runs: that is how a failover looks to whoever connects by name.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;

/// What happens to the network.
#[derive(Clone, Copy, Debug)]
pub enum NetworkFault {
    /// Every connection ends now, with a reset or as if the other side had closed it.
    Cut { reset: bool },
    /// Every connection ends once so many more bytes came from Postgres; the last message before is cut in two.
    CutAfter { bytes: u64 },
    /// Nothing is passed on in these directions for a while; connections stay open.
    Stall { to_postgres: bool, from_postgres: bool, lasting: Duration },
    /// One direction is closed; the other goes on.
    HalfClose { to_postgres: bool },
    /// Everything arrives later, for a while.
    Delay { by: Duration, lasting: Duration },
    /// Every connection ends, and none is let in for a while.
    Away { lasting: Duration },
}

impl NetworkFault {
    /// Any of them; `longest` bounds what lasts.
    pub fn random(rng: &mut impl Rng, longest: Duration) -> NetworkFault {
        let lasting = longest.mul_f64(rng.random_range(0.05..1.0));
        match rng.random_range(0..10) {
            0 | 1 => NetworkFault::Cut { reset: rng.random() },
            // As many small as large: the first bytes are those of the greeting, later ones lie inside rows.
            2..=4 => NetworkFault::CutAfter { bytes: 10f64.powf(rng.random_range(0.0..6.3)) as u64 },
            5 | 6 => {
                let which = rng.random_range(0..3);
                NetworkFault::Stall { to_postgres: which != 0, from_postgres: which != 1, lasting }
            }
            7 => NetworkFault::HalfClose { to_postgres: rng.random() },
            8 => NetworkFault::Delay { by: Duration::from_millis(rng.random_range(1..60)), lasting },
            _ => NetworkFault::Away { lasting },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToPostgres,
    FromPostgres,
}

/// What the pumps look at before they pass something on.
struct Weather {
    target: PathBuf,
    stalled_until: [Instant; 2],
    delay: Duration,
    delayed_until: Instant,
    away_until: Instant,
    /// Bytes from Postgres until everything is cut.
    allowance: Option<u64>,
}

/// What ends connections: each looks at what changed since it began.
#[derive(Clone, Copy, Default)]
struct Ends {
    cuts: u64,
    reset: bool,
    half_closes: [u64; 2],
}

struct Shared {
    weather: Mutex<Weather>,
    ends: watch::Sender<Ends>,
}

/// A running proxy; it ends with its runtime.
pub struct Proxy {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a free port of the loopback and passes on to the unix socket in a directory.
    pub async fn start(socket_directory: &std::path::Path) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let now = Instant::now();
        let weather = Weather {
            target: socket_directory.join(".s.PGSQL.5432"),
            stalled_until: [now; 2],
            delay: Duration::ZERO,
            delayed_until: now,
            away_until: now,
            allowance: None,
        };
        let shared = Arc::new(Shared { weather: Mutex::new(weather), ends: watch::Sender::new(Ends::default()) });
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&accepting);
                let (away, target) =
                    shared.look(|weather| (weather.away_until > Instant::now(), weather.target.clone()));
                if away {
                    continue;
                }
                tokio::spawn(async move {
                    if let Ok(server) = UnixStream::connect(target).await {
                        shared.connection(client, server).await;
                    }
                });
            }
        });
        Proxy { address, shared }
    }

    /// The URL of a database behind it.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    /// From here on connections lead to another server; those that exist end.
    pub fn lead_to(&self, socket_directory: &std::path::Path) {
        self.shared.look(|weather| weather.target = socket_directory.join(".s.PGSQL.5432"));
        self.inject(NetworkFault::Cut { reset: false });
    }

    /// Lets it happen.
    pub fn inject(&self, fault: NetworkFault) {
        let now = Instant::now();
        match fault {
            NetworkFault::Cut { reset } => self.shared.cut(reset),
            NetworkFault::CutAfter { bytes } => self.shared.look(|weather| weather.allowance = Some(bytes)),
            NetworkFault::Stall { to_postgres, from_postgres, lasting } => self.shared.look(|weather| {
                for (index, stalled) in [to_postgres, from_postgres].into_iter().enumerate() {
                    if stalled {
                        weather.stalled_until[index] = now + lasting;
                    }
                }
            }),
            NetworkFault::HalfClose { to_postgres } => {
                self.shared.ends.send_modify(|ends| ends.half_closes[usize::from(!to_postgres)] += 1);
            }
            NetworkFault::Delay { by, lasting } => self.shared.look(|weather| {
                weather.delay = by;
                weather.delayed_until = now + lasting;
            }),
            NetworkFault::Away { lasting } => {
                self.shared.look(|weather| weather.away_until = now + lasting);
                self.shared.cut(true);
            }
        }
    }
}

impl Shared {
    fn look<T>(&self, at: impl FnOnce(&mut Weather) -> T) -> T {
        at(&mut self.weather.lock().unwrap())
    }

    fn cut(&self, reset: bool) {
        self.look(|weather| weather.allowance = None);
        self.ends.send_modify(|ends| {
            ends.cuts += 1;
            ends.reset = reset;
        });
    }

    async fn connection(&self, mut client: TcpStream, mut server: UnixStream) {
        let mut ends = self.ends.subscribe();
        let began = *ends.borrow_and_update();
        {
            let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
            tokio::select! {
                _ = async {
                    tokio::join!(
                        self.pump(Direction::ToPostgres, from_client, to_server),
                        self.pump(Direction::FromPostgres, from_server, to_client),
                    )
                } => {}
                _ = ends.wait_for(|ends| ends.cuts != began.cuts) => {}
            }
        }
        if self.ends.borrow().reset {
            let _ = client.set_zero_linger();
        }
    }

    /// Passes bytes on until the sender has no more or the direction is closed; then the receiver is told so.
    async fn pump(&self, direction: Direction, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut ends = self.ends.subscribe();
        let which = direction as usize;
        let began = ends.borrow_and_update().half_closes[which];
        tokio::select! {
            () = self.pass_on(direction, &mut from, &mut to) => {}
            _ = ends.wait_for(|ends| ends.half_closes[which] != began) => {}
        }
        let _ = to.shutdown().await;
    }

    async fn pass_on(
        &self,
        direction: Direction,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
            self.wait_for_the_weather(direction).await;
            let (passes, cut) = self.admit(direction, read);
            if to.write_all(&buffer[..passes]).await.is_err() {
                return;
            }
            if cut {
                let _ = to.flush().await;
                self.cut(false);
                return;
            }
        }
    }

    async fn wait_for_the_weather(&self, direction: Direction) {
        let delay = self.look(|weather| (weather.delayed_until > Instant::now()).then_some(weather.delay));
        tokio::time::sleep(delay.unwrap_or_default()).await;
        loop {
            let until = self.look(|weather| weather.stalled_until[direction as usize]);
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// How many of these bytes may still pass, and whether everything is cut after them.
    fn admit(&self, direction: Direction, bytes: usize) -> (usize, bool) {
        if direction == Direction::ToPostgres {
            return (bytes, false);
        }
        self.look(|weather| {
            let passes = weather.allowance.map_or(bytes, |left| bytes.min(usize::try_from(left).unwrap_or(usize::MAX)));
            let cut = match &mut weather.allowance {
                Some(left) => {
                    *left -= passes as u64;
                    *left == 0
                }
                None => false,
            };
            (passes, cut)
        })
    }
}
