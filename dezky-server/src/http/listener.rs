//! The listener: accepts connections up to a bound, watches their progress, and ends them in
//! order.
//!
//! Every wait for a client is bounded: for its next request and for taking an answer
//! ([`connection`](super::connection)), and for the rest of a body
//! ([`incoming_body`](super::incoming_body)). When all permits are taken, a connection that keeps
//! the server waiting is closed for the next ([`connections`](super::connections)).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::{Method, Version, header};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tower_service::Service as _;

use super::connection::{Connection, Due, WatchedBody, WatchedStream};
use super::connections::{Connections, Tally};
use super::incoming_body::{IncomingBody, Pace};
use super::limits::HttpLimits;
use super::problem::Problem;

/// The time that an idle connection has to close in order.
const GOODBYE: Duration = Duration::from_secs(1);
/// The pause after the system failed to accept a connection, as when files ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The wait for a permit between two evictions.
const EVICT_PAUSE: Duration = Duration::from_millis(100);
/// The maximum number of bytes that a connection buffers in each direction; the head of a request
/// must fit.
const BUFFER_BYTES: usize = 64 << 10;
/// The same for HTTP/2, whose streams share a connection.
const WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// The maximum number of concurrent requests on an HTTP/2 connection.
const MAX_STREAMS: u32 = 100;

/// Answers requests on `listener` until `stop` resolves, then finishes those that have arrived
/// completely.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    bounds: HttpLimits,
    stop: impl Future<Output = ()> + Send,
) {
    let server = Server {
        protocol: protocol(&bounds),
        bounds,
        routes,
        requests: watch::Sender::new(0),
        ending: watch::Sender::new(None),
    };
    let connections = Connections::new(bounds.max_connections);
    tokio::select! {
        () = stop => {}
        () = accept(&listener, &connections, &server) => {}
    }
    drop(listener);
    // Clients that never send the rest, or never take an answer, are not waited for.
    server.ending.send_replace(Some(Instant::now() + bounds.ending));
    let mut requests = server.requests.subscribe();
    let answered = async {
        // An error means that the count has ended.
        let _ = requests.wait_for(|requests| *requests == 0).await;
        tokio::time::sleep(bounds.ending / 2).await;
    };
    tokio::select! {
        () = connections.all_closed() => {}
        () = answered => {}
    }
}

/// Accepts connections until it is dropped.
async fn accept(listener: &TcpListener, connections: &Connections, server: &Server) {
    let mut refused = Tally::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(times) = refused.add(Instant::now()) {
                    tracing::warn!(%error, times, "a connection was not accepted");
                }
                if is_out_of_files(&error) {
                    connections.evict_one();
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let permit = loop {
            if let Some(permit) = connections.try_admit() {
                break permit;
            }
            connections.evict_one();
            let _ = tokio::time::timeout(EVICT_PAUSE, connections.available()).await;
        };
        let connection = connections.register(permit, peer.ip());
        tokio::spawn(server.clone().converse(stream, peer, connection));
    }
}

/// Whether the process or the system has as many files open as it may.
fn is_out_of_files(error: &io::Error) -> bool {
    // EMFILE and ENFILE.
    matches!(error.raw_os_error(), Some(24 | 23))
}

fn protocol(bounds: &HttpLimits) -> Builder<TokioExecutor> {
    let mut protocol = Builder::new(TokioExecutor::new());
    protocol
        .http1()
        .timer(TokioTimer::new())
        // The connection has its own clock, which starts before the first byte.
        .header_read_timeout(None)
        // A client that has closed its side still gets its response.
        .half_close(true)
        .max_buf_size(BUFFER_BYTES);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(bounds.idle)
        .keep_alive_timeout(bounds.idle)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(BUFFER_BYTES)
        .max_concurrent_streams(MAX_STREAMS);
    protocol
}

/// The state that connections share.
#[derive(Clone)]
struct Server {
    protocol: Builder<TokioExecutor>,
    bounds: HttpLimits,
    routes: Router,
    /// How many requests are in progress.
    requests: watch::Sender<usize>,
    /// The deadline of bodies, once the server is stopping.
    ending: watch::Sender<Option<Instant>>,
}

impl Server {
    /// Serves one connection until it ends or has to be closed.
    async fn converse(self, stream: TcpStream, peer: SocketAddr, connection: Arc<Connection>) {
        // Small answers must not wait for more data.
        let _ = stream.set_nodelay(true);
        let (mut ending, bounds) = (self.ending.subscribe(), self.bounds);
        let io = TokioIo::new(WatchedStream::new(stream, Arc::clone(&connection)));
        let protocol = self.protocol.clone();
        let service = {
            let connection = Arc::clone(&connection);
            service_fn(move |request| self.answer(request, peer, &connection))
        };
        let serving = protocol.serve_connection(io, service);
        tokio::pin!(serving);
        // The deadline of an idle connection that was told to close.
        let mut gone_at: Option<Instant> = None;
        let mut is_ending = false;
        loop {
            let check_at = connection.next_check(&bounds, gone_at);
            tokio::select! {
                // A client that disconnects is not an error.
                _ = serving.as_mut() => return,
                () = connection.closed() => return,
                // An error means that the server is gone, which counts as stopping.
                _ = ending.wait_for(Option::is_some), if !is_ending => {
                    is_ending = true;
                    serving.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep_until(check_at) => match connection.due(&bounds) {
                    Some(Due::Stalled) => return,
                    Some(Due::Idle) if gone_at.is_some_and(|at| at <= Instant::now()) => return,
                    // Announced first, so that a request that is on its way is not lost.
                    Some(Due::Idle) => {
                        gone_at.get_or_insert_with(|| Instant::now() + GOODBYE);
                        serving.as_mut().graceful_shutdown();
                    }
                    None => gone_at = None,
                },
            }
        }
    }

    /// Answers a request. A request that may change something is completed once it has arrived,
    /// even if its connection ends; one that only reads ends with its connection.
    fn answer(
        &self,
        request: hyper::Request<Incoming>,
        peer: SocketAddr,
        connection: &Arc<Connection>,
    ) -> impl Future<Output = Result<hyper::Response<WatchedBody>, std::convert::Infallible>> + use<>
    {
        let request_guard = connection.begin_request();
        let in_progress = InProgress::new(&self.requests);
        let reads_only = matches!(*request.method(), Method::GET | Method::HEAD);
        let request = self.of_peer(request, peer, connection);
        let work = self.routes.clone().call(request);
        // Work that outlives its connection keeps the connection's permit.
        let work_guard = connection.begin_request();
        async move {
            let answer = if reads_only {
                let answer = work.await.into_response();
                drop((in_progress, work_guard));
                answer
            } else {
                let work = tokio::spawn(async move {
                    let answer = work.await.into_response();
                    drop((in_progress, work_guard));
                    answer
                });
                work.await.unwrap_or_else(|_| Problem::broken_down().into_response())
            };
            Ok(answer.map(|body| request_guard.answer(body)))
        }
    }

    /// The request as routes take it: with the address of the peer, and a body that is read
    /// within its bounds.
    fn of_peer(
        &self,
        request: hyper::Request<Incoming>,
        peer: SocketAddr,
        connection: &Arc<Connection>,
    ) -> Request {
        let is_on_its_way = !request.headers().contains_key(header::EXPECT);
        // HTTP/2 can end one stream without affecting the others.
        let needs_draining = request.version() < Version::HTTP_2;
        let pace = Pace::new(&self.bounds, self.ending.subscribe());
        let mut request = request.map(|body| {
            let connection = Arc::clone(connection);
            let incoming = IncomingBody::new(body, pace, connection, needs_draining, is_on_its_way);
            incoming.map_or_else(Body::empty, IncomingBody::into_body)
        });
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    }
}

/// A request in progress, counted until it is answered.
struct InProgress(watch::Sender<usize>);

impl InProgress {
    fn new(requests: &watch::Sender<usize>) -> Self {
        requests.send_modify(|requests| *requests += 1);
        Self(requests.clone())
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.send_modify(|requests| *requests -= 1);
    }
}
