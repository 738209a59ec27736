//! A proxy in front of a server that makes the network fail on request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::servers::spawn;

/// How long to wait for the answer to a commit before cutting its connection.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Everything passes.
    Up,
    /// Nothing passes and nothing is closed. Existing connections stay silent forever, on both
    /// sides.
    Silent,
    /// Connections are closed and new ones refused.
    Refusing,
}

/// A proxy between a store and its server.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    network: watch::Sender<Network>,
    cuts: Arc<Cuts>,
}

/// Connections to cut after forwarding a client's message.
struct Cuts {
    after: &'static [u8],
    left: AtomicUsize,
    done: AtomicUsize,
    /// Silence the connection instead of cutting it, once the server has answered.
    is_silent: AtomicBool,
}

impl Proxy {
    /// Starts in front of the server at `port`; `commit` is the protocol's commit message.
    pub(crate) async fn before(port: u16, commit: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap();
        let cuts = Arc::new(Cuts {
            after: commit.as_bytes(),
            left: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            is_silent: AtomicBool::new(false),
        });
        let (network, seen) = watch::channel(Network::Up);
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        spawn(listen(listener, own, server, seen, Arc::clone(&cuts)));
        Self { port: own.port(), network, cuts }
    }

    pub(crate) fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Cuts the next `count` committing connections after the server has received the commit:
    /// alternately after its answer and at once.
    pub(crate) fn cut_commits(&self, count: usize) {
        self.cuts.left.store(count, Ordering::SeqCst);
    }

    /// The next connection that sends the commit receives no answer, and is silent from then on.
    pub(crate) fn keep_answer(&self) {
        self.cuts.is_silent.store(true, Ordering::SeqCst);
        self.cut_commits(1);
    }

    /// The number of connections cut.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.done.load(Ordering::SeqCst)
    }
}

async fn listen(
    listener: TcpListener,
    own: SocketAddr,
    server: SocketAddr,
    mut network: watch::Receiver<Network>,
    cuts: Arc<Cuts>,
) {
    let mut listener = Some(listener);
    // A silent network: neither answered nor closed.
    let silent = Mutex::new(Vec::new());
    loop {
        if *network.borrow_and_update() == Network::Refusing {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(own).await.unwrap());
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = network.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            accepted = accepted => {
                let Ok((client, _)) = accepted else { continue };
                if *network.borrow() == Network::Silent {
                    silent.lock().unwrap().push(client);
                } else {
                    spawn(pass_on(client, server, network.clone(), Arc::clone(&cuts)));
                }
            }
        }
    }
}

async fn pass_on(
    mut client: TcpStream,
    server: SocketAddr,
    mut network: watch::Receiver<Network>,
    cuts: Arc<Cuts>,
) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut tail = Vec::new();
    loop {
        tokio::select! {
            changed = network.changed() => {
                let now = *network.borrow_and_update();
                match now {
                    _ if changed.is_err() => return,
                    Network::Up => {}
                    Network::Silent => std::future::pending().await,
                    Network::Refusing => return,
                }
            }
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                if server.write_all(&up[..count]).await.is_err() {
                    return;
                }
                if cuts.is_next(&mut tail, &up[..count]) {
                    if cuts.is_silent.load(Ordering::SeqCst) {
                        let answered = server.read(&mut down).await;
                        assert!(matches!(answered, Ok(1..)), "the server answers");
                        cuts.done.fetch_add(1, Ordering::SeqCst);
                        return std::future::pending().await;
                    }
                    if cuts.done.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                        let _ = tokio::time::timeout(ANSWER, server.read(&mut down)).await;
                    }
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Cuts {
    /// Whether the commit is contained in the bytes read, or ends in them after `tail`.
    fn is_next(&self, tail: &mut Vec<u8>, read: &[u8]) -> bool {
        if self.left.load(Ordering::SeqCst) == 0 {
            return false;
        }
        tail.extend_from_slice(read);
        let found = tail.windows(self.after.len()).any(|part| part == self.after);
        let keep = if found { 0 } else { tail.len().min(self.after.len() - 1) };
        tail.drain(..tail.len() - keep);
        let one_less = |left: usize| left.checked_sub(1);
        found && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
    }
}
