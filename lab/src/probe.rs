//! What a client does: ask who answers, over TCP, UDP and ICMP, from ports of its choice, and keep connections open.
//!
//! Everything here blocks and opens sockets of the calling thread's namespace: call it through [`Namespace::inside`].

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// How long one question may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A TCP connection that stays open, and who answered it.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// The application that accepted it.
    pub application: String,
    /// The client's port.
    pub source_port: u16,
    /// Where to.
    pub target: SocketAddr,
}

/// What became of an open connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This application answered.
    From(String),
    /// It was reset or closed.
    Reset,
    /// Nothing came back.
    Silence,
}

/// Any address of the same family.
pub const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

impl Connection {
    /// Connects, from `source_port` (0: any), and reads who answers.
    ///
    /// # Errors
    /// No connection, or no name, within `patience`.
    pub fn open(target: SocketAddr, source_port: u16, patience: Duration) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if source_port != 0 {
            socket.bind(&SocketAddr::new(unspecified(target.ip()), source_port).into())?;
        }
        socket.connect_timeout(&target.into(), patience).with_context(|| format!("connect to {target}"))?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let source_port = stream.local_addr()?.port();
        let mut stream = BufReader::new(stream);
        let mut name = String::new();
        stream.read_line(&mut name).with_context(|| format!("read the name from {target}"))?;
        if name.is_empty() {
            bail!("{target} closed the connection without a word");
        }
        Ok(Self { stream, application: name.trim().to_owned(), source_port, target })
    }

    /// Says something, and tells who answers.
    ///
    /// # Errors
    /// Other than a reset or silence: for a human.
    pub fn ask(&mut self, patience: Duration) -> Result<Answer> {
        self.stream.get_ref().set_read_timeout(Some(patience))?;
        let mut line = String::new();
        let answer = self.stream.get_mut().write_all(b"still there?\n").and_then(|()| self.stream.read_line(&mut line));
        match answer {
            Ok(0) => Ok(Answer::Reset),
            Ok(_) => Ok(Answer::From(line.split_whitespace().next().unwrap_or_default().to_owned())),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Ok(Answer::Reset),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(Answer::Silence),
                _ => Err(error).with_context(|| format!("ask {}", self.target)),
            },
        }
    }
}

/// Connects, asks, hears the same application twice, and closes. Returns its name.
///
/// # Errors
/// Any step fails.
pub fn ask_tcp(target: SocketAddr, patience: Duration) -> Result<String> {
    let mut connection = Connection::open(target, 0, patience)?;
    match connection.ask(patience)? {
        Answer::From(name) if name == connection.application => {}
        other => bail!("{target} was accepted by {} and then: {other:?}", connection.application),
    }
    // Closed in good order: whatever it still says is read.
    connection.stream.get_ref().shutdown(std::net::Shutdown::Write)?;
    let _ = connection.stream.read_to_end(&mut Vec::new());
    Ok(connection.application)
}

/// One datagram from `source_port` (0: any) and its answer: who gave it.
///
/// # Errors
/// No answer within `patience`.
pub fn ask_udp(target: SocketAddr, source_port: u16, patience: Duration) -> Result<String> {
    let socket = UdpSocket::bind(SocketAddr::new(unspecified(target.ip()), source_port))?;
    // Connected: only what comes from the target itself counts.
    socket.connect(target)?;
    socket.set_read_timeout(Some(patience))?;
    let question = format!("{source_port}-{:?}", Instant::now());
    socket.send(question.as_bytes())?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).with_context(|| format!("no answer from UDP {target}"))?;
    let answer = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    match answer.split_once(' ') {
        Some((name, echo)) if echo == question => Ok(name.to_owned()),
        _ => bail!("UDP {target} answered {answer:?} to {question:?}"),
    }
}

/// Sends one datagram with this source address. Not being allowed to (no route) is told as `false`.
///
/// # Errors
/// The socket cannot be opened.
pub fn send_from(source: IpAddr, target: SocketAddr, text: &str) -> Result<bool> {
    let socket = UdpSocket::bind(SocketAddr::new(source, 0)).with_context(|| format!("open UDP {source}"))?;
    Ok(socket.send_to(text.as_bytes(), target).is_ok())
}

/// A place where datagrams arrive.
#[derive(Debug)]
pub struct Sink {
    socket: UdpSocket,
}

impl Sink {
    /// Opens it in a namespace.
    ///
    /// # Errors
    /// The address is not there, or taken.
    pub fn open(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let socket = namespace.inside(|| UdpSocket::bind(address))?.with_context(|| format!("open UDP {address}"))?;
        Ok(Self { socket })
    }

    /// The next datagram: from whom, what.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn next(&self, patience: Duration) -> Result<Option<(IpAddr, String)>> {
        self.socket.set_read_timeout(Some(patience))?;
        let mut buffer = [0; 2048];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                Ok(Some((from.ip(), text)))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Pings an address `count` times from a namespace. Returns how many answers came.
///
/// # Errors
/// `ping` cannot be run or says something else than usual.
pub fn ping(namespace: &Namespace, address: IpAddr, count: u32) -> Result<u32> {
    let (address, count) = (address.to_string(), count.to_string());
    let output = namespace.run("ping", &["-n", "-q", "-c", &count, "-i", "0.02", "-W", "2", &address])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<_> = text.split_whitespace().collect();
    // `3 packets transmitted, 3 received, 0% packet loss`
    let received = words.windows(2).find(|pair| pair.last().is_some_and(|word| word.starts_with("received")));
    received
        .and_then(|pair| pair.first()?.parse().ok())
        .with_context(|| format!("ping {address}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// How long after `start` something was, or nothing if it was before.
pub fn after(start: SystemTime, at: SystemTime) -> Duration {
    at.duration_since(start).unwrap_or_default()
}
