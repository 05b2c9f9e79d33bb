//! The listener of the metrics: `/metrics` and `/healthz` over HTTP, on a thread of its own.
//! Never reads or writes for anybody, and never ends the daemon. Invariant: at most [`CONNECTIONS_MAX`] connections,
//! each for at most [`CONNECTION_DEADLINE`]; whoever says nothing gives way to whoever comes.
//!
//! Everything is on one thread, with an event loop that only it has: a flood of requests takes no thread and no lock
//! that archiving waits for.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::request::{HEAD_BYTES_MAX, HttpMethod, HttpPage, HttpRequest, RequestHead};
use super::samples::MetricsPage;
use crate::config::ListenAddress;
use crate::error::{CommandError, Result};

/// Connections at once: a few scrapers, and a person who looks.
pub(crate) const CONNECTIONS_MAX: usize = 16;

/// All that a connection may take: a scrape needs a few milliseconds.
pub(crate) const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);

/// What is read of a peer behind its request, so that closing the socket does not take the answer from it.
const LEFTOVER_BYTES_MAX: usize = 64 << 10;

/// Pause after the system refused another connection for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Connections that the kernel holds ready.
const ACCEPT_QUEUE: i32 = 64;

/// What is served. Neither call may wait for a disk or a peer.
pub(crate) trait MetricsSource: Send + Sync + 'static {
    /// Everything there is to show.
    fn page(&self) -> MetricsPage;

    /// Why the daemon cannot do its work now, a line each, without a path or an address; nothing if it can.
    fn troubles(&self) -> Vec<String>;
}

/// The listener. It ends when this is dropped.
struct Endpoint {
    orders: UnboundedSender<Order>,
}

/// The listener of a daemon whose settings say where, and may say something else later.
pub(crate) struct MetricsService {
    /// Makes what is served, once it is.
    source: Box<dyn Fn() -> Arc<dyn MetricsSource> + Send + Sync>,
    running: Option<Endpoint>,
    asked: Vec<ListenAddress>,
}

impl MetricsService {
    /// Listens on these addresses, which may be none. An address that cannot be had is an error.
    pub(crate) fn start(
        addresses: &[ListenAddress],
        source: impl Fn() -> Arc<dyn MetricsSource> + Send + Sync + 'static,
    ) -> Result<MetricsService> {
        let mut service = MetricsService {
            source: Box::new(source),
            running: None,
            asked: addresses.to_vec(),
        };
        if !addresses.is_empty() {
            service.running = Some(Endpoint::start(addresses, (service.source)())?);
        }
        Ok(service)
    }

    /// The settings were read again. A failure is a warning, and what is served goes on.
    pub(crate) fn listen_on(&mut self, addresses: &[ListenAddress]) {
        self.asked = addresses.to_vec();
        match &self.running {
            _ if addresses.is_empty() => self.running = None,
            Some(running) => running.listen_on(addresses),
            None => match Endpoint::start(addresses, (self.source)()) {
                Ok(endpoint) => self.running = Some(endpoint),
                Err(error) => tracing::warn!("metrics are not served: {error}"),
            },
        }
    }

    /// Calls [`MetricsService::listen_on`] if these are other addresses than those of the last call.
    pub(crate) fn follow(&mut self, addresses: &[ListenAddress]) {
        if self.asked != addresses {
            self.listen_on(addresses);
        }
    }
}

/// Other addresses to listen on, and who wants to know how that went.
struct Order {
    addresses: Vec<ListenAddress>,
    answer: Option<mpsc::Sender<Result<Vec<SocketAddr>>>>,
}

impl Endpoint {
    /// Listens on these addresses, which may be none. An address that cannot be had is an error.
    fn start(addresses: &[ListenAddress], source: Arc<dyn MetricsSource>) -> Result<Endpoint> {
        let (orders, inbox) = unbounded_channel();
        let failed = |error: std::io::Error| {
            CommandError::retry("start the thread of the metrics").because(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || LocalSet::new().block_on(&runtime, serve(inbox, source)))
            .map_err(failed)?;
        let (answer, answered) = mpsc::channel();
        let _ = orders.send(Order {
            addresses: addresses.to_vec(),
            answer: Some(answer),
        });
        let gone = |_| CommandError::retry("the thread of the metrics has ended");
        let bound = answered.recv().map_err(gone)??;
        log_bound(&bound);
        Ok(Endpoint { orders })
    }

    /// Listens on these instead, or goes on as before and warns.
    fn listen_on(&self, addresses: &[ListenAddress]) {
        let order = Order {
            addresses: addresses.to_vec(),
            answer: None,
        };
        if self.orders.send(order).is_err() {
            tracing::warn!(
                "metrics are served no more: their thread has ended; restart the daemon"
            );
        }
    }
}

fn log_bound(bound: &[SocketAddr]) {
    for address in bound {
        tracing::info!("metrics are served at http://{address}/metrics");
    }
}

/// One address, and the task that accepts there.
struct MetricsListener {
    wanted: ListenAddress,
    bound: SocketAddr,
    task: JoinHandle<()>,
}

impl MetricsListener {
    /// Ends, and answers with what it was when its port is free.
    async fn end(mut self) -> (ListenAddress, SocketAddr) {
        self.task.abort();
        // It has let go of its socket when it has ended, however it ended.
        let _ = (&mut self.task).await;
        (self.wanted.clone(), self.bound)
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut orders: UnboundedReceiver<Order>, source: Arc<dyn MetricsSource>) {
    let slots = Rc::new(Slots::default());
    let mut listeners: Vec<MetricsListener> = Vec::new();
    while let Some(Order { addresses, answer }) = orders.recv().await {
        let changed = change(&mut listeners, &addresses, &slots, &source).await;
        match (changed, answer) {
            (changed, Some(answer)) => drop(answer.send(changed)),
            (Ok(bound), None) => log_bound(&bound),
            (Err(error), None) => tracing::warn!(
                "the metrics stay where they are served, as metrics_listen cannot be followed: {error}"
            ),
        }
    }
}

/// Has these addresses and no others, or those from before. Answers with what is new.
async fn change(
    listeners: &mut Vec<MetricsListener>,
    wanted: &[ListenAddress],
    slots: &Rc<Slots>,
    source: &Arc<dyn MetricsSource>,
) -> Result<Vec<SocketAddr>> {
    let is_wanted = |listener: &MetricsListener| wanted.contains(&listener.wanted);
    let (kept, mut given_up): (Vec<_>, Vec<_>) = listeners.drain(..).partition(is_wanted);
    let missing = |address: &&ListenAddress| !kept.iter().any(|kept| kept.wanted == **address);
    let missing: Vec<&ListenAddress> = wanted.iter().filter(missing).collect();
    let mut begun = bind_all(&missing);
    if begun.is_err() && !missing.is_empty() {
        // `127.0.0.1:7433` has to go before `0.0.0.0:7433` can come.
        let mut old = Vec::new();
        for listener in given_up.drain(..) {
            old.push(listener.end().await);
        }
        begun = bind_all(&missing);
        if begun.is_err() {
            for (wanted, bound) in old {
                match bind(&[bound]) {
                    Ok(listener) => listeners.extend(listener_of(&wanted, listener, slots, source)),
                    Err(error) => tracing::warn!("metrics are no more served at {bound}: {error}"),
                }
            }
        }
    }
    let begun = match begun {
        Ok(begun) => begun,
        Err(error) => {
            listeners.extend(kept);
            listeners.extend(given_up);
            return Err(error);
        }
    };
    listeners.extend(kept);
    let new = begun
        .into_iter()
        .filter_map(|(wanted, listener)| listener_of(wanted, listener, slots, source));
    let had = listeners.len();
    listeners.extend(new);
    Ok(listeners[had..].iter().map(|new| new.bound).collect())
}

fn listener_of(
    wanted: &ListenAddress,
    listener: StdListener,
    slots: &Rc<Slots>,
    source: &Arc<dyn MetricsSource>,
) -> Option<MetricsListener> {
    let bound = listener.local_addr().ok()?;
    let listener = TcpListener::from_std(listener).ok()?;
    let accepting = accept(listener, Rc::clone(slots), Arc::clone(source));
    Some(MetricsListener {
        wanted: wanted.clone(),
        bound,
        task: tokio::task::spawn_local(accepting),
    })
}

fn bind_all<'a>(addresses: &[&'a ListenAddress]) -> Result<Vec<(&'a ListenAddress, StdListener)>> {
    let each = addresses.iter().map(|address| {
        let found = (address.host.as_str(), address.port).to_socket_addrs();
        let bound = found.and_then(|found| bind(&found.collect::<Vec<_>>()));
        let bound = bound.map_err(|error| {
            CommandError::retry(format!("listen for metrics on {address}"))
                .because(error)
                .hint(
                    "check `metrics_listen` in the ini file, and check that no other process uses the port",
                )
        });
        bound.map(|listener| (*address, listener))
    });
    each.collect()
}

/// The first of these addresses that can be had.
fn bind(addresses: &[SocketAddr]) -> std::io::Result<StdListener> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match bind_one(*address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr) -> std::io::Result<StdListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, ACCEPT_QUEUE)?;
    Ok(StdListener::from(socket))
}

/// Who is connected, in the order they came.
#[derive(Default)]
struct Slots(std::cell::RefCell<SlotTable>);

#[derive(Default)]
struct SlotTable {
    begun: u64,
    taken: VecDeque<Slot>,
}

struct Slot {
    id: u64,
    /// Its request has come, and is being answered.
    has_asked: bool,
    gives_way: CancellationToken,
}

/// A slot, given back when dropped.
struct HeldSlot {
    of: Rc<Slots>,
    id: u64,
    gives_way: CancellationToken,
}

impl Slots {
    /// A slot; none if all are taken by those who are being answered.
    fn take(self: &Rc<Self>) -> Option<HeldSlot> {
        let mut table = self.0.borrow_mut();
        if table.taken.len() >= CONNECTIONS_MAX {
            let silent = table.taken.iter().position(|slot| !slot.has_asked)?;
            if let Some(slot) = table.taken.remove(silent) {
                slot.gives_way.cancel();
            }
        }
        table.begun += 1;
        let (id, gives_way) = (table.begun, CancellationToken::new());
        table.taken.push_back(Slot {
            id,
            has_asked: false,
            gives_way: gives_way.clone(),
        });
        Some(HeldSlot {
            of: Rc::clone(self),
            id,
            gives_way,
        })
    }
}

impl HeldSlot {
    fn has_asked(&self) {
        let mut table = self.of.0.borrow_mut();
        if let Some(slot) = table.taken.iter_mut().find(|slot| slot.id == self.id) {
            slot.has_asked = true;
        }
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        let mut table = self.of.0.borrow_mut();
        table.taken.retain(|slot| slot.id != self.id);
    }
}

async fn accept(listener: TcpListener, slots: Rc<Slots>, source: Arc<dyn MetricsSource>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(slot) = slots.take() else {
            continue;
        };
        let source = Arc::clone(&source);
        tokio::task::spawn_local(async move {
            let gives_way = slot.gives_way.clone();
            tokio::select! {
                // Whoever is too slow, or hangs up, is owed nothing.
                _ = timeout(CONNECTION_DEADLINE, answer(stream, slot, source)) => {}
                () = gives_way.cancelled() => {}
            }
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    slot: HeldSlot,
    source: Arc<dyn MetricsSource>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let answer = loop {
        let mut piece = [0; 1 << 10];
        let read_bytes = stream.read(&mut piece).await?;
        head.extend_from_slice(&piece[..read_bytes]);
        match RequestHead::parse(&head) {
            RequestHead::Partial if read_bytes == 0 => return Ok(()),
            RequestHead::Partial if head.len() < HEAD_BYTES_MAX => {}
            RequestHead::Whole(request) => {
                slot.has_asked();
                break HttpAnswer::to(request, &*source);
            }
            RequestHead::Malformed => {
                break HttpAnswer::refusal("400 Bad HttpRequest", "this is no HTTP request");
            }
            RequestHead::Partial | RequestHead::TooLarge => {
                let status = "431 Request Header Fields Too Large";
                break HttpAnswer::refusal(status, "the head of the request is too long");
            }
        }
    };
    stream.write_all(&answer.bytes()).await?;
    stream.shutdown().await?;
    // A reset, which unread bytes bring about, could overtake the answer.
    let mut rest = [0; 4 << 10];
    let mut left = LEFTOVER_BYTES_MAX;
    while left > 0 {
        match stream.read(&mut rest).await? {
            0 => break,
            read_bytes => left = left.saturating_sub(read_bytes),
        }
    }
    Ok(())
}

/// An answer.
struct HttpAnswer {
    status: &'static str,
    content_type: &'static str,
    content: String,
    is_head: bool,
}

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl HttpAnswer {
    fn to(request: HttpRequest, source: &dyn MetricsSource) -> HttpAnswer {
        let found = match (request.method, request.target) {
            (HttpMethod::Other, _) => {
                HttpAnswer::refusal("405 Method Not Allowed", "only GET and HEAD are answered")
            }
            (_, HttpPage::Metrics) if request.openmetrics => {
                HttpAnswer::of("200 OK", OPENMETRICS, source.page().openmetrics())
            }
            (_, HttpPage::Metrics) => {
                HttpAnswer::of("200 OK", PROMETHEUS, source.page().prometheus())
            }
            (_, HttpPage::Health) => match source.troubles() {
                troubles if troubles.is_empty() => {
                    HttpAnswer::of("200 OK", TEXT, "ok\n".to_owned())
                }
                troubles => {
                    HttpAnswer::of("503 Service Unavailable", TEXT, troubles.join("\n") + "\n")
                }
            },
            (_, HttpPage::Other) => {
                HttpAnswer::refusal("404 Not Found", "there are /metrics and /healthz")
            }
        };
        HttpAnswer {
            is_head: request.method == HttpMethod::Head,
            ..found
        }
    }

    fn of(status: &'static str, content_type: &'static str, content: String) -> HttpAnswer {
        HttpAnswer {
            status,
            content_type,
            content,
            is_head: false,
        }
    }

    fn refusal(status: &'static str, text: &str) -> HttpAnswer {
        HttpAnswer::of(status, TEXT, format!("{text}\n"))
    }

    fn bytes(&self) -> Vec<u8> {
        let allow = match self.status.starts_with("405") {
            true => "Allow: GET, HEAD\r\n",
            false => "",
        };
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\n\
            X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.content.len()
        );
        let content = if self.is_head { "" } else { &self.content };
        [head.as_bytes(), content.as_bytes()].concat()
    }
}
