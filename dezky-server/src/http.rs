//! Connections: accepted up to a bound, given a time to say what they want, and
//! ended in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tower_service::Service as _;

/// The most connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 1_024;
/// How long a connection may rest before a request, or take to send its head.
/// Longer than clients keep theirs, so that none sends into one that just ended.
const HEAD_TIMEOUT: Duration = Duration::from_secs(100);
/// How long answers may take to leave at the end, when the last is made. A client
/// that has not said what it wants by then is not waited for.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The wait after the system refused a connection, as when files ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Answers what comes to `listener` until `stop` resolves, and finishes the
/// requests that have begun by then.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    stop: impl Future<Output = ()> + Send,
) {
    let mut connections = Builder::new(TokioExecutor::new());
    connections.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    connections
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIMEOUT)
        .keep_alive_timeout(HEAD_TIMEOUT);
    let (running, room) = (GracefulShutdown::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let requests = watch::Sender::new(0);
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
        let (routes, requests) = (routes.clone(), requests.clone());
        let answer = service_fn(move |request| {
            let begun = Begun::new(&requests);
            let answer = routes.clone().call(of_peer(request, peer));
            async move {
                let answer = answer.await;
                drop(begun);
                answer
            }
        });
        let connection = connections.serve_connection(TokioIo::new(stream), answer).into_owned();
        let connection = running.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is its own business.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let ended = running.shutdown();
    let mut begun = requests.subscribe();
    let answered = async {
        // An error says that nobody counts any more.
        let _ = begun.wait_for(|requests| *requests == 0).await;
        tokio::time::sleep(FLUSH_TIMEOUT).await;
    };
    tokio::select! {
        () = ended => {}
        () = answered => {}
    }
}

/// A request that was begun, counted until its answer is made.
struct Begun(watch::Sender<usize>);

impl Begun {
    fn new(requests: &watch::Sender<usize>) -> Self {
        requests.send_modify(|requests| *requests += 1);
        Self(requests.clone())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.send_modify(|requests| *requests -= 1);
    }
}

/// The request as routes take it: with the address that it came from.
fn of_peer(request: hyper::Request<Incoming>, peer: SocketAddr) -> Request {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    request
}
