//! A receiver that says what a test wants a master to hear: it completes TLS and the hello, and then
//! answers each message as its script says.
//! Never stores anything. Invariant: it ends with the test, whatever its clients do.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use walmgr::test_support::transport::identity::Identity;
use walmgr::test_support::transport::tls;
use walmgr_protocol::frame::Direction;
use walmgr_protocol::hello::{Hello, HelloAnswer, Welcome, coders};
use walmgr_protocol::message::Message;

use super::Site;
use super::peer::read_arrived;
use super::place::TempDir;

/// How long a client may keep silent before its connection is dropped.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is done about a message.
#[expect(clippy::large_enum_variant, reason = "there are few of them")]
pub enum Reply {
    /// Say this, on the channel of the question.
    Say(Message),
    /// Say what this gives for 0, 1, 2 and so on, until it gives nothing or nobody listens.
    Repeat(Box<dyn Fn(u64) -> Option<Message> + Send>),
    /// Hang up.
    HangUp,
}

type Script = dyn Fn(&Message) -> Vec<Reply> + Send + Sync;

/// A receiver in the hands of somebody who wants its master no good.
pub struct HostileReceiver {
    address: SocketAddr,
    fingerprint: String,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl HostileReceiver {
    /// Starts one that welcomes everybody and goes by a script.
    pub fn start(
        script: impl Fn(&Message) -> Vec<Reply> + Send + Sync + 'static,
    ) -> HostileReceiver {
        let welcome = Welcome {
            ..Welcome::with_our_limits([7; 16], None, "4.0.0".to_owned())
        };
        HostileReceiver::welcoming(welcome, script)
    }

    /// The same with this welcome.
    pub fn welcoming(
        welcome: Welcome,
        script: impl Fn(&Message) -> Vec<Reply> + Send + Sync + 'static,
    ) -> HostileReceiver {
        let home = TempDir::new();
        let identity = Identity::create(&home.join("key"), &home.join("crt"), "hostile").unwrap();
        let config = tls::server_config(&identity, tls::client_verifier(None).unwrap()).unwrap();
        let fingerprint = super::hostile::fingerprint_of(&identity).to_string();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop, script) = (Arc::clone(&stopping), Arc::new(script));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (config, welcome) = (Arc::clone(&config), welcome.clone());
                let script: Arc<Script> = Arc::clone(&script) as Arc<Script>;
                std::thread::spawn(move || {
                    // A client that hangs up is what most scripts are about.
                    let _ = serve(stream, config, &welcome, &*script);
                });
            }
        });
        HostileReceiver {
            address,
            fingerprint,
            stopping,
            accepting: Some(accepting),
        }
    }

    /// The site's master takes this for its standby from here on.
    pub fn lure(&self, site: &mut Site) {
        site.route(self.address);
        site.master_set("slave_fingerprint", &self.fingerprint);
    }
}

impl Drop for HostileReceiver {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn serve(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    welcome: &Welcome,
    script: &Script,
) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, socket);
    let mut inbox = BytesMut::new();
    let hello = loop {
        if let Some((_, hello)) = Hello::decode(&mut inbox).map_err(io::Error::other)? {
            break hello.map_err(io::Error::other)?;
        }
        read_some(&mut stream, &mut inbox)?;
    };
    let mut out = BytesMut::new();
    HelloAnswer::Welcome(1, welcome.clone()).encode(&mut out);
    let (mut encoder, mut decoder) = coders(Direction::FromReceiver, &hello.nonce, welcome);
    loop {
        stream.write_all(&out)?;
        stream.flush()?;
        out.clear();
        let frame = loop {
            if let Some(frame) = decoder.decode(&mut inbox).map_err(io::Error::other)? {
                break frame;
            }
            read_some(&mut stream, &mut inbox)?;
        };
        for reply in script(&frame.message) {
            match reply {
                Reply::Say(message) => encoder.encode(frame.channel, &message, &mut out),
                Reply::HangUp => {
                    stream.write_all(&out)?;
                    return stream.flush();
                }
                Reply::Repeat(next) => {
                    let mut number = 0;
                    while let Some(message) = next(number) {
                        encoder.encode(frame.channel, &message, &mut out);
                        stream.write_all(&out)?;
                        out.clear();
                        number += 1;
                    }
                }
            }
        }
    }
}

fn read_some(stream: &mut impl Read, inbox: &mut BytesMut) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    match read_arrived(stream, &mut buffer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            inbox.extend_from_slice(&buffer[..count]);
            Ok(())
        }
    }
}
