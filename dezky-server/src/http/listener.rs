//! Connections: accepted up to a bound, watched for progress, and ended in order.
//!
//! Every wait for a client has a bound: for its next request ([`connection`](super::connection)), for the rest of
//! a body ([`incoming_body`](super::incoming_body)), for taking an answer ([`connection`](super::connection)). When all places are taken,
//! those who keep the server waiting make way for others ([`connections`](super::connections)).

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

use super::connection::{Answer, Due, Line, Watched};
use super::connections::{House, Tally};
use super::incoming_body::{Arriving, Pace};
use super::limits::HttpLimits;
use super::problem::Problem;

/// How long a connection that rests may take to end in order.
const GOODBYE: Duration = Duration::from_secs(1);
/// The wait after the system refused a connection, as when files ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a place is looked for while all are taken.
const PLACE_PAUSE: Duration = Duration::from_millis(100);
/// The most bytes of one connection that lie in buffers on the way in, and on the way
/// out; the head of a request must fit.
const BUFFER_BYTES: usize = 64 << 10;
/// The same for HTTP/2, whose streams share a connection.
const WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// The most requests of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 100;

/// Answers what comes to `listener` until `stop` resolves, and finishes the requests
/// that have come whole by then.
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
    let house = House::new(bounds.max_connections);
    tokio::select! {
        () = stop => {}
        () = accept(&listener, &house, &server) => {}
    }
    drop(listener);
    // Nobody waits for what a client never sends, or never takes.
    server.ending.send_replace(Some(Instant::now() + bounds.ending));
    let mut requests = server.requests.subscribe();
    let answered = async {
        // An error says that nobody counts any more.
        let _ = requests.wait_for(|requests| *requests == 0).await;
        tokio::time::sleep(bounds.ending / 2).await;
    };
    tokio::select! {
        () = house.empty() => {}
        () = answered => {}
    }
}

/// Takes connections in until it is dropped.
async fn accept(listener: &TcpListener, house: &House, server: &Server) {
    let mut refused = Tally::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(times) = refused.add(Instant::now()) {
                    tracing::warn!(%error, times, "a connection was not accepted");
                }
                if is_out_of_files(&error) {
                    house.make_room();
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = loop {
            if let Some(place) = house.place() {
                break place;
            }
            house.make_room();
            let _ = tokio::time::timeout(PLACE_PAUSE, house.changed()).await;
        };
        let line = house.enter(place, peer.ip());
        tokio::spawn(server.clone().converse(stream, peer, line));
    }
}

/// Whether the process, or the system, has as many files open as it may.
fn is_out_of_files(error: &io::Error) -> bool {
    // EMFILE and ENFILE.
    matches!(error.raw_os_error(), Some(24 | 23))
}

fn protocol(bounds: &HttpLimits) -> Builder<TokioExecutor> {
    let mut protocol = Builder::new(TokioExecutor::new());
    protocol
        .http1()
        .timer(TokioTimer::new())
        // The line has a clock of its own, which begins before the first byte.
        .header_read_timeout(None)
        // A sender that has closed its side is answered all the same.
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

/// What connections share.
#[derive(Clone)]
struct Server {
    protocol: Builder<TokioExecutor>,
    bounds: HttpLimits,
    routes: Router,
    /// How many requests have begun and are not answered yet.
    requests: watch::Sender<usize>,
    /// Once the end has begun: until when bodies may arrive.
    ending: watch::Sender<Option<Instant>>,
}

impl Server {
    /// Serves one connection until it ends, or has to.
    async fn converse(self, stream: TcpStream, peer: SocketAddr, line: Arc<Line>) {
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
        let (mut ending, bounds) = (self.ending.subscribe(), self.bounds);
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&line)));
        let protocol = self.protocol.clone();
        let service = {
            let line = Arc::clone(&line);
            service_fn(move |request| self.answer(request, peer, &line))
        };
        let connection = protocol.serve_connection(io, service);
        tokio::pin!(connection);
        // When a connection that rests has to be gone.
        let mut gone_at: Option<Instant> = None;
        let mut is_ending = false;
        loop {
            let look_at = line.next_look(&bounds, gone_at);
            tokio::select! {
                // A client that breaks off is its own business.
                _ = connection.as_mut() => return,
                () = line.cut() => return,
                // An error says that the server is gone, which is an end too.
                _ = ending.wait_for(Option::is_some), if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep_until(look_at) => match line.due(&bounds) {
                    Some(Due::Stalled) => return,
                    Some(Due::Idle) if gone_at.is_some_and(|at| at <= Instant::now()) => return,
                    // Told first, so that a request that is on its way is not lost.
                    Some(Due::Idle) => {
                        gone_at.get_or_insert_with(|| Instant::now() + GOODBYE);
                        connection.as_mut().graceful_shutdown();
                    }
                    None => gone_at = None,
                },
            }
        }
    }

    /// Answers a request. One that may change something is worked off once it has come
    /// whole, whatever becomes of its connection; one that only reads ends with it.
    fn answer(
        &self,
        request: hyper::Request<Incoming>,
        peer: SocketAddr,
        line: &Arc<Line>,
    ) -> impl Future<Output = Result<hyper::Response<Answer>, std::convert::Infallible>> + use<>
    {
        let under_way = line.begin();
        let begun = Begun::new(&self.requests);
        let reads_only = matches!(*request.method(), Method::GET | Method::HEAD);
        let request = self.of_peer(request, peer, line);
        let work = self.routes.clone().call(request);
        // Work that goes on without its connection keeps the place of it.
        let worked_off = line.begin();
        async move {
            let answer = if reads_only {
                let answer = work.await.into_response();
                drop((begun, worked_off));
                answer
            } else {
                let work = tokio::spawn(async move {
                    let answer = work.await.into_response();
                    drop((begun, worked_off));
                    answer
                });
                work.await.unwrap_or_else(|_| Problem::broken_down().into_response())
            };
            Ok(answer.map(|body| under_way.answer(body)))
        }
    }

    /// The request as routes take it: with the address that it came from, and a body
    /// that has to keep its pace.
    fn of_peer(
        &self,
        request: hyper::Request<Incoming>,
        peer: SocketAddr,
        line: &Arc<Line>,
    ) -> Request {
        let is_on_its_way = !request.headers().contains_key(header::EXPECT);
        // HTTP/2 ends one stream without harm to the others.
        let needs_draining = request.version() < Version::HTTP_2;
        let pace = Pace::new(&self.bounds, self.ending.subscribe());
        let mut request = request.map(|body| {
            let line = Arc::clone(line);
            let arriving = Arriving::new(body, pace, line, needs_draining, is_on_its_way);
            arriving.map_or_else(Body::empty, Arriving::into_body)
        });
        request.extensions_mut().insert(ConnectInfo(peer));
        request
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
