//! The pool between us and a network that swallows: no answer, no reset.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    sync::watch,
};
use tokio_util::task::TaskTracker;
use webhook_dispatcher::store::Store;

use crate::support::TestDatabase;

/// Long enough for a statement to be on its way.
const MOMENT: Duration = Duration::from_millis(300);

/// Passes bytes on to Postgres, until it swallows those of the connections that are open then.
pub struct Network {
    address: SocketAddr,
    /// How many connections were opened.
    opened: Arc<AtomicUsize>,
    /// Connections up to this number are swallowed.
    swallowed: watch::Sender<usize>,
}

impl Network {
    /// A network before a database, and the way through it.
    pub async fn before(database: &TestDatabase) -> (Self, PgConnectOptions) {
        let socket = database.options.get_socket().expect("the cluster listens on a socket");
        let socket = socket.join(format!(".s.PGSQL.{}", database.options.get_port()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let opened = Arc::new(AtomicUsize::new(0));
        let (swallowed, watched) = watch::channel(0);
        let tasks = TaskTracker::new();
        tasks.spawn(pass_on(tasks.clone(), listener, socket, opened.clone(), watched));
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(address.port())
            .username(database.options.get_username())
            .database(&database.name)
            .ssl_mode(PgSslMode::Disable);
        (Self { address, opened, swallowed }, options)
    }

    /// Swallows what the connections that are open now carry, in both directions.
    pub fn swallow(&self) {
        self.swallowed.send(self.opened.load(Ordering::SeqCst)).unwrap();
    }
}

async fn pass_on(
    tasks: TaskTracker,
    listener: TcpListener,
    socket: PathBuf,
    opened: Arc<AtomicUsize>,
    swallowed: watch::Receiver<usize>,
) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let number = opened.fetch_add(1, Ordering::SeqCst) + 1;
        let server = UnixStream::connect(&socket).await.unwrap();
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tasks.spawn(pump(from_client, to_server, number, swallowed.clone()));
        tasks.spawn(pump(from_server, to_client, number, swallowed.clone()));
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    number: usize,
    mut swallowed: watch::Receiver<usize>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            biased;
            () = async { drop(swallowed.wait_for(|up_to| number <= *up_to).await) } => break,
            read = from.read(&mut buffer) => match read {
                Ok(bytes @ 1..) if to.write_all(&buffer[..bytes]).await.is_ok() => {}
                _ => return,
            }
        }
    }
    // Both ends stay open, and hear nothing more.
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_swallowed_connection_gives_its_place_back() {
    let database = TestDatabase::new().await;
    let (network, options) = Network::before(&database).await;
    let store = Store::connect_lazy(options, 1);
    store.ping().await.unwrap();
    network.swallow();
    // Given up in the middle, as its time-out does after half a minute.
    let statement = tokio::time::timeout(MOMENT, store.ping()).await;
    assert!(statement.is_err(), "the network passed it on: {}", network.address);
    store.ping().await.expect("the pool's only place is free again");
    assert_eq!(network.opened.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_given_up_transaction_gives_its_place_back() {
    let database = TestDatabase::new().await;
    let (network, options) = Network::before(&database).await;
    let store = Store::connect_lazy(options, 1);
    store.ping().await.unwrap();
    network.swallow();
    assert!(tokio::time::timeout(MOMENT, store.make_partitions()).await.is_err());
    assert!(store.make_partitions().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_swallowed_connection() {
    let database = TestDatabase::new().await;
    let (network, options) = Network::before(&database).await;
    let store = Store::connect_lazy(options, 1);
    store.ping().await.unwrap();
    network.swallow();
    let end = async {
        tokio::time::sleep(MOMENT).await; // not a race: before or after the statement has begun
        tokio::time::timeout(Duration::from_secs(10), store.close()).await
    };
    // Whatever the statement hears of the end, it does not give the connection back before it.
    let statement = async {
        store.ping().await.expect_err("the network passed it on");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = statement => {}
        ended = end => ended.expect("the end is bounded"),
    }
}

#[tokio::test]
async fn ordinary_statements_share_one_connection() {
    let database = TestDatabase::new().await;
    let (network, options) = Network::before(&database).await;
    let store = Store::connect_lazy(options, 1);
    for _ in 0..20 {
        store.ping().await.unwrap();
    }
    assert_eq!(network.opened.load(Ordering::SeqCst), 1);
}
